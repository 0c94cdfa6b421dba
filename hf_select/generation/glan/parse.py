"""Subjects, syllabi and names from the JSON that models write, and from the files that people edit."""

import re
from dataclasses import asdict, dataclass
from typing import Any

from hf_select.generation.json_answers import Unparsed, find_json


@dataclass(frozen=True)
class SubjectFields:
    """What a model says about a subject."""

    subject_name: str
    level: str
    subtopics: list[str]

    def to_dict(self) -> dict[str, Any]:
        """The fields as they are written to a journal."""
        return asdict(self)


@dataclass(frozen=True)
class Session:
    """A class session of a syllabus."""

    name: str
    description: str
    key_concepts: list[str]


@dataclass(frozen=True)
class Syllabus:
    """The syllabus of a subject."""

    introduction: str
    sessions: list[Session]

    def to_dict(self) -> dict[str, Any]:
        """The fields as they are written to a journal."""
        return asdict(self)


def subjects(text: str) -> list[SubjectFields]:
    """The subjects in a model's answer.

    Raises: Unparsed if there are none, or one has no name.
    """
    return [
        SubjectFields(
            _text_of(item, "subject_name", i),
            _text_of(item, "level", i, required=False),
            _texts_of(item, "subtopics", i, required=False),
        )
        for i, item in enumerate(_list_of(find_json(text), "subjects"))
    ]


def syllabus(text: str) -> Syllabus:
    """The syllabus in a model's answer.

    Raises: Unparsed if there are no sessions, or one has no name or no key concepts.
    """
    value = find_json(text)
    sessions = [
        Session(
            _text_of(item, "name", i),
            _text_of(item, "description", i, required=False),
            _texts_of(item, "key_concepts", i),
        )
        for i, item in enumerate(_list_of(value, "sessions"))
    ]
    return Syllabus(str(value.get("introduction", "")) if isinstance(value, dict) else "", sessions)


def names(text: str) -> list[str]:
    """The list of names in a model's answer, without repetitions.

    Raises: Unparsed if there is no such list.
    """
    items = _list_of(find_json(text), "names", str)
    if not all(isinstance(name, str) and name.strip() for name in items):
        raise Unparsed("the list must hold names and nothing else")
    return list(dict.fromkeys(" ".join(name.split()) for name in items))


def _list_of(value: object, name: str, item_type: type = dict) -> list[Any]:
    """The requested list: under its name, under another name, bare, or as its only item."""
    if isinstance(value, dict) and not isinstance(value.get(name), list):
        lists = [
            v for v in value.values() if isinstance(v, list) and v and all(isinstance(item, item_type) for item in v)
        ]
        value = lists[0] if len(lists) == 1 else [value]
    elif isinstance(value, dict):
        value = value[name]
    if not isinstance(value, list) or not value:
        raise Unparsed(f'there is no list of {name} under the key "{name}"')
    return value


def _text_of(item: object, key: str, i: int, required: bool = True) -> str:
    value = item.get(key) if isinstance(item, dict) else None
    if isinstance(value, (str, int)) and str(value).strip():
        return " ".join(str(value).split())
    if required:
        raise Unparsed(f'item {i + 1} has no text under the key "{key}"')
    return ""


def _texts_of(item: object, key: str, i: int, required: bool = True) -> list[str]:
    value = item.get(key) if isinstance(item, dict) else None
    value = re.split(r"[;,]", value) if isinstance(value, str) else value
    texts = [" ".join(str(text).split()) for text in value if str(text).strip()] if isinstance(value, list) else []
    if required and not texts:
        raise Unparsed(f'item {i + 1} has no list of texts under the key "{key}"')
    return list(dict.fromkeys(texts))
