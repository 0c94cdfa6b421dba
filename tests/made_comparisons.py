"""Results of comparisons with a planted truth, without any training: what `compare` returns, made in milliseconds."""

from typing import Any

import numpy as np

from hf_select.evaluation.statistics import differences


MEASURES = {
    "math": {"better": "lower", "unit": "nats", "items": 40},
    "exact answers": {"better": "higher", "unit": "share right", "items": 40},
}
SHIFTS = {"good": 0.1, "nothing": 0.0, "bad": -0.1}  # in the direction that is better
RUN = 2e13  # FLOPs of a run at 1,000 rows


def made(
    shifts: dict[str, float] | None = None,
    budgets: tuple[int, ...] = (1000, 2000, 4000),
    scores_flops: float | None = 1e13,
    measures: dict[str, Any] | None = None,
    seeds: int = 4,
    seed: int = 0,
) -> dict[str, Any]:
    """Random rows gain 0.1 (in the unit) with every doubling of the budget; methods that plus their shift."""
    shifts, measures = shifts or SHIFTS, measures or MEASURES
    dice = np.random.default_rng(seed)
    found: dict[str, Any] = {}
    for budget in budgets:
        for measure, about in measures.items():
            lower, items = about["better"] == "lower", about["items"]
            sign = -1 if lower else 1

            def runs(shift: float, level: float = sign * 0.1 * np.log2(budget / 1000) + 2, sign: int = sign) -> Any:
                return level + sign * shift + dice.normal(0, 0.001, (seeds, items))  # noqa: B023

            results = {name: runs(shift) for name, shift in {"random": 0.0, **shifts, "longest": 0.0}.items()}
            results["untrained"] = np.full((seeds, items), 2 - sign * 1.0)
            against = differences({name: results[name] for name in shifts}, results["random"], lower)
            for name in ("longest", "untrained"):
                against |= differences({name: results[name]}, results["random"], lower)
            lines: dict[str, Any] = {}
            for name, of in results.items():
                lines[name] = {"mean": float(of.mean())}
                if name != "untrained":
                    lines[name] |= {
                        "rows": float(budget),
                        "tokens": 300 * budget,
                        "passes": 2.0,
                        "seeds": seeds,
                        "could_choose_from": 9000,
                        "training_seconds": budget / 100,
                        "training_flops": RUN * budget / 1000,
                        "selection_seconds": 12.0 if name in shifts and scores_flops is not None else None,
                        "selection_flops": scores_flops if name in shifts else None,
                    }
                if name != "random":
                    lines[name] |= {"difference": vars(against[name]), "verdict": against[name].verdict(lower)}
            found.setdefault(f"{budget} rows", {})[measure] = lines
    return {
        "methods": list(shifts),
        "measures": measures,
        "budgets": found,
        "overlap": {"math": 0},
        "settings": {"recipe": {"model": "Qwen/Qwen2.5-0.5B", "learning_rate": 2e-5}, "passes": 2.0},
    }
