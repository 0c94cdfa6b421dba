"""Rows in any of the field's layouts -> one conversation, and the tokens that are its responses.

Layouts, by the columns that are there (first match wins):

layout            | columns                                   | becomes
----------------- | ----------------------------------------- | ----------------------------------------------------
messages          | `messages` [, `tools`]                    | as it is
sharegpt          | `conversations` [, `system`, `tools`]     | from/value turns; function_call -> tool_calls
prompt-completion | `prompt`, `completion` (text or messages) | one user and one assistant turn, or the joined lists
alpaca            | `instruction`, `output` [, `input`]       | user = instruction + blank line + input
text              | `text`                                    | raw text without roles

A broken row raises `BadRow` with the reason; it is never repaired by a guess. Response spans come from the model's own
chat template: from its `{% generation %}` marks where it has them, else from what the template writes for each prefix
of the conversation. Text is never searched for the response. A model without a template gets FALLBACK_TEMPLATE.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast


ROLES = ("system", "developer", "user", "assistant", "tool")

# ShareGPT speakers as found in public sets; anything else is refused, since a guess would move a response mask.
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

# For base models without a template: the layout of the Tulu sets, which the RDS+ study (arXiv:2503.01807) uses for
# every base model. Turns are stripped and open with their role; a response ends with EOS, both of which a model learns
# from.
FALLBACK_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] | trim + (eos_token or '') }}{% endgeneration %}"
    "{% else %}{{ message['content'] | trim }}{% endif %}"
    "{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n<|assistant|>\n' }}{% endif %}"
)

_GENERATION_MARK = re.compile(r"\{%-?\s*generation\b")


class BadRow(ValueError):
    """A row that cannot be read or rendered; the message is the reason that its scores carry."""


@dataclass(frozen=True)
class Conversation:
    """One row in normal form: chat messages (role, content, tool_calls, ...) with their tools, or raw `text`."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    text: str | None = None

    def first_pair(self) -> tuple[str, str]:
        """(instruction, response): the first user turn and the assistant turn right after it."""
        for user, reply in zip(self.messages, self.messages[1:], strict=False):
            if user["role"] == "user" and reply["role"] == "assistant":
                return user["content"], reply["content"]
        if self.text is not None:
            raise BadRow("plain text has no instruction and response")
        raise BadRow("no user turn with an assistant turn after it")


@dataclass(frozen=True)
class Encoded:
    """Token ids of a row and its responses as half-open token spans, one for each assistant turn."""

    input_ids: list[int]
    responses: list[tuple[int, int]]


# --------------------------------------------------------------------------------------------------------------------
# rows -> conversations


def conversations(batch: Mapping[str, list[Any]]) -> list["Conversation | BadRow"]:
    """Each row of a batch as a Conversation, or the BadRow that says why it is none.

    Raises: ValueError when the columns fit no layout; it lists the columns present.
    """
    read = _LAYOUTS[layout(list(batch))]
    size = len(next(iter(batch.values())))
    rows: list[Conversation | BadRow] = []
    for i in range(size):
        try:
            rows.append(read({name: values[i] for name, values in batch.items()}))
        except BadRow as reason:
            rows.append(reason)
    return rows


def layout(column_names: list[str]) -> str:
    """Name of the layout that these columns form."""
    for name, needed in _NEEDED.items():
        if all(column in column_names for column in needed):
            return name
    known = "; ".join(" + ".join(needed) for needed in _NEEDED.values())
    raise ValueError(
        f"no conversation in columns {column_names}; one of these is needed: {known}. "
        'Rename yours, e.g. dataset.rename_columns({"question": "prompt", "answer": "completion"}), '
        "or on the command line --rename question=prompt answer=completion."
    )


def _messages(row: dict[str, Any]) -> Conversation:
    return Conversation(_chat(row["messages"], "messages"), _tools(row.get("tools")))


def _prompt_completion(row: dict[str, Any]) -> Conversation:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        return Conversation(_chat([*prompt, *completion], "prompt + completion"), _tools(row.get("tools")))
    return _pair(_string(prompt, "prompt"), _string(completion, "completion"), row)


