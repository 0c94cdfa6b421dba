"""Several comparisons side by side, as a page, Markdown and a picture. All numbers come from joined.json."""

import os
from pathlib import Path
from typing import Any

from hf_select.reports.comparison_pictures import in_order, shown_budget, verdict_figure
from hf_select.reports.report_files import write_sections
from hf_select.reports.sections import Section


def joined_report(joined: dict[str, Any], output_dir: str | os.PathLike) -> Path:
    """Write joined.html, joined.md and pictures/*.png, and return the page's path."""
    methods = joined["methods"]
    names = [name for name in in_order(joined["asked"], methods) if name != "random"]
    columns = [_column(column) for column in joined["columns"]]
    outcomes = [[None if cell is None else cell["outcome"] for cell in methods[name]["cells"]] for name in names]
    figures = verdict_figure(names, columns, outcomes)
    asked = [methods[name] for name in joined["asked"]]
    facts = [
        ("comparisons", str(len(joined["comparisons"]))),
        ("methods", str(len(asked))),
        ("verdicts better than random rows", f"{sum(of['better'] for of in asked)} of {_verdicts(asked)}"),
        ("worse", f"{sum(of['worse'] for of in asked)} of {_verdicts(asked)}"),
    ]
    title = "Is a selection better than random rows, over several comparisons?"
    return write_sections(Path(output_dir), "joined", title, facts, _sections(joined, names, columns), figures)


# --------------------------------------------------------------------------------------------------------------------


def _sections(joined: dict[str, Any], names: list[str], columns: list[str]) -> list[Section]:
    methods = joined["methods"]
    counts = []
    for name in ("random", *names):
        of = methods[name]
        numbers = ["", "", ""] if name == "random" else [str(of[key]) for key in ("better", "worse", "no evidence")]
        rank = "" if of["mean_rank"] is None else f"{of['mean_rank']:.2f}"
        counts.append([name, *numbers, rank, of["words"]])
    text = (
        "Each verdict is corrected for the methods of its own column alone: in about one of twenty columns of "
        "methods that do nothing one passes all the same. Losses of different comparisons have different scales, so "
        f"nothing is averaged but the rank (1 is best) among the {joined['ranked']} names that stand in every column."
    )
    table = (["", "better", "worse", "no evidence", "mean rank", ""], counts)
    found = [Section("Verdicts", text, [table], ["verdicts"], folded=False)]
    rows = [[name, *("" if cell is None else _cell(cell) for cell in methods[name]["cells"])] for name in names]
    text = "Less random rows of the same comparison and budget, with the 95 % interval, in the unit of the measure."
    units = ["unit", *(f"{column['unit']}, {column['better']} is better" for column in joined["columns"])]
    seeds = ["seeds, items", *(_sizes(joined, place) for place in range(len(columns)))]
    found.append(Section("Differences", text, [(["", *columns], [units, seeds, *rows])]))
    lines = []
    for name, about in joined["comparisons"].items():
        recipe = about["settings"].get("recipe", {})
        settings = ", ".join(f"{key} {value}" for key, value in recipe.items() if key != "model" and value is not None)
        lines.append([name, str(recipe.get("model", "")), ", ".join(about["folders"]), settings])
    found.append(Section("What was joined", "", [(["comparison", "model", "folders", "recipe"], lines)]))
    return found


def _column(column: dict[str, Any]) -> str:
    return f"{column['comparison']}, {shown_budget(column['budget'])}: {column['measure']}"


def _cell(line: dict[str, Any]) -> str:
    d = line["difference"]
    return f"{d['mean']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}] {line['outcome']}"


def _sizes(joined: dict[str, Any], place: int) -> str:
    line = next(
        of["cells"][place] for of in joined["methods"].values() if (of["cells"][place] or {}).get("difference")
    )
    return f"{line['difference']['seeds']}, {line['difference']['items']:,}"


def _verdicts(methods: list[dict[str, Any]]) -> int:
    return sum(of["better"] + of["worse"] + of["no evidence"] for of in methods)
