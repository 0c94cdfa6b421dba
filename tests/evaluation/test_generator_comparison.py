"""Generators compared: hand-worked statistics, judges that like what stands first, and a base model that learns."""

import json
import random

import numpy as np
import pytest
from datasets import Dataset
from scripted_generator import Scripted
from scripted_server import Reply, ScriptedServer

from hf_select import demo
from hf_select.cli.main import main
from hf_select.evaluation.answer_statistics import (
    answer_agreement,
    answer_statistics,
    consensus,
    distinct,
    languages,
    rouge_l,
)
from hf_select.evaluation.generator_comparison import (
    judge_answers,
    ranking_agreement,
    score_answers,
    train_on_answers,
)
from hf_select.evaluation.judge import Pair, judge, pair_verdicts
from hf_select.evaluation.model_answers import Answers
from hf_select.evaluation.statistics import mean_interval
from hf_select.generation.generator import Answer
from hf_select.training.equal_tokens import Recipe


def dataset(**answers):
    """model=[answers to prompt 0, 1, ...]; None where it did not answer."""
    rows = [
        {"prompt": f"Prompt {i}?", "completion": text, "model": model}
        for model, texts in answers.items()
        for i, text in enumerate(texts)
        if text is not None
    ]
    return Dataset.from_list(rows)


def answers(**texts):
    return Answers(dataset(**texts))


def test_only_prompts_that_all_have_answered_count_and_copies_of_a_prompt_are_matched_in_order():
    found = answers(a=["x", "y", "z"], b=["u", None, "w"])
    assert found.of("a") == ["x", "z"] and found.of("b") == ["u", "w"]
    twice = Dataset.from_list(
        [{"prompt": "Same?", "completion": f"{model}{i}", "model": model} for i in range(2) for model in "ab"]
    )
    found = Answers(twice)
    assert found.of("a") == ["a0", "a1"] and found.of("b") == ["b0", "b1"]
    named = dataset(a=["x", "y"], b=["u", "v"]).add_column("conversation", ["1", "2", "2", "1"])
    assert Answers(named).of("b") == ["v", "u"]
    for bad, reason in (
        (dataset(a=["x"]), "names 1 models"),
        (dataset(a=["x", None], b=[None, "y"]), "no prompt was answered by all models"),
        (dataset(a=["x"], b=["y"]).remove_columns("model"), 'column "model" is missing'),
    ):
        with pytest.raises(ValueError, match=reason):
            Answers(bad)


def test_statistics_by_hand():
    marked = "# Title\n\n- one\n- **two**\n\n```\ncode\n```\n| a | b |"
    found = answer_statistics(
        answers(a=[marked, "one two one two"], b=["I'm sorry, but I can't help with that.", "plain"])
    )
    a, b = found["a"], found["b"]
    assert (*a.markup.values(), a.refusals) == (0.5,) * 5 + (0.0,)
    assert (*b.markup.values(), b.refusals) == (0.0,) * 5 + (0.5,)
    assert (a.words, a.answers, b.characters) == (
        5.0,
        2,
        (38 + 5) / 2,
    )  # title one two code a b; one two one two
    assert distinct([["a", "b", "a", "b"]], 1, 4) == 0.5 and distinct([["a", "b", "a", "b"]], 2, 4) == 2 / 3
    assert distinct([["a", "b"], ["c", "d"]], 2, 4) == 1.0, "an n-gram was taken across answers"
    assert distinct([["a", "b", "a", "b"]], 1, 2) == 1.0, "more words than all have were counted"
    low, high = mean_interval([1.0, 2.0, 3.0])
    assert low == pytest.approx(2 - 4.303 * 3**-0.5, abs=0.15) and low + high == pytest.approx(4)


def test_languages_are_told():
    pytest.importorskip("py3langid")
    texts = ["This is a sentence about the weather.", "Das ist ein Satz über das Wetter von heute.", "ok"]
    assert languages(texts) == {"en": 0.5, "de": 0.5}


