"""Remove rows that contain text of an evaluation set, so that its score measures learning and not recall.

A row is removed if it shares a run of n words with an item, as GPT-3's authors searched their training data (Brown et
al. 2020, arXiv:2005.14165, appendix C). They used 13 words, and never fewer than 8, below which matches are chance.

Left out: the authors cut a window out of long documents and kept the rest, and ignored runs that more than ten
documents have. Rows of instruction data are short, so the whole row is removed; `removed_` shows the shared words, by
which a reader can tell a common phrase from a leak. Added: an item too short for a run is compared whole, since a
short question leaks as well as a long one. In scripts without spaces a Chinese character counts as a word, and so do
two letters of Thai, Lao, Khmer or Burmese: 13 of either are about eight English words.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar, Literal

from hf_select.data.text import half_words, words, words_and_symbols
from hf_select.selection.filter import Filter, Removal, compared_texts, require_texts


if TYPE_CHECKING:
    from datasets import Dataset


_WORDS_SHOWN = 8  # in a reason, of the shared ones


def runs(text: str, half: int) -> Iterator[str]:
    """Each run of `half` half words (`data.text.half_words`), in the order of the text; none if that is shorter."""
    tokens = words(text)
    before = [0, *accumulate(map(half_words, tokens))]
    for i in range(len(tokens)):
        end = bisect_left(before, before[i] + half)
        if end > len(tokens):
            return
        yield " ".join(tokens[i:end])


@dataclass
class Decontaminate(Filter):
    """Leaves out the rows that share a run of words with an evaluation set; a filter, so it needs no budget.

    `fit({"gsm8k": dataset, ...})` learns the evaluation sets. `removed_` has, for each row that is left out, the first
    item that it shares words with, or why the row cannot be read.

    Args:
        n: words of a run.
        of: part of rows and evaluation items that is compared: all, prompt or response.
        min_words: an item of fewer than n words, but at least this many, counts as one run. A shorter one would match
            by chance, so it is compared whole: a row is removed if it has the same text up to letter case and
            sentence punctuation, or (with of = all) the same prompt.
    Raises: ValueError before `fit`, if an evaluation set has no item with text, or if no row can be read.
    Reference: Brown et al. 2020, arXiv:2005.14165, appendix C.
    """

    n: int = 13
    of: Literal["all", "prompt", "response"] = "all"
    min_words: int = 8

    needs_fit: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.min_words <= self.n:
            raise ValueError(f"min_words is {self.min_words} and n is {self.n}; 1 <= min_words <= n is needed.")
        self.index_: dict[str, tuple[str, int]] = {}  # run -> the first item that has it
        self.whole_: dict[str, tuple[str, int]] = {}  # a short item, or its prompt -> the first item
        self.lengths_: list[int] = []  # of the runs, in half words, the longest first
        self.sets_: dict[str, dict[str, int]] = {}  # set -> items, those compared whole, those without text

    def fit(self, sets: "Mapping[str, Dataset]") -> "Decontaminate":
        """Learn the evaluation sets by name; sets that were learned before are forgotten."""
        if not sets:
            raise ValueError('no evaluation set was given; give at least one: fit({"gsm8k": dataset}).')
        self.index_, self.whole_, self.sets_, self.removed_ = {}, {}, {}, {}
        lengths = set()
        for name, dataset in sets.items():
            if len(dataset) == 0:
                raise ValueError(f'evaluation set "{name}" is empty; leave it out, or give one with rows.')
            texts, unreadable = require_texts(dataset, self.of)
            short, prompts = 0, self._prompts(dataset)
            for item, text in enumerate(texts):
                if item in unreadable or not text.strip():
                    unreadable.setdefault(item, "the item has no text")
                    continue
                length = min(2 * self.n, sum(map(half_words, words(text))))
                if length < 2 * self.min_words:
                    short += 1
                    for whole in filter(None, (text, prompts[item])):
                        self.whole_.setdefault(_normalised(whole), (name, item))
                    continue
                lengths.add(length)
                for run in runs(text, length):
                    self.index_.setdefault(run, (name, item))
            if len(unreadable) == len(texts):
                raise ValueError(
                    f'evaluation set "{name}" has no item with text; item 0: {unreadable[0]}. Compare another part '
                    "with of, or give rows with text."
                )
            self.sets_[name] = {"items": len(texts), "too_short": short, "unreadable": len(unreadable)}
        self.lengths_ = sorted(lengths, reverse=True)
        return self

    def remove(self, dataset: "Dataset") -> Removal:
        """The rows that share a run with an evaluation item."""
        if not self.sets_:
            raise ValueError('Decontaminate knows no evaluation set yet; call fit({"gsm8k": dataset}) first.')
        texts, unreadable = require_texts(dataset, self.of)
        reasons, per_set = dict(unreadable), Counter(dict.fromkeys(self.sets_, 0))
        prompts = self._prompts(dataset) if self.whole_ else [""] * len(texts)
        for row, text in enumerate(texts):
            match = None if row in unreadable else self._match(text, prompts[row])
            if match is not None:
                reasons[row], name = match
                per_set[name] += 1
        return Removal(
            reasons,
            lambda row: f"shares no run of {self.n} words with {', '.join(self.sets_)}",
            {"sets": self.sets_, "removed": dict(per_set), "unreadable": len(unreadable)},
        )

    def _prompts(self, dataset: "Dataset") -> list[str]:
        """The prompts of rows that are compared whole, as empty texts where they are not compared."""
        return compared_texts(dataset, "prompt")[0] if self.of == "all" else [""] * len(dataset)

    def _match(self, text: str, prompt: str) -> tuple[str, str] | None:
        """What the row shares with an item, and the item's set."""
        shared = next((run for length in self.lengths_ for run in runs(text, length) if run in self.index_), None)
        if shared is not None:
            name, item = self.index_[shared]
            shown = shared.split()
            more = " ..." if len(shown) > _WORDS_SHOWN else ""
            return f'shares {len(shown)} words with {name} item {item}: "{" ".join(shown[:_WORDS_SHOWN])}{more}"', name
        for whole in map(_normalised, filter(None, (text, prompt))) if self.whole_ else ():
            if whole in self.whole_:
                name, item = self.whole_[whole]
                return f'repeats {name} item {item}: "{whole}"', name
        return None


def _normalised(text: str) -> str:
    return " ".join(words_and_symbols(text))
