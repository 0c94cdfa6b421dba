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
from torch.optim.lr_scheduler import LambdaLR
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
    """

    model: str
    learning_rate: float = 2e-5
    rows_per_step: int = 16
    max_length: int = 1024
    lora_r: int | None = None
    bf16: bool = False

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("rows_per_step", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")


@dataclass(frozen=True)
class Trained:
    """A model after its run, and what the run took: tokens (all that were read, padding apart), optimizer steps,
    passes over the rows, seconds, counted FLOPs (6 a parameter and token; with an adapter 4)."""

    lm: CausalLM
    tokens: int
    steps: int
    passes: float
    seconds: float
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
        lm: the base model in fp32, which is trained itself.
    """
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

    loaded = lm.load()
    of_rows = sum(len(ids) for ids in rows["input_ids"])
    batch = min(recipe.rows_per_step, len(rows))
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            num_train_epochs=2.0 + 2 * tokens / of_rows,  # more than enough; the tokens end it
            per_device_train_batch_size=batch,
            learning_rate=recipe.learning_rate,
            max_length=None,  # cut already
            include_num_input_tokens_seen="non_padding",
            gradient_checkpointing=False,  # TRL's own default, under a name that transformers takes back
            activation_checkpointing=loaded.device.type != "cpu",
            save_strategy="no",
            logging_strategy="no",
            seed=seed,
            bf16=recipe.bf16,
            use_cpu=loaded.device.type == "cpu",
            report_to="none",
            disable_tqdm=True,
        )
        trainer: Any = SFTTrainer(
            loaded.model,
            args=config,
            train_dataset=rows,
            processing_class=loaded.tokenizer,
            peft_config=None if recipe.lora_r is None else _lora(recipe.lora_r),
        )
        trained = [p for p in trainer.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=0.0)

        until = UntilTokens(tokens)
        trainer.optimizer, trainer.lr_scheduler = optimizer, LambdaLR(optimizer, until.share_left)
        trainer.add_callback(until)
        trainer.remove_callback(PrinterCallback)  # whoever runs many of these shows one bar
        begin = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begin
    state = trainer.state
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    each = 6.0 if recipe.lora_r is None else 4.0
    return Trained(
        lm=CausalLM(model.eval(), tokenizer=loaded.tokenizer),
        tokens=int(state.num_input_tokens_seen),
        steps=state.global_step,
        passes=state.num_input_tokens_seen / of_rows,
        seconds=seconds,
        flops=each * (loaded.backbone_parameters + loaded.head_parameters) * state.num_input_tokens_seen,
    )


def _lora(rank: int) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


class UntilTokens(TrainerCallback):
    """Ends a run after its tokens, and says for LambdaLR which share of them is left. The trainer counts them
    (include_num_input_tokens_seen="non_padding")."""

    def __init__(self, tokens: int):
        self.tokens, self.seen = tokens, 0

    def share_left(self, step: int) -> float:
        return max(0.0, 1 - self.seen / self.tokens)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen = state.num_input_tokens_seen

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.num_input_tokens_seen >= self.tokens
