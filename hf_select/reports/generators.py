"""The tables of a comparison of generators in Markdown."""

from collections.abc import Mapping, Sequence

from hf_select.reports.generator_result import (
    AnswerAgreement,
    AnswerStatistics,
    GeneratorComparison,
    Judgement,
)


def generators_markdown(result: GeneratorComparison) -> str:
    """Return all tables as one Markdown text."""
    parts = [f"# Answers of {len(result.models)} models to the same {result.prompts:,} prompts\n"]
    parts += _statistics_table(result.statistics)
    for measure, agreement in result.agreement.items():
        parts += _agreement_table(measure, agreement, result.models)
    if result.judgement is not None:
        parts += _judgement_tables(result.judgement)
    if result.scores is not None:
        parts.append(f"\n## {result.score}: what a model says (judge)\n")
        parts.append("| model | mean | difference to the mean of all models |\n|---|---|---|")
        for model, score in result.scores.items():
            d = score.to_all
            parts.append(f"| {model} | {score.mean:.4g} | {d.mean:+.4g} [{d.low:+.4g}, {d.high:+.4g}] |")
    between = {} if result.training is None else result.training.between
    for domain, pairs in between.items():
        parts.append(f"\n## The same base model trained on each: loss on {domain} (exact)\n")
        parts.append("| models | difference | p | |\n|---|---|---|---|")
        for name, pair in pairs.items():
            d = pair.difference
            parts.append(f"| {name} | {d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}] | {d.p_holm:.3f} | {pair.verdict} |")
    return "\n".join(parts) + "\n"


# --------------------------------------------------------------------------------------------------------------------


def _statistics_table(statistics: Mapping[str, AnswerStatistics]) -> list[str]:
    some = next(iter(statistics.values()))
    kinds = [*some.markup, "refusals", *(["cut"] if some.cut is not None else [])]
    parts = ["## How they look\n\nShares of answers; distinct n-grams over equally many words of each model.\n"]
    parts.append("| model | words | " + " | ".join(kinds) + " | distinct 1, 2, 3 | languages |")
    parts.append("|" + "---|" * (len(kinds) + 4))
    for model, of in statistics.items():
        low, high = of.words_interval
        languages = ", ".join(f"{name} {share:.1%}" for name, share in list((of.languages or {}).items())[:3])
        values = [*of.markup.values(), of.refusals, *([] if of.cut is None else [of.cut])]
        shares = " | ".join(f"{value:.1%}" for value in values)
        grams = ", ".join(f"{share:.3f}" for share in of.distinct)
        parts.append(f"| {model} | {of.words:.0f} [{low:.0f}, {high:.0f}] | {shares} | {grams} | {languages} |")
    return parts


def _agreement_table(measure: str, agreement: AnswerAgreement, models: Sequence[str]) -> list[str]:
    parts = [f"\n## How alike they are: {measure}\n\nMean over prompts of each pair; last the mean over the others.\n"]
    parts.append("| | " + " | ".join(models) + " | mean |\n|" + "---|" * (len(models) + 2))
    alike = agreement.pairs | {" | ".join(name.split(" | ")[::-1]): value for name, value in agreement.pairs.items()}
    for a in models:
        cells = ["" if a == b else f"{alike[f'{a} | {b}']:.3f}" for b in models]
        parts.append(f"| {a} | " + " | ".join(cells) + f" | {agreement.consensus[a]:.3f} |")
    return parts


def _judgement_tables(judgement: Judgement) -> list[str]:
    parts = [f"\n## What {judgement.judge} says (judge)\n\n| model | win rate over the others |\n|---|---|"]
    for model, rate in judgement.models.items():
        shown = "-" if rate.win_rate is None else f"{rate.win_rate:.3f} [{rate.low:.3f}, {rate.high:.3f}]"
        parts.append(f"| {model} | {shown} |")
    names = ("first", "second", "wins", "ties", "losses", "judged", "prompts", "contradictions")
    parts.append("\n| " + " | ".join(names) + " | share for the answer shown first |\n|" + "---|" * 9)
    for pair in judgement.pairs:
        counts = (pair.wins, pair.ties, pair.losses, pair.judged, pair.prompts, pair.contradictions)
        share = "-" if pair.share_for_first_shown is None else f"{pair.share_for_first_shown:.2f}"
        parts.append("| " + " | ".join([pair.first, pair.second, *map(str, counts), share]) + " |")
    return parts
