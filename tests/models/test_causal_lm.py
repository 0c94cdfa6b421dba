"""Measurements equal the model's own, for one row at a time with full logits, in every architecture that is tried
here.
"""

import numpy as np
import pytest
import torch
import transformers as hf

from hf_select import CausalLM
from hf_select.models import batching
from hf_select.models.batching import OutOfMemory


SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GQA = SMALL | {"num_key_value_heads": 2, "head_dim": 8}
ARCHITECTURES = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL, num_key_value_heads=2)),
    "qwen2_tied": lambda: hf.Qwen2ForCausalLM(
        hf.Qwen2Config(**SMALL, num_key_value_heads=2, tie_word_embeddings=True)
    ),
    "mistral_sliding": lambda: hf.MistralForCausalLM(
        hf.MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=8)
    ),
    "gemma2_softcap": lambda: hf.Gemma2ForCausalLM(
        hf.Gemma2Config(**GQA, final_logit_softcapping=5.0, sliding_window=8)
    ),
    "granite_scaled": lambda: hf.GraniteForCausalLM(
        hf.GraniteConfig(**SMALL, num_key_value_heads=2, logits_scaling=4.0)
    ),
    "cohere_scaled": lambda: hf.CohereForCausalLM(hf.CohereConfig(**SMALL, logit_scale=0.3)),
    "gpt2_learned": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4)),
    "gpt_neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SMALL)),
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(
            vocab_size=300,
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            word_embed_proj_dim=32,
        )
    ),
    "bloom_alibi": lambda: hf.BloomForCausalLM(hf.BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4)),
    "mpt_alibi": lambda: hf.MptForCausalLM(hf.MptConfig(vocab_size=300, d_model=32, n_layers=2, n_heads=4)),
    "gpt_neo_local": lambda: hf.GPTNeoForCausalLM(
        hf.GPTNeoConfig(
            vocab_size=300, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]
        )
    ),
    "mixtral_moe": lambda: hf.MixtralForCausalLM(
        hf.MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=4, sliding_window=None)
    ),
    "mamba": lambda: hf.MambaForCausalLM(
        hf.MambaConfig(vocab_size=300, hidden_size=32, state_size=4, num_hidden_layers=2)
    ),
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def lm(request, tokenizer) -> CausalLM:
    torch.manual_seed(0)
    model = ARCHITECTURES[request.param]().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from the uniform predictions of a fresh model
            if parameter.dim() > 1:
                parameter.mul_(4)
    return CausalLM(model, tokenizer=tokenizer, tokens_per_batch=64)


def sequences(seed: int = 0, shared: int = 12) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    prefix = rng.integers(5, 300, shared).tolist()
    return [prefix + rng.integers(5, 300, n).tolist() for n in (9, 1, 17, 5, 5, 30, 2)]


def own_logits(lm: CausalLM, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return lm.load().model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()


def test_next_token_logits_are_the_models_own(lm):
    prompts, tokens = sequences(), [7, 3, 250]
    found = np.stack(lm.next_token_logits(prompts, tokens))
    expected = np.stack([own_logits(lm, p)[-1, tokens].numpy() for p in prompts])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    alone = np.stack([lm.next_token_logits([p], tokens)[0] for p in prompts])
    np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-5)


def test_suffixes_share_the_cache_of_their_context(lm):
    contexts, tokens = sequences(shared=0), [7, 3, 250]
    suffixes = [[9, 8, 7], [1, 2, 3, 4, 5], [200]]
    found = np.stack(lm.next_token_logits_after(contexts, suffixes, tokens))
    expected = [[own_logits(lm, c + s)[-1, tokens].numpy() for s in suffixes] for c in contexts]
    np.testing.assert_allclose(found, np.array(expected), rtol=1e-4, atol=1e-5)


