"""Renders conversations with a chat template, and checks that the template writes their full content.

The whole conversation is rendered once, as in training. If a template drops the reasoning of earlier turns, the text
lacks it too, and a note records this. If the template leaves out any other words, calls or reasoning, the row is
rejected with the reason. Tool arguments are passed as objects or as JSON text, whichever the template supports.
`response_spans` locates the responses in the text.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hf_select.data.bad_rows import BadRow


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# For base models without a template: the format of the Tulu datasets, which the RDS+ study (arXiv:2503.01807) uses for
# every base model. Turns are stripped and start with their role. A response includes the EOS that ends it. The Tulu
# datasets have no tools, calls, reasoning or names: these are written as in the templates of Hermes and Qwen.
_TULU_TURNS = (
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
    _TULU_TURNS.replace(" + CLOSE", "")
    + "{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}"
    + "{% if add_generation_prompt %}{{ '\n<|assistant|>\n' }}{% endif %}"
)

# The format of LESS (arXiv:2402.04333): the same, but every turn ends with a line break. Responses include theirs.
LESS_TEMPLATE = _TULU_TURNS.replace("CLOSE", "'\n'") + "{% endfor %}"

_GENERATION_MARK = re.compile(r"\{%-?\s*generation\b")
_THOUGHT = re.compile(r"\s*(?:<think>)?(.*)</think>", re.DOTALL)
_PIECE = re.compile(r"(?:\A|(?<=<think>)|(?<=</think>))(?:(?!</?think>).)+", re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
# Keys of a message's reasoning: that of DeepSeek and Qwen, then those of OpenRouter and gpt-oss.
REASONING = ("reasoning_content", "reasoning", "thinking")
# Keys that include or exclude a message from training: those of axolotl, then that of OpenAI.
TRAIN_FLAGS = ("train", "training", "weight")
QUESTION = {"role": "user", "content": "x"}  # to probe templates

Message = dict[str, Any]
Messages = list[Message]
Span = tuple[int, int]


class _NotWritten(BadRow):
    """The template does not write a part of the row."""


@dataclass(frozen=True)
class Rendered:
    """The text of a conversation and the character spans of its responses; `note` lists what the text leaves out."""

    text: str
    spans: list[Span]
    note: str = ""


@dataclass(frozen=True)
class Renderer:
    """A chat template, the tokenizer's special tokens, a row's tools, and the message format of the template.

    Args:
        special: names and values of the special tokens.
        arguments_as_text: pass tool arguments as JSON text. DeepSeek's template concatenates them.
        null_for_empty: pass the empty content of a tool call as null. The distilled DeepSeek R1 models test for it.
        content_in_parts: pass content as a list of parts, as vision models expect.
    """

    template: str
    special: tuple[tuple[str, Any], ...]
    tools: list[dict[str, Any]] | None = field(default=None, hash=False)
    arguments_as_text: bool = False
    null_for_empty: bool = False
    content_in_parts: bool = False

    @property
    def is_marked(self) -> bool:
        """Whether the template has `{% generation %}` marks."""
        return bool(_GENERATION_MARK.search(self.template))

    def text(self, messages: Messages, prompt: bool = False) -> str:
        """Render the messages; `prompt` adds the generation prompt."""
        return self._render(messages, add_generation_prompt=prompt)[0]

    def text_or_none(self, messages: Messages) -> str | None:
        """`text`, or None if the template rejects the messages."""
        try:
            return self.text(messages)
        except BadRow:
            return None

    def marks(self, messages: Messages) -> list[Span]:
        """Character spans between the template's `{% generation %}` marks."""
        return self._render(messages, return_assistant_tokens_mask=True)[1]

    def _render(self, messages: Messages, **options: bool) -> tuple[str, list[Span]]:
        """Raises: ValueError if the template is not valid Jinja; BadRow if it rejects these messages."""
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
        except (TypeError, KeyError, AttributeError) as error:  # the row lacks what the template expects
            raise BadRow(f"the chat template fails on the row: {type(error).__name__}: {error}") from None
        spans = cast(list[list[Span]], marks)
        return str(texts[0]), [(start, end) for start, end in (spans[0] if spans else [])]

    def _message(self, message: Message) -> Message:
        """Convert a message to the format that the template expects."""
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
    """Return the text of a chat template, given as text or as the path of a file.

    Raises: ValueError if the file does not exist, or if the template is not valid Jinja.
    """
    text = given
    if "{" not in given:
        path = Path(given).expanduser()
        if not path.is_file():
            raise ValueError(
                f'chat_template is "{given}", which is neither a file nor template text (with {{% or {{{{).'
            )
        text = path.read_text(encoding="utf-8")
    try:
        Renderer(text, ()).text([QUESTION])
    except BadRow:  # a template may reject the probe and accept other messages
        pass
    return text


def template_digest(text: str | None) -> str | None:
    """SHA-256 of a template's text, as recorded in job identities."""
    return None if text is None else f"sha256 {hashlib.sha256(text.encode()).hexdigest()}"


def renderer(
    template: str, tokenizer: "PreTrainedTokenizerBase", tools: list[dict[str, Any]] | None = None
) -> Renderer:
    """Build the Renderer of a template with a tokenizer's special tokens."""
    special = tokenizer.special_tokens_map.items()
    return Renderer(template, tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in special), tools)


