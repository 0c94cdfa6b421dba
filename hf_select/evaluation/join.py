"""Results of several comparisons as one: of other pools, other models, or one comparison in several folders.

    join(["runs/alpaca", "runs/tulu", "large=runs/alpaca_7b"], "joined")

Folders of one comparison (the same pool, recipe, measures: the same comparison.json) are merged: their runs are put
together and all is computed anew, p-values too. Comparisons that differ are set side by side: nothing is averaged over
them, since their losses have different scales; counted are verdicts, and ranks are averaged.

output_dir/
  joined.json, joined.html, joined.md, pictures/     methods x comparisons
  NAME/result.json, .html, .md, pictures/            each merged comparison; without others these alone, in output_dir
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from hf_select.atomic import read_json, write_json
from hf_select.evaluation.break_even import with_ledger
from hf_select.evaluation.tables import RANDOM, TOGETHER, UNTRAINED, Cell, tables
from hf_select.reports.comparison import comparison_report
from hf_select.reports.comparison_pictures import headlines
from hf_select.reports.joined import joined_report


def join(comparisons: Sequence[str | os.PathLike], output_dir: str | os.PathLike) -> dict[str, Any]:
    """Join finished comparisons and write the tables and the page.

    Args:
        comparisons: folders of hf-select compare, FOLDER or NAME=FOLDER; without a name that of the folder.
        output_dir: folder for what is made.
    Returns: what is written to joined.json; for folders of a single comparison what is written to result.json.
    Raises: ValueError for a folder without a finished comparison, fewer than two, runs that contradict one another,
        comparisons that have no method in common.
    """
    found = _grouped(comparisons)
    folder = Path(output_dir).expanduser()
    if folder.resolve() in [one.resolve() for folders in found.values() for one in folders]:
        raise ValueError(f'"{folder}" is one of the comparisons; choose another output folder.')
    results = {}
    for name, folders in found.items():
        results[name] = _result(folders[0]) if len(folders) == 1 else _merged(folders)
        if len(folders) > 1:
            place = folder if len(found) == 1 else folder / name
            comparison_report(results[name], place)
            write_json(place / "result.json", results[name])
    if len(found) == 1:
        return next(iter(results.values()))
    joined = side_by_side(results)
    joined["comparisons"] = {
        name: {
            "folders": [str(one) for one in found[name]],
            "methods": result["methods"],
            "settings": result["settings"],
        }
        for name, result in results.items()
    }
    joined_report(joined, folder)
    write_json(folder / "joined.json", joined)
    return joined


def side_by_side(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Methods x (comparison, budget, measure).

    Of a comparison with held-out losses of several domains, the losses together are one measure.

    Returns: "columns"; "methods": name -> "cells" (a line for each column or None), counts of "better", "worse" and
        "no evidence", and "mean_rank" (1 is best) among all names that stand in every column, or None.
    Raises: ValueError if no method is in two comparisons.
    """
    asked = [name for result in results.values() for name in result["methods"]]
    if not any(asked.count(name) > 1 for name in asked):
        listed = "; ".join(f"{name}: {', '.join(result['methods'])}" for name, result in results.items())
        raise ValueError(f"the comparisons have no method in common ({listed}); there is nothing to join.")
    columns, lines = [], []
    for name, result in results.items():
        for budget, measures in result["budgets"].items():
            for measure in headlines(result["measures"]):
                about = {name: said for name, said in result["measures"][measure].items() if name != "parts"}
                columns.append({"comparison": name, "budget": budget, "measure": measure, **about})
                lines.append(measures[measure])
    everywhere = [name for name in lines[0] if all(name in of for of in lines)]
    names = list(dict.fromkeys(asked))
    names += [name for name in everywhere if name not in names]
    ranks = [
        _ranks(about, [of[name]["mean"] for name in everywhere]) for about, of in zip(columns, lines, strict=True)
    ]
    mean_ranks = dict(zip(everywhere, np.mean(ranks, axis=0).tolist(), strict=True))
    methods = {}
    for name in names:
        cells = [of.get(name) for of in lines]
        outcomes = [cell["outcome"] for cell in cells if cell is not None and "outcome" in cell]
        counts = {outcome: outcomes.count(outcome) for outcome in ("better", "worse", "no evidence")}
        methods[name] = {"cells": cells, **counts, "mean_rank": mean_ranks.get(name), "words": _words(counts, name)}
    return {"columns": columns, "methods": methods, "asked": list(dict.fromkeys(asked)), "ranked": len(everywhere)}


# --------------------------------------------------------------------------------------------------------------------


