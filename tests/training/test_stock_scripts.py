"""Scripts as the documentation of three releases of TRL shows them, and the script that the installed TRL ships, each
with three more lines for DataSelectionCallback, in a process of their own."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from releases import has_setting, trl_version
from selection_training import chosen
from trl import SFTConfig, SFTTrainer


pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parent / "scripts"
FLAGS = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "max_length": 64,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": "true",
    "bf16": "false",
}


@pytest.fixture
def data(tmp_path, rows) -> Path:
    """A folder with 24 rows of training and 8 of evaluation."""
    whole = [row for row in rows if row["completion"]]
    folder = tmp_path / "data"
    Dataset.from_list(whole[:24]).to_json(folder / "train.jsonl")
    Dataset.from_list(whole[24:32]).to_json(folder / "test.jsonl")
    return folder


def run(script: Path, *words: object) -> str:
    """Run a script and return what it printed."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), *map(str, words)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def flags(model: str, data: Path, output: Path) -> list[object]:
    """Flags for TRL's own parser."""
    values = {"model_name_or_path": model, "dataset_name": data, "output_dir": output, **FLAGS}
    return [word for name, value in values.items() for word in (f"--{name}", value)]


def check_rounds(output: Path, printed: str, selected: int, total: int) -> None:
    """Both rounds selected the planned number of rows, and their scores were logged."""
    tables = [pq.read_table(path).to_pydict() for path in sorted((output / "_data_selection").glob("*.parquet"))]
    assert len(tables) == 2
    for table in tables:
        trained = chosen(table)
        assert len(trained) == len(set(trained)) == selected and set(trained) <= set(range(total))
    assert "selection/score_q50" in printed and "train_loss" in printed


def test_the_script_of_trl_0_24(tmp_path, model_path, data):
    if not has_setting(SFTConfig, "gradient_checkpointing"):
        pytest.skip(f"SFTConfig of trl {trl_version()} has no gradient_checkpointing any more")
    output = tmp_path / "out"
    check_rounds(output, run(SCRIPTS / "sft_trl_0_24.py", model_path, data / "train.jsonl", output), 12, 24)
    assert (output / "model.safetensors").is_file()


def test_the_script_of_trl_1_0(tmp_path, model_path, data):
    output = tmp_path / "out"
    printed = run(SCRIPTS / "sft_trl_1_0.py", model_path, data / "train.jsonl", output)
    check_rounds(output, printed, 8, 16)
    assert "eval_loss" in printed and (output / "adapter_model.safetensors").is_file()


def test_the_script_of_trl_1_16(tmp_path, model_path, data):
    if not hasattr(SFTTrainer, "end"):
        pytest.skip(f"the trainers of transformers with trl {trl_version()} have no end()")
    output = tmp_path / "out"
    check_rounds(output, run(SCRIPTS / "sft_trl_1_16.py", *flags(model_path, data, output)), 12, 24)
    assert (output / "model.safetensors").is_file()


def test_the_script_that_the_installed_trl_ships(tmp_path, model_path, data):
    trl = find_spec("trl")
    assert trl is not None and trl.origin is not None
    stock = (Path(trl.origin).parent / "scripts" / "sft.py").read_text(encoding="utf-8")
    train = "    # Train the model\n    trainer.train("
    assert stock.count(train) == 1
    lines = [
        "    from hf_select import DataSelectionCallback, online_scores",
        "    callback = DataSelectionCallback(trainer, online_scores.loss, fraction=0.5)",
        "    trainer.add_callback(callback)",
    ]
    script, output = tmp_path / "sft.py", tmp_path / "out"
    script.write_text(stock.replace(train, "\n".join([*lines, train])), encoding="utf-8")
    check_rounds(output, run(script, *flags(model_path, data, output)), 12, 24)
    assert (output / "model.safetensors").is_file()
