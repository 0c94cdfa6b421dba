"""Runs of TRL's SFTTrainer over a plan of steps: see `equal_tokens`."""

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, TrainerCallback

from hf_select.models.reward_model import padded
from hf_select.training import _compat
from hf_select.training.equal_tokens import Recipe, TrainingFigures, balance_by_tokens
from hf_select.training.lora import all_linear_lora


if TYPE_CHECKING:
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]


def train(
    recipe: Recipe,
    model: "str | PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Dataset,
    plan: list[list[int]],
    seed: int,
    folder: str,
    world: int = 1,
) -> "tuple[SFTTrainer, TrainingFigures]":
    """(the SFTTrainer after its run, what the run took)

    Args:
        model: loaded, or its path or Hub id.
        plan: rows of each step.
        world: number of processes.
    Raises: RuntimeError if the run makes another number of steps than planned.
    """
    from trl import SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

    lengths = np.array([len(ids) for ids in rows["input_ids"]])
    batches = 1 if recipe.rows_per_batch is None else -(-recipe.rows_per_step // (recipe.rows_per_batch * world))
    shares = [share for step in plan for share in balance_by_tokens(step, lengths, batches * world)]
    of_steps = np.array([lengths[step].sum() for step in plan])
    trainer = SFTTrainer(
        model,
        args=_config(recipe, folder, batches, seed, loaded=not isinstance(model, str)),
        data_collator=ShareCollator(rows),
        train_dataset=Dataset.from_dict({"rows": shares}),
        processing_class=tokenizer,
        peft_config=None if recipe.lora_r is None else all_linear_lora(recipe.lora_r),
        callbacks=[LinearDecayByTokens(of_steps)],
    )
    _compat.use_sampler(trainer, SequentialSampler(shares))
    trainer.remove_callback(PrinterCallback)  # a comparison of many runs shows one progress bar
    begin = time.perf_counter()
    trainer.train()
    seconds, steps = time.perf_counter() - begin, trainer.state.global_step
    if steps != len(plan):
        raise RuntimeError(f"the run made {steps} steps instead of {len(plan)}.")
    tokens = int(of_steps.sum())
    return trainer, {
        "tokens": tokens,
        "steps": steps,
        "passes": tokens / int(lengths.sum()),
        "seconds": seconds,
        "processes": trainer.accelerator.num_processes,
    }


def _config(recipe: Recipe, folder: str, batches: int, seed: int, loaded: bool) -> "SFTConfig":
    from trl import SFTConfig  # pyright: ignore[reportPrivateImportUsage]

    return SFTConfig(
        output_dir=folder,
        num_train_epochs=1,
        per_device_train_batch_size=1,  # share of a step
        gradient_accumulation_steps=batches,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="constant",  # LinearDecayByTokens sets the rate
        weight_decay=0.0,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        **_compat.checkpointing(SFTConfig, torch.accelerator.is_available()),
        save_strategy="no",
        logging_strategy="no",
        seed=seed,
        bf16=recipe.bf16,
        use_cpu=not torch.accelerator.is_available(),
        report_to="none",
        disable_tqdm=True,
        model_init_kwargs=None if loaded else {"dtype": recipe.dtype},
    )


class ShareCollator:
    """Makes a batch of the rows of a share, padded to the longest. An empty share becomes a row without labels."""

    def __init__(self, rows: Dataset):
        self.rows = rows

    def __call__(self, shares: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        columns = self.rows[[row for share in shares for row in share["rows"]]]
        ids, mask = padded(columns["input_ids"] or [[0, 0]], "cpu")
        labels = [torch.tensor(row) for row in columns["labels"] or [[-100, -100]]]
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
        }


class LinearDecayByTokens(TrainerCallback):
    """Decays the learning rate linearly to zero with the tokens that are left. Set the trainer's own schedule to
    constant."""

    def __init__(self, tokens_of_steps: np.ndarray):
        self.left = 1 - np.concatenate([[0], tokens_of_steps.cumsum()]) / tokens_of_steps.sum()

    def on_step_begin(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Set the rate of the next step. Not a scheduler: DeepSpeed's optimizer steps before a callback can act."""
        for group in kwargs["optimizer"].param_groups:
            group["lr"] = args.learning_rate * float(self.left[state.global_step])
