"""A selector that is not part of the package works wherever the package's own do."""

import json
from pathlib import Path

import pytest
from contracts import check_selector
from datasets import Dataset, load_dataset
from third_party import their_module

from hf_select import Recipe, Selection, compare, demo, push_selected
from hf_select.cli.main import main
from hf_select.evaluation.held_out_loss import HeldOutLoss
from hf_select.reports.pool_view import PoolView
from hf_select.reports.rows import rows_of_selection


# As its author writes it, in a file of their own.
MODULE = '''
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from hf_select import Choice, Paper, Ranking, Selector


@dataclass
class BySign(Selector):
    """Selects the rows whose completion has the most of a sign.

    Args:
        sign: what is counted.
        which: most or fewest.
    """

    sign: str = ","
    which: Literal["most", "fewest"] = "most"

    paper: ClassVar[Paper | None] = Paper("0000.00000", "Signs of Quality", "Doe, Jane", 2026)

    def choose(self, dataset, budget):
        counts = np.array([float(text.count(self.sign)) for text in dataset["completion"]])
        ranking = Ranking(counts, f"number of {self.sign}", lowest_first=self.which == "fewest")
        rows = budget.take(ranking.order(), "have a completion")
        return Choice(rows, lambda place, row: f"{counts[row]:g} times {self.sign}", counts, ranking)
'''

RECIPE = """
description: rows by a sign
steps:
  select: {scores: pool.jsonl, selector: "signs:BySign", sign: "!", k: 3, output: "${output_dir}/subset.jsonl"}
  report: {subset: "${output_dir}/subset.jsonl", output_dir: "${output_dir}/report"}
"""


@pytest.fixture(scope="module")
def pool() -> Dataset:
    sizes = {"num_tokens": [10 + i for i in range(20)], "row_id": [f"r{i}" for i in range(20)]}
    answers = [f"Words{', more' * (i % 7)}{'!' * (i % 3)}." for i in range(20)]
    return Dataset.from_dict({"prompt": [f"Question {i}?" for i in range(20)], "completion": answers, **sizes})


@pytest.fixture
def signs(tmp_path, monkeypatch, pool):
    return their_module(tmp_path, monkeypatch, MODULE, pool)


def test_it_keeps_the_laws_and_explains_itself(signs, pool):
    check_selector(signs.BySign, pool)
    selection = signs.BySign()(pool, k=2)
    assert selection.indices.tolist() == [6, 13] and selection.reasons[0] == "6 times ,"
    assert "its number of , is 5, rank 3 of 20" in selection.explain(5)
    assert selection.then(signs.BySign("!"), pool, k=1).indices.tolist() == [13]
    with pytest.raises(ValueError, match='which is "some"; it can be most, fewest'):
        signs.BySign(which="some")


def test_it_works_from_the_command_line_with_its_flags(signs, capsys):
    command = ["select", "--scores", "pool.jsonl", "--selector", "signs:BySign", "--output", "subset.jsonl"]
    assert main([*command, "--k", "3", "--which", "fewest"]) == 0
    rows = load_dataset("json", data_files="subset.jsonl", split="train")
    assert rows["row_id"] == ["r0", "r7", "r14"] and rows["selection_reason"][0] == "0 times ,"
    with pytest.raises(SystemExit):
        main(["select", "--selector", "signs:BySign", "--help"])
    assert "what is counted" in capsys.readouterr().out
    for name, message in (("signs:ByNothing", "no attribute"), ("nowhere:BySign", "nowhere"), ("by_sign", "unknown")):
        assert main(["select", "--scores", "pool.jsonl", "--selector", name, "--output", "x.jsonl", "--k", "3"]) == 2
        assert message in capsys.readouterr().err
    assert main(["select", "--scores", "pool.jsonl", "--selector", "json:JSONEncoder", "--output", "x.jsonl"]) == 2
    assert "json:JSONEncoder" in capsys.readouterr().err


def test_a_recipe_a_report_and_a_card_tell_of_it(signs, pool, tmp_path):
    Path("signs.yaml").write_text(RECIPE)
    assert main(["run", "signs.yaml", "--output-dir", "made"]) == 0
    selection = Selection.load(tmp_path / "made" / "subset.jsonl.selection.parquet")
    assert selection.indices.tolist() == [2, 5, 8]
    assert "BySign" in (tmp_path / "made" / "report" / "report.md").read_text(encoding="utf-8")
    shown = rows_of_selection(PoolView(pool), selection)
    assert shown.why[11] == "not taken: place 1 of the 17 rows left, by number of !"
    push_selected(selection, "me/signs", dataset=pool, license="mit", dry_run=tmp_path / "card")
    card = (tmp_path / "card" / "README.md").read_text(encoding="utf-8")
    assert "selected by BySign" in card and "Signs of Quality" in card


def test_compare_trains_on_its_rows(signs, pool, tmp_path):
    texts = [f"{row['prompt']} {row['completion']}" for row in pool]
    tokenizer = demo.train_tokenizer(texts * 3, 200)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    demo.tiny_model(tokenizer, **sizes).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    recipe = Recipe(str(tmp_path / "model"), learning_rate=1e-3, rows_per_step=4, max_length=64)
    measures = {"own": HeldOutLoss(pool.select(range(4)))}
    result = compare(pool, {"by sign": signs.BySign()}, measures, recipe, tmp_path / "c", [5], seeds=2, passes=1.0)
    assert result.methods == ["by sign"] and "by sign" in result.budgets["5 rows"]["own"]
    record = json.loads(next((tmp_path / "c" / "cells" / "by-sign").iterdir()).read_text())
    assert record["rows"] == 5
