"""Number of active parameters per token, for FLOP counts (2 per parameter and token forward, 6 in training)."""

import logging
from typing import Any

import numpy as np


logger = logging.getLogger(__name__)

# Config settings for the number of routed experts, and of experts per token (transformers 5.23).
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")


def active_parameters(model: Any) -> int:
    """Number of parameters used for one token, including the output head.

    The input embedding is a lookup and counts only if it is tied to the head. If each token uses k of E routed
    experts, k / E of their parameters count. Shared experts count fully.
    """
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is embedding
    return model.num_parameters() - (0 if tied else embedding.numel()) - idle_expert_parameters(model)


def idle_expert_parameters(model: Any) -> int:
    """Number of parameters of routed experts that a token does not use: (E - k) / E of all; 0 for a dense model.

    If the config does not specify E or k, all experts count as used, with a warning.
    """
    banks = [module for name, module in model.named_modules() if name.rpartition(".")[2] == "experts"]
    routed = sum(parameter.numel() for bank in banks for parameter in bank.parameters())
    if routed == 0:
        return 0
    config = model.config.get_text_config()
    experts, used = _setting(config, _EXPERTS), _setting(config, _EXPERTS_PER_TOKEN)
    if experts is None or used is None:
        logger.warning(
            "%s has routed experts, but its config has none of %s: all experts count, and FLOPs are an upper bound.",
            type(model).__name__,
            ", ".join(_EXPERTS_PER_TOKEN if used is None else _EXPERTS),
        )
        return 0
    return round(routed * (1 - used / experts))


def _setting(config: Any, names: tuple[str, ...]) -> float | None:
    for place in (config, getattr(config, "ffn_config", None)):  # DBRX
        for name in names:
            if (value := getattr(place, name, None)) is not None:
                return float(np.mean(value))  # HunYuan: one number per layer
    return None
