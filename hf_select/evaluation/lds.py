"""The linear datamodelling score (LDS): do the scores of rows predict what training on the rows does?

Random subsets S_1 ... S_s of a pool each train a model, whose loss on held-out rows is measured. A score predicts that
a subset gains the sum of its rows' scores:

    LDS = Spearman's rho over j of (sum over rows i of S_j of score_i) and -loss(S_j)

(Park et al. 2023, "TRAK: Attributing Model Behavior at Scale", arXiv:2303.14186, for one held-out example at a time;
here the loss is the mean over a set). It is 1 for a score whose sum is the gain of every subset, and about 0 for
random scores. Intervals are percentiles of a bootstrap over subsets, on the same draws for all scores, so that
differences are paired. The correlation that s subsets can tell from 0 follows from Fisher's z, whose variance for
ranks is about 1.06 / (s - 3) (Fieller, Hartley and Pearson 1957).

Training has noise of its own. If r is the correlation of two runs on each subset with different training seeds (the
reliability), a score that predicts the expected loss exactly has a correlation of about sqrt(r) with single runs: the
ceiling of any LDS.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import f, norm, rankdata

from hf_select.evaluation.statistics import BOOTSTRAP_DRAWS
from hf_select.reports.advice_result import Estimate
from hf_select.reports.validation_result import MEAN, YARDSTICKS, LossSignal, ScoreResult


# n rows, s subsets of k rows, D draws of the bootstrap

FEWEST_SUBSETS = 10
FEWEST_REPEATS = 5
_RANDOM_SCORES = 1000
_POWER = 0.8
_WEAK = 0.5  # reliability below which noise is at least as large as the effect of the subset


def draw_subsets(rows: int, count: int, fraction: float, seed: int) -> np.ndarray:
    """Return row numbers (count, k), ascending. A larger count continues the draws of a smaller one."""
    k = round(fraction * rows)
    draws = [np.random.default_rng([seed, number]).permutation(rows)[:k] for number in range(count)]
    return np.sort(np.array(draws), axis=1)


def predicted_gains(subsets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the sum of the scores of each subset (s, k) up to a common constant and a factor.

    Args:
        scores: (n,), higher is better; rows without a finite one count as the mean of the others.
    Raises: Undefined if all rows or all subsets have the same score.
    """
    known = np.isfinite(scores)
    if not known.any():
        raise Undefined("no row has a score")
    filled = np.where(known, scores, scores[known].mean())
    if np.ptp(filled) == 0:
        raise Undefined("every row has the same score")
    filled = (filled - filled.mean()) / np.ptp(filled)
    sums = np.round(filled[subsets].sum(axis=1), 10)  # equal sums are ties, whatever the rounding of their terms
    if np.ptp(sums) == 0:
        raise Undefined("every subset has the same sum of scores")
    return sums


class Undefined(ValueError):
    """Why a correlation does not exist."""


@dataclass(frozen=True)
class Resampled:
    """A statistic of the subsets, and its values on subsets drawn with replacement (D,)."""

    value: float
    draws: np.ndarray

    def __sub__(self, other: "Resampled") -> "Resampled":
        return Resampled(self.value - other.value, self.draws - other.draws)

    def estimate(self) -> Estimate:
        """Return the value with the middle 95 % of its draws."""
        low, high = np.nanquantile(self.draws, (0.025, 0.975))
        return Estimate(self.value, min(float(low), self.value), max(float(high), self.value))


def mean_of(statistics: Sequence[Resampled]) -> Resampled:
    """Return the mean of statistics of the same draws."""
    return Resampled(
        float(np.mean([each.value for each in statistics])), np.mean([each.draws for each in statistics], axis=0)
    )


