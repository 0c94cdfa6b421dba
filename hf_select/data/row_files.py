"""Lossless reading of JSON lines, JSON, CSV, TSV and Parquet files, also compressed.

`datasets.load_dataset` changes rows: it converts text that looks like a date, reads "007" in a CSV as 7, rounds floats
within objects, and fails on a row whose types differ from those of the first ten megabytes. Here each file is read
twice: first to determine the column types over all rows, then to load the rows.

A row is a line of JSON lines, an item of a JSON array, or a record of a CSV. Blank lines are skipped.
"""

import codecs
import csv
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ArrowBasedBuilder, BuilderConfig, DatasetInfo, Features, SplitGenerator

from hf_select.data import compression
from hf_select.data.exact_json import RepeatedKey, loads
from hf_select.data.row_types import Cells, Seen, TooDeep, TooLong, cell_value, table_of


KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
KNOWN = f"{', '.join(KINDS)}, also compressed ({', '.join(compression.SUFFIXES)})"
DELIMITERS = {"csv": ",", "tsv": "\t"}
# Rows per Arrow table.
_BATCH = 1000
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_OTHER_UNICODE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # UTF-32-LE starts like UTF-16-LE
_ONE_A_LINE = "Write one JSON object per line, or an array of objects."
_TOO_DEEP_CURE = "Write the innermost values as text."

csv.field_size_limit(2**31 - 1)  # for the whole process; the default of 131,072 characters is too small for long texts


class Place(NamedTuple):
    """The location of a row for error messages: file, row number from 0 and line from 1, if known."""

    file: str
    row: int | None = None
    line: int | None = None

    def error(self, what: str, cure: str, column: str = "") -> ValueError:
        row = "" if self.row is None else f", row {self.row}"
        line = "" if self.line is None else f" (line {self.line})" if row else f", line {self.line}"
        return ValueError(
            f'cannot read "{_shown(self.file)}"{row}{line}{column and f", column {column}"}: {what}. {cure}'
        )


def _shown(file: str) -> str:
    """The path for messages: relative if the file is below the working directory."""
    try:
        return str(Path(file).relative_to(Path.cwd()))
    except ValueError:
        return file


def kind_of(path: str | Path) -> str | None:
    """The format (jsonl, json, csv, tsv or parquet) of a file by its extension; None for any other."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes if suffix.lower() not in compression.SUFFIXES]
    return KINDS.get(suffixes[-1]) if suffixes else None


class RowFiles(ArrowBasedBuilder):
    """Builds the split `train` from the rows of `data_files`. `datasets` caches it as it does for load_dataset."""

    VERSION = "1.0.0"  # part of the cache key: increase it if the same file is read as other rows
    BUILDER_CONFIG_CLASS = BuilderConfig

    def _info(self) -> DatasetInfo:
        return DatasetInfo()

    def _split_generators(self, dl_manager: Any) -> list[SplitGenerator]:
        files = [str(file) for file in self.config.data_files["train"]]  # pyright: ignore
        self.info.features = features_of(files)
        return [SplitGenerator(name="train", gen_kwargs={"files": files})]  # pyright: ignore

    def _generate_tables(self, files: list[str]) -> Iterator[tuple[Any, pa.Table]]:  # pyright: ignore
        assert self.info.features is not None
        for i, file in enumerate(files):
            for j, table in enumerate(tables_of(file, self.info.features)):
                yield (i, j), table


def features_of(files: list[str]) -> Features:
    """Determine the column types over all rows of all files.

    Raises: ValueError that names file, row and column if a row cannot be read, if the columns of a file differ from
        those of the first, or if there are no rows.
    """
    if kind_of(files[0]) == "parquet":
        return _parquet_features(files)
    columns: dict[str, Any] = {}
    names: dict[str, set[str]] = {}
    for file in files:
        row_keys: set[str] = set()
        for place, row in _rows(file, strict=True):
            for name, value in row.items():
                if name not in columns:
                    columns[name] = Cells(name) if kind_of(file) in DELIMITERS else Seen()
                try:
                    columns[name].see(value)
                except TooLong as number:
                    raise place.error(f"the integer {number} is beyond 64 bits", "Write it as text.", name) from None
                except TooDeep:
                    raise place.error("it is nested too deeply", _TOO_DEEP_CURE, name) from None
            row_keys |= row.keys()
        if row_keys:
            names[file] = row_keys
    if not names:
        raise ValueError(f'"{_shown(files[0])}" is empty; there is nothing to do.')
    _refuse_other_columns(names)
    return Features({name: column.feature() for name, column in columns.items()})


def _refuse_other_columns(names: dict[str, set[str]]) -> None:
    (first, expected), *others = names.items()
    for file, columns in others:
        if columns != expected:
            more, fewer = (", ".join(sorted(part)) for part in (columns - expected, expected - columns))
            what = "; ".join(f"{word} {part}" for word, part in (("it also has", more), ("it lacks", fewer)) if part)
            raise ValueError(
                f'"{_shown(file)}" has other columns than "{_shown(first)}": {what}. Give all files of a dataset the '
                "same columns, or read each file on its own."
            )


def tables_of(file: str, features: Features) -> Iterator[pa.Table]:
    """Read the rows of a file in batches, with the types of `features_of`."""
    if kind_of(file) == "parquet":
        yield from _parquet_tables(file, features)
        return
    is_csv, rows = kind_of(file) in DELIMITERS, []
    for _, row in _rows(file):
        rows.append({name: cell_value(cell, features[name]) for name, cell in row.items()} if is_csv else row)
        if len(rows) == _BATCH:
            yield table_of(rows, features)
            rows = []
    if rows:
        yield table_of(rows, features)


# --------------------------------------------------------------------------------------------------------------------
# rows of text files


def _rows(file: str, strict: bool = False) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Each row with its location: the values of a JSON row, the text fields of a CSV row.

    Args:
        strict: also run the checks that only the first of the two passes needs.
    """
    with _damage_named(file), compression.open_to_read(file) as opened:
        raw = io.BufferedReader(opened, 1 << 20)  # pyright: ignore
        head = raw.peek(4)[:4]
        if head.startswith(_OTHER_UNICODE) or b"\0" in head:
            raise ValueError(
                f'"{_shown(file)}" is not UTF-8 but UTF-16 or UTF-32, or not text. Convert it: '
                f'iconv -f UTF-16 -t UTF-8 "{_shown(file)}" > NEW'
            )
        if head.startswith(codecs.BOM_UTF8):
            raw.read(3)
        if delimiter := DELIMITERS.get(kind_of(file) or ""):
            yield from _csv_rows(file, raw, delimiter)
        elif raw.peek(1 << 10).lstrip().startswith(b"["):
            yield from _array_rows(file, raw, strict)
        else:
            yield from _line_rows(file, raw, strict)


