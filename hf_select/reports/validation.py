"""A validation of scores by retraining as a page, Markdown and pictures. All numbers are those of validation.json."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hf_select.reports.advice_result import Estimate
from hf_select.reports.comparison import flatten
from hf_select.reports.pictures import Ink, file_name, name_rows, wrapped
from hf_select.reports.report_files import Figures, write_sections
from hf_select.reports.sections import Section
from hf_select.reports.validation_result import (
    MEAN,
    RANDOM,
    YARDSTICKS,
    ScoreResult,
    ScoreValidation,
)


if TYPE_CHECKING:
    from matplotlib.axes import Axes


def validation_report(result: ScoreValidation, output_dir: str | os.PathLike) -> Path:
    """Write validation.html, validation.md and pictures/*.png, and return the page's path."""
    figures = _validation_figures(result)
    headline = result.results[result.headline]
    above = [name for name in result.scores if (lds := headline[name].lds) is not None and lds.low > 0]
    beating = [name for name in above if all(difference.low > 0 for difference in headline[name].differences.values())]
    facts = [
        ("scores", str(len(result.scores))),
        ("predict the gain", f"{len(above)} of {len(result.scores)}"),
        ("better than every yardstick", f"{len(beating)} of {len(result.scores)}"),
        ("random subsets", f"{result.subsets:,}"),
    ]
    title = "Do the scores predict what training does?"
    return write_sections(Path(output_dir), "validation", title, facts, _sections(result, figures), figures)


# --------------------------------------------------------------------------------------------------------------------


def _sections(result: ScoreValidation, figures: Figures) -> list[Section]:
    return [
        _headline_section(result, figures),
        *([_sets_section(result, figures)] if len(result.signals) > 1 else []),
        _signal_section(result),
        _settings_section(result),
    ]


def _headline_section(result: ScoreValidation, figures: Figures) -> Section:
    text = (
        "Linear datamodelling score (LDS): Spearman's rank correlation, over the subsets, of the predicted gain (sum "
        "of the scores of a subset's rows) and the true one (minus the loss after training on it). 1 is perfect, 0 "
        "says nothing. Intervals are 95 %, by a bootstrap over subsets; differences are paired and not corrected for "
        f"their number. {result.subsets:,} subsets find a true correlation of {result.detectable:.2f} to differ from "
        "0 in 4 of 5 such studies. TF-IDF compares the rows with the held-out rows themselves, as influence methods "
        "do; a score without targets does not know them."
    )
    name = result.headline
    verdicts = [[score, each.verdict] for score, each in result.results[name].items() if score in result.scores]
    warnings = [[task, signal.warning] for task, signal in result.signals.items() if signal.warning]
    tables = [(["score", "verdict"], verdicts), *([(["held-out set", "warning"], warnings)] if warnings else [])]
    tables.append(_result_table(result, name))
    return Section(f"LDS, {name}", text, tables, [figures["lds", name][0]], folded=False)


def _sets_section(result: ScoreValidation, figures: Figures) -> Section:
    names = list(result.signals)
    text = "Each set has its own noise; with this number of intervals some exclude 0 by chance."
    tables = [_result_table(result, name) for name in names]
    return Section("Each held-out set", text, tables, [figures["lds", name][0] for name in names])


def _result_table(result: ScoreValidation, name: str) -> tuple[list[str], list[list[str]]]:
    rows = []
    for score, each in result.results[name].items():
        lds = f"none: {each.reason}" if each.lds is None else _shown(each.lds)
        differences = [_shown(each.differences[y]) if y in each.differences else "" for y in YARDSTICKS]
        rows.append([score, lds, *differences, f"{each.without_score:,}", each.column])
    if name in result.chance:
        rows.append([RANDOM, _shown(result.chance[name]), "", "", "", ""])
    header = [name, "LDS, 95 %", *(f"minus {yardstick}" for yardstick in YARDSTICKS), "rows without a score", "column"]
    if name == MEAN:  # columns and rows without a score are those of each set
        return header[:-2], [row[:-2] for row in rows]
    return header, rows


def _signal_section(result: ScoreValidation) -> Section:
    rows = []
    for name, signal in result.signals.items():
        noise = "–" if signal.noise is None else f"{signal.noise:.2g}"
        reliability = "–" if signal.reliability is None else _shown(signal.reliability)
        ceiling = "–" if signal.ceiling is None else f"{signal.ceiling:.2f}"
        losses = [f"{signal.mean:.4f}", f"{signal.spread:.2g}", noise]
        rows.append([name, f"{signal.rows:,}", f"{signal.overlap:,}", *losses, reliability, ceiling])
    text = (
        "Spread: standard deviation of the loss over subsets. Noise: the same over runs on one subset with different "
        f"training seeds, from {result.repeats:,} subsets that were trained twice. Reliability: 1 - noise² / spread², "
        "the correlation of two runs on each subset. A score that predicts the expected loss exactly would have an "
        "LDS of about the ceiling, the root of the reliability."
    )
    if not result.repeats:
        text = (
            "Spread: standard deviation of the loss over subsets. No subset was trained twice (repeats: 0), so the "
            "noise of training, and with it the largest possible LDS, are not known."
        )
    header = ["held-out set", "rows", "rows of the pool that repeat one", "mean loss, nats", "spread", "noise"]
    table = ([*header, "reliability", "ceiling"], rows)
    return Section("How much the loss depends on the subset", text, [table])


def _settings_section(result: ScoreValidation) -> Section:
    cost = result.cost
    text = (
        f"{cost.runs:,} training runs, each in equally many steps on {result.subset_rows:,} of {result.pool_rows:,} "
        f"rows: {cost.tokens:,} tokens, {cost.seconds:,.0f} seconds, {cost.flops:.2g} FLOPs."
    )
    for reason, count in result.left_out.items():
        text += f" {count:,} rows cannot be trained on and are in no subset: {reason}."
    return Section(
        "How this was measured", text, [(["setting", ""], [list(line) for line in flatten(result.settings)])]
    )


def _shown(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]".replace("-0.00", "0.00")


def _validation_figures(result: ScoreValidation) -> Figures:
    figures: Figures = {}
    used: list[str] = []
    for name, of_set in result.results.items():
        used.append(file_name("lds", name, used))
        signals = result.signals.values() if name == MEAN else [result.signals[name]]
        ceilings = [signal.ceiling for signal in signals if signal.ceiling is not None]
        paint = partial(
            _paint_lds,
            results=of_set,
            scores=result.scores,
            chance=result.chance.get(name),
            ceiling=sum(ceilings) / len(ceilings) if len(ceilings) == len(signals) else None,
            title=name,
        )
        alt = f"LDS of each score with its 95 % interval: {name}"
        figures["lds", name] = (used[-1], alt, paint, 1.4 + 0.3 * len(of_set))
    return figures


def _paint_lds(
    axes: "Axes",
    ink: Ink,
    results: Mapping[str, ScoreResult],
    scores: list[str],
    chance: Estimate | None,
    ceiling: float | None,
    title: str,
) -> None:
    """Draw scores in colour and yardsticks in grey, over the band of random scores."""
    if chance is not None:
        axes.axvspan(chance.low, chance.high, color=ink["faint"], alpha=0.6, linewidth=0, label=f"{RANDOM}, 95 %")
    axes.axvline(0, color=ink["text"], linewidth=0.8)
    if ceiling is not None:
        axes.axvline(ceiling, color=ink["text"], linewidth=0.9, linestyle=":", label="ceiling")
    seen = set()
    for place, (name, result) in enumerate(results.items()):
        if result.lds is None:
            axes.text(0.02, place, f"none: {wrapped(result.reason, 40)}", va="center", fontsize=7.5, color=ink["text"])
            continue
        is_score = name in scores
        colour, marker, label = (ink["first"], "o", "score") if is_score else (ink["pool"], "s", "yardstick")
        axes.plot([result.lds.low, result.lds.high], [place] * 2, color=colour, linewidth=1.8)
        label = None if label in seen else label
        seen.add("score" if is_score else "yardstick")
        axes.plot(result.lds.value, place, marker, color=colour, markersize=5.5, label=label, linewidth=0)
    name_rows(axes, list(results), 28)
    axes.set_ylim(len(results) - 0.4, -0.6)
    low = min([-0.2, *(each.lds.low for each in results.values() if each.lds is not None)])
    axes.set_xlim(low - 0.05, 1.05)
    axes.set_xlabel("LDS (rank correlation of predicted and true gain)")
    axes.set_title(wrapped(title, 60), fontsize=9, loc="left")
    place = {"loc": "outside lower left", "ncols": 4, "columnspacing": 1.0}
    axes.figure.legend(frameon=False, fontsize=7.5, labelcolor=ink["text"], **place)
