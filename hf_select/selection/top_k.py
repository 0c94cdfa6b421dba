"""The rows with the best, worst or middle scores."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from hf_select.data import columns
from hf_select.data.bad_rows import BadRow
from hf_select.data.conversation import READ_COLUMNS, conversations
from hf_select.data.text import characters_of
from hf_select.selection.budget import Budget, ties_at_the_cut
from hf_select.selection.combine import length_residual, length_strata
from hf_select.selection.selection import Selection, select
from hf_select.validation import check_choices


def rank(scores: np.ndarray, which: str = "best") -> np.ndarray:
    """Row numbers in the order in which they would be taken; rows without a finite score are left out, ties go to the
    lower row.

    best: highest first. worst: lowest first. middle: highest first from rank int(0.33 * N) on, as the RDS+ study takes
    its "mid" perplexity set (arXiv:2503.01807): just below the top third, not centred on the median.
    """
    scored = np.flatnonzero(np.isfinite(scores))
    keys = scores[scored] if which == "worst" else -scores[scored]
    order = scored[np.argsort(keys, kind="stable")]
    return order[int(0.33 * len(order)) :] if which == "middle" else order


@dataclass
class TopK:
    """Selects by one score column.

    Args:
        column: the score column.
        which: best, worst or middle; see `rank`.
        at_least: rows with a lower score are left out before ranking.
        at_most: rows with a higher score are left out before ranking; IFD's papers leave out rows above 1.
        length: what length may do. ignore: rank by the score as it is; residual: by what is left of it when its line
            over log length is taken away; strata: by its rank among rows of about its length (tenths of the pool).
        length_column: lengths for that; by default the characters of the row.
        tokens_column: column that a budget in tokens is spent in.
    Raises: ValueError if the column is missing, or if fewer rows have a score than are asked for.
    """

    column: str
    which: Literal["best", "worst", "middle"] = "best"
    at_least: float | None = None
    at_most: float | None = None
    length: Literal["ignore", "residual", "strata"] = "ignore"
    length_column: str | None = None
    tokens_column: str = columns.NUM_TOKENS

    def __post_init__(self) -> None:
        check_choices(self)

    def __call__(
        self, dataset: Any, k: int | None = None, fraction: float | None = None, tokens: int | None = None
    ) -> Selection:
        """Select k rows, a fraction of the rows, or as many as `tokens` pay for."""
        scores = columns.score_values(dataset, self.column)
        budget = Budget.of(dataset, k, fraction, tokens, self.tokens_column)
        low, high = (
            -np.inf if self.at_least is None else self.at_least,
            np.inf if self.at_most is None else self.at_most,
        )
        finite = np.isfinite(scores)
        kept = np.where(finite & (scores >= low) & (scores <= high), scores, np.nan)
        scored = int((~np.isnan(kept)).sum())
        keys = kept
        if self.length != "ignore":
            debias = length_residual if self.length == "residual" else length_strata
            keys = debias(kept, self._lengths(dataset))
        ranked = int((~np.isnan(keys)).sum())
        order = rank(keys, self.which)
        within = f" within [{low:g}, {high:g}]" if (low, high) != (-np.inf, np.inf) else ""
        why = columns.without_score(dataset, self.column, scores)
        taken = budget.take(order, f"can be ranked by {self.column}{within}{why}")
        by = self.column + ("" if self.length == "ignore" else " without its length")
        tied = ties_at_the_cut(keys, taken, by)
        place = {"best": "highest", "worst": "lowest", "middle": "highest below the top third"}[self.which]

        def reason(rank: int, row: int) -> str:
            by = {
                "ignore": "",
                "residual": f" ({keys[row]:.4g} without its length)",
                "strata": f" (rank {keys[row]:.4g} among its length)",
            }[self.length]
            return f"{self.column} {scores[row]:.6g}{by}, {place} {rank + 1} of {ranked} scored rows"

        return select(
            dataset,
            taken,
            reason,
            keys,
            {
                "selector": type(self).__name__,
                **asdict(self),
                "k": k,
                "fraction": fraction,
                "tokens": tokens,
                "scored": scored,
                "without_length": scored - ranked,
                "out_of_bounds": int(finite.sum()) - scored,
                "infinite": int(np.isinf(scores).sum()),
                "tied_at_the_cut": tied,
            },
            pool_scores=scores if self.length == "ignore" else np.where(np.isinf(scores), scores, keys),
        )

    def _lengths(self, dataset: Any) -> np.ndarray:
        if self.length_column is not None:
            named = columns.numeric_column(dataset, self.length_column, "Name a column of lengths, or none.")
            if (named < 0).any():
                raise ValueError(f'column "{self.length_column}" holds negative numbers, which are no lengths.')
            return named
        lengths = []
        readable = [name for name in dataset.column_names if name in READ_COLUMNS]
        for batch in dataset.select_columns(readable).iter(batch_size=1000) if readable else []:
            lengths += [np.nan if isinstance(row, BadRow) else characters_of(row) for row in conversations(batch)]
        if not lengths:
            raise ValueError(
                f"length = {self.length} needs lengths, and the dataset has no text to count; name a length_column."
            )
        return np.array(lengths, dtype=np.float64)
