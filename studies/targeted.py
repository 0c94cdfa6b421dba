"""Does a targeted scorer find the rows of its queries' own domain? Precision on a pool with known sources.

    python studies/targeted.py --model PATH_OR_ID --pool POOL.jsonl.gz --labels LABELS.jsonl.gz --queries Q.jsonl.gz

With --warm-up FOLDER, LESS on the checkpoints of `hf-select warm-up` there. Each query set is a task; rows are ranked
by their similarity to its nearest query (max) and by the mean over its queries. A row counts as a hit if its source or
task is among the query's `relevant_strict`. P@k with k = min(500, relevant), R-precision with k = relevant. TF-IDF
stands beside it: what does not beat that adds nothing.
"""

import argparse
import gzip
import json
import tempfile
import time

import numpy as np
from datasets import Dataset

from hf_select import LESS, TFIDF, PoolIndex, RDSPlus
from hf_select.data.conversation import conversations


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
    parser.add_argument("--layers", type=int, nargs="+")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--warm-up")
    parser.add_argument("--methods", nargs="+", default=["RDS+", "LESS", "TF-IDF"])
    args = parser.parse_args()

    pool, labels, queries = read(args.pool), read(args.labels), read(args.queries)
    assert [row["id"] for row in pool] == [label["id"] for label in labels]
    names = dict.fromkeys(query["query_set"] for query in queries)
    sets = {name: [query for query in queries if query["query_set"] == name] for name in names}

    def dataset(rows: list[dict]) -> Dataset:
        return Dataset.from_list([{"prompt": row["prompt"], "completion": row["completion"]} for row in rows])

    rows, targets = dataset(pool), {name: dataset(some) for name, some in sets.items()}
    print(f"{len(pool)} rows, {len(queries)} queries")
    found = {}
    for name, method in (("RDS+", rds), ("LESS", less), ("TF-IDF", tfidf)):
        if name in args.methods and (name != "LESS" or args.warm_up):
            begin = time.perf_counter()
            found[name] = method(args, rows, targets)  # (n, q)
            print(f"{name}: {time.perf_counter() - begin:.0f} s", flush=True)

    titles = [f"{name} {pooled}: P@k, R" for name in found for pooled in ("max", "mean")]
    print(f"\n| query set | relevant | chance | {' | '.join(titles)} |")
    print(f"| --- | --- | --- |{' --- |' * len(titles)}")
    start = 0
    for name, some in sets.items():
        field, wanted = next(iter(some[0]["relevant_strict"].items()))
        hit = np.array([label[field] in wanted for label in labels])
        block = slice(start, start + len(some))
        start += len(some)
        cells = [
            precision(pooled(matrix[:, block], axis=1), hit)
            for matrix in found.values()
            for pooled in (np.max, np.mean)
        ]
        print(f"| {name} | {hit.sum()} | {hit.mean():.3f} | {' | '.join(cells)} |")


def rds(args: argparse.Namespace, rows: Dataset, targets: dict[str, Dataset]) -> np.ndarray:
    settings = {name: getattr(args, name) for name in ("pooling", "text_format", "layers", "max_length")}
    scorer = RDSPlus(args.model, **settings, per_query=True)
    with tempfile.TemporaryDirectory() as folder:
        index = PoolIndex.build(rows, scorer.featurizer, folder, chunk_rows=2000)
        return index.to_numpy() @ scorer.fit(targets).queries_.T


def less(args: argparse.Namespace, rows: Dataset, targets: dict[str, Dataset]) -> np.ndarray:
    scorer = LESS(args.model, [args.warm_up], text_format=args.text_format, max_length=args.max_length, per_query=True)
    similar = by_batch(scorer.fit(targets), rows)
    return np.nan_to_num(similar, nan=-2.0)  # rows without response tokens come last


def tfidf(args: argparse.Namespace, rows: Dataset, targets: dict[str, Dataset]) -> np.ndarray:
    return by_batch(TFIDF(per_query=True).fit(targets, pool=rows), rows)


def by_batch(scorer: LESS | TFIDF, rows: Dataset) -> np.ndarray:
    return np.concatenate([scorer.similarities(conversations(batch))[0] for batch in rows.iter(batch_size=2000)])


if __name__ == "__main__":
    main()
