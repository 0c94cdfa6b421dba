"""Vectors -> rows that differ from each other, or that stand for all others.

FarthestFirst       spreads out: the next row is the one least like those chosen
FacilityLocation    stands for the pool: every row is to have a chosen row near it
ScoreThenThreshold  best rows first, but none that is much like one already taken
KMeansBuckets       clusters take turns

Similarity is the cosine. Vectors are an array (n, d), an object with `to_numpy()` such as a PoolIndex, or the name of
a column of lists. A row without a vector (null, or a number that is not finite) is never chosen and counts for
nothing; a zero vector has no direction and similarity 0 to everything.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Any, cast

import numpy as np

from hf_select.data import columns
from hf_select.selection.baselines import in_turn
from hf_select.selection.budget import Budget
from hf_select.selection.selection import Selection, select
from hf_select.selection.top_k import rank


# n rows, d dimensions, b rows of a block

_CURE = (
    "Vectors are the name of a column of them, in Python also an array or a PoolIndex, on the command line also "
    "--vectors FOLDER, made by hf-select index --scorer rds --model MODEL --dataset DATASET --output-dir FOLDER."
)
BLOCK = 256  # rows that are compared with all others in one matrix product
KEPT_BYTES = 3 << 29  # of similarities that facility location may keep, 8 for each

# Similarities are float32, and the last bits of a product depend on where in its block a row stands. What agrees to
# these limits is taken for equal, so that ties go to the lower row in any block.
_EQUAL_SIMILARITY = 1e-6
_EQUAL_GAIN = 1e-5  # of the gain, and _EQUAL_SIMILARITY more: two rows near none but each other have the same gain
_NO_GAIN = 1e-7  # a row, and _EQUAL_SIMILARITY more


def farthest_first(vectors: np.ndarray, first: int | None = None) -> Iterator[tuple[int, float]]:
    """(row, distance) in greedy k-center order, as far as asked for: from `first` (default: the row nearest to the
    mean) each time the row whose nearest chosen row is farthest, and that distance, 1 - cosine. Ties go to the lower
    row.

    Gonzalez 1985: the largest distance left after k picks is at most twice the least possible with any k rows, where
    the triangle inequality holds. Sener & Savarese 2018 (arXiv:1708.00489) choose training rows so. O(n d) a pick.
    """
    rows, units = _present(vectors)
    if first is None:
        start = units @ units.mean(axis=0)
        place = int(np.argmax(start >= start.max() - _EQUAL_SIMILARITY))
    else:
        place = int(np.searchsorted(rows, first))
        if first not in rows[place : place + 1]:
            raise ValueError(f"row {first} has no vector to start from; choose another, or none.")
    zero = np.asarray(~units.any(axis=1))
    nearest = np.full(len(rows), -2, dtype=np.float32)  # similarity of each row to the chosen one nearest to it
    distance = float("nan")  # of the first row there is none
    for _ in range(len(rows)):
        yield int(rows[place]), distance
        np.maximum(nearest, units @ units[place], out=nearest)
        if zero[place]:  # a zero vector is like no other, but one of them is enough
            nearest[zero] = np.maximum(nearest[zero], 1)
        nearest[place] = np.inf
        least = nearest.min()
        place = int(np.argmax(nearest <= least + _EQUAL_SIMILARITY))
        distance = 1 - float(nearest[place])


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
    """(row, gain, rows brought nearer), lazily (Minoux 1978).

    A gain only shrinks as rows are chosen, so the last one measured bounds it, and only rows whose bound reaches the
    best fresh gain are measured again: many at a time, since a row costs less in a larger matrix product.
    """
    rows, units = _present(vectors)
    bounds = _first_gains(units)  # float64 (n,)
    fresh = np.ones(len(rows), dtype=bool)
    nothing = _NO_GAIN * len(rows) + _EQUAL_SIMILARITY
    coverage = _Coverage(units)
    for _ in range(len(rows)):
        size = 32
        while True:
            best = bounds[fresh].max(initial=0)
            reach = max(best * (1 - _EQUAL_GAIN) - _EQUAL_SIMILARITY, nothing)
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
    """How near the chosen rows are to each row, and what a candidate would add.

    A candidate gains only from rows that it is nearer to than any chosen row. With every pick these get fewer, and as
    soon as they are few their similarities are kept: from then on that candidate takes no product.
    """

    def __init__(self, units: np.ndarray):
        self.units = units
        self.nearest = np.zeros(len(units), dtype=np.float32)  # similarity of each row to the nearest chosen one
        self.kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # candidate -> rows, their similarities to it
        self.room = KEPT_BYTES // 8  # similarities that may still be kept
        self.few = 4 * self.room // len(units)  # most candidates keep far fewer, so that the room suffices

    def gains(self, candidates: np.ndarray) -> np.ndarray:
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
        """Number of rows that are nearer to the candidate than to any row chosen before."""
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
    """sum over i of max(0, cos(i, j)) for each j; each pair is multiplied once, for both sides of it."""
    gains = np.zeros(len(units))
    for start in range(0, len(units), BLOCK):
        stop = start + BLOCK
        similarity = units[start:stop] @ units[start:].T  # (b, n - start)
        np.maximum(similarity, 0, out=similarity)
        gains[start:stop] += similarity.sum(axis=1)
        gains[stop:] += similarity[:, BLOCK:].sum(axis=0)
    return gains


def threshold_filter(vectors: np.ndarray, order: np.ndarray, threshold: float) -> Iterator[int]:
    """Rows of `order` whose cosine similarity to every row kept before is at most `threshold`, as far as asked for.

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


