"""A comparison in its folder as a page, Markdown and pictures: verdicts first, then every difference with its
interval, results against compute, and what selecting cost. Held-out sets that are measured together are shown together
first, and each by itself in a section of its own. All numbers come from result.json."""

import os
from pathlib import Path
from typing import Any

from hf_select.reports.comparison_pictures import (
    compared,
    comparison_figures,
    headlines,
    in_order,
    parts,
    shown_budget,
)
from hf_select.reports.report_files import write_sections
from hf_select.reports.sections import Section


_RANDOM = "random"
Table = tuple[list[str], list[list[str]]]


def comparison_report(result: dict[str, Any], output_dir: str | os.PathLike) -> Path:
    """Write result.html, result.md and pictures/*.png, and return the page's path.

    Args:
        result: what `compare` returns and writes to result.json.
    """
    figures = comparison_figures(result)
    title = "Is a selection better than random rows?"
    found = comparison_sections(result, {key: figure[0] for key, figure in figures.items()})
    return write_sections(Path(output_dir).expanduser(), "result", title, _facts(result), found, figures)


def comparison_sections(result: dict[str, Any], pictures: dict[tuple[str, ...], str]) -> list[Section]:
    """The sections of a comparison; `pictures` are names by what each is of."""
    found = [_verdicts(result)]
    for budget, of_budget in result["budgets"].items():
        measures = {name: of_budget[name] for name in headlines(result["measures"]) if name in of_budget}
        lines = next(iter(measures.values()))[_RANDOM]
        text = (
            f"Every run trained about {lines['tokens']:,} tokens in {lines['steps']:,.0f} steps of equally many; "
            f"{lines['seeds']} seeds. Differences are to random rows of the same budget, paired by seed and item, "
            "with their 95 % intervals."
        )
        drawn = [pictures["differences", budget, measure] for measure in measures]
        tables = [_differences(measure, result, of) for measure, of in measures.items()]
        tables += [table for measure, of in measures.items() if (table := _matched(measure, of)) is not None]
        tables.append(_runs(result["methods"], next(iter(measures.values()))))
        found.append(Section(shown_budget(budget), text, tables, drawn, folded=False))
    if parts(result["measures"]):
        found.append(_parts(result, pictures))
    text = (
        "A point is the mean of a method's runs at one budget, with its scores paid for by this budget alone; the "
        "thin line leads back to what it costs once the scores are there. Random rows are the grey line. The front "
        "goes by means: neighbours on it need not differ."
    )
    drawn = [pictures["compute", measure] for measure in headlines(result["measures"])]
    found.append(Section("Results against compute", text, [], drawn))
    found.append(_costs(result))
    found.append(_measured(result))
    return found


# --------------------------------------------------------------------------------------------------------------------


def _facts(result: dict[str, Any]) -> list[tuple[str, str]]:
    """What a reader wants to know first."""
    outcomes: dict[str, set[str]] = {name: set() for name in result["methods"]}
    first = headlines(result["measures"])
    for measures in result["budgets"].values():
        for lines in (measures[measure] for measure in first if measure in measures):
            for name in result["methods"]:
                outcomes[name] |= {lines[name]["outcome"]} if name in lines else set()
    methods = len(outcomes)
    seeds = {lines[_RANDOM]["seeds"] for of in result["budgets"].values() for lines in of.values()}
    return [
        ("methods", str(methods)),
        ("better than random rows somewhere", f"{sum('better' in of for of in outcomes.values())} of {methods}"),
        ("worse somewhere", f"{sum('worse' in of for of in outcomes.values())} of {methods}"),
        ("seeds", " and ".join(map(str, sorted(seeds)))),
    ]


