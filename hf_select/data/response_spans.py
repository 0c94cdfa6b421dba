"""Character spans of the responses in what a chat template writes for a conversation.

Responses are placed by what the template does, never by searching for their words:

- by its `{% generation %}` marks, if it has some;
- else from prefixes of the conversation: a response starts where the prefix before it ends, generation prompt
  included, and ends where the prefix through it ends;
- where the template writes a prefix differently from the whole (Qwen3 moves its thinking block, Phi-3.5 closes with
  EOS, DeepSeek's generation prompt opens a thought), both are aligned at the end of a message. That place is found by
  rendering once more with other words in that message: what follows the last difference follows the message.

Rendering a prefix for every response takes time quadratic in the turns. So all plain messages are located first by one
rendering with a marker in place of each content. If the template writes the same around the markers as around the
contents, these places are exact, and what it writes between a message and a response is looked up once per role.
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


_MARKER = re.compile("\ue000(\\d+)\ue001")  # private-use characters, which no template looks for


def render_with_spans(messages: Messages, render: Renderer) -> Rendered:
    """The text of a conversation and the spans of those responses that count.

    Raises: BadRow if the template refuses the messages or does not write all that they say, or if a response cannot be
        placed.
    """
    messages, text, note, render = written(messages, render)
    responses = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    spans = render.marks(messages) if render.is_marked else _place(messages, text, render)
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


def response_header(render: Renderer) -> str:
    """What the template writes before a response that follows a user turn, such as `<|im_start|>assistant`."""
    return _header(replace(render, tools=None))


def _place(messages: Messages, text: str, render: Renderer) -> list[Span]:
    """The span of each assistant turn.

    Raises: BadRow if one cannot be placed.
    """
    placement = _Placement(messages, text, render)
    spans: list[Span] = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        try:
            start, end = placement.start(i), placement.end(i)
            if not (spans[-1][1] if spans else 0) <= start <= end:
                raise BadRow("it overlaps its neighbours")
        except BadRow as reason:
            raise BadRow(
                f"a response cannot be placed in what the chat template writes ({reason}); give a template with "
                "{% generation %} marks (chat_template; trl.get_training_chat_template has some)"
            ) from None
        spans.append((start, end))
    return spans


@dataclass
class _Placement:
    """Where the responses of one conversation start and end in its text."""

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
        """Where response i starts: after as much of the generation prompt as the template writes before it."""
        if i == 0:  # templates write no generation prompt for an empty conversation
            reply = _reply_start(i, self.messages, self.text, self.render)
            at = self.text.rfind(self.header, 0, reply) if self.header else -1
            return reply if at < 0 else at + len(self.header)
        start = self._start_by_contents(i)
        if start is None:
            start = self._start_by_prefix(i)
        if self.messages[i - 1]["role"] == "tool" and self.text.startswith(self.header, start):
            start += len(self.header)  # DiffusionGemma's prompt has no header after a tool result, its turn has one
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
        here = _message_end(i - 1, self.messages, self.text, self.render)
        there = _message_end(i - 1, self.messages[:i], prefix, self.render, prompt=True)
        reply = _reply_start(i, self.messages, self.text, self.render)
        return min(here + _common_length(self.text[here:], prefix[there:]), reply)

    def _tail(self, i: int) -> str:
        """What a prompt of the messages before response i has after the last of them; looked up once per role."""
        role = self.messages[i - 1]["role"]
        if role not in self._tails:
            prefix = self.render.text(self.messages[:i], prompt=True)
            there = _message_end(i - 1, self.messages[:i], prefix, self.render, prompt=True)
            self._tails[role] = prefix[there:]
        return self._tails[role]

    def end(self, i: int) -> int:
        """Where response i ends, its end mark included."""
        if i == len(self.messages) - 1:
            return len(self.text)
        if i in self.contents:
            here, close = self.contents[i][1], attempt(self._close, i)  # a prompt after a response may be refused
            if isinstance(close, str) and self.text.startswith(close, here):
                return here + len(close)
        if _closes_alike(replace(self.render, tools=None)):
            through = self.render.text_or_none(self.messages[: i + 1])
            if through is not None and self.text.startswith(through):
                return len(through)
        here, close = _message_end(i, self.messages, self.text, self.render), self._close(i)
        if close is None or not self.text.startswith(close, here):
            raise BadRow("what closes it in other conversations does not follow it")
        return here + len(close)

    def _close(self, i: int) -> str | None:
        """What closes response i: in a conversation of a question and this response, what is written between it and
        the next generation prompt. None if the prompt does not end as others do."""
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
    """The span of the content, without its thought, of each message that has some and calls no tool; {} if the
    template does not write the same around other contents.
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
    """Where the text first differs if another reply stands in place of message i."""
    plain = {"role": "assistant", "content": different_text(messages[i]["content"])}
    for other in (plain, _with_other_words(messages[i])):
        try:
            return _common_length(text, render.text([*messages[:i], other, *messages[i + 1 :]]))
        except BadRow as reason:  # a tool result without its call
            refusal = reason
    raise refusal


def _message_end(i: int, messages: Messages, text: str, render: Renderer, prompt: bool = False) -> int:
    """The place right after the content of message i: what follows the last difference to a text with other words."""
    other = render.text([*messages[:i], _with_other_words(messages[i]), *messages[i + 1 :]], prompt=prompt)
    if other == text:
        raise BadRow(f"the {messages[i]['role']} turn before it is not written")
    return len(text) - min(_common_length(text[::-1], other[::-1]), len(text), len(other))


def _with_other_words(message: Message) -> Message:
    """The message with other words wherever it has some, of the same structure."""
    texts = {key: message[key] for key in ("content", *REASONING) if isinstance(message.get(key), str)}
    changed: Message = {key: different_text(value) for key, value in texts.items() if value.strip()}
    if message.get("tool_calls"):
        changed["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": different_arguments(call["function"])}}
            for call in message["tool_calls"]
        ]
    return {**message, **(changed or {"content": "x"})}


def _common_length(a: str, b: str) -> int:
    """Length of the common beginning, by bisection: a comparison by characters takes longer than to render."""
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
    """Whether the template closes the last response as one that is followed by a generation prompt; True if it refuses
    the probe."""
    pair = [QUESTION, {"role": "assistant", "content": "x"}]
    try:
        return render.text(pair) == render.text(pair, prompt=True).removesuffix(_header(render))
    except BadRow:
        return True
