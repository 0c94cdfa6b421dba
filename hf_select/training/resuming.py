"""A training folder belongs to one run: its rows and its settings."""

from pathlib import Path

from hf_select.atomic import read_json


def last_whole_checkpoint(folder: Path) -> str | None:
    """The last checkpoint of a run that was written to its end, or None: Trainer writes `trainer_state.json` last, and
    a kill before that leaves a folder that cannot be resumed from."""
    found = {}
    for path in folder.glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if number.isdigit() and read_json(path / "trainer_state.json") is not None:
            found[int(number)] = str(path)
    return found[max(found)] if found else None
