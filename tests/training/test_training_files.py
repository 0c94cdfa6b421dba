"""What training leaves on disk: rows by the user's numbers, small state that is checked, no rows in an upload."""

import fnmatch
import inspect
import json
import logging
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import transformers as hf
from datasets import Dataset
from huggingface_hub.utils import filter_repo_objects
from releases import has_setting, hub_calls, leaves_out_long_prompts, needs_irft
from selection_training import NO_CHECKPOINTING, TRL, chosen, make, pool, rounds, select

from hf_select import DataSelectionCallback, TopK
from hf_select.training import online_scores
from hf_select.training.round_files import STATE_FILE


SECRET = "Ilex aquifolium"


def long_and_short(rows) -> list[dict]:
    """Every fourth prompt fills max_length alone, so TRL leaves the row out; every fourth row is cut."""
    whole = [row for row in rows if 0 < len(row["completion"]) < 90 and "<|" not in row["prompt"]][:16]
    rows = []
    for i, row in enumerate(whole):
        if i % 4 == 1:
            row = {**row, "prompt": f"{SECRET} " * 60}
        elif i % 4 == 2:
            row = {**row, "completion": f"{SECRET} " * 60}
        rows.append({**row, "mark": i})
    return rows


def sft(folder, model_path, data, **settings):
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

    settings = TRL | {"max_length": 64, "num_train_epochs": 1, "save_strategy": "no"} | settings
    return SFTTrainer(model_path, args=SFTConfig(str(folder), **settings), train_dataset=data)


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("view", [False, True])
def test_a_row_keeps_its_number_through_what_sft_trainer_drops(
    tmp_path, model_path, rows, ids, shuffled, view, caplog
):
    """Rows given as a view of a larger table are numbered by the view."""
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

    if shuffled and not has_setting(SFTConfig, "shuffle_dataset"):
        pytest.skip("this SFTConfig has no shuffle_dataset")
    settings = {"shuffle_dataset": True} if shuffled else {}
    dropped = 4 if leaves_out_long_prompts(SFTTrainer) else 0
    data = Dataset.from_list(long_and_short(rows))
    data = data.add_column("row_id", [f"r{i}" for i in range(16)]) if ids else data
    data = data.select([*range(4, 16), 0, 1, 2, 3]) if view else data
    trainer = sft(tmp_path, model_path, data, **settings)
    with caplog.at_level(logging.WARNING):
        trainer.add_callback(DataSelectionCallback(trainer, "mark", TopK("score", which="worst"), rows=8))
    left_out = f"left out {dropped} of the 16 rows that it was given, and {8 - dropped} of those it kept reach"
    assert f"{left_out} max_length = 64" in caplog.text
    trainer.train()
    (table,) = rounds(trainer)
    assert len(table["row"]) == 16 - dropped
    for position, row, score in zip(range(16 - dropped), table["row"], table["score"], strict=True):
        assert data[row]["mark"] == score
        assert not ids or table["row_id"][position] == data[row]["row_id"]
    lowest = [0, 2, 3, 4, 6, 7, 8, 10] if dropped else [*range(8)]
    assert sorted(data[row]["mark"] for row in chosen(table)) == lowest
    log = next(entry for entry in trainer.state.log_history if "selection/round" in entry)
    assert (log["selection/dropped"], log["selection/cut"]) == (dropped, 8 - dropped)


@pytest.mark.parametrize("tokens", [False, True])
def test_rows_that_are_only_shuffled_are_numbered_or_warned_of(tmp_path, model_path, sixteen, tokens, caplog):
    """Rows given as tokens are not mapped: the indices are those of a table that the trainer never saw."""
    from trl import SFTConfig  # pyright: ignore[reportPrivateImportUsage]

    if not has_setting(SFTConfig, "shuffle_dataset"):
        pytest.skip("this SFTConfig has no shuffle_dataset")
    data = sixteen
    if tokens:
        data = Dataset.from_list([{"input_ids": [i, 3, 4], "labels": [i, 3, 4]} for i in range(16)])
    data = data.select([*range(15, -1, -1)])
    trainer = sft(tmp_path, model_path, data, max_length=None, shuffle_dataset=True)
    callback = DataSelectionCallback(trainer, online_scores.loss, rows=8)
    assert ("does not say which" in caplog.text) == tokens
    name = "input_ids" if tokens else "prompt"
    numbers = callback.given.numbers.tolist()
    assert tokens or [data[row][name] for row in numbers] == trainer.train_dataset[:][name]
    assert numbers == [*range(16)] or not tokens


