"""Weights of several scores, fitted on rows that are known to be wanted.

The rows are held-back queries: scored by the same scorers as the pool, and not among the queries that these scorers
were fitted with, which would find themselves. A logistic regression separates them from the rows of the pool:

    minimise over w >= 0 and b   sum over queries log(1 + e^-z) + (q / n) sum over rows log(1 + e^z) + |w|^2 / 2
    z = b + sum_c w_c f(r_c),    f(r) = -log(1 - r + 1 / 2n)

q queries, n rows of the pool, r_c the percentile rank by column c in the pool, or 1 - r_c where the queries have lower
scores than the rows. This is learning from positive and unlabelled rows: the pool also has rows that are wanted, so z
is no probability, but its order is right if held-back queries are a fair sample of them (Elkan and Noto 2008).

Weights are not negative, because columns that measure nearly the same would get large weights of opposite sign, which
follow what sets queries apart from wanted rows. Ranks are taken on a log scale, because a selection takes the first
few.

Do not expect much. On a pool with labels (12 targets of 10 to 285 queries, half of them held back, columns of TF-IDF
and RDS+ of a model of 270M parameters) the mean R-precision by label was: of two columns 0.812 for the mix and 0.812
for the best single column by held-back queries; of six columns 0.847 and 0.830. The lead was clear for one or two
targets, and what `fit_weights` returns had 0.819 and 0.832. The length of a row is no column to add: queries of one
format have one length, and wanted rows need not have it.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from hf_select.data import columns as names
from hf_select.extras import require
from hf_select.selection.ranking import percentile_ranks
from hf_select.selection.weighted_ranks import WeightedRanks, combined_ranks


if TYPE_CHECKING:
    from datasets import Dataset


FEWEST = 5  # held-back queries
_SMALLEST_WEIGHT = 0.01  # of the sum; a smaller one is left out
_REPEATS = ("has the prompt of query", "nearly repeats query")  # the notes of QueryOverlap

# n rows of the pool, q queries


def fit_weights(
    pool: "Dataset", queries: "Dataset", columns: Sequence[str] | None = None, *, folds: int = 5, seed: int = 0
) -> WeightedRanks:
    """`WeightedRanks` with weights that find held-back queries in the pool, or the best single column.

    By cross-validation over queries and rows, each held-back query has the share of rows that score lower (its mean is
    the area under the ROC curve). The mix is returned if its lead over the best single column is clear: the 95 %
    interval of the paired difference over queries (Student's t) is above 0. The evidence is in `evidence_` of the
    result and, as `fitted`, in `Selection.chain`.

    Args:
        pool: scored rows.
        queries: rows that are known to be wanted, with the same score columns. Those that repeat a query that a scorer
            was fitted with, by its reason column, are left out.
        columns: score columns; by default all that both have.
        folds: of the cross-validation.
        seed: of the folds.
    Raises: ValueError for a column that is missing, or with fewer than 5 queries that have all scores and repeat none.
    """
    require("weights that are fitted", "scipy")
    chosen = sorted(columns) if columns is not None else _shared_scores(pool, queries)
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"the columns are {chosen}; name at least one score column, and each only once.")
    of_rows, of_queries = ({c: names.score_values(each, c) for c in chosen} for each in (pool, queries))
    rows = np.flatnonzero(np.isfinite(list(of_rows.values())).all(axis=0))
    scored = np.isfinite(list(of_queries.values())).all(axis=0)
    fresh = ~_repeat_known(queries, chosen)
    kept = np.flatnonzero(scored & fresh)
    if len(kept) < FEWEST or len(rows) < FEWEST:
        raise ValueError(
            f"{len(kept)} of {len(queries)} held-back queries and {len(rows):,} of {len(pool):,} rows can be used, at "
            f"least {FEWEST} of each are needed. {int((~scored).sum())} queries lack a score, and "
            f"{int((~fresh).sum())} repeat a query that a scorer was fitted with: hold queries back by fitting the "
            "scorers with the others."
        )
    ranks = {c: percentile_ranks(values[rows]) for c, values in of_rows.items()}
    places = {c: _places(of_rows[c][rows], values[kept]) for c, values in of_queries.items()}
    found = _cross_validated(ranks, places, min(folds, len(kept)), seed)
    areas = {name: _estimate(values) for name, values in found.items()}
    best = max(chosen, key=lambda c: areas[c][0])
    lead = _estimate(found["mix"] - found[best])
    evidence = {"queries": len(kept), "rows": len(rows), "area": areas, "best_column": best, "lead": lead}
    if len(chosen) > 1 and lead[1] > 0:
        weights = _weights(ranks, places)
        verdict = f"the mix leads the best single column, {best}, by {_shown(lead)}"
    else:
        weights = {best: _sign(places[best])}
        verdict = f"the mix does not clearly lead the best single column, {best} ({_shown(lead)}): that is taken alone"
        if len(chosen) == 1:
            verdict = f"{best} is the only column"
    selector = WeightedRanks(weights, scale="log")
    selector.evidence_ = {**evidence, "verdict": verdict}
    return selector


# --------------------------------------------------------------------------------------------------------------------


def _cross_validated(
    ranks: Mapping[str, np.ndarray], places: Mapping[str, np.ndarray], folds: int, seed: int
) -> dict[str, np.ndarray]:
    """How many rows each query scores above, as a share (q,), by the mix and by each column, on folds left out."""
    rng = np.random.default_rng(seed)
    num_rows, num_queries = len(next(iter(ranks.values()))), len(next(iter(places.values())))
    fold_of_row, fold_of_query = (rng.permutation(np.arange(count) % folds) for count in (num_rows, num_queries))
    found = {name: np.empty(num_queries) for name in ("mix", *ranks)}
    for fold in range(folds):
        row, query = fold_of_row == fold, fold_of_query == fold
        known = {c: values[~query] for c, values in places.items()}
        mix = _weights({c: values[~row] for c, values in ranks.items()}, known)
        for name, weights in (("mix", mix), *((c, {c: _sign(known[c])}) for c in ranks)):
            scores = [
                combined_ranks({c: of[c][part] for c in weights}, weights, "log", num_rows)
                if weights
                else np.zeros(part.sum())
                for of, part in ((ranks, row), (places, query))
            ]
            found[name][query] = _places(scores[0], scores[1])
    return found


def _weights(ranks: Mapping[str, np.ndarray], places: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Weights of sum 1, by column; none for columns that do not help."""
    from scipy.optimize import minimize

    signs = {c: _sign(values) for c, values in places.items()}
    n, q = (len(next(iter(of.values()))) for of in (ranks, places))
    f = np.stack(
        [combined_ranks({c: np.append(ranks[c], places[c])}, {c: signs[c]}, "log", n) for c in ranks], axis=1
    )  # (n + q, columns)
    wanted = np.repeat([-1.0, 1.0], [n, q])
    importance = np.repeat([q / n, 1.0], [n, q])

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        margins = wanted * (f @ w[:-1] + w[-1])
        slopes = -wanted * importance * np.exp(-np.logaddexp(0, margins))
        value = importance @ np.logaddexp(0, -margins) + 0.5 * (w[:-1] @ w[:-1])
        return float(value), np.append(f.T @ slopes + w[:-1], slopes.sum())

    bounds = [(0, None)] * len(ranks) + [(None, None)]
    fitted = minimize(loss, np.zeros(len(bounds)), jac=True, method="L-BFGS-B", bounds=bounds).x[:-1]
    shares = dict(zip(ranks, fitted / max(fitted.sum(), 1e-12), strict=True))
    kept = {c: share for c, share in shares.items() if share >= _SMALLEST_WEIGHT}
    return {c: float(signs[c] * share / sum(kept.values())) for c, share in kept.items()}


def _places(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Share of the values that each of the others is above; an equal one counts half."""
    ordered = np.sort(values)
    sides = [np.searchsorted(ordered, others, side=cast(Any, side)) for side in ("left", "right")]
    return np.mean(sides, axis=0) / len(values)


def _sign(places: np.ndarray) -> float:
    """-1 for a column by which queries score lower than the rows, else 1."""
    return 1.0 if places.mean() >= 0.5 else -1.0


def _estimate(values: np.ndarray) -> list[float]:
    """[mean, low, high] of the 95 % interval (Student's t)."""
    from scipy.stats import t as student

    mean, error = float(values.mean()), float(values.std(ddof=1)) / len(values) ** 0.5
    half = float(student.isf(0.025, len(values) - 1)) * error
    return [mean, mean - half, mean + half]


def _shown(estimate: list[float]) -> str:
    return "{:+.4f}, {:+.4f} to {:+.4f}".format(*estimate)


def _shared_scores(pool: "Dataset", queries: "Dataset") -> list[str]:
    shared = [c for c in pool.column_names if c.startswith(names.SCORE_PREFIX) and c in queries.column_names]
    if not shared:
        raise ValueError(
            f"the pool has the columns {pool.column_names} and the queries {queries.column_names}: no score column is "
            "in both. Score the queries with the scorers of the pool."
        )
    return sorted(shared)


def _repeat_known(queries: "Dataset", columns: Sequence[str]) -> np.ndarray:
    """Queries that a scorer was fitted with, by the note in its reason column (q,)."""
    repeat = np.zeros(len(queries), dtype=bool)
    for reason in [name for name in queries.column_names if name.endswith("_reason")]:
        scorer = names.score_column(reason.removesuffix("_reason"))
        if any(column == scorer or column.startswith(f"{scorer}_") for column in columns):
            repeat |= [any(note in (text or "") for note in _REPEATS) for text in queries[reason]]
    return repeat
