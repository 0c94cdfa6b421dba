"""The typed result of a comparison: what `compare` returns, result.json holds and the reports show.

Everything is keyed by the user's own names: budget ("1000 rows"), then measure, then method or baseline. `to_dict`
gives plain dictionaries with the fields' names as keys, `from_dict` reads them back.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal


RANDOM, UNTRAINED = "random", "untrained"

Direction = Literal["lower", "higher"]
Outcome = Literal["better", "worse", "no evidence"]


@dataclass(frozen=True)
class Difference:
    """A method minus its baseline over seeds and items.

    Args:
        mean: mean difference, in the unit of the results.
        low, high: its confidence interval, not corrected for other methods; the mean itself where every seed and item
            has the same difference, which says nothing about the spread.
        p: two-sided p-value of no difference; p_holm is corrected for all methods that were compared together.
        wins, losses: seeds in which the method's mean is better and worse; the others are even.
        detectable: the true difference that as many seeds and items find in 4 of 5 studies, after the correction for
            all methods that were compared together; 0 where the spread is unknown.
        seeds, items: their numbers.
    """

    mean: float
    low: float
    high: float
    p: float
    p_holm: float
    wins: int
    losses: int
    detectable: float
    seeds: int
    items: int

    def outcome(self, lower_is_better: bool = True, alpha: float = 0.05) -> Outcome:
        """Return the verdict by the corrected p-value."""
        if self.p_holm > alpha:
            return "no evidence"
        return "better" if (self.mean < 0) == lower_is_better else "worse"

    def verdict(self, lower_is_better: bool = True, alpha: float = 0.05) -> str:
        """Return the verdict as a sentence with the size of the difference."""
        outcome = self.outcome(lower_is_better, alpha)
        if outcome != "no evidence":
            return f"{outcome} than the baseline by {abs(self.mean):.4g}"
        if self.detectable == 0 and self.mean == 0:
            return "no evidence of a difference (all results are equal)"
        if self.detectable == 0:
            return f"no evidence of a difference (it is {self.mean:.4g} throughout, so its spread is not known)"
        return f"no evidence of a difference (one of {self.detectable:.2g} would be found in 4 of 5 such studies)"


@dataclass(frozen=True)
class MeasureInfo:
    """A measure of a comparison; `parts` are the measures that are pooled in it."""

    better: Direction
    unit: str
    items: int
    parts: tuple[str, ...] = ()

    @property
    def lower_is_better(self) -> bool:
        """Whether lower values are better."""
        return self.better == "lower"

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON dictionary; a measure without parts has no such key."""
        fields = {"better": self.better, "unit": self.unit, "items": self.items}
        return {**fields, "parts": list(self.parts)} if self.parts else fields

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "MeasureInfo":
        """Read what `to_dict` returned."""
        return cls(values["better"], values["unit"], values["items"], tuple(values.get("parts", ())))


@dataclass(frozen=True)
class Runs:
    """The training runs of a method at one budget; numbers are means over seeds.

    Args:
        rows, tokens, steps, passes: what a run trained; rows_cut is the number of truncated rows.
        seeds: number of runs.
        could_choose_from: rows that the method could rank.
        matched_by: random rows with as many tokens, if the method chose clearly more or fewer than random rows.
        selection_seconds, selection_flops: cost of the scores, None where it is unknown or there are none.
    """

    rows: float
    tokens: int
    steps: float
    rows_cut: float
    passes: float
    seeds: int
    could_choose_from: int
    training_seconds: float
    training_flops: float
    selection_seconds: float | None = None
    selection_flops: float | None = None
    matched_by: str | None = None


@dataclass(frozen=True)
class MatchedDifference:
    """A method compared with random rows of as many tokens."""

    baseline: str
    difference: Difference
    verdict: str


BreakEvenKind = Literal["uses", "at least", "at most", "free", "never", "unknown", "unknown cost", "no evidence"]


@dataclass(frozen=True)
class BreakEven:
    """After how many uses the scores of a method have paid for themselves.

    Args:
        kind: whether `uses` is known, has a bound, or does not exist.
        interval: lowest and highest number of uses by the interval of the difference; None without a bound.
        message: the same as text.
    """

    kind: BreakEvenKind
    message: str
    uses: float | None = None
    interval: tuple[float | None, float | None] | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BreakEven":
        """Read a dictionary of the fields."""
        interval = values["interval"]
        return cls(**{**values, "interval": None if interval is None else tuple(interval)})


@dataclass(frozen=True)
class Costs:
    """What selecting and training cost together, compared with random rows.

    Args:
        total_flops, total_seconds: of the scores and one run; FLOPs are None where the scores' are not counted.
        gain: improvement over random rows in the unit of the measure, positive is better.
        gain_per_run: gain divided by the total FLOPs in runs of random rows.
        random_at_total: what random rows reach with the total FLOPs, None outside what was measured.
        random_needs: lowest and highest FLOPs with which random rows are as good, None without a bound.
        saved: the same minus a run of the budget.
        on_front: whether no other run is as good for a lower total.
        break_even: of a method, None for a baseline.
    """

    total_flops: float | None
    total_seconds: float
    gain: float
    gain_per_run: float | None
    random_at_total: float | None
    random_needs: tuple[float | None, float | None]
    saved: tuple[float | None, float | None]
    on_front: bool = False
    break_even: BreakEven | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Costs":
        """Read a dictionary of the fields."""
        spans = {name: tuple(values[name]) for name in ("random_needs", "saved")}
        paid = values["break_even"]
        return cls(**{**values, **spans, "break_even": None if paid is None else BreakEven.from_dict(paid)})


