"""Reports on a selection, and on two selections from the same pool."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_select.reports.ledger import Step
from hf_select.reports.markdown import markdown_report
from hf_select.reports.numbers import describe_comparison, describe_selection
from hf_select.reports.page import report_page
from hf_select.reports.pictures import draw
from hf_select.reports.pool_view import PoolView
from hf_select.reports.report_files import check_replaceable, picture_paths, write_pictures, write_texts
from hf_select.reports.report_numbers import ReportNumbers
from hf_select.reports.rows import RowTable, rows_of_comparison, rows_of_selection
from hf_select.reports.sections import report_sections
from hf_select.selection.selection import Selection


if TYPE_CHECKING:
    from datasets import Dataset


def report(
    dataset: "Dataset",
    selection: Selection,
    output_dir: str | os.PathLike,
    *,
    steps: Sequence[Step] = (),
    earlier: Selection | None = None,
    title: str = "Selection report",
    source_column: str | None = None,
    examples: int = 200,
    max_megabytes: float = 14.0,
    seed: int = 0,
) -> Path:
    """Write report.html, report.md, report.json and pictures/*.png, and return the page's path.

    Args:
        dataset: every row with its scores, in the order that the selection refers to.
        steps: what was run and what it cost: `read_step(folder)` of each `score()` and index.
        earlier: for a selection in several steps, what the steps before the last one left. The page then shows their
            rows as a group of its own.
        title: title of the page.
        source_column: column that names the source of a row; by default source, dataset, task, category, ...
        examples: number of rows that the page shows of each kind that was not selected.
        max_megabytes: size limit of the page; texts are shortened to fit, and the page says so.
        seed: seed of the random draw that the selection is compared with.
    Raises: ValueError if the selection was not made on this dataset.
    """
    view = PoolView(dataset)
    selection.check(dataset)
    shown = rows_of_selection(view, selection, examples, earlier)
    view.parse(keep=shown.rows)
    numbers = describe_selection(view, selection, steps, source_column=source_column, seed=seed)
    table = shown.table(view, numbers.measured.sources)
    return _write_report(Path(output_dir).expanduser(), "report", title, numbers, table, max_megabytes)


def compare_report(
    dataset: "Dataset",
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
        examples: number of rows that the page shows of each kind: only in the first, only in the second, in both.
    Raises: ValueError if there are not two selections, or one was not made on this dataset.
    """
    if len(selections) != 2:
        raise ValueError(f"{len(selections)} selections were given; a comparison has two.")
    view = PoolView(dataset)
    (first, mine), (second, theirs) = selections.items()
    for selection in (mine, theirs):
        selection.check(dataset)
    shown = rows_of_comparison(selections, examples)
    view.parse(keep=shown.rows)
    numbers = describe_comparison(view, mine, theirs, (first, second), source_column=source_column)
    table = shown.table(view, numbers.measured.sources)
    return _write_report(Path(output_dir).expanduser(), "comparison", title, numbers, table, max_megabytes)


def _write_report(
    folder: Path, name: str, title: str, numbers: ReportNumbers, table: RowTable, max_megabytes: float
) -> Path:
    pictures = "pictures" if name == "report" else f"{name}_pictures"
    check_replaceable(folder, f"{name}.html", f"{name}.md", f"{name}.json", pictures)
    folder.mkdir(parents=True, exist_ok=True)
    light, dark = list(draw(numbers, "light")), list(draw(numbers, "dark"))
    paths = picture_paths(pictures, light)
    sections = list(report_sections(numbers, list(paths)).values())
    write_texts(
        folder,
        {
            f"{name}.html": report_page(title, numbers, sections, table, light, dark, max_megabytes),
            f"{name}.md": markdown_report(title, sections, paths),
            f"{name}.json": json.dumps(numbers.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        },
    )
    write_pictures(folder / pictures, light)
    return folder / f"{name}.html"
