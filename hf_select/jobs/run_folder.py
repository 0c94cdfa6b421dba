"""The folder of a run: it belongs to one run's settings, and to one process at a time."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash
from datasets.fingerprint import Hasher
from filelock import FileLock, Timeout

from hf_select.atomic import read_json, write_json
from hf_select.data.rows import pool_fingerprint, readable
from hf_select.jobs.launch import leads


def hold(path: Path, settings: dict[str, Any]) -> None:
    """Write down whose run a folder is for (path is a JSON file in it), or hold an existing one to it.

    Raises: ValueError if the folder holds a run with other settings, or other files, or cannot be written to.
    """
    folder, here = path.parent, {"settings": settings}
    try:
        if not path.exists() and folder.is_dir():
            others = [p.name for p in folder.iterdir() if not p.name.startswith((".lock", f"{path.name}."))]
            if others:
                raise ValueError(f'output folder "{folder}" holds other files; give a new or empty one.')
        folder.mkdir(parents=True, exist_ok=True)
        there = read_json(path)
        if there is None:
            write_json(path, here)
        elif changed := differences(there["settings"], here["settings"]):
            raise ValueError(
                f'"{folder}" holds a run with other settings ({"; ".join(changed)}). Choose another folder.'
            )
    except OSError as error:
        raise ValueError(f'cannot write to output folder "{folder}": {error.strerror}. Choose another.') from None


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Files are read, and their torn ends taken away, by one process at a time."""
    if not folder.is_dir():
        yield
        return
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f'another process is at work in "{folder}"; wait, or choose another.') from None
    try:
        yield
    finally:
        lock.release()


def identity_of(name: str, identity: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """What makes results: the settings for people to read, what the results depend on, and a hash of that."""
    words = json.loads(json.dumps(settings, default=str))
    plain = json.loads(json.dumps(identity, sort_keys=True, default=Hasher.hash))
    digest = xxhash.xxh3_64_hexdigest(json.dumps(plain, sort_keys=True).encode())
    return {"name": name, "settings": words, "identity": plain, "hash": digest}


def differences(there: Any, here: Any, name: str = "") -> list[str]:
    """Settings that differ, by their dotted names."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = dict.fromkeys([*here, *there])
        return [
            text for key in keys for text in differences(there.get(key), here.get(key), f"{name}.{key}".strip("."))
        ]
    return [f"{name} {there} there, {here} here"] if there != here else []


def hold_to(path: Path, settings: dict[str, Any], dataset: Any, what: str) -> None:
    """Write down whose run a folder is for (path is a JSON file in it), or hold an existing one to it.

    Raises: ValueError if the folder holds a run of other rows or settings, or other files.
    """
    here = json.loads(json.dumps({**settings, "pool": pool_fingerprint(readable(dataset))}, default=str))
    folder = path.parent
    there = read_json(path) if path.exists() else None
    if there is not None:
        if there != here:
            changed = "; ".join(differences(there, here)) or "model files changed"
            raise ValueError(f'"{folder}" holds a {what} of another run ({changed}). Choose another output folder.')
        return
    if not leads():
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f'output folder "{folder}" holds other files; give a new or empty one.')
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, here)
