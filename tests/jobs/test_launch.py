"""What a process knows of its launch: under torchrun, under plain srun, and alone."""

import ast
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

import hf_select
from hf_select.jobs import launch
from hf_select.models.loading import device_of
from hf_select.scoring.score import _peak_memory_mib


NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
SLURM = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_JOB_ID", "SLURM_STEP_ID")


@pytest.fixture
def launched(monkeypatch):
    """A way to set the variables of a launch, and none else."""

    def start(**variables: str) -> None:
        for name in (*NAMES, *SLURM):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return start


def srun(rank: int, local: int, tasks: int = 16) -> dict[str, str]:
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}
    return {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(local), "SLURM_NTASKS": str(tasks), **step}


def test_plain_srun_gives_each_process_its_rank_and_its_device(launched, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 8)
    found = []
    for rank in range(16):
        launched(**srun(rank, rank % 8))
        found.append((launch.is_main_process(), device_of(None, None), launch.job_name()))
    assert [leads for leads, _, _ in found] == [True] + [False] * 15
    assert [device for _, device, _ in found] == [f"cuda:{i % 8}" for i in range(16)]
    assert len({job for _, _, job in found}) == 1
    launched(**{**srun(3, 3), "SLURM_STEP_ID": "1"})
    assert launch.job_name() != found[0][2], "another srun of the same allocation is another job"
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)  # srun --gpus-per-task=1
    assert device_of(None, None) == "cuda:0"


def test_a_launcher_inside_srun_goes_first(launched):
    launched(RANK="5", LOCAL_RANK="1", WORLD_SIZE="8", MASTER_ADDR="a", MASTER_PORT="1", **srun(0, 0, 2))
    assert not launch.is_main_process() and launch.local_rank() == 1
    launched(RANK="0", LOCAL_RANK="0", WORLD_SIZE="8", MASTER_ADDR="a", MASTER_PORT="1", **srun(1, 0, 2))
    assert launch.is_main_process()


def test_a_process_alone_leads_and_is_a_job_of_its_own(launched):
    launched()
    assert launch.is_main_process() and launch.local_rank() == 0
    alone = launch.job_name()
    launched(**srun(0, 0, 1))
    assert launch.is_main_process() and launch.job_name() == alone


UNIX_MODULES = {"resource", "fcntl", "pwd", "grp", "termios", "pty", "tty", "posix"}
UNIX_NAMES = {"os.fork", "os.getuid", "os.killpg", "os.setsid", "os.getpgid", "signal.SIGKILL", "signal.SIGHUP"}


def test_what_only_unix_has_is_not_taken_for_granted():
    """Windows has neither these modules nor these names: a module may be imported where its absence is caught."""
    found = []
    for path in Path(hf_select.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        caught = {
            id(inside)
            for node in ast.walk(tree)
            if isinstance(node, ast.Try) and any("ImportError" in ast.dump(h.type) for h in node.handlers if h.type)
            for inside in ast.walk(node)
        }
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if UNIX_MODULES & set(names) and id(node) not in caught:
                found.append(f"{path}:{node.lineno}")
            if isinstance(node, ast.Attribute) and ast.unparse(node) in UNIX_NAMES:
                found.append(f"{path}:{node.lineno}")
    assert not found


def test_the_peak_of_memory_is_known_on_windows_too(monkeypatch):
    here = _peak_memory_mib()
    assert 50 < here < 50_000
    monkeypatch.setitem(sys.modules, "resource", None)
    peak = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=3 * 2**20))
    monkeypatch.setattr(psutil, "Process", lambda: peak)
    assert _peak_memory_mib() == 3
