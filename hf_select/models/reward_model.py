"""Loads a reward model (a sequence classifier with one label), and encodes its inputs."""

from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_select.data.bad_rows import BadRow, map_rows
from hf_select.data.conversation import Conversation
from hf_select.data.encoding import Encoded, encode_all, response_close
from hf_select.jobs.retry import with_retries
from hf_select.models.load_errors import checked_dtype
from hf_select.models.loading import device_of


if TYPE_CHECKING:
    from torch import Tensor


def whole_rows(
    rows: Sequence[Conversation], tokenizer: Any, ended: Sequence[bool] | None = None
) -> list["list[int] | BadRow"]:
    """Token ids of conversations that end with a response, as input of a reward model.

    Args:
        ended: whether the response ended with a stop token. Without it, the template's end mark is left out.
    """
    return map_rows(attrgetter("input_ids"), encode_whole(rows, tokenizer, ended))


def encode_whole(
    rows: Sequence[Conversation], tokenizer: Any, ended: Sequence[bool] | None = None
) -> list[Encoded | BadRow]:
    """`whole_rows` as Encoded, with the notes of the template."""
    close = response_close(tokenizer)

    def closed(encoded: Encoded, whole: bool) -> Encoded:
        if close and not whole:
            return replace(encoded, input_ids=encoded.input_ids[: -len(close)])
        if not close and whole and tokenizer.eos_token_id is not None:
            return replace(encoded, input_ids=[*encoded.input_ids, tokenizer.eos_token_id])
        return encoded

    return map_rows(
        closed, encode_all(list(rows), tokenizer, responses=False), [True] * len(rows) if ended is None else ended
    )


def padded(sequences: Sequence[Any], device: Any) -> "tuple[Tensor, Tensor]":
    """(B, T) ids, padded on the right with 0, and the attention mask."""
    import torch

    longest = max(map(len, sequences))
    ids = np.zeros((2, len(sequences), longest), dtype=np.int64)
    for b, sequence in enumerate(sequences):
        ids[0, b, : len(sequence)], ids[1, b, : len(sequence)] = sequence, 1
    both = torch.from_numpy(ids).to(device)
    return both[0], both[1]


def _load(spec: Any, rank: int | None = None) -> Any:
    from transformers import AutoModelForSequenceClassification

    source = spec.source.location
    options = {"revision": spec.source.commit, "trust_remote_code": spec.trust_remote_code}
    try:
        model, info = with_retries(
            lambda: AutoModelForSequenceClassification.from_pretrained(
                source,
                dtype=checked_dtype(spec.dtype),
                use_safetensors=True,
                device_map={"": device_of(spec.device, rank)},
                output_loading_info=True,
                **options,
            ),
            source,
        )
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise _no_reward_model(spec.reward_model, "transformers knows no classifier of this type") from None
    if info["missing_keys"]:  # transformers only warns, and initialises them randomly
        raise _no_reward_model(spec.reward_model, f"its files lack {sorted(info['missing_keys'])[:2]}")
    if model.config.num_labels != 1:
        raise _no_reward_model(spec.reward_model, f"it has {model.config.num_labels} labels, not one")
    return model.eval()


def _no_reward_model(name: str, why: str) -> ValueError:
    return ValueError(
        f'"{name}" is not a reward model: {why}. Give a sequence-classification model with one label, as '
        "RewardTrainer trains it."
    )
