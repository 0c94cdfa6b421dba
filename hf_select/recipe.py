"""Recipe files: YAML with `description` and `steps`, a mapping from step name to the settings of a command."""

from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any

from hf_select.strict_yaml import parse_yaml


def read_recipe_file(path: Path) -> dict[str, Any]:
    """The recipe in a file, with the settings of each step as a mapping.

    Raises: ValueError if the file is not a recipe.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f'recipe "{path}" is not UTF-8 text.') from None
    recipe = parse_yaml(text, f'recipe "{path}"')
    if not isinstance(recipe, dict) or not isinstance(recipe.get("steps"), dict):
        raise ValueError(f'"{path}" is not a recipe: it needs "steps", a mapping from step name to settings.')
    return {**recipe, "steps": {step: dict(settings or {}) for step, settings in recipe["steps"].items()}}


def fill_output_dir(value: Any, output_dir: str) -> Any:
    """The settings with `${output_dir}` replaced, at any depth."""
    if isinstance(value, str):
        return Template(value).safe_substitute(output_dir=output_dir)
    if isinstance(value, list):
        return [fill_output_dir(item, output_dir) for item in value]
    if isinstance(value, dict):
        return {key: fill_output_dir(item, output_dir) for key, item in value.items()}
    return value


def texts_of(value: Any) -> Iterator[str]:
    """Every text in the settings, at any depth; paths of inputs and outputs are among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts_of(item)
