"""Validation of dataclass fields annotated `Literal[...]`."""

from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints


def check_choices(settings: Any) -> None:
    """`check_choice` for every field of a dataclass."""
    hints = get_type_hints(type(settings))
    for field in fields(settings):
        check_choice(field.name, getattr(settings, field.name), hints[field.name])


def check_choice(name: str, value: object, kind: Any) -> None:
    """Raise ValueError if `kind` is Literal[...] (or Literal[...] | None) and the value is not one of its choices."""
    kinds = [kind, *get_args(kind)]
    choices = [choice for each in kinds if get_origin(each) is Literal for choice in get_args(each)]
    if choices and value not in choices and not (value is None and type(None) in kinds):
        raise ValueError(f'{name} is "{value}"; it can be {", ".join(map(str, choices))}.')
