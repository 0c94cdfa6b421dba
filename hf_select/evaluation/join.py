"""Join several comparisons: of other pools, of other models, or one comparison in several folders.

    join(["runs/alpaca", "runs/tulu", "large=runs/alpaca_7b"], "joined")

Folders of one comparison (the same pool, recipe and measures: the same comparison.json) are merged: their runs are put
together and everything is computed again, p-values included. Different comparisons are shown side by side: their
losses have different scales, so verdicts are counted and ranks averaged, and nothing else is averaged.

output_dir/
  joined.json, joined.html, joined.md, pictures/     methods x comparisons
  NAME/result.json, .html, .md, pictures/            each merged comparison; a single one is in output_dir itself
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from hf_select.atomic import read_json, write_json
from hf_select.evaluation.break_even import add_costs
from hf_select.evaluation.tables import POOLED_LOSS, Cell, Record, measures_of, tables
from hf_select.reports.comparison import comparison_report
from hf_select.reports.comparison_result import (
    RANDOM,
    UNTRAINED,
    Comparison,
    JoinedColumn,
    JoinedComparison,
    JoinedComparisons,
    JoinedMethod,
    MethodResults,
    Outcome,
)
from hf_select.reports.joined import joined_report


def join(comparisons: Sequence[str | os.PathLike], output_dir: str | os.PathLike) -> Comparison | JoinedComparisons:
    """Join finished comparisons and write the tables and the page.

    Args:
        comparisons: folders of hf-select compare, FOLDER or NAME=FOLDER; the default name is that of the folder.
        output_dir: folder for the result.
    Returns: the contents of joined.json or, for folders of a single comparison, those of result.json.
    Raises: ValueError for a folder without a finished comparison, fewer than two, runs that contradict each other,
        comparisons that have no method in common.
    """
    groups = _group_folders(comparisons)
    output = Path(output_dir).expanduser()
    if output.resolve() in [folder.resolve() for folders in groups.values() for folder in folders]:
        raise ValueError(f'"{output}" is one of the comparisons; choose another output folder.')
    results = {}
    for name, folders in groups.items():
        results[name] = _read_result(folders[0]) if len(folders) == 1 else _merge(folders)
        if len(folders) > 1:
            place = output if len(groups) == 1 else output / name
            comparison_report(results[name], place)
            write_json(place / "result.json", results[name].to_dict())
    if len(groups) == 1:
        return next(iter(results.values()))
    joined = side_by_side(results, groups)
    joined_report(joined, output)
    write_json(output / "joined.json", joined.to_dict())
    return joined


def side_by_side(results: Mapping[str, Comparison], folders: Mapping[str, Sequence[Path]]) -> JoinedComparisons:
    """Return a table of methods x (comparison, budget, headline measure).

    Args:
        results, folders: of each comparison by name.
    Raises: ValueError if no method is in two comparisons.
    """
    methods = [name for result in results.values() for name in result.methods]
    if not any(methods.count(name) > 1 for name in methods):
        listed = "; ".join(f"{name}: {', '.join(result.methods)}" for name, result in results.items())
        raise ValueError(f"the comparisons have no method in common ({listed}); there is nothing to join.")
    columns: list[JoinedColumn] = []
    by_column: list[MethodResults] = []
    for name, result in results.items():
        for budget in result.budgets:
            for measure, of_methods in result.headline_results(budget).items():
                columns.append(JoinedColumn(name, budget, measure, result.measures[measure]))
                by_column.append(of_methods)
    everywhere = [name for name in by_column[0] if all(name in of_methods for of_methods in by_column)]
    ranks = [
        rankdata(np.array([of_methods[name].mean for name in everywhere]) * (1 if c.about.lower_is_better else -1))
        for c, of_methods in zip(columns, by_column, strict=True)
    ]
    mean_ranks = dict(zip(everywhere, np.mean(ranks, axis=0).tolist(), strict=True))
    names = dict.fromkeys([*methods, *everywhere])
    return JoinedComparisons(
        columns=columns,
        methods=list(dict.fromkeys(methods)),
        results={name: _over_columns(name, by_column, mean_ranks.get(name)) for name in names},
        num_ranked=len(everywhere),
        comparisons={
            name: JoinedComparison([str(folder) for folder in folders[name]], result.methods, result.settings)
            for name, result in results.items()
        },
    )


# --------------------------------------------------------------------------------------------------------------------


def _over_columns(name: str, by_column: Sequence[MethodResults], mean_rank: float | None) -> JoinedMethod:
    cells = [of_methods.get(name) for of_methods in by_column]
    outcomes = [cell.outcome for cell in cells if cell is not None]
    counts: dict[Outcome, int] = {
        "better": outcomes.count("better"),
        "worse": outcomes.count("worse"),
        "no evidence": outcomes.count("no evidence"),
    }
    return JoinedMethod(cells, counts, mean_rank, "" if name == RANDOM else _counts_message(counts))


def _counts_message(counts: Mapping[Outcome, int]) -> str:
    columns = sum(counts.values())
    if not columns:
        return ""
    better, worse = counts["better"], counts["worse"]
    if better and worse:
        return f"it depends: better in {better} of {columns}, worse in {worse}"
    if better:
        return f"better in {better} of {columns}, worse in none"
    if worse:
        return f"worse in {worse} of {columns}, better in none"
    return f"no evidence in any of {columns}"


def _group_folders(comparisons: Sequence[str | os.PathLike]) -> dict[str, list[Path]]:
    """Return name -> folders of one comparison, in the order they were given."""
    seen: set[Path] = set()
    groups: list[tuple[Mapping, str, list[Path]]] = []
    for argument in comparisons:
        text = str(argument)
        name, equals, place = ("", "", text) if Path(text).expanduser().is_dir() else text.partition("=")
        folder = Path(place or name).expanduser()
        identity = read_json(folder / "comparison.json")
        if identity is None or read_json(folder / "result.json") is None:
            raise ValueError(f'"{folder}" holds no finished comparison; run hf-select compare in it to its end.')
        if folder.resolve() in seen:
            raise ValueError(f'"{folder}" was given twice.')
        seen.add(folder.resolve())
        same = next((folders for other, _, folders in groups if other == identity), None)
        if same is not None:
            same.append(folder)
        else:
            groups.append((identity, name if equals else folder.resolve().name, [folder]))
    if len(seen) < 2:
        raise ValueError(f"{len(seen)} comparison was given; joining takes at least two.")
    names = [name for _, name, _ in groups]
    if len(set(names)) < len(names):
        raise ValueError(f"comparisons that differ have the same name ({', '.join(names)}); give NAME=FOLDER.")
    return {name: folders for _, name, folders in groups}


def _read_result(folder: Path) -> Comparison:
    try:
        return Comparison.from_dict(read_json(folder / "result.json") or {})
    except (KeyError, TypeError):
        raise ValueError(
            f'"{folder}" is of an earlier version; run the same hf-select compare command in it again.'
        ) from None


def _merge(folders: Sequence[Path]) -> Comparison:
    """Compute the result of all runs in the folders of one comparison."""
    cells: dict[Cell, Record] = {}
    methods: dict[str, None] = {}
    costs: dict[str, dict[str, float]] = {}
    results = [_read_result(folder) for folder in folders]
    for folder, result in zip(folders, results, strict=True):
        methods |= dict.fromkeys(result.methods)
        for cell, record in _records(folder, result).items():
            known = cells.setdefault(cell, record)
            if known["selection"] != record["selection"]:
                raise ValueError(
                    f'"{folders[0]}" and "{folder}" have runs of "{cell.method}" ({cell.budget}, seed {cell.seed}) on '
                    "different rows; they are no parts of one comparison. Rename one of the methods."
                )
        for name, cost in _known_costs(result).items():
            costs.setdefault(name, cost)
    _check_seeds(cells)
    cells = dict(sorted(cells.items(), key=lambda item: _budget_and_seed(item[0])))
    first = results[0]
    measures = measures_of(cells, {name: about for name, about in first.measures.items() if name != POOLED_LOSS})
    budgets = tables(cells, list(methods), measures, costs)
    return add_costs(Comparison(list(methods), measures, budgets, first.overlap, first.left_out, first.settings))


def _known_costs(result: Comparison) -> dict[str, dict[str, float]]:
    """Return method -> {"flops", "seconds"} of its scores, those that are known."""
    costs = {}
    for by_measure in result.budgets.values():
        for name, of_method in next(iter(by_measure.values())).items():
            runs = of_method.runs
            if runs is not None and (runs.selection_seconds is not None or runs.selection_flops is not None):
                costs.setdefault(name, {"seconds": runs.selection_seconds, "flops": runs.selection_flops})
    return costs


def _records(folder: Path, result: Comparison) -> dict[Cell, Record]:
    """Return the records of the runs that the result of a folder is computed from."""
    records: dict[Cell, Record] = {}
    for path in sorted((folder / "cells").rglob("*.json")):
        record = read_json(path)
        if record is None:
            continue
        cell = Cell(record["method"], record["budget"], record["seed"])
        if cell.method == UNTRAINED:
            records[cell] = record
            continue
        of_method = next(iter(result.budgets.get(cell.budget, {}).values()), {}).get(cell.method)
        if of_method is not None and cell.seed < of_method.training.seeds:
            records[cell] = {**record, "matched_by": of_method.training.matched_by}
    return records


def _check_seeds(cells: Mapping[Cell, Record]) -> None:
    seeds: dict[tuple[str, str], set[int]] = {}
    for cell in cells:
        if cell.method != UNTRAINED:
            seeds.setdefault((cell.budget, cell.method), set()).add(cell.seed)
    for (budget, method), of_method in seeds.items():
        of_random = seeds[budget, RANDOM]
        if of_method != of_random:
            raise ValueError(
                f'"{method}" has {len(of_method)} runs of {budget} and random rows {len(of_random)}: runs are paired '
                f"by seed. Run its comparison with --seeds {max(of_random | of_method) + 1}, then join again."
            )


def _budget_and_seed(cell: Cell) -> tuple[bool, float, int]:
    """Sort key: budgets by unit and size, then seeds; methods keep their order."""
    amount, _, unit = cell.budget.partition(" ")
    return unit == "tokens", float(amount or -1), cell.seed
