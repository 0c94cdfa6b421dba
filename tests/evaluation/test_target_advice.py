"""Representations ranked without labels, against planted truths, and the command over real scorers."""

import json
from pathlib import Path

import numpy as np
import pytest
from adapters import train_adapter
from datasets import Dataset

from hf_select import LESS, TFIDF, Embedding, Perplexity, RDSPlus, demo
from hf_select.cli.main import main
from hf_select.data.rows import conversations_of
from hf_select.evaluation.advise_target import advise_target, compared, recommend_representation
from hf_select.evaluation.held_back import _mean_found, found, halves, mean_over_tasks
from hf_select.evaluation.representations import candidate_layers, representations
from hf_select.reports.target_advice_result import RepresentationResult


def planted(rng, signal, num_rows=300, num_queries=20, num_relevant=30):
    """(rows, queries) as unit vectors: the queries and the first rows share a direction as far as `signal` says."""
    vectors = rng.normal(size=(num_rows + num_queries, 16))
    vectors[:num_relevant, 0] += signal
    vectors[num_rows:, 0] += signal
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[:num_rows], vectors[num_rows:]


def found_in(rows, queries, seed=0, splits=10):
    pairs = halves(len(queries), splits, np.random.default_rng(seed))
    return found(rows @ queries.T, queries @ queries.T, pairs)


def test_found_is_what_is_worked_by_hand():
    # Queries 0 and 1; held-back query 1 has similarity .5 to query 0, and 2 of 3 rows have more; the other way round
    # one row has as much and one more.
    rows = np.array([[0.9, 0.1], [0.6, 0.5], [0.1, 0.6]])
    queries = np.array([[1.0, 0.5], [0.5, 1.0]])
    pairs = [(np.array([0]), np.array([1])), (np.array([1]), np.array([0]))]
    each = 1 - np.array([1.5, 2]) / 3
    assert _mean_found(rows, queries, pairs, False) == pytest.approx(each.mean())
    assert _mean_found(rows - 1, queries, pairs, False) == 1, "above all rows"
    assert _mean_found(rows + 1, queries, pairs, False) == pytest.approx(0), "below all rows"
    # By the mean over two known queries the third has .3, and rows .5, .55 and .35; by the largest .6 and .9, .6, .6.
    rows, queries = np.c_[rows, [0, 0, 0]], np.array([[1, 0, 0], [0, 1, 0], [0.6, 0, 1]])
    both = [(np.array([0, 1]), np.array([2])), (np.array([2]), np.array([0, 1]))]
    of_others = 2 * (1 - 1.5 / 3)  # each has 0, as all rows have
    for mean, rank in ((True, 3), (False, 2)):
        expected = (1 - rank / 3 + of_others) / 3
        assert _mean_found(rows, queries, both, mean) == pytest.approx(expected)


def test_the_jackknife_leaves_out_each_query_in_both_roles():
    rng = np.random.default_rng(0)
    rows, queries = planted(rng, 2.0, num_queries=6)
    of_rows, of_queries = rows @ queries.T, queries @ queries.T
    pairs = halves(6, 2, rng)
    without = []
    for i in range(6):
        kept = np.delete(np.arange(6), i)
        left = [tuple(np.searchsorted(kept, half[half != i]) for half in pair) for pair in pairs]
        without.append(found(of_rows[:, kept], of_queries[np.ix_(kept, kept)], left).mean())  # type: ignore[arg-type]
    values = found(of_rows, of_queries, pairs)
    np.testing.assert_allclose(values - values.mean(), 5 * (np.mean(without) - without), atol=1e-12)


@pytest.mark.parametrize("num_queries", [8, 9])
def test_every_query_is_held_back_once_a_split_and_never_known_then(num_queries):
    pairs = halves(num_queries, 3, np.random.default_rng(0))
    assert np.bincount(np.concatenate([held_back for _, held_back in pairs])).tolist() == [3] * num_queries
    for known, held_back in pairs:
        assert sorted([*known, *held_back]) == list(range(num_queries)) and abs(len(known) - len(held_back)) <= 1


