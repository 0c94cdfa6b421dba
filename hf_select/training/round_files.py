"""Files of selection while training: a table of each round, and the state in each checkpoint.

OUTPUT_DIR/_data_selection/round-00000.parquet   candidates, scores, selected rows. Trainer.push_to_hub does not upload
                                                 names that begin with an underscore.
OUTPUT_DIR/checkpoint-N/data_selection.npz       row numbers and state of the score; `trainer_state.json` has its hash

Rows are identified by their number in the dataset that the user gave to the trainer, and by `row_id` if it has one:
TRL's trainers drop and shuffle rows before they train.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from datasets import Dataset

from hf_select.atomic import atomic_path
from hf_select.data import columns
from hf_select.training import _compat


if TYPE_CHECKING:
    from transformers import Trainer


logger = logging.getLogger(__name__)

STATE_FILE = "data_selection.npz"


@dataclass
class GivenRows:
    """The rows of the user's dataset that are trained on.

    Args:
        numbers: number in the user's dataset of each row of trainer.train_dataset.
        dropped: rows that the trainer dropped; None if unknown.
        cut: rows of max_length tokens, the length at which longer rows are cut.
    """

    numbers: np.ndarray
    dropped: int | None
    cut: int

    @classmethod
    def of(cls, trainer: "Trainer") -> "GivenRows":
        """The rows of a trainer. Warns if rows were dropped or may be cut, or if their numbers are unknown."""
        dataset = cast(Dataset, trainer.train_dataset)
        max_length: int | None = getattr(trainer.args, "max_length", None)
        numbers, given = _compat.given_rows(trainer)
        cut = 0 if max_length is None else int((_token_counts(dataset) >= max_length).sum())
        if numbers is None:
            if columns.ROW_ID not in dataset.column_names:
                logger.warning(
                    "%s may have dropped rows and does not say which: rows are numbered as it kept them. Add a column "
                    "row_id to the dataset to identify them.",
                    type(trainer).__name__,
                )
            return cls(np.arange(len(dataset)), None, cut)
        if given > len(dataset) or cut:
            logger.warning(
                "%s left out %d of the %d rows that it was given, and %d of those it kept reach max_length = %s, "
                "where longer ones are cut. The files of the selection have row numbers of the dataset given.",
                type(trainer).__name__, given - len(dataset), given, cut, max_length,
            )  # fmt: skip
        return cls(numbers, given - len(dataset), cut)


def write_round(
    path: Path,
    dataset: Dataset,
    numbers: np.ndarray,
    rows: np.ndarray,
    scores: dict[str, np.ndarray],
    chosen: np.ndarray,
) -> None:
    """Write the table of a round.

    Args:
        numbers: of all rows of the dataset, in the user's dataset.
        rows: indices of the candidates in the dataset; `scores` are theirs.
        chosen: indices of the rows to train on, in their order.
    """
    rank = {row: place for place, row in enumerate(chosen.tolist())}
    missing = np.setdiff1d(chosen, rows)  # in a warm-up round that scores other rows than it trains on
    rows = np.concatenate([rows, missing])
    ids = {}
    if columns.ROW_ID in dataset.column_names:
        ids[columns.ROW_ID] = dataset.select_columns([columns.ROW_ID]).with_format("arrow").select(rows.tolist())[:][0]
    filled = {name: np.concatenate([v, np.full(len(missing), np.nan)]) for name, v in scores.items()}
    places = pa.array([rank.get(row) for row in rows.tolist()], pa.int64())
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        pq.write_table(pa.table({"row": numbers[rows], **ids, **filled, "place": places}), temporary)


def save_state(path: Path, arrays: dict[str, np.ndarray], score: dict[str, Any]) -> None:
    """Write the state of the selection.

    Args:
        score: state of the online score: arrays and JSON values.
    """
    named = {f"score/{name}": value for name, value in score.items() if isinstance(value, np.ndarray)}
    plain = json.dumps({name: value for name, value in score.items() if not isinstance(value, np.ndarray)})
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays, **named, score=np.frombuffer(plain.encode(), np.uint8))  # pyright: ignore


def load_state(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays, state of the online score), as `save_state` got them."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    score = json.loads(arrays.pop("score").tobytes())
    score |= {name.removeprefix("score/"): arrays.pop(name) for name in [*arrays] if name.startswith("score/")}
    return arrays, score


def state_digest(arrays: dict[str, np.ndarray], score: dict[str, Any]) -> str:
    """Hash of what `save_state` writes, which `trainer_state.json` keeps."""
    digest = xxhash.xxh3_128()
    for name, value in sorted({**arrays, **score}.items()):
        digest.update(name.encode())
        digest.update(value.tobytes() if isinstance(value, np.ndarray) else json.dumps(value).encode())
    return digest.hexdigest()


def _token_counts(dataset: Dataset) -> np.ndarray:
    """Tokens of each row as TRL's trainers count them against max_length, (N,); zeros for rows without token ids."""

    def lengths(name: str) -> np.ndarray:
        lists = cast(pa.ChunkedArray, dataset.select_columns([name]).with_format("arrow")[:][name])
        return pc.fill_null(pc.list_value_length(lists), 0).to_numpy()  # pyright: ignore[reportAttributeAccessIssue]

    if "input_ids" in dataset.column_names:
        return lengths("input_ids")
    if "completion_input_ids" in dataset.column_names:  # KTOTrainer of trl 0.24 and 1.0: with the prompt
        return lengths("completion_input_ids")
    for ids in ("ids", "input_ids"):  # trl 1.16, trl 0.24
        answers = [f"{name}_{ids}" for name in ("chosen", "rejected", "completion")]
        answers = [name for name in answers if name in dataset.column_names]
        if f"prompt_{ids}" in dataset.column_names and answers:
            return lengths(f"prompt_{ids}") + np.max([lengths(name) for name in answers], axis=0)
    return np.zeros(len(dataset), dtype=np.int64)
