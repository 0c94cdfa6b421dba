"""Private APIs of transformers, TRL, accelerate and datasets that training uses, with the versions they were checked
with; tests check their signatures."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader, Sampler, SequentialSampler


if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainingArguments


def checkpointing(config: type, on: bool) -> dict[str, Any]:
    """Arguments of a trainer's configuration for activation checkpointing. transformers 5.23 calls the setting
    `activation_checkpointing`; before (4.57, 5.5) it is `gradient_checkpointing`, which TRL turns on by default in all
    of these."""
    if "activation_checkpointing" in {field.name for field in fields(config)}:
        return {"gradient_checkpointing": False, "activation_checkpointing": on}
    return {"gradient_checkpointing": on}


def settle_checkpointing(config: "TrainingArguments") -> None:
    """Let `activation_checkpointing`, a field of our configurations, work before transformers 5.23 (seen: 5.5), whose
    Trainer reads `gradient_checkpointing` only; TRL turns that on by default."""
    from transformers import TrainingArguments

    if "activation_checkpointing" not in {field.name for field in fields(TrainingArguments)}:
        config.gradient_checkpointing = config.gradient_checkpointing and bool(
            cast(Any, config).activation_checkpointing
        )


def checkpoint_activations(model: "PreTrainedModel", settings: dict[str, Any] | None = None) -> None:
    """Recompute activations in the backward pass (transformers 5.23: `activation_checkpointing_enable`, before:
    `gradient_checkpointing_enable`)."""
    name = "activation_checkpointing_enable"
    getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")(settings)


def warmup_share(config: type, share: float) -> dict[str, float]:
    """Arguments of a trainer's configuration to raise the learning rate during this share of all steps: `warmup_steps`
    below 1 in transformers 5.5 and 5.23. In 4.57 that is an integer, and the share is `warmup_ratio`."""
    (steps,) = (field for field in fields(config) if field.name == "warmup_steps")
    return {"warmup_ratio" if steps.type is int else "warmup_steps": share}


def recomputes_activations(model: "PreTrainedModel") -> bool:
    """Whether activation checkpointing is on (transformers 5.23: `is_activation_checkpointing`, before:
    `is_gradient_checkpointing`)."""
    name = "is_activation_checkpointing"
    return getattr(model, name if hasattr(model, name) else "is_gradient_checkpointing")


def use_sampler(trainer: "Trainer", sampler: Sampler) -> None:
    """Let the training dataloader use this sampler. Trainer calls its own method for one (transformers 5.23:
    `_get_train_sampler(self, train_dataset=None)`), which only a subclass may officially override."""
    trainer._get_train_sampler = lambda train_dataset=None: sampler


def own_sampler(trainer: "Trainer") -> bool:
    """Whether the trainer has its own sampler (GRPO and RLOO repeat each prompt). That of TRL's KTOTrainer only keeps
    the order of the dataset (trl 0.24 to 1.16), which `shuffles` asks for."""
    home = next(cls for cls in type(trainer).__mro__ if "_get_train_sampler" in vars(cls))
    return home.__module__.split(".")[0] != "transformers" and "KTOTrainer" not in _trl_classes(home)


def shuffles(trainer: "Trainer") -> bool:
    """Whether the trainer draws its rows in random order. Trainer in the order of the dataset: transformers 5.23 by
    `train_sampling_strategy`, 4.57 never; KTOTrainer of trl 0.24 and 1.0 always."""
    return not isinstance(trainer._get_train_sampler(), SequentialSampler)


def parallel_size(trainer: "Trainer", kind: str) -> int:
    """Processes that share rows in tensor, context or sequence parallelism (transformers 5.23: `get_tp_size`,
    `get_cp_size`, `get_sp_size`; 4.57 has only the first, and accelerate 1.12 has the sizes of the others)."""
    short = f"{kind[0]}p_size"
    if hasattr(trainer, f"get_{short}"):
        return getattr(trainer, f"get_{short}")()
    config: Any = getattr(trainer.accelerator, "parallelism_config", None)
    return getattr(config, short, None) or 1


def _trl_classes(cls: type) -> set[str]:
    """Names of TRL's classes that a class extends or is: asked by name, since TRL may not be installed."""
    return {base.__name__ for base in cls.__mro__ if base.__module__.split(".")[0] == "trl"}


def sampler_of(loader: DataLoader) -> Any:
    """The sampler of a prepared dataloader, or None. For several processes accelerate 1.15 wraps the batch sampler
    (`BatchSamplerShard.batch_sampler`)."""
    batches: Any = getattr(loader, "batch_sampler", None)
    while hasattr(batches, "batch_sampler"):
        batches = batches.batch_sampler
    return getattr(batches, "sampler", None)


