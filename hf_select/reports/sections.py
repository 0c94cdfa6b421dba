"""The numbers of a report as titled tables of text, which Markdown, the page and a dataset card show.

Nothing is computed here but shares of a sum.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_select.reports.ledger import Step
from hf_select.reports.report_numbers import (
    Cost,
    Distribution,
    Measured,
    ReportNumbers,
    ScoreAgreement,
    SelectionNumbers,
    SourceCounts,
    TargetTask,
)


Table = tuple[list[str], list[list[str]]]  # header, rows of cells

_STEP_COLUMNS = ["step", "settings", "rows before", "rows after"]


@dataclass
class Section:
    """One section of a report.

    Args:
        title: its heading.
        text: a sentence or two that say how to read it.
        tables: tables of text.
        pictures: names of the pictures to show.
        folded: whether a page hides the tables behind a click if there are pictures.
    """

    title: str
    text: str = ""
    tables: list[Table] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    folded: bool = True


def report_sections(numbers: ReportNumbers, pictures: Sequence[str]) -> dict[str, Section]:
    """The sections of a report by name, in order; `pictures` are the names of those that were drawn."""

    def drawn(*prefixes: str) -> list[str]:
        return [name for name in pictures if name.startswith(prefixes)]

    measured = numbers.measured
    sections = {"selection": _selection_section(numbers)}
    if measured.scores:
        text = "The outermost bins include all values beyond them." + _lower_is_better(numbers)
        sections["scores"] = Section("Scores", text, [_quantile_table("score", measured.scores)], drawn("score_"))
    if measured.lengths:
        text = "A score that seems to measure quality often measures length."
        if isinstance(numbers, SelectionNumbers):
            text += " Compare the selected rows with the random draw."
        lengths = _quantile_table("length", measured.lengths, digits=0)
        sections["lengths"] = Section("Lengths", text, [lengths], drawn("length_"))
    if measured.sources:
        sections["sources"] = _source_section(measured, measured.sources, drawn("sources"))
    if isinstance(numbers, SelectionNumbers) and numbers.tasks:
        sections["tasks"] = _task_section(numbers.tasks, list(measured.rows), drawn("tasks"))
    if measured.agreement:
        sections["agreement"] = _score_agreement_section(measured.agreement, drawn("rank_correlation", "overlap"))
    if measured.unscored:
        rows = [
            [name, shortened(reason), f"{n:,}"]
            for name, reasons in measured.unscored.items()
            for reason, n in reasons.items()
        ]
        sections["unscored"] = Section("Rows without a score", "", [(["score", "reason", "rows"], rows)])
    if isinstance(numbers, SelectionNumbers) and numbers.cost.steps:
        sections["cost"] = _step_cost_section(numbers.cost, drawn("cost"))
    return sections


def step_table(chain: Sequence[Mapping[str, Any]], title: str = "step") -> Table:
    """The steps of a selection: selector, settings, rows before and after."""
    return [title, *_STEP_COLUMNS[1:]], [_step_row(step) for step in chain]


def percent(part: float, whole: float) -> str:
    """A share in percent with one digit."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


def shortened(text: str, max_length: int = 160) -> str:
    """Text cut to a length: reasons and sources quote the data."""
    return text if len(text) <= max_length else text[: max_length - 1] + "…"


# --------------------------------------------------------------------------------------------------------------------


def _selection_section(numbers: ReportNumbers) -> Section:
    rows = numbers.measured.rows
    pool = rows["pool"]
    header = ["part", "rows", "share of the pool"]
    tables: list[Table] = [(header, [[name, f"{count:,}", percent(count, pool)] for name, count in rows.items()])]
    if isinstance(numbers, SelectionNumbers):
        tables.append(step_table(numbers.steps))
        return Section("What was selected", f"The random draw uses seed {numbers.seed}.", tables)
    overlap = numbers.overlap
    lines = [
        ["in both", f"{overlap.both:,}"],
        *([f"only in {name}", f"{count:,}"] for name, count in overlap.only.items()),
        ["in both, expected of random draws", f"{overlap.expected_by_chance:,.1f}"],
        ["Jaccard similarity", f"{overlap.jaccard:.3f}"],
    ]
    tables.append((["", "rows"], lines))
    tables += [step_table(chain, f"steps of {name}") for name, chain in numbers.steps.items()]
    return Section("What was selected", "", tables)


