"""Advice on a sample against planted truths, and the command over real scorers."""

import json

import numpy as np
import pytest
from datasets import Dataset

from hf_select import demo
from hf_select.cli.main import main
from hf_select.evaluation.advise import advise
from hf_select.evaluation.between_groups import (
    _jackknife_error,
    _share,
    _sums_of_squares,
    between_groups,
    between_groups_interval,
)
from hf_select.evaluation.recommend import recommend
from hf_select.evaluation.sample_measurements import lift_kept, measure_sample, shared_of_best
from hf_select.reports.advice_result import AdviceCosts, AdviceSettings, ScoringCost, TrainingCost
from hf_select.scoring.length import Length


N = 400
RNG = np.random.default_rng(0)
LENGTHS = {"row": np.exp(RNG.normal(5, 1, N)), "responses": np.exp(RNG.normal(4, 1, N))}
SCORES = RNG.normal(size=N)


def advice_on(large, small=None, sources=None, flops=(1e15, 1e13), training=1e17, which="best"):
    """The advice on these scores, where all else is as it should be."""
    measurements = measure_sample(large, small, LENGTHS, sources, 0.1, which)
    costs = {name: ScoringCost(f / 1e12, f) for name, f in zip(("large", "small"), flops, strict=True)}
    if small is None:
        del costs["small"]
    trained = None if training is None else TrainingCost(training, 0.1 * training)
    settings = AdviceSettings(0.05, 0.1, which, 2.0, 0, None, "source")
    return measurements, recommend(measurements, AdviceCosts({}, costs, 0.0, trained), settings, {}, {}, N)


def test_agreement_is_what_is_worked_by_hand():
    a, b = np.array([5.0, 4, 3, 2, 1, 0, -1, -2, -3, -4]), np.array([4.0, 5, -9, 2, 1, 0, -1, -2, -3, 3])
    assert shared_of_best(a, b, 0.2) == 1.0 and shared_of_best(a, b, 0.3) == pytest.approx(2 / 3)
    # b's best three are rows 1, 0 and 9: ranks 8/9, 1 and 0; a's own are 1, 8/9 and 7/9.
    assert lift_kept(a, b, 0.3) == pytest.approx(((17 / 9) / 3 - 0.5) / ((24 / 9) / 3 - 0.5))
    # Two groups that part the ranks perfectly in halves: eta squared of 1..4 in pairs is 1 - 1/5; corrected for one of
    # three degrees of freedom that the groups take.
    assert between_groups(np.array([1.0, 2, 3, 4]), np.array([0, 0, 1, 1])) == pytest.approx(1 - (1 / 5) * 3 / 2)


def test_many_sources_that_tell_nothing_explain_nothing():
    rng = np.random.default_rng(1)
    found = [between_groups(rng.normal(size=300), rng.integers(0, 60, 300)) for _ in range(200)]
    assert abs(np.mean(found)) < 0.02, "without the correction it is 0.2"


def scores_of_groups(rng, n, groups, effect, unequal):
    """Scores in groups of Zipfian or equal sizes; with unequal sizes the spread within them differs, too."""
    weights = 1 / np.arange(1, groups + 1) if unequal else np.ones(groups)
    code = rng.choice(groups, n, p=weights / weights.sum())
    means = np.random.default_rng(groups).normal(size=groups)  # the same in every sample
    spread = np.exp(0.5 * means[::-1]) if unequal else np.ones(groups)
    return effect * means[code] + spread[code] * rng.normal(size=n), code


@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.parametrize("effect", [0.0, 0.3, 1.0, 3.0])
@pytest.mark.parametrize(("n", "groups"), [(100, 3), (200, 100), (400, 20)])
def test_the_interval_of_sources_holds_the_truth_as_often_as_it_says(n, groups, effect, unequal, samples=100):
    """A bootstrap over rows is above 0 in every null sample of 200 rows with 100 sources."""
    rng = np.random.default_rng(0)
    truth = max(0.0, between_groups(*scores_of_groups(rng, 200_000, groups, effect, unequal)))
    found = [between_groups_interval(*scores_of_groups(rng, n, groups, effect, unequal)) for _ in range(samples)]
    held = np.mean([low <= truth <= high for _, low, high in found])
    assert held >= 0.9, held
    assert abs(np.mean([value for value, _, _ in found]) - truth) < 0.03, "the estimate is biased"


