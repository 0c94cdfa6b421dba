"""Gradients of each row's loss with respect to a LoRA adapter: the representation of LESS.

Xia et al. 2024, "LESS: Selecting Influential Data for Targeted Instruction Tuning" (ICML 2024, arXiv:2402.04333). The
loss of a row is the mean NLL of its response tokens. For a linear layer y = W x the gradient of row b is

    dL_b / dW = sum_t (dL_b / dy_bt) x_bt^T

so one batched backward pass that keeps, at each adapter layer, its input and the gradient at its output gives every
row's own gradient: no pass a row, no gradient of the frozen weights. Layers are handed over one at a time as the
backward pass reaches them, so the whole gradient of a batch need never exist.
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_select.data.bad_rows import BadRow, map_rows, on_readable
from hf_select.data.chat_template import LESS_TEMPLATE
from hf_select.data.conversation import Conversation
from hf_select.data.encoding import Encoded
from hf_select.features import Feature, unit
from hf_select.features.adam import Adam, read_adam
from hf_select.features.projection import Dense, Factored, Projection, of_factors
from hf_select.models import batching
from hf_select.models.adapters import put_adapter
from hf_select.models.causal_lm import CausalLM, predicted
from hf_select.models.load_errors import named
from hf_select.models.loading import free_memory
from hf_select.models.responses import encode_responses
from hf_select.models.sources import content_of
from hf_select.validation import check_choices


# B rows, T tokens, N predicted tokens, O outputs and I inputs of a layer, P parameters of the adapter, q queries


# What a layer's gradients of some rows may take in memory while they are looked at.
_GRADIENT_BYTES = 2**26


class Reduce(Protocol):
    """What becomes of the gradients of a batch, layer by layer."""

    def add(self, layer: str, rows: slice, x: Tensor, y: Tensor) -> None:
        """Take in the two factors of a layer's gradients for some rows of the batch: its inputs x (B, T, I) and the
        gradients at its outputs y (B, T, O), fp32; the gradients are sum_t y_t x_t^T (B, O, I)."""
        ...

    def results(self) -> list[Any]:
        """One result a row."""
        ...


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
    reduce: Callable[[int], Reduce],
    adapter: str = "default",
) -> list[Any | BadRow]:
    """What `reduce` makes of each row's gradient of its mean response NLL, in input order.

    Args:
        responses: token spans of the responses; every row must have a token in them that has one before it.
        reduce: called with the number of rows of a batch; takes in their gradients and gives a result for each.
    """
    loaded = lm.load()
    layers = adapter_layers(loaded.model, adapter)
    positions = [predicted(spans) for spans in responses]
    assert all(len(p) for p in positions), "a row without response tokens has no gradient"

    def forward(indices: list[int]) -> list[Any]:
        reducer = reduce(len(indices))
        handles = [layer.register_forward_hook(factors_to(reducer, name)) for name, layer in layers.items()]
        embedding = loaded.model.get_input_embeddings()
        # No parameter needs a gradient; the graph is there because the embedded tokens do.
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

    with lm.measuring(sequences), _ReadyForBackward(loaded.model):
        return batching.run([len(s) for s in sequences], loaded.budget, forward)


def factors_to(reducer: Reduce, name: str) -> Callable[..., None]:
    """A forward hook that waits for the gradient at the layer's output and hands it over with the layer's input."""

    def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        if not output.requires_grad:  # the first forward of a checkpointed block: it comes again with gradients
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


def _backward(loaded: Any, hidden: Tensor, sequences: list[list[int]], positions: list[np.ndarray]) -> None:
    """Backward of sum_b mean_t NLL_bt. The head runs on the predicted positions in blocks, each with its own backward
    pass down to the hidden states: logits of a batch never exist at once."""
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


class _ReadyForBackward:
    """Within the block no parameter collects a gradient, and blocks that are to be checkpointed are: a model in eval
    mode would pass over it, one in training mode would drop out. All is put back."""

    def __init__(self, model: torch.nn.Module):
        if getattr(model, "is_loaded_in_4bit", False):
            # On a CPU bitsandbytes packs weights anew in a pass that needs no gradients, and what is packed has none;
            # reading the state unpacks it (seen in 0.50).
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


# --------------------------------------------------------------------------------------------------------------------
# what becomes of gradients


def stepped(adam: Adam | None, layer: str, x: Tensor, y: Tensor) -> Tensor:
    """The gradients (B, O, I) of a layer from their factors, or the steps that Adam would take with them."""
    return of_factors(x, y) if adam is None else adam(layer, of_factors(x, y))


class Whole:
    """Each row's whole gradient, a vector (P,) in the order of `layers`: for queries and for small adapters."""

    def __init__(self, rows: int, layers: Sequence[str], adam: Adam | None = None):
        self.layers, self.adam = list(layers), adam
        self.parts: dict[str, list[Tensor]] = {}

    def add(self, layer: str, rows: slice, x: Tensor, y: Tensor) -> None:
        gradients = stepped(self.adam, layer, x, y)
        self.parts.setdefault(layer, []).append(gradients.flatten(1))

    def results(self) -> list[Tensor]:
        return list(torch.cat([torch.cat(self.parts[layer]) for layer in self.layers], dim=1))


