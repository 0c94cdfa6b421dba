"""hf-select train: TRL's trainers from a command or a recipe, with selection while training."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hub_cache import CachedRepo

from hf_select.cli.main import main
from hf_select.cli.train import configured
from hf_select.models.sources import content_of


QUIET = "use_cpu=true bf16=false report_to=none max_length=64 per_device_train_batch_size=4 disable_tqdm=true".split()


@pytest.fixture
def data(tmp_path, rows) -> str:
    whole = [row for row in rows if row["completion"]][:16]
    Dataset.from_list([{**row, "mark": i % 5} for i, row in enumerate(whole)]).to_json(tmp_path / "rows.jsonl")
    return str(tmp_path / "rows.jsonl")


def train(data, model_path, folder, *words) -> int:
    command = ["train", "sft", "--model", model_path, "--dataset", data, "--output-dir", str(folder)]
    given = list(words)
    args = given[given.index("--args") + 1 :] if "--args" in given else []
    before = given[: given.index("--args")] if "--args" in given else given
    return main([*command, *before, "--args", *QUIET, *args])


def steps(folder) -> int:
    state = max(Path(folder).glob("checkpoint-*/trainer_state.json"), key=lambda p: int(p.parent.name[11:]))
    return json.loads(state.read_text())["global_step"]


def rounds(folder) -> list[dict]:
    return [pq.read_table(path).to_pydict() for path in sorted(Path(folder).glob("_data_selection/round-*.parquet"))]


@pytest.mark.parametrize("score", ["mark", "loss", "gradients", "rds"])
def test_sft_with_and_without_selection(data, model_path, tmp_path, capsys, score):
    select = ["--score", score, "--round-rows", "8"]
    select += ["--queries", data] if score in ("gradients", "rds") else []
    assert train(data, model_path, tmp_path / "o", *select, "--args", "num_train_epochs=2") == 0
    assert steps(tmp_path / "o") == 4 and len(rounds(tmp_path / "o")) == 2
    assert "4 steps; the model is in" in capsys.readouterr().out
    for table in rounds(tmp_path / "o"):
        best = sorted(range(16), key=lambda i: -table["score"][i])[:8]
        taken = [place is not None for place in table["place"]]
        assert min(s for s, t in zip(table["score"], taken, strict=True) if t) >= table["score"][best[-1]]


def test_plain_sft_of_an_adapter(data, model_path, tmp_path):
    lora = ["--lora", "r=2", "target_modules=[q_proj, v_proj]"]
    assert train(data, model_path, tmp_path / "o", *lora, "--args", "max_steps=3", "learning_rate=1e-3") == 0
    assert steps(tmp_path / "o") == 3 and (tmp_path / "o" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "o" / "_data_selection").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--score", "los", "--round-rows", "8"], 'unknown score "los". Did you mean loss'),
        (["--score", "rds", "--round-rows", "8"], "scorer rds needs --queries"),
        (["--score", "gradients", "--round-rows", "8"], "score gradients needs --queries"),
        (["--score", "length", "--round-rows", "8"], "scorer length runs no model; score the dataset before"),
        (["--score", "loss", "--round-rows", "7"], "a round of 7 rows is not a whole number of optimizer steps"),
        (["--args", "learning_rat=1"], 'unknown setting "learning_rat" of SFTConfig. Did you mean learning_rate'),
        (["--args", "max_steps=many"], "SFTConfig: argument --max_steps/--max-steps: invalid int value: 'many'"),
        (["--lora", "rank=4"], 'unknown setting "rank" of LoraConfig'),
    ],
)
def test_bad_settings_are_refused_in_one_line(data, model_path, tmp_path, capsys, words, message):
    assert train(data, model_path, tmp_path / "o", *words) == 2
    assert message in capsys.readouterr().err


def test_a_flag_of_the_trainer_and_a_missing_accelerator_are_answered_with_the_syntax(
    data, model_path, tmp_path, capsys, monkeypatch
):
    command = ["train", "sft", "--model", model_path, "--dataset", data, "--output-dir", str(tmp_path / "o")]
    assert main([*command, "--max-steps", "2"]) == 2
    assert "--args max_steps=VALUE" in capsys.readouterr().err
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: False)
    assert main([*command, "--args", "bf16=true"]) == 2
    assert "--args use_cpu=true" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_reply_marked_as_not_trained_on_is_refused(model_path, tmp_path, capsys):
    turns = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two.", "weight": 0}]
    later = [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": "Three.", "weight": 1}]
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"messages": later}) + "\n" + json.dumps({"messages": turns + later})
    )
    assert train(str(tmp_path / "rows.jsonl"), model_path, tmp_path / "o") == 2
    assert "turn 1 of row 1 is not to be trained on" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_an_unknown_method_and_another_run_are_refused(data, model_path, tmp_path, capsys):
    assert main(["train", "sftt", "--model", model_path, "--dataset", data, "--output-dir", str(tmp_path / "o")]) == 2
    assert 'unknown method "sftt". Did you mean sft?' in capsys.readouterr().err
    assert train(data, model_path, tmp_path / "o", "--args", "max_steps=1") == 0
    assert train(data, model_path, tmp_path / "o", "--args", "max_steps=2") == 2
    assert "holds a training of another run (args.max_steps 1 there, 2 here)" in capsys.readouterr().err


def test_the_record_has_the_identity_of_the_base_model(data, model_path, tmp_path, capsys, monkeypatch):
    def record(folder):
        return json.loads((tmp_path / folder / "_train.json").read_text())["weights"]

    assert train(data, model_path, tmp_path / "local", "--args", "max_steps=1") == 0
    assert record("local") == f"content {content_of(model_path)}"

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    # transformers 4.57 copies it when it is imported
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path / "cache"), raising=False)
    repository = CachedRepo(tmp_path / "cache", "made-up/base")
    first = repository.commit(model_path)
    assert train(data, repository.name, tmp_path / "hub", "--args", "max_steps=1") == 0
    assert record("hub") == f"commit {first}"
    (tmp_path / "changed").mkdir()
    for file in Path(model_path).iterdir():
        (tmp_path / "changed" / file.name).write_bytes(file.read_bytes())
    second = repository.commit(tmp_path / "changed")
    assert train(data, repository.name, tmp_path / "hub", "--args", "max_steps=1") == 2
    message = capsys.readouterr().err
    assert f"commit {first}" in message and f"commit {second}" in message
    revision = f'model_init_kwargs={{"revision": "{first}"}}'
    assert train(data, repository.name, tmp_path / "pinned", "--args", "max_steps=1", revision) == 0
    assert record("pinned") == f"commit {first}"


def test_values_of_a_configuration_have_its_types():
    from trl import SFTConfig  # pyright: ignore[reportPrivateImportUsage]

    values = {"output_dir": "o", "learning_rate": "1e-4", "bf16": False, "report_to": ["none"]}
    configuration = configured(SFTConfig, {**values, "lr_scheduler_kwargs": {"num_cycles": 2}})
    assert configuration.lr_scheduler_kwargs == {"num_cycles": 2}
    assert (configuration.learning_rate, configuration.bf16, configuration.report_to) == (1e-4, False, [])


@pytest.mark.slow
def test_a_killed_training_goes_on_with_the_same_rows(data, model_path, tmp_path):
    settings = ["num_train_epochs=40", "save_steps=1", "learning_rate=1e-3", "save_total_limit=2", *QUIET]
    words = ["--model", model_path, "--dataset", data, "--score", "loss", "--round-rows", "8", "--args", *settings]

    def start(folder):
        command = [sys.executable, "-m", "hf_select.cli.main", "train", "sft", "--output-dir", str(folder), *words]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    whole = start(tmp_path / "whole")
    assert whole.wait() == 0, whole.stderr.read()
    killed = start(tmp_path / "killed")
    while not list((tmp_path / "killed").glob("checkpoint-*/trainer_state.json")):
        assert killed.poll() is None, killed.stderr.read()
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    again = start(tmp_path / "killed")
    assert again.wait() == 0, again.stderr.read()
    assert len(rounds(tmp_path / "killed")) == 40
    assert rounds(tmp_path / "killed") == rounds(tmp_path / "whole")
