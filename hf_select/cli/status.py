"""hf-select status; `hf-select score --status DIR` is the same."""

from dataclasses import dataclass
from typing import ClassVar

from hf_select.cli.command import Command
from hf_select.cli.table import print_table
from hf_select.jobs.status import JobStatus, job_status


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
        """Print the status."""
        print_status(job_status(self.folder))


def print_status(status: JobStatus) -> None:
    """Print the job, its processes and the chunks that failed."""
    live = any(worker.live for worker in status.workers.values())
    state = "finished" if status.finished else "running" if live else "stopped: run the same command to resume"
    rows = [
        ["state", state],
        ["rows", f"{status.rows:,} of {_count(status.of)}"],
        ["chunks", f"{status.chunks:,} of {_count(status.of_chunks)}"],
        ["rows/s, all together", f"{status.rows_per_second:,.1f}" if status.rows_per_second else "-"],
    ]
    if status.seconds_left is not None:
        rows.append(["time left", duration(status.seconds_left)])
    print_table([status.name, ""], rows)
    if status.workers:
        failed = {failure["by"] for failure in status.failed.values()}
        table = [
            [
                name,
                _worker_state(name in failed, worker.live, status.finished),
                f"{worker.chunks:,}",
                f"{worker.rows:,}",
                f"{worker.rows / worker.seconds:,.1f}" if worker.seconds else "-",
            ]
            for name, worker in sorted(status.workers.items())
        ]
        print_table(["by", "", "chunks", "rows", "rows/s"], table)
    for chunk, failure in status.failed.items():
        print(f"{chunk} failed at {failure['when']} ({failure['by']}): {failure['why']}")


def _count(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"


def duration(seconds: float) -> str:
    """A time in its two largest units: 45 s, 12 min 5 s, 3 h 20 min, 2 d 4 h."""
    left = round(seconds)
    units = [("d", left // 86400), ("h", left // 3600 % 24), ("min", left // 60 % 60), ("s", left % 60)]
    largest = next((i for i, (_, count) in enumerate(units) if count), len(units) - 1)
    return " ".join(f"{count} {unit}" for unit, count in units[largest : largest + 2] if count) or "0 s"


def _worker_state(failed: bool, live: bool, finished: bool) -> str:
    """The state of a process. One that left an unfinished job was stopped, or found no chunk to do."""
    if live:
        return "running"
    return "finished" if finished else "failed" if failed else "exited"
