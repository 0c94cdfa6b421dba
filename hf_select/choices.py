"""A setting that is one of a few words says so in its type; this holds every dataclass of settings to its types."""

from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints


def check_choices(settings: Any) -> None:
    """Raise for the first field of type Literal[...] (or Literal[...] | None) whose value is none of the choices."""
    hints = get_type_hints(type(settings))
    for field in fields(settings):
        kinds = [hints[field.name], *get_args(hints[field.name])]
        choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
        value = getattr(settings, field.name)
        if choices and value not in choices and not (value is None and type(None) in kinds):
            raise ValueError(f'{field.name} is "{value}"; it can be {", ".join(map(str, choices))}.')