def _alpaca(row: dict[str, Any]) -> Conversation:
    instruction = _string(row["instruction"], "instruction")
    extra = row.get("input")  # null and absent both mean "no input" in the Alpaca family
    if extra is not None and _string(extra, "input"):
        instruction = f"{instruction}\n\n{extra}"
    return _pair(instruction, _string(row["output"], "output"), row)


def _sharegpt(row: dict[str, Any]) -> Conversation:
    turns = row["conversations"]
    if not isinstance(turns, list) or not turns:
        raise BadRow("conversations is empty or not a list")
    if isinstance(turns[0], dict) and "role" in turns[0]:  # messages under another name
        return Conversation(_chat(turns, "conversations"), _tools(row.get("tools")))
    messages = [_sharegpt_turn(turn, i) for i, turn in enumerate(turns)]
    if row.get("system"):
        messages.insert(0, {"role": "system", "content": _string(row["system"], "system")})
    return Conversation(messages, _tools(row.get("tools")))


def _sharegpt_turn(turn: Any, i: int) -> dict[str, Any]:
    if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
        raise BadRow(f"conversations[{i}] has no from and value")
    speaker, value = turn["from"], _string(turn["value"], f"conversations[{i}].value")
    if speaker not in SHAREGPT_ROLES:
        raise BadRow(f'unknown role "{speaker}" (known: {", ".join(SHAREGPT_ROLES)})')
    if speaker in ("function_call", "tool_call"):
        calls = _json(value, f"conversations[{i}] {speaker}")
        calls = calls if isinstance(calls, list) else [calls]
        return {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": call} for call in calls],
        }
    return {"role": SHAREGPT_ROLES[speaker], "content": value}


def _text(row: dict[str, Any]) -> Conversation:
    return Conversation([], text=_string(row["text"], "text"))


def _pair(prompt: str, response: str, row: dict[str, Any]) -> Conversation:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return Conversation(messages, _tools(row.get("tools")))


def _chat(messages: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise BadRow(f"{where} is empty or not a list of messages")
    return [_message(message, f"{where}[{i}]") for i, message in enumerate(messages)]


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict) or "role" not in message:
        raise BadRow(f"{where} has no role")
    if message["role"] not in ROLES:
        raise BadRow(f'unknown role "{message["role"]}" (known: {", ".join(ROLES)})')
    # Arrow gives every struct every key; a key that is null was not there.
    message = {key: value for key, value in message.items() if value is not None}
    content = message.get("content")
    if isinstance(content, list):  # parts, as OpenAI writes them
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            raise BadRow(f"{where} has content other than text")
        content = "".join(_string(part.get("text"), f"{where}.content") for part in content)
    if content is None and message.get("tool_calls"):
        content = ""
    return {**message, "content": _string(content, f"{where}.content")}


def _tools(tools: Any) -> list[dict[str, Any]] | None:
    if isinstance(tools, str):
        tools = _json(tools, "tools") if tools.strip() else None
    if tools is not None and not isinstance(tools, list):
        raise BadRow("tools is not a list")
    return tools or None


def _string(value: Any, where: str) -> str:
    if value is None:
        raise BadRow(f"{where} is null")
    if not isinstance(value, str):
        raise BadRow(f"{where} is {type(value).__name__}, not text")
    return value


def _json(value: str, where: str) -> Any:
    try:
        return json.loads(value)
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
# The only columns that reading a row looks at: what `score` keeps of a row in memory.
READ_COLUMNS = sorted({name for needed in _NEEDED.values() for name in needed} | {"input", "system", "tools"})


# --------------------------------------------------------------------------------------------------------------------
# conversations -> tokens


def encode(conversation: Conversation, tokenizer: Any, chat_template: str | None = None) -> Encoded:
    """Token ids of a conversation under the chat template, with the spans of its responses.

    A response span opens after the generation prompt and holds what the template writes for the turn, its end mark
    included. In raw text everything after a start token is response.

    Args:
        tokenizer: a fast tokenizer (character offsets are needed to place the spans).
        chat_template: Jinja template in place of the tokenizer's own, e.g. FALLBACK_TEMPLATE.
    Raises: BadRow if the template refuses the row, or rewrites earlier turns so that a response cannot be placed.
    """
    (encoded,) = encode_all([conversation], tokenizer, chat_template)
    if isinstance(encoded, BadRow):
        raise encoded
    return encoded


