"""The house holds together: imports run one way, importing costs nothing, the cost of a scorer is what the design
says.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hf_select
from hf_select.scoring import SCORERS
from hf_select.selection import SELECTORS


PACKAGE = Path(hf_select.__file__).parent
ROOT = PACKAGE.parent

# room -> rooms that it may import (besides itself)
MAY_IMPORT = {
    "choices": set(),
    "columns": set(),
    "compression": set(),
    "exact_json": set(),
    "files": set(),
    "strict_yaml": set(),
    "chat_template": set(),
    "formats": {"chat_template", "columns"},
    "row_types": {"exact_json", "formats"},
    "row_files": {"compression", "exact_json", "row_types"},
    "messages": {"exact_json", "formats"},
    "words": {"chat_template", "formats"},
    "inference": {"chat_template", "choices", "columns", "exact_json", "files", "formats"},
    "features": {"choices", "columns", "files", "formats", "inference"},
    "scoring": {"chat_template", "choices", "columns", "formats", "words", "inference", "features"},
    "selection": {"choices", "columns", "files", "formats", "words"},
    "writing": {"compression", "exact_json", "files", "row_files"},
    "reading": {"columns", "compression", "inference", "row_files"},
    "mixtures": {
        "choices",
        "columns",
        "exact_json",
        "files",
        "formats",
        "inference",
        "messages",
        "reading",
        "selection",
        "words",
    },
    "generation": {
        "choices",
        "columns",
        "files",
        "formats",
        "inference",
        "reading",
        "selection",
        "strict_yaml",
        "words",
    },
    "training": {
        "chat_template",
        "choices",
        "columns",
        "files",
        "formats",
        "inference",
        "features",
        "scoring",
        "selection",
        "generation",
    },
    "evaluation": {
        "choices",
        "columns",
        "files",
        "formats",
        "inference",
        "features",
        "scoring",
        "selection",
        "generation",
        "mixtures",
        "training",
        "reports",
        "words",
    },
    "reports": {"columns", "files", "formats", "words", "selection"},
    "hub": {
        "columns",
        "exact_json",
        "messages",
        "files",
        "formats",
        "inference",
        "features",
        "reading",
        "selection",
        "reports",
    },
    "demo": {"scoring"},  # the quickstart's ground: it trains on the prompts that SelectIT will ask with
}


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= (
                {f"{node.module}.{alias.name}" for alias in node.names}
                if node.module == "hf_select"
                else {node.module or ""}
            )
    return names


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "recipes" not in path.parts)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    imported = {name.split(".")[1] for name in imports_of(path) if name.startswith("hf_select.")}
    if room in ("cli", "__init__"):
        return
    assert room in MAY_IMPORT, f"{room} is a new room: say here what it may import"
    assert imported - {room} <= MAY_IMPORT[room], f"{room} imports {sorted(imported - {room} - MAY_IMPORT[room])}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_training_imports_the_trainers(path):
    if path.relative_to(PACKAGE).parts[0] == "training":
        return
    assert not {name for name in imports_of(path) if name.split(".")[0] == "trl" or name.endswith("Trainer")}


def test_importing_loads_no_torch_and_takes_under_half_a_second():
    code = (
        "import time; t = time.perf_counter(); import hf_select; s = time.perf_counter() - t; import sys; "
        "heavy = [m for m in ('torch', 'transformers', 'datasets', 'numpy') if m in sys.modules]; "
        "assert not heavy, heavy; print(s)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.5


def test_every_public_name_can_be_imported_and_a_wrong_one_says_what_there_is():
    for name in hf_select.__all__:
        assert getattr(hf_select, name) is not None
    assert set(hf_select.__all__) <= set(dir(hf_select))
    with pytest.raises(AttributeError, match="it offers.*SelectIT"):
        hf_select.SelectITT  # noqa: B018


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