def test_rows_and_queries_in_another_order_are_found_as_well():
    rng = np.random.default_rng(1)
    rows, queries = planted(rng, 2.0)
    pairs = halves(len(queries), 4, rng)
    at = found(rows @ queries.T, queries @ queries.T, pairs)
    order, shuffled = rng.permutation(len(queries)), rng.permutation(rows)
    place = np.argsort(order)
    again = found(
        shuffled @ queries[order].T, queries[order] @ queries[order].T, [(place[a], place[b]) for a, b in pairs]
    )
    np.testing.assert_allclose(again, at[order], rtol=1e-6)
    np.testing.assert_allclose(found(np.exp(rows @ queries.T), np.exp(queries @ queries.T), pairs), at, rtol=1e-6)


def test_the_representation_that_sees_the_target_comes_first_and_noise_last():
    rng = np.random.default_rng(2)
    values = {name: [found_in(*planted(rng, signal))] for name, signal in (("a", 0.0), ("b", 1.5), ("c", 4.0))}
    found_at, leads = compared(values, ["a", "b"])
    assert found_at["a"].value < found_at["b"].value < found_at["c"].value
    assert leads["c"]["a"].low > 0 and leads["c"]["b"].low > 0 and set(leads["a"]) == {"b"}


def test_relevant_rows_cost_a_good_representation_less_than_noise_costs_a_bad_one():
    """With 150 of 300 rows of the target, held-back queries are among them: still above a weaker representation."""
    rng = np.random.default_rng(3)
    good, weak = (found_in(*planted(rng, signal, num_relevant=150)).mean() for signal in (6.0, 1.0))
    assert good > weak + 0.05, (good, weak)


def test_a_mean_over_tasks_counts_tasks_and_not_queries():
    values = [np.array([1.0, 3.0]), np.zeros(100)]
    estimate = mean_over_tasks(values)
    # One task without variance: Student's t of the other, 1 degree of freedom, halved like the mean.
    assert estimate.value == 1.0 and estimate.high == pytest.approx(1 + 12.706 / 2, abs=1e-3)
    assert mean_over_tasks([np.ones(5)]).low == 1.0
    wider = mean_over_tasks(values, comparisons=10)
    assert wider.low < estimate.low < estimate.value < estimate.high < wider.high


def test_an_interval_of_a_lead_holds_the_truth_as_often_as_it_says(samples=150):
    """Each sample has queries of its own, of which two representations see different parts. The truth is the mean over
    all samples."""
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(200, 12))
    leads = []
    for _ in range(samples):
        queries = rng.normal(size=(16, 12)) + [2, 1, *[0] * 10]
        one, other = (
            found_in(rows[:, part] / norm(rows[:, part]), queries[:, part] / norm(queries[:, part]), splits=4)
            for part in (slice(0, 8), slice(1, 12))
        )
        leads.append(mean_over_tasks([one - other]))
    truth = np.mean([lead.value for lead in leads])
    held = np.mean([lead.low <= truth <= lead.high for lead in leads])
    assert truth > 0.1 and held >= 0.88, (truth, held)


def norm(vectors):
    return np.linalg.norm(vectors, axis=1, keepdims=True)


def results_of(**values):
    """Results, best first, of one task; the scorer is the first word before a "_"."""
    arrays = {name: [np.array(of_task)] for name, of_task in values.items()}
    baselines = [name for name in arrays if "_" not in name]
    found_at, leads = compared(arrays, baselines)
    ordered = sorted(arrays, key=lambda name: -found_at[name].value)
    results = {name: RepresentationResult(name.split("_")[0], {}, found_at[name], {}, leads[name]) for name in ordered}
    return results, baselines


def test_a_representation_is_recommended_only_if_its_lead_is_clear():
    spread = np.linspace(-0.02, 0.02, 10)
    low, high = 0.5 + spread, 0.8 - spread
    clear = results_of(tfidf=low, rds=low + 0.01 * np.sign(spread), rds_center=high)
    name, message = recommend_representation(*clear)
    assert name == "rds_center" and "clearly more than tfidf" in message and " and rds (" in message
    noisy = 0.51 + 5 * spread[::-1]
    name, message = recommend_representation(*results_of(tfidf=low, rds=low - 0.1, rds_center=noisy))
    assert name == "tfidf" and "the best, rds_center, does not differ from it clearly" in message
    name, _ = recommend_representation(*results_of(tfidf=low, rds=high - 0.01 + 5 * spread, rds_center=high))
    assert name == "rds", "clearly above word counts, not above the published form"
    name, message = recommend_representation(*results_of(tfidf=high, rds=low, rds_center=low + 0.1))
    assert name == "tfidf" and "and none is better" in message
    # A dearer scorer is no reason against a cheaper one that it does not beat.
    name, _ = recommend_representation(*results_of(tfidf=low, rds=low, rds_center=high, less=high - 0.001))
    assert name == "rds_center"


