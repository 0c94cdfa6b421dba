"""Datasets in and out of the command line: what is read (data/loading.py), written, and kept beside it."""

import json
import os
from pathlib import Path
from typing import Any

from hf_select.data.loading import read_dataset, read_named
from hf_select.data.scores import join_scores
from hf_select.data.writing import check_ending, write_dataset


__all__ = [
    "check_output",
    "listed",
    "read_dataset",
    "read_named",
    "read_scores",
    "record_behind",
    "record_of",
    "write_dataset",
]


def listed(scores: str | list[str]) -> list[str]:
    """One place or several, as a list."""
    return scores if isinstance(scores, list) else [scores]


def read_scores(scores: str | list[str], split: str = "train") -> Any:
    """Scored rows from one place, or from several, joined by row_id."""
    return join_scores({name: read_dataset(name, split) for name in listed(scores)})


def check_output(output: str, overwrite: bool, *sources: str) -> Path:
    """The path of an output that may be written, or the error that says why not: asked before the work, not after.

    Only a file or a saved dataset is ever replaced, and never the folder that a source is read from.
    """
    path = Path(output).expanduser()
    check_ending(path)
    if path.exists() and not overwrite:
        raise ValueError(f'"{path}" exists; choose another --output, or replace it with --overwrite.')
    if path.is_dir() and not (path / "dataset_info.json").exists():
        raise ValueError(f'"{path}" is a folder but no saved dataset; it is not replaced. Choose another --output.')
    read = [Path(source).expanduser().resolve() for source in sources]
    if path.exists() and any(path.resolve() == each or path.resolve() in each.parents for each in read):
        raise ValueError(f'"{path}" holds the rows that are read; choose another --output.')
    parent = path.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f'cannot write to "{path}": "{parent}" is no folder that can be written to. Choose another.')
    return path


def record_of(path: Path) -> Path:
    """Where the ranks, reasons and chain of a selected subset are kept: beside it."""
    return path.with_name(path.name + ".selection.parquet")


def record_behind(path: Path) -> Path | None:
    """The record of the selection that these rows come from, also through the scoring runs in between."""
    manifest = path / "manifest.json"
    while manifest.exists():
        source = json.loads(manifest.read_text(encoding="utf-8"))["pool"]["source"]
        if not source:
            return None
        path = Path(source).expanduser()
        manifest = path / "manifest.json"
    return record_of(path) if record_of(path).exists() else None
