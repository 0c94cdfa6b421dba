"""The text of a row: what it says, its words, and when two texts are the same or nearly the same.

exact   the same after Unicode normalisation (NFC) and with all white space as one space; letter case and symbols count
near    lower-case words and the symbols that carry meaning ("C++", "a < b", "5!"), in runs of five; sentence
        punctuation and quotes are left out
words   lower-case words alone, for word statistics and the search for shared runs of words
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

# Letters, marks and digits of every script. `re` leaves out marks, and so splits Devanagari, Tamil or Thai at their
# vowel signs. The symbols of a script are the letters of Braille and SignWriting; variation selectors choose a glyph.
_CHARACTER = r"[[\w\p{N}[\p{S}--[\p{sc=Zyyy}\p{sc=Zinh}]]]--[\uFE00-\uFE0F]]"
# Scripts without spaces between words, by Unicode's line breaking classes: Han, kana, Yi, Thai, Lao, Khmer, Burmese,
# Javanese, ... Each of their letters with its marks is a word.
_SYLLABIC = r"\p{lb=SA}\p{lb=AK}\p{lb=AP}\p{lb=AS}"
_UNSPACED = rf"[[{_CHARACTER}&&[\p{{lb=ID}}\p{{lb=CJ}}{_SYLLABIC}]]--\p{{M}}]"
_WORD = rf"{_UNSPACED}[\p{{M}}\p{{Join_Control}}]*|[{_CHARACTER}--{_UNSPACED}]+"

_LETTER, _LIGHT, _DASH = r"[\p{L}\p{M}]", r".,;:!?'\"`", r"[-‐-–]"
_PAUSE = rf"(?<=(?<!\S){_DASH}*){_DASH}+(?!\S)(?<!(?<!\S){_DASH})"  # several dashes between white space
_SYMBOL = "|".join(
    [
        r"[[\p{S}--[`]]#%&*/\\@()\[\]{}§‰′″＃％＆＊／＠（）［］｛｝]",
        rf"(?!{_PAUSE})(?:(?<!{_LETTER}){_DASH}|{_DASH}(?!{_LETTER}))",  # a minus, but no hyphen and no " -- "
        rf"(?<=\d)!|(?<![\p{{L}}\p{{M}})\]*{_LIGHT}])!(?=[^\s{_LIGHT}])",  # "5!", "!a", "a != b", but not "Hello!"
        # Within numbers, formulas and code ("3.5", "12:30", "f'(x)"), but neither between letters nor at an edge.
        rf"(?<=[^\s{_LIGHT}(\[{{])(?<!{_LETTER}(?=.{_LETTER}))[{_LIGHT}](?=[^\s{_LIGHT})\]}}])",
    ]
)
_WORDS = regex.compile(_WORD, regex.V1)
_WORDS_AND_SYMBOLS = regex.compile(f"{_WORD}|{_SYMBOL}", regex.V1)
_SYLLABIC_LETTER = regex.compile(f"[{_SYLLABIC}]", regex.V1)
_CACHED = 24  # characters of the longest piece between white space that is kept in memory: most come again and again

_SHINGLE = 5


def exact(text: str) -> str:
    """What exact copies have in common."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def words(text: str) -> list[str]:
    """Lower-case words; a letter of a script without spaces, with its marks, is a word."""
    return _found(_WORDS, text)


def half_words(word: str) -> int:
    """How much a word counts where runs of words are asked for: two, or one for a letter of Thai, Lao, Khmer, Burmese
    and the like, of which a word has three or four. A Chinese character counts as a word."""
    return 2 if word.isascii() or not _SYLLABIC_LETTER.match(word) else 1


def words_and_symbols(text: str) -> list[str]:
    """Lower-case words and the symbols that carry meaning; a text of other signs alone, as "?!", is one token."""
    return _found(_WORDS_AND_SYMBOLS, text) or ([exact(text)] if text.strip() else [])


def shingles(text: str, n: int = _SHINGLE) -> set[tuple[str, ...]]:
    """Runs of n words and symbols; a shorter text is one run."""
    tokens = words_and_symbols(text)
    return {tuple(tokens[i : i + n]) for i in range(max(1, len(tokens) - n + 1))} if tokens else set()


def text_of(row: Conversation, of: Part = "all") -> str:
    """All that is said in the row, in its prompt or in its responses: names, reasoning, content and tool calls. The
    tools that the row may call are not said."""
    return " ".join(_said(row, of))


def characters_of(row: Conversation, of: Part = "all") -> int:
    """Characters of what is said in the row, in its prompt or in its responses."""
    return sum(map(len, _said(row, of)))


def says_something(message: dict[str, Any]) -> bool:
    """Whether a message has words, reasoning or tool calls."""
    return bool(message.get("tool_calls")) or any(
        words.strip() for words in (message["content"], *_reasoning(message))
    )


def beside_text(reply: dict[str, Any]) -> str:
    """A note for methods that read a reply's text alone: what else it says."""
    parts = [
        name for name, said in (("reasoning", _reasoning(reply)), ("tool calls", reply.get("tool_calls"))) if said
    ]
    return f"read without its {' and '.join(parts)}" if parts else ""


def prompt_of(row: Conversation) -> str:
    """The text of all turns that are not responses."""
    return text_of(row, "prompt")


def _said(row: Conversation, of: Part) -> Iterator[str]:
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
    """A tool call as its name and arguments; arguments as an object or as JSON text, in any order, are the same."""
    function = call.get("function", call)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError:
            return f"{function.get('name')} {arguments}"
    return f"{function.get('name')} {json.dumps(arguments, ensure_ascii=False, sort_keys=True)}"


def _found(pattern: regex.Pattern[str], text: str) -> list[str]:
    """All matches in the text in lower case; none of them depends on what is beyond white space."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    found: list[str] = []
    # Not casefold, by which "Maße" and "Masse" would be one word.
    for piece in text.lower().split():
        found += _found_before(pattern, piece) if len(piece) <= _CACHED else _in_piece(pattern, piece)
    return found


def _in_piece(pattern: regex.Pattern[str], piece: str) -> list[str]:
    return pattern.findall(piece if piece.isascii() else unicodedata.normalize("NFC", piece))


_found_before = functools.lru_cache(maxsize=1 << 16)(_in_piece)
