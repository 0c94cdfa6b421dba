"""Clusters of the vectors take turns."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_select.data import columns
from hf_select.extras import require
from hf_select.selection.budget import Budget
from hf_select.selection.ranking import Ranking, in_turn, rank
from hf_select.selection.selector import Choice
from hf_select.selection.vectors import VectorSelector, has_vector, unit_vectors


if TYPE_CHECKING:
    from datasets import Dataset


# n rows, m rows with a vector, d dimensions


@dataclass
class KMeansBuckets(VectorSelector):
    """Selects from the clusters of the vectors in turn, so that no theme of many rows dominates.

    Args:
        num_clusters: clusters that k-means makes.
        column: score column by which a cluster gives its best row first; without one, the row nearest to its centre.
        seed: of k-means.
    Raises: ValueError if vectors and rows differ in number, or fewer rows can be chosen than are requested;
        ImportError without scikit-learn.
    """

    num_clusters: int
    column: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_clusters < 1:
            raise ValueError(f"num_clusters is {self.num_clusters}; at least 1 is needed.")

    def choose_among(self, units: np.ndarray, dataset: "Dataset", budget: Budget) -> Choice:
        """Rows in the order of `take_turns`."""
        present = np.flatnonzero(has_vector(units))
        if self.num_clusters > len(present):
            raise ValueError(f"{self.num_clusters} clusters of {len(present)} vectors; lower num_clusters.")
        labels, centres = _clusters(units[present], self.num_clusters, self.seed)
        clusters = np.zeros(len(dataset), dtype=np.int64)
        clusters[present] = labels
        if self.column is not None:
            scores = np.where(has_vector(units), columns.score_values(dataset, self.column), np.nan)
            ranking = Ranking(scores, self.column, (self.column,))
        else:
            scores = np.full(len(dataset), np.nan)
            scores[present] = np.einsum("nd,nd->n", units[present], centres[labels])
            ranking = Ranking(scores, "similarity to its centre")
        also = f" and {self.column}" if self.column is not None else ""
        taken = budget.take(take_turns(rank(scores), clusters), f"have a vector{also}")

        def reason(place: int, row: int) -> str:
            return f"in turn for cluster {clusters[row]}, {ranking.name} {scores[row]:.6g}"

        return Choice(taken, reason, scores, ranking)


def take_turns(order: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """`order` rearranged so that clusters take turns, the largest first and of equal ones the lower label; within a
    cluster the order stays, and an exhausted cluster is passed over.

    Args:
        order: row numbers (m,).
        clusters: label of each row of the dataset, int (n,).
    """
    labels = clusters[order]
    turns = np.argsort(np.argsort(-np.bincount(labels), kind="stable"))
    return order[in_turn(labels, turns)]


def _clusters(units: np.ndarray, num_clusters: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Label of each row (m,) and unit centres (num_clusters, d)."""
    require("k-means", "sklearn")
    from sklearn.cluster import MiniBatchKMeans

    k_means = MiniBatchKMeans(num_clusters, random_state=seed, n_init=3).fit(units)  # type: ignore[arg-type]
    return np.asarray(k_means.labels_, dtype=np.int64), unit_vectors(np.asarray(k_means.cluster_centers_))
