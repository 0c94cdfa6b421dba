"""Messages under a chat template: the text that it writes, and where each response stands in it.

The text is one rendering of the whole conversation, hence what a model is trained on and given as its history: where a
template drops the reasoning of earlier turns, so does the text, and a note says so. Responses are placed by what the
template itself does, never by searching for their words:

- by its `{% generation %}` marks, if it has some;
- else from the conversation's prefixes: a response starts where the prefix before it ends, generation prompt included,
  and ends where the prefix through it ends;
- where a prefix is written differently from the whole (Qwen3 moves its thinking block, Phi-3.5 closes with EOS,
  DeepSeek's generation prompt opens a thought), both are aligned at the end of a message. That place is found by
  rendering once more with other words in that message: what follows the last difference follows the message.

Whatever a row says must be in the text. Tool arguments are given as objects or as JSON text, whichever the template
writes; a row of which it leaves out words, calls or reasoning is refused with the reason.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from hf_select.data.bad_rows import BadRow


# For base models without a template: the layout of the Tulu sets, which the RDS+ study (arXiv:2503.01807) uses for
# every base model. Turns are stripped and open with their role; a response ends with EOS, both of which a model learns
# from. The sets know no tools, calls, reasoning or names: those are written as Hermes and Qwen do.
_TURNS = (
    "{% if tools %}{{ '<|tools|>\n' }}{% for tool in tools %}{{ tool | tojson + '\n' }}{% endfor %}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + (' name=' + message['name'] if message['name'] else '') + '|>\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}"
    "{% if message['reasoning_content'] %}"
    "{{ '<think>\n' + message['reasoning_content'] | trim + '\n</think>\n' }}{% endif %}"
    "{{ message['content'] | trim }}"
    "{% for call in message['tool_calls'] or [] %}"
    "{{ '\n' if message['content'] | trim or not loop.first else '' }}"
    "{{ '<tool_call>\n' + {'name': call['function']['name'], 'arguments': call['function']['arguments']} | tojson }}"
    "{{ '\n</tool_call>' }}{% endfor %}"
    "{{ (eos_token or '') + CLOSE }}{% endgeneration %}"
    "{% else %}{{ message['content'] | trim + CLOSE }}{% endif %}"
)
FALLBACK_TEMPLATE = (
    _TURNS.replace(" + CLOSE", "")
    + "{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}"
    + "{% if add_generation_prompt %}{{ '\n<|assistant|>\n' }}{% endif %}"
)

# LESS's (arXiv:2402.04333): the same, but every turn ends with a line break, which after a response is a token that is
# learned.
LESS_TEMPLATE = _TURNS.replace("CLOSE", "'\n'") + "{% endfor %}"

_GENERATION_MARK = re.compile(r"\{%-?\s*generation\b")
_THOUGHT = re.compile(r"\s*(?:<think>)?(.*)</think>", re.DOTALL)
_PIECE = re.compile(r"(?:\A|(?<=<think>)|(?<=</think>))(?:(?!</?think>).)+", re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
# A message's reasoning: DeepSeek's and Qwen's name first, then OpenRouter's and gpt-oss's.
REASONING = ("reasoning_content", "reasoning", "thinking")
# What says of a message whether it is trained on: axolotl's names, then OpenAI's.
TRAIN_FLAGS = ("train", "training", "weight")
_QUESTION = {"role": "user", "content": "x"}

Messages = list[dict[str, Any]]
Span = tuple[int, int]


class _NotWritten(BadRow):
    """The template leaves out a part of the row."""


@dataclass(frozen=True)
class Rendered:
    """The text of a conversation with the character spans of its responses; `note` says what it leaves out."""

    text: str
    spans: list[Span]
    note: str = ""


@dataclass(frozen=True)
class Renderer:
    """A chat template with the tokenizer's special tokens, the tools of a row, and the form that it takes messages in:
    tool arguments as JSON text (DeepSeek's concatenates it), null for the empty content of a call (DeepSeek R1's
    distilled models look for that), content in parts (vision models)."""

    template: str
    special: tuple[tuple[str, Any], ...]
    tools: list[dict[str, Any]] | None = field(default=None, hash=False)
    arguments_as_text: bool = False
    null_for_empty: bool = False
    content_in_parts: bool = False

    @property
    def is_marked(self) -> bool:
        return bool(_GENERATION_MARK.search(self.template))

    def text(self, messages: Messages, prompt: bool = False) -> str:
        """What the template writes for the messages; `prompt` adds the generation prompt."""
        return self._render(messages, add_generation_prompt=prompt)[0]

    def marks(self, messages: Messages) -> list[Span]:
        """Character spans between the template's generation marks."""
        return self._render(messages, return_assistant_tokens_mask=True)[1]

    def _render(self, messages: Messages, **options: bool) -> tuple[str, list[Span]]:
        """Raises: ValueError if the template is not valid Jinja; BadRow if it refuses these messages."""
        from jinja2 import TemplateError, TemplateSyntaxError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, marks = render_jinja_template(
                conversations=[[self._message(message) for message in messages]],
                tools=cast(Any, self.tools),
                chat_template=self.template,
                **options,
                **dict(self.special),
            )
        except TemplateSyntaxError as error:
            raise ValueError(f"the chat template is not valid Jinja: line {error.lineno}: {error.message}") from None
        except TemplateError as error:
            raise BadRow(f"the chat template refuses the row: {error}") from None
        except (TypeError, KeyError, AttributeError) as error:  # the row lacks what the template takes for granted
            raise BadRow(f"the chat template fails on the row: {type(error).__name__}: {error}") from None
        spans = cast(list[list[Span]], marks)
        return str(texts[0]), [(start, end) for start, end in (spans[0] if spans else [])]

    def _message(self, message: dict[str, Any]) -> dict[str, Any]:
        """The message in the form that the template takes."""
        calls, content = message.get("tool_calls"), message["content"]
        if calls and self.arguments_as_text:
            texts = [json.dumps(call["function"]["arguments"], ensure_ascii=False) for call in calls]
            functions = [{**call["function"], "arguments": text} for call, text in zip(calls, texts, strict=True)]
            calls = [{**call, "function": function} for call, function in zip(calls, functions, strict=True)]
            message = {**message, "tool_calls": calls}
        if calls and not content and self.null_for_empty:
            return {**message, "content": None}
        return {**message, "content": [{"type": "text", "text": content}]} if self.content_in_parts else message


