"""Differences between versions of transformers that affect running a model."""

import inspect
from pathlib import Path
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


def model_cache() -> str | Path | None:
    """The cache folder of `from_pretrained` if it has one of its own: in transformers 4.57 the variable
    TRANSFORMERS_CACHE. None if it is that of huggingface_hub (5.5, 5.23)."""
    from transformers.utils import hub

    return getattr(hub, "TRANSFORMERS_CACHE", None)


def cause_of(error: Exception) -> Exception:
    """The error to report for one that was raised by loading. Where protobuf is not installed, transformers 4.57 asks
    for it when the file of a tokenizer cannot be read, and the reason is the error before that one."""
    before = error.__context__
    if isinstance(error, ImportError) and "protobuf" in str(error) and type(before) is Exception:
        return before
    return error
