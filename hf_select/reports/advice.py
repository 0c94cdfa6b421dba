"""What a sample shows about scoring a pool, as a page, Markdown and pictures. All numbers come from advice.json."""

import os
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hf_select.reports.advice_result import AdviceResult, Estimate, ScorerAgreement
from hf_select.reports.pictures import Ink, legend
from hf_select.reports.report_files import Figures, write_sections
from hf_select.reports.sections import Section, percent


if TYPE_CHECKING:
    from matplotlib.axes import Axes


_RECOMMENDED = {
    "small": "the small scorer",
    "large": "the large scorer",
    "longest": "the longest rows",
    "shortest": "the shortest rows",
}


def advice_report(result: AdviceResult, output_dir: str | os.PathLike) -> Path:
    """Write advice.html, advice.md and pictures/*.png, and return the page's path."""
    figures = _advice_figures(result)
    recommendation, agreement = result.advice.recommendation, result.measurements.agreement
    facts = [
        ("advice", _RECOMMENDED.get(recommendation, recommendation)),
        ("rows scored, of the pool", f"{result.sample_rows:,} of {result.pool_rows:,}"),
        ("seconds to score every row", f"{result.costs.pool['large'].seconds:,.0f}"),
    ]
    if agreement is not None:
        facts.append(("rank agreement, small and large", f"{agreement.spearman.value:.2f}"))
    title = "Is this pool worth scoring?"
    return write_sections(Path(output_dir), "advice", title, facts, _advice_sections(result, figures), figures)


# --------------------------------------------------------------------------------------------------------------------


def _advice_sections(result: AdviceResult, figures: Figures) -> list[Section]:
    advice, agreement = result.advice, result.measurements.agreement
    notes = [(["notes"], [[note] for note in advice.notes])] if advice.notes else []
    sections = [Section("Advice", advice.message[0].upper() + advice.message[1:] + ".", notes)]
    if agreement is not None:
        sections.append(_scorer_agreement_section(result, agreement, figures))
    sections += [_influence_section(result, figures), _expected_cost_section(result)]
    if result.overlap:
        rows = [[name, f"{count:,}", percent(count, result.pool_rows)] for name, count in result.overlap.items()]
        text = "Rows of the whole pool with the prompt of a query or nearly its text."
        table = (["queries", "rows that repeat one", "of the pool"], rows)
        sections.append(Section("Queries in the pool", text, [table]))
    sections.append(_settings_section(result))
    return sections


def _scorer_agreement_section(result: AdviceResult, agreement: ScorerAgreement, figures: Figures) -> Section:
    share = f"{100 * result.settings.fraction:g} %"
    rows = [
        ["Spearman's rho", *_cells(agreement.spearman), "0"],
        [f"best {share} in common", *_cells(agreement.overlap), f"{agreement.by_chance:.2f}"],
        ["lift kept by the small scorer", *_cells(agreement.lift_kept), "0"],
    ]
    text = (
        f"Over {result.measurements.num_measured:,} rows that both scored; intervals by a bootstrap over rows. Lift "
        f"kept: how far above the middle the large scorer ranks the best {share} of the small one, over the same of "
        "its own best."
    )
    table = (["", "", "95 %", "by chance"], rows)
    return Section("Small and large scorer", text, [table], _names_of(figures, "agreement"), folded=False)


def _influence_section(result: AdviceResult, figures: Figures) -> Section:
    rows = [
        [f"length of the {kind}: rho, {name} scorer", *_cells(estimate)]
        for kind, by_scorer in result.measurements.length.items()
        for name, estimate in by_scorer.items()
    ]
    source = result.measurements.source
    if source is not None:
        column = f"{result.settings.source_column} ({source.num_sources})"
        rows += [
            [f"{column}: share of the variance, {name} scorer", *_cells(estimate)]
            for name, estimate in source.shares.items()
        ]
    text = (
        "Length in characters. The share of the variance is that of ranks between sources, corrected for their number."
    )
    table = (["", "", "95 %"], rows)
    return Section("What the scores follow", text, [table], _names_of(figures, "length"), folded=False)


