"""The log of a stage's answers: counts, lengths, how well length alone separates the two sides, samples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from transformers.utils import logging

from hf_select.atomic import atomic_path
from hf_select.data import columns
from hf_select.training.reward_learning.demonstrations import CHOSEN, PROMPT, REJECTED


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


logger = logging.get_logger(__name__)

_LENGTH_AUC_WARNING = 0.8  # above it length alone nearly separates demonstrations from answers


def length_auc(demonstrations: np.ndarray, answers: np.ndarray) -> float:
    """How well length alone separates demonstrations from answers: the probability that a random demonstration is
    longer than a random answer (ties count half), or its complement if that is larger. 0.5: not at all; 1: always."""
    order = np.sort(answers)
    below = np.searchsorted(order, demonstrations, side="left")
    upto = np.searchsorted(order, demonstrations, side="right")
    auc = float((below + upto).mean() / 2 / len(answers))
    return max(auc, 1 - auc)


def stage_report(pairs: Dataset, generation: Mapping[str, float]) -> dict[str, float]:
    """The log of a stage's answers. Warns if length alone separates them from the demonstrations.

    Args:
        pairs: demonstrations and answers.
        generation: what making the answers took.
    """
    chosen, rejected = (np.array([len(ids) for ids in pairs[name]]) for name in (CHOSEN, REJECTED))
    ended = np.array(pairs["ended"])
    identical = sum(a == b for a, b in zip(pairs[CHOSEN], pairs[REJECTED], strict=True))
    auc = length_auc(chosen, rejected)
    if auc > _LENGTH_AUC_WARNING:
        logger.warning(
            "Length alone separates demonstrations (mean %.0f tokens) from answers (%.0f; %.0f %% cut) with an AUC of "
            "%.2f: the policy may learn the length and nothing else. Compare max_completion_length with the "
            "demonstrations, and the prompts with those that the model was trained on.",
            chosen.mean(),
            rejected.mean(),
            100 * (~ended).mean(),
            auc,
        )
    return {
        "stage/answers": float(len(pairs)),
        "stage/identical": float(identical),
        "stage/empty": float(((rejected == 1) & ended).sum()),
        "stage/cut": float((~ended).sum()),
        "stage/length_chosen": float(chosen.mean()),
        "stage/length_rejected": float(rejected.mean()),
        "stage/ended_chosen": 1.0,  # longer demonstrations were left out before
        "stage/ended_rejected": float(ended.mean()),
        "stage/length_auc": auc,
        **{f"stage/generation_{name}": value for name, value in generation.items()},
    }


def write_completions(
    path: Path, pairs: Dataset, tokenizer: "PreTrainedTokenizerBase", step: int, number: int
) -> None:
    """Write a table of demonstrations and answers as text to a Parquet file, and print it."""
    texts = {"prompt": PROMPT, "demonstration": CHOSEN, "answer": REJECTED}
    decoded: dict[str, Sequence[str]] = {
        title: tokenizer.batch_decode(list(pairs[column])) for title, column in texts.items()
    }
    table = pa.table(
        {
            "step": [step] * len(pairs),
            "stage": [number] * len(pairs),
            columns.ROW_ID: list(pairs[columns.ROW_ID]),
            **decoded,
            "ended": list(pairs["ended"]),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)
    for row in table.to_pylist():
        print(f"[{path.stem}] {row['prompt']!r}\n  demonstration {row['demonstration']!r}\n  answer {row['answer']!r}")
