"""The text of a row, its words, and normal forms to find exact and near duplicates.

exact   text after Unicode normalisation (NFC), with each run of white space as one space; case and symbols matter
near    n-grams (n = 5) of lower-case words and meaningful symbols ("C++", "a < b", "5!"); sentence punctuation and
        quotes are ignored
words   only lower-case words, for word statistics and to find shared n-grams
"""

import functools
import json
import unicodedata
from collections.abc import Iterator
from typing import Any, Literal

import regex

from hf_select.data.chat_template import REASONING
from hf_select.data.conversation import Conversation


Part = Literal["all", "prompt", "response"]

# Letters, marks and digits of every script. The \w of `re` excludes marks, and splits Devanagari, Tamil or Thai at
# vowel signs. Script-specific symbols are letters of Braille and SignWriting. Variation selectors only choose a glyph.
_CHARACTER = r"[[\w\p{N}[\p{S}--[\p{sc=Zyyy}\p{sc=Zinh}]]]--[\uFE00-\uFE0F]]"
# Scripts without spaces between words, by Unicode's line breaking classes: Han, kana, Yi, Thai, Lao, Khmer, Burmese,
# Javanese, ... Each letter of these, with its marks, is a word.
_SYLLABIC = r"\p{lb=SA}\p{lb=AK}\p{lb=AP}\p{lb=AS}"
_UNSPACED = rf"[[{_CHARACTER}&&[\p{{lb=ID}}\p{{lb=CJ}}{_SYLLABIC}]]--\p{{M}}]"
_WORD = rf"{_UNSPACED}[\p{{M}}\p{{Join_Control}}]*|[{_CHARACTER}--{_UNSPACED}]+"

_LETTER, _LIGHT, _DASH = r"[\p{L}\p{M}]", r".,;:!?'\"`", r"[-‐-–]"
_PAUSE = rf"(?<=(?<!\S){_DASH}*){_DASH}+(?!\S)(?<!(?<!\S){_DASH})"  # several dashes between white space
_SYMBOL = "|".join(
    [
        r"[[\p{S}--[`]]#%&*/\\@()\[\]{}§‰′″＃％＆＊／＠（）［］｛｝]",
        rf"(?!{_PAUSE})(?:(?<!{_LETTER}){_DASH}|{_DASH}(?!{_LETTER}))",  # a minus, but not a hyphen or " -- "
        rf"(?<=\d)!|(?<![\p{{L}}\p{{M}})\]*{_LIGHT}])!(?=[^\s{_LIGHT}])",  # "5!", "!a", "a != b", but not "Hello!"
        # Within numbers, formulas and code ("3.5", "12:30", "f'(x)"), but not between letters or at either end.
        rf"(?<=[^\s{_LIGHT}(\[{{])(?<!{_LETTER}(?=.{_LETTER}))[{_LIGHT}](?=[^\s{_LIGHT})\]}}])",
    ]
)
_WORDS = regex.compile(_WORD, regex.V1)
_WORDS_AND_SYMBOLS = regex.compile(f"{_WORD}|{_SYMBOL}", regex.V1)
_SYLLABIC_LETTER = regex.compile(f"[{_SYLLABIC}]", regex.V1)
_CACHED = 24  # pieces between white space up to this length are cached: most of them recur

_SHINGLE = 5


def exact(text: str) -> str:
    """The normal form that exact duplicates share."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def words(text: str) -> list[str]:
    """Lower-case words. In scripts without spaces, each letter with its marks is a word."""
    return _matches(_WORDS, text)


def half_words(word: str) -> int:
    """Length of a word in an n-gram, in half words: 2, or 1 for a letter of Thai, Lao, Khmer, Burmese and similar
    scripts, in which a word has three or four letters. A Chinese character counts as a word."""
    return 2 if word.isascii() or not _SYLLABIC_LETTER.match(word) else 1


def words_and_symbols(text: str) -> list[str]:
    """Lower-case words and meaningful symbols. Text with only other characters, such as "?!", is one token."""
    return _matches(_WORDS_AND_SYMBOLS, text) or ([exact(text)] if text.strip() else [])


def shingles(text: str, n: int = _SHINGLE) -> set[tuple[str, ...]]:
    """N-grams of words and symbols. A shorter text is one n-gram."""
    tokens = words_and_symbols(text)
    return {tuple(tokens[i : i + n]) for i in range(max(1, len(tokens) - n + 1))} if tokens else set()


def text_of(row: Conversation, of: Part = "all") -> str:
    """The text of a row, its prompt or its responses: names, reasoning, content and tool calls. Definitions of tools
    are not included."""
    return " ".join(_parts_of(row, of))


def characters_of(row: Conversation, of: Part = "all") -> int:
    """Number of characters of a row, its prompt or its responses, as in `text_of`."""
    return sum(map(len, _parts_of(row, of)))


def says_something(message: dict[str, Any]) -> bool:
    """Whether a message has content, reasoning or tool calls."""
    return bool(message.get("tool_calls")) or any(
        words.strip() for words in (message["content"], *_reasoning(message))
    )


def beside_text(reply: dict[str, Any]) -> str:
    """A note for methods that read only the content of a reply: it lists the parts that they ignore."""
    ignored = {"reasoning": _reasoning(reply), "tool calls": reply.get("tool_calls")}
    parts = [name for name, value in ignored.items() if value]
    return f"read without its {' and '.join(parts)}" if parts else ""


def prompt_of(row: Conversation) -> str:
    """The text of all turns that are not responses."""
    return text_of(row, "prompt")


def _parts_of(row: Conversation, of: Part) -> Iterator[str]:
    if row.text is not None:
        yield from [] if of == "prompt" else [row.text]
    for message in row.messages:
        if of == "all" or (message["role"] == "assistant") == (of == "response"):
            parts = [message.get("name"), *map(message.get, REASONING), message["content"]]
            yield from (part for part in parts if isinstance(part, str) and part)
            yield from map(_call, message.get("tool_calls") or [])


def _reasoning(message: dict[str, Any]) -> list[str]:
    return [words for words in map(message.get, REASONING) if isinstance(words, str) and words]


def _call(call: dict[str, Any]) -> str:
    """The name and arguments of a tool call. Arguments given as an object or as JSON text, in any order, are equal."""
    function = call.get("function", call)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError:
            return f"{function.get('name')} {arguments}"
    return f"{function.get('name')} {json.dumps(arguments, ensure_ascii=False, sort_keys=True)}"


def _matches(pattern: regex.Pattern[str], text: str) -> list[str]:
    """All matches in the lower-case text, piece by piece: no match depends on text beyond white space."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    matches: list[str] = []
    # Not casefold, which would equate "Maße" and "Masse".
    for piece in text.lower().split():
        matches += _cached_matches(pattern, piece) if len(piece) <= _CACHED else _piece_matches(pattern, piece)
    return matches


def _piece_matches(pattern: regex.Pattern[str], piece: str) -> list[str]:
    return pattern.findall(piece if piece.isascii() else unicodedata.normalize("NFC", piece))


_cached_matches = functools.lru_cache(maxsize=1 << 16)(_piece_matches)
