"""Random projection of a LoRA adapter's gradients to d dimensions that keeps inner products.

dense      s(g) = R g, R (d, P) of independent signs / sqrt(d): the projection of LESS (Xia et al. 2024,
           arXiv:2402.04333, section 4.1). Its inner products are right on average, with an error of about 1 / sqrt(d)
           times both lengths, and cost 2 P d FLOPs a row.
factored   s(g) = sum_l P_l vec(A_l G_l B_l^T), with signs A_l (o, O) and B_l (i, I), o * i <= d, and P_l the layer's
           place among the d coordinates: two small products a layer from the two sides (Choe et al. 2024, "What is
           Your Data Worth to GPT?", arXiv:2405.13954). For a plain gradient G = sum_t y_t x_t^T they are taken of
           y and x, and G is never formed.
           Differs from that paper: layers are added up in the same d coordinates, where theirs stand side by side with
           d / layers each. With independent signs the products across layers cancel on average, and each layer has
           all d dimensions, which two-sided signs need for accurate products.

The signs come from NumPy's Philox generator, by seed, layer and block, so they are the same on every machine and
device. Only their bits are kept (P d / 8 bytes for dense); beyond `_KEPT_BYTES` they are drawn again for each batch.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


# B rows, T tokens, O outputs and I inputs of a layer, P parameters of the adapter, d dimensions

# At most this many bytes of signs, stored as bits, are kept between batches; numbers unpacked from them at a time.
_KEPT_BYTES = 2**30
_BLOCK_NUMBERS = 2**22


def layer_gradients(x: Tensor, y: Tensor) -> Tensor:
    """Gradients (B, O, I) = sum_t y_t x_t^T of the inputs x (B, T, I) and the gradients at the outputs y (B, T, O)."""
    return torch.bmm(y.transpose(1, 2), x)


@dataclass
class Projection:
    """Base of both projections: layers, signs, and the sum over layers.

    Args:
        shapes: layer -> (O, I), in the adapter's order.
        dimensions: d.
        seed: of the signs.
    """

    shapes: dict[str, tuple[int, int]]
    dimensions: int
    seed: int = 0
    _kept: dict[tuple[int, ...], Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        parameters = sum(rows * columns for rows, columns in self.shapes.values())
        if not 1 <= self.dimensions <= parameters:
            raise ValueError(
                f"dimensions is {self.dimensions:,}; the adapter has {parameters:,} weights. Give at most that many, "
                "or compare full gradients (projection=none)."
            )
        self._number = {layer: number for number, layer in enumerate(self.shapes)}

    def add_gradients(self, out: Tensor, layer: str, gradients: Tensor) -> None:
        """Add the projection of a layer's gradients (B, O, I) to out (B, d)."""
        raise NotImplementedError

    def add_factors(self, out: Tensor, layer: str, x: Tensor, y: Tensor) -> None:
        """The same for the gradients sum_t y_t x_t^T, given as factors x (B, T, I) and y (B, T, O)."""
        self.add_gradients(out, layer, layer_gradients(x, y))

    def _signs(self, rows: int, columns: int, like: Tensor, *key: int) -> Tensor:
        """(rows, columns) of -1 and 1, drawn for this key, on the device and of the type of `like`."""
        width = -(-columns // 8)  # bytes a row
        bits = self._kept.get(key)
        if bits is None:
            words = -(-rows * width // 8)
            source = np.random.Philox(np.random.SeedSequence(self.seed, spawn_key=key))
            drawn = source.random_raw(words).astype("<u8").view(np.uint8)[: rows * width]
            bits = torch.from_numpy(drawn.reshape(rows, width)).to(like.device)
            if sum(kept.numel() for kept in self._kept.values()) + bits.numel() <= _KEPT_BYTES:
                self._kept[key] = bits
        table = torch.arange(256, device=like.device)[:, None] >> torch.arange(8, device=like.device) & 1
        table = (2 * table - 1).to(like.dtype)  # (256, 8): the eight signs of a byte
        return torch.nn.functional.embedding(bits.int(), table).view(rows, width * 8)[:, :columns]


class Dense(Projection):
    """s(g) = R g with independent signs / sqrt(d): see the module."""

    def add_gradients(self, out: Tensor, layer: str, gradients: Tensor) -> None:
        """Add the projection of a layer's gradients (B, O, I) to out (B, d)."""
        flat = gradients.flatten(1)  # (B, O * I)
        block = max(1, _BLOCK_NUMBERS // self.dimensions)
        for number, start in enumerate(range(0, flat.shape[1], block)):
            part = flat[:, start : start + block]
            signs = self._signs(part.shape[1], self.dimensions, part, self._number[layer], number)
            out.addmm_(part, signs, alpha=1 / math.sqrt(self.dimensions))


class Factored(Projection):
    """s(g) = sum_l P_l vec(A_l G_l B_l^T): see the module."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._sizes = {layer: _two_sides(*shape, self.dimensions) for layer, shape in self.shapes.items()}
        taken = np.cumsum([0, *(o * i for o, i in self._sizes.values())]) % self.dimensions
        self._places = dict(zip(self.shapes, taken.tolist(), strict=False))

    def add_gradients(self, out: Tensor, layer: str, gradients: Tensor) -> None:
        """Add the projection of a layer's gradients (B, O, I) to out (B, d)."""
        a, b = self._sides(layer, gradients)
        # The larger side first: what is left is small.
        halfway = gradients @ b.T if b.shape[1] >= a.shape[1] else a @ gradients
        self._add(out, layer, a @ halfway if b.shape[1] >= a.shape[1] else halfway @ b.T)

    def add_factors(self, out: Tensor, layer: str, x: Tensor, y: Tensor) -> None:
        """The same for gradients given as factors, which are never formed."""
        a, b = self._sides(layer, x)
        self._add(out, layer, torch.bmm((y @ a.T).transpose(1, 2), x @ b.T))

    def _sides(self, layer: str, like: Tensor) -> tuple[Tensor, Tensor]:
        """A (o, O) and B (i, I)."""
        (outputs, inputs), (o, i) = self.shapes[layer], self._sizes[layer]
        return self._side(o, outputs, like, layer, 0), self._side(i, inputs, like, layer, 1)

    def _side(self, to: int, size: int, like: Tensor, layer: str, side: int) -> Tensor:
        """Signs (to, size) / sqrt(to); a side that keeps its size is multiplied by signs and not mixed."""
        if to == size:
            return torch.diag(self._signs(1, size, like, self._number[layer], side)[0])
        return self._signs(to, size, like, self._number[layer], side) / math.sqrt(to)

    def _add(self, out: Tensor, layer: str, projected: Tensor) -> None:
        """Add to out from the layer's offset on, wrapping around at the end of the d coordinates."""
        flat, place = projected.flatten(1), self._places[layer]
        before_end = min(flat.shape[1], self.dimensions - place)
        out[:, place : place + before_end] += flat[:, :before_end]
        out[:, : flat.shape[1] - before_end] += flat[:, before_end:]


def _two_sides(outputs: int, inputs: int, dimensions: int) -> tuple[int, int]:
    """(o, i) with o * i <= d, as near to a square as the layer allows. A side that is already small keeps its size."""
    square = math.isqrt(dimensions)
    if outputs <= inputs:
        o = min(outputs, square)
        return o, min(inputs, dimensions // o)
    i = min(inputs, square)
    return min(outputs, dimensions // i), i
