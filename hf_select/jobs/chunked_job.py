"""A resumable job over the chunks of a dataset, shared by multiple processes.

folder/
  manifest.json             rows and settings of the job; a run with other ones is rejected
  PARTS/part-00000.*        the result of a chunk, written atomically
  done/part-00000.json      process, cost and checksum of a part; written after it
  failed/part-00000.json    why the last attempt at a chunk failed; removed when the chunk is done
  running/                  a lock for each chunk in progress; a lock and a name for each live process

Processes do not communicate. Each one takes the next chunk that is neither done nor locked. The kernel releases the
locks of a process that dies, so that another process can take its chunk. Results do not depend on the locks: if two
processes compute the same chunk (on a network file system without working locks), they write the same part.
"""

import errno
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import xxhash
from datasets import Dataset
from filelock import FileLock, Timeout

from hf_select.atomic import atomic_path, digest_of, read_json, write_json
from hf_select.data.rows import Pool, pool_fingerprint
from hf_select.jobs.launch import is_main_process, job_name
from hf_select.jobs.progress import Progress, on_batch
from hf_select.jobs.run_folder import cannot_write, changed_settings, refuse_other_files


TIME_FORMAT = "%Y-%m-%dT%H:%M:%S%z"  # of the times in records
WhenRunning = Literal["refuse", "join"]
WritePart = Callable[[Path, int, Dataset], dict[str, float]]


