"""Ratings by a causal LM: the tokens of the digits, their probabilities, and how long rows are cut. Shared by SelectIT
and DEITA.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_select.data.bad_rows import BadRow
from hf_select.models.causal_lm import CausalLM


@dataclass
class RatingText:
    """A rating prompt (head and tail) around the text that is rated. Only the body may be cut."""

    head: str
    body: str
    tail: str

    @property
    def whole(self) -> str:
        """The text that the model reads."""
        return self.head + self.body + self.tail


def rating_probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the K rating tokens, float64. The other tokens cancel in Eq. 2: P'_k = p_k / sum_i p_i."""
    logits = np.asarray(logits, dtype=np.float64)
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def encode_before_rating(model: CausalLM, prompts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
    """Token ids of each prompt up to the position that predicts a rating.

    The end of a prompt may be split differently once a digit follows: byte-level BPE (GPT-2, GPT-NeoX, OLMo) writes a
    final " \n" as one token, but as two before a digit. The rating is read where running text has it, so a prompt is
    encoded with a digit after it, and the digit's token is removed again.
    """
    return [ids[:-1] for ids in model.encode_texts([prompt + "1" for prompt in prompts], add_special_tokens)]


def rating_token_ids(model: CausalLM, prompt: str, k: int) -> list[int]:
    """Ids of the tokens "1".."k" as they follow this prompt.

    Encoding "1" alone gives another token on SentencePiece vocabularies (a space piece first), so each id is the last
    token of prompt + digit, and everything before it must be the same for all digits.
    Raises: ValueError if a rating is not exactly one token there.
    """
    rated = model.encode_texts([prompt + str(rating) for rating in range(1, k + 1)])
    ids = [sequence[-1] for sequence in rated]
    if any(sequence[:-1] != rated[0][:-1] for sequence in rated) or len(set(ids)) < k:
        split = model.load().tokenizer.convert_ids_to_tokens(rated[0][-3:])
        raise ValueError(
            f"the tokenizer of {model.name} has no single token for each rating 1 to {k} after the rating prompt (the "
            f'prompt followed by "1" ends with the tokens {split}), so their probabilities cannot be compared. Choose '
            "a model whose tokenizer writes digits as tokens of their own, or end the rating prompt in another way."
        )
    return ids


def cut_body(
    model: CausalLM, text: RatingText, ids: list[int], room: int, limit: int | None, allowed: bool, body: str
) -> tuple[list[int], str]:
    """(ids without the end of the body, what was done).

    Args:
        body: what the body is, for the note: response or instruction.
    Raises: BadRow if the row does not fit in `room` tokens.
    """
    if not allowed:
        raise BadRow(f"longer than the model's context of {limit} tokens; set max_length to cut the {body}")
    offsets = model.load().tokenizer(text.whole, return_offsets_mapping=True)["offset_mapping"]
    start, end = len(text.head), len(text.head) + len(text.body)
    inside = [t for t, (a, b) in enumerate(offsets) if start <= a and b <= end and a < b]
    excess = len(ids) - room
    if excess > len(inside):
        raise BadRow(f"the text around the {body} alone is longer than {limit} tokens")
    dropped = set(inside[len(inside) - excess :])
    return [token for t, token in enumerate(ids) if t not in dropped], f"{body} cut to fit {limit} tokens"


def finite_logits(logits: np.ndarray) -> np.ndarray:
    """The logits of the ratings.

    Raises: BadRow if one is not finite.
    """
    if not np.isfinite(logits).all():
        raise BadRow("the model's rating logits are not finite")
    return logits
