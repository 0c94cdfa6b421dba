"""Gradients of each row's loss with respect to a LoRA adapter: the representation of LESS.

Xia et al. 2024, "LESS: Selecting Influential Data for Targeted Instruction Tuning" (ICML 2024, arXiv:2402.04333). The
loss of a row is the mean NLL of its response tokens. For a linear layer y = W x the gradient of row b is

    dL_b / dW = sum_t (dL_b / dy_bt) x_bt^T

so one batched backward pass that keeps, at each adapter layer, its input and the gradient at its output gives every
row's own gradient: no pass a row, no gradient of the frozen weights. Layers are handed over one at a time as the
backward pass reaches them, so the whole gradient of a batch need never exist.

Left out so far: projection and storing.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_select.choices import check_choices
from hf_select.formats import LESS_TEMPLATE, BadRow, Conversation, Encoded, cut, encode_all
from hf_select.inference import batching
from hf_select.inference.batching import OutOfMemory
from hf_select.inference.causal_lm import CausalLM, predicted
from hf_select.inference.loading import file_stamps


# B rows, T tokens, N predicted tokens, O outputs and I inputs of a layer, P parameters of the adapter, q queries


class Reduce(Protocol):
    """What becomes of the gradients of a batch, layer by layer."""

    def add(self, layer: str, gradients: Tensor) -> None:
        """Take in the gradients (B, O, I) of a layer's weight, fp32."""
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
) -> list["Any | OutOfMemory"]:
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
        handles = [layer.register_forward_hook(_keep(name, reducer)) for name, layer in layers.items()]
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


def _keep(name: str, reducer: Reduce) -> Callable[..., None]:
    """A forward hook that waits for the gradient at the layer's output and multiplies it with the layer's input."""

    def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        if not output.requires_grad:  # the first forward of a checkpointed block: it comes again with gradients
            return
        x = args[0].detach()  # (B, T, I)

        def at_output(gradient: Tensor) -> None:  # (B, T, O)
            exact = torch.promote_types(x.dtype, torch.float32)
            reducer.add(name, torch.bmm(gradient.transpose(1, 2).to(exact), x.to(exact)))

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
    weight = torch.from_numpy(np.repeat(1 / np.array(counts), counts)).to(hidden.device)
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
# Adam


@dataclass
class Adam:
    """The step that Adam would take with a row's gradient, from the moments of the warm-up's optimizer.

    m' = b1 m + (1 - b1) g,  v' = b2 v + (1 - b2) g^2
    paper: (m' / (1 - b1^t)) / (sqrt(v' / (1 - b2^t)) + eps), t = step + 1
    repo:  m' / sqrt(v' + eps), as the authors' code has it: no bias correction, eps inside the root

    Args:
        moments: layer -> (m, v), both (O, I).
        step: optimizer steps that the moments have seen.
    """

    moments: dict[str, tuple[Tensor, ...]]
    step: int
    mode: Literal["paper", "repo"] = "paper"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __call__(self, layer: str, gradients: Tensor) -> Tensor:
        """Gamma (B, O, I) of gradients (B, O, I)."""
        (b1, b2), (m, v) = self.betas, self.moments[layer]
        first = b1 * m + (1 - b1) * gradients
        second = b2 * v + (1 - b2) * gradients**2
        if self.mode == "repo":
            return first / torch.sqrt(second + self.eps)
        t = self.step + 1
        return first / (1 - b1**t) / (torch.sqrt(second / (1 - b2**t)) + self.eps)


# --------------------------------------------------------------------------------------------------------------------
# what becomes of gradients


