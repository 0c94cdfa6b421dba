"""A score without its length: what is left of it for ranking rows when long rows may not win by being long."""

import numpy as np

from hf_select.selection.ranking import percentile_ranks


def length_residual(scores: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Residual of the scores (n,) after a least-squares line over log(1 + length); NaN where the score or the length
    is not finite. Equal scores leave exactly 0, so that they stay tied."""
    both = np.isfinite(scores) & np.isfinite(lengths)
    residual = np.full(len(scores), np.nan)
    if not both.any():
        return residual
    x, y = np.log1p(lengths[both]), scores[both]
    centred = x - x.mean()
    slope = centred @ y / (centred @ centred) if np.ptp(x) > 0 else 0.0
    residual[both] = y - y.mean() - slope * centred if np.ptp(y) > 0 else 0.0
    return residual


def length_strata(scores: np.ndarray, lengths: np.ndarray, num_strata: int = 10) -> np.ndarray:
    """Percentile rank of each score among rows of similar length: `num_strata` groups of equal size by length.

    Ranking by it takes the same share of every length.
    """
    both = np.flatnonzero(np.isfinite(scores) & np.isfinite(lengths))
    ranks = np.full(len(scores), np.nan)
    by_length = both[np.argsort(lengths[both], kind="stable")]
    for stratum in np.array_split(by_length, min(num_strata, max(1, len(by_length)))):
        ranks[stratum] = percentile_ranks(scores[stratum])
    return ranks
