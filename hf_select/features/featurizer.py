"""The contract of a featurizer, which encodes rows as vectors, and what it returns."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hf_select.data.bad_rows import BadRow
from hf_select.data.conversation import Conversation


if TYPE_CHECKING:
    from hf_select.models.causal_lm import CausalLM
    from hf_select.models.template_day import DatedTokenizer


@dataclass
class Feature:
    """The vector of a row, (d,) float32, and a note on how the row was changed to get it ("" if it was not)."""

    vector: np.ndarray
    note: str = ""


class Featurizer(ABC):
    """Encodes rows as vectors that a scorer compares and a `PoolIndex` stores.

    A subclass implements the four abstract methods; the others have a default.

    Attributes:
        scoring_version: raised when the vectors of the same settings change.
        parts: equal parts of a vector, such as layers, of which each is compared by a cosine of its own.
    """

    scoring_version: ClassVar[int] = 1
    parts: int = 1

    @abstractmethod
    def __call__(self, rows: list[Conversation], queries: bool = False) -> list[Feature | BadRow]:
        """One Feature per row, or the BadRow with the reason why it has none.

        Args:
            queries: the rows are queries, which some models encode in another way.
        """

    @abstractmethod
    def described(self) -> dict[str, object]:
        """The settings, for people to read."""

    @abstractmethod
    def identity(self) -> dict[str, object]:
        """Everything that the vectors depend on."""

    @abstractmethod
    def details(self) -> dict[str, Any]:
        """What runs, once loaded: at least model, commit, dtype and dimensions."""

    def load(self, rank: int | None = None) -> Any:  # noqa: B027
        """Load the model, once. `rank` is that of a worker process and picks its accelerator."""

    def readers(self) -> "Sequence[CausalLM | DatedTokenizer]":
        """What renders rows with a chat template, which may write the date."""
        return []

    def usage(self) -> dict[str, float]:
        """Tokens, counted FLOPs and seconds so far."""
        return {}


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, float32. A zero vector stays zero, so its similarity to everything is 0."""
    vectors = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norms == 0, 1, norms)
