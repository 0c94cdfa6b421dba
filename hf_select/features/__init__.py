"""Rows -> vectors. A featurizer is a callable: (conversations, queries=False) -> a Feature each, or the BadRow that
says why; `queries` tells the two sides apart for models that do. It can say its settings (`described`), what its
vectors depend on (`identity`) and, once loaded, what exactly it runs (`details`)."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Feature:
    """A row's float32 vector (d,), and what was done to the row to get it (empty: nothing)."""

    vector: np.ndarray
    note: str = ""


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32. A zero vector has no direction and stays zero: its similarity to everything is 0."""
    vectors = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norms == 0, 1, norms)
