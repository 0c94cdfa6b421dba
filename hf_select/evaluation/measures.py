"""What a trained model is measured by: held-out losses here, answers that can be checked (answers.py), tasks of
lm-evaluation-harness (harness.py).

A measure gives one number an item, the same items in the same order for every model: differences between models are
taken item by item (statistics.py).
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol, cast

import numpy as np

from hf_select.data.bad_rows import BadRow
from hf_select.data.conversation import conversations
from hf_select.data.rows import pool_fingerprint, readable
from hf_select.models.causal_lm import CausalLM
from hf_select.models.responses import with_responses


class Measure(Protocol):
    """One number an item of a model.

    better: which way is good; unit: of the numbers, in words; rows: the items as rows that a pool may hold too, or
    None.
    """

    better: Literal["lower", "higher"]
    unit: str
    rows: Any

    def identity(self) -> dict[str, Any]:
        """What the numbers depend on besides the model."""
        ...

    def __call__(self, lm: CausalLM) -> list[float]: ...


class HeldOutLoss:
    """Mean NLL of the response tokens of each row, in nats.

    Args:
        rows: conversations or prompts with completions; every one needs a response.
        max_length: tokens kept of a row; a longer one is cut on the right.
    Raises: ValueError for no rows, and when measuring for rows without a response.
    """

    better: ClassVar[Literal["lower", "higher"]] = "lower"
    unit: ClassVar[str] = "nats"

    def __init__(self, rows: Any, max_length: int | None = None):
        if not hasattr(rows, "column_names") or not hasattr(rows, "__len__"):
            raise ValueError(f"held-out rows must be a datasets.Dataset, and not a {type(rows).__name__}.")
        if len(rows) == 0:
            raise ValueError("there is nothing to measure on: the held-out set has no rows.")
        self.rows, self.max_length = rows, max_length

    def identity(self) -> dict[str, Any]:
        return {"held-out rows": pool_fingerprint(readable(self.rows)), "max_length": self.max_length}

    def __call__(self, lm: CausalLM) -> list[float]:
        found = with_responses(lm, conversations(self.rows[:]), "chat", self.max_length)
        encoded = [row[0] for row in found if not isinstance(row, BadRow)]
        nll = iter(lm.response_nll([e.input_ids for e in encoded], [e.responses for e in encoded]))
        values = [row if isinstance(row, BadRow) else next(nll) for row in found]
        bad = [(place, str(row)) for place, row in enumerate(values) if not isinstance(row, np.ndarray)]
        if bad:
            place, reason = bad[0]
            raise ValueError(
                f"{len(bad)} of {len(values)} rows cannot be measured (the first is row {place}: {reason}). Take them "
                "out."
            )
        return [float(np.mean(cast(np.ndarray, row))) for row in values]


def as_measures(given: Mapping[str, Any], max_length: int) -> dict[str, Measure]:
    """Measures by name; a dataset stands for the loss on its rows.

    Raises: ValueError if there is none.
    """
    if not given:
        raise ValueError("there is nothing to measure on: give held-out rows or tasks, at least one.")
    found: dict[str, Any] = {
        name: what if hasattr(what, "better") else HeldOutLoss(what, max_length) for name, what in given.items()
    }
    return found
