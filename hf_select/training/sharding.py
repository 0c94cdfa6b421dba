"""Weights that DeepSpeed ZeRO-3 or FSDP shard over processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from torch.distributed.tensor import DTensor


if TYPE_CHECKING:
    from transformers import Trainer


def uses_fsdp(trainer: "Trainer") -> bool:
    """Whether FSDP shards the trainer's weights."""
    model = cast(nn.Module, trainer.model)
    return trainer.is_fsdp_enabled or any(isinstance(p, DTensor) for p in model.parameters())


def has_zero3_parameters(model: nn.Module) -> bool:
    """Whether ZeRO-3 shards parameters of the model."""
    return any(hasattr(p, "ds_id") for p in model.parameters())


def weights_are_sharded(trainer: "Trainer") -> bool:
    """Whether no process has, or will have after preparation, all the weights."""
    plugin: Any = trainer.accelerator.state.deepspeed_plugin
    return (plugin is not None and plugin.zero_stage == 3) or uses_fsdp(trainer)


def full_size(parameter: Tensor) -> int:
    """Number of elements of the unsharded parameter."""
    return getattr(parameter, "ds_numel", None) or parameter.numel()


@contextmanager
def gathered_parameter(parameter: Tensor, changed: bool = False) -> Iterator[Tensor]:
    """A parameter as one tensor, also where ZeRO-3 or FSDP2 shards it; must be called on every rank.

    Args:
        changed: broadcast what the main process writes into it (ZeRO-3).
    """
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if changed else None):
            yield parameter.data
    elif isinstance(parameter, DTensor):
        yield cast(DTensor, parameter.detach()).full_tensor()
    else:
        yield parameter.data
