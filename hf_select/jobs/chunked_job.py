"""A long job over the rows of a dataset, by any number of processes: chunks that are written whole or not at all and
never made twice.

folder/
  manifest.json             what is made from which rows; a run with other rows or settings is refused
  PARTS/part-00000.*        what was made of a chunk of rows
  done/part-00000.json      by whom, at what cost, and a checksum that tells a damaged part; written after it
  failed/part-00000.json    why the last attempt at a chunk failed; gone once it is made
  running/                  locks: of each chunk in hand and of each process at work, with its name

Processes do not talk to each other. Each takes the next chunk that is neither done nor locked; the kernel drops the
locks of a process that dies, so its chunk is anybody's again. Nothing depends on the locks but time: two processes
that make the same chunk write the same part, as all do on a network file system whose locks are not real.
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
from typing import Any, Literal, cast

import xxhash
from datasets import Dataset
from filelock import FileLock, Timeout

from hf_select.atomic import digest_of, read_json, write_json, written_whole
from hf_select.data.rows import Pool, pool_fingerprint
from hf_select.jobs.launch import job_name, leads
from hf_select.jobs.progress import Progress, on_batch
from hf_select.jobs.run_folder import differences


WhenRunning = Literal["refuse", "join"]


@dataclass
class ChunkedJob:
    """One job: which rows, in what chunks, by what, into which folder.

    Args:
        identity: what the parts depend on besides the rows: `name`, `settings` in words, a `hash` of everything.
        parts: folder of the parts within `folder`.
        suffix: file name ending of a part.
        what: what the folder holds, for messages: "scores", "an index".
        summary: file within `folder` that is written when all chunks are done.
    """

    pool: Pool
    folder: Path
    identity: dict[str, Any]
    parts: str
    suffix: str
    what: str
    summary: str
    made: list[Path] = field(default_factory=list, init=False)
    _worker: "_Worker" = field(init=False, repr=False)
    _compared: set[int] = field(default_factory=set, init=False, repr=False)

    def part(self, chunk: int) -> Path:
        return self.folder / self.parts / f"part-{chunk:05d}{self.suffix}"

    def record(self, chunk: int) -> dict[str, Any] | None:
        """What is known of a finished chunk."""
        return read_json(self._done(chunk))

    def open(self, source: str | None = None, when_running: WhenRunning = "refuse") -> None:
        """Make the folder, or hold an existing one to this pool and these settings.

        Raises: ValueError if it holds something else, or if another job is at work in it and is not to be joined.
        """
        manifest = {
            "pool": {"source": source, "rows": self.pool.rows, "fingerprint": self.pool.fingerprint()},
            "made_by": self.identity,
            "chunk_rows": self.pool.chunk_rows,
            "versions": _versions(),
        }
        path = self.folder / "manifest.json"
        self.made = [p for p in (self.folder, *self.folder.parents) if not p.exists()]
        ours = {self.parts, "running", "done", "failed"}
        if not path.exists() and self.folder.is_dir():
            # A moment ago another process of this job may have been here; a kill may have been before the manifest.
            known = (*ours, "manifest.json")
            if any(not path.name.startswith(known) for path in self.folder.iterdir()):
                raise ValueError(f'output folder "{self.folder}" holds other files; give a new or empty one.')
        self._worker = _Worker(self.folder / "running")
        try:
            self._worker.enter()
            for name in ours:
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
            self._leave_nothing_empty()
            raise ValueError(
                f'cannot write to output folder "{self.folder}": {error.strerror}. Choose another.'
            ) from None
        self._drop_damaged()

    def run(
        self,
        write: Callable[[Path, int, Dataset], dict[str, float]],
        load: Callable[[], Any],
        finish: Callable[[], None],
        description: str,
    ) -> None:
        """Make every chunk that is not there yet, alone or beside other processes, and return when all are there.

        Args:
            write: (path, first row, rows) makes a part and says its cost.
            load: called before the first chunk that this process makes.
            finish: writes the summary, in one of the processes, when all chunks are done.
        """
        try:
            try:
                self._run(self._worker, write, load, description)
                with FileLock(self.folder / "running" / "finish.lock"):
                    if not (self.folder / self.summary).exists():
                        finish()
            finally:
                self._worker.leave()
        except OSError as error:
            self._leave_nothing_empty()
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            kept = len(list((self.folder / "done").glob("part-*.json")))
            raise ValueError(
                f'no space is left for "{self.folder}"; its {kept} finished chunks are kept. Make space and run the '
                "same command again."
            ) from None
        except BaseException:
            self._leave_nothing_empty()
            raise
        finally:
            self._tidy()

    def _run(self, worker: "_Worker", write: Any, load: Callable[[], Any], description: str) -> None:
        loaded = False
        with Progress(self.folder / "done", self.pool.rows, description, worker.name, leads()) as progress:
            while True:
                with on_batch(progress.count):
                    for chunk, first_row, rows in self.pool.chunks(self._take, self._hold):
                        with self._in_hand(chunk, worker):
                            if not loaded:
                                load()
                                loaded = True
                            self._make(chunk, first_row, rows, worker, write)
                        progress.look()
                missing = [chunk for chunk in range(self.pool.num_chunks) if not self._is_done(chunk)]
                if not missing:
                    return
                # Others have them in hand. Wait, and take over what a process that died has left.
                while not any(self._is_free(chunk) for chunk in missing):
                    time.sleep(0.1)
                    progress.look()
                    missing = [chunk for chunk in missing if not self._is_done(chunk)]
                    if not missing:
                        return

    # A chunk's life: free, in hand (locked), done.

    def _done(self, chunk: int) -> Path:
        return self.folder / "done" / f"part-{chunk:05d}.json"

    def _is_done(self, chunk: int) -> bool:
        return self._done(chunk).exists()

    def _lock(self, chunk: int) -> FileLock:
        return FileLock(self.folder / "running" / f"part-{chunk:05d}.lock")

    def _take(self, chunk: int) -> bool:
        """Lock a chunk that is neither done nor in hand."""
        if self._is_done(chunk):
            return False
        lock = self._lock(chunk)
        if not _acquired(lock):
            return False
        if self._is_done(chunk):  # between the first look and the lock
            lock.release()
            return False
        self._held = lock
        return True

    def _is_free(self, chunk: int) -> bool:
        return not _is_held(self._lock(chunk))

    @contextmanager
    def _in_hand(self, chunk: int, worker: "_Worker") -> Iterator[None]:
        failed = self.folder / "failed" / f"part-{chunk:05d}.json"
        try:
            yield
            failed.unlink(missing_ok=True)
        except Exception as error:
            with suppress(OSError):  # the disk may be full, or the folder gone
                write_json(failed, {"by": worker.name, "when": _now(), "why": f"{type(error).__name__}: {error}"})
            raise
        finally:
            self._held.release()

    def _make(self, chunk: int, first_row: int, rows: Dataset, worker: "_Worker", write: Any) -> None:
        begin = time.perf_counter()
        (self.folder / self.summary).unlink(missing_ok=True)
        with written_whole(self.part(chunk)) as temporary:
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
        """Parts that are not what was written are made anew."""
        for path in sorted((self.folder / "done").glob("part-*.json")):
            record, part = read_json(path), self.folder / self.parts / f"{path.stem}{self.suffix}"
            sound = record is not None and part.exists() and part.stat().st_size == record["bytes"]
            if not (sound and _checksum(part) == cast(Any, record)["xxh3"]):
                (self.folder / self.summary).unlink(missing_ok=True)
                path.unlink(missing_ok=True)

    # What must not be mixed.

    def _hold(self, chunk: int, rows: Dataset) -> None:
        """A stream cannot be compared before it is read: hold each finished chunk to its rows as they come."""
        record = None if chunk in self._compared else self.record(chunk)
        if record is None:
            return
        self._compared.add(chunk)
        if record["read_xxh3"] != pool_fingerprint(rows):
            raise ValueError(
                f'"{self.folder}" holds {self.what} of other rows: those from row {record["first_row"]:,} on differ. '
                "Choose another output folder."
            )

    def _refuse_other(self, there: dict[str, Any], here: dict[str, Any]) -> None:
        mine, made_by = here["made_by"], there["made_by"]
        differing = []
        if there["pool"]["fingerprint"] != here["pool"]["fingerprint"]:
            differing.append(f"other rows ({there['pool']['rows']} there, {here['pool']['rows']} here)")
        if made_by["name"] != mine["name"]:
            differing.append(f"made by {made_by['name']} there, {mine['name']} here")
        elif made_by["hash"] != mine["hash"]:
            changed = differences(made_by.get("identity", {}), mine["identity"])
            differing += changed or ["made by another version of hf_select"]
        if there["chunk_rows"] != here["chunk_rows"]:
            differing.append(f"chunk_rows {there['chunk_rows']} there, {here['chunk_rows']} here")
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
                f'{len(others)} process{"es are" if len(others) > 1 else " is"} at work in "{self.folder}" ({names}). '
                "Wait, or help along with when_running=join (--when-running join)."
            )

    def _tidy(self) -> None:
        """The last to leave takes the locks away, and what killed processes of this machine left. The folder stays:
        another process may be about to put its own lock there."""
        running = self.folder / "running"
        if not list(live_workers(self.folder)):
            for pattern in ("part-*.lock", f"worker-{socket.gethostname()}-*"):
                for path in running.glob(pattern):
                    with suppress(OSError):
                        path.unlink(missing_ok=True)
        with suppress(OSError):
            (self.folder / "failed").rmdir()  # if it is empty

    def _leave_nothing_empty(self) -> None:
        """Take back the folders that this run made, if it failed before anybody had anything to show."""
        if not (self.folder / "running").is_dir():
            return
        with suppress(OSError), FileLock(self.folder / "running" / "manifest.lock"):  # nobody enters meanwhile
            names = (f"{self.parts}/part-*", "running/worker-*.json")
            if any(path for name in names for path in self.folder.glob(name)):
                return
            for name in (self.parts, "done", "failed"):
                shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / "manifest.json").unlink(missing_ok=True)
            shutil.rmtree(self.folder / "running", ignore_errors=True)
        for path in self.made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


class _Worker:
    """This process, seen by others for as long as it lives: a lock, and its name beside it."""

    def __init__(self, running: Path):
        self.name = f"{socket.gethostname()}, process {os.getpid()}"
        self.card = running / f"worker-{socket.gethostname()}-{os.getpid()}.json"
        self.says = {"name": self.name, "job": job_name(), "started": _now()}

    def enter(self) -> None:
        self.lock = FileLock(self.card.with_suffix(".lock"))
        for attempt in range(10):
            try:
                self.card.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(self.card.parent / "manifest.lock"):
                    self.lock.acquire()
                    write_json(self.card, self.says)
                return
            except FileNotFoundError:  # a process that failed took the new folder back in between
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
    """What the processes that are at work in a folder say of themselves."""
    for card in sorted((folder / "running").glob("worker-*.json")):
        if _is_held(FileLock(card.with_suffix(".lock"))) and (says := read_json(card)) is not None:
            yield says


def _acquired(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
        return True
    except Timeout:
        return False


def _is_held(lock: FileLock) -> bool:
    """Whether a process that lives holds it."""
    free = _acquired(lock)
    lock.release()
    return not free


def _checksum(path: Path) -> str:
    return digest_of(path, xxhash.xxh3_128())


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _versions() -> dict[str, str]:
    found = {}
    for package in ("hf-select", "torch", "transformers", "datasets", "peft"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
