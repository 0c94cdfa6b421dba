"""Several scores as one, and a score without its length: what is done to numbers before rows are ranked by them.

Filter-then-rank needs nothing here: `first.then(TopK(...), dataset, k=...)` selects from what another selector left,
and TopK's bounds leave out rows by the score itself.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hf_select.data import columns
from hf_select.selection.budget import Budget, ties_at_the_cut
from hf_select.selection.selection import Selection, select


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
    """Spearman's rho over the places that have both, or None where one of them does not vary."""
    there = np.isfinite(a) & np.isfinite(b)
    x, y = percentile_ranks(a[there]), percentile_ranks(b[there])
    if there.sum() < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.clip(np.corrcoef(x, y)[0, 1], -1, 1))


def combined_ranks(ranks: dict[str, np.ndarray], weights: dict[str, float]) -> np.ndarray:
    """Weighted mean of percentile ranks by column, of 1 - rank where the weight is negative; see WeightedRanks."""
    total = sum(abs(weight) for weight in weights.values())
    oriented = [(w, ranks[c] if w > 0 else 1 - ranks[c]) for c, w in weights.items()]
    return np.sum([abs(w) * r for w, r in oriented], axis=0) / total


def length_residual(scores: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """What is left of a score when its least-squares line over log(1 + length) is taken away; NaN where the score or
    the length is not finite. Equal scores leave exactly 0: they stay tied."""
    there = np.isfinite(scores) & np.isfinite(lengths)
    residual = np.full(len(scores), np.nan)
    if not there.any():
        return residual
    x, y = np.log1p(lengths[there]), scores[there]
    centred = x - x.mean()
    slope = centred @ y / (centred @ centred) if np.ptp(x) > 0 else 0.0
    residual[there] = y - y.mean() - slope * centred if np.ptp(y) > 0 else 0.0
    return residual


def length_strata(scores: np.ndarray, lengths: np.ndarray, num_strata: int = 10) -> np.ndarray:
    """Percentile rank of a score among rows of about its length: `num_strata` groups of equal size by length.

    Ranking by it takes the same share of every length.
    """
    there = np.flatnonzero(np.isfinite(scores) & np.isfinite(lengths))
    ranks = np.full(len(scores), np.nan)
    by_length = there[np.argsort(lengths[there], kind="stable")]
    for stratum in np.array_split(by_length, min(num_strata, max(1, len(by_length)))):
        ranks[stratum] = percentile_ranks(scores[stratum])
    return ranks


@dataclass
class WeightedRanks:
    """Ranks rows by a weighted mean of their percentile ranks under several scores.

    combined = sum_c w_c r_c / sum_c |w_c|, r_c the percentile rank by column c, or 1 - r_c for a negative weight

    Ranks, not values: scores of different units and tails are put on one scale. A row that lacks one of the scores is
    never taken.

    Args:
        weights: score column -> weight, e.g. score_ifd=1 score_perplexity=-0.5; a negative weight prefers low scores.
        tokens_column: column that a budget in tokens is spent in.
    Raises: ValueError for a column that is missing or a weight that is 0 or no number.
    """

    weights: dict[str, float]
    tokens_column: str = columns.NUM_TOKENS

    def __post_init__(self) -> None:
        if not self.weights:
            raise ValueError("weights is empty; give at least one score column and its weight.")
        try:
            self.weights = {column: float(weight) for column, weight in self.weights.items()}
        except (TypeError, ValueError):
            raise ValueError(f"weights are {self.weights}; each must be a number.") from None
        if any(not np.isfinite(weight) or weight == 0 for weight in self.weights.values()):
            raise ValueError(f"weights are {self.weights}; each must be a number other than 0.")

    def __call__(
        self, dataset: Any, k: int | None = None, fraction: float | None = None, tokens: int | None = None
    ) -> Selection:
        """Select k rows, a fraction of the rows, or as many as `tokens` pay for."""
        budget = Budget.of(dataset, k, fraction, tokens, self.tokens_column)
        values = {column: columns.score_values(dataset, column) for column in self.weights}
        ranks = {column: percentile_ranks(of) for column, of in values.items()}
        combined = combined_ranks(ranks, self.weights)
        scored = np.flatnonzero(~np.isnan(combined))
        order = scored[np.argsort(-combined[scored], kind="stable")]
        missing = "".join(columns.without_score(dataset, name, of) for name, of in values.items())
        taken = budget.take(order, f"have all of {', '.join(self.weights)}{missing}")
        tied = ties_at_the_cut(combined, taken, "combined rank")

        def reason(rank: int, row: int) -> str:
            parts = ", ".join(f"{column} at {100 * of[row]:.0f} %" for column, of in ranks.items())
            return f"combined rank {combined[row]:.4f}, highest {rank + 1} of {len(scored)} ({parts})"

        step = {"selector": "WeightedRanks", **asdict(self), "k": k, "fraction": fraction, "tokens": tokens}
        step |= {"scored": len(scored), "tied_at_the_cut": tied}
        return select(dataset, taken, reason, combined, step, pool_scores=combined)
