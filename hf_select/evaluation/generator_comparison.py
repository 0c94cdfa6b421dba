"""Which generator's data is better? Several models' answers to the same prompts, compared in four ways.

describe          per model: length, markup, refusals, cut answers, n-gram diversity, languages; between models:
                  ROUGE-L of answers to the same prompt, and the cosine of embeddings (answer_statistics.py)
judge_answers     verdicts of a judge in both orders (judge.py)
score_answers     any score column, for example of a reward model
train_on_answers  the same base model trained on each model's answers to the same prompts for equally many tokens,
                  through compare()

Only prompts that all models have answered are used. Intervals are over prompts, or over seeds and held-out rows
(statistics.py). Judgements and exact results are never averaged together: in WildChat-50M's own tables (Feuer and
Hegde 2025, arXiv:2501.18511) the winner depends on which of the two is considered.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import numpy as np
from datasets import Dataset
from scipy.stats import kendalltau, spearmanr

from hf_select.data import columns
from hf_select.data.conversation import Conversation
from hf_select.data.rows import conversations_of
from hf_select.evaluation.answer_statistics import AnswerFeaturizer, answer_agreement, answer_statistics, consensus
from hf_select.evaluation.compare import compare
from hf_select.evaluation.judge import Pair, Verdict, judge, pair_verdicts
from hf_select.evaluation.measure import Measure
from hf_select.evaluation.model_answers import Answers
from hf_select.evaluation.statistics import differences, mean_interval
from hf_select.generation.generator import Generator
from hf_select.reports.generator_result import (
    AnswerAgreement,
    AnswerScore,
    AnswerTraining,
    GeneratorComparison,
    Judgement,
    PairDifference,
    WinRate,
)
from hf_select.selection.budget import Budget
from hf_select.selection.selector import Choice, Selector
from hf_select.training.equal_tokens import Recipe


def describe(answers: Answers, featurizer: AnswerFeaturizer | None = None) -> GeneratorComparison:
    """Return statistics and agreement of the answers.

    Args:
        featurizer: of answers, for the agreement of embeddings.
    """
    agreement = {
        measure: AnswerAgreement(
            pairs={f"{a} | {b}": float(np.nanmean(values)) for (a, b), values in pairs.items()},
            consensus=consensus(pairs, answers.models),
        )
        for measure, pairs in answer_agreement(answers, featurizer).items()
    }
    statistics = answer_statistics(answers)
    return GeneratorComparison(answers.models, len(answers.prompts), answers.unreadable, statistics, agreement)


def judge_answers(
    answers: Answers, generator: Generator, folder: str | Path, prompts: int = 200, seed: int = 0
) -> Judgement:
    """Judge every pair of models on up to `prompts` prompts, drawn by the seed.

    A model's win rate at a prompt is its mean over all others, ties count half; the interval is over prompts.
    """
    # A later turn follows replies of the model's own, so its prompt differs between models; such prompts are left out.
    texts = [{answers.prompt_texts[rows[name]] for rows in answers.rows.values()} for name in answers.prompts]
    equal = [i for i, of_models in enumerate(texts) if len(of_models) == 1]
    order = [equal[i] for i in np.random.default_rng(seed).permutation(len(equal))[:prompts].tolist()]
    replies = {model: answers.of(model) for model in answers.models}
    pairs = [
        Pair(a, b, [(answers.prompts[i], next(iter(texts[i])), replies[a][i], replies[b][i]) for i in order])
        for a, b in combinations(answers.models, 2)
    ]
    verdicts = judge(pairs, generator, Path(folder).expanduser(), seed=seed)
    counts = [pair_verdicts(pair, verdicts[pair.first, pair.second]) for pair in pairs]
    return Judgement(generator.name, counts, {model: _win_rate(model, verdicts) for model in answers.models})


def _win_rate(model: str, verdicts: Mapping[tuple[str, str], Sequence[Verdict]]) -> WinRate:
    by_prompt: dict[str, list[float]] = defaultdict(list)
    for (first, second), of_pair in verdicts.items():
        for verdict in of_pair if model in (first, second) else ():
            by_prompt[verdict.prompt].append(verdict.result if model == first else 1 - verdict.result)
    rates = [float(np.mean(results)) for results in by_prompt.values()]
    return WinRate(float(np.mean(rates)) if rates else None, *mean_interval(rates))


def score_answers(
    answers: Answers, score: str | Callable[[list[Conversation]], Sequence[float]]
) -> dict[str, AnswerScore]:
    """Return the mean score of each model, and its difference to the mean of all models with an interval over prompts.

    Args:
        score: a column of the dataset, or a function of conversations (prompt and answer). Prompts with a missing
            score of any model are left out.
    """
    by_model = {}
    for model in answers.models:
        if isinstance(score, str):
            if score not in answers.dataset.column_names:
                raise columns.missing_column(score, answers.dataset.column_names, "Score the answers first.")
            values = answers.column(model, score)
        else:
            chosen = answers.dataset.select([answers.rows[model][prompt] for prompt in answers.prompts])
            values = score([cast(Conversation, row) for row in conversations_of(chosen)])
        by_model[model] = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    present = ~np.isnan(np.stack(list(by_model.values()))).any(axis=0)
    if present.sum() < 2:
        raise ValueError("fewer than two prompts have a score for every model's answer.")
    scores = {model: values[present][:, None] for model, values in by_model.items()}
    to_all = differences(scores, np.mean(list(scores.values()), axis=0), lower_is_better=False)
    return {
        model: AnswerScore(float(values.mean()), int(present.sum()), to_all[model]) for model, values in scores.items()
    }


def train_on_answers(
    answers: Answers,
    held_out: Mapping[str, Dataset | Measure],
    recipe: Recipe,
    output_dir: str | Path,
    prompts: int | None = None,
    seeds: int = 3,
    passes: float = 2.0,
    seed: int = 0,
) -> AnswerTraining:
    """Train the same base model on each model's answers to the same prompts, for equally many tokens.

    Args:
        prompts: number of prompts, drawn by the seed; all by default.
        seeds: training runs of each model.
        passes: every run trains as many tokens as `passes` over random answers.
    """
    folder = Path(output_dir).expanduser()
    order = np.random.default_rng(seed).permutation(len(answers.prompts))[:prompts]
    names = [answers.prompts[i] for i in order.tolist()]
    pool = answers.dataset.select([answers.rows[model][name] for name in names for model in answers.models])
    methods = {model: _AnswersOf(model, answers.model_column) for model in answers.models}
    comparison = compare(pool, methods, held_out, recipe, folder, [len(names)], seeds=seeds, passes=passes)
    return AnswerTraining(comparison, _pair_differences(folder, answers.models, len(names), seeds))


@dataclass
class _AnswersOf(Selector):
    """All rows of one model, in the order of their prompts."""

    model: str
    column: str

    def choose(self, dataset: Dataset, budget: Budget) -> Choice:
        """The model's first rows: fewer than requested where the others cannot be trained on."""
        rows = np.array([row for row, name in enumerate(dataset[self.column]) if name == self.model])
        return Choice(rows[: budget.rows], lambda place, row: f"an answer of {self.model}")


