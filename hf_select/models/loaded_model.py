"""A loaded causal LM: its components, logits, and partial forward passes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_select.models._compat import cache_argument, takes_position_ids
from hf_select.models.batching import TokenBudget
from hf_select.models.parameters import active_parameters


# Elements of one block of (N, V) logits, the largest temporary tensor of a response NLL. On an accelerator: 256 MiB in
# fp32. On a CPU: what fits in its caches (twice as fast as logits of a whole batch), with enough rows for an efficient
# matrix product.
_LOGITS_BLOCK = 1 << 26
_LOGITS_BLOCK_CPU = 1 << 20
_FEWEST_ROWS_CPU = 256


class LoadedModel:
    """The loaded state of a CausalLM, which is dropped as a whole when the CausalLM is pickled."""

    def __init__(self, model: Any, tokenizer: Any, tokens_per_batch: int | None):
        self.model = model
        self.tokenizer = tokenizer
        # The causal LM of Llama 4 is its own base model; the decoder is the model without the head.
        self.backbone = model.base_model if model.base_model is not model else model.get_decoder()
        self.head = model.get_output_embeddings()
        self.config = model.config.get_text_config()
        embedding = model.get_input_embeddings().weight
        # If a model is partly offloaded, the device on which its layers run.
        spread = [device for device in getattr(model, "hf_device_map", {}).values() if device not in ("cpu", "disk")]
        self.device = torch.device(spread[0] if spread else "cpu") if embedding.is_meta else embedding.device
        self.budget = TokenBudget(tokens_per_batch or self._tokens_per_batch())
        self.vocab_size = self.config.vocab_size
        self.num_layers: int = self.config.num_hidden_layers
        self.num_parameters = model.num_parameters()
        self.head_parameters = self.vocab_size * embedding.shape[1]
        self.backbone_parameters = active_parameters(model) - self.head_parameters
        # Maximum sequence length; the config of models with relative positions may not have one.
        self.max_length: int | None = getattr(self.config, "max_position_embeddings", None)
        self._cache_argument = cache_argument(self.backbone)
        self._takes_position_ids = takes_position_ids(self.backbone)
        # Set by the probe, if the cache of this architecture can be copied, cropped and continued.
        self.shares_cache = False
        self.shares_padded_cache = False  # the same, with masked padding between cached and new tokens
        # The feed-forward block of the last layer. Its output is needed only at the positions that are read.
        stacks = [m for m in self.backbone.modules() if isinstance(m, torch.nn.ModuleList)]
        self.layers: Any = next((stack for stack in stacks if len(stack) == self.num_layers), None)
        self.last_mlp = None if self.layers is None else getattr(self.layers[-1], "mlp", None)

    def _tokens_per_batch(self) -> int:
        """The default token budget. On an accelerator it is large enough for full utilisation. On a CPU, the largest
        activation is 4 MiB in fp32: larger batches exceed the caches (25 % slower at 30M parameters), smaller ones
        are dominated by overhead."""
        if self.device.type != "cpu":
            return 32768
        widest = getattr(self.config, "intermediate_size", None) or 4 * self.config.hidden_size
        return max(256, (1 << 20) // widest)

    def head_rows(self) -> int:
        """Number of hidden states per call of the head, for logits of the whole vocabulary."""
        if self.device.type == "cpu":
            return max(_FEWEST_ROWS_CPU, _LOGITS_BLOCK_CPU // self.vocab_size)
        return max(1, _LOGITS_BLOCK // self.vocab_size)

    def logits(self, hidden: Tensor, token_ids: Sequence[int] | None = None) -> Tensor:
        """fp32 logits (N, V) of hidden states (N, D), or (N, K) for the given tokens only. Differentiable if the
        hidden states are."""
        with torch.inference_mode(not hidden.requires_grad):
            if token_ids is not None and type(self.head) is torch.nn.Linear and not self.head.weight.is_meta:
                index = torch.as_tensor(token_ids, device=self.head.weight.device)
                bias = None if self.head.bias is None else self.head.bias[index].float()
                out = F.linear(hidden.to(index.device).float(), self.head.weight[index].float(), bias)
            else:  # a quantized, adapted or offloaded head is called unchanged
                out = self.head(hidden)
                out = out.to(torch.promote_types(out.dtype, torch.float32))
                out = out if token_ids is None else out[..., list(token_ids)]
            # Operations of some architectures after the head, by their config setting.
            if (scale := getattr(self.config, "logit_scale", None)) is not None:  # Cohere
                out = out * scale
            if (scale := getattr(self.config, "logits_scaling", None)) is not None:  # Granite
                out = out / scale
            if (cap := getattr(self.config, "final_logit_softcapping", None)) is not None:  # Gemma
                out = torch.tanh(out / cap) * cap
            return out

    @contextmanager
    def last_layer_at(self, positions: Tensor) -> Iterator[None]:
        """Within the block, run the feed-forward of the last layer at only one position (B,) per sequence. The final
        hidden states at other positions are invalid.

        Nothing after the attention of the last layer mixes positions, so the other positions need not be computed.
        This saves most of the layer's operations. The output at one position is broadcast over the residual stream,
        which is correct only at that position.
        """
        if self.last_mlp is None:
            yield
            return

        def pick(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            at = positions.to(args[0].device)  # the last layer's, for a model on several devices
            return args[0][torch.arange(len(at), device=at.device), at][:, None], *args[1:]

        handle = self.last_mlp.register_forward_pre_hook(pick)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def states_of(self, layers: Sequence[int]) -> Iterator[Callable[..., list[Tensor]]]:
        """The backbone as a function that returns the outputs (B, T, D) of decoder layers, counted from 1, and of the
        final norm (-1). It ends at the last layer that is asked for."""
        decoder = [layer for layer in layers if layer > 0]
        if decoder and (self.layers is None or max(decoder) > self.num_layers):
            raise ValueError(f"layer is {max(decoder)}; the model has decoder layers 1 to {self.num_layers}.")
        last = max(decoder) if len(decoder) == len(layers) else None
        states: dict[int, Tensor] = {}

        def keep(layer: int) -> Callable[..., None]:
            def hook(module: Any, args: Any, output: Any) -> None:
                states[layer] = output[0] if isinstance(output, tuple) else output
                if layer == last:
                    raise _LayerReached

            return hook

        def backbone(**inputs: Any) -> list[Tensor]:
            states.clear()
            try:
                states[-1] = self.backbone(**inputs).last_hidden_state
            except _LayerReached:
                pass
            return [states[layer] for layer in layers]

        handles = [self.layers[layer - 1].register_forward_hook(keep(layer)) for layer in decoder]
        try:
            yield backbone
        finally:
            for handle in handles:
                handle.remove()

    def inputs(self, cache: Any, position_ids: Tensor | None = None) -> dict[str, Any]:
        """Keyword arguments of the backbone for a KV cache and position ids, without those that it does not accept."""
        arguments: dict[str, Any] = {"use_cache": cache is not None}
        if cache is not None and self._cache_argument is not None:
            arguments[self._cache_argument] = cache
        if position_ids is not None and self._takes_position_ids:
            arguments["position_ids"] = position_ids
        return arguments

    def new_cache(self) -> Any:
        """An empty KV cache for this model's configuration."""
        from transformers import DynamicCache

        return DynamicCache(config=self.config)


class _LayerReached(Exception):
    """Raised by a hook to end the forward pass at a layer."""
