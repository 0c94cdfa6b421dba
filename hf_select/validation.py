"""A setting that is one of a few words says so in its type; this holds every dataclass of settings to its types."""

from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints


def check_choices(settings: Any) -> None:
    """Raise for the first field of type Literal[...] (or Literal[...] | None) whose value is none of the choices."""
    hints = get_type_hints(type(settings))
    for field in fields(settings):
        check_choice(field.name, getattr(settings, field.name), hints[field.name])


def check_choice(name: str, value: Any, kind: Any) -> None:
    """Raise if the type is Literal[...] (or Literal[...] | None) and the value none of its choices."""
    kinds = [kind, *get_args(kind)]
    choices = [choice for some in kinds if get_origin(some) is Literal for choice in get_args(some)]
    if choices and value not in choices and not (value is None and type(None) in kinds):
        raise ValueError(f'{name} is "{value}"; it can be {", ".join(map(str, choices))}.')