def encode_all(rows: list[Conversation], tokenizer: Any, chat_template: str | None = None) -> list["Encoded | BadRow"]:
    """`encode` for many rows, tokenised in one call; a row that cannot be encoded gives the BadRow that says why."""
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} gives no character offsets; a fast tokenizer is needed.")
    template = chat_template or tokenizer.chat_template or FALLBACK_TEMPLATE
    found: list[Any] = []
    for row in rows:
        try:
            raw = row.text is not None
            found.append((row.text, [(0, len(row.text))]) if raw else _render_with_spans(row, tokenizer, template))
        except BadRow as reason:
            found.append(reason)
    # A model's own template writes its start token; raw text and the fallback leave it to the tokenizer.
    for special in (False, True):
        chosen = [
            i
            for i, rendered in enumerate(found)
            if isinstance(rendered, tuple) and (rows[i].text is not None or template == FALLBACK_TEMPLATE) == special
        ]
        if not chosen:
            continue
        texts = [found[i][0] for i in chosen]
        encoding = tokenizer(texts, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
        for i, ids, offsets in zip(chosen, encoding["input_ids"], encoding["offset_mapping"], strict=True):
            found[i] = Encoded(ids, _token_spans(found[i][1], offsets))
    return found


def _render_with_spans(conversation: Conversation, tokenizer: Any, template: str) -> tuple[str, list[tuple[int, int]]]:
    """The rendered text and the character span of each response in it."""
    messages = conversation.messages
    try:
        text, spans = _render(messages, conversation, tokenizer, template)
    except BadRow:
        if messages[0]["role"] != "system" or len(messages) == 1 or messages[1]["role"] != "user":
            raise
        # Templates without a system role (Gemma 1 and 2, some Mistral ones) refuse it; it then opens the first user
        # turn.
        merged = f"{messages[0]['content']}\n\n{messages[1]['content']}"
        messages = [{**messages[1], "content": merged}, *messages[2:]]
        text, spans = _render(messages, conversation, tokenizer, template)
    if spans is not None:
        return text, spans
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, _ = _render(messages[:i], conversation, tokenizer, template, add_generation_prompt=True)
        through, _ = _render(messages[: i + 1], conversation, tokenizer, template)
        if not (text.startswith(before) and text.startswith(through) and len(before) <= len(through)):
            raise BadRow(
                f"the chat template rewrites turns before the last, so response {len(spans) + 1} cannot be placed; "
                "give a template with {% generation %} marks (trl.get_training_chat_template has some)"
            )
        spans.append((len(before), len(through)))
    return text, spans


def _render(
    messages: list[dict[str, Any]],
    conversation: Conversation,
    tokenizer: Any,
    template: str,
    add_generation_prompt: bool = False,
) -> tuple[str, list[tuple[int, int]] | None]:
    """Rendered text, and the character spans of the template's generation marks (None if it has no marks)."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    if not messages:  # a conversation that opens with the assistant: nothing stands before its generation prompt
        return "", None
    marked = bool(_GENERATION_MARK.search(template)) and not add_generation_prompt
    try:
        rendered, marks = render_jinja_template(
            conversations=[messages],
            tools=cast(Any, conversation.tools),
            chat_template=template,
            return_assistant_tokens_mask=marked,
            add_generation_prompt=add_generation_prompt,
            **tokenizer.special_tokens_map,
        )
    except TemplateError as error:
        raise BadRow(f"the chat template refuses the row: {error}") from None
    except (TypeError, KeyError, AttributeError) as error:  # the row lacks what the template takes for granted
        raise BadRow(f"the chat template fails on the row: {type(error).__name__}: {error}") from None
    return rendered[0], [tuple(mark) for mark in marks[0]] if marked else None  # pyright: ignore[reportReturnType]


def _token_spans(spans: list[tuple[int, int]], offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Character spans as token spans. A token belongs to the span in which it starts (a straddling one is still
    predicted from the prompt, hence prompt); a start token has no characters and belongs to none."""
    found = []
    position = 0
    for start, end in spans:
        while position < len(offsets) and (offsets[position][0] < start or offsets[position][1] == 0):
            position += 1
        first = position
        while position < len(offsets) and offsets[position][0] < end:
            position += 1
        found.append((first, position))
    return found
