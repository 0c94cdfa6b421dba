"""Rows whose vectors together reconstruct those of a task's queries: matching pursuit.

Dong et al. 2026, "Greedy Information Projection for LLM Data Selection" (GIP, arXiv:2603.13790): the mutual
information of a subset and a task is the length of the projection of the queries' vectors onto the span of the
subset's, and a greedy pursuit maximises it. A row gains by resembling the queries in what the rows before it lack, so
quality and diversity need no weight between them.

From the paper are the objective and the pursuit (mode projection). Ours are: a row needs a positive product with the
mean residual, because training can add a row but not subtract it; several tasks in turn; further passes once a pass
has nothing to add, since a budget may have more rows than a vector has dimensions; and the two classical modes.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from hf_select.paper import Paper
from hf_select.selection.budget import Budget
from hf_select.selection.selector import Choice
from hf_select.selection.vectors import (
    BLOCK,
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


# n rows, q queries of a task, d dimensions, m rows taken in a pass

Mode = Literal["projection", "orthogonal", "plain"]

# A residual shorter than this share of its target is rounding of float32 vectors: the target is reconstructed.
_RECONSTRUCTED = 1e-3
# A row with a smaller cosine to the residual adds nothing. A copy of a taken row has 1e-7 / _RECONSTRUCTED at most.
_NO_COSINE = 2e-4

# Of the squared length of a row: one with less outside of the span of the rows taken lies in it.
_IN_SPAN = 1e-3
# Of the queries' squared length: what adds less adds nothing.
_NO_GAIN = 1e-4
_EQUAL_GAIN = 1e-5  # of the gain, as in FacilityLocation
_UNSURE = 1e-3  # of the gain: rows this near to the best are measured again, in float64


@dataclass
class MatchingPursuit(VectorSelector):
    """Selects rows whose vectors together reconstruct the vectors of a task's queries; several tasks take turns.

    projection: x = the row left that most increases |P Q|^2, P the projection onto the span of the rows taken and Q
        the unit vectors of all queries. Its gain is |R x'|^2 / |x'|^2, R and x' what P leaves of Q and of x.
    plain: r = t, the mean of the queries' unit vectors; x = the row left with the largest <x, r>; r <- r - <x, r> x.
    orthogonal: as plain, but r = t minus its projection onto the span of the rows taken.

    A copy of a chosen row, or a row between chosen ones, is taken only after rows that add something. When no row left
    adds anything, a new pass begins with the whole target.

    Over a whole pool the pursuit takes many rows from elsewhere to complete what is left of the target; run it on the
    nearest rows: `TopK("score_rds")(dataset, k=2 * k).then(MatchingPursuit(index, targets), dataset, k=k)`. Even so it
    has not beaten RoundRobin over the queries in our measurements (benchmarks/results/matching_pursuit_cpu.md).

    Args:
        targets: task -> vectors of its queries: array (q, d) or PoolIndex; on the command line TASK=FOLDER, made by
            hf-select index from the queries with the settings of the rows' index.
        mode: projection (the paper's objective), orthogonal or plain matching pursuit.
    Raises: ValueError if vectors and rows differ in number, if queries have no vector or other dimensions, or if fewer
        rows have a vector than are requested.
    Relations: RoundRobin takes the nearest rows of each target, however alike they are; FacilityLocation represents
        the pool and knows no target.
    Reference: Dong et al. 2026, arXiv:2603.13790; Mallat & Zhang 1993 (plain); Pati, Rezaiifar & Krishnaprasad 1993
        (orthogonal).
    Differs from the paper: see the module's docstring.
    """

    targets: dict[str, np.ndarray | StoredVectors | str]
    mode: Mode = "projection"

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
        queries = [_queries(task, given, units.shape[1]) for task, given in self.targets.items()]
        gains = np.full(len(dataset), np.nan)
        order, how = [], []
        for row, target, gain, number in within_budget(budget, _pursuit(units, queries, self.mode)):
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
            "passes": max((number for (_, number), row in zip(how, taken, strict=True) if gains[row]), default=0),
            "scored": int(has_vector(units).sum()),
        }
        return Choice(taken, reason, gains, counts=counts)


def matching_pursuit(
    vectors: np.ndarray, targets: Sequence[np.ndarray], k: int, mode: Mode = "projection"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, targets, gains): the first k rows that the pursuit takes, the target that each was taken for, and how
    much it reduced the squared length of what is left of that target, as a share of the target's.

    Args:
        vectors: unit vectors (n, d), NaN throughout for a row that has none.
        targets: for each task the vectors of its queries (q, d).
    """
    picks = [pick[:3] for pick in islice(_pursuit(vectors, targets, mode), k)]
    rows, of_target, gains = zip(*picks, strict=True) if picks else ((), (), ())
    return np.array(rows, dtype=np.int64), np.array(of_target, dtype=np.int64), np.array(gains, dtype=np.float64)


def _pursuit(vectors: np.ndarray, targets: Sequence[np.ndarray], mode: Mode) -> Iterator[tuple[int, int, float, int]]:
    """(row, target, gain, pass) of every row that has a vector. Ties go to the lower row.

    A step is a product of all rows with one residual, n * d multiplications, or two (projection). Bounds of the
    products from earlier steps would save few of them: a step takes from the residual as much as the product of the
    best row, which is more than rows differ by.
    """
    rows, units = with_vectors(vectors)
    pursuits = [_Projection(units, q) if mode == "projection" else _Residual(units, q, mode) for q in targets]
    left = np.ones(len(rows), dtype=bool)
    while True:
        for target, pursuit in enumerate(pursuits):
            if not left.any():
                return
            place = pursuit.best(left)
            if place is None and pursuit.taken:
                pursuit.restart()
                place = pursuit.best(left)
            gain = 0.0
            if place is None:  # what is left is opposite to the target, or orthogonal
                nearest = np.where(left, pursuit.to_target, -np.inf)
                place = int(np.argmax(nearest >= nearest.max() - EQUAL_SIMILARITY))
            else:
                gain = pursuit.take(place)
            left[place] = False
            yield int(rows[place]), target, gain, pursuit.number


class _Residual:
    """What the rows taken in this pass leave of the mean of a task's queries, float64."""

    def __init__(self, units: np.ndarray, queries: np.ndarray, mode: Mode):
        self.units, self.mode = units, mode
        self.target = queries.mean(axis=0, dtype=np.float64)  # (d,)
        self.to_target = units @ self.target.astype(np.float32)  # (n,)
        self.number = 0  # of the pass
        self.restart()

    def restart(self) -> None:
        """Begin a new pass."""
        self.number, self.taken = self.number + 1, 0
        self.vector, self.basis = self.target.copy(), _Basis(len(self.target))

    def best(self, left: np.ndarray) -> int | None:
        """The row left with the largest product with the residual; None if no row adds anything."""
        length = np.linalg.norm(self.vector)
        if length < _RECONSTRUCTED * np.linalg.norm(self.target):
            return None
        cosines = np.where(left, self.units @ (self.vector / length).astype(np.float32), -np.inf)
        largest = cosines.max()
        return None if largest < _NO_COSINE else int(np.argmax(cosines >= largest - EQUAL_SIMILARITY))

    def take(self, place: int) -> float:
        """Take a row off. Returns: its gain."""
        self.taken += 1
        direction = self.units[place].astype(np.float64)
        if self.mode == "orthogonal":
            direction = self.basis.add(direction)
        along = float(self.vector @ direction)
        self.vector -= along * direction
        return along**2 / float(self.target @ self.target)


class _Projection:
    """What the rows taken in this pass leave of all queries of a task, and what each other row would add.

    With u the direction that a row adds to the basis, R <- R - (R u) u', so that |R x|^2 changes by
    -2 (u x) (R'R u) x + (u x)^2 |R u|^2: two products a row.
    """

    def __init__(self, units: np.ndarray, queries: np.ndarray):
        self.units, self.queries = units, queries.astype(np.float64)  # (q, d)
        self.whole = float((self.queries**2).sum())
        self.to_target = units @ queries.mean(axis=0)  # (n,)
        shorter = queries.astype(np.float32)
        blocks = [units[start : start + BLOCK] @ shorter.T for start in range(0, len(units), BLOCK)]
        self._squares = np.concatenate([(block.astype(np.float64) ** 2).sum(axis=1) for block in blocks])  # (n,)
        self.number = 0  # of the pass
        self.restart()

    def restart(self) -> None:
        """Begin a new pass."""
        self.number, self.taken = self.number + 1, 0
        self.residuals, self.basis = self.queries.copy(), _Basis(self.units.shape[1])
        self.squares = self._squares.copy()  # |R x|^2
        self.sums = len(self.queries) * self.to_target.astype(np.float64)  # the sum of R x
        self.outside = np.ones(len(self.units))  # |x'|^2

    def best(self, left: np.ndarray) -> int | None:
        """The row left with the largest gain; None if no row adds anything.

        Products are float32. The rows that may be the best are measured again until all of them are exact.
        """
        exact = np.zeros(len(left), dtype=bool)
        while True:
            can = left & (self.sums > 0) & (self.outside > _IN_SPAN)
            gains = np.where(can, self.squares / np.maximum(self.outside, _IN_SPAN) / self.whole, -np.inf)
            largest = gains.max()
            if largest < _NO_GAIN:
                return None
            unsure = np.flatnonzero((gains >= largest * (1 - _UNSURE)) & ~exact)
            if len(unsure) == 0:
                return int(np.argmax(gains >= largest * (1 - _EQUAL_GAIN)))
            rows = self.basis.outside(self.units[unsure].astype(np.float64))
            products = rows @ self.residuals.T  # (rows, q)
            self.squares[unsure], self.sums[unsure] = (products**2).sum(axis=1), products.sum(axis=1)
            self.outside[unsure] = (rows**2).sum(axis=1)
            exact[unsure] = True

    def take(self, place: int) -> float:
        """Take a row off. Returns: its gain."""
        self.taken += 1
        direction = self.basis.add(self.units[place].astype(np.float64))
        along = self.residuals @ direction  # (q,)
        both = np.stack([direction, along @ self.residuals]).astype(np.float32)
        on, of_all = (self.units @ both.T).T.astype(np.float64)  # (n,) each
        length = float(along @ along)
        self.squares += on**2 * length - 2 * on * of_all
        self.sums -= on * along.sum()
        self.outside -= on**2
        self.residuals -= np.outer(along, direction)
        return length / self.whole


class _Basis:
    """Orthonormal directions of the rows taken, float64."""

    def __init__(self, dimensions: int):
        self.directions = np.zeros((16, dimensions))  # (m, d) and room for more
        self.size = 0  # m

    def outside(self, rows: np.ndarray) -> np.ndarray:
        """What is orthogonal to the basis, of rows (..., d)."""
        known = self.directions[: self.size]
        for _ in range(2):  # the second time takes off the rounding of the first (Giraud et al. 2005)
            rows = rows - (rows @ known.T) @ known
        return rows

    def add(self, row: np.ndarray) -> np.ndarray:
        """The direction in which a row leaves the basis, which joins it. The row is not in its span."""
        direction = self.outside(row)
        direction /= np.linalg.norm(direction)
        if self.size == len(self.directions):
            self.directions = np.concatenate([self.directions, np.zeros_like(self.directions)])
        self.directions[self.size] = direction
        self.size += 1
        return direction


def _queries(task: str, given: np.ndarray | StoredVectors | str, dimensions: int) -> np.ndarray:
    """The unit vectors of a task's queries, (q, d)."""
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
    if np.linalg.norm(units.mean(axis=0)) < EQUAL_SIMILARITY:
        raise ValueError(f'the mean of the queries of target "{task}" is zero; split it into several tasks.')
    return units


def _array(task: str, given: np.ndarray | StoredVectors | str) -> np.ndarray:
    if isinstance(given, str):
        raise ValueError(f'target "{task}" is the text "{given}"; give the vectors of its queries, or a PoolIndex.')
    return np.asarray(given.to_numpy() if isinstance(given, StoredVectors) else given)
