"""Comparisons with a planted truth, without any training: what `compare` returns and writes, made in milliseconds."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from hf_select.evaluation.break_even import add_costs
from hf_select.evaluation.tables import Cell, measures_of, tables
from hf_select.reports.comparison_result import Comparison, MeasureInfo


MEASURES = {
    "math": MeasureInfo("lower", "nats", 0),
    "exact answers": MeasureInfo("higher", "share right", 0),
}
SHIFTS = {"good": 0.1, "nothing": 0.0, "bad": -0.1}  # in the direction that is better
RUN = 2e13  # FLOPs of a run at 1,000 rows
ITEMS = 40


def made_cells(
    shifts: dict[str, float], budgets: tuple[int, ...], measures: dict[str, Any], seeds: int, seed: int = 0
) -> dict[Cell, dict[str, Any]]:
    """Random rows gain 0.1 (in the unit) with every doubling of the budget; methods that plus their shift."""
    cells: dict[Cell, dict[str, Any]] = {
        Cell("untrained", "", 0): {
            "selection": "",
            "values": {name: [3.0 if about.better == "lower" else 1.0] * ITEMS for name, about in measures.items()},
        }
    }
    for budget in budgets:
        for place, (method, shift) in enumerate({"random": 0.0, "longest": 0.0, **shifts}.items()):
            for run in range(seeds):
                rng = np.random.default_rng([seed, budget, place, run])
                values = {}
                for name, about in measures.items():
                    gained = (0.1 * np.log2(budget / 1000) + shift) * (-1 if about.better == "lower" else 1)
                    values[name] = (2 + gained + rng.normal(0, 0.001, ITEMS)).tolist()
                cells[Cell(method, f"{budget} rows", run)] = {
                    "selection": f"{method} {budget}",
                    "values": values,
                    "rows": budget,
                    "tokens": 300 * budget,
                    "tokens_wanted": 300 * budget,
                    "tokens_within": 500,
                    "steps": 20,
                    "rows_cut": 0,
                    "passes": 2.0,
                    "could_choose_from": 9000,
                    "seconds": budget / 100,
                    "flops": RUN * budget / 1000,
                }
    return cells


def made(
    shifts: dict[str, float] | None = None,
    budgets: tuple[int, ...] = (1000, 2000, 4000),
    scores_flops: float | None = 1e13,
    measures: dict[str, Any] | None = None,
    seeds: int = 4,
    seed: int = 0,
) -> Comparison:
    """What `compare` returns, before the costs."""
    shifts, measures = SHIFTS if shifts is None else shifts, measures or MEASURES
    costs = {} if scores_flops is None else dict.fromkeys(shifts, {"flops": scores_flops, "seconds": 12.0})
    cells = made_cells(shifts, budgets, measures, seeds, seed)
    recipe = {"model": "Qwen/Qwen2.5-0.5B", "learning_rate": 2e-5, "lora_r": None}
    known = measures_of(cells, measures)
    return Comparison(
        methods=list(shifts),
        measures=known,
        budgets=tables(cells, list(shifts), known, costs),
        overlap=dict.fromkeys(measures, 0),
        left_out={},
        settings={"recipe": recipe, "passes": 2.0, "measures": dict.fromkeys(measures, "a hash")},
    )


def made_folder(folder: Path, pool: str = "a pool", **settings: Any) -> Path:
    """What `compare` writes, without its page."""
    result = made(**settings)
    cells = made_cells(
        settings.get("shifts", SHIFTS),
        settings.get("budgets", (1000, 2000, 4000)),
        settings.get("measures") or MEASURES,
        settings.get("seeds", 4),
        settings.get("seed", 0),
    )
    for cell, record in cells.items():
        path = folder / "cells" / cell.method / f"{cell.budget or 'none'}-seed-{cell.seed}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**vars(cell), **record}))
    (folder / "result.json").write_text(json.dumps(add_costs(result).to_dict()))
    (folder / "comparison.json").write_text(json.dumps({**result.settings, "pool": pool}))
    return folder
