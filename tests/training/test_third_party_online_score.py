"""An online score that somebody else wrote works in the callback and in `hf-select train` without a change here."""

import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from selection_training import chosen, make, pool, rounds
from transformers import TrainerCallback

from hf_select import DataSelectionCallback
from hf_select.cli.main import main


MODULE = '''
from dataclasses import dataclass

import torch

from hf_select import OnlineScore, Perplexity


class MyScore(OnlineScore):
    """Rows whose ids look like those of the queries; counts its rounds."""

    needs_queries = True

    def __init__(self, queries, offset=0.0):
        self.queries, self.offset, self.rounds = queries, offset, 0

    def begin(self, model, batches):
        assert not model.training
        self.rounds += 1
        self.target = torch.stack([batch["input_ids"].float().mean() for batch in batches]).mean()

    def __call__(self, model, batch):
        means = [row[mask.bool()].float().mean() for row, mask in zip(batch["input_ids"], batch["attention_mask"])]
        return -(torch.stack(means) - self.target).abs()

    def after(self, rows, values):
        return values + self.offset

    def state(self):
        return {"rounds": self.rounds}

    def restore(self, state):
        self.rounds = state["rounds"]


class Shortest(OnlineScore):
    def __call__(self, model, batch):
        return -batch["attention_mask"].sum(1)


def length(model, batch):
    return batch["attention_mask"].sum(1)


@dataclass
class MyScorer(Perplexity):
    """A scorer of the conversation columns, which runs the model in training."""


class NotAScore:
    pass
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "my_scores.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path / "code")
    monkeypatch.setattr(sys, "path", [*sys.path])
    sys.modules.pop("my_scores", None)
    return "my_scores"


def test_it_works_in_the_callback_and_resumes(tmp_path, module, monkeypatch):
    monkeypatch.syspath_prepend(".")
    scores = []

    def callback(trainer):
        scores.append(import_module(module).MyScore(pool().select(range(4)), offset=5.0))
        return DataSelectionCallback(trainer, scores[-1], rows=16)

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 5

    whole, _ = make(tmp_path / "whole", callback, save_steps=1)
    whole.train()
    assert scores[0].rounds == len(rounds(whole)) > 1
    table = rounds(whole)[0]
    best = np.argsort(-np.array(table["score"]), kind="stable")[:16]
    assert chosen(table) == sorted(np.array(table["row"])[best].tolist())
    assert 0 < max(table["score"]) <= 5.0

    stopped, _ = make(tmp_path / "stopped", callback, save_steps=1)
    stopped.add_callback(Stop())
    stopped.train()
    again, _ = make(tmp_path / "stopped", callback, save_steps=1)
    again.train(resume_from_checkpoint=True)
    assert scores[2].rounds == scores[0].rounds
    assert rounds(again) == rounds(whole)


@pytest.fixture
def data(tmp_path, rows) -> str:
    Dataset.from_list([row for row in rows if row["completion"]][:16]).to_json(tmp_path / "rows.jsonl")
    return str(tmp_path / "rows.jsonl")


def train(data: str, model_path: str, folder: Path, *words: str) -> int:
    command = ["train", "sft", "--model", model_path, "--dataset", data, "--output-dir", str(folder), *words]
    command += "--round-rows 8 --args use_cpu=true bf16=false report_to=none max_length=64".split()
    return main([*command, *"per_device_train_batch_size=4 disable_tqdm=true num_train_epochs=2".split()])


@pytest.mark.parametrize("name", ["MyScore", "Shortest", "length", "MyScorer"])
def test_it_works_in_the_command(data, model_path, tmp_path, module, name):
    queries = ["--queries", data] if name == "MyScore" else []
    assert train(data, model_path, tmp_path / "out", "--score", f"{module}:{name}", *queries) == 0
    for path in sorted((tmp_path / "out").glob("_data_selection/round-*.parquet")):
        table = pq.read_table(path).to_pydict()
        taken = [place is not None for place in table["place"]]
        assert sum(taken) == 8
        ranked = sorted(table["score"], reverse=True)
        assert min(s for s, t in zip(table["score"], taken, strict=True) if t) >= ranked[7]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_scores:MyScore", "score my_scores:MyScore needs --queries"),
        ("my_scores:NotAScore", "score my_scores:NotAScore is a class that does not extend"),
        ("my_scores:MyScor", 'cannot import "my_scores:MyScor"'),
        ("no_such_module:MyScore", 'cannot import "no_such_module:MyScore"'),
    ],
)
def test_other_names_are_refused(data, model_path, tmp_path, module, capsys, name, message):
    assert train(data, model_path, tmp_path / "out", "--score", name) == 2
    assert message in capsys.readouterr().err
