"""Several comparisons side by side, as a page, Markdown and a picture."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from hf_select.reports.comparison_pictures import verdict_figure
from hf_select.reports.comparison_result import (
    RANDOM,
    JoinedComparisons,
    JoinedMethod,
    MethodResult,
    Outcome,
    methods_first,
)
from hf_select.reports.report_files import write_sections
from hf_select.reports.sections import Section


def joined_report(joined: JoinedComparisons, output_dir: str | os.PathLike) -> Path:
    """Write joined.html, joined.md and pictures/*.png, and return the page's path."""
    names = [name for name in methods_first(joined.methods, joined.results) if name != RANDOM]
    outcomes: list[list[Outcome | None]] = [
        [None if cell is None else cell.outcome for cell in joined.results[name].cells] for name in names
    ]
    figures = verdict_figure(names, [column.title for column in joined.columns], outcomes)
    methods = [joined.results[name] for name in joined.methods]
    num_verdicts = sum(sum(method.counts.values()) for method in methods)
    facts = [
        ("comparisons", str(len(joined.comparisons))),
        ("methods", str(len(methods))),
        ("verdicts better than random rows", f"{sum(m.counts['better'] for m in methods)} of {num_verdicts}"),
        ("worse", f"{sum(m.counts['worse'] for m in methods)} of {num_verdicts}"),
    ]
    title = "Is a selection better than random rows, over several comparisons?"
    sections = [_counts_section(joined, names), _differences_section(joined, names), _comparisons_section(joined)]
    return write_sections(Path(output_dir), "joined", title, facts, sections, figures)


# --------------------------------------------------------------------------------------------------------------------


def _counts_section(joined: JoinedComparisons, names: Sequence[str]) -> Section:
    rows = []
    for name in (RANDOM, *names):
        method = joined.results[name]
        counts = ["", "", ""] if name == RANDOM else [str(count) for count in method.counts.values()]
        rank = "" if method.mean_rank is None else f"{method.mean_rank:.2f}"
        rows.append([name, *counts, rank, method.message])
    text = (
        "Each verdict is corrected for the methods of its own column alone: among methods without an effect, about "
        "one column in twenty still has a verdict. Losses of different comparisons have different scales, so only "
        f"the rank (1 is best) among the {joined.num_ranked} names that are in every column is averaged."
    )
    table = (["", "better", "worse", "no evidence", "mean rank", ""], rows)
    return Section("Verdicts", text, [table], ["verdicts"], folded=False)


def _differences_section(joined: JoinedComparisons, names: Sequence[str]) -> Section:
    rows = [[name, *("" if cell is None else _cell(cell) for cell in joined.results[name].cells)] for name in names]
    text = (
        "Difference to random rows of the same comparison and budget, with the 95 % interval, in the unit of the "
        "measure."
    )
    units = ["unit", *(f"{column.about.unit}, {column.about.better} is better" for column in joined.columns)]
    seeds = ["seeds, items", *(_sizes(joined.results.values(), place) for place in range(len(joined.columns)))]
    header = ["", *(column.title for column in joined.columns)]
    return Section("Differences", text, [(header, [units, seeds, *rows])])


def _comparisons_section(joined: JoinedComparisons) -> Section:
    rows = []
    for name, comparison in joined.comparisons.items():
        recipe = comparison.settings.get("recipe", {})
        settings = ", ".join(f"{key} {value}" for key, value in recipe.items() if key != "model" and value is not None)
        rows.append([name, str(recipe.get("model", "")), ", ".join(comparison.folders), settings])
    return Section("What was joined", "", [(["comparison", "model", "folders", "recipe"], rows)])


def _cell(result: MethodResult) -> str:
    d = result.difference
    return "" if d is None else f"{d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}] {result.outcome}"


def _sizes(methods: Iterable[JoinedMethod], place: int) -> str:
    """Seeds and items of a column; they are the same for all its methods."""
    cells = (method.cells[place] for method in methods)
    d = next(cell.difference for cell in cells if cell is not None and cell.difference is not None)
    return f"{d.seeds}, {d.items:,}"
