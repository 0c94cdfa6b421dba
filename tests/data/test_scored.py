"""Scores of one folder or of several: joined by row_id, or refused with what does not fit."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from hf_select import TFIDF, Length, load_scores, score
from hf_select.cli.main import main
from hf_select.data.scores import join_scores


@pytest.fixture
def folders(tmp_path, rows, monkeypatch) -> tuple[str, str]:
    """The same rows under two scorers, the second time in reverse."""
    monkeypatch.chdir(tmp_path)
    pool = Dataset.from_list([{**row, "row_id": f"r{i}"} for i, row in enumerate(rows) if row["completion"]])
    score(pool, Length(), "length")
    score(pool.select(range(len(pool))[::-1]), TFIDF().fit({"x": pool.select([0])}, pool=pool), "tfidf")
    return "length", "tfidf"


def test_a_folder_of_scores_is_a_dataset(folders):
    scored = load_scores("length")
    assert {"row_id", "prompt", "completion", "score_length", "length_reason"} <= set(scored.column_names)
    with pytest.raises(ValueError, match='no scores in "none"'):
        load_scores("none")


def test_scores_of_several_folders_are_joined_by_row_id(folders):
    joined, first, second = load_scores(*folders), load_scores("length"), load_scores("tfidf")
    assert list(joined["row_id"]) == list(first["row_id"]) and list(joined["score_length"]) == list(
        first["score_length"]
    )
    column = "score_tfidf"
    by_id = dict(zip(second["row_id"], second[column], strict=True))
    assert list(joined[column]) == [by_id[row_id] for row_id in first["row_id"]]
    assert joined.column_names.count("prompt") == 1


def test_what_does_not_fit_together_is_named(folders):
    first, second = load_scores("length"), load_scores("tfidf")

    def error(other, name="b") -> str:
        with pytest.raises(ValueError) as caught:
            join_scores({"a": first, name: other})
        return str(caught.value)

    assert "'r0'" in error(second.filter(lambda row: row["row_id"] != "r0")) and '1 of "a" are missing' in error(
        second.filter(lambda row: row["row_id"] != "r0")
    )
    more = Dataset.from_list([*second.to_list(), {**second[0], "row_id": "new"}], features=second.features)
    assert "1 are additional (first: 'new')" in error(more)
    twice = Dataset.from_list([*second.to_list(), second[0]], features=second.features)
    assert "1 are repeated" in error(twice)
    changed = second.map(lambda row: {"prompt": row["prompt"] + "!" * (row["row_id"] == "r5")})
    assert 'column "prompt" differs between "a" and "b" (first: row_id \'r5\')' in error(changed)
    assert "no column row_id" in error(second.remove_columns("row_id"))
    other = Dataset.from_dict({"row_id": second["row_id"], "score_length": [0.0] * len(second)})
    assert 'column "score_length" differs' in error(other)


def test_select_and_report_take_several_folders(folders, capsys):
    select = ["select", "--scores", *folders, "--selector", "top_k", "--column", "score_tfidf", "--k", "3"]
    column = "score_tfidf"
    assert main([*select, "--output", "best.jsonl"]) == 0
    best = [json.loads(line) for line in Path("best.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(best) == 3 and all({"score_length", column} <= set(row) for row in best)
    assert main(["report", "best.jsonl"]) == 0
    assert {"score_length", column} <= set(
        json.loads(Path("report/report.json").read_text(encoding="utf-8"))["scores"]
    )
    assert main(["report", "best.jsonl", "--scores", *folders[::-1], "--output-dir", "again"]) == 2
    assert "made on" in capsys.readouterr().err  # in another order the rows are others: the selection refuses them
    assert main(["select", "--scores", "length", "best.jsonl", *select[4:], "--output", "x.jsonl"]) == 2
    assert "row_ids" in capsys.readouterr().err
