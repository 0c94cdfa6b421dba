"""Run folders. Each belongs to the settings of one run, and only one process may use it at a time."""

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
    """Record the settings of a run in the JSON file `path`. If the file exists, compare them with those in it.

    Args:
        what: result of such a run, for messages: "a comparison".
        dataset: rows that the run depends on; their fingerprint is recorded, too.
    Raises: ValueError if the folder belongs to a run with other rows or settings, holds other files, or is not
        writable.
    """
    folder = path.parent
    rows = {} if dataset is None else {"pool": pool_fingerprint(readable(dataset))}
    current = json.loads(json.dumps({**settings, **rows}, default=str))
    try:
        recorded = read_json(path)
        if recorded is not None:
            if recorded != current:
                changed = [text.removeprefix("settings.") for text in changed_settings(recorded, current)]
                changed = "; ".join(changed) or "model files changed"
                raise ValueError(f'"{folder}" holds {what} of another run ({changed}). Choose another output folder.')
        elif is_main_process():
            refuse_other_files(folder, (".lock", f"{path.name}."))
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, current)
    except OSError as error:
        raise cannot_write(folder, error) from None


def refuse_other_files(folder: Path, own: tuple[str, ...]) -> None:
    """Raise ValueError if a folder has files whose names do not start with one of `own`."""
    if folder.is_dir() and any(not path.name.startswith(own) for path in folder.iterdir()):
        raise ValueError(f'output folder "{folder}" holds other files; give a new or empty one.')


def cannot_write(folder: Path, error: OSError) -> ValueError:
    """The error for a folder that is not writable."""
    return ValueError(f'cannot write to output folder "{folder}": {error.strerror}. Choose another.')


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Lock a folder within the block, if the folder exists.

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
    """The identity of a job: readable settings, the values that its results depend on, and their hash."""
    readable_settings = json.loads(json.dumps(settings, default=str))
    plain = json.loads(json.dumps(identity, sort_keys=True, default=Hasher.hash))
    digest = xxhash.xxh3_64_hexdigest(json.dumps(plain, sort_keys=True).encode())
    return {"name": name, "settings": readable_settings, "identity": plain, "hash": digest}


def changed_settings(old: Any, new: Any, name: str = "") -> list[str]:
    """Describe each setting that differs between two nested dictionaries, by its dotted name."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = {key: f"{name}.{key}".strip(".") for key in [*new, *old]}
        return [text for key, full in keys.items() for text in changed_settings(old.get(key), new.get(key), full)]
    return [f"{name} {old} there, {new} here"] if old != new else []
