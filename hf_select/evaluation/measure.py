"""The contract of a measure: what every trained model of a comparison is measured by."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

from datasets import Dataset
from datasets.fingerprint import Hasher

from hf_select.models.causal_lm import CausalLM


class Measure(ABC):
    """One value per item from a model, for the same items in the same order whatever the model.

    A comparison takes differences between models item by item (statistics.py). Subclasses set `better` and implement
    `__call__`; the rest has defaults.

    Attributes:
        better: whether lower or higher values are better.
        unit: unit of the values. Measures in "nats" are also reported together, pooled over their items.
    """

    better: Literal["lower", "higher"]
    unit: str = "score"

    @abstractmethod
    def __call__(self, lm: CausalLM) -> list[float]:
        """Measure a model; every value must be finite."""

    def identity(self) -> Mapping[str, object]:
        """Return what the values depend on besides the model, as JSON; a folder is resumed only with the same.

        The default is the name of the class and a hash of the pickled measure.
        """
        return {"measure": type(self).__qualname__, "hash": Hasher.hash(self)}

    def rows_in_pool(self) -> Dataset | None:
        """Return the items as rows to look for in the pool, or None if they are not known as rows."""
        return None
