"""A row as words and as runs of words: what it means that two texts are the same, or nearly, stands here once."""

import json
import re
from typing import Any

from hf_select.formats import Conversation


# Chinese and Japanese are written without spaces: each character is a word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
_SHINGLE = 5


def words(text: str) -> list[str]:
    """Lower-case words; punctuation and white space tell nothing apart."""
    return _WORD.findall(text.lower())


def prompt_of(row: Conversation) -> str:
    return " ".join(message["content"] for message in row.messages if message["role"] != "assistant")


def text_of(row: Conversation) -> str:
    """All that is said in the row, tool calls included."""
    if row.text is not None:
        return row.text
    calls = [json.dumps(m["tool_calls"], ensure_ascii=False) for m in row.messages if m.get("tool_calls")]
    return " ".join([*(message["content"] for message in row.messages), *calls])


def characters_of(row: Conversation, of: str) -> int:
    """Characters of all of the row, of its prompt or of its responses; tool calls count as they are written."""
    if row.text is not None:
        return 0 if of == "prompt" else len(row.text)
    sizes = [(message["role"] == "assistant", _size(message)) for message in row.messages]
    response = sum(size for is_response, size in sizes if is_response)
    everything = sum(size for _, size in sizes)
    return {"all": everything, "prompt": everything - response, "response": response}[of]


def _size(message: dict[str, Any]) -> int:
    calls = message.get("tool_calls")
    return len(message["content"]) + (len(json.dumps(calls, ensure_ascii=False)) if calls else 0)


def shingles(text: str, n: int = _SHINGLE) -> set[tuple[str, ...]]:
    """Runs of n words; a shorter text is one run."""
    tokens = words(text)
    return {tuple(tokens[i : i + n]) for i in range(max(1, len(tokens) - n + 1))} if tokens else set()
