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
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
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

# LESS's (arXiv:2402.04333): the same, but every turn ends with a line break, which after a response is a token that is
# learned.
LESS_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] | trim + (eos_token or '') + '\n' }}{% endgeneration %}"
    "{% else %}{{ message['content'] | trim + '\n' }}{% endif %}{% endfor %}"
)

_GENERATION_MARK = re.compile(r"\{%-?\s*generation\b")


class BadRow(ValueError):
    """A row that cannot be read or rendered; the message is the reason that its scores carry."""


@dataclass(frozen=True)
class Conversation:
    """One row in normal form: chat messages (role, content, tool_calls, ...) with their tools, or raw `text`.

    `alpaca_input` is the `input` of an Alpaca row, which ends its user turn: Alpaca's own prompt sets it apart.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    text: str | None = None
    alpaca_input: str = ""

    def first_pair(self) -> tuple[str, str]:
        """(instruction, response): the first user turn and the assistant turn right after it."""
        for user, reply in zip(self.messages, self.messages[1:], strict=False):
            if user["role"] == "user" and reply["role"] == "assistant":
                if reply.get("tool_calls") and not reply["content"]:
                    raise BadRow("the first reply is a tool call, not an answer")
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


def conversations(batch: Mapping[str, Any]) -> list["Conversation | BadRow"]:
    """Each row of a batch as a Conversation, or the BadRow that says why it is none.

    Args:
        batch: columns by name: lists, or what a formatted dataset hands to `map` (NumPy arrays, tensors, a pandas
            DataFrame, an Arrow table).
    Raises: ValueError when the columns fit no layout; it lists the columns present.
    """
    names = list(getattr(batch, "column_names", batch))
    read = _LAYOUTS[layout(names)]
    columns = {name: _plain(batch[name]) for name in names if name in READ_COLUMNS}
    rows: list[Conversation | BadRow] = []
    for values in zip(*columns.values(), strict=True):
        try:
            rows.append(read(dict(zip(columns, values, strict=True))))
        except BadRow as reason:
            rows.append(reason)
    return rows


def _plain(value: Any) -> Any:
    """A value in Python's own types, at any depth."""
    kind = type(value)
    if kind is str or value is None:
        return value
    if kind is list:
        return [_plain(item) for item in value]
    if kind is dict:
        return {key: _plain(item) for key, item in value.items()}
    if hasattr(value, "to_pylist"):  # Arrow, whose items are Python's already
        return value.to_pylist()
    if hasattr(value, "notna"):  # pandas writes NaN for a text that is null
        value = value.astype(object).where(value.notna(), None)
    return _plain(value.tolist()) if hasattr(value, "tolist") else value


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


def readable_columns(column_names: list[str]) -> list[str]:
    """The columns that rows are read from; none if they form no layout, as with scores that stand alone."""
    names = [name for name in column_names if name in READ_COLUMNS]
    return names if any(all(column in names for column in needed) for needed in _NEEDED.values()) else []


def _messages(row: dict[str, Any]) -> Conversation:
    return Conversation(_chat(row["messages"], "messages"), _tools(row.get("tools")))


def _prompt_completion(row: dict[str, Any]) -> Conversation:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        return Conversation(_chat([*prompt, *completion], "prompt + completion"), _tools(row.get("tools")))
    return _pair(_string(prompt, "prompt"), _string(completion, "completion"), row)


def _alpaca(row: dict[str, Any]) -> Conversation:
    instruction = _string(row["instruction"], "instruction")
    extra = _string(row.get("input") or "", "input")  # null and absent both mean "no input" in the Alpaca family
    if extra:
        instruction = f"{instruction}\n\n{extra}"
    return replace(_pair(instruction, _string(row["output"], "output"), row), alpaca_input=extra)


def _sharegpt(row: dict[str, Any]) -> Conversation:
    turns = _from_json_text(row["conversations"], "conversations")
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
    if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
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
    messages = _from_json_text(messages, where)
    if not isinstance(messages, list) or not messages:
        raise BadRow(f"{where} is empty or not a list of messages")
    return [_message(message, f"{where}[{i}]") for i, message in enumerate(messages)]


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict) or "role" not in message:
        raise BadRow(f"{where} has no role")
    if message["role"] not in ROLES:
        raise BadRow(f'unknown role "{message["role"]}" (known: {", ".join(ROLES)})')
    if len(message) == 2 and isinstance(message.get("content"), str):  # most are; nothing is to be mended
        return message
    message = _without_nulls(message)
    content = message.get("content")
    if isinstance(content, list):  # parts, as OpenAI writes them
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            raise BadRow(f"{where} has content other than text")
        content = "".join(_string(part.get("text"), f"{where}.content") for part in content)
    if content is None and message.get("tool_calls"):
        content = ""
    return {**message, "content": _string(content, f"{where}.content")}


