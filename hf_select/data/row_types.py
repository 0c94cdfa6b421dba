"""Determines the column types of rows of Python values, and converts such rows to Arrow.

A column, or a field within one, has an Arrow type if all rows have the same type of value there; objects must also
have the same keys in the same order. All other values are stored as JSON text (`datasets.Json`). This includes objects
with a null key, which a struct cannot distinguish from a missing one. It also includes numbers within an object or
list if their types differ or if their spelling is not that of Python.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
from datasets import Features, List, Value

from hf_select.data._compat import Json
from hf_select.data.conversation import READ_COLUMNS
from hf_select.data.exact_json import SpelledFloat, dumps, loads


_EXACT_AS_FLOAT = 2**53
# Maximum nesting of lists and objects: in an Arrow type, where each level doubles the time that `datasets` takes to
# decode a list; and in any value, because the reading functions are recursive.
_DEEPEST_TYPE, _DEEPEST = 8, 100
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_NAMES = {str: "string", bool: "bool", int: "int64", float: "float64"}


class TooLong(ValueError):
    """An integer that does not fit in 64 bits."""


class TooDeep(ValueError):
    """A value nested in too many lists and objects."""


class Seen:
    """Collects the types of the values of a column, or of a field within one.

    Args:
        depth: number of lists and objects around the field.
    """

    def __init__(self, depth: int = 0) -> None:
        self.depth = depth
        self.types: set[type] = set()
        self.keys: tuple[str, ...] | None = None
        self.fields: dict[str, Seen] = {}
        self.items: Seen | None = None
        self.differs = False
        self.is_exact_as_float = True

    def see(self, value: Any) -> None:
        """Take a value into account.

        Raises: TooLong, TooDeep.
        """
        if self.depth > _DEEPEST:
            raise TooDeep
        kind = type(value)
        if value is None:
            return
        self.types.add(kind)
        if kind is int:
            if not -(2**63) <= value < 2**63:
                raise TooLong(str(value))
            self.is_exact_as_float &= -_EXACT_AS_FLOAT <= value <= _EXACT_AS_FLOAT
        elif kind is dict:
            self._see_object(value)
        elif kind is list:
            self.items = self.items or Seen(self.depth + 1)
            for item in value:
                self.items.see(item)

    def _see_object(self, value: dict[str, Any]) -> None:
        keys = tuple(value)
        if self.keys is None:
            self.keys, self.fields = keys, {key: Seen(self.depth + 1) for key in keys}
        self.differs |= keys != self.keys or None in value.values()
        if not self.differs:
            for key, item in value.items():
                self.fields[key].see(item)
            return
        self.fields = {}  # stored as text: only its integers need a check
        self.items = self.items or Seen(self.depth + 1)
        for item in value.values():
            self.items.see(item)

    def feature(self, nested: bool = False) -> Any:
        """The type that holds all values seen so far."""
        numbers = self.types and self.types <= {int, float, SpelledFloat}
        if not self.types:
            return Value("null")
        if numbers and not nested and len(self.types) > 1 and self.is_exact_as_float:
            return Value("float64")
        if self.types == {SpelledFloat} and not nested:
            return Value("float64")
        if len(self.types) > 1 or self.differs or self.keys == () or SpelledFloat in self.types:
            return Json()
        (kind,) = self.types
        if kind in (list, dict) and self.depth >= _DEEPEST_TYPE:
            return Json()
        if kind is list:
            assert self.items is not None
            return List(self.items.feature(nested=True))
        if kind is dict:
            return {key: field.feature(nested=True) for key, field in self.fields.items()}
        return Value(_NAMES[kind])


def table_of(rows: Sequence[Mapping[str, Any]], features: Features) -> pa.Table:
    """Convert rows to an Arrow table. Columns that a row lacks are null."""
    schema = features.arrow_schema
    arrays = [column_of([row.get(name) for row in rows], feature) for name, feature in features.items()]
    return pa.Table.from_arrays(arrays, schema=schema)


def column_of(values: list[Any], feature: Any) -> pa.Array:
    """Convert values to an Arrow array of the feature's type."""
    encode = _encoder(feature)
    kind = Features({"": feature}).arrow_schema.field(0).type
    if encode is None:
        return pa.array(values, kind)
    stored = Features({"": _stored(feature)}).arrow_schema.field(0).type
    return pa.array(_each(encode, values), stored).cast(kind)


def _encoder(feature: Any) -> Callable[[Any], Any] | None:
    """A function that encodes `Json` values as JSON text for storage; None if the feature has none."""
    if isinstance(feature, Json):
        return dumps
    if isinstance(feature, List):
        encode = _encoder(feature.feature)
        return None if encode is None else partial(_each, encode)
    if not isinstance(feature, dict):
        return None
    encoders = {key: encode for key, each in feature.items() if (encode := _encoder(each))}
    if not encoders:
        return None
    return lambda value: {key: encoders.get(key, _as_it_is)(item) for key, item in value.items()}


def _each(encode: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    return [None if item is None else encode(item) for item in items]


def _as_it_is(value: Any) -> Any:
    return value


def _stored(feature: Any) -> Any:
    """The feature with `Json` replaced by strings."""
    if isinstance(feature, Json):
        return Value("string")
    if isinstance(feature, List):
        return List(_stored(feature.feature))
    return {key: _stored(each) for key, each in feature.items()} if isinstance(feature, dict) else feature


# --------------------------------------------------------------------------------------------------------------------
# CSV fields


class Cells:
    """Determines the type of a CSV column from its fields.

    A column has numbers or booleans if each field would be written again with the same spelling, messages if each
    field is a JSON list of messages, and text otherwise. Empty fields match any type. Columns that conversations are
    parsed from are never numeric: the answers of an arithmetic dataset are text.
    """

    def __init__(self, name: str) -> None:
        self.candidates = {"messages"} if name in READ_COLUMNS else set(_CELL_TYPES)
        self.messages, self.is_empty = Seen(), True

    def see(self, field: str) -> None:
        """Take one more field of the column into account."""
        if not field:
            return
        self.is_empty = False
        for kind in [*self.candidates]:
            if not _CELL_TYPES[kind](field):
                self.candidates.discard(kind)
        if "messages" in self.candidates:
            self.messages.see(loads(field))

    def feature(self) -> Any:
        """The type that holds all fields seen so far."""
        kind = next((kind for kind in _CELL_TYPES if kind in self.candidates), "string")
        return Value("string") if self.is_empty else self.messages.feature() if kind == "messages" else Value(kind)


def cell_value(field: str, feature: Any) -> Any:
    """Convert a CSV field to the feature's type."""
    if feature == Value("string"):
        return field
    if feature == Value("float64"):
        return float(field) if field else None
    return loads(field) if field else None


def _is_integer(field: str) -> bool:
    return _INTEGER.fullmatch(field) is not None


def _is_float(field: str) -> bool:
    try:
        return repr(float(field)) == field
    except ValueError:
        return False


def _is_messages(field: str) -> bool:
    """Whether a field is a JSON list of messages or of ShareGPT turns."""
    if not field.startswith("["):
        return False
    try:
        value = loads(field)
    except ValueError:
        return False
    return bool(value) and all(isinstance(each, dict) and ("role" in each or "from" in each) for each in value)


_CELL_TYPES = {
    "int64": _is_integer,
    "float64": _is_float,
    "bool": lambda field: field in ("true", "false"),
    "messages": _is_messages,
}
