"""Checkpoints to resume from."""

from pathlib import Path

from hf_select.atomic import read_json


def last_whole_checkpoint(folder: Path) -> str | None:
    """The last complete checkpoint of a run, or None. Trainer writes `trainer_state.json` last; a kill before that
    leaves a folder that no run can resume from."""
    checkpoints: dict[int, str] = {}
    for path in folder.glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if number.isdigit() and read_json(path / "trainer_state.json") is not None:
            checkpoints[int(number)] = str(path)
    return checkpoints[max(checkpoints)] if checkpoints else None
