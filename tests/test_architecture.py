"""The architecture: imports run one way and without circles, importing costs nothing, every method is documented."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hf_select
from hf_select.cli.commands import COMMANDS, DEMO_STEPS, command_class
from hf_select.scoring import SCORERS
from hf_select.selection import SELECTORS


PACKAGE = Path(hf_select.__file__).parent
ROOT = PACKAGE.parent

# package -> packages and modules of hf_select that it may import, besides itself
MAY_IMPORT = {
    "_version": set(),
    "atomic": set(),
    "extras": set(),
    "paper": set(),
    "recipe": {"strict_yaml"},
    "strict_yaml": set(),
    "validation": set(),
    "data": {"atomic"},
    "jobs": {"atomic", "data"},
    "models": {"atomic", "data", "extras", "jobs", "validation"},
    "features": {"atomic", "data", "extras", "jobs", "models", "validation"},
    "scoring": {"atomic", "data", "extras", "features", "jobs", "models", "paper", "selection", "validation"},
    "selection": {"atomic", "data", "extras", "paper", "validation"},
    "mixtures": {"_version", "atomic", "data", "paper", "scoring", "selection", "validation"},
    "generation": {
        "_version",
        "atomic",
        "data",
        "extras",
        "jobs",
        "models",
        "paper",
        "selection",
        "strict_yaml",
        "validation",
    },
    "training": {
        "atomic",
        "data",
        "extras",
        "features",
        "jobs",
        "models",
        "paper",
        "scoring",
        "selection",
        "validation",
    },
    "reports": {"_version", "atomic", "data", "extras", "paper", "recipe", "selection"},
    "evaluation": {
        "atomic",
        "data",
        "extras",
        "features",
        "generation",
        "jobs",
        "mixtures",
        "models",
        "reports",
        "scoring",
        "selection",
        "training",
        "validation",
    },
    "export": {"atomic", "data"},
    "hub": {"_version", "atomic", "data", "features", "jobs", "paper", "reports", "selection"},
    "quickstart": {"demo"},
    "demo": {"extras", "scoring"},  # it trains its model on the prompts that SelectIT will ask
}


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= (
                {f"{node.module}.{alias.name}" for alias in node.names}
                if (node.module or "").split(".")[0] in ("hf_select", "transformers")
                else {node.module or ""}
            )
    return names


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "recipes" not in path.parts)


def test_no_module_imports_itself_by_way_of_others():
    """Counted are imports at the top, inside functions and for type checking."""
    named = {}
    for path in MODULES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph = {
        module: {found for name in imports_of(path) for found in (name, name.rpartition(".")[0]) if found in named}
        for module, path in named.items()
        if module != "hf_select"
    }

    def reached(module: str) -> set[str]:
        seen, waiting = set(), [*graph[module]]
        while waiting:
            other = waiting.pop()
            if other not in seen and other in graph:
                seen.add(other)
                waiting += graph[other]
        return seen

    circles = [module for module in graph if module in reached(module) and not named[module].stem == "__init__"]
    assert not circles


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    package = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    imported = {name.split(".")[1] for name in imports_of(path) if name.startswith("hf_select.")}
    if package in ("cli", "__init__"):
        return
    assert package in MAY_IMPORT, f"{package} is new: add it to MAY_IMPORT"
    forbidden = imported - {package} - MAY_IMPORT[package]
    assert not forbidden, f"{package} imports {sorted(forbidden)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_training_imports_the_trainers(path):
    if path.relative_to(PACKAGE).parts[0] == "training":
        return
    assert not {
        name
        for name in imports_of(path)
        if name.split(".")[0] in ("trl", "transformers") and (name[:3] == "trl" or name.endswith("Trainer"))
    }


def test_importing_loads_no_torch_and_takes_under_half_a_second():
    code = (
        "import time; t = time.perf_counter(); import hf_select; s = time.perf_counter() - t; import sys; "
        "heavy = [m for m in ('torch', 'transformers', 'datasets', 'numpy') if m in sys.modules]; "
        "assert not heavy, heavy; print(s)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.5


@pytest.mark.parametrize(
    "words", ["score", "index", "train", "select --selector top_k", "select --selector dedup", "report", "publish"]
)
def test_help_loads_no_datasets_and_no_torch(words):
    code = (
        "import sys; from hf_select.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = [m for m in ('torch', 'transformers', 'datasets') if m in sys.modules]; assert not heavy, heavy"
    )
    command = [sys.executable, "-c", code, *words.split(), "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "usage" in done.stdout, done.stderr


def test_no_help_loads_torch():
    """Of any command, with the settings of any scorer, selector, training method or generator backend."""
    code = (
        "import json, sys; from hf_select.cli.main import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    try: main([*words, '--help'])\n"
        "    except SystemExit as end: assert not end.code, (words, end.code)\n"
        "    heavy = [m for m in ('torch', 'transformers', 'trl', 'scipy', 'matplotlib') if m in sys.modules]\n"
        "    assert not heavy, (words, heavy)"
    )
    cases = [[name] for name in (*COMMANDS, *DEMO_STEPS)]
    for name in (*COMMANDS, *DEMO_STEPS):
        cls = command_class(name)
        assert cls is not None
        cases += [[name, f"--{setting}", value] for setting, values in cls.decided_by.items() for value in values]
    assert len(cases) > 60
    done = subprocess.run([sys.executable, "-c", code, json.dumps(cases)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_can_be_imported_and_a_wrong_one_says_what_there_is():
    for name in hf_select.__all__:
        assert getattr(hf_select, name) is not None
    assert set(hf_select.__all__) <= set(dir(hf_select))
    with pytest.raises(AttributeError, match="it offers.*SelectIT"):
        hf_select.SelectITT  # noqa: B018


def test_a_scorer_of_the_table_is_public_without_a_line_of_its_own(monkeypatch):
    monkeypatch.setitem(SCORERS, "mine", "my_package.scoring:Mine")
    assert hf_select._public_names()["Mine"] == "my_package.scoring"


def test_readme_and_recipes_import_public_names_alone():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    sources = {"README.md": "\n".join(re.findall(r"```python\n(.*?)```", readme, re.S))}
    sources |= {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "recipes").glob("*.py")}
    for where, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hf_select"):
                assert node.module == "hf_select", f"{where} imports from {node.module}"
                assert {alias.name for alias in node.names} <= set(hf_select.__all__), where


def test_the_layout_in_the_readme_is_that_of_the_package():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"^hf_select/\n(.*?)^recipes/", readme, re.S | re.M)[1]
    entries = re.split(r"^  (?=\S)", tree, flags=re.M)[1:]
    listed = {entry.split()[0].rstrip("/"): entry for entry in entries}
    present = {path.name for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert set(listed) == present - {"__init__.py", "_version.py"}
    for name, entry in listed.items():
        folder = PACKAGE / name if (PACKAGE / name).is_dir() else PACKAGE
        missing = [file for file in re.findall(r"\w+\.py", entry) if not (folder / file).exists()]
        assert not missing, f"README's layout names {missing} in {name}/"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_type_checkers_know_the_public_names(tmp_path):
    """Every name has a type of its own, and a name that does not exist is reported."""
    names = [name for name in hf_select.__all__ if name != "online_scores"]
    lines = ["import hf_select", *(f"reveal_type(hf_select.{name})" for name in names), "print(hf_select.SelectITT)"]
    (tmp_path / "names.py").write_text("\n".join(lines))
    command = [sys.executable, "-m", "basedpyright", "--outputjson", str(tmp_path / "names.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    found = json.loads(done.stdout)["generalDiagnostics"]
    errors = [one["message"] for one in found if one["severity"] == "error"]
    assert len(errors) == 1 and '"SelectITT" is not a known attribute' in errors[0], errors
    revealed = [one["message"] for one in found if one["message"].startswith("Type of ")]
    assert len(revealed) == len(names) and not [
        line for line in revealed if re.search('is "(Any|object|Unknown)', line)
    ]


@pytest.mark.parametrize("name", [*SCORERS, *SELECTORS])
def test_every_method_is_described_and_in_the_readme(name):
    from hf_select.cli.score import scorer_class
    from hf_select.cli.select import selector_class
    from hf_select.cli.settings import descriptions

    cls = scorer_class(name) if name in SCORERS else selector_class(name)
    import dataclasses

    fields = [f.name for f in dataclasses.fields(cls)]
    described = descriptions(cls)
    assert set(fields) <= set(described), f"{cls.__name__}: no line under Args for {set(fields) - set(described)}"
    assert f"`{name}`" in (ROOT / "README.md").read_text(encoding="utf-8"), "a row in README's table is missing"


def test_float64_is_made_on_the_host():
    """Apple's MPS has no float64, so a tensor is brought to the host first."""
    for path in PACKAGE.rglob("*.py"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            doubles = line.count(".double()") - line.count(".cpu().double()")
            assert not doubles, f"{path.relative_to(PACKAGE)}, line {number}: write .cpu().double()"
