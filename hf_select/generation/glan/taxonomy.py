"""The taxonomy: fields of human knowledge, their sub-fields, and the disciplines that have subjects.

Its YAML file maps fields to disciplines, or fields to sub-fields and these to disciplines, or is a list of
disciplines. Deleting a line removes everything below it; adding one changes nothing else.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hf_select.data.file_names import short_digest, slug
from hf_select.strict_yaml import parse_yaml


DEFAULT = Path(__file__).with_name("disciplines.yaml")
_DEPTH = 3  # field, sub-field, discipline


@dataclass(frozen=True)
class Discipline:
    """A discipline with its field and sub-field: ("Natural sciences", "Physics", "Optics")."""

    path: tuple[str, ...]

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path[-1]

    @property
    def within(self) -> str:
        """The field and sub-field, as text."""
        return " > ".join(self.path[:-1])

    @property
    def id(self) -> str:
        """A readable file name that differs for disciplines of the same name in two fields."""
        return f"{slug(self.name, 50) or 'x'}-{short_digest(self.path)}"


def read_taxonomy(path: Path) -> list[Discipline]:
    """The disciplines of a taxonomy file, in its order.

    Raises: ValueError if it is not YAML, empty, cyclic or too deep, or names a discipline twice in one place.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f'no taxonomy file "{path}"; give a YAML file, or one of default and generate.') from None
    except (UnicodeDecodeError, IsADirectoryError):
        raise ValueError(f'taxonomy "{path}" is not a YAML file.') from None
    tree = parse_yaml(text, f'taxonomy "{path}"')
    disciplines = [Discipline(names) for names in _leaves(tree, (), (), path)]
    if not disciplines:
        raise ValueError(f'taxonomy "{path}" is empty: it names no discipline.')
    for discipline, count in Counter(disciplines).items():
        if count > 1:
            raise ValueError(f'taxonomy "{path}" names {" > ".join(discipline.path)} twice; delete one.')
    return disciplines


def _leaves(node: object, names: tuple[str, ...], parents: tuple[int, ...], path: Path) -> Iterator[tuple[str, ...]]:
    if id(node) in parents and isinstance(node, (dict, list)):
        raise ValueError(f'taxonomy "{path}" is cyclic: {" > ".join(names)} contains itself.')
    parents = (*parents, id(node))
    if node is None:  # a field with nothing under it
        return
    if isinstance(node, list):
        for item in node:
            yield from _leaves(item, names, parents, path)
    elif isinstance(node, dict):
        for name, below in node.items():
            name = _name(name, names, path)
            if name in names:
                raise ValueError(f'taxonomy "{path}" is cyclic: {" > ".join((*names, name))} contains itself.')
            yield from _leaves(below, (*names, name), parents, path)
    else:
        full = (*names, _name(node, names, path))
        if len(full) > _DEPTH:
            raise ValueError(
                f'taxonomy "{path}" is too deep at {" > ".join(full)}; it has fields, sub-fields and disciplines.'
            )
        yield full


def _name(value: object, names: tuple[str, ...], path: Path) -> str:
    text = " ".join(str(value).split())
    if not text:
        raise ValueError(f'taxonomy "{path}" has a nameless entry under {" > ".join(names) or "the top"}.')
    return text
