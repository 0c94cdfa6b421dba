"""Two real processes on a CPU, in each of the ways that training is launched."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch


# What the two processes of each kind must find themselves to be: see `surroundings`.
EXPECTED = {
    "ddp": {"distributed": "MULTI_CPU", "zero_stage": None, "in_pieces": False},
    "zero2": {"distributed": "DEEPSPEED", "zero_stage": 2, "in_pieces": False},
    "zero3": {"distributed": "DEEPSPEED", "zero_stage": 3, "in_pieces": True},
    "fsdp2": {"in_pieces": True},
}


def surroundings(trainer: Any) -> dict[str, Any]:
    """What a process finds itself to be part of, and how far it came."""
    parameters = list(trainer.model.parameters())
    return {
        "world": trainer.accelerator.num_processes,
        "distributed": trainer.accelerator.distributed_type.value,
        "zero_stage": getattr(trainer.accelerator.state.deepspeed_plugin, "zero_stage", None),
        "in_pieces": all(p.numel() == 0 and hasattr(p, "ds_numel") for p in parameters)
        or all(type(p).__name__ == "DTensor" for p in parameters),
        "steps": trainer.state.global_step,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }


def launched(kind: str, words: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run a script with its words: alone, under DDP, ZeRO-2, ZeRO-3 (every weight in pieces) or torchrun."""
    folder.mkdir(exist_ok=True, parents=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    if kind == "alone":
        command = [sys.executable, *words]
    elif kind == "fsdp2":
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *words]
    else:
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1"]
        launcher += ["--dynamo_backend", "no", "--main_process_port", "0"]
        if kind == "ddp":
            environment["ACCELERATE_USE_CPU"] = "true"
            command = [*launcher, "--multi_gpu", "--mixed_precision", "no", *words]
        else:
            config = folder / "deepspeed.json"
            zero = {"stage": int(kind[-1]), "stage3_param_persistence_threshold": 0}
            auto = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
            settings = {"zero_optimization": zero, "gradient_clipping": "auto", **dict.fromkeys(auto, "auto")}
            config.write_text(json.dumps(settings))
            command = [*launcher, "--use_deepspeed", "--deepspeed_config_file", str(config), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)


def reported(folder: Path) -> list[dict[str, Any]]:
    """What the processes of a launched script said with `report`, by rank."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]


def report(trainer: Any, folder: Path, words: dict[str, Any]) -> None:
    """The last thing that a launched script does."""
    (folder / f"rank-{trainer.args.process_index}.json").write_text(json.dumps(words))
    if torch.distributed.is_initialized():  # gloo's threads, left alone, abort one exit in four
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        # Those of the groups that DeepSpeed keeps for itself do so still, now and then: leave without taking down.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def generated(folder: Path, stage: int) -> list[list[int]]:
    """The answers of a stage, as token ids."""
    parts = sorted((folder / "run" / "_stages" / f"stage-{stage:02d}" / "generated").glob("part-*.parquet"))
    return [ids for part in parts for ids in pq.read_table(part).to_pydict()["rejected_ids"]]
