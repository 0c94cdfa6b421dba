"""How many rows: a number of rows, a fraction of the dataset, or a number of tokens. Exactly one of them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_select import columns


@dataclass(frozen=True)
class Budget:
    """What may be taken. `take(order)` cuts a ranking to it."""

    rows: int | None = None
    tokens: int | None = None
    num_tokens: np.ndarray | None = None  # (n,), of every row of the dataset

    @classmethod
    def of(
        cls,
        dataset: Any,
        k: int | None = None,
        fraction: float | None = None,
        tokens: int | None = None,
        tokens_column: str = columns.NUM_TOKENS,
    ) -> "Budget":
        """The budget that a call asked for; a fraction is floored, as int(n * fraction) in the reference codes."""
        given = {"k": k, "fraction": fraction, "tokens": tokens}
        named = [name for name, value in given.items() if value is not None]
        if len(named) != 1:
            raise ValueError(f"give exactly one of k, fraction and tokens; given: {', '.join(named) or 'none'}.")
        if len(dataset) == 0:
            raise ValueError("the dataset is empty; there is nothing to select from.")
        if fraction is not None:
            if not 0 < fraction <= 1:
                raise ValueError(f"fraction is {fraction}; it must lie in (0, 1].")
            k = int(len(dataset) * fraction + 1e-9)  # 0.29 * 100 is 28.999999999999996
            if k == 0:
                raise ValueError(f"fraction {fraction} of {len(dataset)} rows is less than one row.")
        if k is not None:
            if k < 1:
                raise ValueError(f"k is {k}; at least one row must be asked for.")
            return cls(rows=k)
        if tokens is not None and tokens < 1:
            raise ValueError(f"tokens is {tokens}; at least one token must be asked for.")
        cure = 'Count tokens first: dataset.map(Length("your-model"), batched=True).'
        counts = columns.numeric_column(dataset, tokens_column, cure)
        if np.isnan(counts).any():
            raise ValueError(
                f'{int(np.isnan(counts).sum())} rows have no "{tokens_column}"; drop them or count them. {cure}'
            )
        return cls(tokens=tokens, num_tokens=counts)

    def take(self, order: np.ndarray, what: str) -> np.ndarray:
        """The head of a ranking that the budget pays for.

        Rows: exactly that many. Tokens: rows in order while their sum stays within the budget; the first row that does
        not fit ends it, since going on to shorter ones would bias the selection to short rows.
        Raises: ValueError naming both numbers if the ranking has fewer rows than asked for.
        """
        if self.rows is not None:
            if self.rows > len(order):
                raise ValueError(f"{self.rows} rows were asked for, but only {len(order)} {what}. Lower the budget.")
            return order[: self.rows]
        assert self.num_tokens is not None and self.tokens is not None
        spent = np.cumsum(self.num_tokens[order])
        taken = order[: int(np.searchsorted(spent, self.tokens, side="right"))]
        if len(taken) == 0:
            raise ValueError(f"the first row alone has more than {self.tokens} tokens. Raise the budget.")
        if len(taken) == len(order) and len(order) and spent[-1] < self.tokens:
            raise ValueError(
                f"{self.tokens} tokens were asked for, but all rows that {what} hold only {int(spent[-1])}. "
                "Lower the budget."
            )
        return taken
