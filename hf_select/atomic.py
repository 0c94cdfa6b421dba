"""Atomic writes of files and folders: a killed process leaves the complete old content or the complete new one."""

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
from typing import Any, Protocol


class Digest(Protocol):
    """A hash object of hashlib or xxhash."""

    def update(self, data: bytes, /) -> None:
        """Add data to what is hashed."""
        ...

    def hexdigest(self) -> str:
        """The hash as hexadecimal text."""
        ...


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path next to `path`, to be written as a file or a folder within the block.

    At the end of the block it replaces `path`. After an exception it is removed; after a kill the next write removes
    it.
    """
    _remove_abandoned(path)
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        yield temporary
        if path.is_dir():  # a folder cannot be renamed over another: rename the old one first
            old = path.with_name(f"{path.name}.{os.getpid()}.old")
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    finally:
        _remove(temporary)


def _remove_abandoned(path: Path) -> None:
    """Remove temporary paths of killed processes: those of this machine whose process no longer exists, and those of
    other machines that have not been written to for an hour."""
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
    """The JSON object in a file; None if there is no such file or it is not valid JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    return digest_of(path, hashlib.sha256())


def digest_of(path: Path, digest: "Digest") -> str:
    """Hexadecimal digest of a file's content.

    Args:
        digest: a new object of hashlib or xxhash.
    """
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