@dataclass(frozen=True)
class MethodResult:
    """A method or baseline at one budget by one measure.

    Args:
        mean: over seeds and items.
        runs: how it was trained; None for the untrained model.
        difference, outcome, verdict: compared with random rows; None for random rows themselves.
        matched: compared with random rows of as many tokens, if the method chose clearly more or fewer tokens.
        costs: None until `add_costs` and for the untrained model.
    """

    mean: float
    runs: Runs | None = None
    difference: Difference | None = None
    outcome: Outcome | None = None
    verdict: str = ""
    matched: MatchedDifference | None = None
    costs: Costs | None = None

    @property
    def training(self) -> Runs:
        """The runs of a result that has been trained."""
        assert self.runs is not None
        return self.runs

    @property
    def total_flops(self) -> float | None:
        """FLOPs of selecting and training, 0 without training, None where they are not counted."""
        return self.costs.total_flops if self.costs is not None else 0.0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "MethodResult":
        """Read a dictionary of the fields."""
        runs, difference, matched, costs = (values[name] for name in ("runs", "difference", "matched", "costs"))
        if matched is not None:
            matched = MatchedDifference(**{**matched, "difference": Difference(**matched["difference"])})
        return cls(
            mean=values["mean"],
            runs=None if runs is None else Runs(**runs),
            difference=None if difference is None else Difference(**difference),
            outcome=values["outcome"],
            verdict=values["verdict"],
            matched=matched,
            costs=None if costs is None else Costs.from_dict(costs),
        )


MethodResults = dict[str, MethodResult]  # random rows first, then the other baselines, then the methods


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison.

    Args:
        methods: names of the compared methods; all other names in `budgets` are baselines.
        measures: name -> its description; pooled losses come first.
        budgets: budget -> measure -> method or baseline -> result.
        overlap: measure -> rows of the pool that repeat a row that is measured on.
        left_out: reason -> rows of the pool that cannot be trained on.
        settings: recipe, passes and identities of the measures.
    """

    methods: list[str]
    measures: dict[str, MeasureInfo]
    budgets: dict[str, dict[str, MethodResults]]
    overlap: dict[str, int]
    left_out: dict[str, int]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of result.json."""
        values = asdict(self)
        return {**values, "measures": {name: measure.to_dict() for name, measure in self.measures.items()}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Comparison":
        """Read the contents of result.json. Raises: KeyError or TypeError if they are of another version."""
        budgets = {
            budget: {
                measure: {name: MethodResult.from_dict(result) for name, result in results.items()}
                for measure, results in by_measure.items()
            }
            for budget, by_measure in values["budgets"].items()
        }
        measures = {name: MeasureInfo.from_dict(about) for name, about in values["measures"].items()}
        return cls(**{**values, "measures": measures, "budgets": budgets})

    @property
    def parts(self) -> list[str]:
        """Measures that are pooled in another one."""
        return [part for measure in self.measures.values() for part in measure.parts]

    @property
    def headlines(self) -> list[str]:
        """Measures that are shown first: all but those that are pooled in another one."""
        return [name for name in self.measures if name not in self.parts]

    def headline_results(self, budget: str) -> dict[str, MethodResults]:
        """Return the results of a budget by each headline measure."""
        by_measure = self.budgets[budget]
        return {name: by_measure[name] for name in self.headlines if name in by_measure}

    def compared(self, results: MethodResults) -> list[str]:
        """Return the names that are shown with their difference to random rows, methods first.

        Random rows of as many tokens as a method chose are shown with that method instead.
        """
        controls = {result.runs.matched_by for result in results.values() if result.runs is not None}
        names = [name for name, result in results.items() if result.difference is not None and name not in controls]
        return methods_first(self.methods, names)


def methods_first(methods: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return the names with the methods before the baselines."""
    methods = set(methods)
    return sorted(names, key=lambda name: name not in methods)


def shown_budget(budget: str) -> str:
    """Return a budget with thousands separators: 1000 rows -> 1,000 rows."""
    count, _, unit = budget.partition(" ")
    return f"{int(count):,} {unit}" if count.isdigit() else budget


@dataclass(frozen=True)
class JoinedColumn:
    """A budget and measure of one of the joined comparisons."""

    comparison: str
    budget: str
    measure: str
    about: MeasureInfo

    @property
    def title(self) -> str:
        """Heading of the column."""
        return f"{self.comparison}, {shown_budget(self.budget)}: {self.measure}"


@dataclass(frozen=True)
class JoinedMethod:
    """A method over the columns of several comparisons.

    Args:
        cells: its result in each column, None where it was not compared.
        counts: number of cells by outcome.
        mean_rank: mean rank (1 is best) among the names that are in every column, or None if it is not.
        message: the counts as text.
    """

    cells: list[MethodResult | None]
    counts: dict[Outcome, int]
    mean_rank: float | None
    message: str


@dataclass(frozen=True)
class JoinedComparison:
    """One of the joined comparisons: its folders, methods and settings."""

    folders: list[str]
    methods: list[str]
    settings: dict[str, Any]


@dataclass(frozen=True)
class JoinedComparisons:
    """Several comparisons side by side, as in joined.json.

    Args:
        methods: names of the compared methods of any comparison.
        results: methods and baselines, by name.
        num_ranked: number of names that are in every column.
    """

    columns: list[JoinedColumn]
    methods: list[str]
    results: dict[str, JoinedMethod]
    num_ranked: int
    comparisons: dict[str, JoinedComparison]

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of joined.json."""
        values = asdict(self)
        for column, line in zip(self.columns, values["columns"], strict=True):
            line["about"] = column.about.to_dict()
        return values
