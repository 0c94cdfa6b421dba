"""Comparisons tell the truth on planted ground, are paired, resumable and at equal tokens."""

import json
import random
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_select import CausalLM, TopK, demo
from hf_select.cli.main import main
from hf_select.evaluation.compare import compare
from hf_select.evaluation.held_out_loss import HeldOutLoss
from hf_select.evaluation.tables import Cell, tables
from hf_select.models.responses import tokenize_with_labels
from hf_select.reports.comparison_result import UNTRAINED, MeasureInfo
from hf_select.training.equal_tokens import Recipe, balance_by_tokens, plan_steps
from hf_select.training.train_on_tokens import train_on_tokens


def rows_of(kind: str, count: int, seed: int) -> list[dict]:
    """Sums with right answers ("good") or with words drawn at random ("bad")."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        a, b = rng.randrange(30), rng.randrange(30)
        right = f"{a} and {b} make {a + b}"
        words = right.split()
        rng.shuffle(words)
        answer = right if kind == "good" else " ".join(rng.choice(words) for _ in range(len(words)))
        found.append({"prompt": f"Add {a} and {b}.", "completion": answer})
    return found


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """(pool half of which is noise, held-out rows, recipe with a tiny model of these words)."""
    rows = [{**row, "good": 1.0, "source": "a"} for row in rows_of("good", 40, 1)]
    rows += [{**row, "good": 0.0, "source": "b"} for row in rows_of("bad", 40, 2)]
    random.Random(0).shuffle(rows)
    texts = [f"{row['prompt']} {row['completion']}" for row in rows]
    tokenizer = demo.train_tokenizer(texts * 3, 300)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    folder = tmp_path_factory.mktemp("base")
    demo.tiny_model(tokenizer, **sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    recipe = Recipe(str(folder), learning_rate=3e-3, rows_per_step=4, max_length=64)
    return Dataset.from_list(rows), Dataset.from_list(rows_of("good", 20, 3)), recipe


@pytest.fixture(scope="module")
def compared(ground, tmp_path_factory):
    pool, held_out, recipe = ground
    folder = tmp_path_factory.mktemp("compared") / "c"
    methods = {"planted": TopK("good"), "worst": TopK("good", which="worst")}
    costs = {"planted": {"flops": 1e9, "seconds": 2.0}}
    settings = {"seeds": 4, "passes": 10.0, "balanced_by": "source", "costs": costs}
    return (
        folder,
        methods,
        settings,
        compare(pool, methods, {"sums": held_out}, recipe, folder, [24], **settings),
    )


def test_a_planted_selection_is_found_better_and_noise_worse(compared):
    folder, _, _, result = compared
    lines = result.budgets["24 rows"]["sums"]
    assert set(lines) >= {"random", UNTRAINED, "planted", "worst", "longest", "random (balanced by source)"}
    assert lines["planted"].difference.wins == 4 and lines["worst"].difference.losses == 4
    assert lines["planted"].mean < lines["random"].mean < lines["worst"].mean < lines[UNTRAINED].mean
    assert lines["planted"].verdict.startswith("better") and lines[UNTRAINED].verdict.startswith("worse")
    trained = [json.loads(path.read_text()) for path in (folder / "cells").rglob("24-rows*.json")]
    longest = max(record["tokens_within"] for record in trained)
    assert 0 < longest <= 32 and {abs(r["tokens"] - r["tokens_wanted"]) <= longest for r in trained} == {True}
    assert {record["steps"] for record in trained} == {60}, "10 passes over 24 rows, 4 a step, whatever their length"
    assert lines["planted"].runs.selection_flops and lines["random"].runs.rows == 24
    text = (folder / "result.md").read_text()
    assert "| planted |" in text and "](pictures/" in text and "planted" in (folder / "result.html").read_text()
    assert lines["planted"].costs.break_even.kind == "unknown", "one budget is no curve"
    assert json.loads((folder / "result.json").read_text()) == json.loads(
        json.dumps(result.to_dict(), allow_nan=False)
    )


def test_a_comparison_resumes_with_the_same_cells(compared, ground, monkeypatch):
    pool, held_out, recipe = ground
    folder, methods, settings, result = compared
    cell = folder / "cells/planted/24-rows-seed-1.json"
    before = json.loads(cell.read_text())
    kept = {path: path.stat().st_mtime_ns for path in (folder / "cells").rglob("*.json") if path != cell}
    cell.unlink()
    again = compare(pool, methods, {"sums": held_out}, recipe, folder, [24], **settings)
    after = json.loads(cell.read_text())
    for changing in ("seconds", "by"):
        del before[changing], after[changing]
    assert after == before
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert {n: v.mean for n, v in again.budgets["24 rows"]["sums"].items()} == {
        n: v.mean for n, v in result.budgets["24 rows"]["sums"].items()
    }


def test_what_cannot_be_compared_is_refused(compared, ground, tmp_path, monkeypatch):
    pool, held_out, recipe = ground
    folder, methods, settings, _ = compared
    with pytest.raises(ValueError, match="budget 81 rows: the pool has 80 rows"):
        compare(pool, methods, {"sums": held_out}, recipe, tmp_path / "o", [81])
    with pytest.raises(ValueError, match="nothing to measure on"):
        compare(pool, methods, {}, recipe, tmp_path / "o", [8])
    with pytest.raises(ValueError, match="at least 2"):
        compare(pool, methods, {"sums": held_out}, recipe, tmp_path / "o", [8], seeds=1)
    with pytest.raises(ValueError, match='"random" is the name of a baseline'):
        compare(pool, {"random": TopK("good")}, {"sums": held_out}, recipe, tmp_path / "o", [8])
    with pytest.raises(ValueError, match="holds a comparison of another run .*passes"):
        compare(pool, methods, {"sums": held_out}, recipe, folder, [24], **{**settings, "passes": 2.0})
    with pytest.raises(ValueError, match='a run of "planted" with 24 rows, seed 0, on another selection'):
        compare(pool, {"planted": TopK("good", which="worst")}, {"sums": held_out}, recipe, folder, [24], **settings)
    with pytest.raises(ValueError, match="budget 99999 tokens: the pool has"):
        compare(pool, methods, {"sums": held_out}, recipe, tmp_path / "t", ["99999 tokens"])
    with pytest.raises(ValueError, match='budget "8 kg" is neither'):
        compare(pool, methods, {"sums": held_out}, recipe, tmp_path / "o", ["8 kg"])
    with monkeypatch.context() as launched:
        launched.setenv("ACCELERATE_USE_FSDP", "true")
        with pytest.raises(ValueError, match="launched one by one"):
            compare(pool, methods, {"sums": held_out}, recipe, tmp_path / "o", [8])
    with pytest.raises(ValueError, match="would have no folder of its own"):
        compare(pool, {**methods, "Planted": TopK("good")}, {"sums": held_out}, recipe, tmp_path / "o", [8])
    with pytest.raises(ValueError, match="must be a datasets.Dataset"):
        compare(pool, methods, {"sums": list(held_out)}, recipe, tmp_path / "o", [8])
    assert not (tmp_path / "o").exists()
    (tmp_path / "mine" / "pictures").mkdir(parents=True)
    with pytest.raises(ValueError, match="belongs to no earlier result.html"):
        compare(pool, methods, {"sums": held_out}, recipe, tmp_path / "mine", [8])
    assert len(list((tmp_path / "mine").iterdir())) == 1


def test_unequal_tokens_are_refused():
    def record(tokens):
        return {"tokens": tokens, "tokens_wanted": 1000, "tokens_within": 100, "values": {"d": [1.0]}}

    cells = {Cell("random", "8 rows", s): record(1050) for s in (0, 1)}
    cells |= {Cell("m", "8 rows", s): record(1050 + 150 * s) for s in (0, 1)}
    cells[Cell(UNTRAINED, "", 0)] = {"values": {"d": [2.0]}}
    with pytest.raises(ValueError, match='"m" \\(8 rows, seed 1\\) trained 1,200 tokens and not 1,000'):
        tables(cells, ["m"], {"d": MeasureInfo("lower", "nats", 1)}, {})


def test_only_methods_are_corrected_for_together_also_for_matched_draws():
    """The longest rows are a baseline, asked alone: among the hypotheses they would make a method's p-value larger."""
    rng = np.random.default_rng(0)

    def run(method, seed, shift, matched_by=None):
        record = {"tokens": 100, "tokens_wanted": 100, "tokens_within": 10, "rows": 8, "steps": 2, "rows_cut": 0}
        record |= {"passes": 1.0, "could_choose_from": 80, "seconds": 1.0, "flops": 1.0, "matched_by": matched_by}
        return Cell(method, "8 rows", seed), {**record, "values": {"d": (shift + rng.normal(0, 1, 30)).tolist()}}

    matched = "random (999 tokens)"
    cells = {Cell(UNTRAINED, "", 0): {"values": {"d": [2.0] * 30}}}
    for seed in range(3):
        cells |= dict([run("random", seed, 0), run(matched, seed, 0), run("longest", seed, -0.4, matched)])
        cells |= dict([run("m", seed, -0.3, matched), run("n", seed, -0.2, matched), run("o", seed, -0.3)])
    lines = tables(cells, ["m", "n", "o"], {"d": MeasureInfo("lower", "nats", 30)}, {})["8 rows"]["d"]
    longest, *methods = (lines[name].matched.difference for name in ("longest", "m", "n"))
    assert longest.p_holm == longest.p
    smaller, larger = sorted(methods, key=lambda d: d.p)
    assert smaller.p_holm == pytest.approx(2 * smaller.p) and lines["o"].matched is None
    assert larger.p_holm == max(larger.p, smaller.p_holm)
    assert lines["longest"].difference.p_holm == lines["longest"].difference.p
    firsts = min((lines[name].difference for name in "mno"), key=lambda d: d.p)
    assert firsts.p_holm == pytest.approx(3 * firsts.p)


