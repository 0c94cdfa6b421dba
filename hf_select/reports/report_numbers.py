"""The numbers of a report as typed values, which report.json holds as JSON."""

from dataclasses import asdict, dataclass
from typing import Any

from hf_select.reports.ledger import Step


@dataclass(frozen=True)
class PartSummary:
    """One number over the rows of one part of the pool.

    Args:
        known: rows that have the number.
        unknown: rows that lack it.
        mean: None if no row has it.
        quantiles: fraction, such as "0.5" -> value; empty if no row has the number.
        counts: rows in each bin of the distribution.
    """

    known: int
    unknown: int
    mean: float | None
    quantiles: dict[str, float]
    counts: list[int]


@dataclass(frozen=True)
class Distribution:
    """One number over several parts of the pool, counted in the same bins.

    Args:
        log: whether the bins are equally wide on a logarithmic scale.
        edges: edges of the bins. The outer bins also hold everything beyond them.
        parts: name of a part -> its summary.
    """

    log: bool
    edges: list[float]
    parts: dict[str, PartSummary]

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "Distribution":
        """The distribution that `dataclasses.asdict` returned."""
        return cls(value["log"], value["edges"], {name: PartSummary(**part) for name, part in value["parts"].items()})


@dataclass(frozen=True)
class SourceCount:
    """One source, or all smaller ones together, with its number of rows in each part."""

    source: str
    rows: dict[str, int]


@dataclass(frozen=True)
class SourceCounts:
    """Rows of each source: the column that names it, the number of distinct sources, and counts, largest first."""

    column: str
    distinct: int
    lines: list[SourceCount]

    def to_dict(self) -> dict[str, Any]:
        """The counts as JSON: one object a source."""
        lines = [{"source": line.source, **line.rows} for line in self.lines]
        return {"column": self.column, "distinct": self.distinct, "rows": lines}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "SourceCounts":
        """The counts that `to_dict` returned."""
        lines = [
            SourceCount(line["source"], {part: n for part, n in line.items() if part != "source"})
            for line in value["rows"]
        ]
        return cls(value["column"], value["distinct"], lines)


@dataclass(frozen=True)
class TargetTask:
    """Similarity to one target task: the rows that were chosen for it, if counted, and the similarities by part."""

    chosen: int | None
    parts: dict[str, PartSummary]

    def to_dict(self) -> dict[str, Any]:
        """The task as JSON: `chosen`, and one object a part."""
        return {"chosen": self.chosen, **{part: asdict(summary) for part, summary in self.parts.items()}}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "TargetTask":
        """The task that `to_dict` returned."""
        return cls(value["chosen"], {part: PartSummary(**item) for part, item in value.items() if part != "chosen"})


@dataclass(frozen=True)
class ScoreAgreement:
    """How far scores agree.

    Args:
        scores: the score columns that are compared.
        left_out: score columns that are not, since there are too many.
        spearman: rank correlation of each two scores over the rows that have both; None if it is not defined.
        k: number of rows that are counted as the highest of a score.
        labels: the scores, then the selections.
        overlap: share of the k highest rows, or of the selected ones, that each two labels have in common.
        expected_by_chance: the share that two random draws would have in common.
    """

    scores: list[str]
    left_out: list[str]
    spearman: list[list[float | None]]
    k: int
    labels: list[str]
    overlap: list[list[float]]
    expected_by_chance: float


@dataclass(frozen=True)
class Cost:
    """What the steps behind a selection cost, each and in total."""

    steps: list[Step]
    total: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """The costs as JSON."""
        return {"steps": [step.to_dict() for step in self.steps], "total": self.total}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "Cost":
        """The costs that `to_dict` returned."""
        return cls([Step.from_dict(step) for step in value["steps"]], value["total"])


@dataclass(frozen=True)
class Overlap:
    """Rows that two selections have in common: how many, only in each, expected by chance, and Jaccard similarity."""

    both: int
    only: dict[str, int]
    expected_by_chance: float
    jaccard: float


