"""Is it worth scoring this pool, and by which model? Asked of a sample, before the days are spent.

    advise(pool, IFD("Qwen/Qwen2.5-7B"), "advice", small=IFD("Qwen/Qwen2.5-0.5B"), trainee="Qwen/Qwen2.5-7B")

A random 1 to 5 % of the rows is scored by the scorer in question and, if there is one, by a smaller stand-in. From it:

- agreement: Spearman's rho of the two; the share of the best k % of the one that is in that of the other; and the lift
  kept. A row's rank r in [0, 1] is that by the large scorer, the lift of a choice its mean r less 0.5 (that of random
  rows): lift kept = lift of the small scorer's best k % / lift of the large one's own.
- what the scores follow: rho with the length of the row and of its responses; the share of the variance of the ranks
  that lies between sources, corrected for their number (epsilon squared).
- the cost of all rows: seconds measured and FLOPs counted on the sample, times the rows, and once those of queries and
  a warm-up; beside that of training.
- rows of the whole pool that repeat a query.

Intervals are percentiles of a bootstrap over rows (that of sources: between_groups.py), and a piece of advice is given
when its whole interval is on one side of its threshold. Why ask: gains at equal training size often do not pay for
scoring the pool (Ivison et al. 2025, arXiv:2503.01807; Yin and Rush 2025, arXiv:2410.16208), smaller scorers often
choose nearly as well (arXiv:2402.00530, and table 8 of the former), and likelihood scores often are length or source
in disguise.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from datasets.fingerprint import Hasher

from hf_select.atomic import read_json, write_json
from hf_select.data import columns
from hf_select.data.conversation import Conversation, conversations
from hf_select.data.rows import readable
from hf_select.data.text import Part, characters_of
from hf_select.evaluation.between_groups import between_groups_interval
from hf_select.models.parameters import active_parameters
from hf_select.reports.advice import advice_report
from hf_select.scoring.length import Length
from hf_select.scoring.overlap import rows_that_repeat
from hf_select.scoring.score import score
from hf_select.selection.baselines import random_order
from hf_select.selection.ranking import percentile_ranks, rank, rank_correlation
from hf_select.validation import check_choice


Which = Literal["best", "worst"]

FOLLOWS_LENGTH = 0.8  # |rho| from which on the longest (or shortest) rows are nearly the same choice
KEEPS_ENOUGH = 0.9  # of the large scorer's lift: what a smaller one must keep to stand in for it
TELLS_SOURCES = 0.5  # of the variance between sources: more, and the score mostly names the source
FEWEST_ROWS = 50

_DRAWS = 400
_SHOWN = 2000  # points of the pictures


def advise(
    pool: Any,
    scorer: Any,
    output_dir: str | os.PathLike,
    *,
    small: Any = None,
    share: float = 0.02,
    fraction: float = 0.1,
    which: Which = "best",
    trainee: str | None = None,
    passes: float = 2.0,
    queries: Mapping[str, Any] | None = None,
    source_column: str | None = None,
    seed: int = 0,
    chunk_rows: int = 1000,
) -> dict[str, Any]:
    """Score a sample, and say whether to score the pool; a killed call goes on.

    Args:
        pool: the dataset.
        scorer: the scorer in question, fitted if it has targets.
        output_dir: folder for the scores of the sample (large/, small/), advice.json, .md, .html and pictures.
        small: a cheaper scorer that might stand in for it.
        share: of the pool that is scored.
        fraction: of the pool that is to be selected.
        which: whether the highest or the lowest scores are to be selected.
        trainee: Hub id or path of the model to be trained, to set the cost of scoring beside that of training.
        passes: over the rows when training.
        queries: task -> rows that the pool should not repeat, as a rule those that the scorer was fitted with.
        source_column: column that says where a row comes from.
        seed: of the sample and of the bootstrap.
        chunk_rows: rows that are scored and written together.
    Returns: what is written to advice.json.
    Raises: ValueError if the sample has fewer than 50 rows, for an unknown column, or if both scorers are the same.
    """
    check_choice("which", which, Which)
    if small is not None and Hasher.hash(small) == Hasher.hash(scorer):  # settings and what they were fitted on
        settings = ", ".join(f"{name} {value}" for name, value in _plain(small.settings()).items())
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
            f"{share:g} of {len(pool):,} rows are {count}, too few to say anything: at least {FEWEST_ROWS} "
            f"(share {np.ceil(1000 * least) / 1000:g})."
        )
    if source_column is not None and source_column not in pool.column_names:
        raise columns.missing_column(source_column, pool.column_names, "Name the column of the sources, or none.")
    from hf_select.reports.report_files import check_replaceable

    folder = Path(output_dir).expanduser()
    check_replaceable(folder, "advice.html", "advice.md", "pictures")  # before the scoring, not after it
    sample = pool.select(np.sort(random_order(len(pool), seed)[:count]))
    made = {"large": scorer} | ({"small": small} if small is not None else {})
    scores, costs, expected, unscored = {}, {}, {}, {}
    for name, one in made.items():
        scored = score(sample, one, folder / name, chunk_rows=chunk_rows, bad_rows="null")
        scores[name] = columns.score_values(scored, columns.score_column(one.name))
        summary = cast(Any, read_json(folder / name / "summary.json"))
        costs[name] = _cost_of(summary, 1)
        expected[name] = _cost_of(summary, len(pool) / count)
        unscored[name] = summary["reasons"]
    lengths = _lengths(sample)
    sources = None if source_column is None else np.array([str(value) for value in sample[source_column]])
    measured = measure(scores["large"], scores.get("small"), lengths, sources, fraction, which, seed)
    result = {
        "rows": {"pool": len(pool), "sample": count},
        "scorers": {name: {"name": one.name, "settings": _plain(one.settings())} for name, one in made.items()},
        "settings": {"share": share, "fraction": fraction, "which": which, "passes": passes, "seed": seed}
        | {"trainee": trainee, "source_column": source_column},
        **measured,
        "unscored": unscored,
        "cost": {
            "sample": costs,
            "pool": expected,
            # What the mean length of a sample of this size leaves open.
            "within": float(1.96 * lengths["row"].std() / max(1.0, lengths["row"].mean()) / np.sqrt(count)),
            "training": None if trainee is None else _training(trainee, sample, len(pool), passes, fraction),
        },
        "overlap": {name: rows_that_repeat(pool, rows) for name, rows in (queries or {}).items()},
    }
    result["advice"] = advice(result)
    write_json(folder / "advice.json", result)
    advice_report(result, folder)
    return result


def measure(
    large: np.ndarray,
    small: np.ndarray | None,
    lengths: Mapping[str, np.ndarray],
    sources: np.ndarray | None,
    fraction: float,
    which: Which = "best",
    seed: int = 0,
) -> dict[str, Any]:
    """Agreement of two scores and what they follow, each as {"value", "low", "high"}.

    Args:
        large, small: scores (n,), NaN where a row has none.
        lengths: of the rows, by what they are the length of, (n,) each.
        sources: of the rows, (n,).
    """
    sign = -1.0 if which == "worst" else 1.0
    scores = {"large": sign * large} | ({} if small is None else {"small": sign * small})
    there = ~np.any([np.isnan(values) for values in scores.values()], axis=0)
    if there.sum() < FEWEST_ROWS:
        raise ValueError(f"{there.sum()} rows of the sample have a score; at least {FEWEST_ROWS} are needed.")
    scores = {name: values[there] for name, values in scores.items()}
    lengths = {name: values[there] for name, values in lengths.items()}
    codes = None if sources is None else np.unique(sources[there], return_inverse=True)[1]
    wanted: dict[str, Callable[[np.ndarray], float]] = {}
    for name, values in scores.items():
        for kind, sizes in lengths.items():
            wanted[f"length {kind} {name}"] = lambda rows, v=values, s=sizes: rank_correlation(v[rows], s[rows]) or 0.0
    if small is not None:
        a, b = scores["large"], scores["small"]
        wanted["spearman"] = lambda rows: rank_correlation(a[rows], b[rows]) or 0.0
        wanted["overlap"] = lambda rows: shared_of_best(a[rows], b[rows], fraction)
        wanted["kept"] = lambda rows: lift_kept(a[rows], b[rows], fraction)
    found = _with_intervals(wanted, int(there.sum()), seed)
    shown = np.sort(np.random.default_rng(seed).permutation(int(there.sum()))[:_SHOWN])
    points = {name: percentile_ranks(values)[shown].round(4).tolist() for name, values in scores.items()}
    return {
        "measured": int(there.sum()),
        "agreement": None
        if small is None
        else {name: found[name] for name in ("spearman", "overlap", "kept")}
        | {"by_chance": fraction, "identical": bool((scores["large"] == scores["small"]).all())},
        "length": {kind: {name: found[f"length {kind} {name}"] for name in scores} for kind in lengths},
        "source": None
        if codes is None
        else {
            "distinct": int(codes.max()) + 1,
            **{name: _of_sources(values, codes) for name, values in scores.items()},
        },
        "points": points | {f"length {kind}": sizes[shown].tolist() for kind, sizes in lengths.items()},
    }


def shared_of_best(a: np.ndarray, b: np.ndarray, fraction: float) -> float:
    """The share of the best `fraction` of the one that is among that of the other; by chance it is `fraction`."""
    best = _best_fraction(a, fraction)
    return len(np.intersect1d(best, _best_fraction(b, fraction))) / len(best)


def lift_kept(large: np.ndarray, small: np.ndarray, fraction: float) -> float:
    """Lift of the small score's best rows over that of the large score's own; 0 is random rows."""
    ranks = percentile_ranks(large)
    own = ranks[_best_fraction(large, fraction)].mean() - 0.5
    return float((ranks[_best_fraction(small, fraction)].mean() - 0.5) / own) if own > 0 else 0.0


def advice(result: dict[str, Any]) -> dict[str, Any]:
    """What to do, the reason, and what else to know.

    do: "longest", "shortest", "small", "large", "train on everything", or "a larger sample".
    """
    found = _what_to_do(result)
    return {
        "do": found[0],
        "words": found[1],
        "besides": _besides(result, "small" if found[0] == "small" else "large"),
    }


# --------------------------------------------------------------------------------------------------------------------


def _what_to_do(result: dict[str, Any]) -> tuple[str, str]:
    percent = f"{100 * result['settings']['fraction']:g} %"
    kind, rho = max(
        ((kind, of["large"]) for kind, of in result["length"].items()), key=lambda found: abs(found[1]["value"])
    )
    if min(abs(rho["low"]), abs(rho["high"])) >= FOLLOWS_LENGTH and rho["low"] * rho["high"] > 0:
        which = "longest" if rho["value"] > 0 else "shortest"
        follow = f"the scores follow the length of the {kind} (rho {_shown(rho)})"
        return which, f"take the {which} rows: {follow}, which costs no model"
    scorer, words = "large", "score with the large scorer: there is no smaller one to stand in for it"
    if result["agreement"] is not None:
        kept = result["agreement"]["kept"]
        said = f"the best {percent} of the small scorer keep {_shown(kept)} of the large one's lift over random rows"
        if kept["low"] >= KEEPS_ENOUGH:
            scorer, words = "small", f"the small scorer is enough: {said}{_cheaper(result)}"
        elif kept["high"] < KEEPS_ENOUGH:
            words = f"the small scorer is no stand-in: {said}"
        else:
            return "a larger sample", (
                f"this sample does not settle whether the small scorer is enough ({KEEPS_ENOUGH:g} is asked): {said}. "
                "Score a larger share"
            )
    training = result["cost"]["training"]
    flops = result["cost"]["pool"][scorer]["flops"]
    if training is not None and flops >= training["everything"]:
        times = flops / training["everything"]
        what = "that scores every row" if result["agreement"] is None else f"of the {scorer} scorer over every row"
        return "train on everything", (
            f"do not score: the pass {what} costs {times:.2g} times the FLOPs of training on every row. "
            f"{_sentence(words)}"
        )
    return scorer, words


def _besides(result: dict[str, Any], scorer: str) -> list[str]:
    """What else is to be known of the scorer that would be used."""
    found = []
    for name, repeats in result["overlap"].items():
        if repeats:
            found.append(
                f"{repeats:,} rows of the pool repeat queries of {name}: take them out first (selector "
                "decontaminate), or a targeted score finds them before anything else"
            )
    for kind, of in result["length"].items():
        rho = of[scorer]
        if 0.5 <= abs(rho["value"]) < FOLLOWS_LENGTH:
            found.append(
                f"the scores lean on the length of the {kind} (rho {_shown(rho)}): compare with random rows of as "
                "many tokens, or rank within lengths (top_k with length)"
            )
    source = result["source"]
    if source is not None and source[scorer]["low"] >= TELLS_SOURCES:
        found.append(
            f"the scores mostly tell sources apart ({_shown(source[scorer])} of the variance of ranks lies between "
            f"the {source['distinct']} of {result['settings']['source_column']}): choose among sources, or within each"
        )
    training = result["cost"]["training"]
    if training is not None:
        flops = result["cost"]["pool"][scorer]["flops"]
        times = flops / training["selection"]
        if times >= 1 and flops < training["everything"]:
            found.append(
                f"the {scorer} scorer over every row costs {times:.2g} times the training on the selection: one use "
                "pays only if random rows would need that much more (hf-select compare says so)"
            )
    if result["agreement"] is not None and result["agreement"]["identical"]:
        found.append(
            "both scorers give every row the same score: on these rows they are one scorer, and their agreement says "
            "nothing of another"
        )
    for name, reasons in result["unscored"].items():
        missing = sum(reasons.values())
        if missing > 0.01 * result["rows"]["sample"]:
            most = next(iter(reasons))
            found.append(f"{missing:,} rows of the sample have no score by the {name} scorer (most often: {most})")
    return found


def _cheaper(result: dict[str, Any]) -> str:
    cost = result["cost"]["pool"]
    if cost["large"]["flops"] and cost["small"]["flops"]:
        return f", for {cost['small']['flops'] / cost['large']['flops']:.2g} of its FLOPs"
    return f", in {cost['small']['seconds'] / cost['large']['seconds']:.2g} of its time"


def _shown(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.2f}, {estimate['low']:.2f} to {estimate['high']:.2f}"


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:]


def _best_fraction(values: np.ndarray, fraction: float) -> np.ndarray:
    return rank(values)[: max(1, round(fraction * len(values)))]


def _with_intervals(
    wanted: Mapping[str, Callable[[np.ndarray], float]], n: int, seed: int
) -> dict[str, dict[str, float]]:
    """Each statistic of all rows, and the middle 95 % of what it is of rows drawn again."""
    dice = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in wanted}
    for _ in range(_DRAWS):
        rows = dice.integers(0, n, n)
        for name, statistic in wanted.items():
            drawn[name].append(statistic(rows))
    everything = np.arange(n)
    ends = {name: np.quantile(values, (0.025, 0.975)) for name, values in drawn.items()}
    return {
        name: {"value": statistic(everything), "low": float(ends[name][0]), "high": float(ends[name][1])}
        for name, statistic in wanted.items()
    }


def _of_sources(scores: np.ndarray, codes: np.ndarray) -> dict[str, float]:
    return dict(zip(("value", "low", "high"), between_groups_interval(scores, codes), strict=True))


def _lengths(sample: Any) -> dict[str, np.ndarray]:
    """Characters of the rows and of their responses; 0 for a row that cannot be read, which has no score either."""
    parsed = conversations(readable(sample)[:])
    parts: dict[str, Part] = {"row": "all", "responses": "response"}
    return {
        name: np.array([characters_of(row, of) if isinstance(row, Conversation) else 0 for row in parsed], dtype=float)
        for name, of in parts.items()
    }


def _cost_of(summary: dict[str, Any], times: float) -> dict[str, float]:
    """Of so many times the rows: the pass over them grows with them, the queries and a warm-up come once."""
    once = summary["preparation_cost"].values()
    return {
        name: times * summary["cost"].get(name, 0) + sum(cost.get(name, 0) for cost in once)
        for name in ("seconds", "tokens", "flops")
    }


def _training(trainee: str, sample: Any, rows: int, passes: float, fraction: float) -> dict[str, float]:
    """FLOPs of training all weights on every row and on a random `fraction` of them: 6 a parameter and token."""
    counts = Length(tokenizer=trainee)(cast(dict, readable(sample)[:]))[columns.NUM_TOKENS]
    tokens = float(np.mean([count for count in counts if count is not None])) * rows
    everything = 6.0 * _trained_parameters(trainee) * tokens * passes
    return {"tokens": tokens, "everything": everything, "selection": fraction * everything}


def _trained_parameters(model: str) -> int:
    """Parameters that multiply: all but the input embedding, whose rows are looked up. Nothing is loaded."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    return active_parameters(empty)


def _plain(settings: dict[str, Any]) -> dict[str, str]:
    """Settings in words; a model object is named by what it loads."""
    return {name: str(getattr(value, "model", value)) for name, value in settings.items() if value is not None}
