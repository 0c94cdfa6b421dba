"""Writes rows to a file, in the format of its extension, or to a folder for `datasets.load_from_disk`.

Parquet and saved datasets preserve all types. JSON preserves values and their spelling; dates and decimals become
text. CSV and TSV have no types, nulls or nesting: the changes are returned as notes for the user.
"""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from datasets import Value

from hf_select.atomic import atomic_path
from hf_select.data import compression
from hf_select.data.exact_json import columns_of, dumps
from hf_select.data.row_files import DELIMITERS, KNOWN, kind_of


_BATCH = 1000


def check_ending(path: Path) -> None:
    """Raise ValueError for an unsupported file extension, which would otherwise be taken for a folder name."""
    if kind_of(path) is None and re.fullmatch(r"\.[A-Za-z]\w*", path.suffix):
        raise ValueError(
            f'"{path}" has the unknown file extension "{path.suffix}". Supported: {KNOWN}; a name without an '
            "extension is a folder for a saved dataset."
        )
    if kind_of(path) == "parquet" and path.suffix.lower() != ".parquet":
        raise ValueError(f'"{path}": Parquet files are compressed internally; leave out "{path.suffix}".')


def write_dataset(dataset: Any, path: Path) -> list[str]:
    """Write the rows atomically, and return a note for each change that the format requires.

    Raises: ValueError for values that the format cannot represent.
    """
    check_ending(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = kind_of(path)
    with atomic_path(path) as temporary:
        if kind is None:
            dataset.save_to_disk(temporary)
        elif kind == "parquet":
            dataset.to_parquet(temporary)
        else:
            with compression.open_to_write(temporary, path.suffix.lower()) as file:
                if kind in DELIMITERS:
                    return _write_csv(dataset, file, DELIMITERS[kind])
                _write_json(dataset, file, is_array=kind == "json")
    return []


def _rows(dataset: Any) -> Iterator[dict[str, Any]]:
    arrow = dataset.with_format("arrow")
    for start in range(0, len(dataset), _BATCH):
        columns = columns_of(arrow[start : start + _BATCH], dataset.features)
        yield from (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))


def _text_of(value: Any, column: str) -> str:
    try:
        return dumps(value)
    except TypeError as error:
        raise ValueError(f'column "{column}": {error}. Write .parquet, or leave the column out.') from None


def _write_json(dataset: Any, file: BinaryIO, is_array: bool) -> None:
    for number, row in enumerate(_rows(dataset)):
        line = ", ".join(f"{dumps(name)}: {_text_of(value, name)}" for name, value in row.items())
        before = ("[\n" if number == 0 else ",\n") if is_array else ""
        file.write(f"{before}{{{line}}}{'' if is_array else chr(10)}".encode())
    if is_array:
        file.write(b"\n]\n" if len(dataset) else b"[]\n")


def _write_csv(dataset: Any, file: BinaryIO, delimiter: str) -> list[str]:
    nulls, nested = dict.fromkeys(dataset.column_names, 0), set()
    with io.TextIOWrapper(file, "utf-8", newline="") as text:
        writer = csv.writer(text, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(dataset.column_names)
        for row in _rows(dataset):
            for name, value in row.items():
                if value is None and dataset.features[name] in (Value("string"), Value("null")):
                    nulls[name] += 1
                elif isinstance(value, (list, dict)):
                    nested.add(name)
            try:
                writer.writerow([_field(value, name) for name, value in row.items()])
            except csv.Error as error:
                raise _not_in_csv(row, error) from None
    notes = [
        f'column "{name}": nulls ({count:,}) are written as empty fields, which are read back as empty text.'
        for name, count in nulls.items()
        if count
    ]
    if nested:
        names = ", ".join(sorted(nested))
        notes.append(f"{names}: written as JSON text; only lists of messages are parsed again when read.")
    return notes


def _not_in_csv(row: dict[str, Any], error: csv.Error) -> ValueError:
    """The error for a row that the csv module cannot write. Before Python 3.11, that is one with the character NUL."""
    names = [name for name, value in row.items() if isinstance(value, str) and "\0" in value]
    where = (
        f'column "{names[0]}": the csv module of Python 3.10 cannot write the character NUL' if names else str(error)
    )
    return ValueError(f"{where}. Write .parquet or .jsonl, or use Python 3.11 or later.")


def _field(value: Any, column: str) -> Any:
    """Convert a value for the CSV writer, which quotes text but not numbers."""
    if value is None or isinstance(value, str):
        return value or ""
    if type(value) in (int, float):
        return value
    text = _text_of(value, column)
    return text if isinstance(value, (list, dict)) else text.strip('"')  # dates are text
