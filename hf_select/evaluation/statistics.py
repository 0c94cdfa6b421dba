"""Paired differences of methods to a baseline over seeds and items: intervals, p-values and detectable differences.

Runs are paired by seed and results by item: D[s, i] = method[s, i] - baseline[s, i], S seeds and I items (held-out
rows, questions). Both are random samples, and they are crossed. With the mean squares of seeds, of items and of the
residual, the variance of the mean of D is

    (MS_s + MS_i - MS_rest) / (S I)

with Satterthwaite's degrees of freedom (the quasi-F of Clark 1973, "The language-as-fixed-effect fallacy").
MS_s / (S I) and MS_i / (S I) are the variances of bootstraps over seeds and over items, corrected for small samples,
without any draws. A bootstrap that draws both at once counts the residual three times (Owen 2007) and has no degrees
of freedom: where methods change some items more than others it gave 0.3 % false alarms instead of 5 % with five seeds,
and found one effect in three of those of which this finds four in five. Two or three seeds may agree by chance, so the
interval is never narrower than theirs alone (Student's t over the seeds' means). Where every seed and item has the
same difference, t has no error to divide by, and p is that of the sign test. P-values of several methods are corrected
by Holm's method.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import brentq
from scipy.special import chdtr
from scipy.stats import t as student

from hf_select.reports.advice_result import Estimate
from hf_select.reports.comparison_result import Difference


BOOTSTRAP_DRAWS = 400
_POWER = 0.8
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(64)  # of a standard normal variable


def differences(
    methods: Mapping[str, np.ndarray],
    baseline: np.ndarray,
    lower_is_better: bool = True,
    confidence: float = 0.95,
    num_comparisons: int | None = None,
) -> dict[str, Difference]:
    """Return each method's difference to the baseline.

    Args:
        methods: name -> results (S, I); seed s and item i are those of the baseline's.
        baseline: (S, I).
        num_comparisons: number of methods that p-values will be corrected for, which `detectable` depends on; by
            default the number of `methods`.
    Raises: ValueError for fewer than two seeds, results of another shape or without a value.
    """
    baseline = np.asarray(baseline, dtype=np.float64)
    uncorrected: dict[str, Difference] = {}
    for name, results in methods.items():
        results = np.asarray(results, dtype=np.float64)
        if results.shape != baseline.shape or results.ndim != 2:
            raise ValueError(
                f"{name} has results of shape {results.shape} and the baseline of {baseline.shape}; both must be "
                "seeds x items, of the same seeds and items."
            )
        if len(results) < 2:
            raise ValueError("one seed says nothing about the spread between seeds; give at least two.")
        if not (np.isfinite(results).all() and np.isfinite(baseline).all()):
            raise ValueError(f"{name} or the baseline has results that are not numbers.")
        d = results - baseline
        rounding = 1e-12 * max(np.abs(results).max(), np.abs(baseline).max())
        if np.ptp(d) <= rounding:
            d = np.full_like(d, d.mean() if abs(d.mean()) > rounding else 0.0)
        uncorrected[name] = _difference(d, lower_is_better, confidence, num_comparisons or len(methods))
    return corrected(uncorrected)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of a mean (Student's t); NaN for fewer than two values."""
    column = np.asarray(values, dtype=np.float64)[:, None]
    if len(column) < 2:
        return float("nan"), float("nan")
    d = differences({"mean": column}, np.zeros_like(column))["mean"]
    return d.low, d.high


def bootstrap_intervals(
    statistics: Mapping[str, Callable[[np.ndarray], float]], n: int, seed: int
) -> dict[str, Estimate]:
    """Return each statistic of n rows, with the middle 95 % of its values on rows drawn with replacement.

    Args:
        statistics: name -> a function of row indices (n,). All are computed on the same draws.
    """
    rng = np.random.default_rng(seed)
    draws: dict[str, list[float]] = {name: [] for name in statistics}
    for _ in range(BOOTSTRAP_DRAWS):
        rows = rng.integers(0, n, n)
        for name, statistic in statistics.items():
            draws[name].append(statistic(rows))
    ends = {name: np.quantile(values, (0.025, 0.975)) for name, values in draws.items()}
    return {
        name: Estimate(statistic(np.arange(n)), float(ends[name][0]), float(ends[name][1]))
        for name, statistic in statistics.items()
    }


