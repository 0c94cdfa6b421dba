"""The numbers of a report as PNGs, each for a light and for a dark page. Nothing is computed here.

Figures are narrow, so that they stay legible on a phone.
"""

import re
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from hf_select.extras import require
from hf_select.reports.ledger import Step
from hf_select.reports.report_numbers import (
    Distribution,
    ReportNumbers,
    SelectionNumbers,
    SourceCounts,
    TargetTask,
)


if TYPE_CHECKING:
    from matplotlib.axes import Axes


Theme = Literal["light", "dark"]
Ink = dict[str, str]  # use of a colour -> its hex code
Paint = Callable[["Axes", Ink], None]  # draws on the axes in these colours


class Picture(NamedTuple):
    """A drawn picture: the name of its file, a description for readers who do not see it, and the PNG."""

    name: str
    alt: str
    png: bytes


class Figure(NamedTuple):
    """A picture before it is drawn; `height` is in inches."""

    name: str
    alt: str
    paint: Paint
    height: float

    def draw(self, theme: Theme) -> Picture:
        """The picture for a light or a dark page."""
        return Picture(self.name, self.alt, png(self.paint, self.height, theme))


_SIZE = (4.7, 2.9)  # inches
_DPI = 160
# The parts of a pool differ in colour and in line style, so that they can be distinguished without colour.
_INK: dict[Theme, Ink] = {
    "light": {
        "text": "#1f2328",
        "faint": "#c9cfd6",
        "page": "#ffffff",
        "pool": "#9aa4af",
        "first": "#0b63ce",
        "second": "#c2570c",
    },
    "dark": {
        "text": "#e6edf3",
        "faint": "#3d444d",
        "page": "#0f141a",
        "pool": "#7d8793",
        "first": "#6cb0ff",
        "second": "#ffa657",
    },
}


def draw(numbers: ReportNumbers, theme: Theme = "light") -> Iterator[Picture]:
    """Every picture of a report."""
    for figure in _report_figures(numbers):
        yield figure.draw(theme)


def _report_figures(numbers: ReportNumbers) -> Iterator[Figure]:
    measured = numbers.measured
    parts = list(measured.rows)
    of = ", ".join(parts)
    yield from _distribution_figures("score", measured.scores, of)
    yield from _distribution_figures("length", measured.lengths, of)
    if sources := measured.sources:
        alt, height = f"Share of each {sources.column}: {of}", 1.1 + 0.34 * len(sources.lines)
        yield Figure("sources", alt, lambda axes, ink: _paint_sources(axes, ink, sources, measured.rows), height)
    if isinstance(numbers, SelectionNumbers) and (tasks := numbers.tasks):
        alt, height = f"Similarity to each task, median and middle 80 %: {of}", 1.1 + 0.42 * len(tasks)
        yield Figure("tasks", alt, lambda axes, ink: _paint_tasks(axes, ink, tasks, parts), height)
    agreement = measured.agreement
    if agreement and len(agreement.scores) > 1:
        yield _matrix_figure(
            "rank_correlation", "Spearman's rank correlation of the scores", agreement.spearman, agreement.scores, -1
        )
        alt = f"Share of the {agreement.k:,} highest rows that two scores have in common"
        yield _matrix_figure("overlap", alt, agreement.overlap, agreement.labels, 0)
    if isinstance(numbers, SelectionNumbers):
        steps = [step for step in numbers.cost.steps if "seconds" in step.cost]
        if steps:
            height = 1.0 + 0.34 * len(steps)
            yield Figure("cost", "Seconds of each step", lambda axes, ink: _paint_cost(axes, ink, steps), height)


def _distribution_figures(kind: str, values: dict[str, Distribution], of: str) -> Iterator[Figure]:
    taken: list[str] = []
    for name, distribution in values.items():
        if any(part.known for part in distribution.parts.values()):
            taken.append(file_name(kind, name, taken))
            alt = f"Distribution of {name}: {of}"
            yield Figure(taken[-1], alt, _distribution_painter(distribution, name), _SIZE[1])


def _matrix_figure(
    name: str, alt: str, values: Sequence[Sequence[float | None]], labels: list[str], low: float
) -> Figure:
    height = max(1.6 + 0.34 * len(labels), _SIZE[1])
    return Figure(name, alt, lambda axes, ink: _paint_matrix(axes, ink, values, labels, low), height)


# --------------------------------------------------------------------------------------------------------------------


def _distribution_painter(distribution: Distribution, name: str) -> Paint:
    def paint(axes: "Axes", ink: Ink) -> None:
        edges = distribution.edges
        for (part, style), summary in zip(_styles(ink, distribution.parts), distribution.parts.values(), strict=True):
            if summary.known:
                shares = [100 * count / summary.known for count in summary.counts]
                axes.stairs(shares, edges, label=wrapped(part, 18), **style)
        if distribution.log:
            axes.set_xscale("log")
            ticks = _log_ticks(edges[0], edges[-1])
            axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=8)
            axes.minorticks_off()
        axes.set_xlabel(wrapped(name))
        axes.set_ylabel("% of rows")
        axes.set_ylim(bottom=0)
        legend(axes, ink)

    return paint


