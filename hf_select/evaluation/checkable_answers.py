"""Generation tasks whose answers can be checked: the share of rows whose final answer is right.

The model answers each prompt greedily in its chat template; from its answer and from the row's own response the final
answer is taken in the same way, and the two are compared. A marked answer comes first: "#### 42", \\boxed{42},
<answer>42</answer>, then "the answer is 42"; only without any of them the last number, or the letter that opens or
ends the text. Reasoning that ends in </think> is left out. Numbers and formulas are compared by math-verify.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from datasets import Dataset

from hf_select.data.bad_rows import BadRow
from hf_select.data.conversation import Conversation, conversations
from hf_select.data.rows import pool_fingerprint, readable
from hf_select.evaluation.measure import Measure
from hf_select.generation.local import TransformersGenerator
from hf_select.models.causal_lm import CausalLM
from hf_select.models.sampling import Sampling
from hf_select.validation import check_choices


Final = Literal["number", "letter", "text", "contains"]

# A minus after a digit, a letter or a bracket takes away; a comma stands before three digits.
_MINUS = r"(?:(?<![\w)\]}])[-\u2212])?"
_DIGITS = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
_POWER = (
    rf"\d+\s?\^\s?\{{?[-\u2212]?\d+\}}?|{_DIGITS}(?:\s?[x×*·]\s?10\s?\^\s?\{{?[-\u2212]?\d+\}}?|[eE][-+]?\d+(?!\w))"
)
_SYMBOLIC = rf"(?:{_DIGITS}\s?)?(?:√\s?\(?\d+\)?|π)|{_POWER}"
# 2^5, 3 x 10^8, 3√2, 5:30, 3/4, 3 1/2, $1,234.50
_NUMBER = re.compile(
    rf"({_MINUS})(?:[$€£¥]\s?)?({_SYMBOLIC}|\d+(?::\d+)+|(?:\d+\s+)?\d+\s?/\s?\d+(?![\d/.])|{_DIGITS})"
)
# The wide letters, brackets and signs of East Asian text; its comma stays, for it is not one within a number.
_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F) if chr(code) != "，"}
_OTHER_DIGIT = re.compile(r"[^\W\D0-9]")
_BOX = re.compile(r"\\(?:boxed|fbox)(?:\s*(\{)|\s+(?=\S))")
# What `number` returns for these has one spelling; 1/2, 0.5 and \frac{1}{2} are one number in three.
_LONGEST = 1000  # digits of a fraction that is reduced: a model may repeat a digit without end
_PLAIN = re.compile(r"-?[\d.:]+")
# A number alone or with a unit: "5 apples", "12 km", but not "2x".
_WITH_UNIT = re.compile(rf"{_NUMBER.pattern}(?:\s*[^\W\d_]{{2,}}(?:\s+[^\W\d_]+)*)?")
# What may stand before the number of a marked answer: "x = ", "about ", "**".
_BEFORE_NUMBER = re.compile(r"(?:[\s*_:=≈~(]|about\b|approximately\b|roughly\b|exactly\b|\\?[a-zA-Z]\s*=(?!=))*")
# In front of "=": numbers, operators and single letters, but no words.
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
    """The number or formula that is the final answer: "so 1,234.50 dollars" -> "1234.5", "\\boxed{6/8}" -> "3/4".

    Currency, per cent and units are left out. A formula is given as it is written, if math-verify can read it.
    """
    text = _answered(text)
    for mark, is_formula in _marks(text):
        found = _formula(mark) if is_formula else _first_number(mark)
        if found is not None:
            return found
    for phrase in reversed(list(_ANSWER.finditer(text))):
        rest = text[phrase.end() :]
        found = _first_number(rest)
        found = found or _last_number(re.split(r"[.!?](?:\s|$)|\n", rest, maxsplit=1)[0])
        if found is not None:
            return found
    return _last_number(text)


def same_number(a: str, b: str) -> bool:
    """Whether two answers, as `number` gives them, are equal: as text, or as formulas by math-verify."""
    if a == b or (_PLAIN.fullmatch(a) and _PLAIN.fullmatch(b)):
        return a == b
    verifier = _math_verify()
    return bool(verifier.verify(verifier.parse(f"${b}$"), verifier.parse(f"${a}$")))


def letter(text: str) -> str | None:
    """The letter of a choice: the one that is marked, else the last that is called the answer, else the first that
    begins a line, unless the text ends with one after a colon."""
    text = _answered(text)
    for mark, _ in _marks(text):
        found = _AT_START.match(mark)
        if found:
            return found[1].upper()
    called = _CALLED.findall(text) or _CONFIRMED.findall(text)
    if called:
        return called[-1].upper()
    found = _ALONE.fullmatch(text) or _ENDS[0].search(text) or _BEGINS.search(text) or _ENDS[1].search(text)
    return found[1].upper() if found else None


def plain(text: str) -> str:
    """Letter case, punctuation, articles and spaces taken away, as is usual for exact match."""
    text = "".join(" " if unicodedata.category(c).startswith("P") else c for c in unicodedata.normalize("NFKC", text))
    return " ".join(word for word in text.lower().split() if word not in ("a", "an", "the"))


@dataclass
class CheckableAnswers(Measure):
    """1 for each row whose final answer is right, 0 for the others.

    Args:
        rows: conversations that end with an assistant's turn, or prompts with completions: the right answers.
        final: what is compared. number: the marked or else the last number or formula (extra `eval`); letter: the
            choice; text: the whole answer without letter case, punctuation and articles; contains: whether the right
            answer, so written, stands in the model's.
        max_new_tokens: of an answer; one that is cut there is read as far as it goes.
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

    def identity(self) -> dict[str, object]:
        rows = pool_fingerprint(readable(self.rows))
        return {"answers to": rows, "final": self.final, "max_new_tokens": self.max_new_tokens}

    def rows_in_pool(self) -> Dataset:
        return self.rows

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
        found = self._find(text)
        return found is not None and (same_number(found, right) if self.final == "number" else found == right)


