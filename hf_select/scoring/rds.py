"""RDS+: rows whose pooled hidden states lie nearest to those of example queries from the target tasks.

Ivison et al. 2025, "Large-Scale Data Selection for Instruction Tuning" (arXiv:2503.01807), section 3.

Left out: the study's own query sets (give any rows as queries) and its tokenisation of prompt and answer apart for
some of them; queries are read like rows.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from datasets import List, Value

from hf_select import columns
from hf_select.features import Feature
from hf_select.features.hidden_states import HiddenStates
from hf_select.formats import BadRow, Conversation, conversations
from hf_select.scoring.scorer import Scorer
from hf_select.scoring.similarity import BestRows, max_by_task, unit


# n rows, q queries, d dimensions


@dataclass
class RDSPlus(Scorer):
    """Cosine similarity of a row to its nearest query, over position-weighted hidden states.

    e(row) = sum_i w_i h_i, w_i = i / sum_j j;   S[row, task] = max over queries v of the task of cos(e(row), e(v))

    Args:
        model: Hub id, path or CausalLM; the study uses the base model that will be trained.
        pooling: weighted_mean (the paper's), mean or last_token.
        layer: output of this decoder layer in place of the final norm's; the forward pass ends there.
        scope: tokens that are pooled: all (the paper's), prompt or response.
        text_format: chat is the model's own template; tulu is the study's layout for every model.
        max_length: tokens kept of a row and of a query; a longer one is cut on the right.
        per_query: also keep the similarity to every query, which round robin over queries reads (4 bytes a query and
            row).
    Reads: the whole conversation.
    Adds: score_rds (the largest similarity over all queries), rds_query (which query that is); with several tasks
        score_rds_TASK for each; with per_query rds_similarities.
    Raises: ValueError before `fit`, for an empty query set or a query that cannot be read.
    Relations: Embedding asks the same of a sentence encoder; IFD and SelectIT know no target task.
    Reference: Ivison et al. 2025, arXiv:2503.01807, section 3.1.
    Differs from the authors' code: rows are batched and masked; queries are encoded once, not once a shard.
    """

    model: Any
    pooling: Literal["weighted_mean", "mean", "last_token"] = "weighted_mean"
    layer: int | None = None
    scope: Literal["all", "prompt", "response"] = "all"
    text_format: Literal["chat", "tulu"] = "chat"
    max_length: int | None = 2048
    per_query: bool = False

    name: ClassVar[str] = "rds"
    citation: ClassVar[str] = "arXiv:2503.01807"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._features = HiddenStates(
            self.model, self.pooling, self.layer, self.scope, self.text_format, self.max_length
        )
        self.queries_: np.ndarray | None = None  # (q, d), rows of length 1
        self.tasks_: list[str] = []
        self.task_of_query_: np.ndarray = np.empty(0, dtype=np.int64)  # (q,)

    def fit(self, queries: Any, task_column: str | None = None) -> "RDSPlus":
        """Encode the queries.

        Args:
            queries: a dataset of rows in any known layout, or a mapping from task to such a dataset.
            task_column: column of a single dataset that names each query's task.
        """
        by_task = _by_task(queries, task_column)
        vectors, tasks = [], []
        for number, (task, rows) in enumerate(by_task.items()):
            if len(rows) == 0:
                raise ValueError(f'task "{task}" has no queries; give it some or leave it out.')
            found = _encoded(self._features, conversations(rows[:]))
            for i, feature in enumerate(found):
                if isinstance(feature, BadRow):
                    raise ValueError(f'query {i} of task "{task}" cannot be used: {feature}. Mend or remove it.')
                vectors.append(feature.vector)
                tasks.append(number)
        self.tasks_ = list(by_task)
        self.queries_ = unit(np.stack(vectors))
        self.task_of_query_ = np.array(tasks)
        return self

    @property
    def columns_out(self) -> dict[str, Any]:
        added: dict[str, Any] = {"rds_query": Value("int64")}
        if len(self.tasks_) > 1:
            added |= {self._task_column(task): Value("float32") for task in self.tasks_}
        if self.per_query:
            length = -1 if self.queries_ is None else len(self.queries_)
            added["rds_similarities"] = List(Value("float32"), length=length)
        return super().columns_out | added

    def load(self, rank: int | None = None) -> None:
        self._features.lm.load(rank)

    def usage(self) -> dict[str, float]:
        return vars(self._features.lm.usage).copy()

    def __getstate__(self) -> dict[str, Any]:
        fitted = {"queries_": self.queries_, "tasks_": self.tasks_, "task_of_query_": self.task_of_query_}
        return {**super().__getstate__(), **fitted}

    def _pickled(self) -> dict[str, Any]:
        return {**self.settings(), "model": self._features.lm}

    def similarities(self, rows: list[Conversation | BadRow]) -> tuple[np.ndarray, list[Feature | BadRow]]:
        """Cosine similarity of each row to every query, (n, q) float32 with NaN for a row that has no vector."""
        if self.queries_ is None:
            raise ValueError("RDSPlus has no queries yet; call fit(queries) first (--queries on the command line).")
        features = _encoded(self._features, rows)
        similarity = np.full((len(features), len(self.queries_)), np.nan, dtype=np.float32)
        whole = [i for i, feature in enumerate(features) if isinstance(feature, Feature)]
        if whole:
            vectors = np.stack([feature.vector for feature in features if isinstance(feature, Feature)])
            similarity[whole] = unit(vectors) @ self.queries_.T
        return similarity, features

    def measure(self, rows: list[Conversation]) -> list[dict[str, Any] | BadRow]:
        similarity, features = self.similarities(list(rows))
        return [
            feature if isinstance(feature, BadRow) else {"rds_reason": feature.note, **self._columns(similarity[i])}
            for i, feature in enumerate(features)
        ]

    def best_rows(self, dataset: Any, m: int, batch_size: int = 1000) -> BestRows:
        """Each query's m most similar rows, in one pass over the dataset that keeps q x m numbers and no vectors."""
        if m < 1 or self.queries_ is None:
            raise ValueError(f"m is {m}; give at least 1." if m < 1 else "call fit(queries) first.")
        best, start = BestRows(len(self.queries_), m), 0
        for batch in dataset.iter(batch_size=batch_size):
            similarity, _ = self.similarities(conversations(batch))
            best.update(similarity, start)
            start += len(similarity)
        return best

    def _columns(self, similarity: np.ndarray) -> dict[str, Any]:
        answer: dict[str, Any] = {"score_rds": float(similarity.max()), "rds_query": int(similarity.argmax())}
        if len(self.tasks_) > 1:
            by_task = max_by_task(similarity[None], self.task_of_query_, len(self.tasks_))[0]
            answer |= {self._task_column(task): float(s) for task, s in zip(self.tasks_, by_task, strict=True)}
        if self.per_query:
            answer["rds_similarities"] = similarity.tolist()
        return answer

    def _task_column(self, task: str) -> str:
        return columns.score_column(f"{self.name}_{task}")


def _encoded(features: HiddenStates, rows: Iterable[Conversation | BadRow]) -> list[Feature | BadRow]:
    rows = list(rows)
    vectors = iter(features([row for row in rows if isinstance(row, Conversation)]))
    return [next(vectors) if isinstance(row, Conversation) else row for row in rows]


def _by_task(queries: Any, task_column: str | None) -> dict[str, Any]:
    """Queries as task -> dataset, in the order in which the tasks are met."""
    if isinstance(queries, Mapping):
        if task_column is not None:
            raise ValueError("give either a mapping from task to queries or task_column, not both.")
        if not queries:
            raise ValueError("the query set is empty; give at least one row of the target task.")
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
