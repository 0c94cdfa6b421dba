"""JSON and Arrow values in and out without a change.

`datasets` keeps values whose keys or types differ from row to row as JSON text (its `Json` feature). Its own encoder
and decoder (pandas' ujson) round floats to ten digits, turn NaN into null and fail on long integers. Here a number
keeps its value and its spelling: 1.10 is not written 1.1, nor 1e5 100000.0.
"""

import json
from collections.abc import Callable
from datetime import date, time
from decimal import Decimal
from typing import Any

import pyarrow as pa
from datasets import LargeList, List

from hf_select.data._compat import Json


class SpelledFloat(float):
    """A float that remembers a spelling which is not Python's own."""

    text: str


def _number(text: str) -> float:
    value = float(text)
    if repr(value) == text:
        return value
    spelled = SpelledFloat(value)
    spelled.text = text
    return spelled


def _integer(text: str) -> int | float:
    return _number(text) if text == "-0" else int(text)


class WrittenObject(dict[str, Any]):
    """A JSON object with the keys that its author wrote; an Arrow struct also has null keys of other rows."""


class RepeatedKey(ValueError):
    """An object that has a key twice, of which Python would keep the last."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise RepeatedKey(next(key for key in keys if keys.count(key) > 1))
    return value


_decode = json.JSONDecoder(parse_float=_number, parse_int=_integer).decode
_decode_marked = json.JSONDecoder(parse_float=_number, parse_int=_integer, object_hook=WrittenObject).decode
_decode_strictly = json.JSONDecoder(parse_float=_number, parse_int=_integer, object_pairs_hook=_distinct).decode


def loads(text: str, *, distinct_keys: bool = False) -> Any:
    """The value of a JSON text.

    Raises: json.JSONDecodeError; RepeatedKey if keys are to be distinct and are not.
    """
    return _decode_strictly(text) if distinct_keys else _decode(text)


def loads_marked(text: str) -> Any:
    """`loads` with its objects as `WrittenObject`."""
    return _decode_marked(text)


def _plain(value: Any) -> Any:
    """What JSON has no type for, as text: dates as ISO 8601, decimals by their digits."""
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


_encode = json.JSONEncoder(ensure_ascii=False, default=_plain).encode


def dumps(value: Any) -> str:
    """The JSON text of a value.

    Raises: TypeError for values that JSON does not have, such as bytes.
    """
    if not _has_spelling(value):
        return _encode(value)
    if isinstance(value, SpelledFloat):
        return value.text
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_encode(key)}: {dumps(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(map(dumps, value)) + "]"


def _has_spelling(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_spelling, value.values()))
    return any(map(_has_spelling, value)) if isinstance(value, list) else type(value) is SpelledFloat


def columns_of(table: pa.Table, features: Any, drop_filled: bool = False) -> dict[str, list[Any]]:
    """The columns of an Arrow table as Python values, those of type `Json` decoded exactly, with `WrittenObject`s.

    Args:
        features: of the dataset that the table is from.
        drop_filled: leave out keys of nested objects that are null in a struct, which has the keys of all its rows
            and fills in those that a row lacks. Objects of a `Json` column stay as they were written.
    """
    decoded = {}
    for name in table.column_names:
        decode = _decoder(features[name], drop_filled)
        values = table[name].to_pylist()
        decoded[name] = values if decode is None else [None if value is None else decode(value) for value in values]
    return decoded


def _decoder(feature: Any, drop_filled: bool) -> Callable[[Any], Any] | None:
    """A function from a stored value that is not null to the one that was written; None if they are the same."""
    if isinstance(feature, Json):
        return loads_marked
    if isinstance(feature, (List, LargeList, list)):
        decode = _decoder(feature[0] if isinstance(feature, list) else feature.feature, drop_filled)
        return decode and (lambda items: [None if item is None else decode(item) for item in items])
    if not isinstance(feature, dict):
        return None
    decoders = {key: _decoder(each, drop_filled) for key, each in feature.items()}
    if not drop_filled and not any(decoders.values()):
        return None

    def decode_struct(value: dict[str, Any]) -> dict[str, Any]:
        known = {}
        for key, item in value.items():
            if item is not None:
                each = decoders[key]
                known[key] = each(item) if each else item
            elif not drop_filled or (key == "content" and value.get("role") is not None):  # a message has a content
                known[key] = None
        return known

    return decode_struct
