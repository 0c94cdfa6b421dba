"""hf-select status: what a scoring or index job has done so far; `hf-select score --status DIR` is the same."""

import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from hf_select.atomic import read_json
from hf_select.cli.command import Command
from hf_select.jobs.chunked_job import live_workers


def job_status(folder: Path) -> dict[str, Any]:
    """Rows and chunks done, by whom, at what rate, what failed and why, and which processes are running.

    Raises: ValueError if the folder is not that of a job.
    """
    manifest = read_json(folder / "manifest.json")
    if manifest is None or "made_by" not in manifest:
        raise ValueError(f'"{folder}" is not the folder of hf-select score or index: it has no manifest.json.')
    records = [record for path in sorted((folder / "done").glob("part-*.json")) if (record := read_json(path))]
    rows, total = sum(record["rows"] for record in records), manifest["pool"]["rows"]
    workers: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        workers[record["by"]].update(chunks=1, rows=record["rows"], seconds=record["cost"]["seconds"])
    live = {worker["name"]: worker for worker in live_workers(folder)}
    ends = sorted(datetime.fromisoformat(record["finished"]).timestamp() for record in records)
    recent = [end for end in ends if end > time.time() - 600] if live else ends
    per_chunk = manifest["chunk_rows"]
    failed = {path.stem: found for path in sorted((folder / "failed").glob("*.json")) if (found := read_json(path))}
    finished = any((folder / name).exists() for name in ("summary.json", "index.json"))
    rate = (
        per_chunk * (len(recent) - 1) / (recent[-1] - recent[0]) if len(recent) > 2 and recent[-1] > recent[0] else 0
    )
    return {
        "what": manifest["made_by"]["name"],
        "finished": finished,
        "rows": rows,
        "of": total,
        "chunks": len(records),
        "of_chunks": None if total is None else -(-total // per_chunk),
        "rows_per_second": rate,
        "seconds_left": (total - rows) / rate if total and rate and live else None,
        "workers": {name: {**workers.get(name, {}), "live": name in live} for name in {**workers, **live}},
        "failed": failed,
    }


@dataclass(kw_only=True)
class Status(Command):
    """Show what a job of hf-select score or index has done, by which processes, its time left, and what failed.

    Args:
        folder: the --output-dir of the job.
    """

    folder: str

    example: ClassVar[str] = "hf-select status scores"
    positional: ClassVar[tuple[str, ...]] = ("folder",)

    def run(self) -> None:
        print_status(job_status(Path(self.folder).expanduser()))


def print_status(status: dict[str, Any]) -> None:
    from hf_select.cli.table import print_table

    live = sum(worker["live"] for worker in status["workers"].values())
    state = "finished" if status["finished"] else "running" if live else "stopped: run the same command to resume"
    of = "?" if status["of"] is None else f"{status['of']:,}"
    of_chunks = "?" if status["of_chunks"] is None else f"{status['of_chunks']:,}"
    rows = [
        ["state", state],
        ["rows", f"{status['rows']:,} of {of}"],
        ["chunks", f"{status['chunks']:,} of {of_chunks}"],
        ["rows/s, all together", f"{status['rows_per_second']:,.1f}" if status["rows_per_second"] else "-"],
    ]
    if status["seconds_left"] is not None:
        rows.append(["time left", duration(status["seconds_left"])])
    print_table([status["what"], ""], rows)
    if status["workers"]:
        failed = {failure["by"] for failure in status["failed"].values()}
        table = [
            [
                name,
                _state(name in failed, worker["live"], status["finished"]),
                f"{worker.get('chunks', 0):,}",
                f"{worker.get('rows', 0):,}",
                f"{worker['rows'] / worker['seconds']:,.1f}" if worker.get("seconds") else "-",
            ]
            for name, worker in sorted(status["workers"].items())
        ]
        print_table(["by", "", "chunks", "rows", "rows/s"], table)
    for chunk, failure in status["failed"].items():
        print(f"{chunk} failed at {failure['when']} ({failure['by']}): {failure['why']}")


def duration(seconds: float) -> str:
    """In the two largest units that say something: 45 s, 12 min 5 s, 3 h 20 min, 2 d 4 h."""
    left = round(seconds)
    units = [("d", left // 86400), ("h", left // 3600 % 24), ("min", left // 60 % 60), ("s", left % 60)]
    largest = next((i for i, (_, count) in enumerate(units) if count), len(units) - 1)
    return " ".join(f"{count} {unit}" for unit, count in units[largest : largest + 2] if count) or "0 s"


def _state(failed: bool, live: bool, finished: bool) -> str:
    """Of a process. One that left an unfinished job was stopped, or found no further chunk to do."""
    if live:
        return "running"
    return "finished" if finished else "failed" if failed else "exited"
