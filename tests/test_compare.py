"""Comparisons tell the truth on planted ground, are paired, resumable and at equal tokens."""

import json
import random

import pytest
from datasets import Dataset

from hf_select import TopK, demo
from hf_select.cli.main import main
from hf_select.evaluation.compare import compare
from hf_select.evaluation.tables import UNTRAINED, Cell, tables
from hf_select.training.equal_tokens import Recipe


def rows_of(kind: str, count: int, seed: int) -> list[dict]:
    """Sums with right answers ("good") or with words drawn at random ("bad")."""
    dice = random.Random(seed)
    found = []
    for _ in range(count):
        a, b = dice.randrange(30), dice.randrange(30)
        right = f"{a} and {b} make {a + b}"
        words = right.split()
        dice.shuffle(words)
        answer = right if kind == "good" else " ".join(dice.choice(words) for _ in range(len(words)))
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
    lines = result["budgets"]["24 rows"]["sums"]
    assert set(lines) >= {"random", UNTRAINED, "planted", "worst", "longest", "random (balanced by source)"}
    assert lines["planted"]["difference"]["wins"] == 4 and lines["worst"]["difference"]["losses"] == 4
    assert lines["planted"]["mean"] < lines["random"]["mean"] < lines["worst"]["mean"] < lines[UNTRAINED]["mean"]
    assert lines["planted"]["verdict"].startswith("better") and lines[UNTRAINED]["verdict"].startswith("worse")
    tokens = {name: line["tokens"] for name, line in lines.items() if "tokens" in line}
    assert max(tokens.values()) - min(tokens.values()) <= 4 * 64
    assert lines["planted"]["selecting"] and lines["random"]["rows"] == 24
    text = (folder / "result.md").read_text()
    assert "| planted |" in text and "](pictures/" in text and "planted" in (folder / "result.html").read_text()
    assert lines["planted"]["ledger"]["break_even"]["kind"] == "unknown", "one budget is no curve"
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result, allow_nan=False))


def test_a_comparison_goes_on_and_gives_the_same_cells(compared, ground, monkeypatch):
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
    assert {n: v["mean"] for n, v in again["budgets"]["24 rows"]["sums"].items()} == {
        n: v["mean"] for n, v in result["budgets"]["24 rows"]["sums"].items()
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
    with pytest.raises(ValueError, match='"random" is a baseline'):
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
    assert not (tmp_path / "o").exists()


def test_unequal_tokens_are_refused():
    def record(tokens):
        return {"tokens": tokens, "tokens_wanted": 1000, "step_tokens": 100, "values": {"d": [1.0]}}

    cells = {Cell("random", "8 rows", s): record(1050) for s in (0, 1)}
    cells |= {Cell("m", "8 rows", s): record(1050 + 150 * s) for s in (0, 1)}
    cells[Cell(UNTRAINED, "", 0)] = {"values": {"d": [2.0]}}
    with pytest.raises(ValueError, match='"m" \\(8 rows, seed 1\\) trained 1,200 tokens and not 1,000'):
        tables(cells, ["m"], {"d": {"better": "lower", "unit": "nats"}}, {})


def test_overlap_with_the_pool_and_rows_out_of_reach_are_said(ground, tmp_path, caplog):
    pool, held_out, recipe = ground
    partly = pool.map(lambda row, i: {"score": row["good"] if i % 2 else None}, with_indices=True)
    both = Dataset.from_list([*held_out, {"prompt": pool[0]["prompt"], "completion": pool[0]["completion"]}])
    result = compare(
        partly, {"half": TopK("score")}, {"sums": both}, recipe, tmp_path / "o", [8], seeds=2, passes=0.5
    )  # fmt: skip
    assert result["overlap"]["sums"] >= 1 and 'rows of the pool repeat rows that "sums" measures on' in caplog.text
    assert result["budgets"]["8 rows"]["sums"]["half"]["could_choose_from"] == 40


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
    assert line["selection_flops"] > 0 and float(line["selecting"]) > 0
    assert main([*command, "--methods", "low=others"]) == 2
    assert "are of other rows than the dataset" in capsys.readouterr().err
    assert main([*command, "--methods", "low=nowhere"]) == 2
    assert "is no finished run of hf-select score" in capsys.readouterr().err


def test_budgets_of_a_recipe_may_be_numbers():
    from hf_select.cli.main import make_command

    settings = {"dataset": "d", "output_dir": "o", "methods": {}, "model": "m"}
    command = make_command("compare", {**settings, "budgets": [32, "2000 tokens"]})
    assert command.budgets == ["32", "2000 tokens"]
