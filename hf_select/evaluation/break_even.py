"""What selecting cost and gained, and after how many uses of its scores it has paid for itself.

Scores are made once and can be used often: an index serves any target, a perplexity any budget. What a use saves is
what random rows would have had to train beyond a run of the budget to be as good as it:

    uses(m) = scores(m) / (needed(m) - training)        all in counted FLOPs

training is that of random rows: runs of a budget train equally many tokens, and half a row more or less saves nothing.
needed(m) is the least training with which random rows reach the method's result, read off their own results through
the budgets: straight lines over the logarithm of the FLOPs, and nothing beyond what was measured. Where random rows
were never as good, needed(m) is "more than measured", and the number of uses has a bound on one side or none at all.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from hf_select.evaluation.statistics import Difference
from hf_select.evaluation.tables import RANDOM, UNTRAINED


Span = tuple[float, float]  # the lowest and the highest that a number can be; equal where it is known


def with_ledger(result: dict[str, Any]) -> dict[str, Any]:
    """The result of a comparison with two things more in the line of each method, baselines included.

    outcome: "better", "worse" or "no evidence", beside random rows, by the corrected p-value.
    ledger: total_flops and total_seconds of selecting and training, once; gain (in the measure's unit, positive is
        better), gain_per_run (over the total in runs of random rows); random_at_total (what random rows reach with
        the total); random_needs, saved (FLOPs, [lowest, highest], null without a bound); break_even ({"kind", "uses",
        "interval", "words"}); front (no other run is as good for less in total).
    """
    lower = {measure: about["better"] == "lower" for measure, about in result["measures"].items()}
    budgets: dict[str, Any] = {}
    for budget, of_budget in result["budgets"].items():
        for measure, lines in of_budget.items():
            curve = random_curve(result, measure)
            before = lines[UNTRAINED]["mean"] if UNTRAINED in lines else None
            found = {}
            for name, line in lines.items():
                found[name] = {**line, "outcome": outcome(line, lower[measure])} if "difference" in line else {**line}
                if name != UNTRAINED:
                    asked = name in result["methods"]
                    found[name]["ledger"] = _ledger(line, lines[RANDOM], curve, before, lower[measure], asked)
            budgets.setdefault(budget, {})[measure] = found
    for measure in result["measures"]:
        lines = [lines[measure] for lines in budgets.values() if measure in lines]
        _mark_front([line for of_budget in lines for line in of_budget.values()], lower[measure])
    return {**result, "budgets": budgets}


def outcome(line: dict[str, Any], lower_is_better: bool) -> str:
    return Difference(**line["difference"]).outcome(lower_is_better)


def random_curve(result: dict[str, Any], measure: str) -> list[tuple[float, float]]:
    """(training FLOPs, mean result) of random rows through the budgets, by FLOPs."""
    lines = [lines[measure][RANDOM] for lines in result["budgets"].values() if measure in lines]
    at: dict[float, list[float]] = {}
    for line in lines:
        at.setdefault(line["training_flops"], []).append(line["mean"])
    return sorted((flops, sum(means) / len(means)) for flops, means in at.items())


def needed(
    curve: Sequence[tuple[float, float]], value: float, lower_is_better: bool, untrained: float | None = None
) -> Span:
    """The least training FLOPs with which random rows are as good as `value`.

    Args:
        curve: (training FLOPs, result) of random rows, by FLOPs.
        untrained: result without training; if that is as good already, nothing is needed.
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
            found = math.exp(math.log(flops) + share * (math.log(more) - math.log(flops)))
            return found, found
    return curve[-1][0], math.inf


def reached_with(curve: Sequence[tuple[float, float]], flops: float) -> float | None:
    """What random rows reach with so much training, or None outside what was measured."""
    for (less, mean), (more, other) in pairwise(curve):
        if less <= flops <= more:
            share = (math.log(flops) - math.log(less)) / (math.log(more) - math.log(less))
            return mean + share * (other - mean)
    return curve[0][1] if flops == curve[0][0] else None


def uses_to_pay(cost: float, saved: Span) -> Span:
    """Uses after which `cost` FLOPs of scores have been saved, if each saves so many; inf: never."""
    low, high = saved
    if high <= 0:
        return math.inf, math.inf
    return cost / high, cost / low if low > 0 else math.inf


