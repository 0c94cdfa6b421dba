"""Weights fitted on held-back queries: what a mix finds, and when the best single column is taken."""

import json

import numpy as np
import pytest
from datasets import Dataset

from hf_select import TFIDF, Selection, WeightedRanks, demo, fit_weights, load_scores
from hf_select.cli.main import main
from hf_select.selection.learned_weights import _places, _weights
from hf_select.selection.ranking import percentile_ranks
from hf_select.selection.record import record_of
from hf_select.selection.weighted_ranks import combined_ranks


def scored(rng, signals, num_rows=400, num_queries=40, share=0.1):
    """(pool, queries, wanted): normal scores, those of queries and of wanted rows higher by the column's signal."""
    wanted = np.arange(num_rows) < share * num_rows
    pool = {f"score_{c}": rng.normal(size=num_rows) + signal * wanted for c, signal in signals.items()}
    queries = {f"score_{c}": rng.normal(size=num_queries) + signal for c, signal in signals.items()}
    return Dataset.from_dict(pool), Dataset.from_dict(queries), wanted


def found(selector, pool, wanted):
    return wanted[selector(pool, k=int(wanted.sum())).indices].mean()


def test_a_log_scale_is_what_is_worked_by_hand():
    ranks = {"a": np.array([0, 0.5, 1.0]), "b": np.array([1, 0, 0.5])}
    log = -np.log([1 + 1 / 6, 0.5 + 1 / 6, 1 / 6])
    np.testing.assert_allclose(combined_ranks(ranks, {"a": 1}, "log"), log)
    np.testing.assert_allclose(combined_ranks(ranks, {"a": 1, "b": -3}, "log"), (log + 3 * log[[0, 2, 1]]) / 4)
    data = Dataset.from_dict({"a": [3.0, 1, 2, None], "b": [1.0, 2, 3, 4]})
    selection = WeightedRanks({"a": 2, "b": 1}, scale="log")(data, k=3)
    # First of one score beats second of both on a log scale; by ranks row 2 (0.5 and 2/3) and row 0 (1 and 0) part.
    assert selection.indices.tolist() == [0, 2, 1] and selection.chain[0]["scale"] == "log"
    assert "fitted" not in selection.chain[0]
    with pytest.raises(ValueError, match='scale is "tail"'):
        WeightedRanks({"a": 1}, scale="tail")  # type: ignore[arg-type]


def test_places_are_shares_of_rows_below():
    np.testing.assert_allclose(_places(np.array([3.0, 1, 2, 2]), np.array([0, 2, 2.5, 9])), [0, 0.5, 0.75, 1])


def test_two_columns_that_complement_each_other_beat_each_alone():
    pool, queries, wanted = scored(np.random.default_rng(0), {"a": 1.5, "b": 1.5})
    selector = fit_weights(pool, queries)
    assert selector.weights == pytest.approx({"score_a": 0.5, "score_b": 0.5}, abs=0.15)
    alone = max(found(WeightedRanks({c: 1}), pool, wanted) for c in selector.weights)
    assert found(selector, pool, wanted) > alone
    evidence = selector.evidence_
    assert evidence["area"]["mix"][0] > evidence["area"][evidence["best_column"]][0] and evidence["lead"][1] > 0
    chain = selector(pool, k=5).chain[0]
    assert chain["fitted"]["verdict"].startswith("the mix leads the best single column")
    json.dumps(chain)


def test_noise_gets_no_weight_or_the_best_column_is_taken_alone():
    noise_alone = 0
    for seed in range(10):
        pool, queries, _ = scored(np.random.default_rng(seed), {"a": 2.0, "noise": 0, "more": 0, "other": 0})
        selector = fit_weights(pool, queries)
        noise = sum(abs(weight) for column, weight in selector.weights.items() if column != "score_a")
        assert selector.evidence_["best_column"] == "score_a" and noise < 0.35
        noise_alone += selector.weights == {"score_a": 1.0}
    assert noise_alone >= 9, "the lead of a mix with noise is not clear"
    assert "does not clearly lead the best single column, score_a" in selector.evidence_["verdict"]


