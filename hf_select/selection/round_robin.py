"""One selection for several targets, from the rows' similarities to each.

Ivison et al. 2025 (arXiv:2503.01807): round robin over the queries of one task (Algorithm 1) or over tasks. Their
table 7 has the alternative of averaging over tasks 3 points lower, because some tasks' similarities are higher
throughout.

A duplicate consumes its turn: a target whose best remaining row has been taken by another target already moves past it
and gets its next row only in the next round. That is Algorithm 1 and the authors' code; it costs popular targets some
rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from hf_select.data import columns
from hf_select.paper import RDS_PAPER, Paper
from hf_select.selection.budget import Budget
from hf_select.selection.ranking import Ranking, highest
from hf_select.selection.selector import Choice, Selector


if TYPE_CHECKING:
    from datasets import Dataset


# t targets (tasks or queries), n rows


def round_robin(
    similarities: Sequence[np.ndarray],
    k: int,
    weights: Sequence[float] | None = None,
    group: np.ndarray | None = None,
    cap: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, targets): k different rows in pick order, and the target that picked each.

    In each round every target, in the given order, steps to the next row of its own ranking (highest similarity first,
    ties to the lower row; NaN is never ranked) and takes it unless another target has it already.

    Args:
        similarities: for each target an array (n,).
        weights: turns of each target relative to the others; equal by default. Targets take turns in the order of
            (turns so far + 1) / weight.
        group: value of each row, int (n,), of which none gives more than `cap` rows. A row of a full group is passed
            over without costing the turn, since no other target took it.
        cap: rows that each value of `group` may give.
    Returns fewer than k rows if the rankings end first.
    """
    rankings = [_TargetRanking(values, k // max(1, len(similarities)) * 2 + 64) for values in similarities]
    taken = np.zeros(len(similarities[0]), dtype=bool)
    counts = np.zeros(int(group.max()) + 1 if group is not None and len(group) else 0, dtype=np.int64)
    rows, targets = [], []
    for target in _turn_order(len(rankings), weights, rankings):
        if len(rows) == k:
            break
        row = rankings[target].next()
        while row is not None and group is not None and not taken[row] and counts[group[row]] >= (cap or k):
            row = rankings[target].next()
        if row is None or taken[row]:
            continue
        taken[row] = True
        if group is not None:
            counts[group[row]] += 1
        rows.append(row)
        targets.append(target)
    return np.array(rows, dtype=np.int64), np.array(targets, dtype=np.int64)


class _TargetRanking:
    """Rows of one target, best first, sorted lazily: 326,000 of 5.8 million need no full sort."""

    def __init__(self, values: np.ndarray, head: int):
        self.values = values
        self.candidates = np.flatnonzero(~np.isnan(values))
        self.size = len(self.candidates)
        self.head = head
        self.order: list[int] = []
        self.position = 0

    def next(self) -> int | None:
        """The next row, or None at the end."""
        if self.position == len(self.order):
            if self.position == self.size:
                return None
            self.head = max(self.head, 4 * self.position)
            self.order = highest(self.values, self.head, self.candidates).tolist()
        self.position += 1
        return self.order[self.position - 1]

    @property
    def ended(self) -> bool:
        """Whether every row was given."""
        return self.position == self.size


def _turn_order(
    num_targets: int, weights: Sequence[float] | None, rankings: Sequence[_TargetRanking]
) -> Iterator[int]:
    """Whose turn it is, until every ranking has ended."""
    weight = np.ones(num_targets) if weights is None else np.asarray(weights, dtype=np.float64)
    turns = np.zeros(num_targets)
    if weights is None:
        while not all(ranking.ended for ranking in rankings):
            yield from range(num_targets)
        return
    while not all(ranking.ended for ranking in rankings):
        due = [(turns[t] + 1) / weight[t] if not rankings[t].ended else np.inf for t in range(num_targets)]
        target = int(np.argmin(due))
        turns[target] += 1
        yield target


@dataclass
class RoundRobin(Selector):
    """Selects rows for several targets in turn.

    Args:
        similarities: score columns of the tasks in the order of their turns, or one list column with a number a query
            (rds_similarities of RDSPlus with per_query).
        mode: round_robin (the paper's), global_max (highest similarity to any target first: what the authors' script
            for big pools does) or mean_max (mean over targets).
        weights: turns of each target relative to the others.
        max_per: column, such as source, of which no value gives more than `cap` rows.
        cap: rows that each value of `max_per` may give.
    Raises: ValueError if a column is missing or fewer rows can be reached than are requested.
    """

    similarities: list[str]
    mode: Literal["round_robin", "global_max", "mean_max"] = "round_robin"
    weights: list[float] | None = None
    max_per: str | None = None
    cap: int | None = None

    paper: ClassVar[Paper | None] = RDS_PAPER

    def __post_init__(self) -> None:
        self.similarities = [self.similarities] if isinstance(self.similarities, str) else list(self.similarities)
        super().__post_init__()
        if not self.similarities:
            raise ValueError("similarities is empty; name the score column of at least one task.")
        if self.weights is not None and not all(weight > 0 for weight in self.weights):
            raise ValueError(f"weights are {self.weights}; each must be above 0.")
        if self.mode != "round_robin" and self.weights is not None:
            raise ValueError(f"weights share out turns; mode {self.mode} has none.")
        if (self.max_per is None) != (self.cap is None):
            raise ValueError("max_per and cap go together: a column, and the rows that each of its values may give.")
        if self.cap is not None and (self.cap < 1 or self.mode != "round_robin"):
            raise ValueError(f"cap is {self.cap} in mode {self.mode}; it must be at least 1, in mode round_robin.")

    def choose(self, dataset: "Dataset", budget: Budget) -> Choice:
        """Rows in the order in which the targets pick them."""
        names, values = self._targets(dataset)
        if self.weights is not None and len(self.weights) != len(values):
            raise ValueError(f"{len(self.weights)} weights for {len(values)} targets; give one for each.")
        for value in values:
            value[budget.uncounted] = np.nan
        scored = ~np.isnan(values[0])
        k = budget.rows if budget.rows is not None else int(scored.sum())
        nearest = reduce(np.maximum, values)
        if self.mode == "round_robin":
            group = None if self.max_per is None else self._groups(dataset)
            order, target = round_robin(values, k, self.weights, group, self.cap)
        else:
            order = highest(nearest if self.mode == "global_max" else np.mean(values, axis=0), k)
            target = np.argmax([value[order] for value in values], axis=0)
        taken = budget.take(order, "can be reached from these targets")
        target = target[: len(taken)]
        scores = np.full(len(dataset), np.nan)
        scores[taken] = [values[t][row] for t, row in zip(target, taken, strict=True)]

        def reason(place: int, row: int) -> str:
            how = "chosen by" if self.mode == "round_robin" else f"{self.mode}, nearest to"
            return f"{how} {names[target[place]]}, similarity {scores[row]:.4f}"

        tasks = [] if self._per_query(dataset) else self.similarities
        ranking = Ranking(nearest, "highest similarity", tuple(tasks))
        chosen_by = {task: int((target == t).sum()) for t, task in enumerate(tasks)}
        return Choice(taken, reason, scores, ranking, chosen_by, {"scored": int(scored.sum())})

    def _targets(self, dataset: "Dataset") -> tuple[list[str], list[np.ndarray]]:
        """Names and similarities (n,) of the targets; a row that one target cannot rank is NaN for all."""
        cure = "Add it first: dataset.map(RDSPlus(model).fit(queries), batched=True), or hf-select score --scorer rds."
        first = self.similarities[0]
        if self._per_query(dataset):
            matrix = columns.list_column(dataset, first, cure)
            matrix[~np.isfinite(matrix).all(axis=1)] = np.nan
            return [f"query {i}" for i in range(matrix.shape[1])], list(np.ascontiguousarray(matrix.T))
        values = [columns.score_values(dataset, name, cure) for name in self.similarities]
        unranked = ~np.isfinite(values).all(axis=0)
        names = [columns.target_of(name) for name in self.similarities]
        return names, [np.where(unranked, np.nan, value) for value in values]

    def _per_query(self, dataset: "Dataset") -> bool:
        """Whether the targets are the queries of one list column."""
        from datasets import LargeList, List

        kinds = [dataset.features.get(name) for name in self.similarities]
        return len(kinds) == 1 and isinstance(kinds[0], (List, LargeList))

    def _groups(self, dataset: "Dataset") -> np.ndarray:
        if self.max_per not in dataset.column_names:
            raise columns.missing_column(str(self.max_per), dataset.column_names, "Name one of these in max_per.")
        return np.unique([str(value) for value in dataset.with_format(None)[self.max_per]], return_inverse=True)[1]
