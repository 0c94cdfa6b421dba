"""Score a pool on a Ray cluster: read_parquet -> map_batches(scorer) -> write_parquet, with Ray's own scheduling.

    pip install "hf-select[ray]"
    python ray_score.py --scorer perplexity --model Qwen/Qwen2.5-1.5B --dataset pool/ --output scored/ --workers 8

With targets: --scorer rds --queries math=math.jsonl. Each worker holds one scorer, built from the same settings as
`hf-select score` takes (--set max_length=512 ...). A batch is `--chunk-rows` rows of one file, so that files of a
multiple of that many rows give the same scores as `hf-select score --chunk-rows`. Rows keep their order. For a
resumable job without a cluster: `hf-select score` under `accelerate launch`.
"""

import argparse
from typing import Any

import pyarrow as pa
import ray
from datasets import Features


class RayScorer:
    """A scorer that lives in a Ray worker: adds the scores to a table of rows."""

    def __init__(self, name: str, settings: dict[str, Any], queries: dict[str, str]):
        from hf_select import build_scorer, read_dataset

        self.scorer = build_scorer(name, settings)
        if queries:
            self.scorer.fit({task: read_dataset(source) for task, source in queries.items()})

    def __call__(self, table: pa.Table) -> pa.Table:
        scores = self.scorer(table.to_pydict())
        types = Features(self.scorer.columns_out).arrow_schema
        for name in self.scorer.columns_out:
            table = table.append_column(name, pa.array(scores[name], types.field(name).type))
        return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("scorer", "dataset", "output"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--model")
    parser.add_argument("--queries", nargs="*", default=[], metavar="TASK=FILE")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="more settings of the scorer")
    parser.add_argument("--chunk-rows", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--gpus", type=float, default=0, help="accelerators of one worker")
    args = parser.parse_args()

    import yaml

    settings = {name: yaml.safe_load(value) for name, _, value in (pair.partition("=") for pair in args.set)}
    settings |= {"model": args.model} if args.model else {}
    queries = {task: source for task, _, source in (pair.partition("=") for pair in args.queries)}

    ray.data.DataContext.get_current().execution_options.preserve_order = True
    rows = ray.data.read_parquet(args.dataset)
    scored = rows.map_batches(
        RayScorer,
        fn_constructor_args=(args.scorer, settings, queries),
        batch_size=args.chunk_rows,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=args.workers),
        num_gpus=args.gpus,
    )
    scored.write_parquet(args.output)


if __name__ == "__main__":
    main()
