"""Conversations as token ids, with the spans of their responses."""

from dataclasses import dataclass, replace
from typing import Any

from hf_select.data.bad_rows import BadRow, map_rows
from hf_select.data.chat_template import (
    FALLBACK_TEMPLATE,
    LESS_TEMPLATE,
    Rendered,
    Renderer,
    renderer,
    written,
)
from hf_select.data.conversation import Conversation
from hf_select.data.response_spans import render_with_spans, response_header
from hf_select.data.text import says_something


@dataclass(frozen=True)
class Encoded:
    """Token ids of a row and half-open token spans of its responses, one for each assistant turn that is scored.

    `note` lists what the template leaves out of the row by design.
    """

    input_ids: list[int]
    responses: list[tuple[int, int]]
    note: str = ""


def encode(conversation: Conversation, tokenizer: Any, chat_template: str | None = None) -> Encoded:
    """Render a conversation with the chat template and tokenize it, with the spans of its responses.

    A response span starts after the generation prompt and includes the template's end mark. In raw text, all tokens
    after the start token are the response.

    Args:
        tokenizer: a fast tokenizer; the spans need character offsets.
        chat_template: Jinja template that replaces the tokenizer's own, e.g. FALLBACK_TEMPLATE.
    Raises: BadRow if the template rejects the row, or rewrites earlier turns so that a response cannot be located.
    """
    (encoded,) = encode_all([conversation], tokenizer, chat_template)
    if isinstance(encoded, BadRow):
        raise encoded
    return encoded


def encode_all(
    rows: list[Conversation], tokenizer: Any, chat_template: str | None = None, responses: bool = True
) -> list["Encoded | BadRow"]:
    """`encode` for many rows, tokenized in one call. The result for a row that cannot be encoded is a BadRow.

    Args:
        responses: whether to locate the response spans. If False, rows whose responses cannot be located are encoded,
            too.
    """
    if responses and not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} gives no character offsets; a fast tokenizer is needed.")
    templates = [_template(row, tokenizer, chat_template) for row in rows]
    # A model's own template writes the start token. For raw text and our templates, the tokenizer adds it.
    adds_special = [
        row.text is not None or template in (FALLBACK_TEMPLATE, LESS_TEMPLATE)
        for row, template in zip(rows, templates, strict=True)
    ]
    rendered = map_rows(
        lambda row, template: _render(row, renderer(template, tokenizer, row.tools), responses), rows, templates
    )
    results: dict[int, Encoded] = {}
    for special in (False, True):
        chosen = {i: row for i, row in enumerate(rendered) if isinstance(row, Rendered) and adds_special[i] == special}
        if chosen:
            results |= zip(chosen, _tokenize([*chosen.values()], tokenizer, special, responses), strict=True)
    return [row if isinstance(row, BadRow) else results[i] for i, row in enumerate(rendered)]


def _tokenize(rows: list[Rendered], tokenizer: Any, special: bool, responses: bool) -> list[Encoded]:
    encoding = tokenizer(
        [row.text for row in rows], add_special_tokens=special, return_offsets_mapping=responses, verbose=False
    )
    offsets = encoding["offset_mapping"] if responses else [[]] * len(rows)
    return [
        Encoded(ids, _token_spans(row.spans, places), row.note)
        for row, ids, places in zip(rows, encoding["input_ids"], offsets, strict=True)
    ]


def _render(row: Conversation, render: Renderer, responses: bool) -> Rendered:
    if row.text is not None:
        return Rendered(row.text, [(0, len(row.text))] if responses else [])
    if responses:
        return render_with_spans(row.messages, render)
    _, text, note, _ = written(row.messages, render)
    return Rendered(text, [], note)


def encode_prompts(
    rows: list[Conversation], tokenizer: Any, chat_template: str | None = None
) -> list["list[int] | BadRow"]:
    """Token ids of each conversation up to its last response, with the generation prompt. They are a prefix of the ids
    of `encode_all`, unless the template or the tokenizer rewrites the prompt."""

    def prompt_ids(row: Conversation) -> list[int]:
        if len(row.messages) < 2 or row.messages[-1]["role"] != "assistant":
            raise BadRow("the row does not end with a response to a prompt")
        template = _template(row, tokenizer, chat_template)
        messages, _, _, render = written(row.messages, renderer(template, tokenizer, row.tools))
        text = render.text(messages[:-1], prompt=True)
        special = template in (FALLBACK_TEMPLATE, LESS_TEMPLATE)
        return tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]

    return map_rows(prompt_ids, rows)


