"""Search the weights of a mixture: train a proxy on many mixtures, regress its result on their weights, and confirm
the best weights by further runs.

Liu et al. 2024, "RegMix: Data Mixture as Regression for Language Model Pre-training" (arXiv:2407.01492): weights drawn
from Dirichlet distributions around the sources' own sizes, one proxy run each, a regression, the mean of the best
simulated weights. Their regressions are linear or of gradient-boosted trees on hundreds of runs. This search is meant
for tens of runs and uses a linear or quadratic polynomial (mixture_regression.py), whichever predicts left-out runs
better.

Predictions are reported with their leave-one-out error. Further runs with several seeds show whether the best weights
beat the sources' own proportions and equal shares at equal tokens. A proxy's best weights need not be those of a
larger model; the paper's claim that they are is for pre-training.

output_dir/
  search.json            sources, measures, recipe, draws; a folder with others is refused
  runs/NAME.json         one run: weights, cost, results
  result.json            the regression, the weights, their confirmation, the total cost
"""

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm

from hf_select.atomic import read_json, write_json
from hf_select.data.file_names import slug
from hf_select.evaluation.held_out_loss import as_measures
from hf_select.evaluation.measure import Measure
from hf_select.evaluation.mixture_regression import Regression, draw_weights, finest_grid
from hf_select.evaluation.statistics import corrected, differences
from hf_select.extras import require
from hf_select.jobs.run_folder import claim_run_folder
from hf_select.mixtures.mixture import Mixture
from hf_select.mixtures.source import Source
from hf_select.models.responses import tokenize_with_labels
from hf_select.models.sources import find
from hf_select.reports.comparison_result import Difference
from hf_select.training.equal_tokens import Recipe
from hf_select.training.train_on_tokens import train_on_tokens
from hf_select.validation import check_choice


logger = logging.getLogger(__name__)

Draws = Literal["dirichlet", "grid"]
BEST = "best"  # name of the best weights among those that are confirmed
_SIMULATED, _AVERAGED = 20_000, 100  # weights whose result is predicted, and those of the best that are averaged

_RunRecord = Mapping[str, Any]  # of a run, as it is written to runs/


@dataclass(frozen=True)
class RegressionSummary:
    """The fitted regression (see Regression); runs: number of runs it was fitted to."""

    degree: int
    coefficients: list[float]
    rank_correlation: float | None
    skill: float
    runs: int


@dataclass(frozen=True)
class SearchRun:
    """One of the trained mixtures and its result."""

    weights: list[float]
    result: float


@dataclass(frozen=True)
class SearchCost:
    """Trained tokens, seconds and FLOPs of all runs."""

    tokens: int
    seconds: float
    flops: float


