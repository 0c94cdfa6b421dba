"""A core installation does everything but what an extra is for, and names the extra where one is missing."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hf_select
from hf_select.cli.commands import COMMANDS, DEMO_STEPS, command_class
from hf_select.cli.main import main
from hf_select.extras import EXTRAS, explained, require


ROOT = Path(hf_select.__file__).parents[1]
# Distribution -> module, where they differ.
MODULES = {"scikit-learn": "sklearn", "sentence-transformers": "sentence_transformers", "lm-eval": "lm_eval"}


def extras_of_pyproject() -> dict[str, list[str]]:
    """Extra -> the modules of its packages."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.partition("[project.optional-dependencies]\n")[2].partition("\n\n")[0]
    packages = {
        name: re.findall(r'"([\w-]+)', listed) for name, listed in re.findall(r"^(\w+) = (.*)$", section, re.M)
    }
    return {
        name: [MODULES.get(package, package.replace("-", "_")) for package in listed]
        for name, listed in packages.items()
    }


def without_extras(code: str, *args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process in which no package of an extra can be imported."""
    blocked = (
        f"import sys\nfor name in {sorted({m for each in EXTRAS.values() for m in each})}: sys.modules[name] = None\n"
    )
    return subprocess.run([sys.executable, "-c", blocked + code, *args], capture_output=True, text=True, cwd=cwd)


def test_each_module_is_in_the_extra_that_an_error_names():
    listed = extras_of_pyproject()
    for extra, modules in EXTRAS.items():
        assert set(modules) <= set(listed[extra]), extra
    assert {"train", "report", "text", "embed", "eval"} <= set(EXTRAS)


def test_a_missing_module_is_named_with_its_extra(monkeypatch):
    require("anything", "json")
    for name in ("trl", "scipy"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'^scipy is needed for a test: pip install "hf-select\[report\]"$'):
        require("a test", "json", "scipy")
    with pytest.raises(
        ImportError, match=r'^trl and scipy are needed for a test: pip install "hf-select\[train,report\]"$'
    ):
        require("a test", "trl", "scipy")


def test_only_a_missing_optional_module_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    missing = ModuleNotFoundError("No module named 'scipy.stats'", name="scipy.stats")
    assert "hf-select[report]" in str(explained("a test", missing))
    for error in (
        ImportError("cannot import name 'x' from 'trl'", name="trl"),  # installed, but another release
        ModuleNotFoundError("No module named 'their_module'", name="their_module"),
        ModuleNotFoundError("without a name"),
    ):
        assert explained("a test", error) is error


def test_the_core_scores_and_selects(model_path, tmp_path, rows):
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = """
from hf_select.cli.main import main
for scorer in ("length", "selectit", "ifd", "perplexity", "deita"):
    model = [] if scorer == "length" else ["--model", sys.argv[1]]
    extra = ["--tokenizer", sys.argv[1]] if scorer == "length" else []
    words = ["score", "--scorer", scorer, "--dataset", "pool.jsonl", "--output-dir", scorer, *model]
    assert main(words) == 0, scorer
words = ["score", "--scorer", "rds", "--model", sys.argv[1], "--dataset", "pool.jsonl", "--queries", "t=pool.jsonl"]
assert main([*words, "--output-dir", "rds"]) == 0
assert main(["status", "selectit"]) == 0
select = ["select", "--scores", "selectit", "--k", "3"]
assert main([*select, "--selector", "top_k", "--column", "score_selectit", "--output", "top.jsonl"]) == 0
assert main([*select, "--selector", "random", "--output", "random.jsonl"]) == 0
assert main(["mix", "--sources", "a=pool.jsonl", "--output-dir", "mixed"]) == 0
assert main(["export", "top.jsonl", "--output-dir", "exported"]) == 0
assert main(["list"]) == 0
"""
    done = without_extras(code, model_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len((tmp_path / "top.jsonl").read_text().splitlines()) == 3


def test_a_command_that_needs_an_extra_says_so_before_it_begins(tmp_path):
    needing = [name for name in (*COMMANDS, *DEMO_STEPS) if (cls := command_class(name)) is not None and cls.modules]
    assert {"train", "compare", "report", "warm-up"} <= set(needing)
    code = """
import json
from hf_select.cli.main import main
for words in json.loads(sys.argv[1]):
    assert main(words) == 2, words
"""
    words = [
        ["train", "sft", "--model", "m", "--dataset", "d", "--output-dir", "o"],
        ["report", "subset.jsonl"],
        "compare --model m --dataset d --held-out a=b --methods x=y --budgets 5 --output-dir o".split(),
        ["run", "quickstart"],
    ]
    done = without_extras(code, json.dumps(words), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(words) and all("hf-select[" in line for line in lines), lines
    assert lines[0].endswith('trl and peft are needed for hf-select train: pip install "hf-select[train]"')
    assert lines[3].endswith('for the recipe quickstart: pip install "hf-select[train,report,text]"')
    assert not list(tmp_path.iterdir())


def test_the_help_of_every_command_needs_no_extra():
    code = """
from hf_select.cli.commands import COMMANDS
from hf_select.cli.main import main
for words in ([name] for name in COMMANDS):
    try:
        raise AssertionError((words, main([*words, "--help"])))
    except SystemExit as end:
        assert not end.code, words
"""
    done = without_extras(code)
    assert done.returncode == 0, done.stderr
    assert 'needs pip install "hf-select[train,report]"' in done.stdout


def test_a_public_name_that_needs_an_extra_says_so():
    code = """
import hf_select
fine = []
for name in hf_select.__all__:
    try:
        getattr(hf_select, name)
        fine.append(name)
    except ImportError as error:
        assert "hf-select[" in str(error) and hf_select.__name__ + "." + name in str(error), (name, error)
print(" ".join(fine))
"""
    done = without_extras(code)
    assert done.returncode == 0, done.stderr
    without = set(hf_select.__all__) - set(done.stdout.split())
    assert without <= {
        "advise", "advise_target", "compare", "join", "search_mixture", "validate_scores",
        "IRFTConfig", "IRFTTrainer", "RFTConfig", "RFTTrainer",
    }  # fmt: skip


def test_the_message_of_an_import_in_the_middle_of_a_command_names_the_extra(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.chdir(tmp_path)
    Path("pool.jsonl").write_text('{"prompt": "a b c", "completion": "d"}\n' * 3)
    words = ["score", "--scorer", "tfidf", "--dataset", "pool.jsonl", "--queries", "t=pool.jsonl", "--output-dir", "s"]
    assert main(words) == 2
    assert capsys.readouterr().err.endswith('sklearn is needed for word statistics: pip install "hf-select[text]"\n')


def test_a_wrong_name_inside_the_package_is_not_taken_for_a_missing_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for home in ("hf_select.scoring.nothing:IFD", "hf_select.scoring.ifd:Nothing"):
        assert main(["score", "--scorer", home, "--dataset", "d", "--output-dir", "s"]) == 2
        assert f'cannot import "{home}"' in (line := capsys.readouterr().err) and "Give MODULE:NAME" in line
