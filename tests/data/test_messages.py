"""Rows of every layout as messages: what their authors wrote, through a mixture and an export."""

import json
import tempfile
from inspect import signature
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from test_row_files import MESSAGES, spelled, written

from hf_select import Mixture, Source
from hf_select.data.loading import read_dataset
from hf_select.export.jsonl import export_subset


USER, REPLY = {"role": "user", "content": "Add 1 and 2."}, {"role": "assistant", "content": "3"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1.5, "unit": None}}}
CALLS = [
    USER,
    {"role": "assistant", "content": None, "reasoning_content": "Ask f.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "3"},
    {**REPLY, "weight": 1},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]


def mixed(data, **settings) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        Mixture({"a": Source(data)}, dedup="none", shuffle=False, **settings).write(folder)
        read = load_dataset("parquet", data_files=f"{folder}/mixture.parquet", split="train", keep_in_memory=True)
        return sorted(read, key=lambda row: row["source_row"])


@pytest.mark.parametrize(
    "row, messages",
    [
        ({"messages": CALLS, "tools": TOOLS}, CALLS),
        ({"messages": json.dumps(CALLS), "tools": json.dumps(TOOLS)}, CALLS),
        ({"prompt": CALLS[:1], "completion": CALLS[1:], "tools": TOOLS}, CALLS),
        ({"conversations": CALLS, "tools": TOOLS}, CALLS),
        ({"conversations": CALLS, "system": "Be brief."}, [{"role": "system", "content": "Be brief."}, *CALLS]),
        ({"messages": [{"role": "developer", "content": "Hm."}, {**USER, "name": "Ann"}, REPLY]}, None),
        ({"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": "3"}]}]}, None),
        ({"messages": [USER, {**REPLY, "reasoning_content": None, "train": True}]}, None),
        ({"prompt": USER["content"], "completion": "3"}, [USER, REPLY]),
        (
            {"instruction": "Add", "input": "1", "output": "2"},
            [{"role": "user", "content": "Add\n\n1"}, {"role": "assistant", "content": "2"}],
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Add 1 and 2.", "name": "Ann"},
                    {"from": "function_call", "value": '[{"name": "f", "arguments": {"x": 1.5, "unit": null}}]'},
                    {"from": "observation", "value": "3"},
                    {"from": "gpt", "value": "3", "weight": 0},
                ]
            },
            [
                {**USER, "name": "Ann"},
                {"role": "assistant", "content": "", "tool_calls": [{k: CALL[k] for k in ("type", "function")}]},
                {"role": "tool", "content": "3"},
                {**REPLY, "weight": 0},
            ],
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_messages_are_written_as_they_came(tmp_path, row, messages, stream):
    messages = messages or row["messages"]
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    source = Source(str(tmp_path / "in.jsonl"), rows=1)
    Mixture({"a": source}, stream=stream).write(tmp_path / "mix")
    (made,) = load_dataset("parquet", data_files=str(tmp_path / "mix" / "mixture.parquet"), split="train")
    assert made["messages"] == messages
    (streamed,) = Mixture({"a": source}, stream=stream).iterable()
    assert streamed["messages"] == messages
    export_subset(read_dataset(str(tmp_path / "in.jsonl")), tmp_path / "out")
    (line,) = (tmp_path / "out" / "subset.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["messages"] == messages
    for found in (made, json.loads(line)):
        assert ("tools" in found) == ("tools" in row) and ("tools" not in row or json.loads(found["tools"]) == TOOLS)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.lists(
        MESSAGES.filter(lambda messages: all(m["content"] is not None or m.get("tool_calls") for m in messages)),
        min_size=1,
        max_size=3,
    )
)
def test_a_mixture_and_an_export_spell_every_message_as_its_author_did(rows):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in.jsonl").write_text(
            "".join(f'{{"messages": {written(row)}}}\n' for row in rows), encoding="utf-8", newline=""
        )
        Mixture({"a": Source(str(folder / "in.jsonl"))}, dedup="none").write(folder)
        table = pq.read_table(folder / "mixture.parquet").sort_by("source_row").to_pylist()
        export_subset(read_dataset(str(folder / "in.jsonl")), folder / "out")
        lines = (folder / "out" / "subset.jsonl").read_bytes().splitlines()
    expected = [spelled(written(row)) for row in rows]
    made = [[m if isinstance(m, str) else written(m) for m in row["messages"]] for row in table]
    assert [[spelled(message) for message in row] for row in made] == expected
    assert [spelled(line)[0][2] for line in lines] == expected


def test_keys_that_arrow_filled_in_are_left_out_and_only_those():
    # Old releases of datasets (4.0) always do so.
    options = {"on_mixed_types": None} if "on_mixed_types" in signature(Dataset.from_list).parameters else {}
    data = Dataset.from_list([{"messages": [USER, REPLY]}, {"messages": CALLS}], **options)
    first, second = mixed(data)
    assert first["messages"] == [USER, REPLY]
    assert second["messages"][1]["content"] is None and second["messages"][2] == CALLS[2]


def test_plain_sources_stay_plain_columns(tmp_path):
    Mixture({"a": Source(Dataset.from_list([{"prompt": "a", "completion": "b"}]))}).write(tmp_path)
    (row,) = pq.read_table(tmp_path / "mixture.parquet").to_pylist()
    assert row["messages"] == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert "tools" not in row