def _log_ticks(low: float, high: float, at_most: int = 6) -> list[int]:
    """Round numbers between the ends of a logarithmic axis."""
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10**power for power in range(12) for step in steps if low <= step * 10**power <= high]
        if len(ticks) <= at_most:
            break
    return ticks[:: -(-len(ticks) // at_most) or 1]


def _paint_sources(axes: "Axes", ink: Ink, sources: SourceCounts, rows: dict[str, int]) -> None:
    lines, parts = sources.lines, list(rows)
    thick = 0.8 / len(parts)
    for n, (part, style) in enumerate(_styles(ink, parts)):
        shares = [100 * line.rows[part] / max(1, rows[part]) for line in lines]
        heights = [height + (n - (len(parts) - 1) / 2) * thick for height in range(len(lines))]
        axes.barh(heights, shares, thick, label=wrapped(part, 18), color=style["edgecolor"])
    name_rows(axes, [line.source for line in lines])
    axes.set_xlabel("% of rows")
    legend(axes, ink)


def _paint_tasks(axes: "Axes", ink: Ink, tasks: dict[str, TargetTask], parts: list[str]) -> None:
    for n, (part, style) in enumerate(_styles(ink, parts)):
        for row, task in enumerate(tasks.values()):
            quantiles = task.parts[part].quantiles
            if quantiles:
                height = row + (n - (len(parts) - 1) / 2) * 0.22
                label = wrapped(part, 18) if row == 0 else None
                ends = [quantiles["0.1"], quantiles["0.9"]]
                axes.plot(ends, [height] * 2, color=style["edgecolor"], linewidth=2)
                axes.plot(quantiles["0.5"], height, "o", color=style["edgecolor"], markersize=5, label=label)
    name_rows(axes, list(tasks))
    axes.set_xlabel("similarity")
    legend(axes, ink)


def _paint_matrix(
    axes: "Axes", ink: Ink, values: Sequence[Sequence[float | None]], labels: list[str], low: float
) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    # Low numbers fade into the page; numbers below zero have another colour.
    shades = ([ink["second"]] if low < 0 else []) + [ink["page"], ink["first"]]
    shown = [[float("nan") if value is None else value for value in line] for line in values]
    axes.imshow(shown, cmap=LinearSegmentedColormap.from_list("", shades), vmin=low, vmax=1, aspect="auto")
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            strong = value is not None and abs(value) > 0.6
            text = "–" if value is None else f"{value:.2f}".replace("-0.00", "0.00")
            axes.text(x, y, text, ha="center", va="center", fontsize=7, color=ink["page" if strong else "text"])
    short = [wrapped(label.removeprefix("score_"), 22) for label in labels]
    axes.set_yticks(range(len(labels)), short)
    axes.set_xticks(range(len(labels)), short, rotation=40, ha="right")
    axes.grid(visible=False)


def _paint_cost(axes: "Axes", ink: Ink, steps: Sequence[Step]) -> None:
    seconds = [step.cost["seconds"] for step in steps]
    axes.barh(range(len(steps)), seconds, 0.5, color=ink["first"])
    for row, second in enumerate(seconds):
        axes.text(second, row, f" {second:,.1f}", va="center", fontsize=8, color=ink["text"])
    name_rows(axes, [step.step for step in steps])
    axes.margins(x=0.15)
    axes.set_xlabel("seconds")


def legend(axes: "Axes", ink: Ink) -> None:
    """Add a legend above the axes, where it covers no data."""
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 3, "borderaxespad": 0.3}
    axes.legend(frameon=False, fontsize=8, labelcolor=ink["text"], columnspacing=1.2, **place)


def file_name(kind: str, name: str, taken: Collection[str]) -> str:
    """A file name, not in `taken`, for the picture of a column, whose name can be any text."""
    safe = f"{kind}_" + re.sub(r"[^A-Za-z0-9_-]+", "_", name.removeprefix(f"{kind}_"))[:80]
    return safe if safe not in taken else f"{safe}_{len(taken)}"


def name_rows(axes: "Axes", names: list[str], width: int = 20) -> None:
    """Label the vertical axis with names, from top to bottom."""
    axes.set_yticks(range(len(names)), [wrapped(name, width) for name in names], fontsize=8)
    axes.invert_yaxis()


def _styles(ink: Ink, parts: Collection[str]) -> list[tuple[str, dict[str, Any]]]:
    styles: list[dict[str, Any]] = [
        {"fill": True, "facecolor": ink["pool"] + "66", "edgecolor": ink["pool"], "linewidth": 1},
        {"edgecolor": ink["first"], "linewidth": 2},
        {"edgecolor": ink["second"], "linewidth": 1.6, "linestyle": "--"},
    ]
    return list(zip(parts, styles, strict=False))


def wrapped(text: str, width: int = 40) -> str:
    """Text from the data as a label: shortened, with dollar signs that start no formula."""
    text = " ".join(str(text).split())
    return (text if len(text) <= width else text[: width - 1] + "…").replace("$", r"\$")


def png(paint: Paint, height: float, theme: Theme) -> bytes:
    """What `paint(axes, ink)` draws, as a PNG of the common width and this height in inches."""
    require("the pictures of a report", "matplotlib")
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    ink = _INK[theme]
    settings: dict[Any, Any] = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": ink["faint"],
        "grid.linewidth": 0.5,
        "text.color": ink["text"],
        "axes.labelcolor": ink["text"],
        "axes.edgecolor": ink["faint"],
        "xtick.color": ink["text"],
        "ytick.color": ink["text"],
        "axes.facecolor": ink["page"],
        "figure.facecolor": ink["page"],
    }
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in another script; the table shows it
        figure = Canvas(figsize=(_SIZE[0], height), dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        paint(figure.add_subplot(), ink)
        file = BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})  # so that the same numbers give the same bytes
    return file.getvalue()
