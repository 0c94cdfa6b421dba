"""The representations of a scorer with targets: the similarities of rows and queries under each of its settings.

Of a scorer that compares dense vectors all layers are encoded in one pass over the rows and kept in a `PoolIndex`;
centring, whitening and means over layers are then computed from the stored vectors. Other scorers run once, as in
`score`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from hf_select.data import columns
from hf_select.data.bad_rows import BadRow
from hf_select.data.rows import conversations_of
from hf_select.features.featurizer import Feature, Featurizer
from hf_select.features.geometry import Geometry, Moments
from hf_select.features.hidden_states import HiddenStates
from hf_select.features.store import PoolIndex
from hf_select.models.causal_lm import FINAL_NORM
from hf_select.scoring.dense import DenseSimilarity
from hf_select.scoring.embedding import Embedding
from hf_select.scoring.less import LESS
from hf_select.scoring.rds import RDSPlus
from hf_select.scoring.score import score, whole_cost
from hf_select.scoring.similarity import Similarity


# n rows, q queries of a task, p parts of a vector (layers), d dimensions of a part

_POOLING = ("pooling", "scope", "text_format", "max_length")  # settings that RDSPlus shares with HiddenStates
GEOMETRIES: tuple[dict[str, Any], ...] = ({}, {"center": True}, {"center": True, "whiten": 0.5})


@dataclass(frozen=True)
class Representation:
    """Similarities under the settings of one scorer.

    Args:
        scorer: its name.
        settings: those that differ from the scorer's own.
        mean: rows are scored by the mean over queries, not by the largest similarity.
        rows: task -> similarities of the rows to its queries (n, q), NaN for a row without a vector.
        queries: task -> similarities of its queries, encoded as rows, to its queries (q, q).
    """

    scorer: str
    settings: dict[str, Any]
    mean: bool
    rows: dict[str, np.ndarray]
    queries: dict[str, np.ndarray]


def representations(
    scorer: Similarity, rows: Dataset, queries: Mapping[str, Dataset], folder: Path, chunk_rows: int
) -> Iterator[Representation]:
    """Every representation of a scorer; its own settings come first.

    Args:
        queries: task -> rows.
        folder: for the vectors or scores, which a second call reads.
    Raises: ValueError for a query that cannot be encoded.
    """
    if isinstance(scorer, DenseSimilarity):
        yield from _dense(scorer, rows, queries, folder, chunk_rows)
    else:
        yield _scored(scorer, rows, queries, folder, chunk_rows)


def encoding_cost(scorer: Similarity, folder: Path) -> dict[str, float]:
    """Seconds and, with a model, FLOPs of `representations` over the rows in this folder."""
    if isinstance(scorer, DenseSimilarity):
        return PoolIndex.open(folder / "rows").summary["cost"]
    return whole_cost(folder / "rows")


def candidate_layers(scorer: RDSPlus) -> list[int]:
    """The layers of the scorer's settings, by default the one at two thirds of the depth; and -1, the final norm.

    A short list: the more representations compete, the more often one wins that finds queries and not the target. With
    six layers alone and beside the final norm, the best of them had an R-precision by label of 0.81 on the pool of
    held_back.py, and the best of this list 0.86.
    """
    if scorer.layers is not None:
        return [*(layer for layer in scorer.layers if layer != FINAL_NORM), FINAL_NORM]
    return [max(1, round(scorer.readers()[0].load().num_layers * 2 / 3)), FINAL_NORM]


# --------------------------------------------------------------------------------------------------------------------


def _dense(
    scorer: DenseSimilarity, rows: Dataset, queries: Mapping[str, Dataset], folder: Path, chunk_rows: int
) -> Iterator[Representation]:
    featurizer, layers = scorer.featurizer, [FINAL_NORM]
    assert featurizer is not None, "set by the subclass"
    if isinstance(scorer, RDSPlus):
        layers = candidate_layers(scorer)
        own = {name: value for name, value in scorer.settings().items() if name in _POOLING}
        featurizer = HiddenStates(scorer.readers()[0], layers=layers, **own)  # type: ignore[arg-type]
    combined = [[FINAL_NORM], *([layer, FINAL_NORM] for layer in layers if layer != FINAL_NORM)]
    places = {layer: place for place, layer in enumerate(layers)}
    of_rows = _vectors(rows, featurizer, folder / "rows", chunk_rows)
    as_rows, as_queries = {}, {}
    for number, (task, of_task) in enumerate(queries.items()):
        as_rows[task] = _vectors(of_task, featurizer, folder / f"queries-{number}", chunk_rows)
        as_queries[task] = as_rows[task]
        if isinstance(scorer, Embedding) and scorer.query_instruction is not None:
            as_queries[task] = _stacked(featurizer(list(conversations_of(of_task)), queries=True))  # type: ignore[arg-type]
        if len(bad := np.flatnonzero(np.isnan(as_rows[task]).any(axis=(1, 2)))):
            raise ValueError(
                f'query {bad[0]} of task "{task}" cannot be encoded by {scorer.name}: '
                f"{PoolIndex.open(folder / f'queries-{number}').read(range(bad[0], bad[0] + 1))[0]}. Fix or remove it."
            )
    whole = np.asarray(np.isfinite(of_rows).all(axis=(1, 2)))
    moments = [Moments.of([of_rows[whole, place]], 1, covariance=True) for place in places.values()]
    for geometry in GEOMETRIES:
        each = [
            _similarities(
                Geometry.by(moments[place], geometry.get("whiten", 0.0)) if geometry else Geometry(),
                *(of_rows[:, place], whole),
                *({task: vectors[:, place] for task, vectors in of.items()} for of in (as_rows, as_queries)),
            )
            for place in places.values()
        ]
        for some in combined:
            chosen = [each[places[layer]] for layer in some]
            settings = {**({} if some == [FINAL_NORM] else {"layers": some}), **geometry}
            # The similarity of several layers is the mean of theirs.
            rows_of, queries_of = (
                {task: np.mean([of[kind][task] for of in chosen], axis=0) for task in queries} for kind in (0, 1)
            )
            yield Representation(scorer.name, settings, False, rows_of, queries_of)


def _similarities(
    geometry: Geometry,
    rows: np.ndarray,
    whole: np.ndarray,
    as_rows: Mapping[str, np.ndarray],
    as_queries: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Similarities of rows (n, q) and of queries (q, q) to the queries of each task, of one part of the vectors."""
    directions = geometry(rows[whole])
    of_rows, of_queries = {}, {}
    for task, vectors in as_queries.items():
        known = geometry(vectors).T
        of_rows[task] = np.full((len(rows), len(vectors)), np.nan, dtype=np.float32)
        of_rows[task][whole] = directions @ known
        of_queries[task] = geometry(as_rows[task]) @ known
    return of_rows, of_queries


