"""The share of the variance of scores that lies between sources, with its interval.

Scores are replaced by their percentile ranks. The share is epsilon squared (Kelley 1935): the variance between groups
over the total variance, minus what as many groups would show by chance. Like omega squared it is 0 on average where
groups have no effect, whatever their number.

A bootstrap over rows gives no valid interval: rows that are drawn twice agree with themselves, which looks like
agreement within groups. The interval is the wider of two, end by end:

- by the noncentral F distribution, exact for normal scores of equal spread within given groups, and too narrow where
  the share is large, since it treats the groups' sizes and the spread within them as fixed (coverage 0.80 to 0.95);
- by the jackknife over rows, which treats both as random, and misses the high end where the share is nearly 0.

Coverage of the 95 % interval over 400 samples each of 60 rows in 3 groups, of 200 in 4, 20 and 100, and of 1,000 in
100, at shares from 0 to 0.9: 0.94 to 1.00 in groups of equal sizes and spread; 0.92 to 1.00 in Zipfian groups of
unequal spread, except one of 0.88 (share 0.62 of 4 groups). Where groups have no effect it is 0.99 to 1.00: the low
end is then usually below 0. The bootstrap's interval was above 0 in each of 60 such samples of 200 and 1,000 rows in
100 groups.
"""

import numpy as np
from scipy.optimize import brentq
from scipy.stats import ncf
from scipy.stats import t as student

from hf_select.selection.ranking import percentile_ranks


# n rows, k groups


def between_groups(scores: np.ndarray, groups: np.ndarray) -> float:
    """Return the share of scores (n,) in groups (n,); 0 where nothing varies, or where every row is its own group."""
    return _share(*_sums_of_squares(percentile_ranks(scores), groups))


def between_groups_interval(
    scores: np.ndarray, groups: np.ndarray, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Return (share, low end, high end); 0 to 1 where every row is its own group."""
    ranks = percentile_ranks(scores)
    between, within, n, k = _sums_of_squares(ranks, groups)
    share, tail = _share(between, within, n, k), (1 - confidence) / 2
    if k == n:
        return share, 0.0, 1.0
    if k == 1 or between + within == 0:
        return share, share, share
    half = _jackknife_error(ranks, groups) * float(student.isf(tail, n - 1))
    low, high = _noncentral(between, within, n, k, tail)
    return share, min(low, share - half), min(1.0, max(high, share + half))


def _sums_of_squares(ranks: np.ndarray, groups: np.ndarray) -> tuple[float, float, int, int]:
    """Return the sums of squares (between groups, within groups, n, k)."""
    _, code, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    centred = ranks - ranks.mean()
    total, between = float((centred**2).sum()), float((np.bincount(code, centred) ** 2 / sizes).sum())
    within = total - between
    return between, within if within > 1e-12 * total else 0.0, len(ranks), len(sizes)


def _share(between: float, within: float, n: int, k: int) -> float:
    total = between + within
    return 1 - (within / (n - k)) / (total / (n - 1)) if total > 0 and n > k else 0.0


def _noncentral(between: float, within: float, n: int, k: int, tail: float) -> tuple[float, float]:
    """Return the shares at which F is at its upper and lower quantile."""
    if within == 0:
        return 1.0, 1.0
    f = between / (k - 1) / (within / (n - k))

    def share_at(probability: float) -> float:
        def above(share: float) -> float:
            # Far below its noncentrality the probability of F is 0, or not a number in SciPy 1.17.
            return float(np.nan_to_num(ncf.cdf(f, k - 1, n - k, n * share / (1 - share)))) - probability

        return float(brentq(above, 1e-9, 1 - 1e-9)) if above(1e-9) > 0 else 0.0  # pyright: ignore[reportArgumentType]

    return share_at(1 - tail), share_at(tail)


def _jackknife_error(ranks: np.ndarray, groups: np.ndarray) -> float:
    """Return the standard error of the share by leaving out each row in turn."""
    _, code, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    n = len(ranks)
    centred = ranks - ranks.mean()
    sums = np.bincount(code, centred)
    squares = sums**2 / sizes
    size, of_group = sizes[code], sums[code]
    mean = centred**2 / (n - 1)  # effect of leaving out a row on the mean, times n - 1
    without = np.where(size > 1, (of_group - centred) ** 2 / np.maximum(size - 1, 1), 0.0)
    between = squares.sum() - squares[code] + without - mean  # (n,)
    total = (centred**2).sum() - centred**2 - mean
    left = n - 1 - (len(sizes) - (size == 1))
    shares = 1 - ((total - between) / np.maximum(left, 1)) / (total / (n - 2))
    return float(np.sqrt((n - 1) / n * ((shares - shares.mean()) ** 2).sum()))