def template_text(given: str) -> str:
    """A chat template that is given as its text or as the path of a file.

    Raises: ValueError if there is no such file, or if the template is not valid Jinja.
    """
    text = given
    if "{" not in given:
        path = Path(given).expanduser()
        if not path.is_file():
            raise ValueError(
                f'chat_template is "{given}": no such file, and not the text of a template (that has {{% or {{{{).'
            )
        text = path.read_text(encoding="utf-8")
    try:
        Renderer(text, ()).text([_QUESTION])
    except BadRow:  # of this one message: rows are judged for themselves
        pass
    return text


def template_digest(text: str | None) -> str | None:
    """A template as identities name it: its text in short."""
    return None if text is None else f"sha256 {hashlib.sha256(text.encode()).hexdigest()}"


def renderer(template: str, tokenizer: Any, tools: list[dict[str, Any]] | None = None) -> Renderer:
    special = tokenizer.special_tokens_map.items()
    return Renderer(template, tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in special), tools)


def refuse_surrogates(text: str) -> None:
    """JSON may hold half of a character beyond U+FFFF, as a text that was cut in its middle; no tokenizer takes it.

    Raises: BadRow.
    """
    half = None if text.isascii() else _SURROGATE.search(text)
    if half:
        raise BadRow(f"the text holds half a character (\\u{ord(half[0]):04x} without its other half)")


def counts(message: Mapping[str, Any]) -> bool:
    """Whether a response is scored and learned: `train` (axolotl) or `weight` (OpenAI) may say that it is not."""
    return all(message.get(name) is None or message[name] for name in TRAIN_FLAGS)


def render_with_spans(messages: Messages, render: Renderer) -> Rendered:
    """The text of a conversation and the spans of those responses that count.

    Raises: BadRow if the template refuses the messages or does not write all that they say, or if a response cannot be
        placed.
    """
    messages, text, note, render = written(messages, render)
    responses = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    spans = render.marks(messages) if render.is_marked else _placed(messages, text, render)
    if all(counts(messages[i]) for i in responses):
        return Rendered(text, spans, note)
    turns = spans if len(spans) == len(responses) else _placed(messages, text, render)
    kept = [turn for turn, i in zip(turns, responses, strict=True) if counts(messages[i])]
    if not kept:
        raise BadRow("no response counts: train is false or weight is 0 in every assistant turn")
    if turns is spans:
        return Rendered(text, kept, note)
    inside = [(max(a, start), min(b, end)) for a, b in spans for start, end in kept]
    return Rendered(text, [(start, end) for start, end in inside if start < end], note)


