"""Locates the character spans of the responses in a rendered conversation.

Responses are located by how the template renders the conversation, never by searching for their words:

- If the template has `{% generation %}` marks, they are the spans.
- Otherwise, prefixes of the conversation are rendered. A response starts where the prefix before it ends, including
  the generation prompt, and ends where the prefix that includes it ends.
- Some templates render a prefix differently from the whole conversation (Qwen3 moves its thinking block, Phi-3.5
  appends EOS, DeepSeek's generation prompt opens a thought). Then both texts are aligned at the end of a message. To
  find it, the conversation is rendered again with other words in that message: the message ends at the last
  difference.

Rendering a prefix for each response takes time quadratic in the number of turns. So all plain messages are first
located with a single rendering, in which markers replace the contents. If the template writes the same text around
markers and contents, these positions are exact. The text between a message and the next response is then rendered only
once per role.
"""

import re
from dataclasses import dataclass, field, replace
from functools import lru_cache

from hf_select.data.bad_rows import BadRow, attempt
from hf_select.data.chat_template import (
    QUESTION,
    REASONING,
    Message,
    Messages,
    Rendered,
    Renderer,
    Span,
    after_thought,
    counts,
    different_arguments,
    different_text,
    written,
)


_MARKER = re.compile("\ue000(\\d+)\ue001")  # private-use characters, which no template tests for


def render_with_spans(messages: Messages, render: Renderer) -> Rendered:
    """Render a conversation, and locate the responses that are scored.

    Raises: BadRow if the template rejects the messages or does not write their full content, or if a response cannot
        be located.
    """
    messages, text, note, render = written(messages, render)
    responses = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    spans = render.marks(messages) if render.is_marked else _place(messages, text, render)
    if len(spans) > len(responses):  # Phi-3's training template marks the final EOS apart from its turn
        spans = _joined(spans)
    if all(counts(messages[i]) for i in responses):
        return Rendered(text, spans, note)
    turns = spans if len(spans) == len(responses) else _place(messages, text, render)
    kept = [turn for turn, i in zip(turns, responses, strict=True) if counts(messages[i])]
    if not kept:
        raise BadRow("no response counts: train is false or weight is 0 in every assistant turn")
    if turns is spans:
        return Rendered(text, kept, note)
    inside = [(max(a, start), min(b, end)) for a, b in spans for start, end in kept]
    return Rendered(text, [(start, end) for start, end in inside if start < end], note)


def _joined(spans: list[Span]) -> list[Span]:
    """The spans with those that touch each other as one."""
    joined: list[Span] = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def response_header(render: Renderer) -> str:
    """The header that the template writes before a response to a user turn, such as `<|im_start|>assistant`."""
    return _header(replace(render, tools=None))


def _place(messages: Messages, text: str, render: Renderer) -> list[Span]:
    """The span of each assistant turn.

    Raises: BadRow if one cannot be located.
    """
    placement = _Placement(messages, text, render)
    spans: list[Span] = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        try:
            start, end = placement.start(i), placement.end(i)
            if not (spans[-1][1] if spans else 0) <= start <= end:
                raise BadRow("it overlaps another one")
        except BadRow as reason:
            raise BadRow(
                f"a response cannot be located in the rendered chat template ({reason}); give a template with "
                "{% generation %} marks (chat_template; trl.get_training_chat_template has some)"
            ) from None
        spans.append((start, end))
    return spans


@dataclass
class _Placement:
    """Start and end positions of the responses of one conversation in its text."""

    messages: Messages
    text: str
    render: Renderer
    _tails: dict[str, str] = field(default_factory=dict)
    _plain_close: str | None = None

    def __post_init__(self) -> None:
        self.header = response_header(self.render)
        several = sum(message["role"] == "assistant" for message in self.messages) > 1
        self.contents = _content_spans(self.messages, self.text, self.render) if several else {}

    def start(self, i: int) -> int:
        """Start of response i: after the part of the generation prompt that the template writes before it."""
        if i == 0:  # templates write no generation prompt for an empty conversation
            reply = _reply_start(i, self.messages, self.text, self.render)
            at = self.text.rfind(self.header, 0, reply) if self.header else -1
            return reply if at < 0 else at + len(self.header)
        start = self._start_by_contents(i)
        if start is None:
            start = self._start_by_prefix(i)
        if self.messages[i - 1]["role"] == "tool" and self.text.startswith(self.header, start):
            start += len(self.header)  # DiffusionGemma: only the turn has a header after a tool result, not the prompt
        return start

    def _start_by_contents(self, i: int) -> int | None:
        if i - 1 not in self.contents or _has_thought(self.messages[i]):
            return None
        before, tail = self.contents[i - 1][1], self._tail(i)
        if self.text.startswith(tail, before):
            return before + len(tail)
        if i not in self.contents:
            return None
        return min(before + _common_length(self.text[before : before + len(tail)], tail), self.contents[i][0])

    def _start_by_prefix(self, i: int) -> int:
        prefix = self.render.text(self.messages[:i], prompt=True)
        if self.text.startswith(prefix):
            return len(prefix)
        in_text = _message_end(i - 1, self.messages, self.text, self.render)
        in_prefix = _message_end(i - 1, self.messages[:i], prefix, self.render, prompt=True)
        reply = _reply_start(i, self.messages, self.text, self.render)
        return min(in_text + _common_length(self.text[in_text:], prefix[in_prefix:]), reply)

    def _tail(self, i: int) -> str:
        """The end of the prompt before response i, after the content of the last message; cached per role."""
        role = self.messages[i - 1]["role"]
        if role not in self._tails:
            prefix = self.render.text(self.messages[:i], prompt=True)
            in_prefix = _message_end(i - 1, self.messages[:i], prefix, self.render, prompt=True)
            self._tails[role] = prefix[in_prefix:]
        return self._tails[role]

    def end(self, i: int) -> int:
        """End of response i, including its end mark."""
        if i == len(self.messages) - 1:
            return len(self.text)
        if i in self.contents:
            content_end, close = self.contents[i][1], attempt(self._close, i)  # may reject a prompt after a response
            if isinstance(close, str) and self.text.startswith(close, content_end):
                return content_end + len(close)
        if _closes_alike(replace(self.render, tools=None)):
            through = self.render.text_or_none(self.messages[: i + 1])
            if through is not None and self.text.startswith(through):
                return len(through)
        content_end, close = _message_end(i, self.messages, self.text, self.render), self._close(i)
        if close is None or not self.text.startswith(close, content_end):
            raise BadRow("it is not followed by the end mark of other responses")
        return content_end + len(close)

    def _close(self, i: int) -> str | None:
        """The end mark of response i: the text between it and the next generation prompt in a conversation of a probe
        question and this response. None if that conversation does not end with the usual header."""
        is_plain = i in self.contents and not _has_thought(self.messages[i])
        if is_plain and self._plain_close is not None:
            return self._plain_close
        pair = [QUESTION, self.messages[i]]
        prompt, header = self.render.text(pair, prompt=True), self.header
        after = prompt[_message_end(1, pair, prompt, self.render, prompt=True) :]
        if prompt == self.render.text_or_none(pair):  # Gemma 4 writes no header after a call
            header = ""
        close = after.removesuffix(header) if after.endswith(header) else None
        if is_plain:
            self._plain_close = close
        return close