def test_dpo_trainers_dropped_rows_are_numbered_or_warned_of(tmp_path, model_path, caplog):
    from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportPrivateImportUsage]

    rows = [
        {"prompt": "Say it. " * (30 if i % 3 == 0 else 1), "chosen": f" {i}", "rejected": " no", "mark": i}
        for i in range(16)
    ]
    if not leaves_out_long_prompts(DPOTrainer):
        pytest.skip("this DPOTrainer leaves out no rows")
    data, tokenizer = Dataset.from_list(rows), hf.AutoTokenizer.from_pretrained(model_path)
    for known in (True, False):
        settings = TRL | NO_CHECKPOINTING | {"precompute_ref_log_probs": not known, "max_length": 32}
        args = DPOConfig(str(tmp_path / str(known)), **settings)
        trainer = DPOTrainer(model_path, args=args, train_dataset=data, processing_class=tokenizer)
        caplog.clear()
        callback = DataSelectionCallback(trainer, "mark", rows=8)
        kept = [i for i in range(16) if i % 3]
        assert callback.given.numbers.tolist() == (kept if known else list(range(10)))
        assert ("does not say which" in caplog.text) == (not known)
        assert callback.given.dropped == (6 if known else None)


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("tokens", [False, True])
def test_reward_trainers_dropped_pairs_are_numbered_or_warned_of(tmp_path, model_path, tokens, view, caplog):
    """RewardTrainer leaves out whole pairs that are longer than max_length."""
    from trl import RewardConfig, RewardTrainer  # pyright: ignore[reportPrivateImportUsage]

    if tokens:
        old = '"chosen_ids"' not in inspect.getsource(RewardTrainer._prepare_dataset)  # trl 0.24
        names = ("chosen_input_ids", "rejected_input_ids") if old else ("chosen_ids", "rejected_ids")
        rows = [dict(zip(names, ([5] * (60 if i % 3 == 0 else 4), [6] * 4), strict=True)) for i in range(16)]
    else:
        rows = [
            {"prompt": "Say it. " * (30 if i % 3 == 0 else 1), "chosen": f" {i}", "rejected": " no"} for i in range(16)
        ]
    data = Dataset.from_list([{**row, "mark": i} for i, row in enumerate(rows)])
    data = data.select(range(15, -1, -1)) if view else data
    settings = TRL | NO_CHECKPOINTING | {"max_length": 32, "num_train_epochs": 1}
    args = RewardConfig(str(tmp_path), **settings)
    trainer = RewardTrainer(model_path, args=args, train_dataset=data)
    trainer.add_callback(DataSelectionCallback(trainer, "mark", rows=8))
    assert ("does not say which" in caplog.text) == tokens
    assert ("left out 6 of the 16 rows" in caplog.text) != tokens
    trainer.train()
    (table,) = rounds(trainer)
    assert len(table["row"]) == 10
    assert tokens or [data[row]["mark"] for row in table["row"]] == table["score"]
    log = next(entry for entry in trainer.state.log_history if "selection/round" in entry)
    assert log.get("selection/dropped") == (None if tokens else 6)


def test_rows_given_to_the_stock_trainer_are_numbered_as_they_stand(tmp_path):
    trainer, _ = make(tmp_path, select("old"), dataset=pool().select(range(47, -1, -1)))
    trainer.train()
    table = rounds(trainer)[0]
    assert table["row"] == list(range(48)) and table["score"] == [row - 47.0 for row in range(48)]


# Checkpoints.


def changed(dataset: Dataset) -> Dataset:
    rows = dataset.to_list()
    rows[5]["input_ids"][2] += 1
    return Dataset.from_list(rows)


@pytest.mark.parametrize("other", [changed, lambda data: data.select([1, 0, *range(2, 48)])])
def test_resuming_with_other_rows_of_the_same_number_is_refused(tmp_path, other):
    first, _ = make(tmp_path, select(), save_steps=2)
    first.train()
    second, _ = make(tmp_path, select(), dataset=other(pool()))
    with pytest.raises(ValueError, match="selected from 48 rows that are not those of this run"):
        second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    same, _ = make(tmp_path, select(), dataset=Dataset.from_list(pool().to_list()))
    same.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_the_rows_of_a_checkpoint_stand_beside_a_small_state_and_go_with_it(tmp_path):
    def callback(trainer):
        return DataSelectionCallback(trainer, online_scores.LossChange(), rows=16, warmup=1, consume_once=True)

    trainer, _ = make(tmp_path, callback, save_steps=2, save_total_limit=2)
    trainer.train()
    folders = sorted(tmp_path.glob("checkpoint-*"))
    assert [folder.name for folder in folders] == ["checkpoint-4", "checkpoint-6"]
    for folder in folders:
        state = json.loads((folder / "trainer_state.json").read_text())
        said = json.dumps(state["stateful_callbacks"]["DataSelectionCallback"])
        assert len(said) < 300, said
        assert (folder / STATE_FILE).exists() and not list(folder.glob("*.tmp"))
    with np.load(folders[1] / STATE_FILE) as file:
        assert file["selected"].tolist() == trainer.callback_handler.callbacks[-1].sampler.selected.tolist()


