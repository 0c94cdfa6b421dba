"""Cosine similarity of rows to queries: the base of all scorers with targets that compare vectors."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import xxhash
from datasets import Dataset, List, Value

from hf_select.data import columns
from hf_select.data.bad_rows import BadRow, map_rows, on_readable, readable_rows
from hf_select.data.conversation import Conversation, conversations
from hf_select.data.rows import conversations_of
from hf_select.features.featurizer import Feature, unit
from hf_select.features.store import PoolIndex
from hf_select.scoring.overlap import QueryOverlap
from hf_select.scoring.scorer import Answer, Batch, Queries, Scorer, records_fit_cost


# n rows, q queries, p parts of tasks, t tasks, d dimensions


def max_by_task(similarities: np.ndarray, task_of_query: np.ndarray, num_tasks: int) -> np.ndarray:
    """S[n, t] = max over the queries (or parts) v of task t of S[n, v] (arXiv:2503.01807, section 3.1)."""
    out = np.full((len(similarities), num_tasks), -np.inf, dtype=similarities.dtype)
    for task in range(num_tasks):
        out[:, task] = similarities[:, task_of_query == task].max(axis=1)
    return out


def mean_by_part(similarities: np.ndarray, part_of_query: np.ndarray) -> np.ndarray:
    """P[n, p] = mean over the queries v of part p of S[n, v], float64. Parts are numbered from 0; each has a query."""
    order = np.argsort(part_of_query, kind="stable")
    sizes = np.bincount(part_of_query)
    return np.add.reduceat(similarities[:, order], np.cumsum(sizes) - sizes, axis=1, dtype=np.float64) / sizes


@dataclass
class BestRows:
    """The m rows most similar to each query, updated block by block in memory of q x m numbers.

    Of equal similarities the lower row comes first, as in the stable sort of the authors' code. NaN (no vector) is
    never taken.
    """

    num_queries: int
    m: int
    rows: np.ndarray = field(init=False)  # (q, m), best first; -1 where there are fewer than m rows
    similarities: np.ndarray = field(init=False)  # (q, m)

    def __post_init__(self) -> None:
        self.rows = np.full((self.num_queries, self.m), -1, dtype=np.int64)
        self.similarities = np.full((self.num_queries, self.m), -np.inf, dtype=np.float32)

    def update(self, block: np.ndarray, first_row: int) -> None:
        """Add similarities (n, q) of the rows from `first_row` on. Blocks must be in row order."""
        block = block.T  # (q, n)
        for query in np.flatnonzero((block > self.similarities[:, -1:]).any(axis=1)):
            better = np.flatnonzero(block[query] > self.similarities[query, -1])
            if len(better) > self.m:  # those above the m-th of the block, then its ties in row order
                cut = np.partition(block[query, better], -self.m)[-self.m]
                above = better[block[query, better] > cut]
                ties = better[block[query, better] == cut][: self.m - len(above)]
                better = np.sort(np.concatenate([above, ties]))
            values = np.concatenate([self.similarities[query], block[query, better]])
            rows = np.concatenate([self.rows[query], better + first_row])
            order = np.argsort(-values, kind="stable")[: self.m]  # earlier rows come first in the concatenation
            self.similarities[query], self.rows[query] = values[order], rows[order]


# --------------------------------------------------------------------------------------------------------------------
# the scorer


@dataclass
class Similarity(Scorer):
    """Cosine similarity of a row to its nearest query. A subclass sets `featurizer` or overrides `_features`.

    Args:
        per_query: also add the similarity to every query, which round robin over queries reads (4 bytes per query and
            row).
        query_overlap: what to do with rows that repeat a query, which make a selection look better than it is. report:
            score them, with a note in the reason column; null: leave them without a score.
    """

    per_query: bool = field(default=False, kw_only=True)
    query_overlap: Literal["report", "null"] = field(default="report", kw_only=True)

    needs_fit: ClassVar[bool] = True
    takes_subtasks: ClassVar[bool] = True
    default_subtask_per_query: ClassVar[bool] = True  # without a subtask_column; False: the whole task is one sub-task

    def __post_init__(self) -> None:
        super().__post_init__()
        self.queries_: Any = None  # (q, d), rows of length 1
        self.tasks_: list[str] = []
        self.named_tasks_: list[str] = []  # tasks with a score column of their own: all, unless no task was named
        self.task_of_query_: np.ndarray = np.empty(0, dtype=np.int64)  # (q,)
        self.part_of_query_: np.ndarray = np.empty(0, dtype=np.int64)  # (q,)
        self.task_of_part_: np.ndarray = np.empty(0, dtype=np.int64)  # (p,)
        self.overlap_: QueryOverlap | None = None
        self.queries_hash_: str | None = None  # of their texts, tasks and parts
        self._fit_arguments: tuple[Queries, str | None, str | None, Dataset | PoolIndex | None] | None = None

    @records_fit_cost
    def fit(
        self,
        queries: Queries,
        task_column: str | None = None,
        subtask_column: str | None = None,
        pool: Dataset | PoolIndex | None = None,
    ) -> "Similarity":
        """Encode the queries.

        A row's similarity to a task is the largest over its sub-tasks of the mean similarity to their queries. Without
        a `subtask_column` each query is a sub-task (LESS: the whole task is one).

        Raises: ValueError for an empty set, a task without queries or a query that cannot be encoded.
        """
        named = by_task(queries, task_column)
        vectors, tasks, parts, texts = [], [], [], []
        notes: Counter[str] = Counter()
        for number, (task, rows) in enumerate(named.items()):
            parts += [(number, part) for part in self._parts(rows, subtask_column, len(parts))]
            parsed = list(conversations_of(rows))
            for i, feature in enumerate(self._encoded(parsed, queries=True)):
                if isinstance(feature, BadRow):
                    raise ValueError(f'query {i} of task "{task}" cannot be used: {feature}. Fix or remove it.')
                vectors.append(feature.vector)
                tasks.append(number)
                notes[feature.note] += 1
            texts += readable_rows(parsed)
        del notes[""]
        self._warn("carry a note", notes, len(vectors), "queries")
        self.tasks_ = list(named)
        self.named_tasks_ = names_of_tasks(queries, task_column, self.tasks_)
        self.queries_ = self._stacked(vectors)
        self.task_of_query_ = np.array(tasks)
        places = {part: place for place, part in enumerate(dict.fromkeys(parts))}
        self.part_of_query_ = np.array([places[part] for part in parts])
        self.task_of_part_ = np.array([number for number, _ in places])
        self.overlap_ = QueryOverlap(texts)
        self.queries_hash_ = hash_of_rows(texts, [list(named), self.named_tasks_, parts])
        self._fit_arguments = queries, task_column, subtask_column, pool
        return self

    def refit(self) -> None:
        """Encode the same queries again, after the weights of the model have changed."""
        if self._fit_arguments is not None:
            self.fit(*self._fit_arguments)

    def begin_on(self, day: str | None) -> None:
        """Render chat templates with the date on which a resumed job began; if it differs, encode the queries again.

        Raises: ValueError if the scorer was unpickled and no longer has the queries' texts.
        """
        if not any([reader.begin_on(day) for reader in self.readers()]) or self.queries_ is None:
            return
        if self._fit_arguments is None:
            raise ValueError(f"the queries were encoded on another day than {day}; call fit(queries) again.")
        self.refit()

    @property
    def columns_out(self) -> dict[str, Value | List]:
        """Columns that scoring adds, with their `datasets` types."""
        added: dict[str, Any] = {f"{self.name}_query": Value("int64")}
        added |= {self._task_column(task): Value("float32") for task in self.named_tasks_}
        if self.per_query:
            length = -1 if self.queries_ is None else len(self.task_of_query_)
            added[f"{self.name}_similarities"] = List(Value("float32"), length=length)
        return super().columns_out | added

    def __getstate__(self) -> dict[str, object]:
        names = (
            "queries_",
            "tasks_",
            "named_tasks_",
            "task_of_query_",
            "part_of_query_",
            "task_of_part_",
            "overlap_",
            "queries_hash_",
        )
        return {**super().__getstate__(), **{name: getattr(self, name) for name in names}}

    def identity(self) -> dict[str, object]:
        """Everything that the scores depend on. The queries count by their texts, since the last bits of their vectors
        differ between batches and devices."""
        return {**super().identity(), "queries": self.queries_hash_}

    def similarities(
        self, rows: list[Conversation | BadRow], stored: Sequence[Feature | BadRow] | None = None
    ) -> tuple[np.ndarray, list[Feature | BadRow]]:
        """(cosine similarity of each row to every query (n, q) float32, the vectors or why a row has none).

        The similarities of a row without a vector, or left out because it repeats a query, are NaN. `stored` vectors
        of an index are used in place of encoding the rows.
        """
        similarity, _, features = self._similarities(rows, stored)
        return similarity, features

    def _similarities(
        self, rows: list[Conversation | BadRow], stored: Sequence[Feature | BadRow] | None
    ) -> tuple[np.ndarray, np.ndarray, list[Feature | BadRow]]:
        """Similarities to queries (n, q) and to parts of tasks (n, p), NaN where there is no vector; the vectors."""
        if self.queries_ is None:
            raise ValueError(
                f"{type(self).__name__} has no queries yet; call fit(queries) first (--queries on the command line)."
            )
        if self.query_overlap == "null":
            rows = map_rows(self._unless_repeating, rows)
        if stored is None:
            features = self._encoded(rows)
        else:
            features = [f if isinstance(row, Conversation) else row for row, f in zip(rows, stored, strict=True)]
        similarity = np.full((len(features), len(self.task_of_query_)), np.nan, dtype=np.float32)
        parts = np.full((len(features), len(self.task_of_part_)), np.nan)
        whole = [i for i, feature in enumerate(features) if isinstance(feature, Feature)]
        if whole:
            vectors = [feature.vector for feature in features if isinstance(feature, Feature)]
            if any(getattr(reader, "batch_invariant", False) for reader in self.readers()):
                # Products of matrices are rounded depending on their size.
                each = [self._compare([vector]) for vector in vectors]
                similarity[whole], parts[whole] = map(np.concatenate, zip(*each, strict=True))
            else:
                similarity[whole], parts[whole] = self._compare(vectors)
        return similarity, parts, features

    def measure(self, rows: list[Conversation]) -> list[Answer | BadRow]:
        """The columns of each row, or the reason why it has no score."""
        return self._answers(list(rows))

    def score_vectors(self, batch: Batch, vectors: Sequence[Feature | BadRow]) -> dict[str, list[Any]]:
        """Columns of a batch from stored vectors, one per row, as `PoolIndex.read` returns them."""
        return self._columns(self._answers(conversations(batch), vectors))

    def best_rows(self, dataset: Any, m: int, batch_size: int = 1000, index: Any = None) -> BestRows:
        """The m rows most similar to each query, in one pass over the dataset that keeps q x m numbers and no vectors.
        With a PoolIndex of the dataset, its vectors are read in place of encoding the rows."""
        if m < 1 or self.queries_ is None:
            raise ValueError(f"m is {m}; give at least 1." if m < 1 else "call fit(queries) first.")
        if index is not None:
            self.begin_on(index.day)
            index.check(dataset, self.featurizer)
        best, start = BestRows(len(self.task_of_query_), m), 0
        for batch in dataset.iter(batch_size=batch_size):
            rows = conversations(batch)
            stored = None if index is None else index.read(range(start, start + len(rows)))
            similarity, _ = self.similarities(rows, stored)
            best.update(similarity, start)
            start += len(similarity)
        return best

    def _answers(self, rows: list[Any], stored: Sequence[Feature | BadRow] | None = None) -> list[Answer | BadRow]:
        similarity, parts, features = self._similarities(rows, stored)
        tasks = max_by_task(parts, self.task_of_part_, len(self.tasks_))
        return map_rows(self._answer, rows, features, similarity, tasks)

    def _answer(self, row: Conversation, feature: Feature, similarity: np.ndarray, tasks: np.ndarray) -> Answer:
        """Columns of one row from its similarities to queries (q,) and to tasks (t,)."""
        repeats = self.overlap_(row) if self.overlap_ is not None and self.query_overlap == "report" else ""
        answer: Answer = {
            columns.score_column(self.name): float(tasks.max()),
            f"{self.name}_query": int(similarity.argmax()),
            columns.reason_column(self.name): "; ".join(note for note in (repeats, feature.note) if note),
        }
        if self.named_tasks_:
            answer |= {self._task_column(task): float(s) for task, s in zip(self.tasks_, tasks, strict=True)}
        if self.per_query:
            answer[f"{self.name}_similarities"] = similarity.tolist()
        return answer

    # Overridden where vectors are sparse (words), or full gradients that are compared on the device.
    def _stacked(self, vectors: list[Any]) -> Any:
        return unit(np.stack(vectors))

    def _compare(self, vectors: list[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Similarities of the rows' vectors to queries (n, q) and to parts of tasks (n, p)."""
        similarity = self._cosines(vectors)
        return similarity, mean_by_part(similarity, self.part_of_query_)

    def _cosines(self, vectors: list[Any]) -> np.ndarray:
        """(n, q) of the rows' vectors."""
        rows = self._stacked(vectors)
        if rows.shape[1] != self.queries_.shape[1]:
            sizes = f"rows have {rows.shape[1]} dimensions, queries {self.queries_.shape[1]}"
            raise ValueError(f"{sizes}; encode both with one model.")
        return rows @ self.queries_.T

    def _parts(self, rows: Any, subtask_column: str | None, before: int) -> list[Any]:
        """The sub-task of each query of a task."""
        if subtask_column is None:
            return [before + i if self.default_subtask_per_query else 0 for i in range(len(rows))]
        if subtask_column not in rows.column_names:
            raise columns.missing_column(subtask_column, rows.column_names, "Name the column of the sub-tasks.")
        return [str(part) for part in rows[subtask_column]]

    def _features(self, rows: list[Conversation], queries: bool) -> list[Feature | BadRow]:
        assert self.featurizer is not None, "set by the subclass"
        return self.featurizer(rows, queries)

    def _unless_repeating(self, row: Conversation) -> Conversation:
        if self.overlap_ is not None and (repeats := self.overlap_(row)):
            raise BadRow(repeats)
        return row

    def _encoded(self, rows: list[Conversation | BadRow], queries: bool = False) -> list[Feature | BadRow]:
        return on_readable(rows, lambda readable: self._features(readable, queries))

    def _task_column(self, task: str) -> str:
        return columns.score_column(f"{self.name}_{task}")


