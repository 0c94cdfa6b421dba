"""Word overlap with the target: baselines without a model.

TFIDF: cosine similarity of word vectors. DSIR: Xie et al. 2023, "Data Selection for Language Models via Importance
Resampling" (NeurIPS 2023, arXiv:2302.03169): hashed word n-grams as the feature, importance weight p_target / p_raw.

Both learn from the pool and from the queries. Left out of DSIR: its filter on word counts (use the bounds of TopK) and
the resampling, which is the selector Sample.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset, List, Value

from hf_select.data import columns
from hf_select.data.bad_rows import BadRow
from hf_select.data.conversation import Conversation, layout
from hf_select.data.rows import conversations_of
from hf_select.data.text import text_of, words
from hf_select.extras import require
from hf_select.features.featurizer import Feature
from hf_select.features.store import PoolIndex
from hf_select.paper import DSIR_PAPER, Paper
from hf_select.scoring.scorer import Answer, Queries, Scorer, records_fit_cost
from hf_select.scoring.similarity import Similarity, by_task, hash_of_rows, names_of_tasks


# n rows, q queries, t tasks, V words, B buckets


@dataclass
class TFIDF(Similarity):
    """Cosine similarity of a row to its nearest query, over TF-IDF weighted words.

    weight of word w in a row = (1 + log count) * (1 + log((1 + N) / (1 + rows with w))), rows scaled to length 1

    Args:
        max_words: size of the vocabulary: the words with the most occurrences in the pool.
    Reads: the whole conversation, roles left out.
    Adds: the columns of every scorer with targets: score_tfidf, tfidf_query, score_tfidf_TASK.
    Raises: ValueError before `fit(queries, pool)`, for queries without a word, for a pool without text.
    Relations: RDSPlus and Embedding compare vectors of a model; they should beat TFIDF.
    Reference: Salton and Buckley 1988, through scikit-learn's TfidfVectorizer.
    """

    max_words: int = 200_000

    name: ClassVar[str] = "tfidf"
    needs_pool: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.words_: list[str] = []
        self.idf_: np.ndarray | None = None  # (V,)
        self.pool_hash_: str | None = None
        self._vectorizer: Any = None

    @records_fit_cost
    def fit(
        self,
        queries: Queries,
        task_column: str | None = None,
        subtask_column: str | None = None,
        pool: Dataset | PoolIndex | None = None,
    ) -> "TFIDF":
        """Learn the words' weights from the pool and encode the queries."""
        vectorizer = _sklearn_text().TfidfVectorizer(analyzer=words, sublinear_tf=True, max_features=self.max_words)
        pool = _needed(pool, "TFIDF")
        _fitted(vectorizer, pool)
        self.pool_hash_ = _hash_of(pool)
        self.words_, self.idf_ = vectorizer.get_feature_names_out().tolist(), vectorizer.idf_
        self._vectorizer = None
        super().fit(queries, task_column, subtask_column, pool)
        return self

    def __getstate__(self) -> dict[str, object]:
        learned = {"words_": self.words_, "idf_": self.idf_, "pool_hash_": self.pool_hash_}
        return {**super().__getstate__(), **learned}

    def identity(self) -> dict[str, object]:
        """Everything that the scores depend on."""
        return {**super().identity(), "pool": self.pool_hash_}

    def _features(self, rows: list[Conversation], queries: bool) -> list[Feature | BadRow]:
        texts = [text_of(row) for row in rows]
        if self._vectorizer is None:
            self._vectorizer = _sklearn_text().TfidfVectorizer(
                analyzer=words, sublinear_tf=True, vocabulary={word: i for i, word in enumerate(self.words_)}
            )
            self._vectorizer.idf_ = self.idf_
        matrix = self._vectorizer.transform(texts) if texts else []  # (n, V)
        return [
            Feature(matrix[i]) if words(text) else BadRow("no word in the row")  # pyright: ignore[reportArgumentType]
            for i, text in enumerate(texts)
        ]

    def _stacked(self, vectors: list[Any]) -> Any:
        from scipy.sparse import vstack

        return vstack(vectors, format="csr", dtype=np.float32)  # of length 1 already

    def _cosines(self, vectors: list[Any]) -> np.ndarray:
        return (self._stacked(vectors) @ self.queries_.T).toarray()


