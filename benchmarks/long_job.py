"""The long job: equal scores however it is run, scaling, overhead of the runner, memory of a long stream.

    python benchmarks/long_job.py equality --model PATH --dataset FILE [--rows 10000]
    python benchmarks/long_job.py scaling --model PATH --dataset FILE [--rows 4000]
    python benchmarks/long_job.py overhead --model PATH --dataset FILE [--rows 2000]
    python benchmarks/long_job.py memory [--rows 1000000]

equality   the score column of plain `map`, of one process, of two, of three after all were killed, and of Ray Data (if
           it is installed) byte for byte, one thread each
scaling    rows/s of two processes with one thread each over one process with one thread, model loading left out
overhead   time of `score` over the time of the bare scorer over the same chunks, in one process, interleaved
memory     resident memory of a process that streams short rows, at 10, 50 and 100 % of them
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from datasets import IterableDataset, load_dataset

from hf_select import Length, Perplexity, score
from hf_select.data.loading import read_dataset
from hf_select.data.scores import read_scored


ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def start(args: argparse.Namespace, pool: Path, output: Path, rank: int = 0, world: int = 1) -> subprocess.Popen:
    words = ["--scorer", "perplexity", "--model", args.model, "--dataset", str(pool), "--output-dir", str(output)]
    launch = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": str(output)}
    return subprocess.Popen(
        [sys.executable, "-m", "hf_select.cli.main", "score", *words, "--chunk-rows", str(args.chunk_rows)],
        env={**ONE_THREAD, **launch},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def together(args: argparse.Namespace, pool: Path, output: Path, world: int) -> None:
    codes = [process.wait() for process in [start(args, pool, output, rank, world) for rank in range(world)]]
    assert codes == [0] * world, codes


def equality(args: argparse.Namespace) -> dict:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        rows = read_dataset(args.dataset, limit=args.rows)
        (here / "pool").mkdir()
        for number, first in enumerate(range(0, len(rows), args.chunk_rows)):
            part = rows.select(range(first, min(first + args.chunk_rows, len(rows))))
            part.to_parquet(here / "pool" / f"{number:05d}.parquet")
        pool = here / "pool.parquet"
        rows.to_parquet(pool)
        code = (
            "from datasets import load_dataset; from hf_select import Perplexity; "
            f"data = load_dataset('parquet', data_files={str(pool)!r}, split='train'); "
            f"data = data.map(Perplexity({args.model!r}), batched=True, batch_size={args.chunk_rows}); "
            f"data.to_parquet({str(here / 'map.parquet')!r})"
        )
        subprocess.run([sys.executable, "-c", code], env=ONE_THREAD, check=True, capture_output=True)
        found["map"] = load_dataset("parquet", data_files=str(here / "map.parquet"), split="train")
        for world in (1, 2):
            together(args, pool, here / f"o{world}", world)
            found[f"{world} processes"] = read_scored(here / f"o{world}")
        processes = [start(args, pool, here / "o3", rank, 2) for rank in range(2)]
        while len(list((here / "o3").glob("done/*"))) < 3:
            time.sleep(0.05)
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
        together(args, pool, here / "o3", 3)
        found["3 processes after a kill"] = read_scored(here / "o3")
        try:
            import ray  # noqa: F401

            script = Path(__file__).parent.parent / "recipes" / "ray_score.py"
            words = ["--scorer", "perplexity", "--model", args.model, "--dataset", str(here / "pool")]
            words += ["--output", str(here / "ray"), "--chunk-rows", str(args.chunk_rows), "--workers", "1"]
            subprocess.run([sys.executable, str(script), *words], env=ONE_THREAD, check=True, timeout=300)
            files = [str(path) for path in sorted((here / "ray").glob("*.parquet"))]
            found["ray"] = load_dataset("parquet", data_files=files, split="train")
        except ImportError:
            pass
        columns = {name: data.with_format("numpy")["score_perplexity"][:] for name, data in found.items()}
        prompts = {name: data["prompt"][:] for name, data in found.items()}
        return {
            name: {"rows": len(column), "bytes_equal": column.tobytes() == columns["map"].tobytes()}
            | {"order_equal": prompts[name] == prompts["map"]}
            for name, column in columns.items()
        }


def scaling(args: argparse.Namespace) -> dict:
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder) / "pool.parquet"
        read_dataset(args.dataset, limit=args.rows).to_parquet(pool)
        for repeat in range(args.repeats):
            for world in (1, 2):
                output = Path(folder) / f"{repeat}-{world}"
                together(args, pool, output, world)
                records = [json.loads(path.read_text()) for path in (output / "done").iterdir()]
                seconds = [r["cost"]["seconds"] for r in records]
                rates[world].append(world * sum(r["rows"] for r in records) / sum(seconds))
    rate = {world: statistics.median(values) for world, values in rates.items()}
    return {"rows_per_s": rate, "scaling": rate[2] / rate[1]}


def overhead(args: argparse.Namespace) -> dict:
    rows = read_dataset(args.dataset, limit=args.rows)
    scorer = Perplexity(args.model)
    scorer(rows[:100])
    chunks = [rows[start : start + args.chunk_rows] for start in range(0, len(rows), args.chunk_rows)]
    ratios = []
    for _ in range(args.repeats):
        begin = time.perf_counter()
        for chunk in chunks:
            scorer(chunk)
        bare = time.perf_counter() - begin
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            score(rows, scorer, Path(folder) / "o", chunk_rows=args.chunk_rows)
            ratios.append((time.perf_counter() - begin) / bare)
    return {"chunks": len(chunks), "seconds_bare": bare, "time_over_bare": statistics.median(ratios)}


def memory(args: argparse.Namespace) -> dict:
    dice = random.Random(0)
    words = ["".join(dice.choices("abcdefgh", k=5)) for _ in range(500)]

    def rows():
        for i in range(args.rows):
            yield {"prompt": f"{i} {words[i % 500]}", "completion": " ".join(words[i % 491 : i % 491 + 8])}

    found, done = {}, threading.Event()
    with tempfile.TemporaryDirectory() as folder:

        def watch() -> None:
            chunks = args.rows / args.chunk_rows
            wanted = [10, 50, 100]
            while wanted and not done.wait(0.05):
                share = 100 * len(list(Path(folder).glob("o/done/*"))) / chunks
                if share >= wanted[0] - (wanted[0] == 100):
                    status = Path("/proc/self/status").read_text()
                    found[f"{wanted.pop(0)} %"] = int(status.split("RssAnon:")[1].split()[0]) / 1024

        thread = threading.Thread(target=watch)
        thread.start()
        begin = time.perf_counter()
        score(IterableDataset.from_generator(rows), Length(), Path(folder) / "o", chunk_rows=args.chunk_rows)
        done.set()
        thread.join()
        return {"rows": args.rows, "anonymous_mib_at": found, "seconds": time.perf_counter() - begin}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    sizes = {"equality": (equality, 10_000), "scaling": (scaling, 4_000), "overhead": (overhead, 2_000)}
    for name, (function, size) in {**sizes, "memory": (memory, 1_000_000)}.items():
        run = commands.add_parser(name)
        run.set_defaults(function=function)
        if name != "memory":
            run.add_argument("--model", required=True)
            run.add_argument("--dataset", required=True)
        run.add_argument("--rows", type=int, default=size)
        run.add_argument("--chunk-rows", type=int, default=1000 if name in ("equality", "memory") else 250)
        run.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(json.dumps(args.function(args), indent=1))


if __name__ == "__main__":
    main()
