"""The typed result of a comparison of generators: what generators.json holds and its tables show."""

from dataclasses import asdict, dataclass
from typing import Any

from hf_select.reports.comparison_result import Comparison, Difference


@dataclass(frozen=True)
class AnswerStatistics:
    """How the answers of a model look.

    Args:
        characters, words: means per answer.
        words_interval: 95 % interval of the mean over prompts.
        markup: kind of markup -> share of the answers with it.
        refusals, cut: shares of the answers; `cut` is None without finish reasons.
        distinct: share of different 1-, 2- and 3-grams over equally many words of each model.
        languages: shares, or None without a language detector.
    """

    answers: int
    characters: float
    characters_median: float
    words: float
    words_interval: tuple[float, float]
    markup: dict[str, float]
    refusals: float
    distinct: tuple[float, float, float]
    languages: dict[str, float] | None
    cut: float | None = None


@dataclass(frozen=True)
class AnswerAgreement:
    """How alike answers are: mean over prompts of each pair ("a | b"), and the mean of each model over the others."""

    pairs: dict[str, float]
    consensus: dict[str, float]


@dataclass(frozen=True)
class PairVerdicts:
    """Verdicts of a judge on two models.

    Args:
        prompts, judged: prompts of the pair, and those with a readable verdict in both orders.
        wins, ties, losses: of the first model.
        contradictions: prompts whose two orders name different winners.
        share_for_first_shown: share of the decided verdicts for the answer that was shown first; None without any.
    """

    first: str
    second: str
    prompts: int
    judged: int
    wins: int
    ties: int
    losses: int
    contradictions: int
    share_for_first_shown: float | None


@dataclass(frozen=True)
class WinRate:
    """Mean result of a model against all others with its 95 % interval over prompts; None without a verdict."""

    win_rate: float | None
    low: float
    high: float


@dataclass(frozen=True)
class Judgement:
    """What a judge prefers."""

    judge: str
    pairs: list[PairVerdicts]
    models: dict[str, WinRate]


@dataclass(frozen=True)
class AnswerScore:
    """Mean score of a model's answers, and its difference to the mean of all models."""

    mean: float
    prompts: int
    to_all: Difference


@dataclass(frozen=True)
class PairDifference:
    """Difference of the losses of two trained models, and its verdict."""

    difference: Difference
    verdict: str


@dataclass(frozen=True)
class AnswerTraining:
    """The same base model trained on each model's answers.

    Args:
        comparison: each model compared with a mixture of all models' answers ("random").
        between: held-out domain -> "a less b" -> difference.
    """

    comparison: Comparison
    between: dict[str, dict[str, PairDifference]]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON."""
        between = {domain: {name: asdict(d) for name, d in pairs.items()} for domain, pairs in self.between.items()}
        return {"comparison": self.comparison.to_dict(), "between": between}


@dataclass(frozen=True)
class GeneratorComparison:
    """Several models' answers to the same prompts, compared.

    Args:
        prompts: prompts that all models have answered; unreadable: rows of the dataset without a readable answer.
        agreement: measure -> how alike the answers are.
        score, scores: a score column, and its means by model.
        judgement, training: if requested.
    """

    models: list[str]
    prompts: int
    unreadable: int
    statistics: dict[str, AnswerStatistics]
    agreement: dict[str, AnswerAgreement]
    score: str | None = None
    scores: dict[str, AnswerScore] | None = None
    judgement: Judgement | None = None
    training: AnswerTraining | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of generators.json."""
        return {**asdict(self), "training": None if self.training is None else self.training.to_dict()}
