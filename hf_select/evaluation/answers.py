"""Generation tasks whose answers can be checked: the share of rows whose final answer is right.

The model answers each prompt greedily in its chat template; from its answer and from the row's own response the final
answer is taken in the same way, and the two are compared.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from hf_select.choices import check_choices
from hf_select.formats import BadRow, Conversation, conversations
from hf_select.generation.engine import Sampling
from hf_select.generation.local import TransformersGenerator
from hf_select.inference.causal_lm import CausalLM
from hf_select.inference.pool import pool_fingerprint, readable


Final = Literal["number", "letter", "text", "contains"]

# A minus after a digit, a letter or a bracket takes away; a comma stands before three digits.
_NUMBER = re.compile(r"((?<![\w)\]])[-\u2212])?((?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")
# "The answer is (B)", "Answer: **b**" and "\\boxed{B}", but neither "the answer is a mammal" nor "... is I think".
_CALLED = re.compile(
    r"(?:answer(?:\s+is)?\s*:?\s*(?:option\s+|choice\s+)?|\\boxed\{|correct\s+option\s+is\s+)[\s*_(\[{]*"
    r"(?:(?:\\text\{)?((?-i:[A-HJ-Z])|[a-z](?=\s*(?:[^\s\w]|$)))(?!['’\w]))",
    re.IGNORECASE,
)
# "B", "(B) because", "**B.**", but not the article of "A dog barks".
_BEGINS = re.compile(r"^[\s*_(\[]*([A-Z])(?=\s*$|[).:\]*_])", re.MULTILINE)


def number(text: str) -> str | None:
    """The last number of a text, after the last "####" if there is one: "so 1,234.50 dollars" -> "1234.5"."""
    found = _NUMBER.findall(text.rpartition("####")[2])
    if not found:
        return None
    sign, digits = found[-1]
    whole, _, part = digits.replace(",", "").partition(".")
    value = (whole.lstrip("0") or "0") + (f".{part.rstrip('0')}" if part.rstrip("0") else "")
    return f"-{value}" if sign and value != "0" else value


def letter(text: str) -> str | None:
    """The letter of a choice: the last one that is called the answer, or else the first that begins a line."""
    called = _CALLED.findall(text)
    if called:
        return called[-1].upper()
    begins = _BEGINS.search(text)
    return begins[1] if begins else None


def plain(text: str) -> str:
    """Letter case, punctuation, articles and spaces taken away, as is usual for exact match."""
    text = "".join(" " if unicodedata.category(c).startswith("P") else c for c in unicodedata.normalize("NFKC", text))
    return " ".join(word for word in text.lower().split() if word not in ("a", "an", "the"))


@dataclass
class CheckableAnswers:
    """1 for each row whose final answer is right, 0 for the others.

    Args:
        rows: conversations that end with an assistant's turn, or prompts with completions: the right answers.
        final: what is compared. number: the last number; letter: the choice; text: the whole answer without letter
            case, punctuation and articles; contains: whether the right answer, so written, stands in the model's.
        max_new_tokens: of an answer; one that is cut there is read as far as it goes.
    Raises: ValueError for rows without a response, or whose own response has no such final answer.
    """

    rows: Any
    final: Final = "number"
    max_new_tokens: int = 256

    better: ClassVar[Literal["lower", "higher"]] = "higher"
    unit: ClassVar[str] = "share right"

    def __post_init__(self) -> None:
        check_choices(self)
        if len(self.rows) == 0:
            raise ValueError("there is nothing to measure on: the task has no rows.")
        find: Callable[[str], str | None] = {"number": number, "letter": letter}.get(self.final, plain)  # type: ignore[arg-type]
        self._find, self._prompts, self._right = find, [], []
        for place, row in enumerate(conversations(self.rows[:])):
            if isinstance(row, BadRow):
                raise ValueError(f"row {place} of a task cannot be read: {row}.")
            right = self._right_answer(row)
            if not right:
                raise ValueError(f"row {place} of a task has no {self.final} in its response; choose another `final`.")
            self._right.append(right)
            self._prompts.append(row.messages[:-1])

    def _right_answer(self, row: Conversation) -> str | None:
        last = row.messages[-1]
        return self._find(last["content"]) if last["role"] == "assistant" and len(row.messages) > 1 else None

    def identity(self) -> dict[str, Any]:
        rows = pool_fingerprint(readable(self.rows))
        return {"answers to": rows, "final": self.final, "max_new_tokens": self.max_new_tokens}

    def __call__(self, lm: CausalLM) -> list[float]:
        sampling = Sampling(temperature=0, max_new_tokens=self.max_new_tokens)
        answers = TransformersGenerator(lm).generate(self._prompts, sampling)
        lost = [answer.error for answer in answers if answer.error]
        if lost:
            raise RuntimeError(f"{len(lost)} of {len(answers)} prompts got no answer (the first: {lost[0]}).")
        return [float(self._is_right(a.text, right)) for a, right in zip(answers, self._right, strict=True)]

    def _is_right(self, text: str, right: str) -> bool:
        if self.final == "contains":
            return f" {right} " in f" {plain(text)} "
        return self._find(text) == right
