"""How well half of the queries of a task find the other half among the rows of a pool: a measure without labels.

The queries of a task are split in halves. Every row is scored by its largest similarity to one half, as scores with
targets do, and a query of the other half is found at rank r if r of the n rows of the pool score higher:

    found = mean over splits and held-back queries of 1 - r / n

This is the area under the ROC curve: the chance that a held-back query scores above a row of the pool, 0.5 for scores
that say nothing. The pool has rows that belong to the task, nobody knows which, and a good representation ranks them
as high as the held-back queries. Why this measure: if m rows belong, the order among them and the queries moves it by
at most m / n. Measures that count the first ranks most (log of the rank, recall among the first 1 %) reward a
representation for telling queries from rows that belong, by their format. On a pool with labels (12 targets, 7
representations of a model of 270M parameters) the Spearman correlation with R-precision by label, and the R-precision
of the best by the measure, are 0.50 and 0.861 for the area, 0.34 and 0.860 for -sqrt(r / n), 0.24 and 0.860 for
-log(1 + r), 0.44 and 0.839 for recall among the first 10 %; the best by label has 0.881 and TF-IDF 0.789.

Representations are compared on the same rows, queries and splits. A query counts twice: by its own rank, and by those
that it finds while it is known. The spread over ranks alone would miss the second (95 % intervals held the truth in 82
% of simulated sets of 16 queries), so groups of queries are left out in turn, and the intervals are Student's t of
this jackknife; of several tasks, of the mean over tasks, with degrees of freedom by Welch and Satterthwaite. They are
corrected by Bonferroni for the number of representations, because the best of many is looked at. The sample of the
pool is taken as it is.
"""

from collections.abc import Sequence

import numpy as np

from hf_select.reports.advice_result import Estimate


# n rows of the pool, q queries of a task

GROUPS = 20  # of the jackknife; queries where there are fewer

Halves = list[tuple[np.ndarray, np.ndarray]]  # known queries, held-back queries


def halves(num_queries: int, splits: int, rng: np.random.Generator) -> Halves:
    """Random splits into halves, each taken in both directions: every query is held back once a split."""
    pairs: Halves = []
    for _ in range(splits):
        order = rng.permutation(num_queries)
        first, second = np.sort(order[: num_queries // 2]), np.sort(order[num_queries // 2 :])
        pairs += [(first, second), (second, first)]
    return pairs


def found(rows: np.ndarray, queries: np.ndarray, pairs: Halves, mean: bool = False) -> np.ndarray:
    """How well the queries are found while they are held back, see the module: values (g,) of groups of queries.

    Their mean is that over queries. Their spread is that of the mean, as if they were independent: value i is the mean
    plus (g - 1) times what the mean loses without group i (delete-a-group jackknife).

    Args:
        rows: similarity of rows of the pool to the queries (n, q); NaN for a row without a vector, which is left out.
        queries: similarity of the queries, encoded as rows, to the queries (q, q).
        pairs: known and held-back queries.
        mean: score by the mean over known queries instead of the largest.
    """
    rows = rows[np.isfinite(rows).all(axis=1)]
    num_groups = min(len(queries), GROUPS)
    group = np.arange(len(queries)) % num_groups
    whole = _mean_found(rows, queries, pairs, mean)
    without = np.array(
        [
            _mean_found(
                rows, queries, [(known[group[known] != g], held[group[held] != g]) for known, held in pairs], mean
            )
            for g in range(num_groups)
        ]
    )
    return whole + (num_groups - 1) * (without.mean() - without)


def _mean_found(rows: np.ndarray, queries: np.ndarray, pairs: Halves, mean: bool) -> float:
    values = []
    for known, held_back in pairs:
        of_rows, of_queries = (
            each[:, known].mean(axis=1) if mean else each[:, known].max(axis=1) for each in (rows, queries[held_back])
        )
        of_rows = np.sort(of_rows)
        above = len(rows) - np.searchsorted(of_rows, of_queries, side="right")
        equal = len(rows) - np.searchsorted(of_rows, of_queries, side="left") - above
        values.append(1 - (above + equal / 2) / len(rows))
    return float(np.concatenate(values).mean())


def mean_over_tasks(values: Sequence[np.ndarray], comparisons: int = 1) -> Estimate:
    """Mean over tasks of the mean of values, with its 95 % interval.

    Args:
        values: of each task, from `found`.
        comparisons: number of intervals that are to hold together (Bonferroni).
    """
    from scipy.stats import t as student

    mean = float(np.mean([of_task.mean() for of_task in values]))
    variances = np.array([of_task.var(ddof=1) / len(of_task) for of_task in values]) / len(values) ** 2
    variance = float(variances.sum())
    if variance == 0:
        return Estimate(mean, mean, mean)
    degrees = variance**2 / float(sum(v**2 / (len(of_task) - 1) for v, of_task in zip(variances, values, strict=True)))
    half = float(student.isf(0.025 / comparisons, degrees)) * variance**0.5
    return Estimate(mean, mean - half, mean + half)
