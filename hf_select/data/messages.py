"""Converts rows of any layout to chat messages, without losing a key or value.

`conversation.conversations` normalises rows for scoring: it joins content parts and removes nulls. Exported datasets
keep every key and value of a message: reasoning, call ids, arguments as objects or as text, content parts, weights.
Only other layouts are converted to messages: prompt and completion, Alpaca, and ShareGPT (from and value become role
and content, a function_call becomes tool_calls).
"""

from collections.abc import Mapping
from typing import Any

from hf_select.data.conversation import Conversation, layout
from hf_select.data.exact_json import dumps, loads


def as_messages(row: Mapping[str, Any], conversation: Conversation) -> list[dict[str, Any]]:
    """The messages of a row.

    Args:
        row: columns of the row, from exact_json.columns_of with drop_filled.
        conversation: the parsed row.
    """
    kind = layout(list(row))
    if kind == "messages":
        return _list(row["messages"])
    if kind == "sharegpt":
        turns = _list(row["conversations"])
        before = len(conversation.messages) - len(turns)  # 1 if the system text has its own column
        messages = turns if "role" in turns[0] else _of_turns(turns, conversation.messages[before:])
        return [*conversation.messages[:before], *messages]
    if kind == "prompt-completion" and isinstance(row["prompt"], list):
        return [*row["prompt"], *row["completion"]]
    return conversation.messages


def tools_text(row: Mapping[str, Any]) -> str | None:
    """The tools of a row as JSON text, because their schemas differ between rows; None if it has none."""
    tools = row.get("tools")
    if isinstance(tools, str):
        return tools if tools.strip() else None
    return dumps(tools) if tools else None


def _list(value: Any) -> list[dict[str, Any]]:
    return loads(value) if isinstance(value, str) else value


def _of_turns(turns: list[dict[str, Any]], messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages parsed from ShareGPT turns, with the other keys of each turn added."""
    complete = []
    for turn, message in zip(turns, messages, strict=True):
        more = {key: value for key, value in turn.items() if key not in ("from", "value", *message)}
        if message.get("tool_calls"):
            calls = loads(turn["value"])
            calls = calls if isinstance(calls, list) else [calls]
            more["tool_calls"] = [{"type": "function", "function": call} for call in calls]
        complete.append({**message, **more})
    return complete
