"""Differences between versions of `datasets` that reading and writing rows depends on."""

import json
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa


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

__all__ = ["Json"]
