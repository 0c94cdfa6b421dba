"""Sums over the processes of a launch, with or without a trainer; alone, nothing is communicated."""

from collections.abc import Iterable

import numpy as np
import torch


def rank_and_size() -> tuple[int, int]:
    """(rank of this process, number of processes)"""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Sum the gradients over processes. Each has the gradient of its own pairs' share of the mean loss, so the sum is
    the gradient of the mean."""
    if rank_and_size()[1] == 1:
        return
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        torch.distributed.all_reduce(p.grad)


def sum_values(values: np.ndarray, device: torch.device) -> np.ndarray:
    """Elementwise sum over processes."""
    if rank_and_size()[1] == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float32, device=device)
    torch.distributed.all_reduce(tensor)
    return tensor.cpu().double().numpy()
