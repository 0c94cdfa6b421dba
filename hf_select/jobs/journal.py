"""Append-only JSONL files of requests and their results.

Each block of lines is appended with one system call. A killed process leaves at most an incomplete last block, which
is removed when the file is next read. Users may edit, delete and add lines between runs.

There are two kinds of lines. A record has a `key`, which identifies its request; the last record with a key is valid.
A node has an `id` and, in `of`, the key of the record that it belongs to. A record is written after its nodes, so
nodes without a record belong to an incomplete block.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hf_select.atomic import atomic_path


Line = dict[str, Any]


def read_lines(path: Path) -> list[Line]:
    """Read the lines of a journal, and remove an incomplete end. [] if the file does not exist.

    Raises: ValueError if a line other than the last is not a JSON object, e.g. after a manual edit.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    # Not splitlines(): model outputs may contain U+2028, which JSON does not escape.
    lines, kept, written = text.split("\n"), [], []
    if lines[-1] == "":
        lines.pop()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError
        except ValueError:
            if number == len(lines) and not text.endswith("\n"):
                break
            raise ValueError(f'line {number} of "{path}" is not a JSON object; fix or delete it.') from None
        kept.append(value)
        written.append(line)
    records = {line["key"] for line in kept if "key" in line}
    complete = [line.get("of") is None or line["of"] in records for line in kept]
    if not all(complete) or len(written) < len(lines) or (text and not text.endswith("\n")):
        with atomic_path(path) as temporary:
            lines = [line + "\n" for line, keep in zip(written, complete, strict=True) if keep]
            temporary.write_text("".join(lines), encoding="utf-8")
    return [line for line, keep in zip(kept, complete, strict=True) if keep]


def append(path: Path, lines: Iterable[Line]) -> None:
    """Append lines to a journal with one system call.

    Raises: OSError if not all lines were written.
    """
    block = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        written = os.write(file, block)
        if written < len(block):
            raise OSError(f'only {written} of {len(block)} bytes could be written to "{path}"; is the disk full?')
    finally:
        os.close(file)


def records(lines: Iterable[Line]) -> dict[str, list[Line]]:
    """The records of each key, oldest first."""
    by_key: dict[str, list[Line]] = {}
    for line in lines:
        if "key" in line:
            by_key.setdefault(line["key"], []).append(line)
    return by_key


def nodes(lines: Iterable[Line]) -> list[Line]:
    """The lines that are nodes, in file order."""
    return [line for line in lines if "key" not in line]
