"""Cosine similarity of dense vectors, centred and whitened on request: the base of RDSPlus and Embedding."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset

from hf_select.data.conversation import conversations
from hf_select.data.rows import pool_fingerprint, readable
from hf_select.features.featurizer import Feature
from hf_select.features.geometry import Geometry, Moments
from hf_select.features.store import PoolIndex
from hf_select.scoring.scorer import Queries, records_fit_cost
from hf_select.scoring.similarity import Similarity


BATCH = 1000  # rows of the pool that are encoded together for their moments


@dataclass
class DenseSimilarity(Similarity):
    """Cosine similarity of a row to its nearest query, see features/geometry.py for centring and whitening.

    Args:
        center: take the mean vector of the pool off rows and queries before the cosine; `fit` then needs the pool. Not
            part of the published method.
        whiten: power of whitening of the centred vectors by covariance^(-whiten / 2): 0 for none, 0.5 for half, 1 for
            equal variance in all directions. Not part of the published method.
    """

    center: bool = field(default=False, kw_only=True)
    whiten: float = field(default=0.0, kw_only=True)

    saved: ClassVar[tuple[str, ...]] = ("_geometry", "_pool_fingerprint", "pool_rows_")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.whiten <= 1:
            raise ValueError(f"whiten is {self.whiten}; give a power from 0 (none) to 1 (full).")
        if self.whiten and not self.center:
            raise ValueError("whiten needs centred vectors; set center=True (--center), too.")
        self._geometry: Geometry | None = None
        self._pool_fingerprint: str | None = None
        self.pool_rows_: int | None = None  # rows that the mean was computed of

    def reads_pool(self) -> bool:
        """Whether `fit` reads the rows that will be scored: to centre by their mean."""
        return self.center

    @records_fit_cost
    def fit(
        self,
        queries: Queries,
        task_column: str | None = None,
        subtask_column: str | None = None,
        pool: Dataset | PoolIndex | None = None,
    ) -> "DenseSimilarity":
        """Encode the queries and, with `center`, learn the mean (and covariance) of the pool's vectors.

        Args:
            pool: the rows that will be scored or a sample of them, which are encoded here; or their PoolIndex, which
                holds their vectors already.
        Raises: ValueError as `Similarity.fit`, and with `center` if there is no pool.
        """
        if self.center:
            if pool is None or len(pool) == 0:
                raise ValueError(
                    f"{type(self).__name__} with center takes the mean of the pool: fit(queries, pool=dataset), or "
                    "pool=index for a PoolIndex of it."
                )
            moments = self._moments(pool)
            self.pool_rows_ = moments.rows
            self._geometry = Geometry.by(moments, self.whiten)
        super().fit(queries, task_column, subtask_column, pool)
        return self

    def identity(self) -> dict[str, object]:
        """Everything that the scores depend on."""
        return {**super().identity(), **({"pool": self._pool_fingerprint} if self.center else {})}

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in self.saved}}

    def _moments(self, pool: Dataset | PoolIndex) -> Moments:
        assert self.featurizer is not None, "set by the subclass"
        if isinstance(pool, PoolIndex):
            pool.check(featurizer=self.featurizer)
            self._pool_fingerprint = pool.manifest["pool"]["fingerprint"]
            return pool.moments(covariance=self.whiten > 0)
        self._pool_fingerprint = pool_fingerprint(readable(pool))
        return Moments.of(self._encoded_pool(pool), self.featurizer.parts, self.whiten > 0)

    def _encoded_pool(self, pool: Dataset) -> Iterator[np.ndarray]:
        for batch in readable(pool).iter(batch_size=BATCH):
            features = self._encoded(conversations(batch))  # pyright: ignore[reportArgumentType]
            vectors = [feature.vector for feature in features if isinstance(feature, Feature)]
            if vectors:
                yield np.stack(vectors)

    def _stacked(self, vectors: list[Any]) -> np.ndarray:
        assert self.featurizer is not None, "set by the subclass"
        geometry = self._geometry or Geometry(self.featurizer.parts)
        return geometry(np.stack(vectors))
