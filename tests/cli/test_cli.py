"""The command line as a user meets it: what works, what it says when something is wrong, and that nothing is left
behind.
"""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from hf_select import FacilityLocation, PoolIndex, Selection
from hf_select.cli.main import main
from hf_select.cli.recipe import recipes
from hf_select.data.loading import read_dataset
from hf_select.data.scores import read_scored


@pytest.fixture(autouse=True)
def work_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pool(rows) -> str:
    Path("pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return "pool.jsonl"


def run(*argv: str) -> int:
    return main([str(arg) for arg in argv])


def fails(capsys, *argv: str) -> str:
    """The one line that a failing command prints."""
    before = sorted(Path.cwd().rglob("*"))
    assert run(*argv) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-select: error: ")]
    assert len(lines) == 1
    assert sorted(Path.cwd().rglob("*")) == before, "something half-written was left"
    return lines[0]


def test_from_a_file_to_a_subset(pool, model_path, rows, capsys):
    assert (
        run(
            "score", "--scorer", "selectit", "--model", model_path, "--dataset", pool, "--output-dir", "o", "--details"
        )
        == 0
    )
    assert (
        run(
            "select",
            "--scores",
            "o",
            "--selector",
            "top_k",
            "--column",
            "score_selectit",
            "--fraction",
            "0.2",
            "--output",
            "s.parquet",
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "score_selectit, mean" in printed and "highest 1 of 40 scored rows" in printed
    subset = load_dataset("parquet", data_files="s.parquet", split="train")
    assert len(subset) == 8 and subset["selection_rank"] == list(range(1, 9))
    assert subset["score_selectit"] == sorted(subset["score_selectit"], reverse=True)
    assert {"prompt", "completion", "selectit_ratings", "selection_reason"} <= set(subset.column_names)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "jsonl.gz", "csv.gz", "saved", "bom"])
def test_every_kind_of_input_gives_the_same_scores(kind, rows):
    data = Dataset.from_list(rows)
    if kind == "saved":
        data.save_to_disk("in")
        source = "in"
    else:
        source = f"in.{kind}" if kind != "bom" else "in.jsonl"
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if kind.startswith("csv"):
            data.to_csv("in.csv")
            text = Path("in.csv").read_text(encoding="utf-8")
        if kind.endswith("gz"):
            Path(source).write_bytes(gzip.compress(text.encode()))
        elif kind == "parquet":
            data.to_parquet(source)
        elif kind == "bom":
            Path(source).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() + b"\r\n")
        else:
            Path(source).write_text(json.dumps(rows) if kind == "json" else text, encoding="utf-8")
    assert run("score", "--scorer", "length", "--dataset", source, "--output-dir", "o") == 0
    scored = load_dataset("parquet", data_files="o/scored/*.parquet", split="train")
    assert scored["score_length"] == [float(len(r["prompt"]) + len(r["completion"])) for r in rows]


def test_every_kind_of_output(pool):
    run("score", "--scorer", "length", "--dataset", pool, "--output-dir", "o")
    select = ("select", "--scores", "o", "--selector", "longest", "--k", "3", "--output")
    for output in ("s.parquet", "s.jsonl", "deep/saved"):
        assert run(*select, output) == 0
    read = [
        load_dataset("parquet", data_files="s.parquet", split="train"),
        load_dataset("json", data_files="s.jsonl", split="train"),
        load_from_disk("deep/saved"),
    ]
    assert read[0]["row_id"] == read[1]["row_id"] == read[2]["row_id"]
    assert run(*select, "deep/saved", "--overwrite") == 0
    assert run("select", "--scores", "s.jsonl", "--selector", "random", "--k", "2", "--output", "t.jsonl") == 0


