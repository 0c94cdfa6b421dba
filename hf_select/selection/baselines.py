"""What a selection has to beat: random rows, random rows balanced over sources, the longest rows; and rows drawn by
their weight."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hf_select.data import columns
from hf_select.selection.budget import Budget
from hf_select.selection.selection import Selection, select
from hf_select.selection.top_k import TopK, rank


def in_turn(labels: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Places of a sequence rearranged so that groups take turns: within a group the order stays, and a group that is
    used up is passed over.

    Args:
        labels: group of each place, int (m,).
        turns: turn of each group in a round, (number of groups,).
    """
    sizes = np.bincount(labels)
    # The round of a place: how many of its group stand before it.
    grouped = np.argsort(labels, kind="stable")
    rounds = np.empty(len(labels), dtype=np.int64)
    rounds[grouped] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.lexsort((turns[labels], rounds))


def random_order(num_rows: int, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """All row numbers in random order; with `groups` (a label a row) in turn from each group, shuffled within it.

    An exhausted group is passed over. Groups take turns in a random order that stays the same in every round.
    """
    order = np.random.default_rng(seed).permutation(num_rows)
    if groups is None:
        return order
    _, first, member = np.unique(groups[order], return_index=True, return_inverse=True)
    turn_of = np.argsort(np.argsort(first))  # the group met first in the shuffled order goes first
    return order[in_turn(member, turn_of)]


@dataclass
class Random:
    """Random rows, uniformly or balanced over the values of a column.

    The balanced form shuffles within each group before the groups take turns; the RDS+ study's script takes each
    group's head.

    Args:
        seed: of the draw.
        balanced_by: column whose values share the budget evenly, e.g. source.
        tokens_column: column that a budget in tokens is spent in.
    """

    seed: int = 0
    balanced_by: str | None = None
    tokens_column: str = columns.NUM_TOKENS

    def __call__(
        self, dataset: Any, k: int | None = None, fraction: float | None = None, tokens: int | None = None
    ) -> Selection:
        """Select k rows, a fraction of the rows, or as many as `tokens` pay for."""
        budget = Budget.of(dataset, k, fraction, tokens, self.tokens_column)
        groups = None
        if self.balanced_by is not None:
            if self.balanced_by not in dataset.column_names:
                raise columns.missing_column(self.balanced_by, dataset.column_names, "Name one of these, or none.")
            groups = np.array([str(value) for value in dataset.with_format(None)[self.balanced_by]])
        taken = budget.take(random_order(len(dataset), self.seed, groups), "are there")

        def reason(rank: int, row: int) -> str:
            group = "" if groups is None else f", in turn for {self.balanced_by} = {groups[row]}"
            return f"random draw {rank + 1}, seed {self.seed}{group}"

        step = {"selector": "Random", **asdict(self), "k": k, "fraction": fraction, "tokens": tokens}
        return select(dataset, taken, reason, None, step)


@dataclass
class Longest(TopK):
    """The longest rows, by a column of lengths: TopK with the column that `Length` adds.

    Args:
        column: the lengths.
        which: best is longest; worst and middle as in TopK.
        tokens_column: column that a budget in tokens is spent in.
    """

    column: str = columns.score_column("length")


@dataclass
class Sample:
    """Rows drawn without replacement, each time with probability proportional to exp(score / temperature).

    The k largest of score / temperature + Gumbel noise are such a draw (Kool et al. 2019, arXiv:1903.06059); on DSIR's
    log importance weights it is importance resampling (arXiv:2302.03169, algorithm 1).

    Args:
        column: the scores, as logarithms of weights.
        temperature: near 0 the best rows, large a uniform draw.
        seed: of the draw.
        tokens_column: column that a budget in tokens is spent in.
    """

    column: str
    temperature: float = 1.0
    seed: int = 0
    tokens_column: str = columns.NUM_TOKENS

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0.")

    def __call__(
        self, dataset: Any, k: int | None = None, fraction: float | None = None, tokens: int | None = None
    ) -> Selection:
        """Select k rows, a fraction of the rows, or as many as `tokens` pay for."""
        scores = columns.score_values(dataset, self.column)
        budget = Budget.of(dataset, k, fraction, tokens, self.tokens_column)
        keys = scores / self.temperature + np.random.default_rng(self.seed).gumbel(size=len(scores))
        why = columns.without_score(dataset, self.column, scores)
        taken = budget.take(rank(keys), f"have a {self.column}{why}")
        step = {"selector": "Sample", **asdict(self), "k": k, "fraction": fraction, "tokens": tokens}
        return select(
            dataset,
            taken,
            lambda rank, row: f"draw {rank + 1} by {self.column} {scores[row]:.6g}, seed {self.seed}",
            scores,
            step,
            pool_scores=scores,
        )
