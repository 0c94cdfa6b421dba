"""RDS+: encoding speed beside the published procedure and the limit, and selection at the size of the study's pools.

    python benchmarks/rds.py encode --model PATH_OR_ID --dataset FILE [--rows 1000]
    python benchmarks/rds.py encode --llama 10x384 --tied --tokenizer PATH --dataset FILE
    python benchmarks/rds.py round-robin [--tasks 7 --rows 5800000 --select 326000]
    python benchmarks/rds.py best-rows [--rows 1000000 --dimensions 512 --queries 949]

procedure  one row at a time, full output head, the hidden states of all layers kept
limit      the bare backbone over the same tokens, sorted, at the best of several batch sizes
best-rows  each query's best rows in one pass over blocks of vectors, against the matrix product alone
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from selectit import build, limit, model_and_rows

from hf_select.data.chat_template import FALLBACK_TEMPLATE
from hf_select.data.conversation import conversations
from hf_select.data.encoding import encode
from hf_select.data.loading import read_dataset
from hf_select.features.hidden_states import HiddenStates, position_weights
from hf_select.scoring.similarity import BestRows
from hf_select.selection.round_robin import RoundRobin


def encode_speed(args: argparse.Namespace) -> dict:
    rows = conversations(read_dataset(args.dataset, limit=args.rows)[:])
    with tempfile.TemporaryDirectory() as folder:
        lm = build(args, Path(folder))
        loaded = lm.load()
        features = HiddenStates(lm, text_format="tulu")

        def procedure(some) -> np.ndarray:
            vectors = []
            for row in some:
                ids = encode(row, loaded.tokenizer, FALLBACK_TEMPLATE).input_ids[:2048]
                inputs = torch.tensor([ids], device=loaded.device)
                with torch.no_grad():
                    hidden = loaded.model(inputs, output_hidden_states=True).hidden_states[-1][0]
                weights = torch.tensor(position_weights(len(ids)), dtype=torch.float32, device=hidden.device)
                vectors.append((weights[:, None] * hidden).sum(0).float().cpu().numpy())
            return np.stack(vectors)

        sequences = [encode(row, loaded.tokenizer, FALLBACK_TEMPLATE).input_ids[:2048] for row in rows]
        some = rows[: args.procedure_rows]
        reference = procedure(some[:5])
        features(rows[:50])
        rates: dict[str, list[float]] = {"procedure": [], "ours": [], "limit": []}
        for _ in range(args.repeats):
            begin = time.perf_counter()
            ours = np.stack([feature.vector for feature in features(rows)])
            rates["ours"].append(len(rows) / (time.perf_counter() - begin))
            best = max(limit(loaded, sequences, budget) for budget in args.budgets)
            rates["limit"].append(best * len(rows) / sum(map(len, sequences)))
            begin = time.perf_counter()
            reference = procedure(some)
            rates["procedure"].append(len(some) / (time.perf_counter() - begin))
    rate = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "parameters": loaded.num_parameters,
        "rows": len(rows),
        "mean_tokens": sum(map(len, sequences)) / len(rows),
        **{f"{name}_rows_per_s": value for name, value in rate.items()},
        "ours_over_procedure": rate["ours"] / rate["procedure"],
        "share_of_limit": rate["ours"] / rate["limit"],
        "largest_difference": float(np.abs(ours[: len(some)] - reference).max() / np.abs(reference).max()),
        "peak_memory_mib": peak(),
    }


def round_robin_at_scale(args: argparse.Namespace) -> dict:
    rng = np.random.default_rng(0)
    scores = {f"score_{t}": rng.random(args.rows, dtype=np.float32) for t in range(args.tasks)}
    dataset = Dataset.from_dict(scores)
    names = list(scores)
    del scores
    before = peak()
    begin = time.perf_counter()
    selection = RoundRobin(names)(dataset, k=args.select)
    return {
        "rows": args.rows,
        "tasks": args.tasks,
        "selected": len(selection),
        "seconds": time.perf_counter() - begin,
        "peak_memory_mib": {"before": before, "after": peak()},
    }


def best_rows_at_scale(args: argparse.Namespace) -> dict:
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((args.queries, args.dimensions), dtype=np.float32)
    block = rng.standard_normal((args.block, args.dimensions), dtype=np.float32)
    blocks = args.rows // args.block
    begin = time.perf_counter()
    for _ in range(blocks):
        block @ queries.T
    product = time.perf_counter() - begin
    best = BestRows(args.queries, args.best)
    memory = {}
    seconds = 0.0
    for number in range(blocks):
        fresh = block * np.float32(rng.uniform(0.8, 1.2)) + np.float32(rng.normal() * 0.1)  # not timed
        begin = time.perf_counter()
        best.update(fresh @ queries.T, number * args.block)
        seconds += time.perf_counter() - begin
        if number + 1 in (max(1, blocks // 10), blocks // 2, blocks):
            memory[f"{(number + 1) * args.block:,} rows"] = round(peak(), 1)
    return {
        "rows": blocks * args.block,
        "queries": args.queries,
        "best": args.best,
        "matrix_product_s": product,
        "with_best_rows_s": seconds,
        "ratio": seconds / product,
        "peak_memory_mib": memory,
    }


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("encode")
    model_and_rows(run)
    run.set_defaults(function=encode_speed)
    run = commands.add_parser("round-robin")
    run.add_argument("--tasks", type=int, default=7)
    run.add_argument("--rows", type=int, default=5_800_000)
    run.add_argument("--select", type=int, default=326_000)
    run.set_defaults(function=round_robin_at_scale)
    run = commands.add_parser("best-rows")
    run.add_argument("--rows", type=int, default=1_000_000)
    run.add_argument("--dimensions", type=int, default=512)
    run.add_argument("--queries", type=int, default=949)
    run.add_argument("--block", type=int, default=10_000)
    run.add_argument("--best", type=int, default=100)
    run.set_defaults(function=best_rows_at_scale)
    args = parser.parse_args()
    print(json.dumps(args.function(args), indent=1))


if __name__ == "__main__":
    main()