def test_a_name_may_say_split_and_configuration(pool, capsys):
    rows = [json.loads(line) for line in Path(pool).read_text().splitlines()]
    Path("d").mkdir()
    for name, part in {"train": rows[:5], "test": rows[5:7], "other": rows[7:8]}.items():
        Dataset.from_list(part).to_json(f"d/{name}.jsonl")
    Path("d/README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: main\n  data_files: [{split: train, path: train.jsonl}, {split: test, path: test.jsonl}]\n"
        "- config_name: other\n  data_files: [{split: train, path: other.jsonl}]\n---\n"
    )
    for stream in (False, True):
        for said, part in {"main/test": rows[5:7], "main/train": rows[:5], "other/train": rows[7:8]}.items():
            assert [row["prompt"] for row in read_dataset(f"./d#{said}", stream=stream)] == [r["prompt"] for r in part]
    assert len(read_dataset("./d#test", config="main")) == 2
    for said, cure in {
        "": "other). Name one: ./d#main/train",
        "#main": "#main/train",
        "#new/test": "#main/test",
    }.items():
        assert cure in fails(capsys, "score", "--scorer", "length", "--dataset", f"./d{said}", "--output-dir", "o")
    with pytest.raises(ValueError, match='no split "dev"; it has train, test.*: ./d#main/train'):
        read_dataset("./d#main/dev")
    DatasetDict({"a": Dataset.from_list(rows[:3]), "b": Dataset.from_list(rows[3:4])}).save_to_disk("saved")
    assert len(read_dataset("saved#b")) == 1
    with pytest.raises(ValueError, match="a file, which has no splits; leave out #test"):
        read_dataset(f"{pool}#test")
    Path(pool).rename("pool#1.jsonl")
    assert len(read_dataset("pool#1.jsonl")) == len(rows)


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_columns_are_renamed_wherever_they_are(pool, capsys, stream):
    Path("q.jsonl").write_text(json.dumps({"question": "What is 3 plus 4?", "answer": "7"}) + "\n")
    score = (
        "score",
        "--scorer",
        "tfidf",
        "--dataset",
        pool,
        "--queries",
        "sums=q.jsonl",
        "--output-dir",
        "o",
        *stream,
    )
    assert "no conversation in columns ['question', 'answer']" in fails(capsys, *score)
    renamed = ("--rename", "question=prompt", "answer=completion")
    assert run(*score, *renamed) == 0
    assert read_scored("o")["score_tfidf"][0] is not None
    assert 'column "qestion" is missing' in fails(capsys, *score, "--rename", "qestion=prompt")
    against = ("--scores", "o", "--selector", "decontaminate", "--min-words", "5", "--against", "sums=q.jsonl")
    assert "no conversation" in fails(capsys, "select", *against, "--output", "s.jsonl")
    assert run("select", *against, *renamed, "--output", "s.jsonl") == 0


