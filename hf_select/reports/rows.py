"""The rows that a report lets you look at: the selected ones, those on either side of the cut, the worst, and those
without a score; each with its conversation, its numbers and why it is where it is."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_select.data import columns
from hf_select.data.bad_rows import BadRow
from hf_select.data.conversation import Conversation, conversations, readable_columns
from hf_select.reports.numbers import finite, reasons_of, score_columns
from hf_select.selection.combine import combined_ranks, percentile_ranks
from hf_select.selection.selection import Selection


SELECTED, LAST = "selected", "last taken"


@dataclass
class Table:
    """Rows to look at, by column, in the order in which they are shown first.

    Args:
        rows: their numbers in the dataset.
        ids: `row_id`, or the number.
        groups: which group each belongs to.
        ranks: by selection, its rank of each row (from 1), None for a row that it did not take.
        why: why the row is there.
        numbers: scores and lengths by name, None for what a row lacks.
        sources: where a row comes from, if the dataset says so.
        turns: the conversation of each row: a role and a text for each turn.
        counts: rows of each group in the dataset, of which the table may hold fewer.
    """

    rows: list[int]
    ids: list[str]
    groups: list[str]
    ranks: dict[str, list[int | None]]
    why: list[str]
    numbers: dict[str, Sequence[float | None]]
    sources: list[str] | None
    turns: list[list[tuple[str, str]]]
    counts: dict[str, int]


def of_selection(
    dataset: Any,
    selection: Selection,
    described: dict[str, Any],
    examples: int = 200,
    earlier: Selection | None = None,
) -> Table:
    """Every selected row, and up to `examples` of each kind that was not taken. `earlier` is what the steps before the
    last one left: other rows were no candidates of it."""
    chosen = selection.indices.tolist()
    taken = np.zeros(len(dataset), dtype=bool)
    taken[chosen] = True
    edge = min(examples, len(chosen) // 10)
    group = {row: SELECTED for row in chosen[: len(chosen) - edge]} | {
        row: LAST for row in chosen[len(chosen) - edge :]
    }
    why = dict(zip(chosen, selection.reasons, strict=True))
    counts = {SELECTED: len(chosen) - edge, LAST: edge}

    out = ~taken
    if earlier is not None:
        out[np.setdiff1d(np.arange(len(dataset)), earlier.indices)] = False
    deciding = deciding_score(dataset, selection)
    if deciding is None:
        left = np.random.default_rng(0).permutation(np.flatnonzero(out))
        kinds = {"not taken": left[:examples]}
        why |= dict.fromkeys(kinds["not taken"].tolist(), "not taken; one of a random sample of such rows")
        counts["not taken"] = len(left)
    else:
        unranked = np.flatnonzero(out & np.isnan(deciding.values))
        left = np.flatnonzero(out & ~np.isnan(deciding.values))
        left = left[np.argsort(-deciding.values[left], kind="stable")]
        half = (len(left) + 1) // 2
        kinds = {"best left out": left[:half][:examples], "worst": left[half:][::-1][:examples]}
        place = {row: place for place, row in enumerate(left.tolist(), 1)}
        for rows in kinds.values():
            for row in rows.tolist():
                why[row] = f"not taken: place {place[row]:,} of the {len(left):,} rows left, by {deciding.label}"
        kinds["not ranked"] = unranked[:examples]
        why |= dict(zip(unranked[:examples].tolist(), deciding.why_not(dataset, unranked[:examples]), strict=True))
        counts |= {"best left out": half, "worst": len(left) - half, "not ranked": len(unranked)}
    before = np.flatnonzero(~taken & ~out)
    if len(before):
        kinds["left out before"] = np.random.default_rng(0).permutation(before)[:examples]
        steps = ", ".join(step["selector"] for step in selection.chain[:-1])
        why |= dict.fromkeys(kinds["left out before"].tolist(), f"left out by an earlier step ({steps})")
        counts["left out before"] = len(before)
    group |= {row: kind for kind, rows in kinds.items() for row in rows.tolist()}
    rank = {row: rank for rank, row in enumerate(chosen, 1)}
    return _table(dataset, group, {"rank": rank}, why, described, counts)


def of_comparison(
    dataset: Any, selections: dict[str, Selection], described: dict[str, Any], examples: int = 2000
) -> Table:
    """Rows that only one selection took, and that both did: up to `examples` of each, the highest ranks first."""
    (first, mine), (second, theirs) = selections.items()
    rank = {name: {row: rank for rank, row in enumerate(one.indices.tolist(), 1)} for name, one in selections.items()}
    kinds = {
        f"only {first}": [row for row in mine.indices.tolist() if row not in rank[second]],
        f"only {second}": [row for row in theirs.indices.tolist() if row not in rank[first]],
        "both": [row for row in mine.indices.tolist() if row in rank[second]],
    }
    group = {row: kind for kind, rows in kinds.items() for row in rows[:examples]}
    why = {}
    for row in group:
        said = [f"{name}: {one.reasons[rank[name][row] - 1]}" for name, one in selections.items() if row in rank[name]]
        why[row] = "; ".join(said)
    ranks = {f"rank in {name}": of for name, of in rank.items()}
    return _table(dataset, group, ranks, why, described, {kind: len(rows) for kind, rows in kinds.items()})


# --------------------------------------------------------------------------------------------------------------------


@dataclass
class Deciding:
    """What the last step ranked rows by, high = taken first; NaN for a row that could not be ranked."""

    columns: list[str]
    label: str
    values: np.ndarray  # (n,)

    def why_not(self, dataset: Any, rows: np.ndarray) -> list[str]:
        """Of rows that could not be ranked: the reason of the first score that they lack, or that they are out of
        bounds."""
        found = [""] * len(rows)
        for column in self.columns:
            values = finite(dataset, column)[rows]
            reasons = reasons_of(dataset, column, rows)
            for i, (value, reason) in enumerate(zip(values, reasons, strict=True)):
                if np.isnan(value) and not found[i]:
                    found[i] = f"no {column}: {reason}"
        first = finite(dataset, self.columns[0])[rows]
        return [
            reason or f"{self.columns[0]} {value:.6g} is out of the bounds that were set"
            for reason, value in zip(found, first, strict=True)
        ]


def deciding_score(dataset: Any, selection: Selection) -> Deciding | None:
    """None where the last step ranked by nothing that every row has."""
    step = selection.chain[-1] if selection.chain else {}
    present = score_columns(dataset)
    if step.get("column") in present and step.get("length", "ignore") == "ignore":
        column = step["column"]
        values = finite(dataset, column)
        low, high = step.get("at_least"), step.get("at_most")
        with np.errstate(invalid="ignore"):
            out = (values < (-np.inf if low is None else low)) | (values > (np.inf if high is None else high))
        values = np.where(out, np.nan, -values if step.get("which") == "worst" else values)
        return Deciding([column], column + (", lowest first" if step.get("which") == "worst" else ""), values)
    similarities = step.get("similarities") or []
    if similarities and all(name in present for name in similarities):
        values = np.max([finite(dataset, name) for name in similarities], axis=0)
        return Deciding(
            similarities, "the highest similarity to a task" if len(similarities) > 1 else similarities[0], values
        )
    weights = step.get("weights")
    if isinstance(weights, dict) and all(name in present for name in weights):
        ranks = {name: percentile_ranks(finite(dataset, name)) for name in weights}
        return Deciding(list(weights), "the weighted mean of ranks", combined_ranks(ranks, weights))
    return None


def _table(
    dataset: Any,
    group: dict[int, str],
    ranks: dict[str, dict[int, int]],
    why: dict[int, str],
    described: dict[str, Any],
    counts: dict[str, int],
) -> Table:
    rows = list(group)
    some = dataset.with_format(None).select(rows)
    names = some.column_names
    shown: dict[str, list[float | None]] = {
        name: [None if np.isnan(value) else float(value) for value in finite(some, name)]
        for name in described["scores"]
    }
    turns = _turns(some)
    sizes = [sum(len(text) for _, text in row) for row in turns]
    source = (described["sources"] or {}).get("column")
    return Table(
        rows=rows,
        ids=[str(row_id) for row_id in some[columns.ROW_ID]]
        if columns.ROW_ID in names
        else [str(row) for row in rows],
        groups=list(group.values()),
        ranks={name: [of.get(row) for row in rows] for name, of in ranks.items()},
        why=[why[row] for row in rows],
        numbers={**shown, "characters": sizes},
        sources=[str(value) for value in some[source]] if source else None,
        turns=turns,
        counts=counts,
    )


def _turns(dataset: Any) -> list[list[tuple[str, str]]]:
    """Each row as it is shown: its turns, or what makes it unreadable and the row as it is."""
    readable = readable_columns(dataset.column_names)
    found = []
    for start in range(0, len(dataset), 1000):
        batch = dataset[start : start + 1000]
        if not readable:  # scores without their rows
            found += [[] for _ in batch[dataset.column_names[0]]]
            continue
        texts = {name: batch[name] for name in readable}
        for i, row in enumerate(conversations(texts)):
            if isinstance(row, BadRow):
                raw = json.dumps({name: values[i] for name, values in texts.items()}, ensure_ascii=False, default=str)
                found.append([("cannot be read", str(row)), ("as it is stored", raw)])
            else:
                found.append(_said(row))
    return found


def _said(row: Conversation) -> list[tuple[str, str]]:
    if row.text is not None:
        return [("text", row.text)]
    turns = [("tools", json.dumps(row.tools, ensure_ascii=False, indent=1))] if row.tools else []
    for message in row.messages:
        if message["content"] or not message.get("tool_calls"):
            turns.append((message["role"], message["content"]))
        turns += [
            ("tool call", json.dumps(call, ensure_ascii=False, indent=1)) for call in message.get("tool_calls") or []
        ]
    return turns
