"""The summary of a run of Responses: counts and throughput by model."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Throughput:
    """Speed of a model over all its runs, including replies that are not kept; None if nothing was requested."""

    seconds: float
    tokens_read_per_second: float | None
    tokens_written_per_second: float | None


@dataclass
class ModelSummary:
    """Replies of one model.

    Attributes:
        rows: replies that are kept. All counts but `removed` are of these.
        removed: turns without a row, by reason.
    """

    rows: int
    revisions: list[str]
    removed: dict[str, int]
    refused: int
    finish_reasons: dict[str, int]
    prompt_tokens: int
    completion_tokens: int
    throughput: Throughput


@dataclass
class ResponsesSummary:
    """What a folder holds after a run.

    Attributes:
        rows: of all models together.
        conversations: number of conversations that can be answered.
        unreadable: rows of the dataset that cannot be answered, by reason.
    """

    rows: int
    models: dict[str, ModelSummary]
    conversations: int
    unreadable: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """The summary as JSON values."""
        return asdict(self)


@dataclass
class ModelCounts:
    """Counts of a model while its rows are written."""

    rows: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    finish_reasons: Counter[str] = field(default_factory=Counter)
    revisions: set[str] = field(default_factory=set)

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a row of responses.parquet."""
        self.rows += 1
        self.refused += row["refused"]
        self.prompt_tokens += row["prompt_tokens"]
        self.completion_tokens += row["completion_tokens"]
        self.finish_reasons[row["finish_reason"]] += 1
        if row["model_revision"]:
            self.revisions.add(row["model_revision"])

    def summary(self, runs: Iterable[Mapping[str, float]]) -> ModelSummary:
        """The counts with the throughput of the model's runs: tokens read and written, and seconds."""
        total: Counter[str] = Counter()
        for run in runs:
            total.update(run)  # type: ignore[arg-type]  # seconds are fractions
        seconds = total["seconds"]
        return ModelSummary(
            self.rows,
            sorted(self.revisions),
            dict(self.removed.most_common()),
            self.refused,
            dict(self.finish_reasons.most_common()),
            self.prompt_tokens,
            self.completion_tokens,
            Throughput(
                seconds,
                total["read"] / seconds if seconds else None,
                total["written"] / seconds if seconds else None,
            ),
        )