def test_an_interval_of_sources_at_its_limits():
    scores = np.arange(60.0)
    assert between_groups_interval(scores, np.zeros(60)) == (0, 0, 0)
    assert between_groups_interval(scores, np.arange(60)) == (0, 0, 1), "every row is its own source"
    assert between_groups_interval(np.ones(60), np.arange(60) % 3) == (0, 0, 0)
    share, low, high = between_groups_interval(np.arange(60) // 20, np.arange(60) // 20)
    assert (share, high) == (1, 1) and low > 0.95


def test_the_jackknife_leaves_out_each_row():
    rng = np.random.default_rng(4)
    ranks, groups = rng.random(40), rng.integers(0, 12, 40)
    assert 1 in np.bincount(groups)
    left_out = [_share(*_sums_of_squares(np.delete(ranks, i), np.delete(groups, i))) for i in range(40)]
    error = np.sqrt(39 / 40 * ((left_out - np.mean(left_out)) ** 2).sum())
    assert _jackknife_error(ranks, groups) == pytest.approx(error)


def test_a_stand_in_that_chooses_the_same_is_enough():
    found, advised = advice_on(SCORES, SCORES + RNG.normal(0, 0.1, N))
    assert advised.recommendation == "small" and "for 0.01 of its FLOPs" in advised.message
    for estimate in (found.agreement.spearman, found.agreement.lift_kept, found.agreement.overlap):
        assert estimate.low <= estimate.value <= estimate.high <= 1
    assert found.agreement.spearman.low > 0.98


def test_a_stand_in_that_chooses_otherwise_is_not():
    found, advised = advice_on(SCORES, RNG.normal(size=N))
    assert advised.recommendation == "large" and advised.message.startswith("the small scorer is no stand-in")
    assert found.agreement.lift_kept.low < 0 < found.agreement.lift_kept.high
    assert found.agreement.overlap.low <= 0.1 <= found.agreement.overlap.high


def test_what_the_sample_does_not_settle_is_said():
    close = SCORES + np.random.default_rng(3).normal(0, 0.45, N)
    found, advised = advice_on(SCORES, close)
    kept = found.agreement.lift_kept
    assert kept.low < 0.9 <= kept.high and advised.recommendation == "a larger sample"


@pytest.mark.parametrize("direction", [1, -1])
def test_a_score_that_is_length_in_disguise_is_called_so(direction):
    length = direction * np.log(LENGTHS["responses"]) + RNG.normal(0, 0.2, N)
    found, advised = advice_on(length, SCORES)
    assert advised.recommendation == ("longest" if direction > 0 else "shortest")
    assert "length of the responses" in advised.message and "costs no model" in advised.message
    assert abs(found.length["row"]["large"].value) < 0.2
    # Of a score whose lowest values are taken, the other end is long.
    assert advice_on(length, SCORES, which="worst")[1].recommendation == ("shortest" if direction > 0 else "longest")
    leaning = direction * np.log(LENGTHS["responses"]) + RNG.normal(0, 1.0, N)
    advised = advice_on(leaning)[1]
    assert advised.recommendation == "large" and any(
        "lean on the length of the responses" in words for words in advised.notes
    )


def test_a_score_that_names_the_source_is_called_so():
    sources = np.array(["a", "b", "c", "d"])[RNG.integers(0, 4, N)]
    by_source = np.select([sources == "a", sources == "b", sources == "c"], [0.0, 3.0, 6.0], 9.0) + SCORES
    found, advised = advice_on(by_source, sources=sources)
    assert found.source.num_sources == 4 and found.source.shares["large"].low > 0.8
    assert any("tell sources apart" in words for words in advised.notes)
    found, advised = advice_on(SCORES, sources=sources)
    assert abs(found.source.shares["large"].value) < 0.03 and advised.notes == []


def test_a_pass_that_costs_more_than_training_on_everything_is_no_go():
    advised = advice_on(SCORES, training=4e14)[1]
    assert (
        advised.recommendation == "train on everything"
        and "costs 2.5 times the FLOPs of training on every row" in advised.message
    )
    # The small scorer costs a hundredth: with it the pass is worth its cost.
    assert advice_on(SCORES, SCORES, training=4e14)[1].recommendation == "small"
    advised = advice_on(SCORES, training=4e15)[1]
    assert advised.recommendation == "large" and any(
        "2.5 times the training on the selection" in words for words in advised.notes
    )


def test_an_interval_holds_the_truth_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr("hf_select.evaluation.statistics.BOOTSTRAP_DRAWS", 200)
    rng, truth, held = np.random.default_rng(5), 6 / np.pi * np.arcsin(0.6 / 2), 0
    for _ in range(100):
        a = rng.normal(size=150)
        b = 0.6 * a + 0.8 * rng.normal(size=150)
        estimate = measure_sample(a, b, {}, None, 0.1).agreement.spearman
        held += estimate.low <= truth <= estimate.high
    assert 88 <= held <= 99


class Planted(Length):
    """Scores a row by what its prompt says, so that the truth is known."""

    name = "planted"

    def measure(self, rows):
        scores = [float(row.messages[0]["content"].split()[-1]) for row in rows]
        return [{"score_planted": None if score < 0 else score} for score in scores]


def planted_pool(n: int = 1000) -> Dataset:
    values = np.random.default_rng(7).permutation(n) + 0.0
    values[:100] = -1.0
    return Dataset.from_dict(
        {"prompt": [f"the score is {value}" for value in values], "completion": ["yes"] * n, "source": ["s"] * n}
    )


def test_a_sample_is_scored_once_and_costs_are_carried_to_the_pool(tmp_path, model_path):
    pool = planted_pool()
    settings = {"small": Planted(of="response"), "share": 0.2, "trainee": model_path, "source_column": "source"}
    result = advise(pool, Planted(), tmp_path / "a", queries={"q": pool.select(range(100, 103))}, **settings)
    assert (result.pool_rows, result.sample_rows) == (1000, 200) and result.advice.recommendation == "small"
    spearman = result.measurements.agreement.spearman
    assert (spearman.value, spearman.low, spearman.high) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))
    assert result.overlap == {"q": 3}, "looked for in the whole pool"
    assert any("both scorers give every row the same score" in words for words in result.advice.notes)
    unscored = sum(result.unscored["large"].values())
    assert 5 < unscored < 40 and result.measurements.num_measured == 200 - unscored
    assert any("have no score by the large scorer" in words for words in result.advice.notes)
    assert result.costs.pool["large"].seconds == 5 * result.costs.sample["large"].seconds
    # Two layers of 32: what multiplies, by tokens, by passes.
    training = result.costs.training
    assert training.everything == pytest.approx(6 * 2 * training.tokens * parameters(model_path))
    part = next((tmp_path / "a" / "large" / "scored").iterdir())
    before = part.stat().st_mtime_ns
    again = advise(pool, Planted(), tmp_path / "a", queries={"q": pool.select(range(100, 103))}, **settings)
    assert again == result and part.stat().st_mtime_ns == before
    assert json.loads((tmp_path / "a" / "advice.json").read_text(encoding="utf-8")) == json.loads(
        json.dumps(result.to_dict())
    )