class Cosines:
    """Each row's cosine similarity to every query, with no more of a row's gradient in memory than one layer.

    Args:
        queries: layer -> (q, O * I) gradients of the queries, where the layer is.
        norms: (q,) lengths of the queries' whole gradients.
    """

    def __init__(self, rows: int, queries: dict[str, Tensor], norms: Tensor, adam: Adam | None = None):
        self.queries, self.norms, self.adam = queries, norms, adam
        self.products = torch.zeros(rows, len(norms), dtype=norms.dtype, device=norms.device)
        self.squares = torch.zeros(rows, dtype=norms.dtype, device=norms.device)

    def add(self, layer: str, rows: slice, x: Tensor, y: Tensor) -> None:
        gradients = stepped(self.adam, layer, x, y)
        flat = gradients.flatten(1)  # (B, O * I)
        self.products[rows] += (flat @ self.queries[layer].T).to(self.norms.device)
        self.squares[rows] += flat.square().sum(1).to(self.norms.device)

    def results(self) -> list[np.ndarray]:
        cosines = self.products / (self.squares.sqrt()[:, None] * self.norms).clamp_min(1e-30)
        return list(cosines.cpu().numpy())


class Sum:
    """The sum of the rows' gradients, layer -> (O, I): no row's own gradient is formed."""

    def __init__(self) -> None:
        self.layers: dict[str, Tensor] = {}

    def add(self, layer: str, rows: slice, x: Tensor, y: Tensor) -> None:
        gradient = y.flatten(0, 1).T @ x.flatten(0, 1)
        self.layers[layer] = self.layers[layer] + gradient if layer in self.layers else gradient

    def results(self) -> list[Any]:
        return []


class GhostProducts:
    """Each row's inner product with one gradient G and the square of its own length, from the factors alone:

        <sum_t y_t x_t^T, G> = sum_t y_t . (G x_t)        |sum_t y_t x_t^T|^2 = sum_ts (y_t . y_s) (x_t . x_s)

    Where a layer is so small for the length of the rows that its gradients cost less than the sums over pairs of
    tokens (O I < T (O + I); every LoRA layer), they are formed after all.

    Args:
        direction: layer -> (O, I) part of G, where the layer is.
    """

    def __init__(self, rows: int, direction: dict[str, Tensor]):
        self.direction = direction
        self.products, self.squares = torch.zeros(rows), torch.zeros(rows)

    def add(self, layer: str, rows: slice, x: Tensor, y: Tensor) -> None:
        direction = self.direction[layer]
        if direction.numel() < x.shape[1] * (x.shape[2] + y.shape[2]):
            gradients = of_factors(x, y)
            products, squares = (gradients * direction).sum((1, 2)), gradients.square().sum((1, 2))
        else:
            products = ((x @ direction.T) * y).sum((1, 2))
            squares = ((x @ x.mT) * (y @ y.mT)).sum((1, 2))
        self.products[rows] += products.cpu()
        self.squares[rows] += squares.cpu()

    def results(self) -> list[tuple[float, float]]:
        return list(zip(self.products.tolist(), self.squares.tolist(), strict=True))


class Projected:
    """Each row's projected gradient, a vector (d,)."""

    def __init__(self, rows: int, projection: Projection, adam: Adam | None = None):
        self.rows, self.projection, self.adam = rows, projection, adam
        self.sums: dict[torch.device, Tensor] = {}  # a model may span devices

    def add(self, layer: str, rows: slice, x: Tensor, y: Tensor) -> None:
        if x.device not in self.sums:
            self.sums[x.device] = x.new_zeros(self.rows, self.projection.dimensions)
        out, name = self.sums[x.device][rows], layer.rpartition(".")[0]
        if self.adam is None:
            self.projection.add_factors(out, name, x, y)
        else:
            self.projection.add_gradients(out, name, self.adam(layer, of_factors(x, y)))

    def results(self) -> list[np.ndarray]:
        return list(torch.stack([part.cpu() for part in self.sums.values()]).sum(0).numpy())


# --------------------------------------------------------------------------------------------------------------------


