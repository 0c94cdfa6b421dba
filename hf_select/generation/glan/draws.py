"""Which sessions and key concepts of a syllabus a question is about (GLAN, arXiv:2402.13064, section 2.4).

A question draws on one session and one to five of its concepts, or on two sessions and two to five concepts with at
least one of each. The paper does not say how sizes are drawn, nor how often two sessions are: here a size is drawn
first, each alike, then one of the combinations of that size, each alike.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb


MOST_CONCEPTS = 5
# Draws in a row that must all be known before one may come again: what is left is too rare to wait for.
_PATIENCE = 200


@dataclass(frozen=True)
class Draw:
    """Sessions by number, in the order of the course, and concepts as (session, number within it)."""

    sessions: tuple[int, ...]
    concepts: tuple[tuple[int, int], ...]


def num_combinations(concepts: int, others: int | None = None) -> int:
    """Ways to choose concepts of one session, or of two with at least one of each.

    One session of m: sum over i = 1..5 of C(m, i). Two of m1 and m2: sum over i = 2..5 of
    C(m1 + m2, i) - C(m1, i) - C(m2, i).
    """
    if others is None:
        return sum(comb(concepts, i) for i in range(1, MOST_CONCEPTS + 1))
    sizes = range(2, MOST_CONCEPTS + 1)
    return sum(comb(concepts + others, i) - comb(concepts, i) - comb(others, i) for i in sizes)


def num_questions(concepts: Sequence[int]) -> tuple[int, int]:
    """All combinations of one session and of two that a syllabus offers, given its sessions' numbers of concepts."""
    pairs = ((concepts[a], concepts[b]) for a in range(len(concepts)) for b in range(a + 1, len(concepts)))
    return sum(num_combinations(m) for m in concepts), sum(num_combinations(*pair) for pair in pairs)


def draws(concepts: Sequence[int], count: int, two_session_share: float, seed: int) -> list[Draw]:
    """`count` draws from a syllabus with so many concepts in each session; all different until it is exhausted, and
    then all over again.

    The first draws stay the same when more are asked for, under any version of Python: of `random` nothing else than
    random(), which is promised not to change, is used.
    """
    rng = random.Random(seed)
    one, two = num_questions(concepts)
    offered = {1: one if two_session_share < 1 or not two else 0, 2: two if two_session_share > 0 else 0}
    known: dict[int, set[Draw]] = {1: set(), 2: set()}
    found = []
    for _ in range(count):
        if all(len(known[n]) == offered[n] for n in known):
            known = {1: set(), 2: set()}
        # How many sessions is drawn once, so that their share is kept where few combinations of one are left.
        n = 2 if two and rng.random() < two_session_share else 1
        if len(known[n]) == offered[n]:
            n = 3 - n
        drawn = _draw(concepts, n, rng)
        for _ in range(_PATIENCE):
            if drawn not in known[n]:
                break
            drawn = _draw(concepts, n, rng)
        known[n].add(drawn)
        found.append(drawn)
    return found


def _draw(concepts: Sequence[int], num_sessions: int, rng: random.Random) -> Draw:
    sessions = tuple(_some(len(concepts), num_sessions, rng))
    every = [(session, number) for session in sessions for number in range(concepts[session])]
    most = min(MOST_CONCEPTS, len(every))
    size = num_sessions + int(rng.random() * (most - num_sessions + 1))
    while True:
        chosen = tuple(every[i] for i in _some(len(every), size, rng))
        if {session for session, _ in chosen} == set(sessions):  # a concept of each
            return Draw(sessions, chosen)


def _some(n: int, k: int, rng: random.Random) -> list[int]:
    """k of n numbers, each set of them alike, in order."""
    numbers = list(range(n))
    for i in range(k):
        j = i + int(rng.random() * (n - i))
        numbers[i], numbers[j] = numbers[j], numbers[i]
    return sorted(numbers[:k])
