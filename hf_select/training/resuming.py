"""A training folder belongs to one run: its rows and its settings."""

import json
from pathlib import Path
from typing import Any

from hf_select.files import read_json, write_json
from hf_select.inference.chunks import differences, leads
from hf_select.inference.pool import pool_fingerprint, readable


def hold_to(path: Path, settings: dict[str, Any], dataset: Any, what: str) -> None:
    """Write down whose run a folder is for (path is a JSON file in it), or hold an existing one to it.

    Raises: ValueError if the folder holds a run of other rows or settings, or other files.
    """
    here = json.loads(json.dumps({**settings, "pool": pool_fingerprint(readable(dataset))}, default=str))
    folder = path.parent
    there = read_json(path) if path.exists() else None
    if there is not None:
        if there != here:
            changed = "; ".join(differences(there, here)) or "model files changed"
            raise ValueError(f'"{folder}" holds a {what} of another run ({changed}). Choose another output folder.')
        return
    if not leads():
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f'output folder "{folder}" holds other files; give a new or empty one.')
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, here)


def last_whole_checkpoint(folder: Path) -> str | None:
    """The last checkpoint of a run that was written to its end, or None: Trainer writes `trainer_state.json` last, and
    a kill before that leaves a folder that cannot be resumed from."""
    found = {}
    for path in folder.glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if number.isdigit() and read_json(path / "trainer_state.json") is not None:
            found[int(number)] = str(path)
    return found[max(found)] if found else None