def test_the_errors_of_score(capsys, pool, model_path, tokenizer):
    def error(**changed: str) -> str:
        flags = {"scorer": "selectit", "model": model_path, "dataset": pool, "output-dir": "o"} | changed
        return fails(capsys, "score", *(word for key, value in flags.items() for word in (f"--{key}", value)))

    assert 'no file or folder "none.jsonl"' in error(dataset="none.jsonl")
    Path("c.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    assert "['question', 'answer'" in error(dataset="c.jsonl")
    Path("empty.jsonl").write_text("")
    assert "is empty" in error(dataset="empty.jsonl")
    Path("e.parquet").unlink(missing_ok=True)
    Dataset.from_dict({"prompt": [], "completion": []}).to_parquet("e.parquet")
    assert "is empty" in error(dataset="e.parquet")
    Path("null.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": null}\n')
    assert "row 1: completion is null" in error(dataset="null.jsonl")
    Path("number.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": 5}\n')
    assert "row 1: completion is int, not text" in error(dataset="number.jsonl")
    Path("role.jsonl").write_text('{"messages": [{"role": "narrator", "content": "x"}]}\n')
    assert 'unknown role "narrator"' in error(dataset="role.jsonl")
    Path("half.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "comp\n')
    assert 'cannot read "half.jsonl"' in error(dataset="half.jsonl")
    Path("pool.txt").write_text("x")
    assert "has an unknown file extension" in error(dataset="pool.txt")
    assert "no model folder" in error(model="./none")
    assert "Did you mean selectit" in error(scorer="selectitt")
    assert "rating prompts" in error(**{"rating-prompts": "none.txt"})
    Path("file").write_text("")
    assert "cannot write to output folder" in error(**{"output-dir": "file/o"})
    assert "invalid choice" in error(mode="papr")
    assert "Did you mean --alpha" in error(alhpa="0.3")
    assert "needs --model" in fails(capsys, "score", "--scorer", "selectit", "--dataset", pool, "--output-dir", "o")
    assert "needs --output-dir" in fails(capsys, "score", "--scorer", "length", "--dataset", pool)
    assert 'column "question" is missing' in fails(
        capsys, "score", "--scorer", "length", "--dataset", pool, "--output-dir", "o", "--rename", "question=prompt"
    )
    assert "Did you mean score" in fails(capsys, "scor")


def test_the_errors_of_select(capsys, pool):
    run("score", "--scorer", "length", "--dataset", pool, "--output-dir", "o")

    def error(**changed: str) -> str:
        flags = {"scores": "o", "selector": "top_k", "column": "score_length", "output": "s.parquet"} | changed
        return fails(capsys, "select", *(word for key, value in flags.items() for word in (f"--{key}", value)))

    assert "must lie in (0, 1]" in error(fraction="0") and "must lie in (0, 1]" in error(fraction="1.5")
    assert "41 rows were requested, but only 40" in error(k="41")
    assert "exactly one of" in error() and "exactly one of" in error(k="1", fraction="0.1")
    assert 'Did you mean "score_length"' in error(column="score_lenght", k="1")
    assert "Did you mean top_k" in error(selector="topk", k="1")
    assert "num_tokens" in error(tokens="10")
    Path("file").write_text("")
    assert "cannot write" in error(k="1", output="file/s.parquet")
    Path("s.parquet").write_text("precious")
    assert "--overwrite" in error(k="1") and Path("s.parquet").read_text() == "precious"
    Path("unfinished/scored").mkdir(parents=True)
    Path("unfinished/manifest.json").write_text("{}")
    assert "no scores in" in error(scores="unfinished", k="1", output="t.parquet")


def test_a_recipe_runs_its_steps_once_and_replays_from_its_config(pool, capsys):
    Path("r.yaml").write_text(
        "steps:\n"
        "  lengths: {command: score, scorer: length, dataset: pool.jsonl, output_dir: '${output_dir}/scores'}\n"
        "  select: {scores: '${output_dir}/scores', selector: longest, k: 5, output: '${output_dir}/s.jsonl'}\n"
    )
    assert run("run", "r.yaml", "--output-dir", "a", "select.k=4") == 0
    assert len(Path("a/s.jsonl").read_text().splitlines()) == 4
    assert "skipped" not in capsys.readouterr().out
    assert run("run", "r.yaml", "select.k=4", "--output-dir", "a") == 0
    assert capsys.readouterr().out.count("finished earlier, skipped") == 2
    assert run("run", "a/config.yaml", "--output-dir", "b") == 0
    assert Path("b/s.jsonl").read_text() == Path("a/s.jsonl").read_text()
    assert Path("b/config.yaml").read_text() == Path("a/config.yaml").read_text()


def test_the_errors_of_a_recipe(pool, capsys):
    def error(text: str, *overrides: str) -> str:
        Path("r.yaml").write_text(text)
        return fails(capsys, "run", "r.yaml", "--output-dir", "o", *overrides)

    step = "{scorer: length, dataset: pool.jsonl, output_dir: o/s}"
    assert 'unknown setting "scorr" of step "score". Did you mean scorer' in error("steps: {score: {scorr: length}}")
    assert 'unknown setting "ofs"' in error("steps: {score: {scorer: length, ofs: all, dataset: a, output_dir: b}}")
    assert "Did you mean score" in error(f"steps: {{scoer: {step}}}")
    assert "Did you mean steps" in error(f"stepps: 1\nsteps: {{score: {step}}}")
    assert "is not a recipe" in error("- a\n- b\n")
    assert "not valid YAML at line" in error("steps: {score: [}\n")
    assert 'unknown step "scor"' in error(f"steps: {{score: {step}}}", "scor.of=all")
    assert "not of the form" in error(f"steps: {{score: {step}}}", "of=all")
    assert "Did you mean quickstart" in fails(capsys, "run", "quikstart")
    assert 'no recipe file "none.yaml"' in fails(capsys, "run", "none.yaml")


def test_a_step_runs_again_when_its_input_changed_its_output_went_or_an_earlier_step_ran(pool, rows, capsys):
    step = "command: select, selector: longest, overwrite: true"
    Path("r.yaml").write_text(
        "steps:\n"
        f"  first: {{{step}, k: 9, scores: scored.jsonl, output: '${{output_dir}}/a.jsonl'}}\n"
        f"  second: {{{step}, k: 3, scores: '${{output_dir}}/a.jsonl', output: '${{output_dir}}/b.jsonl'}}\n"
    )

    def scored(offset: int) -> None:
        lines = [json.dumps({**row, "score_length": (i * 7 + offset) % 40}) for i, row in enumerate(rows)]
        Path("scored.jsonl").write_text("\n".join(lines) + "\n")

    def skipped(*overrides: str) -> int:
        assert run("run", "r.yaml", *overrides, "--output-dir", "o") == 0
        return capsys.readouterr().out.count("skipped")

    scored(0)
    assert skipped() == 0 and skipped() == 2
    before = Path("o/b.jsonl").read_text()
    scored(5)
    assert skipped() == 0 and Path("o/b.jsonl").read_text() != before
    Path("o/b.jsonl").unlink()
    assert skipped() == 1 and Path("o/b.jsonl").exists()
    assert skipped("first.k=8", "--overwrite") == 0, "the second step must read what the first has written again"


def test_overwrite_replaces_saved_datasets_alone(pool, capsys):
    run("score", "--scorer", "length", "--dataset", pool, "--output-dir", "o")
    Path("precious").mkdir()
    Path("precious/thesis.txt").write_text("mine")
    select = ("select", "--scores", "o", "--selector", "longest", "--k", "3", "--overwrite", "--output")
    assert "not a saved dataset" in fails(capsys, *select, "precious")
    assert "not a saved dataset" in fails(capsys, *select, "o")
    assert run(*select, "subset") == 0 and run(*select, "subset") == 0
    again = ("select", "--scores", "subset", "--selector", "longest", "--k", "2", "--overwrite", "--output", "subset")
    assert "holds the rows that are read" in fails(capsys, *again)
    assert Path("precious/thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("others", [[], ["a.jsonl"]])
@pytest.mark.parametrize(("name", "cure"), [("X.JSONL", "X.jsonl"), ("X.Csv.gz", "X.csv.gz")])
def test_a_folder_does_not_leave_out_uppercase_endings(rows, capsys, name, cure, others):
    Path("d").mkdir()
    for each in [name, *others]:
        Path("d", each).write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = fails(capsys, "score", "--scorer", "length", "--dataset", "d", "--output-dir", "o")
    assert f'"{name}", which datasets ignores for its uppercase extension. Rename it to "{cure}"' in said


def test_brackets_in_a_file_name_are_no_pattern(rows):
    for name, some in (("rows[1].jsonl", rows[:10]), ("rows1.jsonl", rows[:1])):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in some))
    assert run("score", "--scorer", "length", "--dataset", "rows[1].jsonl", "--output-dir", "o") == 0
    assert len(load_dataset("parquet", data_files="o/scores.parquet", split="train")) == 10


def test_scores_that_stand_alone_can_be_selected_from(pool):
    run("score", "--scorer", "length", "--dataset", pool, "--output-dir", "o")
    alone = ("select", "--scores", "o/scores.parquet", "--selector", "longest", "--column", "score_length")
    assert run(*alone, "--k", "3", "--output", "s.parquet") == 0
    assert len(load_dataset("parquet", data_files="s.parquet", split="train")) == 3


def test_rds_from_the_command_line(pool, model_path, rows, capsys):
    for task, some in (("a", rows[:3]), ("b", rows[4:6])):
        Path(f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    score = ("score", "--scorer", "rds", "--model", model_path, "--dataset", pool, "--output-dir", "o")
    assert "needs --queries" in fails(capsys, *score)
    assert run(*score, "--queries", "a=a.jsonl", "b=b.jsonl") == 0
    columns = ("--similarities", "score_rds_a", "score_rds_b")
    assert (
        run("select", "--scores", "o", "--selector", "round_robin", *columns, "--k", "6", "--output", "s.jsonl") == 0
    )
    assert "chosen by task b" in capsys.readouterr().out
    length = ("score", "--scorer", "length", "--dataset", pool, "--output-dir", "p", "--queries", "a=a.jsonl")
    assert "has no targets" in fails(capsys, *length)


def test_a_failing_step_says_why_and_the_finished_ones_are_kept(pool, capsys):
    Path("r.yaml").write_text(
        "steps:\n"
        "  score: {scorer: length, dataset: pool.jsonl, output_dir: '${output_dir}/scores'}\n"
        "  select: {scores: '${output_dir}/scores', selector: longest, k: 500, output: '${output_dir}/s.jsonl'}\n"
    )
    assert run("run", "r.yaml", "--output-dir", "a") == 2
    assert "500 rows were requested, but only 40" in capsys.readouterr().err
    assert run("run", "r.yaml", "--output-dir", "a", "select.k=3") == 0
    assert "score: finished earlier, skipped" in capsys.readouterr().out


def test_selections_follow_one_another_and_the_record_tells_the_whole_way(pool, rows, model_path, capsys):
    Path("twice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *rows[:5]]), encoding="utf-8")
    Path("eval.jsonl").write_text(json.dumps(rows[7]) + "\n", encoding="utf-8")
    select = ("select", "--scores")
    assert run(*select, "twice.jsonl", "--selector", "dedup", "--output", "distinct.parquet") == 0
    said = capsys.readouterr().out
    assert "rows removed" in said and "exactly" in said
    clean = ("--selector", "decontaminate", "--n", "5", "--min-words", "3")
    assert run(*select, "distinct.parquet", *clean, "--against", "e=eval.jsonl", "--output", "clean.parquet") == 0
    assert run("score", "--scorer", "length", "--dataset", "clean.parquet", "--output-dir", "o") == 0
    assert run("score", "--scorer", "ifd", "--model", model_path, "--dataset", "o", "--output-dir", "p") == 0
    weights = ("--selector", "weighted_ranks", "--weights", "score_ifd=1", "score_length=-0.5")
    assert run(*select, "p", *weights, "--k", "9", "--output", "s.parquet") == 0
    chosen = load_dataset("parquet", data_files="s.parquet", split="train")
    assert len(chosen) == 9 and {"score_ifd", "score_length"} <= set(chosen.column_names)
    last = ("--selector", "top_k", "--column", "score_ifd", "--k", "4", "--output", "t.jsonl")
    assert run(*select, "s.parquet", *last) == 0
    assert "Steps: Dedup 45 -> 38, then Decontaminate 38 -> 37, then WeightedRanks 37 -> 9" in capsys.readouterr().out
    record = Selection.load("t.jsonl.selection.parquet")
    # Scoring in between does not break the chain.
    assert [step["selector"] for step in record.chain] == ["Dedup", "Decontaminate", "WeightedRanks", "TopK"]
    assert record.num_rows == 45
    distinct = Selection.load("clean.parquet.selection.parquet")
    assert [step["selector"] for step in distinct.chain] == ["Dedup", "Decontaminate"] and distinct.num_rows == 45
    assert not set(distinct.indices) & {7, *range(40, 45)}
    twice = (*select, "twice.jsonl", "--output", "x.parquet")
    assert "needs --against" in fails(capsys, *twice, "--selector", "decontaminate")
    assert "leave out --against" in fails(capsys, *twice, "--selector", "dedup", "--against", "e=eval.jsonl")


def test_vectors_of_an_index_choose_diverse_rows(pool, model_path, capsys):
    run("index", "--scorer", "rds", "--model", model_path, "--dataset", pool, "--output-dir", "i")
    for selector in ("facility_location", "farthest_first"):
        choose = ("--selector", selector, "--vectors", "i", "--k", "5", "--output", f"{selector}.parquet")
        assert run("select", "--scores", pool, *choose) == 0
        assert len(load_dataset("parquet", data_files=f"{selector}.parquet", split="train")) == 5
    fewer = ("select", "--selector", "facility_location", "--k", "2", "--vectors", "i", "--output", "x.parquet")
    # The index of the pool serves the rows that were selected from it, and no others.
    assert run(*fewer, "--scores", "facility_location.parquet") == 0
    record = Selection.load("x.parquet.selection.parquet")
    assert [step["num_rows"] for step in record.chain] == [40, 5] and record.num_rows == 40
    chosen = Selection.load("facility_location.parquet.selection.parquet")
    vectors = PoolIndex.open("i").to_numpy()[chosen.indices]
    expected = FacilityLocation(vectors)(read_dataset("facility_location.parquet"), k=2)
    assert record.indices.tolist() == chosen.indices[expected.indices].tolist()
    read_dataset("facility_location.parquet").to_parquet("copy.parquet")
    assert "other rows (40 there, 5 here)" in fails(capsys, *fewer, "--scores", "copy.parquet", "--overwrite")
    read_dataset("facility_location.parquet").select([1, 0, 2, 3, 4]).to_parquet("facility_location.parquet")
    said = fails(capsys, *fewer, "--scores", "facility_location.parquet", "--overwrite")
    assert "is not what" in said and "Delete that file" in said


def test_the_first_rows_that_select_shows_are_not_copies_of_each_other(capsys):
    texts = ["copied"] * 6 + [f"row {i}" for i in range(5)]
    rows = [{"prompt": text, "completion": "c", "score_a": -i} for i, text in enumerate(texts)]
    Path("s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    select = ("select", "--scores", "s.jsonl", "--selector", "top_k", "--column", "score_a", "--output", "o.jsonl")
    assert run(*select, "--k", "8") == 0
    printed = capsys.readouterr().out
    shown = [line.split()[:2] for line in printed.split("with reasons:\n")[1].splitlines()[:3]]
    assert shown == [["1", "copied"], ["7", "row"], ["8", "row"]]
    assert "5 of the 8 selected rows repeat another one exactly" in printed and "--selector dedup" in printed
    assert run(*select, "--k", "1", "--overwrite") == 0
    assert "repeat" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(900)  # of a recipe that hangs; the quickstart alone takes a minute and a half on an idle machine
@pytest.mark.parametrize("name", [name for name in recipes() if name.endswith("_tiny") or name == "quickstart"])
def test_every_tiny_recipe_runs_offline(name):
    done = subprocess.run(
        [sys.executable, "-m", "hf_select.cli.main", "run", name, "--output-dir", "o"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Done." in done.stdout
    if name == "quickstart":
        assert re.search(
            r"^3,000 tokens: training on the rows that (rds|tfidf) selected gives a loss", done.stdout, re.M
        )
        result = json.loads(Path("o/comparison/result.json").read_text())
        found = result["budgets"]["3000 tokens"]["target"]
        assert {name: found[name]["outcome"] == "better" for name in ("rds", "tfidf", "perplexity")} == {
            "rds": True,
            "tfidf": True,
            "perplexity": False,
        }
        assert all(found[name]["difference"]["high"] < 0 for name in ("rds", "tfidf"))
        assert result["overlap"] == {"target": 0}
        rows = [json.loads(line) for line in Path("o/subset.jsonl").read_text().splitlines()]
        assert len({(row["prompt"], row["completion"]) for row in rows}) == len(rows), "the best rows are copies"
        assert done.stdout.rstrip().splitlines()[-2].startswith("  hf-select compare --model MODEL")


def test_every_recipe_has_a_header_and_a_tiny_twin_and_resolves():
    from hf_select.cli.recipe import _resolved, read_recipe

    for name, path in recipes().items():
        text = path.read_text(encoding="utf-8")
        assert text.startswith("# ") and f"hf-select run {name}" in text
        for step, settings in read_recipe(name)[1]["steps"].items():
            _resolved(step, settings)
        if not name.endswith("_tiny") and name != "quickstart":
            assert f"{name}_tiny" in recipes(), f"{name} has no tiny twin"


def test_help_of_every_command_shows_an_example(capsys):
    for argv in (
        ["--help"],
        ["score", "--help"],
        ["score", "--scorer", "selectit", "--help"],
        ["select", "--help"],
        ["run", "--help"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 0
        assert "hf-select" in capsys.readouterr().out


def test_an_index_is_made_once_and_asked_with_any_queries(pool, model_path, rows, capsys):
    Path("q.jsonl").write_text(json.dumps(rows[3]) + "\n")
    model = ("--scorer", "rds", "--model", model_path, "--dataset", pool)
    assert run("index", *model, "--output-dir", "i", "--stored-dtype", "float32") == 0
    assert "Next: hf-select score --scorer rds --index i" in capsys.readouterr().out
    assert run("score", *model, "--queries", "a=q.jsonl", "--index", "i", "--output-dir", "stored") == 0
    assert run("score", *model, "--queries", "a=q.jsonl", "--output-dir", "direct") == 0
    stored, direct = (
        load_dataset("parquet", data_files=f"{name}/scores.parquet", split="train") for name in ("stored", "direct")
    )
    assert stored["score_rds"] == pytest.approx(direct["score_rds"], abs=1e-6)
    centred = ("score", *model, "--queries", "a=q.jsonl", "--center", "--whiten", "0.5")
    assert run(*centred, "--index", "i", "--output-dir", "c") == run(*centred, "--output-dir", "d") == 0
    stored, direct = (load_dataset("parquet", data_files=f"{n}/scores.parquet", split="train") for n in "cd")
    assert stored["score_rds"] == pytest.approx(direct["score_rds"], abs=2e-5)
    assert Path("i/vectors/moments.npz").exists() and "whiten needs" in fails(
        capsys, *centred[:-3], "--whiten", "0.5", "--output-dir", "o"
    )
    layers = ("--layers", "1", "-1")
    assert run("index", *model, *layers, "--center", "--output-dir", "l") == 0
    assert Path("l/vectors/moments.npz").exists()
    asked = ("score", *model, *layers, "--queries", "a=q.jsonl", "--center", "--index", "l", "--output-dir", "s")
    assert run(*asked) == 0
    asked = ("score", *model, "--queries", "a=q.jsonl", "--index", "i", "--output-dir", "o")
    assert "pooling weighted_mean there, mean here" in fails(capsys, *asked, "--pooling", "mean")
    assert "other rows" in fails(capsys, *asked, "--limit", "5")
    assert 'no index in "nowhere"' in fails(capsys, *asked[:-3], "nowhere", "--output-dir", "o")
    assert "compares no vectors" in fails(
        capsys, "index", "--scorer", "length", "--dataset", pool, "--output-dir", "o"
    )
