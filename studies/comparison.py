"""Does any scorer of this package beat random rows at equal compute? Two pools with a known truth.

    python studies/comparison.py score   --pool corrupted --data ../shared/data --model PATH --work FOLDER
    python studies/comparison.py compare --pool corrupted --data ../shared/data --model PATH --work FOLDER
    the same with --pool targeted

corrupted  3,000 of the damaged Alpaca rows, measured on clean rows that are not in the pool; methods that want
           examples are given other clean rows
targeted   3,000 rows of 17 unnamed sources, measured on held-out rows of each target; methods that want examples are
           given other rows of the targets, and take turns among them; held-out rows that the pool repeats are left out
Scores are made once and kept (FOLDER/POOL/scores), and cost what their runs took, LESS's warm-up included; the answer
key is listed with them as an upper bound. Several processes of `compare` share the runs.
"""

import argparse
import json
import random
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset
from targeted import read

from hf_select import DEITA, IFD, LESS, TFIDF, Embedding, Perplexity, RDSPlus, RoundRobin, SelectIT, TopK, score
from hf_select.data.columns import NUM_TOKENS, SCORE_PREFIX
from hf_select.data.conversation import conversations
from hf_select.evaluation.compare import compare
from hf_select.scoring.length import Length
from hf_select.scoring.overlap import QueryOverlap
from hf_select.scoring.score import whole_cost
from hf_select.selection.dedup import Dedup
from hf_select.selection.weighted_ranks import WeightedRanks
from hf_select.training.equal_tokens import Recipe
from hf_select.training.warmup import WarmUp


POOL_ROWS, QUERIES, HELD_OUT = 3000, 64, 100
OF_TARGET = 30  # held-out rows of each target
LONGEST = 1200  # characters of one: longer rows would lose their answers
MAX_LENGTH = 512


def dataset(rows: list[dict], **more: list) -> Dataset:
    plain = [{"prompt": row["prompt"], "completion": row["completion"]} for row in rows]
    found = Dataset.from_list(plain)
    for name, values in more.items():
        found = found.add_column(name, values)  # type: ignore[call-arg]
    return found


def corrupted(data: Path) -> tuple[Dataset, dict[str, Dataset], dict[str, Dataset]]:
    """(pool with its key, queries, held-out rows)"""
    rows = read(str(data / "known_truth/alpaca_corrupted_20k.jsonl.gz"))
    labels = read(str(data / "known_truth/alpaca_corrupted_20k.labels.jsonl.gz"))
    used = {label["alpaca_id"] for label in labels}
    chosen = sorted(random.Random(0).sample(range(len(rows)), POOL_ROWS))
    apart = [row for row in read(str(data / "pools/alpaca_52k.jsonl.gz")) if row["id"] not in used]
    apart = [row for row in apart if row["completion"].strip()]
    random.Random(1).shuffle(apart)
    prompts = {row["prompt"] for row in rows}
    apart = [row for row in apart if row["prompt"] not in prompts][: QUERIES + HELD_OUT]
    key = [float(labels[i]["label"] == "clean") for i in chosen]
    ends = [float(rows[i]["completion"].rstrip()[-1:] in set(".!?\"')]}`:;")) for i in chosen]
    pool = dataset([rows[i] for i in chosen], key=key, ends_well=ends)
    return pool, {"clean": dataset(apart[:QUERIES])}, {"clean": dataset(apart[QUERIES:])}


def targeted(data: Path) -> tuple[Dataset, dict[str, Dataset], dict[str, Dataset]]:
    rows = read(str(data / "known_truth/targeted_pool.jsonl.gz"))
    labels = read(str(data / "known_truth/targeted_pool.labels.jsonl.gz"))
    asked = read(str(data / "known_truth/targeted_pool.queries.jsonl.gz"))
    chosen = sorted(random.Random(0).sample(range(len(rows)), POOL_ROWS))
    queries, held_out, keys = {}, {}, {}
    for name in dict.fromkeys(query["query_set"] for query in asked):
        some = [query for query in asked if query["query_set"] == name and query["completion"].strip()]
        random.Random(0).shuffle(some)
        half = len(some) // 2
        target = "super_ni" if name.startswith("task:") else name
        queries[name] = dataset(some[:half][:30])
        short = [query for query in some[half:] if len(query["prompt"]) + len(query["completion"]) < LONGEST]
        held_out.setdefault(target, []).extend(short[:OF_TARGET])
        field, wanted = next(iter(some[0]["relevant_strict"].items()))
        keys[f"key_{name}"] = [float(labels[i][field] in wanted) for i in chosen]
    pool = dataset([rows[i] for i in chosen], source=[labels[i]["source"] for i in chosen], **keys)
    repeats = QueryOverlap(list(conversations(pool.select_columns(["prompt", "completion"])[:])))
    for name, some in held_out.items():
        held_out[name] = [
            row for row, read in zip(some, conversations(dataset(some)[:]), strict=True) if not repeats(read)
        ]
    return pool, queries, {name: dataset(some) for name, some in held_out.items()}