@pytest.mark.parametrize("damage", ["missing", "another"])
def test_a_checkpoint_without_its_rows_is_refused(tmp_path, damage):
    trainer, _ = make(tmp_path, select(), save_steps=2)
    trainer.train()
    path = tmp_path / "checkpoint-2" / STATE_FILE
    path.unlink() if damage == "missing" else path.write_bytes((tmp_path / "checkpoint-6" / STATE_FILE).read_bytes())
    again, _ = make(tmp_path, select())
    with pytest.raises(ValueError, match="is missing" if damage == "missing" else "is not that of its checkpoint"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_run_in_the_folder_of_an_older_one_resumes_from_its_own_checkpoints(tmp_path):
    old, _ = make(tmp_path, select("old"), save_steps=2)
    old.train()
    whole, _ = make(tmp_path, select(), save_steps=2)
    whole.train()
    tables = rounds(whole)
    again, _ = make(tmp_path, select(), save_steps=2)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert rounds(again) == tables


# What Trainer would upload.


@pytest.fixture
def uploaded(monkeypatch):
    """The files that each push would upload, by its own patterns."""
    pushes: list[list[str]] = []

    def upload_folder(folder_path, ignore_patterns=None, **_):
        paths = [str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*") if path.is_file()]
        pushes.append(list(filter_repo_objects(paths, ignore_patterns=ignore_patterns)))
        done: Future = Future()
        done.set_result(None)
        return done

    repo = SimpleNamespace(repo_id="me/model")
    hub_calls(monkeypatch, repo, upload_folder)
    return pushes


def texts_in(folder: Path, paths: list[str]) -> list[str]:
    """Files among these that hold rows: tables, and anything that has the words of the rows."""
    found = [path for path in paths if fnmatch.fnmatch(path, "*.parquet")]
    return found + [path for path in paths if SECRET.encode() in (folder / path).read_bytes()]


def test_a_push_of_a_run_with_selection_uploads_no_rows(tmp_path, model_path, rows, uploaded):
    data = Dataset.from_list(long_and_short(rows))
    trainer = sft(tmp_path / "o", model_path, data, push_to_hub=True, hub_model_id="me/model", save_strategy="epoch")
    trainer.add_callback(DataSelectionCallback(trainer, online_scores.loss, rows=8))
    trainer.train()
    trainer.push_to_hub()
    assert rounds(trainer) and len(uploaded) >= 2
    for paths in uploaded:
        assert "model.safetensors" in paths and not texts_in(tmp_path / "o", paths)
        assert not [path for path in paths if "selection" in path or path.endswith("train.json")]


@pytest.mark.parametrize("logged", [False, True])
def test_a_push_of_a_run_in_stages_uploads_no_rows(tmp_path, model_path, sixteen, uploaded, logged):
    needs_irft()
    from hf_select.training.reward_learning.irft_config import IRFTConfig
    from hf_select.training.reward_learning.irft_trainer import IRFTTrainer

    settings = TRL | {"num_stages": 2, "max_length": 160, "max_completion_length": 64, "num_train_epochs": 1}
    settings |= NO_CHECKPOINTING
    args = IRFTConfig(
        str(tmp_path / "o"), push_to_hub=True, hub_model_id="me/model", log_completions=logged, seed=3, **settings
    )
    trainer = IRFTTrainer(model_path, args=args, train_dataset=sixteen)
    trainer.train()
    trainer.push_to_hub()
    written = [path for path in (tmp_path / "o").rglob("*.parquet")]
    assert any("_stages" in path.parts for path in written)
    tables = [path for path in written if "_completions" in path.parts]
    assert len(tables) == (2 if logged else 0) and all("answer" in pq.read_schema(path).names for path in tables)
    for paths in uploaded:
        assert "model.safetensors" in paths and not texts_in(tmp_path / "o", paths)
        assert not [path for path in paths if "stages" in path or "completions" in path]