@contextmanager
def _damage_named(file: str) -> Iterator[None]:
    try:
        yield
    except (*compression.DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f'"{_shown(file)}" is damaged or cut off ({error}). Get it again.') from None


def _line_rows(file: str, raw: BinaryIO, strict: bool) -> Iterator[tuple[Place, dict[str, Any]]]:
    row = 0
    for number, line in enumerate(raw, 1):
        line = line.strip()
        if line:
            place = Place(file, row, number)
            yield place, _object(_json(line, place, strict), place)
            row += 1


def _array_rows(file: str, raw: BinaryIO, strict: bool) -> Iterator[tuple[Place, dict[str, Any]]]:
    """The items of a JSON array, which is loaded into memory. A string becomes a row with the column `text`."""
    for row, value in enumerate(_json(raw.read(), Place(file), strict)):
        place = Place(file, row)
        yield place, _object({"text": value} if isinstance(value, str) else value, place)


def _object(value: Any, place: Place) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise place.error(f"it is a JSON {_JSON_TYPES.get(type(value), 'number')}, not an object", _ONE_A_LINE)
    return value


_JSON_TYPES = {list: "array", str: "text", bool: "boolean", type(None): "null"}


def _json(raw: bytes, place: Place, strict: bool) -> Any:
    """Decode JSON, and reject strings that are not valid Unicode."""
    is_utf8 = True
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text, is_utf8 = raw.decode(errors="surrogateescape"), False
    try:
        value = loads(text, distinct_keys=strict)
    except RepeatedKey as key:
        raise place.error(f'an object has the key "{key}" twice', "Keep one of them.") from None
    except RecursionError:
        raise place.error("it is nested too deeply", _TOO_DEEP_CURE) from None
    except ValueError as error:  # JSONDecodeError, or an integer of thousands of digits
        if place.row is None:
            place = place._replace(line=getattr(error, "lineno", None))
        where = f" at character {error.colno}" if hasattr(error, "colno") else ""  # pyright: ignore
        raise place.error(f"it is not valid JSON ({getattr(error, 'msg', error)}{where})", _ONE_A_LINE) from None
    if not is_utf8 or (strict and _ESCAPED_SURROGATE.search(text)):
        _refuse_surrogates(value, place)
    return value


