"""Parses rows of any common layout into conversations.

The column names determine the layout (the first match wins):

layout            | columns                                   | becomes
----------------- | ----------------------------------------- | ----------------------------------------------------
messages          | `messages` [, `tools`]                    | unchanged
sharegpt          | `conversations` [, `system`, `tools`]     | from/value turns; function_call -> tool_calls
prompt-completion | `prompt`, `completion` (text or messages) | one user and one assistant turn, or the joined lists
alpaca            | `instruction`, `output` [, `input`,       | user = instruction + blank line + input, after the
                  | `system`, `history`]                      | system turn and the pairs of the history
text              | `text`                                    | raw text without roles

A message can be excluded from training: `train: false` (axolotl; also `training`) or `weight: 0` (OpenAI). It stays in
the conversation but has no response span, so it is not part of scores and losses. Weights between 0 and 1 are
rejected, because the losses do not support them. A flag that includes a turn of another role is rejected, too.

An invalid row raises `BadRow` with the reason and is never repaired. Response spans follow from the model's chat
template, see `response_spans.py`. A model without a template uses FALLBACK_TEMPLATE.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hf_select.data.bad_rows import BadRow
from hf_select.data.chat_template import REASONING, TRAIN_FLAGS, counts, refuse_surrogates
from hf_select.data.exact_json import WrittenObject, columns_of, loads_marked


ROLES = ("system", "developer", "user", "assistant", "tool")


# ShareGPT speakers in public datasets. Others are rejected, because a wrong role would change the response mask.
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool": "tool",
}


@dataclass(frozen=True)
class Conversation:
    """One normalised row: chat messages (role, content, tool_calls, ...) with their tools, or raw `text`.

    `alpaca_input` is the `input` of an Alpaca row. Here it ends the user turn; Alpaca's prompt has a section for it.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    text: str | None = None
    alpaca_input: str = ""

    def responses(self) -> list[dict[str, Any]]:
        """The assistant turns that are scored and trained on."""
        return [message for message in self.messages if message["role"] == "assistant" and counts(message)]

    def first_pair(self) -> tuple[str, str]:
        """(instruction, response) texts of the first exchange."""
        user, reply = self.first_exchange()
        if reply.get("tool_calls") and not reply["content"]:
            raise BadRow("the first reply is a tool call, not an answer")
        return user["content"], reply["content"]

    def first_exchange(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The first user turn that is followed by an assistant turn that is scored, with that turn."""
        for user, reply in zip(self.messages, self.messages[1:], strict=False):
            if user["role"] == "user" and reply["role"] == "assistant" and counts(reply):
                return user, reply
        if self.text is not None:
            raise BadRow("plain text has no instruction and response")
        if any(not counts(message) for message in self.messages):
            raise BadRow("no user turn with an assistant turn after it that counts (train, weight)")
        raise BadRow("no user turn with an assistant turn after it")


# --------------------------------------------------------------------------------------------------------------------
# rows -> conversations


def conversations(batch: Mapping[str, Any]) -> list["Conversation | BadRow"]:
    """Parse each row of a batch into a Conversation, or a BadRow with the reason.

    Args:
        batch: columns by name: lists, or what a formatted dataset passes to `map` (NumPy arrays, tensors, a pandas
            DataFrame, an Arrow table).
    Raises: ValueError if the columns match no layout; it lists the columns of the batch.
    """
    names = list(getattr(batch, "column_names", batch))
    read = _LAYOUTS[layout(names)]
    columns = {name: _column(batch, name) for name in names if name in READ_COLUMNS}
    rows: list[Conversation | BadRow] = []
    for values in zip(*columns.values(), strict=True):
        try:
            row = _read(read, dict(zip(columns, values, strict=True)))
            for text in (row.text or "", *(message["content"] for message in row.messages)):
                refuse_surrogates(text)
            rows.append(row)
        except BadRow as reason:
            rows.append(reason)
    return rows


def _read(read: Callable[[dict[str, Any]], Conversation], row: dict[str, Any]) -> Conversation:
    settings = without_nulls(row.get("chat_template_kwargs"))
    if settings and settings != "{}":
        raise BadRow(
            f"chat_template_kwargs is {settings}, which only TRL's trainers apply; put its effect into the chat "
            "template and leave out the column"
        )
    return read(row)


def _column(batch: Any, name: str) -> list[Any]:
    """A column as Python values. A batch of Dataset.map is decoded from its Arrow table, because `datasets` does not
    decode JSON exactly."""
    from datasets.formatting.formatting import LazyBatch  # here, so that --help does not load `datasets`

    if isinstance(batch, LazyBatch) and name in batch.keys_to_format:
        return columns_of(batch.pa_table.select([name]), batch.formatter.features)[name]
    return _plain(batch[name])


def _plain(value: Any) -> Any:
    """Convert a nested value to built-in Python types."""
    kind = type(value)
    if kind is str or value is None:
        return value
    if kind is list:
        return [_plain(item) for item in value]
    if kind is dict:
        return {key: _plain(item) for key, item in value.items()}
    if hasattr(value, "to_pylist"):  # Arrow: converts its items, too
        return value.to_pylist()
    if hasattr(value, "notna"):  # pandas represents a null text as NaN
        value = value.astype(object).where(value.notna(), None)
    return _plain(value.tolist()) if hasattr(value, "tolist") else value


def layout(column_names: list[str]) -> str:
    """Name of the layout that these columns match."""
    for name, needed in _NEEDED.items():
        if all(column in column_names for column in needed):
            return name
    known = "; ".join(" + ".join(needed) for needed in _NEEDED.values())
    raise ValueError(
        f"no conversation in columns {column_names}; one of these is needed: {known}. "
        'Rename yours, e.g. dataset.rename_columns({"question": "prompt", "answer": "completion"}), '
        "or on the command line --rename question=prompt answer=completion."
    )


def readable_columns(column_names: list[str]) -> list[str]:
    """The columns that conversations are parsed from; empty if they match no layout, as in a table of scores."""
    names = [name for name in column_names if name in READ_COLUMNS]
    return names if any(all(column in names for column in needed) for needed in _NEEDED.values()) else []


def _messages(row: dict[str, Any]) -> Conversation:
    return Conversation(_chat(row["messages"], "messages"), _tools(row.get("tools")))


def _prompt_completion(row: dict[str, Any]) -> Conversation:
    prompt, completion = row["prompt"], row["completion"]
    for name in ("prompt", "completion"):
        if row[name] is None:
            raise BadRow(f"{name} is null")
    if isinstance(prompt, str) and isinstance(completion, str):
        parsed = _messages_of_text(prompt), _messages_of_text(completion)
        if all(parsed):
            prompt, completion = parsed
    if isinstance(prompt, list) != isinstance(completion, list):
        name = "prompt" if isinstance(prompt, list) else "completion"
        raise BadRow(f"{name} is list, not text; give prompt and completion both as text or both as lists of messages")
    if isinstance(prompt, list):
        return Conversation(_chat([*prompt, *completion], "prompt + completion"), _tools(row.get("tools")))
    return _pair(_string(prompt, "prompt"), _string(completion, "completion"), row)


def _messages_of_text(text: str) -> list[Any]:
    """Parse a text that is a JSON list of messages; [] for any other text."""
    if not text.lstrip().startswith("["):
        return []
    try:
        value = loads_marked(text)
    except json.JSONDecodeError:
        return []
    return value if all(isinstance(item, dict) and item.get("role") in ROLES for item in value) else []


def _alpaca(row: dict[str, Any]) -> Conversation:
    instruction = _string(row["instruction"], "instruction")
    extra = _string(row.get("input") or "", "input")  # null and a missing column both mean "no input"
    if extra:
        instruction = f"{instruction}\n\n{extra}"
    last = _pair(instruction, _string(row["output"], "output"), row)
    history = _history(row.get("history"))
    messages = _with_system([*history, *last.messages], row)
    return replace(last, messages=messages, alpaca_input="" if history else extra)


def _history(history: Any) -> list[dict[str, Any]]:
    """The messages of earlier exchanges, a list of [user, assistant] pairs as in LLaMA-Factory."""
    if isinstance(history, str):  # CSV has no lists
        history = _json(history, "history") if history.strip() else None
    history = [] if history is None else history
    if not isinstance(history, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in history):
        raise BadRow("history is not a list of [user, assistant] pairs")
    messages = []
    for i, pair in enumerate(history):
        for role, text in zip(("user", "assistant"), pair, strict=True):
            messages.append({"role": role, "content": _string(text, f"history[{i}]")})
    return messages


def _with_system(messages: list[dict[str, Any]], row: dict[str, Any]) -> list[dict[str, Any]]:
    """Prepend the row's `system` column, if it has one."""
    system = _string(row.get("system") or "", "system")
    if not system or (messages and messages[0] == {"role": "system", "content": system}):
        return messages
    if messages and messages[0]["role"] == "system":
        raise BadRow("two different system turns: the first message and the column system")
    return [{"role": "system", "content": system}, *messages]


def _sharegpt(row: dict[str, Any]) -> Conversation:
    turns = _from_json_text(row["conversations"], "conversations")
    if not isinstance(turns, list) or not turns:
        raise BadRow("conversations is empty or not a list")
    if isinstance(turns[0], dict) and "role" in turns[0]:  # messages under another name
        messages = _chat(turns, "conversations")
    else:
        messages = [_sharegpt_turn(turn, i) for i, turn in enumerate(turns)]
    return Conversation(_with_system(messages, row), _tools(row.get("tools")))


def _sharegpt_turn(turn: Any, i: int) -> dict[str, Any]:
    where = f"conversations[{i}]"
    if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
        raise BadRow(f"{where} has no from and value")
    speaker, value = turn["from"], _string(turn["value"], f"{where}.value")
    if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
        raise BadRow(f'unknown role "{speaker}" (known: {", ".join(SHAREGPT_ROLES)})')
    more = {name: turn[name] for name in (*TRAIN_FLAGS, *REASONING) if turn.get(name) is not None}
    if speaker in ("function_call", "tool_call"):
        calls = _json(value, f"{where} {speaker}")
        calls = [{"type": "function", "function": call} for call in (calls if isinstance(calls, list) else [calls])]
        return _checked({"role": "assistant", "content": "", "tool_calls": calls, **more}, where)
    return _checked({"role": SHAREGPT_ROLES[speaker], "content": value, **more}, where)


def _text(row: dict[str, Any]) -> Conversation:
    return Conversation([], text=_string(row["text"], "text"))


def _pair(prompt: str, response: str, row: dict[str, Any]) -> Conversation:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return Conversation(messages, _tools(row.get("tools")))


def _chat(messages: Any, where: str) -> list[dict[str, Any]]:
    messages = _from_json_text(messages, where)
    if not isinstance(messages, list) or not messages:
        raise BadRow(f"{where} is empty or not a list of messages")
    return [_message(message, f"{where}[{i}]") for i, message in enumerate(messages)]


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict) or "role" not in message:
        raise BadRow(f"{where} has no role")
    if message["role"] not in ROLES:
        raise BadRow(f'unknown role "{message["role"]}" (known: {", ".join(ROLES)})')
    if len(message) == 2 and isinstance(message.get("content"), str):  # the common case: nothing to change
        return message
    message = {key: without_nulls(value) for key, value in message.items() if value is not None}
    if isinstance(message.get("tool_calls"), list):
        message["tool_calls"] = [_call(call) for call in message["tool_calls"]]
    content = message.get("content")
    if isinstance(content, list):  # a list of parts, as in the OpenAI API
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            raise BadRow(f"{where} has content other than text")
        content = "".join(_string(part.get("text"), f"{where}.content") for part in content)
    if content is None and message.get("tool_calls"):
        content = ""
    return _checked({**message, "content": _string(content, f"{where}.content")}, where)


