"""Training on a given number of tokens in a given number of steps, so that runs on different rows cost the same.

Rows differ in length, and so do the rows that different methods select: after equal steps of equally many rows, a
method that prefers long rows has trained on more tokens, and after equal tokens it has made fewer steps. Here a run
repeats its rows until it has read its tokens to within half a row, in steps of about equally many tokens, and the
learning rate decays linearly with them to zero.
"""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypedDict

import numpy as np

from hf_select.data.chat_template import template_digest, template_text
from hf_select.models.causal_lm import CausalLM
from hf_select.validation import check_choices


@dataclass
class Recipe:
    """How every run of a comparison is trained: TRL's SFTTrainer, AdamW, a linear decay of the rate to zero.

    Args:
        model: Hub id or path of the base model.
        learning_rate: peak rate.
        rows_per_step: rows per optimizer step, in rows of mean length: a step of longer rows has fewer.
        max_length: tokens kept of a row; a longer one is cut on the right.
        lora_r: rank of a LoRA adapter on all linear layers; without it all weights are trained.
        bf16: train in bfloat16. With an adapter the base model, which does not change, is loaded in it, too.
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

    @property
    def dtype(self) -> Literal["float32", "bfloat16"]:
        """Type of the base model's weights. Weights that are trained are float32; frozen ones lose nothing."""
        return "bfloat16" if self.bf16 and self.lora_r is not None else "float32"

    def base(self) -> CausalLM:
        """The base model."""
        return CausalLM(self.model, dtype=self.dtype, chat_template=self.chat_template)

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
