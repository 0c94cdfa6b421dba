"""The plan of a run in stages: rows, batches and updates of each stage, and the learning-rate schedule over them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from hf_select.training.reward_learning.stages_config import StagesConfig


if TYPE_CHECKING:
    from torch.optim import Optimizer


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Args:
        rows: of the demonstrations.
        size: rows that each pass trains on.
        batches: of a pass, in one process.
        updates: optimizer steps of a pass.
        first_step: of the stage, counted from the beginning of the run.
    """

    rows: range
    size: int
    batches: int
    updates: int
    first_step: int


def stage_rows(total: int, args: StagesConfig) -> list[range]:
    """The demonstrations of each stage, out of `total`.

    Raises: ValueError for more stages than rows.
    """
    stages = args.num_stages
    if stages > total:
        raise ValueError(f"num_stages is {stages}, and there are {total} demonstrations; lower num_stages.")
    if args.data_per_stage == "full":
        return [range(total)] * stages
    size = total // stages
    return [range(number * size, (number + 1) * size) for number in range(stages)]


def position(step: int, stages: Sequence[Stage], passes: int) -> tuple[int, int]:
    """(epoch, updates made in this epoch) after `step` updates of a run, an epoch being one pass of one stage."""
    epoch = 0
    for stage in stages:
        for _ in range(passes):
            if step < stage.updates:
                return epoch, step
            step, epoch = step - stage.updates, epoch + 1
    return epoch, 0


def stagewise_schedule(args: StagesConfig, optimizer: "Optimizer", stages: Sequence[Stage], passes: int) -> LambdaLR:
    """A schedule that restarts with each stage, as one schedule of the whole run."""
    curves: list[tuple[int, float, Callable[[int], float]]] = []
    for number, stage in enumerate(stages):
        steps = stage.updates * passes
        peak = (args.stage_learning_rates or [args.learning_rate] * len(stages))[number]
        schedule = get_scheduler(
            args.lr_scheduler_type,
            optimizer=torch.optim.SGD([torch.zeros(1)], lr=peak),  # a minimum rate is given as a share of this one
            num_warmup_steps=args.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=cast(Any, args.lr_scheduler_kwargs),
        )
        curves.append((stage.first_step, peak / args.learning_rate, cast(Any, schedule).lr_lambdas[0]))

    def factor(step: int) -> float:
        first, height, curve = next(c for c in reversed(curves) if c[0] <= step)
        return height * curve(step - first)

    return LambdaLR(optimizer, factor)


def reset_optimizer(optimizer: Any, in_place: bool) -> None:
    """Restore the state that the optimizer had before its first step.

    Args:
        in_place: zero the states instead of dropping them, for DeepSpeed's optimizers, which keep views of them.
    """
    while hasattr(optimizer, "optimizer"):  # accelerate's and DeepSpeed's wrappers
        optimizer = optimizer.optimizer
    for group in optimizer.param_groups:
        if "step" in group:
            group["step"] = 0
    if not in_place:
        optimizer.state.clear()
        return
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, Tensor):
                value.zero_()
            elif name == "step":
                state[name] = 0
