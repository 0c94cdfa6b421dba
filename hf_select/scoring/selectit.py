"""SelectIT: a model rates each row, and the rating is lowered by the model's uncertainty.

Liu et al. 2024, "SelectIT: Selective Instruction Tuning for LLMs via Uncertainty-Aware Self-Reflection" (NeurIPS 2024,
arXiv:2402.16705). Three nested levels: token (one rating prompt), sentence (K prompts), model (several models).

Nothing of the method is left out. The authors' rating prompts have no licence, so this package does not contain them:
`rating_prompts` takes the path of their file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from datasets import List, Value

from hf_select.data.bad_rows import BadRow, map_rows, on_readable
from hf_select.data.conversation import Conversation
from hf_select.data.text import beside_text
from hf_select.models.causal_lm import CausalLM
from hf_select.paper import Paper
from hf_select.scoring.rating import (
    RatingText,
    cut_body,
    encode_before_rating,
    finite_logits,
    rating_probabilities,
    rating_token_ids,
)
from hf_select.scoring.scorer import Answer, Scorer


# n rows, K ratings (and prompts), M models

RATING_PROMPTS = (
    "Rate how well the response follows the instruction, from 1 (not at all) to 5 (fully).\n",
    "How accurate and complete is the response, on a scale of 1 to 5?\n",
    "Grade the response as a strict teacher would: 1 fails, 5 is perfect.\n",
    "Score this answer from 1 to 5; 5 means it needs no change.\n",
    "How useful is the response to whoever asked? 1 is useless, 5 ideal.\n",
)


# Follows every row in the authors' scripts. The rating is predicted after the line break.
ANSWER = "The answer is: \n"


# --------------------------------------------------------------------------------------------------------------------
# the method, on plain arrays


def token_scores(
    probabilities: np.ndarray, mode: str = "paper", k: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Token-level score (Eq. 3) and uncertainty, of probabilities (..., R) of the ratings 1..R.

    S_base = argmax_k P'_k (ties: the lower), disparity = 1/(K-1) sum_i |P'_i - P'_{S_base}|, S_tok = S_base *
    disparity; uncertainty = 1 - disparity: 0 if all mass is on one rating, 1 if the model does not know.

    Args:
        mode: `paper` normalises p / sum p. `repo` puts a softmax over that again, as the authors' code has done since
            its second week: disparity then ends at (e-1)/(e+4) = 0.2558 and the score at 1.2788. It always reads five
            ratings and sums the first k differences, which matters only for k < 5.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    p = p / p.sum(axis=-1, keepdims=True)
    k = k or int(p.shape[-1])
    rating = p.argmax(axis=-1) + 1  # (...,)
    if mode == "repo":
        p = np.exp(p) / np.exp(p).sum(axis=-1, keepdims=True)
    disparity = np.abs(p - p.max(axis=-1, keepdims=True))[..., :k].sum(axis=-1) / (k - 1)
    return rating * disparity, 1 - disparity


def sentence_score(token_scores: np.ndarray, alpha: float = 0.2) -> np.ndarray:
    """Eq. 4 over the prompts, the last axis: mean / (1 + alpha * std), population std."""
    return token_scores.mean(axis=-1) / (1 + alpha * token_scores.std(axis=-1))


def model_score(sentence_scores: np.ndarray, sizes: Sequence[float], mode: str = "paper") -> np.ndarray:
    """Eq. 5 over the models, the last axis: sum_i theta_i / sum_j theta_j * S_sent,i.

    Mode `repo` is the weighting of the authors' code, which is fixed to three models: 7/20, 13/20 and 70/90 for 7, 13
    and 70 billion parameters (they sum to 1.78).
    """
    theta = np.asarray(sizes, dtype=np.float64)
    if mode == "paper":
        return sentence_scores @ (theta / theta.sum())
    if len(theta) != 3:
        raise ValueError(
            f'mode "repo" weights exactly three models, as the authors\' code does; here are {len(theta)}.'
        )
    return sentence_scores @ (theta / [theta[0] + theta[1], theta[0] + theta[1], theta.sum()])


# --------------------------------------------------------------------------------------------------------------------
# the scorer


@dataclass
class SelectIT(Scorer):
    """Rating by the model itself, lowered by its uncertainty within a prompt, over prompts and over models.

    token:    S_tok = rating * 1/(K-1) sum_i |P'_i - P'_rating|, P' = the model's probabilities of the ratings 1..K
    sentence: S_sent = mean_j S_tok,j / (1 + alpha * std_j S_tok,j) over K rating prompts
    model:    S_model = sum_i S_sent,i * theta_i / sum theta over models with theta_i parameters

    Args:
        model: Hub id, path or CausalLM; a list of them scores at the model level.
        level: token (one prompt, drawn with `seed`) or sentence (K prompts; the model level follows from several
            models).
        mode: paper, or repo for the authors' code (a second softmax; other model weights). Rankings are nearly the
            same, values not.
        k: highest rating and number of rating prompts, 2 to 9.
        alpha: weight of the spread over prompts.
        rating_prompts: path of a text file, one prompt a line, or the prompts; a line keeps its line break and one
            more follows.
        rating_position: first, as published, or last. With last, the row comes first and its K prompts share its
            cache: faster, but other scores.
        max_length: tokens of a prompt; a longer one loses the end of its response. By default nothing is cut and a row
            beyond the model's context has no score.
        details: also add the ratings and uncertainties of every prompt (and model).
        sizes: parameter counts theta of the models; counted from the models by default.
        seed: draws the prompt of the token level.
    Reads: the first user turn and the assistant turn after it; system text and later turns are not rated, as
        published.
    Adds: score_selectit (float; higher = better); with details also selectit_ratings and selectit_uncertainty.
    Raises: ValueError if the tokenizer has no single token for each rating.
    Relations: IFD measures how much the prompt helps the response; SelectIT asks for a rating, at K passes a row.
    Reference: Liu et al. 2024, arXiv:2402.16705, Eq. 2 to 5.
    Differs from the authors' code: no row is lost, any tokenizer, ties go to the lower row.
    """

    model: Any
    level: Literal["token", "sentence"] = "sentence"
    mode: Literal["paper", "repo"] = "paper"
    k: int = 5
    alpha: float = 0.2
    rating_prompts: Any = None
    rating_position: Literal["first", "last"] = "first"
    max_length: int | None = None
    details: bool = False
    sizes: list[float] | None = None
    seed: int = 0

    name: ClassVar[str] = "selectit"
    paper: ClassVar[Paper | None] = Paper(
        "2402.16705",
        "SelectIT: Selective Instruction Tuning for LLMs via Uncertainty-Aware Self-Reflection",
        "Liu, Liangxin",
        2024,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.k <= 9:  # a single rating carries no information, and 10 starts with the token of 1
            raise ValueError(f"k is {self.k}; it is the highest rating and must lie between 2 and 9.")
        if self.alpha < 0:
            raise ValueError(f"alpha is {self.alpha}; it weighs a spread and cannot be negative.")
        models = self.model if isinstance(self.model, list) else [self.model]
        self._models = [model if isinstance(model, CausalLM) else CausalLM(model) for model in models]
        for model in self._models:
            model.refuse_template("SelectIT asks with its own rating prompts")
        if self.sizes is not None and len(self.sizes) != len(self._models):
            raise ValueError(f"{len(self.sizes)} sizes for {len(self._models)} models; give one for each.")
        self._prompts = self._read_prompts()

    @property
    def columns_out(self) -> dict[str, Value | List]:
        """Columns that scoring adds, with their `datasets` types."""
        parts = {"selectit_ratings": List(Value("int64")), "selectit_uncertainty": List(Value("float64"))}
        return super().columns_out | (parts if self.details else {})

    def load(self, rank: int | None = None) -> None:
        """Load the models, once."""
        for model in self._models:
            model.load(rank)

    def readers(self) -> list[Any]:
        """The models, whose chat templates may write the date."""
        return self._models

    def usage(self) -> dict[str, float]:
        """Tokens, counted FLOPs and seconds of the models so far."""
        return {
            name: sum(getattr(model.usage, name) for model in self._models)
            for name in ("tokens", "processed_tokens", "seconds", "flops")
        }

    def _pickled(self) -> dict[str, object]:
        # The prompts themselves, so that an edited prompt file gives another identity.
        models = self._models if isinstance(self.model, list) else self._models[0]
        return {**self.settings(), "model": models, "rating_prompts": self._prompts}

    def _read_prompts(self) -> list[str]:
        """The prompts in use, each as its line in the file (with its line break, if the file has one there)."""
        lines: list[str]
        if isinstance(self.rating_prompts, str):
            path = Path(self.rating_prompts).expanduser()
            if not path.is_file():
                raise ValueError(f'no file "{path}" with rating prompts; give a text file with one prompt a line.')
            # Lines end at "\n" only: str.splitlines would also cut at U+2028 and the like.
            *lines, last = path.read_text(encoding="utf-8").split("\n")
            lines = [line + "\n" for line in lines] + ([last] if last else [])
        else:
            lines = list(self.rating_prompts if self.rating_prompts is not None else RATING_PROMPTS)
        if not all(line.strip() for line in lines):
            raise ValueError(f"rating prompt {[bool(line.strip()) for line in lines].index(False) + 1} is empty.")
        needed = 1 if self.level == "token" else self.k
        if len(lines) < needed:
            raise ValueError(f"{len(lines)} rating prompts, but k = {self.k} needs {needed}; add prompts or lower k.")
        if self.level == "token":  # the reference draws one line a run, unseeded
            return [lines[np.random.default_rng(self.seed).integers(len(lines))]]
        return lines[: self.k]

    # ----------------------------------------------------------------------------------------------------------------

    def measure(self, rows: list[Conversation]) -> list[Answer | BadRow]:
        """The columns of each row, or the reason why it has no score."""
        return on_readable(map_rows(lambda row: (row, row.first_pair()), rows), self._score)

    def _score(self, rows: list[tuple[Conversation, tuple[str, str]]]) -> list[Answer | BadRow]:
        by_model = [self._rate(model, [pair for _, pair in rows]) for model in self._models]
        sizes = self.sizes or [model.num_parameters if len(self._models) > 1 else 1 for model in self._models]
        conversations = [row for row, _ in rows]
        return map_rows(partial(self._answer, sizes), conversations, *by_model)

    def _answer(self, sizes: Sequence[float], row: Conversation, *rated: "Rated") -> Answer:
        """Columns of one row from the ratings of the M models, with a note on what they did not read."""
        note = beside_text(row.first_exchange()[1])
        probabilities = rating_probabilities(np.stack([r.logits for r in rated]))  # (M, prompts, K)
        tokens, uncertainty = token_scores(probabilities, self.mode, self.k)  # (M, prompts)
        sentences = sentence_score(tokens, self.alpha)  # (M,); a single prompt has no spread and keeps its token score
        score = sentences[0] if len(rated) == 1 else model_score(sentences, sizes, self.mode)
        answer: Answer = {
            "score_selectit": float(score),
            "selectit_reason": "; ".join(dict.fromkeys(n for n in (note, *(r.note for r in rated)) if n)),
        }
        if self.details:
            answer["selectit_ratings"] = (probabilities.argmax(axis=-1) + 1).ravel().tolist()
            answer["selectit_uncertainty"] = uncertainty.ravel().tolist()
        return answer

    def _rate(self, model: CausalLM, pairs: list[tuple[str, str]]) -> list["Rated | BadRow"]:
        """The rating logits of each pair, under every prompt."""
        if not pairs:
            return []
        ratings = max(self.k, 5) if self.mode == "repo" else self.k  # the authors' code always reads five
        first = self.rating_position == "first"
        asks = [line + "\n" if first else line + ANSWER for line in self._prompts]
        heads, tail = (asks, "\n" + ANSWER) if first else ([""], "\n\n")
        texts = [[RatingText(head + "Instruction:" + x + "\nResponse:", y, tail) for x, y in pairs] for head in heads]
        encode = partial(encode_before_rating, model) if first else model.encode_texts
        stems = model.encode_texts([head + "Instruction:" for head in heads])
        ids = _encode_under_heads(encode, texts, stems)  # heads x n
        ask_ids = [] if first else encode_before_rating(model, asks, add_special_tokens=False)

        context = model.load().max_length
        limit = min((n for n in (self.max_length, context) if n is not None), default=None)
        room = None if limit is None else limit - max(map(len, ask_ids), default=0)

        def fitting(texts: tuple[RatingText, ...], sequences: tuple[list[int], ...]) -> tuple[list[list[int]], str]:
            """(ids of one row under each head, note of the last cut)"""
            fitted, note = [], ""
            for text, sequence in zip(texts, sequences, strict=True):
                if room is not None and len(sequence) > room:
                    allowed = self.max_length is not None
                    sequence, note = cut_body(model, text, sequence, room, limit, allowed, "response")
                fitted.append(sequence)
            return fitted, note

        rating_ids = rating_token_ids(model, texts[0][0].whole if first else asks[0], ratings)

        def rate(rows: list[tuple[list[list[int]], str]]) -> list[Rated | BadRow]:
            if first:
                by_head = zip(*(sequences for sequences, _ in rows), strict=True)
                by_prompt = [model.next_token_logits(sequences, rating_ids) for sequences in by_head]
                logits = map_rows(lambda *each: np.stack(each), *by_prompt)
            else:
                logits = model.next_token_logits_after([ids for (ids,), _ in rows], ask_ids, rating_ids)
            notes = [note for _, note in rows]
            return map_rows(lambda each, note: Rated(finite_logits(each), note), logits, notes)

        return on_readable(map_rows(fitting, zip(*texts, strict=True), zip(*ids, strict=True)), rate)


@dataclass
class Rated:
    """What one model said of one row: logits (prompts, K), and what was done to the row before."""

    logits: np.ndarray
    note: str = ""


def _encode_under_heads(
    encode: Callable[[list[str]], list[list[int]]], texts: list[list["RatingText"]], stems: list[list[int]]
) -> list[list[list[int]]]:
    """Token ids of the same rows under several heads, each row's own part tokenised once.

    `stems` are the token ids of the heads with the word that follows each of them. Where a row's ids start with those
    of its stem (but for the last token, which may merge with what comes next), the rest does not depend on the head. A
    row that does not is tokenised whole under every head, and so is a column whose first row comes out differently
    from tokenising it whole.
    """
    first = encode([text.whole for text in texts[0]])
    stem_ids = [ids[:-1] for ids in stems]
    cut = len(stem_ids[0])
    apart = [ids[:cut] == stem_ids[0] for ids in first]
    encoded = [first]
    for column, stem in zip(texts[1:], stem_ids[1:], strict=True):
        composed = [stem + ids[cut:] if ok else [] for ids, ok in zip(first, apart, strict=True)]
        rest = [i for i, ok in enumerate(apart) if not ok]
        checked = encode([column[i].whole for i in [0, *rest]])
        if apart[0] and composed[0] != checked[0]:
            encoded.append(encode([text.whole for text in column]))
            continue
        for i, ids in zip([0, *rest], checked, strict=True):
            composed[i] = ids
        encoded.append(composed)
    return encoded
