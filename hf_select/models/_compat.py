"""Differences between versions of transformers that reading a model depends on."""

from typing import Any


def is_croppable(cache_layer: Any) -> bool:
    """Whether a layer of a KV cache can be cut back to its first tokens. Layers of transformers 5.23 say so; those of
    4.57 and 5.5 have a method `crop` where they can."""
    return getattr(cache_layer, "is_croppable", hasattr(cache_layer, "crop"))
