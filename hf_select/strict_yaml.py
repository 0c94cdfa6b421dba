"""YAML without repeated keys, of which PyYAML silently keeps the last."""

from typing import Any

import yaml


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text.

    Args:
        where: source of the text, for the message: 'recipe "r.yaml"'.
    Raises: ValueError with the line, if the text is not valid YAML or a mapping has a key twice.
    """
    try:
        return yaml.load(text, Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        at = f" at line {mark.line + 1}" if mark is not None else ""
        raise ValueError(f"{where} is not valid YAML{at}{f': {problem}' if problem else ''}.") from None


class _UniqueKeys(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge" or not isinstance(key, yaml.ScalarNode):
                continue  # what `<<` brings in may be replaced; PyYAML itself refuses keys that are not scalars
            name = self.construct_object(key)
            if name in seen:
                problem = f'the key "{key.value}" is there twice; rename or delete one'
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)
