"""Rows whose vectors together reconstruct the vector of a target: matching pursuit.

Dong et al. 2026, "Greedy Information Projection for LLM Data Selection" (GIP, arXiv:2603.13790): the mutual
information of a subset and a task is the length of the projection of the queries' vectors onto the span of the
subset's, and a greedy pursuit maximises it. A row gains by resembling the queries in what the rows before it lack, so
quality and diversity need no weight between them.

From the paper are the objective (with `orthogonal`) and the pursuit. Ours are: one target a task, the mean of its
queries, in place of the matrix of all queries; a row needs a positive product with the residual, because training can
add a row but not subtract it; several tasks in turn; further passes after a target is reconstructed, since a budget
may have more rows than a vector has dimensions.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hf_select.paper import Paper
from hf_select.selection.budget import Budget
from hf_select.selection.selector import Choice
from hf_select.selection.vectors import (
    EQUAL_SIMILARITY,
    StoredVectors,
    VectorSelector,
    has_vector,
    unit_vectors,
    with_vectors,
    within_budget,
)


if TYPE_CHECKING:
    from datasets import Dataset


# n rows, q queries of a task, t tasks, d dimensions, m rows taken in a pass

# A residual shorter than this share of its target is rounding of float32 vectors: the target is reconstructed.
_RECONSTRUCTED = 1e-3
# A row with a smaller cosine to the residual adds nothing. A copy of a taken row has 1e-7 / _RECONSTRUCTED at most.
_NO_GAIN = 2e-4


@dataclass
class MatchingPursuit(VectorSelector):
    """Selects rows whose vectors together reconstruct the mean vector of a task's queries; several tasks take turns.

    r = t, the mean of the queries' unit vectors; then again and again
    x = the row left with the largest <x, r>;   r <- r - <x, r> x   (orthogonal: t minus its projection on all x)

    A copy of a chosen row, or a row between chosen ones, is taken only after rows that add something. When no row left
    has a positive product with r, the target is reconstructed as far as it can be and a new pass begins with r = t.

    Args:
        targets: task -> vectors of its queries: array (q, d) or PoolIndex; on the command line TASK=FOLDER, made by
            hf-select index from the queries with the settings of the rows' index.
        orthogonal: project on all chosen rows of a pass at once (orthogonal matching pursuit): later rows add only
            what is orthogonal to those before. It keeps their m directions, m * d numbers, and a pass is shorter.
    Raises: ValueError if vectors and rows differ in number, if queries have no vector or other dimensions, or if fewer
        rows have a vector than are requested.
    Relations: RoundRobin takes the nearest rows of each target, however alike they are; FacilityLocation represents
        the pool and knows no target.
    Reference: Dong et al. 2026, arXiv:2603.13790; Mallat & Zhang 1993; Pati, Rezaiifar & Krishnaprasad 1993 for the
        orthogonal form.
    Differs from the paper: see the module's docstring.
    """

    targets: dict[str, np.ndarray | StoredVectors | str]
    orthogonal: bool = False

    paper: ClassVar[Paper | None] = Paper(
        "2603.13790", "Greedy Information Projection for LLM Data Selection", "Dong, Victor Ye", 2026
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.targets, Mapping) or not self.targets:
            raise ValueError(
                "targets must name at least one task: MatchingPursuit(vectors, {TASK: query_vectors}), on the command "
                "line --targets TASK=FOLDER, a folder of hf-select index for the queries."
            )

    def settings(self) -> dict[str, object]:
        """The settings, with the shapes of the queries' vectors in place of their numbers."""
        shapes = {task: f"vectors of shape {_array(task, given).shape}" for task, given in self.targets.items()}
        return {**super().settings(), "targets": shapes}

    def choose_among(self, units: np.ndarray, dataset: "Dataset", budget: Budget) -> Choice:
        """Rows in the order in which the targets take them."""
        tasks = list(self.targets)
        means = [_mean_query(task, given, units.shape[1]) for task, given in self.targets.items()]
        gains = np.full(len(dataset), np.nan)
        order, how = [], []
        for row, target, gain, number in within_budget(budget, _pursuit(units, means, self.orthogonal)):
            order.append(row)
            how.append((target, number))
            gains[row] = gain
        taken = budget.take(np.array(order, dtype=np.int64), "have a vector")
        how = how[: len(taken)]

        def reason(place: int, row: int) -> str:
            target, number = how[place]
            if gains[row] == 0:
                return f"adds nothing to target {tasks[target]}"
            later = f", pass {number}" if number > 1 else ""
            return f"adds {gains[row]:.4f} of target {tasks[target]}{later}"

        first = dict.fromkeys(tasks, 0.0)
        for (target, number), row in zip(how, taken, strict=True):
            first[tasks[target]] += float(gains[row]) if number == 1 else 0.0
        counts = {
            "taken_for": dict(Counter(tasks[target] for target, _ in how)),
            "reconstructed": first,  # share of each target's squared length, in its first pass
            "passes": max((number for _, number in how), default=0),
            "scored": int(has_vector(units).sum()),
        }
        return Choice(taken, reason, gains, counts=counts)


