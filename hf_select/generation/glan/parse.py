"""JSON as models write it: fenced, introduced, one object a line, with a comma too many. Read with patience, checked
with none: what lacks a part is refused with the reason, so that the model can be told and asked once more.
"""

import json
import re
from collections.abc import Iterator
from typing import Any


class Unparsed(ValueError):
    """Why a text is not what was asked for."""


def find_json(text: str) -> Any:
    """The JSON value in a text: the longest object or list in it, or its objects, one a line or one after the other,
    as a list.

    Raises: Unparsed if there is none.
    """
    text = text.strip()
    for candidate in (text, re.sub(r",(\s*[}\]])", r"\1", text)):  # a comma before a closing bracket
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
        return max(values, key=lambda found: found[1])[0]
    if "{" in text or "[" in text:
        raise Unparsed("the JSON in the answer is broken or not finished")
    raise Unparsed("there is no JSON in the answer")


def _values(text: str) -> Iterator[tuple[Any, int]]:
    """Objects and lists that stand side by side in the text, each with its length in characters."""
    decoder, at = json.JSONDecoder(), 0
    while (match := re.search(r"[{\[]", text[at:])) is not None:
        start = at + match.start()
        try:
            value, end = decoder.raw_decode(text, start)
        except ValueError:
            at = start + 1
            continue
        if value:
            yield value, end - start
        at = end


def subjects(text: str) -> list[dict[str, Any]]:
    """[{subject_name, level, subtopics}] from a model's answer."""
    items = _list(find_json(text), "subjects")
    return [
        {
            "subject_name": _text(item, "subject_name", i),
            "level": _text(item, "level", i, needed=False),
            "subtopics": _texts(item, "subtopics", i, needed=False),
        }
        for i, item in enumerate(items)
    ]


def syllabus(text: str) -> dict[str, Any]:
    """{introduction, sessions: [{name, description, key_concepts}]} from a model's answer."""
    found = find_json(text)
    sessions = [
        {
            "name": _text(item, "name", i),
            "description": _text(item, "description", i, needed=False),
            "key_concepts": _texts(item, "key_concepts", i),
        }
        for i, item in enumerate(_list(found, "sessions"))
    ]
    introduction = found.get("introduction", "") if isinstance(found, dict) else ""
    return {"introduction": str(introduction), "sessions": sessions}


def names(text: str) -> list[str]:
    """A list of names, each once, in its order."""
    found = _list(find_json(text), "names", str)
    if not all(isinstance(name, str) and name.strip() for name in found):
        raise Unparsed("the list must hold names and nothing else")
    return list(dict.fromkeys(" ".join(name.split()) for name in found))


def _list(found: Any, name: str, of: type = dict) -> list[Any]:
    """The list that was asked for: under its name, under another, or bare; or a single item of it."""
    if isinstance(found, dict) and not isinstance(found.get(name), list):
        lists = [v for v in found.values() if isinstance(v, list) and v and all(isinstance(item, of) for item in v)]
        found = lists[0] if len(lists) == 1 else [found]
    elif isinstance(found, dict):
        found = found[name]
    if not isinstance(found, list) or not found:
        raise Unparsed(f'there is no list of {name} under the key "{name}"')
    return found


def _text(item: Any, key: str, i: int, needed: bool = True) -> str:
    value = item.get(key) if isinstance(item, dict) else None
    if isinstance(value, (str, int)) and str(value).strip():
        return " ".join(str(value).split())
    if needed:
        raise Unparsed(f'item {i + 1} has no text under the key "{key}"')
    return ""


def _texts(item: Any, key: str, i: int, needed: bool = True) -> list[str]:
    value = item.get(key) if isinstance(item, dict) else None
    value = re.split(r"[;,]", value) if isinstance(value, str) else value
    found = [" ".join(str(text).split()) for text in value if str(text).strip()] if isinstance(value, list) else []
    if needed and not found:
        raise Unparsed(f'item {i + 1} has no list of texts under the key "{key}"')
    return list(dict.fromkeys(found))
