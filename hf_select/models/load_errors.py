"""Errors while loading a model, as one line that names the given value and how to fix it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hf_select.models._compat import cause_of
from hf_select.models.batching import is_out_of_memory


@contextmanager
def named(what: str) -> Iterator[None]:
    """Within the block, convert errors of torch, tokenizers and file formats to a ValueError that names the source."""
    try:
        yield
    except Exception as raised:
        error = cause_of(raised)
        unnamed = isinstance(error, (json.JSONDecodeError, UnicodeDecodeError))
        if isinstance(error, (ValueError, OSError, ImportError)) and not unnamed:  # already has a clear message
            raise
        details = [line.strip() for line in str(error).splitlines() if line.strip()]
        summary = f"{type(error).__name__}: {' '.join(details[:2])}" if details else type(error).__name__
        if is_out_of_memory(error):
            cure = "It does not fit in memory: use dtype=bfloat16, quantization=4bit or device_map=auto."
        else:
            cure = "A file may be damaged or incomplete, or this release of transformers does not support its format."
        raise ValueError(f'"{what}" cannot be loaded ({summary}). {cure}') from error


def checked_device(device: str) -> str:
    """Raises: ValueError if torch does not know the device, or if this machine does not have it."""
    import torch

    try:
        requested = torch.device(device)
    except RuntimeError:
        raise ValueError(
            f'device is "{device}"; give one that torch knows, such as cpu, cuda, cuda:1 or mps.'
        ) from None
    if requested.type in ("cpu", "meta"):
        return device
    available = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if available is None or available.type != requested.type:
        name = "no accelerator" if available is None else available.type
        raise ValueError(f'device is "{device}", but torch finds {name}; leave it out, or give device=cpu.')
    if (count := torch.accelerator.device_count()) <= (requested.index or 0):
        raise ValueError(f'device is "{device}", but the number of devices is {count}, from {requested.type}:0 on.')
    return device


def checked_dtype(dtype: Any) -> Any:
    """Raises: ValueError if the dtype is neither auto nor a floating-point type of torch."""
    import torch

    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype != "auto" and not (isinstance(kind, torch.dtype) and kind.is_floating_point):
        raise ValueError(f'dtype is "{dtype}"; give auto, float32, bfloat16 or float16.')
    return dtype


def not_causal(name: str, why: str) -> ValueError:
    """The error for a model that is not a causal LM."""
    return ValueError(f'"{name}" is not a causal LM: {why}. Give the checkpoint of one (GPT, Llama, Qwen, ...).')
