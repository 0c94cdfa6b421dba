"""What becomes of each row's gradients, a layer at a time: kept whole, compared, summed or projected.

The gradients of a layer arrive as two factors, its inputs x and the gradients y at its outputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_select.features.adam import Adam
from hf_select.features.projection import Projection, layer_gradients


# B rows, T tokens, O outputs and I inputs of a layer, P parameters of the adapter, q queries, d dimensions


class GradientReducer(ABC):
    """Reduces the gradients of a batch of rows to one result per row."""

    @abstractmethod
    def add(self, layer: str, rows: slice, x: Tensor, y: Tensor) -> None:
        """Add a layer's gradients of some rows of the batch, given as factors in fp32: the layer's inputs x (B, T, I)
        and the gradients y (B, T, O) at its outputs. The gradients are sum_t y_t x_t^T, (B, O, I)."""

    @abstractmethod
    def results(self) -> list[Any]:
        """One result per row."""


def adam_step(adam: Adam | None, layer: str, x: Tensor, y: Tensor) -> Tensor:
    """The steps (B, O, I) that Adam would take with a layer's gradients; without Adam, the gradients."""
    gradients = layer_gradients(x, y)
    return gradients if adam is None else adam(layer, gradients)


class FullGradients(GradientReducer):
    """Each row's full gradient, a vector (P,) in the order of `layers`: for queries and for small adapters."""

    def __init__(self, rows: int, layers: Sequence[str], adam: Adam | None = None):
        self.layers, self.adam = list(layers), adam
        self.parts: dict[str, list[Tensor]] = {}

    def add(self, layer: str, rows: slice, x: Tensor, y: Tensor) -> None:
        """Add a layer's gradients of some rows."""
        gradients = adam_step(self.adam, layer, x, y)
        self.parts.setdefault(layer, []).append(gradients.flatten(1))

    def results(self) -> list[Tensor]:
        """One result per row."""
        return list(torch.cat([torch.cat(self.parts[layer]) for layer in self.layers], dim=1))


class Cosines(GradientReducer):
    """Each row's cosine similarity to every query, with one layer of the row's gradient in memory at a time.

    Args:
        queries: layer -> (q, O * I) gradients of the queries, where the layer is.
        norms: (q,) lengths of the queries' full gradients.
    """

    def __init__(self, rows: int, queries: dict[str, Tensor], norms: Tensor, adam: Adam | None = None):
        self.queries, self.norms, self.adam = queries, norms, adam
        self.products = torch.zeros(rows, len(norms), dtype=norms.dtype, device=norms.device)
        self.squares = torch.zeros(rows, dtype=norms.dtype, device=norms.device)

    def add(self, layer: str, rows: slice, x: Tensor, y: Tensor) -> None:
        """Add a layer's gradients of some rows."""
        gradients = adam_step(self.adam, layer, x, y)
        flat = gradients.flatten(1)  # (B, O * I)
        self.products[rows] += (flat @ self.queries[layer].T).to(self.norms.device)
        self.squares[rows] += flat.square().sum(1).to(self.norms.device)

    def results(self) -> list[np.ndarray]:
        """One result per row."""
        cosines = self.products / (self.squares.sqrt()[:, None] * self.norms).clamp_min(1e-30)
        return list(cosines.cpu().numpy())


class GradientSum(GradientReducer):
    """The sum of the rows' gradients, layer -> (O, I): no row's own gradient is formed."""

    def __init__(self) -> None:
        self.layers: dict[str, Tensor] = {}

    def add(self, layer: str, rows: slice, x: Tensor, y: Tensor) -> None:
        """Add a layer's gradients of some rows."""
        gradient = y.flatten(0, 1).T @ x.flatten(0, 1)
        self.layers[layer] = self.layers[layer] + gradient if layer in self.layers else gradient

    def results(self) -> list[Any]:
        """One result per row."""
        return []


class GhostProducts(GradientReducer):
    """Each row's inner product with one gradient G, and its own squared length, from the factors alone:

        <sum_t y_t x_t^T, G> = sum_t y_t . (G x_t)        |sum_t y_t x_t^T|^2 = sum_ts (y_t . y_s) (x_t . x_s)

    Gradients are formed where that costs less than the sums over pairs of tokens: O I < T (O + I), which holds for
    every LoRA layer.

    Args:
        direction: layer -> (O, I) part of G, where the layer is.
    """

    def __init__(self, rows: int, direction: dict[str, Tensor]):
        self.direction = direction
        self.products, self.squares = torch.zeros(rows), torch.zeros(rows)

    def add(self, layer: str, rows: slice, x: Tensor, y: Tensor) -> None:
        """Add a layer's gradients of some rows."""
        direction = self.direction[layer]
        if direction.numel() < x.shape[1] * (x.shape[2] + y.shape[2]):
            gradients = layer_gradients(x, y)
            products, squares = (gradients * direction).sum((1, 2)), gradients.square().sum((1, 2))
        else:
            products = ((x @ direction.T) * y).sum((1, 2))
            squares = ((x @ x.mT) * (y @ y.mT)).sum((1, 2))
        self.products[rows] += products.cpu()
        self.squares[rows] += squares.cpu()

    def results(self) -> list[tuple[float, float]]:
        """One result per row."""
        return list(zip(self.products.tolist(), self.squares.tolist(), strict=True))


class ProjectedGradients(GradientReducer):
    """Each row's projected gradient, a vector (d,)."""

    def __init__(self, rows: int, projection: Projection, adam: Adam | None = None):
        self.rows, self.projection, self.adam = rows, projection, adam
        self.sums: dict[torch.device, Tensor] = {}  # a model may span devices

    def add(self, layer: str, rows: slice, x: Tensor, y: Tensor) -> None:
        """Add a layer's gradients of some rows."""
        if x.device not in self.sums:
            self.sums[x.device] = x.new_zeros(self.rows, self.projection.dimensions)
        out, name = self.sums[x.device][rows], layer.rpartition(".")[0]
        if self.adam is None:
            self.projection.add_factors(out, name, x, y)
        else:
            self.projection.add_gradients(out, name, self.adam(layer, layer_gradients(x, y)))

    def results(self) -> list[np.ndarray]:
        """One result per row."""
        return list(torch.stack([part.cpu() for part in self.sums.values()]).sum(0).numpy())