def parameters(model_path):
    from hf_select.models.causal_lm import CausalLM

    loaded = CausalLM(model_path).load()
    return loaded.backbone_parameters + loaded.head_parameters


def test_what_cannot_be_advised_on_is_refused(tmp_path):
    pool = planted_pool()
    with pytest.raises(ValueError, match="0.02 of 1,000 rows are 20, too few .* at least 50 \\(share 0.05\\)"):
        advise(pool, Planted(), tmp_path)
    with pytest.raises(ValueError, match='column "sauce" is missing'):
        advise(pool, Planted(), tmp_path, share=0.1, source_column="sauce")
    with pytest.raises(ValueError, match='which is "middle"'):
        advise(pool, Planted(), tmp_path, share=0.1, which="middle")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rows of the sample have a score; at least 50"):
        measure_sample(np.full(60, np.nan), None, {}, None, 0.1)
    with pytest.raises(ValueError, match="small is the same scorer as the one in question \\(planted: of all\\)"):
        advise(pool, Planted(), tmp_path, share=0.1, small=Planted())
    with pytest.raises(ValueError, match="share is 2 "):
        advise(pool, Planted(), tmp_path, share=2)


def test_the_command_advises(tmp_path, monkeypatch, capsys, model_path):
    monkeypatch.chdir(tmp_path)
    rows = [{key: row[key] for key in ("prompt", "completion")} for row in demo.make_pool(300, seed=5)]
    Dataset.from_list(rows).to_json("pool.jsonl")
    Dataset.from_list(rows[:5]).to_json("queries.jsonl")
    command = ["advise", "--scorer", "perplexity", "--model", model_path, "--dataset", "pool.jsonl", "--share", "0.2"]
    command += ["--small", f"model={model_path}", "max_length=16", "--output-dir", "a", "--queries", "q=queries.jsonl"]
    assert main(command) == 0
    result = json.loads((tmp_path / "a" / "advice.json").read_text(encoding="utf-8"))
    out = capsys.readouterr().out
    assert result["advice"]["message"] in out and "rows of the pool repeat queries of q" in out
    assert result["scorers"]["small"]["settings"]["max_length"] == "16" and result["overlap"]["q"] >= 5
    assert result["costs"]["pool"]["large"]["flops"] > result["costs"]["pool"]["small"]["flops"] > 0
    assert result["costs"]["training"]["everything"] > 0
    assert "both scorers give every row the same score" not in out
    assert main([word for word in command if word != "max_length=16"]) == 2
    assert "small is the same scorer" in capsys.readouterr().err
    targeted = ["advise", "--scorer", "tfidf", "--dataset", "pool.jsonl", "--share", "0.2", "--output-dir", "b"]
    assert main(targeted) == 2 and "scorer tfidf needs --queries TASK=FILE" in capsys.readouterr().err
    assert main([*targeted, "--queries", "q=queries.jsonl"]) == 0
    found = json.loads((tmp_path / "b" / "advice.json").read_text(encoding="utf-8"))
    assert found["measurements"]["agreement"] is None and found["costs"]["training"] is None
    summary = json.loads((tmp_path / "b" / "large" / "summary.json").read_text(encoding="utf-8"))
    once, seconds = summary["preparation_cost"]["queries"]["seconds"], found["costs"]["pool"]["large"]["seconds"]
    assert seconds == pytest.approx(5 * summary["cost"]["seconds"] + once), "queries are read once"
    assert (tmp_path / "b" / "advice.html").exists() and "no smaller one" in (tmp_path / "b" / "advice.md").read_text()