def generation_prompt(render: Renderer) -> str:
    """What the template writes before a response that follows a user turn: the assistant's header, or nothing."""
    return _generation_prompt(replace(render, tools=None))


# --------------------------------------------------------------------------------------------------------------------
# what a row says and what the template writes of it


def written(messages: Messages, render: Renderer) -> tuple[Messages, str, str, Renderer]:
    """The messages as they are rendered, their text, a note on what it leaves out, and the renderer in the form that
    the template takes.

    A system turn opens the first user turn where the template has no system role (Gemma 1 and 2, some Mistral ones).
    """
    messages = [_with_objects(message) if "tool_calls" in message else message for message in messages]
    try:
        return _whole(messages, render)
    except BadRow:
        if messages[0]["role"] != "system" or len(messages) == 1 or messages[1]["role"] != "user":
            raise
        merged = f"{messages[0]['content']}\n\n{messages[1]['content']}"
        return _whole([{**messages[1], "content": merged}, *messages[2:]], render)


def _whole(messages: Messages, render: Renderer) -> tuple[Messages, str, str, Renderer]:
    """The messages in the first form of which the template writes everything; else what it does not write, or why it
    refuses them."""
    refusals: list[BadRow] = []
    for form in _forms(messages, render):
        try:
            text = form.text(messages)
            refuse_surrogates(text)
            if any(str(arguments) in text for arguments in _arguments_of(messages)):
                raise BadRow("the chat template writes tool arguments as Python objects, not as JSON")
            return messages, text, _note(messages, text, form), form
        except BadRow as reason:
            refusals.append(reason)
    raise next((reason for reason in refusals if isinstance(reason, _NotWritten)), refusals[0])


def _forms(messages: Messages, render: Renderer) -> Iterator[Renderer]:
    if _reads_parts(replace(render, tools=None)):
        render = replace(render, content_in_parts=True)
    calling = [message for message in messages if message.get("tool_calls")]
    for as_text in (False, True) if calling else (False,):
        for null in (False, True) if any(not message["content"] for message in calling) else (False,):
            yield replace(render, arguments_as_text=as_text, null_for_empty=null)


@lru_cache(maxsize=64)
def _reads_parts(render: Renderer) -> bool:
    """Whether the template writes content that comes in parts, and none that is text."""
    other = [{"role": "user", "content": "y"}]
    for form in (render, replace(render, content_in_parts=True)):
        try:
            if form.text([_QUESTION]) != form.text(other):
                return form.content_in_parts
        except BadRow:
            continue
    return False


def _with_objects(message: dict[str, Any]) -> dict[str, Any]:
    """The message with the arguments of its calls as objects, and without a list of no calls, which DeepSeek's
    template takes for calls."""
    if not message["tool_calls"]:
        return {key: value for key, value in message.items() if key != "tool_calls"}
    calls = []
    for call in message["tool_calls"]:
        function = call.get("function", call)
        calls.append({"type": "function", **call, "function": {**function, "arguments": _arguments(function)}})
    return {**message, "tool_calls": calls}


def _arguments(function: dict[str, Any]) -> dict[str, Any]:
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except json.JSONDecodeError:
            raise BadRow("the arguments of a tool call are text that is not JSON") from None
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        raise BadRow(f"the arguments of a tool call are {type(arguments).__name__}, not an object")
    return arguments


def _arguments_of(messages: Messages) -> Iterator[dict[str, Any]]:
    """The arguments of all calls, where there are some."""
    calls = (call for message in messages for call in message.get("tool_calls") or ())
    return (call["function"]["arguments"] for call in calls if call["function"]["arguments"])