@dataclass(frozen=True)
class MixtureSearchResult:
    """The result of a search.

    Args:
        weights: source -> its best weight.
        predicted: result of the best weights by the regression.
        confirmed: best weights, proportions and equal shares -> mean result with new seeds.
        differences: of the best weights minus each of the others.
        verdict: what the search shows, as a sentence.
    """

    weights: dict[str, float]
    predicted: float
    regression: RegressionSummary
    confirmed: dict[str, float]
    differences: dict[str, Difference]
    verdict: str
    cost: SearchCost
    runs: list[SearchRun]

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of result.json."""
        return asdict(self)


def search_mixture(
    sources: Mapping[str, Source | Dataset | str],
    measures: Mapping[str, Dataset | Measure],
    recipe: Recipe,
    output_dir: str | Path,
    rows: int,
    runs: int = 20,
    draws: Draws = "dirichlet",
    passes: float = 1.0,
    seeds: int = 3,
    seed: int = 0,
) -> MixtureSearchResult:
    """Search the weights of a mixture. A killed search resumes.

    Args:
        sources: name -> Source, dataset, file or Hub id; at least two. Rows, tokens and weight of a Source are
            ignored.
        measures: name -> held-out rows or another measure; their mean is minimized (measures of which more is better
            count negatively), so give measures of one unit.
        recipe: how the proxy is trained.
        rows: number of rows of each mixture.
        runs: number of mixtures that are drawn; of a grid, the finest with at most as many.
        draws: dirichlet or grid.
        passes: every run trains as many tokens as `passes` over `rows` rows of the sources' mean length.
        seeds: runs of the best weights, of the sources' proportions and of equal shares, for the confirmation.
        seed: of the draws.
    Returns: the result, which is also written to result.json.
    Raises: ValueError for fewer than two sources, too few runs, a source without the rows that a weight of 1 needs.
    """
    require("a search", "trl")
    check_choice("draws", draws, Draws)
    if len(sources) < 2:
        raise ValueError(f"{len(sources)} source has no weights to search; give at least two.")
    for name, value in (("rows", rows), ("runs", runs)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1.")
    if seeds < 2:
        raise ValueError(f"seeds is {seeds}; one run says nothing about the spread between runs: at least 2.")
    opened = {name: _open_source(name, source, rows) for name, source in sources.items()}
    measured = as_measures(measures, recipe.max_length)
    search = _MixtureSearch(opened, measured, recipe, Path(output_dir).expanduser(), rows, passes, seed)
    return search.run(runs, draws, seeds)


def compare_best(values: Mapping[str, np.ndarray]) -> dict[str, Difference]:
    """Return the best weights minus each other, name -> (seeds, items), with p-values corrected for all of them."""
    others = [name for name in values if name != BEST]
    return corrected(
        {name: differences({name: values[BEST]}, values[name], num_comparisons=len(others))[name] for name in others}
    )


# --------------------------------------------------------------------------------------------------------------------


def _open_source(name: str, source: Source | Dataset | str, rows: int) -> Source:
    """Load a source, and check that a mixture of it alone has enough rows."""
    source = source if isinstance(source, Source) else Source(source)
    try:
        data = cast(Dataset, source.open(stream=False))
        source = replace(source, rows=None, tokens=None, weight=1.0, data=data, rename=None)
    except ValueError as error:
        raise ValueError(f'source "{name}": {error}') from error
    if len(data) < rows and source.shortfall != "repeat":
        raise ValueError(
            f'source "{name}" has {len(data)} rows, and a mixture of it alone needs {rows}; lower rows, or set '
            "shortfall: repeat."
        )
    return source


@dataclass
class _MixtureSearch:
    sources: dict[str, Source]
    measures: dict[str, Measure]
    recipe: Recipe
    folder: Path
    rows: int
    passes: float
    seed: int

    def run(self, runs: int, draws: Draws, seeds: int) -> MixtureSearchResult:
        names, sizes = list(self.sources), np.array([len(source.data) for source in self.sources.values()], float)
        rng = np.random.default_rng(self.seed)
        weights = draw_weights(sizes, runs, rng) if draws == "dirichlet" else finest_grid(len(names), runs)
        if len(weights) <= len(names):
            raise ValueError(f"{runs} runs cannot tell {len(names)} sources apart; train at least {len(names) + 1}.")
        self._claim_folder(draws, sizes)
        self._plan(len(weights), 3 * seeds)
        records = [
            self._record(f"draw-{place:03d}", weights[place], self.seed)
            for place in tqdm(range(len(weights)), desc="mixtures", unit="run")
        ]
        results = np.array([self._objective(record).mean() for record in records])
        regression = Regression.fit(weights, results)
        simulated = np.vstack([draw_weights(sizes, _SIMULATED, rng), np.eye(len(names))])
        best = simulated[np.argsort(regression(simulated), kind="stable")[:_AVERAGED]].mean(axis=0)
        confirmed = self._confirm(best, sizes, seeds)
        values = {arm: np.array([self._objective(record) for record in some]) for arm, some in confirmed.items()}
        against = compare_best(values)
        result = MixtureSearchResult(
            weights=dict(zip(names, map(float, best), strict=True)),
            predicted=float(regression(best[None])[0]),
            regression=RegressionSummary(
                regression.degree,
                regression.coefficients.tolist(),
                regression.rank_correlation,
                regression.skill,
                len(weights),
            ),
            confirmed={arm: float(results.mean()) for arm, results in values.items()},
            differences=against,
            verdict=_verdict(regression, against),
            cost=_search_cost([*records, *itertools.chain.from_iterable(confirmed.values())]),
            runs=[SearchRun(w.tolist(), float(r)) for w, r in zip(weights, results, strict=True)],
        )
        write_json(self.folder / "result.json", result.to_dict())
        return result

    def _claim_folder(self, draws: Draws, sizes: np.ndarray) -> None:
        settings = {
            "recipe": {**self.recipe.described(), "model": find(self.recipe.model).identity},
            "rows": self.rows, "passes": self.passes, "draws": draws, "seed": self.seed,
            "sources": {name: source.data._fingerprint for name, source in self.sources.items()},
            "measures": {name: measure.identity() for name, measure in self.measures.items()},
        }  # fmt: skip
        sizes_of_sources = Dataset.from_dict({"source": list(self.sources), "rows": sizes.tolist()})
        claim_run_folder(self.folder / "search.json", settings, "a mixture search", sizes_of_sources)

    def _plan(self, runs: int, confirmations: int) -> None:
        """Set tokens and steps of a run, and log the cost of all."""
        mean = self._mean_length()
        self.tokens = max(1, round(self.passes * self.rows * mean))
        self.steps = self.recipe.steps(self.tokens, mean)
        logger.warning(
            "mixture search: %d runs of %s tokens, and %d to confirm; a training run of %s tokens costs as much.",
            runs, f"{self.tokens:,}", confirmations, f"{self.tokens * (runs + confirmations):,}",
        )  # fmt: skip

    def _confirm(self, best: np.ndarray, sizes: np.ndarray, seeds: int) -> dict[str, list[_RunRecord]]:
        """Train the best weights, the sources' proportions and equal shares with new seeds."""
        arms = {BEST: best, "proportions": sizes / sizes.sum(), "equal shares": np.full(len(sizes), 1 / len(sizes))}
        return {
            arm: [self._record(f"{arm}-{s}", weights, self.seed + 1 + s) for s in range(seeds)]
            for arm, weights in tqdm(arms.items(), desc="confirm", unit="mixture")
        }

    def _mean_length(self) -> float:
        """Return the mean number of tokens of a row, from the first rows of each source."""
        lm = self.recipe.base()
        lengths: list[int] = []
        for source in self.sources.values():
            some = source.data.select(range(min(len(source.data), max(1, 1000 // len(self.sources)))))
            mixed = Mixture({"one": replace(source, data=some, weight=None)}, dedup="none", bad_rows="skip").iterable()
            rows, _, _ = tokenize_with_labels(lm, Dataset.from_list(list(mixed)), "chat", self.recipe.max_length)
            lengths += [len(ids) for ids in rows["input_ids"]]
        if not lengths:
            raise ValueError("none of the sources' rows has a response to train on.")
        return float(np.mean(lengths))

    def _record(self, name: str, weights: np.ndarray, seed: int) -> _RunRecord:
        """Return the record of a run; train it if it does not exist."""
        path = self.folder / "runs" / f"{slug(name)}.json"
        existing = read_json(path)
        if existing is not None and np.allclose(existing["weights"], weights, atol=1e-9):
            return existing
        mixed = Mixture(
            {n: replace(s, weight=float(w)) for (n, s), w in zip(self.sources.items(), weights, strict=True)},
            rows=self.rows, seed=seed, dedup="none", bad_rows="skip",
        )  # fmt: skip
        lm = self.recipe.base()
        rows, _, _ = tokenize_with_labels(
            lm, Dataset.from_list(list(mixed.iterable())), "chat", self.recipe.max_length
        )
        trained = train_on_tokens(self.recipe, lm, rows, self.tokens, self.steps, seed)
        record: dict[str, Any] = {key: value for key, value in vars(trained).items() if key != "lm"}
        record |= {"weights": list(map(float, weights)), "seed": seed}
        record["values"] = {measure: self.measures[measure](trained.lm) for measure in self.measures}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
        return record

    def _objective(self, record: _RunRecord) -> np.ndarray:
        """Return what is minimized, item by item; measures have equal weight whatever their number of items."""
        parts = [np.asarray(record["values"][name], dtype=np.float64) for name in self.measures]
        signs = [1.0 if measure.better == "lower" else -1.0 for measure in self.measures.values()]
        items = sum(map(len, parts))
        # Scaled so that the mean over all items is the mean over measures.
        return np.concatenate(
            [s * part * items / (len(part) * len(parts)) for s, part in zip(signs, parts, strict=True)]
        )


def _search_cost(records: Sequence[_RunRecord]) -> SearchCost:
    tokens, seconds, flops = (sum(record[name] for record in records) for name in ("tokens", "seconds", "flops"))
    return SearchCost(tokens, seconds, flops)


def _verdict(regression: Regression, against: Mapping[str, Difference]) -> str:
    if regression.skill <= 0:
        fit = "the regression predicts left-out runs no better than their mean: the best weights mean nothing"
    else:
        fit = f"the regression explains {regression.skill:.0%} of the spread of left-out runs"
    beaten = [arm for arm, d in against.items() if d.outcome() == "better"]
    worse = [arm for arm, d in against.items() if d.outcome() == "worse"]
    if worse:
        return f"{fit}; with new seeds the best weights are worse than {' and '.join(worse)}: do not use them"
    if beaten:
        return f"{fit}; with new seeds the best weights beat {' and '.join(beaten)}"
    return f"{fit}; with new seeds there is no evidence that the best weights beat proportions or equal shares"
