"""Centring and whitening of vectors by the mean and covariance of a pool.

Hidden states of causal LMs share large directions, whatever the text says, and a cosine sees little else (Ethayarajh
2019, arXiv:1909.00512). Taking the mean off, and shrinking the directions in which all texts differ, makes cosines
follow the content (Mu and Viswanath 2018, arXiv:1702.01417; Su et al. 2021, arXiv:2103.15316). Neither is part of RDS+
as published.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_select.atomic import atomic_path
from hf_select.features.featurizer import unit


# n rows, p parts of a vector, d dimensions of a part

# Eigenvalues of the covariance below this share of the largest are raised to it. With fewer rows than dimensions many
# are zero, and full whitening would divide by them.
SMALLEST_EIGENVALUE = 1e-3

# A centred vector that is shorter than this share of the vector is rounding, not a direction.
_SHORTEST = 1e-6


@dataclass
class Moments:
    """Number, mean and covariance of the vectors of a pool, part by part, float64.

    Blocks of rows are merged as they come (Chan, Golub and LeVeque 1983), so one pass over any number of rows holds
    one block and p x d x d numbers.
    """

    rows: int
    mean: np.ndarray  # (p, d)
    covariance: np.ndarray | None = None  # (p, d, d)

    @classmethod
    def of(cls, blocks: Iterable[np.ndarray], parts: int, covariance: bool) -> "Moments":
        """Moments of blocks of vectors (n, p * d).

        Args:
            parts: equal parts of a vector, each with moments of its own.
            covariance: whether to compute it.
        Raises: ValueError if there are fewer than two vectors.
        """
        rows, mean, scatter = 0, np.zeros(()), np.zeros(())
        for block in blocks:
            if len(block) == 0:
                continue
            values = np.asarray(block, dtype=np.float64).reshape(len(block), parts, -1).transpose(1, 0, 2)  # (p, n, d)
            if rows == 0:
                mean = np.zeros((parts, values.shape[2]))
                scatter = np.zeros((parts, values.shape[2], values.shape[2])) if covariance else scatter
            of_block = values.mean(axis=1)
            difference, total = of_block - mean, rows + len(block)
            if covariance:
                values = values - of_block[:, None]
                scatter += values.transpose(0, 2, 1) @ values
                scatter += difference[:, :, None] * difference[:, None] * (rows * len(block) / total)
            mean = mean + difference * (len(block) / total)
            rows = total
        if rows < 2:
            raise ValueError(
                f"{rows} row{'s of the pool have' if rows != 1 else ' of the pool has'} a vector; a mean to centre by "
                "needs at least 2. Give the rows that will be scored as the pool."
            )
        return cls(rows, mean, scatter / rows if covariance else None)

    def save(self, path: Path) -> None:
        """Write a .npz file, atomically."""
        arrays: dict[str, Any] = {"rows": np.int64(self.rows), "mean": self.mean}
        if self.covariance is not None:
            arrays["covariance"] = self.covariance
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Moments":
        """The moments in a file that `save` wrote."""
        with np.load(path) as file:
            return cls(int(file["rows"]), file["mean"], file["covariance"] if "covariance" in file else None)


@dataclass
class Geometry:
    """Gives vectors a direction, so that the dot product of two is the similarity of their rows.

    g(x) = concat over parts l of W_l (x_l - m_l) / |W_l (x_l - m_l)| / sqrt(p),  W_l = C_l^(-whiten / 2)

    Hence g(x) . g(y) is the mean over parts of their cosines. m and C are the mean and covariance of the pool, the
    eigenvalues of C not below 1e-3 of the largest. Without centring m is 0, without whitening W is the identity.

    Args:
        parts: equal parts of a vector, such as the layers it was read from.
        mean: m, (p, d); None does not centre.
        whitening: W, (p, d, d); None does not whiten.
    """

    parts: int = 1
    mean: np.ndarray | None = None
    whitening: np.ndarray | None = None

    @classmethod
    def by(cls, moments: Moments, whiten: float) -> "Geometry":
        """Centre by the mean and, if `whiten` is above 0, whiten by the covariance."""
        if not whiten:
            return cls(len(moments.mean), moments.mean)
        if moments.covariance is None:
            raise ValueError("these moments have no covariance; compute them with covariance=True.")
        whitening = np.stack([_power(matrix, -whiten / 2) for matrix in moments.covariance])
        return cls(len(moments.mean), moments.mean, whitening)

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """(n, p * d) float32 of vectors (n, p * d). A part without a direction is zero and has similarity 0 to all."""
        split = np.asarray(vectors, dtype=np.float32).reshape(len(vectors), self.parts, -1)  # (n, p, d)
        if self.mean is not None:
            centred = split - self.mean
            short = np.linalg.norm(centred, axis=2) <= _SHORTEST * np.linalg.norm(split, axis=2)
            centred[short] = 0
            if self.whitening is not None:
                centred = (centred.transpose(1, 0, 2) @ self.whitening).transpose(1, 0, 2)
            split = centred
        directions = unit(split).reshape(len(vectors), -1)
        return directions if self.parts == 1 else directions / np.float32(np.sqrt(self.parts))


def _power(covariance: np.ndarray, exponent: float) -> np.ndarray:
    """A symmetric matrix (d, d) to a power, its eigenvalues not below a share of the largest."""
    values, vectors = np.linalg.eigh(covariance)
    if values[-1] <= 0:  # all rows of the pool are equal
        return np.eye(len(values))
    values = np.maximum(values, SMALLEST_EIGENVALUE * values[-1])
    # Only directions count, so the largest may be 1: no number overflows, whatever the scale of the vectors.
    return (vectors * (values / values[-1]) ** exponent) @ vectors.T
