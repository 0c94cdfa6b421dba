"""Lossless encoding and decoding of JSON and Arrow values.

`datasets` stores values whose keys or types differ between rows as JSON text (its `Json` feature). Its encoder and
decoder (ujson of pandas) round floats to ten digits, convert NaN to null and fail on long integers. The functions here
preserve the value and the spelling of a number: 1.10 is not written as 1.1, nor 1e5 as 100000.0.
"""

import json
from collections.abc import Callable
from datetime import date, time
from decimal import Decimal
from typing import Any

import pyarrow as pa


class SpelledFloat(float):
    """A float that stores its original spelling, if that differs from its repr."""

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
    """An object decoded from JSON text. Unlike an Arrow struct, it has no null keys that only other rows use."""


class RepeatedKey(ValueError):
    """An object has the same key twice; Python would keep only the last value."""


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
    """Decode JSON text.

    Args:
        distinct_keys: reject objects with repeated keys.
    Raises: json.JSONDecodeError; RepeatedKey if `distinct_keys` is set and a key is repeated.
    """
    return _decode_strictly(text) if distinct_keys else _decode(text)


def loads_marked(text: str) -> Any:
    """`loads`, with objects decoded as `WrittenObject`."""
    return _decode_marked(text)


def _plain(value: Any) -> Any:
    """Convert types that JSON lacks to text: dates to ISO 8601, decimals to their digits."""
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


_encode = json.JSONEncoder(ensure_ascii=False, default=_plain).encode


def dumps(value: Any) -> str:
    """Encode a value as JSON text.

    Raises: TypeError for values that JSON cannot represent, such as bytes.
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
    """Convert the columns of an Arrow table to Python values. `Json` columns are decoded exactly, to `WrittenObject`s.

    Args:
        features: features of the dataset that the table belongs to.
        drop_filled: remove null keys from nested objects. An Arrow struct has the keys of all rows, and is null where
            a row lacks one. Objects of a `Json` column are unchanged.
    """
    decoded = {}
    for name in table.column_names:
        decode = _decoder(features[name], drop_filled)
        values = table[name].to_pylist()
        decoded[name] = values if decode is None else [None if value is None else decode(value) for value in values]
    return decoded


def _decoder(feature: Any, drop_filled: bool) -> Callable[[Any], Any] | None:
    """A function that decodes a stored non-null value; None if stored and original values are the same."""
    from datasets import LargeList, List  # here, so that --help does not load `datasets`

    from hf_select.data._compat import Json

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
            elif not drop_filled or (key == "content" and value.get("role") is not None):  # messages have a content
                known[key] = None
        return known

    return decode_struct
