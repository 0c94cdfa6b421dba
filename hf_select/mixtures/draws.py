"""Shares, orders and draws of a mixture.

Of `random.Random` only `random()` is used, whose numbers Python promises never to change.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import islice
from typing import TypeVar

import numpy as np


Element = TypeVar("Element")


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Integers that add up to `total`, in proportion to the weights, by largest remainders; ties go to the first.

    Exact: weights count as the fractions that they are, so integers that add up to the total are returned unchanged.
    Raises: ValueError if all weights are 0.
    """
    fractions = [Fraction(weight) for weight in weights]
    if not any(fractions):
        raise ValueError("all weights are 0; give at least one source a weight.")
    exact = [total * fraction / sum(fractions) for fraction in fractions]
    shares = [int(share) for share in exact]
    for i in sorted(range(len(shares)), key=lambda i: shares[i] - exact[i])[: total - sum(shares)]:
        shares[i] += 1
    return shares


def schedule(counts: Mapping[str, int], rng: random.Random) -> Iterator[str]:
    """Each name as often as its count, in random order: every arrangement has the same chance, and no list is made."""
    left = dict(counts)
    for _ in range(sum(counts.values())):
        name = draw_name(left, rng)
        left[name] -= 1
        yield name


def draw_name(left: Mapping[str, int], rng: random.Random) -> str:
    """A name with probability in proportion to its count."""
    place = rng.random() * sum(left.values())
    for name, count in left.items():
        if place < count:
            return name
        place -= count
    return next(name for name in reversed(list(left)) if left[name])  # rounding


def permutation(n: int, rng: random.Random) -> np.ndarray:
    """The integers 0 to n - 1 in random order."""
    return np.argsort(np.fromiter((rng.random() for _ in range(n)), np.float64, n), kind="stable")


def shuffled(items: Iterator[Element], size: int, rng: random.Random) -> Iterator[Element]:
    """A stream shuffled through a buffer of `size` items."""
    buffer: list[Element] = []
    for item in items:
        if len(buffer) < size:
            buffer.append(item)
            continue
        place = int(rng.random() * size)
        yield buffer[place]
        buffer[place] = item
    for place in permutation(len(buffer), rng).tolist():
        yield buffer[place]


def batches(items: Iterable[Element], size: int) -> Iterator[list[Element]]:
    """Lists of `size` items, the last one shorter."""
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch
