"""Selectors that leave rows out and keep all others: they need no budget."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hf_select.data import columns
from hf_select.data.bad_rows import BadRow, map_rows
from hf_select.data.conversation import Conversation, layout
from hf_select.data.text import Part, text_of
from hf_select.selection.budget import Budget
from hf_select.selection.selector import Choice, Selector


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class Removal:
    """What `Filter.remove` returns.

    Args:
        reasons: row number -> why it is left out.
        reason_kept: row number -> why it is kept.
        counts: what to record of this step.
    """

    reasons: dict[int, str]
    reason_kept: Callable[[int], str]
    counts: Mapping[str, object] = field(default_factory=dict)


@dataclass
class Filter(Selector):
    """Keeps the rows that it does not remove, in file order; a budget, if there is one, takes the first of them.

    `removed_` has the reason of each row that the last call left out, by row number.
    """

    needs_budget: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.removed_: dict[int, str] = {}

    @abstractmethod
    def remove(self, dataset: "Dataset") -> Removal:
        """The rows to leave out."""

    def choose(self, dataset: "Dataset", budget: Budget) -> Choice:
        """The rows that are kept."""
        removal = self.remove(dataset)
        self.removed_ = dict(sorted(removal.reasons.items()))
        kept = np.array([row for row in range(len(dataset)) if row not in self.removed_], dtype=np.int64)
        taken = budget.take(kept, f"are kept by {type(self).__name__}")
        return Choice(taken, lambda place, row: removal.reason_kept(row), counts=removal.counts)


def require_texts(dataset: "Dataset", of: Part) -> tuple[list[str], dict[int, str]]:
    """As `compared_texts`. Raises: ValueError if there is no row, or none that can be read."""
    columns.check_rows(dataset)
    if len(dataset) == 0:
        raise ValueError("the dataset is empty; there is nothing to select from.")
    texts, unreadable = compared_texts(dataset, of)
    if len(unreadable) == len(dataset):
        raise ValueError(f'no row can be read; row 0: "{unreadable[0]}". Fix the rows, or choose another part in of.')
    return texts, unreadable


def compared_texts(dataset: "Dataset", of: Part) -> tuple[list[str], dict[int, str]]:
    """The compared part of each row, and for each row that has none the reason (its text is then empty)."""
    from hf_select.data.rows import conversations_of  # here, so that --help does not load `datasets`

    layout(dataset.column_names)  # its error names all columns
    texts = map_rows(partial(_compared_text, of=of), conversations_of(dataset))
    unreadable = {row: str(text) for row, text in enumerate(texts) if isinstance(text, BadRow)}
    return ["" if isinstance(text, BadRow) else text for text in texts], unreadable


def _compared_text(row: Conversation, of: Part) -> str:
    if of != "all" and not any((message["role"] == "assistant") == (of == "response") for message in row.messages):
        raise BadRow(f"the row has no {of}")
    return text_of(row, of)
