"""Training that ends after a number of tokens, so that runs on different rows have cost the same.

Rows differ in length, and so do the rows that different methods choose: after equal steps or epochs the one that likes
long rows has trained more. Here a run reads its rows again and again until it has seen its tokens, and the learning
rate falls with them to zero.
"""

import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from hf_select.choices import check_choices
from hf_select.features.gradients import encode_responses
from hf_select.formats import BadRow, Conversation, Encoded, conversations
from hf_select.inference.causal_lm import CausalLM


@dataclass
class Recipe:
    """How every run of a comparison is trained: the stock SFTTrainer, AdamW, a rate that falls linearly to zero.

    Args:
        model: Hub id or path of the base model.
        learning_rate: highest rate.
        rows_per_step: rows of one optimizer step.
        max_length: tokens kept of a row; a longer one is cut on the right.
        lora_r: rank of a LoRA adapter on all linear layers; without it all weights are trained.
        bf16: train in bfloat16.
        rows_per_batch: rows of one forward pass on a device; the others of a step are accumulated. By default a device
            takes its share of a step at once.
        accelerate_config: file of `accelerate config`; every run is launched with it, on several devices or with
            DeepSpeed or FSDP. Without it a run is trained by one process.
    """

    model: str
    learning_rate: float = 2e-5
    rows_per_step: int = 16
    max_length: int = 1024
    lora_r: int | None = None
    bf16: bool = False
    rows_per_batch: int | None = None
    accelerate_config: str | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("rows_per_step", "max_length", "rows_per_batch"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")


@dataclass(frozen=True)
class Trained:
    """A model after its run, and what the run took: tokens (all that were read, padding apart), optimizer steps,
    passes over the rows, seconds, processes that trained, counted FLOPs (6 a parameter and token; with an adapter
    4)."""

    lm: CausalLM
    tokens: int
    steps: int
    passes: float
    seconds: float
    processes: int
    flops: float


def with_responses(
    lm: CausalLM, dataset: Any, text_format: str, max_length: int | None
) -> tuple[list[Encoded], Counter[str], Counter[str]]:
    """Rows that have a response to learn, encoded; why rows are left out, and why shortened."""
    parsed = conversations(dataset[:])
    rows = [row for row in parsed if isinstance(row, Conversation)]
    found = encode_responses(lm, rows, text_format, max_length)
    bad = Counter(str(item) for item in (*parsed, *found) if isinstance(item, BadRow))
    whole = [item for item in found if not isinstance(item, BadRow)]
    return [encoded for encoded, _ in whole], bad, Counter(note for _, note in whole if note)


def labelled(
    lm: CausalLM, dataset: Any, text_format: str, max_length: int | None
) -> tuple[Dataset, Counter[str], Counter[str]]:
    """The same as `input_ids` and `labels`, responses alone being learned."""
    encoded, bad, notes = with_responses(lm, dataset, text_format, max_length)
    labels = []
    for e in encoded:
        of_row = [-100] * len(e.input_ids)
        for start, end in e.responses:
            of_row[start:end] = e.input_ids[start:end]
        labels.append(of_row)
    return Dataset.from_dict({"input_ids": [e.input_ids for e in encoded], "labels": labels}), bad, notes


def train_on_tokens(recipe: Recipe, lm: CausalLM, rows: Dataset, tokens: int, seed: int) -> Trained:
    """The base model after `tokens` tokens of the rows, in random orders of this seed; at most one step more.

    Args:
        lm: the base model in fp32. It is trained itself, unless the run is launched with an accelerate_config.
    """
    loaded = lm.load()
    # Looking up an embedding multiplies nothing.
    flops = (6.0 if recipe.lora_r is None else 4.0) * (loaded.backbone_parameters + loaded.head_parameters)
    if recipe.accelerate_config is not None:
        from hf_select.training.launched import train_launched

        del loaded  # the devices are the run's
        lm.release()
        lm, figures = train_launched(recipe, rows, tokens, seed)
    else:
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(recipe, loaded.model, loaded.tokenizer, rows, tokens, seed, folder)
            figures = train(trainer, rows)
        model: Any = trainer.accelerator.unwrap_model(trainer.model)
        lm = CausalLM(model.eval(), tokenizer=loaded.tokenizer)
    return Trained(lm, **figures, flops=flops * figures["tokens"])


def make_trainer(
    recipe: Recipe, model: Any, tokenizer: Any, rows: Dataset, tokens: int, seed: int, folder: str, world: int = 1
) -> Any:
    """The stock SFTTrainer of a run.

    Args:
        model: loaded, or the path or Hub id to load from.
        world: processes that train together.
    Raises: ValueError if a step cannot be shared evenly.
    """
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

    of_rows = sum(len(ids) for ids in rows["input_ids"])
    of_step = recipe.rows_per_step if world > 1 else min(recipe.rows_per_step, len(rows))
    batch = min(recipe.rows_per_batch or of_step, of_step // world)
    if batch < 1 or of_step % (batch * world):
        raise ValueError(
            f"a step of {of_step} rows cannot be shared by {world} processes in batches of {batch}; choose "
            "rows_per_step as a multiple of rows_per_batch times the processes."
        )
    config = SFTConfig(
        output_dir=folder,
        num_train_epochs=2.0 + 2 * tokens / of_rows,  # more than enough; the tokens end it
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=of_step // (batch * world),
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="constant",  # UntilTokens sets the rate
        weight_decay=0.0,
        max_length=None,  # cut already
        include_num_input_tokens_seen="non_padding",
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
    trainer = SFTTrainer(
        model,
        args=config,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=None if recipe.lora_r is None else _lora(recipe.lora_r),
        callbacks=[UntilTokens(tokens)],
    )
    trainer.remove_callback(PrinterCallback)  # whoever runs many of these shows one bar
    return trainer


def train(trainer: Any, rows: Dataset) -> dict[str, Any]:
    """What the run took: tokens, steps, passes, seconds and processes, as in `Trained`."""
    begin = time.perf_counter()
    trainer.train()
    seconds, seen = time.perf_counter() - begin, int(trainer.state.num_input_tokens_seen)
    passes = seen / sum(len(ids) for ids in rows["input_ids"])
    return {
        "tokens": seen,
        "steps": trainer.state.global_step,
        "passes": passes,
        "seconds": seconds,
        "processes": trainer.accelerator.num_processes,
    }


def _lora(rank: int) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


class UntilTokens(TrainerCallback):
    """Ends a run after its tokens; until then the rate falls from its highest to zero with the tokens that are left.
    The trainer counts them (include_num_input_tokens_seen="non_padding"); its own schedule is to be constant."""

    def __init__(self, tokens: int):
        self.tokens, self.seen = tokens, 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Not by a scheduler: DeepSpeed's optimizer steps before anyone can be told what was trained.
        for group in kwargs["optimizer"].param_groups:
            group["lr"] = args.learning_rate * max(0.0, 1 - self.seen / self.tokens)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen = state.num_input_tokens_seen
        control.should_training_stop = self.seen >= self.tokens
