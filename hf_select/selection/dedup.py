"""Deduplication: of rows that repeat each other, exactly or nearly, one is kept.

Exact copies have the same text after Unicode normalisation and up to white space: letter case and symbols count, since
"C++" is not "C" and "Polish" is not "polish". Near copies are compared in lower case without sentence punctuation, but
with the symbols that carry meaning (data/text.py): the Jaccard similarity of their sets of 5-grams of words and
symbols reaches a threshold, as Lee et al. 2022 (arXiv:2107.06499) deduplicate web text. Texts of a single 5-gram or
less are compared whole. MinHash (Broder 1997) only proposes pairs; each is then compared exactly. Exact copies are
removed first, so a text that occurs a million times is sketched once.
"""

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from hf_select.data import columns
from hf_select.data.text import exact, shingles
from hf_select.extras import require
from hf_select.paper import Paper
from hf_select.selection.filter import Filter, Removal, require_texts


if TYPE_CHECKING:
    from datasets import Dataset


# Share of the pairs exactly at the threshold that the sketch may miss; of more similar ones it misses far fewer.
_MISSED = 1e-4


def first_of_each(texts: list[str], order: np.ndarray) -> dict[int, int]:
    """For each row of `order` the row, first in that order, that has the same text (itself, if it is the first)."""
    first: dict[str, int] = {}
    return {row: first.setdefault(exact(texts[row]), row) for row in order.tolist()}


def near_copies(
    texts: list[str], order: np.ndarray, threshold: float, num_perm: int = 128, seed: int = 1
) -> dict[int, tuple[int, float]]:
    """For each row of `order` that nearly repeats a kept one: that row, and their Jaccard similarity.

    Rows are visited in `order`, and each is kept unless it nearly repeats a row that was kept before; the result names
    the first of these. So no row is removed because of a row that is removed itself. A text of a single run is a near
    copy only of texts of the same run.
    """
    rows, buckets = _buckets(texts, order, threshold, num_perm, seed)
    kept: dict[tuple[int, int], list[int]] = defaultdict(list)
    numbers: dict[tuple[str, ...], int] = {}  # of the runs, since sets of integers are compared ten times as fast
    runs: dict[int, set[int]] = {}  # only of rows that something was proposed for
    copies = {}
    for place, row in enumerate(rows):
        proposed = sorted({other for bucket in buckets[place] for other in kept[bucket]})
        for candidate in proposed:
            for i in (place, candidate):
                if i not in runs:
                    runs[i] = {numbers.setdefault(run, len(numbers)) for run in shingles(texts[rows[i]])}
            sizes, common = (len(runs[place]), len(runs[candidate])), len(runs[place] & runs[candidate])
            # A text of a single run is compared whole: it is not a near copy of a longer one that contains it.
            similarity = common / (sum(sizes) - common) if min(sizes) > 1 or sizes == (1, 1) else 0.0
            if similarity >= threshold:
                copies[row] = (rows[candidate], similarity)
                del runs[place]
                break
        else:
            for bucket in buckets[place]:
                kept[bucket].append(place)
    return copies


def _buckets(
    texts: list[str], order: np.ndarray, threshold: float, num_perm: int, seed: int
) -> tuple[list[int], dict[int, list[tuple[int, int]]]]:
    """The rows of `order` that have a sketch, and for each place in that list the LSH buckets it shares with others.

    Texts of Jaccard similarity s agree in a band of r hashes with probability s ** r, so r is the longest at which
    pairs at the threshold are hardly ever missed. datasketch computes the sketches; its MinHashLSH would take 9 kB a
    row for the tables, although most buckets have a single row.
    """
    require("near-duplicate search", "datasketch")
    from datasketch import MinHash

    rows: list[int] = []

    def hashes() -> Iterator[np.ndarray]:
        for row in order.tolist():
            runs = shingles(texts[row])
            if runs:
                rows.append(row)
                yield np.fromiter((zlib.crc32(" ".join(run).encode()) for run in runs), np.uint32, len(runs))

    # hashfunc=int: the tokens are hashes already. Python's hash() would differ between processes.
    generated = MinHash.generator(hashes(), num_perm=num_perm, seed=seed, hashfunc=int)
    sketches = [sketch.hashvalues for sketch in generated]
    buckets: dict[int, list[tuple[int, int]]] = defaultdict(list)
    if not rows:
        return rows, buckets
    signatures = np.stack(sketches)  # (n, num_perm)
    del sketches
    length = max((r for r in range(1, num_perm + 1) if _missed(threshold, r, num_perm) <= _MISSED), default=1)
    for start in range(0, num_perm - length + 1, length):
        band = np.ascontiguousarray(signatures[:, start : start + length])
        keys = band.view(np.dtype((np.void, band.dtype.itemsize * length))).ravel()
        bucket, sizes = np.unique(keys, return_inverse=True, return_counts=True)[1:]
        for place in np.flatnonzero(sizes[bucket] > 1).tolist():
            buckets[place].append((start, int(bucket[place])))
    return rows, buckets


