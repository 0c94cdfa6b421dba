"""Where the record of a selection is kept, and how it is found behind the scores of its rows."""

from pathlib import Path

from hf_select.atomic import read_json


def record_of(subset: Path) -> Path:
    """The file next to a selected subset that holds its ranks, reasons and steps."""
    return subset.with_name(subset.name + ".selection.parquet")


def record_behind(path: Path) -> Path | None:
    """The record of the selection that these rows come from, also through scoring runs in between; else None."""
    while (manifest := read_json(path / "manifest.json")) is not None:
        source = manifest["pool"]["source"]
        if not source:
            return None
        path = Path(source).expanduser()
    return record_of(path) if record_of(path).exists() else None
