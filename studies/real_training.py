"""What training a real model on targeted selections gains, at equal tokens.

    python studies/real_training.py --model PATH_OR_ID --data ../shared/data --work FOLDER --layers 6 9 12 15 -1

The pool is the sample of representations.py, whose vectors in FOLDER are read if it ran there with the same settings.
Targets: arithmetic word problems (gsm8k), multiple choice (mmlu) and code (humaneval). Each method takes turns
among the targets (round robin), by the similarity to the nearest of some queries; a LoRA adapter is trained on what it
selects and measured by the loss on other rows of the targets, and by the answers of two of them. LESS scores only the
best rows of the other methods (two stages), by the gradients of a short warm-up. A killed run resumes; several
processes share the runs.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
from datasets import Dataset
from representations import dataset, encoded, sample, similarities
from targeted import read

from hf_select import LESS, TFIDF, CausalLM, RoundRobin, score
from hf_select.data.conversation import conversations
from hf_select.evaluation.checkable_answers import CheckableAnswers
from hf_select.evaluation.compare import compare
from hf_select.features.hidden_states import HiddenStates
from hf_select.scoring.overlap import QueryOverlap
from hf_select.scoring.score import whole_cost
from hf_select.training.equal_tokens import Recipe
from hf_select.training.warmup import WarmUp


TARGETS = ("gsm8k", "mmlu", "humaneval")
QUERIES, HELD_OUT = 30, 40  # rows of each target
LONGEST = 800  # characters of a held-out row
CANDIDATES = 600  # rows that LESS scores


def split(asked: list[dict]) -> tuple[dict[str, list[dict]], dict[str, list[dict]]]:
    """(queries, held-out rows) of each target, no row in both."""
    queries, held_out = {}, {}
    for name in TARGETS:
        some = [query for query in asked if query["query_set"] == name]
        some = [query for query in some if len(query["prompt"]) + len(query["completion"]) < LONGEST]
        random.Random(0).shuffle(some)
        queries[name], held_out[name] = some[:QUERIES], some[QUERIES : QUERIES + HELD_OUT]
    return queries, held_out


def with_columns(pool: Dataset, method: str, matrix: np.ndarray, task_of_query: np.ndarray) -> Dataset:
    """The pool with a column for each target: the similarity (n, q) to its nearest query."""
    for task, name in enumerate(TARGETS):
        nearest = matrix[:, task_of_query == task].max(axis=1)
        pool = pool.add_column(f"{method}_{name}", nearest.tolist())  # type: ignore[call-arg]
    return pool


def turns(method: str) -> RoundRobin:
    return RoundRobin([f"{method}_{name}" for name in TARGETS])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layers", type=int, nargs="+", default=[-1], help="that the index has")
    parser.add_argument("--best", type=int, nargs="+", default=[-1], help="of these, those of the best representation")
    parser.add_argument("--whiten", type=float, default=0.5)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--encoded-length", type=int, default=512)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--budgets", type=int, nargs="+", default=[100, 400])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--max-length", type=int, default=320)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--without", nargs="*", default=[], help="methods that are left out")
    args = parser.parse_args()

    known = args.data / "known_truth"
    everything, labels, asked = (
        read(str(known / f"targeted_pool{part}.jsonl.gz")) for part in ("", ".labels", ".queries")
    )
    chosen = sample(labels, asked, args.rows)
    rows = dataset([everything[i] for i in chosen])
    queries, held_out = split(asked)
    sets = {name: dataset(some) for name, some in queries.items()}
    task_of_query = np.repeat(np.arange(len(TARGETS)), [len(some) for some in queries.values()])

    pool = rows
    words = TFIDF(per_query=True).fit(sets, pool=rows)
    pool = with_columns(pool, "tfidf", words.similarities(conversations(rows[:]))[0], task_of_query)
    lm = CausalLM(args.model, dtype=args.dtype)
    states = HiddenStates(lm, layers=args.layers, text_format="tulu", max_length=args.encoded_length)
    vectors, targets = encoded(states, rows, dataset(asked), args.work / "states")
    place = {query["id"]: i for i, query in enumerate(asked)}
    targets = targets[[place[query["id"]] for some in queries.values() for query in some]]
    for method, layers, whiten in (("rds", [-1], None), ("best", args.best, args.whiten)):
        places = [args.layers.index(layer) for layer in layers]
        matrix = similarities(vectors[:, places], targets[:, places], whiten is not None, whiten or 0.0)
        pool = with_columns(pool, method, matrix, task_of_query)
    for name in TARGETS:
        field, wanted = next(iter(queries[name][0]["relevant_strict"].items()))
        pool = pool.add_column(f"key_{name}", [float(labels[i][field] in wanted) for i in chosen])  # type: ignore[call-arg]
    methods = {
        "tfidf": turns("tfidf"),
        "rds": turns("rds"),
        "rds, best representation": turns("best"),
        "answer key": turns("key"),
    }
    costs = {}
    if "less" not in args.without:
        best_of_each = RoundRobin([f"{method}_{name}" for method in ("tfidf", "best") for name in TARGETS])
        candidates = best_of_each(pool, k=min(CANDIDATES, len(pool) // 4))
        settings = {"max_length": args.encoded_length, "text_format": "chat"}  # no query may lose its answer
        warm_up = args.work / "warm_up"
        WarmUp(args.model, fraction=0.04, epochs=1, learning_rate=2e-4, lora_r=8, **settings).run(rows, warm_up)
        scorer = LESS(args.model, [str(warm_up)], **settings).fit(sets)
        scored = score(rows, scorer, args.work / "less", candidates=candidates)
        for name in TARGETS:
            pool = pool.add_column(f"less_{name}", scored[f"score_less_{name}"])  # type: ignore[call-arg]
        methods["less, of the best by both"] = turns("less")
        costs["less, of the best by both"] = whole_cost(args.work / "less")

    repeats = QueryOverlap(list(conversations(rows[:])))
    measured = {
        name: [row for row, read in zip(some, conversations(dataset(some)[:]), strict=True) if not repeats(read)]
        for name, some in held_out.items()
    }
    print({name: len(some) for name, some in measured.items()}, flush=True)
    measures = {name: dataset(some) for name, some in measured.items()} | {
        "mmlu, right": CheckableAnswers(dataset(measured["mmlu"]), final="letter", max_new_tokens=4),
        "gsm8k, right": CheckableAnswers(dataset(measured["gsm8k"]), final="number", max_new_tokens=160),
    }
    recipe = Recipe(
        args.model, learning_rate=args.learning_rate, rows_per_step=8, rows_per_batch=4, lora_r=8, bf16=args.bf16,
        max_length=args.max_length,
    )  # fmt: skip
    compare(
        pool, methods, measures, recipe, args.work / "comparison", args.budgets, seeds=args.seeds, passes=1.0,
        costs=costs,
    )  # fmt: skip
    print((args.work / "comparison" / "result.md").read_text())
    print(json.dumps(costs))


if __name__ == "__main__":
    main()
