"""LoRA configurations of the models that are trained here."""

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from peft import LoraConfig


def lora_config(**settings: Any) -> "LoraConfig":
    """PEFT's LoraConfig of a causal LM with these settings."""
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", **settings)


def all_linear_lora(rank: int) -> "LoraConfig":
    """An adapter on all linear layers with alpha = 2 * rank, the default of a comparison."""
    return lora_config(r=rank, lora_alpha=2 * rank, target_modules="all-linear")


def reward_lora(**settings: Any) -> "LoraConfig":
    """PEFT's LoraConfig of a reward model, whose head is trained too."""
    from peft import LoraConfig

    return LoraConfig(task_type="SEQ_CLS", modules_to_save=["score"], **settings)