def matching_pursuit(
    vectors: np.ndarray, targets: Sequence[np.ndarray], k: int, orthogonal: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, targets, gains): the first k rows that the pursuit takes, the target that each was taken for, and how
    much it reduced the squared length of that target's residual, as a share of the target's.

    Args:
        vectors: unit vectors (n, d), NaN throughout for a row that has none.
        targets: vectors (d,), of any length but 0.
    """
    picks = [pick[:3] for pick in islice(_pursuit(vectors, targets, orthogonal), k)]
    rows, of_target, gains = zip(*picks, strict=True) if picks else ((), (), ())
    return np.array(rows, dtype=np.int64), np.array(of_target, dtype=np.int64), np.array(gains, dtype=np.float64)


def _pursuit(
    vectors: np.ndarray, targets: Sequence[np.ndarray], orthogonal: bool
) -> Iterator[tuple[int, int, float, int]]:
    """(row, target, gain, pass) of every row that has a vector. Ties go to the lower row.

    A round, in which every target takes a row, is one product of all rows with the residuals: n * t * d
    multiplications. Bounds from earlier rounds would save few of them: a step takes from the residual as much as the
    product of the best row, which is more than rows differ by.
    """
    rows, units = with_vectors(vectors)
    residuals = [_Residual(target, orthogonal) for target in targets]
    to_targets = units @ np.stack([residual.direction for residual in residuals]).T  # (n, t)
    left = np.ones(len(rows), dtype=bool)
    while True:
        to_residuals = units @ np.stack([residual.direction for residual in residuals]).T  # (n, t)
        for target, residual in enumerate(residuals):
            if not left.any():
                return
            cosines = np.where(left, to_residuals[:, target], -np.inf)
            if cosines.max() < _NO_GAIN:
                cosines = np.where(left, to_targets[:, target], -np.inf)
                if cosines.max() >= _NO_GAIN:
                    residual.restart()
            best = cosines.max()
            place = int(np.argmax(cosines >= best - EQUAL_SIMILARITY))
            gain = residual.take(units[place]) if best >= _NO_GAIN else 0.0
            left[place] = False
            yield int(rows[place]), target, gain, residual.number


class _Residual:
    """What the rows taken so far in this pass leave of a target, float64."""

    def __init__(self, target: np.ndarray, orthogonal: bool):
        self.target = np.asarray(target, dtype=np.float64)  # (d,)
        self.orthogonal = orthogonal
        self.number = 0  # of the pass
        self.restart()

    def restart(self) -> None:
        """Begin a new pass."""
        self.number += 1
        self.vector = self.target.copy()
        self.basis = np.zeros((16, len(self.target)))  # orthonormal, (m, d) and room for more
        self.size = 0  # m

    @property
    def direction(self) -> np.ndarray:
        """Of length 1, float32; zero once the target is reconstructed."""
        length, whole = np.linalg.norm(self.vector), np.linalg.norm(self.target)
        if length < _RECONSTRUCTED * whole:
            return np.zeros(len(self.target), dtype=np.float32)
        return (self.vector / length).astype(np.float32)

    def take(self, unit: np.ndarray) -> float:
        """Take a row off. Returns: the reduction of the squared length, as a share of the target's."""
        direction = unit.astype(np.float64)
        if self.orthogonal:
            direction = self._orthogonalised(direction)
        along = float(self.vector @ direction)
        self.vector -= along * direction
        return along**2 / float(self.target @ self.target)

    def _orthogonalised(self, direction: np.ndarray) -> np.ndarray:
        """The part of a row that is orthogonal to those before, at length 1, which joins the basis."""
        basis = self.basis[: self.size]
        for _ in range(2):  # the second time takes off the rounding of the first (Giraud et al. 2005)
            direction = direction - (basis @ direction) @ basis
        direction /= np.linalg.norm(direction)  # not 0: the row has a cosine of _NO_GAIN to the residual at least
        if self.size == len(self.basis):
            self.basis = np.concatenate([self.basis, np.zeros_like(self.basis)])
        self.basis[self.size] = direction
        self.size += 1
        return direction


def _mean_query(task: str, given: np.ndarray | StoredVectors | str, dimensions: int) -> np.ndarray:
    """Mean of the unit vectors of a task's queries, (d,)."""
    queries = _array(task, given)
    if queries.ndim != 2 or len(queries) == 0:
        raise ValueError(f'target "{task}" has vectors of shape {queries.shape}; one a query is needed, (q, d).')
    if queries.shape[1] != dimensions:
        raise ValueError(
            f'target "{task}" has vectors of {queries.shape[1]} dimensions, the rows of {dimensions}; encode both '
            "with one model."
        )
    units = unit_vectors(queries)
    without = np.flatnonzero(~has_vector(units))
    if len(without):
        raise ValueError(f'query {without[0]} of target "{task}" has no vector; fix or remove it.')
    mean = units.mean(axis=0, dtype=np.float64)
    if np.linalg.norm(mean) < EQUAL_SIMILARITY:
        raise ValueError(f'the mean of the queries of target "{task}" is zero; split it into several tasks.')
    return mean


def _array(task: str, given: np.ndarray | StoredVectors | str) -> np.ndarray:
    if isinstance(given, str):
        raise ValueError(f'target "{task}" is the text "{given}"; give the vectors of its queries, or a PoolIndex.')
    return np.asarray(given.to_numpy() if isinstance(given, StoredVectors) else given)
