"""Filters for answers that are empty, cut off or refusals. Duplicates and overlap with evaluation sets are found by
selection/dedup.py and selection/decontaminate.py."""

import re
from pathlib import Path

from hf_select.generation.generator import Answer


# Beginnings of refusals. Only at the very start: later in a text, "I'm sorry, but I can't" may be dialogue.
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
    """Beginnings of refusals from a file, one per line, in lower case.

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
    """Whether a text begins like a refusal."""
    text = text.strip()
    return bool(_REFUSALS.match(text)) or text.lower().startswith(tuple(more_refusals))


def without_reasoning(text: str) -> str:
    """The text without a leading <think> block, which some servers leave in the answer."""
    return re.sub(r"^\s*<think>.*?</think>\s*", "", text, flags=re.DOTALL)


def rejection_reason(answer: Answer, more_refusals: list[str]) -> str:
    """Why an answer is rejected: "empty", "cut off at max_new_tokens", "refused" or "stopped by a content filter"; ""
    if it is accepted.

    Args:
        more_refusals: further beginnings of refusals, in lower case; the built-in ones are English.
    """
    text = answer.text.strip()
    if answer.finish_reason == "content_filter":
        return "stopped by a content filter"
    if answer.finish_reason == "length":
        return "cut off at max_new_tokens"
    if not text:
        return "empty"
    return "refused" if is_refusal(text, more_refusals) else ""
