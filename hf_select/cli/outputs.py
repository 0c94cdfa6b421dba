"""Checks of an output before the work begins."""

import os
from pathlib import Path

from hf_select.data.writing import check_ending


def check_output(output: str, overwrite: bool, *sources: str) -> Path:
    """The path of an output. Only a file or a saved dataset is ever replaced, never the folder of a source.

    Raises: ValueError if the output cannot or must not be written.
    """
    path = Path(output).expanduser()
    check_ending(path)
    if path.exists() and not overwrite:
        raise ValueError(f'"{path}" exists; choose another --output, or replace it with --overwrite.')
    if path.is_dir() and not (path / "dataset_info.json").exists():
        raise ValueError(
            f'"{path}" is a folder but not a saved dataset, and is not replaced. Choose another --output.'
        )
    read = [Path(source).expanduser().resolve() for source in sources]
    if path.exists() and any(path.resolve() == each or path.resolve() in each.parents for each in read):
        raise ValueError(f'"{path}" holds the rows that are read; choose another --output.')
    parent = path.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f'cannot write to "{path}": "{parent}" is not a writable folder. Choose another --output.')
    return path
