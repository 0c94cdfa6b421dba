"""Training on a number of tokens in a number of steps, so that runs on different rows have cost the same.

Rows differ in length, and so do the rows that different methods choose: after equal steps of so many rows, the one
that likes long rows has trained more, and after equal tokens it has made fewer steps. Here a run reads its rows again
and again, until it has had its tokens to within half a row, in steps of equally many tokens, and the learning rate
falls with them to zero.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import PrinterCallback, TrainerCallback

from hf_select.data.chat_template import template_digest, template_text
from hf_select.models.causal_lm import CausalLM
from hf_select.models.reward_model import padded
from hf_select.validation import check_choices


@dataclass
class Recipe:
    """How every run of a comparison is trained: the stock SFTTrainer, AdamW, a rate that falls linearly to zero.

    Args:
        model: Hub id or path of the base model.
        learning_rate: highest rate.
        rows_per_step: rows of one optimizer step, counted in rows of mean length: a step of longer rows has fewer.
        max_length: tokens kept of a row; a longer one is cut on the right.
        lora_r: rank of a LoRA adapter on all linear layers; without it all weights are trained.
        bf16: train in bfloat16.
        rows_per_batch: rows of mean length in one forward pass on a device; the others of a step are accumulated. By
            default a device takes its share of a step at once.
        accelerate_config: file of `accelerate config`; every run is launched with it, on several devices or with
            DeepSpeed or FSDP. Without it a run is trained by one process.
        chat_template: file of a Jinja template, or its text, in place of the tokenizer's own.
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
        """The settings as records keep them, the template in short."""
        return {**asdict(self), "chat_template": template_digest(self.chat_template)}

    def steps(self, tokens: int, mean_length: float) -> int:
        """Optimizer steps of a run on so many tokens, where a row has `mean_length`."""
        return max(1, round(tokens / (self.rows_per_step * mean_length)))


@dataclass(frozen=True)
class Trained:
    """A model after its run, and what the run took: tokens (all that were read, padding apart), optimizer steps,
    passes over its rows, seconds, processes that trained, counted FLOPs (6 a parameter and token; with an adapter
    4)."""

    lm: CausalLM
    tokens: int
    steps: int
    passes: float
    seconds: float
    processes: int
    flops: float


def planned(lengths: Sequence[int], tokens: int, steps: int, seed: int) -> list[list[int]]:
    """The rows of each optimizer step: all rows in random orders of this seed, one after another, as near to `tokens`
    as whole rows come (half a row at most, and one row at least), cut into steps of about as many tokens. Rows that
    are longer than a step leave fewer steps.
    """
    rng, chosen, total = np.random.default_rng(seed), [], 0
    for row in (row for _ in itertools.count() for row in rng.permutation(len(lengths)).tolist()):
        if chosen and total + lengths[row] / 2 >= tokens:
            break
        chosen.append(row)
        total += lengths[row]
    found: list[list[int]] = [[] for _ in range(steps)]
    before = 0
    for row in chosen:  # to the step in which its middle lies
        found[min(int((before + lengths[row] / 2) * steps / total), steps - 1)].append(row)
        before += lengths[row]
    return [rows for rows in found if rows]


def train(
    recipe: Recipe, model: Any, tokenizer: Any, rows: Dataset, plan: list[list[int]], seed: int, folder: str,
    world: int = 1,
) -> tuple[Any, dict[str, Any]]:  # fmt: skip
    """(the stock SFTTrainer after its run, what the run took as in `Trained`).

    Args:
        model: loaded, or the path or Hub id to load from.
        plan: rows of each step.
        world: processes that train together.
    """
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

    lengths = np.array([len(ids) for ids in rows["input_ids"]])
    batches = 1 if recipe.rows_per_batch is None else -(-recipe.rows_per_step // (recipe.rows_per_batch * world))
    shares = [share for step in plan for share in dealt(step, lengths, batches * world)]
    of_steps = np.array([lengths[step].sum() for step in plan])
    config = SFTConfig(
        output_dir=folder,
        num_train_epochs=1,
        per_device_train_batch_size=1,  # share of a step
        gradient_accumulation_steps=batches,
        train_sampling_strategy="sequential",
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="constant",  # FallingRate sets it
        weight_decay=0.0,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        gradient_checkpointing=False,  # TRL's own default, under a name that transformers takes back
        activation_checkpointing=torch.accelerator.is_available(),
        save_strategy="no",
        logging_strategy="no",
        seed=seed,
        bf16=recipe.bf16,
        use_cpu=not torch.accelerator.is_available(),
        report_to="none",
        disable_tqdm=True,
        model_init_kwargs={"dtype": "float32"} if isinstance(model, str) else None,
    )
    trainer: Any = SFTTrainer(
        model,
        args=config,
        data_collator=_Shares(rows),
        train_dataset=Dataset.from_dict({"rows": shares}),
        processing_class=tokenizer,
        peft_config=None if recipe.lora_r is None else _lora(recipe.lora_r),
        callbacks=[FallingRate(of_steps)],
    )
    trainer.remove_callback(PrinterCallback)  # whoever runs many of these shows one bar
    begin = time.perf_counter()
    trainer.train()
    seconds, made = time.perf_counter() - begin, trainer.state.global_step
    if made != len(plan):
        raise RuntimeError(f"the run made {made} steps and not {len(plan)}.")
    tokens = int(of_steps.sum())
    return trainer, {
        "tokens": tokens,
        "steps": made,
        "passes": tokens / int(lengths.sum()),
        "seconds": seconds,
        "processes": trainer.accelerator.num_processes,
    }


def dealt(rows: Sequence[int], lengths: Sequence[int] | np.ndarray, shares: int) -> list[list[int]]:
    """Rows in shares of about as many tokens: each, the longest first, to the share that has fewest. Some may be
    empty."""
    found: list[list[int]] = [[] for _ in range(shares)]
    tokens = [0] * shares
    for row in sorted(rows, key=lambda row: -lengths[row]):
        least = tokens.index(min(tokens))
        found[least].append(row)
        tokens[least] += int(lengths[row])
    return found


class _Shares:
    """A share of a step -> its rows, padded to the longest. One without rows takes part with nothing to learn."""

    def __init__(self, rows: Dataset):
        self.rows = rows

    def __call__(self, shares: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        read = self.rows[[row for share in shares for row in share["rows"]]]
        ids, mask = padded(read["input_ids"] or [[0, 0]], "cpu")
        labels = [torch.tensor(row) for row in read["labels"] or [[-100, -100]]]
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
        }


def _lora(rank: int) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


class FallingRate(TrainerCallback):
    """The rate falls from its highest to zero with the tokens that are left; the trainer's own schedule is to be
    constant."""

    def __init__(self, tokens_of_steps: np.ndarray):
        self.left = 1 - np.concatenate([[0], tokens_of_steps.cumsum()]) / tokens_of_steps.sum()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Not by a scheduler: DeepSpeed's optimizer steps before anyone can be told what was trained.
        for group in kwargs["optimizer"].param_groups:
            group["lr"] = args.learning_rate * float(self.left[state.global_step])
