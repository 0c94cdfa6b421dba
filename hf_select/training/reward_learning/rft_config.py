"""Settings of RFT: those of TRL's RLOO, which aligns the policy, of the stages, and of the reward."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from trl import RLOOConfig  # pyright: ignore[reportPrivateImportUsage]

from hf_select.training.reward_learning.demonstration_reward import RewardLoss
from hf_select.training.reward_learning.releases import check_trl
from hf_select.training.reward_learning.stages_config import StagesConfig


check_trl()


@dataclass
class RFTConfig(StagesConfig, RLOOConfig):
    """Configuration of the [`RFTTrainer`]: [`~trl.RLOOConfig`], [`StagesConfig`] and the fields below, each described
    in its `help`.

    A stage is a round of the paper's algorithm 1. `num_train_epochs` counts the passes of the policy over the prompts
    of a stage; `per_device_train_batch_size` counts answers, `num_generations` of them per prompt. "Code" in a
    default's source is the authors' (run_RFT.sh); the body of the paper could not be obtained.
    """

    _VALID_DICT_FIELDS = [*RLOOConfig._VALID_DICT_FIELDS, "reward_lora"]

    # Policy

    beta: float = field(
        default=0.1,
        metadata={
            "help": "KL coefficient toward the fixed reference: the optimum is reference * exp(reward / beta), with "
            "rewards of standard deviation 1."
        },
    )
    learning_rate: float = field(
        default=1e-6,  # code
        metadata={"help": "Peak learning rate of the policy in a stage."},
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Disable dropout in policy and reference."})
    dataset_num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenize the rows."})

    # Reward

    reward_model: str | None = field(
        default=None,
        metadata={
            "help": "Hub id or path of the initial reward: a causal LM or a reward model, with any tokenizer. By "
            "default that of the initial policy."
        },
    )
    reward_steps: int | None = field(
        default=None, metadata={"help": "K: gradient steps of the reward in a stage, instead of reward_epochs."}
    )
    reward_epochs: int = field(
        default=1,  # code
        metadata={"help": "Passes of the reward over the pairs of a stage."},
    )
    reward_batch_size: int = field(
        default=16,  # code: 4, accumulated 4 times
        metadata={"help": "Pairs per step of the reward, over all processes."},
    )
    reward_learning_rate: float = field(
        default=1e-5, metadata={"help": "Constant learning rate of AdamW (code: 1e-6 for the last 4 of 24 layers)."}
    )
    reward_weight_decay: float = field(default=0.0, metadata={"help": "Weight decay of AdamW."})
    reward_loss: RewardLoss = field(
        default="logistic",  # code
        metadata={"help": "'logistic': -log sigmoid(r(y) - r(y')). 'linear': the paper's -(r(y) - r(y'))."},
    )
    reward_bound: float | None = field(
        default=None, metadata={"help": "R: rewards are R tanh(s / R), in [-R, R]. The linear loss needs a bound."}
    )
    reward_lora: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Train a LoRA adapter of the reward with these settings of LoraConfig. Each process holds the "
            "whole reward, under ZeRO-3 too: there give it an adapter, or a smaller reward_model."
        },
    )
    reward_dtype: str = field(default="float32", metadata={"help": "Type of the weights; the head is float32."})

    _ignored: ClassVar[tuple[str, ...]] = (
        "sync_ref_model",  # the reference is fixed
        "ref_model_mixup_alpha",
        "ref_model_sync_steps",
        "reward_weights",  # there is one reward function
        "min_p",  # answers are samples of the policy, as at the beginning of a stage
        "repetition_penalty",
        "generation_kwargs",
        "chat_template_kwargs",
    )
    _method: ClassVar[tuple[str, str]] = ("RLOO", "RFT")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta <= 0:
            raise ValueError("beta must be above 0: without the KL term nothing keeps the policy near the reference.")
        if self.temperature <= 0:
            raise ValueError("temperature must be above 0: identical answers have no advantage.")
        for name in ("reward_epochs", "reward_batch_size", "reward_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        if self.reward_loss == "linear" and self.reward_bound is None:
            raise ValueError('reward_loss="linear" is unbounded; set reward_bound, e.g. 1.0.')