def test_response_nll_is_the_cross_entropy_of_the_response(lm):
    ids = sequences(1)
    responses = [[(4, 8), (len(s) - 2, len(s))] for s in ids]
    responses[0] = [(0, len(ids[0]))]  # the first token has no context
    found = lm.response_nll(ids, responses)
    for sequence, spans, nll in zip(ids, responses, found, strict=True):
        targets = [t for a, b in spans for t in range(max(a, 1), b)]
        logp = own_logits(lm, sequence).log_softmax(-1)
        expected = [-logp[t - 1, sequence[t]].item() for t in targets]
        np.testing.assert_allclose(nll, expected, rtol=1e-4, atol=1e-4)


def test_response_nll_in_blocks_of_logits_is_the_same(lm, monkeypatch):
    from hf_select.models.loaded_model import LoadedModel

    ids = sequences(2)
    whole = lm.response_nll(ids, [[(1, len(s))] for s in ids])
    monkeypatch.setattr(LoadedModel, "head_rows", lambda self: 3)
    for a, b in zip(whole, lm.response_nll(ids, [[(1, len(s))] for s in ids]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_pooled_states_are_weighted_sums_of_the_final_states(lm):
    ids = sequences(3)
    weights = [np.arange(1, len(s) + 1) / (len(s) * (len(s) + 1) / 2) for s in ids]
    found = lm.pooled_hidden_states(ids, weights)
    for sequence, w, pooled in zip(ids, weights, found, strict=True):
        with torch.no_grad():
            hidden = lm.load().backbone(input_ids=torch.tensor([sequence]), use_cache=False).last_hidden_state[0]
        np.testing.assert_allclose(pooled, (torch.tensor(w)[:, None] * hidden).sum(0), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------------- one model


@pytest.fixture
def llama(model_path) -> CausalLM:
    return CausalLM(model_path)


def test_a_uniform_model_costs_log_v_nats_a_token(tokenizer):
    model = ARCHITECTURES["llama"]()
    torch.nn.init.zeros_(model.lm_head.weight)
    nll = CausalLM(model, tokenizer=tokenizer).response_nll([[5, 6, 7]], [[(1, 3)]])[0]
    np.testing.assert_allclose(nll, np.log(300), rtol=1e-6)


def test_a_model_that_is_partly_on_disk_measures_the_same(model_path):
    """device_map puts what finds no room elsewhere; here the embedding, a layer and the head."""
    layers = {"model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    spread = CausalLM(model_path, device_map={"model.embed_tokens": "disk", "lm_head": "disk", **layers})
    whole = CausalLM(model_path)
    prompts, words = [[5, 6, 7, 8], [9, 10]], [11, 12]
    np.testing.assert_allclose(
        spread.next_token_logits(prompts, words), whole.next_token_logits(prompts, words), atol=1e-5
    )
    spans = [[(1, 4)], [(1, 2)]]
    for found, wanted in zip(spread.response_nll(prompts, spans), whole.response_nll(prompts, spans), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert any(p.is_meta for p in spread.load().model.parameters())


def test_half_precision_logits_are_accumulated_in_fp32(llama, model_path):
    """A bf16 head rounds logits near 20 to steps of 0.125."""
    half = CausalLM(model_path, dtype="bfloat16")
    logits = np.stack(half.next_token_logits(sequences(), [7, 3, 250]))
    assert (logits != torch.tensor(logits).bfloat16().float().numpy()).any()
    np.testing.assert_allclose(logits, np.stack(llama.next_token_logits(sequences(), [7, 3, 250])), atol=0.5)


def test_nothing_loaded_is_pickled_and_nothing_is_loaded_early(llama, model_path):
    import pickle

    assert llama._loaded is None
    fresh = pickle.dumps(llama)
    llama.load()
    assert pickle.dumps(llama) == fresh
    again = pickle.loads(fresh)
    assert again == llama and again._loaded is None and again.usage.tokens == 0


def test_a_model_trained_anew_under_the_same_path_is_another_model(model_path, tmp_path):
    import pickle
    import shutil

    shutil.copytree(model_path, tmp_path / "m")
    before = pickle.dumps(CausalLM(str(tmp_path / "m")))
    assert pickle.dumps(CausalLM(str(tmp_path / "m"))) == before
    weights = tmp_path / "m" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert pickle.dumps(CausalLM(str(tmp_path / "m"))) != before


def test_measuring_leaves_the_mode_of_a_training_model(tokenizer):
    model = ARCHITECTURES["llama"]().train()
    lm = CausalLM(model, tokenizer=tokenizer)
    lm.response_nll([[5, 6, 7]], [[(1, 3)]])
    assert model.training and all(module.training for module in model.modules())


def test_usage_counts_what_was_run(llama):
    prompts = sequences()
    llama.next_token_logits(prompts, [1])
    assert llama.usage.sequences == len(prompts)
    assert llama.usage.tokens == sum(map(len, prompts))
    assert llama.usage.processed_tokens == 12 + 7 * 30  # the shared prefix once, then one batch as wide as its longest
    assert llama.usage.flops == 2 * llama.load().backbone_parameters * llama.usage.processed_tokens


def test_an_adapter_changes_the_measurement(llama, model_path, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(hf.AutoModelForCausalLM.from_pretrained(model_path), LoraConfig(init_lora_weights=False))
    model.save_pretrained(tmp_path)
    adapted = CausalLM(model_path, adapter=str(tmp_path))
    with torch.no_grad():
        expected = model.eval()(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1, [7, 3]]
    np.testing.assert_allclose(adapted.next_token_logits([[5, 6, 7]], [7, 3])[0], expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(llama.next_token_logits([[5, 6, 7]], [7, 3])[0], expected, atol=1e-2)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda: hf.BertLMHeadModel(hf.BertConfig(**SMALL)), "attend to later ones"),
        (
            lambda: hf.T5ForConditionalGeneration(
                hf.T5Config(vocab_size=300, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
            ),
            "no causal LM of this type",
        ),
        (lambda: hf.LlamaForSequenceClassification(hf.LlamaConfig(**SMALL)), "its files lack"),
    ],
)
def test_what_is_no_causal_lm_is_refused(model, why, tokenizer, tmp_path):
    model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"not a causal LM.*{why}"):
        CausalLM(str(tmp_path)).load()


def test_a_missing_folder_is_not_taken_for_a_hub_id():
    with pytest.raises(ValueError, match="no model folder"):
        CausalLM("/nowhere/at/all").load()


# -------------------------------------------------------------------------------------------------------- batching


def test_batches_stay_within_the_budget_and_hold_every_index_once():
    lengths = np.random.default_rng(0).integers(1, 90, 200).tolist()
    batches = batching.plan(lengths, 256)
    assert sorted(i for b in batches for i in b) == list(range(200))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 256 for b in batches)
    assert [lengths[b[0]] for b in batches] == sorted((lengths[b[0]] for b in batches), reverse=True)


def test_out_of_memory_halves_the_budget_and_loses_nothing(llama, monkeypatch):
    prompts = sequences()
    expected = np.stack(llama.next_token_logits(prompts, [7, 3]))
    llama.load().budget.tokens = 4096
    whole = CausalLM._backbone

    def small_memory(self, input_ids, *args, **kwargs):
        if input_ids.numel() > 40:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(CausalLM, "_backbone", small_memory)
    found = np.stack(llama.next_token_logits(prompts, [7, 3]))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert llama.load().budget.tokens <= 80


def test_a_row_that_does_not_fit_alone_is_named_and_the_others_are_measured(llama, monkeypatch):
    ids = sequences(shared=0)
    whole = CausalLM._backbone

    def small_memory(self, input_ids, *args, **kwargs):
        if input_ids.shape[1] > 20:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return whole(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(CausalLM, "_backbone", small_memory)
    found = llama.next_token_logits(ids, [7])
    assert [isinstance(f, OutOfMemory) for f in found] == [len(s) > 20 for s in ids]


def test_other_errors_are_not_taken_for_lack_of_memory(llama, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(CausalLM, "_backbone", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        llama.next_token_logits(sequences(), [7])
