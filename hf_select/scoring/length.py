"""Length of a row: a strong baseline, and the column that budgets in tokens are spent in.

Zhao et al. 2024 (arXiv:2402.04833) train on the longest responses; the RDS+ study (arXiv:2503.01807) runs the longest
rows as a baseline and finds it strong in a pool of 200,000 rows and useless in one of 5.8 million.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

from datasets import List, Value

from hf_select.data import columns
from hf_select.data.bad_rows import BadRow, map_rows
from hf_select.data.chat_template import template_text
from hf_select.data.conversation import Conversation
from hf_select.data.encoding import Encoded, encode_all
from hf_select.data.text import characters_of
from hf_select.models.loading import tokenizer_of
from hf_select.models.sources import TOKENIZER_FILES, ResolvedSource, find
from hf_select.models.template_day import DatedTokenizer
from hf_select.paper import Paper
from hf_select.scoring.scorer import Answer, Scorer


@dataclass
class Length(Scorer):
    """Length of a row, in characters or, with a tokenizer, in tokens.

    score_length = characters (or tokens) of the part of the row that `of` names.

    Args:
        tokenizer: Hub id or path; lengths are then tokens under the model's chat template, and `num_tokens` is added.
        of: part that is measured: all, prompt or response; turns counts the turns.
        chat_template: file of a Jinja template, or its text, in place of the tokenizer's own.
    Reads: the conversation.   Adds: score_length; num_tokens (tokens of the whole row) with a tokenizer.
    Relations: `TopK(..., tokens=N)` spends its budget in `num_tokens`; `Longest` selects by this score.
    """

    tokenizer: str | None = None
    of: Literal["all", "prompt", "response", "turns"] = "all"
    chat_template: str | None = field(default=None, repr=False)

    name: ClassVar[str] = "length"
    paper: ClassVar[Paper | None] = Paper(
        "2402.04833",
        "Long Is More for Alignment: A Simple but Tough-to-Beat Baseline for Instruction Fine-Tuning",
        "Zhao, Hao",
        2024,
    )
    _day: ClassVar[str | None] = None  # of an instance that was pickled: the day that its template writes

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chat_template is not None:
            if self.tokenizer is None:
                raise ValueError("chat_template writes rows for a tokenizer; give one, or leave it out.")
            self.chat_template = template_text(self.chat_template)

    @property
    def columns_out(self) -> dict[str, Value | List]:
        """Columns that scoring adds, with their `datasets` types."""
        return super().columns_out | ({columns.NUM_TOKENS: Value("int64")} if self.tokenizer else {})

    def identity(self) -> dict[str, object]:
        """Everything that the scores depend on."""
        if self._source is None:
            return super().identity()
        return {**super().identity(), "tokenizer": self._source.identity, "day": self._dated.day}

    def readers(self) -> list[Any]:
        """The models, whose chat templates may write the date."""
        return [self._dated] if self.tokenizer else []

    def _pickled(self) -> dict[str, object]:
        return {**self.settings(), "_source": self._source, "_day": self._dated.day if self.tokenizer else None}

    @cached_property
    def _source(self) -> ResolvedSource | None:
        return find(self.tokenizer, files=TOKENIZER_FILES) if self.tokenizer else None

    @cached_property
    def _dated(self) -> DatedTokenizer:
        return DatedTokenizer(self._load_tokenizer, self._day)

    def _load_tokenizer(self) -> Any:
        assert self._source is not None
        return tokenizer_of(self._source, chat_template=self.chat_template)

    def measure(self, rows: list[Conversation]) -> list[Answer | BadRow]:
        """The columns of each row, or the reason why it has no score."""
        parts = self.of in ("prompt", "response")
        encoded = encode_all(rows, self._dated.tokenizer, responses=parts) if self.tokenizer else [None] * len(rows)
        return map_rows(self._measure, rows, encoded)

    def _measure(self, row: Conversation, encoded: Encoded | None) -> Answer:
        score = columns.score_column(self.name)
        turns = float(len(row.messages) or 1)
        if encoded is None:
            return {score: turns if self.of == "turns" else float(characters_of(row, self.of))}
        response = sum(end - start for start, end in encoded.responses)
        tokens = len(encoded.input_ids)
        sizes = {"all": tokens, "prompt": tokens - response, "response": response, "turns": turns}
        return {
            score: float(sizes[self.of]),
            columns.NUM_TOKENS: tokens,
            columns.reason_column(score): encoded.note,
        }