def resampled_correlation(a: np.ndarray, b: np.ndarray, seed: int) -> Resampled:
    """Return Spearman's rho of two series (s,). Draws depend on s and the seed alone.

    Raises: Undefined if one of them does not vary.
    """
    for series, what in ((a, "the predictions are"), (b, "the loss is")):
        if np.ptp(series) == 0:
            raise Undefined(f"{what} the same for every subset")
    places = np.random.default_rng(seed).integers(0, len(a), (BOOTSTRAP_DRAWS, len(a)))
    places = np.vstack([np.arange(len(a)), places])
    rho = rank_correlations(a[places], b[places])
    return Resampled(float(rho[0]), rho[1:])


def rank_correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Spearman's rho along the last axis; NaN where one side does not vary."""
    x, y = (rankdata(series, axis=-1) - (series.shape[-1] + 1) / 2 for series in (a, b))
    with np.errstate(invalid="ignore"):
        rho = (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return np.clip(rho, -1, 1)


def detectable_correlation(subsets: int) -> float:
    """Return the true correlation that is found to differ from 0, at the 5 % level, in 4 of 5 studies."""
    z = (norm.isf(0.025) + norm.ppf(_POWER)) * np.sqrt(1.06 / (subsets - 3))
    return float(np.tanh(z))


def random_correlations(subsets: np.ndarray, rows: int, gains: np.ndarray, seed: int) -> np.ndarray:
    """Return the LDS of random scores of the rows (draws,); the scores depend on the seed and `rows` alone."""
    scores = np.random.default_rng([seed, rows]).normal(size=(_RANDOM_SCORES, rows))
    member = np.zeros((rows, len(subsets)))
    member[subsets.T, np.arange(len(subsets))] = 1
    return rank_correlations(scores @ member, gains[None])


def loss_signal(losses: np.ndarray, again: np.ndarray, rows: int, overlap: int) -> LossSignal:
    """Return how much the loss depends on the subset.

    Args:
        losses: after training on each subset (s,).
        again: after training on the first subsets with another seed (r,).
        rows, overlap: of the held-out set.
    """
    spread, noise, reliability, ceiling, warning = float(losses.std(ddof=1)), None, None, None, ""
    if len(again):
        noise = float((losses[: len(again)] - again).std(ddof=1) / np.sqrt(2))
    if np.ptp(losses) == 0:
        warning = "the loss is the same after every subset: no score can be validated on this set"
    elif noise is not None:
        reliability = reliability_of(noise, spread, len(again), len(losses))
        ceiling = reliability.value**0.5
        if reliability.value < _WEAK:
            warning = (
                f"most of the differences between subsets are noise of training (reliability {reliability}): even a "
                f"perfect score would have an LDS of about {ceiling:.2f}. Take fewer rows, train longer (passes, "
                "learning_rate), or measure on more rows"
            )
        elif reliability.low <= 0:
            warning = (
                f"{len(again)} repeats do not show that the loss differs between subsets beyond the noise of training "
                f"(reliability {reliability}). Train more subsets twice (repeats)"
            )
    return LossSignal(rows, overlap, float(losses.mean()), spread, noise, reliability, ceiling, warning)


def reliability_of(noise: float, spread: float, repeats: int, subsets: int) -> Estimate:
    """Return 1 - noise^2 / spread^2, between 0 and 1: the correlation of two runs on each subset.

    The interval is that of a ratio of variances of normal losses (F distribution).

    Args:
        noise, spread: standard deviations of the loss over runs on one subset and over subsets.
        repeats, subsets: numbers that they were measured on.
    """
    ratio = (noise / spread) ** 2
    shares = [ratio, *(ratio / float(f.ppf(tail, repeats - 1, subsets - 1)) for tail in (0.025, 0.975))]
    value, low, high = (min(max(1 - share, 0.0), 1.0) for share in shares)
    return Estimate(value, low, high)


@dataclass(frozen=True)
class RowScores:
    """The scores of the rows for one held-out set.

    Args:
        values: (n,), higher is better, NaN for a row without a score.
        column: of the pool; "" for a yardstick.
        missing: why no row has a score, if so.
    """

    values: np.ndarray
    column: str = ""
    missing: str = ""


def score_results(
    scores: Mapping[str, Mapping[str, RowScores]], losses: Mapping[str, np.ndarray], subsets: np.ndarray, seed: int
) -> tuple[dict[str, dict[str, ScoreResult]], dict[str, Estimate]]:
    """Return the results of scores and yardsticks, and the LDS of random scores, by held-out set.

    Args:
        scores: held-out set -> name of a score or yardstick -> scores of the rows.
        losses: held-out set -> loss after training on each subset (s,).
    """
    found = {name: {} for name in losses}
    chance = {}
    for name, loss in losses.items():
        found[name] = {score: _correlation(subsets, rows, -loss, seed) for score, rows in scores[name].items()}
        chance[name] = random_correlations(subsets, len(next(iter(scores[name].values())).values), -loss, seed)
    if len(losses) > 1:
        found = {MEAN: _mean_over(found), **found}
        chance = {MEAN: np.mean(list(chance.values()), axis=0), **chance}
    results = {}
    for name, by_score in found.items():
        of_set = scores.get(name, {})
        detectable = None if name == MEAN else detectable_correlation(len(subsets))
        results[name] = {score: _result(score, of_set.get(score), by_score, detectable) for score in by_score}
    return results, {name: _middle(values) for name, values in chance.items() if np.isfinite(values).all()}


# --------------------------------------------------------------------------------------------------------------------


def _correlation(subsets: np.ndarray, rows: RowScores, gains: np.ndarray, seed: int) -> Resampled | str:
    """Return the LDS, or why there is none."""
    try:
        return resampled_correlation(predicted_gains(subsets, rows.values), gains, seed)
    except Undefined as reason:
        return rows.missing or str(reason)


def _mean_over(found: Mapping[str, Mapping[str, Resampled | str]]) -> dict[str, Resampled | str]:
    """Return the mean over held-out sets of each score that has an LDS on all of them."""
    means: dict[str, Resampled | str] = {}
    for score in next(iter(found.values())):
        of_sets = {name: by_score[score] for name, by_score in found.items()}
        missing = [f"on {name}: {each}" for name, each in of_sets.items() if isinstance(each, str)]
        known = [each for each in of_sets.values() if isinstance(each, Resampled)]
        means[score] = missing[0] if missing else mean_of(known)
    return means


def _result(
    name: str, rows: RowScores | None, by_score: Mapping[str, Resampled | str], detectable: float | None
) -> ScoreResult:
    column, without = ("", 0) if rows is None else (rows.column, int((~np.isfinite(rows.values)).sum()))
    own = by_score[name]
    if isinstance(own, str):
        return ScoreResult(column, None, own, without, {}, f"no LDS: {own}")
    differences = {
        yardstick: (own - other).estimate()
        for yardstick in YARDSTICKS
        if yardstick != name and isinstance(other := by_score.get(yardstick), Resampled)
    }
    lds = own.estimate()
    return ScoreResult(column, lds, "", without, differences, _verdict(lds, differences, detectable))


def _verdict(lds: Estimate, differences: Mapping[str, Estimate], detectable: float | None) -> str:
    better = [name for name, difference in differences.items() if difference.low > 0]
    worse = [name for name, difference in differences.items() if difference.high < 0]
    if lds.low > 0:
        said = "predicts the gain"
    elif lds.high < 0:
        said = "predicts the opposite: subsets with higher scores gain less"
    else:
        said = "no evidence"
        if detectable is not None:
            said += f" (a correlation of {detectable:.2f} would be found in 4 of 5 such studies)"
    parts = [f"{word} than {' and '.join(names)}" for word, names in (("better", better), ("worse", worse)) if names]
    return "; ".join([said, *parts])


def _middle(values: np.ndarray) -> Estimate:
    low, high = np.quantile(values, (0.025, 0.975))
    return Estimate(float(values.mean()), float(low), float(high))
