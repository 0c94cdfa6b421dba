"""Which representation finds held-back queries, as a page, Markdown and a picture."""

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hf_select.reports.pictures import Ink, name_rows
from hf_select.reports.report_files import Figures, write_sections
from hf_select.reports.sections import Section, Table, percent
from hf_select.reports.target_advice_result import RepresentationResult, TargetAdvice


if TYPE_CHECKING:
    from matplotlib.axes import Axes


_DRAWN = 20  # representations in the picture


def target_advice_report(result: TargetAdvice, output_dir: str | os.PathLike) -> Path:
    """Write advice.html, advice.md and pictures/*.png, and return the page's path."""
    drawn = dict(list(result.results.items())[:_DRAWN])
    alt = f"How well held-back queries are found, best first: {', '.join(drawn)}"
    figures: Figures = {("found",): ("found", alt, partial(_paint_found, results=drawn), 1.0 + 0.22 * len(drawn))}
    facts = [
        ("advice", result.recommended),
        ("queries", f"{sum(result.queries.values()):,}"),
        ("rows of the sample, of the pool", f"{result.sample_rows:,} of {result.pool_rows:,}"),
    ]
    title = "Which representation finds the target?"
    return write_sections(Path(output_dir), "advice", title, facts, _target_sections(result), figures)


def representation_table(result: TargetAdvice) -> Table:
    """Every representation, best first, with its lead over the baselines."""
    rows = []
    for name, one in result.results.items():
        leads = [one.leads.get(baseline) for baseline in result.baselines]
        shown = ["" if lead is None else f"{lead.value:+.3f} ({lead.low:+.3f} to {lead.high:+.3f})" for lead in leads]
        rows.append([name, f"{one.found.value:.3f}", f"{one.found.low:.3f} to {one.found.high:.3f}", *shown])
    return ["", "found", "95 %", *(f"lead over {baseline}" for baseline in result.baselines)], rows


# --------------------------------------------------------------------------------------------------------------------


def _target_sections(result: TargetAdvice) -> list[Section]:
    notes = [(["notes"], [[note] for note in result.notes])] if result.notes else []
    sections = [
        Section("Advice", f"{result.message[0].upper()}{result.message[1:]}.", notes),
        _representation_section(result),
    ]
    if len(result.queries) > 1:
        header = ["", *result.queries]
        rows = [
            [name, *(f"{one.by_task[task].value:.3f}" for task in result.queries)]
            for name, one in result.results.items()
        ]
        sections.append(Section("By task", "Means over the queries of each task.", [(header, rows)]))
    sections += [_cost_section(result), _setup_section(result)]
    return sections


def _representation_section(result: TargetAdvice) -> Section:
    text = (
        "Found: the chance that a held-back query is more similar to the other half of the queries than a row of the "
        "sample is (area under the ROC curve; 0.5: no relation, 1: above all rows). Rows of the pool that belong to "
        "the task rank high too, so compare values with each other and not with 1. Intervals are over queries; those "
        "of leads hold for all representations together."
    )
    return Section("Representations", text, [representation_table(result)], ["found"], folded=False)


def _cost_section(result: TargetAdvice) -> Section:
    rows = [
        [
            name,
            f"{cost.seconds:,.0f} ({result.sample_cost[name].seconds:,.1f})",
            f"{cost.flops:.3g}" if cost.flops else "0",
        ]
        for name, cost in result.pool_cost.items()
    ]
    text = (
        f"Of one pass over all {result.pool_rows:,} rows, in brackets that over the sample, with all layers that were "
        "tried. Seconds are those of this machine, without loading the model; FLOPs are counted."
    )
    return Section("What it would cost", text, [(["", "seconds", "FLOPs"], rows)])


def _setup_section(result: TargetAdvice) -> Section:
    rows = [
        [task, f"{count:,}", f"{result.repeating[task]:,}", percent(result.repeating[task], result.sample_rows)]
        for task, count in result.queries.items()
    ]
    header = ["task", "queries", "rows of the sample that repeat one", "of the sample"]
    text = (
        f"Each query was held back in {result.splits} random splits (seed {result.seed}). Rows that repeat a query "
        "have its prompt or nearly its text; they were left out."
    )
    return Section("How this was measured", text, [(header, rows)])


def _paint_found(axes: "Axes", ink: Ink, results: dict[str, RepresentationResult]) -> None:
    for place, one in enumerate(results.values()):
        axes.plot([one.found.low, one.found.high], [place, place], color=ink["pool"], linewidth=1.5)
        axes.plot([one.found.value], [place], "o", color=ink["first"], markersize=4)
    name_rows(axes, list(results), width=40)
    axes.set_xlabel("found (0.5: no relation, 1: above all rows)")
