"""DEITA's two ratings: complexity of the instruction, and quality of the response.

Liu et al. 2024, "What Makes Good Data for Alignment?" (ICLR 2024, arXiv:2312.15685): two LMs trained to rate from 1 to
6, evolved complexity and evolved quality. Rows are then selected by score unless they are too similar to one already
selected (ScoreThenThreshold).

Left out: training the two raters. The authors' raters are on the Hub. They were trained on the authors' prompts, which
this package does not contain: `complexity_prompt` and `quality_prompt` take the path of your copy.
"""

from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from datasets import List, Value

from hf_select.data import columns
from hf_select.data.bad_rows import BadRow, attempt, map_rows, on_readable
from hf_select.data.chat_template import counts
from hf_select.data.conversation import Conversation
from hf_select.data.text import beside_text
from hf_select.models.causal_lm import CausalLM
from hf_select.paper import DEITA_PAPER, Paper
from hf_select.scoring.rating import (
    RatingText,
    cut_body,
    encode_before_rating,
    finite_logits,
    rating_probabilities,
    rating_token_ids,
)
from hf_select.scoring.scorer import Answer, Scorer


COMPLEXITY_PROMPT = (
    "How demanding is the instruction below, from 1 (anyone could follow it) to 6 (an expert has to think)?\n"
    "Instruction: {instruction}\nThe rating is: \n"
)
QUALITY_PROMPT = (
    "How good is the response to the instruction below, from 1 (useless) to 6 (correct, complete and well put)?\n"
    "Instruction: {instruction}\nResponse: {response}\nThe rating is: \n"
)


def expected_rating(logits: np.ndarray) -> np.ndarray:
    """sum_k k softmax(logits)_k over the last axis, ratings from 1."""
    return rating_probabilities(logits) @ np.arange(1, logits.shape[-1] + 1)


@dataclass
class DEITA(Scorer):
    """Complexity times quality, summed over turns; each an expected rating.

    score = sum over (user, reply) pairs of c q,   c, q = sum_k k p_k, p the softmax over the rating tokens 1..K

    Args:
        model: rates complexity: Hub id, path or CausalLM.
        quality_model: rates quality; by default the same model.
        complexity_prompt: text with {instruction}, or the path of a file that holds it.
        quality_prompt: text with {instruction} and {response}, or the path of a file that holds it.
        ratings: the highest rating, 2 to 9; the authors' raters give 1 to 6.
        max_length: tokens of a prompt; a longer one loses the end of its response (of its instruction, for
            complexity). None cuts nothing: a row beyond the model's context has no score.
    Reads: each user turn and the reply after it, without the turns before; a missing reply is rated as an empty one.
    Adds: score_deita (higher = better, and more turns score higher, as published); deita_complexity and deita_quality,
        one value a pair.
    Raises: ValueError if a prompt has no placeholder, or if the tokenizer has no single token for each rating.
    Relations: SelectIT asks a model that was not trained to rate, and corrects by its uncertainty. ScoreThenThreshold
        is the second half of DEITA.
    Reference: Liu et al. 2024, arXiv:2312.15685, sections 2 and 3.
    Differs from the authors' code: pairs are batched; only the next token is computed, nothing is generated.
    """

    model: Any
    quality_model: Any = None
    complexity_prompt: str = COMPLEXITY_PROMPT
    quality_prompt: str = QUALITY_PROMPT
    ratings: int = 6
    max_length: int | None = 2048

    name: ClassVar[str] = "deita"
    paper: ClassVar[Paper | None] = DEITA_PAPER

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.ratings <= 9:
            raise ValueError(f"ratings is {self.ratings}; the highest rating must lie between 2 and 9.")
        self._complexity = self.model if isinstance(self.model, CausalLM) else CausalLM(self.model)
        quality = self.quality_model or self._complexity
        self._quality = quality if isinstance(quality, CausalLM) else CausalLM(quality)
        for model in (self._complexity, self._quality):
            model.refuse_template("DEITA asks with its own rating prompts")
        self._prompts = (
            _prompt(self.complexity_prompt, "complexity_prompt", ["{instruction}"]),
            _prompt(self.quality_prompt, "quality_prompt", ["{instruction}", "{response}"]),
        )

    @property
    def columns_out(self) -> dict[str, Value | List]:
        """Columns that scoring adds, with their `datasets` types."""
        parts = {f"deita_{part}": List(Value("float64")) for part in ("complexity", "quality")}
        return super().columns_out | parts

    def load(self, rank: int | None = None) -> None:
        """Load the models, once."""
        self._complexity.load(rank)
        self._quality.load(rank)

    def readers(self) -> list[Any]:
        """The models, whose chat templates may write the date."""
        return [self._complexity, self._quality]

    def usage(self) -> dict[str, float]:
        """Tokens, counted FLOPs and seconds of the models so far."""
        usages = [vars(self._complexity.usage)]
        if self._quality is not self._complexity:
            usages.append(vars(self._quality.usage))
        return {name: sum(usage[name] for usage in usages) for name in usages[0]}

    def _pickled(self) -> dict[str, object]:
        quality = None if self._quality is self._complexity else self._quality
        complexity_prompt, quality_prompt = self._prompts
        return {
            **self.settings(),
            "model": self._complexity,
            "quality_model": quality,
            "complexity_prompt": complexity_prompt,
            "quality_prompt": quality_prompt,
        }

    def measure(self, rows: list[Conversation]) -> list[Answer | BadRow]:
        """The columns of each row, or the reason why it has no score."""
        return on_readable(map_rows(lambda row: (row, user_pairs(row)), rows), self._score)

    def _score(self, rows: list[tuple[Conversation, list[tuple[str, str]]]]) -> list[Answer | BadRow]:
        flat = [pair for _, pairs in rows for pair in pairs]
        complexity_prompt, quality_prompt = self._prompts
        complexities = self._rate(self._complexity, [_around(complexity_prompt, x) for x, _ in flat], "instruction")
        qualities = self._rate(self._quality, [_around(quality_prompt, x, y) for x, y in flat], "response")
        ratings = zip(complexities, qualities, strict=True)
        return [attempt(self._answer, row, *chain.from_iterable(islice(ratings, len(pairs)))) for row, pairs in rows]

    def _answer(self, row: Conversation, *ratings: tuple[float, str]) -> Answer:
        """Columns of a row from the (rating, note) of complexity and quality of each of its pairs in turn."""
        if not ratings:
            raise BadRow("no user turn" if all(map(counts, row.messages)) else "no user turn whose reply counts")
        notes = [*map(beside_text, row.responses()), *(note for _, note in ratings)]
        values = [rating for rating, _ in ratings]
        complexity, quality = values[::2], values[1::2]
        return {
            columns.score_column(self.name): float(np.dot(complexity, quality)),
            columns.reason_column(self.name): "; ".join(dict.fromkeys(note for note in notes if note)),
            "deita_complexity": complexity,
            "deita_quality": quality,
        }

    def _rate(self, model: CausalLM, texts: list[RatingText], body: str) -> list[tuple[float, str] | BadRow]:
        """(expected rating, what was cut) of each text, or why there is none."""
        if not texts:
            return []
        context = model.load().max_length
        limit = min((n for n in (self.max_length, context) if n is not None), default=None)

        def fitting(text: RatingText, ids: list[int]) -> tuple[list[int], str]:
            if limit is None or len(ids) <= limit:
                return ids, ""
            return cut_body(model, text, ids, limit, limit, self.max_length is not None, body)

        def rating(logits: np.ndarray, note: str) -> tuple[float, str]:
            return float(expected_rating(finite_logits(logits))), note

        def rate(rows: list[tuple[list[int], str]]) -> list[tuple[float, str] | BadRow]:
            logits = model.next_token_logits([ids for ids, _ in rows], rating_ids)
            return map_rows(rating, logits, [note for _, note in rows])

        sequences = encode_before_rating(model, [text.whole for text in texts])
        rating_ids = rating_token_ids(model, texts[0].whole, self.ratings)
        return on_readable(map_rows(fitting, texts, sequences), rate)


