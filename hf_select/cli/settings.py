"""Dataclass fields as command-line flags and YAML keys, with the same names, types and help texts.

The help text of a setting is its line under "Args:" in the docstring of the dataclass.
"""

import argparse
import difflib
import inspect
import math
import os
import re
import sys
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from importlib import import_module
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hf_select.cli.synonyms import SYNONYMS
from hf_select.validation import check_choice, check_choices


_LISTED = 14  # an error lists at most this number of known names


def import_name(home: str) -> Any:
    """The class or function that MODULE:NAME names; modules of the current folder are found too.

    Raises: ValueError if there is no such module, or no such name in it.
    """
    module, _, name = home.partition(":")
    if (folder := os.getcwd()) not in sys.path:  # the console script does not search it
        sys.path.insert(0, folder)
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        ours = isinstance(error, ImportError) and module.startswith("hf_select.")
        if ours and not (error.name or "").startswith("hf_select"):
            raise  # an extra or a release is missing; the name is right
        raise ValueError(f'cannot import "{home}": {error}. Give MODULE:NAME of an importable module.') from error


def import_class(kind: str, name: str, known: Mapping[str, str], base: type) -> Any:
    """The class of a name of the package, or the class that MODULE:CLASS names.

    Args:
        kind: what it is, for errors: scorer, backend, ...
        known: names of the package with their MODULE:CLASS.
        base: contract that the class must inherit.
    Raises: ValueError if the name is unknown, or the class cannot be imported or used.
    """
    if name not in known and ":" not in name:
        raise suggest(kind, name, known, otherwise="Give MODULE:CLASS for a class of your own.")
    cls = import_name(known.get(name, name))
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise ValueError(f'{kind} "{name}" does not inherit {base.__module__}.{base.__name__}.')
    if not is_dataclass(cls):
        raise ValueError(f'{kind} "{name}" is not a dataclass; its fields are its settings. Decorate it.')
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise ValueError(f'{kind} "{name}" does not implement {", ".join(missing)}.')
    return cls


def suggest(kind: str, name: str, known: Iterable[str], of: str = "", otherwise: str = "") -> ValueError:
    """The error for an unknown name, with the nearest known names.

    Args:
        kind: of the name: flag, setting, command, scorer.
        of: what the name was looked up in, such as a command.
        otherwise: the advice if no name is near and there are too many to list.
    """
    known = list(known)
    near = nearest(str(name), known)
    if near:
        hint = f" Did you mean {' or '.join(near)}?"
    elif len(known) <= _LISTED:
        hint = f" Known: {', '.join(known)}."
    else:
        hint = f" None of the {len(known)} known names is similar.{f' {otherwise}' if otherwise else ''}"
    return ValueError(f'unknown {kind} "{name}"{f" of {of}" if of else ""}.{hint}')


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """At most three known names: those that other tools call by this name, similar spellings, or shared words."""
    bare = {_bare(each): each for each in known}
    wanted = _bare(name)
    same = [word for word in SYNONYMS.get(wanted, ()) if word in bare]
    alike = difflib.get_close_matches(wanted, bare, n=2, cutoff=0.7 if same else 0.6)
    sharing = [] if same or alike else [each for each in bare if set(each.split("_")) & set(wanted.split("_"))]
    return [bare[word] for word in list(dict.fromkeys([*same, *alike, *sharing]))[:3]]


def _bare(name: str) -> str:
    return name.lstrip("-").replace("-", "_").lower()


def check_names(names: Iterable[str], classes: Iterable[type], where: str, otherwise: str = "") -> None:
    """Raise ValueError for the first name that is not a setting of any of the dataclasses."""
    known = [f.name for cls in classes for f in settable(cls)]
    for name in names:
        if name not in known:
            raise suggest("setting", name, known, of=where, otherwise=otherwise)


def check_values(values: dict[str, Any], classes: Iterable[type]) -> None:
    """Raise ValueError for the first value that does not have the type of its setting. If several classes have the
    setting, the first of them decides."""
    hints: dict[str, Any] = {}
    for cls in classes:
        of_class = get_type_hints(cls)
        hints = {**{f.name: of_class[f.name] for f in settable(cls)}, **hints}
    for name, value in values.items():
        check_choice(name, _convert(value, hints[name], name), hints[name])


def settable(cls: type) -> list[Field]:
    """The settings of a dataclass: the fields of its constructor that its docstring describes under Args."""
    described = descriptions(cls)
    return [f for f in fields(cls) if f.init and f.name in described]


def descriptions(cls: type) -> dict[str, str]:
    """Setting -> description, from the Args sections in the docstrings of the class and its bases."""
    texts: dict[str, str] = {}
    for parent in reversed(cls.__mro__):
        docs = inspect.cleandoc(parent.__doc__ or "")
        section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", docs, re.MULTILINE | re.DOTALL)
        name = ""
        for line in (section.group(1) if section else "").splitlines():
            if entry := re.match(r"    (\w+): (.*)", line):
                name, texts[entry.group(1)] = entry.group(1), entry.group(2).strip()
            elif name and line.strip():
                texts[name] += " " + line.strip()
    return texts


