"""The SFT baseline of IRFT: TRL's trainer and loss on the same tokens that IRFT trains on.

The published baseline minimised -log sigmoid(beta * lp(y)), which is not SFT. This one minimises the mean negative
log-likelihood of the completions' tokens, with the same template and rows; at equal passes and batch size it makes the
same number of updates.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

from hf_select.training import _compat
from hf_select.training.reward_learning.demonstrations import DEFAULT_MAX_LEFT_OUT, as_labels, usable_demonstrations


if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass
class SFTBaselineConfig(SFTConfig):
    """Configuration of the [`SFTBaselineTrainer`]: [`~trl.SFTConfig`] and IRFT's limit of a completion."""

    max_length: int = field(default=1024, metadata={"help": "As in IRFTConfig."})
    max_completion_length: int = field(default=256, metadata={"help": "As in IRFTConfig: longer rows are left out."})
    max_left_out: float = field(default=DEFAULT_MAX_LEFT_OUT, metadata={"help": "As in IRFTConfig."})
    activation_checkpointing: bool | None = field(default=True, metadata={"help": "As in IRFTConfig."})

    def __post_init__(self) -> None:
        _compat.settle_checkpointing(self)
        super().__post_init__()


class SFTBaselineTrainer(SFTTrainer):
    """SFTTrainer on demonstrations encoded as IRFTTrainer encodes them; further arguments are SFTTrainer's."""

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        args: SFTBaselineConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        **kwargs: Any,
    ):
        name = model if isinstance(model, str) else model.config._name_or_path
        tokenizer = processing_class or AutoTokenizer.from_pretrained(name)

        def encoded(dataset: Dataset, name: str) -> Dataset:
            return as_labels(usable_demonstrations(dataset, tokenizer, args, name))

        super().__init__(
            model,
            args=args,
            train_dataset=encoded(train_dataset, "train"),
            eval_dataset=None if eval_dataset is None else encoded(eval_dataset, "eval"),
            processing_class=tokenizer,
            **kwargs,
        )
