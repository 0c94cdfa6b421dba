"""Compute every number of a report. Pictures, Markdown and pages only show them.

A report compares parts of a pool: the pool, the selected rows and a random draw of their number; or the pool and two
selections.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_select._version import __version__
from hf_select.data import columns
from hf_select.reports.ledger import COSTS, Step
from hf_select.reports.pool_view import PoolView
from hf_select.reports.report_numbers import (
    ComparisonNumbers,
    Cost,
    Distribution,
    Measured,
    Overlap,
    PartSummary,
    ScoreAgreement,
    SelectionNumbers,
    SourceCount,
    SourceCounts,
    TargetTask,
)
from hf_select.selection.baselines import random_order
from hf_select.selection.ranking import highest, rank_correlation
from hf_select.selection.selection import Selection


POOL, SELECTED, RANDOM = "pool", "selected", "random draw"

_QUANTILES = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)
_MAX_BINS = 40
_SHOWN_SOURCES = 12
_SHOWN_SCORES = 16  # in the tables of agreement
_SOURCE_COLUMNS = ("source", "dataset", "task", "category", "domain", "subset")
_MAX_SOURCES = 1000  # a column with more values names rows, not sources

Parts = dict[str, np.ndarray]  # name of a part -> numbers of its rows


def describe_selection(
    view: PoolView,
    selection: Selection,
    steps: Sequence[Step] = (),
    *,
    source_column: str | None = None,
    seed: int = 0,
) -> SelectionNumbers:
    """The numbers of one selection, next to those of its pool and of a random draw of its size.

    Args:
        view: the pool that was selected from; `Selection.check` tells whether it is.
        steps: what was run and what it cost, see `ledger.read_step`.
        source_column: column that names the source of a row; by default the first known one.
        seed: seed of the random draw.
    """
    draw = random_order(len(view), seed)[: len(selection)]
    parts = {POOL: np.arange(len(view)), SELECTED: selection.indices, RANDOM: draw}
    return SelectionNumbers(
        measured=_measure(view, parts, {SELECTED: selection.indices}, source_column),
        seed=seed,
        steps=selection.chain,
        tasks=_target_tasks(view, parts, selection),
        cost=_total_cost(steps),
    )


def describe_comparison(
    view: PoolView,
    first: Selection,
    second: Selection,
    names: tuple[str, str] = ("first", "second"),
    *,
    source_column: str | None = None,
) -> ComparisonNumbers:
    """The numbers of two selections from the same pool.

    Raises: ValueError if the names do not tell the selections apart.
    """
    if len(set(names)) < 2 or POOL in names:
        raise ValueError(f'the selections are called {names[0]} and {names[1]}; give two names, neither "{POOL}".')
    common = first.diff(second)
    chosen = {names[0]: first.indices, names[1]: second.indices}
    return ComparisonNumbers(
        measured=_measure(view, {POOL: np.arange(len(view)), **chosen}, chosen, source_column),
        names=names,
        steps={names[0]: first.chain, names[1]: second.chain},
        overlap=Overlap(
            both=len(common["both"]),
            only={names[0]: len(common["only_self"]), names[1]: len(common["only_other"])},
            expected_by_chance=len(first) * len(second) / len(view),
            jaccard=len(common["both"]) / sum(len(rows) for rows in common.values()),
        ),
    )


# --------------------------------------------------------------------------------------------------------------------


def _measure(view: PoolView, parts: Parts, chosen: Parts, source_column: str | None) -> Measured:
    lengths = dict(view.lengths)
    if columns.NUM_TOKENS in view.dataset.column_names:
        lengths["tokens"] = view.score(columns.NUM_TOKENS)
    return Measured(
        rows={name: len(rows) for name, rows in parts.items()},
        scores={name: _distribution_of(view.score(name), parts) for name in view.score_columns},
        lengths={name: _distribution_of(values, parts, log=True) for name, values in lengths.items()},
        sources=_count_sources(view, parts, source_column),
        agreement=_agreement_of(view, chosen),
        unscored=_count_unscored(view),
        hf_select=__version__,
    )


def _distribution_of(values: np.ndarray, parts: Parts, log: bool = False) -> Distribution:
    """Counts by bin and quantiles of each part. The outer bins are open, so that a few extreme values do not squeeze
    all others into one bin."""
    known = values[~np.isnan(values)]
    bins = int(np.clip(2 * np.sqrt(min(map(len, parts.values()))), 8, _MAX_BINS))
    low, high = np.quantile(known, (0.005, 0.995)) if len(known) else (0.0, 1.0)
    if log:
        low, high = max(low, 1.0), max(high, 2.0)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    edges = np.geomspace(low, high, bins + 1) if log else np.linspace(low, high, bins + 1)
    return Distribution(
        log, edges.tolist(), {name: _summarize_part(values[rows], edges) for name, rows in parts.items()}
    )


def _summarize_part(values: np.ndarray, edges: np.ndarray) -> PartSummary:
    known = values[~np.isnan(values)]
    quantiles = np.quantile(known, _QUANTILES).tolist() if len(known) else []
    return PartSummary(
        known=len(known),
        unknown=len(values) - len(known),
        mean=float(known.mean()) if len(known) else None,
        quantiles=dict(zip(map(str, _QUANTILES), quantiles, strict=False)),
        counts=np.histogram(np.clip(known, edges[0], edges[-1]), edges)[0].tolist(),
    )


def _count_sources(view: PoolView, parts: Parts, column: str | None) -> SourceCounts | None:
    """Rows of each source in each part, the largest sources first; the remaining ones are counted together."""
    dataset = view.dataset
    if column is not None and column not in dataset.column_names:
        raise columns.missing_column(column, dataset.column_names, "Name the column of the sources, or none.")
    for name in _SOURCE_COLUMNS if column is None else (column,):
        if name not in dataset.column_names:
            continue
        values = cast(pa.ChunkedArray, dataset.with_format("arrow")[name]).combine_chunks()
        if pa.types.is_nested(values.type) or (column is None and len(values.unique()) > _MAX_SOURCES):
            continue
        codes = pc.fill_null(pc.cast(values, pa.string()), "(none)").dictionary_encode()
        names, code = codes.dictionary.to_pylist(), codes.indices.to_numpy()
        counts = {part: np.bincount(code[rows], minlength=len(names)) for part, rows in parts.items()}
        order = np.argsort(-counts[POOL], kind="stable")
        shown, rest = order[:_SHOWN_SOURCES], order[_SHOWN_SOURCES:]
        lines = [SourceCount(names[i], {part: int(counts[part][i]) for part in parts}) for i in shown]
        if len(rest):
            others = {part: int(counts[part][rest].sum()) for part in parts}
            lines.append(SourceCount(f"{len(rest)} others", others))
        return SourceCounts(name, len(names), lines)
    if column is not None:
        raise ValueError(
            f'column "{column}" holds lists or structures; name a column of text or numbers for the sources.'
        )
    return None


def _target_tasks(view: PoolView, parts: Parts, selection: Selection) -> dict[str, TargetTask] | None:
    """Similarity to each target task, and the number of rows that were chosen for it."""
    chosen_by = selection.chain[-1].get("chosen_by", {}) if selection.chain else {}
    names = view.score_columns
    tasks = [name for name in chosen_by if name in names]
    if not tasks:  # score_rds_math next to score_rds
        tasks = [name for name in names if any(name.startswith(f"{other}_") for other in names if other != name)]
    if not tasks:
        return None
    return {name: TargetTask(chosen_by.get(name), _distribution_of(view.score(name), parts).parts) for name in tasks}


def _agreement_of(view: PoolView, chosen: Parts) -> ScoreAgreement | None:
    """Rank correlations of the scores, and how many of their k highest rows they have in common with each other and
    with the selections; k is the size of the first selection."""
    scores = {name: view.score(name) for name in view.score_columns}
    varied = [name for name, values in scores.items() if len(np.unique(values[~np.isnan(values)])) > 1]
    names = varied[:_SHOWN_SCORES]
    if not names:
        return None
    k = len(next(iter(chosen.values())))
    best = {name: set(highest(scores[name], k).tolist()) for name in names}
    best |= {name: set(rows.tolist()) for name, rows in chosen.items()}
    labels = [*names, *chosen]
    return ScoreAgreement(
        scores=names,
        left_out=varied[_SHOWN_SCORES:],
        spearman=[[rank_correlation(scores[a], scores[b]) for b in names] for a in names],
        k=k,
        labels=labels,
        overlap=[[_overlap_share(best[a], best[b]) for b in labels] for a in labels],
        expected_by_chance=k / len(view),
    )


def _overlap_share(a: set[int], b: set[int]) -> float:
    """The share of the smaller set that is also in the other one."""
    return len(a & b) / max(1, min(len(a), len(b)))


def _count_unscored(view: PoolView) -> dict[str, dict[str, int]]:
    """For each score that some rows lack: the number of rows by reason."""
    missing = {name: view.unscored(name) for name in view.score_columns}
    return {name: dict(Counter(view.reasons(name, rows)).most_common()) for name, rows in missing.items() if len(rows)}


def _total_cost(steps: Sequence[Step]) -> Cost:
    lines = [replace(step, settings={}, hash=None, versions={}, pool=None, paper=None) for step in steps]
    sums = {name: sum(step.cost.get(name, 0) for step in steps) for name in COSTS if name != "peak_memory_mib"}
    return Cost(lines, {name: value for name, value in sums.items() if value})
