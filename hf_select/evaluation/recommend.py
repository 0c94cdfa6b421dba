"""From the measurements of a sample to advice: score or not, and by which scorer."""

from collections.abc import Mapping
from typing import Literal

from hf_select.reports.advice_result import (
    Advice,
    AdviceCosts,
    AdviceSettings,
    Recommendation,
    SampleMeasurements,
    ScorerAgreement,
    ScorerName,
)


FOLLOWS_LENGTH = 0.8  # |rho| from which on the longest (or shortest) rows are nearly the same choice
LEANS_ON_LENGTH = 0.5  # |rho| from which on a note is given
KEEPS_ENOUGH = 0.9  # of the large scorer's lift: what a smaller one must keep to replace it
TELLS_SOURCES = 0.5  # of the variance between sources: more, and the score mostly names the source


def recommend(
    measurements: SampleMeasurements,
    costs: AdviceCosts,
    settings: AdviceSettings,
    overlap: Mapping[str, int],
    unscored: Mapping[str, Mapping[str, int]],
    sample_rows: int,
) -> Advice:
    """Return the advice; a statement is made only if its whole interval is on one side of the threshold.

    Args:
        overlap: task -> rows of the pool that repeat a query.
        unscored: scorer -> reason -> rows of the sample without a score.
        sample_rows: rows of the sample.
    """
    recommendation, message = _recommendation(measurements, costs, settings.fraction)
    scorer: ScorerName = "small" if recommendation == "small" else "large"
    notes = [
        *_overlap_notes(overlap),
        *_measurement_notes(measurements, scorer, settings.source_column),
        *_cost_notes(costs, scorer),
        *_score_notes(measurements, unscored, sample_rows),
    ]
    return Advice(recommendation, message, notes)


# --------------------------------------------------------------------------------------------------------------------


def _recommendation(m: SampleMeasurements, costs: AdviceCosts, fraction: float) -> tuple[Recommendation, str]:
    if (length := _length_instead(m)) is not None:
        return length
    scorer: ScorerName = "large"
    message = "score with the large scorer: there is no smaller one to stand in for it"
    if m.agreement is not None:
        recommendation, message = _substitute(m.agreement, costs, fraction)
        if recommendation == "a larger sample":
            return recommendation, message
        scorer = recommendation
    flops = costs.pool[scorer].flops
    if costs.training is not None and flops >= costs.training.everything:
        times = flops / costs.training.everything
        scoring = "that scores every row" if m.agreement is None else f"of the {scorer} scorer over every row"
        return "train on everything", (
            f"do not score: the pass {scoring} costs {times:.2g} times the FLOPs of training on every row. "
            f"{message[0].upper()}{message[1:]}"
        )
    return scorer, message


def _length_instead(m: SampleMeasurements) -> tuple[Recommendation, str] | None:
    """Recommend the longest or shortest rows if the scores of the large scorer follow a length."""
    by_kind = {kind: by_scorer["large"] for kind, by_scorer in m.length.items()}
    kind = max(by_kind, key=lambda kind: abs(by_kind[kind].value))
    rho = by_kind[kind]
    if min(abs(rho.low), abs(rho.high)) < FOLLOWS_LENGTH or rho.low * rho.high <= 0:
        return None
    which: Recommendation = "longest" if rho.value > 0 else "shortest"
    return which, (
        f"take the {which} rows: the scores follow the length of the {kind} (rho {rho}), which costs no model"
    )


def _substitute(
    agreement: ScorerAgreement, costs: AdviceCosts, fraction: float
) -> tuple[ScorerName | Literal["a larger sample"], str]:
    """Decide whether the small scorer can replace the large one."""
    kept = agreement.lift_kept
    finding = f"the best {100 * fraction:g} % of the small scorer keep {kept} of the large one's lift over random rows"
    if kept.low >= KEEPS_ENOUGH:
        return "small", f"the small scorer is enough: {finding}{_cheaper(costs)}"
    if kept.high < KEEPS_ENOUGH:
        return "large", f"the small scorer is no stand-in: {finding}"
    return "a larger sample", (
        f"this sample does not settle whether the small scorer is enough ({KEEPS_ENOUGH:g} is required): {finding}. "
        "Score a larger share"
    )


def _cheaper(costs: AdviceCosts) -> str:
    large, small = costs.pool["large"], costs.pool["small"]
    if large.flops and small.flops:
        return f", for {small.flops / large.flops:.2g} of its FLOPs"
    return f", in {small.seconds / large.seconds:.2g} of its time"


def _overlap_notes(overlap: Mapping[str, int]) -> list[str]:
    return [
        f"{count:,} rows of the pool repeat queries of {name}: take them out first (selector decontaminate), or a "
        "targeted score finds them before anything else"
        for name, count in overlap.items()
        if count
    ]


def _measurement_notes(m: SampleMeasurements, scorer: ScorerName, source_column: str | None) -> list[str]:
    notes = [
        f"the scores lean on the length of the {kind} (rho {by_scorer[scorer]}): compare with random rows of as many "
        "tokens, or rank within lengths (top_k with length)"
        for kind, by_scorer in m.length.items()
        if LEANS_ON_LENGTH <= abs(by_scorer[scorer].value) < FOLLOWS_LENGTH
    ]
    if m.source is not None and m.source.shares[scorer].low >= TELLS_SOURCES:
        notes.append(
            f"the scores mostly tell sources apart ({m.source.shares[scorer]} of the variance of ranks lies between "
            f"the {m.source.num_sources} of {source_column}): choose among sources, or within each"
        )
    return notes


def _cost_notes(costs: AdviceCosts, scorer: ScorerName) -> list[str]:
    if costs.training is None:
        return []
    flops = costs.pool[scorer].flops
    times = flops / costs.training.selection
    if times < 1 or flops >= costs.training.everything:
        return []
    return [
        f"the {scorer} scorer over every row costs {times:.2g} times the training on the selection: one use pays only "
        "if random rows would need that much more (hf-select compare measures it)"
    ]


def _score_notes(m: SampleMeasurements, unscored: Mapping[str, Mapping[str, int]], sample_rows: int) -> list[str]:
    notes = []
    if m.agreement is not None and m.agreement.identical:
        notes.append(
            "both scorers give every row the same score: on these rows they are one scorer, and their agreement says "
            "nothing about another"
        )
    for name, reasons in unscored.items():
        missing = sum(reasons.values())
        if missing > 0.01 * sample_rows:
            most_common = next(iter(reasons))
            notes.append(
                f"{missing:,} rows of the sample have no score by the {name} scorer (most often: {most_common})"
            )
    return notes
