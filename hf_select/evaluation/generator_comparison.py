"""Which generator's data is better? Several models' answers to the same prompts, measured in four ways.

statistics   per model: length, markup, refusals, cut answers, n-gram diversity over equally many words, languages
agreement    between models: ROUGE-L (Lin 2004) of their answers to the same prompt, and the cosine of their embeddings
judged       verdicts of a judge in both orders (judging.py), and any score column, a reward model's say
trained      the real test: the same base model trained on each model's answers to the same prompts for equally many
             tokens, through compare() (compare.py)

Only prompts that all models have answered are used: where an answer is missing, cut or lost, the prompt counts for
nobody. Intervals are over prompts, or over seeds and held-out rows (statistics.py). What judges say and what can be
checked are never averaged together: in WildChat-50M's own tables (Feuer and Hegde 2025, arXiv:2501.18511) the winner
depends on which of the two is looked at.

Statistics say how answers look, not how good they are.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import numpy as np
from datasets import Dataset
from scipy.stats import kendalltau, spearmanr

from hf_select.data import columns
from hf_select.data.bad_rows import BadRow
from hf_select.data.conversation import Conversation, conversations
from hf_select.data.rows import readable
from hf_select.data.text import words
from hf_select.evaluation.compare import compare
from hf_select.evaluation.judge import Pair, Verdict, judge, summary
from hf_select.evaluation.statistics import differences
from hf_select.features.featurizer import unit
from hf_select.generation.answer_filters import is_refusal
from hf_select.generation.generator import Generator
from hf_select.reports.comparison_result import Difference
from hf_select.selection.budget import Budget
from hf_select.selection.selector import Choice, Selector
from hf_select.training.equal_tokens import Recipe


# What makes an answer look like a document. Bold is counted apart from lists, which models write without it, too.
MARKUP = {
    "headings": re.compile(r"^#{1,6} \S", re.MULTILINE),
    "lists": re.compile(r"^\s*([-*+•]|\d+[.)])\s+\S", re.MULTILINE),
    "bold": re.compile(r"\*\*[^*\n]+\*\*"),
    "code": re.compile(r"```"),
    "tables": re.compile(r"^\s*\|.*\|\s*$", re.MULTILINE),
}
# Characters from which on a language is guessed.
_LONG_ENOUGH = 20


@dataclass
class Answers:
    """Several models' last replies to the same prompts.

    Args:
        dataset: a row an answer, in any layout, with a column that names the model. Prompts are told apart by the
            columns `conversation` and `turn`, where they are there, else by their text (the n-th time a model answers
            a text is matched with the n-th time of another).
        model_column: its name.
    Raises: ValueError if the column is missing, if there are fewer than two models, or if no prompt was answered by
        all of them.
    """

    dataset: Dataset
    model_column: str = "model"

    def __post_init__(self) -> None:
        if self.model_column not in self.dataset.column_names:
            raise columns.missing_column(self.model_column, self.dataset.column_names, "Name it in model_column.")
        self.rows: dict[str, dict[str, int]] = defaultdict(dict)  # model -> prompt -> row of the dataset
        self.texts: dict[int, str] = {}
        self.asked: dict[int, str] = {}
        self.unreadable = 0
        models = self.dataset[self.model_column]
        named = self._names()
        times: Counter[tuple[str, str]] = Counter()
        rows = readable(self.dataset)
        for start in range(0, len(rows), 1000):
            for row, parsed in enumerate(conversations(cast(dict, rows[start : start + 1000])), start):
                if isinstance(parsed, BadRow) or not parsed.messages or parsed.messages[-1]["role"] != "assistant":
                    self.unreadable += 1
                    continue
                asked = "\n\n".join(message["content"] for message in parsed.messages[:-1])
                name = asked if named is None else named[row]
                times[models[row], name] += 1
                name = f"{name}#{times[models[row], name]}"
                self.rows[models[row]][name] = row
                self.texts[row] = parsed.messages[-1]["content"]
                self.asked[row] = asked
        if len(self.rows) < 2:
            raise ValueError(f'"{self.model_column}" names {len(self.rows)} models; a comparison needs at least two.')
        everywhere = set.intersection(*(set(rows) for rows in self.rows.values()))
        first = next(iter(self.rows.values()))
        self.prompts = [name for name in first if name in everywhere]
        if not self.prompts:
            raise ValueError("no prompt was answered by all models; give them the same prompts.")

    @property
    def models(self) -> list[str]:
        return list(self.rows)

    def of(self, model: str) -> list[str]:
        """The model's answers, in the order of `prompts`."""
        return [self.texts[self.rows[model][name]] for name in self.prompts]

    def column(self, model: str, name: str) -> list[Any]:
        return self._columns(name)[[self.rows[model][prompt] for prompt in self.prompts]].tolist()

    def _columns(self, name: str) -> np.ndarray:
        return np.array(self.dataset[name], dtype=object)

    def _names(self) -> list[str] | None:
        present = [name for name in ("conversation", "turn") if name in self.dataset.column_names]
        if "conversation" not in present:
            return None
        return ["/".join(map(str, values)) for values in zip(*(self.dataset[name] for name in present), strict=True)]

    @cached_property
    def words(self) -> dict[str, list[list[str]]]:
        """Lower-case words of each answer, by model."""
        return {model: [words(text) for text in self.of(model)] for model in self.models}