def _vectors(rows: Dataset, featurizer: Featurizer, folder: Path, chunk_rows: int) -> np.ndarray:
    """(n, p, d) float32 of their length, encoded once and stored; NaN for a row without a vector."""
    index = PoolIndex.build(rows, featurizer, folder, stored_dtype="float32", chunk_rows=chunk_rows)
    vectors = np.full((len(index), index.dimensions), np.nan, dtype=np.float32)
    for row, feature in enumerate(index.read(range(len(index)))):
        if isinstance(feature, Feature):
            vectors[row] = feature.vector
    return vectors.reshape(len(index), index.parts, -1)


def _stacked(features: list[Feature | BadRow]) -> np.ndarray:
    """(q, 1, d)"""
    return np.stack([feature.vector for feature in features if isinstance(feature, Feature)])[:, None]


def _scored(
    scorer: Similarity, rows: Dataset, queries: Mapping[str, Dataset], folder: Path, chunk_rows: int
) -> Representation:
    settings: dict[str, Any] = {"query_mode": "repo"} if isinstance(scorer, LESS) else {}
    scorer = type(scorer)(**{**scorer.settings(), **settings, "per_query": True, "query_overlap": "report"})  # type: ignore[arg-type]
    scorer.fit(queries, pool=rows if scorer.reads_pool() else None)
    scorer.overlap_ = None  # held-back queries are not to be noted as repeats of themselves

    def similarities(of: Dataset, name: str) -> np.ndarray:
        scored = score(of, scorer, folder / name, chunk_rows=chunk_rows, bad_rows="null")
        return columns.list_column(scored, f"{scorer.name}_similarities", "")

    of_rows = similarities(rows, "rows")
    of_queries = {task: similarities(of, f"queries-{number}") for number, (task, of) in enumerate(queries.items())}
    own = {task: scorer.task_of_query_ == number for number, task in enumerate(queries)}
    return Representation(
        scorer.name,
        settings,
        not scorer.default_subtask_per_query,
        {task: of_rows[:, own[task]] for task in queries},
        {task: of_queries[task][:, own[task]] for task in queries},
    )