# --------------------------------------------------------------------------------------------------------------------


def _answered(text: str) -> str:
    """The text without the reasoning before it, its digits, wide letters and wide signs in ASCII."""
    text = text.rpartition("</think>")[2].translate(_WIDE)
    return _OTHER_DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0])), text)


def _marks(text: str) -> list[tuple[str, bool]]:
    """What is marked as the answer, the last mark first, and whether it is a formula as a whole."""
    found = [(place.end(), text[place.end() :].lstrip(), False) for place in re.finditer("####", text)]
    found += [(place.end(), place[1].strip(), False) for place in _TAGGED.finditer(text)]
    if boxes := list(_BOX.finditer(text)):
        found.append((boxes[-1].start(), _boxed(text[boxes[-1].end() :], bool(boxes[-1][1])), True))
    return [(mark, is_formula) for _, mark, is_formula in sorted(found, reverse=True)]


def _boxed(rest: str, in_braces: bool) -> str:
    """What a box holds, by the text behind its mark; braces may be nested, and the last may be missing."""
    if not in_braces:
        return re.split(r"[\s$]", rest, maxsplit=1)[0]
    depth = 1
    for i, character in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return rest[:i].strip()
    return rest.strip()


def _first_number(text: str) -> str | None:
    """The number or formula that a text begins with: "$12.50 each", "**3/4**", "x = 5 apples", "3 + 4 = 7."."""
    text = text[_BEFORE_NUMBER.match(text).end() :]  # pyright: ignore[reportOptionalMemberAccess]
    maths = _MATHS.match(text)
    if maths and not _is_money(maths):
        return _formula(next(filter(None, maths.groups())))
    while equation := _EQUATION.match(text):
        text = text[equation.end() :].lstrip()
    found = _NUMBER.match(text)
    return _written(found) if found else None


def _last_number(text: str) -> str | None:
    found = next(reversed(list(_NUMBER.finditer(text))), None)
    if found is None:
        return None
    for maths in _MATHS.finditer(text):
        if maths.start() <= found.start() < maths.end() and not _is_money(maths):
            return _formula(next(filter(None, maths.groups()))) or _written(found)
    return _written(found)


def _formula(text: str) -> str | None:
    """A formula: what is behind its last "=" if that is a number, perhaps with a unit, else all of it as it is
    written, if math-verify can read it."""
    text = re.sub(r"\\text\s?\{\s*(?:and|or)\s*\}", ",", text.replace("{,}", ",").replace("\\!", ""))
    bare = " ".join(_DRESS.sub(" ", text).split()).rstrip(".")
    found = _WITH_UNIT.fullmatch(re.split(r"(?<![<>!])=|\\approx", bare)[-1].strip())
    if found:
        return _written(found)
    return bare if bare and _math_verify().parse(f"${bare}$") else None


def _is_money(maths: re.Match[str]) -> bool:
    """ "$5 and then $" is no formula."""
    return maths[2] is not None and bool(_WORD_OF_TEXT.search(_DRESS.sub(" ", maths[2])))


def _written(found: re.Match[str]) -> str:
    """A number in its shortest form: "1234.5", "-3/4", "5:30"."""
    sign, digits = "-" if found[1] else "", found[2]
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
    try:
        import math_verify
    except ImportError:
        raise ImportError('checking numbers needs an extra: pip install "hf-select[eval]"') from None
    return math_verify