def user_pairs(row: Conversation) -> list[tuple[str, str]]:
    """(user turn, reply) for every user turn whose reply counts; a turn without a reply has an empty one.

    Raises: BadRow if a reply is a tool call without text: its quality is not that of an empty answer.
    """
    after = [*row.messages, {"role": "", "content": ""}][1:]
    pairs = []
    for user, reply in zip(row.messages, after, strict=True):
        if user["role"] != "user" or (reply["role"] == "assistant" and not counts(reply)):
            continue
        if reply.get("tool_calls") and not reply["content"]:
            raise BadRow("a reply is a tool call, not an answer")
        pairs.append((user["content"], reply["content"] if reply["role"] == "assistant" else ""))
    return pairs


def _around(prompt: str, instruction: str, response: str | None = None) -> RatingText:
    """The prompt with its placeholders filled; the text in the last one may be cut."""
    place, body = ("{instruction}", instruction) if response is None else ("{response}", response)
    head, tail = prompt.split(place)
    if response is None:
        return RatingText(head, body, tail)
    return RatingText(head.replace("{instruction}", instruction), body, tail.replace("{instruction}", instruction))


def _prompt(given: str, setting: str, places: list[str]) -> str:
    """The prompt, or the text of the file of that name."""
    text = given
    if "\n" not in given and "{" not in given:
        path = Path(given).expanduser()
        if not path.is_file():
            raise ValueError(f'{setting} is "{given}": no such file, and no text with {" and ".join(places)}.')
        text = path.read_text(encoding="utf-8")
    if text.endswith(places[-1]):
        raise ValueError(f"{setting} ends with {places[-1]}; it must end with what asks for the rating.")
    wrong = [place for place in places if text.count(place) != 1]
    if wrong:
        raise ValueError(f"{setting} must hold {' and '.join(places)} once each; look at {' and '.join(wrong)}.")
    return text
