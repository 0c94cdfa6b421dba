"""Rows that hold text of an evaluation set are taken out, so that a score measures learning and not recall.

A row goes if it shares a run of n words with an item, as GPT-3's authors searched their training data (Brown et al.
2020, arXiv:2005.14165, appendix C). They used 13 words, and never fewer than 8, below which collisions are chance.
Left out: they cut a window out of long documents and kept the rest, and passed over runs that more than ten documents
have; rows of instruction data are short, so the whole row goes, and `removed_` shows the shared words, by which a
common phrase can be told from a leak.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from hf_select import columns
from hf_select.choices import check_choices
from hf_select.selection.dedup import keep, read_texts
from hf_select.selection.selection import Selection
from hf_select.words import words


# Shared words that a reason shows.
_SHOWN = 8


def runs(text: str, length: int) -> Iterator[str]:
    """Each run of `length` words, in the order of the text; none if it is shorter."""
    tokens = words(text)
    for i in range(len(tokens) - length + 1):
        yield " ".join(tokens[i : i + length])


@dataclass
class Decontaminate:
    """Leaves out the rows that share a run of words with an evaluation set; a filter, so it needs no budget.

    `fit({"gsm8k": dataset, ...})` learns the evaluation sets. `removed_` says of each row that is left out which item
    it shares words with, the first one that is met in the row, or why the row cannot be read.

    Args:
        n: words that a run has.
        of: which part is compared, of the rows and of the evaluation items alike: all, prompt or response.
        min_words: an item of fewer than n words, but at least so many, counts as one run; a shorter one is passed
            over, since a few words are found anywhere.
        tokens_column: column that a budget in tokens is spent in.
    Raises: ValueError before `fit`, if an evaluation set has no item that is long enough, or if no row can be read.
    Reference: Brown et al. 2020, arXiv:2005.14165, appendix C.
    """

    n: int = 13
    of: Literal["all", "prompt", "response"] = "all"
    min_words: int = 8
    tokens_column: str = columns.NUM_TOKENS

    needs_budget: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_choices(self)
        if not 1 <= self.min_words <= self.n:
            raise ValueError(f"min_words is {self.min_words} and n is {self.n}; 1 <= min_words <= n is needed.")
        self.index_: dict[str, tuple[str, int]] = {}  # run -> the first item that has it
        self.sets_: dict[str, dict[str, int]] = {}  # set -> its items, and how many of them could not be used
        self.removed_: dict[int, str] = {}

    def fit(self, sets: Mapping[str, Any]) -> "Decontaminate":
        """Learn the evaluation sets, each a dataset under its name; what was learned before is forgotten."""
        if not sets:
            raise ValueError('no evaluation set was given; give at least one: fit({"gsm8k": dataset}).')
        self.index_, self.sets_, self.removed_ = {}, {}, {}
        for name, dataset in sets.items():
            if len(dataset) == 0:
                raise ValueError(f'evaluation set "{name}" is empty; leave it out, or give one with rows.')
            texts, unreadable = read_texts(dataset, self.of)
            short = 0
            for item, text in enumerate(texts):
                length = min(self.n, len(words(text)))
                if length < self.min_words:
                    short += item not in unreadable
                    continue
                for run in runs(text, length):
                    self.index_.setdefault(run, (name, item))
            if short + len(unreadable) == len(texts):
                raise ValueError(
                    f'evaluation set "{name}" has no item of {self.min_words} words ({short} shorter, '
                    f"{len(unreadable)} unreadable); lower min_words, or compare another part with of."
                )
            self.sets_[name] = {"items": len(texts), "too_short": short, "unreadable": len(unreadable)}
        return self

    def __call__(
        self, dataset: Any, k: int | None = None, fraction: float | None = None, tokens: int | None = None
    ) -> Selection:
        """Select the rows that share no run with any item; a budget, if there is one, takes the first of them."""
        if not self.sets_:
            raise ValueError('Decontaminate knows no evaluation set yet; call fit({"gsm8k": dataset}) first.')
        lengths = sorted({run.count(" ") + 1 for run in self.index_}, reverse=True)
        texts, unreadable = read_texts(dataset, self.of)
        removed, per_set = dict(unreadable), Counter(dict.fromkeys(self.sets_, 0))
        for row, text in enumerate(texts):
            shared = next((run for length in lengths for run in runs(text, length) if run in self.index_), None)
            if shared is None:
                continue
            name, item = self.index_[shared]
            per_set[name] += 1
            shown = shared.split()
            more = " ..." if len(shown) > _SHOWN else ""
            removed[row] = f'shares {len(shown)} words with {name} item {item}: "{" ".join(shown[:_SHOWN])}{more}"'
        self.removed_ = dict(sorted(removed.items()))
        return keep(
            dataset,
            self,
            {"k": k, "fraction": fraction, "tokens": tokens},
            lambda row: f"shares no run of {self.n} words with {', '.join(self.sets_)}",
            {"sets": self.sets_, "removed": dict(per_set), "unreadable": len(unreadable)},
        )
