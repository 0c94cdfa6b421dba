"""hf-select run: nothing that a run has made is replaced silently, and a recipe says what it does."""

import json
import os
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, load_dataset

from hf_select.cli.main import main
from hf_select.cli.recipe import read_recipe, recipe_help, recipes
from hf_select.cli.score import build_scorer, next_step


@pytest.fixture(autouse=True)
def work_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"p{i}", "completion": "c" * (i + 1)} for i in range(12)]
    Path("pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("r.yaml").write_text(
        "# Lengths.\n#\n#   cost:  nothing\ndescription: The 5 longest rows\nsteps:\n"
        "  score: {scorer: length, dataset: pool.jsonl, output_dir: '${output_dir}/scores'}\n"
        "  select: {scores: '${output_dir}/scores', selector: longest, k: 5, output: '${output_dir}/s.jsonl'}\n"
    )


def run(*argv: str) -> int:
    return main(["run", *argv])


def error_of(capsys, *argv: str) -> str:
    capsys.readouterr()
    assert run(*argv) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-select: error: ")]
    return line


def test_other_settings_do_not_replace_what_is_there(capsys):
    assert run("r.yaml", "--output-dir", "o") == 0
    before = {path: path.read_bytes() for path in Path("o").rglob("*") if path.is_file()}
    said = error_of(capsys, "r.yaml", "--output-dir", "o", "select.k=3")
    assert "select.k was 5 and is 3" in said and "--overwrite" in said and "--output-dir" in said
    assert 'score.dataset was "pool.jsonl" and is "other.jsonl"' in error_of(
        capsys, "r.yaml", "--output-dir", "o", "score.dataset=other.jsonl"
    )
    assert {path: path.read_bytes() for path in Path("o").rglob("*") if path.is_file()} == before
    assert run("r.yaml", "--output-dir", "o", "select.k=3", "--overwrite") == 0
    assert "[1/2] score: finished earlier, skipped" in capsys.readouterr().out
    assert len(load_dataset("json", data_files="o/s.jsonl", split="train")) == 3
    assert "select.k was 3 and is 5" in error_of(capsys, "r.yaml", "--output-dir", "o")


def test_other_settings_with_a_place_of_their_own_reuse_the_finished_steps(capsys):
    assert run("r.yaml", "--output-dir", "o") == 0
    assert run("r.yaml", "--output-dir", "o", "select.k=3", "select.output=${output_dir}/t.jsonl") == 0
    assert "score: finished earlier, skipped" in capsys.readouterr().out
    assert len(Path("o/s.jsonl").read_text().splitlines()) == 5
    assert len(Path("o/t.jsonl").read_text().splitlines()) == 3


def test_overwrite_replaces_the_results_of_a_command_that_has_no_such_flag(capsys):
    assert run("r.yaml", "--output-dir", "o") == 0
    changed = ("r.yaml", "--output-dir", "o", "score.of=response")
    assert "score.of was" in error_of(capsys, *changed)
    assert run(*changed, "--overwrite") == 0
    assert json.loads(Path("o/s.jsonl").read_text().splitlines()[0])["score_length"] == 12
    # New rows in the same file: the scores are those of other rows, though no setting has changed.
    Path("pool.jsonl").write_text("".join(json.dumps({"prompt": "p", "completion": "c" * i}) + "\n" for i in range(7)))
    assert "other rows (12 there, 7 here)" in error_of(capsys, *changed)
    assert run(*changed, "--overwrite") == 0
    assert len(load_dataset("json", data_files="o/s.jsonl", split="train")) == 5
    assert run(*changed, "--overwrite") == 0
    assert "[1/2] score: finished earlier" in capsys.readouterr().out


