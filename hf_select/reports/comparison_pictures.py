"""The pictures of a comparison: differences with their intervals, results against compute, and verdicts over many
comparisons. Nothing is computed here."""

from collections.abc import Callable, Iterable
from typing import Any

from hf_select.reports.pictures import file_name, legend, name_rows, wrapped
from hf_select.reports.report_files import Figures


# Verdicts differ in colour and in marker, so that they can be told apart without colour too.
_LOOKS = {"better": ("first", "o"), "worse": ("second", "D"), "no evidence": ("pool", "o")}
# Colours that stay apart for most colour-blind readers (Okabe and Ito), on white and on black.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = "oD^vP*X<>hdp"


def comparison_figures(result: dict[str, Any]) -> Figures:
    """("differences", budget, measure) and ("compute", measure) for each headline; ("parts", budget) for the sets that
    it holds."""
    found: Figures = {}
    taken: set[str] = set()

    def add(key: tuple[str, ...], alt: str, paint: Callable[..., None], height: float) -> None:
        name = file_name(key[0], " ".join(key[1:]), taken)
        taken.add(name)
        found[key] = (name, alt, paint, height)

    first, rest = headlines(result["measures"]), parts(result["measures"])
    for budget, measures in result["budgets"].items():
        for measure in (measure for measure in first if measure in measures):
            lines = measures[measure]
            about, title = result["measures"][measure], f"{shown_budget(budget)}, {measure}"
            shown = {name: lines[name] for name in compared(result["methods"], lines)}
            add(
                ("differences", budget, measure),
                f"Differences to random rows with their 95 % intervals: {title}",
                lambda axes, ink, s=shown, a=about, t=title: _differences(axes, ink, s, a, t),
                1.25 + 0.27 * len(shown),
            )
        if rest:
            names = compared(result["methods"], measures[rest[0]])
            title = shown_budget(budget)
            outcomes = [[measures[measure][name]["outcome"] for measure in rest] for name in names]
            add(
                ("parts", budget),
                f"Verdict of each method on each held-out set: {title}",
                lambda axes, ink, n=names, o=outcomes, t=title: _verdicts(axes, ink, n, rest, o, t),
                _height(names, rest),
            )
    for measure in first:
        about = result["measures"][measure]
        lines = [
            (name, of[measure][name])
            for of in result["budgets"].values()
            if measure in of
            for name in ("random", *compared(result["methods"], of[measure]))
        ]
        names = in_order(result["methods"], dict.fromkeys(name for name, _ in lines))
        add(
            ("compute", measure),
            f"{measure} against the FLOPs of selecting and training",
            lambda axes, ink, n=names, s=lines, a=about, m=measure: _compute(axes, ink, n, s, a, m, result["methods"]),
            3.1 + 0.1 * len(names),
        )
    return found


def verdict_figure(rows: list[str], columns: list[str], verdicts: list[list[str | None]]) -> Figures:
    """Rows x columns of verdicts; None where there is none."""
    paint: Callable[..., None] = lambda axes, ink: _verdicts(axes, ink, rows, columns, verdicts)  # noqa: E731
    return {("verdicts",): ("verdicts", "Verdict of each method in each comparison", paint, _height(rows, columns))}


# --------------------------------------------------------------------------------------------------------------------


def _differences(axes: Any, ink: dict[str, str], lines: dict[str, Any], about: dict[str, Any], title: str) -> None:
    inside = [line["difference"] for name, line in lines.items() if name != "untrained"] or [
        line["difference"] for line in lines.values()
    ]
    low, high = min(0.0, *(d["low"] for d in inside)), max(0.0, *(d["high"] for d in inside))
    room = 0.06 * (high - low or 1.0)
    axes.set_xlim(low - room, high + room)
    axes.axvline(0, color=ink["text"], linewidth=0.8)
    seen = set()
    for place, line in enumerate(lines.values()):
        d = line["difference"]
        colour, marker = _LOOKS[line["outcome"]]
        if not low - room <= d["mean"] <= high + room:  # far off: the others would be one dot
            left = d["mean"] < low
            edge, arrow = (low - room, "◂ {:+.3g} ") if left else (high + room, "{:+.3g} ▸")
            text = arrow.format(d["mean"])
            axes.text(edge, place, text, ha="left" if left else "right", va="center", fontsize=7.5, color=ink[colour])
            continue
        axes.plot([d["low"], d["high"]], [place] * 2, color=ink[colour], linewidth=1.6)
        face = ink["page"] if line["outcome"] == "no evidence" else ink[colour]
        label = line["outcome"] if line["outcome"] not in seen else None
        seen.add(line["outcome"])
        axes.plot(d["mean"], place, marker, color=ink[colour], markerfacecolor=face, markersize=5.5, label=label)
    name_rows(axes, list(lines), 28)
    axes.locator_params(axis="x", nbins=5)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_xlabel(wrapped(f"less random rows, {about['unit']} ({about['better']} is better)", 60))
    axes.set_title(wrapped(title, 60), fontsize=9, loc="left", pad=18 if seen else 6)
    if seen:
        legend(axes, ink)


