"""What keeps an answer out: nothing said, cut off, refused. Copies and evaluation sets are the business of
selection/dedup.py and selection/decontaminate.py."""

import re
from pathlib import Path

from hf_select.generation.generator import Answer


# How answers begin that decline instead of answering. Only at the very start: further on, "I'm sorry, but I can't" is
# what somebody in a story says.
_REFUSALS = re.compile(
    r"""^\W*(
        (i\s*(am|'m|’m)\s+(very\s+|so\s+|truly\s+)?(sorry|afraid)\b.{0,40}?\b|sorry,?\s+(but\s+)?|unfortunately,?\s+|i\s+apologi[sz]e.{0,40}?\b)
            (i\s*(can(not|'t|’t)|can\s+not|am\s+(not\s+able|unable)|'m\s+(not\s+able|unable)|won(’|')t|will\s+not)
            |(this|that|the|your)\s+(question|request|task)\s+(is\s+(unclear|incomplete)|cannot))
      | i\s+(can(not|'t|’t)|can\s+not|am\s+unable\s+to|am\s+not\s+able\s+to|won(’|')t|must\s+decline\s+to)\s+
            (assist|help|answer|provide|fulfil|comply|engage|generate|create|write|do\s+that|continue)
      | as\s+an?\s+(ai|artificial\s+intelligence|(large\s+)?language\s+model)
            (\s+((large\s+)?language\s+)?(model|assistant))?,?\s+i\b
      | i\s*(am|'m|’m)\s+(just\s+|only\s+)?an?\s+(ai|(large\s+)?language\s+model)\b
    )""",
    re.IGNORECASE | re.VERBOSE,
)


def read_refusals(path: str | None) -> list[str]:
    """Beginnings of answers that decline, one a line, in lower case.

    Raises: ValueError if the file cannot be read.
    """
    if path is None:
        return []
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").lower().splitlines()
    except OSError as error:
        raise ValueError(f'cannot read refusals "{path}": {error.strerror}.') from None
    return [line.strip() for line in lines if line.strip()]


def is_refusal(text: str, more_refusals: list[str]) -> bool:
    """Whether a text declines instead of answering, by how it begins."""
    text = text.strip()
    return bool(_REFUSALS.match(text)) or text.lower().startswith(tuple(more_refusals))


def without_reasoning(text: str) -> str:
    """The text without the thoughts that some models write before it, where the server does not part them."""
    return re.sub(r"^\s*<think>.*?</think>\s*", "", text, flags=re.DOTALL)


def unusable(answer: Answer, more_refusals: list[str]) -> str:
    """Why an answer cannot be used: "empty", "cut off at max_new_tokens", "refused" or "stopped by a content filter";
    "" if it can.

    Args:
        more_refusals: beginnings, in any case, that count as a refusal, too; the built-in ones are English.
    """
    text = answer.text.strip()
    if answer.finish_reason == "content_filter":
        return "stopped by a content filter"
    if answer.finish_reason == "length":
        return "cut off at max_new_tokens"
    if not text:
        return "empty"
    return "refused" if is_refusal(text, more_refusals) else ""
