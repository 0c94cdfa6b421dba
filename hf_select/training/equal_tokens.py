"""Training on a given number of tokens in a given number of steps, so that runs on different rows cost the same.

Rows differ in length, and so do the rows that different methods select: after equal steps of equally many rows, a
method that prefers long rows has trained on more tokens, and after equal tokens it has made fewer steps. Here a run
repeats its rows until it has read its tokens to within half a row, in steps of about equally many tokens, and the
learning rate decays linearly with them to zero.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, TrainerCallback

from hf_select.data.chat_template import template_digest, template_text
from hf_select.models.causal_lm import CausalLM
from hf_select.models.reward_model import padded
from hf_select.training import _compat
from hf_select.training.lora import all_linear_lora
from hf_select.validation import check_choices


if TYPE_CHECKING:
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]


@dataclass
class Recipe:
    """How every run of a comparison is trained: TRL's SFTTrainer, AdamW, a linear decay of the rate to zero.

    Args:
        model: Hub id or path of the base model.
        learning_rate: peak rate.
        rows_per_step: rows per optimizer step, in rows of mean length: a step of longer rows has fewer.
        max_length: tokens kept of a row; a longer one is cut on the right.
        lora_r: rank of a LoRA adapter on all linear layers; without it all weights are trained.
        bf16: train in bfloat16.
        rows_per_batch: rows of mean length in one forward pass on a device; a step accumulates several. By default a
            device processes its share of a step at once.
        accelerate_config: file of `accelerate config`; every run is launched with it, on several devices or with
            DeepSpeed or FSDP. Without it one process trains.
        chat_template: file of a Jinja template, or its text, instead of the tokenizer's own.
    """

    model: str
    learning_rate: float = 2e-5
    rows_per_step: int = 16
    max_length: int = 1024
    lora_r: int | None = None
    bf16: bool = False
    rows_per_batch: int | None = None
    accelerate_config: str | None = None
    chat_template: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_choices(self)
        if self.chat_template is not None:
            self.chat_template = template_text(self.chat_template)
        for name in ("rows_per_step", "max_length", "rows_per_batch"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")

    def base(self) -> CausalLM:
        """The base model, in fp32."""
        return CausalLM(self.model, dtype="float32", chat_template=self.chat_template)

    def described(self) -> dict[str, Any]:
        """The settings as records keep them, with a digest of the template."""
        return {**asdict(self), "chat_template": template_digest(self.chat_template)}

    def steps(self, tokens: int, mean_length: float) -> int:
        """Optimizer steps of a run on `tokens` tokens, for rows of `mean_length` tokens."""
        return max(1, round(tokens / (self.rows_per_step * mean_length)))


@dataclass(frozen=True)
class Trained:
    """A model after its run, and what the run took.

    Args:
        tokens: all that were read, without padding.
        steps: optimizer steps.
        passes: over its rows.
        processes: that trained.
        flops: counted; 6 per parameter and token, with an adapter 4.
    """

    lm: CausalLM
    tokens: int
    steps: int
    passes: float
    seconds: float
    processes: int
    flops: float


class TrainingFigures(TypedDict):
    """What a run took; see `Trained`."""

    tokens: int
    steps: int
    passes: float
    seconds: float
    processes: int


def plan_steps(lengths: Sequence[int], tokens: int, steps: int, seed: int) -> list[list[int]]:
    """The rows of each optimizer step: random permutations of all rows, one after the other, until their tokens are
    within half a row of `tokens` (at least one row), cut into steps of about equally many tokens. Rows longer than a
    step leave fewer steps.
    """
    rng, chosen, total = np.random.default_rng(seed), [], 0
    for row in (row for _ in itertools.count() for row in rng.permutation(len(lengths)).tolist()):
        if chosen and total + lengths[row] / 2 >= tokens:
            break
        chosen.append(row)
        total += lengths[row]
    plan: list[list[int]] = [[] for _ in range(steps)]
    before = 0
    for row in chosen:  # to the step that contains its middle
        plan[min(int((before + lengths[row] / 2) * steps / total), steps - 1)].append(row)
        before += lengths[row]
    return [rows for rows in plan if rows]


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
        model_init_kwargs=None if loaded else {"dtype": "float32"},
    )


def balance_by_tokens(rows: Sequence[int], lengths: Sequence[int] | np.ndarray, shares: int) -> list[list[int]]:
    """Rows in shares of about equally many tokens: the longest first, each to the share with fewest tokens. Shares may
    be empty."""
    balanced: list[list[int]] = [[] for _ in range(shares)]
    tokens = [0] * shares
    for row in sorted(rows, key=lambda row: -lengths[row]):
        least = tokens.index(min(tokens))
        balanced[least].append(row)
        tokens[least] += int(lengths[row])
    return balanced


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
