"""Projected gradients keep inner products: on average exactly, each to about 1 / sqrt(d)."""

import numpy as np
import pytest
import torch

from hf_select.features import projection
from hf_select.features.projection import Dense, Factored, layer_gradients


SHAPES = {f"layer{n}.{side}": ((8, 48) if side == "A" else (48, 8)) for n in range(12) for side in "AB"}
KINDS = {"dense": Dense, "factored": Factored}


def factors(rows: int, tokens: int = 6, seed: int = 0) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Inputs x (B, T, I) and output gradients y (B, T, O) of each layer; rows share a part, so that they agree."""
    generator = torch.Generator().manual_seed(seed)

    def some(size: int) -> torch.Tensor:
        return torch.randn(rows, tokens, size, generator=generator) + torch.randn(tokens, size, generator=generator)

    return {layer: (some(inputs), some(outputs)) for layer, (outputs, inputs) in SHAPES.items()}


def whole(given) -> torch.Tensor:
    return torch.cat([layer_gradients(x, y).flatten(1) for x, y in given.values()], dim=1)


def projected(kind, given, dimensions, seed=0, by="factors") -> torch.Tensor:
    made = KINDS[kind](SHAPES, dimensions, seed)
    out = torch.zeros(len(next(iter(given.values()))[0]), dimensions)
    for layer, (x, y) in given.items():
        if by == "factors":
            made.add_factors(out, layer, x, y)
        else:
            made.add_gradients(out, layer, layer_gradients(x, y))
    return out


def errors(kind, dimensions, seeds) -> np.ndarray:
    """(seeds, pairs) differences of inner products, as shares of both lengths."""
    given = factors(12)
    g = whole(given)
    lengths = g.norm(dim=1)
    pairs = torch.triu_indices(len(g), len(g))
    found = []
    for seed in range(seeds):
        s = projected(kind, given, dimensions, seed)
        wrong = (s @ s.T - g @ g.T) / (lengths[:, None] * lengths)
        found.append(wrong[pairs[0], pairs[1]].numpy())
    return np.stack(found)


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_of_inner_products_falls_as_one_over_the_root_of_d(kind):
    size = [np.sqrt((errors(kind, d, seeds=10) ** 2).mean()) for d in (64, 256, 1024)]
    for d, error in zip((64, 256, 1024), size, strict=True):
        assert 0.5 < error * np.sqrt(d) < 2, (d, error)
    for larger, smaller in zip(size, size[1:], strict=False):  # 4 times the dimensions, half the error
        assert 1.6 < larger / smaller < 2.5, size


@pytest.mark.parametrize("kind", KINDS)
def test_inner_products_are_right_on_average(kind):
    wrong = errors(kind, 64, seeds=200)
    z = wrong.mean(0) / (wrong.std(0) / np.sqrt(len(wrong)))
    assert np.abs(wrong.mean(0)).max() < 0.05 and np.abs(z).max() < 4.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dimensions", [7, 100, 4096])
def test_from_the_factors_and_from_the_gradients_is_the_same(kind, dimensions):
    given = factors(5)
    found = projected(kind, given, dimensions)
    torch.testing.assert_close(projected(kind, given, dimensions, by="gradients"), found, rtol=1e-4, atol=1e-3)
    assert found.abs().sum(0).gt(0).all(), "a coordinate that nothing reaches is lost"
    assert not torch.allclose(projected(kind, given, dimensions, seed=1), found)


@pytest.mark.parametrize("kind", KINDS)
def test_signs_that_are_drawn_anew_are_those_that_were_kept(kind, monkeypatch):
    given = factors(5)
    found = projected(kind, given, 200)
    monkeypatch.setattr(projection, "_KEPT_BYTES", 0)
    assert torch.equal(projected(kind, given, 200), found)


def test_dense_by_hand(monkeypatch):
    monkeypatch.setattr(projection, "_BLOCK_NUMBERS", 40)  # blocks of 5 numbers
    made = Dense({"a": (2, 3), "b": (4, 2)}, 8)
    gradients = {"a": torch.randn(3, 2, 3), "b": torch.randn(3, 4, 2)}
    out = torch.zeros(3, 8)
    for layer, g in gradients.items():
        made.add_gradients(out, layer, g)
    rows = [made._signs(size, 8, out, *key) for size, *key in ((5, 0, 0), (1, 0, 1), (5, 1, 0), (3, 1, 1))]
    signs = torch.cat(rows)
    assert signs.shape == (14, 8) and set(signs.unique().tolist()) == {-1.0, 1.0}
    flat = torch.cat([g.flatten(1) for g in gradients.values()], dim=1)
    torch.testing.assert_close(out, flat @ signs / np.sqrt(8))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dimensions", [0, 10_000])
def test_more_dimensions_than_weights_are_refused(kind, dimensions):
    with pytest.raises(ValueError, match=f"dimensions is {dimensions:,}; the adapter has 9,216 weights"):
        KINDS[kind](SHAPES, dimensions)
