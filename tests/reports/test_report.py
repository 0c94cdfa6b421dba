"""A report tells the truth: its numbers against values worked by hand, its pictures and pages against its numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from hf_select import Dedup, Random, RoundRobin, Selection, TopK, WeightedRanks
from hf_select.cli.main import main
from hf_select.reports.finished_selection import read_finished
from hf_select.reports.markdown import inline, table_text
from hf_select.reports.numbers import describe_comparison, describe_selection
from hf_select.reports.pictures import draw
from hf_select.reports.pool_view import PoolView
from hf_select.reports.report import compare_report, report
from hf_select.reports.report_numbers import SelectionNumbers
from hf_select.reports.rows import RowTable, rows_of_comparison, rows_of_selection


@pytest.fixture(autouse=True)
def work_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def pool(n: int = 40) -> Dataset:
    return Dataset.from_dict(
        {
            "row_id": [f"r{i}" for i in range(n)],
            "prompt": [f"question {i}" for i in range(n)],
            "completion": ["a" * (i + 1) for i in range(n)],
            "source": ["web" if i % 4 else "books" for i in range(n)],
            "score_a": [None if i < 2 else float(i) for i in range(n)],
            "a_reason": ["empty response" if i < 2 else "" for i in range(n)],
            "score_b": [float(-i) for i in range(n)],
            "score_c": [float("inf") if i == 5 else float((i * 7) % n) for i in range(n)],
        }
    )


def describe(dataset: Dataset, selection: Selection) -> dict:
    return describe_selection(PoolView(dataset), selection).to_dict()


def shown_table(dataset: Dataset, selection: Selection, **settings) -> RowTable:
    view = PoolView(dataset)
    shown = rows_of_selection(view, selection, **settings)
    view.parse(keep=shown.rows)
    return shown.table(view, sources=None)


def test_the_numbers_are_those_worked_by_hand():
    dataset = pool()
    found = describe(dataset, TopK("score_a")(dataset, k=10))
    assert found["rows"] == {"pool": 40, "selected": 10, "random draw": 10}
    selected = found["scores"]["score_a"]["parts"]["selected"]
    assert selected["known"] == 10 and selected["mean"] == np.mean(np.arange(30, 40))
    assert selected["quantiles"]["0.5"] == 34.5 and selected["quantiles"]["0"] == 30
    whole = found["scores"]["score_a"]["parts"]["pool"]
    assert (whole["known"], whole["unknown"]) == (38, 2)
    assert sum(whole["counts"]) == 38, "every scored row is in a bin, those beyond the edges too"
    # Row 30 has 11 characters of prompt and 31 of response.
    assert found["lengths"]["characters"]["parts"]["selected"]["quantiles"]["0"] == 42
    assert found["lengths"]["characters of responses"]["parts"]["selected"]["quantiles"]["0"] == 31
    # 30..39 holds 32 and 36 of the multiples of 4.
    assert found["sources"]["rows"] == [
        {"source": "web", "pool": 30, "selected": 8, "random draw": found["sources"]["rows"][0]["random draw"]},
        {"source": "books", "pool": 10, "selected": 2, "random draw": found["sources"]["rows"][1]["random draw"]},
    ]
    agreement = found["agreement"]
    assert agreement["scores"] == ["score_a", "score_b", "score_c"] and agreement["k"] == 10
    assert agreement["spearman"][0][1] == pytest.approx(-1) and agreement["spearman"][0][0] == pytest.approx(1)
    labels = {name: i for i, name in enumerate(agreement["labels"])}
    overlap = np.array(agreement["overlap"])
    assert overlap[labels["score_a"], labels["selected"]] == 1
    assert overlap[labels["score_b"], labels["selected"]] == 0  # the highest of score_b are rows 0 to 9
    assert agreement["expected_by_chance"] == 0.25
    assert found["unscored"] == {"score_a": {"empty response": 2}}
    assert found["scores"]["score_c"]["parts"]["pool"]["unknown"] == 1, "an infinite score is no score"


def test_rank_correlation_is_that_of_scipy_also_with_ties_and_gaps():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 200).astype(float), rng.normal(size=200)
    b += a
    a[:20] = np.nan
    dataset = Dataset.from_dict({"row_id": range(200), "score_a": a, "score_b": b})
    found = describe(dataset, TopK("score_b")(dataset, k=20))["agreement"]
    expected = stats.spearmanr(a[20:], b[20:]).statistic
    assert found["spearman"][0][1] == pytest.approx(expected, abs=1e-12)


def test_tasks_know_how_many_rows_each_chose():
    rng = np.random.default_rng(0)
    columns = {f"score_rds_{task}": rng.normal(size=60) for task in ("math", "code")}
    dataset = Dataset.from_dict({"text": [f"row {i}" for i in range(60)], **columns})
    selection = RoundRobin(list(columns))(dataset, k=21)
    tasks = describe(dataset, selection)["tasks"]
    by_reason = [sum(f"task {task}," in why for why in selection.reasons) for task in ("math", "code")]
    assert [tasks[name]["chosen"] for name in columns] == by_reason and sum(by_reason) == 21
    median = np.median(columns["score_rds_code"][selection.indices])
    assert tasks["score_rds_code"]["selected"]["quantiles"]["0.5"] == pytest.approx(median)


def test_a_comparison_counts_what_both_took():
    dataset = pool()
    first, second = TopK("score_a")(dataset, k=10), TopK("score_c")(dataset, k=20)
    view = PoolView(dataset)
    found = describe_comparison(view, first, second, ("quality", "other")).to_dict()
    both = set(first.indices.tolist()) & set(second.indices.tolist())
    assert found["overlap"]["both"] == len(both)
    assert found["overlap"]["only"] == {"quality": 10 - len(both), "other": 20 - len(both)}
    assert found["overlap"]["expected_by_chance"] == 10 * 20 / 40
    assert found["overlap"]["jaccard"] == len(both) / (30 - len(both))
    shown = rows_of_comparison({"quality": first, "other": second})
    view = PoolView(dataset)
    view.parse(keep=shown.rows)
    table = shown.table(view, sources=None)
    assert table.counts == {"only quality": 10 - len(both), "only other": 20 - len(both), "both": len(both)}
    shared = [why for group, why in zip(table.groups, table.why, strict=True) if group == "both"]
    assert all("quality: score_a" in why and "other: score_c" in why for why in shared)


def test_every_row_says_why_it_is_where_it_is():
    dataset = pool()
    selection = TopK("score_a", at_most=37)(dataset, k=10)
    table = shown_table(dataset, selection, examples=5)
    of = {group: [r for r, g in zip(table.rows, table.groups, strict=True) if g == group] for group in table.counts}
    why = dict(zip(table.rows, table.why, strict=True))
    assert of["selected"] + of["last taken"] == selection.indices.tolist() == list(range(37, 27, -1))
    assert all(why[row] == selection.reasons[rank] for rank, row in enumerate(selection.indices.tolist()))
    assert of["best left out"] == [27, 26, 25, 24, 23] and of["worst"] == [2, 3, 4, 5, 6]
    assert why[27] == "not taken: place 1 of the 26 rows left, by score_a"
    assert set(of["not ranked"]) == {0, 1, 38, 39}
    assert why[0] == "no score_a: empty response"
    assert why[38] == "score_a 38 is out of the bounds that were set"
    turns = table.turns[table.rows.index(27)]
    assert turns == [("user", "question 27"), ("assistant", "a" * 28)]


def test_rows_that_an_earlier_step_left_out_are_no_candidates_of_the_last():
    rows = pool().to_list()
    dataset = Dataset.from_list([*rows, *rows[30:]])
    earlier = Dedup()(dataset)
    selection = earlier.compose(WeightedRanks({"score_a": 1.0, "score_b": 0.1})(earlier.apply(dataset), k=5))
    table = shown_table(dataset, selection, earlier=earlier)
    left = {row for row, group in zip(table.rows, table.groups, strict=True) if group == "left out before"}
    assert left == set(range(50)) - set(earlier.indices.tolist()) and len(left) == 10
    assert table.why[table.rows.index(45)] == "left out by an earlier step (Dedup)"


def test_a_selection_by_no_score_has_its_table_too():
    dataset = pool().select_columns(["prompt", "completion"])
    table = shown_table(dataset, Random()(dataset, k=5))
    assert table.counts == {"selected": 5, "last taken": 0, "not taken": 35}


def test_the_pictures_need_nothing_but_the_json():
    dataset = pool()
    numbers = describe_selection(PoolView(dataset), TopK("score_a")(dataset, k=10))
    read = SelectionNumbers.from_dict(json.loads(json.dumps(numbers.to_dict(), allow_nan=False)))
    first, again = list(draw(numbers)), list(draw(read))
    assert first == again, "drawn from the JSON alone, the same bytes"
    assert {"score_a", "length_characters", "sources", "rank_correlation", "overlap"} <= {name for name, *_ in first}
    assert all(png.startswith(b"\x89PNG") for *_, png in first)
    assert next(draw(numbers, "dark"))[2] != first[0][2]


def test_the_same_report_twice_is_the_same_bytes():
    dataset = pool()
    selection = TopK("score_a")(dataset, k=10)
    for folder in ("a", "b"):
        report(dataset, selection, folder)
    files = sorted(path.relative_to("a") for path in Path("a").rglob("*") if path.is_file())
    assert {"report.html", "report.md", "report.json"} < {str(file) for file in files}
    assert all((Path("a") / file).read_bytes() == (Path("b") / file).read_bytes() for file in files)


def test_a_changed_dataset_is_refused():
    dataset = pool()
    selection = TopK("score_a")(dataset, k=10)
    with pytest.raises(ValueError, match="40 rows, this dataset has 39"):
        report(dataset.select(range(39)), selection, "r")
    with pytest.raises(ValueError, match="reordered or changed"):
        report(dataset.select(range(39, -1, -1)), selection, "r")
    assert not Path("r").exists()
    with pytest.raises(ValueError, match="a comparison has two"):
        compare_report(dataset, {"one": selection}, "r")


def test_a_pool_of_scores_that_stand_alone_has_a_report():
    dataset = pool().select_columns(["row_id", "score_a", "a_reason"])
    page = report(dataset, TopK("score_a")(dataset, k=10), "r").read_text(encoding="utf-8")
    assert "Lengths" not in page and "score_a" in page


def test_markdown_cells_hold_anything():
    line = table_text(["a"], [["x | y\n<b>`*"]]).splitlines()[-1]
    assert line == "| x &#124; y &#60;b&#62;&#96;&#42; |"
    assert inline("![x](http://y)") == "&#33;&#91;x&#93;(http://y)"


# --------------------------------------------------------------------------------------------------------------------
# the command


def run(*argv: str) -> int:
    return main([str(arg) for arg in argv])


@pytest.fixture
def scored(rows) -> None:
    Path("pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert run("score", "--scorer", "length", "--dataset", "pool.jsonl", "--output-dir", "scores") == 0


def test_report_finds_what_stands_behind_a_subset(scored, model_path, capsys):
    half = ("--selector", "longest", "--fraction", "0.5", "--output", "half.parquet")
    assert run("select", "--scores", "scores", *half) == 0
    assert (
        run("score", "--scorer", "ifd", "--model", model_path, "--dataset", "half.parquet", "--output-dir", "i") == 0
    )
    top = ("--selector", "top_k", "--column", "score_ifd", "--k", "5")
    assert run("select", "--scores", "i", *top, "--output", "top.parquet") == 0
    assert run("report", "top.parquet") == 0
    found = json.loads(Path("report/report.json").read_text(encoding="utf-8"))
    assert found["rows"]["pool"] == 40, "the pool of the first step"
    assert [step["selector"] for step in found["steps"]] == ["Longest", "TopK"]
    assert found["unscored"]["score_ifd"]["left out by an earlier step"] == 20
    assert [step["step"] for step in found["cost"]["steps"]] == ["score length", "score ifd"]
    assert found["cost"]["steps"][1]["flops"] > 0
    assert read_finished("top.parquet").source == "pool.jsonl"
    assert run("select", "--scores", "scores", "--selector", "random", "--k", "9", "--output", "random.jsonl") == 0
    assert run("report", "top.parquet", "--compare-with", "random.jsonl", "--output-dir", "c") == 0
    compared = json.loads(Path("c/comparison.json").read_text(encoding="utf-8"))
    assert compared["rows"] == {"pool": 40, "top": 5, "random": 9} and "score_ifd" in compared["scores"]


def test_a_recipe_ends_with_its_report(scored):
    Path("r.yaml").write_text(
        "steps:\n"
        "  score: {scorer: length, dataset: pool.jsonl, output_dir: '${output_dir}/scores'}\n"
        "  select: {scores: '${output_dir}/scores', selector: longest, k: 5, output: '${output_dir}/s.jsonl'}\n"
        "  report: {subset: '${output_dir}', output_dir: '${output_dir}/report'}\n"
    )
    assert run("run", "r.yaml", "--output-dir", "o") == 0
    found = json.loads(Path("o/report/report.json").read_text(encoding="utf-8"))
    assert [step["step"] for step in found["cost"]["steps"]] == ["score length", "select"]
    Path("o").rename("moved")  # the run's own config says where things are
    assert run("report", "moved", "--output-dir", "again") == 0
    assert json.loads(Path("again/report.json").read_text(encoding="utf-8"))["scores"] == found["scores"]


def test_the_errors_of_report(scored, capsys):
    def error(*argv: str) -> str:
        assert run("report", *argv) == 2
        return capsys.readouterr().err

    assert 'no record of a selection next to "pool.jsonl"' in error("pool.jsonl")
    longest = ("--selector", "longest", "--k", "3", "--output", "s.jsonl")
    assert run("select", "--scores", "scores", *longest) == 0
    Path("scores").rename("elsewhere")
    assert "--scores" in error("s.jsonl")
    assert run("report", "s.jsonl", "--scores", "elsewhere") == 0
    assert 'column "sauce" is missing' in error("s.jsonl", "--scores", "elsewhere", "--source-column", "sauce")
    Path("other.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n')
    assert run("score", "--scorer", "length", "--dataset", "other.jsonl", "--output-dir", "other") == 0
    assert run("select", "--scores", "other", "--selector", "longest", "--k", "1", "--output", "t.jsonl") == 0
    against = ("s.jsonl", "--scores", "elsewhere", "--compare-with", "t.jsonl")
    assert "only selections from one pool can be compared" in error(*against)


def test_the_default_folder_does_not_replace_the_report_of_another_selection(scored, capsys):
    for name in ("first", "second"):
        longest = ("--selector", "longest", "--k", "3", "--output", f"{name}.jsonl")
        assert run("select", "--scores", "scores", *longest) == 0
    assert run("report", "first.jsonl") == 0 and run("report", "first.jsonl") == 0
    before = Path("report/report.html").read_bytes()
    assert run("report", "second.jsonl") == 2
    assert 'holds another report ("Selection report: first"); give --output-dir' in capsys.readouterr().err
    assert Path("report/report.html").read_bytes() == before
    assert run("report", "second.jsonl", "--output-dir", "r") == 0


def test_a_report_replaces_only_what_belongs_to_an_earlier_one(tmp_path):
    dataset = pool()
    selection = TopK("score_a")(dataset, k=3)
    for name in ("pictures", "report.md"):
        folder = tmp_path / name
        mine = folder / name / "holiday.jpg" if name == "pictures" else folder / name
        mine.parent.mkdir(parents=True)
        mine.write_text("mine")
        with pytest.raises(ValueError, match=f'{name}" belongs to no earlier report.html.*output_dir'):
            report(dataset, selection, folder)
        assert mine.read_text() == "mine" and len(list(folder.rglob("*"))) == len(mine.relative_to(folder).parts)
    report(dataset, selection, tmp_path / "report")
    report(dataset, selection, tmp_path / "report")