def given_rows(trainer: "Trainer") -> tuple[np.ndarray | None, int]:
    """(number in the user's dataset of each row of trainer.train_dataset, or None if unknown; size of the user's
    dataset)

    TRL 1.16 prepares a dataset by `map`, `filter` and `shuffle`. The last two keep the table and the indices of its
    rows (datasets 5.2: `_data`, `_indices`); later steps in DPOTrainer and KTOTrainer do not. RewardTrainer also
    filters pairs given as tokens, without a `map` before it: the table is then the user's, and the dataset may have
    been a view of it. SFTTrainer, DPOTrainer and KTOTrainer of trl 0.24 and 1.0 leave out no row. KTOTrainer makes two
    rows of a pair in all of these."""
    dataset, args = cast(Any, trainer.train_dataset), cast(Any, trainer.args)
    unchanged = np.arange(len(dataset)), len(dataset)
    classes = _trl_classes(type(trainer))
    if "SFTTrainer" in classes:
        prepared = not (args.dataset_kwargs or {}).get("skip_prepare_dataset", False)
        moved = getattr(args, "shuffle_dataset", False)  # trl 0.24 has no such setting
        if prepared and moved and args.max_length is None and not _tokenized(args, dataset):
            return None, len(dataset)  # rows given as tokens were only shuffled, and may have been a view of a table
        prepared = prepared and (args.max_length is not None or moved)
    elif classes & {"DPOTrainer", "KTOTrainer"}:
        if "KTOTrainer" in classes and _unpaired(dataset):
            return None, len(dataset)
        prepared = args.max_length is not None and getattr(args, "truncation_mode", "keep_start") == "keep_start"
        prepared = prepared and "prompt" in dataset.column_names  # pairs given as tokens are not prepared
        prepared = prepared and "prompt_input_ids" not in dataset.column_names  # trl 0.24, KTOTrainer of trl 1.0
        if prepared and (args.precompute_ref_log_probs or getattr(trainer, "calculate_KL", False)):
            return None, len(dataset)
    elif "RewardTrainer" in classes:
        prepared = args.max_length is not None
        if prepared and dataset._indices is not None and "chosen" not in dataset.column_names:
            return None, len(dataset)
    else:
        prepared = False
    if not prepared or dataset._indices is None:
        return unchanged
    return dataset._indices.column(0).to_numpy(), dataset._data.num_rows


def _tokenized(args: Any, dataset: Dataset) -> bool:
    """Whether SFTTrainer made the tokens: the dataset has the text, too, and without max_length all rows of its
    table."""
    texts = {"prompt", "messages", "conversations", getattr(args, "dataset_text_field", "text")}
    return not texts.isdisjoint(dataset.column_names) and cast(Any, dataset)._data.num_rows == len(dataset)


def _unpaired(dataset: Dataset) -> bool:
    """Whether the rows look like those that KTOTrainer makes of pairs: of each batch of pairs first all chosen
    answers, then all rejected ones (`trl.unpair_preference_dataset`, by `map` in batches of 1000)."""
    if not {"prompt", "label"} <= {*dataset.column_names}:
        return False
    first = dataset.select_columns(["prompt", "label"])[:2000]
    half = len(first["label"]) // 2
    labels = [bool(label) for label in first["label"]]
    return labels == [True] * half + [False] * half and first["prompt"][:half] == first["prompt"][half:]


