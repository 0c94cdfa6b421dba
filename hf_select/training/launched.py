"""A training run of several processes, launched by a process that does not train.

Each of the many runs of `compare` may need several devices, DeepSpeed or FSDP: it is launched by `accelerate launch`
with the user's configuration and writes its model and figures to a folder.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_select.atomic import read_json, write_json
from hf_select.models.causal_lm import CausalLM
from hf_select.training.equal_tokens import Recipe, TrainingFigures
from hf_select.training.planned_steps import train


def train_launched(
    recipe: Recipe, rows: Dataset, plan: list[list[int]], seed: int
) -> tuple[CausalLM, TrainingFigures]:
    """(the trained model in fp32, the figures of equal_tokens.train)

    Raises: RuntimeError with the error of the run, or the last lines of the launcher, if it fails.
    """
    assert recipe.accelerate_config is not None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows.save_to_disk(folder / "rows")
        write_json(folder / "job.json", {"recipe": asdict(recipe), "plan": plan, "seed": seed})
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
        command += [os.path.expanduser(recipe.accelerate_config), "-m", __name__, name]
        process = subprocess.run(command, capture_output=True, text=True)
        figures: Any = read_json(folder / "figures.json")
        if process.returncode != 0 or figures is None:
            error = (read_json(folder / "error.json") or {}).get("error")
            reason = error or "\n".join(process.stderr.strip().splitlines()[-15:])
            raise RuntimeError(f"the run under accelerate launch exited with {process.returncode}: {reason}")
        adapter = str(folder / "model") if recipe.lora_r is not None else None
        model = recipe.model if adapter else str(folder / "model")
        lm = CausalLM(
            model,
            tokenizer=recipe.model,
            adapter=adapter,
            dtype=recipe.dtype,
            chat_template=recipe.chat_template,
        )
        lm.load()  # before the folder is deleted
    return lm, figures


def run_process(folder: Path) -> None:
    """One process of the run; writes its error to a file, since the launcher hides it."""
    try:
        _run(folder)
    except Exception as error:
        write_json(folder / "error.json", {"error": f"{type(error).__name__}: {error}"})
        raise


def _run(folder: Path) -> None:
    """Train as the job in the folder says, and save model and figures there."""
    from accelerate import PartialState
    from transformers import AutoTokenizer

    world = int(os.environ.get("WORLD_SIZE", 1))
    job = json.loads((folder / "job.json").read_text())
    recipe = Recipe(**job["recipe"])
    rows, tokenizer = Dataset.load_from_disk(str(folder / "rows")), AutoTokenizer.from_pretrained(recipe.model)
    out = str(folder / "run")
    trainer, figures = train(recipe, recipe.model, tokenizer, rows, job["plan"], job["seed"], out, world)
    trainer.save_model(str(folder / "model"))
    state = PartialState()
    if state.is_main_process:
        write_json(folder / "figures.json", dict(figures))
    state.wait_for_everyone()
    state.destroy_process_group()  # otherwise gloo's threads abort some exits


if __name__ == "__main__":
    run_process(Path(sys.argv[1]))
