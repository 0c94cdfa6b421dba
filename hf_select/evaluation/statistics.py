"""A method beside a baseline over seeds and items: the paired difference, its interval, and what could have been
seen.

Runs are paired by seed and results by item: D[s, i] = method[s, i] - baseline[s, i], S seeds and I items (held-out
rows, questions). Seeds and items are drawn again together (both are samples, and they are crossed), which gives the
standard error of the mean of D; with few seeds a bootstrap's own percentiles are too narrow, so intervals and p-values
are those of Student's t with S - 1 degrees of freedom. Of several methods the p-values are Holm's.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.stats import nct
from scipy.stats import t as student


Outcome = Literal["better", "worse", "no evidence"]

_DRAWS = 2000
_POWER = 0.8


@dataclass(frozen=True)
class Difference:
    """A method less its baseline.

    Args:
        mean: of D over seeds and items, in the units of the results.
        low, high: its interval at the confidence that was asked for, this comparison alone.
        p: of no difference, two-sided; p_holm is corrected for all methods that were compared together.
        wins, losses: seeds in which the method's mean is better and worse; the others are even.
        detectable: the smallest true difference that so many seeds and items find in 4 of 5 studies.
        seeds, items: how many of them.
    """

    mean: float
    low: float
    high: float
    p: float
    p_holm: float
    wins: int
    losses: int
    detectable: float
    seeds: int
    items: int

    def outcome(self, lower_is_better: bool = True, alpha: float = 0.05) -> Outcome:
        """By the corrected p-value."""
        if self.p_holm > alpha:
            return "no evidence"
        return "better" if (self.mean < 0) == lower_is_better else "worse"

    def verdict(self, lower_is_better: bool = True, alpha: float = 0.05) -> str:
        """The same in words."""
        outcome = self.outcome(lower_is_better, alpha)
        if outcome != "no evidence":
            return f"{outcome} than the baseline by {abs(self.mean):.4g}"
        return f"no evidence of a difference (one of {self.detectable:.2g} would be found in 4 of 5 such studies)"


def differences(
    methods: Mapping[str, np.ndarray],
    baseline: np.ndarray,
    lower_is_better: bool = True,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Difference]:
    """Each method's difference to the baseline.

    Args:
        methods: name -> results (S, I); seed s and item i are those of the baseline's.
        baseline: (S, I).
        seed: of the bootstrap.
    Raises: ValueError for fewer than two seeds, results of another shape or without a value.
    """
    baseline = np.asarray(baseline, dtype=np.float64)
    found: dict[str, Difference] = {}
    for name, results in methods.items():
        results = np.asarray(results, dtype=np.float64)
        if results.shape != baseline.shape or results.ndim != 2:
            raise ValueError(
                f"{name} has results of shape {results.shape} and the baseline of {baseline.shape}; both must be "
                "seeds x items, of the same seeds and items."
            )
        if len(results) < 2:
            raise ValueError("one seed says nothing of the spread between seeds; give at least two.")
        if not (np.isfinite(results).all() and np.isfinite(baseline).all()):
            raise ValueError(f"{name} or the baseline has results that are no number.")
        found[name] = _difference(results - baseline, lower_is_better, confidence, np.random.default_rng(seed))
    corrected = holm({name: difference.p for name, difference in found.items()})
    return {name: Difference(**{**vars(d), "p_holm": corrected[name]}) for name, d in found.items()}


def standard_error(d: np.ndarray, rng: np.random.Generator, draws: int = _DRAWS) -> float:
    """Of the mean of D (S, I), by drawing seeds and items again; a dimension of one is not drawn."""
    seeds, items = d.shape
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds  # (draws, S)
    of_items = np.full((draws, items), 1 / items)
    if items > 1:
        of_items = rng.multinomial(items, np.full(items, 1 / items), draws) / items
    means = np.einsum("bs,bs->b", of_seeds, of_items @ d.T)
    # A bootstrap's variance is that of a sample of S drawn from S values: too small by (S - 1) / S.
    return float(means.std() * np.sqrt(seeds / (seeds - 1)))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction: the smallest p-value times their number, the next times one less, never falling."""
    ordered = sorted(p_values, key=lambda name: p_values[name])
    found, highest = {}, 0.0
    for place, name in enumerate(ordered):
        highest = max(highest, min(1.0, p_values[name] * (len(ordered) - place)))
        found[name] = highest
    return found


def _difference(d: np.ndarray, lower_is_better: bool, confidence: float, rng: np.random.Generator) -> Difference:
    seeds, items = d.shape
    mean, error = float(d.mean()), standard_error(d, rng)
    quantile = float(student.ppf((1 + confidence) / 2, seeds - 1))
    p = float(2 * student.sf(abs(mean) / error, seeds - 1)) if error > 0 else float(mean == 0)
    of_seed = np.sign(d.mean(axis=1)) * (-1 if lower_is_better else 1)
    return Difference(
        mean=mean,
        low=mean - quantile * error,
        high=mean + quantile * error,
        p=p,
        p_holm=p,
        wins=int((of_seed > 0).sum()),
        losses=int((of_seed < 0).sum()),
        detectable=_noncentrality(quantile, seeds - 1) * error,
        seeds=seeds,
        items=items,
    )


@functools.cache
def _noncentrality(quantile: float, degrees: int) -> float:
    """How many standard errors a true difference must have for t to be above the quantile in 4 of 5 studies."""
    return float(brentq(lambda shift: nct.sf(quantile, degrees, shift) - _POWER, 0, 100))  # type: ignore[arg-type]