def watch_checkpoint(trainer: "Trainer", seen: Callable[[str | None], None]) -> None:
    """Call `seen` with the checkpoint that training resumes from, or None, before on_train_begin (transformers 5.23:
    Trainer._init_training_state(self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint,
    trial); transformers 4.57 has no such method, and its Trainer calls `_inner_training_loop` with this keyword).
    Callbacks do not get it otherwise."""
    if not hasattr(trainer, "_init_training_state"):
        train: Callable[..., Any] = trainer._inner_training_loop

        def watched_loop(*args: Any, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
            seen(resume_from_checkpoint)
            return train(*args, resume_from_checkpoint=resume_from_checkpoint, **kwargs)

        cast(Any, trainer)._inner_training_loop = watched_loop
        return
    init = trainer._init_training_state

    def watched(max_steps: int, updates: int, epochs: int, resume_from_checkpoint: str | None, trial: Any) -> Any:
        seen(resume_from_checkpoint)
        return init(max_steps, updates, epochs, resume_from_checkpoint, trial)

    cast(Any, trainer)._init_training_state = watched


def has_fused_head(model: nn.Module) -> bool:
    """Whether `model(..., labels=labels, fused_lm_head=True)` returns log-probabilities instead of logits: TRL 1.16
    replaces `model.forward` (`trl.trainer.add_fused_lm_head`), and accelerate wraps it again for autocast."""
    forward = model.forward
    while forward is not None:
        code = getattr(getattr(forward, "__func__", forward), "__code__", None)
        if code is not None and "fused_lm_head" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
            return not lacks_triton()
        forward = getattr(forward, "__wrapped__", None)
    return False


def lacks_triton() -> bool:
    """Whether TRL's fused head cannot run here for want of Triton. In trl 1.15 it is a Triton kernel, and None where
    Triton cannot be imported; trl 1.16 also has one without Triton."""
    from trl.trainer import utils

    return vars(utils).get("_ChunkedLogProbFunction", "unknown to this release") is None


def offers_fused_head() -> bool:
    """Whether TRL is installed and has a fused head (trl 1.16 has, 0.24 and 1.0 have not)."""
    try:
        from trl.trainer import add_fused_lm_head  # noqa: F401  # pyright: ignore[reportPrivateImportUsage]
    except ImportError:
        return False
    return True


@contextmanager
def add_fused_head(model: "PreTrainedModel") -> Iterator[None]:
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


def model_inputs(trainer: "Trainer", dataset: Dataset) -> Dataset:
    """The columns that the collator gets (transformers 5.23: `_remove_unused_columns(dataset, description)`)."""
    return trainer._remove_unused_columns(dataset, description="data selection")


# IRFT changes the rows during a run, for which Trainer has no public API: an epoch's dataloader is a local variable of
# its loop, and the position of a resumed run is computed from one length for all epochs.
#   transformers 5.23: Trainer._run_epoch(self, model, epoch, train_dataloader, steps_in_epoch,
#       num_update_steps_per_epoch, trial, ignore_keys_for_eval, start_time, resume_from_checkpoint, epochs_trained,
#       steps_trained_in_current_epoch), called with keywords
#   transformers 5.23: Trainer._init_training_state(self, max_steps, num_update_steps_per_epoch, num_train_epochs,
#       resume_from_checkpoint, trial) -> (epochs trained, batches trained in this epoch)
# Two steps of DPOTrainer's constructor prepare preference pairs, which IRFT does not have yet:
#   trl 1.16: DPOTrainer._prepare_dataset(self, dataset, processing_class, args, dataset_name)
#   trl 1.16: DPOTrainer._precompute_ref_logps(self, dataset, name, batch_size)
# IRFTTrainer overrides these four; tests check their signatures.


def forget_dataloader(trainer: "Trainer", loader: DataLoader | None) -> None:
    """Release a dataloader that is no longer used (accelerate 1.15 keeps all that it prepared in `_dataloaders`, with
    their rows)."""
    if loader in trainer.accelerator._dataloaders:
        trainer.accelerator._dataloaders.remove(loader)


@contextmanager
def unhashed_weights() -> Iterator[None]:
    """Within the block DPOTrainer's constructor does not hash all weights (trl 1.16: `dpo_trainer.hash_module`, for a
    cache of references that IRFT does not use): that takes minutes at 70B and fails on weights sharded by FSDP2."""
    from trl.trainer import dpo_trainer as home

    dpo_trainer: Any = home
    if not hasattr(dpo_trainer, "hash_module"):  # a later release that hashes nothing
        yield
        return
    before = dpo_trainer.hash_module
    dpo_trainer.hash_module = lambda module: ""
    try:
        yield
    finally:
        dpo_trainer.hash_module = before


@contextmanager
def model_for_generation(trainer: Any) -> "Iterator[PreTrainedModel]":
    """Within the block the model of a TRL trainer can generate: whole weights, no activation checkpointing.
    trl 1.16 restores checkpointing with the settings of the trainer if it gets them; trl 1.14 and 1.15 do not take
    them, and restore the default of transformers."""
    from trl.models import unwrap_model_for_generation  # pyright: ignore[reportPrivateImportUsage]

    settings = {"gradient_checkpointing_kwargs": trainer.args.gradient_checkpointing_kwargs}
    taken = "gradient_checkpointing_kwargs" in inspect.signature(unwrap_model_for_generation).parameters
    with unwrap_model_for_generation(
        trainer.model_wrapped,
        trainer.accelerator,
        gather_deepspeed3_params=trainer.args.ds3_gather_for_generation,
        **(settings if taken else {}),
    ) as model:
        yield cast("PreTrainedModel", model)
    if not taken and recomputes_activations(cast("PreTrainedModel", model)):
        checkpoint_activations(cast("PreTrainedModel", model), settings["gradient_checkpointing_kwargs"])


def renew_zero3_hooks(engine: Any) -> None:
    """Reset the order in which DeepSpeed ZeRO-3 fetched weights during `generate`. Otherwise the next backward pass
    finds weights of size 0 (deepspeed 0.19.8). trl 1.16 does the same where it gathers all weights, with
    `trl.models.utils.remove_hooks(model)` and `add_hooks(model)`."""
    from trl.models.utils import add_hooks, remove_hooks

    remove_hooks(engine)
    add_hooks(engine)


@contextmanager
def whole_weights() -> Iterator[None]:
    """Within the block `from_pretrained` loads the whole model in each process even if ZeRO-3 is configured
    (transformers 5.23: the weak reference `_hf_deepspeed_config_weak_ref` decides)."""
    from transformers.integrations import deepspeed as home

    integration: Any = home
    before = integration._hf_deepspeed_config_weak_ref
    integration._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        integration._hf_deepspeed_config_weak_ref = before
