"""Which rows come into a mixture: those that can be read, repeat no earlier row and hold no text of a test."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import xxhash
from datasets import Dataset

from hf_select.data.bad_rows import BadRow, readable_rows
from hf_select.data.conversation import Conversation
from hf_select.data.encoding import encode_all
from hf_select.data.exact_json import dumps
from hf_select.data.text import exact, text_of
from hf_select.mixtures.draws import batches
from hf_select.mixtures.source import BATCH, SourceRow
from hf_select.selection.decontaminate import Decontaminate
from hf_select.selection.dedup import first_of_each, near_copies


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_COPY, _TEST = "repeats an earlier row", "holds text of an evaluation set"


@dataclass
class Admission:
    """Decides row by row which rows come in, and counts the others.

    Args:
        dedup: rows that repeat an earlier one are passed over: exact copies, near copies, or none.
        bad_rows: rows that cannot be read raise an error, or are passed over.
        tokenizer: Hub id or path, to count tokens where a source has no column num_tokens.
        tests: the fitted evaluation sets, if there are some.
    Attributes:
        passed_over: source -> reason -> rows.
        overlap: "a and b" -> rows of b that repeat a row of a.
    """

    dedup: Literal["exact", "near", "none"]
    bad_rows: Literal["error", "skip"]
    tokenizer: str | None
    tests: Decontaminate | None
    passed_over: dict[str, Counter[str]] = field(default_factory=dict, init=False)
    overlap: Counter[str] = field(default_factory=Counter, init=False)
    _seen: dict[int, str] = field(default_factory=dict, init=False)  # hash of a row's text -> its source
    _near_copies: dict[str, set[int]] = field(default_factory=dict, init=False)  # source -> rows

    def reset(self, sources: Iterable[str]) -> None:
        """Forget all rows, and count again from 0."""
        self.passed_over = {name: Counter() for name in sources}
        self.overlap, self._seen = Counter(), {}

    @property
    def admits_all(self) -> bool:
        """Whether no row is ever passed over."""
        return self.dedup == "none" and self.tests is None and self.bad_rows == "error"

    def find_near_copies(self, sources: Mapping[str, Iterator[SourceRow]], threshold: float) -> None:
        """Find the rows of each source that repeat one of it, or of an earlier source, exactly or nearly."""
        texts, places = [], []
        for name, rows in sources.items():
            for row in rows:
                if isinstance(row.conversation, Conversation):
                    texts.append(text_of(row.conversation))
                    places.append((name, row.number))
        order = np.arange(len(texts))
        first = first_of_each(texts, order)
        near = near_copies(texts, order[[first[i] == i for i in order.tolist()]], threshold)
        self._near_copies = {name: set() for name in sources}
        for i, same in first.items():
            if same != i or same in near:
                (name, number), (other, _) = places[i], places[near[same][0] if same in near else same]
                self._near_copies[name].add(number)
                self.overlap[f"{other} and {name}"] += name != other

    def admit(self, name: str, rows: Iterator[SourceRow], unit: str) -> Iterator[tuple[SourceRow, int, int]]:
        """(row, hash of its text, cost in the unit of the budget) of each row that is not passed over.

        Rows are decided lazily, one by one: those that were chosen before decide what repeats an earlier one.
        """
        for batch in batches(rows, BATCH):
            readable = readable_rows(row.conversation for row in batch)
            tests, costs = iter(self._of_tests(readable)), iter(self._costs(batch, readable, unit))
            for row in batch:
                reason, key, cost = self.unreadable(name, row), 0, 0
                if isinstance(row.conversation, Conversation):
                    test, cost = next(tests), next(costs)
                    reason = reason or test or (str(cost) if isinstance(cost, BadRow) else "")
                    if not reason:
                        key = self._key(row.conversation)
                        reason = self._repeats(name, key, row.number)
                if reason:
                    self.passed_over[name][reason] += 1
                else:
                    yield row, key, cast(int, cost)

    def remember(self, name: str, key: int) -> None:
        """A row of the source with this hash was taken: later rows with the same text repeat it."""
        if self.dedup == "exact":
            self._seen.setdefault(key, name)

    def unreadable(self, name: str, row: SourceRow) -> str:
        """Why a row cannot be read, or an empty text.

        Raises: ValueError if such rows are errors.
        """
        reason = str(row.conversation) if isinstance(row.conversation, BadRow) else ""
        if reason and self.bad_rows == "error":
            raise ValueError(
                f'row {row.number} of source "{name}" cannot be taken: {reason}. Fix it, or set bad_rows=skip.'
            )
        return reason

    def _of_tests(self, rows: list[Conversation]) -> list[str]:
        if self.tests is None or not rows:
            return [""] * len(rows)
        texts = [{"messages": dumps(row.messages)} if row.text is None else {"text": row.text} for row in rows]
        removed = self.tests.remove(Dataset.from_list(texts)).reasons
        return [_TEST if i in removed else "" for i in range(len(rows))]

    def _costs(self, batch: list[SourceRow], readable: list[Conversation], unit: str) -> list[int | BadRow]:
        if unit != "tokens":
            return [1] * len(readable)
        if self.tokenizer is not None:
            encoded = encode_all(readable, self._loaded_tokenizer, responses=False)
            return [row if isinstance(row, BadRow) else len(row.input_ids) for row in encoded]
        counts = [row.num_tokens for row in batch if isinstance(row.conversation, Conversation)]
        return [BadRow("num_tokens is null") if count is None else count for count in counts]

    def _key(self, row: Conversation) -> int:
        return xxhash.xxh3_64_intdigest(exact(text_of(row)).encode()) if self.dedup == "exact" else 0

    def _repeats(self, name: str, key: int, number: int) -> str:
        if self.dedup == "near":
            return _COPY if number in self._near_copies.get(name, ()) else ""
        other = self._seen.get(key) if self.dedup == "exact" else None
        if other is None:
            return ""
        self.overlap[f"{other} and {name}"] += other != name
        return _COPY

    @cached_property
    def _loaded_tokenizer(self) -> "PreTrainedTokenizerBase":
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.tokenizer)