def names_of_tasks(queries: Queries, task_column: str | None, tasks: list[str]) -> list[str]:
    """The tasks of `by_task` if the caller named them, else none: for one dataset without a task column."""
    return tasks if isinstance(queries, Mapping) or task_column is not None else []


def hash_of_rows(rows: Iterable[Conversation], more: list[Any] | None = None) -> str:
    """Hash of conversations, and of further values that JSON can hold."""
    digest = xxhash.xxh3_128(json.dumps([list(part) for part in more or []]).encode())
    for row in rows:
        digest.update(json.dumps(vars(row), sort_keys=True, default=str).encode())
    return digest.hexdigest()


def by_task(queries: Queries, task_column: str | None) -> dict[str, Dataset]:
    """Queries as task -> dataset, in order of first appearance."""
    if isinstance(queries, Mapping):
        if task_column is not None:
            raise ValueError("give either a mapping from task to queries or task_column, not both.")
        if not queries:
            raise ValueError("the query set is empty; give at least one row of the target task.")
        for task, rows in queries.items():
            if len(rows) == 0:
                raise ValueError(f'task "{task}" has no queries; give it some or leave it out.')
        return {str(task): rows for task, rows in queries.items()}
    if len(queries) == 0:
        raise ValueError("the query set is empty; give at least one row of the target task.")
    if task_column is None:
        return {"queries": queries}
    if task_column not in queries.column_names:
        raise columns.missing_column(
            task_column, queries.column_names, "Name the column that holds each query's task."
        )
    tasks = [str(task) for task in queries[task_column]]
    return {task: queries.select([i for i, t in enumerate(tasks) if t == task]) for task in dict.fromkeys(tasks)}