class Whole:
    """Each row's whole gradient, a vector (P,) in the order of `layers`: for queries and for small adapters."""

    def __init__(self, rows: int, layers: Sequence[str], transform: Callable[[str, Tensor], Tensor] | None = None):
        self.layers, self.transform = list(layers), transform
        self.parts: dict[str, Tensor] = {}

    def add(self, layer: str, gradients: Tensor) -> None:
        gradients = gradients if self.transform is None else self.transform(layer, gradients)
        self.parts[layer] = gradients.flatten(1)

    def results(self) -> list[Tensor]:
        return list(torch.cat([self.parts[layer] for layer in self.layers], dim=1))


class Cosines:
    """Each row's cosine similarity to every query, with no more of a row's gradient in memory than one layer.

    Args:
        queries: layer -> (q, O * I) gradients of the queries.
        norms: (q,) lengths of the queries' whole gradients.
    """

    def __init__(
        self,
        rows: int,
        queries: dict[str, Tensor],
        norms: Tensor,
        transform: Callable[[str, Tensor], Tensor] | None = None,
    ):
        self.queries, self.norms, self.transform = queries, norms, transform
        self.products = torch.zeros(rows, len(norms), dtype=norms.dtype, device=norms.device)
        self.squares = torch.zeros(rows, dtype=norms.dtype, device=norms.device)

    def add(self, layer: str, gradients: Tensor) -> None:
        gradients = gradients if self.transform is None else self.transform(layer, gradients)
        flat = gradients.flatten(1)  # (B, O * I)
        self.products += flat @ self.queries[layer].T
        self.squares += flat.square().sum(1)

    def results(self) -> list[np.ndarray]:
        cosines = self.products / (self.squares.sqrt()[:, None] * self.norms).clamp_min(1e-30)
        return list(cosines.cpu().numpy())


# --------------------------------------------------------------------------------------------------------------------
# checkpoints


Moments = dict[str, tuple[Tensor, ...]]  # layer -> (m, v), both (O, I)


def read_adam(path: str, layers: dict[str, torch.nn.Linear], mode: Literal["paper", "repo"]) -> Adam:
    """Adam's state in a checkpoint folder: optimizer.pt as Trainer writes it, or adam_moments.safetensors with
    NAME.exp_avg and NAME.exp_avg_sq and the step in its metadata.

    Args:
        layers: the adapter's layers in the model's order, which is the order in which Trainer's optimizer counts them.
    Raises: ValueError if there is no state, or if it belongs to another adapter.
    """
    folder = Path(path).expanduser()
    named, numbered = folder / "adam_moments.safetensors", folder / "optimizer.pt"
    if not named.exists() and not numbered.exists():
        raise ValueError(
            f'"{path}" has no optimizer state (optimizer.pt), which the Adam form of the gradients needs. Save whole '
            "checkpoints (save_only_model=False), or score with form=sgd."
        )
    moments, step, settings = (_named_moments if named.exists() else _numbered_moments)(folder, layers)
    for name, layer in layers.items():
        if name not in moments or any(moment.shape != layer.weight.shape for moment in moments[name]):
            raise ValueError(f'the optimizer state in "{path}" belongs to another adapter: it has no fit for {name}.')
    on_device = {name: tuple(moment.to(layers[name].weight.device) for moment in moments[name]) for name in layers}
    return Adam(on_device, step, mode, **settings)


def _named_moments(folder: Path, layers: dict[str, torch.nn.Linear]) -> tuple[Moments, int, dict[str, Any]]:
    from safetensors import safe_open
    from safetensors.torch import load_file

    path = folder / "adam_moments.safetensors"
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        step = (file.metadata() or {}).get("step")
    names = [name.removesuffix(".exp_avg") for name in tensors if name.endswith(".exp_avg")]
    if step is None or any(f"{name}.exp_avg_sq" not in tensors for name in names):
        raise ValueError(f'"{path}" lacks the step in its metadata or an .exp_avg_sq beside an .exp_avg.')
    # The file names parameters with the adapter they had in training; here they may have another.
    stored = {_without_adapter(name.removeprefix("base_model.model.").removesuffix(".weight")): name for name in names}
    found = {name: stored[_without_adapter(name)] for name in layers if _without_adapter(name) in stored}
    moments = {layer: (tensors[f"{name}.exp_avg"], tensors[f"{name}.exp_avg_sq"]) for layer, name in found.items()}
    return moments, int(step), {}