@pytest.mark.parametrize(
    "mine, other", [("elsewhere", "${output_dir}/s.jsonl"), ("${output_dir}/scores", "${output_dir}/scores/s.jsonl")]
)
def test_overwrite_removes_no_folder_that_is_shared_or_elsewhere(mine, other, capsys):
    text = Path("r.yaml").read_text().replace("${output_dir}/scores", mine)
    Path("t.yaml").write_text(text.replace("${output_dir}/s.jsonl", other))
    assert run("t.yaml", "--output-dir", "o") == 0
    said = error_of(capsys, "t.yaml", "--output-dir", "o", "score.of=response", "--overwrite")
    assert "holds scores of another run" in said
    assert Path(mine.replace("${output_dir}", "o"), "scores.parquet").exists()
    assert Path(other.replace("${output_dir}", "o")).exists()


def test_a_stopped_step_is_not_mixed_with_other_settings(capsys, monkeypatch):
    from hf_select.cli.score import Score

    whole = Score.run

    def stopped(command):
        whole(command)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Score, "run", stopped)
        assert run("r.yaml", "--output-dir", "o") == 130
    before = {path: path.stat().st_mtime_ns for path in [Path("o/config.yaml"), *Path("o/scores/done").iterdir()]}
    assert "score.of was" in error_of(capsys, "r.yaml", "--output-dir", "o", "score.of=response")
    assert Path("o/config.yaml").stat().st_mtime_ns == before.pop(Path("o/config.yaml"))
    assert run("r.yaml", "--output-dir", "o", "--overwrite") == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before, "the same settings resume"


@pytest.mark.parametrize(
    "override, said",
    [
        ("select.k=many", "step \"select\": k is 'many'; it must be int"),
        ("score.of=words", 'step "score": of is "words"; it can be'),
        ("select.foo=1", "hf-select select --help"),
    ],
)
def test_a_wrong_value_stops_a_recipe_before_its_first_step(override, said, capsys):
    assert said in error_of(capsys, "r.yaml", "--output-dir", "o", override)
    assert not Path("o").exists()


def test_a_config_of_something_else_is_not_replaced(capsys):
    Path("o").mkdir()
    Path("o/config.yaml").write_text("model: mine\n")
    assert "is not that of a run" in error_of(capsys, "r.yaml", "--output-dir", "o")
    assert Path("o/config.yaml").read_text() == "model: mine\n"


def test_the_description_of_a_run_says_what_was_changed():
    assert run("r.yaml", "--output-dir", "a") == 0
    assert run("r.yaml", "--output-dir", "b", "select.k=3") == 0
    described = [yaml.safe_load(Path(f"{name}/config.yaml").read_text())["description"] for name in "ab"]
    assert described == ["The 5 longest rows", "The 5 longest rows; run with select.k=3"]
    assert run("b/config.yaml", "--output-dir", "c", "select.k=4", "score.limit=9") == 0
    description = yaml.safe_load(Path("c/config.yaml").read_text())["description"]
    assert description == "The 5 longest rows; run with select.k=4; score.limit=9"


def test_a_recipe_proposes_no_next_command_between_its_steps(capsys):
    assert run("r.yaml", "--output-dir", "o") == 0
    assert "Next:" not in capsys.readouterr().out
    assert main(["score", "--scorer", "length", "--dataset", "pool.jsonl", "--output-dir", "p"]) == 0
    assert capsys.readouterr().out.splitlines()[-2].startswith("Next: hf-select select --scores p")


def test_a_recipe_ends_with_what_its_last_step_proposes(capsys):
    Path("s.yaml").write_text(
        "description: d\nsteps: {score: {scorer: length, dataset: pool.jsonl, output_dir: '${output_dir}/scores'}}\n"
    )
    assert run("s.yaml", "--output-dir", "o") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3].startswith("Done.") and lines[-2].startswith("Next: hf-select select --scores o/scores")


def test_notes_are_printed_with_their_steps_and_kept_in_the_config(capsys):
    Path("r.yaml").write_text("notes: {select: take the longest}\n" + Path("r.yaml").read_text())
    assert run("r.yaml", "--output-dir", "o") == 0
    printed = capsys.readouterr().out
    assert "[1/2] score\n" in printed and "[2/2] select: take the longest\n" in printed
    assert run("o/config.yaml", "--output-dir", "o") == 0
    assert "[2/2] select: take the longest: finished earlier, skipped" in capsys.readouterr().out
    for notes, said in (("{selct: x}", "Did you mean select"), ("[x]", "is not a mapping from step name to text")):
        Path("bad.yaml").write_text(f"notes: {notes}\n" + Path("r.yaml").read_text().split("\n", 1)[1])
        assert said in error_of(capsys, "bad.yaml")


