"""The rows with the best, worst or middle scores."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from hf_select import columns
from hf_select.choices import check_choices
from hf_select.selection.budget import Budget
from hf_select.selection.selection import Selection, select


def rank(scores: np.ndarray, which: str = "best") -> np.ndarray:
    """Row numbers in the order in which they would be taken; rows without a score (NaN) are left out, ties go to the
    lower row.

    best: highest first. worst: lowest first. middle: highest first from rank int(0.33 * N) on, as the RDS+ study takes
    its "mid" perplexity set (arXiv:2503.01807): just below the top third, not centred on the median.
    """
    scored = np.flatnonzero(~np.isnan(scores))
    keys = scores[scored] if which == "worst" else -scores[scored]
    order = scored[np.argsort(keys, kind="stable")]
    return order[int(0.33 * len(order)) :] if which == "middle" else order


@dataclass
class TopK:
    """Selects by one score column.

    Args:
        column: the score column.
        which: best, worst or middle; see `rank`.
        tokens_column: column that a budget in tokens is spent in.
    Raises: ValueError if the column is missing, or if fewer rows have a score than are asked for.
    """

    column: str
    which: Literal["best", "worst", "middle"] = "best"
    tokens_column: str = columns.NUM_TOKENS

    def __post_init__(self) -> None:
        check_choices(self)

    def __call__(
        self, dataset: Any, k: int | None = None, fraction: float | None = None, tokens: int | None = None
    ) -> Selection:
        """Select k rows, a fraction of the rows, or as many as `tokens` pay for."""
        cure = "Add it first: dataset.map(scorer, batched=True), or hf-select score."
        scores = columns.numeric_column(dataset, self.column, cure)
        budget = Budget.of(dataset, k, fraction, tokens, self.tokens_column)
        order = rank(scores, self.which)
        taken = budget.take(order, f"can be ranked by {self.column}")
        scored = int((~np.isnan(scores)).sum())
        place = {"best": "highest", "worst": "lowest", "middle": "highest below the top third"}[self.which]
        return select(
            dataset,
            taken,
            lambda rank, row: f"{self.column} {scores[row]:.6g}, {place} {rank + 1} of {scored} scored rows",
            scores,
            {
                "selector": type(self).__name__,
                **asdict(self),
                "k": k,
                "fraction": fraction,
                "tokens": tokens,
                "scored": scored,
            },
        )