def _without_adapter(layer: str) -> str:
    return layer.rpartition(".")[0]


def _numbered_moments(folder: Path, layers: dict[str, torch.nn.Linear]) -> tuple[Moments, int, dict[str, Any]]:
    path = folder / "optimizer.pt"
    state = torch.load(path, map_location="cpu", weights_only=True)  # tensors and numbers, never code
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    entries = [state["state"].get(number, {}) for number in numbers]
    if len(entries) != len(layers) or any("exp_avg_sq" not in entry for entry in entries):
        raise ValueError(
            f'"{path}" is not the state of Adam over this adapter: it counts {len(entries)} parameters, the adapter '
            f"has {len(layers)}."
        )
    moments = {
        name: (entry["exp_avg"].float(), entry["exp_avg_sq"].float())
        for name, entry in zip(layers, entries, strict=True)
    }
    group = state["param_groups"][0]
    return moments, int(entries[0]["step"]), {"betas": tuple(group["betas"]), "eps": float(group["eps"])}


def mean_learning_rate(path: str) -> float | None:
    """Mean learning rate that Trainer logged for the steps from the checkpoint before this one to this one (None: not
    logged)."""
    folder = Path(path).expanduser()
    file = folder / "trainer_state.json"
    if not file.exists():
        return None
    state = json.loads(file.read_text(encoding="utf-8"))
    steps = [int(p.name[11:]) for p in folder.parent.glob("checkpoint-*") if p.name[11:].isdigit()]
    before = max((step for step in steps if step < state["global_step"]), default=0)
    logged = [entry for entry in state["log_history"] if "learning_rate" in entry]
    rates = [entry["learning_rate"] for entry in logged if before < entry["step"] <= state["global_step"]]
    return float(np.mean(rates)) if rates else None


def encode_responses(
    lm: CausalLM, rows: list[Conversation], text_format: str, max_length: int | None
) -> list[tuple[Encoded, str] | BadRow]:
    """Token ids with response spans and the note of a cut, or why a row has nothing to learn from."""
    loaded = lm.load()
    template = LESS_TEMPLATE if text_format == "tulu" else None
    found: list[tuple[Encoded, str] | BadRow] = []
    for encoded in encode_all(rows, loaded.tokenizer, template):
        try:
            if isinstance(encoded, BadRow):
                raise encoded
            kept, note = cut(encoded, max_length, loaded.max_length)
            if len(predicted(kept.responses)) == 0:
                raise BadRow(f"no token of the response is left to learn{f' ({note})' if note else ''}")
            found.append((kept, note))
        except BadRow as reason:
            found.append(reason)
    return found


