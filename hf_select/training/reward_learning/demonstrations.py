"""Demonstrations as token ids.

Prompt and completion are separated once, here: the ids that the policy answers are the ids that training puts before
both completions.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from datasets import Dataset

from hf_select.data import columns
from hf_select.data.bad_rows import BadRow, attempt, readable_rows
from hf_select.data.chat_template import counts
from hf_select.data.conversation import Conversation, conversations
from hf_select.data.encoding import encode_all, encode_prompts, response_end


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


logger = logging.getLogger(__name__)

PROMPT, CHOSEN, REJECTED = "prompt_ids", "chosen_ids", "rejected_ids"  # the names that TRL's collator reads
REASON = "demonstration_reason"
CONVERSATION = "conversation"

DEFAULT_MAX_LEFT_OUT = 0.25


class DemonstrationLimits(Protocol):
    """What `usable_demonstrations` reads of a trainer's configuration."""

    max_length: int
    max_completion_length: int
    max_left_out: float
    dataset_num_proc: int | None


def encode_demonstrations(
    batch: Mapping[str, Sequence[Any]],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    max_completion_length: int,
    min_answer_tokens: int = 1,
    keep: bool = False,
) -> dict[str, list[Any]]:
    """For Dataset.map: prompt and completion ids of each row, and the reason why a row cannot be used (or "").

    The completion is what follows the prompt's ids in the ids of the whole row, up to and including the one token
    that ends it. A demonstration that is longer than the longest answer is not used: cut, it would teach that answers
    do not end.

    Args:
        min_answer_tokens: tokens that max_length must leave after a prompt.
        keep: also keep the conversation, as JSON.
    """
    parsed = conversations(batch)
    rows = readable_rows(parsed)
    prompts = iter(encode_prompts(rows, tokenizer))
    encoded_rows = iter(encode_all(rows, tokenizer, responses=False))
    end = response_end(tokenizer)

    def split(row: Conversation, prompt: list[int], row_ids: list[int]) -> tuple[list[int], list[int], str]:
        chosen = _completion(row, prompt, row_ids, end)
        _check_lengths(len(prompt), len(chosen), max_length, max_completion_length, min_answer_tokens)
        return prompt, chosen, json.dumps({"messages": row.messages, "tools": row.tools}) if keep else ""

    columns_of: dict[str, list[Any]] = {PROMPT: [], CHOSEN: [], REASON: [], **({CONVERSATION: []} if keep else {})}
    for row in parsed:
        if isinstance(row, BadRow):
            encoded: tuple[list[int], list[int], str] | BadRow = row
        else:
            encoded_row = next(encoded_rows)
            row_ids = encoded_row if isinstance(encoded_row, BadRow) else encoded_row.input_ids
            encoded = attempt(split, row, next(prompts), row_ids)
        prompt, chosen, text = ([], [], "") if isinstance(encoded, BadRow) else encoded
        reason = str(encoded) if isinstance(encoded, BadRow) else ""
        for name, value in {PROMPT: prompt, CHOSEN: chosen, REASON: reason, CONVERSATION: text}.items():
            if name in columns_of:
                columns_of[name].append(value)
    return columns_of


def _check_lengths(
    prompt: int, chosen: int, max_length: int, max_completion_length: int, min_answer_tokens: int
) -> None:
    if prompt >= max_length:
        raise BadRow(f"the prompt alone has max_length = {max_length} tokens or more")
    if prompt > max_length - min_answer_tokens:
        raise BadRow(
            f"the prompt leaves less than {min_answer_tokens} tokens of max_length = {max_length} for an answer"
        )
    if chosen > min(max_completion_length, max_length - prompt):
        raise BadRow(
            f"the response is longer than max_completion_length = {max_completion_length} tokens, or than "
            f"max_length = {max_length} leaves for it"
        )


