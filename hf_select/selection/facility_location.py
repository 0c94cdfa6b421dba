"""Rows that represent the pool: facility location, by lazy greedy choice."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from hf_select.selection.budget import Budget
from hf_select.selection.selector import Choice
from hf_select.selection.vectors import BLOCK, EQUAL_SIMILARITY, VectorSelector, with_vectors, within_budget


if TYPE_CHECKING:
    from datasets import Dataset


# n rows, d dimensions, b rows of a block

KEPT_BYTES = 3 << 29  # memory for similarities that are kept, 8 bytes each

# What agrees to these limits counts as equal, as in EQUAL_SIMILARITY.
_EQUAL_GAIN = 1e-5  # of the gain, and EQUAL_SIMILARITY more: two rows near none but each other have the same gain
_NO_GAIN = 1e-7  # for each row, and EQUAL_SIMILARITY more


@dataclass
class FacilityLocation(VectorSelector):
    """Selects rows that represent the pool: every row should have a similar chosen row.

    The first pass compares every row with every other: n * n * d multiplications.

    Raises: ValueError if vectors and rows differ in number, or fewer rows have a vector than are requested.
    Relations: Superfiltering (arXiv:2402.00530) takes the rows of high IFD and then facility location among them.
    Reference: Minoux 1978, for the lazy greedy choice.
    """

    def choose_among(self, units: np.ndarray, dataset: "Dataset", budget: Budget) -> Choice:
        """Rows in the order of `facility_location`."""
        gains = np.full(len(dataset), np.nan)
        order, covered = [], []
        for row, gain, nearer in within_budget(budget, _facility_picks(units)):
            order.append(row)
            covered.append(nearer)
            gains[row] = gain
        taken = budget.take(np.array(order, dtype=np.int64), "have a vector")

        def reason(place: int, row: int) -> str:
            return f"covers {covered[place]} rows better than those before, gain {gains[row]:.4f}"

        return Choice(taken, reason, gains, counts={"coverage": float(gains[taken].sum())})


def facility_location(vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, gains, nearer): the first k rows that greedy choice takes to maximise

        sum over i of max(0, max over chosen j of cos(i, j)),

    by how much each raised the sum, and how many rows it was nearer to than any row chosen before. At least 1 - 1/e of
    the best sum that k rows can have (Nemhauser et al. 1978). When nothing is left to gain, rows follow by number.
    """
    picks = list(islice(_facility_picks(vectors), k))
    rows, gains, nearer = zip(*picks, strict=True) if picks else ((), (), ())
    return np.array(rows, dtype=np.int64), np.array(gains), np.array(nearer, dtype=np.int64)


def _facility_picks(vectors: np.ndarray) -> Iterator[tuple[int, float, int]]:
    """(row, gain, rows that it was nearer to) by lazy greedy choice (Minoux 1978).

    A gain only shrinks as rows are chosen, so its last value is an upper bound. Only rows whose bound reaches the best
    current gain are computed again: many at a time, since a row costs less in a larger matrix product.
    """
    rows, units = with_vectors(vectors)
    bounds = _first_gains(units)  # float64 (n,)
    fresh = np.ones(len(rows), dtype=bool)
    nothing = _NO_GAIN * len(rows) + EQUAL_SIMILARITY
    coverage = _Coverage(units)
    for _ in range(len(rows)):
        size = 32
        while True:
            best = bounds[fresh].max(initial=0)
            reach = max(best * (1 - _EQUAL_GAIN) - EQUAL_SIMILARITY, nothing)
            stale = np.flatnonzero(~fresh & (bounds >= reach))
            if len(stale) == 0:
                break
            if len(stale) > size:
                stale = stale[np.argpartition(-bounds[stale], size)[:size]]
            bounds[stale] = coverage.gains(stale)
            fresh[stale] = True
            size = min(2 * size, BLOCK)
        if best < reach:
            break
        place = int(np.argmax(bounds >= reach))
        yield int(rows[place]), float(bounds[place]), coverage.choose(place)
        bounds[place] = -np.inf
        fresh[:] = False
    for place in np.flatnonzero(bounds > -np.inf):
        yield int(rows[place]), 0.0, 0


class _Coverage:
    """Similarity of each row to the nearest chosen row, and the gain of candidates.

    A candidate gains only from rows that it is nearer to than any chosen row. Their number falls with every pick, and
    once they are few their similarities are kept: then this candidate needs no more matrix products.
    """

    def __init__(self, units: np.ndarray):
        self.units = units
        self.nearest = np.zeros(len(units), dtype=np.float32)  # similarity of each row to the nearest chosen one
        self.kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # candidate -> rows, their similarities to it
        self.room = KEPT_BYTES // 8  # number of similarities that may still be kept
        self.few = 4 * self.room // len(units)  # most candidates keep far fewer, so the memory suffices

    def gains(self, candidates: np.ndarray) -> np.ndarray:
        """What each candidate would add to the sum, (candidates,)."""
        known = [candidate for candidate in candidates.tolist() if candidate in self.kept]
        others = [candidate for candidate in candidates.tolist() if candidate not in self.kept]
        sums = {candidate: self._gain(*self._narrowed(candidate)) for candidate in known}
        for candidate, similarity in zip(others, self.units[others] @ self.units.T, strict=True):
            near = self._nearer(similarity)
            sums[candidate] = self._gain(*near)
            if len(near[0]) <= min(self.few, self.room):
                self.kept[candidate] = near
                self.room -= len(near[0])
        return np.array([sums[candidate] for candidate in candidates.tolist()])

    def choose(self, candidate: int) -> int:
        """Choose a candidate. Returns: number of rows that are nearer to it than to any row chosen before."""
        if candidate in self.kept:
            rows, similarity = self._narrowed(candidate)
            self.room += len(rows)
            del self.kept[candidate]
        else:
            rows, similarity = self._nearer(self.units @ self.units[candidate])
        self.nearest[rows] = similarity
        return len(rows)

    def _nearer(self, similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = np.flatnonzero(similarity > self.nearest).astype(np.int32)
        return rows, similarity[rows]

    def _narrowed(self, candidate: int) -> tuple[np.ndarray, np.ndarray]:
        rows, similarity = self.kept[candidate]
        still = similarity > self.nearest[rows]
        self.kept[candidate] = rows[still], similarity[still]
        self.room += len(rows) - int(still.sum())
        return self.kept[candidate]

    def _gain(self, rows: np.ndarray, similarity: np.ndarray) -> float:
        return float((similarity - self.nearest[rows]).sum())


def _first_gains(units: np.ndarray) -> np.ndarray:
    """sum over i of max(0, cos(i, j)) for each j; each pair is multiplied once and counts for both."""
    gains = np.zeros(len(units))
    for start in range(0, len(units), BLOCK):
        stop = start + BLOCK
        similarity = units[start:stop] @ units[start:].T  # (b, n - start)
        np.maximum(similarity, 0, out=similarity)
        gains[start:stop] += similarity.sum(axis=1)
        gains[stop:] += similarity[:, BLOCK:].sum(axis=0)
    return gains