def test_overlap_with_the_pool_and_rows_out_of_reach_are_said(ground, tmp_path, caplog):
    pool, held_out, recipe = ground
    partly = pool.map(lambda row, i: {"score": row["good"] if i % 2 else None}, with_indices=True)
    both = Dataset.from_list([*held_out, {"prompt": pool[0]["prompt"], "completion": pool[0]["completion"]}])
    result = compare(
        partly, {"half": TopK("score")}, {"sums": both}, recipe, tmp_path / "o", [8], seeds=2, passes=0.5
    )  # fmt: skip
    assert result.overlap["sums"] >= 1 and 'rows of the pool repeat rows that "sums" measures on' in caplog.text
    assert result.budgets["8 rows"]["sums"]["half"].runs.could_choose_from == 40


def test_every_run_reads_rows_under_the_template_that_is_given(ground):
    pool, _, recipe = ground
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    given = replace(recipe, chat_template=template)
    tokenizer = given.base().load().tokenizer
    rows, bad, _ = tokenize_with_labels(given.base(), pool.select([0]), "chat", None)
    assert not bad and tokenizer.decode(rows[0]["input_ids"]).startswith("[user]Add")
    assert given.described()["chat_template"].startswith("sha256 ") and recipe.described()["chat_template"] is None
    with pytest.raises(ValueError, match="neither a file"):
        replace(recipe, chat_template="none.jinja")


