"""Rank of this process in a distributed launch.

Reads the variables of torchrun and `accelerate launch` (RANK, LOCAL_RANK, WORLD_SIZE), else those of plain `srun`
(SLURM_PROCID, SLURM_LOCALID, SLURM_NTASKS).
"""

import os
import socket


def is_main_process() -> bool:
    """Whether the global rank of this process is 0."""
    return _variable("RANK", "SLURM_PROCID", 0) == 0


def local_rank() -> int:
    """Rank of this process on its machine, which determines its device."""
    return _variable("LOCAL_RANK", "SLURM_LOCALID", 0)


def job_name() -> str:
    """A name that all processes of one launch share."""
    if _variable("WORLD_SIZE", "SLURM_NTASKS", 1) > 1:
        names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_STEP_ID")
        return " ".join(os.environ.get(name, "") for name in names)
    return f"{socket.gethostname()} {os.getpid()}"


def _variable(launcher: str, slurm: str, default: int) -> int:
    launched = "RANK" in os.environ or "SLURM_PROCID" not in os.environ
    return int(os.environ.get(launcher if launched else slurm, default))
