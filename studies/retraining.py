"""Do influence scores predict what training does? `validate_scores` on a small pool with several query sets.

    python studies/retraining.py --model PATH --warm-up RUN --pool POOL.jsonl.gz --queries Q.jsonl.gz --output-dir DIR

LESS (both forms of its Adam step) and RDS+ score rows drawn from the pool by their mean similarity to each query set;
random halves of these rows train a LoRA adapter for two epochs. TF-IDF, length and random scores are the yardsticks.
A killed run resumes. The table in benchmarks/results/less_cpu.md is older: see there.
"""

import argparse

import numpy as np
from datasets import Dataset
from targeted import read

from hf_select import LESS, RDSPlus, Recipe, validate_scores
from hf_select.data.conversation import conversations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "warm-up", "pool", "queries", "output-dir"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--queries-a-set", type=int, default=20)
    parser.add_argument("--halves", type=int, default=60)
    parser.add_argument("--max-length", type=int, default=1024)
    args = parser.parse_args()

    rows = read(args.pool)
    chosen = [rows[i] for i in np.random.default_rng(0).choice(len(rows), args.rows, replace=False)]
    pool = Dataset.from_list([{name: row[name] for name in ("prompt", "completion")} for row in chosen])
    sets: dict[str, list] = {}
    for query in read(args.queries):
        sets.setdefault(query["query_set"], []).append({name: query[name] for name in ("prompt", "completion")})
    targets = {name: Dataset.from_list(some[: args.queries_a_set]) for name, some in sets.items() if len(some) >= 50}

    shared = {"max_length": args.max_length, "per_query": True}
    methods = {
        "LESS": LESS(args.model, [args.warm_up], **shared),
        "LESS, sgd": LESS(args.model, [args.warm_up], form="sgd", **shared),
        "RDS+": RDSPlus(args.model, **shared),
    }
    parsed = conversations(pool[:])
    for name, method in methods.items():
        similar = method.fit(targets).similarities(parsed)[0]  # rows x queries
        for task, target in enumerate(targets):
            pool = pool.add_column(f"{name}_{target}", similar[:, method.task_of_query_ == task].mean(axis=1))
    recipe = Recipe(args.model, learning_rate=1e-3, rows_per_step=16, max_length=args.max_length, lora_r=8)
    names = {name: name for name in methods}
    result = validate_scores(pool, names, targets, recipe, args.output_dir, args.halves, passes=2.0)
    print(f"{args.output_dir}/validation.md; LDS, {result.headline}:")
    for name, score in result.results[result.headline].items():
        print(f"  {name}: {score.lds}")


if __name__ == "__main__":
    main()