def take_turns(order: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """`order` rearranged so that clusters take turns, the largest first and of equal ones the lower label; within a
    cluster the order stays, and a cluster that is used up is passed over.

    Args:
        order: row numbers (m,).
        clusters: label of each row of the dataset, int (n,).
    """
    labels = clusters[order]
    turns = np.argsort(np.argsort(-np.bincount(labels), kind="stable"))
    return order[in_turn(labels, turns)]


class _OverVectors:
    """What the selectors of this module have in common: the setting `vectors`."""

    vectors: Any

    def among(self, rows: np.ndarray, dataset: Any) -> Any:
        """This selector for some rows of a dataset, in that order: with their vectors, where it has those of the whole
        dataset."""
        if isinstance(self.vectors, str) or len(self.vectors) != len(dataset):
            return self
        return replace(cast(Any, self), vectors=_array(self.vectors, dataset)[rows])


@dataclass
class FarthestFirst(_OverVectors):
    """Selects rows that are far from each other (greedy k-center).

    It covers the rare corners of a pool first, and so its outliers; FacilityLocation prefers what many rows are near.

    Args:
        vectors: array (n, d), a PoolIndex, or the name of a column of lists.
        column: score column whose best row is the first; without one the row nearest to the mean is. Later rows are
            chosen by distance alone.
        tokens_column: column that a budget in tokens is spent in.
    Raises: ValueError if vectors and rows differ in number, or fewer rows have a vector than are asked for.
    Reference: Gonzalez 1985; Sener & Savarese 2018, arXiv:1708.00489.
    """

    vectors: Any
    column: str | None = None
    tokens_column: str = columns.NUM_TOKENS

    def __call__(
        self, dataset: Any, k: int | None = None, fraction: float | None = None, tokens: int | None = None
    ) -> Selection:
        """Select k rows, a fraction of the rows, or as many as `tokens` pay for."""
        budget = Budget.of(dataset, k, fraction, tokens, self.tokens_column)
        units = _vectors(dataset, self.vectors, budget)
        first = None
        if self.column is not None:
            scores = columns.score_values(dataset, self.column)
            ranked = rank(np.where(_has_vector(units), scores, np.nan))
            if len(ranked) == 0:
                raise ValueError(f"no row has both a vector and {self.column}; choose another column, or none.")
            first = int(ranked[0])
        distances = np.full(len(dataset), np.nan)
        order = []
        for row, distance in _paid(budget, farthest_first(units, first)):
            order.append(row)
            distances[row] = distance
        taken = budget.take(np.array(order, dtype=np.int64), "have a vector")
        start = f"best {self.column}" if self.column is not None else "nearest to the mean"

        def reason(rank: int, row: int) -> str:
            return f"at distance {distances[row]:.4f} from the rows before" if rank else f"start, {start}"

        return select(dataset, taken, reason, distances, _step(self, units, k, fraction, tokens))


@dataclass
class FacilityLocation(_OverVectors):
    """Selects rows that stand for the pool: each row is to have a chosen row like it.

    The first pass compares every row with every other: n * n * d multiplications.

    Args:
        vectors: array (n, d), a PoolIndex, or the name of a column of lists.
        tokens_column: column that a budget in tokens is spent in.
    Raises: ValueError if vectors and rows differ in number, or fewer rows have a vector than are asked for.
    Relations: Superfiltering (arXiv:2402.00530) takes the rows of high IFD and then facility location among them.
    Reference: Minoux 1978, for the lazy greedy choice.
    """

    vectors: Any
    tokens_column: str = columns.NUM_TOKENS

    def __call__(
        self, dataset: Any, k: int | None = None, fraction: float | None = None, tokens: int | None = None
    ) -> Selection:
        """Select k rows, a fraction of the rows, or as many as `tokens` pay for."""
        budget = Budget.of(dataset, k, fraction, tokens, self.tokens_column)
        units = _vectors(dataset, self.vectors, budget)
        gains = np.full(len(dataset), np.nan)
        order, covered = [], []
        for row, gain, nearer in _paid(budget, _facility_picks(units)):
            order.append(row)
            covered.append(nearer)
            gains[row] = gain
        taken = budget.take(np.array(order, dtype=np.int64), "have a vector")
        return select(
            dataset,
            taken,
            lambda rank, row: f"covers {covered[rank]} rows better than those before, gain {gains[row]:.4f}",
            gains,
            _step(self, units, k, fraction, tokens, coverage=float(gains[taken].sum())),
        )


@dataclass
class ScoreThenThreshold(_OverVectors):
    """Selects the best rows by score, passing over each that is too much like one taken already: DEITA's filter.

    The paper calls what it compares a distance, but keeps a row when its cosine similarity to the nearest kept row is
    below the threshold; so it is a similarity here.

    Args:
        vectors: array (n, d), a PoolIndex, or the name of a column of lists.
        column: the score column.
        threshold: cosine similarity above which a row is too much like another, between 0 and 1.
        tokens_column: column that a budget in tokens is spent in.
    Raises: ValueError if vectors and rows differ in number, or the filter leaves fewer rows than are asked for.
    Reference: Liu et al. 2024, arXiv:2312.15685.
    """

    vectors: Any
    column: str
    threshold: float = 0.9  # the authors' setting
    tokens_column: str = columns.NUM_TOKENS

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold is {self.threshold}; it must lie between 0 and 1.")

    def __call__(
        self, dataset: Any, k: int | None = None, fraction: float | None = None, tokens: int | None = None
    ) -> Selection:
        """Select k rows, a fraction of the rows, or as many as `tokens` pay for."""
        budget = Budget.of(dataset, k, fraction, tokens, self.tokens_column)
        scores = columns.score_values(dataset, self.column)
        units = _vectors(dataset, self.vectors, budget)
        ranked = rank(np.where(_has_vector(units), scores, np.nan))
        kept = ((row,) for row in threshold_filter(units, ranked, self.threshold))
        order = np.array([row for (row,) in _paid(budget, kept)], dtype=np.int64)
        what = f"of {len(ranked)} rows with a score and a vector are left by the filter at {self.threshold}"
        taken = budget.take(order, what)
        place = np.empty(len(dataset), dtype=np.int64)
        place[ranked] = np.arange(len(ranked))

        def reason(rank: int, row: int) -> str:
            passed = place[row] - rank
            return f"{self.column} {scores[row]:.6g}, rank {place[row] + 1}, {passed} better rows passed over as alike"

        seen = int(place[taken[-1]]) + 1
        step = _step(self, units, k, fraction, tokens, scored=len(ranked), passed_over=seen - len(taken))
        return select(dataset, taken, reason, scores, step, pool_scores=scores)


@dataclass
class KMeansBuckets(_OverVectors):
    """Selects from the clusters of the vectors in turn, so that a theme of many rows does not rule.

    Args:
        vectors: array (n, d), a PoolIndex, or the name of a column of lists.
        num_clusters: clusters that k-means makes.
        column: score column by which a cluster gives its best row first; without one, the row nearest to its centre.
        seed: of k-means.
        tokens_column: column that a budget in tokens is spent in.
    Raises: ValueError if vectors and rows differ in number, or fewer rows can be chosen than are asked for;
        ImportError without scikit-learn.
    """

    vectors: Any
    num_clusters: int
    column: str | None = None
    seed: int = 0
    tokens_column: str = columns.NUM_TOKENS

    def __post_init__(self) -> None:
        if self.num_clusters < 1:
            raise ValueError(f"num_clusters is {self.num_clusters}; at least 1 is needed.")

    def __call__(
        self, dataset: Any, k: int | None = None, fraction: float | None = None, tokens: int | None = None
    ) -> Selection:
        """Select k rows, a fraction of the rows, or as many as `tokens` pay for."""
        budget = Budget.of(dataset, k, fraction, tokens, self.tokens_column)
        units = _vectors(dataset, self.vectors, budget)
        present = np.flatnonzero(_has_vector(units))
        if self.num_clusters > len(present):
            raise ValueError(f"{self.num_clusters} clusters of {len(present)} vectors; lower num_clusters.")
        labels, centres = _clusters(units[present], self.num_clusters, self.seed)
        clusters = np.zeros(len(dataset), dtype=np.int64)
        clusters[present] = labels
        if self.column is not None:
            scores = np.where(_has_vector(units), columns.score_values(dataset, self.column), np.nan)
        else:
            scores = np.full(len(dataset), np.nan)
            scores[present] = np.einsum("nd,nd->n", units[present], centres[labels])
        taken = budget.take(take_turns(rank(scores), clusters), "have a vector" + self._and_a_score())
        by = self.column or "similarity to its centre"
        return select(
            dataset,
            taken,
            lambda rank, row: f"in turn for cluster {clusters[row]}, {by} {scores[row]:.6g}",
            scores,
            _step(self, units, k, fraction, tokens),
            pool_scores=scores,
        )

    def _and_a_score(self) -> str:
        return f" and {self.column}" if self.column is not None else ""


def _clusters(units: np.ndarray, num_clusters: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Label of each row (m,) and unit centres (num_clusters, d)."""
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError as error:
        raise ImportError('k-means needs an extra: pip install "hf-select[text]"') from error
    found = MiniBatchKMeans(num_clusters, random_state=seed, n_init=3).fit(units)  # type: ignore[arg-type]
    return np.asarray(found.labels_, dtype=np.int64), _unit(np.asarray(found.cluster_centers_))


def _vectors(dataset: Any, vectors: Any, budget: Budget) -> np.ndarray:
    """Unit vectors (n, d) float32 of the rows of the dataset; NaN throughout where a row has none, or where the budget
    cannot take it."""
    found = columns.list_column(dataset, vectors, _CURE) if isinstance(vectors, str) else _array(vectors, dataset)
    if found.ndim != 2:
        raise ValueError(f"vectors have shape {found.shape}; one vector a row is needed, (n, d).")
    if len(found) != len(dataset):
        raise ValueError(
            f"{len(found)} vectors for {len(dataset)} rows; give the vectors of this dataset, in its order."
        )
    units = _unit(found)
    units[budget.uncounted] = np.nan
    return units


def _array(vectors: Any, dataset: Any) -> np.ndarray:
    if hasattr(vectors, "check"):  # a PoolIndex knows the rows that it was made of
        vectors.check(dataset)
    return np.asarray(vectors.to_numpy() if hasattr(vectors, "to_numpy") else vectors)


def _unit(vectors: np.ndarray) -> np.ndarray:
    found = np.array(vectors, dtype=np.float32)  # a copy: the caller's vectors stay as they are
    found[~np.isfinite(found).all(axis=1)] = np.nan
    norms = np.linalg.norm(found, axis=1, keepdims=True)
    found /= np.where(norms == 0, 1, norms)
    return found


def _has_vector(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(np.isfinite(vectors).all(axis=1))


def _present(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the rows that have a vector, and their vectors: not a copy if all have one."""
    rows = np.flatnonzero(_has_vector(vectors))
    if len(rows) == 0:
        raise ValueError(f"none of {len(vectors)} rows has a vector; there is nothing to choose from.")
    return rows, vectors if len(rows) == len(vectors) else vectors[rows]


def _paid(budget: Budget, picks: Iterator[tuple]) -> Iterator[tuple]:
    """Picks, whose first part is the row, up to the first one that the budget does not pay for."""
    if budget.rows is not None:
        yield from islice(picks, budget.rows)
        return
    assert budget.num_tokens is not None and budget.tokens is not None
    spent = 0.0
    for pick in picks:
        yield pick
        spent += budget.num_tokens[pick[0]]
        if spent > budget.tokens:
            return


def _step(
    selector: Any, units: np.ndarray, k: int | None, fraction: float | None, tokens: int | None, **counts: Any
) -> dict[str, Any]:
    """Settings and counts for the record; of vectors their shape, since they are no setting that one could read."""
    settings = {field.name: getattr(selector, field.name) for field in fields(selector)}
    if not isinstance(selector.vectors, str):
        settings["vectors"] = f"{type(selector.vectors).__name__} of shape {units.shape}"
    without = len(units) - int(_has_vector(units).sum())
    budget = {"k": k, "fraction": fraction, "tokens": tokens}
    return {"selector": type(selector).__name__, **settings, **budget, **counts, "without_vector": without}