def _note(messages: Messages, text: str, render: Renderer) -> str:
    """What the template leaves out of a row that is scored all the same: tools, names, and what it writes of a
    response only while it is the last (reasoning, above all).

    Raises: BadRow if it leaves out more than that.
    """
    left_out = []
    position = 0
    for i, message in enumerate(messages):
        for what, words, other in _parts(message):
            # A turn's words mostly stand in the text as they are, in order. What does not, or is often left out, is
            # replaced: if the text stays the same, it is not written.
            found = text.find(words, position) if words else -1
            if found >= 0:
                position = found + len(words)
            elif _same(render, text, [*messages[:i], other, *messages[i + 1 :]]):
                if message["role"] != "assistant" or not _is_written_when_last(messages[: i + 1], other, render):
                    raise _NotWritten(f"the chat template does not write {what}; give one that does (chat_template)")
                left_out.append(what.replace("a response", "earlier responses"))
    called = {call["function"].get("name") for message in messages for call in message.get("tool_calls") or ()}
    for i, message in enumerate(messages):
        nameless = {key: value for key, value in message.items() if key != "name"}
        if message.get("name") and message["name"] not in called:
            if _same(render, text, [*messages[:i], nameless, *messages[i + 1 :]]):
                left_out.append("names")
    if render.tools and _same(replace(render, tools=None), text, messages):
        left_out.append("the tools")
    return f"the chat template leaves out {', '.join(dict.fromkeys(left_out))}" if left_out else ""


