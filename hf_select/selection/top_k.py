"""The rows with the best, worst or middle scores."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from hf_select.data import columns
from hf_select.data.bad_rows import BadRow
from hf_select.data.conversation import readable_columns
from hf_select.data.text import characters_of
from hf_select.selection.budget import Budget, ties_at_the_cut
from hf_select.selection.ranking import Ranking, rank
from hf_select.selection.selector import Choice, Selector
from hf_select.selection.without_length import length_residual, length_strata


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class TopK(Selector):
    """Selects by one score column.

    Args:
        column: the score column.
        which: best, worst or middle; see `rank`.
        at_least: rows with a lower score are left out before ranking.
        at_most: rows with a higher score are left out before ranking; IFD's papers leave out rows above 1.
        length: how length may influence the ranking. ignore: rank by the score as it is; residual: by its residual
            after a line over log length; strata: by its rank among rows of similar length (tenths of the pool).
        length_column: lengths for that; by default the characters of the row (`characters_of`).
    Raises: ValueError if the column is missing, or if fewer rows have a score than are requested.
    """

    column: str
    which: Literal["best", "worst", "middle"] = "best"
    at_least: float | None = None
    at_most: float | None = None
    length: Literal["ignore", "residual", "strata"] = "ignore"
    length_column: str | None = None

    def choose(self, dataset: "Dataset", budget: Budget) -> Choice:
        """Rows by their scores."""
        scores = columns.score_values(dataset, self.column)
        by_score = Ranking(
            scores, self.column, (self.column,), self.which == "worst", at_least=self.at_least, at_most=self.at_most
        )
        low, high = by_score.bounds
        finite = np.isfinite(scores)
        within = np.where(finite & (scores >= low) & (scores <= high), scores, np.nan)
        keys, ranking = within, by_score
        if self.length != "ignore":
            debias = length_residual if self.length == "residual" else length_strata
            keys = debias(within, self._lengths(dataset))
            shown = np.where(np.isinf(scores), scores, keys)
            ranking = Ranking(shown, f"{self.column} without its length", (self.column,), self.which == "worst")
        scored, ranked = int((~np.isnan(within)).sum()), int((~np.isnan(keys)).sum())
        bounds = f" within [{low:g}, {high:g}]" if (low, high) != (-np.inf, np.inf) else ""
        why = columns.without_score(dataset, self.column, scores)
        taken = budget.take(rank(keys, self.which), f"can be ranked by {self.column}{bounds}{why}")
        end = {"best": "highest", "worst": "lowest", "middle": "highest below the top third"}[self.which]

        def reason(place: int, row: int) -> str:
            by = {
                "ignore": "",
                "residual": f" ({keys[row]:.4g} without its length)",
                "strata": f" (rank {keys[row]:.4g} among its length)",
            }[self.length]
            return f"{self.column} {scores[row]:.6g}{by}, {end} {place + 1} of {ranked} scored rows"

        counts = {
            "scored": scored,
            "without_length": scored - ranked,
            "out_of_bounds": int(finite.sum()) - scored,
            "infinite": int(np.isinf(scores).sum()),
            "tied_at_the_cut": ties_at_the_cut(keys, taken, ranking.name),
        }
        return Choice(taken, reason, keys, ranking, counts=counts)

    def _lengths(self, dataset: "Dataset") -> np.ndarray:
        if self.length_column is not None:
            lengths = columns.numeric_column(dataset, self.length_column, "Name a column of lengths, or none.")
            if (lengths < 0).any():
                raise ValueError(f'column "{self.length_column}" has negative numbers, which are not lengths.')
            return lengths
        from hf_select.data.rows import conversations_of  # here, so that --help does not load `datasets`

        readable = readable_columns(dataset.column_names)
        if not readable or len(dataset) == 0:
            raise ValueError(
                f"length = {self.length} needs lengths, and the dataset has no text to count; name a length_column."
            )
        characters = (np.nan if isinstance(row, BadRow) else characters_of(row) for row in conversations_of(dataset))
        return np.fromiter(characters, dtype=np.float64, count=len(dataset))
