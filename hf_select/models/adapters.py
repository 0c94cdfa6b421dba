"""PEFT adapters on a causal LM, loaded whole or refused.

PEFT only warns about adapter tensors that are missing from the file and says nothing about stored tensors that no
layer takes, so an adapter of another architecture loads without an error and changes nothing.
"""

import warnings
from pathlib import Path
from typing import Any

from hf_select.models.sources import resolve_source


_WEIGHTS = "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"


def put_adapter(model: Any, adapter: str, name: str = "default", revision: str | None = None) -> Any:
    """The model with the adapter on it, as a PeftModel; more adapters can be put on that under other names.

    Args:
        adapter: folder or Hub id of the adapter.
        revision: branch, tag or commit of the adapter's own repository.
    Raises: ValueError if its weights are not in safetensors, or if they and the model's adapter layers do not match
        tensor by tensor.
    """
    from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
    from safetensors import SafetensorError

    source = resolve_source(adapter)
    _check_files(adapter, source, revision)
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(source, name, revision=revision)
        else:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Found missing adapter keys")  # refused below
                model = PeftModel.from_pretrained(model, source, adapter_name=name, revision=revision)
        if model.peft_config[name].is_prompt_learning:
            raise ValueError("it learns a prompt, and only adapters inside the layers (LoRA ...) work.")
        # Once more, for the report: PeftModel.from_pretrained does not return it (seen in PEFT 0.21).
        stored = load_peft_weights(source, device="cpu", revision=revision)
        report = set_peft_model_state_dict(model, stored, adapter_name=name)
    except KeyError as error:  # of a layer that was trained whole (modules_to_save)
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
    """Refuse pickled weights, which PEFT would fall back to."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    if Path(source).is_dir():
        pickled, whole = ((Path(source) / file).exists() for file in (_PICKLED, _WEIGHTS))
    else:
        pickled, whole = False, True
        try:
            hf_hub_download(source, _WEIGHTS, revision=revision)
        except EntryNotFoundError:
            whole = False
    if whole:
        return
    found = f"only a pickled {_PICKLED}, which could run code" if pickled else f"no {_WEIGHTS}"
    raise ValueError(f'adapter "{adapter}" has {found}; save it with save_pretrained(), which writes safetensors.')


def _missing(model: Any, keys: list[str], name: str) -> list[str]:
    """The adapter's own tensors among these; one that several layers share is stored once."""
    tensors = model.state_dict(keep_vars=True)
    absent = set(keys)
    loaded = {id(tensor) for key, tensor in tensors.items() if key not in absent}
    return [key for key in keys if name in key.split(".") and id(tensors[key]) not in loaded]


def _no_fit(adapter: str, why: str) -> ValueError:
    return ValueError(
        f'adapter "{adapter}" does not fit the model: {why.rstrip(".")}. Give the adapter of this base model.'
    )
