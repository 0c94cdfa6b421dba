"""JSONL files that are only appended to: what was asked, and what came of it, a line each.

A block of lines is written by one call to the system, so a killed process leaves at most a torn end, which is taken
away when the file is next read. A person may edit, delete and add lines between runs.

Two kinds of lines: records, which have a `key` (what was asked; the last record of a key holds), and nodes, which have
an `id` and the key of the record that they came with under `of`. A record is written after its nodes: nodes without
their record are torn.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hf_select.atomic import written_whole


Line = dict[str, Any]


def read_lines(path: Path) -> list[Line]:
    """The lines of a journal, its torn end taken away; [] if there is no file.

    Raises: ValueError if another line than the last is no JSON object: somebody's slip, not a torn end.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    # Not splitlines(): a model may write U+2028, which JSON leaves as it is.
    lines, kept, written = text.split("\n"), [], []
    if lines[-1] == "":
        lines.pop()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            if not isinstance(found, dict):
                raise ValueError
        except ValueError:
            if number == len(lines) and not text.endswith("\n"):
                break
            raise ValueError(f'line {number} of "{path}" is no JSON object; mend it or delete it.') from None
        kept.append(found)
        written.append(line)
    records = {line["key"] for line in kept if "key" in line}
    whole = [line.get("of") is None or line["of"] in records for line in kept]
    if not all(whole) or len(written) < len(lines) or (text and not text.endswith("\n")):
        with written_whole(path) as temporary:
            sound = [line + "\n" for line, keep in zip(written, whole, strict=True) if keep]
            temporary.write_text("".join(sound), encoding="utf-8")
    return [line for line, keep in zip(kept, whole, strict=True) if keep]


def append(path: Path, lines: Iterable[Line]) -> None:
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
    found: dict[str, list[Line]] = {}
    for line in lines:
        if "key" in line:
            found.setdefault(line["key"], []).append(line)
    return found


def nodes(lines: Iterable[Line]) -> list[Line]:
    return [line for line in lines if "key" not in line]