# --------------------------------------------------------------------------------------------------------------------
# How answers look.


def statistics(answers: Answers, more_refusals: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Of each model over the common prompts: characters and words (mean, median), the share of answers with each kind
    of markup, of refusals and of cut answers, distinct n-grams, and languages (extra `text`).

    distinct_n is the share of different n-grams among all of as many words as the tersest model wrote, taken in the
    order of the prompts: over all words it would fall with length alone.
    """
    shortest = min(sum(map(len, answers.words[model])) for model in answers.models)
    found = {}
    for model in answers.models:
        texts, said = answers.of(model), answers.words[model]
        sizes, counts = [len(text) for text in texts], [len(words) for words in said]
        line: dict[str, Any] = {
            "answers": len(texts),
            "characters": float(np.mean(sizes)),
            "characters_median": float(np.median(sizes)),
            "words": float(np.mean(counts)),
            "words_interval": interval(counts),
            **{kind: float(np.mean([bool(mark.search(text)) for text in texts])) for kind, mark in MARKUP.items()},
            "refusals": float(np.mean([is_refusal(text, list(more_refusals)) for text in texts])),
            **{f"distinct_{n}": distinct(said, n, shortest) for n in (1, 2, 3)},
            "languages": languages(texts),
        }
        if "finish_reason" in answers.dataset.column_names:
            line["cut"] = float(np.mean([reason == "length" for reason in answers.column(model, "finish_reason")]))
        found[model] = line
    return found


def distinct(said: Sequence[Sequence[str]], n: int, limit: int) -> float:
    """Share of different n-grams (within answers) among those of the first `limit` words."""
    seen: set[tuple[str, ...]] = set()
    total = left = 0
    left = limit
    for one in said:
        one = one[:left]
        left -= len(one)
        grams = [tuple(one[i : i + n]) for i in range(len(one) - n + 1)]
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else 0.0


def languages(texts: Sequence[str]) -> dict[str, float] | None:
    """Share of each language among the answers long enough to tell, or None without py3langid (extra `text`)."""
    try:
        import py3langid  # type: ignore[import-not-found]
    except ImportError:
        return None
    found = Counter(py3langid.classify(text)[0] for text in texts if len(text) >= _LONG_ENOUGH)
    return {name: count / found.total() for name, count in found.most_common()}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a mean over prompts (Student's t)."""
    of_prompts = np.asarray(values, dtype=np.float64)[:, None]
    if len(of_prompts) < 2:
        return (float("nan"), float("nan"))
    found = differences({"x": of_prompts}, np.zeros_like(of_prompts))["x"]
    return found.low, found.high


# --------------------------------------------------------------------------------------------------------------------
# How alike they are.


def rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """F1 of the longest common subsequence of two texts' words (Lin 2004); 0 if either is empty.

    Not from a library: rouge-score keeps ASCII words alone, so that two Chinese answers have nothing in common, and
    takes 20 ms a pair of 200 words for its table, where bits of an integer take 0.1 ms (Hyyrö 2004).
    """
    if not a or not b:
        return 0.0
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & full
    return 2 * (len(a) - row.bit_count()) / (len(a) + len(b))


def agreement(answers: Answers, featurizer: Any = None) -> dict[str, dict[tuple[str, str], np.ndarray]]:
    """For each pair of models and each prompt how alike the two answers are: {"rouge_l": {(a, b): (prompts,)}}, and
    "embedding" (cosine) with a featurizer (features/) of answers; NaN where one has no vector."""
    found: dict[str, dict[tuple[str, str], np.ndarray]] = {"rouge_l": {}}
    vectors = (
        {} if featurizer is None else {model: _vectors(answers.of(model), featurizer) for model in answers.models}
    )
    for a, b in combinations(answers.models, 2):
        pairs = zip(answers.words[a], answers.words[b], strict=True)
        found["rouge_l"][a, b] = np.array([rouge_l(first, second) for first, second in pairs])
        if featurizer is not None:
            found.setdefault("embedding", {})[a, b] = (vectors[a] * vectors[b]).sum(axis=1)
    return found


def consensus(pairs: Mapping[tuple[str, str], np.ndarray], models: Sequence[str]) -> dict[str, float]:
    """How alike each model's answers are to those of the others, on average."""
    means = {pair: float(np.nanmean(values)) for pair, values in pairs.items()}
    return {model: float(np.mean([mean for pair, mean in means.items() if model in pair])) for model in models}


def _vectors(texts: Sequence[str], featurizer: Any) -> np.ndarray:
    features = featurizer([Conversation([], text=text) for text in texts])
    width = max((len(f.vector) for f in features if not isinstance(f, BadRow)), default=1)
    lost = np.full(width, np.nan, dtype=np.float32)
    return unit(np.stack([lost if isinstance(f, BadRow) else f.vector for f in features]))


# --------------------------------------------------------------------------------------------------------------------
# What judges say.


def judged(
    answers: Answers, generator: Generator, folder: str | Path, prompts: int = 200, seed: int = 0
) -> dict[str, Any]:
    """Verdicts on every pair of models over so many prompts that all were asked alike, drawn by the seed.

    Returns: {"judge", "pairs": [counts], "models": {model: {"win_rate", "low", "high"}}}. A model's win rate at a
    prompt is its mean over all others, ties count half; the interval is over prompts.
    """
    # Later turns after replies of a model's own are other questions, and no two models were asked the same.
    asked = [{answers.asked[rows[name]] for rows in answers.rows.values()} for name in answers.prompts]
    alike = [i for i, said in enumerate(asked) if len(said) == 1]
    order = [alike[i] for i in np.random.default_rng(seed).permutation(len(alike))[:prompts].tolist()]
    texts = {model: answers.of(model) for model in answers.models}
    pairs = [
        Pair(a, b, [(answers.prompts[i], next(iter(asked[i])), texts[a][i], texts[b][i]) for i in order])
        for a, b in combinations(answers.models, 2)
    ]
    verdicts = judge(pairs, generator, Path(folder).expanduser(), seed=seed)
    return {
        "judge": generator.name,
        "pairs": [
            {"first": pair.first, "second": pair.second, **summary(pair, verdicts[pair.first, pair.second])}
            for pair in pairs
        ],
        "models": _win_rates(verdicts, answers.models),
    }


def _win_rates(verdicts: Mapping[tuple[str, str], Sequence[Verdict]], models: Sequence[str]) -> dict[str, Any]:
    found = {}
    for model in models:
        by_prompt: dict[str, list[float]] = defaultdict(list)
        for (first, second), of_pair in verdicts.items():
            for verdict in of_pair if model in (first, second) else ():
                by_prompt[verdict.prompt].append(verdict.result if model == first else 1 - verdict.result)
        rates = [float(np.mean(results)) for results in by_prompt.values()]
        low, high = interval(rates)
        found[model] = {"win_rate": float(np.mean(rates)) if rates else None, "low": low, "high": high}
    return found


def scored(answers: Answers, score: str | Callable[[list[Conversation]], Sequence[float]]) -> dict[str, Any]:
    """Mean of a score by model with its interval over prompts, and its difference to the mean of all models.

    Args:
        score: a column of the dataset, or a function of conversations (prompt and answer), a reward model's say.
    """
    by_model = {}
    for model in answers.models:
        if isinstance(score, str):
            if score not in answers.dataset.column_names:
                raise columns.missing_column(score, answers.dataset.column_names, "Score the answers first.")
            values = answers.column(model, score)
        else:
            chosen = answers.dataset.select([answers.rows[model][prompt] for prompt in answers.prompts])
            values = score([cast(Conversation, row) for row in conversations(cast(dict, readable(chosen)[:]))])
        by_model[model] = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    whole = ~np.isnan(np.stack(list(by_model.values()))).any(axis=0)
    if whole.sum() < 2:
        raise ValueError("fewer than two prompts have a score for every model's answer.")
    kept = {model: values[whole][:, None] for model, values in by_model.items()}
    mean = np.mean(list(kept.values()), axis=0)
    against = differences(kept, mean, lower_is_better=False)
    return {
        model: {"mean": float(values.mean()), "prompts": int(whole.sum()), "to_all": vars(against[model])}
        for model, values in kept.items()
    }


# --------------------------------------------------------------------------------------------------------------------
# What is learned from them.


@dataclass
class _AnswersOf(Selector):
    """All rows of one model, in the order of their prompts."""

    model: str
    column: str

    def choose(self, dataset: Dataset, budget: Budget) -> Choice:
        """The model's first rows: fewer than requested where the others cannot be trained on."""
        rows = np.array([row for row, name in enumerate(dataset[self.column]) if name == self.model])
        return Choice(rows[: budget.rows], lambda place, row: f"an answer of {self.model}")


def trained(
    answers: Answers,
    held_out: Mapping[str, Any],
    recipe: Recipe,
    output_dir: str | Path,
    prompts: int | None = None,
    seeds: int = 3,
    passes: float = 2.0,
    seed: int = 0,
) -> dict[str, Any]:
    """The same base model trained on each model's answers to the same prompts, for equally many tokens.

    Returns: compare()'s result, where "random" is a blend of all models' answers, and beside it "between": for each
    held-out domain and pair of models the difference of their losses, Holm's p over the pairs.

    Args:
        prompts: how many, drawn by the seed; all by default.
        seeds: training runs of each model.
        passes: every run trains as many tokens as so many passes over random answers.
    """
    folder = Path(output_dir).expanduser()
    order = np.random.default_rng(seed).permutation(len(answers.prompts))[:prompts]
    names = [answers.prompts[i] for i in order.tolist()]
    pool = answers.dataset.select([answers.rows[model][name] for name in names for model in answers.models])
    methods = {model: _AnswersOf(model, answers.model_column) for model in answers.models}
    result = compare(pool, methods, held_out, recipe, folder, [len(names)], seeds=seeds, passes=passes)
    return {**result.to_dict(), "between": _between(folder, answers.models, len(names), seeds)}


def _between(folder: Path, models: Sequence[str], budget: int, seeds: int) -> dict[str, dict[str, Any]]:
    """Each pair of models by the records of the comparison's runs."""
    losses: dict[str, dict[str, dict[int, list[float]]]] = defaultdict(lambda: defaultdict(dict))
    for path in (folder / "cells").rglob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["method"] in models and record["budget"] == f"{budget} rows" and record["seed"] < seeds:
            for domain, values in record["values"].items():
                losses[domain][record["method"]][record["seed"]] = values
    found: dict[str, dict[str, Any]] = {}
    for domain, by_model in losses.items():
        results = {model: np.array([runs[seed] for seed in sorted(runs)]) for model, runs in by_model.items()}
        pairs = {(a, b): results[a] - results[b] for a, b in combinations(models, 2)}
        zero = np.zeros_like(next(iter(pairs.values())))
        named = differences({f"{a} less {b}": d for (a, b), d in pairs.items()}, zero)
        found[domain] = {name: {**vars(d), "verdict": d.verdict()} for name, d in named.items()}
    return found


# --------------------------------------------------------------------------------------------------------------------
# All together.


def averages(results: Mapping[str, Mapping[str, float]], kinds: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Mean over benchmarks by model, one for each kind ("judge", "exact"): never one of both.

    Args:
        results: benchmark -> model -> result, higher is better, on one scale.
        kinds: benchmark -> its kind.
    Raises: ValueError if a benchmark has no kind, or a model no result: an average over what happens to be there
        compares nothing.
    """
    models = sorted({model for of in results.values() for model in of})
    for name, of in results.items():
        if name not in kinds:
            raise ValueError(f'benchmark "{name}" is neither judge nor exact; say which in kinds.')
        if missing := [model for model in models if model not in of]:
            raise ValueError(f'benchmark "{name}" has no result of {", ".join(missing)}; run it, or leave it out.')
    found = {}
    for kind in sorted({kinds[name] for name in results}):
        of_kind = [of for name, of in results.items() if kinds[name] == kind]
        found[kind] = {model: float(np.mean([of[model] for of in of_kind])) for model in models}
    return found


def ranking_agreement(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
    """Spearman's rho and Kendall's tau of two rankings of the same models, with their p-values."""
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


def as_markdown(result: Mapping[str, Any]) -> str:
    """The tables in Markdown."""
    parts = [f"# Answers of {len(result['models'])} models to the same {result['prompts']:,} prompts\n"]
    parts += _statistics_table(result["statistics"])
    for measure, table in result["agreement"].items():
        parts += _agreement_table(measure, table, result["models"])
    if "judged" in result:
        parts += _judged_tables(result["judged"])
    if "scored" in result:
        parts.append(f"\n## {result['score']}: what a model says (judge)\n")
        parts.append("| model | mean | to the mean of all models |\n|---|---|---|")
        for model, line in result["scored"].items():
            d = line["to_all"]
            parts.append(f"| {model} | {line['mean']:.4g} | {d['mean']:+.4g} [{d['low']:+.4g}, {d['high']:+.4g}] |")
    for domain, pairs in result.get("trained", {}).get("between", {}).items():
        parts.append(f"\n## The same base model trained on each: loss on {domain} (exact)\n")
        parts.append("| models | difference | p | |\n|---|---|---|---|")
        for name, line in pairs.items():
            d = Difference(**{key: value for key, value in line.items() if key != "verdict"})
            shown = f"{d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}] | {d.p_holm:.3f} | {line['verdict']}"
            parts.append(f"| {name} | {shown} |")
    return "\n".join(parts) + "\n"


def _statistics_table(stats: Mapping[str, Any]) -> list[str]:
    some = next(iter(stats.values()))
    kinds = [*MARKUP, "refusals", *(["cut"] if "cut" in some else [])]
    parts = ["## How they look\n\nShares of answers; distinct n-grams over equally many words of each model.\n"]
    parts.append("| model | words | " + " | ".join(kinds) + " | distinct 1, 2, 3 | languages |")
    parts.append("|" + "---|" * (len(kinds) + 4))
    for model, line in stats.items():
        low, high = line["words_interval"]
        spoken = ", ".join(f"{name} {share:.1%}" for name, share in list((line["languages"] or {}).items())[:3])
        shares = " | ".join(f"{line[kind]:.1%}" for kind in kinds)
        grams = ", ".join(f"{line[f'distinct_{n}']:.3f}" for n in (1, 2, 3))
        parts.append(f"| {model} | {line['words']:.0f} [{low:.0f}, {high:.0f}] | {shares} | {grams} | {spoken} |")
    return parts


def _agreement_table(measure: str, table: Mapping[str, Any], models: Sequence[str]) -> list[str]:
    parts = [f"\n## How alike they are: {measure}\n\nMean over prompts of each pair; last the mean over the others.\n"]
    parts.append("| | " + " | ".join(models) + " | mean |\n|" + "---|" * (len(models) + 2))
    alike = table["pairs"] | {" | ".join(name.split(" | ")[::-1]): value for name, value in table["pairs"].items()}
    for a in models:
        cells = ["" if a == b else f"{alike[f'{a} | {b}']:.3f}" for b in models]
        parts.append(f"| {a} | " + " | ".join(cells) + f" | {table['consensus'][a]:.3f} |")
    return parts


def _judged_tables(found: Mapping[str, Any]) -> list[str]:
    parts = [f"\n## What {found['judge']} says (judge)\n\n| model | win rate over the others |\n|---|---|"]
    for model, line in found["models"].items():
        rate = line["win_rate"]
        shown = "-" if rate is None else f"{rate:.3f} [{line['low']:.3f}, {line['high']:.3f}]"
        parts.append(f"| {model} | {shown} |")
    names = ("first", "second", "wins", "ties", "losses", "judged", "prompts", "contradictions")
    parts.append("\n| " + " | ".join(names) + " | said for what stands first |\n|" + "---|" * 9)
    for pair in found["pairs"]:
        first = pair["share_for_what_stands_first"]
        cells = [str(pair[name]) for name in names]
        parts.append("| " + " | ".join(cells) + f" | {'-' if first is None else f'{first:.2f}'} |")
    return parts


def described(answers: Answers, featurizer: Any = None) -> dict[str, Any]:
    """Statistics and agreement in words that JSON can hold."""
    alike = {
        measure: {
            "pairs": {f"{a} | {b}": float(np.nanmean(values)) for (a, b), values in pairs.items()},
            "consensus": consensus(pairs, answers.models),
        }
        for measure, pairs in agreement(answers, featurizer).items()
    }
    return {
        "models": answers.models,
        "prompts": len(answers.prompts),
        "unreadable": answers.unreadable,
        "statistics": statistics(answers),
        "agreement": alike,
    }