def test_a_plan_has_its_tokens_and_its_steps():
    lengths = [3, 40, 7, 12, 5, 25, 9, 30]
    for tokens, steps in ((131, 8), (500, 20), (60, 3), (1000, 7)):
        plan = plan_steps(lengths, tokens, steps, seed=0)
        read = [row for rows in plan for row in rows]
        of_steps = [sum(lengths[row] for row in rows) for rows in plan]
        assert abs(sum(of_steps) - tokens) <= max(lengths) / 2
        assert len(plan) <= steps and max(of_steps) <= tokens / steps + max(lengths)
        often = [read.count(row) for row in range(8)]
        assert max(often) - min(often) <= 1, "a row came again before all others had come"
        assert plan == plan_steps(lengths, tokens, steps, seed=0) != plan_steps(lengths, tokens, steps, seed=1)
    assert len(plan_steps([10] * 8, 80, 4, 0)) == 4 and {len(rows) for rows in plan_steps([10] * 8, 160, 4, 0)} == {4}
    assert plan_steps([100], 10, 2, 0) == [[0]], "one row at least"


def test_shares_of_a_step_are_even():
    lengths = [3, 40, 7, 12, 5, 25, 9, 30]
    shares = balance_by_tokens(range(8), lengths, 3)
    assert sorted(row for share in shares for row in share) == list(range(8))
    of_shares = [sum(lengths[row] for row in share) for share in shares]
    assert max(of_shares) - min(of_shares) <= 9
    assert balance_by_tokens([1], lengths, 3) == [[1], [], []]