# --------------------------------------------------------------------------------------------------------------------


def _ledger(
    line: dict[str, Any],
    random: dict[str, Any],
    curve: list[tuple[float, float]],
    untrained: float | None,
    lower: bool,
    asked: bool,
) -> dict[str, Any]:
    cost = _cost(line, asked)
    total = None if cost is None else cost + line["training_flops"]
    gain = (random["mean"] - line["mean"]) * (1 if lower else -1)
    needs = needed(curve, line["mean"], lower, untrained)
    saved = (needs[0] - random["training_flops"], needs[1] - random["training_flops"])
    found = {
        "total_flops": total,
        "total_seconds": line["training_seconds"] + (line.get("selection_seconds") or 0.0),
        "gain": gain,
        "gain_per_run": None if total is None else gain * random["training_flops"] / total,
        "random_at_total": None if cost is None else reached_with(curve, cost + random["training_flops"]),
        "random_needs": _bounded(needs),
        "saved": _bounded(saved),
    }
    if asked and "difference" in line:
        found["break_even"] = _break_even(line, random, cost, curve, untrained, lower)
    return found


def _cost(line: dict[str, Any], asked: bool) -> float | None:
    """FLOPs of the scores: none for a baseline or a method without a model, None where nobody has counted."""
    if line.get("selection_flops") is not None:
        return float(line["selection_flops"])
    return 0.0 if not asked or line.get("selection_seconds") is not None else None


def _break_even(
    line: dict[str, Any],
    random: dict[str, Any],
    cost: float | None,
    curve: list[tuple[float, float]],
    untrained: float | None,
    lower: bool,
) -> dict[str, Any]:
    own, d = random["training_flops"], line["difference"]

    def uses(value: float) -> Span:
        low, high = needed(curve, value, lower, untrained)
        return uses_to_pay(cost or 0.0, (low - own, high - own))

    def said(kind: str, words: str, span: Span | None = None) -> dict[str, Any]:
        ends = [uses(random["mean"] + d[end]) for end in ("low", "high")] if span is not None else []
        return {
            "kind": kind,
            "uses": span[0] if span is not None and span[0] == span[1] and span[0] < math.inf else None,
            "interval": _bounded((min(low for low, _ in ends), max(high for _, high in ends))) if ends else None,
            "words": words,
        }

    verdict = outcome(line, lower)
    if verdict == "no evidence":
        return said("no evidence", "no number: no evidence of a difference to random rows")
    if verdict == "worse":
        return said("never", "never: worse than random rows")
    if cost is None:
        return said("unknown cost", "no number: nobody has counted what its scores cost")
    low, high = span = uses(line["mean"])
    if low == math.inf:
        return said("never", "never: random rows are as good with no more training", span)
    if cost == 0:
        return said("free", "at once: its scores cost no counted FLOPs", span)
    beyond = f"random rows would have to train more than measured (more than {curve[-1][0]:.3g} FLOPs)"
    if low == 0 and high == math.inf:
        return said("unknown", f"no number: {beyond}; a larger budget would tell", span)
    if low == 0:
        return said("at most", f"after {_times(high)} at most: {beyond}", span)
    if high == math.inf:
        return said("at least", f"after {_times(low)} at least: random rows need less than was measured", span)
    return said("uses", f"after {_times(high)}", span)


def _times(uses: float) -> str:
    count = math.ceil(round(uses, 6))
    return "one use" if count <= 1 else f"{count:,} uses"


def _bounded(span: Span) -> list[float | None]:
    return [None if math.isinf(end) else end for end in span]


def _mark_front(lines: list[dict[str, Any]], lower: bool) -> None:
    """Mark the runs that no other beats at the same or a lower total; without training the total is 0."""
    sign, best = 1 if lower else -1, math.inf
    known = [line for line in lines if _total(line) is not None]
    for line in sorted(known, key=lambda line: (_total(line), sign * line["mean"])):
        if "ledger" in line:
            line["ledger"]["front"] = sign * line["mean"] < best
        best = min(best, sign * line["mean"])
    for line in lines:
        if _total(line) is None:
            line["ledger"]["front"] = False


def _total(line: dict[str, Any]) -> float | None:
    return line["ledger"]["total_flops"] if "ledger" in line else 0.0
