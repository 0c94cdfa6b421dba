"""Cost and settings of the steps behind a selection, read from the folders of `score()` and `PoolIndex`."""

import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hf_select.atomic import read_json
from hf_select.paper import Paper


# A name that ends like this is a file's, also when the file no longer exists.
_FILE_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".gz", ".zst", ".xz", ".bz2")
COSTS = ("seconds", "tokens", "processed_tokens", "flops", "peak_memory_mib")


@dataclass(frozen=True)
class Step:
    """One step behind a selection: what ran, with which settings, and what it cost.

    Args:
        step: name of the step, such as "score ifd".
        scorer: name of the scorer, for a step that scored.
        settings: settings of the scorer or featurizer.
        hash: hash of these settings.
        versions: package -> version.
        pool: the rows that were read: `source`, `rows`, `fingerprint`.
        rows: number of rows that it ran on.
        device: where the model ran.
        paper: the scorer's paper.
        higher_is_better: whether the scorer gives better rows higher scores.
        cost: measured costs by name, some of `COSTS`: seconds (summed over processes), tokens, FLOPs, MiB.
    """

    step: str
    scorer: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    hash: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    pool: dict[str, Any] | None = None
    rows: int | None = None
    device: str | None = None
    paper: Paper | None = None
    higher_is_better: bool | None = None
    cost: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The step as JSON, without what is not known."""
        known = {name: value for name, value in vars(self).items() if name != "cost" and value not in (None, {})}
        return {**known, **({"paper": asdict(self.paper)} if self.paper else {}), **self.cost}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "Step":
        """The step that `to_dict` returned."""
        cost = {name: value[name] for name in COSTS if name in value}
        known = {each.name: value[each.name] for each in fields(cls) if each.name in value}
        return cls(**{**known, "paper": _paper(value.get("paper")), "cost": cost})


def read_step(folder: str | os.PathLike) -> Step:
    """The step that a finished `score()` or `PoolIndex` left in its folder.

    Raises: ValueError if the folder is of neither kind, or is not finished.
    """
    folder = Path(folder).expanduser()
    manifest = read_json(folder / "manifest.json")
    if manifest is None or "made_by" not in manifest:
        raise ValueError(f'"{folder}" is not the folder of hf-select score or index: it has no manifest.json.')
    kind, name = ("index", "index.json") if (folder / "vectors").is_dir() else ("score", "summary.json")
    summary = read_json(folder / name)
    if summary is None:
        raise ValueError(f'"{folder}" is not finished; run the same hf-select {kind} command again.')
    made_by = manifest["made_by"]
    cost, queries = summary["cost"], summary.get("preparation_cost", {}).get("queries", {})
    return Step(
        step=f"{kind} {made_by['name']}",
        scorer=made_by["name"] if kind == "score" else None,
        settings=made_by["settings"],
        hash=made_by["hash"],
        versions=manifest["versions"],
        pool=manifest["pool"],
        rows=summary.get("candidates", summary)["rows"],
        device=summary.get("device"),
        paper=_paper(summary.get("paper")),
        higher_is_better=summary.get("higher_is_better"),
        cost={name: cost[name] + queries.get(name, 0) for name in COSTS if name in cost},
    )


def _paper(value: dict[str, Any] | None) -> Paper | None:
    return None if value is None else Paper(**value)


def models_of(steps: Iterable[Step]) -> list[dict[str, Any]]:
    """The models that the steps ran, each once: name, revision if one was given, and whether it can be on the Hub."""
    models: dict[tuple[str, str | None], None] = {}

    def collect(settings: Any) -> None:
        if isinstance(settings, dict) and isinstance(settings.get("model"), str):
            models.setdefault((settings["model"], settings.get("revision")))
        for value in settings.values() if isinstance(settings, dict) else settings:
            if isinstance(value, (dict, list)):
                collect(value)

    for step in steps:
        collect(step.settings)
    return [{"name": name, "revision": revision, "on_hub": is_hub_id(name)} for name, revision in models]


def is_hub_id(name: str) -> bool:
    """Whether a model's or dataset's name can be one on the Hub, and is not a local file's."""
    return (
        re.fullmatch(r"[\w.-]+(?:/[\w.-]+)?", name) is not None  # excludes Windows paths
        and not name.startswith((".", "~", "/"))
        and Path(name).suffix not in _FILE_SUFFIXES
        and not Path(name).exists()
    )
