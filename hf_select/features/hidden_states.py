"""Pooled hidden states of a causal LM, the representation of RDS+.

Ivison et al. 2025, "Large-Scale Data Selection for Instruction Tuning" (arXiv:2503.01807), section 3 and appendix G:
position-weighted mean of the final hidden states (after the final norm), which is better than the uniform mean and the
last token there.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from hf_select.data.bad_rows import BadRow, map_rows, on_readable
from hf_select.data.chat_template import FALLBACK_TEMPLATE
from hf_select.data.conversation import Conversation
from hf_select.data.encoding import Encoded, cut, encode_all
from hf_select.features.featurizer import Feature, Featurizer
from hf_select.models.causal_lm import FINAL_NORM, CausalLM
from hf_select.validation import check_choices


def position_weights(length: int) -> np.ndarray:
    """w_i = i / sum_{j=1..L} j, i from 1: later tokens have seen more of the row. L = 4 gives (.1, .2, .3, .4)."""
    weights = np.arange(1, length + 1, dtype=np.float64)
    return weights / weights.sum()


@dataclass
class HiddenStates(Featurizer):
    """Pooled hidden states of each row, float32, not normalised.

    weighted_mean: e = sum_i w_i h_i with w_i = i / sum_j j over the tokens in scope
    mean:          e = 1/L sum_i h_i
    last_token:    e = h_L

    Args:
        model: Hub id, path or CausalLM.
        pooling: weighted_mean (RDS+), mean or last_token.
        layers: decoder layers whose outputs are pooled, counted from 1, and -1 for the final norm's, which
            alone is taken by default. The vectors of several are concatenated, as `parts` of one. The forward pass
            ends at the last of them.
        scope: tokens that are pooled: all, prompt or response. All are read in every case.
        text_format: chat is the model's own template; tulu is the layout that the RDS+ study uses for every model.
        max_length: tokens kept of a row; a longer one is cut on the right, as in the study. None keeps all.
    """

    model: str | CausalLM
    pooling: Literal["weighted_mean", "mean", "last_token"] = "weighted_mean"
    layers: list[int] | None = None
    scope: Literal["all", "prompt", "response"] = "all"
    text_format: Literal["chat", "tulu"] = "chat"
    max_length: int | None = 2048

    def __post_init__(self) -> None:
        check_choices(self)
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"max_length is {self.max_length}; it must be at least 1.")
        if self.layers is not None and (
            not self.layers
            or len(set(self.layers)) != len(self.layers)
            or any(layer != FINAL_NORM and layer < 1 for layer in self.layers)
        ):
            raise ValueError(
                f"layers is {self.layers}; give different decoder layers, counted from 1, and -1 for the final norm."
            )
        self.parts = len(self.layers or [FINAL_NORM])
        self.lm = self.model if isinstance(self.model, CausalLM) else CausalLM(self.model)
        self.lm.check_text_format(self.text_format)

    def load(self, rank: int | None = None) -> None:
        """Load the model, once."""
        self.lm.load(rank)

    def usage(self) -> dict[str, float]:
        """Tokens, counted FLOPs and seconds of the model so far."""
        return vars(self.lm.usage).copy()

    def identity(self) -> dict[str, object]:
        """Everything that the vectors depend on."""
        return {**self.described(), "model": self.lm.identity(), "vectors_version": self.scoring_version}

    def described(self) -> dict[str, object]:
        """The settings, for people to read."""
        return {**{f.name: getattr(self, f.name) for f in fields(self)}, "model": self.lm.described()}

    def readers(self) -> list[CausalLM]:
        """The model, whose chat template may write the date."""
        return [self.lm]

    def details(self) -> dict[str, Any]:
        """What runs: the commit of the weights, their dtype and the number of dimensions."""
        loaded = self.lm.load()
        return {
            **self.lm.details(FALLBACK_TEMPLATE if self.text_format == "tulu" else None),
            "dimensions": self.parts * loaded.model.config.get_text_config().hidden_size,
        }

    def __call__(self, rows: list[Conversation], queries: bool = False) -> list[Feature | BadRow]:
        """One Feature per row; queries are encoded like rows. A row longer than the model's context has none if
        `max_length` does not cut it."""
        template = FALLBACK_TEMPLATE if self.text_format == "tulu" else None
        encoded = encode_all(rows, self.lm.load().tokenizer, template, responses=self.scope != "all")
        return on_readable(map_rows(self._weighted, encoded), self._pooled)

    def _pooled(self, rows: list[tuple[list[int], np.ndarray, str]]) -> list[Feature | BadRow]:
        """The vectors of rows as `_weighted` gives them."""

        def feature(vector: np.ndarray, note: str) -> Feature:
            if not np.isfinite(vector).all():
                raise BadRow("the model's hidden states are not finite")
            return Feature(vector, note)

        vectors = self.lm.pooled_hidden_states(
            [ids for ids, _, _ in rows], [weights for _, weights, _ in rows], self.layers
        )
        return map_rows(feature, vectors, [note for _, _, note in rows])

    def _weighted(self, encoded: Encoded) -> tuple[list[int], np.ndarray, str]:
        """(token ids, their pooling weights, note of a cut).

        Raises: BadRow if no token is left to pool, or if the row is too long.
        """
        encoded, note = cut(encoded, self.max_length, self.lm.load().max_length)
        ids = encoded.input_ids
        pooled = self._in_scope(encoded, len(ids))
        if not pooled.any():
            raise BadRow(f"no token of the {'row' if self.scope == 'all' else self.scope} is left to pool")
        weights = np.zeros(len(ids))
        if self.pooling == "weighted_mean":
            weights[pooled] = position_weights(int(pooled.sum()))
        elif self.pooling == "mean":
            weights[pooled] = 1 / pooled.sum()
        else:
            weights[np.flatnonzero(pooled)[-1]] = 1
        return ids, weights, note

    def _in_scope(self, encoded: Encoded, length: int) -> np.ndarray:
        response = np.zeros(length, dtype=bool)
        for start, end in encoded.responses:
            response[start:end] = True
        return {"all": np.ones(length, dtype=bool), "prompt": ~response, "response": response}[self.scope]
