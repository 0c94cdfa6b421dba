"""A progress bar for a job of several processes, updated from their records of finished chunks."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from hf_select.atomic import read_json


class Progress:
    """Shows the rows done by all processes, and the tokens per second since this process started.

    Args:
        done: folder of the records of finished chunks.
        rows: number of rows in the pool; None if unknown, as for a stream.
        me: name of this process. Its tokens are counted after each micro-batch, not when a chunk is done.
        shown: whether this process shows the bar.
    """

    def __init__(self, done: Path, rows: int | None, description: str, me: str, shown: bool):
        self.done, self.rows, self.me = done, rows, me
        self.known: set[str] = set()
        self.tokens = 0
        self.bar = tqdm(total=rows, unit="row", desc=description, disable=not shown)

    def __enter__(self) -> "Progress":
        before = self._new_records()
        self.bar.reset(self.rows)
        self.bar.initial = self.bar.n = sum(record["rows"] for record in before)
        self.begin = self.looked = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def count(self, tokens: int) -> None:
        """Add tokens that this process has processed."""
        self.tokens += tokens
        if time.perf_counter() - self.looked > 1:
            self.look()

    def look(self) -> None:
        """Add the chunks that any process has finished since the last call."""
        self.looked = time.perf_counter()
        new = self._new_records()
        self.tokens += sum(record["cost"].get("tokens", 0) for record in new if record["by"] != self.me)
        self.bar.update(sum(record["rows"] for record in new))
        if self.tokens:
            self.bar.set_postfix_str(f"{self.tokens / (self.looked - self.begin):,.0f} tokens/s")

    def _new_records(self) -> list[dict[str, Any]]:
        if self.bar.disable:
            return []
        new = [path for path in self.done.glob("part-*.json") if path.name not in self.known]
        self.known.update(path.name for path in new)
        return [record for path in new if (record := read_json(path)) is not None]


_on_batch: ContextVar[Callable[[int], None] | None] = ContextVar("on_batch", default=None)


@contextmanager
def on_batch(report: Callable[[int], None]) -> Iterator[None]:
    """Within the block, `report(tokens)` is called after every micro-batch."""
    token = _on_batch.set(report)
    try:
        yield
    finally:
        _on_batch.reset(token)
