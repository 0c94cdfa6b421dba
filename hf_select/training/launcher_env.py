"""Environment variables of launchers and of accelerate, so that a run depends only on its own settings."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager


# Environment variables by which torchrun and `accelerate launch` describe the other processes.
_LAUNCHER_VARIABLES = re.compile(
    "RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|GROUP_RANK|GROUP_WORLD_SIZE|ROLE_.*|MASTER_(ADDR|PORT)|TORCHELASTIC_.*"
)


@contextmanager
def without_launcher_env(launches: bool) -> Iterator[None]:
    """Hide a launcher's variables, so that every process trains its own runs on its own device.

    Args:
        launches: whether runs are launched on several devices themselves, which processes cannot share.
    Raises: ValueError under DeepSpeed or FSDP, whose processes train together, and for several processes that launch.
    """
    if launches and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("with accelerate_config every run is launched by itself: start the command as one process.")
    for engine in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"):
        if os.environ.get(engine) == "true":
            raise ValueError(
                "runs that DeepSpeed or FSDP train are launched one by one: start the command itself without them and "
                "name the configuration in the recipe (accelerate_config)."
            )
    hidden = {name: value for name, value in os.environ.items() if _LAUNCHER_VARIABLES.fullmatch(name)}
    if "LOCAL_RANK" in hidden:
        _choose_device(int(hidden["LOCAL_RANK"]))
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def own_precision() -> Iterator[None]:
    """Within the block, training may set its precision; what follows does not inherit it. TrainingArguments of
    transformers 4.57 leave ACCELERATE_MIXED_PRECISION in the environment, and a later run in fp32 would use bf16."""
    name = "ACCELERATE_MIXED_PRECISION"
    before = os.environ.get(name)
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


def _choose_device(rank: int) -> None:
    """Make only the rank's device visible, unless no device is to be visible.

    CUDA reads the variable when it is first used; if that was earlier, several devices are seen, which is refused
    later.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible == "":
        return
    devices = visible.split(",") if visible else []
    if devices and rank >= len(devices):
        raise ValueError(
            f"process {rank + 1} of the launch has no device: CUDA_VISIBLE_DEVICES={visible}. Start as many "
            "processes as there are devices."
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = devices[rank] if devices else str(rank)
