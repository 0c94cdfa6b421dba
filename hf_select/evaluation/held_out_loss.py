"""The loss of a model on held-out rows, the default measure of a comparison."""

from collections.abc import Mapping
from typing import cast

import numpy as np
from datasets import Dataset

from hf_select.data.bad_rows import BadRow
from hf_select.data.rows import conversations_of, pool_fingerprint, readable
from hf_select.evaluation.measure import Measure
from hf_select.models.causal_lm import CausalLM
from hf_select.models.responses import with_responses


class HeldOutLoss(Measure):
    """Mean NLL of the response tokens of each row, in nats.

    Args:
        rows: conversations or prompts with completions; each needs a response.
        max_length: tokens kept of a row; a longer row is cut on the right.
    Raises: ValueError for an empty dataset and, when measuring, for rows without a response.
    """

    better = "lower"
    unit = "nats"

    def __init__(self, rows: Dataset, max_length: int | None = None):
        if not isinstance(rows, Dataset):
            raise ValueError(f"held-out rows must be a datasets.Dataset, and not a {type(rows).__name__}.")
        if len(rows) == 0:
            raise ValueError("there is nothing to measure on: the held-out set has no rows.")
        self.rows, self.max_length = rows, max_length

    def identity(self) -> dict[str, object]:
        """Return a fingerprint of the rows, and max_length."""
        return {"held-out rows": pool_fingerprint(readable(self.rows)), "max_length": self.max_length}

    def rows_in_pool(self) -> Dataset:
        """Return the held-out rows."""
        return self.rows

    def __call__(self, lm: CausalLM) -> list[float]:
        rows = with_responses(lm, list(conversations_of(self.rows)), "chat", self.max_length)
        encoded = [row[0] for row in rows if not isinstance(row, BadRow)]
        nll = iter(lm.response_nll([e.input_ids for e in encoded], [e.responses for e in encoded]))
        values = [row if isinstance(row, BadRow) else next(nll) for row in rows]
        bad = [(index, str(row)) for index, row in enumerate(values) if not isinstance(row, np.ndarray)]
        if bad:
            index, reason = bad[0]
            raise ValueError(
                f"{len(bad)} of {len(values)} rows cannot be measured (the first is row {index}: {reason}). Take them "
                "out."
            )
        return [float(np.mean(cast(np.ndarray, row))) for row in values]


def as_measures(measures: Mapping[str, Dataset | Measure], max_length: int) -> dict[str, Measure]:
    """Return measures by name; a dataset stands for the loss on its rows.

    Raises: ValueError if there is none.
    """
    if not measures:
        raise ValueError("there is nothing to measure on: give held-out rows or tasks, at least one.")
    return {
        name: value if isinstance(value, Measure) else HeldOutLoss(value, max_length)
        for name, value in measures.items()
    }