def _checked(message: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the message after validating its training flags, tool calls, reasoning and name."""
    flags = {name: message[name] for name in TRAIN_FLAGS if name in message}
    for name, value in flags.items():
        if value not in (0, 1):  # includes True and False
            raise BadRow(f"{where}.{name} is {value!r}; it must be 1 or true (trained on), or 0 or false (not)")
    if len({bool(value) for value in flags.values()}) > 1:
        raise BadRow(f"{where} has contradictory training flags: {flags}")
    if message["role"] != "assistant" and any(flags.values()):
        raise BadRow(f"{where} is a {message['role']} turn that asks to be trained on; only responses are")
    for name in (*REASONING, "name"):
        _string(message.get(name) or "", f"{where}.{name}")
    if message.get("function_call"):
        raise BadRow(f"{where} has a function_call, which chat templates do not read; give it as tool_calls")
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise BadRow(f"{where}.tool_calls is {type(calls).__name__}, not a list of calls")
    for i, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, dict) else call
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRow(f"{where}.tool_calls[{i}] is not a call: an object with the name of a function is needed")
    return message


def _from_json_text(value: Any, where: str) -> Any:
    """Parse messages given as JSON text, as in a CSV file or in a column of mixed types."""
    return _json(value, where) if isinstance(value, str) else value


def _tools(tools: Any) -> list[dict[str, Any]] | None:
    if isinstance(tools, str):
        tools = _json(tools, "tools") if tools.strip() else None
    if tools is not None and not isinstance(tools, list):
        raise BadRow("tools is not a list")
    for i, tool in enumerate(tools or ()):
        if not isinstance(tool, dict):
            raise BadRow(f"tools[{i}] is {type(tool).__name__}, not an object that describes a function")
    return without_nulls(tools) or None


def _call(call: Any) -> Any:
    """A tool call without its null keys and those of its function. Nulls within its arguments are kept."""
    if not isinstance(call, dict):
        return call
    call = {key: value for key, value in call.items() if value is not None}
    if isinstance(call.get("function"), dict):
        call["function"] = {key: value for key, value in call["function"].items() if value is not None}
    return call


def without_nulls(value: Any, keep_written: bool = True) -> Any:
    """Remove the null keys that an Arrow struct has because other rows have these keys. Objects decoded from JSON keep
    their nulls, which are part of the data, unless `keep_written` is false."""
    if keep_written and isinstance(value, WrittenObject):
        return value
    if isinstance(value, dict):
        return {key: without_nulls(item, keep_written) for key, item in value.items() if item is not None}
    return [without_nulls(item, keep_written) for item in value] if isinstance(value, list) else value


def _string(value: Any, where: str) -> str:
    if value is None:
        raise BadRow(f"{where} is null")
    if not isinstance(value, str):
        raise BadRow(f"{where} is {type(value).__name__}, not text")
    return value


def _json(value: str, where: str) -> Any:
    try:
        return loads_marked(value)
    except json.JSONDecodeError:
        raise BadRow(f"{where} is not valid JSON") from None


_LAYOUTS = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "prompt-completion": _prompt_completion,
    "alpaca": _alpaca,
    "text": _text,
}
_NEEDED = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt-completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
# The columns that a conversation is parsed from, which are all that `score` keeps in memory.
READ_COLUMNS = sorted(
    {name for needed in _NEEDED.values() for name in needed}
    | {"chat_template_kwargs", "history", "input", "system", "tools"}
)
