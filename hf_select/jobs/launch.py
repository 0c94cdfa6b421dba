"""Which process of a launch this is, as its launcher says: torchrun and `accelerate launch` (RANK, LOCAL_RANK,
WORLD_SIZE), or plain `srun` (SLURM_PROCID, SLURM_LOCALID, SLURM_NTASKS). A launcher inside `srun` goes first.
"""

import os
import socket


def leads() -> bool:
    """Whether this is the main process."""
    return _number("RANK", "SLURM_PROCID", 0) == 0


def local_rank() -> int:
    """Number of this process on its machine, which picks its device."""
    return _number("LOCAL_RANK", "SLURM_LOCALID", 0)


def job_name() -> str:
    """The same for all processes of one launch."""
    if _number("WORLD_SIZE", "SLURM_NTASKS", 1) > 1:
        names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_STEP_ID")
        return " ".join(os.environ.get(name, "") for name in names)
    return f"{socket.gethostname()} {os.getpid()}"


def _number(name: str, of_slurm: str, default: int) -> int:
    launched = "RANK" in os.environ or "SLURM_PROCID" not in os.environ
    return int(os.environ.get(name if launched else of_slurm, default))