@dataclass
class ChunkedJob:
    """A job: its rows, the identity of its results, and its folder.

    Args:
        identity: what the parts depend on besides the rows, from `identity_of`.
        parts: folder of the parts within `folder`.
        suffix: file extension of a part.
        what: contents of the folder, for messages: "scores", "an index".
        summary: file within `folder` that is written when all chunks are done.
    """

    pool: Pool
    folder: Path
    identity: dict[str, Any]
    parts: str
    suffix: str
    what: str
    summary: str
    _created: list[Path] = field(default_factory=list, init=False, repr=False)
    _worker: "_Worker" = field(init=False, repr=False)
    _verified: set[int] = field(default_factory=set, init=False, repr=False)

    def part(self, chunk: int) -> Path:
        """Path of a chunk's result."""
        return self.folder / self.parts / f"part-{chunk:05d}{self.suffix}"

    def record(self, chunk: int) -> dict[str, Any] | None:
        """The record of a finished chunk; None if it is not finished."""
        return read_json(self._done(chunk))

    def open(self, source: str | None = None, when_running: WhenRunning = "refuse") -> None:
        """Create the folder, or check that an existing one has the same rows and settings.

        Raises: ValueError if the rows or settings differ, if the folder holds other files, or if another job is
            running in it and `when_running` is "refuse".
        """
        manifest = {
            "pool": {"source": source, "rows": self.pool.rows, "fingerprint": self.pool.fingerprint()},
            "made_by": self.identity,
            "chunk_rows": self.pool.chunk_rows,
            "versions": _versions(),
        }
        path = self.folder / "manifest.json"
        self._created = [p for p in (self.folder, *self.folder.parents) if not p.exists()]
        own = (self.parts, "running", "done", "failed")
        if not path.exists():
            # Another process of this job may be starting; an earlier one may have been killed before its manifest.
            refuse_other_files(self.folder, (*own, "manifest.json"))
        self._worker = _Worker(self.folder / "running")
        try:
            self._worker.enter()
            for name in own:
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / "running" / "manifest.lock"):
                if path.exists():
                    self._refuse_other(json.loads(path.read_text(encoding="utf-8")), manifest)
                else:
                    write_json(path, manifest)
            if when_running == "refuse":
                self._refuse_running()
        except ValueError:
            self._worker.leave()
            self._tidy()
            raise
        except OSError as error:
            self._worker.leave()
            self._remove_if_empty()
            raise cannot_write(self.folder, error) from None
        self._drop_damaged()

    def run(
        self,
        write: WritePart,
        load: Callable[[], object],
        finish: Callable[[], None],
        description: str,
        needs_load: Callable[[Dataset], bool] = lambda rows: True,
    ) -> None:
        """Compute the unfinished chunks, shared with other processes. Returns when all chunks are done.

        Args:
            write: called with (path, first row, rows); writes a part and returns its cost.
            load: called before the first chunk that this process computes and `needs_load` says so of its rows.
            finish: writes the summary when all chunks are done; called in one process.
            needs_load: whether a chunk with these rows needs what `load` loads.
        """
        try:
            try:
                self._run(self._worker, write, load, needs_load, description)
                with FileLock(self.folder / "running" / "finish.lock"):
                    if not (self.folder / self.summary).exists():
                        finish()
            finally:
                self._worker.leave()
        except OSError as error:
            self._remove_if_empty()
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            done = len(list((self.folder / "done").glob("part-*.json")))
            raise ValueError(
                f'no space is left for "{self.folder}"; its {done} finished chunks are kept. Free space and run the '
                "same command again."
            ) from None
        except BaseException:
            self._remove_if_empty()
            raise
        finally:
            self._tidy()

    def _run(
        self,
        worker: "_Worker",
        write: WritePart,
        load: Callable[[], object],
        needs_load: Callable[[Dataset], bool],
        description: str,
    ) -> None:
        loaded = False
        with Progress(self.folder / "done", self.pool.rows, description, worker.name, is_main_process()) as progress:
            while True:
                with on_batch(progress.count):
                    for chunk, first_row, rows in self.pool.chunks(self._take, self._verify_streamed_chunk):
                        with self._locked_chunk(chunk, worker):
                            if not loaded and needs_load(rows):
                                load()
                                loaded = True
                            self._write(chunk, first_row, rows, worker, write)
                        progress.look()
                missing = [chunk for chunk in range(self.pool.num_chunks) if not self._is_done(chunk)]
                if not missing:
                    return
                # Other processes have locked these. Wait, and take over the chunks of a process that dies.
                while not any(self._is_free(chunk) for chunk in missing):
                    time.sleep(0.1)
                    progress.look()
                    missing = [chunk for chunk in missing if not self._is_done(chunk)]
                    if not missing:
                        return

    # States of a chunk: free, locked, done.

    def _done(self, chunk: int) -> Path:
        return self.folder / "done" / f"part-{chunk:05d}.json"

    def _is_done(self, chunk: int) -> bool:
        return self._done(chunk).exists()

    def _lock(self, chunk: int) -> FileLock:
        return FileLock(self.folder / "running" / f"part-{chunk:05d}.lock")

    def _take(self, chunk: int) -> bool:
        """Try to lock a chunk that is neither done nor locked; return whether this succeeded."""
        if self._is_done(chunk):
            return False
        lock = self._lock(chunk)
        if not _acquired(lock):
            return False
        if self._is_done(chunk):  # finished between the first check and the lock
            lock.release()
            return False
        self._chunk_lock = lock
        return True

    def _is_free(self, chunk: int) -> bool:
        return not _is_held(self._lock(chunk))

    @contextmanager
    def _locked_chunk(self, chunk: int, worker: "_Worker") -> Iterator[None]:
        """Release the chunk's lock after the block, and record an error raised in it."""
        failed = self.folder / "failed" / f"part-{chunk:05d}.json"
        try:
            yield
            failed.unlink(missing_ok=True)
        except Exception as error:
            with suppress(OSError):  # the disk may be full, or the folder deleted
                write_json(failed, {"by": worker.name, "when": _now(), "why": f"{type(error).__name__}: {error}"})
            raise
        finally:
            self._chunk_lock.release()

    def _write(self, chunk: int, first_row: int, rows: Dataset, worker: "_Worker", write: WritePart) -> None:
        begin = time.perf_counter()
        (self.folder / self.summary).unlink(missing_ok=True)
        with atomic_path(self.part(chunk)) as temporary:
            cost = write(temporary, first_row, rows)
            size, checksum = temporary.stat().st_size, _checksum(temporary)
        record = {
            "first_row": first_row,
            "rows": len(rows),
            "by": worker.name,
            "finished": _now(),
            "cost": {**cost, "seconds": time.perf_counter() - begin},
            "bytes": size,
            "xxh3": checksum,
            "read_xxh3": None if self.pool.rows is not None else pool_fingerprint(rows),
        }
        write_json(self._done(chunk), record)

    def _drop_damaged(self) -> None:
        """Remove the records of damaged parts, so that the parts are computed again."""
        for path in sorted((self.folder / "done").glob("part-*.json")):
            record, part = read_json(path), self.folder / self.parts / f"{path.stem}{self.suffix}"
            intact = (
                record is not None
                and part.exists()
                and part.stat().st_size == record["bytes"]
                and _checksum(part) == record["xxh3"]
            )
            if not intact:
                (self.folder / self.summary).unlink(missing_ok=True)
                path.unlink(missing_ok=True)

    # Checks that a folder is used by one job only.

    def _verify_streamed_chunk(self, chunk: int, rows: Dataset) -> None:
        """Check that a finished chunk was computed from these rows. A stream has no fingerprint before it is read, so
        its chunks are checked one at a time."""
        record = None if chunk in self._verified else self.record(chunk)
        if record is None:
            return
        self._verified.add(chunk)
        if record["read_xxh3"] != pool_fingerprint(rows):
            raise ValueError(
                f'"{self.folder}" holds {self.what} of other rows: the rows from {record["first_row"]:,} on differ. '
                "Choose another output folder."
            )

    def _refuse_other(self, recorded: dict[str, Any], current: dict[str, Any]) -> None:
        theirs, ours = recorded["made_by"], current["made_by"]
        differing = []
        if recorded["pool"]["fingerprint"] != current["pool"]["fingerprint"]:
            differing.append(f"other rows ({recorded['pool']['rows']} there, {current['pool']['rows']} here)")
        if theirs["name"] != ours["name"]:
            differing.append(f"made by {theirs['name']} there, {ours['name']} here")
        elif theirs["hash"] != ours["hash"]:
            changed = changed_settings(theirs.get("identity", {}), ours["identity"])
            differing += changed or ["made by another version of hf_select"]
        if recorded["chunk_rows"] != current["chunk_rows"]:
            differing.append(f"chunk_rows {recorded['chunk_rows']} there, {current['chunk_rows']} here")
        if differing:
            moved = any("weights commit" in text for text in differing)
            cure = ", or give the commit of that run as the revision" if moved else ""
            raise ValueError(
                f'"{self.folder}" holds {self.what} of another run ({"; ".join(differing)}). '
                f"Choose another output folder{cure}."
            )

    def _refuse_running(self) -> None:
        others = [worker for worker in live_workers(self.folder) if worker["job"] != job_name()]
        if others:
            names = ", ".join(worker["name"] for worker in others[:3])
            raise ValueError(
                f'{len(others)} process{"es are" if len(others) > 1 else " is"} running in "{self.folder}" ({names}). '
                "Wait, or share its work with when_running=join (--when-running join)."
            )

    def _tidy(self) -> None:
        """If no process is running, remove the locks and the files of killed processes of this machine. The folder is
        kept, because another process may be about to create its lock in it."""
        running = self.folder / "running"
        if not list(live_workers(self.folder)):
            for pattern in ("part-*.lock", f"worker-{socket.gethostname()}-*"):
                for path in running.glob(pattern):
                    with suppress(OSError):
                        path.unlink(missing_ok=True)
        with suppress(OSError):
            (self.folder / "failed").rmdir()  # if it is empty

    def _remove_if_empty(self) -> None:
        """Remove the folders that this run created, unless a process has written a part or is running."""
        if not (self.folder / "running").is_dir():
            return
        with suppress(OSError), FileLock(self.folder / "running" / "manifest.lock"):  # no process enters meanwhile
            names = (f"{self.parts}/part-*", "running/worker-*.json")
            if any(path for name in names for path in self.folder.glob(name)):
                return
            for name in (self.parts, "done", "failed"):
                shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / "manifest.json").unlink(missing_ok=True)
            shutil.rmtree(self.folder / "running", ignore_errors=True)
        for path in self._created:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


