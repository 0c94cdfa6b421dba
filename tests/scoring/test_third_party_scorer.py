"""A scorer that is not part of the package works wherever the package's own do."""

import json
import re
from pathlib import Path

import pytest
from contracts import check_scorer
from datasets import Dataset, load_dataset
from third_party import their_module

from hf_select import TopK, load_scores, push_selected, score
from hf_select.cli.main import main
from hf_select.cli.score import scorer_class
from hf_select.reports.ledger import read_step
from hf_select.scoring import SCORERS


# As its author writes it, in a file of their own.
MODULE = '''
from dataclasses import dataclass
from typing import ClassVar, Literal

from hf_select import BadRow, Paper, Scorer


@dataclass
class Haste(Scorer):
    """How often the response uses a sign: fewer is better.

    Args:
        sign: what is counted.
        per: the whole response, or each of its words.
    """

    sign: str = "!"
    per: Literal["response", "word"] = "response"

    name: ClassVar[str] = "haste"
    higher_is_better: ClassVar[bool] = False
    paper: ClassVar[Paper | None] = Paper("0000.00000", "Haste Makes Waste", "Doe, Jane", 2026)

    def measure(self, rows):
        return [self._measure(row) for row in rows]

    def _measure(self, row):
        text = " ".join(message["content"] for message in row.responses())
        if not text.strip():
            return BadRow("empty response")
        count = float(text.count(self.sign))
        return {"score_haste": count / len(text.split()) if self.per == "word" else count}


@dataclass
class Nameless(Haste):
    """A scorer whose author forgot its name."""

    name = ""


@dataclass
class Unfinished(Scorer):
    """A scorer without measure."""

    name: ClassVar[str] = "unfinished"
'''

RECIPE = """
description: rows without haste
steps:
  score: {dataset: pool.jsonl, scorer: "signs:Haste", per: word, output_dir: "${output_dir}/scores"}
  select: {scores: "${output_dir}/scores", selector: top_k, column: score_haste, which: worst, k: 3,
    output: "${output_dir}/subset.jsonl"}
  report: {subset: "${output_dir}/subset.jsonl", output_dir: "${output_dir}/report"}
"""


@pytest.fixture(scope="module")
def pool() -> Dataset:
    answers = [f"Words {'! ' * (i % 4)}and more words, {i} of them." for i in range(12)]
    ids = [f"r{i}" for i in range(12)]
    return Dataset.from_dict({"row_id": ids, "prompt": [f"Question {i}?" for i in range(12)], "completion": answers})


@pytest.fixture
def signs(tmp_path, monkeypatch, pool):
    return their_module(tmp_path, monkeypatch, MODULE, pool)


def test_it_keeps_the_laws_and_has_its_defaults(signs, pool):
    check_scorer(signs.Haste, [{"prompt": row["prompt"], "completion": row["completion"]} for row in pool])
    scorer = signs.Haste()
    assert scorer.usage() == scorer.preparation_cost() == {} and scorer.featurizer is None
    with pytest.raises(TypeError, match="haste has no targets"):
        scorer.fit(pool)
    with pytest.raises(TypeError, match="haste compares no vectors"):
        scorer.score_vectors(pool[:], [])
    with pytest.raises(ValueError, match='per is "page"; it can be response, word'):
        signs.Haste(per="page")


def test_it_works_in_python(signs, pool, tmp_path):
    scored = score(pool, signs.Haste(), tmp_path / "scores", chunk_rows=5)
    assert scored["score_haste"] == [float(i % 4) for i in range(12)]
    summary = json.loads((tmp_path / "scores" / "summary.json").read_text())
    assert summary["paper"]["title"] == "Haste Makes Waste" and summary["higher_is_better"] is False
    with pytest.raises(ValueError, match="sign"):
        score(pool, signs.Haste("?"), tmp_path / "scores", chunk_rows=5)


def test_it_works_from_the_command_line_with_its_flags(signs, capsys):
    command = ["score", "--dataset", "pool.jsonl", "--output-dir", "scores", "--scorer"]
    assert main([*command, "signs:Haste", "--sign", "or", "--per", "response"]) == 0
    assert "--column score_haste --which worst" in capsys.readouterr().out
    assert load_scores("scores")["score_haste"] == [3.0] * 12
    with pytest.raises(SystemExit):
        main(["score", "--scorer", "signs:Haste", "--help"])
    assert "what is counted" in capsys.readouterr().out
    for name, message in (
        ("signs:Hast", "no attribute 'Hast'"),
        ("nowhere:Haste", "No module named 'nowhere'"),
        ("haste", 'unknown scorer "haste"'),
        ("json:JSONEncoder", "does not inherit hf_select.scoring.scorer.Scorer"),
        ("signs:Unfinished", "does not implement measure"),
        ("signs:Nameless", "has no name"),
    ):
        assert main([*command, name]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert main([*command, "signs:Haste", "--sing", "or"]) == 2
    assert "Did you mean --sign?" in capsys.readouterr().err


def test_a_recipe_a_report_and_a_card_tell_of_it(signs, pool, tmp_path):
    Path("haste.yaml").write_text(RECIPE)
    assert main(["run", "haste.yaml", "--output-dir", "made"]) == 0
    subset = load_dataset("json", data_files="made/subset.jsonl", split="train")
    assert subset["row_id"] == ["r0", "r4", "r8"]
    report = (tmp_path / "made" / "report" / "report.md").read_text(encoding="utf-8")
    assert "score_haste" in report
    scored = score(pool, signs.Haste(), tmp_path / "scores")
    selection = TopK("score_haste", which="worst")(scored, k=2)
    steps = [read_step(tmp_path / "scores")]
    push_selected(selection, "me/calm", dataset=scored, license="mit", steps=steps, dry_run=tmp_path / "card")
    card = (tmp_path / "card" / "README.md").read_text(encoding="utf-8")
    assert "title = {Haste Makes Waste}" in card and "| haste | lower |" in card


@pytest.mark.parametrize("name", SCORERS)
def test_the_readme_and_the_list_agree_with_the_classes(name, capsys):
    cls = scorer_class(name)
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `{name}` \| `{cls.__name__}` \|.*$", readme, re.M)
    assert (f"[{cls.paper.arxiv_id}]({cls.paper.url})" in row) if cls.paper else "baseline" in row
    assert cls.higher_is_better, "README says that higher scores are better under all scorers"
    assert main(["list", "--kind", "scorers"]) == 0
    shown = capsys.readouterr().out
    assert f"  {name} " in shown and (cls.paper is None or cls.paper.short() in shown)
