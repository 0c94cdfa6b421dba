"""The taxonomy: fields of human knowledge, their sub-fields, and the disciplines that subjects are asked for.

A file of it is YAML: a mapping from field to disciplines, or to sub-fields and these to disciplines; or a bare list of
disciplines. Delete a line and all below it is gone; add one and only it is new.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_select.data.file_names import short_digest, slug
from hf_select.strict_yaml import parse_yaml


DEFAULT = Path(__file__).with_name("disciplines.yaml")
_DEPTH = 3  # field, sub-field, discipline


@dataclass(frozen=True)
class Discipline:
    """A discipline and the fields that it lies in: ("Natural sciences", "Physics", "Optics")."""

    path: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.path[-1]

    @property
    def within(self) -> str:
        return " > ".join(self.path[:-1])

    @property
    def id(self) -> str:
        """A name for files: readable, and not shared by a discipline of the same name in another field."""
        return f"{slug(self.name, 50) or 'x'}-{short_digest(self.path)}"


def read_taxonomy(path: Path) -> list[Discipline]:
    """The disciplines of a taxonomy file, in its order.

    Raises: ValueError if it is no YAML, empty, cyclic or too deep, or names a discipline twice in one place.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f'no taxonomy file "{path}"; give a YAML file, or one of default and generate.') from None
    except (UnicodeDecodeError, IsADirectoryError):
        raise ValueError(f'taxonomy "{path}" is not a YAML file.') from None
    tree = parse_yaml(text, f'taxonomy "{path}"')
    found = [Discipline(names) for names in _leaves(tree, (), (), path)]
    if not found:
        raise ValueError(f'taxonomy "{path}" is empty: it names no discipline.')
    known = set()
    for discipline in found:
        if discipline in known:
            raise ValueError(f'taxonomy "{path}" names {" > ".join(discipline.path)} twice; delete one.')
        known.add(discipline)
    return found


def _leaves(node: Any, names: tuple[str, ...], above: tuple[int, ...], path: Path) -> Iterator[tuple[str, ...]]:
    if id(node) in above and isinstance(node, (dict, list)):
        raise ValueError(f'taxonomy "{path}" is cyclic: {" > ".join(names)} contains itself.')
    above = (*above, id(node))
    if node is None:  # a field with nothing under it
        return
    if isinstance(node, list):
        for item in node:
            yield from _leaves(item, names, above, path)
    elif isinstance(node, dict):
        for name, below in node.items():
            name = _name(name, names, path)
            if name in names:
                raise ValueError(f'taxonomy "{path}" is cyclic: {" > ".join((*names, name))} contains itself.')
            yield from _leaves(below, (*names, name), above, path)
    else:
        full = (*names, _name(node, names, path))
        if len(full) > _DEPTH:
            raise ValueError(
                f'taxonomy "{path}" is too deep at {" > ".join(full)}; it has fields, sub-fields and disciplines.'
            )
        yield full


def _name(value: Any, names: tuple[str, ...], path: Path) -> str:
    text = " ".join(str(value).split())
    if not text:
        raise ValueError(f'taxonomy "{path}" has a nameless entry under {" > ".join(names) or "the top"}.')
    return text
