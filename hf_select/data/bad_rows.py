"""Invalid rows, and functions over batches that contain them.

A batch keeps its length and order: a row without a value is replaced by a `BadRow`, whose message is the reason.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar


Row = TypeVar("Row")
Result = TypeVar("Result")


class BadRow(ValueError):
    """A row that cannot be read, rendered or measured; the message is written to the reason column."""


def attempt(f: Callable[..., Result], *values: Any) -> Result | BadRow:
    """Return the first BadRow among the values, else `f(*values)`, or the BadRow that `f` raises."""
    for value in values:
        if isinstance(value, BadRow):
            return value
    try:
        return f(*values)
    except BadRow as reason:
        return reason


def map_rows(f: Callable[..., Result], *columns: Iterable[Any]) -> list[Result | BadRow]:
    """Apply `attempt(f, ...)` to each row. All columns must have the same length."""
    return [attempt(f, *values) for values in zip(*columns, strict=True)]


def on_readable(
    rows: Sequence[Row | BadRow], f: Callable[[list[Row]], Iterable[Result | BadRow]]
) -> list[Result | BadRow]:
    """Call `f` once with all valid rows; return its result for each of them, and each BadRow at its position."""
    results = iter(f(readable_rows(rows)))
    return [row if isinstance(row, BadRow) else next(results) for row in rows]


def readable_rows(rows: Iterable[Row | BadRow]) -> list[Row]:
    """Return the rows that are not a BadRow."""
    return [row for row in rows if not isinstance(row, BadRow)]
