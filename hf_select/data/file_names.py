"""File and folder names derived from arbitrary text."""

import hashlib
import json
import re


def slug(text: str, max_length: int | None = None) -> str:
    """Lower-case words joined by hyphens: "Qwen/Qwen2.5 7B" -> "qwen-qwen2-5-7b"; "" if the text has no word."""
    return re.sub(r"[\W_]+", "-", text.lower()).strip("-")[:max_length]


def short_digest(value: object) -> str:
    """Eight hex digits of the SHA-256 of a JSON value, to distinguish equal slugs."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
