"""Rows -> vectors. A featurizer is a callable: list of conversations -> a Feature each, or the BadRow that says
why."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Feature:
    """A row's float32 vector (d,), and what was done to the row to get it (empty: nothing)."""

    vector: np.ndarray
    note: str = ""
