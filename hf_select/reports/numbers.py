"""Everything that a report says, as one JSON value. Pictures, Markdown and pages compute nothing that is not in it.

A report sets parts of a pool side by side: the pool, the selected rows and a random draw of their number, or the pool
and two selections.
"""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_select._version import __version__
from hf_select.data import columns
from hf_select.data.bad_rows import BadRow
from hf_select.data.conversation import conversations, readable_columns
from hf_select.data.text import characters_of
from hf_select.reports.ledger import COSTS
from hf_select.selection.baselines import random_order
from hf_select.selection.combine import rank_correlation
from hf_select.selection.selection import Selection


POOL, SELECTED, RANDOM = "pool", "selected", "random draw"

_QUANTILES = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)
_MOST_BINS = 40
_SHOWN_SOURCES = 12
_SHOWN_AGREEMENT = 16
_SOURCE_COLUMNS = ("source", "dataset", "task", "category", "domain", "subset")
_MOST_SOURCES = 1000  # a column with more values names rows, not sources


def describe(
    dataset: Any,
    selection: Selection,
    steps: list[dict[str, Any]] | None = None,
    *,
    source_column: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The numbers of one selection beside its pool and a random draw of its size.

    Args:
        dataset: every row with its scores, in the order that the selection counts.
        steps: what was run and what it cost, see `ledger.read_step`.
        source_column: column that says where a row comes from; by default the first known one.
        seed: of the random draw.
    Raises: ValueError if the selection was not made on this dataset.
    """
    selection.check(dataset)
    draw = random_order(len(dataset), seed)[: len(selection)]
    parts = {POOL: np.arange(len(dataset)), SELECTED: selection.indices, RANDOM: draw}
    return {
        "kind": "selection",
        "hf_select": __version__,
        "rows": {name: len(rows) for name, rows in parts.items()},
        "seed": seed,
        "steps": selection.chain,
        **_measured(dataset, parts, source_column),
        "tasks": _tasks(dataset, parts, selection),
        "agreement": _agreement(dataset, {SELECTED: selection.indices}),
        "unscored": _unscored(dataset),
        "cost": _cost(steps or []),
    }


def compare(
    dataset: Any,
    first: Selection,
    second: Selection,
    names: tuple[str, str] = ("first", "second"),
    *,
    source_column: str | None = None,
) -> dict[str, Any]:
    """The numbers of two selections from the same rows.

    Raises: ValueError if one of them was not made on this dataset.
    """
    if len(set(names)) < 2 or POOL in names:
        raise ValueError(f'the selections are called {names[0]} and {names[1]}; give two names, neither "{POOL}".')
    for selection in (first, second):
        selection.check(dataset)
    both = first.diff(second)
    expected = len(first) * len(second) / len(dataset)
    parts = {POOL: np.arange(len(dataset)), names[0]: first.indices, names[1]: second.indices}
    return {
        "kind": "comparison",
        "hf_select": __version__,
        "names": list(names),
        "rows": {name: len(rows) for name, rows in parts.items()},
        "steps": {names[0]: first.chain, names[1]: second.chain},
        "overlap": {
            "both": len(both["both"]),
            "only": {names[0]: len(both["only_self"]), names[1]: len(both["only_other"])},
            "expected_by_chance": expected,
            "jaccard": len(both["both"]) / sum(len(rows) for rows in both.values()),
        },
        **_measured(dataset, parts, source_column),
        "agreement": _agreement(dataset, {names[0]: first.indices, names[1]: second.indices}),
        "unscored": _unscored(dataset),
    }


def score_columns(dataset: Any) -> list[str]:
    """The columns of scores: numbers, called score_*."""
    features = dataset.with_format("arrow")[:0].schema if len(dataset) else pa.schema([])
    return [
        field.name
        for field in features
        if field.name.startswith(columns.SCORE_PREFIX)
        and (pa.types.is_floating(field.type) or pa.types.is_integer(field.type))
    ]


def finite(dataset: Any, column: str) -> np.ndarray:
    """A number column, NaN where a row has no number or an infinite one."""
    values = columns.numeric_column(dataset, column, "")
    return np.where(np.isfinite(values), values, np.nan)


def characters(dataset: Any) -> dict[str, np.ndarray]:
    """Characters of each row and of its responses, NaN where a row cannot be read. Empty for scores without rows."""
    names = readable_columns(dataset.column_names)
    if not names:
        return {}
    read = dataset.with_format(None).select_columns(names)
    sizes = {"characters": np.full(len(dataset), np.nan), "characters of responses": np.full(len(dataset), np.nan)}
    for start in range(0, len(dataset), 1000):
        for row, parsed in enumerate(conversations(read[start : start + 1000]), start):
            if not isinstance(parsed, BadRow):
                sizes["characters"][row] = characters_of(parsed, "all")
                sizes["characters of responses"][row] = characters_of(parsed, "response")
    return sizes


# --------------------------------------------------------------------------------------------------------------------


def _measured(dataset: Any, parts: dict[str, np.ndarray], source_column: str | None) -> dict[str, Any]:
    lengths = characters(dataset)
    if columns.NUM_TOKENS in dataset.column_names:
        lengths["tokens"] = finite(dataset, columns.NUM_TOKENS)
    return {
        "scores": {name: _distribution(finite(dataset, name), parts) for name in score_columns(dataset)},
        "lengths": {name: _distribution(values, parts, log=True) for name, values in lengths.items()},
        "sources": _sources(dataset, parts, source_column),
    }


def _distribution(values: np.ndarray, parts: dict[str, np.ndarray], log: bool = False) -> dict[str, Any]:
    """Counts by bin and quantiles of each part. The outer bins are open: they hold what lies beyond the edges, so that
    a few far values do not squeeze all others into one bin."""
    known = values[~np.isnan(values)]
    bins = int(np.clip(2 * np.sqrt(min(map(len, parts.values()))), 8, _MOST_BINS))
    low, high = np.quantile(known, (0.005, 0.995)) if len(known) else (0.0, 1.0)
    if log:
        low, high = max(low, 1.0), max(high, 2.0)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    edges = np.geomspace(low, high, bins + 1) if log else np.linspace(low, high, bins + 1)
    found: dict[str, Any] = {"log": log, "edges": edges.tolist(), "parts": {}}
    for name, rows in parts.items():
        there = values[rows][~np.isnan(values[rows])]
        counts = np.histogram(np.clip(there, edges[0], edges[-1]), edges)[0]
        found["parts"][name] = {
            "known": len(there),
            "unknown": len(rows) - len(there),
            "mean": float(there.mean()) if len(there) else None,
            "quantiles": dict(zip(map(str, _QUANTILES), np.quantile(there, _QUANTILES).tolist(), strict=True))
            if len(there)
            else {},
            "counts": counts.tolist(),
        }
    return found


def _sources(dataset: Any, parts: dict[str, np.ndarray], column: str | None) -> dict[str, Any] | None:
    """Rows of each source in each part, the largest first; what is left is "other"."""
    if column is not None and column not in dataset.column_names:
        raise columns.missing_column(column, dataset.column_names, "Name the column of the sources, or none.")
    for name in _SOURCE_COLUMNS if column is None else (column,):
        if name not in dataset.column_names:
            continue
        values = dataset.with_format("arrow")[name].combine_chunks()
        if pa.types.is_nested(values.type) or (column is None and len(values.unique()) > _MOST_SOURCES):
            continue
        codes = pc.fill_null(pc.cast(values, pa.string()), "(none)").dictionary_encode()
        names, code = codes.dictionary.to_pylist(), codes.indices.to_numpy()
        counts = {part: np.bincount(code[rows], minlength=len(names)) for part, rows in parts.items()}
        order = np.argsort(-counts[POOL], kind="stable")
        shown, rest = order[:_SHOWN_SOURCES], order[_SHOWN_SOURCES:]
        lines = [{"source": names[i], **{part: int(counts[part][i]) for part in parts}} for i in shown]
        if len(rest):
            other = {part: int(counts[part][rest].sum()) for part in parts}
            lines.append({"source": f"{len(rest)} others", **other})
        return {"column": name, "distinct": len(names), "rows": lines}
    if column is not None:
        raise ValueError(f'column "{column}" holds lists or structures; sources are told by text or numbers.')
    return None


def _tasks(dataset: Any, parts: dict[str, np.ndarray], selection: Selection) -> dict[str, Any] | None:
    """Similarity to each target task, and how many rows each task chose."""
    step = selection.chain[-1] if selection.chain else {}
    names = score_columns(dataset)
    tasks = [name for name in step.get("similarities") or [] if name in names]
    if not tasks:  # score_rds_math beside score_rds
        tasks = [name for name in names if any(name.startswith(f"{other}_") for other in names if other != name)]
    if not tasks:
        return None
    chosen = step.get("chosen_by") or {}
    return {
        name: {
            "chosen": chosen.get(columns.target_of(name)),
            **{part: value for part, value in _distribution(finite(dataset, name), parts)["parts"].items()},
        }
        for name in tasks
    }


def _agreement(dataset: Any, chosen: dict[str, np.ndarray]) -> dict[str, Any] | None:
    """Spearman's rank correlation of the scores, over rows that both have, and the share of the k highest rows that
    each two of them (and the selections) have in common; k is the size of the first selection."""
    found = {name: finite(dataset, name) for name in score_columns(dataset)}
    varied = [name for name, values in found.items() if len(np.unique(values[~np.isnan(values)])) > 1]
    names = varied[:_SHOWN_AGREEMENT]
    if not names:
        return None
    k = len(next(iter(chosen.values())))
    highest = {name: set(_highest(found[name], k).tolist()) for name in names}
    highest |= {name: set(rows.tolist()) for name, rows in chosen.items()}
    labels = [*names, *chosen]
    return {
        "scores": names,
        "left_out": varied[_SHOWN_AGREEMENT:],
        "spearman": [[rank_correlation(found[a], found[b]) for b in names] for a in names],
        "k": k,
        "labels": labels,
        "overlap": [[_share(highest[a], highest[b]) for b in labels] for a in labels],
        "expected_by_chance": k / len(dataset),
    }


def _highest(values: np.ndarray, k: int) -> np.ndarray:
    known = np.flatnonzero(~np.isnan(values))
    return known[np.argsort(-values[known], kind="stable")[:k]]


def _share(a: set[int], b: set[int]) -> float:
    """Of the smaller set, the share that is in the other one too."""
    return len(a & b) / max(1, min(len(a), len(b)))


def _unscored(dataset: Any) -> dict[str, dict[str, int]]:
    """For each score that some rows lack: how many, by reason."""
    found = {}
    for name in score_columns(dataset):
        missing = np.isnan(columns.numeric_column(dataset, name, ""))
        if missing.any():
            found[name] = dict(Counter(reasons_of(dataset, name, np.flatnonzero(missing))).most_common())
    return found


def reasons_of(dataset: Any, score: str, rows: np.ndarray) -> list[str]:
    """What the scorer said of these rows; the scores of single tasks share the reason of their scorer."""
    name = columns.reason_column(score)
    known = dataset.column_names
    while name not in known and "_" in name.removesuffix("_reason"):
        name = name.removesuffix("_reason").rpartition("_")[0] + "_reason"
    if name not in known:
        return ["no reason on record"] * len(rows)
    said = dataset.with_format(None).select_columns([name]).select(rows)[name]
    return [reason or "no reason on record" for reason in said]


def _cost(steps: list[dict[str, Any]]) -> dict[str, Any]:
    kept = ("step", "rows", "device", *COSTS)
    lines = [{name: step[name] for name in kept if step.get(name) is not None} for step in steps]
    sums = {cost: sum(line.get(cost, 0) for line in lines) for cost in COSTS[:-1]}
    return {"steps": lines, "total": {cost: value for cost, value in sums.items() if value}}
