"""Tables of a comparison from its training runs: at each budget, every method compared with random rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_select.evaluation.statistics import corrected, differences
from hf_select.reports.comparison_result import (
    RANDOM,
    UNTRAINED,
    Difference,
    MatchedDifference,
    MeasureInfo,
    MethodResult,
    MethodResults,
    Runs,
)


MATCHED = f"{RANDOM} ("  # prefix of the names of random rows under a condition
POOLED_LOSS = "all losses"  # the held-out rows of every domain as one set

Record = Mapping[str, Any]  # of a training run, as it is written to cells/
Budgets = dict[str, dict[str, MethodResults]]


@dataclass(frozen=True)
class Cell:
    """One training run. budget: "1000 rows" or "200000 tokens"; "" for the untrained model."""

    method: str
    budget: str
    seed: int


def tables(
    cells: Mapping[Cell, Record],
    methods: Sequence[str],
    measures: Mapping[str, MeasureInfo],
    costs: Mapping[str, Mapping[str, float]],
) -> Budgets:
    """Return budget -> measure -> method or baseline -> result, without costs.

    Args:
        cells: run -> its record.
        methods: names of the compared methods; all others are baselines.
        measures: of `measures_of`; pooled losses are computed from their parts.
        costs: method -> {"flops", "seconds"} of its scores.
    Raises: ValueError if runs of one budget have trained unequal numbers of tokens.
    """
    untrained = _untrained(cells)
    budgets: Budgets = {}
    for budget in dict.fromkeys(cell.budget for cell in cells if cell.method != UNTRAINED):
        of_budget = {cell: record for cell, record in cells.items() if cell.budget == budget}
        _check_equal_tokens(of_budget)
        records: dict[str, list[Record]] = {}
        for cell, record in of_budget.items():
            records.setdefault(cell.method, []).append(record)
        runs = {name: _average_runs(records[name], costs.get(name)) for name in records}
        budgets[budget] = {}
        for name, measure in measures.items():
            parts = measure.parts or (name,)
            values = {
                method: np.array([np.concatenate([r["values"][part] for part in parts]) for r in some])
                for method, some in records.items()
            }
            before = np.concatenate([untrained["values"][part] for part in parts])
            values[UNTRAINED] = np.tile(before, (len(values[RANDOM]), 1))
            budgets[budget][name] = _results(values, runs, methods, measure.lower_is_better)
    return budgets


def measures_of(cells: Mapping[Cell, Record], measures: Mapping[str, Any]) -> dict[str, MeasureInfo]:
    """Describe measures (anything with `better` and `unit`) with their number of items.

    Several measures in nats are preceded by one that pools them.
    """
    values = _untrained(cells)["values"]
    described = {name: MeasureInfo(m.better, m.unit, len(values[name])) for name, m in measures.items()}
    losses = [name for name, measure in described.items() if measure.unit == "nats"]
    if len(losses) < 2:
        return described
    items = sum(described[name].items for name in losses)
    return {POOLED_LOSS: MeasureInfo(described[losses[0]].better, "nats", items, tuple(losses)), **described}


def _untrained(cells: Mapping[Cell, Record]) -> Record:
    return next(record for cell, record in cells.items() if cell.method == UNTRAINED)


def _results(
    values: Mapping[str, np.ndarray], runs: Mapping[str, Runs], methods: Sequence[str], lower: bool
) -> MethodResults:
    """Return name -> result: random rows first, then the other baselines, then the methods."""
    baselines = dict.fromkeys((name for name in (UNTRAINED, *values) if name != RANDOM), RANDOM)
    against = _differences_to(values, baselines, methods, lower)
    matches = {name: runs[name].matched_by for name in against if name in runs}
    matched_to = {name: baseline for name, baseline in matches.items() if baseline is not None}
    matched = {
        name: MatchedDifference(matched_to[name], d, d.verdict(lower))
        for name, d in _differences_to(values, matched_to, methods, lower).items()
    }
    results = {RANDOM: MethodResult(float(values[RANDOM].mean()), runs[RANDOM])}
    for name, d in against.items():
        verdicts = (d, d.outcome(lower), d.verdict(lower))
        results[name] = MethodResult(float(values[name].mean()), runs.get(name), *verdicts, matched.get(name))
    return results


def _differences_to(
    values: Mapping[str, np.ndarray], baselines: Mapping[str, str], methods: Sequence[str], lower: bool
) -> dict[str, Difference]:
    """Return each name's difference to its baseline. Only the methods are hypotheses, and corrected together."""
    hypotheses = [name for name in methods if name in baselines]
    others = [name for name in baselines if name not in methods]

    def difference(name: str, num_comparisons: int) -> Difference:
        return differences(
            {name: values[name]}, values[baselines[name]], lower, num_comparisons=num_comparisons
        )[name]  # fmt: skip

    alone = {name: difference(name, 1) for name in others}
    return alone | corrected({name: difference(name, len(hypotheses)) for name in hypotheses})


def _average_runs(records: Sequence[Record], cost: Mapping[str, float] | None) -> Runs:
    """Average the runs of a method."""
    mean: Callable[[str], float] = lambda key: float(np.mean([record[key] for record in records]))  # noqa: E731
    return Runs(
        rows=mean("rows"),
        tokens=round(mean("tokens")),
        steps=mean("steps"),
        rows_cut=mean("rows_cut"),
        passes=mean("passes"),
        seeds=len(records),
        could_choose_from=records[0]["could_choose_from"],
        training_seconds=mean("seconds"),
        training_flops=mean("flops"),
        selection_seconds=None if cost is None else cost.get("seconds"),
        selection_flops=None if cost is None else cost.get("flops"),
        matched_by=records[0].get("matched_by"),
    )


def _check_equal_tokens(records: Mapping[Cell, Record]) -> None:
    for cell, record in records.items():
        if abs(record["tokens"] - record["tokens_wanted"]) > record["tokens_within"]:
            raise ValueError(
                f'the run of "{cell.method}" ({cell.budget}, seed {cell.seed}) trained {record["tokens"]:,} tokens '
                f"and not {record['tokens_wanted']:,}: unequal runs are not compared. Delete its file in cells/ and "
                "run the comparison again."
            )
    if len({record["tokens_wanted"] for record in records.values()}) > 1:
        raise ValueError("runs of one budget were to train unequal numbers of tokens; they are not compared.")
