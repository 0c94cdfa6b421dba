"""Load the model of a DemonstrationReward: a sequence classifier with one output, made from a causal LM if need be."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from hf_select.training.lora import reward_lora


if TYPE_CHECKING:
    from peft import PeftMixedModel, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_reward(
    model: "str | PreTrainedModel", tokenizer: "PreTrainedTokenizerBase | None", dtype: str, trust_remote_code: bool
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """(sequence classifier, its tokenizer); the head of a causal LM begins at zero.

    Raises: ValueError for a model that has no head `score` with one output, or lacks weights.
    """
    if isinstance(model, str):
        source, model = model, _load_classifier(model, dtype, trust_remote_code)
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    if tokenizer is None:
        raise ValueError("a loaded reward model needs its tokenizer: DemonstrationReward(model, tokenizer).")
    score = getattr(model, "score", None)
    if not isinstance(score, torch.nn.Linear) or score.out_features != 1:
        raise ValueError(
            f"{type(model).__name__} has no head `score` with one output at the last token; give a causal LM or a "
            "sequence-classification model made from one (num_labels=1)."
        )
    return model, tokenizer


def _load_classifier(source: str, dtype: str, trust_remote_code: bool) -> "PreTrainedModel":
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # hides the report of the missing head, which is initialised below
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            source, num_labels=1, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True
        )
    finally:
        logging.set_verbosity(before)
    missing = set(info["missing_keys"])
    if missing - {"score.weight"}:
        raise ValueError(f'"{source}" cannot be a reward: its files lack {sorted(missing)[:2]}.')
    if missing:
        torch.nn.init.zeros_(model.score.weight)
    return model


def set_padding_token(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", end: int | None) -> None:
    """Give both a padding token that no row ends with. transformers reads the rightmost token that is not padding:
    with the end token as padding, the saved model would read another token than was trained."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == end:
        tokenizer.add_special_tokens({"pad_token": "<|reward_pad|>"})
        if tokenizer.pad_token_id >= model.get_input_embeddings().num_embeddings:  # type: ignore[operator]
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def add_reward_adapter(model: "PreTrainedModel", settings: Mapping[str, Any]) -> "PeftModel | PeftMixedModel":
    """The model with a LoRA adapter of these settings on it."""
    from peft import get_peft_model

    adapted = get_peft_model(model, reward_lora(**settings), autocast_adapter_dtype=True)
    adapted.enable_input_require_grads()
    return adapted


def disable_dropout(model: torch.nn.Module) -> None:
    """Set all dropout to zero: rewards are compared, so they must not be random."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010
