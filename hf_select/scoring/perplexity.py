"""Perplexity of a row under a model, at one forward pass per row.

As run in the RDS+ study (Ivison et al. 2025, arXiv:2503.01807): the mean token NLL of the whole formatted row under
the base model. The rows with the highest scores and those just below the top third ("mid") are baselines there, and
both are worse than random rows at 200,000 and at 5.8 million rows.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from hf_select.data import columns
from hf_select.data.bad_rows import BadRow, map_rows, on_readable
from hf_select.data.chat_template import FALLBACK_TEMPLATE
from hf_select.data.conversation import Conversation
from hf_select.data.encoding import Encoded, cut, drop_empty_responses, encode_all, nonempty_turns
from hf_select.models.causal_lm import predicted
from hf_select.paper import RDS_PAPER, Paper
from hf_select.scoring.scorer import Answer, LMScorer


@dataclass
class Perplexity(LMScorer):
    """Mean negative log-likelihood of a row in nats per token, which is the logarithm of its perplexity.

    nll = -1/N sum_t log p(x_t | x_<t), over the N tokens in scope that have a token before them

    Args:
        scope: full is every token of the row, prompt included (as in the study), and turns that do not count (train,
            weight); response the tokens of the responses that count.
        text_format: chat is the model's own template; tulu is the study's layout for every model.
        max_length: tokens kept of a row; a longer one is cut on the right.
    Reads: the whole conversation.
    Adds: score_perplexity (nats per token; null with a reason if no token in scope can be predicted).
    Relations: TopK takes the highest, with which=middle the study's mid set. IFD divides the response's NLL by what it
        is without the prompt.
    Reference: Ivison et al. 2025, arXiv:2503.01807, section 3.2.
    Differs from the authors' code: rows are batched; in mid mode each row keeps its own score.
    """

    scope: Literal["full", "response"] = "full"
    text_format: Literal["chat", "tulu"] = "chat"
    max_length: int | None = 2048

    name: ClassVar[str] = "perplexity"
    paper: ClassVar[Paper | None] = RDS_PAPER

    def __post_init__(self) -> None:
        super().__post_init__()
        self._lm.check_text_format(self.text_format)

    def measure(self, rows: list[Conversation]) -> list[Answer | BadRow]:
        """The columns of each row, or the reason why it has no score."""
        template = FALLBACK_TEMPLATE if self.text_format == "tulu" else None
        loaded = self._lm.load()
        encoded = encode_all(rows, loaded.tokenizer, template, responses=self.scope == "response")
        return on_readable(map_rows(self._in_scope, rows, encoded), self._score)

    def _in_scope(self, row: Conversation, encoded: Encoded) -> tuple[Encoded, str]:
        """The row cut, with the spans whose tokens count, and a note on the cut.

        Raises: BadRow if no token counts.
        """
        if self.scope == "response":
            if not any(nonempty_turns(row)):
                raise BadRow("empty response")
            encoded = drop_empty_responses(row, encoded)
        encoded, note = cut(encoded, self.max_length, self._lm.load().max_length)
        if self.scope == "full":
            encoded = replace(encoded, responses=[(0, len(encoded.input_ids))])
        if len(predicted(encoded.responses)) == 0:
            what = "row" if self.scope == "full" else "response"
            raise BadRow(f"no token of the {what} is left to predict{f' ({note})' if note else ''}")
        return encoded, note

    def _score(self, rows: list[tuple[Encoded, str]]) -> list[Answer | BadRow]:
        nlls = self._lm.response_nll([row.input_ids for row, _ in rows], [row.responses for row, _ in rows])
        return map_rows(self._answer, nlls, [note for _, note in rows])

    def _answer(self, nll: np.ndarray, note: str) -> Answer:
        mean = float(np.mean(nll, dtype=np.float64))
        if not np.isfinite(mean):
            raise BadRow("the model's NLL is not finite")
        return {columns.score_column(self.name): mean, columns.reason_column(self.name): note}
