"""A scoring job by several processes: shared out without talking, safe from kill -9, full disks and damaged parts."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, IterableDataset, load_dataset
from killing import finished_parts
from launching import launched

from hf_select import Length, Perplexity, PoolIndex, RDSPlus, score
from hf_select.cli.main import main
from hf_select.data.scores import read_scored
from hf_select.jobs import chunked_job as chunks
from hf_select.jobs.status import job_status


# Scores lengths, slowly, and says each chunk that it begins in a file of its own.
WORKER = """
import json, os, sys, time
from datasets import Dataset, load_dataset
from hf_select import Length, score

class Slow(Length):
    def measure(self, rows):
        with open(sys.argv[3], "a") as log:
            log.write(f"{rows[0].messages[0]['content']}\\n")
        time.sleep(float(sys.argv[4]))
        return super().measure(rows)

stream = len(sys.argv) > 5 and sys.argv[5] == "stream"
rows = load_dataset("json", data_files=sys.argv[1], split="train", streaming=stream)
score(rows, Slow(), sys.argv[2], chunk_rows=10, when_running=os.environ.get("WHEN", "refuse"))
"""


@pytest.fixture
def job(tmp_path):
    """A pool of 300 rows in a file and a way to start processes on it."""
    rows = [{"prompt": f"row {i}", "completion": "word " * (i % 17)} for i in range(300)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "worker.py").write_text(textwrap.dedent(WORKER))
    (tmp_path / "log").touch()

    class Job:
        folder, log, pool = tmp_path / "o", tmp_path / "log", Dataset.from_list(rows)
        expected = Length()({"prompt": [r["prompt"] for r in rows], "completion": [r["completion"] for r in rows]})

        def start(self, rank=0, world=1, seconds=0.02, stream=False, **env):
            words = [str(tmp_path / "pool.jsonl"), str(self.folder), str(self.log), str(seconds)]
            launch = {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "here", "MASTER_PORT": "1"}
            return subprocess.Popen(
                [sys.executable, str(tmp_path / "worker.py"), *words, "stream" if stream else ""],
                env={**os.environ, **launch, **env},
                stderr=subprocess.PIPE,
                text=True,
            )

        def begun(self):
            return self.log.read_text().splitlines()

        def check(self):
            scored = read_scored(self.folder)
            assert scored["score_length"] == self.expected["score_length"]
            assert scored["row_id"] == list(range(300)) and scored["prompt"] == self.pool["prompt"]
            assert not list(self.folder.rglob("*.tmp"))
            left = {path.name for path in (self.folder / "running").iterdir()}
            assert left <= {"manifest.lock", "finish.lock"}, "locks of chunks or processes were left"
            assert len(list((self.folder / "scored").iterdir())) == 30

    return Job()


def wait(*processes) -> list[str]:
    return [process.communicate(timeout=120)[1] for process in processes]


@pytest.mark.parametrize("stream", [False, True])
def test_processes_share_the_chunks_and_make_each_once(job, stream):
    processes = [job.start(rank, 3, stream=stream) for rank in range(3)]
    said = wait(*processes)
    assert [process.returncode for process in processes] == [0, 0, 0], said
    job.check()
    assert len(job.begun()) == len(set(job.begun())) == 30
    by = [json.loads(path.read_text())["by"] for path in (job.folder / "done").iterdir()]
    assert len(set(by)) > 1, "one process did everything"
    assert job_status(job.folder).finished
    assert "row/s" in said[0] and "row/s" not in said[1], "one bar, of the process that leads"
    again = job.start(stream=stream)
    wait(again)
    assert again.returncode == 0 and len(job.begun()) == 30, "a finished chunk was scored again"


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_kill_9_at_random_moments_loses_only_the_chunks_in_hand(job, stream):
    dice, killed, finished = random.Random(0), 0, {}
    for _ in range(int(os.environ.get("HF_SELECT_KILLS", "4"))):
        processes = [job.start(rank, 2, seconds=0.3, stream=stream) for rank in range(2)]
        begin = len(job.begun())
        patience = time.time() + 60
        while len(job.begun()) == begin and time.time() < patience and processes[0].poll() is None:
            time.sleep(0.01)
        time.sleep(dice.uniform(0, 0.5))
        for process in dice.choice([processes, processes[:1], processes[1:]]):
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                killed += 1
        time.sleep(0.1)
        for process in processes:  # what was left alive is stopped, too, or a round would finish the job
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                killed += 1
            process.wait()
        for name, stamp in finished_parts(job.folder, "scored/part-*.parquet").items():
            assert finished.setdefault(name, stamp) == stamp
    assert killed >= 4 and finished
    left = [job.start(rank, 3, stream=stream) for rank in range(3)]
    said = wait(*left)
    assert [process.returncode for process in left] == [0, 0, 0], said
    job.check()
    for name, stamp in finished.items():
        assert (job.folder / "scored" / name).stat().st_mtime_ns == stamp, "a finished part was made again"
    assert len(job.begun()) <= 30 + killed


def test_a_process_that_dies_leaves_its_chunk_to_the_others(job):
    slow, quick = job.start(0, 2, seconds=600), job.start(1, 2, seconds=0.02)
    while len(job.begun()) < 2:
        time.sleep(0.05)
    deadline = time.time() + 60
    while len(list((job.folder / "done").glob("*"))) < 29 and time.time() < deadline:
        time.sleep(0.05)
    assert quick.poll() is None, "it must wait for the chunk that is in hand"
    status = job_status(job.folder)
    assert status.chunks == 29 and [worker.live for worker in status.workers.values()] == [True, True]
    slow.send_signal(signal.SIGKILL)
    slow.wait()
    wait(quick)
    assert quick.returncode == 0
    job.check()


def test_a_second_job_is_refused_or_joins(job):
    first = job.start(seconds=0.3)
    while not job.begun():
        time.sleep(0.05)
    with pytest.raises(ValueError, match="1 process is running in .*when_running=join"):
        score(job.pool, Length(), job.folder, chunk_rows=10)
    assert first.poll() is None and list((job.folder / "running").glob("part-*")), "the refused job took locks away"
    second = job.start(seconds=0.01, WHEN="join")
    said = wait(first, second)
    assert (first.returncode, second.returncode) == (0, 0), said
    job.check()
    assert len(job.begun()) == 30


@pytest.mark.parametrize("harm", ["cut", "changed", "gone"])
def test_a_damaged_part_is_found_and_made_again(job, harm):
    score(job.pool, Length(), job.folder, chunk_rows=10)
    part = job.folder / "scored" / "part-00007.parquet"
    sound = part.read_bytes()
    others = {p: p.stat().st_mtime_ns for p in part.parent.iterdir() if p != part}
    if harm == "gone":
        part.unlink()
    else:
        part.write_bytes(sound[:-100] if harm == "cut" else sound[:200] + b"\x00\x01" + sound[202:])
    score(job.pool, Length(), job.folder, chunk_rows=10)
    assert part.read_bytes() == sound and others == {p: p.stat().st_mtime_ns for p in others}
    job.check()


def test_a_row_that_stops_the_scorer_is_remembered_until_it_is_cured(job, monkeypatch, capsys):
    def fail(self, rows):
        if rows[0].messages[0]["content"] == "row 40":
            raise RuntimeError("the model broke")
        return measure(self, rows)

    measure = Length.measure
    monkeypatch.setattr(Length, "measure", fail)
    with pytest.raises(RuntimeError, match="the model broke"):
        score(job.pool, Length(), job.folder, chunk_rows=10)
    assert main(["score", "--status", str(job.folder)]) == 0
    said = capsys.readouterr().out
    assert "stopped: run the same command" in said and "40 of 300" in said and "the model broke" in said
    assert "part-00004 failed" in said and not list((job.folder / "running").glob("part-*"))
    monkeypatch.setattr(Length, "measure", measure)
    score(job.pool, Length(), job.folder, chunk_rows=10)
    job.check()
    assert not (job.folder / "failed").exists()
    assert main(["score", "--status", str(job.folder)]) == 0
    assert "finished" in capsys.readouterr().out
    assert main(["score", "--status", str(job.log.parent)]) == 2
    assert "is not the folder of hf-select score or index" in capsys.readouterr().err


def test_a_full_disk_stops_with_one_line_and_goes_on_after_space_is_made(job):
    disk = job.folder.parent / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk can only be mounted by root")
    try:
        (disk / "ballast").write_bytes(b"x" * 350_000)
        job.folder = disk / "o"
        process = job.start(seconds=0)
        (said,) = wait(process)
        assert process.returncode == 1 and "No space" not in said.splitlines()[-1]
        assert "no space is left for" in said.splitlines()[-1] and "run the same command again" in said
        kept = len(list((job.folder / "done").glob("*")))
        assert 0 < kept < 30 and not list(job.folder.rglob("*.tmp"))
        (disk / "ballast").unlink()
        before = len(job.begun())
        again = job.start(seconds=0)
        wait(again)
        assert again.returncode == 0 and len(job.begun()) - before == 30 - kept
        job.check()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


# --------------------------------------------------------------------------------------------------------------------
# streams


def test_a_stream_gives_the_columns_of_the_dataset(rows, model_path, tmp_path):
    data = Dataset.from_list(rows)
    whole = score(data, Perplexity(model_path), tmp_path / "a", chunk_rows=7)
    streamed = score(data.to_iterable_dataset(num_shards=3), Perplexity(model_path), tmp_path / "b", chunk_rows=7)
    assert streamed.column_names == whole.column_names
    assert streamed["score_perplexity"] == whole["score_perplexity"] and streamed["row_id"] == whole["row_id"]
    unnamed = IterableDataset.from_generator(lambda: iter(rows))  # knows no types before it is read
    assert unnamed.features is None
    again = score(unnamed, Perplexity(model_path), tmp_path / "c", chunk_rows=7)
    assert again["score_perplexity"] == whole["score_perplexity"]


def test_a_stream_of_other_rows_is_refused_at_the_first_that_differs(rows, tmp_path):
    def stream(changed=None):
        return Dataset.from_list(
            [{**row, "completion": "other"} if i == changed else row for i, row in enumerate(rows)]
        ).to_iterable_dataset()

    score(stream(), Length(), tmp_path / "o", chunk_rows=7)
    with pytest.raises(ValueError, match="of other rows: the rows from 14 on differ"):
        score(stream(changed=17), Length(), tmp_path / "o", chunk_rows=7)
    with pytest.raises(ValueError, match="other rows"):
        score(Dataset.from_list(rows), Length(), tmp_path / "o", chunk_rows=7)


def test_bad_streams_are_refused(rows, tmp_path, model_path):
    empty = IterableDataset.from_generator(lambda: iter([]))
    with pytest.raises(ValueError, match="dataset is empty"):
        score(empty, Length(), tmp_path / "o")
    broken = Dataset.from_list([*rows[:9], {"prompt": None, "completion": "x"}]).to_iterable_dataset()
    with pytest.raises(ValueError, match="row 9: prompt is null"):
        score(broken, Length(), tmp_path / "o", chunk_rows=4)
    kept = score(broken, Length(), tmp_path / "o", chunk_rows=4, bad_rows="null")
    assert kept["score_length"][9] is None and len(kept) == 10
    changing = IterableDataset.from_generator(lambda: iter([{"prompt": "a", "completion": "b"}, {"text": "c"}]))
    with pytest.raises(ValueError, match="columns or types of the rows from 1 on differ"):
        score(changing, Length(), tmp_path / "p", chunk_rows=1)
    with pytest.raises(ValueError, match="takes a Dataset or an IterableDataset"):
        score(rows, Length(), tmp_path / "q")
    with pytest.raises(ValueError, match='when_running is "wait"'):
        score(Dataset.from_list(rows), Length(), tmp_path / "q", when_running="wait")


def test_the_command_line_streams(job, capsys):
    job.folder.parent.joinpath("x").mkdir()
    command = ["score", "--scorer", "length", "--dataset", str(job.folder.parent / "pool.jsonl"), "--stream"]
    assert main([*command, "--output-dir", str(job.folder), "--chunk-rows", "10"]) == 0
    job.check()
    assert main([*command, "--output-dir", str(job.folder.parent / "few"), "--limit", "25", "--chunk-rows", "10"]) == 0
    assert len(read_scored(job.folder.parent / "few")) == 25


# --------------------------------------------------------------------------------------------------------------------
# launchers


def by_two(folder: Path, *words: str) -> str:
    """What hf-select said under accelerate launch with two processes."""
    found = launched("ddp", ["-m", "hf_select.cli.main", *words], folder)
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.mark.slow
def test_accelerate_launch_shares_the_work_and_the_result_is_that_of_map(rows, model_path, tmp_path, monkeypatch):
    data = Dataset.from_list(rows * 25)
    data.to_parquet(tmp_path / "pool.parquet")
    words = ["--scorer", "perplexity", "--model", model_path, "--dataset", str(tmp_path / "pool.parquet")]
    said = by_two(tmp_path, "score", *words, "--output-dir", str(tmp_path / "o"), "--chunk-rows", "10")
    assert said.count("rows with their scores") == 1, "every process speaks"
    by = {json.loads(path.read_text())["by"] for path in (tmp_path / "o" / "done").iterdir()}
    assert len(by) == 2
    code = (
        "from datasets import load_dataset; from hf_select import Perplexity; "
        f"data = load_dataset('parquet', data_files={str(tmp_path / 'pool.parquet')!r}, split='train'); "
        f"data = data.map(Perplexity({model_path!r}), batched=True, batch_size=10); "
        f"data.to_parquet({str(tmp_path / 'm.parquet')!r})"
    )
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], env=one_thread, check=True, capture_output=True)
    mapped = load_dataset("parquet", data_files=str(tmp_path / "m.parquet"), split="train")
    assert read_scored(tmp_path / "o")["score_perplexity"] == mapped["score_perplexity"]


@pytest.mark.slow
def test_an_index_is_built_by_several_processes_too(rows, model_path, tmp_path):
    pool = Dataset.from_list(rows * 25)
    pool.to_parquet(tmp_path / "pool.parquet")
    words = ["--scorer", "rds", "--model", model_path, "--dataset", str(tmp_path / "pool.parquet")]
    by_two(
        tmp_path,
        "index",
        *words,
        "--output-dir",
        str(tmp_path / "two"),
        "--chunk-rows",
        "10",
        "--stored-dtype",
        "float32",
    )
    by = {json.loads(path.read_text())["by"] for path in (tmp_path / "two" / "done").iterdir()}
    assert len(by) == 2
    whole = PoolIndex.build(
        pool, RDSPlus(model_path).featurizer, tmp_path / "one", stored_dtype="float32", chunk_rows=10
    )
    index = PoolIndex.open(tmp_path / "two")
    np.testing.assert_allclose(index.to_numpy(), whole.to_numpy(), atol=1e-6)
    assert index.row_ids() == whole.row_ids()


def test_a_folder_that_a_process_that_failed_takes_back_is_made_again(tmp_path, monkeypatch):
    """The folder of locks goes between the lock of a process that arrives and its card."""
    write, taken = chunks.write_json, []

    def late(path, value):
        if not taken:
            taken.append(path)
            shutil.rmtree(tmp_path / "running")
        write(path, value)

    monkeypatch.setattr(chunks, "write_json", late)
    worker = chunks._Worker(tmp_path / "running")
    worker.enter()
    assert taken and [one["name"] for one in chunks.live_workers(tmp_path)] == [worker.name]
    worker.leave()
    assert not list(chunks.live_workers(tmp_path))


def test_the_folder_of_locks_stays_when_the_last_process_leaves(job):
    """Another process may have found it and be about to put its lock there: the folder must not be another one."""
    score(job.pool, Length(), job.folder, chunk_rows=10)
    running = job.folder / "running"
    before = running.stat().st_ino
    arriving = chunks._Worker(running)
    arriving.enter()
    again = job.start(WHEN="join")  # finds all done, and leaves
    wait(again)
    assert again.returncode == 0 and running.stat().st_ino == before
    assert [one["name"] for one in chunks.live_workers(job.folder)] == [arriving.name]
    arriving.leave()
    assert score(job.pool, Length(), job.folder, chunk_rows=10).num_rows == 300
    assert running.stat().st_ino == before
    job.check()


NO_LOCKS = """
from hf_select.jobs import chunked_job

