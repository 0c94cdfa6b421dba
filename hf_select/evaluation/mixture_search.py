"""Weights of a mixture by small runs: train a proxy on many mixtures, regress its result on their weights, take the
weights that the regression likes best, and see whether they hold.

Liu et al. 2024, "RegMix: Data Mixture as Regression for Language Model Pre-training" (arXiv:2407.01492): weights drawn
from Dirichlet distributions around the sources' own sizes, a proxy run each, a regression, the mean of the best
simulated weights. Their regressions are linear or of gradient-boosted trees on hundreds of runs; for the tens of runs
that are meant here it is one of Scheffe's two polynomials for mixtures (1958), whichever foretells left-out runs
better:

    linear      y(w) = sum_i b_i w_i
    quadratic   y(w) = sum_i b_i w_i + sum_(i<j) b_ij w_i w_j

What it says is told with its error: how well runs that were left out are foretold, and, by further runs with several
seeds, whether the weights found beat the sources' own proportions and equal shares at equal tokens. A proxy's best
weights need not be those of a larger model; the paper's claim that they are is for pre-training.

output_dir/
  search.json            sources, measures, recipe, draws; a folder with others is refused
  runs/NAME.json         one run: weights, cost, results
  result.json            the regression, the weights, the confirmation, what all of it cost
"""

import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm

from hf_select.atomic import read_json, write_json
from hf_select.data.file_names import slug
from hf_select.evaluation.held_out_loss import as_measures
from hf_select.evaluation.measure import Measure
from hf_select.evaluation.statistics import corrected, differences
from hf_select.jobs.run_folder import claim_run_folder
from hf_select.mixtures.mixture import Mixture
from hf_select.mixtures.source import Source
from hf_select.models.responses import tokenize_with_labels
from hf_select.models.sources import find
from hf_select.reports.comparison_result import Difference
from hf_select.selection.ranking import rank_correlation
from hf_select.training.equal_tokens import Recipe
from hf_select.training.train_on_tokens import train_on_tokens
from hf_select.validation import check_choice


logger = logging.getLogger(__name__)

Draws = Literal["dirichlet", "grid"]
_SIMULATED, _BEST = 20_000, 100  # weights that the regression is asked about; the mean of the best is taken
# Draws around the sources' own proportions: from nearly one source alone to nearly the proportions.
_CONCENTRATION = (0.1, 5.0)

# k sources, n runs, p terms of the regression


