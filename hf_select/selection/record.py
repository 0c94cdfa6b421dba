"""Where the record of a selection is kept, and how it is found behind the scores of its rows."""

from pathlib import Path

import numpy as np

from hf_select.atomic import read_json
from hf_select.data import columns
from hf_select.data.loading import read_dataset
from hf_select.selection.selection import Selection, identifying_columns, row_hashes


_RECORD = ".selection.parquet"  # ending of a record's name


def record_of(subset: Path) -> Path:
    """The file next to a selected subset that holds its ranks, reasons and steps."""
    return subset.with_name(subset.name + _RECORD)


def record_behind(path: Path) -> Path | None:
    """The record of the selection that these rows come from, also through scoring runs in between; else None."""
    while (manifest := read_json(path / "manifest.json")) is not None:
        source = manifest["pool"]["source"]
        if not source:
            return None
        path = Path(source).expanduser()
    return record_of(path) if record_of(path).exists() else None


def read_selection(source: str, split: str = "train") -> Selection:
    """The selection that `hf-select select` wrote, from its subset or from its record. Of other rows it is the
    selection of all of them, which have a row_id.

    Args:
        source: file, folder or Hub id.
        split: split of a saved or Hub dataset.
    Raises: ValueError if the subset was changed, or if there are neither a record nor row_ids.
    """
    path = Path(source).expanduser()
    if path.name.endswith(_RECORD) and path.is_file():
        return Selection.load(path)
    rows, record = read_dataset(source, split), record_of(path)
    if record.exists():
        selection = Selection.load(record)
        try:
            selection.check_left(rows)
        except ValueError as error:
            raise ValueError(
                f'"{source}" is not what "{record}" says of it: {error} Delete that file to take the rows as they are.'
            ) from None
        return selection
    if columns.ROW_ID not in rows.column_names:
        raise ValueError(
            f'"{source}" has neither the record of a selection next to it ({record.name}) nor a column row_id; give '
            "what hf-select select wrote, or rows with their row_id."
        )
    everything = np.arange(len(rows))
    return Selection(
        indices=everything,
        num_rows=len(rows),
        reasons=[f"given in {source}"] * len(rows),
        row_ids=rows[columns.ROW_ID][:],
        hashes=row_hashes(rows, everything, identifying_columns(rows.column_names)),
    )
