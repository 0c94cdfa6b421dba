"""The numbers of a report as titled tables in words: what Markdown, the page and a dataset card show. Nothing is
computed here but shares of a sum."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Section:
    """A title, a line or two that say how to read it, tables (a header and rows of cells), and names of pictures;
    on a page the tables beside pictures are `folded` away until they are asked for."""

    title: str
    text: str = ""
    tables: list[tuple[list[str], list[list[str]]]] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    folded: bool = True


def sections(numbers: dict[str, Any], pictures: list[str]) -> list[Section]:
    """The sections of a report, in order; `pictures` are the names of those that were drawn."""

    def drawn(*beginnings: str) -> list[str]:
        return [name for name in pictures if name.startswith(beginnings)]

    found = [_what(numbers)]
    if numbers["scores"]:
        text = "Outer bins of the pictures hold what lies beyond them."
        found.append(Section("Scores", text, [_distributions(numbers["scores"])], drawn("score_")))
    if numbers["lengths"]:
        text = "What looks like quality is often length: compare the selected rows with the random draw."
        if numbers["kind"] == "comparison":
            text = "What looks like quality is often length."
        found.append(Section("Lengths", text, [_distributions(numbers["lengths"], digits=0)], drawn("length_")))
    if numbers["sources"]:
        found.append(_sources(numbers, drawn("sources")))
    if numbers.get("tasks"):
        found.append(_tasks(numbers, drawn("tasks")))
    if numbers["agreement"]:
        found.append(_agreement(numbers["agreement"], drawn("rank_correlation", "overlap")))
    if numbers["unscored"]:
        rows = [
            [name, _short(reason), f"{n:,}"] for name, why in numbers["unscored"].items() for reason, n in why.items()
        ]
        found.append(Section("Rows without a score", "", [(["score", "reason", "rows"], rows)]))
    if numbers.get("cost") and numbers["cost"]["steps"]:
        found.append(_cost(numbers["cost"], drawn("cost")))
    return found


def step_in_words(step: dict[str, Any]) -> list[str]:
    """Selector, its settings that are set, rows before and after."""
    counts = ("selector", "num_rows", "selected", "chosen_by", "scores")
    settings = [f"{name} {_word(value)}" for name, value in step.items() if name not in counts and _is_set(value)]
    return [step["selector"], ", ".join(settings), f"{step['num_rows']:,}", f"{step['selected']:,}"]


def percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


# --------------------------------------------------------------------------------------------------------------------


def _what(numbers: dict[str, Any]) -> Section:
    rows, pool = numbers["rows"], numbers["rows"]["pool"]
    header = ["", "rows", "share of the pool"]
    tables = [(header, [[name, f"{count:,}", percent(count, pool)] for name, count in rows.items()])]
    steps = ["step", "settings", "rows before", "rows after"]
    if numbers["kind"] == "selection":
        tables.append((steps, [step_in_words(step) for step in numbers["steps"]]))
        return Section("What was selected", f"The random draw has seed {numbers['seed']}.", tables)
    overlap = numbers["overlap"]
    both = [
        ["in both", f"{overlap['both']:,}"],
        *([f"only in {name}", f"{count:,}"] for name, count in overlap["only"].items()),
        ["in both, if they were drawn at random", f"{overlap['expected_by_chance']:,.1f}"],
        ["Jaccard similarity", f"{overlap['jaccard']:.3f}"],
    ]
    tables.append((["", "rows"], both))
    for name, chain in numbers["steps"].items():
        tables.append(([f"steps of {name}", *steps[1:]], [step_in_words(step) for step in chain]))
    return Section("What was selected", "", tables)


def _distributions(values: dict[str, Any], digits: int | None = None) -> tuple[list[str], list[list[str]]]:
    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:,.{digits}f}" if digits is not None else f"{value:,.4g}"

    rows = []
    for name, measured in values.items():
        for part, found in measured["parts"].items():
            marks = [number(found["quantiles"].get(q)) for q in ("0.1", "0.5", "0.9")]
            rows.append([name, part, f"{found['known']:,}", number(found["mean"]), *marks])
    return ["", "of", "rows", "mean", "10 %", "median", "90 %"], rows


def _sources(numbers: dict[str, Any], pictures: list[str]) -> Section:
    parts, sources = numbers["rows"], numbers["sources"]
    rows = [
        [_short(line["source"]), *(f"{line[part]:,} ({percent(line[part], parts[part])})" for part in parts)]
        for line in sources["rows"]
    ]
    return Section("Sources", "", [([sources["column"], *parts], rows)], pictures)


def _tasks(numbers: dict[str, Any], pictures: list[str]) -> Section:
    parts = list(numbers["rows"])
    rows = [
        [
            name,
            "–" if task["chosen"] is None else f"{task['chosen']:,}",
            *(f"{task[part]['quantiles']['0.5']:.4g}" if task[part]["known"] else "–" for part in parts),
        ]
        for name, task in numbers["tasks"].items()
    ]
    header = ["task", "rows it chose", *(f"median, {part}" for part in parts)]
    return Section("Similarity to each task", "", [(header, rows)], pictures)


def _agreement(agreement: dict[str, Any], pictures: list[str]) -> Section:
    def matrix(title: str, names: list[str], values: list[list[float | None]]) -> tuple[list[str], list[list[str]]]:
        lines = [
            [name, *("–" if value is None else f"{value:.2f}" for value in line)]
            for name, line in zip(names, values, strict=True)
        ]
        return [title, *names], lines

    tables = []
    if len(agreement["scores"]) > 1:
        tables.append(matrix("rank correlation", agreement["scores"], agreement["spearman"]))
    tables.append(matrix("overlap", agreement["labels"], agreement["overlap"]))
    text = (
        f"Spearman's correlation of the scores, and the share of the {agreement['k']:,} highest rows that two of them "
        f"have in common; two random draws would share {agreement['expected_by_chance']:.2f}."
    )
    if agreement["left_out"]:
        text += f" Not shown: {', '.join(agreement['left_out'])}."
    return Section("Agreement between scores", text, tables, pictures)


def _cost(cost: dict[str, Any], pictures: list[str]) -> Section:
    def line(name: str, step: dict[str, Any]) -> list[str]:
        return [
            name,
            f"{step['rows']:,}" if "rows" in step else "",
            f"{step['seconds']:,.1f}" if "seconds" in step else "",
            f"{step['tokens']:,.0f}" if "tokens" in step else "",
            f"{step['flops']:.3g}" if "flops" in step else "",
            f"{step['peak_memory_mib']:,.0f}" if "peak_memory_mib" in step else "",
            step.get("device") or "",
        ]

    rows = [line(step["step"], step) for step in cost["steps"]]
    if len(rows) > 1:
        rows.append(line("all", cost["total"]))
    header = ["step", "rows", "seconds", "tokens", "counted FLOPs", "peak MiB", "device"]
    text = "Seconds are summed over processes. Tokens and FLOPs are those of scoring models; training is not counted."
    return Section("Cost", text, [(header, rows)], pictures)


def _short(text: str, most: int = 160) -> str:
    """Reasons and sources quote the data, of any length."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _is_set(value: Any) -> bool:
    return value is not None and value not in ({}, [], "ignore", "num_tokens", 0)


def _word(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={_word(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(map(_word, value[:8])) + (f" and {len(value) - 8} more" if len(value) > 8 else "")
    return f"{value:g}" if isinstance(value, float) else str(value)
