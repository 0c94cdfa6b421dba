"""How many rows may be selected: a number of rows, a fraction of the dataset, or a number of tokens."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_select.data import columns


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """Number of rows or of tokens that may be selected, or neither for no limit; `take` cuts a ranking to it."""

    rows: int | None = None
    tokens: int | None = None
    num_tokens: np.ndarray | None = None  # (n,) of every row of the dataset; NaN where it is not known

    @property
    def uncounted(self) -> np.ndarray:
        """Row numbers that a budget in tokens cannot take, since their tokens are not known."""
        return np.flatnonzero(np.isnan(self.num_tokens)) if self.num_tokens is not None else np.empty(0, np.int64)

    @classmethod
    def of(
        cls,
        dataset: "Dataset",
        k: int | None = None,
        fraction: float | None = None,
        tokens: int | None = None,
        tokens_column: str = columns.NUM_TOKENS,
    ) -> "Budget":
        """The budget of a call, which gives exactly one of k, fraction and tokens; a fraction is floored, as
        int(n * fraction) in the authors' codes."""
        given = {"k": k, "fraction": fraction, "tokens": tokens}
        named = [name for name, value in given.items() if value is not None]
        if len(named) != 1:
            raise ValueError(f"give exactly one of k, fraction and tokens; given: {', '.join(named) or 'none'}.")
        cls.unlimited(dataset)
        if fraction is not None:
            if not 0 < fraction <= 1:
                raise ValueError(f"fraction is {fraction}; it must lie in (0, 1].")
            k = int(len(dataset) * fraction + 1e-9)  # 0.29 * 100 is 28.999999999999996
            if k == 0:
                raise ValueError(f"fraction {fraction} of {len(dataset)} rows is less than one row.")
        if k is not None:
            if k < 1:
                raise ValueError(f"k is {k}; at least one row must be requested.")
            return cls(rows=k)
        if tokens is not None and tokens < 1:
            raise ValueError(f"tokens is {tokens}; at least one token must be requested.")
        cure = 'Count tokens first: dataset.map(Length("your-model"), batched=True).'
        counts = columns.numeric_column(dataset, tokens_column, cure)
        counts = np.where(np.isfinite(counts), counts, np.nan)
        if (counts < 0).any():
            row = int(np.argmax(counts < 0))
            raise ValueError(f'row {row} has {counts[row]:g} "{tokens_column}", and a count is not negative. {cure}')
        budget = cls(tokens=tokens, num_tokens=counts)
        if len(budget.uncounted) == len(counts):
            raise ValueError(f'no row has a number in "{tokens_column}". {cure}')
        if len(budget.uncounted):
            logger.warning(
                'a budget in tokens cannot take %d of %d rows, which have no "%s" (first: row %d).',
                *(len(budget.uncounted), len(counts), tokens_column, budget.uncounted[0]),
            )
        return budget

    @classmethod
    def unlimited(cls, dataset: "Dataset") -> "Budget":
        """No limit.

        Raises: ValueError if the dataset cannot be selected from: it is a stream, or empty.
        """
        columns.check_rows(dataset)
        if len(dataset) == 0:
            raise ValueError("the dataset is empty; there is nothing to select from.")
        return cls()

    def take(self, order: np.ndarray, what: str) -> np.ndarray:
        """The head of a ranking that the budget pays for.

        Rows: exactly that many. Tokens: rows in order while their sum stays within the budget; the first row that does
        not fit is the end, since taking shorter ones instead would bias the selection to short rows. Rows without a
        number of tokens are passed over.

        Args:
            what: what the rows of `order` have in common, for the errors: "can be ranked by score_x".
        Raises: ValueError naming both numbers if the ranking has fewer rows than requested.
        """
        if self.rows is None and self.tokens is None:
            return order
        if len(order) == 0:
            raise ValueError(f"nothing can be selected: no rows {what}.")
        if self.rows is not None:
            if self.rows > len(order):
                raise ValueError(f"{self.rows} rows were requested, but only {len(order)} {what}. Lower the budget.")
            return order[: self.rows]
        assert self.num_tokens is not None and self.tokens is not None
        order = order[np.isfinite(self.num_tokens[order])]
        if len(order) == 0:
            raise ValueError(f"nothing can be selected: of the rows that {what} none has a number of tokens.")
        spent = np.cumsum(self.num_tokens[order])
        taken = order[: int(np.searchsorted(spent, self.tokens, side="right"))]
        if len(taken) == 0:
            raise ValueError(
                f"{self.tokens} tokens were requested, and the first row alone (row {order[0]}) has "
                f"{int(spent[0])}. Raise the budget."
            )
        if len(taken) == len(order) and spent[-1] < self.tokens:
            raise ValueError(
                f"{self.tokens} tokens were requested, but all rows that {what} hold only {int(spent[-1])}. "
                "Lower the budget."
            )
        return taken


def ties_at_the_cut(keys: np.ndarray, taken: np.ndarray, by: str) -> int:
    """Number of rows with the score of the last row taken (or of the first), if some of them were not taken, else 0;
    logs a warning of them.

    Args:
        keys: the number that each row was ranked by (n,).
        taken: the rows that were taken, in rank order.
        by: name of the score, for the warning.
    """
    for cut in (keys[taken[-1]], keys[taken[0]]):
        tied, tied_and_taken = int((keys == cut).sum()), int((keys[taken] == cut).sum())
        if tied > tied_and_taken:
            logger.warning(
                "%d rows tie at the cut (%s %.6g): %d of them %s taken, by their row numbers.",
                *(tied, by, cut, tied_and_taken, "was" if tied_and_taken == 1 else "were"),
            )
            return tied
    return 0
