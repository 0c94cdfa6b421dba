"""Is it worth scoring this pool, and by which model? Answered from a sample, before the full cost is paid.

    advise(pool, IFD("Qwen/Qwen2.5-7B"), "advice", small=IFD("Qwen/Qwen2.5-0.5B"), trainee="Qwen/Qwen2.5-7B")

A random 1 to 5 % of the rows is scored by the scorer in question and, if there is one, by a smaller substitute. The
sample gives:

- agreement: Spearman's rho of the two; the share of the best k % by one that is in that by the other; and the lift
  kept. With a row's rank r in [0, 1] by the large scorer, the lift of a selection is its mean r minus 0.5 (that of
  random rows): lift kept = lift of the small scorer's best k % / lift of the large one's own.
- what the scores follow: rho with the length of the row and of its responses; the share of the variance of the ranks
  that lies between sources, corrected for their number (epsilon squared).
- the cost of all rows: seconds measured and FLOPs counted on the sample, scaled to the pool, plus the one-time cost of
  queries and a warm-up; compared with that of training.
- rows of the whole pool that repeat a query.

Intervals are percentiles of a bootstrap over rows (those of sources: between_groups.py). A recommendation is made only
when its whole interval is on one side of its threshold. Why ask: gains at equal training size often do not pay for
scoring the pool (Ivison et al. 2025, arXiv:2503.01807; Yin and Rush 2025, arXiv:2410.16208), smaller scorers often
choose nearly as well (arXiv:2402.00530, and table 8 of the former), and likelihood scores often follow length or
source.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from datasets import Dataset
from datasets.fingerprint import Hasher

from hf_select.atomic import read_json, write_json
from hf_select.data import columns
from hf_select.data.conversation import Conversation
from hf_select.data.rows import conversations_of, readable
from hf_select.data.text import Part, characters_of
from hf_select.evaluation.recommend import recommend
from hf_select.evaluation.sample_measurements import FEWEST_ROWS, Which, measure_sample
from hf_select.models.causal_lm import CausalLM
from hf_select.models.parameters import active_parameters
from hf_select.reports.advice import advice_report
from hf_select.reports.advice_result import (
    AdviceCosts,
    AdviceResult,
    AdviceSettings,
    ScorerDescription,
    ScoringCost,
    TrainingCost,
)
from hf_select.reports.report_files import check_replaceable
from hf_select.scoring.length import Length
from hf_select.scoring.overlap import rows_that_repeat
from hf_select.scoring.score import score
from hf_select.scoring.scorer import Scorer
from hf_select.selection.baselines import random_order
from hf_select.validation import check_choice


def advise(
    pool: Dataset,
    scorer: Scorer,
    output_dir: str | os.PathLike,
    *,
    small: Scorer | None = None,
    share: float = 0.02,
    fraction: float = 0.1,
    which: Which = "best",
    trainee: str | None = None,
    passes: float = 2.0,
    queries: Mapping[str, Dataset] | None = None,
    source_column: str | None = None,
    seed: int = 0,
    chunk_rows: int = 1000,
) -> AdviceResult:
    """Score a sample, and advise whether to score the pool. A killed call resumes.

    Args:
        pool: the dataset.
        scorer: the scorer in question, fitted if it has targets.
        output_dir: folder for the scores of the sample (large/, small/), advice.json, .md, .html and pictures.
        small: a cheaper scorer that might replace it.
        share: share of the pool that is scored.
        fraction: share of the pool that is to be selected.
        which: whether the highest or the lowest scores are to be selected.
        trainee: Hub id or path of the model to be trained, to compare the cost of scoring with that of training.
        passes: passes over the rows when training.
        queries: task -> rows that the pool should not repeat, usually those that the scorer was fitted with.
        source_column: column with the source of a row.
        seed: of the sample and of the bootstrap.
        chunk_rows: rows that are scored and written together.
    Returns: the result, which is also written to advice.json.
    Raises: ValueError if the sample has fewer than 50 rows, for an unknown column, or if both scorers are the same.
    """
    check_choice("which", which, Which)
    count = round(share * len(pool))
    _check_arguments(pool, scorer, small, share, fraction, source_column)
    folder = Path(output_dir).expanduser()
    check_replaceable(folder, "advice.html", "advice.md", "pictures")  # before the scoring, not after it
    sample = pool.select(np.sort(random_order(len(pool), seed)[:count]))
    scorers = {"large": scorer} | ({"small": small} if small is not None else {})
    scores, sample_costs, pool_costs, unscored = {}, {}, {}, {}
    for name, each in scorers.items():
        scored = score(sample, each, folder / name, chunk_rows=chunk_rows, bad_rows="null")
        scores[name] = columns.score_values(scored, columns.score_column(each.name))
        summary = cast(dict[str, Any], read_json(folder / name / "summary.json"))
        sample_costs[name] = _scaled_cost(summary, 1)
        pool_costs[name] = _scaled_cost(summary, len(pool) / count)
        unscored[name] = summary["reasons"]
    lengths = _lengths(sample)
    sources = None if source_column is None else np.array([str(value) for value in sample[source_column]])
    measurements = measure_sample(scores["large"], scores.get("small"), lengths, sources, fraction, which, seed)
    # The uncertainty of the mean length in a sample of this size.
    error = float(1.96 * lengths["row"].std() / max(1.0, lengths["row"].mean()) / np.sqrt(count))
    training = None if trainee is None else _training_cost(trainee, sample, len(pool), passes, fraction)
    costs = AdviceCosts(sample_costs, pool_costs, error, training)
    settings = AdviceSettings(share, fraction, which, passes, seed, trainee, source_column)
    overlap = {name: rows_that_repeat(pool, rows) for name, rows in (queries or {}).items()}
    result = AdviceResult(
        pool_rows=len(pool),
        sample_rows=count,
        scorers={name: ScorerDescription(each.name, _shown_settings(each)) for name, each in scorers.items()},
        settings=settings,
        measurements=measurements,
        unscored=unscored,
        costs=costs,
        overlap=overlap,
        advice=recommend(measurements, costs, settings, overlap, unscored, count),
    )
    write_json(folder / "advice.json", result.to_dict())
    advice_report(result, folder)
    return result


# --------------------------------------------------------------------------------------------------------------------


def _check_arguments(
    pool: Dataset, scorer: Scorer, small: Scorer | None, share: float, fraction: float, source_column: str | None
) -> None:
    if small is not None and Hasher.hash(small) == Hasher.hash(scorer):  # settings and what they were fitted on
        settings = ", ".join(f"{name} {value}" for name, value in _shown_settings(small).items())
        raise ValueError(
            f"small is the same scorer as the one in question ({small.name}: {settings}), so there is nothing to "
            "compare. Give small a cheaper model or other settings, or leave it out."
        )
    if not 0 < share <= 1 or not 0 < fraction < 1:
        raise ValueError(
            f"share is {share} and fraction {fraction}; both are shares of the pool, above 0 and at most 1."
        )
    count = round(share * len(pool))
    if count < FEWEST_ROWS:
        least = min(1.0, FEWEST_ROWS / max(1, len(pool)))
        raise ValueError(
            f"{share:g} of {len(pool):,} rows are {count}, too few for any advice: at least {FEWEST_ROWS} "
            f"(share {np.ceil(1000 * least) / 1000:g})."
        )
    if source_column is not None and source_column not in pool.column_names:
        raise columns.missing_column(source_column, pool.column_names, "Name the column of the sources, or none.")


def _lengths(sample: Dataset) -> dict[str, np.ndarray]:
    """Return characters of the rows and of their responses; 0 for a row that cannot be read, which has no score."""
    parsed = list(conversations_of(sample))
    parts: dict[str, Part] = {"row": "all", "responses": "response"}
    return {
        name: np.array([characters_of(row, of) if isinstance(row, Conversation) else 0 for row in parsed], dtype=float)
        for name, of in parts.items()
    }


def _scaled_cost(summary: Mapping[str, Any], times: float) -> ScoringCost:
    """Return the cost of `times` the rows: the pass grows with them, the preparation is paid once."""
    once = summary["preparation_cost"].values()
    return ScoringCost(
        **{
            name: times * summary["cost"].get(name, 0) + sum(cost.get(name, 0) for cost in once)
            for name in ("seconds", "tokens", "flops")
        }
    )


def _training_cost(trainee: str, sample: Dataset, rows: int, passes: float, fraction: float) -> TrainingCost:
    """Return FLOPs of training all weights on every row and on a random `fraction`: 6 per parameter and token."""
    counts = Length(tokenizer=trainee)(cast(dict, readable(sample)[:]))[columns.NUM_TOKENS]
    tokens = float(np.mean([count for count in counts if count is not None])) * rows
    everything = 6.0 * _trained_parameters(trainee) * tokens * passes
    return TrainingCost(everything, fraction * everything, tokens)


def _trained_parameters(model: str) -> int:
    """Count the parameters that are multiplied: all but the input embedding. No weights are loaded."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    return active_parameters(empty)


def _shown_settings(scorer: Scorer) -> dict[str, str]:
    """Return the settings as text; a model object is shown by its name."""
    return {
        name: str(value.model if isinstance(value, CausalLM) else value)
        for name, value in scorer.settings().items()
        if value is not None
    }
