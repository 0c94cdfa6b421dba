"""Orders of rows by a number: highest first with ties to the lower row, percentile ranks, groups in turn."""

from dataclasses import dataclass

import numpy as np


# n rows, m ordered rows


def rank(scores: np.ndarray, which: str = "best") -> np.ndarray:
    """Row numbers in the order in which they are taken; rows without a finite score are left out, ties go to the lower
    row.

    best: highest first. worst: lowest first. middle: highest first from rank int(0.33 * n) on, as the RDS+ study takes
    its "mid" perplexity set (arXiv:2503.01807): just below the top third, not centred on the median.
    """
    scored = np.flatnonzero(np.isfinite(scores))
    keys = scores[scored] if which == "worst" else -scores[scored]
    order = scored[np.argsort(keys, kind="stable")]
    return order[int(0.33 * len(order)) :] if which == "middle" else order


def highest(values: np.ndarray, k: int, rows: np.ndarray | None = None) -> np.ndarray:
    """The first k of `rank(values)`, without sorting the rest.

    Args:
        rows: row numbers to choose from, ascending, each with a finite value; by default all that have one.
    """
    rows = np.flatnonzero(np.isfinite(values)) if rows is None else rows
    candidates = values[rows]
    if k < len(rows):
        cut = np.partition(candidates, len(rows) - k)[len(rows) - k]
        above = np.flatnonzero(candidates > cut)
        kept = np.sort(np.concatenate([above, np.flatnonzero(candidates == cut)[: k - len(above)]]))
        rows, candidates = rows[kept], candidates[kept]
    return rows[np.argsort(-candidates, kind="stable")]


def percentile_ranks(scores: np.ndarray) -> np.ndarray:
    """Rank of each score among the finite ones, from 0 (lowest) to 1 (highest); equal scores share their mean rank,
    and a score that is not finite has none (NaN)."""
    ranks = np.full(len(scores), np.nan)
    scored = np.flatnonzero(np.isfinite(scores))
    if len(scored) == 1:
        ranks[scored] = 0.5
    elif len(scored) > 1:
        _, group, size = np.unique(scores[scored], return_inverse=True, return_counts=True)
        ends = np.cumsum(size)
        ranks[scored] = ((ends - size + ends - 1) / 2)[group] / (len(scored) - 1)
    return ranks


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's rho over the places where both are finite, or None where one of them does not vary."""
    both = np.isfinite(a) & np.isfinite(b)
    x, y = percentile_ranks(a[both]), percentile_ranks(b[both])
    if both.sum() < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.clip(np.corrcoef(x, y)[0, 1], -1, 1))


def in_turn(labels: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Places of a sequence rearranged so that groups take turns: within a group the order stays, and an exhausted
    group is passed over.

    Args:
        labels: group of each place, int (m,).
        turns: turn of each group in a round, (number of groups,).
    """
    sizes = np.bincount(labels)
    # The round of a place: how many of its group come before it.
    grouped = np.argsort(labels, kind="stable")
    rounds = np.empty(len(labels), dtype=np.int64)
    rounds[grouped] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.lexsort((turns[labels], rounds))


@dataclass(frozen=True)
class Ranking:
    """The number that a selector ranked the rows of a dataset by.

    Args:
        values: of each row (n,); NaN where a row was not ranked, infinite where its number was.
        name: what messages and reports call it, e.g. "score_ifd".
        columns: number columns that it was computed from; a row that lacks one of them is not ranked.
        lowest_first: the lowest was taken first.
        at_least: rows with a lower value were left out.
        at_most: rows with a higher value were left out.
    """

    values: np.ndarray
    name: str
    columns: tuple[str, ...] = ()
    lowest_first: bool = False
    at_least: float | None = None
    at_most: float | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value that may be taken, infinite where there is no bound."""
        return (
            -np.inf if self.at_least is None else self.at_least,
            np.inf if self.at_most is None else self.at_most,
        )

    def keys(self) -> np.ndarray:
        """Highest = taken first, (n,); NaN for a row without a finite value within the bounds."""
        low, high = self.bounds
        with np.errstate(invalid="ignore"):
            ranked = np.isfinite(self.values) & (self.values >= low) & (self.values <= high)
        return np.where(ranked, -self.values if self.lowest_first else self.values, np.nan)

    def order(self) -> np.ndarray:
        """Row numbers, best first, of the rows that were ranked; ties go to the lower row."""
        return rank(self.keys())

    def place(self, row: int) -> int:
        """Rank of a row among those that were ranked, from 1."""
        keys = self.keys()
        return 1 + int((keys > keys[row]).sum()) + int((keys[:row] == keys[row]).sum())

    def to_dict(self) -> dict[str, object]:
        """All but the values, for a step of `Selection.chain`."""
        return {
            "name": self.name,
            "columns": list(self.columns),
            "lowest_first": self.lowest_first,
            "at_least": self.at_least,
            "at_most": self.at_most,
        }
