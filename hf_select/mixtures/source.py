"""One source of a mixture: the rows that may be taken, how they are read, and the order in which they are drawn."""

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from datasets import Dataset, IterableDataset

from hf_select.data import columns
from hf_select.data.bad_rows import BadRow
from hf_select.data.conversation import READ_COLUMNS, Conversation, conversations, layout
from hf_select.data.loading import read_dataset
from hf_select.mixtures.draws import permutation
from hf_select.scoring.scorer import Scorer
from hf_select.selection.selection import Selection
from hf_select.selection.selector import Selector
from hf_select.validation import check_choices


BATCH = 1000  # rows that are read together
_QUESTION_COLUMNS = ("choices", "category", "subject", "question", "answer")  # the first three are optional


class SourceRow(NamedTuple):
    """A row of a source: its number there, its conversation, the columns it was read from (none of a question), and
    its tokens where they are known."""

    number: int
    conversation: Conversation | BadRow
    columns: Mapping[str, Any]
    num_tokens: int | None = None


@dataclass
class Source:
    """One source of a mixture.

    One of rows, tokens and weight says how many rows are taken; without any of them all are.

    Args:
        data: a Hub id, a JSON, JSONL, CSV, TSV or Parquet file, a saved dataset, a folder of hf-select score, or a
            dataset.
        rows: rows to take.
        tokens: tokens to take: rows are taken as long as their sum stays within.
        weight: share of the mixture's rows or tokens, in proportion to the other weights.
        split: split of a saved or Hub dataset.
        config: configuration of a Hub dataset that has several.
        revision: branch, tag or commit on the Hub.
        rename: columns to rename first, e.g. question=prompt answer=completion.
        where: rows that may be taken: column -> its value, or a list of values; or a function of a row.
        reads: conversation (any known layout); question: columns question, answer and optionally choices, as a
            question and its answer; quiz: question, answer, category, as a clue and "What is ...".
        take: random, or first: in the order of the file.
        shortfall: what to do if there are fewer rows than requested: error; or repeat: all of them are taken again and
            again, so that each comes equally often or once more than another.
        scorer: a scorer that is run over the rows before they are selected.
        selector: a selector, whose budget is the rows or tokens; or a Selection, whose first rows are taken.
    Raises: ValueError if the settings contradict each other, or do not fit the data.
    """

    data: Any
    rows: int | None = None
    tokens: int | None = None
    weight: float | None = None
    split: str = "train"
    config: str | None = None
    revision: str | None = None
    rename: dict[str, str] | None = None
    where: Mapping[str, Any] | Callable[[dict[str, Any]], Any] | None = None
    reads: Literal["conversation", "question", "quiz"] = "conversation"
    take: Literal["random", "first"] = "random"
    shortfall: Literal["error", "repeat"] = "error"
    scorer: Scorer | None = None
    selector: Selector | Selection | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        given = [name for name in ("rows", "tokens", "weight") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"a source takes rows, tokens or a weight; given: {', '.join(given)}.")
        for name in ("rows", "tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} of a source is {getattr(self, name)}; it must be at least 1.")
        if self.weight is not None and not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"weight of a source is {self.weight}; it must be a number of at least 0.")
        if self.where is not None and not isinstance(self.where, Mapping) and not callable(self.where):
            raise ValueError(f"where is {self.where!r}; it is a mapping of columns to values, or a function of a row.")
        if self.selector is not None and self.shortfall == "repeat":
            raise ValueError("a selection is not repeated; leave out shortfall, or select before mixing.")
        if self.scorer is not None and self.selector is None:
            raise ValueError("the scores of a source are for its selector; name one.")

    def open(self, stream: bool) -> Dataset | IterableDataset:
        """The rows, with their columns renamed.

        Raises: ValueError if the data is missing or empty, or has not the named columns.
        """
        dataset = self.data
        if isinstance(dataset, str):
            dataset = read_dataset(
                dataset, self.split, self.rename, stream=stream, revision=self.revision, config=self.config
            )
        elif not isinstance(dataset, (Dataset, IterableDataset)):
            raise ValueError(f"data is a {type(dataset).__name__}; give a Hub id, a file or a dataset.")
        else:
            dataset = dataset.rename_columns(self.rename or {})
        if isinstance(dataset, IterableDataset) and not stream:
            raise ValueError("the source is a stream; mix streams with stream=True.")
        if stream and isinstance(dataset, Dataset):
            dataset = dataset.to_iterable_dataset()
        if isinstance(dataset, Dataset) and len(dataset) == 0:
            raise ValueError("the source is empty.")
        names = column_names(dataset)
        for name in self.where if isinstance(self.where, Mapping) else ():
            if name not in names:
                raise columns.missing_column(name, names, "It is named in where.")
        for name in ("question", "answer") if self.reads != "conversation" else ():
            if name not in names:
                raise columns.missing_column(name, names, "Rename yours: rename={...: ...} of the source.")
        if self.reads == "conversation":
            try:
                layout(names)
            except ValueError as error:
                if {"question", "answer"} <= set(names):
                    raise ValueError(f"it has columns {names}; read them with reads=question.") from error
                raise
        return dataset

    def may_be_taken(self, rows: Mapping[str, list[Any]]) -> list[bool]:
        """Which rows of a batch satisfy `where`."""
        size = len(next(iter(rows.values())))
        if self.where is None:
            return [True] * size
        if callable(self.where):
            return [bool(self.where({name: values[i] for name, values in rows.items()})) for i in range(size)]
        wanted = {name: value if isinstance(value, list) else [value] for name, value in self.where.items()}
        return [all(rows[name][i] in values for name, values in wanted.items()) for i in range(size)]

    def read(self, rows: Mapping[str, list[Any]]) -> list[Conversation | BadRow]:
        """The conversations of a batch."""
        if self.reads == "conversation":
            return conversations({name: values for name, values in rows.items() if name in READ_COLUMNS})
        size = len(rows["question"])
        return [self._question({name: values[i] for name, values in rows.items()}) for i in range(size)]

    def rows_of(self, numbers: np.ndarray, batch: Mapping[str, list[Any]]) -> Iterator[SourceRow]:
        """The rows of a batch; `numbers` are their row numbers in the source."""
        tokens = batch.get(columns.NUM_TOKENS) or [None] * len(numbers)
        kept = [name for name in batch if name in READ_COLUMNS] if self.reads == "conversation" else []
        for i, (number, row) in enumerate(zip(numbers.tolist(), self.read(batch), strict=True)):
            yield SourceRow(number, row, {name: batch[name][i] for name in kept}, tokens[i])

    def columns_read(self, names: list[str], where: bool) -> list[str]:
        """The columns that reading a row needs and, with `where`, those that its filter needs."""
        wanted = {*(READ_COLUMNS if self.reads == "conversation" else _QUESTION_COLUMNS), columns.NUM_TOKENS}
        if where and self.where is not None:
            if callable(self.where):
                return names
            wanted |= {*self.where}
        return [name for name in names if name in wanted]

    def candidates(self, dataset: Dataset, rng: random.Random, target: dict[str, int]) -> np.ndarray:
        """Row numbers in the order in which they are taken.

        Args:
            target: the budget of a selector: {"rows": n}, {"tokens": n} or {}.
        """
        allowed = np.arange(len(dataset)) if self.where is None else self._allowed(dataset)
        if isinstance(self.selector, Selection):
            self.selector.check(self._as_selected(dataset, self.selector))
            return self.selector.indices[np.isin(self.selector.indices, allowed)]
        if self.selector is not None:
            budget = target if self.selector.needs_budget else {}
            if self.selector.needs_budget and not budget:
                raise ValueError("a selector needs a budget: give the source rows, tokens or a weight.")
            rows = dataset if self.where is None else dataset.select(allowed)
            return allowed[self.selector(rows, k=budget.get("rows"), tokens=budget.get("tokens")).indices]
        return allowed if self.take == "first" else allowed[permutation(len(allowed), rng)]

    def _as_selected(self, dataset: Dataset, selection: Selection) -> Dataset:
        """The rows under the column names that the selection knows, which may be those before `rename`."""
        if selection.hashes.keys() & set(dataset.column_names):
            return dataset
        before = {new: old for old, new in (self.rename or {}).items() if new in dataset.column_names}
        return dataset.rename_columns(before)

    def _allowed(self, dataset: Dataset) -> np.ndarray:
        named = list(self.where) if isinstance(self.where, Mapping) else dataset.column_names
        rows, allowed = dataset.select_columns(named), []
        for start in range(0, len(dataset), BATCH):
            allowed += self.may_be_taken(rows[start : start + BATCH])
        return np.flatnonzero(allowed)

    def _question(self, row: dict[str, Any]) -> Conversation | BadRow:
        question, answer, choices = row["question"], row["answer"], row.get("choices")
        if not isinstance(question, str) or not question.strip():
            return BadRow("question is empty or not a text")
        text = _answer(answer, choices)
        if isinstance(text, BadRow):
            return text
        if self.reads == "quiz":
            category = row.get("category") or row.get("subject")
            heading = f"Category: {category}\n" if category else ""
            prompt = f"Quiz show. Answer the clue in as few words as you can.\n{heading}Clue: {question}"
            return _exchange(prompt, f"What is {text}")
        if not choices:
            return _exchange(question, text)
        listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=False))
        return _exchange(f"{question}\n{listed}", f"{_LETTERS[choices.index(text)]}. {text}")


_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _answer(answer: Any, choices: list[str] | None) -> str | BadRow:
    """The text of an answer that is given as text, or as the number or letter of a choice."""
    if not choices:
        return str(answer) if answer not in (None, "") else BadRow("answer is empty")
    if answer in choices:
        return str(answer)
    number = _LETTERS.find(answer) if isinstance(answer, str) and len(answer) == 1 else answer
    if not isinstance(number, int) or not 0 <= number < len(choices):
        return BadRow(f"answer {answer!r} is none of the {len(choices)} choices")
    return choices[number]


def _exchange(prompt: str, response: str) -> Conversation:
    return Conversation([{"role": "user", "content": prompt}, {"role": "assistant", "content": response}])


def column_names(dataset: Dataset | IterableDataset) -> list[str]:
    """The columns of a dataset; of a stream that does not declare them those of its first row.

    Raises: ValueError if there is no row.
    """
    if dataset.column_names:
        return dataset.column_names
    first = next(iter(dataset), None)
    if first is None:
        raise ValueError("the source is empty.")
    return list(first)
