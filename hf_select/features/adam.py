"""The step that Adam would take with a gradient, and the optimizer state of a Trainer checkpoint. LESS compares steps
instead of gradients, because its warm-up is trained with Adam.

Xia et al. 2024, "LESS: Selecting Influential Data for Targeted Instruction Tuning" (ICML 2024, arXiv:2402.04333),
section 3.2.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hf_select.atomic import read_json


if TYPE_CHECKING:
    import torch
    from torch import Tensor

# B rows, O outputs and I inputs of a layer

Moments = dict[str, "tuple[Tensor, ...]"]  # layer -> (m, v), both (O, I)


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

    moments: Moments
    step: int
    mode: Literal["paper", "repo"] = "paper"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __call__(self, layer: str, gradients: "Tensor") -> "Tensor":
        """Gamma (B, O, I) of gradients (B, O, I)."""
        (b1, b2), (m, v) = self.betas, self.moments[layer]
        first = b1 * m + (1 - b1) * gradients
        second = b2 * v + (1 - b2) * gradients**2
        if self.mode == "repo":
            return first / (second + self.eps).sqrt()
        t = self.step + 1
        return first / (1 - b1**t) / ((second / (1 - b2**t)).sqrt() + self.eps)


def read_adam(path: str, layers: "dict[str, torch.nn.Linear]", mode: Literal["paper", "repo"]) -> Adam:
    """Adam's state in a checkpoint folder: optimizer.pt as Trainer writes it, or adam_moments.safetensors with
    NAME.exp_avg and NAME.exp_avg_sq and the step in its metadata.

    Args:
        layers: the adapter's layers in the model's order, which is the order in which Trainer's optimizer counts them.
    Raises: ValueError if there is no state, or if it belongs to another adapter.
    """
    folder = Path(path).expanduser()
    named, numbered = folder / "adam_moments.safetensors", folder / "optimizer.pt"
    if not named.exists() and not numbered.exists():
        if any(folder.glob("global_step*")):
            raise ValueError(
                f'"{path}" has its optimizer state in DeepSpeed files, sharded over processes. Train the '
                "adapter without DeepSpeed (it is small; the base model may be 4bit), or score with form=sgd."
            )
        raise ValueError(
            f'"{path}" has no optimizer state (optimizer.pt), which the Adam form of the gradients needs. Save whole '
            "checkpoints (save_only_model=False), or score with form=sgd."
        )
    moments, step, settings = (_named_moments if named.exists() else _numbered_moments)(folder, layers)
    for name, layer in layers.items():
        if name not in moments or any(moment.shape != layer.weight.shape for moment in moments[name]):
            raise ValueError(
                f'the optimizer state in "{path}" belongs to another adapter: it has no moments '
                f"of the shape of {name}."
            )
    on_device = {name: tuple(moment.to(layers[name].weight.device) for moment in moments[name]) for name in layers}
    return Adam(on_device, step, mode, **settings)


def _named_moments(folder: Path, layers: "dict[str, torch.nn.Linear]") -> tuple[Moments, int, dict[str, Any]]:
    from safetensors import safe_open
    from safetensors.torch import load_file

    path = folder / "adam_moments.safetensors"
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        step = (file.metadata() or {}).get("step")
    names = [name.removesuffix(".exp_avg") for name in tensors if name.endswith(".exp_avg")]
    if step is None or any(f"{name}.exp_avg_sq" not in tensors for name in names):
        raise ValueError(f'"{path}" has no step in its metadata, or an .exp_avg without its .exp_avg_sq.')
    # Names in the file contain the adapter's name in training, which may differ here.
    stored = {_without_adapter(name.removeprefix("base_model.model.").removesuffix(".weight")): name for name in names}
    known = {name: stored[_without_adapter(name)] for name in layers if _without_adapter(name) in stored}
    moments = {layer: (tensors[f"{name}.exp_avg"], tensors[f"{name}.exp_avg_sq"]) for layer, name in known.items()}
    return moments, int(step), {}


def _without_adapter(layer: str) -> str:
    return layer.rpartition(".")[0]


def _numbered_moments(folder: Path, layers: "dict[str, torch.nn.Linear]") -> tuple[Moments, int, dict[str, Any]]:
    import torch

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


def training_cost(checkpoints: list[str]) -> dict[str, float]:
    """Cost of training up to these checkpoints, each run counted once: the FLOPs that Trainer counts (6 per parameter
    and token, without embeddings) and, for a warm-up of this package, the seconds. Read from trainer_state.json; empty
    if there is none."""
    last: dict[Path, dict[str, Any]] = {}  # run -> the state of the last checkpoint in use
    for path in checkpoints:
        folder = Path(path).expanduser().resolve()
        state = read_json(folder / "trainer_state.json")
        if state is not None and state["global_step"] >= last.get(folder.parent, state)["global_step"]:
            last[folder.parent] = state
    if not last:
        return {}
    cost = {"flops": float(sum(state["total_flos"] for state in last.values()))}
    ends = [state["log_history"][-1] for state in last.values() if state["log_history"]]
    seconds = [end["seconds"] for end in ends if "seconds" in end]
    if len(seconds) == len(last):
        cost["seconds"] = sum(seconds)
    return cost


def mean_learning_rate(path: str) -> float | None:
    """Mean learning rate that Trainer logged for the steps since the previous checkpoint (None: not logged)."""
    folder = Path(path).expanduser()
    state = read_json(folder / "trainer_state.json")
    if state is None:
        return None
    steps = [int(p.name[11:]) for p in folder.parent.glob("checkpoint-*") if p.name[11:].isdigit()]
    before = max((step for step in steps if step < state["global_step"]), default=0)
    logged = [entry for entry in state["log_history"] if "learning_rate" in entry]
    rates = [entry["learning_rate"] for entry in logged if before < entry["step"] <= state["global_step"]]
    return float(np.mean(rates)) if rates else None