def _parts(message: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(what, its words, the message with other words) of all that a message says; no words where these alone would
    not show that it is written."""
    content, role = message["content"], message["role"]
    reasoning = {key: message[key] for key in REASONING if isinstance(message.get(key), str) and message[key].strip()}
    for words in dict.fromkeys(reasoning.values()):  # several fields may say the same
        keys = [key for key in reasoning if reasoning[key] == words]
        yield "the reasoning of a response", words.strip(), {**message, **dict.fromkeys(keys, _other(words))}
    thought = _THOUGHT.match(content) if role == "assistant" else None
    # Templates split a response at its marks of thought; of several thoughts, or text before one, some drop pieces.
    for piece in _PIECE.finditer(content, 0, thought.end(1)) if thought else ():
        if not piece[0].strip():
            continue
        other = f"{content[: piece.start()]}\n{_other(piece[0])}\n{content[piece.end() :]}"
        yield "the reasoning of a response", piece[0].strip(), {**message, "content": other}
    start = thought.end() if thought else 0
    if content[start:].strip():
        what = {"assistant": "the text of a response", "tool": "tool results"}.get(role, f"a {role} turn")
        words = content[start:].strip() if role in ("user", "assistant") else ""
        yield what, words, {**message, "content": f"{content[:start]}{_other(content[start:])}"}
    for i, call in enumerate(message.get("tool_calls") or ()):
        function = call["function"]
        for changed in ({"name": _other(str(function.get("name")))}, {"arguments": _other_arguments(function)}):
            calls = [*message["tool_calls"]]
            calls[i] = {**call, "function": {**function, **changed}}
            yield "the tool calls of a response", "", {**message, "tool_calls": calls}


def _is_written_when_last(messages: Messages, other: dict[str, Any], render: Renderer) -> bool:
    text = _text_or_none(messages, render)
    return text is not None and not _same(render, text, [*messages[:-1], other])


def _same(render: Renderer, text: str, messages: Messages) -> bool:
    """Whether the template writes the same for these messages; not if it refuses them."""
    return _text_or_none(messages, render) == text


def _text_or_none(messages: Messages, render: Renderer) -> str | None:
    try:
        return render.text(messages)
    except BadRow:
        return None


def _other(text: str) -> str:
    """Text that begins and ends with another character."""
    ends = text.strip()[:1], text.strip()[-1:]
    return next(letter for letter in "xyz" if letter not in ends)


def _other_arguments(function: dict[str, Any]) -> dict[str, Any]:
    """Arguments with another name and value."""
    return {letter: letter for letter in "xyz" if letter not in function["arguments"]}


# --------------------------------------------------------------------------------------------------------------------
# where the responses stand


def _placed(messages: Messages, text: str, render: Renderer) -> list[Span]:
    spans: list[Span] = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        try:
            start, end = _start(i, messages, text, render), _end(i, messages, text, render)
            if not (spans[-1][1] if spans else 0) <= start <= end:
                raise BadRow("it overlaps its neighbours")
        except BadRow as reason:
            raise BadRow(
                f"a response cannot be placed in what the chat template writes ({reason}); give a template with "
                "{% generation %} marks (chat_template; trl.get_training_chat_template has some)"
            ) from None
        spans.append((start, end))
    return spans


def _start(i: int, messages: Messages, text: str, render: Renderer) -> int:
    """Where response i opens: after as much of the generation prompt as the template writes before it."""
    header = _generation_prompt(replace(render, tools=None))
    if i == 0:  # templates give no generation prompt for nothing
        reply = _reply_at(i, messages, text, render)
        at = text.rfind(header, 0, reply) if header else -1
        return reply if at < 0 else at + len(header)
    before = render.text(messages[:i], prompt=True)
    if text.startswith(before):
        start = len(before)
    else:
        here = _after(i - 1, messages, text, render)
        there = _after(i - 1, messages[:i], before, render, prompt=True)
        start = min(here + _common(text[here:], before[there:]), _reply_at(i, messages, text, render))
    if messages[i - 1]["role"] == "tool" and text.startswith(header, start):
        start += len(header)  # DiffusionGemma's asks for no header behind a tool result, yet writes one
    return start


def _reply_at(i: int, messages: Messages, text: str, render: Renderer) -> int:
    """Where message i and another reply in its place begin to differ."""
    plain = {"role": "assistant", "content": _other(messages[i]["content"])}
    for other in (plain, _with_other_words(messages[i])):
        try:
            return _common(text, render.text([*messages[:i], other, *messages[i + 1 :]]))
        except BadRow as reason:  # a tool result without its call
            refusal = reason
    raise refusal


def _end(i: int, messages: Messages, text: str, render: Renderer) -> int:
    """Where response i ends, its end mark included."""
    if i == len(messages) - 1:
        return len(text)
    if _ends_alike(replace(render, tools=None)):
        through = _text_or_none(messages[: i + 1], render)
        if through is not None and text.startswith(through):
            return len(through)
    # In a conversation of a question and this response, its end mark is between it and the next generation prompt.
    pair = [_QUESTION, messages[i]]
    asked, opening = render.text(pair, prompt=True), _generation_prompt(replace(render, tools=None))
    mark = asked[_after(1, pair, asked, render, prompt=True) :]
    if asked == _text_or_none(pair, render):  # Gemma 4 asks for none behind a call
        opening = ""
    here = _after(i, messages, text, render)
    if not (mark.endswith(opening) and text.startswith(mark.removesuffix(opening), here)):
        raise BadRow("what closes it in other conversations does not follow it")
    return here + len(mark) - len(opening)


def _after(i: int, messages: Messages, text: str, render: Renderer, prompt: bool = False) -> int:
    """A place in the text just behind what message i says, the same in every text that it is written in: what follows
    the last difference to other words."""
    other = render.text([*messages[:i], _with_other_words(messages[i]), *messages[i + 1 :]], prompt=prompt)
    if other == text:
        raise BadRow(f"the {messages[i]['role']} turn before it is not written")
    return len(text) - min(_common(text[::-1], other[::-1]), len(text), len(other))


def _with_other_words(message: dict[str, Any]) -> dict[str, Any]:
    """The message with other words wherever it has some, of the same structure."""
    texts = {key: message[key] for key in ("content", *REASONING) if isinstance(message.get(key), str)}
    changed: dict[str, Any] = {key: _other(value) for key, value in texts.items() if value.strip()}
    if message.get("tool_calls"):
        changed["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _other_arguments(call["function"])}}
            for call in message["tool_calls"]
        ]
    return {**message, **(changed or {"content": "x"})}


def _common(a: str, b: str) -> int:
    """Length of the common beginning, by halving: a comparison by characters takes longer than to render."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


@lru_cache(maxsize=64)
def _generation_prompt(render: Renderer) -> str:
    try:
        before, through = render.text([_QUESTION]), render.text([_QUESTION], prompt=True)
    except BadRow:
        return ""
    if not through.startswith(before):  # Phi-3.5 ends a conversation with EOS
        before = before.removesuffix(str(dict(render.special).get("eos_token") or ""))
    return through.removeprefix(before) if through.startswith(before) else ""


@lru_cache(maxsize=64)
def _ends_alike(render: Renderer) -> bool:
    """Whether the last response is closed as one that a generation prompt follows; taken for granted of a template
    that refuses to be asked."""
    pair = [_QUESTION, {"role": "assistant", "content": "x"}]
    try:
        return render.text(pair) == render.text(pair, prompt=True).removesuffix(_generation_prompt(render))
    except BadRow:
        return True
