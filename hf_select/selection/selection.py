"""What a selector returns: the rows, their order and reasons, and how they were chosen."""

import json
import os
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from hf_select.atomic import atomic_path
from hf_select.data import columns
from hf_select.data.conversation import readable_columns, without_nulls
from hf_select.data.exact_json import columns_of
from hf_select.selection.ranking import Ranking


if TYPE_CHECKING:
    from datasets import Dataset


_HASH = "hash of "  # before a column's name, in the file
_JSON = json.JSONEncoder(sort_keys=True, default=str)


class _Selects(Protocol):
    """What `Selection.then` needs of a Selector."""

    def among(self, rows: np.ndarray, dataset: "Dataset") -> "_Selects": ...

    def __call__(
        self, dataset: "Dataset", k: int | None = None, fraction: float | None = None, tokens: int | None = None
    ) -> "Selection": ...


@dataclass(eq=False, repr=False)
class Selection:
    """Rows chosen from a dataset, best first, each with its rank and the reason it was taken.

    Args:
        indices: row numbers in the dataset, in rank order, each at most once.
        num_rows: rows of the dataset that was selected from.
        reasons: why each row was taken, in the same order.
        scores: the number that ranked each row, or None where nothing was ranked.
        row_ids: `row_id` of the chosen rows, if the dataset has that column.
        hashes: for each column that identifies a row (`row_id` and those that rows are read from) a hash of its value
            in each chosen row, uint64, in the same order. `check` compares a dataset with them.
        chain: the steps that made this selection, oldest first: one dict of settings and counts each.
        provenance: of a published selection, where its rows came from and what scored them.
        pool_scores: what every row of the dataset was ranked by (num_rows,), NaN where it was not ranked; None where
            nothing was ranked. `explain` reads it for rows that were not chosen.
    """

    indices: np.ndarray
    num_rows: int
    reasons: list[str]
    scores: np.ndarray | None = None
    row_ids: list[Any] | None = None
    hashes: dict[str, np.ndarray] = field(default_factory=dict)
    chain: list[dict[str, Any]] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    pool_scores: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.indices = np.asarray(self.indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        steps = "".join(f"; {s['selector']} {s['num_rows']:,} -> {s['selected']:,}" for s in self.chain)
        ranked = self.scores is not None and len(self) and np.isfinite(self.scores).all()
        scores = (
            f"; scores {self.scores[0]:.4g} to {self.scores[-1]:.4g}" if self.scores is not None and ranked else ""
        )
        return f"Selection({len(self):,} of {self.num_rows:,} rows{steps}{scores})"

    def _repr_html_(self, shown: int = 5) -> str:
        """The counts and the first rows, for notebooks."""
        rows = zip(range(1, shown + 1), self.indices.tolist(), self.reasons, strict=False)
        cells = "".join(f"<tr><td>{rank}</td><td>{row}</td><td>{escape(why)}</td></tr>" for rank, row, why in rows)
        more = f"<p>and {len(self) - shown:,} more rows</p>" if len(self) > shown else ""
        return (
            f"<p>{escape(repr(self))}</p><table><thead><tr><th>rank</th><th>row</th><th>reason</th></tr></thead>"
            f"<tbody>{cells}</tbody></table>{more}"
        )

    def explain(self, row: int) -> str:
        """Why row number `row` of the dataset is in the selection, or why not: its score and rank, and the scores that
        were taken."""
        if not 0 <= row < self.num_rows:
            raise ValueError(f"row is {row}; the dataset has rows 0 to {self.num_rows - 1}.")
        ranks = np.flatnonzero(self.indices == row)
        if len(ranks) == 0:
            return f"row {row} was not selected ({len(self):,} of {self.num_rows:,} were){self._why_not(row)}"
        return f"row {row} has rank {ranks[0] + 1} of {len(self)}: {self.reasons[ranks[0]]}"

    @property
    def ranking(self) -> Ranking | None:
        """What the last step ranked the rows of the dataset by; None if it ranked by no number that every row has."""
        ranked_by = self.chain[-1].get("ranked_by") if self.chain else None
        if ranked_by is None or self.pool_scores is None:
            return None
        return Ranking(self.pool_scores, **{**ranked_by, "columns": tuple(ranked_by["columns"])})

    @property
    def num_candidates(self) -> int:
        """Rows that the last step could choose from: those with a score, where it needs one."""
        return self.chain[-1].get("scored", self.num_rows) if self.chain else self.num_rows

    def _why_not(self, row: int) -> str:
        """The score and the rank of a row that was not chosen, compared with the scores of the chosen ones."""
        ranking = self.ranking
        if ranking is None or self.scores is None:
            return ""
        score = float(ranking.values[row])
        if np.isnan(score):
            earlier = ", ".join(earlier["selector"] for earlier in self.chain[:-1])
            return f": it has no {ranking.name}" + (f", or an earlier step left it out ({earlier})" if earlier else "")
        if np.isinf(score):
            return f": its {ranking.name} is {score}, and only finite scores are ranked"
        low, high = ranking.bounds
        if not low <= score <= high:
            return f": its {ranking.name} of {score:.6g} is out of the bounds [{low:g}, {high:g}]"
        num_ranked = int(np.isfinite(ranking.keys()).sum())
        taken = f"scores from {self.scores.min():.6g} to {self.scores.max():.6g} were taken"
        inside = self.scores.min() < score < self.scores.max()
        note = f"; {self.chain[-1]['selector']} does not go by the score alone" if inside else ""
        return f": its {ranking.name} is {score:.6g}, rank {ranking.place(row):,} of {num_ranked:,}; {taken}{note}"

    def check(self, dataset: "Dataset") -> None:
        """Raise ValueError if the dataset is not the one that was selected from: it has another number of rows, or a
        column that identifies rows differs in a chosen row. Columns added or removed since do not matter."""
        columns.check_rows(dataset)
        if len(dataset) != self.num_rows:
            raise ValueError(
                f"the selection was made on {self.num_rows} rows, this dataset has {len(dataset)}; "
                "apply it to the dataset it was made on."
            )
        self._compare(dataset, self.indices)

    def check_left(self, dataset: "Dataset") -> None:
        """Raise ValueError if the dataset is not the rows that this selection left, in rank order."""
        if len(dataset) != len(self):
            raise ValueError(f"the selection left {len(self)} rows, this dataset has {len(dataset)}.")
        self._compare(dataset, np.arange(len(self)))

    def _compare(self, dataset: "Dataset", rows: np.ndarray) -> None:
        by_number = "or take the rows by their numbers: dataset.select(selection.indices)."
        if not self.hashes:
            raise ValueError(
                "the selection has no hashes of its rows (made by hand, or saved by an earlier version): a changed "
                f"dataset would go unnoticed. Select again, {by_number}"
            )
        common = [name for name in self.hashes if name in dataset.column_names]
        if not common:
            raise ValueError(
                f"the selection knows its rows by {list(self.hashes)}, and this dataset has {dataset.column_names}. "
                f"Apply it to a dataset with one of these columns, {by_number}"
            )
        for name, hashes in row_hashes(dataset, rows, common).items():
            differing = np.flatnonzero(hashes != self.hashes[name])
            if len(differing):
                raise ValueError(
                    f'column "{name}" differs in {len(differing)} of {len(self)} chosen rows, first in row '
                    f"{rows[differing[0]]}: the dataset was reordered or changed since. Apply the selection to the "
                    f"dataset it was made on, {by_number}"
                )

    def apply(self, dataset: "Dataset") -> "Dataset":
        """The selected rows in rank order, with the columns `selection_rank` (from 1) and `selection_reason`.

        Raises: ValueError if the dataset is not the one that was selected from.
        """
        self.check(dataset)
        subset = dataset.select(self.indices)
        added = {
            columns.SELECTION_RANK: np.arange(1, len(self) + 1),
            columns.SELECTION_REASON: np.array(self.reasons, dtype=object),
        }
        subset = subset.remove_columns([name for name in added if name in subset.column_names])
        for name, values in added.items():
            subset = subset.add_column(name, list(values))
        return subset

    def then(self, selector: "_Selects", dataset: "Dataset", **budget: Any) -> "Selection":
        """Select from what this selection left: `selector(self.apply(dataset), **budget)`, as rows of the dataset.

        A selector by vectors takes those of the whole dataset, such as its PoolIndex, or of the rows left.
        """
        return self.compose(selector.among(self.indices, dataset)(self.apply(dataset), **budget))

    def compose(self, later: "Selection") -> "Selection":
        """A later selection from this one's rows, as a selection from the original dataset."""
        if later.num_rows != len(self):
            raise ValueError(f"the later selection was made from {later.num_rows} rows, this one left {len(self)}.")
        for name in self.hashes.keys() & later.hashes.keys():
            if (self.hashes[name][later.indices] != later.hashes[name]).any():
                raise ValueError(f'the later selection was made from other rows: column "{name}" differs.')
        pool_scores = None
        if later.pool_scores is not None:
            pool_scores = np.full(self.num_rows, np.nan)
            pool_scores[self.indices] = later.pool_scores
        return Selection(
            indices=self.indices[later.indices],
            num_rows=self.num_rows,
            reasons=[f"{self.reasons[i]}; then {why}" for i, why in zip(later.indices, later.reasons, strict=True)],
            scores=later.scores,
            row_ids=None if self.row_ids is None else [self.row_ids[i] for i in later.indices],
            hashes={name: values[later.indices] for name, values in self.hashes.items()},
            chain=[*self.chain, *later.chain],
            pool_scores=pool_scores,
        )

    def diff(self, other: "Selection") -> dict[str, list[int]]:
        """Row numbers in both selections, only in this one, and only in the other."""
        mine, theirs = set(self.indices.tolist()), set(other.indices.tolist())
        return {"both": sorted(mine & theirs), "only_self": sorted(mine - theirs), "only_other": sorted(theirs - mine)}

    def save(self, path: str | os.PathLike) -> None:
        """Write one Parquet file atomically: index, reason, score, row_id and hashes by rank, the chain in its
        metadata. The scores of the whole dataset are one list in the first row."""
        table: dict[str, Any] = {"index": self.indices, "reason": pa.array(self.reasons, pa.string())}
        if self.scores is not None:
            table["score"] = np.asarray(self.scores, dtype=np.float64)
        if self.row_ids is not None:
            table[columns.ROW_ID] = self.row_ids
        table |= {_HASH + name: values for name, values in self.hashes.items()}
        if self.pool_scores is not None and len(self):
            ends = np.full(len(self) + 1, len(self.pool_scores))
            ends[0] = 0
            table["pool_scores"] = pa.LargeListArray.from_arrays(ends, self.pool_scores)
        meta = json.dumps({"num_rows": self.num_rows, "chain": self.chain, "provenance": self.provenance})
        with atomic_path(Path(path)) as temporary:
            pq.write_table(pa.table(table).replace_schema_metadata({"hf_select": meta}), temporary)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Selection":
        """The selection that `save` wrote. In a file of an earlier version only `row_id` identifies rows."""
        table = pq.read_table(path)
        meta = (table.schema.metadata or {}).get(b"hf_select")
        if meta is None:
            raise ValueError(f'"{path}" was not written by Selection.save.')
        present, known = table.column_names, json.loads(meta)
        row_ids = table[columns.ROW_ID].to_pylist() if columns.ROW_ID in present else None
        hashes = {name.removeprefix(_HASH): table[name].to_numpy() for name in present if name.startswith(_HASH)}
        if not hashes and row_ids is not None:
            hashes = {columns.ROW_ID: _hashed(row_ids)}
        pool: Any = table["pool_scores"].combine_chunks() if "pool_scores" in present else None
        return cls(
            indices=table["index"].to_numpy(),
            num_rows=known["num_rows"],
            reasons=table["reason"].to_pylist(),
            scores=table["score"].to_numpy() if "score" in present else None,
            row_ids=row_ids,
            hashes=hashes,
            chain=known["chain"],
            provenance=known.get("provenance", {}),
            pool_scores=None if pool is None else pool.flatten().to_numpy(),
        )


def identifying_columns(names: list[str]) -> list[str]:
    """The columns that identify a row: `row_id` and those that rows are read from; without any of these all that are
    not scores, and if there are only scores these."""
    known = [name for name in names if name == columns.ROW_ID] + readable_columns(names)
    added = (columns.NUM_TOKENS, columns.SELECTION_RANK)
    own = [n for n in names if not (n.startswith(columns.SCORE_PREFIX) or n.endswith("_reason") or n in added)]
    return known or own or names


def row_hashes(dataset: "Dataset", rows: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    """For each column a hash of its value in each of the rows, uint64. It depends on the content alone, not on the
    dataset's format, its file or the type of string."""
    order = np.argsort(rows, kind="stable")  # reads the file from front to back
    read = dataset.with_format("arrow").select_columns(names).select(rows[order])
    hashes = {name: np.empty(len(rows), dtype=np.uint64) for name in names}
    for start in range(0, len(rows), 1000):
        # A file is read with JSON columns where the types of its rows differ, and a part of it perhaps without them.
        values = columns_of(read[start : start + 1000], read.features)
        for name in names:
            hashes[name][order[start : start + 1000]] = _hashed(values[name])
    return hashes


def _hashed(values: list[Any]) -> np.ndarray:
    # The same row may come from JSON or from a struct, whose nulls cannot be told from those that were written.
    texts = (v if isinstance(v, str) else "\0" + _JSON.encode(without_nulls(v, keep_written=False)) for v in values)
    return np.fromiter((xxhash.xxh3_64_intdigest(text.encode()) for text in texts), np.uint64, len(values))
