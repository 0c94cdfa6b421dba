"""Differences between releases that the callback meets, each on the installed release and on a stand-in of another."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from datasets import Dataset
from selection_training import make, pool
from torch.utils.data import RandomSampler, SequentialSampler
from transformers import Trainer

from hf_select.training import _compat
from hf_select.training.round_files import _token_counts


class Repeats(Trainer):
    def _get_train_sampler(self, train_dataset=None):
        return RandomSampler(range(3))


KTO = type("KTOTrainer", (Repeats,), {"__module__": "trl.trainer.kto_trainer", "_get_train_sampler": None})


@pytest.mark.parametrize(("cls", "own"), [(Trainer, False), (Repeats, True), (KTO, False)])
def test_a_sampler_of_its_own_is_seen_without_trl(cls, own):
    assert _compat.own_sampler(object.__new__(cls)) == own
    assert _compat.own_sampler(object.__new__(type("Mine", (cls,), {}))) == own


def test_a_trainer_shuffles_unless_its_sampler_is_sequential(tmp_path, monkeypatch):
    trainer, _ = make(tmp_path)
    assert _compat.shuffles(trainer)
    monkeypatch.setattr(trainer, "_get_train_sampler", lambda train_dataset=None: SequentialSampler(pool()))
    assert not _compat.shuffles(trainer)


def test_sizes_of_parallelism_come_from_accelerate_where_trainer_has_none():
    config = SimpleNamespace(cp_size=2, sp_size=None)
    old = SimpleNamespace(get_tp_size=lambda: 4, accelerator=SimpleNamespace(parallelism_config=config))
    assert [_compat.parallel_size(old, kind) for kind in ("tensor", "context", "sequence")] == [4, 2, 1]  # type: ignore
    old = SimpleNamespace(accelerator=SimpleNamespace(parallelism_config=None))
    assert _compat.parallel_size(old, "context") == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("columns", "lengths"),
    [
        (("prompt_ids", "chosen_ids", "rejected_ids"), [1 + 4, 2 + 3]),
        (("prompt_input_ids", "chosen_input_ids", "rejected_input_ids"), [1 + 4, 2 + 3]),
        (("prompt_input_ids", "rejected_input_ids", "completion_input_ids"), [3, 1]),  # prompt and completion
        (("chosen_ids", "rejected_ids", "margin_ids"), [0, 0]),
    ],
)
def test_tokens_are_counted_under_the_names_of_every_release(columns, lengths):
    ids = ([[1], [1, 1]], [[2] * 4, [2] * 2], [[3] * 3, [3]])
    data = Dataset.from_dict(dict(zip(columns, ids, strict=True)))
    expected = [5, 4] if columns[1].startswith("chosen") and lengths[0] == 5 else lengths
    assert _token_counts(data).tolist() == expected


def test_rows_that_kto_trainer_makes_of_pairs_have_no_number_in_the_dataset(tmp_path, model_path):
    import transformers
    from selection_training import NO_CHECKPOINTING, TRL
    from trl import KTOConfig, KTOTrainer  # pyright: ignore[reportPrivateImportUsage]

    pairs = [{"prompt": f"Say {i}.", "chosen": f" {i}", "rejected": " no"} for i in range(8)]
    single = [{"prompt": f"Say {i}.", "completion": f" {i}", "label": i < 4} for i in range(8)]
    args = KTOConfig(str(tmp_path), loss_type="apo_zero_unpaired", **TRL | NO_CHECKPOINTING)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_path)
    found = []
    for rows in (pairs, single):
        data = Dataset.from_list(rows)
        trainer = KTOTrainer(model_path, args=args, train_dataset=data, processing_class=tokenizer)
        numbers, size = _compat.given_rows(trainer)
        found.append((None if numbers is None else numbers.tolist(), size))
    assert found == [(None, 16), ([*range(8)], 8)]


ALONE = """
import sys

for name in ("trl", "peft", "matplotlib"):
    sys.modules[name] = None  # what imports it gets an ImportError

from pathlib import Path

from selection_training import make, rounds, chosen, select

from hf_select.training import online_scores
from hf_select.training.callback import DataSelectionCallback

trainer, collator = make(Path(sys.argv[1]), select(), save_steps=2)
trainer.train()
tables = rounds(trainer)
assert len(tables) == 3 and trainer.state.global_step == 6
trained = sorted(row for batch in collator.seen[-4:] for row in batch)
assert trained == sorted(chosen(tables[-1])), (trained, chosen(tables[-1]))
again, _ = make(Path(sys.argv[1]), select(), save_steps=2)
again.train(resume_from_checkpoint=str(Path(sys.argv[1]) / "checkpoint-2"))
assert rounds(again) == tables
print("trained without trl and peft")
"""


def test_the_callback_trains_where_trl_and_peft_are_not_installed(tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    assert "trained without trl and peft" in found.stdout, found.stderr
