"""Small datasets and trainers for tests of selection while training."""

import random
from pathlib import Path

import pyarrow.parquet as pq
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from hf_select import DataSelectionCallback
from hf_select.training import online_scores
from hf_select.training._compat import checkpointing


ROWS = 48


TRL = {
    "per_device_train_batch_size": 4,
    "num_train_epochs": 2,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    **checkpointing(TrainingArguments, True),
}
# TRL's own default is to checkpoint activations.
NO_CHECKPOINTING = checkpointing(TrainingArguments, False)


def pool() -> Dataset:
    """Rows that are told apart by their first token; half of them are one token again and again."""
    rng = random.Random(0)
    rows = []
    for i in range(ROWS):
        length = 6 + i % 7
        body = [60 + i % 3] * length if i % 2 else [rng.randrange(60, 120) for _ in range(length)]
        labels = [-100, -100, *body[1:]]
        rows.append({"input_ids": [i, *body], "labels": labels, "source": "even" if i % 2 == 0 else "odd", "old": -i})
    return Dataset.from_list(rows)


class Collator:
    """Pads, and notes which rows it was given while training."""

    def __init__(self):
        self.seen: list[list[int]] = []

    def __call__(self, rows):
        self.seen.append([row["input_ids"][0] for row in rows])
        width = max(len(row["input_ids"]) for row in rows)

        def padded(values, filler):
            return torch.tensor([row + [filler] * (width - len(row)) for row in values])

        return {
            "input_ids": padded([row["input_ids"] for row in rows], 0),
            "attention_mask": padded([[1] * len(row["input_ids"]) for row in rows], 0),
            "labels": padded([row["labels"] for row in rows], -100),
        }


def make(folder, callback=None, dataset=None, **settings):
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            attention_dropout=0.1,
        )
    )
    settings = {"num_train_epochs": 3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2} | settings
    args = TrainingArguments(
        str(folder),
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no" if "save_steps" not in settings else "steps",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **settings,
    )
    collator = Collator()
    trainer = Trainer(model, args, train_dataset=pool() if dataset is None else dataset, data_collator=collator)
    if callback is not None:
        trainer.add_callback(callback(trainer))
    return trainer, collator


def select(score=online_scores.loss, **settings):
    return lambda trainer: DataSelectionCallback(trainer, score, **({"rows": 16} | settings))


def rounds(trainer):
    files = sorted((Path(trainer.args.output_dir) / "_data_selection").glob("round-*.parquet"))
    return [pq.read_table(file).to_pydict() for file in files]


def chosen(table) -> list[int]:
    places = [(place, row) for place, row in zip(table["place"], table["row"], strict=True) if place is not None]
    return [row for _, row in sorted(places)]
