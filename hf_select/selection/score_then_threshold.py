"""The best rows by score, without those that are too similar to one already taken."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hf_select.data import columns
from hf_select.paper import DEITA_PAPER, Paper
from hf_select.selection.budget import Budget
from hf_select.selection.ranking import Ranking, rank
from hf_select.selection.selector import Choice
from hf_select.selection.vectors import BLOCK, VectorSelector, has_vector, within_budget


if TYPE_CHECKING:
    from datasets import Dataset


# n rows, d dimensions, b rows of a block


@dataclass
class ScoreThenThreshold(VectorSelector):
    """Selects the best rows by score, passing over each that is too similar to one already taken: DEITA's filter.

    The paper calls what it compares a distance, but keeps a row when its cosine similarity to the nearest kept row is
    below the threshold; so it is a similarity here.

    Args:
        column: the score column.
        threshold: cosine similarity above which a row is too similar to another, between 0 and 1.
    Raises: ValueError if vectors and rows differ in number, or the filter leaves fewer rows than are requested.
    Reference: Liu et al. 2024, arXiv:2312.15685.
    """

    column: str
    threshold: float = 0.9  # the authors' setting

    paper: ClassVar[Paper | None] = DEITA_PAPER

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold is {self.threshold}; it must lie between 0 and 1.")

    def choose_among(self, units: np.ndarray, dataset: "Dataset", budget: Budget) -> Choice:
        """The best rows that pass `threshold_filter`."""
        scores = columns.score_values(dataset, self.column)
        ranked = rank(np.where(has_vector(units), scores, np.nan))
        kept = ((row,) for row in threshold_filter(units, ranked, self.threshold))
        order = np.array([row for (row,) in within_budget(budget, kept)], dtype=np.int64)
        what = f"of {len(ranked)} rows with a score and a vector are left by the filter at {self.threshold}"
        taken = budget.take(order, what)
        ranks = np.empty(len(dataset), dtype=np.int64)
        ranks[ranked] = np.arange(len(ranked))

        def reason(place: int, row: int) -> str:
            passed = ranks[row] - place
            return f"{self.column} {scores[row]:.6g}, rank {ranks[row] + 1}, {passed} better rows passed over as alike"

        seen = int(ranks[taken[-1]]) + 1
        counts = {"scored": len(ranked), "passed_over": seen - len(taken)}
        return Choice(taken, reason, scores, Ranking(scores, self.column, (self.column,)), counts=counts)


def threshold_filter(vectors: np.ndarray, order: np.ndarray, threshold: float) -> Iterator[int]:
    """Rows of `order` whose cosine similarity to every row kept before is at most `threshold`, one by one.

    Rows without a vector are passed over.
    """
    order = np.asarray(order, dtype=np.int64)
    order = order[np.isfinite(vectors[order]).all(axis=1)]
    kept = np.empty((BLOCK, vectors.shape[1]), dtype=np.float32)
    size = 0
    for start in range(0, len(order), BLOCK):
        block = order[start : start + BLOCK]
        units = vectors[block]  # (b, d)
        if size:
            new = (units @ kept[:size].T).max(axis=1) <= threshold
            block, units = block[new], units[new]
        within = units @ units.T
        chosen: list[int] = []
        for i in range(len(block)):
            if (within[i, chosen] <= threshold).all():
                chosen.append(i)
                yield int(block[i])
        while size + len(chosen) > len(kept):
            kept = np.concatenate([kept, np.empty_like(kept)])
        kept[size : size + len(chosen)] = units[chosen]
        size += len(chosen)
