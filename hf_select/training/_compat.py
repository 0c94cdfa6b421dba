"""The private names of transformers that this package touches, in one place, with the version they were seen in; tests
hold their signatures."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from datasets import Dataset
from torch.utils.data import Sampler


def use_sampler(trainer: Any, sampler: Sampler) -> None:
    """Let the training dataloader draw from this sampler. Trainer asks its own method for one (transformers 5.23:
    `_get_train_sampler(self, train_dataset=None)`), and a subclass is the only documented way to answer."""
    trainer._get_train_sampler = lambda train_dataset=None: sampler


def own_sampler(trainer: Any) -> bool:
    """Whether the trainer draws rows in a way of its own (GRPO and RLOO repeat each prompt). KTOTrainer overrides the
    method for transformers below 5.2 only (trl 1.16) and otherwise calls Trainer's."""
    from transformers import Trainer
    from trl import KTOTrainer  # pyright: ignore[reportPrivateImportUsage]

    return type(trainer)._get_train_sampler not in (Trainer._get_train_sampler, KTOTrainer._get_train_sampler)


def sampler_of(loader: Any) -> Any:
    """The sampler that a prepared dataloader draws rows from, or None. For several processes accelerate 1.15 wraps the
    batch sampler (`BatchSamplerShard.batch_sampler`)."""
    batches: Any = getattr(loader, "batch_sampler", None)
    while hasattr(batches, "batch_sampler"):
        batches = batches.batch_sampler
    return getattr(batches, "sampler", None)


def given_rows(trainer: Any) -> tuple[np.ndarray | None, int]:
    """(for each row of trainer.train_dataset its number in the dataset that the user gave, or None if that is lost;
    number of rows given).

    TRL 1.16 prepares a dataset by `map`, `filter` and `shuffle`. The last two keep the table and the places of the
    rows in it (datasets 5.2: `_data`, `_indices`); what comes after them in DPOTrainer and KTOTrainer does not.
    RewardTrainer filters pairs given as tokens, too, without a `map` before it: the table is then the user's own, of
    which the dataset given may have been a view."""
    from trl import DPOTrainer, KTOTrainer, RewardTrainer, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

    dataset, args = trainer.train_dataset, trainer.args
    unchanged = np.arange(len(dataset)), len(dataset)
    if isinstance(trainer, SFTTrainer):
        prepared = not (args.dataset_kwargs or {}).get("skip_prepare_dataset", False)
        prepared = prepared and (
            args.max_length is not None or args.shuffle_dataset
        )  # what leaves rows out or moves them
    elif isinstance(trainer, DPOTrainer | KTOTrainer):
        prepared = args.max_length is not None and getattr(args, "truncation_mode", "keep_start") == "keep_start"
        prepared = prepared and "prompt" in dataset.column_names  # given as tokens it is left as it is
        if prepared and (args.precompute_ref_log_probs or getattr(trainer, "calculate_KL", False)):
            return None, len(dataset)
    elif isinstance(trainer, RewardTrainer):
        prepared = args.max_length is not None
        if prepared and dataset._indices is not None and "chosen" not in dataset.column_names:
            return None, len(dataset)
    else:
        prepared = False
    if not prepared or dataset._indices is None:
        return unchanged
    return dataset._indices.column(0).to_numpy(), dataset._data.num_rows


def watch_checkpoint(trainer: Any, seen: Callable[[str | None], None]) -> None:
    """Call `seen` with the checkpoint that a training resumes from, or None, before callbacks are told of the training
    (transformers 5.23: Trainer._init_training_state(self, max_steps, num_update_steps_per_epoch, num_train_epochs,
    resume_from_checkpoint, trial)). No callback is told otherwise."""
    init = trainer._init_training_state

    def watched(max_steps: Any, updates: Any, epochs: Any, resume_from_checkpoint: Any, trial: Any) -> Any:
        seen(resume_from_checkpoint)
        return init(max_steps, updates, epochs, resume_from_checkpoint, trial)

    trainer._init_training_state = watched


