"""What goes wrong while a model is loaded, as one line that says what was given and what to do."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size


@contextmanager
def named(what: str) -> Iterator[None]:
    """Within the block, errors of torch, tokenizers and file formats become a ValueError that names what is loaded."""
    try:
        yield
    except Exception as error:
        unnamed = isinstance(error, (json.JSONDecodeError, UnicodeDecodeError))
        if isinstance(error, (ValueError, OSError, ImportError)) and not unnamed:  # have a message for users
            raise
        details = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = f"{type(error).__name__}: {' '.join(details[:2])}" if details else type(error).__name__
        if isinstance(error, MemoryError) or should_reduce_batch_size(error):
            cure = "It does not fit in memory: use dtype=bfloat16, quantization=4bit or device_map=auto."
        else:
            cure = "A file may be damaged or incomplete, or of a kind that this release of transformers does not read."
        raise ValueError(f'"{what}" cannot be loaded ({said}). {cure}') from error


def checked_device(device: str) -> str:
    """Raises: ValueError if torch does not know the device, or does not find it here."""
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise ValueError(
            f'device is "{device}"; give one that torch knows, such as cpu, cuda, cuda:1 or mps.'
        ) from None
    if wanted.type in ("cpu", "meta"):
        return device
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if here is None or here.type != wanted.type:
        found = "no accelerator" if here is None else here.type
        raise ValueError(f'device is "{device}", but torch finds {found} here; leave it out, or give device=cpu.')
    if (count := torch.accelerator.device_count()) <= (wanted.index or 0):
        raise ValueError(f'device is "{device}", but there are {count} here, counted from {wanted.type}:0.')
    return device


def checked_dtype(dtype: Any) -> Any:
    """Raises: ValueError if it is neither auto nor a floating-point type of torch."""
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype != "auto" and not (isinstance(kind, torch.dtype) and kind.is_floating_point):
        raise ValueError(f'dtype is "{dtype}"; give auto, float32, bfloat16 or float16.')
    return dtype
