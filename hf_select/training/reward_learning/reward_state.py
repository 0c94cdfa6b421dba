"""The state of a DemonstrationReward on disk: trained weights, optimizer and progress."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hf_select.atomic import atomic_path, read_json, write_json


def write_state(
    folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None, progress: Mapping[str, Any]
) -> None:
    """Write the trainable weights of the model, the optimizer's state and `progress`, atomically."""
    from safetensors.torch import save_file

    trained = {name: p.detach().contiguous() for name, p in _trained(model).items()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        save_file(trained, temporary / "reward.safetensors")
        if optimizer is not None:
            torch.save(optimizer.state_dict(), temporary / "optimizer.pt")
        write_json(temporary / "state.json", dict(progress))


def read_state(folder: Path, model: torch.nn.Module) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Load the trainable weights into the model; (progress, state of the optimizer or None).

    Raises: ValueError if the folder holds no state of such a model.
    """
    from safetensors.torch import load_file

    progress = read_json(folder / "state.json")
    if progress is None:
        raise ValueError(
            f'"{folder}" holds no state of the reward: it was trained without it, or the copy is incomplete. Start in '
            "another output_dir, or resume from a checkpoint that has it."
        )
    trained, stored = _trained(model), load_file(folder / "reward.safetensors")
    if stored.keys() != trained.keys() or any(stored[name].shape != p.shape for name, p in trained.items()):
        raise ValueError(f'"{folder}" holds the state of another reward model; start in another output_dir.')
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(stored[name])
    optimizer = folder / "optimizer.pt"
    return progress, torch.load(optimizer, weights_only=True) if optimizer.exists() else None


def _trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