def _content_spans(messages: Messages, text: str, render: Renderer) -> dict[int, Span]:
    """Spans of the contents, without a thought, of all non-empty messages without tool calls. {} if the template
    writes other text around the contents than around markers.
    """
    contents = {
        i: message["content"][after_thought(message) :]
        for i, message in enumerate(messages)
        if not message.get("tool_calls")
    }
    contents = {i: content for i, content in contents.items() if content.strip()}
    marked = [
        {**message, "content": f"{message['content'][: after_thought(message)]}\ue000{i}\ue001"}
        if i in contents
        else message
        for i, message in enumerate(messages)
    ]
    between = _MARKER.split(render.text_or_none(marked) or "")
    if "\ue000" in text or [int(number) for number in between[1::2]] != [*contents]:
        return {}
    first, *pieces = between[::2]
    if not text.startswith(first):
        return {}
    spans, position = {}, len(first)
    for (i, content), piece in zip(contents.items(), pieces, strict=True):
        forms = dict.fromkeys((content, content.strip(), content.lstrip(), content.rstrip(), content.strip("\n")))
        form = next((form for form in forms if text.startswith(form + piece, position)), None)
        if form is None or not (piece.strip() or i == len(messages) - 1):
            return {}
        spans[i] = (position, position + len(form))
        position += len(form) + len(piece)
    return spans if position == len(text) else {}


def _has_thought(message: Message) -> bool:
    return after_thought(message) > 0 or any(message.get(name) for name in REASONING)


def _reply_start(i: int, messages: Messages, text: str, render: Renderer) -> int:
    """First position at which the text changes if another reply replaces message i."""
    plain = {"role": "assistant", "content": different_text(messages[i]["content"])}
    for other in (plain, _with_other_words(messages[i])):
        try:
            return _common_length(text, render.text([*messages[:i], other, *messages[i + 1 :]]))
        except BadRow as reason:  # e.g. for a tool result without its call
            refusal = reason
    raise refusal


def _message_end(i: int, messages: Messages, text: str, render: Renderer, prompt: bool = False) -> int:
    """End of the content of message i: the last position at which the text changes with other words in it."""
    other = render.text([*messages[:i], _with_other_words(messages[i]), *messages[i + 1 :]], prompt=prompt)
    if other == text:
        raise BadRow(f"the {messages[i]['role']} turn before it is not written")
    return len(text) - min(_common_length(text[::-1], other[::-1]), len(text), len(other))


def _with_other_words(message: Message) -> Message:
    """A message of the same structure with all words replaced."""
    texts = {key: message[key] for key in ("content", *REASONING) if isinstance(message.get(key), str)}
    changed: Message = {key: different_text(value) for key, value in texts.items() if value.strip()}
    if message.get("tool_calls"):
        changed["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": different_arguments(call["function"])}}
            for call in message["tool_calls"]
        ]
    return {**message, **(changed or {"content": "x"})}


def _common_length(a: str, b: str) -> int:
    """Length of the common prefix, by bisection: comparing single characters is slower than rendering."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


@lru_cache(maxsize=64)
def _header(render: Renderer) -> str:
    try:
        before, through = render.text([QUESTION]), render.text([QUESTION], prompt=True)
    except BadRow:
        return ""
    if not through.startswith(before):  # Phi-3.5 ends a conversation with EOS
        before = before.removesuffix(str(dict(render.special).get("eos_token") or ""))
    return through.removeprefix(before) if through.startswith(before) else ""


@lru_cache(maxsize=64)
def _closes_alike(render: Renderer) -> bool:
    """Whether the template ends the last response like one that is followed by a generation prompt. True if it rejects
    the probe."""
    pair = [QUESTION, {"role": "assistant", "content": "x"}]
    try:
        return render.text(pair) == render.text(pair, prompt=True).removesuffix(_header(render))
    except BadRow:
        return True
