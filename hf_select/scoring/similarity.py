"""Cosine similarity of rows to queries, once for every featurizer: by task, and by query without keeping n x
queries."""

from dataclasses import dataclass, field

import numpy as np


# n rows, q queries, t tasks, d dimensions


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32. A zero vector has no direction and stays zero: its similarity to everything is 0."""
    vectors = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norms == 0, 1, norms)


def max_by_task(similarities: np.ndarray, task_of_query: np.ndarray, num_tasks: int) -> np.ndarray:
    """S[n, t] = max over the queries v of task t of S[n, v] (arXiv:2503.01807, section 3.1)."""
    out = np.full((len(similarities), num_tasks), -np.inf, dtype=similarities.dtype)
    for task in range(num_tasks):
        out[:, task] = similarities[:, task_of_query == task].max(axis=1)
    return out


@dataclass
class BestRows:
    """The m rows most similar to each query, over a stream of blocks: memory q x m, whatever the number of rows.

    Equal similarities keep the lower row first, as the reference's stable sort does. NaN (no vector) is never taken.
    """

    num_queries: int
    m: int
    rows: np.ndarray = field(init=False)  # (q, m), best first; -1 where fewer rows came
    similarities: np.ndarray = field(init=False)  # (q, m)

    def __post_init__(self) -> None:
        self.rows = np.full((self.num_queries, self.m), -1, dtype=np.int64)
        self.similarities = np.full((self.num_queries, self.m), -np.inf, dtype=np.float32)

    def update(self, block: np.ndarray, first_row: int) -> None:
        """Take in similarities (n, q) of the rows from `first_row` on; blocks come in row order."""
        block = block.T  # (q, n)
        for query in np.flatnonzero((block > self.similarities[:, -1:]).any(axis=1)):
            better = np.flatnonzero(block[query] > self.similarities[query, -1])
            if len(better) > self.m:  # strictly better than the m-th of the block, then its ties in row order
                cut = np.partition(block[query, better], -self.m)[-self.m]
                above = better[block[query, better] > cut]
                ties = better[block[query, better] == cut][: self.m - len(above)]
                better = np.sort(np.concatenate([above, ties]))
            values = np.concatenate([self.similarities[query], block[query, better]])
            rows = np.concatenate([self.rows[query], better + first_row])
            order = np.argsort(-values, kind="stable")[: self.m]  # earlier rows stand first in the concatenation
            self.similarities[query], self.rows[query] = values[order], rows[order]
