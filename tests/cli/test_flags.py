"""Flags and YAML keys: nothing that is given twice is silently dropped, and an unknown name gets the near ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_select.cli.commands import COMMANDS, DEMO_STEPS, command_class
from hf_select.cli.main import _Parser, main
from hf_select.cli.settings import add_flags, build, nearest, settable
from hf_select.cli.synonyms import SYNONYMS
from hf_select.scoring import SCORERS
from hf_select.selection import SELECTORS
from hf_select.strict_yaml import parse_yaml


@pytest.fixture(autouse=True)
def work_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*argv: str) -> int:
    return main([str(arg) for arg in argv])


def error_of(capsys, *argv: str) -> str:
    assert run(*argv) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-select: error: ")]
    return line


def write_rows(name: str, numbers: range) -> str:
    rows = [{"prompt": f"What is {i} plus {i} plus one?", "completion": f"It is {2 * i + 1}."} for i in numbers]
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def test_a_mapping_flag_given_twice_keeps_both(capsys):
    pool = write_rows("pool.jsonl", range(20))
    for name, numbers in (("a", range(3)), ("b", range(5, 7))):
        write_rows(f"{name}.jsonl", numbers)
    clean = ("select", "--scores", pool, "--selector", "decontaminate", "--n", "8", "--min-words", "8")
    assert run(*clean, "--against", "a=a.jsonl", "--against", "b=b.jsonl", "--output", "clean.jsonl") == 0
    left = load_dataset("json", data_files="clean.jsonl", split="train")["prompt"]
    assert len(left) == 15, "evaluation set a was dropped" if len(left) == 18 else len(left)
    twice = error_of(capsys, *clean, "--against", "a=a.jsonl", "--against", "a=b.jsonl", "--output", "x.jsonl")
    assert '"a" is there twice (a.jsonl, b.jsonl)' in twice
    assert '"a" is there twice' in error_of(capsys, *clean, "--against", "a=a.jsonl", "a=b.jsonl", "--output", "x")
    assert run("mix", "--sources", "x=a.jsonl", "--sources", "y=b.jsonl", "--output-dir", "mix") == 0
    assert set(load_dataset("parquet", data_files="mix/mixture.parquet", split="train")["source"]) == {"x", "y"}


def parsed(argv: list[str], cls: type) -> dict:
    parser = _Parser(allow_abbrev=False)
    add_flags(parser, cls, "settings")
    return vars(parser.parse_args(argv))


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    st.dictionaries(st.from_regex(r"[a-z]{1,4}", fullmatch=True), st.from_regex(r"[a-z=/.]{1,6}", fullmatch=True)),
    st.data(),
)
def test_however_pairs_are_spread_over_flags_they_are_the_same_mapping(pairs, data):
    from hf_select.cli.compare import Compare

    words = [f"{name}={value}" for name, value in pairs.items()]
    argv: list[str] = []
    while words:
        taken = data.draw(st.integers(1, len(words)))
        argv += ["--methods", *words[:taken]]
        words = words[taken:]
    assert parsed(argv, Compare).get("methods", {}) == pairs
    names = [word for word in argv if word != "--methods"]
    if names:
        with pytest.raises(ValueError, match="is there twice"):
            parsed([*argv, "--methods", names[0]], Compare)


def test_list_flags_add_up_and_flags_of_one_value_are_given_once(capsys):
    from hf_select.cli.compare import Compare

    given = ["--budgets", "1000", "--budgets", "2000", "5 tokens"]
    assert parsed(given, Compare)["budgets"] == ["1000", "2000", "5 tokens"]
    for argv in (
        ["--seeds", "3", "--seeds", "4"],
        ["--whole-pool", "--no-whole-pool"],
        ["--split", "a", "--split", "a"],
    ):
        with pytest.raises(ValueError, match="given twice"):
            parsed(argv, Compare)
    select = ("select", "--scores", "p", "--output", "s", "--selector", "round_robin", "--k", "3")
    assert 'similarities lists "a" twice' in error_of(capsys, *select, "--similarities", "a", "--similarities", "a")
    assert "given twice (length, ifd)" in error_of(capsys, "score", "--scorer", "length", "--scorer", "ifd")


@pytest.mark.parametrize("name", [name for name in (*COMMANDS, *DEMO_STEPS) if name != "run"])
def test_every_flag_of_every_command_adds_up_or_is_given_once(name):
    cls = command_class(name)
    parser = _Parser(allow_abbrev=False)
    add_flags(parser, cls, "settings")
    kinds = {type(action).__name__ for action in parser._actions if action.dest != "help"}
    assert kinds <= {"_ExtendAction", "_Pairs", "_Once", "_Switch"}, "a second value would replace the first"


def test_a_key_of_yaml_may_be_there_once(capsys):
    for text, line in (("a: 1\nb: 2\na: 3\n", 3), ("x:\n  - {a: 1, a: 2}\n", 2), ("? a\n: 1\n? a\n: 2\n", 3)):
        with pytest.raises(ValueError, match=f'at line {line}: the key "a" is there twice'):
            parse_yaml(text, "the text")
    merged = "base: &base {a: 1, b: 2}\nthis: {<<: *base, a: 3}\nother: {<<: *base, c: 4}\n"
    assert parse_yaml(merged, "")["this"] == {"a": 3, "b": 2}
    assert parse_yaml("a: {x: 1}\nb: {x: 1}\n", "") == {"a": {"x": 1}, "b": {"x": 1}}
    step = "scorer: length\n    dataset: p.jsonl\n    output_dir: o\n    limit: 5\n    limit: 6\n"
    Path("r.yaml").write_text(f"steps:\n  score:\n    {step}")
    assert 'line 7: the key "limit" is there twice' in error_of(capsys, "run", "r.yaml")
    Path("r.yaml").write_text("steps:\n  score: {scorer: length}\n  score: {scorer: ifd}\n")
    assert 'the key "score" is there twice' in error_of(capsys, "run", "r.yaml")
    Path("r.yaml").write_text("steps:\n  score: {scorer: length, dataset: p.jsonl, output_dir: o}\n")
    assert '"score.limit" is given twice' in error_of(capsys, "run", "r.yaml", "score.limit=3", "score.limit=4")
    assert "is not valid YAML" in error_of(capsys, "run", "r.yaml", "score.limit=[3")


@pytest.mark.parametrize(
    ("argv", "flag"),
    [
        ("score --scorer ifd --batch-size 8", "--tokens-per-batch"),
        ("score --scorer ifd --model-name-or-path m", "--model"),
        ("score --scorer ifd --max-seq-length 8", "--max-length"),
        ("score --scorer ifd --torch-dtype float16", "--dtype"),
        ("score --scorer ifd --data d", "--dataset"),
        ("score --scorer ifd --load-in-4bit", "--quantization"),
        ("select --selector top_k --num-samples 8", "--k"),
        ("select --selector top_k --top-k 8", "--k"),
        ("select --selector top_k --percent 8", "--fraction"),
        ("select --selector top_k --out s.jsonl", "--output"),
        ("select --selector top_k --train-file p.jsonl", "--scores"),
        ("select --selector top_k --score-column s", "--column"),
        ("compare --lr 1", "--learning-rate"),
        ("compare --num-train-epochs 1", "--passes"),
        ("generate glan --api-base x", "--base-url"),
        ("publish x --hub-model-id me/x", "--repo-id"),
        ("report x --against y", "--compare-with"),
        ("train sft --learning-rate 1e-5", "--args learning_rate=VALUE"),
        ("train sft --per-device-train-batch-size 4", "--args per_device_train_batch_size=VALUE"),
    ],
)
def test_a_flag_of_another_tool_is_answered_with_ours(argv, flag, capsys):
    line = error_of(capsys, *argv.split())
    said = line.partition("Did you mean ")[2].rstrip("?").split(" or ") if "Did you mean" in line else [line]
    assert flag in said or said[0].endswith(f"{flag}."), line
    assert len(line) < 160


def test_a_name_like_none_is_not_answered_with_all_flags(capsys):
    line = error_of(capsys, "score", "--scorer", "ifd", "--zzz", "1")
    assert "See hf-select score --help" in line and "--dataset" not in line
    assert "needs --scorer, one of deita" in error_of(capsys, "score", "--model", "m", "--dataset", "d")
    assert "needs --selector, one of" in error_of(capsys, "select", "--column", "c")
    assert "--folder is given without its name: hf-select status FOLDER" in error_of(capsys, "status", "--folder", "x")
    assert '"pool.jsonl" belongs to no flag' in error_of(capsys, "score", "pool.jsonl", "--scorer", "length")
    assert "Did you mean ifd" in error_of(capsys, "score", "--scorer", "superfiltering")
    assert "See hf-select --help" in error_of(capsys, "frobnicate")
    assert 'unknown mixture "rewildd". Did you mean rewild?' in error_of(capsys, "mix", "rewildd", "--output-dir", "m")


def test_every_synonym_leads_to_a_name_that_there_is():
    known = {*SCORERS, *SELECTORS}
    for name in (*COMMANDS, *DEMO_STEPS):
        cls = command_class(name)
        choices: list[dict] = [{}]
        if name in ("score", "select"):
            kind, names = ("scorer", SCORERS) if name == "score" else ("selector", SELECTORS)
            choices = [{kind: one} for one in names]
        elif name == "generate":
            choices = [{"method": "glan"}, {"method": "responses"}, {"method": "glan", "backend": "transformers"}]
        elif name == "train":
            choices = [{"method": "sft"}]
        known |= {f.name for values in choices for part in (cls, *cls.parts(values)) for f in settable(part)}
    unknown = {ours for names in SYNONYMS.values() for ours in names} - known
    assert not unknown
    assert nearest("--batch-size", ["--bad-rows", "--tokens-per-batch"])[0] == "--tokens-per-batch"


def test_a_method_may_be_the_first_word_or_a_flag(capsys):
    for argv in (["train", "sft"], ["train", "--method", "sft"], ["train", "--output-dir", "o", "--method", "sft"]):
        assert "hf-select train needs --dataset" in error_of(capsys, *argv, "--model", "m") or "--output-dir" in argv
    assert "--method: given twice (sft, irft)" in error_of(capsys, "train", "sft", "--method", "irft")


def test_a_command_is_its_class_and_a_line_of_the_table(capsys, monkeypatch):
    source = (
        "from dataclasses import dataclass\nfrom hf_select.cli.command import Command\n\n\n"
        "@dataclass\nclass Hello(Command):\n"
        '    """Greet.\n\n    Args:\n        name: who is greeted.\n        times: how often.\n    """\n\n'
        "    name: str\n    times: int = 1\n    example = 'hf-select hello Ada'\n    positional = ('name',)\n\n"
        "    def run(self):\n        print(f'hello {self.name} ' * self.times)\n"
    )
    Path("greeting.py").write_text(source)
    monkeypatch.syspath_prepend(".")
    monkeypatch.setitem(COMMANDS, "hello", ("greeting:Hello", "greet somebody"))
    assert run("hello", "--times", "2", "Ada") == 0
    assert capsys.readouterr().out.strip() == "hello Ada hello Ada"
    assert "hf-select hello needs a name" in error_of(capsys, "hello")
    assert "--name is given without its name: hf-select hello NAME" in error_of(capsys, "hello", "--name", "Ada")
    Path("r.yaml").write_text("steps: {hello: {name: Bob}}\n")
    assert run("run", "r.yaml", "--output-dir", "o") == 0 and "hello Bob" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["hello", "--help"])
    assert "hf-select hello Ada" in capsys.readouterr().out


def test_an_empty_text_is_refused():
    from hf_select.cli.select import Select

    for name in ("scores", "output"):
        with pytest.raises(ValueError, match=f"{name} is an empty text"):
            build(Select, {"scores": "p", "selector": "random", "output": "o", name: " "}, "select")


def test_a_warning_has_a_line_of_its_own_above_the_bar(model_path, capsys, monkeypatch):
    import warnings

    from hf_select.scoring.length import Length

    measure = Length.measure

    def warned(self, rows):
        warnings.warn("this is on its way out", FutureWarning, stacklevel=1)
        return measure(self, rows)

    monkeypatch.setattr(Length, "measure", warned)
    rows = [{"prompt": f"p{i}", "completion": "" if i % 2 else "an answer"} for i in range(8)]
    Path("pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    score = ("score", "--dataset", "pool.jsonl", "--chunk-rows", "2", "--output-dir")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run(*score, "o", "--scorer", "length") == 0
        assert run(*score, "p", "--scorer", "ifd", "--model", model_path) == 0
    printed = capsys.readouterr().err.replace("\r", "\n").splitlines()
    for said in ("FutureWarning: this is on its way out", "ifd: 1 of 2 rows"):
        lines = [line for line in printed if said in line]
        assert lines and not any("row/s" in line for line in lines), lines


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("status afile", '"afile" is not the folder of hf-select score or index'),
        ("join --comparisons afile a --output-dir j", '"afile" holds no finished comparison'),
        ("report s.jsonl --output-dir afile", '"afile" is a file, and a folder is needed'),
        ("report s.jsonl --output-dir afile/x", '"afile/x" lies below a file'),
        ("export s.jsonl --output-dir afile", '"afile" is a file, and a folder is needed'),
        ("import-scores . --dataset pool.jsonl --name j --output i.jsonl", '"." is a folder, and a file is needed'),
        ("report s.jsonl --compare-with s.jsonl --output-dir r", '"s.jsonl" is compared with itself'),
        ("report s.jsonl --examples -1 --output-dir r", "examples is -1; it must be at least 0"),
        ("report s.jsonl --max-megabytes nan --output-dir r", "max_megabytes is nan"),
        ("select --scores pool.jsonl --selector random --k 2 --seed -1 --output x.jsonl", "seed is -1"),
        ("select --scores pool.jsonl --selector random --k 0 --output x.jsonl", "k is 0"),
        ("select --scores pool.jsonl --selector random --tokens -1 --output x.jsonl", "tokens is -1"),
        ("select --scores pool.jsonl --selector random --output x.jsonl --fraction", "expected one argument"),
        ("select --scores pool.jsonl --selector random --output x.jsonl --fraction=", "invalid float value: ''"),
        ("score --scorer length --dataset= --output-dir o", "dataset is an empty text"),
        ("score --scorer ifd --model a b --dataset pool.jsonl --output-dir o", "model is a list of 2"),
        ("score --scorer ifd --model= --dataset pool.jsonl --output-dir o", "model is an empty text"),
        ("score --scorer", "expected one argument"),
        ("train --model m", "hf-select train needs a method: hf-select train sft"),
        ("train stf --model m", 'unknown method "stf". Did you mean sft'),
        ("generate glan --model a b --output-dir g", "model is a list; GLAN takes one model"),
        ("search-mixture --sources a=pool.jsonl b=s.jsonl --held-out h=pool.jsonl --rows 3 --runs 0 --model m "
         "--output-dir o", "runs is 0"),
        ("run", "hf-select run needs a recipe"),
        ("--nonsense", 'unknown flag "--nonsense"'),
    ],
)  # fmt: skip
def test_a_slip_is_one_line_that_names_what_was_given(command, said, capsys):
    pool = write_rows("pool.jsonl", range(20))
    Path("afile").write_text("x")
    assert run("select", "--scores", pool, "--selector", "random", "--k", "5", "--output", "s.jsonl") == 0
    before = sorted(Path.cwd().rglob("*"))
    capsys.readouterr()
    line = error_of(capsys, *command.split())
    assert said in line and "unexpected" not in line
    assert sorted(Path.cwd().rglob("*")) == before


def test_an_unexpected_error_is_one_line_and_its_traceback_is_kept(capsys, monkeypatch):
    from hf_select.scoring.length import Length

    def broken(self, rows):
        raise KeyError("tool")

    monkeypatch.setattr(Length, "measure", broken)
    score = ("score", "--scorer", "length", "--dataset", write_rows("pool.jsonl", range(3)), "--output-dir", "o")
    line = error_of(capsys, *score)
    assert "KeyError: 'tool'" in line
    kept = Path(line.rpartition(" is in ")[2].rstrip(")"))
    assert "in broken" in kept.read_text()
    kept.unlink()
    monkeypatch.setenv("HF_SELECT_TRACEBACK", "1")
    with pytest.raises(KeyError, match="tool"):
        run(*score)


def test_control_c_is_one_line(capsys, monkeypatch):
    from hf_select.scoring.length import Length

    def stopped(self, rows):
        raise KeyboardInterrupt

    monkeypatch.setattr(Length, "measure", stopped)
    pool = write_rows("pool.jsonl", range(3))
    assert run("score", "--scorer", "length", "--dataset", pool, "--output-dir", "o") == 130
    assert "hf-select: stopped. The same command resumes" in capsys.readouterr().err


def test_a_mixture_of_other_settings_is_not_replaced(capsys):
    pool = write_rows("pool.jsonl", range(20))
    mix = ("mix", "--sources", f"a={pool}", "--output-dir", "m")
    assert run(*mix) == 0 and run(*mix) == 0
    before = Path("m/mixture.parquet").read_bytes()
    assert "holds a mixture with other settings (seed)" in error_of(capsys, *mix, "--seed", "1")
    assert Path("m/mixture.parquet").read_bytes() == before
    assert run(*mix, "--seed", "1", "--overwrite") == 0 and Path("m/mixture.parquet").read_bytes() != before


def test_the_help_gives_each_command_a_line_and_loads_no_torch(capsys):
    code = (
        "import sys; from hf_select.cli.main import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit:\n    pass\n"
        "heavy = [m for m in ('torch', 'transformers', 'datasets', 'numpy') if m in sys.modules]\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line.split(maxsplit=1)[1:] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert all(lines[name] for name in COMMANDS) and "demo-pool" not in done.stdout
    for argv in ([], ["help"]):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 0 and "commands:" in capsys.readouterr().out


def test_a_reader_that_leaves_early_is_no_error(tmp_path):
    assert (
        run("score", "--scorer", "length", "--dataset", write_rows("pool.jsonl", range(3)), "--output-dir", "o") == 0
    )
    command = f"{sys.executable} -m hf_select.cli.main status o | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert "Broken pipe" not in done.stderr and "Traceback" not in done.stderr, done.stderr
