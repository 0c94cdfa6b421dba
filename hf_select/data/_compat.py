"""Differences between versions of `datasets` and pyarrow that reading and writing rows depends on."""

import io
import json
import warnings
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, List


if TYPE_CHECKING:
    from datasets import Json
else:
    try:
        from datasets import Json  # since datasets 4.7
    except ImportError:
        from datasets.features.features import register_feature  # present in datasets 4.0 and 4.6

        @dataclass
        class Json:
            """`datasets.Json` for releases without it: any JSON value, stored as JSON text.

            Datasets saved by either version can be read by the other: both write `{"_type": "Json"}` into the
            schema's metadata. Newer releases store Arrow's JSON type. This class stores plain text, because older
            releases of `datasets` have no type for Arrow's JSON.
            """

            decode: bool = True
            id: str | None = field(default=None, repr=False)
            pa_type: ClassVar[Any] = pa.string()
            _type: str = field(default="Json", init=False, repr=False)

            def __call__(self) -> pa.DataType:
                return self.pa_type

            def encode_example(self, value: Any) -> str | None:
                """Encode a value as JSON text. Text that is already valid JSON is unchanged."""
                if value is None:
                    return None
                if isinstance(value, str):
                    try:
                        json.loads(value)
                        return value
                    except ValueError:
                        pass
                return json.dumps(value, ensure_ascii=False)

            def decode_example(self, value: str | None, token_per_repo_id: Any = None) -> Any:
                """Decode JSON text."""
                return None if value is None else json.loads(value)

            def cast_storage(self, storage: pa.Array) -> pa.Array:
                """Convert an array to JSON text."""
                if isinstance(storage, pa.ExtensionArray):
                    storage = storage.storage
                if pa.types.is_string(storage.type):
                    return storage
                if pa.types.is_large_string(storage.type):
                    return storage.cast(self.pa_type)
                return pa.array([self.encode_example(value) for value in storage.to_pylist()], self.pa_type)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "'register_feature' is experimental"
            register_feature(Json, "Json")

__all__ = ["Json", "cast_for_parquet"]


def cast_for_parquet(table: pa.Table, features: Features) -> pa.Table:
    """The table with these types, to be written to Parquet. pyarrow 21 writes lists of a fixed length of which one is
    null, but cannot read them (26 can): there they become lists of any length."""
    if reads_null_in_fixed_lists():
        return table.cast(features.arrow_schema)
    features = Features({name: _any_length(feature) for name, feature in features.items()})
    schema = features.arrow_schema
    columns = [
        column.cast(field.type) if _castable(column.type) else pa.chunked_array([column.to_pylist()], field.type)
        for column, field in zip(table.columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=schema)


@cache
def reads_null_in_fixed_lists() -> bool:
    """Whether pyarrow reads what it wrote, if a list of a fixed length is null."""
    file = io.BytesIO()
    pq.write_table(pa.table({"lists": pa.array([[1], None], pa.list_(pa.int8(), 1))}), file)
    try:
        pq.read_table(file)
    except pa.ArrowInvalid:
        return False
    return True


def _any_length(feature: Any) -> Any:
    if isinstance(feature, List):
        return replace(feature, feature=_any_length(feature.feature), length=-1)
    if isinstance(feature, dict):
        return {name: _any_length(inner) for name, inner in feature.items()}
    return feature


def _castable(kind: pa.DataType) -> bool:
    """Whether a column of this type can be cast to lists of any length. Of lists of fixed length pyarrow 21 keeps the
    items of null lists, and then cannot write the column."""
    if pa.types.is_fixed_size_list(kind):
        return False
    return all(_castable(kind.field(i).type) for i in range(kind.num_fields))