@pytest.fixture(scope="module")
def pool():
    return Dataset.from_list(
        [{key: row[key] for key in ("prompt", "completion")} for row in demo.make_pool(120, seed=5)]
    )


@pytest.fixture(scope="module")
def queries():
    return {task: Dataset.from_list(demo.make_queries(task, 10, seed=9)) for task in ("sum", "weather")}


def test_similarities_are_those_of_the_scorer_with_these_settings(tmp_path, pool, queries, model_path):
    """All layers are encoded in one pass, and each subset must give what RDSPlus gives with those layers."""
    every = list(representations(RDSPlus(model_path, layers=[1], max_length=40), pool, queries, tmp_path, 50))
    assert [each.settings for each in every[:3]] == [{}, {"layers": [1, -1]}, {"center": True}] and len(every) == 6
    for each in every:
        scorer = RDSPlus(model_path, max_length=40, **each.settings)
        scorer.fit(queries, pool=pool if scorer.center else None)
        expected, _ = scorer.similarities(list(conversations_of(pool)))
        for number, task in enumerate(queries):
            of_task = scorer.task_of_query_ == number
            np.testing.assert_allclose(each.rows[task], expected[:, of_task], atol=2e-4, err_msg=str(each.settings))
            of_queries, _ = scorer.similarities(list(conversations_of(queries[task])))
            np.testing.assert_allclose(each.queries[task], of_queries[:, of_task], atol=2e-4)
    (words,) = representations(TFIDF(), pool, queries, tmp_path / "words", 50)
    expected, _ = TFIDF().fit(queries, pool=pool).similarities(list(conversations_of(pool)))
    np.testing.assert_allclose(np.hstack(list(words.rows.values())), expected, atol=1e-6)
    np.testing.assert_allclose(np.diag(words.queries["sum"]), 1, atol=1e-6)


def test_an_encoder_reads_held_back_queries_as_rows_and_known_ones_with_its_instruction(
    tmp_path, pool, queries, model_path
):
    demo.save_encoder(Path(model_path), tmp_path / "encoder")
    scorer = Embedding(str(tmp_path / "encoder"), query_instruction="Find rows like this one: ")
    every = list(representations(scorer, pool, queries, tmp_path / "index", 50))
    assert [each.settings for each in every] == [{}, {"center": True}, {"center": True, "whiten": 0.5}]
    expected, _ = scorer.fit(queries).similarities(list(conversations_of(queries["weather"])))
    np.testing.assert_allclose(every[0].queries["weather"], expected[:, scorer.task_of_query_ == 1], atol=2e-4)
    assert np.abs(np.diag(every[0].queries["weather"]) - 1).min() > 1e-3, "with the instruction it is another text"


def test_less_is_scored_by_the_mean_over_known_queries(tmp_path, pool, queries, model_path, rows):
    checkpoints = train_adapter(model_path, tmp_path / "warm_up", rows[:16], epochs=1)
    scorer = LESS(model_path, checkpoints)
    few = {"sum": queries["sum"]}
    (each,) = representations(scorer, pool.select(range(8)), few, tmp_path / "scores", 50)
    assert each.mean and each.settings == {"query_mode": "repo"} and each.rows["sum"].shape == (8, 10)
    scores = LESS(model_path, checkpoints, query_mode="repo").fit(few)(pool.select(range(8))[:])
    np.testing.assert_allclose(each.rows["sum"].mean(axis=1), scores["score_less_sum"], atol=1e-5)


def test_layers_are_at_shares_of_the_depth_or_those_given(model_path):
    assert candidate_layers(RDSPlus(model_path)) == [1, -1], "two thirds of 2 layers"
    assert candidate_layers(RDSPlus(model_path, layers=[2, -1, 1])) == [2, 1, -1]


