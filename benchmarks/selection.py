"""Selection that compares rows with each other: seconds and memory at the size of real pools.

    python benchmarks/selection.py dedup --dataset FILE [--of prompt]
    python benchmarks/selection.py facility-location [--rows 50000 --dimensions 384 --select 1000]
    python benchmarks/selection.py decontaminate --dataset FILE --against FILE...

facility-location  vectors of a mixture of Gaussians; beside it the one matrix product that compares all rows
"""

import argparse
import json
import os
import resource
import time
from pathlib import Path

import numpy as np

from hf_select.data.loading import read_dataset
from hf_select.selection.decontaminate import Decontaminate
from hf_select.selection.dedup import Dedup
from hf_select.selection.facility_location import BLOCK, facility_location


def dedup(args: argparse.Namespace) -> dict:
    dataset = read_dataset(args.dataset, limit=args.rows)
    before, begin = peak(), time.perf_counter()
    selection = Dedup(threshold=args.threshold, of=args.of)(dataset)
    return {
        "rows": len(dataset),
        "kept": len(selection),
        **{name: value for name, value in selection.chain[0].items() if name.startswith("removed")},
        "seconds": time.perf_counter() - begin,
        "peak_memory_mib": {"before": before, "after": peak()},
    }


def decontaminate(args: argparse.Namespace) -> dict:
    dataset = read_dataset(args.dataset, limit=args.rows)
    sets = {Path(file).name.split(".")[0]: read_dataset(file) for file in args.against}
    before, begin = peak(), time.perf_counter()
    clean = Decontaminate(n=args.n).fit(sets)
    fitted = time.perf_counter()
    selection = clean(dataset)
    return {
        "rows": len(dataset),
        "runs": len(clean.index_),
        "kept": len(selection),
        **{name: selection.chain[0][name] for name in ("removed", "sets", "unreadable")},
        "fit_seconds": fitted - begin,
        "seconds": time.perf_counter() - fitted,
        "peak_memory_mib": {"before": before, "after": peak()},
    }


def facility_location_at_scale(args: argparse.Namespace) -> dict:
    vectors = clustered(args.rows, args.dimensions, args.clusters)
    begin = time.perf_counter()
    product = np.empty((BLOCK, args.rows), dtype=np.float32)
    for _ in range(4):
        np.matmul(vectors[:BLOCK], vectors.T, out=product)
    one_pass = (time.perf_counter() - begin) / 4 * args.rows / BLOCK
    before, begin = peak(), time.perf_counter()
    rows, gains, _ = facility_location(vectors, args.select)
    return {
        "rows": args.rows,
        "dimensions": args.dimensions,
        "selected": len(rows),
        "mean_similarity_to_nearest": float(gains.sum() / args.rows),
        "seconds": time.perf_counter() - begin,
        "all_pairs_product_s": one_pass,
        "cores": len(os.sched_getaffinity(0)),
        "peak_memory_mib": {"before": before, "after": peak()},
    }


def clustered(rows: int, dimensions: int, clusters: int, seed: int = 0) -> np.ndarray:
    """Unit vectors of a mixture of Gaussians of unequal weights, with a part that all have in common: embeddings of
    text look so."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((clusters, dimensions), dtype=np.float32)
    member = rng.choice(clusters, rows, p=rng.dirichlet(np.full(clusters, 2.0)))
    vectors = rng.standard_normal((rows, dimensions), dtype=np.float32)
    vectors += centres[member]
    vectors += 0.7 * rng.standard_normal(dimensions, dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("dedup")
    run.add_argument("--dataset", required=True)
    run.add_argument("--rows", type=int)
    run.add_argument("--threshold", type=float, default=0.8)
    run.add_argument("--of", default="all")
    run.set_defaults(function=dedup)
    run = commands.add_parser("facility-location")
    run.add_argument("--rows", type=int, default=50_000)
    run.add_argument("--dimensions", type=int, default=384)
    run.add_argument("--select", type=int, default=1000)
    run.add_argument("--clusters", type=int, default=300)
    run.set_defaults(function=facility_location_at_scale)
    run = commands.add_parser("decontaminate")
    run.add_argument("--dataset", required=True)
    run.add_argument("--against", nargs="+", required=True)
    run.add_argument("--rows", type=int)
    run.add_argument("--n", type=int, default=13)
    run.set_defaults(function=decontaminate)
    args = parser.parse_args()
    print(json.dumps(args.function(args), indent=1))


if __name__ == "__main__":
    main()
