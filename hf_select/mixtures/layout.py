"""The columns of a mixture, and its rows as they are written."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

import pyarrow as pa
from datasets import Dataset, Features, IterableDataset, List, Value

from hf_select.data._compat import Json
from hf_select.data.conversation import Conversation, layout
from hf_select.data.exact_json import dumps
from hf_select.data.messages import as_messages, tools_text
from hf_select.mixtures.source import Source, SourceRow, column_names


SOURCE, SOURCE_ROW, EPOCH = "source", "source_row", "epoch"
_PLAIN_MESSAGE = {"role": Value("string"), "content": Value("string")}


class MixtureLayout:
    """The columns of a mixture, from those of its sources.

    Messages are roles and texts if all sources have no more than that; otherwise each message is kept as JSON text.

    Attributes:
        schema: Arrow schema of the mixture.
    Raises: ValueError if some sources are raw text and others conversations.
    """

    def __init__(self, sources: Mapping[str, Source], opened: Mapping[str, Dataset | IterableDataset], epochs: int):
        raw_text, self._plain, self._has_tools = [], True, False
        for name, dataset in opened.items():
            names = column_names(dataset)
            if sources[name].reads == "conversation":
                raw_text += [name] if layout(names) == "text" else []
                self._plain &= _is_plain(layout(names), dataset.features or {})
                self._has_tools |= "tools" in names
        if raw_text and len(raw_text) < len(opened):
            raise ValueError(f"{', '.join(raw_text)} are raw text and the other sources conversations; mix one kind.")
        features: dict[str, Any] = {"text": Value("string")}
        if not raw_text:
            features = {"messages": _plain_type(opened.values()) if self._plain else List(Json())}
            features |= {"tools": Value("string")} if self._has_tools else {}
        features |= {SOURCE: Value("string"), SOURCE_ROW: Value("int64")}
        features |= {EPOCH: Value("int64")} if epochs > 1 else {}
        self.schema = Features(features).arrow_schema  # its metadata names the `datasets` types

    def row(self, row: SourceRow) -> dict[str, Any]:
        """The columns of a row but for those that say where it came from."""
        conversation = cast(Conversation, row.conversation)
        if conversation.text is not None:
            return {"text": conversation.text}
        # Of a question only the conversation that was made of it is written.
        messages = as_messages(row.columns, conversation) if row.columns else conversation.messages
        tools = {"tools": tools_text(row.columns)} if self._has_tools else {}
        return {"messages": messages if self._plain else [dumps(message) for message in messages], **tools}

    def table(self, rows: list[dict[str, Any]]) -> pa.Table:
        """Rows as an Arrow table; their JSON values are texts already."""
        stored = [
            pa.field(f.name, pa.list_(pa.string())) if f.type == pa.list_(pa.json_()) else f for f in self.schema
        ]
        return pa.Table.from_pylist(rows, pa.schema(stored)).cast(self.schema)


def _plain_type(datasets: Iterable[Dataset | IterableDataset]) -> List:
    """Messages of a role and a content, their keys in the order of the first source that has messages."""
    types = ((dataset.features or {}).get("messages") for dataset in datasets)
    plain = List(_PLAIN_MESSAGE)
    return next((kind for kind in types if isinstance(kind, List) and kind == plain), plain)


def _is_plain(kind: str, features: Mapping[str, Any]) -> bool:
    """Whether the messages of a source are roles and texts alone, by its column types. ShareGPT turns are not: some
    of them are calls."""
    if kind == "messages":
        return features.get("messages") == List(_PLAIN_MESSAGE)
    if kind == "prompt-completion":
        return all(features.get(name) in (Value("string"), List(_PLAIN_MESSAGE)) for name in ("prompt", "completion"))
    return kind != "sharegpt"
