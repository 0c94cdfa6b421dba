"""Rows that cannot be used, and functions over batches that hold some.

A row never leaves its place: where it has no value there is a `BadRow`, whose message is the reason.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar


Row = TypeVar("Row")
Result = TypeVar("Result")


class BadRow(ValueError):
    """A row that cannot be read, rendered or measured; the message is the reason that its scores carry."""


def attempt(f: Callable[..., Result], *values: Any) -> Result | BadRow:
    """`f(*values)`, or a BadRow: the first among the values, else the one that `f` raises."""
    for value in values:
        if isinstance(value, BadRow):
            return value
    try:
        return f(*values)
    except BadRow as reason:
        return reason


def map_rows(f: Callable[..., Result], *columns: Iterable[Any]) -> list[Result | BadRow]:
    """`attempt(f, ...)` for each row of columns of one length."""
    return [attempt(f, *values) for values in zip(*columns, strict=True)]


def on_readable(
    rows: Sequence[Row | BadRow], f: Callable[[list[Row]], Iterable[Result | BadRow]]
) -> list[Result | BadRow]:
    """The results of one call of `f` with all usable rows, one for each; every BadRow stays in its place."""
    results = iter(f(readable_rows(rows)))
    return [row if isinstance(row, BadRow) else next(results) for row in rows]


def readable_rows(rows: Iterable[Row | BadRow]) -> list[Row]:
    """The rows without the BadRows among them."""
    return [row for row in rows if not isinstance(row, BadRow)]
