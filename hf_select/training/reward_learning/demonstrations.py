"""Demonstrations as token ids, the answers of a policy to their prompts on disk, and what sets the two apart.

STAGE/
  manifest.json              what the answers depend on: weights, template, sampling, seed, rows
  generated/part-00000.parquet   answers to the next `rows_per_shard` prompts: token ids, whether the model ended it
  reference.parquet          log-probabilities of both completions under the reference of the stage (IRFT)
  reward/                    the reward while it learns from the stage (RFT)

Every file is written whole or not at all, and a part that is there is never made again. A prompt and its completion
are cut apart once, here: the ids that the policy answers are the ids that training puts before both completions.
"""

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from datasets.table import InMemoryTable

from hf_select.atomic import atomic_path, read_json, write_json
from hf_select.data import columns
from hf_select.data.bad_rows import BadRow
from hf_select.data.chat_template import counts
from hf_select.data.conversation import Conversation, conversations
from hf_select.data.encoding import encode_all, encode_prompts, response_end
from hf_select.jobs.run_folder import changed_settings


logger = logging.getLogger(__name__)

PROMPT, CHOSEN, REJECTED = "prompt_ids", "chosen_ids", "rejected_ids"  # the names that TRL's collator reads
REASON = "demonstration_reason"
CONVERSATION = "conversation"

MOST_LEFT_OUT = 0.25  # share of rows, where a trainer is not told otherwise


# --------------------------------------------------------------------------------------------------------------------
# rows -> token ids


def encode_demonstrations(
    batch: Mapping[str, list[Any]],
    tokenizer: Any,
    max_length: int,
    max_completion_length: int,
    room: int = 1,
    keep: bool = False,
) -> dict[str, list[Any]]:
    """For Dataset.map: prompt and completion ids of each row, and the reason why a row cannot be used ("": it can).

    The completion is what follows the prompt's ids in the whole row's, up to and with the one token that ends it. A
    demonstration that is longer than an answer may be is not used: cut short it would teach that answers do not end.

    Args:
        room: tokens that max_length must leave behind a prompt.
        keep: also keep the conversation, as JSON.
    """
    parsed = conversations(batch)
    rows = [row for row in parsed if isinstance(row, Conversation)]
    prompts = iter(encode_prompts(rows, tokenizer))
    wholes = iter(encode_all(rows, tokenizer, responses=False))
    end = response_end(tokenizer)
    found: dict[str, list[Any]] = {PROMPT: [], CHOSEN: [], REASON: [], **({CONVERSATION: []} if keep else {})}
    for row in parsed:
        prompt, chosen, reason = [], [], ""
        try:
            if isinstance(row, BadRow):
                raise row
            prompt, whole = next(prompts), next(wholes)
            if isinstance(prompt, BadRow):
                raise prompt
            if isinstance(whole, BadRow):
                raise whole
            chosen = _completion(row, prompt, whole.input_ids, end)
            if len(prompt) >= max_length:
                raise BadRow(f"the prompt alone has max_length = {max_length} tokens or more")
            if len(prompt) > max_length - room:
                raise BadRow(f"the prompt leaves less than {room} tokens of max_length = {max_length} for an answer")
            if len(chosen) > min(max_completion_length, max_length - len(prompt)):
                raise BadRow(
                    f"the response is longer than max_completion_length = {max_completion_length} tokens, or than "
                    f"max_length = {max_length} leaves room for"
                )
        except BadRow as bad:
            prompt, chosen, reason = [], [], str(bad)
        for name, value in ((PROMPT, prompt), (CHOSEN, chosen), (REASON, reason)):
            found[name].append(value)
        if keep:
            text = "" if reason else json.dumps({"messages": row.messages, "tools": row.tools})  # type: ignore[union-attr]
            found[CONVERSATION].append(text)
    return found


def kept_conversation(text: str, answer: str | None = None) -> Conversation:
    """The conversation of a row, or its prompt with another answer."""
    row = Conversation(**json.loads(text))
    if answer is None:
        return row
    return Conversation([*row.messages[:-1], {"role": "assistant", "content": answer}], row.tools)


