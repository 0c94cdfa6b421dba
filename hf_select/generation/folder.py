"""The folder of a run: it belongs to one run's settings, and to one process at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hf_select.files import read_json, write_json
from hf_select.inference.chunks import differences


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
