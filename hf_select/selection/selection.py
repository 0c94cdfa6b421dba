"""What a selector returns: which rows, in which order, why, and how they were chosen."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_select import columns
from hf_select.files import written_whole


@dataclass
class Selection:
    """Rows chosen from a dataset, best first, each with its rank and the reason it was taken.

    Args:
        indices: row numbers in the dataset, in rank order, each at most once.
        num_rows: rows of the dataset that was selected from.
        reasons: why each row was taken, in the same order.
        scores: the number that ranked each row, or None where nothing was ranked.
        row_ids: `row_id` of the chosen rows, if the dataset has that column.
        content: a hash of each column over a sample of the chosen rows; `apply` holds the dataset to it.
        chain: the steps that made this selection, oldest first: one dict of settings and counts each.
        provenance: of a published selection, where its rows came from and what scored them.
    """

    indices: np.ndarray
    num_rows: int
    reasons: list[str]
    scores: np.ndarray | None = None
    row_ids: list[Any] | None = None
    content: dict[str, str] = field(default_factory=dict)
    chain: list[dict[str, Any]] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.indices = np.asarray(self.indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def explain(self, row: int) -> str:
        """Why row number `row` of the dataset is in the selection, or that it is not."""
        ranks = np.flatnonzero(self.indices == row)
        if len(ranks) == 0:
            return f"row {row} was not selected ({len(self)} of {self.num_rows} were)"
        return f"row {row} has rank {ranks[0] + 1} of {len(self)}: {self.reasons[ranks[0]]}"

    def check(self, dataset: Any) -> None:
        """Raise ValueError if the dataset is not the one that was selected from."""
        if len(dataset) != self.num_rows:
            raise ValueError(
                f"the selection was made on {self.num_rows} rows, this dataset has {len(dataset)}; "
                "apply it to the dataset it was made on."
            )
        found = content_hashes(dataset, self.indices)
        common = [name for name in found if name in self.content]
        if common and not any(found[name] == self.content[name] for name in common):
            raise ValueError("the chosen rows differ from those selected: the dataset was reordered or changed since.")
        if self.row_ids is not None and columns.ROW_ID in dataset.column_names:
            ids = dataset.select_columns([columns.ROW_ID]).select(self.indices)[columns.ROW_ID]
            if list(ids) != list(self.row_ids):
                raise ValueError("row_id of the chosen rows differs: the dataset was reordered or changed since.")

    def apply(self, dataset: Any) -> Any:
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

    def then(self, selector: Any, dataset: Any, **budget: Any) -> "Selection":
        """Select from what this selection left: `selector(self.apply(dataset), **budget)`, as rows of the dataset."""
        return self.compose(selector(self.apply(dataset), **budget))

    def compose(self, later: "Selection") -> "Selection":
        """A selection that was made from this one's rows, as one from the dataset this one was made from."""
        if later.num_rows != len(self):
            raise ValueError(f"the later selection was made from {later.num_rows} rows, this one left {len(self)}.")
        return Selection(
            indices=self.indices[later.indices],
            num_rows=self.num_rows,
            reasons=[f"{self.reasons[i]}; then {why}" for i, why in zip(later.indices, later.reasons, strict=True)],
            scores=later.scores,
            row_ids=None if self.row_ids is None else [self.row_ids[i] for i in later.indices],
            content=later.content,
            chain=[*self.chain, *later.chain],
        )

    def diff(self, other: "Selection") -> dict[str, list[int]]:
        """Row numbers in both selections, only in this one, and only in the other."""
        mine, theirs = set(self.indices.tolist()), set(other.indices.tolist())
        return {"both": sorted(mine & theirs), "only_self": sorted(mine - theirs), "only_other": sorted(theirs - mine)}

    def save(self, path: str | os.PathLike) -> None:
        """One Parquet file: index, reason, score and row_id by rank, the chain in its metadata. Written whole or not
        at all."""
        table: dict[str, Any] = {"index": self.indices, "reason": pa.array(self.reasons, pa.string())}
        if self.scores is not None:
            table["score"] = np.asarray(self.scores, dtype=np.float64)
        if self.row_ids is not None:
            table[columns.ROW_ID] = self.row_ids
        kept = ("num_rows", "content", "chain", "provenance")
        meta = json.dumps({name: getattr(self, name) for name in kept})
        with written_whole(Path(path)) as temporary:
            pq.write_table(pa.table(table).replace_schema_metadata({"hf_select": meta}), temporary)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Selection":
        """The selection that `save` wrote."""
        table = pq.read_table(path)
        meta = (table.schema.metadata or {}).get(b"hf_select")
        if meta is None:
            raise ValueError(f'"{path}" was not written by Selection.save.')
        present = table.column_names
        return cls(
            indices=table["index"].to_numpy(),
            reasons=table["reason"].to_pylist(),
            scores=table["score"].to_numpy() if "score" in present else None,
            row_ids=table[columns.ROW_ID].to_pylist() if columns.ROW_ID in present else None,
            **json.loads(meta),
        )


def content_hashes(dataset: Any, indices: np.ndarray, sample: int = 200) -> dict[str, str]:
    """Hash of each column over up to `sample` of the rows, spread evenly. Columns that are the same in all of them are
    left out, since they would tell nothing apart."""
    spread = indices[np.unique(np.linspace(0, len(indices) - 1, min(sample, len(indices))).astype(np.int64))]
    rows = dataset.select(spread)
    hashes = {}
    for name in dataset.column_names:
        values = [json.dumps(value, sort_keys=True, default=str) for value in rows[name]]
        if len(set(values)) > 1 or len(values) == 1:
            hashes[name] = hashlib.sha256("\n".join(values).encode()).hexdigest()[:32]
    return hashes


def select(
    dataset: Any,
    order: np.ndarray,
    reasons: Callable[[int, int], str],
    scores: np.ndarray | None,
    step: dict[str, Any],
) -> Selection:
    """A Selection of `order` (row numbers, best first) from a dataset; `reasons(rank, row)` words each."""
    row_ids = None
    if columns.ROW_ID in dataset.column_names:
        row_ids = list(dataset.select_columns([columns.ROW_ID]).select(order)[columns.ROW_ID])
    return Selection(
        indices=order,
        num_rows=len(dataset),
        reasons=[reasons(rank, int(row)) for rank, row in enumerate(order)],
        scores=None if scores is None else scores[order],
        row_ids=row_ids,
        content=content_hashes(dataset, order),
        chain=[{**step, "num_rows": len(dataset), "selected": len(order)}],
    )
