"""A module of somebody else, in the folder that they work in."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from datasets import Dataset


def their_module(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, pool: Dataset) -> ModuleType:
    """Write signs.py and pool.jsonl to a folder, work there, and import the module."""
    (folder / "signs.py").write_text(text)
    pool.to_json(folder / "pool.jsonl")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "signs", raising=False)
    return import_module("signs")
