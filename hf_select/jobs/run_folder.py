"""Run folders: each belongs to one run's settings and is used by one process at a time."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash
from datasets import Dataset
from datasets.fingerprint import Hasher
from filelock import FileLock, Timeout

from hf_select.atomic import read_json, write_json
from hf_select.data.rows import pool_fingerprint, readable
from hf_select.jobs.launch import is_main_process


def claim_run_folder(path: Path, settings: Mapping[str, Any], what: str, dataset: Dataset | None = None) -> None:
    """Record in `path`, a JSON file, which run its folder belongs to; if it is there, compare it with this run.

    Args:
        what: what such a run makes, for messages: "a comparison".
        dataset: rows that the run depends on; their fingerprint is part of the record.
    Raises: ValueError if the folder belongs to a run of other rows or settings, holds other files, or cannot be
        written to.
    """
    folder = path.parent
    rows = {} if dataset is None else {"pool": pool_fingerprint(readable(dataset))}
    here = json.loads(json.dumps({**settings, **rows}, default=str))
    try:
        there = read_json(path)
        if there is not None:
            if there != here:
                changed = [text.removeprefix("settings.") for text in changed_settings(there, here)]
                changed = "; ".join(changed) or "model files changed"
                raise ValueError(f'"{folder}" holds {what} of another run ({changed}). Choose another output folder.')
        elif is_main_process():
            refuse_other_files(folder, (".lock", f"{path.name}."))
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, here)
    except OSError as error:
        raise cannot_write(folder, error) from None


def refuse_other_files(folder: Path, own: tuple[str, ...]) -> None:
    """Raise ValueError if a folder has files whose names begin with none of `own`."""
    if folder.is_dir() and any(not path.name.startswith(own) for path in folder.iterdir()):
        raise ValueError(f'output folder "{folder}" holds other files; give a new or empty one.')


def cannot_write(folder: Path, error: OSError) -> ValueError:
    """The error for a folder that the system does not let us write to."""
    return ValueError(f'cannot write to output folder "{folder}": {error.strerror}. Choose another.')


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Lock a folder for the block, if it exists.

    Raises: ValueError if another process holds the lock.
    """
    if not folder.is_dir():
        yield
        return
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f'another process is running in "{folder}"; wait, or choose another.') from None
    try:
        yield
    finally:
        lock.release()


def identity_of(name: str, identity: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a job's results: the settings as people read them, what the results depend on, and its hash."""
    words = json.loads(json.dumps(settings, default=str))
    plain = json.loads(json.dumps(identity, sort_keys=True, default=Hasher.hash))
    digest = xxhash.xxh3_64_hexdigest(json.dumps(plain, sort_keys=True).encode())
    return {"name": name, "settings": words, "identity": plain, "hash": digest}


def changed_settings(there: Any, here: Any, name: str = "") -> list[str]:
    """A text for each setting that differs between two (nested) dictionaries, by its dotted name."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = {key: f"{name}.{key}".strip(".") for key in [*here, *there]}
        return [text for key, full in keys.items() for text in changed_settings(there.get(key), here.get(key), full)]
    return [f"{name} {there} there, {here} here"] if there != here else []
