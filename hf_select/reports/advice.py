"""What a sample says about scoring a pool, as a page, Markdown and pictures. All numbers come from advice.json."""

import os
from pathlib import Path
from typing import Any

from hf_select.reports.pictures import legend
from hf_select.reports.report_files import Figures, write_sections
from hf_select.reports.sections import Section, percent


_DO = {
    "small": "the small scorer",
    "large": "the large scorer",
    "longest": "the longest rows",
    "shortest": "the shortest rows",
}


def advice_report(result: dict[str, Any], output_dir: str | os.PathLike) -> Path:
    """Write advice.html, advice.md and pictures/*.png, and return the page's path."""
    figures = _figures(result)
    rows, cost = result["rows"], result["cost"]
    facts = [
        ("advice", _DO.get(result["advice"]["do"], result["advice"]["do"])),
        ("rows scored, of the pool", f"{rows['sample']:,} of {rows['pool']:,}"),
        ("seconds to score every row", f"{cost['pool']['large']['seconds']:,.0f}"),
    ]
    if result["agreement"] is not None:
        facts.append(("rank agreement, small and large", f"{result['agreement']['spearman']['value']:.2f}"))
    title = "Is this pool worth scoring?"
    return write_sections(Path(output_dir), "advice", title, facts, _sections(result, figures), figures)


# --------------------------------------------------------------------------------------------------------------------


def _sections(result: dict[str, Any], figures: Figures) -> list[Section]:
    advice = result["advice"]
    settings = result["settings"]
    besides = [(["besides"], [[words] for words in advice["besides"]])] if advice["besides"] else []
    found = [Section("Advice", advice["words"][0].upper() + advice["words"][1:] + ".", besides)]
    share = f"{100 * settings['fraction']:g} %"
    agreement = result["agreement"]
    if agreement is not None:
        lines = [
            ["Spearman's rho", *_estimate(agreement["spearman"]), "0"],
            [f"best {share} in common", *_estimate(agreement["overlap"]), f"{agreement['by_chance']:.2f}"],
            ["lift kept by the small scorer", *_estimate(agreement["kept"]), "0"],
        ]
        text = (
            f"Over {result['measured']:,} rows that both scored; intervals by drawing rows again. Lift kept: how far "
            f"above the middle the large scorer ranks the best {share} of the small one, over the same of its own "
            "best."
        )
        table = (["", "", "95 %", "by chance"], lines)
        found.append(Section("Small and large scorer", text, [table], _drawn(figures, "agreement"), folded=False))
    lines = [
        [f"length of the {kind}: rho, {name} scorer", *_estimate(of[name])]
        for kind, of in result["length"].items()
        for name in of
    ]
    source = result["source"]
    if source is not None:
        lines += [
            [
                f"{settings['source_column']} ({source['distinct']}): share of the variance, {name} scorer",
                *_estimate(of),
            ]
            for name, of in source.items()
            if name != "distinct"
        ]
    text = (
        "Length in characters. The share of the variance is that of ranks between sources, corrected for their number."
    )
    table = (["", "", "95 %"], lines)
    found.append(Section("What the scores follow", text, [table], _drawn(figures, "length"), folded=False))
    found.append(_cost(result))
    if result["overlap"]:
        lines = [
            [name, f"{count:,}", percent(count, result["rows"]["pool"])] for name, count in result["overlap"].items()
        ]
        text = "Rows of the whole pool with the prompt of a query or nearly its text."
        found.append(
            Section("Queries in the pool", text, [(["queries", "rows that repeat one", "of the pool"], lines)])
        )
    lines = [
        [f"{name} scorer", one["name"], ", ".join(f"{key} {value}" for key, value in one["settings"].items())]
        for name, one in result["scorers"].items()
    ]
    lines += [["", name, "–" if value is None else str(value)] for name, value in settings.items()]
    reasons = [[name, reason, f"{count:,}"] for name, of in result["unscored"].items() for reason, count in of.items()]
    tables = [(["", "", ""], lines), *([(["no score by", "because", "rows"], reasons)] if reasons else [])]
    found.append(Section("How this was measured", "", tables))
    return found


def _cost(result: dict[str, Any]) -> Section:
    cost = result["cost"]
    training = cost["training"]
    lines = []
    for name, whole in cost["pool"].items():
        sample = cost["sample"][name]
        over = "" if training is None else f"{whole['flops'] / training['everything']:.2g}"
        lines.append(
            [
                f"{name} scorer, every row",
                f"{whole['seconds']:,.0f} ({sample['seconds']:,.1f})",
                f"{whole['flops']:.3g} ({sample['flops']:.3g})" if whole["flops"] else "0",
                over,
            ]
        )
    if training is not None:
        lines += [
            [f"training on {what}", "", f"{training[key]:.3g}", f"{training[key] / training['everything']:.2g}"]
            for what, key in (("every row", "everything"), ("the selection", "selection"))
        ]
    text = (
        f"For all {result['rows']['pool']:,} rows, and in brackets measured on the {result['rows']['sample']:,} of "
        f"the sample: the lengths of the sample leave {100 * cost['within']:.0f} % open. Seconds are those of this "
        "machine, without loading the model; FLOPs are counted."
    )
    return Section("What it would cost", text, [(["", "seconds", "FLOPs", "over training on every row"], lines)])


def _estimate(estimate: dict[str, float]) -> list[str]:
    return [f"{estimate['value']:.3f}", f"{estimate['low']:.3f} to {estimate['high']:.3f}"]


def _drawn(figures: Figures, kind: str) -> list[str]:
    return [figure[0] for key, figure in figures.items() if key[0] == kind]


def _figures(result: dict[str, Any]) -> Figures:
    points = result["points"]
    found: Figures = {}
    if "small" in points:
        found["agreement",] = (
            "agreement",
            "Percentile ranks of the rows by the large and by the small scorer",
            lambda axes, ink: _agreement(axes, ink, points, result["settings"]["fraction"]),
            3.6,
        )
    for kind in result["length"]:
        found["length", kind] = (
            f"length_{kind}",
            f"Percentile ranks by the large scorer against the length of the {kind}",
            lambda axes, ink, k=kind: _length(axes, ink, points[f"length {k}"], points["large"], k),
            2.9,
        )
    return found


def _agreement(axes: Any, ink: dict[str, str], points: dict[str, list[float]], fraction: float) -> None:
    """Ranks against ranks; what either would select lies beyond its line."""
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


def _length(axes: Any, ink: dict[str, str], sizes: list[float], ranks: list[float], kind: str) -> None:
    axes.plot([max(1.0, size) for size in sizes], ranks, ".", color=ink["first"], markersize=4, alpha=0.6)
    axes.set_xscale("log")
    axes.set_xlabel(f"characters of the {kind}")
    axes.set_ylabel("percentile rank")