def add_flags(parser: argparse.ArgumentParser, cls: type, title: str, skip: Iterable[str] = ()) -> None:
    """Add a flag for each setting of the dataclass: --tokens-per-batch for tokens_per_batch."""
    group = parser.add_argument_group(title)
    hints, texts = get_type_hints(cls), descriptions(cls)
    for f in settable(cls):
        if f.name in skip:
            continue
        flag = "--" + f.name.replace("_", "-")
        default = "" if f.default in (None, MISSING) else f" (default: {f.default})"
        help_text = (texts[f.name] + default).replace("%", "%%")
        kind = _without_none(hints[f.name])
        options: dict[str, Any] = {"help": help_text, "default": argparse.SUPPRESS, "metavar": f.name.upper()}
        if kind is bool:
            options |= {"action": _Switch}
            options.pop("metavar")
        elif get_origin(kind) is list:
            options |= {"nargs": "+", "type": get_args(kind)[0], "action": "extend"}
        elif get_origin(kind) is dict:
            options |= {"nargs": "+", "type": _name_and_value, "action": _Pairs, "metavar": "NAME=VALUE"}
        elif get_origin(kind) is Literal:
            options |= {"choices": get_args(kind), "action": _Once}
            options.pop("metavar")
        elif kind is Any:  # a text, or several
            options |= {"nargs": "+", "action": "extend"}
        else:
            options |= {"type": kind, "action": _Once}
        group.add_argument(flag, **options)


def add_positional(parser: argparse.ArgumentParser, cls: type, names: Iterable[str]) -> None:
    """Add an argument without a flag for each named setting; a list takes all remaining words."""
    hints, texts = get_type_hints(cls), descriptions(cls)
    for name in names:
        several = get_origin(_without_none(hints[name])) is list
        options: dict[str, Any] = {"nargs": "*"} if several else {}
        parser.add_argument(
            name, metavar=name.upper(), help=texts[name].replace("%", "%%"), default=argparse.SUPPRESS, **options
        )


def choices_of(cls: type, name: str) -> tuple[str, ...]:
    """The values that a setting of type Literal[...] can have."""
    return get_args(_without_none(get_type_hints(cls)[name]))


def command_words(values: Mapping[str, Any]) -> list[str]:
    """Settings as words of a command line; those that are None are left out."""
    words: list[str] = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
            continue
        several = [f"{key}={each}" for key, each in value.items()] if isinstance(value, dict) else value
        words += [f"--{flag}", *(map(str, several) if isinstance(several, list) else [str(several)])]
    return words


def build(cls: type, values: dict[str, Any], where: str) -> Any:
    """`cls(**values)` with types checked. A list of one value is unpacked where a single value is allowed.

    Raises: ValueError for a wrong type, a wrong choice or a missing setting.
    """
    hints = get_type_hints(cls)
    clean = {name: _convert(value, hints[name], name) for name, value in values.items()}
    missing = [
        f.name for f in settable(cls) if f.default is MISSING and f.default_factory is MISSING and f.name not in clean
    ]
    if missing:
        flags = ", ".join("--" + name.replace("_", "-") for name in missing)
        raise ValueError(f"{where} needs {flags}.")
    built = cls(**clean)
    check_choices(built)
    return built


def _convert(value: Any, hint: Any, name: str) -> Any:
    kind = _without_none(hint)
    if value is None:
        return None
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and not text.strip():
            raise ValueError(f"{name} is an empty text; give a value or leave {name} out.")
    if kind is Any:
        _refuse_repeated(value, name)
        return value[0] if isinstance(value, list) and len(value) == 1 else value
    if get_origin(kind) is Literal:  # checked by check_choices
        return value
    if get_origin(kind) is list:
        _refuse_repeated(value, name)
        return [_convert(item, get_args(kind)[0], name) for item in (value if isinstance(value, list) else [value])]
    if get_origin(kind) is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{name} is {value!r}; it must be a mapping.")
        return value
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            value = float(value)  # YAML reads 1e-5 as a string
        except ValueError:
            pass
    if kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)  # YAML reads 1000 as a number
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name} is {value!r}; it must be {kind.__name__}.")
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"{name} is nan; give a number.")
    if name == "seed" and isinstance(value, int) and value < 0:
        raise ValueError(f"seed is {value}; it must be at least 0.")
    return value


def _refuse_repeated(value: Any, name: str) -> None:
    """Raise for a name or file that a list contains twice. Numbers may be equal."""
    seen = set()
    for item in value if isinstance(value, list) else []:
        if isinstance(item, str) and item in seen:
            raise ValueError(f'{name} lists "{item}" twice; delete one.')
        seen.add(item if isinstance(item, str) else id(item))


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [arg for arg in get_args(hint) if arg is not type(None)]
        return kinds[0] if len(kinds) == 1 else Any
    return hint


def _name_and_value(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not (equals and old and new):
        raise argparse.ArgumentTypeError(f'"{text}" is not of the form name=value')
    return old, new


class _Pairs(argparse.Action):
    """Collects name=value pairs from one or several occurrences of a flag."""

    def __call__(self, parser, namespace, values, option_string=None):  # noqa: ANN001
        pairs = dict(getattr(namespace, self.dest, {}))
        for name, value in values:  # type: ignore[misc]
            if name in pairs:
                raise argparse.ArgumentError(self, f'"{name}" is there twice ({pairs[name]}, {value}); rename one')
            pairs[name] = value
        setattr(namespace, self.dest, pairs)


class _Once(argparse.Action):
    """Stores one value and refuses a second, which would silently replace it."""

    def __call__(self, parser, namespace, values, option_string=None):  # noqa: ANN001
        if hasattr(namespace, self.dest):
            raise argparse.ArgumentError(
                self, f"given twice ({getattr(namespace, self.dest)}, {values}); give it once"
            )
        setattr(namespace, self.dest, values)


class _Switch(argparse.BooleanOptionalAction):
    """--flag and --no-flag, of which one may be given, once."""

    def __call__(self, parser, namespace, values, option_string=None):  # noqa: ANN001
        if hasattr(namespace, self.dest):
            raise argparse.ArgumentError(self, "given twice; give it once")
        super().__call__(parser, namespace, values, option_string)
