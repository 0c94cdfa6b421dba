"""Baselines: random rows, random rows balanced over sources, the longest rows; and rows drawn by their weight."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hf_select.data import columns
from hf_select.paper import DSIR_PAPER, Paper
from hf_select.selection.budget import Budget
from hf_select.selection.ranking import Ranking, in_turn, rank
from hf_select.selection.selector import Choice, Selector
from hf_select.selection.top_k import TopK


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class Random(Selector):
    """Random rows, uniformly or balanced over the values of a column.

    The balanced form shuffles within each group before the groups take turns; the RDS+ study's script takes each
    group's head.

    Args:
        seed: of the draw.
        balanced_by: column whose values share the budget evenly, e.g. source.
    """

    seed: int = 0
    balanced_by: str | None = None

    def choose(self, dataset: "Dataset", budget: Budget) -> Choice:
        """Rows in random order."""
        groups = None
        if self.balanced_by is not None:
            if self.balanced_by not in dataset.column_names:
                raise columns.missing_column(self.balanced_by, dataset.column_names, "Name one of these, or none.")
            groups = np.array([str(value) for value in dataset.with_format(None)[self.balanced_by]])

        def reason(place: int, row: int) -> str:
            group = "" if groups is None else f", in turn for {self.balanced_by} = {groups[row]}"
            return f"random draw {place + 1}, seed {self.seed}{group}"

        return Choice(budget.take(random_order(len(dataset), self.seed, groups), "are in the dataset"), reason)


def random_order(num_rows: int, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """All row numbers in random order; with `groups` (a label a row) in turn from each group, shuffled within it.

    An exhausted group is passed over. Groups take turns in a random order that stays the same in every round.
    """
    order = np.random.default_rng(seed).permutation(num_rows)
    if groups is None:
        return order
    _, first, member = np.unique(groups[order], return_index=True, return_inverse=True)
    turn_of = np.argsort(np.argsort(first))  # the group of the first row in the shuffled order is the first
    return order[in_turn(member, turn_of)]


@dataclass
class Longest(TopK):
    """The longest rows, by a column of lengths: TopK with the column that `Length` adds.

    Args:
        column: the lengths.
        which: best is longest; worst and middle as in TopK.
    """

    column: str = columns.score_column("length")


@dataclass
class Sample(Selector):
    """Rows drawn without replacement, each time with probability proportional to exp(score / temperature).

    The k largest of score / temperature + Gumbel noise are such a draw (Kool et al. 2019, arXiv:1903.06059); on DSIR's
    log importance weights it is importance resampling (arXiv:2302.03169, algorithm 1).

    Args:
        column: the scores, as logarithms of weights.
        temperature: near 0 the best rows, large a uniform draw.
        seed: of the draw.
    """

    column: str
    temperature: float = 1.0
    seed: int = 0

    paper: ClassVar[Paper | None] = DSIR_PAPER

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0.")

    def choose(self, dataset: "Dataset", budget: Budget) -> Choice:
        """Rows by their noisy scores."""
        scores = columns.score_values(dataset, self.column)
        noisy = scores / self.temperature + np.random.default_rng(self.seed).gumbel(size=len(scores))
        taken = budget.take(rank(noisy), f"have a {self.column}{columns.without_score(dataset, self.column, scores)}")

        def reason(place: int, row: int) -> str:
            return f"draw {place + 1} by {self.column} {scores[row]:.6g}, seed {self.seed}"

        return Choice(taken, reason, scores, Ranking(scores, self.column, (self.column,)))
