"""Loads a causal LM with its tokenizer and adapter."""

import copy
import os
from typing import TYPE_CHECKING, Any, Protocol

from hf_select.extras import require
from hf_select.jobs.launch import local_rank
from hf_select.jobs.retry import with_retries
from hf_select.models.load_errors import checked_device, checked_dtype, named, not_causal


if TYPE_CHECKING:
    import torch

    from hf_select.models.loaded_model import LoadedModel
    from hf_select.models.sources import ResolvedSource
    from hf_select.models.template_day import DatedTokenizer

_IMPORTING_PROCESS = os.getpid()


class ModelSpec(Protocol):
    """The description of a model to load; `CausalLM` documents the settings."""

    model: Any
    tokenizer: Any
    dtype: str
    device: str | None
    device_map: str | dict[str, Any] | None
    attn_implementation: str | None
    quantization: Any
    tokens_per_batch: int | None
    trust_remote_code: bool
    chat_template: str | None
    batch_invariant: bool

    @property
    def name(self) -> str:
        """See `CausalLM.name`."""
        ...

    @property
    def sources(self) -> Any:  # a cached_property of Sources
        """See `CausalLM.sources`."""
        ...

    @property
    def dated(self) -> "DatedTokenizer":
        """The tokenizer whose template writes a fixed date."""
        ...


def load(spec: ModelSpec, rank: int | None) -> "LoadedModel":
    """Load and probe the model, tokenizer and adapter that a CausalLM describes."""
    import torch

    from hf_select.models.loaded_model import LoadedModel
    from hf_select.models.probe import probe

    if os.getpid() != _IMPORTING_PROCESS:
        # A forked `map` worker. GNU OpenMP hangs if a child process enters a parallel region after its parent did. N
        # workers that each use all cores would also be slower.
        torch.set_num_threads(1)
    model, tokenizer, adapter = spec.model, spec.dated.tokenizer, spec.sources.adapter
    with named(spec.name):
        if isinstance(model, str):
            model = with_retries(lambda: _from_pretrained(spec, rank), model)
        if adapter is not None:
            from hf_select.models.adapters import put_adapter

            model = with_retries(lambda: put_adapter(model, adapter.name, revision=adapter.commit), adapter.name)
        if hasattr(model, "get_base_model"):  # a PeftModel: the base model already contains its layers
            model = model.get_base_model()
        loaded = LoadedModel(model, tokenizer, 1 if spec.batch_invariant else spec.tokens_per_batch)
        probe(loaded, spec.name)
    return loaded


def load_tokenizer(spec: ModelSpec) -> Any:
    """Load the tokenizer that a CausalLM describes, with the chat template of the CausalLM if it has one."""
    if (source := spec.sources.tokenizer) is not None:
        return tokenizer_of(source, spec.trust_remote_code, spec.chat_template)
    tokenizer = spec.tokenizer
    if spec.chat_template is not None:
        tokenizer = copy.copy(tokenizer)  # do not modify the user's tokenizer
        tokenizer.chat_template = spec.chat_template
    return tokenizer


def tokenizer_of(source: "ResolvedSource", trust_remote_code: bool = False, chat_template: str | None = None) -> Any:
    """Load the tokenizer of a folder, or of a repository at a commit, with the given chat template if any."""
    from transformers import AutoTokenizer

    options = {"revision": source.commit, "trust_remote_code": trust_remote_code}
    with named(source.name):
        tokenizer = with_retries(lambda: AutoTokenizer.from_pretrained(source.location, **options), source.name)
    tokenizer.chat_template = chat_template or tokenizer.chat_template
    return tokenizer


def free_memory(device: "torch.device") -> int:
    """Free memory of a device in bytes."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def _from_pretrained(spec: ModelSpec, rank: int | None) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    if is_deepspeed_zero3_enabled():  # from_pretrained would load a shard in each process
        raise ValueError(
            "a DeepSpeed ZeRO-3 configuration is active, which shards every loaded model; scoring needs the whole "
            "model in each process. Score without ZeRO-3: one process per device, or for a large model "
            "device_map=auto (one process with several devices) or quantization=4bit."
        )
    source = spec.sources.model
    assert source is not None
    loader: Any = AutoModelForCausalLM
    options: dict[str, Any] = {
        "dtype": checked_dtype(spec.dtype),
        "revision": source.commit,
        "trust_remote_code": spec.trust_remote_code,
        "use_safetensors": True,  # a pickle can run code
        "device_map": spec.device_map or {"": device_of(spec.device, rank)},
    }
    if spec.attn_implementation is not None:
        options["attn_implementation"] = spec.attn_implementation
    if spec.quantization is not None:
        require("quantization", "bitsandbytes")
        from transformers import BitsAndBytesConfig

        four = spec.quantization == "4bit"
        options["quantization_config"] = BitsAndBytesConfig(load_in_4bit=four, load_in_8bit=not four)
    try:
        model, info = loader.from_pretrained(source.location, output_loading_info=True, **options)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise not_causal(spec.model, "transformers knows no causal LM of this type") from None
    except SafetensorError as error:
        raise ValueError(
            f'the weights of "{spec.model}" cannot be read ({str(error).splitlines()[0]}): a file is damaged or '
            "incomplete. Download it again."
        ) from error
    if info["missing_keys"]:  # transformers only warns, and initialises them randomly
        raise not_causal(spec.model, f"its files lack {sorted(info['missing_keys'])[:2]}")
    return model.eval()


def device_of(device: str | None, rank: int | None) -> str:
    """The requested device, else the accelerator of this process, else the CPU."""
    import torch

    if device is not None:
        return checked_device(device)
    if not torch.accelerator.is_available():
        return "cpu"
    index = local_rank() if rank is None else rank
    return f"{torch.accelerator.current_accelerator()}:{index % torch.accelerator.device_count()}"