def test_shares_of_a_step_change_nothing(ground):
    """The loss is the mean over the step's response tokens, in one forward pass or in many, some of them empty."""
    pool, held_out, recipe = ground
    lm = CausalLM(recipe.model, dtype="float32")
    rows, _, _ = tokenize_with_labels(lm, pool.select(range(6)), "chat", 64)
    measure = HeldOutLoss(held_out)

    def after(**how):
        one = Recipe(**{**vars(recipe), **how})
        return measure(train_on_tokens(one, CausalLM(recipe.model, dtype="float32"), rows, 400, 12, 0).lm)

    whole, one_by_one, empty = after(), after(rows_per_batch=1), after(rows_per_step=9, rows_per_batch=1)
    np.testing.assert_allclose(one_by_one, whole, atol=1e-4)
    np.testing.assert_allclose(empty, whole, atol=1e-4)
    assert np.abs(np.subtract(measure(lm), whole)).max() > 0.1, "nothing was learned"


def test_the_frozen_base_of_an_adapter_is_held_in_the_type_that_it_runs_in(ground):
    """Weights that are trained stay float32, the adapter's too; the loss after both runs is nearly the same."""
    pool, held_out, recipe = ground
    tokenized, _, _ = tokenize_with_labels(recipe.base(), pool, "chat", 64)
    rows, measure = tokenized.select(range(40)), HeldOutLoss(held_out)
    found = {}
    for bf16, lora_r, of_base in ((False, 4, torch.float32), (True, 4, torch.bfloat16), (True, None, torch.float32)):
        one = replace(recipe, bf16=bf16, lora_r=lora_r, learning_rate=1e-2)
        lm = one.base()
        untrained = np.mean(measure(lm))
        trained = train_on_tokens(one, lm, rows, 400, 12, 0).lm
        weights = dict(trained.load().model.named_parameters())
        assert {w.dtype for name, w in weights.items() if "lora" not in name} == {of_base}
        assert {w.dtype for name, w in weights.items() if "lora" in name} <= {torch.float32}
        found[bf16, lora_r] = np.mean(measure(trained))
        assert found[bf16, lora_r] < untrained - 0.02
    assert found[True, 4] == pytest.approx(found[False, 4], abs=0.02)


def test_rows_that_cannot_be_trained_on_are_in_no_budget(ground, tmp_path, caplog, monkeypatch):
    """Half of the rows end with the user's turn and one cannot be read: random draws are from the others alone."""
    from hf_select.evaluation import compare as module

    _, held_out, recipe = ground
    turns = [[{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["completion"]}]
             for r in rows_of("good", 24, 5)]  # fmt: skip
    turns[0][1]["content"] = "so many words " * 40
    rows = [{"messages": turn if i % 2 == 0 else turn[:1], "mark": float(i)} for i, turn in enumerate(turns)]
    pool = Dataset.from_list([*rows, {"messages": None, "mark": 99.0}])
    wanted = {}
    monkeypatch.setattr(module.ComparisonRun, "_run_missing", lambda self, cells: wanted.update(cells))
    with pytest.raises(KeyError):  # there are no runs to make a table of
        compare(pool, {"m": TopK("mark")}, {"d": held_out}, recipe, tmp_path / "c", [12], seeds=2)
    assert (
        "12 rows of the pool cannot be trained on and are left out: no token of the response is left to learn"
        in caplog.text
    )
    assert {len(rows.selection) for cell, rows in wanted.items() if cell.method in ("random", "m")} == {12}
    with pytest.raises(ValueError, match="budget 13 rows: the pool has 12 rows to train on"):
        compare(pool, {"m": TopK("mark")}, {"d": held_out}, recipe, tmp_path / "c", [13], seeds=2)
    # What is cut off is not trained and counts for nothing: the long row has 64 tokens.
    with pytest.raises(ValueError, match=r"the pool has (\d+) tokens to train on") as error:
        compare(pool, {"m": TopK("mark")}, {"d": held_out}, recipe, tmp_path / "c", ["5000 tokens"], seeds=2)
    lm = CausalLM(recipe.model, dtype="float32")
    known, _, cut = tokenize_with_labels(lm, pool.select(range(24)), "chat", 64)
    assert cut.total() == 1 and f"has {sum(map(len, known['input_ids'])):,} tokens" in str(error.value)


