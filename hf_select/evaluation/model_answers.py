"""Several models' answers to the same prompts, from one dataset."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from datasets import Dataset

from hf_select.data import columns
from hf_select.data.bad_rows import BadRow
from hf_select.data.rows import conversations_of
from hf_select.data.text import words


@dataclass
class Answers:
    """Several models' last replies to the same prompts.

    Args:
        dataset: one answer per row, in any layout, with a column that names the model. Prompts are identified by the
            columns `conversation` and `turn` if present, otherwise by their text (the n-th answer of a model to a text
            is matched with the n-th of another).
        model_column: name of that column.
    Raises: ValueError if the column is missing, if there are fewer than two models, or if no prompt was answered by
        all of them.
    """

    dataset: Dataset
    model_column: str = "model"

    def __post_init__(self) -> None:
        if self.model_column not in self.dataset.column_names:
            raise columns.missing_column(self.model_column, self.dataset.column_names, "Name it in model_column.")
        self.rows: dict[str, dict[str, int]] = defaultdict(dict)  # model -> prompt -> row of the dataset
        self.texts: dict[int, str] = {}  # row -> the reply
        self.prompt_texts: dict[int, str] = {}  # row -> the messages before the reply
        self.unreadable = 0
        self._read_rows()
        if len(self.rows) < 2:
            raise ValueError(f'"{self.model_column}" names {len(self.rows)} models; a comparison needs at least two.')
        common = set.intersection(*(set(rows) for rows in self.rows.values()))
        first = next(iter(self.rows.values()))
        self.prompts = [prompt for prompt in first if prompt in common]
        if not self.prompts:
            raise ValueError("no prompt was answered by all models; give them the same prompts.")

    def _read_rows(self) -> None:
        models = self.dataset[self.model_column]
        names = self._prompt_names()
        counts: Counter[tuple[str, str]] = Counter()
        for row, parsed in enumerate(conversations_of(self.dataset)):
            if isinstance(parsed, BadRow) or not parsed.messages or parsed.messages[-1]["role"] != "assistant":
                self.unreadable += 1
                continue
            text = "\n\n".join(message["content"] for message in parsed.messages[:-1])
            name = text if names is None else names[row]
            counts[models[row], name] += 1
            self.rows[models[row]][f"{name}#{counts[models[row], name]}"] = row
            self.texts[row] = parsed.messages[-1]["content"]
            self.prompt_texts[row] = text

    def _prompt_names(self) -> list[str] | None:
        present = [name for name in ("conversation", "turn") if name in self.dataset.column_names]
        if "conversation" not in present:
            return None
        return ["/".join(map(str, values)) for values in zip(*(self.dataset[name] for name in present), strict=True)]

    @property
    def models(self) -> list[str]:
        """Names of the models."""
        return list(self.rows)

    def of(self, model: str) -> list[str]:
        """Return the model's answers, in the order of `prompts`."""
        return [self.texts[self.rows[model][prompt]] for prompt in self.prompts]

    def column(self, model: str, name: str) -> list[Any]:
        """Return the values of a column for the model's answers, in the order of `prompts`."""
        values = np.array(self.dataset[name], dtype=object)
        return values[[self.rows[model][prompt] for prompt in self.prompts]].tolist()

    @cached_property
    def words(self) -> dict[str, list[list[str]]]:
        """Lower-case words of each answer, by model."""
        return {model: [words(text) for text in self.of(model)] for model in self.models}
