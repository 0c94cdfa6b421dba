"""The typed result of validate_scores(): what validation.json holds and its report shows."""

from dataclasses import asdict, dataclass
from typing import Any

from hf_select.reports.advice_result import Estimate


TFIDF, LENGTH, RANDOM = "tf-idf", "length of the response", "random scores"
YARDSTICKS = (TFIDF, LENGTH)
MEAN = "mean of the sets"


@dataclass(frozen=True)
class LossSignal:
    """How much the loss on a held-out set depends on which subset was trained.

    Args:
        rows: of the set.
        overlap: rows of the pool that repeat one of them.
        mean, spread: mean and standard deviation of the loss over subsets, in nats.
        noise: standard deviation of the loss over runs on one subset; None without repeats.
        reliability: correlation of two runs on each subset, 1 - noise^2 / spread^2; None without repeats or if all
            losses are equal.
        ceiling: about the largest LDS that any score can have, the root of `reliability`.
        warning: that the loss hardly depends on the subset, or that this is not known; else "".
    """

    rows: int
    overlap: int
    mean: float
    spread: float
    noise: float | None
    reliability: Estimate | None
    ceiling: float | None
    warning: str


@dataclass(frozen=True)
class ScoreResult:
    """A score or yardstick on a held-out set.

    Args:
        column: of the pool; "" for a yardstick and for the mean of the sets.
        lds: linear datamodelling score; None if it does not exist, for `reason`.
        without_score: rows of the pool without a score; they count as the mean of the others.
        differences: yardstick -> this LDS minus that of the yardstick, over the same subsets.
        verdict: what the intervals show, as a sentence.
    """

    column: str
    lds: Estimate | None
    reason: str
    without_score: int
    differences: dict[str, Estimate]
    verdict: str


@dataclass(frozen=True)
class ValidationCost:
    """Number, trained tokens, seconds and FLOPs of all training runs."""

    runs: int
    tokens: int
    seconds: float
    flops: float


@dataclass(frozen=True)
class ScoreValidation:
    """The result of a validation.

    Args:
        scores: names of the scores; the other names in `results` are yardsticks.
        signals: held-out set -> how much its loss depends on the subset.
        results: held-out set -> score or yardstick -> result; of several sets, their mean comes first.
        chance: held-out set -> LDS of random scores, mean and middle 95 %.
        detectable: the true correlation that as many subsets find to differ from 0 in 4 of 5 studies.
        subsets, repeats: numbers of subsets, and of those trained twice.
        subset_rows, pool_rows: rows of each subset and of the pool that they are drawn from.
        left_out: reason -> rows of the pool that cannot be trained on.
        settings: recipe, passes, fraction, seed and identities of the held-out sets.
    """

    scores: list[str]
    signals: dict[str, LossSignal]
    results: dict[str, dict[str, ScoreResult]]
    chance: dict[str, Estimate]
    detectable: float
    subsets: int
    repeats: int
    subset_rows: int
    pool_rows: int
    left_out: dict[str, int]
    cost: ValidationCost
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of validation.json."""
        return asdict(self)

    @property
    def headline(self) -> str:
        """The set whose results are shown first: the only one, or the mean of all."""
        return next(iter(self.results))
