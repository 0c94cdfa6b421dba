"""hf-select status: where it looks, what it calls a process, and how it writes a time."""

import json
import re
from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from hf_select.cli.main import main
from hf_select.cli.status import duration, print_status
from hf_select.jobs.status import JobStatus, WorkerStatus


SECONDS = {"d": 86400, "h": 3600, "min": 60, "s": 1}


def test_status_takes_the_folder_as_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"p{i}", "completion": "c"} for i in range(9)]
    Path("pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["score", "--scorer", "length", "--dataset", "pool.jsonl", "--output-dir", "o"]) == 0
    capsys.readouterr()
    shown = []
    for argv in (["status", "o"], ["score", "--status", "o"], ["score", "o", "--status"], ["index", "--status", "o"]):
        assert main(argv) == 0
        shown.append(capsys.readouterr().out)
    assert len(set(shown)) == 1 and "9 of 9" in shown[0] and shown[0].count("finished") == 2
    assert main(["status", "nowhere"]) == 2 and main(["status"]) == 2


def test_a_process_that_left_is_finished_failed_or_exited(capsys):
    worker = WorkerStatus(live=False, chunks=1, rows=10, seconds=2.0)
    status = JobStatus(
        name="ifd", finished=True, rows=10, of=10, chunks=1, of_chunks=1, rows_per_second=5.0, seconds_left=None,
        workers={"a": worker}, failed={},
    )  # fmt: skip
    running = {"finished": False, "workers": {"a": replace(worker, live=True)}, "seconds_left": 90.0}
    failed = {"part-00001": {"when": "now", "by": "a", "why": "it broke"}}
    for changed, state, process in (
        ({}, "finished", "finished"),
        ({"finished": False}, "stopped: run the same command to resume", "exited"),
        ({"finished": False, "failed": failed}, "stopped: run the same command to resume", "failed"),
        (running, "running", "running"),
    ):
        print_status(replace(status, **changed))
        lines = capsys.readouterr().out.splitlines()
        assert next(line.removeprefix("  state").strip() for line in lines if line.startswith("  state")) == state
        assert next(line.split()[1] for line in lines if line.startswith("  a ")) == process
        assert ("time left" in "".join(lines)) == ("seconds_left" in changed)
    assert not any("0.0 h" in line for line in lines)


@settings(max_examples=60, derandomize=True)
@given(st.floats(0, 1e8))
def test_a_time_reads_back_to_within_its_smaller_unit(seconds):
    text = duration(seconds)
    parts = re.findall(r"(\d+) (d|h|min|s)\b", text)
    assert 1 <= len(parts) <= 2 and " ".join(f"{n} {unit}" for n, unit in parts) == text
    read = sum(int(n) * SECONDS[unit] for n, unit in parts)
    smaller = {"d": 3600, "h": 60, "min": 1, "s": 1}[parts[0][1]]
    assert abs(read - seconds) <= smaller


def test_times_as_they_are_written():
    assert [duration(s) for s in (0, 0.4, 45, 61, 725, 3600, 12_000, 187_200)] == [
        "0 s", "0 s", "45 s", "1 min 1 s", "12 min 5 s", "1 h", "3 h 20 min", "2 d 4 h"
    ]  # fmt: skip
