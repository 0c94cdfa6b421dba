"""A training run of several processes, started from one that trains nothing itself.

`compare` makes many runs and each may need several devices, DeepSpeed or FSDP: such a run is launched by `accelerate
launch` with the user's own configuration and leaves its model and figures in a folder.
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
from hf_select.training.equal_tokens import Recipe, train


def train_launched(recipe: Recipe, rows: Dataset, plan: list[list[int]], seed: int) -> tuple[CausalLM, dict[str, Any]]:
    """(the trained model in fp32, the figures of equal_tokens.train).

    Raises: RuntimeError with the error of the run, or the last words of the launcher, if it fails.
    """
    assert recipe.accelerate_config is not None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows.save_to_disk(folder / "rows")
        write_json(folder / "job.json", {"recipe": asdict(recipe), "plan": plan, "seed": seed})
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
        command += [os.path.expanduser(recipe.accelerate_config), "-m", __name__, name]
        ended = subprocess.run(command, capture_output=True, text=True)
        figures = read_json(folder / "figures.json")
        if ended.returncode != 0 or figures is None:
            said = (read_json(folder / "error.json") or {}).get("error")
            why = said or "\n".join(ended.stderr.strip().splitlines()[-15:])
            raise RuntimeError(f"the run under accelerate launch ended with {ended.returncode}: {why}")
        adapter = str(folder / "model") if recipe.lora_r is not None else None
        model = recipe.model if adapter else str(folder / "model")
        lm = CausalLM(
            model,
            tokenizer=recipe.model,
            adapter=adapter,
            dtype="float32",
            chat_template=recipe.chat_template,
        )
        lm.load()  # the folder goes
    return lm, figures


def main(folder: Path) -> None:
    """One process of the run."""
    try:
        run(folder)
    except Exception as error:  # the launcher's own words hide it
        write_json(folder / "error.json", {"error": f"{type(error).__name__}: {error}"})
        raise


def run(folder: Path) -> None:
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
        write_json(folder / "figures.json", figures)
    state.wait_for_everyone()
    state.destroy_process_group()  # gloo's threads, left alone, abort some exits


if __name__ == "__main__":
    main(Path(sys.argv[1]))
