"""Per-row scores from the current model, computed on the batches that training would see.

Any function (model, batch) -> (B,) is an online score; `batch` is what the trainer's collator makes of B rows. A score
that needs queries, memory of earlier rounds or a state in checkpoints extends `OnlineScore`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from datasets import Dataset
from torch import Tensor, nn

from hf_select.features.gradient_reducers import GhostProducts, GradientReducer, GradientSum
from hf_select.features.gradients import send_factors
from hf_select.training.label_losses import kind, label_losses, unwrapped
from hf_select.training.online_score import OnlineScore


# B rows


def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean negative log-likelihood in nats of each row's labels, (B,) fp32; NaN for a row without a label. For
    causal, masked and encoder-decoder language models (see `label_losses`)."""
    return label_losses(model, batch)


def perplexity(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """exp of `loss`, (B,)."""
    return loss(model, batch).exp()


@dataclass
class LossChange(OnlineScore):
    """Learnability: the decrease of a row's loss since it was last measured, in nats.

    score_t(row) = loss_s(row) - loss_t(row), s the round before t. The first round only measures, so give the callback
    warmup of at least 1; every candidate is measured in every round.
    """

    compares_rounds: ClassVar[bool] = True

    last: dict[int, float] = field(default_factory=dict)  # row -> loss when it was last measured

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The rows' losses, (B,)."""
        return loss(model, batch)

    def after(self, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Previous minus current losses; NaN without a previous one."""
        previous = np.array([self.last.get(int(row), np.nan) for row in rows])
        self.last.update(zip(rows.tolist(), values.tolist(), strict=True))
        return previous - values

    def state(self) -> dict[str, Any]:
        """The last losses."""
        return {"rows": np.array([*self.last], np.int64), "losses": np.array([*self.last.values()], np.float64)}

    def restore(self, state: dict[str, Any]) -> None:
        """Load the last losses."""
        self.last = dict(zip(state["rows"].tolist(), state["losses"].tolist(), strict=True))


@dataclass
class GradientSimilarity(OnlineScore):
    """How much a step on the row would lower the loss of the queries, under the current model.

        score(row) = <g(row), G> / (|g(row)| |G|),    G = mean over the queries of g(query)

    g is the gradient of the mean NLL with respect to the weights of linear layers; the inner product alone (cosine
    False) is, to first order, the decrease of the queries' mean loss by one SGD step on the row, per unit of the
    learning rate. Products are computed from the layers' inputs and output gradients ("ghost" inner products): one
    forward and backward pass, and one gradient in memory, that of the queries. Every process computes all queries, so
    that all have the same G.

    Args:
        queries: rows prepared as the trainer prepared its own, `trainer.eval_dataset` for example.
        cosine: divide products by the norms; otherwise rows with large gradients (short and hard ones) score highest.
        layers: suffixes of layer names, such as ["down_proj"]; by default all trainable linear layers except the
            output head, or those of the adapter of a LoRA model. G takes the memory of their weights in fp32.
    Raises: ValueError for layers that the model does not have, and for a query without labels.
    Relations: LESS measures the same once, with a warm-up's checkpoints, in the metric of Adam.
    Reference: Wang et al. 2024, "Greats: Online Selection of High-Quality Data for LLM Training in Every Iteration"
        (NeurIPS 2024); there within each batch, here over the candidates of a round.
    """

    queries: Dataset
    cosine: bool = True
    layers: Sequence[str] | None = None

    whole_model: ClassVar[bool] = True
    needs_queries: ClassVar[bool] = True
    forward_passes: ClassVar[float] = 3.0  # forward, backward of activations, ghost products

    _direction: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _length: float = field(default=0.0, init=False, repr=False)

    def begin(self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Compute the gradient of the queries' mean loss."""
        if kind(unwrapped(model)) == "encoder-decoder":
            raise ValueError(
                f"{type(self).__name__} needs a single stack of layers, and the model is an "
                "encoder-decoder; use online_scores.loss, or a function of your own."
            )
        total = GradientSum()
        for batch in batches:
            if not self._backward(model, batch, total).isfinite().all():
                raise ValueError("a query has no label, or no finite loss; fix or remove it.")
        self._direction = {name: part / len(self.queries) for name, part in total.layers.items()}
        self._length = sum(part.square().sum().item() for part in self._direction.values()) ** 0.5

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Cosines or inner products of the rows' gradients with that of the queries, (B,)."""
        ghost = GhostProducts(len(batch["labels"]), self._direction)
        finite = self._backward(model, batch, ghost).isfinite().cpu()
        scores = ghost.products
        if self.cosine:
            scores = scores / (ghost.squares.clamp_min(0).sqrt() * self._length).clamp_min(1e-30)
        return scores.where(finite, torch.nan)

    def _backward(self, model: nn.Module, batch: Mapping[str, Tensor], reducer: GradientReducer) -> Tensor:
        """The rows' losses; the reducer gets their gradients. No `parameter.grad` is computed or changed."""
        inner: Any = extract_model_from_parallel(model)
        embedded: list[Tensor] = []

        def keep(module: nn.Module, args: object, output: Tensor) -> None:
            embedded.append(output if output.requires_grad else output.requires_grad_(True))

        handles = [inner.get_input_embeddings().register_forward_hook(keep)]
        handles += [layer.register_forward_hook(send_factors(reducer, name)) for name, layer in self._layers(inner)]
        try:
            with torch.enable_grad():
                losses = loss(inner, batch)
                torch.autograd.grad(losses.sum(), embedded[0])
        finally:
            for handle in handles:
                handle.remove()
        return losses.detach()

    def _layers(self, model: nn.Module) -> list[tuple[str, nn.Linear]]:
        head = model.get_output_embeddings()  # type: ignore[operator]
        layers = [
            (name, module)
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
            and module is not head
            and (module.weight.requires_grad if self.layers is None else name.endswith(tuple(self.layers)))
        ]
        if not layers:
            raise ValueError(
                "the model has no trainable linear layer."
                if self.layers is None
                else f"no linear layer's name ends with {' or '.join(self.layers)}; see model.named_modules()."
            )
        return layers
