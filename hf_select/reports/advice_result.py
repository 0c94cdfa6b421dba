"""The typed result of advise(): what advice.json holds and its report shows."""

from dataclasses import asdict, dataclass
from typing import Any, Literal


ScorerName = Literal["large", "small"]  # the scorer in question and its cheaper substitute
Recommendation = Literal["small", "large", "longest", "shortest", "train on everything", "a larger sample"]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f}, {self.low:.2f} to {self.high:.2f}"


@dataclass(frozen=True)
class ScorerAgreement:
    """ScorerAgreement of the small with the large scorer.

    Args:
        spearman: rank correlation of the scores.
        overlap: share of the best rows by one scorer that are among those by the other; `by_chance` for random scores.
        lift_kept: lift of the small scorer's best rows over that of the large scorer's own.
        identical: whether all scores are equal.
    """

    spearman: Estimate
    overlap: Estimate
    lift_kept: Estimate
    by_chance: float
    identical: bool


@dataclass(frozen=True)
class SourceShare:
    """Share of the variance of ranks that lies between sources, by scorer; num_sources in the sample."""

    num_sources: int
    shares: dict[str, Estimate]


@dataclass(frozen=True)
class SampleMeasurements:
    """What the scores of a sample show.

    Args:
        num_measured: rows with all scores.
        agreement: None without a small scorer.
        length: kind of length -> scorer -> rank correlation with it.
        source: None without a source column.
        points: values of the pictures: percentile ranks by scorer, and lengths.
    """

    num_measured: int
    agreement: ScorerAgreement | None
    length: dict[str, dict[str, Estimate]]
    source: SourceShare | None
    points: dict[str, list[float]]


@dataclass(frozen=True)
class ScoringCost:
    """Seconds, tokens and counted FLOPs of a pass of a scorer."""

    seconds: float
    flops: float
    tokens: float = 0


@dataclass(frozen=True)
class TrainingCost:
    """FLOPs of training on every row and on the selection, for tokens of all rows."""

    everything: float
    selection: float
    tokens: float = 0


@dataclass(frozen=True)
class AdviceCosts:
    """Costs measured on the sample and expected for the pool, by scorer.

    Args:
        relative_error: half the 95 % interval of the mean length, over the mean.
        training: None without a model to be trained.
    """

    sample: dict[str, ScoringCost]
    pool: dict[str, ScoringCost]
    relative_error: float
    training: TrainingCost | None


@dataclass(frozen=True)
class AdviceSettings:
    """Arguments of advise() that its report shows."""

    share: float
    fraction: float
    which: str
    passes: float
    seed: int
    trainee: str | None
    source_column: str | None


@dataclass(frozen=True)
class ScorerDescription:
    """Name and settings of a scorer."""

    name: str
    settings: dict[str, str]


@dataclass(frozen=True)
class Advice:
    """What to do, the reason as a sentence, and further notes."""

    recommendation: Recommendation
    message: str
    notes: list[str]


@dataclass(frozen=True)
class AdviceResult:
    """The result of advise().

    Args:
        pool_rows, sample_rows: numbers of rows.
        scorers: by "large" and "small".
        unscored: scorer -> reason -> rows of the sample without a score.
        overlap: task -> rows of the whole pool that repeat a query.
    """

    pool_rows: int
    sample_rows: int
    scorers: dict[str, ScorerDescription]
    settings: AdviceSettings
    measurements: SampleMeasurements
    unscored: dict[str, dict[str, int]]
    costs: AdviceCosts
    overlap: dict[str, int]
    advice: Advice

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of advice.json."""
        return asdict(self)
