"""The cells of a comparison -> for each budget and measure every method beside random rows, with a verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_select.evaluation.statistics import Difference, corrected, differences


RANDOM, UNTRAINED = "random", "untrained"
MATCHED = f"{RANDOM} ("  # begins the names of random rows under a condition
TOGETHER = "all losses"  # the held-out rows of every domain as one set


@dataclass(frozen=True)
class Cell:
    """One training run that is wanted. budget: "1000 rows" or "200000 tokens"; "" for the untrained model."""

    method: str
    budget: str
    seed: int


def tables(
    cells: Mapping[Cell, Mapping[str, Any]],
    methods: Sequence[str],
    measures: Mapping[str, Mapping[str, Any]],
    costs: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """The tables of result.json.

    Args:
        cells: run -> its record.
        methods: the names that are asked about; all others are baselines.
        measures: name -> {"better", "unit"}.
        costs: name -> {"flops", "seconds"} of its scores.
    Returns: "measures" (that of all losses together first, with its "parts"), and "budgets": budget -> measure -> name
        -> its line. `mean` over seeds and items, what its runs were, and beside random rows the paired `difference`
        with its `verdict`; for a method that chose clearly more or fewer tokens also `matched`: the same beside random
        rows of as many tokens.
    Raises: ValueError if runs of one budget have trained unequally many tokens.
    """
    untrained = next(record for cell, record in cells.items() if cell.method == UNTRAINED)
    measures = {name: {**about, "items": len(untrained["values"][name])} for name, about in measures.items()}
    losses = [name for name, about in measures.items() if about["unit"] == "nats"]
    if len(losses) > 1:
        items = sum(measures[name]["items"] for name in losses)
        measures = {TOGETHER: {**measures[losses[0]], "items": items, "parts": losses}, **measures}
    found: dict[str, Any] = {}
    for budget in dict.fromkeys(cell.budget for cell in cells if cell.method != UNTRAINED):
        of_budget = {cell: record for cell, record in cells.items() if cell.budget == budget}
        _refuse_unequal(of_budget)
        names = list(dict.fromkeys(cell.method for cell in of_budget))
        records = {name: [r for c, r in of_budget.items() if c.method == name] for name in names}
        runs = {name: _run(some, costs.get(name)) for name, some in records.items()}
        found[budget] = {}
        for measure, about in measures.items():
            parts = losses if measure == TOGETHER else [measure]
            values = {
                name: np.array([np.concatenate([r["values"][part] for part in parts]) for r in some])
                for name, some in records.items()
            }
            before = np.concatenate([untrained["values"][part] for part in parts])
            values[UNTRAINED] = np.tile(before, (len(values[RANDOM]), 1))
            found[budget][measure] = _lines(values, runs, methods, about["better"] == "lower")
    return {"methods": list(methods), "measures": measures, "budgets": found}


def _lines(
    values: Mapping[str, np.ndarray], runs: Mapping[str, dict[str, Any]], methods: Sequence[str], lower: bool
) -> dict[str, Any]:
    """Name -> line, random rows first, then the baselines, then the methods."""
    against = _beside(
        values, dict.fromkeys((name for name in (UNTRAINED, *values) if name != RANDOM), RANDOM), methods, lower
    )
    lines: dict[str, Any] = {RANDOM: {"mean": float(values[RANDOM].mean()), **runs[RANDOM]}}
    for name, difference in against.items():
        line = {"mean": float(values[name].mean()), **runs.get(name, {})}
        lines[name] = line | {"difference": vars(difference), "verdict": difference.verdict(lower)}
    matched = {name: line["matched_by"] for name, line in lines.items() if line.get("matched_by") is not None}
    for name, d in _beside(values, matched, methods, lower).items():
        lines[name]["matched"] = {"baseline": matched[name], "difference": vars(d), "verdict": d.verdict(lower)}
    return lines


def _beside(
    values: Mapping[str, np.ndarray], baselines: Mapping[str, str], methods: Sequence[str], lower: bool
) -> dict[str, Difference]:
    """Name -> its difference to its baseline. Only the methods are hypotheses, and corrected for together."""
    asked = [name for name in methods if name in baselines]
    others = [name for name in baselines if name not in methods]
    found = {
        name: differences(
            {name: values[name]}, values[baselines[name]], lower, asked=len(asked) if name in asked else 1
        )[name]
        for name in (*others, *asked)
    }
    return found | corrected({name: found[name] for name in asked})


def _run(records: list[Mapping[str, Any]], cost: Mapping[str, float] | None) -> dict[str, Any]:
    """What a method's runs were, on average."""
    flops = float(np.mean([r["flops"] for r in records]))
    matched = records[0].get("matched_by")
    return {
        "rows": float(np.mean([r["rows"] for r in records])),
        "tokens": round(float(np.mean([r["tokens"] for r in records]))),
        "steps": float(np.mean([r["steps"] for r in records])),
        "rows_cut": float(np.mean([r["rows_cut"] for r in records])),
        "passes": float(np.mean([r["passes"] for r in records])),
        "seeds": len(records),
        "could_choose_from": records[0]["could_choose_from"],
        "training_seconds": float(np.mean([r["seconds"] for r in records])),
        "training_flops": flops,
        "selection_seconds": None if cost is None else cost.get("seconds"),
        "selection_flops": None if cost is None else cost.get("flops"),
        "selecting": "" if cost is None or not cost.get("flops") else f"{cost['flops'] / flops:.2f}",
        **({"matched_by": matched} if matched else {}),
    }


def _refuse_unequal(records: Mapping[Cell, Mapping[str, Any]]) -> None:
    for cell, record in records.items():
        if abs(record["tokens"] - record["tokens_wanted"]) > record["tokens_within"]:
            raise ValueError(
                f'the run of "{cell.method}" ({cell.budget}, seed {cell.seed}) trained {record["tokens"]:,} tokens '
                f"and not {record['tokens_wanted']:,}: unequal runs are not compared. Delete its file in cells/ and "
                "run the comparison again."
            )
    if len({record["tokens_wanted"] for record in records.values()}) > 1:
        raise ValueError("runs of one budget were to train unequally many tokens; they are not compared.")