def _verdicts(result: dict[str, Any]) -> Section:
    first = headlines(result["measures"])
    columns = [(budget, measure) for budget, of in result["budgets"].items() for measure in first if measure in of]
    names = dict.fromkeys(name for b, m in columns for name in compared(result["methods"], result["budgets"][b][m]))
    rows = []
    for name in in_order(result["methods"], names):
        cells = [result["budgets"][budget][measure].get(name) for budget, measure in columns]
        rows.append([name, *("" if line is None else _short(line) for line in cells)])
    text = (
        f"Beside random rows, by p-values after Holm over all methods ({len(result['methods'])}) of a budget and "
        "measure (baselines are asked alone). Budgets and measures are not corrected for: in about one of twenty "
        'columns of methods that do nothing one passes all the same. "No evidence" is no proof of equality; the '
        "tables below say how large a difference would have been found."
    )
    return Section(
        "Verdicts", text, [(["", *(f"{shown_budget(budget)}: {measure}" for budget, measure in columns)], rows)]
    )


def _parts(result: dict[str, Any], pictures: dict[tuple[str, ...], str]) -> Section:
    """The held-out sets one by one; they have fewer items, and there are many of them."""
    names = parts(result["measures"])
    text = (
        f"The {len(names)} sets that are measured together above. Each has fewer rows, so only larger differences are "
        "found, and among so many verdicts some are luck."
    )
    tables = [
        _differences(measure, result, of[measure], f"{shown_budget(budget)}: {measure}")
        for budget, of in result["budgets"].items()
        for measure in names
    ]
    drawn = [pictures["parts", budget] for budget in result["budgets"]]
    return Section("Each held-out set", text, tables, drawn)


def _short(line: dict[str, Any]) -> str:
    if line["outcome"] == "no evidence":
        return "no evidence"
    return f"{line['outcome']} by {abs(line['difference']['mean']):.4g}"


def _differences(measure: str, result: dict[str, Any], lines: dict[str, Any], title: str = "") -> Table:
    header = [
        title or measure,
        result["measures"][measure]["unit"],
        "less random, 95 %",
        "p (Holm)",
        "seeds won",
        "verdict",
    ]
    rows = []
    for name in (_RANDOM, *compared(result["methods"], lines)):
        line = lines[name]
        d = line.get("difference")
        rows.append(
            [
                name,
                f"{line['mean']:.4f}",
                *(["", "", ""] if d is None else _difference(d)),
                line.get("verdict", ""),
            ]
        )
    return header, rows


def _runs(methods: list[str], lines: dict[str, Any]) -> Table:
    """What was trained; the same for every measure."""
    rows = []
    for name in (_RANDOM, *in_order(methods, [name for name in lines if name != _RANDOM])):
        line = lines[name]
        if "tokens" in line:
            numbers = [f"{line['rows']:,.0f}", f"{line['rows_cut']:,.0f}", f"{line['tokens']:,}"]
            passes = [f"{line['steps']:,.0f}", f"{line['passes']:.2f}"]
            rows.append([name, *numbers, *passes, f"{line['could_choose_from']:,}"])
    return ["trained", "rows", "of these cut", "tokens", "steps", "passes", "could choose from"], rows


def _matched(measure: str, lines: dict[str, Any]) -> Table | None:
    """Methods that chose clearly more or fewer tokens than random rows, beside random rows of as many."""
    rows = [
        [name, line["matched"]["baseline"], *_difference(line["matched"]["difference"]), line["matched"]["verdict"]]
        for name, line in lines.items()
        if "matched" in line
    ]
    header = [f"{measure}, at equal tokens", "beside", "less those, 95 %", "p (Holm)", "seeds won", "verdict"]
    return (header, rows) if rows else None


def shown_p(difference: dict[str, Any]) -> str:
    p = difference["p_holm"]
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _difference(d: dict[str, Any]) -> list[str]:
    return [
        f"{d['mean']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}]",
        shown_p(d),
        f"{d['wins']} of {d['seeds']}",
    ]


