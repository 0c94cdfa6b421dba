"""Each row's own gradient from one batched backward pass: what autograd gives for that row alone."""

import copy

import numpy as np
import pytest
import torch
import transformers as hf

from hf_select import CausalLM
from hf_select.demo import train_tokenizer
from hf_select.features.adam import Adam
from hf_select.features.gradient_reducers import Cosines, FullGradients
from hf_select.features.gradients import adapter_layers, row_gradients
from hf_select.training._compat import checkpoint_activations


SMALL = {
    "vocab_size": 60,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
SEQUENCES = [[5, 9, 3, 7, 1], [8, 2, 2, 40, 33, 21, 6, 6, 17], [4, 50, 12], [30, 31, 32, 33, 34, 35, 36]]
SPANS = [[(2, 5)], [(0, 3), (6, 9)], [(2, 3)], [(1, 7)]]
MODELS = {
    "llama": (
        hf.LlamaConfig,
        hf.LlamaForCausalLM,
        {"num_key_value_heads": 1},
        ["q_proj", "k_proj", "v_proj", "o_proj"],
    ),
    "llama_mlp": (hf.LlamaConfig, hf.LlamaForCausalLM, {}, ["gate_proj", "up_proj", "down_proj"]),
    "qwen_tied": (
        hf.Qwen2Config,
        hf.Qwen2ForCausalLM,
        {"tie_word_embeddings": True, "num_key_value_heads": 2},
        "all-linear",
    ),
    "neox": (hf.GPTNeoXConfig, hf.GPTNeoXForCausalLM, {}, ["query_key_value", "dense"]),
}


def make(name: str, dtype: torch.dtype) -> CausalLM:
    from peft import LoraConfig, get_peft_model

    config, cls, extra, targets = MODELS[name]
    torch.manual_seed(0)
    model = cls(config(**SMALL, max_position_embeddings=64, initializer_range=0.3, **extra)).to(dtype)
    model = get_peft_model(model, LoraConfig(r=3, lora_alpha=6, target_modules=targets, lora_dropout=0.3)).to(dtype)
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:  # zero at first, and A's gradient with it
            torch.nn.init.normal_(parameter, std=0.3)
    return CausalLM(model.eval(), tokenizer=train_tokenizer(["a b c"] * 3, vocab_size=280))


def by_autograd(lm: CausalLM, ids: list[int], spans: list[tuple[int, int]]) -> torch.Tensor:
    """The gradient of one row's mean response NLL, by autograd on that row alone."""
    model = lm.load().model
    layers = adapter_layers(model)
    for layer in layers.values():
        layer.weight.requires_grad_(True)
        layer.weight.grad = None
    logits = model(input_ids=torch.tensor([ids])).logits[0]
    positions = [t for a, b in spans for t in range(max(a, 1), b)]
    target = torch.tensor([ids[t] for t in positions])
    torch.nn.functional.cross_entropy(logits[[t - 1 for t in positions]], target).backward()
    gradient = torch.cat([layer.weight.grad.flatten() for layer in layers.values()])
    for layer in layers.values():
        layer.weight.grad = None
    return gradient


def whole(lm: CausalLM, sequences=SEQUENCES, spans=SPANS, **kwargs) -> torch.Tensor:
    layers = list(adapter_layers(lm.load().model))
    return torch.stack(row_gradients(lm, sequences, spans, lambda rows: FullGradients(rows, layers, **kwargs)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", MODELS)
def test_a_row_in_any_batch_has_the_gradient_that_autograd_gives_it_alone(name, dtype, tolerance):
    lm = make(name, dtype)
    expected = torch.stack([by_autograd(lm, ids, spans) for ids, spans in zip(SEQUENCES, SPANS, strict=True)])
    assert expected.norm(dim=1).min() > 1e-3
    limit = tolerance * expected.abs().max().item()
    torch.testing.assert_close(whole(lm), expected, rtol=0, atol=limit)
    for order in ([3, 1, 0, 2], [2, 2, 0]):
        found = whole(lm, [SEQUENCES[i] for i in order], [SPANS[i] for i in order])
        torch.testing.assert_close(found, expected[order], rtol=0, atol=limit)
    lm.load().budget.tokens = 9  # one row at a time, or two
    torch.testing.assert_close(whole(lm), expected, rtol=0, atol=limit)


def test_gradient_checkpointing_and_bf16_are_allowed():
    lm = make("llama", torch.float32)
    expected = whole(lm)
    model = lm.load().model
    checkpoint_activations(model)
    model.train()
    forwards = []
    handle = model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: forwards.append(1))
    torch.testing.assert_close(whole(lm), expected)  # with dropout it would not be
    handle.remove()
    assert len(forwards) == 2, "the block was not computed again in the backward pass"
    assert model.training and model.model.layers[0].training, "the mode was not put back"
    getattr(model, "activation_checkpointing_disable", model.gradient_checkpointing_disable)()
    half = CausalLM(copy.deepcopy(model).to(torch.bfloat16), tokenizer=lm.tokenizer)
    cosine = torch.nn.functional.cosine_similarity(whole(half), expected)
    assert cosine.min() > 0.97


def test_the_model_is_left_as_it_was():
    lm = make("llama", torch.float32)
    model = lm.load().model
    before = {name: (p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()}
    whole(lm)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == before[name][0] and parameter.grad is None
        assert torch.equal(parameter, before[name][1])
    assert not any(module._forward_hooks for module in model.modules())


def test_adam_by_hand():
    g = torch.tensor([[[2.0]]])
    moments = {"x": (torch.tensor([[0.5]]), torch.tensor([[4.0]]))}
    m, v = 0.9 * 0.5 + 0.1 * 2, 0.999 * 4 + 0.001 * 4
    assert Adam(moments, step=4, mode="repo")("x", g).item() == pytest.approx(m / np.sqrt(v + 1e-8))
    expected = (m / (1 - 0.9**5)) / (np.sqrt(v / (1 - 0.999**5)) + 1e-8)
    assert Adam(moments, step=4)("x", g).item() == pytest.approx(expected)


def test_cosines_layer_by_layer_are_those_of_the_whole_vectors():
    lm = make("llama", torch.float32)
    layers = adapter_layers(lm.load().model)
    generator = torch.Generator().manual_seed(0)
    moments = {
        name: (
            torch.randn(layer.weight.shape, generator=generator),
            torch.rand(layer.weight.shape, generator=generator),
        )
        for name, layer in layers.items()
    }
    adam = Adam(moments, step=3)
    queries = whole(lm, SEQUENCES[:2], SPANS[:2])
    expected = torch.nn.functional.cosine_similarity(whole(lm, adam=adam)[:, None], queries[None], dim=-1)
    sizes = [layer.weight.numel() for layer in layers.values()]
    split = dict(zip(layers, queries.split(sizes, dim=1), strict=True))
    found = row_gradients(lm, SEQUENCES, SPANS, lambda rows: Cosines(rows, split, queries.norm(dim=1), adam))
    np.testing.assert_allclose(np.stack(found), expected.numpy(), atol=1e-6)
    plain = torch.nn.functional.cosine_similarity(whole(lm)[:, None], queries[None], dim=-1)
    assert (expected - plain).abs().max() > 0.01, "Adam changes nothing here: the test shows nothing"


def test_adapters_that_cannot_be_measured_are_refused():
    from peft import LoraConfig, get_peft_model

    plain = copy.deepcopy(make("llama", torch.float32).load().model)
    with pytest.raises(ValueError, match='no LoRA adapter "other"'):
        adapter_layers(plain, "other")
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL))
    with pytest.raises(ValueError, match="no LoRA adapter"):
        adapter_layers(model)
    with pytest.raises(ValueError, match="plain LoRA"):
        adapter_layers(get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)))


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_quantised_base_model_has_gradients_too(quantization, tmp_path):
    functional = pytest.importorskip("bitsandbytes.functional")
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128}  # bitsandbytes takes blocks of 64
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**{**SMALL, **sizes}, initializer_range=0.3))
    model.save_pretrained(tmp_path)
    train_tokenizer(["a b c"] * 3, vocab_size=280).save_pretrained(tmp_path)
    config = LoraConfig(r=3, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")

    settings = {"adapter": str(tmp_path / "adapter"), "dtype": "float32"}
    lm = CausalLM(str(tmp_path), quantization=quantization, **settings)
    found = whole(lm)
    assert "bit" in type(lm.load().model.model.layers[0].self_attn.q_proj.base_layer).__name__
    alone = torch.cat([whole(lm, SEQUENCES[i : i + 1], SPANS[i : i + 1]) for i in range(len(SEQUENCES))])
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(found, alone).min() > (0.9999 if quantization == "4bit" else 0.99)  # 8bit rounds by the batch
    rounded = CausalLM(str(tmp_path), **settings)  # the same model with the rounded weights in fp32
    modules = dict(lm.load().model.named_modules())
    lm.load().model.state_dict()  # unpacked
    for name, module in rounded.load().model.named_modules():
        quantised = modules[name]
        if "Linear4bit" in type(quantised).__name__ and not hasattr(module, "base_layer"):
            module.weight.data = functional.dequantize_4bit(quantised.weight.data, quantised.weight.quant_state)
    assert cosine(found, whole(rounded)).min() > (0.9999 if quantization == "4bit" else 0.8)
