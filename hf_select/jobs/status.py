"""The state of a scoring or index job, read from its folder."""

import os
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hf_select.atomic import read_json
from hf_select.jobs.chunked_job import TIME_FORMAT, live_workers


@dataclass
class WorkerStatus:
    """The finished work of one process, and whether it is running."""

    live: bool
    chunks: int = 0
    rows: int = 0
    seconds: float = 0.0


@dataclass
class JobStatus:
    """The progress of a job. `of` and `of_chunks` are the totals, None for a stream.

    Attributes:
        name: name of the scorer or of the vectors.
        rows_per_second: of all processes together, over the last ten minutes; 0 if unknown.
        seconds_left: None if no process is running or the rate is unknown.
        failed: chunk -> time, process and reason of its last failure.
    """

    name: str
    finished: bool
    rows: int
    of: int | None
    chunks: int
    of_chunks: int | None
    rows_per_second: float
    seconds_left: float | None
    workers: dict[str, WorkerStatus]
    failed: dict[str, dict[str, Any]]


def job_status(folder: str | os.PathLike) -> JobStatus:
    """The state of the job in an output folder of `score`, PoolIndex.build, hf-select score or hf-select index.

    Raises: ValueError if the folder is not the output folder of a job.
    """
    folder = Path(folder).expanduser()
    manifest = read_json(folder / "manifest.json")
    if manifest is None or "made_by" not in manifest:
        raise ValueError(f'"{folder}" is not the folder of hf-select score or index: it has no manifest.json.')
    records = [record for path in sorted((folder / "done").glob("part-*.json")) if (record := read_json(path))]
    rows, total, per_chunk = (
        sum(record["rows"] for record in records),
        manifest["pool"]["rows"],
        manifest["chunk_rows"],
    )
    done: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        done[record["by"]].update(chunks=1, rows=record["rows"], seconds=record["cost"]["seconds"])
    live = {worker["name"] for worker in live_workers(folder)}
    rate = _rows_per_second([record["finished"] for record in records], per_chunk, bool(live))
    return JobStatus(
        name=manifest["made_by"]["name"],
        finished=any((folder / name).exists() for name in ("summary.json", "index.json")),
        rows=rows,
        of=total,
        chunks=len(records),
        of_chunks=None if total is None else -(-total // per_chunk),
        rows_per_second=rate,
        seconds_left=(total - rows) / rate if total and rate and live else None,
        workers={name: WorkerStatus(name in live, **done.get(name, {})) for name in [*done, *sorted(live - {*done})]},
        failed={path.stem: text for path in sorted((folder / "failed").glob("*.json")) if (text := read_json(path))},
    )


def _rows_per_second(finished: list[str], per_chunk: int, live: bool) -> float:
    """The rate from the times at which chunks finished: in the last ten minutes for a running job, else all."""
    times = sorted(datetime.strptime(each, TIME_FORMAT).timestamp() for each in finished)
    if live:
        times = [each for each in times if each > time.time() - 600]
    if len(times) < 3 or times[-1] <= times[0]:
        return 0.0
    return per_chunk * (len(times) - 1) / (times[-1] - times[0])
