"""The contract of a selector: `selector(dataset, k=1000)` returns a `Selection`, the chosen rows with their reasons.

A selector is a dataclass of plain settings, whose Args section describes each: the command line takes its flags and
their help from there. A subclass implements `choose`. `Filter` and `VectorSelector` are the contracts of selectors
that leave rows out and of those that compare vectors.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hf_select.data import columns
from hf_select.paper import Paper
from hf_select.selection.budget import Budget
from hf_select.selection.ranking import Ranking
from hf_select.selection.selection import Selection, identifying_columns, row_hashes
from hf_select.validation import check_choices


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class Choice:
    """What `Selector.choose` returns: rows in rank order, and what is recorded of them.

    Args:
        rows: row numbers, best first, each at most once.
        reason: (place from 0, row number) -> why the row was taken.
        scores: a number for every chosen row, by its row number (n,); None where nothing was ranked.
        ranking: what all rows of the dataset were ranked by, if there is such a number; explanations and reports of
            rows that were not chosen need it.
        chosen_by: number of rows that were chosen for each target, by its score column; reports compare the targets.
        counts: what else to record of this step; "scored" is the number of rows that could be chosen.
    """

    rows: np.ndarray
    reason: Callable[[int, int], str]
    scores: np.ndarray | None = None
    ranking: Ranking | None = None
    chosen_by: Mapping[str, int] = field(default_factory=dict)
    counts: Mapping[str, object] = field(default_factory=dict)


@dataclass
class Selector(ABC):
    """Chooses rows of a dataset under a budget.

    Args:
        tokens_column: column that a budget in tokens is spent in.
    """

    tokens_column: str = field(default=columns.NUM_TOKENS, kw_only=True)

    needs_budget: ClassVar[bool] = True  # False: a call without k, fraction and tokens keeps all rows that are fit
    needs_fit: ClassVar[bool] = False  # True: `fit` must be called with evaluation sets first
    paper: ClassVar[Paper | None] = None  # cited by the dataset cards of its selections

    def __post_init__(self) -> None:
        check_choices(self)

    @abstractmethod
    def choose(self, dataset: "Dataset", budget: Budget) -> Choice:
        """The rows that the budget pays for: rank all rows that can be chosen, then cut by `budget.take`."""

    def fit(self, sets: "Mapping[str, Dataset]") -> "Selector":
        """Learn evaluation sets by name, for a selector with `needs_fit`."""
        raise TypeError(f"{type(self).__name__} compares with no evaluation set; leave out fit.")

    def among(self, rows: np.ndarray, dataset: "Dataset") -> "Selector":
        """This selector for some rows of a dataset, in that order; another one only where a setting belongs to the
        rows of the whole dataset."""
        return self

    def settings(self) -> dict[str, object]:
        """The settings as they are recorded in `Selection.chain`."""
        return asdict(self)

    def __call__(
        self, dataset: "Dataset", k: int | None = None, fraction: float | None = None, tokens: int | None = None
    ) -> Selection:
        """Select k rows, a fraction of the rows, or as many as `tokens` tokens pay for."""
        given = {"k": k, "fraction": fraction, "tokens": tokens}
        if self.needs_budget or any(value is not None for value in given.values()):
            budget = Budget.of(dataset, **given, tokens_column=self.tokens_column)
        else:
            budget = Budget.unlimited(dataset)
        choice = self.choose(dataset, budget)
        step = {"selector": type(self).__name__, **self.settings(), **given, **choice.counts}
        if choice.ranking is not None:
            step["ranked_by"] = choice.ranking.to_dict()
        if choice.chosen_by:
            step["chosen_by"] = dict(choice.chosen_by)
        if self.paper is not None:
            step["paper"] = asdict(self.paper)
        return _selection(dataset, choice, {**step, "num_rows": len(dataset), "selected": len(choice.rows)})


def _selection(dataset: "Dataset", choice: Choice, step: dict[str, object]) -> Selection:
    rows, row_ids = choice.rows, None
    if columns.ROW_ID in dataset.column_names:
        row_ids = dataset.with_format(None).select_columns([columns.ROW_ID]).select(rows)[columns.ROW_ID][:]
    return Selection(
        indices=rows,
        num_rows=len(dataset),
        reasons=[choice.reason(place, int(row)) for place, row in enumerate(rows)],
        scores=None if choice.scores is None else choice.scores[rows],
        row_ids=row_ids,
        hashes=row_hashes(dataset, rows, identifying_columns(dataset.column_names)),
        chain=[step],
        pool_scores=None if choice.ranking is None else choice.ranking.values,
    )