def _compute(
    axes: Any,
    ink: dict[str, str],
    names: list[str],
    lines: list[Any],
    about: dict[str, Any],
    measure: str,
    methods: list[str],
) -> None:
    """Every run by what it cost in total; a thin line leads back to the cost of its training alone."""
    axes.set_xscale("log")
    for n, name in enumerate(names):
        points = [
            (line["ledger"]["total_flops"], line["mean"], line["training_flops"])
            for other, line in lines
            if other == name and line.get("ledger", {}).get("total_flops") is not None
        ]
        if not points:
            continue
        points.sort()
        totals, means, trainings = zip(*points, strict=True)
        if name == "random":
            axes.plot(totals, means, "s-", color=ink["pool"], linewidth=1.6, markersize=5, label=name)
            continue
        colour = _COLOURS[n % len(_COLOURS)] if name in methods else ink["pool"]
        for total, mean, training in points:
            axes.plot([training, total], [mean, mean], color=colour, linewidth=0.8, alpha=0.8)
        marker = _MARKERS[n % len(_MARKERS)]
        axes.plot(totals, means, marker, color=colour, markersize=5.5, label=wrapped(name, 28))
    front = sorted(
        (line["ledger"]["total_flops"], line["mean"]) for _, line in lines if line.get("ledger", {}).get("front")
    )
    if front:
        axes.plot(*zip(*front, strict=True), "--", color=ink["text"], linewidth=0.9, drawstyle="steps-post", zorder=1)
        axes.plot(
            *zip(*front, strict=True), "o", color=ink["text"], markerfacecolor="none", markersize=10, linewidth=0,
            label="front: nothing as good for less",
        )  # fmt: skip
    before = next((line["mean"] for name, line in lines if name == "untrained"), None)
    if before is not None:
        low, high = axes.get_ylim()
        if low <= before <= high:
            axes.axhline(before, color=ink["text"], linewidth=0.8, linestyle=":", label=f"untrained: {before:.4g}")
        else:
            axes.plot([], [], ":", color=ink["text"], label=f"untrained: {before:.4g} (outside)")
    axes.set_xlabel("FLOPs of scores and training")
    axes.set_ylabel(wrapped(f"{about['unit']} ({about['better']} is better)", 40))
    axes.set_title(wrapped(measure, 60), fontsize=9, loc="left")
    place = {"loc": "outside lower left", "ncols": 2, "columnspacing": 1.0}
    axes.figure.legend(frameon=False, fontsize=7.5, labelcolor=ink["text"], **place)


def _height(rows: list[str], columns: list[str]) -> float:
    return 1.5 + 0.28 * len(rows) + 0.045 * max(len(wrapped(name, 30)) for name in columns)


def _verdicts(
    axes: Any, ink: dict[str, str], rows: list[str], columns: list[str], verdicts: list[list[Any]], title: str = ""
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
    name_rows(axes, rows, 28)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xticks(range(len(columns)), [wrapped(name, 30) for name in columns], rotation=40, ha="right", fontsize=8)
    axes.set_xlim(-0.6, len(columns) - 0.4)
    if title:
        axes.set_title(title, fontsize=9, loc="left", pad=18)
    legend(axes, ink)


def shown_budget(budget: str) -> str:
    """1000 rows -> 1,000 rows"""
    count, _, unit = budget.partition(" ")
    return f"{int(count):,} {unit}" if count.isdigit() else budget


def in_order(methods: list[str], names: Iterable[str]) -> list[str]:
    """What was asked about, then the baselines."""
    return sorted(names, key=lambda name: name not in methods)


def headlines(measures: dict[str, Any]) -> list[str]:
    """What is shown first: of the held-out losses all of them together, and every other measure."""
    return [name for name in measures if name not in parts(measures)]


def parts(measures: dict[str, Any]) -> list[str]:
    """The measures that another one holds."""
    return [part for about in measures.values() for part in about.get("parts", ())]


def compared(methods: list[str], lines: dict[str, Any]) -> list[str]:
    """What is shown beside random rows: random rows of as many tokens as a method chose stand beside that method."""
    controls = {line.get("matched_by") for line in lines.values()}
    return in_order(methods, [name for name, line in lines.items() if "difference" in line and name not in controls])
