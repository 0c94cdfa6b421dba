"""What the steps behind a selection cost and were made by, read from the folders that they left."""

import os
import re
from pathlib import Path
from typing import Any

from hf_select.atomic import read_json


_FILES = (".json", ".jsonl", ".csv", ".parquet", ".gz", ".zst", ".xz", ".bz2")  # seen, also when they are gone
COSTS = ("seconds", "tokens", "processed_tokens", "flops", "peak_memory_mib")


def read_step(folder: str | os.PathLike) -> dict[str, Any]:
    """One step of the ledger from the folder of a finished score() or PoolIndex.

    Raises: ValueError if the folder is of neither kind, or not finished.
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
    return {
        "step": f"{kind} {made_by['name']}",
        "scorer": made_by["name"] if kind == "score" else None,
        "settings": made_by["settings"],
        "hash": made_by["hash"],
        "versions": manifest["versions"],
        "pool": manifest["pool"],
        "rows": summary["rows"],
        "device": summary.get("device"),
        **{name: cost[name] + queries.get(name, 0) for name in COSTS if name in cost},
    }


def models_of(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The models that the steps ran, each once: name, revision if one was asked for, and whether it is on the Hub."""
    found: dict[tuple[str, str | None], None] = {}

    def look(settings: Any) -> None:
        if isinstance(settings, dict) and isinstance(settings.get("model"), str):
            found.setdefault((settings["model"], settings.get("revision")))
        for value in settings.values() if isinstance(settings, dict) else settings:
            if isinstance(value, (dict, list)):
                look(value)

    for step in steps:
        look(step.get("settings") or {})
    return [{"name": name, "revision": revision, "on_hub": is_hub_id(name)} for name, revision in found]


def is_hub_id(name: str) -> bool:
    """Whether a model's or dataset's name can be one on the Hub, and is none of a local file."""
    return (
        re.fullmatch(r"[\w.-]+(?:/[\w.-]+)?", name) is not None  # no path of Windows
        and not name.startswith((".", "~", "/"))
        and Path(name).suffix not in _FILES
        and not Path(name).exists()
    )
