"""What selecting cost and gained, and after how many uses the scores have paid for themselves.

Scores are computed once and can be used often: an index serves any target, a perplexity any budget. A use saves what
random rows would have to train beyond a run of the budget to be as good:

    uses(m) = scores(m) / (flops_to_match(m) - training)        all in counted FLOPs

`training` is that of random rows: runs of a budget train equally many tokens, and half a row more or less saves
nothing. `flops_to_match(m)` is the least training with which random rows reach the method's result. It is read off
their own results over the budgets: straight lines over the logarithm of the FLOPs, without extrapolation. Where random
rows were never as good, it has no upper bound, and the number of uses has a bound on one side or none at all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from hf_select.reports.comparison_result import (
    RANDOM,
    UNTRAINED,
    BreakEven,
    BreakEvenKind,
    Comparison,
    Costs,
    MethodResult,
    MethodResults,
)


Curve = Sequence[tuple[float, float]]  # (training FLOPs, result) of random rows, by FLOPs
Bounds = tuple[float, float]  # lowest and highest possible value; equal where it is known


def add_costs(comparison: Comparison) -> Comparison:
    """Return the comparison with `costs` in every result but that of the untrained model."""
    budgets: dict[str, dict[str, MethodResults]] = {budget: {} for budget in comparison.budgets}
    for measure, about in comparison.measures.items():
        lower, curve = about.lower_is_better, random_curve(comparison, measure)
        found: dict[tuple[str, str], MethodResult] = {}
        for budget, by_measure in comparison.budgets.items():
            results = by_measure.get(measure, {})
            untrained = results[UNTRAINED].mean if UNTRAINED in results else None
            for name, result in results.items():
                if name != UNTRAINED:
                    reading = _Reading(result, results[RANDOM], curve, untrained, lower, name in comparison.methods)
                    result = replace(result, costs=reading.costs())
                found[budget, name] = result
        for (budget, name), result in _mark_front(found, lower).items():
            budgets[budget].setdefault(measure, {})[name] = result
    return replace(comparison, budgets=budgets)


def random_curve(comparison: Comparison, measure: str) -> Curve:
    """Return (training FLOPs, mean result) of random rows at each budget, by FLOPs."""
    means: dict[float, list[float]] = {}
    for by_measure in comparison.budgets.values():
        if measure in by_measure:
            random = by_measure[measure][RANDOM]
            means.setdefault(random.training.training_flops, []).append(random.mean)
    return sorted((flops, sum(values) / len(values)) for flops, values in means.items())


def flops_to_match(curve: Curve, value: float, lower_is_better: bool, untrained: float | None = None) -> Bounds:
    """Return the least training FLOPs with which random rows are as good as `value`.

    Args:
        untrained: result without training; if it is as good already, no FLOPs are needed.
    """

    def reached(mean: float) -> bool:
        return mean <= value if lower_is_better else mean >= value

    if untrained is not None and reached(untrained):
        return 0.0, 0.0
    if reached(curve[0][1]):
        return 0.0, curve[0][0]
    for (flops, mean), (more, other) in pairwise(curve):
        if reached(other):
            share = (value - mean) / (other - mean)
            needed = math.exp(math.log(flops) + share * (math.log(more) - math.log(flops)))
            return needed, needed
    return curve[-1][0], math.inf


def result_at(curve: Curve, flops: float) -> float | None:
    """Return what random rows reach with `flops` of training, or None outside what was measured."""
    for (less, mean), (more, other) in pairwise(curve):
        if less <= flops <= more:
            share = (math.log(flops) - math.log(less)) / (math.log(more) - math.log(less))
            return mean + share * (other - mean)
    return curve[0][1] if flops == curve[0][0] else None


def uses_to_pay(cost: float, saved: Bounds) -> Bounds:
    """Return the number of uses after which `cost` FLOPs are saved, if each use saves `saved`; inf: never."""
    low, high = saved
    if high <= 0:
        return math.inf, math.inf
    return cost / high, cost / low if low > 0 else math.inf


@dataclass(frozen=True)
class _Reading:
    """A result that is read against the curve of random rows; is_method: not a baseline."""

    result: MethodResult
    random: MethodResult
    curve: Curve
    untrained: float | None
    lower: bool
    is_method: bool

    def costs(self) -> Costs:
        """Return the costs, not yet marked as on the front."""
        runs, scores, one_run = self.result.training, self._scores(), self.random.training.training_flops
        total = None if scores is None else scores + runs.training_flops
        gain = (self.random.mean - self.result.mean) * (1 if self.lower else -1)
        needs = flops_to_match(self.curve, self.result.mean, self.lower, self.untrained)
        return Costs(
            total_flops=total,
            total_seconds=runs.training_seconds + (runs.selection_seconds or 0.0),
            gain=gain,
            gain_per_run=None if total is None else gain * one_run / total,
            random_at_total=None if scores is None else result_at(self.curve, scores + one_run),
            random_needs=_finite(needs),
            saved=_finite((needs[0] - one_run, needs[1] - one_run)),
            break_even=self._break_even(scores) if self.is_method and self.result.difference is not None else None,
        )

    def _scores(self) -> float | None:
        """FLOPs of the scores: 0 for a baseline or a method without a model, None where they are not counted."""
        runs = self.result.training
        if runs.selection_flops is not None:
            return float(runs.selection_flops)
        return 0.0 if not self.is_method or runs.selection_seconds is not None else None

    def _uses(self, value: float, scores: float) -> Bounds:
        one_run = self.random.training.training_flops
        low, high = flops_to_match(self.curve, value, self.lower, self.untrained)
        return uses_to_pay(scores, (low - one_run, high - one_run))

    def _break_even(self, scores: float | None) -> BreakEven:
        if self.result.outcome == "no evidence":
            return BreakEven("no evidence", "no number: no evidence of a difference to random rows")
        if self.result.outcome == "worse":
            return BreakEven("never", "never: worse than random rows")
        if scores is None:
            return BreakEven("unknown cost", "no number: the cost of its scores is not counted")
        d = self.result.difference
        assert d is not None
        low, high = self._uses(self.result.mean, scores)
        kind, message = self._kind_and_message(low, high, scores)
        ends = [self._uses(self.random.mean + end, scores) for end in (d.low, d.high)]
        interval = _finite((min(end[0] for end in ends), max(end[1] for end in ends)))
        return BreakEven(kind, message, low if low == high < math.inf else None, interval)

    def _kind_and_message(self, low: float, high: float, scores: float) -> tuple[BreakEvenKind, str]:
        if low == math.inf:
            return "never", "never: random rows are as good with no more training"
        if scores == 0:
            return "free", "at once: its scores cost no counted FLOPs"
        beyond = f"random rows would have to train more than measured (more than {self.curve[-1][0]:.3g} FLOPs)"
        if low == 0 and high == math.inf:
            return "unknown", f"no number: {beyond}; a larger budget would tell"
        if low == 0:
            return "at most", f"after {_times(high)} at most: {beyond}"
        if high == math.inf:
            return "at least", f"after {_times(low)} at least: random rows need less than was measured"
        return "uses", f"after {_times(high)}"


def _times(uses: float) -> str:
    count = math.ceil(round(uses, 6))
    return "one use" if count <= 1 else f"{count:,} uses"


def _finite(bounds: Bounds) -> tuple[float | None, float | None]:
    low, high = (None if math.isinf(end) else end for end in bounds)
    return low, high


def _mark_front(results: dict[tuple[str, str], MethodResult], lower: bool) -> dict[tuple[str, str], MethodResult]:
    """Mark the results that no other beats for the same or a lower total; without training the total is 0."""
    sign, best = 1 if lower else -1, math.inf
    totals = {key: result.total_flops for key, result in results.items()}
    known = {key: total for key, total in totals.items() if total is not None}
    marked = dict(results)
    for key in sorted(known, key=lambda key: (known[key], sign * results[key].mean)):
        result = results[key]
        if result.costs is not None:
            marked[key] = replace(result, costs=replace(result.costs, on_front=sign * result.mean < best))
        best = min(best, sign * result.mean)
    return marked
