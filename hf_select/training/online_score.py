"""The contract of a score that is computed with the model in training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar


if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from torch import Tensor, nn


class OnlineScore(ABC):
    """Scores rows with the model in training, from the batches that training would see.

    A subclass implements `__call__`; everything else has a default. `DataSelectionCallback` calls, in each round,
    `begin` once, `__call__` for every batch of candidates, and `after` once.

    Attributes:
        forward_passes: cost of a row in forward passes, for the counted FLOPs.
        whole_model: the score reads layers directly, so each process must hold all parameters (no ZeRO-3, no FSDP).
        needs_queries: the score is constructed with `queries`, rows of the target task that the trainer has prepared
            (`trainer.eval_dataset`), and `begin` gets them in batches.
        compares_rounds: `after` compares a row with an earlier round, so warm-up rounds are scored too and every
            candidate is scored in every round.
    """

    forward_passes: ClassVar[float] = 1.0
    whole_model: ClassVar[bool] = False
    needs_queries: ClassVar[bool] = False
    compares_rounds: ClassVar[bool] = False

    queries: Dataset

    @abstractmethod
    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """One value per row of the batch, (B,); NaN where a row has none. The batch is what the collator makes."""

    def begin(self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> None:  # noqa: B027
        """Prepare for a round. `batches` holds the queries and is empty without `needs_queries`."""

    def after(self, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Scores of the candidates from their values, both (N,); `rows` are their numbers in the dataset."""
        return values

    def state(self) -> dict[str, Any]:
        """What a checkpoint saves of the score: NumPy arrays and JSON values by name."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Load what `state` returned when the checkpoint was written."""


@dataclass
class FunctionScore(OnlineScore):
    """A plain function (model, batch) -> (B,) as an online score."""

    function: Callable[[nn.Module, Mapping[str, Tensor]], Tensor]

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The values of the function, (B,)."""
        return self.function(model, batch)
