"""The contract of a command: a dataclass whose described fields are its flags and its YAML keys."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from hf_select.extras import install_command


Values = Mapping[str, Any]  # setting -> its value on the command line or in YAML


class Command(ABC):
    """Base of the commands of hf-select. A subclass is a dataclass; its docstring describes each setting under Args.

    Attributes:
        example: a command line for --help.
        positional: settings that are given by their place, without a flag.
        first_word: setting that the first word may give without its flag: `train sft` is `train --method sft`.
        decided_by: settings on which the other settings depend, such as the scorer, with the values they can have.
        other_commands: flags that run another command in place of this one.
        modules: optional modules that the command needs, see `hf_select.extras`.
    """

    example: ClassVar[str]
    positional: ClassVar[tuple[str, ...]] = ()
    first_word: ClassVar[str | None] = None
    decided_by: ClassVar[Mapping[str, Collection[str]]] = {}
    other_commands: ClassVar[Mapping[str, str]] = {}
    modules: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def parts(cls, values: Values) -> list[type]:
        """Dataclasses whose settings the command takes besides its own, such as those of the scorer in `values`."""
        return []

    @property
    def prints_only(self) -> bool:
        """Whether the command leaves no result; a recipe then runs it every time."""
        return False

    @abstractmethod
    def run(self) -> str | None:
        """Do the work and print the outcome. Returns: the command to run next, or None."""

    @classmethod
    def about(cls, values: Values) -> str:
        """The text of --help before the settings."""
        return (cls.__doc__ or "").split("\n\n")[0]

    @classmethod
    def epilog(cls, name: str, values: Values) -> str:
        """The text of --help after the settings."""
        text = f"example:\n  {cls.example}"
        for setting in ("scorer", "selector"):
            if setting in cls.decided_by:
                text += f"\n\nThe settings of a {setting}: hf-select {name} --{setting} NAME --help"
        return f"{text}\n\nneeds {install_command(cls.modules)}" if cls.modules else text