class NoLock:
    def __init__(self, path): pass
    def acquire(self, timeout=None): pass
    def release(self, force=False): pass
    def __enter__(self): pass
    def __exit__(self, *_): pass

chunked_job.FileLock = NoLock
"""


def test_without_real_locks_processes_repeat_work_and_spoil_nothing(job):
    """As on a network file system that keeps locks to a machine or drops them."""
    script = job.log.parent / "worker.py"
    script.write_text(NO_LOCKS + script.read_text())
    processes = [job.start(rank, 3, seconds=0.01) for rank in range(3)]
    said = wait(*processes)
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert len(job.begun()) > 30, "no chunk was made twice: the test tries nothing"
    job.check()


# --------------------------------------------------------------------------------------------------------------------
# models that come late or not at all


def test_a_hub_that_stumbles_is_asked_again(model_path, tmp_path):
    """Every file is refused once (503) before it is given; the job goes on by itself."""
    refused: set[str] = set()

    class Hub(BaseHTTPRequestHandler):
        def answer(self, body: bool) -> None:
            key = f"{self.command} {self.path}"
            name = re.split("/resolve/[^/]+/", self.path.split("?")[0])[-1]
            path = Path(model_path) / name if "/resolve/" in self.path else None
            if key not in refused:
                refused.add(key)
                self.send_response(503)
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif path is None or not path.is_file():
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                data = path.read_bytes()
                self.send_response(200)
                for header, value in (("ETag", f'"{name}"'), ("X-Repo-Commit", "a" * 40)):
                    self.send_header(header, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if body:
                    self.wfile.write(data)

        def do_GET(self):
            self.answer(body=True)

        def do_HEAD(self):
            self.answer(body=False)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = (
        "from datasets import Dataset; from hf_select import Perplexity, score; "
        "data = Dataset.from_dict({'prompt': ['Name a fruit.'], 'completion': ['A fig.']}); "
        f"print(list(score(data, Perplexity('org/tiny'), {str(tmp_path / 'o')!r})['score_perplexity']))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home")}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=200)
    server.shutdown()
    assert found.returncode == 0, found.stderr
    assert any("model.safetensors" in key for key in refused)
    here = score(
        Dataset.from_dict({"prompt": ["Name a fruit."], "completion": ["A fig."]}),
        Perplexity(model_path),
        tmp_path / "h",
    )
    assert json.loads(found.stdout.splitlines()[-1]) == pytest.approx(here["score_perplexity"], rel=1e-6)


def test_a_model_file_that_cannot_be_read_stops_with_its_name(model_path, rows, tmp_path, capsys):
    shutil.copytree(model_path, tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    Dataset.from_list(rows).to_json(tmp_path / "pool.jsonl")
    command = ["score", "--scorer", "perplexity", "--model", str(tmp_path / "m")]
    command += ["--dataset", str(tmp_path / "pool.jsonl"), "--output-dir", str(tmp_path / "o")]
    assert main(command) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("hf-select: error:") and str(tmp_path / "m") in said and "cannot be read" in said
    assert not (tmp_path / "o").exists()