def test_a_run_of_a_killed_process_is_taken_over(compared, ground):
    """The killed one leaves its lock's file behind; the lock itself is gone with it."""
    pool, held_out, recipe = ground
    folder, methods, settings, _ = compared
    cell = folder / "cells/planted/24-rows-seed-2.json"
    cell.unlink()
    code = f"from filelock import FileLock; import time; FileLock({str(cell.with_suffix('.lock'))!r}).acquire(); "
    child = subprocess.Popen([sys.executable, "-c", f"{code}print('held', flush=True); time.sleep(600)"],
                             stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    threading.Timer(3.0, child.kill).start()
    compare(pool, methods, {"sums": held_out}, recipe, folder, [24], **settings)
    assert child.wait() == -signal.SIGKILL and cell.exists()


def test_a_run_that_diverged_is_named(ground, tmp_path):
    pool, held_out, recipe = ground
    wild = Recipe(**{**vars(recipe), "learning_rate": 1e38})
    with pytest.raises(ValueError, match='measure "sums" of "random" \\(8 rows, seed 0\\).*diverged'):
        compare(pool, {"m": TopK("good")}, {"sums": held_out}, wild, tmp_path / "w", [8], seeds=2)


@pytest.mark.slow
def test_the_command_compares_scored_runs(ground, tmp_path, monkeypatch, capsys):
    pool, held_out, recipe = ground
    monkeypatch.chdir(tmp_path)
    pool.remove_columns("good").to_json("pool.jsonl")
    held_out.to_json("held_out.jsonl")
    score = ["score", "--scorer", "perplexity", "--model", recipe.model, "--output-dir"]
    assert main([*score, "scores", "--dataset", "pool.jsonl"]) == 0
    assert main([*score, "others", "--dataset", "held_out.jsonl"]) == 0
    command = ["compare", "--model", recipe.model, "--dataset", "pool.jsonl", "--held-out", "sums=held_out.jsonl"]
    command += ["--budgets", "8", "--seeds", "2", "--passes", "1", "--rows-per-step", "4", "--output-dir", "c"]
    assert main([*command, "--methods", "low=scores:worst", "high=scores"]) == 0
    out = capsys.readouterr().out
    assert "8 rows: sums" in out and "  low: " in out and "  high: " in out
    line = json.loads((tmp_path / "c" / "result.json").read_text())["budgets"]["8 rows"]["sums"]["low"]
    assert line["runs"]["selection_flops"] > 0 and line["runs"]["training_flops"] > 0
    assert main([*command, "--methods", "low=others"]) == 2
    assert "do not belong to the rows of the dataset" in capsys.readouterr().err
    assert main([*command, "--methods", "low=nowhere"]) == 2
    assert "is not a finished run of hf-select score" in capsys.readouterr().err


def test_budgets_of_a_recipe_may_be_numbers():
    from hf_select.cli.commands import make_command

    settings = {"dataset": "d", "output_dir": "o", "methods": {}, "model": "m"}
    command = make_command("compare", {**settings, "budgets": [32, "2000 tokens"]})
    assert command.budgets == ["32", "2000 tokens"]