def usable_demonstrations(
    dataset: Dataset, tokenizer: Any, args: Any, name: str, room: int = 1, keep: bool = False
) -> Dataset:
    """The rows of a dataset that can be used, as `prompt_ids` and `chosen_ids` beside their `row_id` (by default the
    row's number). One warning gives the share of the others and says why.

    Args:
        args: configuration of the trainer: max_length, max_completion_length, max_left_out, dataset_num_proc.
        name: of the dataset, for messages.
    Raises: ValueError if none is left, or if more than the share `max_left_out` cannot be used.
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
            "room": room,
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


def _completion(row: Conversation, prompt: list[int], whole: list[int], end: int) -> list[int]:
    reply = row.messages[-1]
    if not counts(reply):
        raise BadRow("the last response does not count (train, weight)")
    if not reply["content"].strip() and not reply.get("tool_calls"):
        raise BadRow("the response is empty")
    if whole[: len(prompt)] != prompt:
        raise BadRow(
            "the tokens of the prompt change when the response is put behind it, so the policy would be asked another "
            "prompt than it is trained on; end the template's generation prompt on a token boundary"
        )
    completion = whole[len(prompt) :]
    if end in completion:  # what the template writes behind it (a line break, mostly) no answer ever has
        last = len(completion) - 1 - completion[::-1].index(end)
        return completion[: last + 1]
    return [*completion, end]


# --------------------------------------------------------------------------------------------------------------------
# answers on disk


@dataclass
class StageFolder:
    """The answers of one stage, in parts.

    Args:
        identity: what the answers depend on; `model` in it is the digest of the weights that answer.
        rows: number of prompts.
    """

    folder: Path
    identity: dict[str, Any]
    rows: int
    rows_per_shard: int

    def open(self, remake: bool) -> None:
        """Make the folder, or hold an existing one to this identity.

        Args:
            remake: answers of other weights under the same settings are thrown away, not refused: the weights of a
                later stage come from training, which need not repeat itself bit by bit.
        """
        path = self.folder / "manifest.json"
        there = read_json(path)
        here = {**self.identity, "rows": self.rows, "rows_per_shard": self.rows_per_shard}
        if there is not None:
            self.rows_per_shard = there["rows_per_shard"]  # of a run with another number of processes
            here["rows_per_shard"] = self.rows_per_shard
            found = changed_settings({name: there.get(name) for name in here}, here)  # without a model any will do
            if not found:
                return
            only_weights = all(text.startswith("model ") for text in found)
            if not (remake and only_weights):
                raise ValueError(
                    f'"{self.folder}" holds answers of another run ({"; ".join(found)}). Choose another output_dir.'
                )
            for stale in (*self.folder.glob("generated/*"), self.folder / "reference.parquet"):
                stale.unlink(missing_ok=True)
            shutil.rmtree(self.folder / "reward", ignore_errors=True)
        (self.folder / "generated").mkdir(parents=True, exist_ok=True)
        write_json(path, here)

    def check(self) -> None:
        """Raise unless all answers and references are there: what training in the middle of a stage goes on with."""
        if self.missing() or not (self.folder / "reference.parquet").exists():
            raise ValueError(
                f'the checkpoint is in the middle of a stage whose answers in "{self.folder}" are not all there, and '
                "the weights that wrote them are gone; bring the folder back, or resume from the checkpoint at which "
                "the stage began."
            )

    @property
    def num_shards(self) -> int:
        return math.ceil(self.rows / self.rows_per_shard)

    def part(self, shard: int) -> Path:
        return self.folder / "generated" / f"part-{shard:05d}.parquet"

    def rows_of(self, shard: int) -> range:
        return range(shard * self.rows_per_shard, min((shard + 1) * self.rows_per_shard, self.rows))

    def missing(self) -> list[int]:
        return [shard for shard in range(self.num_shards) if not self.part(shard).exists()]

    def write(self, shard: int, answers: Sequence[list[int]], ended: Sequence[bool]) -> None:
        ids = pa.array(answers, pa.list_(pa.int32()))
        with atomic_path(self.part(shard)) as temporary:
            pq.write_table(pa.table({REJECTED: ids, "ended": pa.array(ended, pa.bool_())}), temporary)

    def read(self) -> Dataset:
        """All answers in the order of their prompts: `rejected_ids`, `ended`."""
        table = pa.concat_tables([pq.read_table(self.part(shard)) for shard in range(self.num_shards)])
        assert len(table) == self.rows, f"{len(table)} answers to {self.rows} prompts"
        return Dataset(InMemoryTable(table))

    def write_reference(self, values: np.ndarray) -> None:
        """(n, 2): of the demonstration and of the answer of each pair."""
        columns = {"ref_chosen_logps": values[:, 0], "ref_rejected_logps": values[:, 1]}
        with atomic_path(self.folder / "reference.parquet") as temporary:
            pq.write_table(pa.table(columns), temporary)

    def read_reference(self) -> Dataset | None:
        path = self.folder / "reference.parquet"
        return Dataset(InMemoryTable(pq.read_table(path))) if path.exists() else None


def stream_seed(*parts: Any) -> int:
    """64 bits from (seed, stage, prompt): the start of the random numbers that one answer is drawn with."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


# --------------------------------------------------------------------------------------------------------------------
# what sets demonstrations and answers apart


def length_auc(demonstrations: np.ndarray, answers: np.ndarray) -> float:
    """How well length alone tells demonstrations from answers: the probability that a random demonstration is longer
    than a random answer (ties count half), or its complement if that is larger. 0.5: not at all; 1: always."""
    order = np.sort(answers)
    below = np.searchsorted(order, demonstrations, side="left")
    upto = np.searchsorted(order, demonstrations, side="right")
    auc = float((below + upto).mean() / 2 / len(answers))
    return max(auc, 1 - auc)


def as_labels(demonstrations: Dataset) -> Dataset:
    """Encoded demonstrations as rows of the stock SFT trainer: the same ids, the completion alone as labels. What SFT
    at equal updates is compared on."""

    def row(prompt: list[int], chosen: list[int]) -> dict[str, list[int]]:
        return {"input_ids": [*prompt, *chosen], "labels": [*[-100] * len(prompt), *chosen]}

    return demonstrations.map(row, input_columns=[PROMPT, CHOSEN], remove_columns=demonstrations.column_names)
