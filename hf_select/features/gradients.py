"""Gradients of each row's loss with respect to a LoRA adapter, from one backward pass per batch.

Xia et al. 2024, "LESS: Selecting Influential Data for Targeted Instruction Tuning" (ICML 2024, arXiv:2402.04333). The
loss of a row is the mean NLL of its response tokens. For a linear layer y = W x the gradient of row b is

    dL_b / dW = sum_t (dL_b / dy_bt) x_bt^T

so one backward pass of a batch that records, at each adapter layer, the input and the gradient at the output gives
the gradient of every row. No row needs a pass of its own, and no gradient of a frozen weight is formed. A reducer gets
the layers one at a time as the backward pass reaches them, so the full gradients of a batch need not be in memory.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_select.data.bad_rows import BadRow
from hf_select.features.gradient_reducers import GradientReducer
from hf_select.models import batching
from hf_select.models.causal_lm import CausalLM, predicted
from hf_select.models.loaded_model import LoadedModel


# B rows, T tokens, N predicted tokens, D hidden, V vocabulary, O outputs and I inputs of a layer


# A reducer gets at most this many bytes of a layer's gradients at a time.
_GRADIENT_BYTES = 2**26


def adapter_layers(model: torch.nn.Module, adapter: str = "default") -> dict[str, torch.nn.Linear]:
    """The linear layers of a LoRA adapter, by their names in the base model.

    Raises: ValueError if there are none, or if the adapter has parts that are not linear layers.
    """
    layers: dict[str, torch.nn.Linear] = {}
    for name, module in model.named_modules():
        if not name.endswith((f".lora_A.{adapter}", f".lora_B.{adapter}")):
            continue
        if not isinstance(module, torch.nn.Linear):
            raise ValueError(
                f"adapter layer {name} is {type(module).__name__}; gradients are taken of LoRA on linear layers only."
            )
        layers[name] = module
    other = [name for name, _ in model.named_parameters() if "lora_embedding" in name or "lora_magnitude" in name]
    if other:
        raise ValueError(f"the adapter has {other[0]}; gradients are taken of plain LoRA on linear layers only.")
    if not layers:
        raise ValueError(
            f'the model has no LoRA adapter "{adapter}"; give one: CausalLM(model, adapter=...), or let the warm-up '
            "train it."
        )
    return layers


def row_gradients(
    lm: CausalLM,
    sequences: Sequence[list[int]],
    responses: Sequence[Sequence[tuple[int, int]]],
    reduce: Callable[[int], GradientReducer],
    adapter: str = "default",
) -> list[Any | BadRow]:
    """The results of a reducer over the gradients of each row's mean response NLL, in input order.

    Args:
        responses: token spans of the responses; every row must have a token in them that has one before it.
        reduce: makes the reducer of a batch from its number of rows.
    """
    loaded = lm.load()
    layers = adapter_layers(loaded.model, adapter)
    positions = [predicted(spans) for spans in responses]
    assert all(len(p) for p in positions), "a row without response tokens has no gradient"

    def forward(indices: list[int]) -> list[Any]:
        reducer = reduce(len(indices))
        handles = [layer.register_forward_hook(send_factors(reducer, name)) for name, layer in layers.items()]
        embedding = loaded.model.get_input_embeddings()
        # No parameter needs a gradient; autograd records a graph because the embedded tokens do.
        handles.append(embedding.register_forward_hook(lambda module, args, output: output.requires_grad_(True)))
        try:
            with torch.enable_grad():
                ids = lm.pad([sequences[i] for i in indices])  # (B, T)
                hidden = loaded.backbone(input_ids=ids, use_cache=False).last_hidden_state  # (B, T, D)
                _backward(loaded, hidden, [sequences[i] for i in indices], [positions[i] for i in indices])
            # Forward, and the backward pass of activations alone: no gradient of a frozen weight is formed.
            lm.usage.processed_tokens += ids.numel()
            lm.usage.flops += 4.0 * loaded.backbone_parameters * ids.numel()
            lm.usage.flops += 4.0 * loaded.head_parameters * sum(len(positions[i]) for i in indices)
        finally:
            for handle in handles:
                handle.remove()
        return reducer.results()

    with lm.measuring(sequences), _BackwardMode(loaded.model):
        return batching.run([len(s) for s in sequences], loaded.budget, forward)


def send_factors(reducer: GradientReducer, name: str) -> Callable[..., None]:
    """A forward hook that sends the layer's input and the gradient at its output to a reducer in the backward pass."""

    def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        if not output.requires_grad:  # the first forward pass of a checkpointed block; the second has gradients
            return
        x = args[0].detach()  # (B, T, I)

        def at_output(gradient: Tensor) -> None:  # (B, T, O)
            exact = torch.promote_types(x.dtype, torch.float32)
            rows = max(1, _GRADIENT_BYTES // (gradient.shape[2] * x.shape[2] * exact.itemsize))
            for start in range(0, len(x), rows):
                some = slice(start, start + rows)
                reducer.add(name, some, x[some].to(exact), gradient[some].to(exact))

        output.register_hook(at_output)

    return hook


def _backward(loaded: LoadedModel, hidden: Tensor, sequences: list[list[int]], positions: list[np.ndarray]) -> None:
    """Backward pass of sum_b mean_t NLL_bt. The head runs over blocks of the predicted positions, each with its own
    backward pass to the hidden states, so the logits of a batch are never in memory at once."""
    counts = [len(p) for p in positions]
    row = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
    before = torch.from_numpy(np.concatenate(positions) - 1)
    predicting = hidden[row, before]  # (N, D)
    target = torch.from_numpy(np.concatenate([np.asarray(s)[p] for s, p in zip(sequences, positions, strict=True)]))
    exact = torch.promote_types(hidden.dtype, torch.float32)
    weight = torch.from_numpy(np.repeat(1 / np.array(counts), counts)).to(exact).to(hidden.device)
    upstream = torch.empty_like(predicting)
    block = loaded.head_rows()
    for start in range(0, len(target), block):
        part = predicting[start : start + block].detach().requires_grad_(True)
        logits = loaded.logits(part)  # (block, V)
        y = target[start : start + block].to(logits.device)
        nll = F.cross_entropy(logits, y, reduction="none")
        (nll * weight[start : start + block].to(nll)).sum().backward()
        assert part.grad is not None
        upstream[start : start + block] = part.grad
    predicting.backward(upstream)


class _BackwardMode:
    """Within the block no parameter collects a gradient, and gradient checkpointing works in eval mode: only the
    checkpointed modules are in training mode, their dropouts are not. Restores both at the end."""

    def __init__(self, model: torch.nn.Module):
        if getattr(model, "is_loaded_in_4bit", False):
            # bitsandbytes 0.50 packs weights on a CPU in a pass without gradients, and packed weights have none;
            # reading the state unpacks them.
            model.state_dict()
        self.needed = [p for p in model.parameters() if p.requires_grad]
        self.checkpointed = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]

    def __enter__(self) -> None:
        for parameter in self.needed:
            parameter.requires_grad_(False)
        for module in self.checkpointed:
            module.training = True  # of the block alone: its dropouts stay off

    def __exit__(self, *_: Any) -> None:
        for parameter in self.needed:
            parameter.requires_grad_(True)
        for module in self.checkpointed:
            module.training = False
