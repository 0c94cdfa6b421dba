"""Several scores as one ranking: the weighted mean of percentile ranks."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hf_select.data import columns
from hf_select.selection.budget import Budget, ties_at_the_cut
from hf_select.selection.ranking import Ranking, percentile_ranks
from hf_select.selection.selector import Choice, Selector


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class WeightedRanks(Selector):
    """Ranks rows by a weighted mean of their percentile ranks under several scores.

    combined = sum_c w_c f(r_c) / sum_c |w_c|, r_c the percentile rank by column c, or 1 - r_c for a negative weight

    Ranks, not values: scores of different units and tails are put on one scale. A row that lacks one of the scores is
    never taken. `fit_weights` learns the weights from rows that are known to be wanted.

    Args:
        weights: score column -> weight, e.g. score_ifd=1 score_perplexity=-0.5; a negative weight prefers low scores.
        scale: f. rank: f(r) = r. log: f(r) = -log(1 - r + 1 / 2n) of n rows, so that the step from the first 10 % to
            the first 1 % counts as much as that from the first 100 % to the first 10 %.
    Raises: ValueError for a column that is missing or a weight that is 0 or not a number.
    """

    weights: dict[str, float]
    scale: Literal["rank", "log"] = "rank"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.evidence_: dict[str, Any] = {}  # of fitted weights, see fit_weights
        if not self.weights:
            raise ValueError("weights is empty; give at least one score column and its weight.")
        try:
            self.weights = {column: float(weight) for column, weight in self.weights.items()}
        except (TypeError, ValueError):
            raise ValueError(f"weights are {self.weights}; each must be a number.") from None
        if any(not np.isfinite(weight) or weight == 0 for weight in self.weights.values()):
            raise ValueError(f"weights are {self.weights}; each must be a number other than 0.")

    def settings(self) -> dict[str, object]:
        """The settings as they are recorded in `Selection.chain`, with the evidence of fitted weights."""
        return {**super().settings(), **({"fitted": self.evidence_} if self.evidence_ else {})}

    def choose(self, dataset: "Dataset", budget: Budget) -> Choice:
        """Rows by their combined rank."""
        scores = {column: columns.score_values(dataset, column) for column in self.weights}
        ranks = {column: percentile_ranks(values) for column, values in scores.items()}
        combined = combined_ranks(ranks, self.weights, self.scale)
        ranking = Ranking(combined, "combined rank", columns=tuple(self.weights))
        order = ranking.order()
        missing = "".join(columns.without_score(dataset, column, values) for column, values in scores.items())
        taken = budget.take(order, f"have all of {', '.join(self.weights)}{missing}")
        tied = ties_at_the_cut(combined, taken, ranking.name)

        def reason(place: int, row: int) -> str:
            parts = ", ".join(f"{column} at {100 * values[row]:.0f} %" for column, values in ranks.items())
            return f"combined rank {combined[row]:.4f}, highest {place + 1} of {len(order)} ({parts})"

        counts = {"scored": len(order), "tied_at_the_cut": tied}
        return Choice(taken, reason, combined, ranking, counts=counts)


def combined_ranks(
    ranks: dict[str, np.ndarray],
    weights: dict[str, float],
    scale: Literal["rank", "log"] = "rank",
    num_rows: int | None = None,
) -> np.ndarray:
    """Weighted mean of f(rank) by column, of f(1 - rank) where the weight is negative, see `WeightedRanks`.

    Args:
        num_rows: n of f, by default the number of rows given.
    """
    total = sum(abs(weight) for weight in weights.values())
    n = num_rows or max(1, len(next(iter(ranks.values()))))
    oriented = [(weight, ranks[c] if weight > 0 else 1 - ranks[c]) for c, weight in weights.items()]
    scaled = [(weight, r if scale == "rank" else -np.log(1 - r + 0.5 / n)) for weight, r in oriented]
    return np.sum([abs(weight) * values for weight, values in scaled], axis=0) / total
