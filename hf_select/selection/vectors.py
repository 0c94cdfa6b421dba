"""The contract of selectors that compare vectors of the rows; similarity is the cosine.

A row without a vector (null, or a number that is not finite) is never chosen and counts for nothing; a zero vector has
no direction and similarity 0 to all others.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sized
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

import numpy as np

from hf_select.data import columns
from hf_select.selection.budget import Budget
from hf_select.selection.selector import Choice, Selector


if TYPE_CHECKING:
    from datasets import Dataset


# n rows, d dimensions

BLOCK = 256  # rows that are compared with all others in one matrix product

# Similarities are float32, and the last bits of a product depend on the position of a row in its block. What agrees to
# this limit counts as equal, so that ties go to the lower row in any block.
EQUAL_SIMILARITY = 1e-6

_HOW_TO_GIVE_VECTORS = (
    "Vectors are the name of a column of them, in Python also an array or a PoolIndex, on the command line also "
    "--vectors FOLDER, made by hf-select index --scorer rds --model MODEL --dataset DATASET --output-dir FOLDER."
)


@runtime_checkable
class StoredVectors(Protocol):
    """Vectors of all rows of a dataset in a store."""

    def to_numpy(self) -> np.ndarray:
        """All vectors, (n, d)."""
        ...


@runtime_checkable
class CheckedVectors(Protocol):
    """Vectors that know the rows they were made of, such as a PoolIndex."""

    def check(self, dataset: "Dataset") -> None:
        """Raise ValueError if the dataset does not have these rows."""
        ...


@dataclass
class VectorSelector(Selector):
    """Chooses rows by vectors.

    Args:
        vectors: array (n, d), a PoolIndex, or the name of a column of lists.
    """

    vectors: np.ndarray | str | StoredVectors

    @abstractmethod
    def choose_among(self, units: np.ndarray, dataset: "Dataset", budget: Budget) -> Choice:
        """As `choose`, by the unit vectors (n, d) of the rows: NaN throughout where a row cannot be chosen."""

    def choose(self, dataset: "Dataset", budget: Budget) -> Choice:
        """Rows by their vectors."""
        units = self._units(dataset, budget)
        choice = self.choose_among(units, dataset, budget)
        counts = {**choice.counts, "without_vector": len(units) - int(has_vector(units).sum())}
        if not isinstance(self.vectors, str):  # their shape is recorded in place of the numbers
            counts["vectors"] = f"{type(self.vectors).__name__} of shape {units.shape}"
        return replace(choice, counts=counts)

    def settings(self) -> dict[str, object]:
        """The settings, with the kind of the vectors in place of their numbers."""
        kind = self.vectors if isinstance(self.vectors, str) else type(self.vectors).__name__
        return asdict(replace(self, vectors=kind))

    def among(self, rows: np.ndarray, dataset: "Dataset") -> Selector:
        """This selector with the vectors of these rows, if it has those of the whole dataset."""
        if isinstance(self.vectors, str) or len(cast(Sized, self.vectors)) != len(dataset):
            return self
        return replace(self, vectors=_as_array(self.vectors, dataset)[rows])

    def _units(self, dataset: "Dataset", budget: Budget) -> np.ndarray:
        if isinstance(self.vectors, str):
            vectors = columns.list_column(dataset, self.vectors, _HOW_TO_GIVE_VECTORS)
        else:
            vectors = _as_array(self.vectors, dataset)
        if vectors.ndim != 2:
            raise ValueError(f"vectors have shape {vectors.shape}; one vector a row is needed, (n, d).")
        if len(vectors) != len(dataset):
            raise ValueError(
                f"{len(vectors)} vectors for {len(dataset)} rows; give the vectors of this dataset, in its order."
            )
        units = unit_vectors(vectors)
        units[budget.uncounted] = np.nan
        return units


def _as_array(vectors: np.ndarray | StoredVectors, dataset: "Dataset") -> np.ndarray:
    if isinstance(vectors, CheckedVectors):
        vectors.check(dataset)
    return np.asarray(vectors.to_numpy() if isinstance(vectors, StoredVectors) else vectors)


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1 as float32, NaN throughout where one is not finite; a zero vector stays zero."""
    units = np.array(vectors, dtype=np.float32)  # a copy: the caller's vectors stay as they are
    units[~np.isfinite(units).all(axis=1)] = np.nan
    norms = np.linalg.norm(units, axis=1, keepdims=True)
    units /= np.where(norms == 0, 1, norms)
    return units


def has_vector(units: np.ndarray) -> np.ndarray:
    """Which rows can be chosen, bool (n,)."""
    return np.asarray(np.isfinite(units).all(axis=1))


def with_vectors(units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the rows that have a vector, and their vectors: not a copy if all have one.

    Raises: ValueError if no row has one.
    """
    rows = np.flatnonzero(has_vector(units))
    if len(rows) == 0:
        raise ValueError(f"none of {len(units)} rows has a vector; there is nothing to choose from.")
    return rows, units if len(rows) == len(units) else units[rows]


def within_budget(budget: Budget, picks: Iterator[tuple]) -> Iterator[tuple]:
    """Picks, whose first part is the row, up to the first one that the budget does not pay for."""
    if budget.tokens is None or budget.num_tokens is None:
        yield from islice(picks, budget.rows)
        return
    spent = 0.0
    for pick in picks:
        yield pick
        spent += budget.num_tokens[pick[0]]
        if spent > budget.tokens:
            return
