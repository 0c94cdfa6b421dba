"""Parameters that a token passes through, against counts by hand."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hf_select.models.parameters import active_parameters, idle_expert_parameters


SIZES = {
    "tie_word_embeddings": False,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "vocab_size": 50,
}
MOE = {
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2, "num_key_value_heads": 2},
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "num_key_value_heads": 2},
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 2, "num_key_value_heads": 2},
    "hunyuan_v1_moe": {"num_experts": 8, "moe_topk": [2, 2, 2], "num_key_value_heads": 2, "head_dim": 8},
    "ernie4_5_moe": {"moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 24, "moe_layer_start_index": 0},
    "deepseek_v3": {
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "first_k_dense_replace": 0,
        "n_group": 1,
        "topk_group": 1,
        **{"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8},
    },
}


def empty(kind: str, **settings) -> torch.nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **settings}))


@pytest.mark.parametrize("kind", MOE)
def test_of_eight_experts_the_two_that_a_token_uses_are_counted(kind):
    """The experts are 3 matrices of 16 x 24 each; the six that a token does not use are left out in every layer."""
    model = empty(kind, **MOE[kind])
    layers = sum(name.endswith(".experts") for name, _ in model.named_modules())
    assert layers > 0
    assert idle_expert_parameters(model) == layers * 6 * 3 * 16 * 24
    one = sum(
        p.numel() for name, p in model.named_parameters() if "experts" not in name and "embed_tokens" not in name
    )
    shared = sum(p.numel() for name, p in model.named_parameters() if "shared_experts" in name)
    assert active_parameters(model) == one + shared + layers * 2 * 3 * 16 * 24


def test_a_dense_model_counts_all_but_what_is_looked_up():
    untied, tied = empty("llama", tie_word_embeddings=False), empty("llama", tie_word_embeddings=True)
    assert active_parameters(untied) == untied.num_parameters() - 50 * 16
    assert active_parameters(tied) == tied.num_parameters()
    assert active_parameters(tied) == active_parameters(untied)


def test_experts_that_no_setting_describes_are_all_counted_with_a_warning(caplog, monkeypatch):
    model = empty("mixtral", **MOE["mixtral"])
    monkeypatch.setattr("hf_select.models.parameters._EXPERTS_PER_TOKEN", ("another_name",))
    assert active_parameters(model) == model.num_parameters() - 50 * 16
    assert "MixtralForCausalLM has routed experts" in caplog.text and "upper bound" in caplog.text
