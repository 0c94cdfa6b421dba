"""Mixtures: time and memory of a large one that is streamed, and of RE-WILD from stand-in sources.

    python benchmarks/mixtures.py stream [--rows 5000000]
    python benchmarks/mixtures.py rewild

stream   three sources, JSONL and Parquet on disk, mixed by weights through shuffle buffers and written to one Parquet
         file; anonymous memory of the process at tenths of the time
rewild   RE-WILD at its published size from stand-ins of the right shape, twice: seconds, counts, and whether the files
         are the same byte for byte
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from hf_select import Mixture, Source
from hf_select.mixtures.rewild import rewild


WEIGHTS = {"chat": 3, "code": 1, "math": 1}


def conversation(name: str, i: int) -> list[dict[str, str]]:
    return [
        {
            "role": "user",
            "content": f"{name} question {i}: what follows from {i % 9973} and why? " + "Say it well. " * 8,
        },
        {"role": "assistant", "content": f"{name} answer {i}. " + "It follows from what was said before. " * 10},
    ]


def write_source(path: Path, name: str, rows: int) -> None:
    if path.suffix == ".jsonl":
        with path.open("w", encoding="utf-8") as out:
            for i in range(rows):
                out.write(json.dumps({"messages": conversation(name, i)}) + "\n")
        return
    message = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    with pq.ParquetWriter(path, pa.schema([("messages", message)])) as writer:
        for start in range(0, rows, 10_000):
            found = [{"messages": conversation(name, i)} for i in range(start, min(rows, start + 10_000))]
            writer.write_table(pa.Table.from_pylist(found, writer.schema))


def anonymous_mib() -> float:
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024


def stream(args: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        files = {"chat": Path(folder) / "chat.parquet", "code": Path(folder) / "code.jsonl"}
        files["math"] = Path(folder) / "math.parquet"
        each = args.rows // sum(WEIGHTS.values())
        for name, file in files.items():
            write_source(file, name, each * WEIGHTS[name])
        sources = {name: Source(str(file), weight=WEIGHTS[name]) for name, file in files.items()}
        mixture, found, done = Mixture(sources, rows=args.rows, stream=True, dedup="none"), [], threading.Event()

        def watch() -> None:
            while not done.wait(1.0):
                found.append(anonymous_mib())

        watching = threading.Thread(target=watch)
        watching.start()
        begin = time.perf_counter()
        record = mixture.write(Path(folder) / "mix")
        seconds = time.perf_counter() - begin
        done.set()
        watching.join()
        marks = [round(found[len(found) * n // 10 - 1], 1) for n in range(1, 11)]
        return {
            "rows": record["rows"],
            "of_each": {name: line["rows"] for name, line in record["sources"].items()},
            "anonymous_mib_at_tenths": marks,
            "anonymous_mib_most": round(max(found), 1),
            "seconds": round(seconds),
            "rows_per_second": round(args.rows / seconds),
            "gib_of_sources": round(sum(file.stat().st_size for file in files.values()) / 2**30, 2),
        }


def of_rewild(args: argparse.Namespace) -> dict:
    def chats(name: str, rows: int) -> Iterator[dict]:
        for i in range(rows):
            yield {"messages": conversation(name, i)}

    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        questions = {
            "question": [f"Which of these is {i}?" for i in range(99_842)],
            "choices": [["none", f"{i}", "all", "some"] for i in range(99_842)],
            "answer": [1] * 99_842,
        }
        sources = {
            "wildchat": Source(Dataset.from_list(list(chats("chat", 247_000))), take="first"),
            "mmlu": Source(Dataset.from_dict(questions), reads="question", take="first"),
            "algebra": Source(Dataset.from_list(list(chats("math", 20_000)))),
        }
        found = []
        for name in ("a", "b"):
            begin = time.perf_counter()
            record = rewild(sources).write(Path(folder) / name)
            found.append(round(time.perf_counter() - begin, 1))
        files = [(Path(folder) / name / "mixture.parquet").read_bytes() for name in ("a", "b")]
        return {
            "rows": record["rows"],
            "of_each": {name: line["rows"] for name, line in record["sources"].items()},
            "seconds": found,
            "same_bytes": files[0] == files[1],
            "bytes": len(files[0]),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("stream")
    run.set_defaults(function=stream)
    run.add_argument("--rows", type=int, default=5_000_000)
    run.add_argument("--folder", default=None, help="where the sources and the mixture are written")
    run = commands.add_parser("rewild")
    run.set_defaults(function=of_rewild)
    run.add_argument("--folder", default=None)
    args = parser.parse_args()
    print(json.dumps(args.function(args), indent=1))


if __name__ == "__main__":
    main()