def _costs(result: dict[str, Any]) -> Section:
    """Of the methods and random rows; the other baselines cost what random rows cost."""
    costs, tables = [], []
    for budget, of_budget in result["budgets"].items():
        lines = next(iter(of_budget.values()))
        for name in (_RANDOM, *(name for name in result["methods"] if name in lines)):
            costs.append([name, shown_budget(budget), *_cost(lines[name], lines[_RANDOM])])
    header = ["method", "budget", "scores: FLOPs", "seconds", "a run: FLOPs", "seconds", "scores over random's run"]
    for measure in headlines(result["measures"]):
        about, rows = result["measures"][measure], []
        for budget, of_budget in result["budgets"].items():
            lines = of_budget.get(measure, {})
            for name in (name for name in result["methods"] if name in lines):
                rows.append([name, shown_budget(budget), *_gain(lines[name])])
        gain = [f"gain, {about['unit']}", "gain over all compute", "random rows at this total", "scores have paid"]
        tables.append(([measure, "budget", *gain], rows))
    text = (
        "Counted FLOPs and measured seconds; a run is the mean over seeds. Gain over all compute: the gain over the "
        "FLOPs of scores and training together, those of a run on random rows being 1. Random rows at this total: "
        "what they reach with as many FLOPs, on straight lines between their own budgets. Scores have paid after so "
        "many uses: each saves what random rows would have to train beyond a run of the budget to be as good; in "
        "brackets by the ends of the difference's interval, with random's curve as measured. Nothing is read beyond "
        "what was measured."
    )
    return Section("What selecting cost, and when it has paid", text, [(header, costs), *tables])


def _cost(line: dict[str, Any], random: dict[str, Any]) -> list[str]:
    total = line["ledger"]["total_flops"]
    scores = None if total is None else total - line["training_flops"]
    return [
        "not counted" if scores is None else f"{scores:.3g}",
        f"{line['selection_seconds']:,.1f}" if line.get("selection_seconds") is not None else "",
        f"{line['training_flops']:.3g}",
        f"{line['training_seconds']:,.1f}",
        "" if scores is None else f"{scores / random['training_flops']:.2f}",
    ]


def _gain(line: dict[str, Any]) -> list[str]:
    ledger = line["ledger"]
    at_total, paid = ledger["random_at_total"], ledger["break_even"]
    return [
        f"{ledger['gain']:+.4f}",
        "" if ledger["gain_per_run"] is None else f"{ledger['gain_per_run']:+.4f}",
        "" if ledger["total_flops"] is None else "more than measured" if at_total is None else f"{at_total:.4f}",
        paid["words"] + _interval(paid),
    ]


def _interval(paid: dict[str, Any]) -> str:
    if not paid["interval"] or paid["kind"] not in ("uses", "at least"):
        return ""
    low, high = paid["interval"]
    return f" ({low:,.1f} to {'no end' if high is None else f'{high:,.1f}'})"


def _measured(result: dict[str, Any]) -> Section:
    measures = [
        [name, about["unit"], about["better"], f"{about['items']:,}"] for name, about in result["measures"].items()
    ]
    settings = [[name, text] for name, text in _flat(result.get("settings", {}))]
    overlap = result["overlap"]
    said = [f"{count:,} rows of the pool repeat rows of {name}" for name, count in overlap.items() if count]
    text = "; ".join(said) + ": a method that chooses them learns the answers." if said else ""
    clean = [name for name, count in overlap.items() if not count]
    text += f" No row of the pool repeats a row of {', '.join(clean)}." if clean else ""
    for reason, count in result.get("left_out", {}).items():
        text += f" {count:,} rows cannot be trained on and nothing was drawn from them: {reason}."
    tables = [(["measure", "unit", "better", "items"], measures), (["setting", ""], settings)]
    return Section("How this was measured", text.strip(), tables)


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [line for key, item in value.items() for line in _flat(item, f"{name}.{key}" if name else str(key))]
    return [(name, "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value))]