def corrected(differences: Mapping[str, Difference]) -> dict[str, Difference]:
    """Return the differences with p-values corrected for all of them together, whatever their baselines."""
    p_values = holm({name: difference.p for name, difference in differences.items()})
    return {name: replace(d, p_holm=p_values[name]) for name, d in differences.items()}


def standard_errors(d: np.ndarray) -> list[tuple[float, float]]:
    """Return (standard error of the mean of D (S, I), degrees of freedom): of seeds alone, and of seeds and items."""
    seeds, items = d.shape
    mean, of_seeds, of_items = d.mean(), d.mean(axis=1), d.mean(axis=0)
    ms_seeds = items * float(((of_seeds - mean) ** 2).sum()) / (seeds - 1)
    errors = [((ms_seeds / d.size) ** 0.5, seeds - 1.0)]
    if items == 1:
        return errors
    ms_items = seeds * float(((of_items - mean) ** 2).sum()) / (items - 1)
    rest = (seeds - 1) * (items - 1)
    ms_rest = float(((d - of_seeds[:, None] - of_items + mean) ** 2).sum()) / rest
    # No variance component is negative: the sum is at least that of either sample.
    both = max(ms_seeds + ms_items - ms_rest, ms_seeds, ms_items)
    spread = ms_seeds**2 / (seeds - 1) + ms_items**2 / (items - 1) + ms_rest**2 / rest
    degrees = max(both**2 / spread, min(seeds, items) - 1.0) if spread > 0 else 1.0
    return [*errors, ((both / d.size) ** 0.5, degrees)]


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return Holm's correction: the smallest p-value times their number, the next times one less, never decreasing."""
    ordered = sorted(p_values, key=lambda name: p_values[name])
    corrected_values, highest = {}, 0.0
    for place, name in enumerate(ordered):
        highest = max(highest, min(1.0, p_values[name] * (len(ordered) - place)))
        corrected_values[name] = highest
    return corrected_values


def _difference(d: np.ndarray, lower_is_better: bool, confidence: float, methods: int) -> Difference:
    seeds, items = d.shape
    mean, errors = float(d.mean()), standard_errors(d)
    equal = np.ptp(d) == 0
    if equal:  # the mean of equal numbers may differ from them by rounding
        mean, errors = float(d[0, 0]), [(0.0, 1.0)]
    half = max(error * float(student.isf((1 - confidence) / 2, degrees)) for error, degrees in errors)
    p = max(
        float(2 * student.sf(abs(mean) / error, degrees)) if error > 0 else float(mean == 0)
        for error, degrees in errors
    )
    if mean != 0 and equal:
        p = max(2.0 ** (1 - sample) for sample in d.shape if sample > 1)  # the sign test, of seeds and of items
    of_seed = np.sign(d.mean(axis=1)) * (-1 if lower_is_better else 1)
    return Difference(
        mean=mean,
        low=mean - half,
        high=mean + half,
        p=p,
        p_holm=p,
        wins=int((of_seed > 0).sum()),
        losses=int((of_seed < 0).sum()),
        # By the first step of Holm's correction, which is the hardest.
        detectable=_detectable(errors, (1 - confidence) / 2 / methods),
        seeds=seeds,
        items=items,
    )


def _detectable(errors: list[tuple[float, float]], tail: float) -> float:
    """Return the true difference at which every test exceeds its quantile in 4 of 5 studies; 0 without an error.

    The tests share the mean, whose standard error is the largest of theirs. Their own errors are assumed independent
    (chi squared, as in the noncentral t); they are not negatively correlated, so the power is at least this.
    """
    tests = [(error * _quantile(tail, degrees), degrees) for error, degrees in errors if error > 0]
    if not tests:
        return 0.0
    of_mean = max(error for error, _ in errors)

    def missed(shift: float) -> float:
        means = np.maximum(shift + of_mean * _NODES, 0)
        power = np.prod([chdtr(degrees, degrees * (means / least) ** 2) for least, degrees in tests], axis=0)
        return _POWER - float(_WEIGHTS @ power) / float(_WEIGHTS.sum())

    largest = max(least for least, _ in tests)
    while missed(largest) > 0:
        largest *= 2
    return float(brentq(missed, 0, largest))  # pyright: ignore[reportArgumentType]


@functools.cache
def _quantile(tail: float, degrees: float) -> float:
    return float(student.isf(tail, degrees))
