"""Messages as the turns that LLaMA-Factory's `sharegpt` converter reads without a change.

Its rules, as of ff6d4d1: after at most one system turn, human or observation turns alternate with gpt or function_call
turns, and one of the latter comes last. Other rows are skipped in training. A function_call is the JSON of a list of
names and arguments, the arguments as an object. Reasoning is written before the answer in <think>, and calls after a
text in <tool_call>: most of its templates know both tags. Every turn of the model is trained on. Names and ids cannot
be expressed.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from hf_select.data.chat_template import counts
from hf_select.data.exact_json import dumps, loads


_SPEAKERS = {"system": "system", "developer": "system", "user": "human", "tool": "observation", "assistant": "gpt"}


class NotExpressible(ValueError):
    """A row that LLaMA-Factory would skip or change; the message says why."""


def is_plain(messages: list[dict[str, Any]]) -> bool:
    """Whether the converter reads the messages unchanged, by their roles and contents."""
    if any(set(message) - {"role", "content"} or not isinstance(message["content"], str) for message in messages):
        return False
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    return (
        bool(turns)
        and all(turn["role"] == ("user", "assistant")[i % 2] for i, turn in enumerate(turns))
        and (len(turns) % 2 == 0)
    )


def sharegpt_row(messages: list[dict[str, Any]], tools: str | None) -> dict[str, object]:
    """The row in LLaMA-Factory's own tags: `conversations` and `tools`.

    Raises: NotExpressible if LLaMA-Factory would skip or change the row.
    """
    turns = [_turn(message) for message in messages]
    spoken = [turn["from"] for turn in (turns[1:] if turns[0]["from"] == "system" else turns)]
    if "system" in spoken:
        raise NotExpressible("a system turn that is not the first")
    if any(a == b == "observation" for a, b in zip(spoken, spoken[1:], strict=False)):
        raise NotExpressible("several tool results in a row")
    for i, speaker in enumerate(spoken):
        if speaker not in (("human", "observation"), ("gpt", "function_call"))[i % 2]:
            raise NotExpressible("turns of user and assistant that do not alternate")
    if not spoken or len(spoken) % 2:
        raise NotExpressible("the last turn is not the assistant's")
    return {"conversations": turns, "tools": tools or ""}


def _turn(message: dict[str, Any]) -> dict[str, str]:
    if not counts(message):
        raise NotExpressible("a response that is not to be trained on")
    text = "".join(_text_parts(message.get("content")))
    reasoning = message.get("reasoning_content") or message.get("reasoning") or message.get("thinking")
    before = f"<think>\n{reasoning}\n</think>\n\n" if reasoning else ""
    if not message.get("tool_calls"):
        return {"from": _SPEAKERS[message["role"]], "value": before + text}
    calls = dumps([_name_and_arguments(call.get("function", call)) for call in message["tool_calls"]])
    value = f"{text}<tool_call>{calls}</tool_call>" if text else calls
    return {"from": "function_call", "value": before + value}


def _text_parts(content: object) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    for part in content if isinstance(content, list) else ():
        yield part["text"]


def _name_and_arguments(function: Mapping[str, Any]) -> dict[str, object]:
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = loads(arguments)
        except ValueError:
            raise NotExpressible("arguments that are not valid JSON") from None
    return {"name": function["name"], "arguments": arguments}
