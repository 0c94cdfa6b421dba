"""Generation tasks whose answers can be checked: the share of rows with a correct final answer.

The model answers each prompt greedily in its chat template. The final answer is extracted in the same way from its
answer and from the row's own response, and the two are compared. Marked answers have priority: "#### 42",
\\boxed{42}, <answer>42</answer>; then "the answer is 42"; then the last number, or the letter that opens or ends the
text. Reasoning that ends in </think> is removed. Numbers and formulas are compared by math-verify.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from datasets import Dataset

from hf_select.data.bad_rows import BadRow
from hf_select.data.conversation import Conversation
from hf_select.data.rows import conversations_of, pool_fingerprint, readable
from hf_select.evaluation.measure import Measure
from hf_select.extras import require
from hf_select.generation.local import TransformersGenerator
from hf_select.models.causal_lm import CausalLM
from hf_select.models.sampling import Sampling
from hf_select.validation import check_choices


Final = Literal["number", "letter", "text", "contains"]

# A minus after a digit, a letter or a bracket is a subtraction; a comma separates groups of three digits.
_MINUS = r"(?:(?<![\w)\]}])[-\u2212])?"
_DIGITS = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
_EXPONENTIAL = (
    rf"\d+\s?\^\s?\{{?[-\u2212]?\d+\}}?|{_DIGITS}(?:\s?[x×*·]\s?10\s?\^\s?\{{?[-\u2212]?\d+\}}?|[eE][-+]?\d+(?!\w))"
)
_SYMBOLIC = rf"(?:{_DIGITS}\s?)?(?:√\s?\(?\d+\)?|π)|{_EXPONENTIAL}"
# 2^5, 3 x 10^8, 3√2, 5:30, 3/4, 3 1/2, $1,234.50
_NUMBER_PATTERN = re.compile(
    rf"({_MINUS})(?:[$€£¥]\s?)?({_SYMBOLIC}|\d+(?::\d+)+|(?:\d+\s+)?\d+\s?/\s?\d+(?![\d/.])|{_DIGITS})"
)
# Full-width letters, brackets and signs of East Asian text; its comma stays, since it is not part of a number.
_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F) if chr(code) != "，"}
_OTHER_DIGIT = re.compile(r"[^\W\D0-9]")
_BOX = re.compile(r"\\(?:boxed|fbox)(?:\s*(\{)|\s+(?=\S))")
# Answers of `number` with a single spelling; 1/2, 0.5 and \frac{1}{2} are one number in three spellings.
_LONGEST = 1000  # digits of a fraction that is reduced: a model may repeat a digit endlessly
_PLAIN = re.compile(r"-?[\d.:]+")
# A number alone or with a unit: "5 apples", "12 km", but not "2x".
_WITH_UNIT = re.compile(rf"{_NUMBER_PATTERN.pattern}(?:\s*[^\W\d_]{{2,}}(?:\s+[^\W\d_]+)*)?")
# What may precede the number of a marked answer: "x = ", "about ", "**".
_BEFORE_NUMBER = re.compile(r"(?:[\s*_:=≈~(]|about\b|approximately\b|roughly\b|exactly\b|\\?[a-zA-Z]\s*=(?!=))*")
# Before "=": numbers, operators and single letters, but no words.
_EQUATION = re.compile(r"(?:[^\W\d_](?![^\W\d_])|[^=\w\n,;]|,(?=\d)|[\d_])*=")
_MATHS = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_WORD_OF_TEXT = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{3,}")
# Text, spaces, currency, per cent and degrees in a formula.
_DRESS = re.compile(
    r"\\(?:text|mathrm|textbf|mathbf|mbox)\s?\{[^{}]*\}(?:\s?\^\s?\{?\d\}?)?|\^\s?\{?\\circ\}?|\\[,!;: %$]|[%$€£¥°]"
)
_IS = r"(?:\s+(?:is|are|was|would\s+be|should\s+be|must\s+be|equals)\b|\s*[:：=])"
_ANSWER = re.compile(
    rf"(?:\banswer[*_]*(?:\s+to\b[^.\n]{{1,80}}?)?{_IS}|\bfinal\s+answer[*_]*\s*\n|答案(?:是|为|：|:))[\s*_:]*", re.I
)
_TAGGED = re.compile(r"<answer>(.+?)</answer>", re.IGNORECASE | re.DOTALL)

# "B", "(B)", "**b**", "$\text{(B)}$", but neither "a mammal" nor "I think".
_CHOICE = (
    r"[\s*_(\[{$\"“'‘]*(?:\\(?:text|textbf|mathrm|mathbf|boxed)\{[\s(*]*)*"
    r"((?-i:[A-HJ-Z])|[a-z](?=\s*(?:[^\s\w]|$)))(?!['’]?\w)"
)
_CALLED = re.compile(
    r"(?:\banswer(?:\s+to\b[^.\n]{1,80}?)?(?:'s|\s+(?:is|would\s+be|should\s+be|must\s+be))?[\s*_]*[:：–-]?"
    rf"|\b(?:choice|option|letter|(?:correct|best|right)\s+(?:one|statement|response))[*_]*{_IS}"
    r"|\b(?:I|I'd|I'll|would|will|we|must)\s+(?:choose|pick|select|say|go\s+with)\b"
    r"|选择?|答案(?:是|为|：|:)?"
    r"|\bit(?:'s|\s+(?:is|would\s+be|should\s+be|must\s+be)))"
    rf"[\s*_:]*(?:(?:therefore|thus|indeed|[a-z]+ly)\s+)?(?:(?:option|choice|letter)\b[\s*_:]*)?{_CHOICE}",
    re.IGNORECASE,
)
_CONFIRMED = re.compile(
    r"(?<!['’\w])\(?([A-HJ-Z])\)?[*_]*\s+is\s+(?:the\s+|therefore\s+)?(?:correct|right|best|answer)\b"
)
_AT_START = re.compile(_CHOICE, re.IGNORECASE)
# "B", "(B) because", "**B.**", but not the article of "A dog barks".
_BEGINS = re.compile(r"^[\s*_(\[]*(?:(?:[Oo]ption|[Cc]hoice)\s+\(?)?([A-Z])(?=\s*$|[).:\]*_])", re.MULTILINE)
_ALONE = re.compile(r"[\s*_(\[]*([a-zA-Z])[\s*_)\].]*")
# "Therefore: B", "so it is (B)."
_ENDS = (re.compile(r"[:→⇒]\s*[*_(]*([A-Z])[*_).\s]*$"), re.compile(r"\(([A-Z])\)[*_.\s]*$"))


def number(text: str) -> str | None:
    """Return the number or formula of the final answer: "so 1,234.50 dollars" -> "1234.5", "\\boxed{6/8}" -> "3/4".

    Currency, per cent and units are removed. A formula is returned as written, if math-verify can parse it.
    """
    text = _final_text(text)
    for mark, is_formula in _marks(text):
        answer = _formula(mark) if is_formula else _first_number(mark)
        if answer is not None:
            return answer
    for phrase in reversed(list(_ANSWER.finditer(text))):
        rest = text[phrase.end() :]
        answer = _first_number(rest)
        answer = answer or _last_number(re.split(r"[.!?](?:\s|$)|\n", rest, maxsplit=1)[0])
        if answer is not None:
            return answer
    return _last_number(text)


def same_number(a: str, b: str) -> bool:
    """Return whether two results of `number` are equal: as text, or as formulas by math-verify."""
    if a == b or (_PLAIN.fullmatch(a) and _PLAIN.fullmatch(b)):
        return a == b
    verifier = _math_verify()
    return bool(verifier.verify(verifier.parse(f"${b}$"), verifier.parse(f"${a}$")))


def letter(text: str) -> str | None:
    """Return the letter of a choice, in upper case.

    The marked one, else the last that is called the answer, else one that ends the text after a colon, else the first
    that begins a line.
    """
    text = _final_text(text)
    for mark, _ in _marks(text):
        match = _AT_START.match(mark)
        if match:
            return match[1].upper()
    called = _CALLED.findall(text) or _CONFIRMED.findall(text)
    if called:
        return called[-1].upper()
    match = _ALONE.fullmatch(text) or _ENDS[0].search(text) or _BEGINS.search(text) or _ENDS[1].search(text)
    return match[1].upper() if match else None


def plain(text: str) -> str:
    """Normalize a text for exact match: no letter case, punctuation, articles or repeated spaces."""
    text = "".join(" " if unicodedata.category(c).startswith("P") else c for c in unicodedata.normalize("NFKC", text))
    return " ".join(word for word in text.lower().split() if word not in ("a", "an", "the"))


@dataclass
class CheckableAnswers(Measure):
    """1 for each row with a correct final answer, 0 for the others.

    Args:
        rows: conversations that end with an assistant's turn, or prompts with completions: the correct answers.
        final: what is compared. number: the marked or last number or formula (extra `eval`); letter: the choice;
            text: the whole answer without letter case, punctuation and articles; contains: whether the correct
            answer, normalized in this way, is part of the model's.
        max_new_tokens: maximum length of an answer; the final answer is extracted from a truncated one as well.
    Raises: ValueError for rows without a response, or whose own response has no such final answer; ImportError without
        the extra, before anything is generated.
    """

    rows: Dataset
    final: Final = "number"
    max_new_tokens: int = 256

    better = "higher"
    unit = "share right"

    def __post_init__(self) -> None:
        check_choices(self)
        if len(self.rows) == 0:
            raise ValueError("there is nothing to measure on: the task has no rows.")
        if self.final == "number":
            _math_verify()
        find: Callable[[str], str | None] = {"number": number, "letter": letter}.get(self.final, plain)  # type: ignore[arg-type]
        self._find, self._prompts, self._correct = find, [], []
        for place, row in enumerate(conversations_of(self.rows)):
            if isinstance(row, BadRow):
                raise ValueError(f"row {place} of a task cannot be read: {row}.")
            correct = self._correct_answer(row)
            if not correct:
                raise ValueError(f"row {place} of a task has no {self.final} in its response; choose another `final`.")
            self._correct.append(correct)
            self._prompts.append(row.messages[:-1])

    def _correct_answer(self, row: Conversation) -> str | None:
        last = row.messages[-1]
        return self._find(last["content"]) if last["role"] == "assistant" and len(row.messages) > 1 else None

    def identity(self) -> dict[str, object]:
        """Return a fingerprint of the rows, and how their answers are compared."""
        rows = pool_fingerprint(readable(self.rows))
        return {"answers to": rows, "final": self.final, "max_new_tokens": self.max_new_tokens}

    def rows_in_pool(self) -> Dataset:
        """Return the rows of the task."""
        return self.rows

    def __call__(self, lm: CausalLM) -> list[float]:
        sampling = Sampling(temperature=0, max_new_tokens=self.max_new_tokens)
        answers = TransformersGenerator(lm).generate(self._prompts, sampling)
        errors = [answer.error for answer in answers if answer.error]
        if errors:
            raise RuntimeError(f"{len(errors)} of {len(answers)} prompts got no answer (the first: {errors[0]}).")
        return [float(self._is_correct(a.text, correct)) for a, correct in zip(answers, self._correct, strict=True)]

    def _is_correct(self, text: str, correct: str) -> bool:
        if self.final == "contains":
            return f" {correct} " in f" {plain(text)} "
        answer = self._find(text)
        return answer is not None and (same_number(answer, correct) if self.final == "number" else answer == correct)


# --------------------------------------------------------------------------------------------------------------------


def _final_text(text: str) -> str:
    """Return the text after the reasoning, with digits, full-width letters and signs in ASCII."""
    text = text.rpartition("</think>")[2].translate(_WIDE)
    return _OTHER_DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0])), text)


def _marks(text: str) -> list[tuple[str, bool]]:
    """Return (marked answer, whether all of it is a formula), the last mark first."""
    marks = [(match.end(), text[match.end() :].lstrip(), False) for match in re.finditer("####", text)]
    marks += [(match.end(), match[1].strip(), False) for match in _TAGGED.finditer(text)]
    if boxes := list(_BOX.finditer(text)):
        marks.append((boxes[-1].start(), _boxed(text[boxes[-1].end() :], bool(boxes[-1][1])), True))
    return [(mark, is_formula) for _, mark, is_formula in sorted(marks, reverse=True)]


def _boxed(rest: str, in_braces: bool) -> str:
    """Return the contents of a box from the text after its mark; braces may be nested, and the last may be missing."""
    if not in_braces:
        return re.split(r"[\s$]", rest, maxsplit=1)[0]
    depth = 1
    for i, character in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return rest[:i].strip()
    return rest.strip()


def _first_number(text: str) -> str | None:
    """Return the number or formula at the start of a text: "$12.50 each", "**3/4**", "x = 5 apples", "3 + 4 = 7."."""
    text = text[_BEFORE_NUMBER.match(text).end() :]  # pyright: ignore[reportOptionalMemberAccess]
    maths = _MATHS.match(text)
    if maths and not _is_money(maths):
        return _formula(next(filter(None, maths.groups())))
    while equation := _EQUATION.match(text):
        text = text[equation.end() :].lstrip()
    match = _NUMBER_PATTERN.match(text)
    return _shortest_form(match) if match else None


def _last_number(text: str) -> str | None:
    last = next(reversed(list(_NUMBER_PATTERN.finditer(text))), None)
    if last is None:
        return None
    for maths in _MATHS.finditer(text):
        if maths.start() <= last.start() < maths.end() and not _is_money(maths):
            return _formula(next(filter(None, maths.groups()))) or _shortest_form(last)
    return _shortest_form(last)


def _formula(text: str) -> str | None:
    """Return a formula: the number after its last "=", perhaps with a unit, else all of it as written, if math-verify
    can parse it."""
    text = re.sub(r"\\text\s?\{\s*(?:and|or)\s*\}", ",", text.replace("{,}", ",").replace("\\!", ""))
    bare = " ".join(_DRESS.sub(" ", text).split()).rstrip(".")
    match = _WITH_UNIT.fullmatch(re.split(r"(?<![<>!])=|\\approx", bare)[-1].strip())
    if match:
        return _shortest_form(match)
    return bare if bare and _math_verify().parse(f"${bare}$") else None


def _is_money(maths: re.Match[str]) -> bool:
    """Return whether dollar signs stand for money, as in "$5 and then $"."""
    return maths[2] is not None and bool(_WORD_OF_TEXT.search(_DRESS.sub(" ", maths[2])))


def _shortest_form(match: re.Match[str]) -> str:
    """Return a number in its shortest form: "1234.5", "-3/4", "5:30"."""
    sign, digits = "-" if match[1] else "", match[2]
    if re.search("[√π^eE]", digits):
        return sign + _latex(digits)
    if ":" in digits or len(digits) > _LONGEST and "/" in digits:
        return sign + digits
    if "/" in digits:
        *whole, over, under = map(int, re.findall(r"\d+", digits))
        return f"{sign}{sum(whole) + Fraction(over, under) if under else digits}"
    whole, _, part = digits.replace(",", "").partition(".")
    value = (whole.lstrip("0") or "0") + (f".{part.rstrip('0')}" if part.rstrip("0") else "")
    return f"{sign}{value}" if value != "0" else value


def _latex(text: str) -> str:
    text = re.sub(r"√\s?\(?(\d+)\)?", r"\\sqrt{\1}", text.replace("π", "\\pi").replace("\u2212", "-"))
    text = re.sub(r"[eE]([-+]?\d+)$", r" \\times 10^{\1}", text)
    return re.sub(r"\s?\^\s?\{?([-+]?\d+)\}?", r"^{\1}", re.sub(r"\s?[x×*·]\s?", r" \\times ", text))


def _math_verify() -> Any:
    require("checking numbers", "math_verify")
    import math_verify

    return math_verify
