"""The private names of transformers that this package touches, in one place, with the version they were seen in; tests
hold their signatures."""

from typing import Any

from datasets import Dataset
from torch.utils.data import Sampler


def use_sampler(trainer: Any, sampler: Sampler) -> None:
    """Let the training dataloader draw from this sampler. Trainer asks its own method for one (transformers 5.23:
    `_get_train_sampler(self, train_dataset=None)`), and a subclass is the only documented way to answer."""
    trainer._get_train_sampler = lambda train_dataset=None: sampler


def own_sampler(trainer: Any) -> bool:
    """Whether the trainer draws rows in a way of its own (GRPO and RLOO repeat each prompt)."""
    from transformers import Trainer

    return type(trainer)._get_train_sampler is not Trainer._get_train_sampler


def model_inputs(trainer: Any, dataset: Dataset) -> Dataset:
    """The columns that the collator of training is given (transformers 5.23: `_remove_unused_columns(dataset,
    description)`)."""
    return trainer._remove_unused_columns(dataset, description="data selection")
