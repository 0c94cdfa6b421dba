"""The numbers of a report as PNGs, each for a light and for a dark page. Nothing is computed here.

Figures are narrow on purpose: on a phone a wide one shrinks until nobody can read it.
"""

import re
import warnings
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any, Literal


Theme = Literal["light", "dark"]

_SIZE = (4.7, 2.9)  # inches
_DPI = 160
# The pool is the ground; the parts differ in colour and in line, so that they can be told apart without colour too.
_INK = {
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


def draw(numbers: dict[str, Any], theme: Theme = "light") -> Iterator[tuple[str, str, bytes]]:
    """(name, what it shows, PNG) of every picture of a report."""
    for name, (alt, paint, height) in _figures(numbers).items():
        yield name, alt, png(paint, height, theme)


def _figures(numbers: dict[str, Any]) -> dict[str, tuple[str, Callable[..., None], float]]:
    """Name -> what it shows, what paints it, its height in inches."""
    parts = list(numbers["rows"])
    told = ", ".join(parts)
    found: dict[str, tuple[str, Callable[..., None], float]] = {}
    for kind in ("score", "length"):
        for name, values in numbers[f"{kind}s"].items():
            if any(part["known"] for part in values["parts"].values()):
                found[file_name(kind, name, found)] = (
                    f"Distribution of {name}: {told}",
                    lambda axes, ink, v=values, n=name: _distribution(axes, ink, v, n),
                    _SIZE[1],
                )
    if numbers["sources"]:
        lines = numbers["sources"]["rows"]
        found["sources"] = (
            f"Share of each {numbers['sources']['column']}: {told}",
            lambda axes, ink: _sources(axes, ink, numbers["sources"], numbers["rows"]),
            1.1 + 0.34 * len(lines),
        )
    if numbers.get("tasks"):
        found["tasks"] = (
            f"Similarity to each task, median and middle 80 %: {told}",
            lambda axes, ink: _tasks(axes, ink, numbers["tasks"], parts),
            1.1 + 0.42 * len(numbers["tasks"]),
        )
    agreement = numbers["agreement"]
    if agreement and len(agreement["scores"]) > 1:
        size = 1.6 + 0.34 * len(agreement["scores"])
        found["rank_correlation"] = (
            "Spearman's rank correlation of the scores",
            lambda axes, ink: _matrix(axes, ink, agreement["spearman"], agreement["scores"], -1),
            max(size, _SIZE[1]),
        )
        size = 1.6 + 0.34 * len(agreement["labels"])
        found["overlap"] = (
            f"Share of the {agreement['k']:,} highest rows that two scores have in common",
            lambda axes, ink: _matrix(axes, ink, agreement["overlap"], agreement["labels"], 0),
            max(size, _SIZE[1]),
        )
    if numbers.get("cost") and any("seconds" in step for step in numbers["cost"]["steps"]):
        steps = [step for step in numbers["cost"]["steps"] if "seconds" in step]
        found["cost"] = (
            "Seconds of each step",
            lambda axes, ink: _cost(axes, ink, steps),
            1.0 + 0.34 * len(steps),
        )
    return found


# --------------------------------------------------------------------------------------------------------------------


def _distribution(axes: Any, ink: dict[str, str], values: dict[str, Any], name: str) -> None:
    edges = values["edges"]
    for (part, style), found in zip(_styles(ink, values["parts"]), values["parts"].values(), strict=True):
        if not found["known"]:
            continue
        shares = [100 * count / found["known"] for count in found["counts"]]
        axes.stairs(shares, edges, label=wrapped(part, 18), **style)
    if values["log"]:
        axes.set_xscale("log")
        marks = _marks(edges[0], edges[-1])
        axes.set_xticks(marks, [f"{mark:,}" for mark in marks], fontsize=8)
        axes.minorticks_off()
    axes.set_xlabel(wrapped(name))
    axes.set_ylabel("% of its rows")
    axes.set_ylim(bottom=0)
    legend(axes, ink)


def _marks(low: float, high: float, most: int = 6) -> list[int]:
    """Round numbers between the ends of a log axis, few enough to be read."""
    for steps in ((1, 2, 5), (1, 3), (1,)):
        marks = [step * 10**power for power in range(12) for step in steps if low <= step * 10**power <= high]
        if len(marks) <= most:
            break
    return marks[:: -(-len(marks) // most) or 1]


def _sources(axes: Any, ink: dict[str, str], sources: dict[str, Any], rows: dict[str, int]) -> None:
    lines, parts = sources["rows"], list(rows)
    thick = 0.8 / len(parts)
    for n, (part, style) in enumerate(_styles(ink, parts)):
        shares = [100 * line[part] / max(1, rows[part]) for line in lines]
        places = [place + (n - (len(parts) - 1) / 2) * thick for place in range(len(lines))]
        axes.barh(places, shares, thick, label=wrapped(part, 18), color=style["edgecolor"])
    name_rows(axes, [line["source"] for line in lines])
    axes.set_xlabel("% of its rows")
    legend(axes, ink)


def _tasks(axes: Any, ink: dict[str, str], tasks: dict[str, Any], parts: list[str]) -> None:
    for n, (part, style) in enumerate(_styles(ink, parts)):
        for place, task in enumerate(tasks.values()):
            marks = task[part]["quantiles"]
            if marks:
                height = place + (n - (len(parts) - 1) / 2) * 0.22
                label = wrapped(part, 18) if place == 0 else None
                axes.plot([marks["0.1"], marks["0.9"]], [height] * 2, color=style["edgecolor"], linewidth=2)
                axes.plot(marks["0.5"], height, "o", color=style["edgecolor"], markersize=5, label=label)
    name_rows(axes, list(tasks))
    axes.set_xlabel("similarity")
    legend(axes, ink)


def _matrix(axes: Any, ink: dict[str, str], values: list[list[float | None]], names: list[str], low: float) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    # Low numbers vanish into the page; below zero another colour says so.
    shades = ([ink["second"]] if low < 0 else []) + [ink["page"], ink["first"]]
    shown = [[float("nan") if value is None else value for value in line] for line in values]
    axes.imshow(shown, cmap=LinearSegmentedColormap.from_list("", shades), vmin=low, vmax=1, aspect="auto")
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            strong = value is not None and abs(value) > 0.6
            text = "–" if value is None else f"{value:.2f}"
            axes.text(x, y, text, ha="center", va="center", fontsize=7, color=ink["page" if strong else "text"])
    short = [wrapped(name.removeprefix("score_"), 22) for name in names]
    axes.set_yticks(range(len(names)), short)
    axes.set_xticks(range(len(names)), short, rotation=40, ha="right")
    axes.grid(visible=False)


def _cost(axes: Any, ink: dict[str, str], steps: list[dict[str, Any]]) -> None:
    seconds = [step["seconds"] for step in steps]
    axes.barh(range(len(steps)), seconds, 0.5, color=ink["first"])
    for place, second in enumerate(seconds):
        axes.text(second, place, f" {second:,.1f}", va="center", fontsize=8, color=ink["text"])
    name_rows(axes, [step["step"] for step in steps])
    axes.margins(x=0.15)
    axes.set_xlabel("seconds")


def legend(axes: Any, ink: dict[str, str]) -> None:
    """Above the axes, where it hides nothing."""
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 3, "borderaxespad": 0.3}
    axes.legend(frameon=False, fontsize=8, labelcolor=ink["text"], columnspacing=1.2, **place)


def file_name(kind: str, name: str, taken: Any) -> str:
    """A column's name can be anything; a file's cannot."""
    safe = f"{kind}_" + re.sub(r"[^A-Za-z0-9_-]+", "_", name.removeprefix(f"{kind}_"))[:80]
    return safe if safe not in taken else f"{safe}_{len(taken)}"


def name_rows(axes: Any, names: list[str], width: int = 20) -> None:
    """The vertical axis as a list, read from above."""
    axes.set_yticks(range(len(names)), [wrapped(name, width) for name in names], fontsize=8)
    axes.invert_yaxis()


def _styles(ink: dict[str, str], parts: Any) -> list[tuple[str, dict[str, Any]]]:
    looks = [
        {"fill": True, "facecolor": ink["pool"] + "66", "edgecolor": ink["pool"], "linewidth": 1},
        {"edgecolor": ink["first"], "linewidth": 2},
        {"edgecolor": ink["second"], "linewidth": 1.6, "linestyle": "--"},
    ]
    return list(zip(parts, looks, strict=False))


def wrapped(text: str, width: int = 40) -> str:
    """Names come from the data: dollar signs are no mathematics, and a name as long as a row is cut."""
    text = " ".join(str(text).split())
    return (text if len(text) <= width else text[: width - 1] + "…").replace("$", r"\$")


def png(paint: Callable[..., None], height: float, theme: Theme) -> bytes:
    """What `paint(axes, ink)` draws, as wide as all pictures and so many inches high."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

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
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in another script: the table beside it has it
        figure = Figure(figsize=(_SIZE[0], height), dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        paint(figure.add_subplot(), ink)
        file = BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})  # the same numbers give the same bytes
    return file.getvalue()
