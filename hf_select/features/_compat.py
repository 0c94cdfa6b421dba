"""Differences between versions of sentence-transformers (extra `embed`)."""

from typing import Any


def embedding_dimension(encoder: Any) -> int:
    """Size of the vectors of a sentence encoder (sentence-transformers 6.2: `get_embedding_dimension`, 5.0:
    `get_sentence_embedding_dimension`)."""
    name = "get_embedding_dimension"
    return getattr(encoder, name if hasattr(encoder, name) else "get_sentence_embedding_dimension")()