def _grouped(comparisons: Sequence[str | os.PathLike]) -> dict[str, list[Path]]:
    """Name -> folders of one comparison, in the order they were given."""
    seen: dict[Path, None] = {}
    found: list[tuple[dict[str, Any], str, list[Path]]] = []
    for said in comparisons:
        name, equals, place = ("", "", str(said)) if Path(said).expanduser().is_dir() else str(said).partition("=")
        place = place or name
        folder = Path(place).expanduser()
        about = read_json(folder / "comparison.json")
        if about is None or read_json(folder / "result.json") is None:
            raise ValueError(f'"{folder}" holds no finished comparison; run hf-select compare in it to its end.')
        if folder.resolve() in seen:
            raise ValueError(f'"{folder}" was given twice.')
        seen[folder.resolve()] = None
        same = next((group for group in found if group[0] == about), None)
        if same is not None:
            same[2].append(folder)
        else:
            found.append((about, name if equals else folder.resolve().name, [folder]))
    if len(seen) < 2:
        raise ValueError(f"{len(seen)} comparison was given; joining takes at least two.")
    names = [name for _, name, _ in found]
    if len(set(names)) < len(names):
        raise ValueError(f"comparisons that differ have the same name ({', '.join(names)}); give NAME=FOLDER.")
    return {name: folders for _, name, folders in found}


def _result(folder: Path) -> dict[str, Any]:
    result = read_json(folder / "result.json")
    assert result is not None
    if "measures" not in result:
        raise ValueError(f'"{folder}" is of an earlier version; run the same hf-select compare command in it again.')
    return result if "ledger" in _first(result) else with_ledger(result)


def _first(result: dict[str, Any]) -> dict[str, Any]:
    return next(iter(next(iter(result["budgets"].values())).values()))[RANDOM]


def _merged(folders: list[Path]) -> dict[str, Any]:
    """The tables of all runs in the folders of one comparison."""
    cells: dict[Cell, dict[str, Any]] = {}
    methods: dict[str, None] = {}
    costs: dict[str, dict[str, float]] = {}
    results = [_result(folder) for folder in folders]
    for folder, result in zip(folders, results, strict=True):
        methods |= dict.fromkeys(result["methods"])
        for cell, record in _runs(folder, result).items():
            known = cells.setdefault(cell, record)
            if known["selection"] != record["selection"]:
                raise ValueError(
                    f'"{folders[0]}" and "{folder}" have runs of "{cell.method}" ({cell.budget}, seed {cell.seed}) on '
                    "different rows; they are no parts of one comparison. Name one of the methods otherwise."
                )
        for lines in result["budgets"].values():
            for name, line in next(iter(lines.values())).items():
                if line.get("selection_seconds") is not None or line.get("selection_flops") is not None:
                    known = {"seconds": line["selection_seconds"], "flops": line["selection_flops"]}
                    costs.setdefault(name, known)
    _refuse_unequal_seeds(cells)
    measures = {
        name: {"better": about["better"], "unit": about["unit"]}
        for name, about in results[0]["measures"].items()
        if name != TOGETHER
    }
    found = tables(dict(sorted(cells.items(), key=_in_order)), list(methods), measures, costs)
    return with_ledger({**found, "overlap": results[0]["overlap"], "settings": results[0]["settings"]})


def _runs(folder: Path, result: dict[str, Any]) -> dict[Cell, dict[str, Any]]:
    """The runs that the result of a folder is of."""
    found = {}
    for path in sorted((folder / "cells").rglob("*.json")):
        record = read_json(path)
        if record is None:
            continue
        cell = Cell(record["method"], record["budget"], record["seed"])
        if cell.method == UNTRAINED:
            found[cell] = record
            continue
        lines = next(iter(result["budgets"].get(cell.budget, {}).values()), {})
        if cell.method in lines and cell.seed < lines[cell.method]["seeds"]:
            found[cell] = {**record, "matched_by": lines[cell.method].get("matched_by")}
    return found


def _refuse_unequal_seeds(cells: dict[Cell, dict[str, Any]]) -> None:
    seeds: dict[tuple[str, str], set[int]] = {}
    for cell in cells:
        if cell.method != UNTRAINED:
            seeds.setdefault((cell.budget, cell.method), set()).add(cell.seed)
    for (budget, method), of_method in seeds.items():
        wanted = seeds[budget, RANDOM]
        if of_method != wanted:
            raise ValueError(
                f'"{method}" has {len(of_method)} runs of {budget} and random rows {len(wanted)}: runs are paired by '
                f"seed. Run its comparison with --seeds {max(wanted | of_method) + 1}, then join again."
            )


def _in_order(cell_and_record: tuple[Cell, Any]) -> tuple[int, float, str, int]:
    """Budgets by unit and size, and the seeds of a method in turn; methods as they came."""
    cell = cell_and_record[0]
    amount, _, unit = cell.budget.partition(" ")
    return int(unit == "tokens"), float(amount or -1), "", cell.seed


def _ranks(column: dict[str, Any], means: list[float]) -> np.ndarray:
    return rankdata(np.array(means) * (1 if column["better"] == "lower" else -1))


def _words(counts: dict[str, int], name: str) -> str:
    columns = sum(counts.values())
    if name == RANDOM or not columns:
        return ""
    if counts["better"] and counts["worse"]:
        return f"it depends: better in {counts['better']} of {columns}, worse in {counts['worse']}"
    for outcome, other in (("better", "worse"), ("worse", "better")):
        if counts[outcome]:
            return f"{outcome} in {counts[outcome]} of {columns}, {other} in none"
    return f"no evidence in any of {columns}"
