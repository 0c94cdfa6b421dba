"""Rows that are far from each other: greedy k-center."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hf_select.data import columns
from hf_select.paper import Paper
from hf_select.selection.budget import Budget
from hf_select.selection.ranking import rank
from hf_select.selection.selector import Choice
from hf_select.selection.vectors import EQUAL_SIMILARITY, VectorSelector, has_vector, with_vectors, within_budget


if TYPE_CHECKING:
    from datasets import Dataset


# n rows, d dimensions


@dataclass
class FarthestFirst(VectorSelector):
    """Selects rows that are far from each other (greedy k-center).

    It covers the rare corners of a pool first, and so its outliers; FacilityLocation prefers what many rows are near.

    Args:
        column: score column whose best row is the first; without one the row nearest to the mean is. Later rows are
            chosen by distance alone.
    Raises: ValueError if vectors and rows differ in number, or fewer rows have a vector than are requested.
    Reference: Gonzalez 1985; Sener & Savarese 2018, arXiv:1708.00489.
    """

    column: str | None = None

    paper: ClassVar[Paper | None] = Paper(
        "1708.00489", "Active Learning for Convolutional Neural Networks: A Core-Set Approach", "Sener, Ozan", 2018
    )

    def choose_among(self, units: np.ndarray, dataset: "Dataset", budget: Budget) -> Choice:
        """Rows in the order of `farthest_first`."""
        first = self._first(units, dataset)
        distances = np.full(len(dataset), np.nan)
        order = []
        for row, distance in within_budget(budget, farthest_first(units, first)):
            order.append(row)
            distances[row] = distance
        taken = budget.take(np.array(order, dtype=np.int64), "have a vector")
        start = f"best {self.column}" if self.column is not None else "nearest to the mean"

        def reason(place: int, row: int) -> str:
            return f"at distance {distances[row]:.4f} from the rows before" if place else f"start, {start}"

        return Choice(taken, reason, distances)

    def _first(self, units: np.ndarray, dataset: "Dataset") -> int | None:
        if self.column is None:
            return None
        scores = columns.score_values(dataset, self.column)
        ranked = rank(np.where(has_vector(units), scores, np.nan))
        if len(ranked) == 0:
            raise ValueError(f"no row has both a vector and {self.column}; choose another column, or none.")
        return int(ranked[0])


def farthest_first(vectors: np.ndarray, first: int | None = None) -> Iterator[tuple[int, float]]:
    """(row, distance) in greedy k-center order: from `first` (default: the row nearest to the mean), each time the row
    whose nearest chosen row is farthest, and that distance, 1 - cosine. Ties go to the lower row.

    Gonzalez 1985: the largest distance left after k picks is at most twice the least possible with any k rows, where
    the triangle inequality holds. Sener & Savarese 2018 (arXiv:1708.00489) choose training rows so. O(n d) a pick.
    """
    rows, units = with_vectors(vectors)
    if first is None:
        start = units @ units.mean(axis=0)
        place = int(np.argmax(start >= start.max() - EQUAL_SIMILARITY))
    else:
        place = int(np.searchsorted(rows, first))
        if first not in rows[place : place + 1]:
            raise ValueError(f"row {first} has no vector to start from; choose another, or none.")
    zero = np.asarray(~units.any(axis=1))
    nearest = np.full(len(rows), -2, dtype=np.float32)  # similarity of each row to the chosen one nearest to it
    distance = float("nan")  # the first row has none
    for _ in range(len(rows)):
        yield int(rows[place]), distance
        np.maximum(nearest, units @ units[place], out=nearest)
        if zero[place]:  # a zero vector is similar to none, but one of them is enough
            nearest[zero] = np.maximum(nearest[zero], 1)
        nearest[place] = np.inf
        least = nearest.min()
        place = int(np.argmax(nearest <= least + EQUAL_SIMILARITY))
        distance = 1 - float(nearest[place])
