"""A row of any layout as chat messages in its author's words.

`formats.conversations` puts rows into a normal form to be measured: content parts become one text, nulls go. What is
written for others to train on keeps every key and value of a message: reasoning, call ids, arguments as objects or as
text, content parts, weights. Only rows that are no messages are made into some: a prompt and its completion, an Alpaca
row, ShareGPT turns (from and value become role and content, a function_call becomes tool_calls).
"""

from collections.abc import Mapping
from typing import Any

from hf_select.data.conversation import Conversation, layout
from hf_select.data.exact_json import dumps, loads


def as_messages(row: Mapping[str, Any], conversation: Conversation) -> list[dict[str, Any]]:
    """The messages of a row.

    Args:
        row: its columns, by exact_json.columns_of with drop_filled.
        conversation: the same row in normal form, which says that it can be read.
    """
    kind = layout(list(row))
    if kind == "messages":
        return _list(row["messages"])
    if kind == "sharegpt":
        turns = _list(row["conversations"])
        before = len(conversation.messages) - len(turns)  # a system text of its own column
        made = turns if "role" in turns[0] else _of_turns(turns, conversation.messages[before:])
        return [*conversation.messages[:before], *made]
    if kind == "prompt-completion" and isinstance(row["prompt"], list):
        return [*row["prompt"], *row["completion"]]
    return conversation.messages


def tools_text(row: Mapping[str, Any]) -> str | None:
    """The tools of a row as JSON text, since their schemas differ from row to row; None if it has none."""
    tools = row.get("tools")
    if isinstance(tools, str):
        return tools if tools.strip() else None
    return dumps(tools) if tools else None


def _list(value: Any) -> list[dict[str, Any]]:
    return loads(value) if isinstance(value, str) else value


def _of_turns(turns: list[dict[str, Any]], messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """ShareGPT turns as the messages that were made of them, with what else a turn says."""
    made = []
    for turn, message in zip(turns, messages, strict=True):
        more = {key: value for key, value in turn.items() if key not in ("from", "value", *message)}
        if message.get("tool_calls"):
            calls = loads(turn["value"])
            calls = calls if isinstance(calls, list) else [calls]
            more["tool_calls"] = [{"type": "function", "function": call} for call in calls]
        made.append({**message, **more})
    return made