@pytest.mark.parametrize(
    ("scorer", "queries", "proposed"),
    [
        ("ifd", None, "top_k --column score_ifd --at-most 1 "),
        ("perplexity", None, "top_k --column score_perplexity --which middle "),
        ("tfidf", ["a"], "top_k --column score_tfidf "),
        ("tfidf", ["a", "b"], "round_robin --similarities score_tfidf_a score_tfidf_b "),
        ("dsir", ["a"], "sample --column score_dsir "),
        ("length", None, "top_k --column score_length "),
    ],
)
def test_the_next_command_takes_the_part_of_the_scores_that_the_method_is_for(scorer, queries, proposed):
    rows = Dataset.from_list([{"prompt": f"what is {i}", "completion": "a number"} for i in range(8)])
    made = build_scorer(scorer, {"model": "m"} if scorer in ("ifd", "perplexity") else {})
    if queries:
        made = made.fit(dict.fromkeys(queries, rows), pool=rows)
    said = next_step(made, "o", "pool.jsonl")
    assert proposed in said
    assert ("hf-select compare" in said) == (queries is None), (
        "without a target first see whether it beats random rows"
    )


def test_the_help_of_a_recipe_is_its_header_and_its_settings(capsys):
    with pytest.raises(SystemExit):
        run("r.yaml", "--help")
    said = capsys.readouterr().out
    assert "Lengths." in said and "cost:  nothing" in said and "  select.k=5\n" in said
    for name, path in recipes().items():
        text, settings = recipe_help(name), read_recipe(name)[1]["steps"]
        header = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
        assert all(line in text for line in header)
        assert all(f"  {step}.{key}" in text for step, of in settings.items() for key in of)
    assert "Did you mean quickstart" in error_of(capsys, "quikstart", "--help")


def test_an_override_reaches_into_a_mapping(capsys):
    from hf_select.cli.recipe import _override

    steps = {"train": {"args": {"num_stages": 5, "beta": 0.1}, "model": "m"}}
    for override in ("train.args.beta=0.2", "train.args.report_to=none", "train.lora.r=16", "train.model=x"):
        _override(steps, override)
    expected = {"args": {"num_stages": 5, "beta": 0.2, "report_to": "none"}, "model": "x", "lora": {"r": 16}}
    assert steps == {"train": expected}
    with pytest.raises(ValueError, match="model is 'x' and not a mapping"):
        _override(steps, "train.model.name=y")
    Path("t.yaml").write_text("steps: {train: {method: sft, model: m, dataset: pool.jsonl, output_dir: o}}\n")
    said = error_of(capsys, "t.yaml", "train.args.learning_rat=1", "--output-dir", "x")
    assert 'unknown setting "learning_rat" of SFTConfig. Did you mean learning_rate' in said


@pytest.mark.parametrize("before", [None, "fp16"])
def test_a_step_does_not_inherit_the_precision_of_an_earlier_one(monkeypatch, tmp_path, before):
    """transformers 4.57 leaves the precision of a run in the environment."""
    from hf_select.cli.list_methods import ListMethods

    name, seen = "ACCELERATE_MIXED_PRECISION", []
    monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv(name, before)

    def train_in_bf16(self):
        seen.append(os.environ.get(name))
        os.environ[name] = "bf16"

    monkeypatch.setattr(ListMethods, "run", train_in_bf16)
    recipe = tmp_path / "two.yaml"
    recipe.write_text("description: two steps\nsteps:\n  list: {}\n  again: {command: list}\n")
    assert main(["run", str(recipe), "--output-dir", str(tmp_path / "out")]) == 0
    assert seen == [before, before] and os.environ.get(name) == before
