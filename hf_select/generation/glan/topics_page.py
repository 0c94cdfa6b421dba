"""The page of topics: one HTML file with the tree of fields, disciplines and subjects, and counts for each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Union


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
details { margin-left: 1.2rem; } summary { cursor: pointer; } ul { margin: .2rem 0 .6rem; color: #555; }
.n { color: #666; font-variant-numeric: tabular-nums; } table { border-collapse: collapse; margin: 1rem 0; }
td { padding: .1rem 1rem .1rem 0; border-bottom: 1px solid #ddd; } td + td { text-align: right; }
@media (prefers-color-scheme: dark) { body { background: #1b1b1b; color: #ddd; } .n, ul { color: #aaa; } }
"""


@dataclass(frozen=True)
class SubjectTopic:
    """A subject on the page: its sessions by name, and its numbers of questions and pairs."""

    name: str
    level: str
    sessions: list[str]
    questions: int
    pairs: int


# Name -> what lies below it: fields, sub-fields, disciplines, and at the end subjects.
Topics = dict[str, Union["Topics", SubjectTopic]]


def topics_page(topics: Topics, counts: Iterable[tuple[str, int]]) -> str:
    """The HTML of the page. `counts` are the rows of the table at its top."""
    table = "".join(f"<tr><td>{escape(name)}</td><td>{count:,}</td></tr>" for name, count in counts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>GLAN topics</title><style>{_STYLE}</style></head><body>\n<h1>Topics</h1>\n<table>{table}</table>\n"
        + "".join(_branch(name, below) for name, below in topics.items())
        + "</body></html>\n"
    )


def _branch(name: str, below: Topics | SubjectTopic) -> str:
    if isinstance(below, SubjectTopic):
        level = f" ({escape(below.level)})" if below.level else ""
        sessions = "".join(f"<li>{escape(session)}</li>" for session in below.sessions)
        counts = _counts(below.questions, below.pairs)
        return f"<details><summary>{escape(below.name)}{level} {counts}</summary><ul>{sessions}</ul></details>\n"
    subjects = list(_subjects(below))
    counts = _counts(
        sum(subject.questions for subject in subjects), sum(subject.pairs for subject in subjects), len(subjects)
    )
    inner = "".join(_branch(key, item) for key, item in below.items())
    return f"<details><summary><b>{escape(name)}</b> {counts}</summary>{inner}</details>\n"


def _subjects(topics: Topics) -> Iterable[SubjectTopic]:
    for below in topics.values():
        if isinstance(below, SubjectTopic):
            yield below
        else:
            yield from _subjects(below)


def _counts(questions: int, pairs: int, subjects: int | None = None) -> str:
    first = "" if subjects is None else f"{subjects:,} subjects, "
    return f'<span class="n">{first}{questions:,} questions, {pairs:,} pairs</span>'
