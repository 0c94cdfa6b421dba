"""Pictures of a comparison: differences with their intervals, results against compute, and verdicts of many
comparisons."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from hf_select.reports.comparison_result import (
    RANDOM,
    UNTRAINED,
    Comparison,
    MeasureInfo,
    MethodResult,
    MethodResults,
    Outcome,
    methods_first,
    shown_budget,
)
from hf_select.reports.pictures import Ink, file_name, legend, name_rows, wrapped
from hf_select.reports.report_files import Figures


if TYPE_CHECKING:
    from matplotlib.axes import Axes


# Verdicts differ in colour and in marker, so that they can be told apart without colour too.
_LOOKS = {"better": ("first", "o"), "worse": ("second", "D"), "no evidence": ("pool", "o")}
# Colours that most colour-blind readers can tell apart (Okabe and Ito), on white and on black.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = "oD^vP*X<>hdp"


def comparison_figures(result: Comparison) -> Figures:
    """Return the figures by key.

    ("differences", budget, measure) and ("compute", measure) for each headline measure; ("parts", budget) for pooled
    held-out sets.
    """
    figures: Figures = {}
    used: set[str] = set()

    def add(key: tuple[str, ...], alt: str, paint: Callable[..., None], height: float) -> None:
        name = file_name(key[0], " ".join(key[1:]), used)
        used.add(name)
        figures[key] = (name, alt, paint, height)

    for budget, by_measure in result.budgets.items():
        for measure, results in result.headline_results(budget).items():
            shown = {name: results[name] for name in result.compared(results)}
            title = f"{shown_budget(budget)}, {measure}"
            paint = partial(_paint_differences, results=shown, about=result.measures[measure], title=title)
            alt = f"Differences to random rows with their 95 % intervals: {title}"
            add(("differences", budget, measure), alt, paint, 1.25 + 0.27 * len(shown))
        if parts := result.parts:
            names, title = result.compared(by_measure[parts[0]]), shown_budget(budget)
            outcomes: list[list[Outcome | None]] = [
                [by_measure[measure][name].outcome for measure in parts] for name in names
            ]
            paint = partial(_paint_verdicts, rows=names, columns=parts, verdicts=outcomes, title=title)
            alt = f"Verdict of each method on each held-out set: {title}"
            add(("parts", budget), alt, paint, _height(names, parts))
    for measure in result.headlines:
        results = [
            (name, by_measure[measure][name])
            for by_measure in result.budgets.values()
            if measure in by_measure
            for name in (RANDOM, *result.compared(by_measure[measure]))
        ]
        paint = partial(_paint_compute, results=results, result=result, measure=measure)
        alt = f"{measure} against the FLOPs of selecting and training"
        add(("compute", measure), alt, paint, 3.1 + 0.1 * len({name for name, _ in results}))
    return figures


def verdict_figure(
    rows: Sequence[str], columns: Sequence[str], verdicts: Sequence[Sequence[Outcome | None]]
) -> Figures:
    """Return the figure of rows x columns of verdicts; None where there is none."""
    paint = partial(_paint_verdicts, rows=rows, columns=columns, verdicts=verdicts)
    return {("verdicts",): ("verdicts", "Verdict of each method in each comparison", paint, _height(rows, columns))}


# --------------------------------------------------------------------------------------------------------------------


def _paint_differences(axes: "Axes", ink: Ink, results: MethodResults, about: MeasureInfo, title: str) -> None:
    differences = {name: r.difference for name, r in results.items() if r.difference is not None}
    inside = [d for name, d in differences.items() if name != UNTRAINED] or list(differences.values())
    low, high = min(0.0, *(d.low for d in inside)), max(0.0, *(d.high for d in inside))
    margin = 0.06 * (high - low or 1.0)
    axes.set_xlim(low - margin, high + margin)
    axes.axvline(0, color=ink["text"], linewidth=0.8)
    seen = set()
    for place, (name, d) in enumerate(differences.items()):
        outcome = results[name].outcome or "no evidence"
        colour, marker = _LOOKS[outcome]
        if not low - margin <= d.mean <= high + margin:  # drawn to scale it would shrink the others to one dot
            left = d.mean < low
            edge, arrow = (low - margin, "◂ {:+.3g} ") if left else (high + margin, "{:+.3g} ▸")
            text = arrow.format(d.mean)
            axes.text(edge, place, text, ha="left" if left else "right", va="center", fontsize=7.5, color=ink[colour])
            continue
        axes.plot([d.low, d.high], [place] * 2, color=ink[colour], linewidth=1.6)
        face = ink["page"] if outcome == "no evidence" else ink[colour]
        label = outcome if outcome not in seen else None
        seen.add(outcome)
        axes.plot(d.mean, place, marker, color=ink[colour], markerfacecolor=face, markersize=5.5, label=label)
    name_rows(axes, list(results), 28)
    axes.locator_params(axis="x", nbins=5)
    axes.set_ylim(len(results) - 0.4, -0.6)
    axes.set_xlabel(wrapped(f"difference to random rows, {about.unit} ({about.better} is better)", 60))
    axes.set_title(wrapped(title, 60), fontsize=9, loc="left", pad=18 if seen else 6)
    if seen:
        legend(axes, ink)


def _paint_compute(
    axes: "Axes", ink: Ink, results: Sequence[tuple[str, MethodResult]], result: Comparison, measure: str
) -> None:
    """Draw every result at its total cost; a thin line leads back to the cost of its training alone."""
    about = result.measures[measure]
    axes.set_xscale("log")
    for place, name in enumerate(methods_first(result.methods, dict.fromkeys(name for name, _ in results))):
        points = sorted(
            (r.costs.total_flops, r.mean, r.training.training_flops)
            for other, r in results
            if other == name and r.costs is not None and r.costs.total_flops is not None
        )
        if not points:
            continue
        totals, means, _ = zip(*points, strict=True)
        if name == RANDOM:
            axes.plot(totals, means, "s-", color=ink["pool"], linewidth=1.6, markersize=5, label=name)
            continue
        colour = _COLOURS[place % len(_COLOURS)] if name in result.methods else ink["pool"]
        for total, mean, training in points:
            axes.plot([training, total], [mean, mean], color=colour, linewidth=0.8, alpha=0.8)
        marker = _MARKERS[place % len(_MARKERS)]
        axes.plot(totals, means, marker, color=colour, markersize=5.5, label=wrapped(name, 28))
    front = sorted((r.costs.total_flops, r.mean) for _, r in results if r.costs is not None and r.costs.on_front)
    if front:
        axes.plot(*zip(*front, strict=True), "--", color=ink["text"], linewidth=0.9, drawstyle="steps-post", zorder=1)
        axes.plot(
            *zip(*front, strict=True), "o", color=ink["text"], markerfacecolor="none", markersize=10, linewidth=0,
            label="front: nothing as good for less",
        )  # fmt: skip
    _draw_untrained(axes, ink, next((r.mean for name, r in results if name == UNTRAINED), None))
    axes.set_xlabel("FLOPs of scores and training")
    axes.set_ylabel(wrapped(f"{about.unit} ({about.better} is better)", 40))
    axes.set_title(wrapped(measure, 60), fontsize=9, loc="left")
    place = {"loc": "outside lower left", "ncols": 2, "columnspacing": 1.0}
    axes.figure.legend(frameon=False, fontsize=7.5, labelcolor=ink["text"], **place)


def _draw_untrained(axes: "Axes", ink: Ink, mean: float | None) -> None:
    """Draw a line at the result of the untrained model, or name it in the legend if it is outside."""
    if mean is None:
        return
    low, high = axes.get_ylim()
    if low <= mean <= high:
        axes.axhline(mean, color=ink["text"], linewidth=0.8, linestyle=":", label=f"untrained: {mean:.4g}")
    else:
        axes.plot([], [], ":", color=ink["text"], label=f"untrained: {mean:.4g} (outside)")


def _height(rows: Sequence[str], columns: Sequence[str]) -> float:
    return 1.5 + 0.28 * len(rows) + 0.045 * max(len(wrapped(name, 30)) for name in columns)


def _paint_verdicts(
    axes: "Axes",
    ink: Ink,
    rows: Sequence[str],
    columns: Sequence[str],
    verdicts: Sequence[Sequence[Outcome | None]],
    title: str = "",
) -> None:
    seen = set()
    for y, line in enumerate(verdicts):
        for x, verdict in enumerate(line):
            if verdict is None:
                continue
            colour, marker = _LOOKS[verdict]
            face = ink["page"] if verdict == "no evidence" else ink[colour]
            label = verdict if verdict not in seen else None
            seen.add(verdict)
            axes.plot(x, y, marker, color=ink[colour], markerfacecolor=face, markersize=8, label=label, linewidth=0)
    name_rows(axes, list(rows), 28)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xticks(range(len(columns)), [wrapped(name, 30) for name in columns], rotation=40, ha="right", fontsize=8)
    axes.set_xlim(-0.6, len(columns) - 0.4)
    if title:
        axes.set_title(title, fontsize=9, loc="left", pad=18)
    legend(axes, ink)