def _from_json_text(value: Any, where: str) -> Any:
    """Messages that stand in the row as JSON text, as in a CSV file or a column whose rows differ in type."""
    return _json(value, where) if isinstance(value, str) else value


def _tools(tools: Any) -> list[dict[str, Any]] | None:
    if isinstance(tools, str):
        tools = _json(tools, "tools") if tools.strip() else None
    if tools is not None and not isinstance(tools, list):
        raise BadRow("tools is not a list")
    return _without_nulls(tools) or None


def _without_nulls(value: Any) -> Any:
    """Arrow gives every struct all keys of its column; a key that is null was not in the row."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


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


def openai_message(message: dict[str, Any]) -> dict[str, Any]:
    """A message as OpenAI writes it: the arguments of a call are a JSON text."""
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = call.get("function", call)
        arguments = function.get("arguments", {})
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        calls.append({"type": "function", "function": {"name": function["name"], "arguments": text}})
    return {**message, "tool_calls": calls}


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


def encode_all(
    rows: list[Conversation], tokenizer: Any, chat_template: str | None = None, responses: bool = True
) -> list["Encoded | BadRow"]:
    """`encode` for many rows, tokenised in one call; a row that cannot be encoded gives the BadRow that says why.

    Args:
        responses: place the response spans. Without them a row under a template that rewrites earlier turns has its
            token ids all the same.
    """
    if responses and not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} gives no character offsets; a fast tokenizer is needed.")
    found: list[Any] = []
    special = []  # a model's own template writes its start token; raw text and ours leave it to the tokenizer
    for row in rows:
        template = _template(row, tokenizer, chat_template)
        special.append(row.text is not None or template in (FALLBACK_TEMPLATE, LESS_TEMPLATE))
        try:
            found.append(_render_with_spans(row, tokenizer, template, responses))
        except BadRow as reason:
            found.append(reason)
    for with_special in (False, True):
        chosen = [i for i, r in enumerate(found) if not isinstance(r, BadRow) and special[i] == with_special]
        if not chosen:
            continue
        encoding = tokenizer(
            [found[i][0] for i in chosen],
            add_special_tokens=with_special,
            return_offsets_mapping=responses,
            verbose=False,
        )
        offsets = encoding["offset_mapping"] if responses else [[]] * len(chosen)
        for i, ids, places in zip(chosen, encoding["input_ids"], offsets, strict=True):
            found[i] = Encoded(ids, _token_spans(found[i][1], places))
    return found


def encode_prompts(
    rows: list[Conversation], tokenizer: Any, chat_template: str | None = None
) -> list["list[int] | BadRow"]:
    """Token ids of each conversation up to its last response, with the template's generation prompt: what a model is
    given to answer, and a prefix of what `encode_all` gives unless the template or the tokenizer rewrites it."""
    found: list[Any] = []
    for row in rows:
        template = _template(row, tokenizer, chat_template)
        render = partial(_render, conversation=row, tokenizer=tokenizer, template=template, add_generation_prompt=True)
        try:
            if len(row.messages) < 2 or row.messages[-1]["role"] != "assistant":
                raise BadRow("the row does not end with a response to a prompt")
            try:
                text, _ = render(row.messages[:-1])
            except BadRow:
                text, _ = render(_without_system(row.messages[:-1]))
        except BadRow as reason:
            found.append(reason)
            continue
        with_special = template in (FALLBACK_TEMPLATE, LESS_TEMPLATE)
        found.append(tokenizer(text, add_special_tokens=with_special, verbose=False)["input_ids"])
    return found


def response_end(tokenizer: Any, chat_template: str | None = None) -> int:
    """The token that ends a response: the first special token that the template writes after it, else EOS.

    Raises: ValueError if there is neither.
    """
    close = response_close(tokenizer, chat_template)
    if not close and tokenizer.eos_token_id is None:
        raise ValueError(
            "neither the chat template nor the tokenizer has a token that ends a response, so no answer could end; "
            "set tokenizer.eos_token."
        )
    return close[0] if close else tokenizer.eos_token_id


def response_close(tokenizer: Any, chat_template: str | None = None) -> list[int]:
    """What the template writes after a response, from its first special token on; [] if it writes none."""
    user = {"role": "user", "content": "x"}
    twice = [Conversation([user, {"role": "assistant", "content": word}]) for word in ("a", "b")]
    encoded = [e for e in encode_all(twice, tokenizer, chat_template, responses=False) if not isinstance(e, BadRow)]
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    if len(encoded) < 2:
        return []
    one, other = (e.input_ids for e in encoded)
    common = next((i for i, (a, b) in enumerate(zip(one[::-1], other[::-1], strict=False)) if a != b), 0)
    after = one[len(one) - common :]
    return next((after[i:] for i, token in enumerate(after) if token in special), [])


def cut(encoded: Encoded, max_length: int | None, context: int | None) -> tuple[Encoded, str]:
    """The row cut on the right to `max_length` tokens, and a note that says so (empty: nothing was cut).

    Raises: BadRow if what is left is longer than the model's context.
    """
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length is {max_length}; it must be at least 1.")
    ids = encoded.input_ids[:max_length]
    if context is not None and len(ids) > context:
        raise BadRow(f"longer than the model's context of {context} tokens; lower max_length")
    if len(ids) == len(encoded.input_ids):
        return encoded, ""
    responses = [(start, min(end, len(ids))) for start, end in encoded.responses if start < len(ids)]
    return Encoded(ids, responses), f"cut to {max_length} tokens"


def generation_prompt(tokenizer: Any, chat_template: str | None = None) -> str:
    """What the template writes before a response that stands alone: the assistant's header, or nothing."""
    row = Conversation([{"role": "user", "content": "x"}])
    template = _template(row, tokenizer, chat_template)
    before, _ = _render(row.messages, row, tokenizer, template)
    through, _ = _render(row.messages, row, tokenizer, template, add_generation_prompt=True)
    return through.removeprefix(before).lstrip("\n") if through.startswith(before) else ""