@dataclass(frozen=True)
class Measured:
    """What both kinds of report measure on each part of the pool.

    Args:
        rows: part -> number of rows; the first part is the pool.
        scores: score column -> its distribution.
        lengths: "characters", "characters of responses", "tokens" -> distribution, as far as they are known.
        sources: rows of each source, if the dataset names them.
        agreement: agreement of the scores, if there are any that vary.
        unscored: score column -> reason -> number of rows of the pool without a score.
        hf_select: version that computed the numbers.
    """

    rows: dict[str, int]
    scores: dict[str, Distribution]
    lengths: dict[str, Distribution]
    sources: SourceCounts | None
    agreement: ScoreAgreement | None
    unscored: dict[str, dict[str, int]]
    hf_select: str

    def to_dict(self) -> dict[str, Any]:
        """The measurements as JSON."""
        return {
            "hf_select": self.hf_select,
            "rows": self.rows,
            "scores": {name: asdict(values) for name, values in self.scores.items()},
            "lengths": {name: asdict(values) for name, values in self.lengths.items()},
            "sources": None if self.sources is None else self.sources.to_dict(),
            "agreement": None if self.agreement is None else asdict(self.agreement),
            "unscored": self.unscored,
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "Measured":
        """The measurements that `to_dict` returned."""
        sources, agreement = value["sources"], value["agreement"]
        return cls(
            rows=value["rows"],
            scores={name: Distribution.from_dict(item) for name, item in value["scores"].items()},
            lengths={name: Distribution.from_dict(item) for name, item in value["lengths"].items()},
            sources=None if sources is None else SourceCounts.from_dict(sources),
            agreement=None if agreement is None else ScoreAgreement(**agreement),
            unscored=value["unscored"],
            hf_select=value["hf_select"],
        )


@dataclass(frozen=True)
class SelectionNumbers:
    """The numbers of one selection: the pool, the selected rows, and a random draw of their number.

    Args:
        measured: what is measured on each part.
        seed: seed of the random draw.
        steps: the selection's chain, see `Selection.chain`.
        tasks: score column of a target task -> its similarities, if the scores are targeted.
        cost: what the steps behind the selection cost.
    """

    measured: Measured
    seed: int
    steps: list[dict[str, Any]]
    tasks: dict[str, TargetTask] | None
    cost: Cost

    def to_dict(self) -> dict[str, Any]:
        """The content of report.json."""
        tasks = None if self.tasks is None else {name: task.to_dict() for name, task in self.tasks.items()}
        own = {"seed": self.seed, "steps": self.steps, "tasks": tasks, "cost": self.cost.to_dict()}
        return {"kind": "selection", **self.measured.to_dict(), **own}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "SelectionNumbers":
        """The numbers that report.json holds."""
        tasks = value["tasks"]
        return cls(
            measured=Measured.from_dict(value),
            seed=value["seed"],
            steps=value["steps"],
            tasks=None if tasks is None else {name: TargetTask.from_dict(task) for name, task in tasks.items()},
            cost=Cost.from_dict(value["cost"]),
        )


@dataclass(frozen=True)
class ComparisonNumbers:
    """The numbers of two selections from the same pool.

    Args:
        measured: what is measured on each part.
        names: names of the selections.
        steps: name of a selection -> its chain.
        overlap: rows that both chose.
    """

    measured: Measured
    names: tuple[str, str]
    steps: dict[str, list[dict[str, Any]]]
    overlap: Overlap

    def to_dict(self) -> dict[str, Any]:
        """The content of comparison.json."""
        own = {"names": list(self.names), "steps": self.steps, "overlap": asdict(self.overlap)}
        return {"kind": "comparison", **self.measured.to_dict(), **own}


ReportNumbers = SelectionNumbers | ComparisonNumbers
