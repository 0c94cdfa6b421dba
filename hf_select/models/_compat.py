"""Differences between versions of transformers that affect running a model."""

import inspect
from typing import Any


def is_croppable(cache_layer: Any) -> bool:
    """Whether a layer of a KV cache can be truncated to its first tokens. Layers have an attribute for this in
    transformers 5.23. In 4.57 and 5.5, a layer that supports it has a method `crop`."""
    return getattr(cache_layer, "is_croppable", hasattr(cache_layer, "crop"))


def cache_argument(model: Any) -> str | None:
    """The parameter of `model.forward` for a KV cache: `cache` in transformers 5.24, `past_key_values` before (an
    alias until 5.40). None if the model does not accept one (Mamba in 4.57)."""
    names = inspect.signature(model.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in names), None)


def takes_position_ids(model: Any) -> bool:
    """Whether `model.forward` accepts `position_ids`. BLOOM does not, and warns about the argument in 4.57."""
    return "position_ids" in inspect.signature(model.forward).parameters
