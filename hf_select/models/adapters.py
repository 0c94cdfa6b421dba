"""Loads PEFT adapters onto a causal LM, and rejects those that do not match it.

PEFT only warns about adapter tensors that are missing from the file, and silently ignores stored tensors without a
matching layer. An adapter of another architecture would load without an error and have no effect.
"""

import warnings
from pathlib import Path
from typing import Any

from hf_select.extras import require
from hf_select.models.sources import resolve_source


_WEIGHTS = "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"


def put_adapter(model: Any, adapter: str, name: str = "default", revision: str | None = None) -> Any:
    """Load an adapter onto a model; returns a PeftModel, which accepts more adapters under other names.

    Args:
        adapter: folder or Hub id of the adapter.
        revision: branch, tag or commit of the adapter's repository.
    Raises: ValueError if the weights are not in safetensors, or if they do not match the model's adapter layers tensor
        by tensor. ImportError without peft.
    """
    require("an adapter", "peft")
    from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
    from safetensors import SafetensorError

    source = resolve_source(adapter)
    _check_files(adapter, source, revision)
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(source, name, revision=revision)
        else:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Found missing adapter keys")  # rejected below
                model = PeftModel.from_pretrained(model, source, adapter_name=name, revision=revision)
        if model.peft_config[name].is_prompt_learning:
            raise ValueError("prompt learning is not supported, only adapters inside the layers (LoRA ...).")
        # Load again to get the report, which PeftModel.from_pretrained does not return (PEFT 0.21).
        stored = load_peft_weights(source, device="cpu", revision=revision)
        report = set_peft_model_state_dict(model, stored, adapter_name=name)
    except KeyError as error:  # of a fully trained layer (modules_to_save)
        raise _no_fit(adapter, f"its file lacks {error}") from error
    except (RuntimeError, ValueError, SafetensorError) as error:
        heading, *details = str(error).splitlines()
        raise _no_fit(adapter, details[0].strip() if details else heading) from error
    missing = _missing(model, report.missing_keys, name)
    unused = report.unexpected_keys
    faults = [f"tensors missing from its file: {len(missing)} ({missing[0]} ...)"] if missing else []
    faults += [f"stored tensors without a layer: {len(unused)} of {len(stored)} ({unused[0]} ...)"] if unused else []
    if faults:
        raise _no_fit(adapter, "; ".join(faults))
    return model


def _check_files(adapter: str, source: str, revision: str | None) -> None:
    """Raise ValueError for pickled weights, which PEFT would fall back to."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if Path(source).is_dir():
        has_pickle, has_safetensors = ((Path(source) / file).exists() for file in (_PICKLED, _WEIGHTS))
    else:
        has_pickle, has_safetensors = False, True
        try:
            hf_hub_download(source, _WEIGHTS, revision=revision)
        except LocalEntryNotFoundError as error:
            kind = ValueError if constants.HF_HUB_OFFLINE else ConnectionError  # a lost connection is worth a retry
            raise kind(
                f'the local cache does not hold {_WEIGHTS} of adapter "{adapter}", and the Hub cannot be reached. '
                f"Download it first: hf download {adapter}."
            ) from error
        except EntryNotFoundError:
            has_safetensors = False
    if has_safetensors:
        return
    fault = f"only a pickled {_PICKLED}, which could run code" if has_pickle else f"no {_WEIGHTS}"
    raise ValueError(f'adapter "{adapter}" has {fault}; save it with save_pretrained(), which writes safetensors.')


def _missing(model: Any, keys: list[str], name: str) -> list[str]:
    """The tensors of this adapter among the missing keys. A tensor shared by several layers is stored once."""
    tensors = model.state_dict(keep_vars=True)
    absent = set(keys)
    loaded = {id(tensor) for key, tensor in tensors.items() if key not in absent}
    return [key for key in keys if name in key.split(".") and id(tensors[key]) not in loaded]


def _no_fit(adapter: str, why: str) -> ValueError:
    return ValueError(
        f'adapter "{adapter}" does not fit the model: {why.rstrip(".")}. Give the adapter of this base model.'
    )