def refuse_surrogates(text: str) -> None:
    """Raise BadRow for an unpaired surrogate, which no tokenizer accepts. JSON may contain one where text was cut in
    the middle of a character."""
    half = None if text.isascii() else _SURROGATE.search(text)
    if half:
        raise BadRow(f"the text contains an unpaired surrogate (\\u{ord(half[0]):04x})")


def counts(message: Mapping[str, Any]) -> bool:
    """Whether a message is scored and trained on; `train` (axolotl) or `weight` (OpenAI) can exclude it."""
    return all(message.get(name) is None or message[name] for name in TRAIN_FLAGS)


# --------------------------------------------------------------------------------------------------------------------
def written(messages: Messages, render: Renderer) -> tuple[Messages, str, str, Renderer]:
    """(messages as rendered, their text, note on what it leaves out, renderer with the format of the template)

    If the template has no system role (Gemma 1 and 2, some Mistral models), the system turn is prepended to the first
    user turn.

    Raises: BadRow if the template rejects the messages or does not write their full content.
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
    """`written` with the first message format for which the template writes the full content.

    Raises: BadRow that names what the template does not write, or why it rejects the messages.
    """
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
    """Renderers with each message format that may apply to these messages."""
    if _reads_parts(replace(render, tools=None)):
        render = replace(render, content_in_parts=True)
    calling = [message for message in messages if message.get("tool_calls")]
    for as_text in (False, True) if calling else (False,):
        for null in (False, True) if any(not message["content"] for message in calling) else (False,):
            yield replace(render, arguments_as_text=as_text, null_for_empty=null)


@lru_cache(maxsize=64)
def _reads_parts(render: Renderer) -> bool:
    """Whether the template writes only content given as a list of parts, not content given as text."""
    other = [{"role": "user", "content": "y"}]
    for form in (render, replace(render, content_in_parts=True)):
        try:
            if form.text([QUESTION]) != form.text(other):
                return form.content_in_parts
        except BadRow:
            continue
    return False


def _with_objects(message: Message) -> Message:
    """The message with the arguments of its calls as objects. An empty list of calls is removed, because DeepSeek's
    template treats it as a call."""
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
    """The non-empty arguments of all calls."""
    calls = (call for message in messages for call in message.get("tool_calls") or ())
    return (call["function"]["arguments"] for call in calls if call["function"]["arguments"])


def _note(messages: Messages, text: str, render: Renderer) -> str:
    """A note on what the template leaves out by design: tools, names, and parts that it writes only in the last
    response (mostly reasoning).

    Raises: BadRow if it leaves out more than that.
    """
    left_out = []
    position = 0
    for i, message in enumerate(messages):
        for what, words, other in _statements(message):
            # Most words occur in the text unchanged and in order. Replace those that do not: if the text stays the
            # same, the template does not write them.
            at = text.find(words, position) if words else -1
            if at >= 0:
                position = at + len(words)
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


def _statements(message: Message) -> Iterator[tuple[str, str, Message]]:
    """(description, words, the message with other words) for each part of a message. The words are empty if finding
    them in the text would not prove that the template writes them."""
    content, role = message["content"], message["role"]
    reasoning = {key: message[key] for key in REASONING if isinstance(message.get(key), str) and message[key].strip()}
    for words in dict.fromkeys(reasoning.values()):  # several keys may have the same text
        keys = [key for key in reasoning if reasoning[key] == words]
        yield "the reasoning of a response", words.strip(), {**message, **dict.fromkeys(keys, different_text(words))}
    thought = _THOUGHT.match(content) if role == "assistant" else None
    # Templates split a response at its thinking tags, and some drop all but one of several thoughts.
    for piece in _PIECE.finditer(content, 0, thought.end(1)) if thought else ():
        if not piece[0].strip():
            continue
        other = f"{content[: piece.start()]}\n{different_text(piece[0])}\n{content[piece.end() :]}"
        yield "the reasoning of a response", piece[0].strip(), {**message, "content": other}
    start = thought.end() if thought else 0
    if content[start:].strip():
        what = {"assistant": "the text of a response", "tool": "tool results"}.get(role, f"a {role} turn")
        words = content[start:].strip() if role in ("user", "assistant") else ""
        yield what, words, {**message, "content": f"{content[:start]}{different_text(content[start:])}"}
    for i, call in enumerate(message.get("tool_calls") or ()):
        function = call["function"]
        others = {"name": different_text(str(function.get("name"))), "arguments": different_arguments(function)}
        for key, other in others.items():
            calls = [*message["tool_calls"]]
            calls[i] = {**call, "function": {**function, key: other}}
            yield "the tool calls of a response", "", {**message, "tool_calls": calls}


def _is_written_when_last(messages: Messages, other: Message, render: Renderer) -> bool:
    text = render.text_or_none(messages)
    return text is not None and not _same(render, text, [*messages[:-1], other])


def _same(render: Renderer, text: str, messages: Messages) -> bool:
    """Whether the template renders the messages to this text; False if it rejects them."""
    return render.text_or_none(messages) == text


def after_thought(message: Message) -> int:
    """Position in the content of a response after a leading <think> block; 0 without one."""
    thought = _THOUGHT.match(message["content"]) if message["role"] == "assistant" else None
    return thought.end() if thought else 0


def different_text(text: str) -> str:
    """A letter that differs from the first and last characters of the stripped text."""
    ends = text.strip()[:1], text.strip()[-1:]
    return next(letter for letter in "xyz" if letter not in ends)


def different_arguments(function: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call whose name and value differ from all of its own."""
    return {letter: letter for letter in "xyz" if letter not in function["arguments"]}
