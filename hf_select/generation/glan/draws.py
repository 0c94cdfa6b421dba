"""The sessions and key concepts of a syllabus that each question is about (GLAN, arXiv:2402.13064, section 2.4).

A question covers one session and one to five of its concepts, or two sessions and two to five concepts with at least
one of each. The paper gives neither the distribution of sizes nor the share of two sessions. Here the size is uniform,
and so is the combination of that size.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb


MOST_CONCEPTS = 5
# Attempts to draw a new combination before a repeated one is accepted: the remaining ones are too rare.
_MAX_ATTEMPTS = 200


@dataclass(frozen=True)
class Draw:
    """Session numbers, in the order of the course, and concepts as (session, number in the session)."""

    sessions: tuple[int, ...]
    concepts: tuple[tuple[int, int], ...]


def num_combinations(concepts: int, others: int | None = None) -> int:
    """Number of combinations of concepts of one session, or of two with at least one concept of each.

    One session of m: sum over i = 1..5 of C(m, i). Two of m1 and m2: sum over i = 2..5 of
    C(m1 + m2, i) - C(m1, i) - C(m2, i).
    """
    if others is None:
        return sum(comb(concepts, i) for i in range(1, MOST_CONCEPTS + 1))
    sizes = range(2, MOST_CONCEPTS + 1)
    return sum(comb(concepts + others, i) - comb(concepts, i) - comb(others, i) for i in sizes)


def num_questions(concepts: Sequence[int]) -> tuple[int, int]:
    """Number of combinations of one session and of two, from the number of concepts of each session."""
    pairs = ((concepts[a], concepts[b]) for a in range(len(concepts)) for b in range(a + 1, len(concepts)))
    return sum(num_combinations(m) for m in concepts), sum(num_combinations(*pair) for pair in pairs)


def draws(concepts: Sequence[int], count: int, two_session_share: float, seed: int) -> list[Draw]:
    """`count` draws from a syllabus, without repetition until all combinations are used, then from the beginning.

    The first draws are the same whatever the count, in any version of Python: only `random.random()` is used, whose
    sequence is guaranteed not to change.

    Args:
        concepts: number of concepts of each session.
    """
    rng = random.Random(seed)
    one, two = num_questions(concepts)
    available = {1: one if two_session_share < 1 or not two else 0, 2: two if two_session_share > 0 else 0}
    used: dict[int, set[Draw]] = {1: set(), 2: set()}
    result = []
    for _ in range(count):
        if all(len(used[n]) == available[n] for n in used):
            used = {1: set(), 2: set()}
        # The number of sessions is drawn once per question, so that its share holds when one kind is nearly used up.
        n = 2 if two and rng.random() < two_session_share else 1
        if len(used[n]) == available[n]:
            n = 3 - n
        drawn = _draw(concepts, n, rng)
        for _ in range(_MAX_ATTEMPTS):
            if drawn not in used[n]:
                break
            drawn = _draw(concepts, n, rng)
        used[n].add(drawn)
        result.append(drawn)
    return result


def _draw(concepts: Sequence[int], num_sessions: int, rng: random.Random) -> Draw:
    sessions = tuple(_subset(len(concepts), num_sessions, rng))
    candidates = [(session, number) for session in sessions for number in range(concepts[session])]
    most = min(MOST_CONCEPTS, len(candidates))
    size = num_sessions + int(rng.random() * (most - num_sessions + 1))
    while True:
        chosen = tuple(candidates[i] for i in _subset(len(candidates), size, rng))
        if {session for session, _ in chosen} == set(sessions):  # at least one concept of each
            return Draw(sessions, chosen)


def _subset(n: int, k: int, rng: random.Random) -> list[int]:
    """A uniform subset of k of the numbers below n, sorted."""
    numbers = list(range(n))
    for i in range(k):
        j = i + int(rng.random() * (n - i))
        numbers[i], numbers[j] = numbers[j], numbers[i]
    return sorted(numbers[:k])
