"""Atomic writes: a file or folder is there whole, as it was before, or not at all, whenever a process is killed."""

import glob
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, to be written as a file or a folder within the block. It takes the place of
    `path` when the block ends well and is removed when it does not, or by the next to write after a kill."""
    _remove_abandoned(path)
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        yield temporary
        if path.is_dir():  # a folder cannot be renamed over another: the old one steps aside first
            old = path.with_name(f"{path.name}.{os.getpid()}.old")
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    finally:
        _remove(temporary)


def _remove_abandoned(path: Path) -> None:
    """Remove what killed processes left beside `path`. Another process of this machine has been killed if it is gone;
    of other machines nothing is known, so theirs goes when nobody has written to it for an hour."""
    import psutil

    for left in path.parent.glob(f"{glob.escape(path.name)}.*.tmp"):
        host, _, process = left.name.removeprefix(f"{path.name}.").removesuffix(".tmp").rpartition("-")
        if not host or not process.isdigit():
            continue
        try:
            old = time.time() - left.stat().st_mtime > 3600
        except FileNotFoundError:  # just renamed
            continue
        if not psutil.pid_exists(int(process)) if host == socket.gethostname() else old:
            _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any] | None:
    """What the file says, or None if it is not there (any more)."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None


def sha256_of(path: Path) -> str:
    return digest_of(path, hashlib.sha256())


def digest_of(path: Path, digest: Any) -> str:
    """The content of a file of any size, by an empty digest of hashlib or xxhash."""
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Written whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