def test_a_call_resumes_and_tells_the_cost(tmp_path, pool, queries, model_path):
    scorers = [TFIDF(), RDSPlus(model_path, max_length=40)]
    result = advise_target(pool, queries, scorers, tmp_path, share=0.5, splits=2)
    assert (
        result.baselines == ["tfidf", "rds"]
        and result.sample_rows == 60
        and result.queries == {"sum": 10, "weather": 10}
    )
    assert list(result.results) == sorted(result.results, key=lambda name: -result.results[name].found.value)
    one = result.results["rds layers 1 -1 center whiten 0.5"]
    assert one.settings == {"layers": [1, -1], "center": True, "whiten": 0.5}
    assert one.found.value == pytest.approx(np.mean([each.value for each in one.by_task.values()]))
    assert result.pool_cost["rds"].flops == pytest.approx(2 * result.sample_cost["rds"].flops) and one.leads["tfidf"]
    part = next((tmp_path / "rds" / "rows" / "vectors").glob("part-*"))
    before = part.stat().st_mtime_ns
    again = advise_target(pool, queries, [TFIDF(), RDSPlus(model_path, max_length=40)], tmp_path, share=0.5, splits=2)
    assert again == result and part.stat().st_mtime_ns == before
    written = json.loads((tmp_path / "advice.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(result.to_dict()))
    assert result.recommended in (tmp_path / "advice.md").read_text(encoding="utf-8")
    other = advise_target(pool, queries, scorers, tmp_path, share=0.5, splits=3)
    assert other.results["rds"].found != result.results["rds"].found and part.stat().st_mtime_ns == before


def test_rows_that_repeat_a_query_are_left_out(tmp_path, pool, queries):
    """Copies of the queries in the pool would take the first ranks from those that are held back."""
    planted_copies = Dataset.from_list([*pool.to_list(), *queries["sum"].to_list() * 2])
    with_copies = advise_target(planted_copies, queries, [TFIDF()], tmp_path / "a", share=1)
    assert with_copies.repeating["sum"] >= 20 and any("repeat queries of sum" in note for note in with_copies.notes)
    assert with_copies.results["tfidf"].by_task["sum"].value > 0.6


def test_what_cannot_be_advised_on_is_refused(tmp_path, pool, queries, model_path):
    with pytest.raises(ValueError, match='task "sum" has 5 queries, too few to hold half of them back; .* at least 8'):
        advise_target(pool, {"sum": queries["sum"].select(range(5))}, [TFIDF()], tmp_path, share=1)
    with pytest.raises(ValueError, match="0.02 of 120 rows are 2, too few .* \\(share 0.417\\)"):
        advise_target(pool, queries, [TFIDF()], tmp_path)
    with pytest.raises(ValueError, match="leave out center and whiten of rds"):
        advise_target(pool, queries, [RDSPlus(model_path, center=True)], tmp_path, share=1)
    with pytest.raises(ValueError, match="scorer perplexity compares rows with no queries"):
        advise_target(pool, queries, [Perplexity(model_path)], tmp_path, share=1)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="each only once"):
        advise_target(pool, queries, [TFIDF(), TFIDF()], tmp_path, share=1)
    with pytest.raises(ValueError, match="share is 3"):
        advise_target(pool, queries, [TFIDF()], tmp_path, share=3)
    empty = Dataset.from_list([*queries["sum"].to_list(), {"prompt": None, "completion": "x"}])
    with pytest.raises(ValueError, match='query 10 of task "sum" cannot be'):
        advise_target(pool, {"sum": empty}, [RDSPlus(model_path)], tmp_path, share=1)


def test_the_command_names_the_settings_to_score_with(tmp_path, monkeypatch, capsys, model_path, pool, queries):
    monkeypatch.chdir(tmp_path)
    pool.to_json("pool.jsonl")
    for task, rows in queries.items():
        rows.to_json(f"{task}.jsonl")
    command = ["advise", "--scorer", "rds", "--model", model_path, "--max-length", "40", "--dataset", "pool.jsonl"]
    command += ["--share", "0.5", "--output-dir", "a", "--queries", "sum=sum.jsonl", "weather=weather.jsonl"]
    assert main([*command, "--splits", "3"]) == 2
    assert "--splits changes nothing without --representations" in capsys.readouterr().err
    command += ["--representations"]
    assert main([*command, "--which", "worst"]) == 2
    assert "--which changes nothing with --representations" in capsys.readouterr().err
    assert main([*command, "--splits", "3"]) == 0
    out = capsys.readouterr().out
    result = json.loads((tmp_path / "a" / "advice.json").read_text(encoding="utf-8"))
    assert result["message"] in out and result["splits"] == 3 and "lead over tfidf" in out
    following = out[out.index("hf-select score") :].splitlines()[0].split()[1:]
    assert following[2] == result["results"][result["recommended"]]["scorer"]
    assert main(following) == 0, "the next command runs as it is printed"