def drawn_weights(proportions: Sequence[float] | np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, k) weights that sum to 1: Dirichlet(c k proportions), each with a c of its own."""
    around = np.asarray(proportions, dtype=np.float64)
    around = len(around) * around / around.sum()
    low, high = np.log(_CONCENTRATION)
    return np.stack([rng.dirichlet(np.exp(rng.uniform(low, high)) * around + 1e-3) for _ in range(count)])


def grid_weights(sources: int, steps: int) -> np.ndarray:
    """All weights in multiples of 1/steps: (C(steps + k - 1, k - 1), k)."""
    bars = itertools.combinations(range(steps + sources - 1), sources - 1)
    found = [np.diff([-1, *bar, steps + sources - 1]) - 1 for bar in bars]
    return np.array(found) / steps


@dataclass(frozen=True)
class Regression:
    """Scheffe's polynomial of a result in the weights.

    left_out: (n,) each run as foretold by all others. rank_correlation: of these with the results (Spearman; None
    where all are equal). skill: 1 - squared error of these over that of the mean of all others; 0 or less foretells
    nothing.
    """

    degree: int
    coefficients: np.ndarray  # (p,)
    left_out: np.ndarray
    rank_correlation: float | None
    skill: float

    @classmethod
    def fit(cls, weights: np.ndarray, results: np.ndarray) -> "Regression":
        """The better of the two by the runs left out. weights (n, k), results (n,).

        Raises: ValueError for fewer runs than one more than sources.
        """
        if len(results) <= weights.shape[1]:
            raise ValueError(
                f"{len(results)} runs cannot tell {weights.shape[1]} sources apart; make at least "
                f"{weights.shape[1] + 1}, better five for each source."
            )
        found = [cls._of_degree(weights, results, degree) for degree in (1, 2)]
        return max((one for one in found if one is not None), key=lambda one: one.skill)

    @classmethod
    def _of_degree(cls, weights: np.ndarray, results: np.ndarray, degree: int) -> "Regression | None":
        terms = _terms(weights, degree)
        if degree > 1 and (len(results) <= terms.shape[1] or np.linalg.matrix_rank(terms) < terms.shape[1]):
            return None
        inverse = np.linalg.pinv(terms)
        coefficients = inverse @ results
        leverage = np.einsum("np,pn->n", terms, inverse)
        residuals = results - terms @ coefficients
        # Of least squares without run i: its residual is that of all runs over 1 - leverage.
        left_out = results - residuals / np.maximum(1 - leverage, 1e-12)
        n = len(results)
        of_mean = (results - results.mean()) * n / (n - 1)
        varied = float((of_mean**2).sum())
        skill = 1 - float(((results - left_out) ** 2).sum()) / varied if varied > 0 else 0.0
        rank = rank_correlation(left_out, results)
        return cls(degree, coefficients, left_out, rank, skill)

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        return _terms(weights, self.degree) @ self.coefficients


def _terms(weights: np.ndarray, degree: int) -> np.ndarray:
    pairs = itertools.combinations(range(weights.shape[1]), 2) if degree == 2 else []
    return np.column_stack([weights, *(weights[:, i] * weights[:, j] for i, j in pairs)])


def search_mixture(
    sources: Mapping[str, Any],
    measures: Mapping[str, Dataset | Measure],
    recipe: Recipe,
    output_dir: str | Path,
    rows: int,
    runs: int = 20,
    draws: Draws = "dirichlet",
    passes: float = 1.0,
    seeds: int = 3,
    seed: int = 0,
) -> dict[str, Any]:
    """Search the weights of a mixture.

    Args:
        sources: name -> Source, dataset, file or Hub id; at least two. What a Source says of rows, tokens and weight
            is set aside.
        measures: name -> held-out rows or another measure; the mean over them is what is made small (measures of which
            more is better count negatively), so give measures of one unit.
        recipe: how the proxy is trained.
        rows: of each mixture.
        runs: mixtures that are drawn; of a grid, the finest whose number does not exceed it.
        draws: dirichlet or grid.
        passes: every run trains as many tokens as so many passes over `rows` rows of the sources' mean length.
        seeds: runs of the weights found, of the sources' proportions and of equal shares, which confirm or do not.
        seed: of the draws.
    Returns: what result.json says.
    Raises: ValueError for fewer than two sources, too few runs, a source without the rows that a weight of 1 needs.
    """
    check_choice("draws", draws, Draws)
    if len(sources) < 2:
        raise ValueError(f"{len(sources)} source has no weights to search; give at least two.")
    for name, value in (("rows", rows), ("runs", runs)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1.")
    if seeds < 2:
        raise ValueError(f"seeds is {seeds}; one run says nothing of the spread between runs: at least 2.")
    search = _Search(sources, as_measures(measures, recipe.max_length), recipe, Path(output_dir).expanduser(), rows)
    return search.run(runs, draws, passes, seeds, seed)


class _Search:
    def __init__(
        self, sources: Mapping[str, Any], measures: dict[str, Measure], recipe: Recipe, folder: Path, rows: int
    ):
        self.sources: dict[str, Source] = {}
        for name, said in sources.items():
            source = said if isinstance(said, Source) else Source(said)
            try:
                there = cast(Dataset, source.open(stream=False))
                source = replace(source, rows=None, tokens=None, weight=1.0, data=there, rename=None)
            except ValueError as error:
                raise ValueError(f'source "{name}": {error}') from error
            if len(there) < rows and source.shortfall != "repeat":
                raise ValueError(
                    f'source "{name}" has {len(there)} rows, and a mixture of it alone needs {rows}; lower rows, or '
                    "say shortfall: repeat."
                )
            self.sources[name] = source
        self.measures, self.recipe, self.folder, self.rows = measures, recipe, folder, rows

    def run(self, runs: int, draws: Draws, passes: float, seeds: int, seed: int) -> dict[str, Any]:
        names, sizes = list(self.sources), np.array([len(source.data) for source in self.sources.values()], float)
        rng = np.random.default_rng(seed)
        weights = drawn_weights(sizes, runs, rng) if draws == "dirichlet" else _finest_grid(len(names), runs)
        if len(weights) <= len(names):
            raise ValueError(f"{runs} runs cannot tell {len(names)} sources apart; make at least {len(names) + 1}.")
        settings = {
            "recipe": {**self.recipe.described(), "model": find(self.recipe.model).identity},
            "rows": self.rows, "passes": passes, "draws": draws, "seed": seed,
            "sources": {name: source.data._fingerprint for name, source in self.sources.items()},
            "measures": {name: measure.identity() for name, measure in self.measures.items()},
        }  # fmt: skip
        whole = Dataset.from_dict({"source": names, "rows": sizes.tolist()})
        claim_run_folder(self.folder / "search.json", settings, "a mixture search", whole)
        mean = self._mean_length()
        self.tokens = max(1, round(passes * self.rows * mean))
        self.steps = self.recipe.steps(self.tokens, mean)
        logger.warning(
            "mixture search: %d runs of %s tokens, and %d to confirm; a training run of %s tokens costs as much.",
            len(weights), f"{self.tokens:,}", 3 * seeds, f"{self.tokens * (len(weights) + 3 * seeds):,}",
        )  # fmt: skip
        wanted = {f"draw-{place:03d}": (one, seed) for place, one in enumerate(weights)}
        found = [self._made(name, *wanted[name]) for name in tqdm(wanted, desc="mixtures", unit="run")]
        results = np.array([self._objective(record).mean() for record in found])
        regression = Regression.fit(weights, results)
        simulated = np.vstack([drawn_weights(sizes, _SIMULATED, rng), np.eye(len(names))])
        best = simulated[np.argsort(regression(simulated), kind="stable")[:_BEST]].mean(axis=0)
        arms = {"found": best, "proportions": sizes / sizes.sum(), "equal shares": np.full(len(names), 1 / len(names))}
        confirmed = {
            arm: [self._made(f"{arm}-{s}", one, seed + 1 + s) for s in range(seeds)]
            for arm, one in tqdm(arms.items(), desc="confirm", unit="mixture")
        }
        values = {arm: np.array([self._objective(record) for record in some]) for arm, some in confirmed.items()}
        against = beside_the_others(values)
        every = [*found, *itertools.chain.from_iterable(confirmed.values())]
        result = {
            "weights": dict(zip(names, map(float, best), strict=True)),
            "foretold": float(regression(best[None])[0]),
            "regression": {
                "degree": regression.degree,
                "coefficients": regression.coefficients.tolist(),
                "rank_correlation": regression.rank_correlation,
                "skill": regression.skill,
                "runs": len(weights),
            },
            "confirmed": {arm: float(v.mean()) for arm, v in values.items()},
            "differences": {arm: {**vars(d), "verdict": d.verdict()} for arm, d in against.items()},
            "verdict": _verdict(regression, against),
            "cost": {name: sum(record[name] for record in every) for name in ("tokens", "seconds", "flops")},
            "runs": [{"weights": one.tolist(), "result": float(r)} for one, r in zip(weights, results, strict=True)],
            "sources": names,
        }
        write_json(self.folder / "result.json", result)
        return result

    def _mean_length(self) -> float:
        """Tokens of a row, by the first rows of each source."""
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

    def _made(self, name: str, weights: np.ndarray, seed: int) -> dict[str, Any]:
        """The record of a run, made if it is not there."""
        path = self.folder / "runs" / f"{slug(name)}.json"
        there = read_json(path)
        if there is not None and np.allclose(there["weights"], weights, atol=1e-9):
            return there
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

    def _objective(self, record: Mapping[str, Any]) -> np.ndarray:
        """What is made small, item by item; every measure counts as much as the others, whatever its items."""
        parts = [np.asarray(record["values"][name], dtype=np.float64) for name in self.measures]
        signs = [1.0 if measure.better == "lower" else -1.0 for measure in self.measures.values()]
        items = sum(map(len, parts))
        # Scaled so that the mean over all items is the mean over measures.
        return np.concatenate(
            [s * part * items / (len(part) * len(parts)) for s, part in zip(signs, parts, strict=True)]
        )


def beside_the_others(values: Mapping[str, np.ndarray]) -> dict[str, Difference]:
    """The weights found less each other arm, arm -> (seeds, items), with p-values corrected for all of them."""
    others = [arm for arm in values if arm != "found"]
    return corrected(
        {arm: differences({arm: values["found"]}, values[arm], num_comparisons=len(others))[arm] for arm in others}
    )


def _finest_grid(sources: int, runs: int) -> np.ndarray:
    steps = 1
    while math.comb(steps + sources, sources - 1) <= runs:
        steps += 1
    return grid_weights(sources, steps)


def _verdict(regression: Regression, against: Mapping[str, Any]) -> str:
    if regression.skill <= 0:
        said = "the regression foretells left-out runs no better than their mean: the weights found mean nothing"
    else:
        said = f"the regression explains {regression.skill:.0%} of the spread of left-out runs"
    beaten = [arm for arm, d in against.items() if d.outcome() == "better"]
    worse = [arm for arm, d in against.items() if d.outcome() == "worse"]
    if worse:
        return f"{said}; confirmed with new seeds, they are worse than {' and '.join(worse)}: do not use them"
    if beaten:
        return f"{said}; confirmed with new seeds, they beat {' and '.join(beaten)}"
    return f"{said}; with new seeds there is no evidence that they beat the sources' proportions or equal shares"
