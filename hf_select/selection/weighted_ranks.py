"""Several scores as one ranking: the weighted mean of percentile ranks."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

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

    combined = sum_c w_c r_c / sum_c |w_c|, r_c the percentile rank by column c, or 1 - r_c for a negative weight

    Ranks, not values: scores of different units and tails are put on one scale. A row that lacks one of the scores is
    never taken.

    Args:
        weights: score column -> weight, e.g. score_ifd=1 score_perplexity=-0.5; a negative weight prefers low scores.
    Raises: ValueError for a column that is missing or a weight that is 0 or not a number.
    """

    weights: dict[str, float]

    def __post_init__(self) -> None:
        if not self.weights:
            raise ValueError("weights is empty; give at least one score column and its weight.")
        try:
            self.weights = {column: float(weight) for column, weight in self.weights.items()}
        except (TypeError, ValueError):
            raise ValueError(f"weights are {self.weights}; each must be a number.") from None
        if any(not np.isfinite(weight) or weight == 0 for weight in self.weights.values()):
            raise ValueError(f"weights are {self.weights}; each must be a number other than 0.")

    def choose(self, dataset: "Dataset", budget: Budget) -> Choice:
        """Rows by their combined rank."""
        scores = {column: columns.score_values(dataset, column) for column in self.weights}
        ranks = {column: percentile_ranks(values) for column, values in scores.items()}
        combined = combined_ranks(ranks, self.weights)
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


def combined_ranks(ranks: dict[str, np.ndarray], weights: dict[str, float]) -> np.ndarray:
    """Weighted mean of percentile ranks by column, of 1 - rank where the weight is negative."""
    total = sum(abs(weight) for weight in weights.values())
    oriented = [(weight, ranks[c] if weight > 0 else 1 - ranks[c]) for c, weight in weights.items()]
    return np.sum([abs(weight) * values for weight, values in oriented], axis=0) / total
