"""What provenance.json records: sources, models, and the run behind generated rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from hf_select._version import __version__
from hf_select.reports.ledger import Step


License = str | Sequence[str]


@dataclass(frozen=True)
class ModelRecord:
    """A model that scored or wrote rows.

    Args:
        name: Hub id or path.
        revision: the revision that was used, if it is known.
        on_hub: whether the model is on the Hub.
        license: licence on its card.
        wrote: what it wrote, for generated rows.
    """

    name: str
    revision: str | None = None
    on_hub: bool = False
    license: License | None = None
    wrote: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON, without what is not known."""
        return _known(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "ModelRecord":
        """The record that `to_dict` returned."""
        return _of_class(cls, value)


@dataclass(frozen=True)
class Origin:
    """How the rows of a source were generated or mixed: the kind of run, its models and its settings."""

    kind: str
    models: list[ModelRecord]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON."""
        return {"kind": self.kind, "models": [model.to_dict() for model in self.models], "settings": self.settings}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "Origin":
        """The record that `to_dict` returned."""
        return cls(value["kind"], [ModelRecord.from_dict(model) for model in value["models"]], value["settings"])


@dataclass(frozen=True)
class SourceRecord:
    """A dataset that rows came from.

    Args:
        name: Hub id, or the name of a local file.
        on_hub: whether the dataset is on the Hub.
        split: its split.
        config: its configuration, if there are several.
        revision: the revision that was read, if it is known.
        license: licence on its card.
        language: languages on its card.
        of: name of the source within a mixture.
        rows: number of rows.
        columns: columns that rows are parsed from.
        fingerprint: hash of these columns.
        origin: how the rows were generated or mixed.
    """

    name: str
    on_hub: bool = False
    split: str = "train"
    config: str | None = None
    revision: str | None = None
    license: License | None = None
    language: list[str] | None = None
    of: str | None = None
    rows: int | None = None
    columns: list[str] | None = None
    fingerprint: str | None = None
    origin: Origin | None = None

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON, without what is not known."""
        origin = {} if self.origin is None else {"origin": self.origin.to_dict()}
        return {**_known(replace(self, origin=None)), **origin}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "SourceRecord":
        """The record that `to_dict` returned."""
        origin = value.get("origin")
        return _of_class(cls, {**value, "origin": None if origin is None else Origin.from_dict(origin)})


@dataclass(frozen=True)
class Provenance:
    """Where a published selection came from: its source, the models and steps behind it, the version that wrote it."""

    source: SourceRecord
    models: list[ModelRecord]
    steps: Sequence[Step]
    hf_select: str = field(default=__version__)

    def to_dict(self) -> dict[str, Any]:
        """The provenance as JSON."""
        return {
            "hf_select": self.hf_select,
            "source": self.source.to_dict(),
            "models": [model.to_dict() for model in self.models],
            "steps": [step.to_dict() for step in self.steps],
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "Provenance":
        """The provenance that `to_dict` returned."""
        return cls(
            source=SourceRecord.from_dict(value["source"]),
            models=[ModelRecord.from_dict(model) for model in value["models"]],
            steps=[Step.from_dict(step) for step in value["steps"]],
            hf_select=value["hf_select"],
        )


@dataclass(frozen=True)
class Changes:
    """How a version differs from the one before.

    Args:
        commit: commit of the version before.
        kept: rows in both.
        added: rows only in the new version.
        removed: rows only in the version before.
        settings: sentences that name the settings that differ.
    """

    commit: str
    kept: int
    added: int
    removed: int
    settings: list[str]


def _known(record: Any) -> dict[str, Any]:
    values = {each.name: getattr(record, each.name) for each in fields(record)}
    return {name: value for name, value in values.items() if value is not None}


def _of_class(cls: Any, value: dict[str, Any]) -> Any:
    """A record of this class; keys that a later version added are ignored."""
    return cls(**{each.name: value[each.name] for each in fields(cls) if each.name in value})