def has_fused_head(model: Any) -> bool:
    """Whether `model(..., labels=labels, fused_lm_head=True)` gives log-probabilities in place of logits: TRL 1.16
    replaces `model.forward` (`trl.trainer.add_fused_lm_head`), and accelerate wraps that once more for autocast."""
    forward = model.forward
    while forward is not None:
        code = getattr(getattr(forward, "__func__", forward), "__code__", None)
        if code is not None and "fused_lm_head" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
            return True
        forward = getattr(forward, "__wrapped__", None)
    return False


@contextmanager
def fused_head(model: Any) -> Iterator[None]:
    """Within the block a causal LM has TRL's fused head (trl 1.16: `trl.trainer.add_fused_lm_head`, not exported by
    `trl` itself)."""
    from trl.trainer import add_fused_lm_head  # pyright: ignore[reportPrivateImportUsage]

    before = vars(model).get("forward")
    add_fused_lm_head(model)
    try:
        yield
    finally:
        if before is None:
            del model.forward
        else:
            model.forward = before


def model_inputs(trainer: Any, dataset: Dataset) -> Dataset:
    """The columns that the collator of training is given (transformers 5.23: `_remove_unused_columns(dataset,
    description)`)."""
    return trainer._remove_unused_columns(dataset, description="data selection")


# IRFT changes the rows of a run while it runs. Trainer has no public place for that: an epoch's loader is a local
# variable of its loop, and the place that a checkpoint is resumed at is computed from one length of all epochs.
#   transformers 5.23: Trainer._run_epoch(self, model, epoch, train_dataloader, steps_in_epoch,
#       num_update_steps_per_epoch, trial, ignore_keys_for_eval, start_time, resume_from_checkpoint, epochs_trained,
#       steps_trained_in_current_epoch), called with keywords
#   transformers 5.23: Trainer._init_training_state(self, max_steps, num_update_steps_per_epoch, num_train_epochs,
#       resume_from_checkpoint, trial) -> (epochs trained, batches trained in this epoch)
# And two steps of DPOTrainer's constructor stand in the way, which prepare rows of preferences:
#   trl 1.16: DPOTrainer._prepare_dataset(self, dataset, processing_class, args, dataset_name)
#   trl 1.16: DPOTrainer._precompute_ref_logps(self, dataset, name, batch_size)
# IRFTTrainer overrides these four; tests hold their signatures.


def forget_dataloader(trainer: Any, loader: Any) -> None:
    """Let go of a dataloader that is not used any more (accelerate 1.15 keeps each it has prepared in `_dataloaders`,
    and with it the rows)."""
    if loader in trainer.accelerator._dataloaders:
        trainer.accelerator._dataloaders.remove(loader)


@contextmanager
def unhashed_weights() -> Iterator[None]:
    """Within the block DPOTrainer's constructor does not hash all weights (trl 1.16: `dpo_trainer.hash_module`, for a
    cache of references that IRFT does not use): it takes minutes at 70B and fails on weights that FSDP2 has cut."""
    from trl.trainer import dpo_trainer as home

    dpo_trainer: Any = home
    before = dpo_trainer.hash_module
    dpo_trainer.hash_module = lambda module: ""
    try:
        yield
    finally:
        dpo_trainer.hash_module = before


def renew_zero3_hooks(engine: Any) -> None:
    """Let DeepSpeed ZeRO-3 forget in which order the modules of `generate` fetched their weights. Otherwise the next
    backward pass finds weights of size 0 (deepspeed 0.19.8). trl 1.16 does the same where it gathers all weights, with
    `trl.models.utils.remove_hooks(model)` and `add_hooks(model)`."""
    from trl.models.utils import add_hooks, remove_hooks

    remove_hooks(engine)
    add_hooks(engine)


@contextmanager
def whole_weights() -> Iterator[None]:
    """Within the block `from_pretrained` gives each process the whole model, also where ZeRO-3 is configured, under
    which it gives pieces (transformers 5.23: the weak reference `_hf_deepspeed_config_weak_ref` decides)."""
    from transformers.integrations import deepspeed as home

    integration: Any = home
    before = integration._hf_deepspeed_config_weak_ref
    integration._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        integration._hf_deepspeed_config_weak_ref = before
