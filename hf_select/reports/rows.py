"""The rows that a report shows one by one: selected rows, rows on either side of the cut, the lowest ones, and rows
that could not be ranked; each with its conversation, its numbers and its reason."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_select.data import columns
from hf_select.data.bad_rows import BadRow
from hf_select.data.conversation import Conversation
from hf_select.reports.pool_view import PoolView
from hf_select.reports.report_numbers import SourceCounts
from hf_select.selection.ranking import Ranking, rank
from hf_select.selection.selection import Selection


SELECTED, LAST = "selected", "last taken"

Turns = list[tuple[str, str]]  # role, text


@dataclass
class RowTable:
    """The rows that a page shows, by column, in the order in which they are shown first.

    Args:
        rows: their numbers in the dataset.
        ids: their `row_id`, or their numbers as text.
        groups: the group of each row.
        ranks: name of a selection -> rank of each row in it (from 1), None for rows that it did not take.
        why: why each row was taken or not.
        numbers: scores and lengths by name, None for what a row lacks.
        sources: the source of each row, if the dataset names it.
        turns: the conversation of each row.
        counts: number of rows of each group in the dataset; the table may hold fewer.
    """

    rows: list[int]
    ids: list[str]
    groups: list[str]
    ranks: dict[str, list[int | None]]
    why: list[str]
    numbers: dict[str, Sequence[float | None]]
    sources: list[str] | None
    turns: list[Turns]
    counts: dict[str, int]


@dataclass
class ShownRows:
    """The choice of rows for a `RowTable`: row -> group, ranks, reasons, and sizes of the groups."""

    groups: dict[int, str]
    ranks: dict[str, dict[int, int]]
    why: dict[int, str]
    counts: dict[str, int]

    @property
    def rows(self) -> list[int]:
        """The rows, in the order in which they are shown first."""
        return list(self.groups)

    def table(self, view: PoolView, sources: SourceCounts | None) -> RowTable:
        """The rows with their conversations, which `view.parse` has to keep."""
        rows = self.rows
        part = view.dataset.with_format(None).select(rows)
        has_id = columns.ROW_ID in part.column_names
        scores: dict[str, Sequence[float | None]] = {
            name: [None if np.isnan(value) else float(value) for value in view.score(name)[rows]]
            for name in view.score_columns
        }
        turns = [_turns_of(view, row) for row in rows]
        return RowTable(
            rows=rows,
            ids=[str(row_id) for row_id in (part[columns.ROW_ID] if has_id else rows)],
            groups=list(self.groups.values()),
            ranks={name: [ranks.get(row) for row in rows] for name, ranks in self.ranks.items()},
            why=[self.why[row] for row in rows],
            numbers={**scores, "characters": [sum(len(text) for _, text in row) for row in turns]},
            sources=None if sources is None else [str(value) for value in part[sources.column]],
            turns=turns,
            counts=self.counts,
        )


def rows_of_selection(
    view: PoolView, selection: Selection, examples: int = 200, earlier: Selection | None = None
) -> ShownRows:
    """Every selected row, and up to `examples` of each kind that was not taken. `earlier` is what the steps before the
    last one left: the other rows were not candidates of the last step."""
    chosen = selection.indices.tolist()
    is_taken = np.zeros(len(view), dtype=bool)
    is_taken[chosen] = True
    is_candidate = ~is_taken
    if earlier is not None:
        is_candidate[np.setdiff1d(np.arange(len(view)), earlier.indices)] = False
    edge = min(examples, len(chosen) // 10)
    shown = ShownRows(
        groups={row: SELECTED if rank < len(chosen) - edge else LAST for rank, row in enumerate(chosen)},
        ranks={"rank": {row: rank for rank, row in enumerate(chosen, 1)}},
        why=dict(zip(chosen, selection.reasons, strict=True)),
        counts={SELECTED: len(chosen) - edge, LAST: edge},
    )
    ranking = selection.ranking
    if ranking is None:
        why = "not taken; one of a random sample of such rows"
        _add_sample(shown, "not taken", np.flatnonzero(is_candidate), why, examples)
    else:
        _add_ranked(shown, view, ranking, is_candidate, examples)
    if len(excluded := np.flatnonzero(~is_taken & ~is_candidate)):
        steps = ", ".join(step["selector"] for step in selection.chain[:-1])
        _add_sample(shown, "left out before", excluded, f"left out by an earlier step ({steps})", examples)
    return shown


def rows_of_comparison(selections: dict[str, Selection], examples: int = 2000) -> ShownRows:
    """Rows that only one selection took, and rows that both took: up to `examples` of each, the highest ranks
    first."""
    (first, mine), (second, theirs) = selections.items()
    ranks = {name: {row: rank for rank, row in enumerate(one.indices.tolist(), 1)} for name, one in selections.items()}
    kinds = {
        f"only {first}": [row for row in mine.indices.tolist() if row not in ranks[second]],
        f"only {second}": [row for row in theirs.indices.tolist() if row not in ranks[first]],
        "both": [row for row in mine.indices.tolist() if row in ranks[second]],
    }
    groups = {row: kind for kind, rows in kinds.items() for row in rows[:examples]}

    def reasons(row: int) -> str:
        takers = ((name, one) for name, one in selections.items() if row in ranks[name])
        return "; ".join(f"{name}: {one.reasons[ranks[name][row] - 1]}" for name, one in takers)

    return ShownRows(
        groups=groups,
        ranks={f"rank in {name}": of_rows for name, of_rows in ranks.items()},
        why={row: reasons(row) for row in groups},
        counts={kind: len(rows) for kind, rows in kinds.items()},
    )


# --------------------------------------------------------------------------------------------------------------------


def _add_sample(shown: ShownRows, group: str, rows: np.ndarray, why: str, examples: int) -> None:
    """Add a random sample of the rows as one group."""
    sample = np.random.default_rng(0).permutation(rows)[:examples].tolist()
    shown.groups |= dict.fromkeys(sample, group)
    shown.why |= dict.fromkeys(sample, why)
    shown.counts[group] = len(rows)


def _add_ranked(shown: ShownRows, view: PoolView, ranking: Ranking, is_candidate: np.ndarray, examples: int) -> None:
    """Add the best and the worst candidates that were not taken, and those that could not be ranked."""
    keys = np.where(is_candidate, ranking.keys(), np.nan)
    left, unranked = rank(keys), np.flatnonzero(is_candidate & np.isnan(keys))
    by = ranking.name + (", lowest first" if ranking.lowest_first else "")
    half = (len(left) + 1) // 2
    groups = {"best left out": left[:half][:examples], "worst": left[half:][::-1][:examples]}
    place = {row: place for place, row in enumerate(left.tolist(), 1)}
    for group, rows in groups.items():
        for row in rows.tolist():
            shown.groups[row] = group
            shown.why[row] = f"not taken: place {place[row]:,} of the {len(left):,} rows left, by {by}"
    first = unranked[:examples]
    shown.groups |= dict.fromkeys(first.tolist(), "not ranked")
    shown.why |= dict(zip(first.tolist(), _why_not_ranked(view, ranking, first), strict=True))
    shown.counts |= {"best left out": half, "worst": len(left) - half, "not ranked": len(unranked)}


def _why_not_ranked(view: PoolView, ranking: Ranking, rows: np.ndarray) -> list[str]:
    """Why these rows could not be ranked: the first score that they lack, with its reason, or the bounds."""
    why = [""] * len(rows)
    for column in (name for name in ranking.columns if name in view.dataset.column_names):
        missing = np.isnan(view.score(column)[rows])
        for i, reason in enumerate(view.reasons(column, rows)):
            why[i] = why[i] or (f"no {column}: {reason}" if missing[i] else "")
    for i, value in enumerate(ranking.values[rows]):
        outside = f"{ranking.name} {value:.6g} is out of the bounds that were set"
        why[i] = why[i] or (outside if np.isfinite(value) else f"no {ranking.name}")
    return why


def _turns_of(view: PoolView, row: int) -> Turns:
    """A row as it is shown: its turns, or why it cannot be read and what is stored."""
    if not view.text_columns:  # scores without their rows
        return []
    parsed = view.conversation(row)
    if isinstance(parsed, BadRow):
        stored = view.dataset.with_format(None).select_columns(view.text_columns)[row]
        raw = json.dumps(stored, ensure_ascii=False, default=str)
        return [("cannot be read", str(parsed)), ("as it is stored", raw)]
    return _turns_of_conversation(parsed)


def _turns_of_conversation(row: Conversation) -> Turns:
    if row.text is not None:
        return [("text", row.text)]
    turns = [("tools", json.dumps(row.tools, ensure_ascii=False, indent=1))] if row.tools else []
    for message in row.messages:
        calls = message.get("tool_calls") or []
        if message["content"] or not calls:
            turns.append((message["role"], message["content"]))
        turns += [("tool call", json.dumps(call, ensure_ascii=False, indent=1)) for call in calls]
    return turns