def _lower_is_better(numbers: ReportNumbers) -> str:
    """A sentence on the scores of which a lower value is better, if there are any."""
    steps = numbers.cost.steps if isinstance(numbers, SelectionNumbers) else []
    names = dict.fromkeys(f"score_{step.scorer}" for step in steps if step.higher_is_better is False)
    return f" Lower is better for {', '.join(names)}." if names else ""


def _quantile_table(title: str, values: Mapping[str, Distribution], digits: int | None = None) -> Table:
    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:,.{digits}f}" if digits is not None else f"{value:,.4g}"

    rows = []
    for name, distribution in values.items():
        for part, summary in distribution.parts.items():
            quantiles = [number(summary.quantiles.get(q)) for q in ("0.1", "0.5", "0.9")]
            rows.append([name, part, f"{summary.known:,}", number(summary.mean), *quantiles])
    return [title, "part", "rows", "mean", "10 %", "median", "90 %"], rows


def _source_section(measured: Measured, sources: SourceCounts, pictures: list[str]) -> Section:
    parts = measured.rows
    rows = [
        [shortened(line.source), *(f"{line.rows[part]:,} ({percent(line.rows[part], parts[part])})" for part in parts)]
        for line in sources.lines
    ]
    return Section("Sources", "", [([sources.column, *parts], rows)], pictures)


def _task_section(tasks: Mapping[str, TargetTask], parts: list[str], pictures: list[str]) -> Section:
    rows = [
        [
            name,
            "–" if task.chosen is None else f"{task.chosen:,}",
            *(f"{task.parts[part].quantiles['0.5']:.4g}" if task.parts[part].known else "–" for part in parts),
        ]
        for name, task in tasks.items()
    ]
    header = ["task", "rows chosen for it", *(f"median, {part}" for part in parts)]
    return Section("Similarity to each task", "", [(header, rows)], pictures)


def _score_agreement_section(agreement: ScoreAgreement, pictures: list[str]) -> Section:
    def matrix(title: str, names: list[str], values: Sequence[Sequence[float | None]]) -> Table:
        lines = [
            [name, *("–" if value is None else f"{value:.2f}".replace("-0.00", "0.00") for value in line)]
            for name, line in zip(names, values, strict=True)
        ]
        return [title, *names], lines

    tables = []
    if len(agreement.scores) > 1:
        tables.append(matrix("rank correlation", agreement.scores, agreement.spearman))
    tables.append(matrix("overlap", agreement.labels, agreement.overlap))
    text = (
        "Rank correlation is Spearman's. Overlap is the share of the "
        f"{agreement.k:,} highest rows that two scores have in common; for two random draws it is about "
        f"{agreement.expected_by_chance:.2f}."
    )
    if agreement.left_out:
        text += f" Not shown: {', '.join(agreement.left_out)}."
    return Section("Agreement between scores", text, tables, pictures)


def _step_cost_section(cost: Cost, pictures: list[str]) -> Section:
    formats = {"seconds": ",.1f", "tokens": ",.0f", "flops": ".3g", "peak_memory_mib": ",.0f"}

    def line(step: Step) -> list[str]:
        costs = [format(step.cost[name], spec) if name in step.cost else "" for name, spec in formats.items()]
        return [step.step, "" if step.rows is None else f"{step.rows:,}", *costs, step.device or ""]

    steps = [*cost.steps, *([Step("total", cost=cost.total)] if len(cost.steps) > 1 else [])]
    header = ["step", "rows", "seconds", "tokens", "counted FLOPs", "peak MiB", "device"]
    text = (
        "Seconds are summed over processes. Tokens and FLOPs are those of the models that score; training is not "
        "included."
    )
    return Section("Cost", text, [(header, [line(step) for step in steps])], pictures)


def _step_row(step: Mapping[str, Any]) -> list[str]:
    counts = ("selector", "num_rows", "selected", "chosen_by", "scores", "ranked_by", "paper")
    settings = [f"{name} {_in_words(value)}" for name, value in step.items() if name not in counts and _is_set(value)]
    return [step["selector"], ", ".join(settings), f"{step['num_rows']:,}", f"{step['selected']:,}"]


def _is_set(value: Any) -> bool:
    return value is not None and value not in ({}, [], "ignore", "num_tokens", 0)


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={_in_words(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(map(_in_words, value[:8])) + (f" and {len(value) - 8} more" if len(value) > 8 else "")
    return f"{value:g}" if isinstance(value, float) else str(value)
