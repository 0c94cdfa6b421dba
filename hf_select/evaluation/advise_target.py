"""Which representation finds the target? Answered without labels, by holding back part of the queries.

    advise_target(pool, {"math": queries}, [RDSPlus("Qwen/Qwen2.5-0.5B"), TFIDF()], "advice")

The settings that help a score with targets (layers, centring, whitening, or word counts instead of a model) differ
from target to target, and a person who selects data has no labels to choose them by. But the queries themselves are
rows that belong to the target: under a good representation half of them find the other half among the rows of the
pool (held_back.py has the measure and its intervals).

A representation is recommended only if its lead is clear over every baseline (TF-IDF, and each scorer with its own
settings); otherwise the cheapest baseline that it does not clearly beat is. On a pool with labels (12 targets of 10 to
285 queries, a model of 270M parameters, a sample of 1,000 rows) the recommended representations had a mean R-precision
by label of 0.857, TF-IDF 0.789, RDS+ as published 0.797, the best by label 0.881; none had less than TF-IDF. The
candidates and the measure were chosen on these targets, so expect less on others. What is measured is how queries find
queries. Rows of the pool that belong to the target may look different, so labels, where there are some, decide better.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from hf_select.atomic import write_json
from hf_select.data.bad_rows import readable_rows
from hf_select.data.conversation import Conversation
from hf_select.data.rows import conversations_of
from hf_select.evaluation.held_back import Halves, found, halves, mean_over_tasks
from hf_select.evaluation.representations import Representation, encoding_cost, representations
from hf_select.evaluation.sample_measurements import FEWEST_ROWS
from hf_select.reports.advice_result import Estimate, ScoringCost
from hf_select.reports.report_files import check_replaceable
from hf_select.reports.target_advice import target_advice_report
from hf_select.reports.target_advice_result import RepresentationResult, TargetAdvice
from hf_select.scoring.dense import DenseSimilarity
from hf_select.scoring.overlap import QueryOverlap
from hf_select.scoring.similarity import Similarity
from hf_select.selection.baselines import random_order


FEWEST_QUERIES = 8  # of a task: halves of fewer say nothing


def advise_target(
    pool: Dataset,
    queries: Mapping[str, Dataset],
    scorers: Sequence[Similarity],
    output_dir: str | os.PathLike,
    *,
    share: float = 0.02,
    splits: int = 10,
    seed: int = 0,
    chunk_rows: int = 1000,
) -> TargetAdvice:
    """Rank representations by how well half of the queries find the other half. A killed call resumes.

    Args:
        pool: the dataset.
        queries: task -> rows of the target.
        scorers: cheapest first. RDSPlus and Embedding are tried plain, centred and half-whitened; RDSPlus also with an
            earlier layer beside the final norm: each of its `layers`, or the one at two thirds of the depth. TFIDF
            and LESS (with query_mode="repo") are taken as they are.
        output_dir: folder for the vectors of the sample, advice.json, .md, .html and pictures.
        share: share of the pool that the queries are looked for in.
        splits: random splits of the queries of a task into halves.
        seed: of the sample and of the splits.
        chunk_rows: rows that are encoded and written together.
    Returns: the result, which is also written to advice.json.
    Raises: ValueError for a task with fewer than 8 queries, a query that cannot be encoded, a sample with fewer than
        50 rows, or scorers without vectors to compare.
    """
    count = round(share * len(pool))
    _check_arguments(pool, queries, scorers, share, count, splits)
    folder = Path(output_dir).expanduser()
    check_replaceable(folder, "advice.html", "advice.md", "pictures")  # before the encoding, not after it
    sample = pool.select(np.sort(random_order(len(pool), seed)[:count]))
    repeats = {task: _repeats(sample, rows) for task, rows in queries.items()}
    repeated = {task: int(mask.sum()) for task, mask in repeats.items()}
    rng = np.random.default_rng(seed)
    pairs = {task: halves(len(rows), splits, rng) for task, rows in queries.items()}
    values: dict[str, list[np.ndarray]] = {}
    described: dict[str, tuple[str, dict[str, Any]]] = {}
    baselines, sample_cost = [], {}
    for scorer in scorers:
        where = folder / scorer.name
        for number, each in enumerate(representations(scorer, sample, queries, where, chunk_rows)):
            name = _name(each)
            described[name] = each.scorer, each.settings
            values[name] = [_found(each, task, repeats[task], pairs[task]) for task in queries]
            baselines += [name] if number == 0 else []
        cost = encoding_cost(scorer, where)
        sample_cost[scorer.name] = ScoringCost(cost["seconds"], cost.get("flops", 0.0), cost.get("tokens", 0))
    found_at, leads = compared(values, baselines)
    best_first = sorted(values, key=lambda name: -found_at[name].value)
    results = {
        name: RepresentationResult(
            *described[name],
            found=found_at[name],
            by_task={task: mean_over_tasks([of_task]) for task, of_task in zip(queries, values[name], strict=True)},
            leads=leads[name],
        )
        for name in best_first
    }
    recommended, message = recommend_representation(results, baselines)
    result = TargetAdvice(
        pool_rows=len(pool),
        sample_rows=count,
        queries={task: len(rows) for task, rows in queries.items()},
        repeating=repeated,
        splits=splits,
        seed=seed,
        results=results,
        baselines=baselines,
        recommended=recommended,
        message=message,
        notes=_notes(results, recommended, repeated),
        sample_cost=sample_cost,
        pool_cost={name: _times(cost, len(pool) / count) for name, cost in sample_cost.items()},
    )
    write_json(folder / "advice.json", result.to_dict())
    target_advice_report(result, folder)
    return result


def compared(
    values: Mapping[str, Sequence[np.ndarray]], baselines: Sequence[str]
) -> tuple[dict[str, Estimate], dict[str, dict[str, Estimate]]]:
    """(how well each representation finds held-back queries, its difference to each baseline).

    Args:
        values: representation -> of each task what `held_back.found` gives.
    """
    found_at = {name: mean_over_tasks(of_tasks) for name, of_tasks in values.items()}
    leads = {
        name: {
            baseline: mean_over_tasks(
                [mine - other for mine, other in zip(values[name], values[baseline], strict=True)],
                comparisons=max(1, len(values) - 1),
            )
            for baseline in baselines
            if baseline != name
        }
        for name in values
    }
    return found_at, leads


def recommend_representation(results: Mapping[str, RepresentationResult], baselines: Sequence[str]) -> tuple[str, str]:
    """(the representation to use, why). The best one, if its lead over the baselines of its scorer and of all cheaper
    ones is clear; else the first of these baselines that it does not clearly lead.

    Args:
        results: best first.
        baselines: cheapest first.
    """
    best = next(iter(results))
    scorers = [results[baseline].scorer for baseline in baselines]
    cheaper = [name for name in baselines[: scorers.index(results[best].scorer) + 1] if name != best]
    ties = [name for name in cheaper if results[best].leads[name].low <= 0]
    found_at = f"finds held-back queries at {_shown(results[best].found)} (0.5: no relation, 1: above all rows)"
    if ties:
        return ties[0], (
            f"use {ties[0]}: the best, {best}, does not differ from it clearly (it {found_at}, a lead of "
            f"{_shown(results[best].leads[ties[0]])})"
        )
    beaten = " and ".join(f"{name} ({_shown(results[best].leads[name])})" for name in cheaper)
    return best, f"use {best}: it {found_at}" + (
        f", which is clearly more than {beaten}" if beaten else ", and none is better"
    )


# --------------------------------------------------------------------------------------------------------------------


def _check_arguments(
    pool: Dataset,
    queries: Mapping[str, Dataset],
    scorers: Sequence[Similarity],
    share: float,
    count: int,
    splits: int,
) -> None:
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; it is a share of the pool, above 0 and at most 1.")
    if count < FEWEST_ROWS:
        least = np.ceil(1000 * min(1.0, FEWEST_ROWS / max(1, len(pool)))) / 1000
        raise ValueError(
            f"{share:g} of {len(pool):,} rows are {count}, too few for any advice: at least {FEWEST_ROWS} "
            f"(share {least:g})."
        )
    if splits < 1:
        raise ValueError(f"splits is {splits}; give at least 1.")
    if not queries:
        raise ValueError("there are no queries; give the rows of at least one target task.")
    for task, rows in queries.items():
        if len(rows) < FEWEST_QUERIES:
            raise ValueError(
                f'task "{task}" has {len(rows)} queries, too few to hold half of them back; give at least '
                f"{FEWEST_QUERIES}."
            )
    names = [scorer.name for scorer in scorers]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"the scorers are {names}; give at least one, and each only once.")
    for scorer in scorers:
        if not isinstance(scorer, Similarity):
            raise ValueError(
                f"scorer {scorer.name} compares rows with no queries; advise_target is for scorers that do: RDSPlus, "
                "Embedding, TFIDF and LESS."
            )
        if isinstance(scorer, DenseSimilarity) and scorer.center:
            raise ValueError(f"leave out center and whiten of {scorer.name}; advise_target tries them itself.")


def _repeats(sample: Dataset, queries: Dataset) -> np.ndarray:
    """Which rows repeat a query (n,)."""
    repeats = QueryOverlap(readable_rows(conversations_of(queries)))
    return np.array([isinstance(row, Conversation) and bool(repeats(row)) for row in conversations_of(sample)])


def _found(each: Representation, task: str, repeats: np.ndarray, pairs: Halves) -> np.ndarray:
    rows = each.rows[task][~repeats]
    if not np.isfinite(rows).all(axis=1).any():
        raise ValueError(
            f'no row of the sample is left to compare with the queries of task "{task}": they repeat its queries or '
            f"have no vector of {each.scorer}. Take a larger share."
        )
    return found(rows, each.queries[task], pairs, each.mean)


def _name(each: Representation) -> str:
    """The scorer and the settings that differ, as in "rds layers 12 -1 center"."""
    words = [each.scorer]
    for name, value in each.settings.items():
        words.append(name)
        words += [] if value is True else map(str, value) if isinstance(value, list) else [str(value)]
    return " ".join(words)


def _notes(results: Mapping[str, RepresentationResult], recommended: str, repeated: Mapping[str, int]) -> list[str]:
    notes = [
        f"{count:,} rows of the sample repeat queries of {task} and were left out: take such rows out of the pool, "
        "too (selector decontaminate), or a targeted score finds them before anything else"
        for task, count in repeated.items()
        if count
    ]
    best = next(iter(results))
    for task in results[best].by_task if len(results[best].by_task) > 1 else ():
        first = max(results, key=lambda name: results[name].by_task[task].value)
        if first not in (best, recommended):
            notes.append(f"task {task} alone is found best by {first} ({_shown(results[first].by_task[task])})")
    return notes


def _shown(estimate: Estimate) -> str:
    return f"{estimate.value:.3f}, {estimate.low:.3f} to {estimate.high:.3f}"


def _times(cost: ScoringCost, factor: float) -> ScoringCost:
    return ScoringCost(cost.seconds * factor, cost.flops * factor, cost.tokens * factor)