POOLS = {"corrupted": corrupted, "targeted": targeted}


def scorers(args: argparse.Namespace, pool: Dataset, queries: dict[str, Dataset], folder: Path):
    """(name, scorer); those with queries are fitted."""
    yield "length", Length(tokenizer=args.model)
    yield "perplexity", Perplexity(args.model, max_length=MAX_LENGTH)
    yield "ifd", IFD(args.model, max_length=MAX_LENGTH)
    yield "selectit", SelectIT(args.model, level="token", max_length=MAX_LENGTH)
    yield "deita", DEITA(args.model, ratings=5, max_length=MAX_LENGTH)
    yield "tfidf", TFIDF().fit(queries, pool=pool)
    yield "rds", RDSPlus(args.model, max_length=MAX_LENGTH).fit(queries)
    yield "embedding", Embedding(args.model).fit(queries)
    checkpoints = folder / "warm_up"
    settings = {"max_length": 2 * MAX_LENGTH, "text_format": "chat"}  # or some queries would lose their answers
    WarmUp(args.model, fraction=0.1, epochs=2, learning_rate=1e-3, lora_r=8, **settings).run(pool, checkpoints)
    # The published tables were made with the mean of cosines.
    yield "less", LESS(args.model, [str(checkpoints)], query_mode="repo", **settings).fit(queries)


def make_scores(args: argparse.Namespace) -> None:
    pool, queries, _ = POOLS[args.pool](args.data)
    folder = args.work / args.pool
    rows = pool.select_columns(["prompt", "completion"])
    for name, scorer in scorers(args, rows, queries, folder):
        score(rows, scorer, folder / "scores" / name)
        print(name, json.dumps(whole_cost(folder / "scores" / name)), flush=True)


def methods(args: argparse.Namespace, pool: Dataset, folder: Path) -> tuple[Dataset, dict, dict]:
    """(pool with the score columns, method -> selector, method -> cost)"""
    costs = {}
    for path in sorted(path for path in (folder / "scores").iterdir() if (path / "summary.json").exists()):
        scores = pq.read_table(path / "scores.parquet")
        for name in scores.column_names:
            if name.startswith(SCORE_PREFIX) or name == NUM_TOKENS:
                pool = pool.add_column(name, scores[name].to_pylist())  # type: ignore[call-arg]
        costs[path.name] = whole_cost(path)
    found = {
        "ifd": TopK("score_ifd", at_most=1.0),
        "ifd, not cut at 1": TopK("score_ifd"),
        "perplexity": TopK("score_perplexity", which="middle"),
        "selectit": TopK("score_selectit"),
        "deita": TopK("score_deita"),
    }
    if args.pool == "corrupted":
        found |= {name: TopK(f"score_{name}") for name in ("rds", "tfidf", "embedding", "less") if name in costs}
        # The combination that found most damage in likelihood_cpu.md.
        dedup = Dedup(of="prompt")
        dedup(pool)
        copies = [float(row not in dedup.removed_) for row in range(len(pool))]
        pool = pool.add_column("no_copy", copies)  # type: ignore[call-arg]
        found["combined"] = WeightedRanks({"score_ifd": -1.0, "ends_well": 1.0, "no_copy": 1.0})
        found["answer key"] = TopK("key")
    else:
        for name in ("rds", "tfidf", "embedding", "less"):
            columns = [column for column in pool.column_names if column.startswith(f"score_{name}_")]
            if columns:
                found[name] = RoundRobin(columns)
        found["answer key"] = RoundRobin([column for column in pool.column_names if column.startswith("key_")])
    costs["combined"] = costs["ifd, not cut at 1"] = costs["ifd"]
    return pool, found, costs


def run_comparison(args: argparse.Namespace) -> None:
    pool, _, held_out = POOLS[args.pool](args.data)
    folder = args.work / args.pool
    pool, selectors, costs = methods(args, pool, folder)
    # Rows differ in length: one by one nothing is padded.
    batches = {"rows_per_step": 4, "rows_per_batch": 1, "max_length": MAX_LENGTH}
    recipe = Recipe(args.trained, learning_rate=args.learning_rate, **batches)
    compare(
        pool, selectors, held_out, recipe, folder / "comparison", args.budgets, seeds=args.seeds, passes=1.0,
        balanced_by="source" if "source" in pool.column_names else None, costs=costs,
    )  # fmt: skip
    print((folder / "comparison" / "result.md").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["score", "compare"])
    parser.add_argument("--pool", choices=list(POOLS), required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True, help="what scores")
    parser.add_argument("--trained", help="what is trained on the selections, by default the same")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--budgets", type=int, nargs="+", default=[25, 50, 100])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    args = parser.parse_args()
    args.trained = args.trained or args.model
    {"score": make_scores, "compare": run_comparison}[args.command](args)


if __name__ == "__main__":
    main()
