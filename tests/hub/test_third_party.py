"""A scorer and a selector of another package get a full report and a full card."""

import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from datasets import Dataset

from hf_select import Choice, Paper, Ranking, Scorer, Selector, push_selected, report, score
from hf_select.reports.ledger import read_step


SCORER_PAPER = Paper("2601.00001", "Counting Vowels", "Doe, Jane", 2026)
SELECTOR_PAPER = Paper("2601.00002", "Taking the Fewest", "Roe, Richard", 2026)


@dataclass
class Vowels(Scorer):
    """Vowels in the responses; fewer are better."""

    name: ClassVar[str] = "vowels"
    higher_is_better: ClassVar[bool] = False
    paper: ClassVar[Paper | None] = SCORER_PAPER

    def measure(self, rows):
        texts = [" ".join(turn["content"] for turn in row.responses()) for row in rows]
        return [{"score_vowels": float(sum(text.count(vowel) for vowel in "aeiou"))} for text in texts]


@dataclass
class Fewest(Selector):
    """Takes the rows with the lowest score."""

    paper: ClassVar[Paper | None] = SELECTOR_PAPER

    def choose(self, dataset, budget):
        scores = np.array(dataset["score_vowels"])
        ranking = Ranking(scores, "vowels", lowest_first=True)
        rows = budget.take(ranking.order(), "have vowels")
        return Choice(rows, lambda place, row: "few vowels", scores, ranking)


def test_they_are_reported_cited_and_explained(tmp_path):
    rows = Dataset.from_dict({"prompt": ["q"] * 40, "completion": ["a" * (i * 7 % 40 + 1) for i in range(40)]})
    scored = score(rows, Vowels(), tmp_path / "scores")
    selection, step = Fewest()(scored, k=10), read_step(tmp_path / "scores")
    page = report(scored, selection, tmp_path / "report", steps=[step])
    numbers = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert numbers["scores"]["score_vowels"]["parts"]["selected"]["quantiles"]["1"] == 10
    assert "Lower is better for score_vowels." in page.read_text(encoding="utf-8")
    for group in ("best left out", "worst"):
        assert f'["{group}", 15, 15]' in page.read_text(encoding="utf-8")
    push_selected(selection, "me/few", dataset=scored, license="mit", steps=[step], dry_run=tmp_path / "built")
    card = (tmp_path / "built" / "README.md").read_text(encoding="utf-8")
    for text in (
        "scored with vowels and selected by Fewest",
        "2601.00001",
        "2601.00002",
        "Lower is better for score_vowels",
    ):
        assert text in card, text
