"""Loading a causal LM, and proving on a few tokens that it is one and that it measures what it should."""

import copy
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_select.inference.batching import TokenBudget
from hf_select.inference.launch import local_rank
from hf_select.inference.load_errors import checked_device, checked_dtype, named
from hf_select.inference.parameters import active_parameters


if TYPE_CHECKING:
    from hf_select.inference.causal_lm import CausalLM
    from hf_select.inference.sources import Source

logger = logging.getLogger(__name__)

_IMPORTING_PROCESS = os.getpid()

# Elements of one block of (N, V) logits, the largest temporary of a response NLL. On an accelerator 256 MiB of fp32;
# on a CPU what its caches hold (twice as fast as logits of a whole batch), but rows enough for a matrix product.
_LOGITS_BLOCK = 1 << 26
_LOGITS_BLOCK_CPU = 1 << 20
_FEWEST_ROWS_CPU = 256


class LoadedModel:
    """Everything that loading brings, dropped as one when a CausalLM is pickled."""

    def __init__(self, model: Any, tokenizer: Any, tokens_per_batch: int | None):
        self.model = model
        self.tokenizer = tokenizer
        # Llama 4's causal LM is its own base model; its decoder is the part without the head.
        self.backbone = model.base_model if model.base_model is not model else model.get_decoder()
        self.head = model.get_output_embeddings()
        self.config = model.config.get_text_config()
        embedding = model.get_input_embeddings().weight
        # Of a model that is partly offloaded, the device that its parts are brought to.
        spread = [device for device in getattr(model, "hf_device_map", {}).values() if device not in ("cpu", "disk")]
        self.device = torch.device(spread[0] if spread else "cpu") if embedding.is_meta else embedding.device
        self.budget = TokenBudget(tokens_per_batch or self._tokens_per_batch())
        self.vocab_size = self.config.vocab_size
        self.num_layers: int = self.config.num_hidden_layers
        self.num_parameters = model.num_parameters()
        self.head_parameters = self.vocab_size * embedding.shape[1]
        self.backbone_parameters = active_parameters(model) - self.head_parameters
        # The longest sequence that the model was built for; models with relative positions may name none.
        self.max_length: int | None = getattr(self.config, "max_position_embeddings", None)
        # Until the probe has shown that this architecture's cache can be copied, cropped and continued.
        self.shares_cache = False
        self.shares_padded_cache = False  # the same with masked padding between what is cached and what follows
        # The feed-forward block of the last layer, whose output matters only at the positions that are read.
        stacks = [m for m in self.backbone.modules() if isinstance(m, torch.nn.ModuleList)]
        self.layers: Any = next((stack for stack in stacks if len(stack) == self.num_layers), None)
        self.last_mlp = None if self.layers is None else getattr(self.layers[-1], "mlp", None)

    def _tokens_per_batch(self) -> int:
        """On an accelerator enough to fill it. On a CPU so many that the widest activation takes 4 MiB in fp32: larger
        batches leave its caches (a quarter slower at 30M parameters), smaller ones are all overhead."""
        if self.device.type != "cpu":
            return 32768
        widest = getattr(self.config, "intermediate_size", None) or 4 * self.config.hidden_size
        return max(256, (1 << 20) // widest)

    def head_rows(self) -> int:
        """Hidden states that the head is applied to at a time where logits of the whole vocabulary are wanted."""
        if self.device.type == "cpu":
            return max(_FEWEST_ROWS_CPU, _LOGITS_BLOCK_CPU // self.vocab_size)
        return max(1, _LOGITS_BLOCK // self.vocab_size)

    def logits(self, hidden: Tensor, token_ids: Sequence[int] | None = None) -> Tensor:
        """fp32 logits (N, V) of hidden states (N, D), or (N, K) of the named tokens alone. Differentiable where the
        states are."""
        with torch.inference_mode(not hidden.requires_grad):
            if token_ids is not None and type(self.head) is torch.nn.Linear and not self.head.weight.is_meta:
                index = torch.as_tensor(token_ids, device=self.head.weight.device)
                bias = None if self.head.bias is None else self.head.bias[index].float()
                out = F.linear(hidden.to(index.device).float(), self.head.weight[index].float(), bias)
            else:  # a quantised, adapted or offloaded head is used as it is
                out = self.head(hidden)
                out = out.to(torch.promote_types(out.dtype, torch.float32))
                out = out if token_ids is None else out[..., list(token_ids)]
            # What some architectures do after their head, by the name that their config gives it.
            if (scale := getattr(self.config, "logit_scale", None)) is not None:  # Cohere
                out = out * scale
            if (scale := getattr(self.config, "logits_scaling", None)) is not None:  # Granite
                out = out / scale
            if (cap := getattr(self.config, "final_logit_softcapping", None)) is not None:  # Gemma
                out = torch.tanh(out / cap) * cap
            return out

    @contextmanager
    def last_layer_at(self, positions: Tensor) -> Iterator[None]:
        """Within the block, the last layer's feed-forward runs at one position (B,) a sequence; other final states are
        void.

        Nothing after the last layer's attention mixes positions, so what is not read need not be computed: most of a
        layer's arithmetic. Its one-position output is added to the residual stream by broadcasting, right at that
        position.
        """
        if self.last_mlp is None:
            yield
            return

        def pick(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            at = positions.to(args[0].device)  # of a model over several devices, the last layer's
            return args[0][torch.arange(len(at), device=at.device), at][:, None], *args[1:]

        handle = self.last_mlp.register_forward_pre_hook(pick)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def stopped_after(self, layer: int | None) -> Iterator[Callable[..., Tensor]]:
        """The backbone as a function that gives final hidden states (B, T, D), or ends at a decoder layer (from 1)."""
        if layer is None:
            yield lambda **inputs: self.backbone(**inputs).last_hidden_state
            return
        if self.layers is None or not 1 <= layer <= self.num_layers:
            raise ValueError(f"layer is {layer}; the model has decoder layers 1 to {self.num_layers}.")

        def stop(module: Any, args: Any, output: Any) -> None:
            raise _Reached(output[0] if isinstance(output, tuple) else output)

        def backbone(**inputs: Any) -> Tensor:
            try:
                self.backbone(**inputs)
            except _Reached as reached:
                return reached.hidden
            raise AssertionError("the forward pass did not come through its own layer")

        handle = self.layers[layer - 1].register_forward_hook(stop)
        try:
            yield backbone
        finally:
            handle.remove()

    def new_cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self.config)


class _Reached(Exception):
    """Carries the hidden states out of a forward pass that need not go on."""

    def __init__(self, hidden: Tensor):
        self.hidden = hidden


def load(spec: "CausalLM", rank: int | None) -> LoadedModel:
    """The model, tokenizer and adapter that a CausalLM describes, probed."""
    if os.getpid() != _IMPORTING_PROCESS:
        # A forked `map` worker. GNU OpenMP hangs when a child enters a parallel region after its parent has been in
        # one, and N workers with all cores each would be slower anyway.
        torch.set_num_threads(1)
    model, tokenizer, adapter = spec.model, spec.dated.tokenizer, spec.sources.adapter
    with named(spec.name):
        if isinstance(model, str):
            model = patiently(lambda: _from_pretrained(spec, rank), model)
        if adapter is not None:
            from hf_select.inference.adapters import put_adapter

            model = patiently(lambda: put_adapter(model, adapter.name, revision=adapter.commit), adapter.name)
        if hasattr(model, "get_base_model"):  # a PeftModel: its layers sit inside the base model already
            model = model.get_base_model()
        loaded = LoadedModel(model, tokenizer, 1 if spec.batch_invariant else spec.tokens_per_batch)
        _probe(loaded, spec.name)
    return loaded


def load_tokenizer(spec: "CausalLM") -> Any:
    """The tokenizer that a CausalLM describes, as it came but for a template that was given."""
    if (source := spec.sources.tokenizer) is not None:
        return tokenizer_of(source, spec.trust_remote_code, spec.chat_template)
    tokenizer = spec.tokenizer
    if spec.chat_template is not None:
        tokenizer = copy.copy(tokenizer)  # one that was given keeps its own
        tokenizer.chat_template = spec.chat_template
    return tokenizer


def tokenizer_of(source: "Source", trust_remote_code: bool = False, chat_template: str | None = None) -> Any:
    """The tokenizer in a folder, or in a repository at a commit, with another template if one is given."""
    from transformers import AutoTokenizer

    options = {"revision": source.commit, "trust_remote_code": trust_remote_code}
    with named(source.name):
        tokenizer = patiently(lambda: AutoTokenizer.from_pretrained(source.location, **options), source.name)
    tokenizer.chat_template = chat_template or tokenizer.chat_template
    return tokenizer


def patiently(load: Callable[[], Any], what: str) -> Any:
    """Ask again, a little later each time, when the Hub or the network stumbles. huggingface_hub does so for what it
    asks about files, but not while it fetches them (seen in 2.4)."""
    for wait in (1, 4, 16):
        try:
            return load()
        except Exception as error:
            if not passes(error):
                raise
            logger.warning("%s: %s; asking again in %d s.", what, str(error).splitlines()[0], wait)
            time.sleep(wait)
    return load()


def passes(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is of a kind that may be gone in a while."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    while error is not None:
        if isinstance(error, OfflineModeIsEnabled):
            return False
        if isinstance(error, HfHubHTTPError):
            return error.response.status_code in (408, 429, 500, 502, 503, 504)
        if isinstance(error, (ConnectionError, TimeoutError)):
            return True
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if kinds & {"NetworkError", "TimeoutException", "RemoteProtocolError"}:  # of httpx
            return True
        error = error.__cause__ or error.__context__
    return False


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def _from_pretrained(spec: "CausalLM", rank: int | None) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    if is_deepspeed_zero3_enabled():  # from_pretrained would give each process a piece
        raise ValueError(
            "a DeepSpeed ZeRO-3 configuration is active, which cuts every model that is loaded into pieces; measuring "
            "needs it whole in each process. Score without ZeRO-3: one process a device, or for a large model "
            "device_map=auto (one process over several devices) or quantization=4bit."
        )
    source = spec.sources.model
    assert source is not None
    loader: Any = AutoModelForCausalLM
    options: dict[str, Any] = {
        "dtype": checked_dtype(spec.dtype),
        "revision": source.commit,
        "trust_remote_code": spec.trust_remote_code,
        "use_safetensors": True,  # a pickle from outside could run code
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
            f'the weights of "{spec.model}" cannot be read ({str(error).splitlines()[0]}): a file is damaged or was '
            "not copied whole. Fetch it again."
        ) from error
    if info["missing_keys"]:  # transformers only warns and fills them with random numbers
        raise _not_causal(spec.model, f"its files lack {sorted(info['missing_keys'])[:2]}")
    return model.eval()


def checked(source: str) -> str:
    """The path or Hub id to load from. A path that is not there would be taken for a Hub id, with an error about
    authentication."""
    looks_local = source.startswith((".", "/", "~")) or source.count("/") > 1
    if looks_local and not Path(source).expanduser().is_dir():
        raise ValueError(f'no model folder "{source}"; give the path of a saved model or a Hub id such as "org/name".')
    return os.path.expanduser(source)


def device_of(device: str | None, rank: int | None) -> str:
    """The device that was asked for, or the accelerator of this process, or the CPU."""
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
    """What every measurement takes for granted, checked on eight tokens: that no token sees a later one, that our
    logits are the model's own, and which savings this architecture allows. A wrong answer is off by its own size,
    rounding by far less: hence the wide limit, which half precision and tf32 stay within."""
    ids = torch.arange(8, device=loaded.device)[None] % loaded.vocab_size  # (1, 8)
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % loaded.vocab_size
    training = loaded.model.training
    loaded.model.eval()
    hidden = loaded.backbone(input_ids=ids, use_cache=False).last_hidden_state  # (1, 8, D)
    changed = loaded.backbone(input_ids=other, use_cache=False).last_hidden_state
    if not hidden.isfinite().all():
        raise ValueError(f'the hidden states of "{name}" are no numbers: damaged weights, or a run that has diverged.')
    # The same arithmetic on the same shapes, but 8bit rounds each batch by its largest numbers.
    limit = 5e-2 if getattr(loaded.model, "is_loaded_in_8bit", False) else 1e-4
    if not _near(changed[:, :-1], hidden[:, :-1], limit):
        raise _not_causal(name, "its tokens attend to later ones")
    own = loaded.model(input_ids=ids, use_cache=False).logits[0, -1]
    if not _near(loaded.logits(hidden[:, -1])[0], own):
        raise ValueError(
            f"{type(loaded.model).__name__} changes its logits after the output head in a way that is not known here; "
            "please report the architecture."
        )
    if loaded.last_mlp is not None and not _last_layer_picks(loaded, ids, hidden):
        loaded.last_mlp = None
    loaded.shares_cache = _cache_continues(loaded, ids, hidden)
    loaded.shares_padded_cache = loaded.shares_cache and _padded_cache_continues(loaded, ids, hidden)
    if not loaded.shares_cache:
        logger.info("%s: its cache cannot be shared over rows; every prompt runs whole.", type(loaded.model).__name__)
    loaded.model.train(training)


def _near(found: Tensor, expected: Tensor, limit: float = 5e-2) -> bool:
    found, expected = found.float().to(expected.device), expected.float()
    return bool((found - expected).norm() <= limit * expected.norm())


def _last_layer_picks(loaded: LoadedModel, ids: Tensor, hidden: Tensor) -> bool:
    positions = torch.tensor([5, 2], device=loaded.device)
    try:
        with loaded.last_layer_at(positions):
            picked = loaded.backbone(input_ids=ids.repeat(2, 1), use_cache=False).last_hidden_state
    except (RuntimeError, TypeError, IndexError):  # its feed-forward takes something else than states (B, T, D)
        return False
    return _near(picked[torch.arange(2), positions.to(picked.device)], hidden[0, positions.to(hidden.device)])


def _cache_continues(loaded: LoadedModel, ids: Tensor, hidden: Tensor) -> bool:
    # Sliding-window and recurrent layers keep something else than one key and value a token.
    cache = loaded.new_cache()
    if any(getattr(layer, "is_sliding", True) or not layer.is_croppable for layer in cache.layers):
        return False
    for cut in (4, 6):
        loaded.backbone(input_ids=ids[:, :cut], past_key_values=cache, use_cache=True)
        if cache.get_seq_length() != cut:  # the architecture keeps no such cache
            return False
        rest = loaded.backbone(input_ids=ids[:, cut:], past_key_values=cache, use_cache=True).last_hidden_state
        if not _near(rest, hidden[:, cut:]):
            return False
        cache.crop(-cache.get_seq_length())
    return True


def _padded_cache_continues(loaded: LoadedModel, ids: Tensor, hidden: Tensor) -> bool:
    # Some architectures place a key by its index in the cache (MPT's alibi, GPT-Neo's windows), not by position id.
    if hasattr(loaded.config, "window_size"):  # eight tokens are too few to see a window
        return False
    cache = loaded.new_cache()
    # Of these eight tokens, the last three stand for padding.
    loaded.backbone(input_ids=ids, past_key_values=cache, use_cache=True)
    mask = torch.ones(1, 11, dtype=torch.long, device=loaded.device)
    mask[0, 5:8] = 0
    positions = torch.arange(5, 8, device=loaded.device)[None]
    follow = loaded.backbone(
        input_ids=ids[:, 5:], past_key_values=cache, use_cache=True, attention_mask=mask, position_ids=positions
    )
    return _near(follow.last_hidden_state, hidden[:, 5:])
