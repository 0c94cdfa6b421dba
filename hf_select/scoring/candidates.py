"""Two-stage scoring: a cheap scorer ranks all rows, and an expensive one scores the best of them, the candidates."""

import json
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import xxhash
from datasets import Dataset

from hf_select.data import columns
from hf_select.data.rows import Pool
from hf_select.selection.selection import Selection, row_hashes


# c candidates


@dataclass(eq=False)
class Candidates:
    """The rows of a pool that are scored; the others have no score, with a reason.

    Args:
        selection: the candidates. They are found in the pool by their `row_id`; those of a selection from rows without
            a `row_id` by their numbers.
        pool: the rows that they are found in.
    Raises: ValueError if a candidate is not in the pool, or differs from the row there. A stream is checked while it
        is read.
    """

    selection: Selection
    pool: Pool
    _rank: dict[Any, int] = field(init=False, repr=False)  # row_id -> place in the selection

    def __post_init__(self) -> None:
        if len(self.selection) == 0:
            raise ValueError("the candidates are an empty selection; there is nothing to score.")
        if self.selection.row_ids is None:
            self.selection = replace(self.selection, row_ids=self._row_ids_by_number())
        row_ids = cast(list[Any], self.selection.row_ids)
        self._rank = {row_id: rank for rank, row_id in enumerate(row_ids)}
        if None in self._rank or len(self._rank) < len(row_ids):
            raise ValueError(
                f"row_id must be unique among the candidates; {len(row_ids)} candidates have {len(self._rank)} "
                f"values{', null among them' if None in self._rank else ''}."
            )
        if self.pool.rows is not None:
            self.places(self.pool.dataset)
            self.check_found(self.pool.dataset.with_format(None)[columns.ROW_ID][:])

    def __len__(self) -> int:
        return len(self.selection)

    def __contains__(self, row_id: object) -> bool:
        return row_id in self._rank

    def places(self, rows: Dataset) -> np.ndarray:
        """The candidates among these rows of the pool, by their places there, ascending.

        Raises: ValueError if one of them is not the row that was selected.
        """
        row_ids = rows.with_format(None)[columns.ROW_ID][:]
        places = np.array([place for place, row_id in enumerate(row_ids) if row_id in self._rank], dtype=np.int64)
        ranks = [self._rank[row_ids[place]] for place in places]
        shared = [name for name in self.selection.hashes if name in rows.column_names and name != columns.ROW_ID]
        for name, hashes in row_hashes(rows, places, shared).items() if len(places) else ():
            differing = np.flatnonzero(hashes != self.selection.hashes[name][ranks])
            if len(differing):
                raise ValueError(
                    f'column "{name}" differs in {len(differing):,} of {len(places):,} candidates, first in row_id '
                    f"{row_ids[places[differing[0]]]!r}: they were selected from other rows. Select them from these."
                )
        return places

    def check_found(self, row_ids: Any) -> None:
        """Raise ValueError if a candidate is not among the `row_ids` of the pool."""
        if missing := set(self._rank).difference(row_ids):
            first = min(missing, key=lambda row_id: self._rank[row_id])
            raise ValueError(
                f"{len(missing):,} of {len(self):,} candidates are not among the rows (first: row_id {first!r}); "
                "select the candidates from these rows."
            )

    def spread(
        self, scores: dict[str, list[Any]], places: np.ndarray, num_rows: int, reasons: str
    ) -> dict[str, list[Any]]:
        """The columns of all rows of a chunk from those of its candidates, null elsewhere.

        Args:
            scores: column -> values of the candidates.
            places: where the candidates are among the rows.
            reasons: name of the reason column.
        """
        out = {}
        for name, values in scores.items():
            out[name] = [f"not among the candidates: {self.chosen_by}" if name == reasons else None] * num_rows
            for place, value in zip(places, values, strict=True):
                out[name][place] = value
        return out

    @property
    def chosen_by(self) -> str:
        """What chose the candidates, e.g. "TopK by score_tfidf took 100 of 1,000 rows"."""
        steps = ", then ".join(_step(step) for step in self.selection.chain)
        taken = f"{len(self):,} of {self.selection.num_rows:,} rows"
        return f"{steps} took {taken}" if steps else f"{len(self):,} rows were given"

    def identity(self) -> str:
        """Everything that the scores depend on: which rows are candidates, and what the reasons of the others say."""
        ids = xxhash.xxh3_64_hexdigest(
            "\n".join(sorted(json.dumps(row_id, default=str) for row_id in self._rank)).encode()
        )
        return f"{self.chosen_by} ({ids})"

    def _row_ids_by_number(self) -> list[Any]:
        if self.pool.rows is None:
            raise ValueError(
                "the candidates have no row_id, by which rows of a stream are found. Select them from rows with a "
                "row_id, or load the dataset without streaming."
            )
        self.selection.check(self.pool.dataset)
        row_ids = self.pool.dataset.with_format(None).select_columns([columns.ROW_ID])
        return row_ids.select(self.selection.indices)[columns.ROW_ID][:]


def _step(step: dict[str, Any]) -> str:
    ranked_by = step.get("ranked_by")
    return f"{step['selector']} by {ranked_by['name']}" if ranked_by else str(step["selector"])