@dataclass
class AdapterGradients:
    """Each row's gradient under one or several checkpoints of an adapter, compared with those of queries.

    Args:
        model: Hub id, path or CausalLM of the base model.
        checkpoints: folders of the adapter, one an epoch, or that of the run which holds them.
        form: of a row's gradient: adam (the step that Adam would take) or sgd (the gradient itself). Queries have the
            gradient itself.
        adam_mode: paper, or repo for the authors' code; see Adam.
        text_format: chat is the model's own template; tulu the layout of the authors' code.
        max_length: tokens kept of a row; a longer one is cut on the right.
    """

    model: Any
    checkpoints: list[str]
    form: Literal["adam", "sgd"] = "adam"
    adam_mode: Literal["paper", "repo"] = "paper"
    text_format: Literal["chat", "tulu"] = "chat"
    max_length: int | None = 2048

    def __post_init__(self) -> None:
        check_choices(self)
        # A copy of its own: the adapters are put into the model.
        self.lm = self.model.fresh() if isinstance(self.model, CausalLM) else CausalLM(self.model)
        self.checkpoints = [path for given in self.checkpoints for path in _expanded(given)]
        if not self.checkpoints:
            raise ValueError("checkpoints is empty; give at least one folder of a trained adapter.")
        self._adams: list[Adam | None] = [None] * len(self.checkpoints)
        self._adapted: Any = None

    def identity(self) -> dict[str, Any]:
        """What the gradients depend on."""
        stamps = [file_stamps(path) for path in self.checkpoints]
        settings = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**settings, "model": self.lm.identity(), "checkpoint_files": stamps}

    def load(self, rank: int | None = None) -> None:
        """The base model with every checkpoint's adapter on it, and their optimizer states."""
        if self._adapted is not None:
            return
        from peft import PeftModel

        loaded = self.lm.load(rank)
        adapted: Any = None
        for number, path in enumerate(self.checkpoints):
            if not (Path(path).expanduser() / "adapter_config.json").exists():
                raise ValueError(f'"{path}" is no adapter checkpoint: it has no adapter_config.json.')
            try:
                if adapted is None:
                    adapted = PeftModel.from_pretrained(loaded.model, path, adapter_name=_adapter(number))
                else:
                    adapted.load_adapter(path, _adapter(number))
            except (RuntimeError, ValueError) as error:
                raise ValueError(f'adapter "{path}" does not fit the model: {str(error).splitlines()[0]}') from error
        adapted.eval()
        layers = [adapter_layers(loaded.model, _adapter(number)) for number in range(len(self.checkpoints))]
        if self.form == "adam":
            self._adams = [
                read_adam(path, some, self.adam_mode) for path, some in zip(self.checkpoints, layers, strict=True)
            ]
        self._adapted = adapted

    def encode(self, rows: list[Conversation]) -> list[tuple[Encoded, str] | BadRow]:
        """Token ids with response spans and the note of a cut, or why a row has no gradient."""
        return encode_responses(self.lm, rows, self.text_format, self.max_length)

    def whole(self, rows: list[Encoded], checkpoint: int) -> list[Any]:
        """Plain gradients (P,) of rows, in the order of the adapter's layers: the queries' side."""
        with self._active(checkpoint) as layers:
            return self._measure(rows, checkpoint, lambda n: Whole(n, list(layers)))

    def cosines(self, rows: list[Encoded], checkpoint: int, queries: Tensor) -> list[Any]:
        """Cosine similarity of each row's gradient, in its form, to queries (q, P): one array (q,) a row."""
        with self._active(checkpoint) as layers:
            sizes = [layer.weight.numel() for layer in layers.values()]
            parts = dict(zip(layers, queries.split(sizes, dim=1), strict=True))
            norms = queries.norm(dim=1)
            return self._measure(rows, checkpoint, lambda n: Cosines(n, parts, norms, self._adams[checkpoint]))

    def _measure(self, rows: list[Encoded], checkpoint: int, reduce: Callable[[int], Reduce]) -> list[Any]:
        ids, spans = [row.input_ids for row in rows], [row.responses for row in rows]
        return row_gradients(self.lm, ids, spans, reduce, _adapter(checkpoint)) if rows else []

    @contextmanager
    def _active(self, checkpoint: int):
        self.load()
        self._adapted.set_adapter(_adapter(checkpoint))
        yield adapter_layers(self.lm.load().model, _adapter(checkpoint))


def _expanded(path: str) -> list[str]:
    """The checkpoints of a run in their order, or the folder itself."""
    folder = Path(path).expanduser()
    inside = [p.parent for p in folder.glob("checkpoint-*/adapter_config.json") if p.parent.name[11:].isdigit()]
    return [str(p) for p in sorted(inside, key=lambda p: int(p.name[11:]))] or [str(folder)]


def _adapter(checkpoint: int) -> str:
    return f"checkpoint_{checkpoint}"