@dataclass
class DSIR(Scorer):
    """Importance weight: how much likelier the row's word n-grams are in the target than in the pool.

    log w = sum over n-grams g of the row of log p_target(g) - log p_pool(g), hashed into B buckets; p with add-one
    smoothing over buckets

    Args:
        ngrams: longest n-gram, in words; the paper uses 2.
        buckets: number of hash buckets; the paper uses 10,000.
        per_ngram: divide by the number of n-grams; without it the size of the score grows with length, as published.
    Reads: the whole conversation, roles left out.
    Adds: score_dsir (log importance weight), score_dsir_TASK for each named task; the score is the largest.
    Raises: ValueError before `fit(queries, pool)`.
    Relations: Sample draws rows with these weights, as the paper does; TopK takes the largest. TFIDF compares with the
        nearest query, DSIR with the distribution of all queries.
    Reference: Xie et al. 2023, arXiv:2302.03169, section 3.
    Differs from the authors' code: scikit-learn's hash function and another tokenisation, so the weights differ.
    """

    ngrams: int = 2
    buckets: int = 10_000
    per_ngram: bool = False

    name: ClassVar[str] = "dsir"
    paper: ClassVar[Paper | None] = DSIR_PAPER
    needs_fit: ClassVar[bool] = True
    needs_pool: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ngrams < 1 or self.buckets < 2:
            raise ValueError(f"ngrams is {self.ngrams}, buckets {self.buckets}; give at least 1 and 2.")
        self.named_tasks_: list[str] = []
        self.log_ratio_: np.ndarray | None = None  # (t, B)
        self.learned_from_: dict[str, str] = {}  # hashes of the queries and the pool

    @records_fit_cost
    def fit(
        self,
        queries: Queries,
        task_column: str | None = None,
        subtask_column: str | None = None,
        pool: Dataset | PoolIndex | None = None,
    ) -> "DSIR":
        """Count the n-grams of the queries of each task and of the pool."""
        if subtask_column is not None:
            raise ValueError("DSIR compares with whole tasks; leave out subtask_column.")
        tasks = by_task(queries, task_column)
        for task, rows in tasks.items():
            for i, row in enumerate(conversations_of(rows)):
                reason = row if isinstance(row, BadRow) else "" if words(text_of(row)) else "no word in the row"
                if reason:
                    raise ValueError(f'query {i} of task "{task}" cannot be used: {reason}. Fix or remove it.')
        pool = _needed(pool, "DSIR")
        raw = self._log_p(_batches_of_texts(pool))
        self.log_ratio_ = np.stack([self._log_p(_batches_of_texts(rows)) - raw for rows in tasks.values()])
        self.named_tasks_ = names_of_tasks(queries, task_column, list(tasks))
        of_tasks = [(task, _hash_of(rows)) for task, rows in tasks.items()]
        self.learned_from_ = {"queries": hash_of_rows([], [self.named_tasks_, *of_tasks]), "pool": _hash_of(pool)}
        return self

    @property
    def columns_out(self) -> dict[str, Value | List]:
        """Columns that scoring adds, with their `datasets` types."""
        kind = super().columns_out[columns.score_column(self.name)]
        return super().columns_out | {columns.score_column(f"{self.name}_{task}"): kind for task in self.named_tasks_}

    def __getstate__(self) -> dict[str, object]:
        learned = {
            "named_tasks_": self.named_tasks_,
            "log_ratio_": self.log_ratio_,
            "learned_from_": self.learned_from_,
        }
        return {**super().__getstate__(), **learned}

    def identity(self) -> dict[str, object]:
        """Everything that the scores depend on."""
        return {**super().identity(), **self.learned_from_}

    def measure(self, rows: list[Conversation]) -> list[Answer | BadRow]:
        """The columns of each row, or the reason why it has no score."""
        if self.log_ratio_ is None:
            raise ValueError("DSIR has no target yet; call fit(queries, pool=dataset) first.")
        if not rows:
            return []
        counts = self._counts([text_of(row) for row in rows])  # (n, B)
        weights = counts @ self.log_ratio_.T  # (n, t)
        total = np.asarray(counts.sum(axis=1)).ravel()
        if self.per_ngram:
            weights = weights / np.maximum(total, 1)[:, None]
        return [
            self._answer(row) if n else BadRow("no word in the row") for row, n in zip(weights, total, strict=True)
        ]

    def _answer(self, weights: np.ndarray) -> Answer:
        answer: Answer = {columns.score_column(self.name): float(weights.max())}
        if self.named_tasks_:
            for task, weight in zip(self.named_tasks_, weights, strict=True):
                answer[columns.score_column(f"{self.name}_{task}")] = float(weight)
        return answer

    def _log_p(self, batches: Iterator[list[str]]) -> np.ndarray:
        """log p of each bucket (B,), add-one smoothed."""
        counts = np.zeros(self.buckets)
        for texts in batches:
            counts += np.asarray(self._counts(texts).sum(axis=0)).ravel()
        return np.log(counts + 1) - np.log(counts.sum() + self.buckets)

    def _counts(self, texts: list[str]) -> Any:
        hashing = _sklearn_text().HashingVectorizer(
            analyzer=self._ngrams, n_features=self.buckets, norm=None, alternate_sign=False
        )
        return hashing.transform(texts)

    def _ngrams(self, text: str) -> list[str]:
        tokens = words(text)
        return [" ".join(tokens[i : i + n]) for n in range(1, self.ngrams + 1) for i in range(len(tokens) - n + 1)]


def _sklearn_text() -> Any:
    require("word statistics", "sklearn")
    from sklearn.feature_extraction import text

    return text


def _needed(pool: Dataset | PoolIndex | None, name: str) -> Dataset:
    if not isinstance(pool, Dataset) or len(pool) == 0:
        raise ValueError(f"{name} compares with the texts of the pool: fit(queries, pool=dataset).")
    return pool


def _batches_of_texts(dataset: Dataset, batch_size: int = 1000) -> Iterator[list[str]]:
    """Texts of the readable rows, in batches."""
    texts = (text_of(row) for row in conversations_of(dataset) if isinstance(row, Conversation))
    while batch := list(islice(texts, batch_size)):
        yield batch


def _hash_of(dataset: Dataset) -> str:
    """Hash of the readable rows."""
    return hash_of_rows(row for row in conversations_of(dataset) if isinstance(row, Conversation))


def _fitted(vectorizer: Any, pool: Dataset) -> None:
    layout(pool.column_names)  # raises if the columns are not those of conversations
    try:
        vectorizer.fit(text for texts in _batches_of_texts(pool) for text in texts)
    except ValueError as error:
        raise ValueError(f"the pool has no words to learn from ({error}).") from None
