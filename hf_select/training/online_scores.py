"""Scores of rows under the model as it is now, from the batches that training itself would see.

Any function (model, batch) -> (B,) is such a score; `batch` is what the trainer's collator makes of B rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


# B rows, T tokens, V vocabulary


def loss(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean negative log-likelihood in nats of each row's labels, (B,) fp32; NaN for a row without a label."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs).logits  # (B, T, V)
    found = []
    for row, labels in zip(logits, batch["labels"], strict=True):  # fp32 logits of one row at a time
        target = labels[1:]
        nll = F.cross_entropy(row[:-1].float(), target, ignore_index=-100, reduction="sum")
        found.append(nll / (target != -100).sum())
    return torch.stack(found)


def perplexity(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """exp of `loss`, (B,)."""
    return loss(model, batch).exp()


@dataclass
class LossChange:
    """Learnability: how far a row's loss has fallen since it was last measured, in nats.

    score_t(row) = loss_s(row) - loss_t(row), s the round before t. The first round measures only, so give the callback
    warmup of at least 1; every candidate is measured in every round.
    """

    last: dict[int, float] = field(default_factory=dict)  # row -> its loss when it was last measured

    def __call__(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        return loss(model, batch)

    def after(self, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Scores of rows from their losses now; NaN where there is no earlier one."""
        before = np.array([self.last.get(int(row), np.nan) for row in rows])
        self.last.update(zip(rows.tolist(), values.tolist(), strict=True))
        return before - values

    def state(self) -> dict[str, Any]:
        return {"rows": list(self.last), "losses": list(self.last.values())}

    def restore(self, state: dict[str, Any]) -> None:
        self.last = dict(zip(state["rows"], state["losses"], strict=True))
