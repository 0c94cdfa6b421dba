"""Weights of mixtures, and the regression of a result on them (Scheffe 1958, polynomials for mixtures).

linear      y(w) = sum_i b_i w_i
quadratic   y(w) = sum_i b_i w_i + sum_(i<j) b_ij w_i w_j
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_select.selection.ranking import rank_correlation


# Concentrations of the Dirichlet draws: from nearly one source alone to nearly the sources' proportions.
_CONCENTRATION = (0.1, 5.0)

# k sources, n runs, p terms of the regression


def draw_weights(proportions: Sequence[float] | np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return (count, k) weights that sum to 1: Dirichlet(c k proportions), each with its own c."""
    scaled = np.asarray(proportions, dtype=np.float64)
    scaled = len(scaled) * scaled / scaled.sum()
    low, high = np.log(_CONCENTRATION)
    return np.stack([rng.dirichlet(np.exp(rng.uniform(low, high)) * scaled + 1e-3) for _ in range(count)])


def grid_weights(sources: int, steps: int) -> np.ndarray:
    """Return all weights in multiples of 1/steps: (C(steps + k - 1, k - 1), k)."""
    bars = itertools.combinations(range(steps + sources - 1), sources - 1)
    counts = [np.diff([-1, *bar, steps + sources - 1]) - 1 for bar in bars]
    return np.array(counts) / steps


def finest_grid(sources: int, runs: int) -> np.ndarray:
    """Return the finest grid with at most `runs` weights, or the coarsest one."""
    steps = 1
    while math.comb(steps + sources, sources - 1) <= runs:
        steps += 1
    return grid_weights(sources, steps)


@dataclass(frozen=True)
class Regression:
    """Scheffe's polynomial of a result in the weights.

    Args:
        coefficients: (p,).
        left_out: (n,) prediction of each run by all others.
        rank_correlation: of these predictions with the results (Spearman); None where all are equal.
        skill: 1 - squared error of the predictions over that of the mean of all other runs; 0 or less is no skill.
    """

    degree: int
    coefficients: np.ndarray
    left_out: np.ndarray
    rank_correlation: float | None
    skill: float

    @classmethod
    def fit(cls, weights: np.ndarray, results: np.ndarray) -> "Regression":
        """Fit weights (n, k) to results (n,); of the two degrees, the one with the better left-out predictions.

        Raises: ValueError unless there are more runs than sources.
        """
        if len(results) <= weights.shape[1]:
            raise ValueError(
                f"{len(results)} runs cannot tell {weights.shape[1]} sources apart; train at least "
                f"{weights.shape[1] + 1}, better five for each source."
            )
        fits = [cls._of_degree(weights, results, degree) for degree in (1, 2)]
        return max((fit for fit in fits if fit is not None), key=lambda fit: fit.skill)

    @classmethod
    def _of_degree(cls, weights: np.ndarray, results: np.ndarray, degree: int) -> "Regression | None":
        terms = _terms(weights, degree)
        if degree > 1 and (len(results) <= terms.shape[1] or np.linalg.matrix_rank(terms) < terms.shape[1]):
            return None
        inverse = np.linalg.pinv(terms)
        coefficients = inverse @ results
        leverage = np.einsum("np,pn->n", terms, inverse)
        residuals = results - terms @ coefficients
        # Least squares without run i: its residual is that of all runs over 1 - leverage.
        left_out = results - residuals / np.maximum(1 - leverage, 1e-12)
        n = len(results)
        of_mean = (results - results.mean()) * n / (n - 1)
        variance = float((of_mean**2).sum())
        skill = 1 - float(((results - left_out) ** 2).sum()) / variance if variance > 0 else 0.0
        return cls(degree, coefficients, left_out, rank_correlation(left_out, results), skill)

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """Predict the results (n,) of weights (n, k)."""
        return _terms(weights, self.degree) @ self.coefficients


def _terms(weights: np.ndarray, degree: int) -> np.ndarray:
    pairs = itertools.combinations(range(weights.shape[1]), 2) if degree == 2 else []
    return np.column_stack([weights, *(weights[:, i] * weights[:, j] for i, j in pairs)])