def _pair_differences(
    folder: Path, models: Sequence[str], budget: int, seeds: int
) -> dict[str, dict[str, PairDifference]]:
    """Compare each pair of models by the records of the comparison's runs; p-values are corrected over the pairs."""
    losses: dict[str, dict[str, dict[int, list[float]]]] = defaultdict(lambda: defaultdict(dict))
    for path in (folder / "cells").rglob("*.json"):
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if record["method"] in models and record["budget"] == f"{budget} rows" and record["seed"] < seeds:
            for domain, values in record["values"].items():
                losses[domain][record["method"]][record["seed"]] = values
    between: dict[str, dict[str, PairDifference]] = {}
    for domain, by_model in losses.items():
        results = {model: np.array([runs[seed] for seed in sorted(runs)]) for model, runs in by_model.items()}
        pairs = {f"{a} less {b}": results[a] - results[b] for a, b in combinations(models, 2)}
        zero = np.zeros_like(next(iter(pairs.values())))
        between[domain] = {name: PairDifference(d, d.verdict()) for name, d in differences(pairs, zero).items()}
    return between


def ranking_agreement(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
    """Return Spearman's rho and Kendall's tau of two rankings of the same models, with their p-values."""
    models = [model for model in ours if model in theirs]
    if len(models) < 3:
        raise ValueError(f"the two rankings have {len(models)} models in common; at least three are needed.")
    a, b = [ours[model] for model in models], [theirs[model] for model in models]
    rho, tau = cast(Any, spearmanr(a, b)), cast(Any, kendalltau(a, b))
    return {
        "models": len(models),
        "spearman": float(rho.statistic),
        "spearman_p": float(rho.pvalue),
        "kendall": float(tau.statistic),
        "kendall_p": float(tau.pvalue),
    }
