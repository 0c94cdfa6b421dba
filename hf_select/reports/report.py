"""A report in a folder: the page, and what it shows as Markdown, JSON and PNGs."""

import json
import os
from pathlib import Path
from typing import Any

from hf_select.atomic import written_whole
from hf_select.reports import rows
from hf_select.reports.markdown import markdown
from hf_select.reports.numbers import compare, describe
from hf_select.reports.page import page
from hf_select.reports.pictures import draw
from hf_select.reports.written import check_place, write_pictures
from hf_select.selection.selection import Selection


PAGE, COMPARISON = "report.html", "comparison.html"


def report(
    dataset: Any,
    selection: Selection,
    output_dir: str | os.PathLike,
    *,
    steps: list[dict[str, Any]] | None = None,
    earlier: Selection | None = None,
    title: str = "Selection report",
    source_column: str | None = None,
    examples: int = 200,
    max_megabytes: float = 14.0,
    seed: int = 0,
) -> Path:
    """Write report.html, report.md, report.json and pictures/*.png, and return the page's path.

    Args:
        dataset: every row with its scores, in the order that the selection counts.
        steps: what was run and what it cost: `read_step(folder)` of each score() and index.
        earlier: what the steps before the last one left, for a selection of several; their rows are then told apart.
        title: of the page.
        source_column: column that says where a row comes from; by default source, dataset, task, category, ...
        examples: rows of each kind that was not selected that the page shows.
        max_megabytes: size that the page keeps to; texts are cut to fit, and say so.
        seed: of the random draw that the selection is set beside.
    Raises: ValueError if the selection was not made on this dataset.
    """
    numbers = describe(dataset, selection, steps, source_column=source_column, seed=seed)
    table = rows.of_selection(dataset, selection, numbers, examples, earlier)
    return _write(Path(output_dir).expanduser(), PAGE, title, numbers, table, max_megabytes)


def compare_report(
    dataset: Any,
    selections: dict[str, Selection],
    output_dir: str | os.PathLike,
    *,
    title: str = "Comparison of two selections",
    source_column: str | None = None,
    examples: int = 2000,
    max_megabytes: float = 14.0,
) -> Path:
    """Write comparison.html, .md, .json and comparison_pictures/*.png: two selections from the same rows.

    Args:
        dataset: every row, with the scores of both.
        selections: name -> selection, two of them.
        examples: rows of each kind (only the first, only the second, both) that the page shows.
    Raises: ValueError if there are not two, or one was not made on this dataset.
    """
    if len(selections) != 2:
        raise ValueError(f"{len(selections)} selections were given; a comparison has two.")
    (first, mine), (second, theirs) = selections.items()
    numbers = compare(dataset, mine, theirs, (first, second), source_column=source_column)
    table = rows.of_comparison(dataset, selections, numbers, examples)
    return _write(Path(output_dir).expanduser(), COMPARISON, title, numbers, table, max_megabytes)


def _write(
    folder: Path, name: str, title: str, numbers: dict[str, Any], table: rows.Table, max_megabytes: float
) -> Path:
    pictures = "pictures" if name == PAGE else "comparison_pictures"
    check_place(folder, name, name.replace(".html", ".md"), name.replace(".html", ".json"), pictures)
    folder.mkdir(parents=True, exist_ok=True)
    light = list(draw(numbers, "light"))
    drawn = {picture: f"{pictures}/{picture}.png" for picture, *_ in light}
    made = {
        name: page(title, numbers, table, light, list(draw(numbers, "dark")), max_megabytes),
        name.replace(".html", ".md"): markdown(title, numbers, drawn),
        name.replace(".html", ".json"): json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    }
    for file, text in made.items():
        with written_whole(folder / file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    write_pictures(folder / pictures, light)
    return folder / name
