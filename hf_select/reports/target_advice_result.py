"""The typed result of advise_target(): what advice.json holds and its report shows."""

from dataclasses import asdict, dataclass
from typing import Any

from hf_select.reports.advice_result import Estimate, ScoringCost


@dataclass(frozen=True)
class RepresentationResult:
    """How well one representation finds held-back queries, see evaluation/held_back.py.

    Args:
        scorer: its name.
        settings: those that differ from the scorer's.
        found: mean over tasks, with the interval over queries.
        by_task: mean over the queries of each task.
        leads: baseline -> difference to it; the intervals of all representations hold together.
    """

    scorer: str
    settings: dict[str, Any]
    found: Estimate
    by_task: dict[str, Estimate]
    leads: dict[str, Estimate]


@dataclass(frozen=True)
class TargetAdvice:
    """The result of advise_target().

    Args:
        pool_rows, sample_rows: numbers of rows.
        queries: task -> number of its queries.
        repeating: task -> rows of the sample that repeat one of its queries, and were left out.
        splits, seed: of the queries.
        results: representation -> result, best first.
        baselines: representations that another must clearly beat to be recommended, cheapest first.
        recommended: the representation to use.
        message: what to do, with its reason.
        notes: further remarks.
        sample_cost, pool_cost: scorer -> cost, measured on the sample and expected for the pool.
    """

    pool_rows: int
    sample_rows: int
    queries: dict[str, int]
    repeating: dict[str, int]
    splits: int
    seed: int
    results: dict[str, RepresentationResult]
    baselines: list[str]
    recommended: str
    message: str
    notes: list[str]
    sample_cost: dict[str, ScoringCost]
    pool_cost: dict[str, ScoringCost]

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of advice.json."""
        return asdict(self)
