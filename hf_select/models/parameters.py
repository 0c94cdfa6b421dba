"""How many parameters a token is multiplied with: the basis of every FLOP count (2 a token forward, 6 in training)."""

import logging
from typing import Any

import numpy as np


logger = logging.getLogger(__name__)

# How configs name the number of routed experts, and how many of them each token uses (transformers 5.23).
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")


def active_parameters(model: Any) -> int:
    """Parameters that one token passes through, the output head included.

    An input embedding is looked up and counts only where it is tied to the head. Of E routed experts, k of which each
    token uses, k / E count; shared experts count whole.
    """
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is embedding
    return model.num_parameters() - (0 if tied else embedding.numel()) - idle_expert_parameters(model)


def idle_expert_parameters(model: Any) -> int:
    """Parameters of routed experts that a token does not pass through: (E - k) / E of all; 0 for a dense model.

    Where the config does not say how many experts a token uses, a warning says so and all of them are counted.
    """
    banks = [module for name, module in model.named_modules() if name.rpartition(".")[2] == "experts"]
    routed = sum(parameter.numel() for bank in banks for parameter in bank.parameters())
    if routed == 0:
        return 0
    config = model.config.get_text_config()
    experts, used = _setting(config, _EXPERTS), _setting(config, _EXPERTS_PER_TOKEN)
    if experts is None or used is None:
        logger.warning(
            "%s has routed experts, and its config has none of %s: all are counted, and FLOPs are an upper bound.",
            type(model).__name__,
            ", ".join(_EXPERTS_PER_TOKEN if used is None else _EXPERTS),
        )
        return 0
    return round(routed * (1 - used / experts))


def _setting(config: Any, names: tuple[str, ...]) -> float | None:
    for place in (config, getattr(config, "ffn_config", None)):  # DBRX keeps them apart
        for name in names:
            if (value := getattr(place, name, None)) is not None:
                return float(np.mean(value))  # HunYuan: one number a layer
    return None
