"""Loads a causal LM, and checks on a few tokens that it is causal and that its logits are correct."""

import copy
import logging
import os
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from hf_select.jobs.launch import local_rank
from hf_select.jobs.retry import with_retries
from hf_select.models._compat import is_croppable
from hf_select.models.load_errors import checked_device, checked_dtype, named
from hf_select.models.loaded_model import LoadedModel


if TYPE_CHECKING:
    from hf_select.models.sources import ResolvedSource
    from hf_select.models.template_day import DatedTokenizer

logger = logging.getLogger(__name__)

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


def load(spec: ModelSpec, rank: int | None) -> LoadedModel:
    """Load and probe the model, tokenizer and adapter that a CausalLM describes."""
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
        _probe(loaded, spec.name)
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


def free_memory(device: torch.device) -> int:
    """Free memory of a device in bytes."""
    if device.type == "cuda":
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
        from transformers import BitsAndBytesConfig

        four = spec.quantization == "4bit"
        options["quantization_config"] = BitsAndBytesConfig(load_in_4bit=four, load_in_8bit=not four)
    try:
        model, info = loader.from_pretrained(source.location, output_loading_info=True, **options)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise _not_causal(spec.model, "transformers knows no causal LM of this type") from None
    except SafetensorError as error:
        raise ValueError(
            f'the weights of "{spec.model}" cannot be read ({str(error).splitlines()[0]}): a file is damaged or '
            "incomplete. Download it again."
        ) from error
    if info["missing_keys"]:  # transformers only warns, and initialises them randomly
        raise _not_causal(spec.model, f"its files lack {sorted(info['missing_keys'])[:2]}")
    return model.eval()


def device_of(device: str | None, rank: int | None) -> str:
    """The requested device, else the accelerator of this process, else the CPU."""
    if device is not None:
        return checked_device(device)
    if not torch.accelerator.is_available():
        return "cpu"
    index = local_rank() if rank is None else rank
    return f"{torch.accelerator.current_accelerator()}:{index % torch.accelerator.device_count()}"


def _not_causal(name: str, why: str) -> ValueError:
    return ValueError(f'"{name}" is not a causal LM: {why}. Give the checkpoint of one (GPT, Llama, Qwen, ...).')


@torch.inference_mode()
def _probe(loaded: LoadedModel, name: str) -> None:
    """Check the assumptions of all scores on eight tokens: attention is causal, and `LoadedModel.logits` equals the
    model's logits. Also determine which optimisations this architecture supports. A wrong result has a relative error
    near 1, rounding a much smaller one. So the tolerance is large enough for half precision and tf32."""
    ids = torch.arange(8, device=loaded.device)[None] % loaded.vocab_size  # (1, 8)
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % loaded.vocab_size
    training = loaded.model.training
    loaded.model.eval()
    hidden = loaded.backbone(input_ids=ids, use_cache=False).last_hidden_state  # (1, 8, D)
    changed = loaded.backbone(input_ids=other, use_cache=False).last_hidden_state
    if not hidden.isfinite().all():
        raise ValueError(f'the hidden states of "{name}" are not finite: damaged weights, or diverged training.')
    # Both passes run the same operations on the same shapes, but 8bit scales each batch by its largest values.
    limit = 5e-2 if getattr(loaded.model, "is_loaded_in_8bit", False) else 1e-4
    if not _near(changed[:, :-1], hidden[:, :-1], limit):
        raise _not_causal(name, "its tokens attend to later ones")
    own = loaded.model(input_ids=ids, use_cache=False).logits[0, -1]
    if not _near(loaded.logits(hidden[:, -1])[0], own):
        raise ValueError(
            f"{type(loaded.model).__name__} modifies its logits after the output head, which is not supported; "
            "please report the architecture."
        )
    if loaded.last_mlp is not None and not _last_layer_picks(loaded, ids, hidden):
        loaded.last_mlp = None
    loaded.shares_cache = _cache_continues(loaded, ids, hidden)
    loaded.shares_padded_cache = loaded.shares_cache and _padded_cache_continues(loaded, ids, hidden)
    if not loaded.shares_cache:
        logger.info("%s: rows cannot share a KV cache; every prompt is computed in full.", type(loaded.model).__name__)
    loaded.model.train(training)


def _near(actual: Tensor, expected: Tensor, limit: float = 5e-2) -> bool:
    actual, expected = actual.float().to(expected.device), expected.float()
    return bool((actual - expected).norm() <= limit * expected.norm())


def _last_layer_picks(loaded: LoadedModel, ids: Tensor, hidden: Tensor) -> bool:
    positions = torch.tensor([5, 2], device=loaded.device)
    try:
        with loaded.last_layer_at(positions):
            picked = loaded.backbone(input_ids=ids.repeat(2, 1), use_cache=False).last_hidden_state
    except (RuntimeError, TypeError, IndexError):  # its feed-forward block does not accept (B, T, D)
        return False
    return _near(picked[torch.arange(2), positions.to(picked.device)], hidden[0, positions.to(hidden.device)])


def _cache_continues(loaded: LoadedModel, ids: Tensor, hidden: Tensor) -> bool:
    # Sliding-window and recurrent layers do not cache one key and value per token.
    cache = loaded.new_cache()
    if any(getattr(layer, "is_sliding", True) or not is_croppable(layer) for layer in cache.layers):
        return False
    for cut in (4, 6):
        loaded.backbone(input_ids=ids[:, :cut], **loaded.inputs(cache))
        if cache.get_seq_length() != cut:  # the architecture does not fill this cache
            return False
        rest = loaded.backbone(input_ids=ids[:, cut:], **loaded.inputs(cache)).last_hidden_state
        if not _near(rest, hidden[:, cut:]):
            return False
        cache.crop(-cache.get_seq_length())
    return True


def _padded_cache_continues(loaded: LoadedModel, ids: Tensor, hidden: Tensor) -> bool:
    # Some architectures use the index of a key in the cache as its position (ALiBi in MPT, windows in GPT-Neo).
    if hasattr(loaded.config, "window_size"):  # eight tokens are too few to detect a window
        return False
    cache = loaded.new_cache()
    # The last three of these eight tokens serve as padding.
    loaded.backbone(input_ids=ids, **loaded.inputs(cache))
    mask = torch.ones(1, 11, dtype=torch.long, device=loaded.device)
    mask[0, 5:8] = 0
    positions = torch.arange(5, 8, device=loaded.device)[None]
    follow = loaded.backbone(input_ids=ids[:, 5:], attention_mask=mask, **loaded.inputs(cache, positions))
    return _near(follow.last_hidden_state, hidden[:, 5:])