def kept_conversation(text: str, answer: str | None = None) -> Conversation:
    """The conversation of a row, or its prompt with another answer."""
    row = Conversation(**json.loads(text))
    if answer is None:
        return row
    return Conversation([*row.messages[:-1], {"role": "assistant", "content": answer}], row.tools)


def usable_demonstrations(
    dataset: Dataset,
    tokenizer: "PreTrainedTokenizerBase",
    args: DemonstrationLimits,
    name: str,
    min_answer_tokens: int = 1,
    keep: bool = False,
) -> Dataset:
    """The usable rows of a dataset as `prompt_ids` and `chosen_ids`, with their `row_id` (by default the row's
    number). One warning gives the share of the other rows and the reasons.

    Args:
        args: configuration of the trainer.
        name: of the dataset, for messages.
        min_answer_tokens, keep: see `encode_demonstrations`.
    Raises: ValueError if no row is usable, or if more than the share `max_left_out` is not.
    """
    if columns.ROW_ID not in dataset.column_names:
        dataset = dataset.add_column(columns.ROW_ID, list(range(len(dataset))))  # type: ignore[call-arg]
    encoded = dataset.map(
        encode_demonstrations,
        batched=True,
        fn_kwargs={
            "tokenizer": tokenizer,
            "max_length": args.max_length,
            "max_completion_length": args.max_completion_length,
            "min_answer_tokens": min_answer_tokens,
            "keep": keep,
        },
        remove_columns=[column for column in dataset.column_names if column != columns.ROW_ID],
        num_proc=args.dataset_num_proc,
        desc=f"Demonstrations of {name} as tokens",
    )
    reasons = np.array(encoded[REASON])
    kept = np.flatnonzero(reasons == "")
    if len(kept) < len(encoded):
        texts, frequencies = np.unique(reasons[reasons != ""], return_counts=True)
        most = sorted(zip(frequencies.tolist(), texts.tolist(), strict=True), reverse=True)[:3]
        listed = "; ".join(f"{count} x {text}" for count, text in most)
        total, share = len(encoded), 1 - len(kept) / len(encoded)
        text = f"{total - len(kept)} of {total} rows of {name} cannot be used ({100 * share:.3g} %: {listed})"
        if len(kept) == 0:
            raise ValueError(f"{text}: no demonstration is left.")
        if share > args.max_left_out:
            raise ValueError(
                f"{text}, and max_left_out is {args.max_left_out:g}; raise max_completion_length (tokens of a "
                f"response, {args.max_completion_length}) or max_length ({args.max_length}), or max_left_out to train "
                "on the others."
            )
        logger.warning("%s and are left out.", text)
    return encoded.remove_columns(REASON).select(kept)


def _completion(row: Conversation, prompt: list[int], row_ids: list[int], end: int) -> list[int]:
    reply = row.messages[-1]
    if not counts(reply):
        raise BadRow("the last response does not count (train, weight)")
    if not reply["content"].strip() and not reply.get("tool_calls"):
        raise BadRow("the response is empty")
    if row_ids[: len(prompt)] != prompt:
        raise BadRow(
            "the tokens of the prompt change when the response is appended, so the policy would answer another prompt "
            "than it is trained on; end the template's generation prompt on a token boundary"
        )
    completion = row_ids[len(prompt) :]
    if end in completion:  # no answer has what the template writes after it (mostly a line break)
        last = len(completion) - 1 - completion[::-1].index(end)
        return completion[: last + 1]
    return [*completion, end]


def stream_seed(*parts: object) -> int:
    """Seed of 64 bits for the random stream of one answer, from (seed, stage, prompt)."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def as_labels(demonstrations: Dataset) -> Dataset:
    """Encoded demonstrations as rows of the stock SFT trainer: the same ids, with labels on the completion alone."""

    def row(prompt: list[int], chosen: list[int]) -> dict[str, list[int]]:
        return {"input_ids": [*prompt, *chosen], "labels": [*[-100] * len(prompt), *chosen]}

    return demonstrations.map(row, input_columns=[PROMPT, CHOSEN], remove_columns=demonstrations.column_names)
