"""Differences between versions of transformers that reading a model depends on."""

import inspect
from typing import Any


def is_croppable(cache_layer: Any) -> bool:
    """Whether a layer of a KV cache can be cut back to its first tokens. Layers of transformers 5.23 say so; those of
    4.57 and 5.5 have a method `crop` where they can."""
    return getattr(cache_layer, "is_croppable", hasattr(cache_layer, "crop"))


def cache_argument(model: Any) -> str | None:
    """The name under which `model.forward` takes a KV cache: `cache` in transformers 5.24, `past_key_values` before
    (its alias until 5.40); None for a model that takes none (Mamba in 4.57)."""
    names = inspect.signature(model.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in names), None)


def takes_position_ids(model: Any) -> bool:
    """Whether `model.forward` names `position_ids`. BLOOM does not, and warns of it in 4.57."""
    return "position_ids" in inspect.signature(model.forward).parameters
