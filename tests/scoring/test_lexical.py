"""TF-IDF and DSIR: hand-worked weights, what they learn from, and what they say when there is nothing to learn."""

import numpy as np
import pytest
from datasets import Dataset

from hf_select import DSIR, TFIDF, Sample


def rows(*texts: str) -> Dataset:
    return Dataset.from_dict({"text": list(texts)})


POOL = rows("red apples", "red pears", "seven plus eight", "the red house", "eight times seven is fifty six")


def test_tfidf_is_the_cosine_of_weighted_words_by_hand():
    pool = rows("a b", "a c", "a a d")
    out = TFIDF().fit(rows("a b"), pool=pool)({"text": ["a b", "a c", "c"]})
    idf = {"a": 1.0, "b": 1 + np.log(4 / 2), "c": 1 + np.log(4 / 2)}
    length = np.hypot(idf["a"], idf["b"])
    assert out["score_tfidf"][0] == pytest.approx(1, abs=1e-6)
    assert out["score_tfidf"][1] == pytest.approx(idf["a"] ** 2 / length**2, rel=1e-5)
    assert out["score_tfidf"][2] == 0, "a word of the pool that the query lacks"
    assert "has the prompt" not in out["tfidf_reason"][1]


def test_a_row_goes_to_its_nearest_task():
    scorer = TFIDF(per_query=True).fit({"sum": rows("one plus two"), "fruit": rows("pears", "apples")}, pool=POOL)
    out = scorer(POOL[:])
    assert out["score_tfidf_fruit"][0] > out["score_tfidf_sum"][0] and out["score_tfidf_sum"][2] > 0
    assert np.shape(out["tfidf_similarities"]) == (5, 3) and out["tfidf_query"][:2] == [2, 1]
    best = scorer.best_rows(POOL, 1)
    assert best.rows[:, 0].tolist() == [2, 1, 0]


def test_dsir_is_the_log_ratio_of_smoothed_ngram_probabilities_by_hand():
    pool, target = rows("a b", "a a"), rows("b b")
    scorer = DSIR(ngrams=1, buckets=1000).fit(target, pool=pool)
    a, b = np.log(1 / 1002) - np.log(4 / 1004), np.log(3 / 1002) - np.log(2 / 1004)
    out = scorer({"text": ["a b", "b", "a a a"]})
    assert out["score_dsir"] == pytest.approx([a + b, b, 3 * a], rel=1e-6)
    mean = DSIR(ngrams=1, buckets=1000, per_ngram=True).fit(target, pool=pool)({"text": ["a b", "a a a"]})
    assert mean["score_dsir"] == pytest.approx([(a + b) / 2, a], rel=1e-6)


def test_dsir_prefers_the_targets_words_and_word_order_counts_with_pairs():
    scorer = DSIR().fit({"sum": rows("six plus nine"), "fruit": rows("green pears")}, pool=POOL)
    out = scorer({"text": ["nine plus six", "six plus nine", "green pears", ""]})
    assert out["score_dsir_sum"][1] > out["score_dsir_sum"][0] > out["score_dsir_sum"][2]
    assert out["score_dsir"][2] == out["score_dsir_fruit"][2]
    assert out["score_dsir"][3] is None and out["dsir_reason"][3] == "no word in the row"


@pytest.mark.parametrize("make", [TFIDF, DSIR])
def test_what_cannot_be_learned_is_said(make):
    with pytest.raises(ValueError, match="first"):
        make()(POOL[:])
    with pytest.raises(ValueError, match="pool=dataset"):
        make().fit(rows("x"))
    with pytest.raises(ValueError, match="empty"):
        make().fit(rows("x").select([]), pool=POOL)
    with pytest.raises(ValueError, match='"b" has no queries'):
        make().fit({"a": rows("x"), "b": rows("x").select([])}, pool=POOL)


def test_a_query_or_a_pool_without_words_is_said():
    with pytest.raises(ValueError, match='query 0 of task "queries" cannot be used: no word'):
        TFIDF().fit(rows("?!"), pool=POOL)
    with pytest.raises(ValueError, match="no words to learn from"):
        TFIDF().fit(rows("x"), pool=rows("?!"))


def test_sample_draws_by_weight():
    data = Dataset.from_dict({"w": [float(np.log(p)) for p in (0.7, 0.2, 0.1)] + [None]})
    firsts = [int(Sample("w", seed=seed)(data, k=1).indices[0]) for seed in range(2000)]
    np.testing.assert_allclose(np.bincount(firsts, minlength=4) / 2000, [0.7, 0.2, 0.1, 0], atol=0.035)
    assert Sample("w", temperature=1e-6)(data, k=3).indices.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="above 0"):
        Sample("w", temperature=0)


def test_an_unreadable_query_is_refused_not_dropped():
    queries = Dataset.from_dict({"prompt": ["a b", None], "completion": ["c", "d"]})
    with pytest.raises(ValueError, match="query 1 .*prompt is null"):
        DSIR().fit(queries, pool=POOL)
    with pytest.raises(ValueError, match="query 0 .*no word"):
        DSIR().fit(rows("?!"), pool=POOL)
    with pytest.raises(ValueError, match="no conversation in columns"):
        TFIDF().fit(rows("a"), pool=Dataset.from_dict({"foo": ["a"]}))


@pytest.mark.parametrize("make", [TFIDF, DSIR])
def test_a_named_task_has_its_column_however_many_there_are(make):
    pool = Dataset.from_dict({"text": ["add two numbers", "a red boat", "sum of three"]})
    a, b = Dataset.from_dict({"text": ["add"]}), Dataset.from_dict({"text": ["boat"]})
    name = f"score_{make.name}"

    def added(queries, **options) -> list[str]:
        scored = pool.map(make().fit(queries, pool=pool, **options), batched=True)
        return [column for column in scored.column_names if column.startswith(name)]

    assert added({"a": a}) == [name, f"{name}_a"]
    assert added({"a": a, "b": b}) == [name, f"{name}_a", f"{name}_b"]
    assert added(a) == [name], "queries without a name"
    assert added({"queries": a}) == [name, f"{name}_queries"]
    assert added(a.add_column("task", ["t"]), task_column="task") == [name, f"{name}_t"]
    one, both = (pool.map(make().fit(q, pool=pool), batched=True)[f"{name}_a"] for q in ({"a": a}, {"b": b, "a": a}))
    assert one[:] == both[:], "a task's column depends on the others"
