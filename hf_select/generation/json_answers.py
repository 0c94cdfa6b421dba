"""JSON as models write it: in code fences, after an introduction, one object per line, with trailing commas.

Reading is lenient, validation is not: an incomplete answer raises `Unparsed` with the reason, so that the model can be
shown the reason and asked once more.
"""

import json
import re
from collections.abc import Iterator

from hf_select.data.chat_template import Messages


class Unparsed(ValueError):
    """Why a text does not have the requested form."""


def find_json(text: str) -> object:
    """The JSON value in a text: its longest object or list. Several objects, one per line or in a row, make a list.

    Raises: Unparsed if there is none.
    """
    text = text.strip()
    for candidate in (text, re.sub(r",(\s*[}\]])", r"\1", text)):  # the second without trailing commas
        try:
            return json.loads(candidate)
        except ValueError:
            pass
        values = list(_values(candidate))
        if not values:
            continue
        objects = [value for value, _ in values if isinstance(value, dict)]
        if len(objects) > 1 and len(objects) == len(values):
            return objects
        return max(values, key=lambda pair: pair[1])[0]
    if "{" in text or "[" in text:
        raise Unparsed("the JSON in the answer is broken or not finished")
    raise Unparsed("there is no JSON in the answer")


def _values(text: str) -> Iterator[tuple[object, int]]:
    """The top-level objects and lists in a text, each with its length in characters."""
    decoder, position = json.JSONDecoder(), 0
    while (match := re.search(r"[{\[]", text[position:])) is not None:
        start = position + match.start()
        try:
            value, end = decoder.raw_decode(text, start)
        except ValueError:
            position = start + 1
            continue
        if value:
            yield value, end - start
        position = end


def repair_messages(messages: Messages, text: str, reason: str) -> Messages:
    """The conversation that asks for the same content again, after an answer that could not be parsed."""
    return [
        *messages,
        {"role": "assistant", "content": text},
        {
            "role": "user",
            "content": f"That cannot be read: {reason}. Give the same content again as complete, valid JSON in the "
            "form that was asked for, and nothing before or after it.",
        },
    ]