def _template(row: Conversation, tokenizer: Any, chat_template: str | None) -> str:
    """The Jinja template in use; some tokenizers have one for rows with tools and one for those without."""
    if chat_template is not None:
        return chat_template
    if not tokenizer.chat_template:
        return FALLBACK_TEMPLATE
    return tokenizer.get_chat_template(tools=row.tools)


def _render_with_spans(
    conversation: Conversation, tokenizer: Any, template: str, responses: bool
) -> tuple[str, list[tuple[int, int]]]:
    """The rendered text and, if asked for, the character span of each response in it."""
    if conversation.text is not None:
        return conversation.text, [(0, len(conversation.text))] if responses else []
    messages = conversation.messages
    render = partial(_render, conversation=conversation, tokenizer=tokenizer, template=template)
    try:
        text, spans = render(messages)
    except BadRow:
        messages = _without_system(messages)
        text, spans = render(messages)
    if not responses:
        return text, []
    if spans is not None:
        return text, spans
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if i > 0:
            before, _ = render(messages[:i], add_generation_prompt=True)
        else:  # templates give no generation prompt for nothing: what two different replies have before them
            before = os.path.commonprefix([render([{"role": "assistant", "content": x}])[0] for x in "ab"])
        through, _ = render(messages[: i + 1])
        if not (text.startswith(before) and text.startswith(through) and len(before) <= len(through)):
            raise BadRow(
                f"the chat template rewrites turns before the last, so response {len(spans) + 1} cannot be placed; "
                "give a template with {% generation %} marks (trl.get_training_chat_template has some)"
            )
        spans.append((len(before), len(through)))
    return text, spans


def _without_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Within the handling of a refused template: the system turn opens the first user turn instead, since templates
    without a system role (Gemma 1 and 2, some Mistral ones) refuse it. Whatever else was refused is raised again."""
    if messages[0]["role"] != "system" or len(messages) == 1 or messages[1]["role"] != "user":
        raise
    merged = f"{messages[0]['content']}\n\n{messages[1]['content']}"
    return [{**messages[1], "content": merged}, *messages[2:]]


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
