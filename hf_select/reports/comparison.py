"""A comparison as a page, Markdown and pictures: the outcome in words, verdicts, differences with intervals, results
against compute, costs.

Held-out sets that are pooled are shown pooled first, and one by one in a section of their own. All numbers are
those of result.json.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from hf_select.reports.comparison_pictures import comparison_figures
from hf_select.reports.comparison_result import (
    RANDOM,
    BreakEven,
    Comparison,
    Difference,
    MeasureInfo,
    MethodResult,
    MethodResults,
    methods_first,
    shown_budget,
)
from hf_select.reports.report_files import write_sections
from hf_select.reports.sections import Section


_TableRows = tuple[list[str], list[list[str]]]  # header, rows


def comparison_report(result: Comparison, output_dir: str | os.PathLike) -> Path:
    """Write result.html, result.md and pictures/*.png, and return the page's path."""
    figures = comparison_figures(result)
    title = "Is a selection better than random rows?"
    sections = comparison_sections(result, {key: figure[0] for key, figure in figures.items()})
    folder, facts = Path(output_dir).expanduser(), _key_figures(result)
    return write_sections(folder, "result", title, facts, sections, figures, lead=comparison_summary(result))


def comparison_summary(result: Comparison) -> str:
    """Return the outcome in words, for each budget by the first measure: the best method with its difference to random
    rows, then the verdicts of the others."""
    measure = result.headlines[0]
    about = result.measures[measure]
    unit = "a loss of {:.3f} nats" if about.unit == "nats" else f"{{:.3f}} ({about.unit})"
    where = "all held-out sets" if about.parts else measure
    summaries = []
    for budget, by_measure in result.budgets.items():
        results = by_measure[measure]
        names: dict[str | None, list[str]] = {}
        for name in result.methods:
            if name in results:
                names.setdefault(results[name].outcome, []).append(name)
        text = f"on {where}, no method is better than as many tokens of random rows."
        if better := names.get("better"):
            best = better.pop(better.index(max(better, key=lambda name: abs(_of(results[name]).mean))))
            d = _of(results[best])
            low, high = sorted((abs(d.low), abs(d.high)))
            text = (
                f"training on the rows that {best} selected gives {unit.format(results[best].mean)} on {where}; as "
                f"many tokens of random rows give {unit.format(results[RANDOM].mean)}. {best} is better by "
                f"{abs(d.mean):.3f} (95 % interval {low:.3f} to {high:.3f}), in {d.wins} of {d.seeds} seeds."
            )
        others = {"better": "Also better", "no evidence": "No evidence of a difference", "worse": "Worse"}
        rest = [f"{words}: {', '.join(names[kind])}." for kind, words in others.items() if names.get(kind)]
        summaries.append(" ".join([f"{shown_budget(budget)}: {text}", *rest]))
    return " ".join(summaries)


def comparison_sections(result: Comparison, pictures: Mapping[tuple[str, ...], str]) -> list[Section]:
    """Return the sections of a comparison; `pictures` maps the key of each figure to its file name."""
    sections = [_verdict_section(result)]
    sections += [_budget_section(result, budget, pictures) for budget in result.budgets]
    if result.parts:
        sections.append(_parts_section(result, pictures))
    text = (
        "A point is the mean of a method's runs at one budget, including the full cost of its scores; the thin line "
        "leads back to the cost without them. Random rows are the grey line. The front is computed from means: "
        "neighbours on it may not differ."
    )
    drawn = [pictures["compute", measure] for measure in result.headlines]
    sections.append(Section("Results against compute", text, [], drawn))
    sections.append(_selection_cost_section(result))
    sections.append(_measurement_section(result))
    return sections


def flatten(value: object, name: str = "") -> list[tuple[str, str]]:
    """Return (dotted name, text) of each value in nested dictionaries."""
    if isinstance(value, dict):
        return [line for key, item in value.items() for line in flatten(item, f"{name}.{key}" if name else str(key))]
    return [(name, "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value))]


# --------------------------------------------------------------------------------------------------------------------


def _key_figures(result: Comparison) -> list[tuple[str, str]]:
    """The key figures at the top of the page."""
    outcomes: dict[str, set[str | None]] = {name: set() for name in result.methods}
    for budget in result.budgets:
        for results in result.headline_results(budget).values():
            for name in result.methods:
                outcomes[name] |= {results[name].outcome} if name in results else set()
    methods = len(outcomes)
    seeds = {of[RANDOM].training.seeds for by_measure in result.budgets.values() for of in by_measure.values()}
    return [
        ("methods", str(methods)),
        ("better than random rows somewhere", f"{sum('better' in of for of in outcomes.values())} of {methods}"),
        ("worse somewhere", f"{sum('worse' in of for of in outcomes.values())} of {methods}"),
        ("seeds", " and ".join(map(str, sorted(seeds)))),
    ]


def _verdict_section(result: Comparison) -> Section:
    columns = {
        f"{shown_budget(budget)}: {measure}": results
        for budget in result.budgets
        for measure, results in result.headline_results(budget).items()
    }
    names = dict.fromkeys(name for results in columns.values() for name in result.compared(results))
    rows = [
        [name, *(_short_verdict(results.get(name)) for results in columns.values())]
        for name in methods_first(result.methods, names)
    ]
    text = (
        f"Compared with random rows, by p-values after Holm over all methods ({len(result.methods)}) of a budget and "
        "measure (baselines are tested alone). There is no correction over budgets and measures: among methods "
        'without an effect, about one column in twenty still has a verdict. "No evidence" does not prove equality; '
        "the tables below give the difference that would have been found."
    )
    return Section("Verdicts", text, [(["", *columns], rows)])


def _budget_section(result: Comparison, budget: str, pictures: Mapping[tuple[str, ...], str]) -> Section:
    measures = result.headline_results(budget)
    first = next(iter(measures.values()))
    random = first[RANDOM].training
    text = (
        f"Every run trained about {random.tokens:,} tokens in {random.steps:,.0f} steps of equal size; "
        f"{random.seeds} seeds. Differences are to random rows of the same budget, paired by seed and item, "
        "with their 95 % intervals."
    )
    tables = [_difference_table(measure, result, results) for measure, results in measures.items()]
    tables += [table for measure, of in measures.items() if (table := _matched_table(measure, of)) is not None]
    tables.append(_run_table(result.methods, first))
    drawn = [pictures["differences", budget, measure] for measure in measures]
    return Section(shown_budget(budget), text, tables, drawn, folded=False)


def _parts_section(result: Comparison, pictures: Mapping[tuple[str, ...], str]) -> Section:
    """The pooled held-out sets one by one."""
    text = (
        f"The {len(result.parts)} sets that are pooled above. Each has fewer rows, so only larger differences are "
        "found, and with this number of verdicts some are due to chance."
    )
    tables = [
        _difference_table(measure, result, by_measure[measure], f"{shown_budget(budget)}: {measure}")
        for budget, by_measure in result.budgets.items()
        for measure in result.parts
    ]
    return Section("Each held-out set", text, tables, [pictures["parts", budget] for budget in result.budgets])


def _of(result: MethodResult) -> Difference:
    assert result.difference is not None, "random rows have none"
    return result.difference


def _short_verdict(result: MethodResult | None) -> str:
    if result is None or result.difference is None:
        return ""
    if result.outcome == "no evidence":
        return "no evidence"
    return f"{result.outcome} by {abs(result.difference.mean):.4g}"


def _difference_table(measure: str, result: Comparison, results: MethodResults, title: str = "") -> _TableRows:
    unit = result.measures[measure].unit
    header = [title or measure, unit, "difference to random, 95 %", "p (Holm)", "seeds won", "verdict"]
    rows = []
    for name in (RANDOM, *result.compared(results)):
        d = results[name].difference
        cells = ["", "", ""] if d is None else _difference_cells(d)
        rows.append([name, f"{results[name].mean:.4f}", *cells, results[name].verdict])
    return header, rows


def _run_table(methods: Sequence[str], results: MethodResults) -> _TableRows:
    """What was trained, which is the same for every measure."""
    rows = []
    for name in (RANDOM, *methods_first(methods, [name for name in results if name != RANDOM])):
        runs = results[name].runs
        if runs is not None:
            numbers = [f"{runs.rows:,.0f}", f"{runs.rows_cut:,.0f}", f"{runs.tokens:,}"]
            passes = [f"{runs.steps:,.0f}", f"{runs.passes:.2f}"]
            rows.append([name, *numbers, *passes, f"{runs.could_choose_from:,}"])
    return ["trained", "rows", "of these cut", "tokens", "steps", "passes", "could choose from"], rows


def _matched_table(measure: str, results: MethodResults) -> _TableRows | None:
    """Methods that chose clearly more or fewer tokens than random rows, compared with random rows of as many."""
    rows = [
        [name, r.matched.baseline, *_difference_cells(r.matched.difference), r.matched.verdict]
        for name, r in results.items()
        if r.matched is not None
    ]
    header = [f"{measure}, at equal tokens", "baseline", "difference, 95 %", "p (Holm)", "seeds won", "verdict"]
    return (header, rows) if rows else None


def shown_p(difference: Difference) -> str:
    """Return the corrected p-value with three decimals."""
    return f"{difference.p_holm:.3f}" if difference.p_holm >= 0.001 else "< 0.001"


def _difference_cells(d: Difference) -> list[str]:
    return [f"{d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}]", shown_p(d), f"{d.wins} of {d.seeds}"]


def _selection_cost_section(result: Comparison) -> Section:
    """Costs of the methods and random rows; the other baselines cost what random rows cost."""
    costs = []
    for budget, by_measure in result.budgets.items():
        results = next(iter(by_measure.values()))
        for name in (RANDOM, *(name for name in result.methods if name in results)):
            costs.append([name, shown_budget(budget), *_cost_cells(results[name], results[RANDOM])])
    header = ["method", "budget", "scores: FLOPs", "seconds", "a run: FLOPs", "seconds", "scores over random's run"]
    gains = [_gain_table(result, measure, result.measures[measure]) for measure in result.headlines]
    text = (
        "Counted FLOPs and measured seconds; a run is the mean over seeds. Gain over all compute: the gain divided by "
        "the FLOPs of scores and training together, in units of one run on random rows. Random rows at this total: "
        "what they reach with as many FLOPs, interpolated linearly between their own budgets. Scores have paid after "
        "a number of uses: each use saves what random rows would have to train beyond a run of the budget to be as "
        "good; in brackets for the ends of the difference's interval, with random's curve as measured. Nothing is "
        "extrapolated."
    )
    return Section("What selecting cost, and when it has paid", text, [(header, costs), *gains])


def _gain_table(result: Comparison, measure: str, about: MeasureInfo) -> _TableRows:
    rows = [
        [name, shown_budget(budget), *_gain_cells(by_measure[measure][name])]
        for budget, by_measure in result.budgets.items()
        for name in result.methods
        if name in by_measure.get(measure, {})
    ]
    gain = [f"gain, {about.unit}", "gain over all compute", "random rows at this total", "scores have paid"]
    return [measure, "budget", *gain], rows


def _cost_cells(result: MethodResult, random: MethodResult) -> list[str]:
    runs, total = result.training, result.total_flops
    scores = None if total is None else total - runs.training_flops
    return [
        "not counted" if scores is None else f"{scores:.3g}",
        "" if runs.selection_seconds is None else f"{runs.selection_seconds:,.1f}",
        f"{runs.training_flops:.3g}",
        f"{runs.training_seconds:,.1f}",
        "" if scores is None else f"{scores / random.training.training_flops:.2f}",
    ]


def _gain_cells(result: MethodResult) -> list[str]:
    costs = result.costs
    assert costs is not None and costs.break_even is not None
    at_total = "more than measured" if costs.random_at_total is None else f"{costs.random_at_total:.4f}"
    return [
        f"{costs.gain:+.4f}",
        "" if costs.gain_per_run is None else f"{costs.gain_per_run:+.4f}",
        "" if costs.total_flops is None else at_total,
        costs.break_even.message + _interval_of_uses(costs.break_even),
    ]


def _interval_of_uses(paid: BreakEven) -> str:
    if paid.interval is None or paid.kind not in ("uses", "at least"):
        return ""
    low, high = paid.interval
    return f" ({low:,.1f} to {'no end' if high is None else f'{high:,.1f}'})"


def _measurement_section(result: Comparison) -> Section:
    measures = [[name, m.unit, m.better, f"{m.items:,}"] for name, m in result.measures.items()]
    settings = [[name, text] for name, text in flatten(result.settings)]
    repeats = [f"{n:,} rows of the pool repeat rows of {name}" for name, n in result.overlap.items() if n]
    clean = [name for name, count in result.overlap.items() if not count]
    sentences = ["; ".join(repeats) + ": a method that chooses them learns the answers."] if repeats else []
    sentences += [f"No row of the pool repeats a row of {', '.join(clean)}."] if clean else []
    sentences += [
        f"{count:,} rows cannot be trained on and nothing was drawn from them: {reason}."
        for reason, count in result.left_out.items()
    ]
    tables = [(["measure", "unit", "better", "items"], measures), (["setting", ""], settings)]
    return Section("How this was measured", " ".join(sentences), tables)
