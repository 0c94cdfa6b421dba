"""Whatever goes wrong while a model is loaded is one line and exit status 2, not a traceback."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from adapters import train_adapter
from transformers import AutoModelForCausalLM

from hf_select import LESS, CausalLM
from hf_select.cli.main import main


@pytest.fixture
def said(model_path, tmp_path, capsys):
    """A way to score with a copy of the model whose files were changed; gives the error that the command printed."""
    folder = tmp_path / "model"
    shutil.copytree(model_path, folder)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Name a fruit.", "completion": "A fig."}\n')

    def run(change=None, scorer="perplexity", flag="--model", words=()) -> str:
        if change is not None:
            change(folder)
        given = ["--dataset", str(tmp_path / "rows.jsonl"), "--output-dir", str(tmp_path / "o"), *words]
        assert main(["score", "--scorer", scorer, flag, str(folder), *given]) == 2
        assert not (tmp_path / "o").exists(), "a folder was left"
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("hf-select: error: ") and len(line) < 600
        return line

    return run


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def other_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))


def damaged(name: str):
    return lambda folder: (folder / name).write_text('{"a": ')


FILES = {
    "weights cut": (cut, "cannot be read"),
    "weights of another shape": (other_shape, '"[^"]*model" cannot be loaded .RuntimeError.*may be damaged'),
    "tokenizer": (damaged("tokenizer.json"), '"[^"]*model" cannot be loaded'),
    "config": (damaged("config.json"), "config.json"),
}


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_named(name, said):
    import re

    change, why = FILES[name]
    assert re.search(why, said(change))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize(("scorer", "flag"), [("perplexity", "--model"), ("reward", "--reward-model")])
def test_a_device_that_is_not_there_is_refused(scorer, flag, said):
    line = said(scorer=scorer, flag=flag, words=["--device", "cuda"])
    assert 'device is "cuda", but torch finds' in line and "give device=cpu" in line


def test_devices_and_types_that_torch_does_not_know_are_refused(said):
    assert 'device is "gpu"; give one that torch knows' in said(words=["--device", "gpu"])
    assert 'dtype is "flaot16"; give auto, float32' in said(words=["--dtype", "flaot16"])
    assert 'dtype is "int8"; give auto, float32' in said(words=["--dtype", "int8"])


def test_a_device_beyond_the_last_is_refused(monkeypatch, model_path):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    with pytest.raises(ValueError, match='device is "cuda:2", but the number of devices is 2, from cuda:0 on'):
        CausalLM(model_path, device="cuda:2").load()


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "does not fit in memory.*4bit"),
        (MemoryError(), "does not fit in memory.*4bit"),
        (NotImplementedError("Cannot copy out of meta tensor; no data!"), "cannot be loaded.*Cannot copy"),
        (AssertionError("Torch not compiled with CUDA enabled"), "cannot be loaded.*not compiled with CUDA"),
    ],
)
def test_errors_of_torch_name_the_model(error, why, said, monkeypatch):
    import re

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    assert re.search(why, said())


def test_a_damaged_state_of_the_optimizer_names_its_checkpoint(model_path, rows, tmp_path):
    (checkpoint, *_) = train_adapter(model_path, Path(model_path).parent / "load_errors", rows)
    shutil.copytree(checkpoint, tmp_path / "checkpoint-5")
    (tmp_path / "checkpoint-5" / "optimizer.pt").write_bytes(b"PK\x03\x04 not a state")
    with pytest.raises(ValueError, match='checkpoint-5" cannot be loaded'):
        LESS(model_path, [str(tmp_path / "checkpoint-5")]).load()