class _Worker:
    """Announces this process to others while it runs, by a lock and a file with its name."""

    def __init__(self, running: Path):
        self.name = f"{socket.gethostname()}, process {os.getpid()}"
        self.card = running / f"worker-{socket.gethostname()}-{os.getpid()}.json"
        self.card_content = {"name": self.name, "job": job_name(), "started": _now()}

    def enter(self) -> None:
        self.lock = FileLock(self.card.with_suffix(".lock"))
        for attempt in range(10):
            try:
                self.card.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(self.card.parent / "manifest.lock"):
                    self.lock.acquire()
                    write_json(self.card, self.card_content)
                return
            except FileNotFoundError:  # a failed process removed the new folder in the meantime
                self.lock.release(force=True)
                if attempt == 9:
                    raise

    def leave(self) -> None:
        with suppress(OSError):
            self.card.unlink(missing_ok=True)
        self.lock.release(force=True)
        with suppress(OSError):
            self.card.with_suffix(".lock").unlink(missing_ok=True)


def live_workers(folder: Path) -> Iterator[dict[str, Any]]:
    """Name, job and start time of each process that runs in a folder."""
    for card in sorted((folder / "running").glob("worker-*.json")):
        if _is_held(FileLock(card.with_suffix(".lock"))) and (content := read_json(card)) is not None:
            yield content


def _acquired(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
        return True
    except Timeout:
        return False


def _is_held(lock: FileLock) -> bool:
    """Whether a live process holds the lock."""
    free = _acquired(lock)
    lock.release()
    return not free


def _checksum(path: Path) -> str:
    return digest_of(path, xxhash.xxh3_128())


def _now() -> str:
    return time.strftime(TIME_FORMAT)


def _versions() -> dict[str, str]:
    versions = {}
    for package in ("hf-select", "torch", "transformers", "datasets", "peft"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