def _missed(similarity: float, length: int, num_perm: int) -> float:
    """Probability that two texts agree in none of the bands of `length` hashes."""
    return (1 - similarity**length) ** (num_perm // length)


@dataclass
class Dedup(Filter):
    """Keeps one of the rows that repeat each other; a filter, so it needs no budget.

    Rows are visited in file order, or best first, and a row is kept unless it repeats one kept before, exactly or
    nearly. The selection is in file order. `removed_` has, for each row that is left out, the row that it repeats, or
    why it cannot be read. Names, reasoning, content and tool calls are compared, the list of available tools is not.

    Args:
        threshold: least Jaccard similarity of near copies, over 5-grams of words and symbols, in (0, 1]; 1 or none:
            only exact copies.
        of: part of a row that is compared: all, prompt or response.
        keep_best_by: score column; of rows that repeat each other the one with the highest score is kept, in place of
            the first.
        num_perm: hashes of a sketch; more cost time and propose fewer pairs that are not copies.
        seed: of the hashes.
    Raises: ValueError if the column is missing or no row can be read; ImportError without datasketch.
    Reference: Lee et al. 2022, arXiv:2107.06499.
    """

    threshold: float | None = 0.8
    of: Literal["all", "prompt", "response"] = "all"
    keep_best_by: str | None = None
    num_perm: int = 128
    seed: int = 1

    paper: ClassVar[Paper | None] = Paper(
        "2107.06499", "Deduplicating Training Data Makes Language Models Better", "Lee, Katherine", 2022
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ValueError(
                f"threshold is {self.threshold}; it must lie in (0, 1], or be none for exact copies only."
            )
        if self.num_perm < 1:
            raise ValueError(f"num_perm is {self.num_perm}; a sketch has at least 1 hash, 128 are usual.")

    def remove(self, dataset: "Dataset") -> Removal:
        """The rows that repeat another one."""
        scores = np.zeros(len(dataset))
        if self.keep_best_by is not None:
            cure = "Name a score column in keep_best_by, or none to keep the first row."
            scores = np.nan_to_num(columns.numeric_column(dataset, self.keep_best_by, cure), nan=-np.inf)
        texts, unreadable = require_texts(dataset, self.of)
        order = np.argsort(-scores, kind="stable")
        order = order[[row not in unreadable for row in order.tolist()]]
        first = first_of_each(texts, order)
        near = {}
        if self.threshold is not None and self.threshold < 1:
            distinct = order[[first[row] == row for row in order.tolist()]]
            near = near_copies(texts, distinct, self.threshold, self.num_perm, self.seed)

        reasons, repeats, exact = dict(unreadable), Counter(), 0
        for row, same in first.items():
            if same in near:  # also of a copy of a row that nearly repeats another
                other, similarity = near[same]
                reasons[row] = f"nearly repeats row {other} (Jaccard {similarity:.2f})"
                repeats[other] += 1
            elif same != row:
                reasons[row] = f"repeats row {same} exactly"
                repeats[same] += 1
                exact += 1
        counts = {
            "removed_exact": exact,
            "removed_near": len(reasons) - len(unreadable) - exact,
            "unreadable": len(unreadable),
        }

        def reason_kept(row: int) -> str:
            if repeats[row] == 1:
                return "kept for 1 row that repeats it"
            return f"kept for {repeats[row]} rows that repeat it" if repeats[row] else "repeats no other row"

        return Removal(reasons, reason_kept, counts)