def response_end(tokenizer: Any, chat_template: str | None = None) -> int:
    """The token that ends a response: the first special token that the template writes after it, else EOS.

    Raises: ValueError if neither exists.
    """
    close = response_close(tokenizer, chat_template)
    if not close and tokenizer.eos_token_id is None:
        raise ValueError(
            "neither the chat template nor the tokenizer has a token that ends a response, so generation cannot stop; "
            "set tokenizer.eos_token."
        )
    return close[0] if close else tokenizer.eos_token_id


def response_close(tokenizer: Any, chat_template: str | None = None) -> list[int]:
    """Token ids that the template writes after a response, starting at the first special token; [] without one."""
    user = {"role": "user", "content": "x"}
    twice = [Conversation([user, {"role": "assistant", "content": word}]) for word in ("a", "b")]
    encoded = [e for e in encode_all(twice, tokenizer, chat_template, responses=False) if not isinstance(e, BadRow)]
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    if len(encoded) < 2:
        return []
    first, second = (e.input_ids for e in encoded)
    common = next((i for i, (a, b) in enumerate(zip(first[::-1], second[::-1], strict=False)) if a != b), 0)
    after = first[len(first) - common :]
    return next((after[i:] for i, token in enumerate(after) if token in special), [])


def cut(encoded: Encoded, max_length: int | None, context: int | None) -> tuple[Encoded, str]:
    """Truncate a row on the right to `max_length` tokens; also return a note on the cut and on missing parts.

    Raises: BadRow if the row is still longer than the model's context.
    """
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length is {max_length}; it must be at least 1.")
    ids = encoded.input_ids[:max_length]
    if context is not None and len(ids) > context:
        raise BadRow(f"longer than the model's context of {context} tokens; lower max_length")
    if len(ids) == len(encoded.input_ids):
        return encoded, encoded.note
    responses = [(start, min(end, len(ids))) for start, end in encoded.responses if start < len(ids)]
    notes = [f"cut to {max_length} tokens", *([encoded.note] if encoded.note else [])]
    return Encoded(ids, responses, encoded.note), "; ".join(notes)


def generation_prompt(tokenizer: Any, chat_template: str | None = None) -> str:
    """The assistant header that the template writes before a response; may be empty."""
    template = _template(Conversation([]), tokenizer, chat_template)
    return response_header(renderer(template, tokenizer)).lstrip("\n")


def _template(row: Conversation, tokenizer: Any, chat_template: str | None) -> str:
    """The Jinja template of a row; some tokenizers have separate templates for rows with and without tools."""
    if chat_template is not None:
        return chat_template
    if not tokenizer.chat_template:
        return FALLBACK_TEMPLATE
    return tokenizer.get_chat_template(tools=row.tools)


def _token_spans(spans: list[tuple[int, int]], offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Convert character spans to token spans. A token belongs to the span in which it starts: one that starts in the
    prompt is predicted from the prompt alone. A start token has no characters and belongs to no span."""
    token_spans = []
    position = 0
    for start, end in spans:
        while position < len(offsets) and (offsets[position][0] < start or offsets[position][1] == 0):
            position += 1
        first = position
        while position < len(offsets) and offsets[position][0] < end:
            position += 1
        token_spans.append((first, position))
    return token_spans


def nonempty_turns(row: Conversation) -> list[bool]:
    """For each assistant turn that is scored, whether it is not empty. Raw text is one response."""
    if row.text is not None:
        return [bool(row.text.strip())]
    return [says_something(turn) for turn in row.responses()]


def drop_empty_responses(row: Conversation, encoded: Encoded) -> Encoded:
    """Remove the spans of empty responses. The row is unchanged if the template does not mark exactly one span per
    turn."""
    nonempty = nonempty_turns(row)
    if len(encoded.responses) != len(nonempty):
        return encoded
    spans = [span for span, keep in zip(encoded.responses, nonempty, strict=True) if keep]
    return replace(encoded, responses=spans)
