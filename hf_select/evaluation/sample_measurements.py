"""What the scores of a sample show: how two scorers agree, and how far the scores follow length and source."""

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

from hf_select.evaluation.between_groups import between_groups_interval
from hf_select.evaluation.statistics import bootstrap_intervals
from hf_select.reports.advice_result import Estimate, SampleMeasurements, ScorerAgreement, SourceShare
from hf_select.selection.ranking import percentile_ranks, rank, rank_correlation


Which = Literal["best", "worst"]

FEWEST_ROWS = 50
_MAX_POINTS = 2000  # of the pictures


def measure_sample(
    large: np.ndarray,
    small: np.ndarray | None,
    lengths: Mapping[str, np.ndarray],
    sources: np.ndarray | None,
    fraction: float,
    which: Which = "best",
    seed: int = 0,
) -> SampleMeasurements:
    """Measure the agreement of two scores and what they follow.

    Args:
        large, small: scores (n,), NaN where a row has none.
        lengths: kind of length -> lengths of the rows (n,).
        sources: of the rows (n,).
        fraction, which: share of the pool to be selected, by the highest or the lowest scores.
        seed: of the bootstrap.
    Raises: ValueError for fewer than 50 rows with all scores.
    """
    sign = -1.0 if which == "worst" else 1.0
    scores = {"large": sign * large} | ({} if small is None else {"small": sign * small})
    present = ~np.any([np.isnan(values) for values in scores.values()], axis=0)
    n = int(present.sum())
    if n < FEWEST_ROWS:
        raise ValueError(f"{n} rows of the sample have a score; at least {FEWEST_ROWS} are needed.")
    scores = {name: values[present] for name, values in scores.items()}
    lengths = {kind: values[present] for kind, values in lengths.items()}
    estimates = bootstrap_intervals(_statistics(scores, lengths, fraction), n, seed)
    shown = np.sort(np.random.default_rng(seed).permutation(n)[:_MAX_POINTS])
    points = {name: percentile_ranks(values)[shown].round(4).tolist() for name, values in scores.items()}
    points |= {f"length {kind}": values[shown].tolist() for kind, values in lengths.items()}
    agreement = None
    if small is not None:
        identical = bool((scores["large"] == scores["small"]).all())
        names = ("spearman", "overlap", "lift_kept")
        agreement = ScorerAgreement(*(estimates[name] for name in names), by_chance=fraction, identical=identical)
    source = None
    if sources is not None:
        codes = np.unique(sources[present], return_inverse=True)[1]
        shares = {name: Estimate(*between_groups_interval(values, codes)) for name, values in scores.items()}
        source = SourceShare(int(codes.max()) + 1, shares)
    length = {kind: {name: estimates[f"length {kind} {name}"] for name in scores} for kind in lengths}
    return SampleMeasurements(n, agreement, length, source, points)


def shared_of_best(a: np.ndarray, b: np.ndarray, fraction: float) -> float:
    """Return the share of the best `fraction` by one score that is among that by the other; `fraction` by chance."""
    best = _best_fraction(a, fraction)
    return len(np.intersect1d(best, _best_fraction(b, fraction))) / len(best)


def lift_kept(large: np.ndarray, small: np.ndarray, fraction: float) -> float:
    """Return the lift of the small score's best rows over that of the large score's own; 0 for random rows."""
    ranks = percentile_ranks(large)
    own = ranks[_best_fraction(large, fraction)].mean() - 0.5
    return float((ranks[_best_fraction(small, fraction)].mean() - 0.5) / own) if own > 0 else 0.0


def _statistics(
    scores: Mapping[str, np.ndarray], lengths: Mapping[str, np.ndarray], fraction: float
) -> dict[str, Callable[[np.ndarray], float]]:
    """Return name -> a statistic of the rows with given indices."""
    statistics: dict[str, Callable[[np.ndarray], float]] = {}
    for name, values in scores.items():
        for kind, sizes in lengths.items():
            statistics[f"length {kind} {name}"] = lambda rows, values=values, sizes=sizes: (
                rank_correlation(values[rows], sizes[rows]) or 0.0
            )
    if "small" in scores:
        a, b = scores["large"], scores["small"]
        statistics["spearman"] = lambda rows: rank_correlation(a[rows], b[rows]) or 0.0
        statistics["overlap"] = lambda rows: shared_of_best(a[rows], b[rows], fraction)
        statistics["lift_kept"] = lambda rows: lift_kept(a[rows], b[rows], fraction)
    return statistics


def _best_fraction(values: np.ndarray, fraction: float) -> np.ndarray:
    return rank(values)[: max(1, round(fraction * len(values)))]
