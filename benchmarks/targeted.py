"""Does a targeted scorer find the rows of its queries' own domain? Precision on a pool with known sources.

    python benchmarks/targeted.py --model PATH_OR_ID --pool POOL.jsonl.gz --labels LABELS.jsonl.gz --queries Q.jsonl.gz

Each query set is a task; rows are ranked by their similarity to its nearest query (max) and by the mean over its
queries. A row counts as a hit if its source or task is among the query's `relevant_strict`. P@k with k = min(500,
relevant), R-precision with k = relevant. TF-IDF stands beside it: what does not beat that adds nothing.
"""

import argparse
import gzip
import json
import tempfile
import time

import numpy as np
from datasets import Dataset

from hf_select import TFIDF, PoolIndex, RDSPlus
from hf_select.formats import conversations


def read(path: str) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


def precision(scores: np.ndarray, relevant: np.ndarray) -> str:
    """P@k and R-precision of a ranking, ties to the lower row."""
    order = np.argsort(-scores, kind="stable")
    total = int(relevant.sum())
    return f"{relevant[order[: min(500, total)]].mean():.3f}, {relevant[order[:total]].mean():.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "pool", "labels", "queries"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--text-format", default="tulu", choices=["tulu", "chat"])
    parser.add_argument("--pooling", default="weighted_mean")
    parser.add_argument("--layer", type=int)
    parser.add_argument("--max-length", type=int, default=512)
    args = parser.parse_args()

    pool, labels, queries = read(args.pool), read(args.labels), read(args.queries)
    assert [row["id"] for row in pool] == [label["id"] for label in labels]
    names = dict.fromkeys(query["query_set"] for query in queries)
    sets = {name: [query for query in queries if query["query_set"] == name] for name in names}

    def dataset(rows: list[dict]) -> Dataset:
        return Dataset.from_list([{"prompt": row["prompt"], "completion": row["completion"]} for row in rows])

    rows, targets = dataset(pool), {name: dataset(some) for name, some in sets.items()}
    scorer = RDSPlus(
        args.model,
        pooling=args.pooling,
        text_format=args.text_format,
        layer=args.layer,
        max_length=args.max_length,
        per_query=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        index = PoolIndex.build(rows, scorer.featurizer, folder, chunk_rows=2000)
        encoded = time.perf_counter() - begin
        begin = time.perf_counter()
        rds = index.to_numpy() @ scorer.fit(targets).queries_.T  # (n, q)
        compared = time.perf_counter() - begin
    begin = time.perf_counter()
    words = TFIDF(per_query=True).fit(targets, pool=rows)
    lexical = np.concatenate([words.similarities(conversations(batch))[0] for batch in rows.iter(batch_size=2000)])
    counted = time.perf_counter() - begin

    print(f"{len(pool)} rows, {len(queries)} queries")
    print(f"seconds: {encoded:.0f} to encode the pool, {compared:.1f} to encode the queries and compare,", end=" ")
    print(f"{counted:.0f} for TF-IDF\n")
    print("| query set | relevant | chance | RDS+ max: P@k, R | RDS+ mean | TF-IDF max | TF-IDF mean |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    start = 0
    for name, some in sets.items():
        field, wanted = next(iter(some[0]["relevant_strict"].items()))
        hit = np.array([label[field] in wanted for label in labels])
        block = slice(start, start + len(some))
        start += len(some)
        cells = [
            precision(pooled(matrix[:, block], axis=1), hit)
            for matrix in (rds, lexical)
            for pooled in (np.max, np.mean)
        ]
        print(f"| {name} | {hit.sum()} | {hit.mean():.3f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