def _refuse_surrogates(value: Any, place: Place) -> None:
    """Raise ValueError for a string with an unpaired surrogate, which UTF-8 cannot encode: an escape in the file, or a
    byte that is not UTF-8."""
    try:
        invalid = next(_broken(value, ""), None)
    except RecursionError:
        raise place.error("it is nested too deeply", _TOO_DEEP_CURE) from None
    if invalid is None:
        return
    path, character = invalid
    if place.row is None and (item := re.match(r"\[(\d+)\]\.?", path)):  # an item of an array
        place, path = place._replace(row=int(item[1])), path[item.end() :]
    if 0xDC80 <= character <= 0xDCFF:
        raise place.error(
            f"byte 0x{character - 0xDC00:02x} is not UTF-8",
            f'If the file is in Latin-1, convert it: iconv -f LATIN1 -t UTF-8 "{_shown(place.file)}" > NEW',
            path,
        )
    raise place.error(
        f"\\u{character:04x} is an unpaired surrogate, not a character", "Remove it, or write the whole pair.", path
    )


def _broken(value: Any, path: str) -> Iterator[tuple[str, int]]:
    """(path, character) of each string that cannot be encoded."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            yield path, ord(value[error.start])
    elif isinstance(value, dict):
        for key, item in value.items():
            inner = f"{path}.{key}" if path else key
            yield from ((inner.encode(errors="replace").decode(), bad) for _, bad in _broken(key, inner))
            yield from _broken(item, inner)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _broken(item, f"{path}[{i}]")


def _csv_rows(file: str, raw: BinaryIO, delimiter: str) -> Iterator[tuple[Place, dict[str, str]]]:
    # newline="" preserves line ends within a field.
    reader = csv.reader(
        io.TextIOWrapper(raw, "utf-8", errors="surrogateescape", newline=""), delimiter=delimiter, strict=True
    )
    header: list[str] = []
    row = 0
    while True:
        line = reader.line_num + 1
        place = Place(file, row if header else None, line)
        try:
            fields = next(reader, None)
        except csv.Error as error:
            if "NUL" in str(error):  # before Python 3.11
                cure = "Python 3.10 cannot read the character NUL in CSV: give JSONL, or use Python 3.11 or later."
            else:
                cure = 'Quote fields by ", and a " in a field by "".'
            raise place.error(f"it is not valid CSV ({error})", cure) from None
        if fields is None:
            return
        if not fields:
            continue
        if not header:
            header = fields
            _refuse_surrogates(header, place)
            if twice := [name for name in header if header.count(name) > 1]:
                raise place.error(f'the header has "{twice[0]}" twice', "Rename one of the columns.")
            continue
        if len(fields) != len(header):
            raise place.error(
                f"it has {len(fields)} fields, and the header has {len(header)}",
                f"Quote fields that contain {delimiter!r}, a quote or a line break.",
            )
        record = dict(zip(header, fields, strict=True))
        _refuse_surrogates(record, place)
        yield place, record
        row += 1


# --------------------------------------------------------------------------------------------------------------------
# Parquet


@contextmanager
def _parquet_named(file: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, NotImplementedError, *compression.DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(
            f'cannot read "{_shown(file)}" as Parquet ({str(error).splitlines()[0]}). It is damaged, cut off, or '
            "has types that datasets does not support; write it again."
        ) from None


def _parquet(file: str) -> pq.ParquetFile:
    if not file.lower().endswith(compression.SUFFIXES):
        return pq.ParquetFile(file)
    with compression.open_to_read(file) as raw:
        return pq.ParquetFile(pa.BufferReader(raw.read()))


def _parquet_features(files: list[str]) -> Features:
    schemas, rows = [], 0
    for file in files:
        with _parquet_named(file), _parquet(file) as opened:
            schemas.append(opened.schema_arrow)
            rows += opened.metadata.num_rows
            features = Features.from_arrow_schema(schemas[0])
    if not rows:
        raise ValueError(f'"{_shown(files[0])}" is empty; there is nothing to do.')
    _refuse_other_columns({file: set(schema.names) for file, schema in zip(files, schemas, strict=True)})
    if all(schema.equals(schemas[0]) for schema in schemas[1:]):
        return features
    together = schemas[0]
    for file, schema in zip(files[1:], schemas[1:], strict=True):
        try:  # a column with only nulls takes its type from another file
            together = pa.unify_schemas([together, schema])
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(
                f'"{_shown(file)}" has other types than "{_shown(files[0])}" ({str(error).splitlines()[0]}). Write '
                "all files of a dataset with the same types."
            ) from None
    return Features.from_arrow_schema(together.remove_metadata())


def _parquet_tables(file: str, features: Features) -> Iterator[pa.Table]:
    schema = features.arrow_schema
    with _parquet_named(file), _parquet(file) as opened:
        for group in range(opened.num_row_groups):  # one group per call: pyarrow prefetches within a call
            for batch in opened.iter_batches(_BATCH, row_groups=[group]):
                yield pa.Table.from_batches([batch]).select(schema.names).cast(schema)
