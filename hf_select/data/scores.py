"""Loads the rows and scores written by `score`, from one folder or from several joined by row_id."""

import glob
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets, load_dataset

from hf_select.data import columns
from hf_select.data.rows import pool_fingerprint


def load_scores(folder: str | os.PathLike, *more: str | os.PathLike) -> Dataset:
    """Load the rows in an output folder of `score` or hf-select score with row_id, scores and reasons, in pool order.

    Args:
        more: folders with scores of the same rows by other scorers, whose columns are joined by row_id.
    Raises: ValueError if a folder has no finished scores, or if rows or shared columns of several folders differ.
    """
    return join_scores({str(each): read_scored(each) for each in (folder, *more)})


def join_scores(parts: Mapping[str, Any]) -> Any:
    """Add the columns of the other datasets to the first one, joined by row_id.

    Args:
        parts: datasets by name; the names are used in errors.
    Raises: ValueError if row_ids are missing or differ, or if a shared column has different values.
    """
    (first, joined), *others = parts.items()
    for name, other in others:
        for each, dataset in ((first, joined), (name, other)):
            if columns.ROW_ID not in dataset.column_names:
                raise ValueError(f'"{each}" has no column row_id, which is needed to join scores; give scored rows.')
        other = other.select(_places(first, joined[columns.ROW_ID], name, other[columns.ROW_ID]))
        shared = [column for column in other.column_names if column in joined.column_names]
        for column in shared:
            _check_same(column, first, joined, name, other)
        more = [column for column in other.column_names if column not in shared]
        joined = concatenate_datasets([joined, other.select_columns(more)], axis=1) if more else joined
    return joined


def _places(first: str, wanted: Any, name: str, ids: Any) -> list[int]:
    """The position of each wanted row_id in `ids`."""
    place = {row_id: i for i, row_id in enumerate(ids)}
    missing = [row_id for row_id in wanted if row_id not in place]
    extra = set(place).difference(wanted)
    if missing or extra or len(place) < len(ids):
        counts = [f'{len(missing):,} of "{first}" are missing (first: {missing[0]!r})'] if missing else []
        counts += [f"{len(extra):,} are additional (first: {min(extra, key=str)!r})"] if extra else []
        counts += [f"{len(ids) - len(place):,} are repeated"] if len(place) < len(ids) else []
        raise ValueError(
            f'the row_ids of "{name}" differ from those of "{first}": {", ".join(counts)}. Join scores of the same '
            "rows."
        )
    return [place[row_id] for row_id in wanted]


def _check_same(column: str, first: str, joined: Any, name: str, other: Any) -> None:
    """Raise ValueError if a shared column differs: with row numbers as ids, equal row_ids do not imply equal rows."""
    if pool_fingerprint(joined.select_columns([column])) == pool_fingerprint(other.select_columns([column])):
        return
    pairs = zip(joined[columns.ROW_ID], joined[column], other[column], strict=True)
    row_id = next((row_id for row_id, a, b in pairs if a != b), None)
    raise ValueError(
        f'column "{column}" differs between "{first}" and "{name}"'
        + ("" if row_id is None else f" (first: row_id {row_id!r})")
        + ". Join scores of the same rows, from scorers with different names."
    )


def read_scored(output_dir: str | os.PathLike) -> Dataset:
    """Load the scored rows of a finished run."""
    folder = Path(output_dir).expanduser()
    parts = sorted((folder / "scored").glob("part-*.parquet"), key=lambda part: int(part.stem[5:]))
    if not parts:
        raise ValueError(f'no scores in "{folder}"; compute them with hf-select score --output-dir {folder} ...')
    if not (folder / "summary.json").exists():
        raise ValueError(f'scoring in "{folder}" has not finished; run the same hf-select score command again.')
    return load_dataset("parquet", data_files=[glob.escape(str(part)) for part in parts], split="train")  # type: ignore[return-value]