def test_of_noise_alone_no_column_is_found_to_be_better_than_chance():
    clear = 0
    for seed in range(20):
        pool, queries, _ = scored(np.random.default_rng(seed), {"a": 0, "b": 0})
        clear += fit_weights(pool, queries).evidence_["lead"][1] > 0
    assert clear <= 2


def test_the_error_estimate_holds_on_fresh_queries():
    """The area of cross-validation is that of the mix on queries which it was not fitted on."""
    rng = np.random.default_rng(1)
    estimates, fresh = [], []
    for _ in range(15):
        pool, queries, _ = scored(rng, {"a": 1.0, "b": 0.7, "noise": 0}, num_queries=30)
        columns = sorted(queries.column_names)
        estimates.append(fit_weights(pool, queries).evidence_["area"]["mix"][0])
        ranks = {c: percentile_ranks(np.array(pool[c])) for c in columns}
        mix = _weights(ranks, {c: _places(np.array(pool[c]), np.array(queries[c])) for c in columns})
        _, others, _ = scored(rng, {"a": 1.0, "b": 0.7, "noise": 0}, num_queries=300)
        places = {c: _places(np.array(pool[c]), np.array(others[c])) for c in mix}
        of_rows = combined_ranks({c: ranks[c] for c in mix}, mix, "log")
        fresh.append(_places(of_rows, combined_ranks(places, mix, "log", len(pool))).mean())
    assert np.mean(estimates) == pytest.approx(np.mean(fresh), abs=0.02)


def test_monotone_transforms_and_the_order_of_columns_change_nothing():
    pool, queries, _ = scored(np.random.default_rng(2), {"a": 1.5, "b": 1.2, "c": 0})
    plain = fit_weights(pool, queries)
    stretched = [
        Dataset.from_dict({"score_c": each["score_c"], "score_b": np.exp(each["score_b"]), "score_a": each["score_a"]})
        for each in (pool, queries)
    ]
    for again in (
        fit_weights(stretched[0], stretched[1]),
        fit_weights(pool, queries, ["score_c", "score_a", "score_b"]),
    ):
        assert again == plain and again.evidence_ == plain.evidence_


def test_a_column_with_low_scores_for_queries_gets_a_negative_weight():
    pool, queries, wanted = scored(np.random.default_rng(3), {"a": 1.5, "b": -1.5}, num_queries=200)
    selector = fit_weights(pool, queries)
    assert selector.weights["score_a"] > 0.3 and selector.weights["score_b"] < -0.3
    assert found(selector, pool, wanted) > 0.4
    only = fit_weights(pool, queries, ["score_b"])
    assert only.weights == {"score_b": -1.0} and only.evidence_["verdict"] == "score_b is the only column"


def test_queries_that_the_scorer_knows_are_left_out():
    pool, queries, _ = scored(np.random.default_rng(4), {"rds_math": 1.0, "ifd": 0.5}, num_queries=20)
    known = ["has the prompt of query 3"] * 4 + ["nearly repeats query 0; cut to 10 tokens"] + [""] * 15
    noted = queries.add_column("rds_reason", known)
    assert fit_weights(pool, noted).evidence_["queries"] == 15
    assert fit_weights(pool, noted, ["score_ifd"]).evidence_["queries"] == 20, "those of another scorer do not count"
    with pytest.raises(
        ValueError, match="0 of 20 held-back queries .* 20 repeat a query that a scorer was fitted with"
    ):
        fit_weights(pool, queries.add_column("rds_reason", ["has the prompt of query 1"] * 20))


def test_rows_without_a_score_and_bad_columns():
    pool, queries, _ = scored(np.random.default_rng(5), {"a": 1.0, "b": 1.0}, num_queries=10)
    holes = [None if i % 2 else value for i, value in enumerate(queries["score_a"])]
    with_holes = queries.remove_columns("score_a").add_column("score_a", holes)
    assert fit_weights(pool, with_holes).evidence_["queries"] == 5
    with pytest.raises(ValueError, match="4 of 8 held-back queries .* 4 queries lack a score"):
        fit_weights(pool, with_holes.select(range(8)))
    with pytest.raises(ValueError, match='column "score_x" is missing'):
        fit_weights(pool, queries, ["score_x"])
    with pytest.raises(ValueError, match="no score column is in both"):
        fit_weights(pool, queries.rename_columns({"score_a": "a", "score_b": "b"}))
    with pytest.raises(ValueError, match="each only once"):
        fit_weights(pool, queries, ["score_a", "score_a"])