def lcs(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    return int(table[-1, -1])


def test_rouge_l_is_that_of_the_table_of_subsequences():
    assert rouge_l("police killed the gunman".split(), "police kill the gunman".split()) == 0.75  # Lin 2004
    assert rouge_l("police killed the gunman".split(), "the gunman kill police".split()) == 0.5
    assert rouge_l([], ["a"]) == 0.0
    rng = random.Random(0)
    for _ in range(300):
        a, b = ([rng.choice("abcde") for _ in range(rng.randrange(1, 90))] for _ in range(2))
        assert rouge_l(a, b) == pytest.approx(2 * lcs(a, b) / (len(a) + len(b)))
        assert rouge_l(a, b) == rouge_l(b, a) and rouge_l(a, a) == 1


def test_agreement_and_consensus():
    found = answers(a=["one two three", "x y"], b=["one two three", "x z"], c=["other words here", "p q"])
    pairs = answer_agreement(found)["rouge_l"]
    assert pairs["a", "b"].tolist() == [1.0, 0.5] and pairs["a", "c"].tolist() == [0.0, 0.0]
    assert consensus(pairs, "abc") == {"a": 0.375, "b": 0.375, "c": 0.0}

    def vectors(rows):
        from hf_select.data.bad_rows import BadRow
        from hf_select.features.featurizer import Feature

        return [BadRow("no") if row.text == "p q" else Feature(np.array([len(row.text), 1.0])) for row in rows]

    alike = answer_agreement(found, vectors)["embedding"]
    assert alike["a", "b"] == pytest.approx([1.0, 1.0]) and np.isnan(alike["a", "c"][1])


# Judges.


PAIR = Pair("x", "y", [(str(i), f"asked {i}", f"good {i}", f"bad {i}") for i in range(4)])


def verdict(body):
    text = body["messages"][-1]["content"]
    first = text.partition("[answer A]\n")[2].partition("\n")[0]
    return text.partition("[what was asked]\nasked ")[2].partition("\n")[0], first.startswith("good")


def test_an_answer_wins_only_if_it_is_better_in_both_orders(tmp_path):
    def script(body):
        number, good_first = verdict(body)
        return {
            "0": '{"better": "A"}' if good_first else '{"better": "B"}',  # good, whatever the order
            "1": "A",  # what stands first
            "2": '```json\n{"better": "tie"}\n```' if good_first else "B",
            "3": '{"better": "B"}' if good_first else '{"better": "A"}',
        }[number]

    model = Scripted(script)
    found = judge([PAIR], model, tmp_path)["x", "y"]
    assert [(v.prompt, v.result, v.winners) for v in found] == [
        ("0", 1.0, ("first", "first")), ("1", 0.5, ("first", "second")),
        ("2", 0.5, ("tie", "first")), ("3", 0.0, ("second", "second")),
    ]  # fmt: skip
    line = pair_verdicts(PAIR, found)
    assert (line.wins, line.ties, line.losses, line.contradictions, line.judged) == (1, 2, 1, 1, 4)
    assert line.share_for_first_shown == pytest.approx(4 / 7)
    assert len(model.seen) == 8
    again = Scripted(script)
    assert judge([PAIR], again, tmp_path)["x", "y"] == found and not again.seen, "what was judged was judged again"


def test_a_verdict_that_cannot_be_read_is_asked_once_more_and_then_counts_for_nobody(tmp_path):
    model = Scripted(lambda body: "Both are fine." if "asked 1" in body["messages"][0]["content"] else "A")
    found = judge([PAIR], model, tmp_path)["x", "y"]
    assert [v.prompt for v in found] == ["0", "2", "3"] and pair_verdicts(PAIR, found).judged == 3
    assert len(model.seen) == 8 + 2
    lost = Scripted(lambda body: Answer(error="gone", retryable=True))
    assert judge([Pair("x", "z", PAIR.rows)], lost, tmp_path)["x", "z"] == []


def test_win_rates_over_all_others_with_their_intervals(tmp_path):
    texts = {"good": ["good"] * 12, "fair": ["fair"] * 12, "poor": ["poor"] * 12}
    order = ("good", "fair", "poor")

    def script(body):
        text = body["messages"][-1]["content"]
        a, b = (text.partition(f"[answer {x}]\n")[2].partition("\n")[0] for x in "AB")
        return json.dumps({"better": "A" if order.index(a) < order.index(b) else "B"})

    found = judge_answers(answers(**texts), Scripted(script), tmp_path, prompts=5)
    assert {model: rate.win_rate for model, rate in found.models.items()} == {
        "good": 1.0,
        "fair": 0.5,
        "poor": 0.0,
    }
    assert all(pair.judged == 5 and pair.wins == 5 for pair in found.pairs)


def test_scores_have_intervals_and_nulls_count_for_nobody():
    data = dataset(a=["x"] * 4, b=["y"] * 4).add_column("score_reward", [1.0, 2.0, 3.0, None, 0.0, 1.0, 2.0, 9.0])
    found = score_answers(Answers(data), "score_reward")
    assert (found["a"].mean, found["b"].mean, found["a"].prompts) == (2.0, 1.0, 3)
    assert found["a"].to_all.mean == pytest.approx(0.5) and found["a"].to_all.wins == 3
    lengths = score_answers(Answers(data), lambda rows: [len(row.messages[-1]["content"]) for row in rows])
    assert lengths["a"].mean == lengths["b"].mean == 1.0
    with pytest.raises(ValueError, match='column "score_x" is missing'):
        score_answers(Answers(data), "score_x")


# Rankings.


def test_rank_correlation_by_hand():
    ours = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    found = ranking_agreement(ours, {"a": 10, "b": 20, "d": 30, "c": 40, "e": 0})
    assert (
        found["models"] == 4 and found["spearman"] == pytest.approx(0.8) and found["kendall"] == pytest.approx(2 / 3)
    )
    with pytest.raises(ValueError, match="have 1 models in common"):
        ranking_agreement({"a": 1.0}, {"a": 1})


# What is learned.


@pytest.mark.slow
def test_the_same_base_model_is_trained_on_each_models_answers_to_the_same_prompts(tmp_path, model_path):
    data = Dataset.from_list(demo.make_answers(24, {"good": 0.0, "poor": 1.0}, seed=1))
    found = Answers(data)
    held_out = {"sum": Dataset.from_list(demo.make_queries("sum", 4, 9))}
    recipe = Recipe(model_path, learning_rate=3e-3, rows_per_step=8, max_length=64)
    result = train_on_answers(found, held_out, recipe, tmp_path / "t", prompts=16, seeds=2, passes=1)
    lines = result.comparison.budgets["16 rows"]["sum"]
    assert {"good", "poor", "random"} <= set(lines)
    assert lines["good"].runs.rows == lines["poor"].runs.rows == 16
    tokens = {name: line.runs.tokens for name, line in lines.items() if line.runs is not None}
    assert max(tokens.values()) - min(tokens.values()) <= 8 * 64, "runs were not trained on equally many tokens"
    (pair,) = result.between["sum"].values()
    between = pair.difference
    assert between.seeds == 2 and between.items == 4
    assert between.mean == pytest.approx(lines["good"].mean - lines["poor"].mean, abs=1e-6)


def test_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {**row, "score_r": float(i % 5)} for i, row in enumerate(demo.make_answers(12, {"good": 0.0, "poor": 1.0}))
    ]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["compare-generators", "--dataset", "answers.jsonl", "--output-dir", "o"]
    with ScriptedServer(lambda body: Reply('{"better": "tie"}')) as server:
        judging = ["--judge", "j", "--judge-base-url", server.url, "--judge-prompts", "3", "--score-column", "score_r"]
        assert main([*words, *judging]) == 0 and "12 prompts" in capsys.readouterr().out
        assert len(server.seen) == 6
    page = (tmp_path / "o" / "generators.md").read_text()
    for heading in (
        "How they look",
        "How alike they are: rouge_l",
        "What j says (judge)",
        "score_r: what a model says",
    ):
        assert heading in page
    assert json.loads((tmp_path / "o" / "generators.json").read_text())["judgement"]["pairs"][0]["ties"] == 3
    assert main([*words, "--model", "m"]) == 2 and "give both --model" in capsys.readouterr().err
    assert main([*words, "--model-column", "generator"]) == 2 and '"generator" is missing' in capsys.readouterr().err
