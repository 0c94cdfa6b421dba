"""A scored pool as reports and dataset cards read it: rows are parsed once, and columns are read once."""

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa

from hf_select.data import columns
from hf_select.data.bad_rows import BadRow
from hf_select.data.conversation import Conversation, readable_columns
from hf_select.data.rows import conversations_of, pool_fingerprint
from hf_select.data.text import characters_of


if TYPE_CHECKING:
    from datasets import Dataset


class PoolView:
    """Lengths, scores, reasons and fingerprint of a pool, each computed once.

    One pass parses the rows in batches. It keeps two numbers a row, and the conversations of those rows alone that are
    shown or published.

    Args:
        dataset: every row with its scores.
    Attributes:
        text_columns: columns that rows are parsed from; empty for scores without their rows.
        score_columns: numeric columns called score_*.
    """

    def __init__(self, dataset: "Dataset"):
        self.dataset = dataset
        self.text_columns = readable_columns(dataset.column_names)
        self.score_columns = _score_columns(dataset)
        self._lengths: dict[str, np.ndarray] | None = None
        self._kept: dict[int, Conversation | BadRow] = {}
        self._values: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def parse(self, keep: Iterable[int] = ()) -> None:
        """Parse every row once, and keep the conversations of the rows `keep`.

        Raises: RuntimeError if the rows were parsed before.
        """
        if self._lengths is not None:
            raise RuntimeError("the rows of this pool were parsed before; name all rows to keep in the first call.")
        self._lengths = {}
        if not self.text_columns:
            return
        of_row, of_responses = (np.full(len(self), np.nan) for _ in range(2))
        kept = set(keep)
        for row, parsed in enumerate(conversations_of(self.dataset)):
            if row in kept:
                self._kept[row] = parsed
            if not isinstance(parsed, BadRow):
                of_row[row] = characters_of(parsed, "all")
                of_responses[row] = characters_of(parsed, "response")
        self._lengths = {"characters": of_row, "characters of responses": of_responses}

    @property
    def lengths(self) -> dict[str, np.ndarray]:
        """Characters of each row and of its responses, (rows,), NaN where a row cannot be read."""
        if self._lengths is None:
            self.parse()
        assert self._lengths is not None
        return self._lengths

    def conversation(self, row: int) -> Conversation | BadRow:
        """The row as it was parsed; one of those that `parse` kept."""
        return self._kept[row]

    def score(self, column: str) -> np.ndarray:
        """A number column as float64 (rows,), NaN where a row has no number or an infinite one."""
        values = self._numbers(column)
        return np.where(np.isfinite(values), values, np.nan)

    def unscored(self, column: str) -> np.ndarray:
        """The rows that have no number in a column."""
        return np.flatnonzero(np.isnan(self._numbers(column)))

    def reasons(self, score: str, rows: np.ndarray) -> list[str]:
        """Why these rows have no score. Scores of single tasks share the reasons of their scorer."""
        name, present = columns.reason_column(score), self.dataset.column_names
        while name not in present and "_" in name.removesuffix("_reason"):
            name = name.removesuffix("_reason").rpartition("_")[0] + "_reason"
        if name not in present:
            return ["no reason on record"] * len(rows)
        texts = self.dataset.with_format(None).select_columns([name]).select(rows)[name]
        return [reason or "no reason on record" for reason in texts]

    @cached_property
    def fingerprint(self) -> str | None:
        """Hash of the text columns of all rows; None for scores without their rows."""
        return pool_fingerprint(self.dataset.select_columns(self.text_columns)) if self.text_columns else None

    def _numbers(self, column: str) -> np.ndarray:
        if column not in self._values:
            self._values[column] = columns.numeric_column(self.dataset, column, "")
        return self._values[column]


def _score_columns(dataset: "Dataset") -> list[str]:
    schema = cast(pa.Table, dataset.with_format("arrow")[:0]).schema if len(dataset) else pa.schema([])
    return [
        field.name
        for field in schema
        if field.name.startswith(columns.SCORE_PREFIX)
        and (pa.types.is_floating(field.type) or pa.types.is_integer(field.type))
    ]