def test_the_command_fits_selects_and_records(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pool, queries, _ = scored(np.random.default_rng(0), {"a": 1.5, "b": 1.5})
    pool.to_parquet("pool.parquet")
    queries.to_parquet("queries.parquet")
    command = ["select", "--scores", "pool.parquet", "--selector", "weighted_ranks", "--k", "20"]
    fit = ["--fit-on", "queries.parquet"]
    assert main([*command, *fit, "--output", "subset.jsonl"]) == 0
    out = capsys.readouterr().out
    assert "mix" in out and "The mix leads the best single column" in out
    step = Selection.load(record_of(tmp_path / "subset.jsonl")).chain[0]
    assert step["fitted"]["queries"] == 40 and set(step["weights"]) == {"score_a", "score_b"}
    assert main([*command, *fit, "--fit-columns", "score_b", "--output", "b.jsonl"]) == 0
    assert main([*command, *fit, "--weights", "score_a=1", "--output", "c.jsonl"]) == 2
    assert "--fit-on fits the weights; leave out --weights" in capsys.readouterr().err
    assert main([*command, "--fit-columns", "score_b", "--weights", "score_a=1", "--output", "c.jsonl"]) == 2
    assert "add --fit-on" in capsys.readouterr().err
    assert (
        main(["select", "--scores", "pool.parquet", "--selector", "random", *fit, "--k", "2", "--output", "c.jsonl"])
        == 2
    )
    assert "the selector is random" in capsys.readouterr().err
    assert main([*command, "--output", "c.jsonl"]) == 2
    assert "needs --weights" in capsys.readouterr().err


def test_queries_are_scored_like_the_pool(tmp_path, monkeypatch, capsys):
    """Word weights of the pool, not of the few queries; scores of another scorer are refused."""
    monkeypatch.chdir(tmp_path)
    keys = ("prompt", "completion")
    Dataset.from_list([{key: row[key] for key in keys} for row in demo.make_pool(80, seed=5)]).to_json("pool.jsonl")
    rows = demo.make_queries("sum", 16, seed=9)
    Dataset.from_list(rows[:8]).to_json("known.jsonl")
    Dataset.from_list(rows[8:]).to_json("held_back.jsonl")
    score = ["score", "--scorer", "tfidf", "--queries", "sum=known.jsonl"]
    assert main([*score, "--dataset", "pool.jsonl", "--output-dir", "scores"]) == 0
    assert main([*score, "--dataset", "held_back.jsonl", "--output-dir", "alone"]) == 0
    assert main([*score, "--dataset", "held_back.jsonl", "--pool", "pool.jsonl", "--output-dir", "like_pool"]) == 0
    fitted = TFIDF().fit({"sum": Dataset.from_json("known.jsonl")}, pool=Dataset.from_json("pool.jsonl"))  # type: ignore[arg-type]
    expected = fitted(Dataset.from_json("held_back.jsonl")[:])["score_tfidf_sum"]  # type: ignore[index]
    assert load_scores("like_pool")["score_tfidf_sum"][:] == pytest.approx(expected)
    select = [
        "select",
        "--scores",
        "scores",
        "--selector",
        "weighted_ranks",
        "--fit-columns",
        "score_tfidf_sum",
        "--k",
        "5",
    ]
    capsys.readouterr()
    assert main([*select, "--fit-on", "alone", "--output", "a.jsonl"]) == 2
    assert "the tfidf scores of fit_on and of scores are not comparable (pool" in capsys.readouterr().err
    assert main([*select, "--fit-on", "like_pool", "--output", "a.jsonl"]) == 0
    assert "score_tfidf_sum is the only column" in capsys.readouterr().out.lower()
    length = ["score", "--scorer", "length", "--dataset", "pool.jsonl", "--pool", "pool.jsonl", "--output-dir", "l"]
    assert main(length) == 2 and "learns nothing from a pool" in capsys.readouterr().err