def _expected_cost_section(result: AdviceResult) -> Section:
    costs, training = result.costs, result.costs.training
    rows = []
    for name, whole in costs.pool.items():
        sample = costs.sample[name]
        rows.append(
            [
                f"{name} scorer, every row",
                f"{whole.seconds:,.0f} ({sample.seconds:,.1f})",
                f"{whole.flops:.3g} ({sample.flops:.3g})" if whole.flops else "0",
                "" if training is None else f"{whole.flops / training.everything:.2g}",
            ]
        )
    if training is not None:
        rows += [
            [f"training on {rows_of}", "", f"{flops:.3g}", f"{flops / training.everything:.2g}"]
            for rows_of, flops in (("every row", training.everything), ("the selection", training.selection))
        ]
    text = (
        f"For all {result.pool_rows:,} rows, and in brackets measured on the {result.sample_rows:,} of the sample; "
        f"lengths in the sample leave an uncertainty of {100 * costs.relative_error:.0f} %. Seconds are those of "
        "this machine, without loading the model; FLOPs are counted."
    )
    return Section("What it would cost", text, [(["", "seconds", "FLOPs", "over training on every row"], rows)])


def _settings_section(result: AdviceResult) -> Section:
    rows = [
        [f"{name} scorer", scorer.name, ", ".join(f"{key} {value}" for key, value in scorer.settings.items())]
        for name, scorer in result.scorers.items()
    ]
    rows += [["", name, "–" if value is None else str(value)] for name, value in asdict(result.settings).items()]
    reasons = [[name, reason, f"{count:,}"] for name, of in result.unscored.items() for reason, count in of.items()]
    tables = [(["", "", ""], rows), *([(["no score by", "because", "rows"], reasons)] if reasons else [])]
    return Section("How this was measured", "", tables)


def _cells(estimate: Estimate) -> list[str]:
    return [f"{estimate.value:.3f}", f"{estimate.low:.3f} to {estimate.high:.3f}"]


def _names_of(figures: Figures, kind: str) -> list[str]:
    return [figure[0] for key, figure in figures.items() if key[0] == kind]


def _advice_figures(result: AdviceResult) -> Figures:
    points = result.measurements.points
    figures: Figures = {}
    if "small" in points:
        figures["agreement",] = (
            "agreement",
            "Percentile ranks of the rows by the large and by the small scorer",
            partial(_paint_agreement, points=points, fraction=result.settings.fraction),
            3.6,
        )
    for kind in result.measurements.length:
        figures["length", kind] = (
            f"length_{kind}",
            f"Percentile ranks by the large scorer against the length of the {kind}",
            partial(_paint_length, sizes=points[f"length {kind}"], ranks=points["large"], kind=kind),
            2.9,
        )
    return figures


def _paint_agreement(axes: "Axes", ink: Ink, points: dict[str, list[float]], fraction: float) -> None:
    """Draw ranks against ranks; the rows that either would select lie beyond its line."""
    pairs = list(zip(points["large"], points["small"], strict=True))
    looks = [
        ("both select", ink["first"], "o", [pair for pair in pairs if min(pair) >= 1 - fraction]),
        ("one selects", ink["second"], "x", [pair for pair in pairs if min(pair) < 1 - fraction <= max(pair)]),
        ("neither", ink["pool"], ".", [pair for pair in pairs if max(pair) < 1 - fraction]),
    ]
    for label, colour, marker, shown in looks:
        if shown:
            axes.plot(*zip(*shown, strict=True), marker, color=colour, markersize=3.5, alpha=0.7, label=label)
    axes.axhline(1 - fraction, color=ink["text"], linewidth=0.7, linestyle=":")
    axes.axvline(1 - fraction, color=ink["text"], linewidth=0.7, linestyle=":")
    axes.set_xlabel("percentile rank, large scorer")
    axes.set_ylabel("percentile rank, small scorer")
    legend(axes, ink)


def _paint_length(axes: "Axes", ink: Ink, sizes: list[float], ranks: list[float], kind: str) -> None:
    axes.plot([max(1.0, size) for size in sizes], ranks, ".", color=ink["first"], markersize=4, alpha=0.6)
    axes.set_xscale("log")
    axes.set_xlabel(f"characters of the {kind}")
    axes.set_ylabel("percentile rank")