@dataclass
class AdapterGradients:
    """Each row's gradient under one or several checkpoints of an adapter: compared whole with those of queries, or,
    with a projection, a featurizer that gives the projected gradients of all checkpoints, each of length 1, in a row.

    Args:
        model: Hub id, path or CausalLM of the base model.
        checkpoints: folders of the adapter, one an epoch, or that of the run which holds them.
        form: of a row's gradient: adam (the step that Adam would take) or sgd (the gradient itself). Queries have the
            gradient itself.
        adam_mode: paper, or repo for the authors' code; see Adam.
        text_format: chat is the model's own template; tulu the layout of the authors' code.
        max_length: tokens kept of a row; a longer one is cut on the right.
        projection: none, dense or factored; see features/projection.py.
        dimensions: numbers that a projected gradient keeps for each checkpoint.
        seed: of the projection.
    """

    model: Any
    checkpoints: list[str]
    form: Literal["adam", "sgd"] = "adam"
    adam_mode: Literal["paper", "repo"] = "paper"
    text_format: Literal["chat", "tulu"] = "chat"
    max_length: int | None = 2048
    projection: Literal["none", "dense", "factored"] = "none"
    dimensions: int = 8192
    seed: int = 0

    scoring_version: ClassVar[int] = 1  # raised when the gradients change

    def __post_init__(self) -> None:
        check_choices(self)
        # A copy of its own: the adapters are put into the model.
        self.lm = self.model.fresh() if isinstance(self.model, CausalLM) else CausalLM(self.model)
        if self.text_format != "chat":
            self.lm.refuse_template(f"text_format {self.text_format} is a layout of its own")
        given = [self.checkpoints] if isinstance(self.checkpoints, str) else self.checkpoints
        self.checkpoints = [path for one in given for path in _expanded(one)]
        if not self.checkpoints:
            raise ValueError("checkpoints is empty; give at least one folder of a trained adapter.")
        self._adams: list[Adam | None] = [None] * len(self.checkpoints)
        self._adapted: Any = None
        self._projection: Projection | None = None

    def identity(self) -> dict[str, Any]:
        """What the gradients depend on."""
        return {
            **self.described(),
            "model": self.lm.identity(),
            "checkpoints": self.contents,
            "vectors_version": self.scoring_version,
        }

    def described(self) -> dict[str, Any]:
        """The settings for people to read."""
        return {**{f.name: getattr(self, f.name) for f in fields(self)}, "model": self.lm.described()}

    @cached_property
    def contents(self) -> list[str]:
        """What identifies each checkpoint: its adapter and, where it is read, the state of the optimizer."""
        optimizer = ("optimizer.pt", "adam_moments.safetensors") if self.form == "adam" else ()
        return [f"content {content_of(path, ('adapter_*', *optimizer))}" for path in self.checkpoints]

    def readers(self) -> list[Any]:
        """What renders rows by a chat template, which may write the day."""
        return [self.lm]

    def details(self) -> dict[str, Any]:
        """What exactly runs: the commit of the weights, their type, a hash of the template."""
        return {
            **self.lm.details(LESS_TEMPLATE if self.text_format == "tulu" else None),
            "dimensions": self.dimensions * len(self.checkpoints),
        }

    def load(self, rank: int | None = None) -> None:
        """The base model with every checkpoint's adapter on it, and their optimizer states."""
        if self._adapted is not None:
            return
        loaded = self.lm.load(rank)
        adapted: Any = None
        for number, path in enumerate(self.checkpoints):
            if not (Path(path).expanduser() / "adapter_config.json").exists():
                raise ValueError(f'"{path}" is no adapter checkpoint: it has no adapter_config.json.')
            adapted = put_adapter(loaded.model if adapted is None else adapted, path, _adapter(number))
        adapted.eval()
        layers = [adapter_layers(loaded.model, _adapter(number)) for number in range(len(self.checkpoints))]
        if self.form == "adam":
            for number, (path, some) in enumerate(zip(self.checkpoints, layers, strict=True)):
                with named(path):
                    self._adams[number] = read_adam(path, some, self.adam_mode)
        if self.projection != "none":
            # One projection for all checkpoints, whose layers bear different adapters' names.
            shapes = {name.rpartition(".")[0]: tuple(layer.weight.shape) for name, layer in layers[0].items()}
            kind = Dense if self.projection == "dense" else Factored
            self._projection = kind(cast(Any, shapes), self.dimensions, self.seed)
        self._adapted = adapted

    def __call__(self, rows: list[Conversation], queries: bool = False) -> list[Feature | BadRow]:
        """Projected gradients (checkpoints * d,): of rows in their form, each of length 1; of queries in their own
        lengths, which weigh them in a mean."""
        self.load()
        self._refuse_beyond_memory(len(rows), self.dimensions, "rows", "lower dimensions")
        scaled = np.asarray if queries else unit
        projected = self.features(rows, lambda some, checkpoint: self._projected(some, checkpoint, queries))
        return map_rows(lambda f: Feature(scaled(np.stack(f.vector)).ravel(), f.note), projected)

    def encode(self, rows: list[Conversation]) -> list[tuple[Encoded, str] | BadRow]:
        """Token ids with response spans and the note of a cut, or why a row has no gradient."""
        return encode_responses(self.lm, rows, self.text_format, self.max_length)

    def features(
        self, rows: list[Conversation], of: Callable[[list[Encoded], int], list[Any]]
    ) -> list[Feature | BadRow]:
        """What `of` (rows, checkpoint) makes of each row under every checkpoint, or why it can be made nothing of."""
        self.load()

        def measure(encoded: list[tuple[Encoded, str]]) -> list[Feature | BadRow]:
            by_checkpoint = [of([row for row, _ in encoded], number) for number in range(len(self.checkpoints))]
            notes = [note for _, note in encoded]
            return map_rows(_feature, notes, *by_checkpoint)

        return on_readable(self.encode(rows), measure)

    def whole(self, rows: list[Encoded], checkpoint: int) -> list[Any]:
        """Plain gradients (P,) of rows, in the order of the adapter's layers: the queries' side."""
        with self._active(checkpoint) as layers:
            size = sum(layer.weight.numel() for layer in layers.values())
            self._refuse_beyond_memory(len(rows), size, "queries", "project them (projection=factored), or give fewer")
            return self._measure(rows, checkpoint, lambda n: Whole(n, list(layers)))

    def cosines(self, rows: list[Encoded], checkpoint: int, queries: Tensor) -> list[Any]:
        """Cosine similarity of each row's gradient, in its form, to queries (q, P): one array (q,) a row."""
        with self._active(checkpoint) as layers:
            sizes = [layer.weight.numel() for layer in layers.values()]
            split = zip(layers.items(), queries.split(sizes, dim=1), strict=True)
            parts = {name: part.to(layer.weight.device) for (name, layer), part in split}
            norms = queries.norm(dim=1)
            return self._measure(rows, checkpoint, lambda n: Cosines(n, parts, norms, self._adams[checkpoint]))

    def _projected(self, rows: list[Encoded], checkpoint: int, queries: bool) -> list[Any]:
        if self._projection is None:
            raise ValueError(
                "projection is none; whole gradients are no vectors to keep. Set it to factored or dense."
            )
        with self._active(checkpoint):
            adam, projection = None if queries else self._adams[checkpoint], self._projection
            return self._measure(rows, checkpoint, lambda n: Projected(n, projection, adam))

    def _measure(self, rows: list[Encoded], checkpoint: int, reduce: Callable[[int], Reduce]) -> list[Any]:
        ids, spans = [row.input_ids for row in rows], [row.responses for row in rows]
        return row_gradients(self.lm, ids, spans, reduce, _adapter(checkpoint)) if rows else []

    def _refuse_beyond_memory(self, rows: int, numbers: int, what: str, cure: str) -> None:
        needed, free = 4 * rows * numbers * len(self.checkpoints), free_memory(self.lm.load().device)
        if needed > free:
            raise ValueError(
                f"the gradients of {rows:,} {what} take {needed / 2**30:,.1f} GiB ({numbers:,} numbers of 4 bytes and "
                f"{len(self.checkpoints)} checkpoints each) and {free / 2**30:,.1f} GiB are free; {cure}."
            )

    @contextmanager
    def _active(self, checkpoint: int):
        self.load()
        self._adapted.set_adapter(_adapter(checkpoint))
        yield adapter_layers(self.lm.load().model, _adapter(checkpoint))


def _feature(note: str, *parts: Any) -> Feature:
    """The results of a row under every checkpoint."""
    if not all(torch.as_tensor(part).isfinite().all() for part in parts):
        raise BadRow("the gradient is not finite")
    return Feature(parts, note)  # type: ignore[arg-type]


def _expanded(path: str) -> list[str]:
    """The checkpoints of a run in their order, or the folder itself."""
    folder = Path(path).expanduser()
    inside = [p.parent for p in folder.glob("checkpoint-*/adapter_config.json") if p.parent.name[11:].isdigit()]
    return [str(p) for p in sorted(inside, key=lambda p: int(p.name[11:]))] or [str(folder)]


def _adapter(checkpoint: int) -> str:
    return f"checkpoint_{checkpoint}"
