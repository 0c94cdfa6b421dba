"""How models' answers look, and how alike they are: length, markup, refusals, n-gram diversity, languages, ROUGE-L.

Statistics describe answers; they do not measure their quality.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np

from hf_select.data.bad_rows import BadRow
from hf_select.data.conversation import Conversation
from hf_select.evaluation.model_answers import Answers
from hf_select.evaluation.statistics import mean_interval
from hf_select.features.featurizer import Feature, unit
from hf_select.generation.answer_filters import is_refusal
from hf_select.reports.generator_result import AnswerStatistics


# What makes an answer look like a document. Bold is counted apart from lists, which models also write without it.
MARKUP = {
    "headings": re.compile(r"^#{1,6} \S", re.MULTILINE),
    "lists": re.compile(r"^\s*([-*+•]|\d+[.)])\s+\S", re.MULTILINE),
    "bold": re.compile(r"\*\*[^*\n]+\*\*"),
    "code": re.compile(r"```"),
    "tables": re.compile(r"^\s*\|.*\|\s*$", re.MULTILINE),
}
_FEWEST_CHARACTERS = 20  # for a guess of the language

AnswerFeaturizer = Callable[[list[Conversation]], list[Feature | BadRow]]  # a Featurizer, for example


def answer_statistics(answers: Answers, more_refusals: Sequence[str] = ()) -> dict[str, AnswerStatistics]:
    """Return statistics of each model over the common prompts.

    Distinct n-grams are counted over the first words of each model, as many as the tersest model wrote: over all words
    their share would fall with length alone.

    Args:
        more_refusals: regular expressions of refusals besides the usual ones.
    """
    shortest = min(sum(map(len, answers.words[model])) for model in answers.models)
    statistics = {}
    for model in answers.models:
        texts, tokens = answers.of(model), answers.words[model]
        sizes, counts = [len(text) for text in texts], [len(words) for words in tokens]
        cut = None
        if "finish_reason" in answers.dataset.column_names:
            cut = float(np.mean([reason == "length" for reason in answers.column(model, "finish_reason")]))
        statistics[model] = AnswerStatistics(
            answers=len(texts),
            characters=float(np.mean(sizes)),
            characters_median=float(np.median(sizes)),
            words=float(np.mean(counts)),
            words_interval=mean_interval(counts),
            markup={kind: float(np.mean([bool(mark.search(t)) for t in texts])) for kind, mark in MARKUP.items()},
            refusals=float(np.mean([is_refusal(text, list(more_refusals)) for text in texts])),
            distinct=(distinct(tokens, 1, shortest), distinct(tokens, 2, shortest), distinct(tokens, 3, shortest)),
            languages=languages(texts),
            cut=cut,
        )
    return statistics


def distinct(answers: Sequence[Sequence[str]], n: int, limit: int) -> float:
    """Return the share of different n-grams (within answers) among those of the first `limit` words."""
    seen: set[tuple[str, ...]] = set()
    total, left = 0, limit
    for words in answers:
        words = words[:left]
        left -= len(words)
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else 0.0


def languages(texts: Sequence[str]) -> dict[str, float] | None:
    """Return the share of each language among the longer answers, or None without py3langid (extra `text`)."""
    try:
        import py3langid  # type: ignore[import-not-found]
    except ImportError:
        return None
    counts = Counter(py3langid.classify(text)[0] for text in texts if len(text) >= _FEWEST_CHARACTERS)
    return {name: count / counts.total() for name, count in counts.most_common()}


def rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """Return the F1 of the longest common subsequence of two texts' words (Lin 2004); 0 if either is empty.

    Not from a library: rouge-score keeps only ASCII words, so that two Chinese answers have nothing in common, and its
    table takes 20 ms for a pair of 200 words, where bits of an integer take 0.1 ms (Hyyrö 2004).
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


def answer_agreement(
    answers: Answers, featurizer: AnswerFeaturizer | None = None
) -> dict[str, dict[tuple[str, str], np.ndarray]]:
    """Return how alike the answers of each pair of models are, per prompt: measure -> (a, b) -> values (prompts,).

    Args:
        featurizer: of answers; adds "embedding" (cosine) to "rouge_l", NaN where an answer has no vector.
    """
    agreement: dict[str, dict[tuple[str, str], np.ndarray]] = {"rouge_l": {}}
    for a, b in combinations(answers.models, 2):
        pairs = zip(answers.words[a], answers.words[b], strict=True)
        agreement["rouge_l"][a, b] = np.array([rouge_l(first, second) for first, second in pairs])
    if featurizer is not None:
        vectors = {model: _answer_vectors(answers.of(model), featurizer) for model in answers.models}
        agreement["embedding"] = {
            (a, b): (vectors[a] * vectors[b]).sum(axis=1) for a, b in combinations(answers.models, 2)
        }
    return agreement


def consensus(pairs: Mapping[tuple[str, str], np.ndarray], models: Sequence[str]) -> dict[str, float]:
    """Return how alike each model's answers are to those of the others, on average."""
    means = {pair: float(np.nanmean(values)) for pair, values in pairs.items()}
    return {model: float(np.mean([mean for pair, mean in means.items() if model in pair])) for model in models}


def _answer_vectors(texts: Sequence[str], featurizer: AnswerFeaturizer) -> np.ndarray:
    """Return unit vectors (texts, dimensions), NaN for a text without one."""
    features = featurizer([Conversation([], text=text) for text in texts])
    width = max((len(f.vector) for f in features if not isinstance(f, BadRow)), default=1)
    missing = np.full(width, np.nan, dtype=np.float32)
    return unit(np.stack([missing if isinstance(f, BadRow) else f.vector for f in features]))
