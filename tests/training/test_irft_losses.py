"""The losses and log-probabilities of IRFT and SPIN: hand-worked values, limits, agreement with autograd and with TRL.

Numbers of the tables were worked out apart from this code, from the formulas alone.
"""

import json
import math

import pytest
import torch
import transformers as hf
from releases import needs_irft

from hf_select.training.reward_learning.losses import implicit_reward, pair_loss


LN2 = 0.6931471806


def margins(policy, reference, beta):
    rewards = [implicit_reward(lp, ref, beta) for lp, ref in zip(policy, reference, strict=True)]
    return rewards, rewards[0] - rewards[1]


@pytest.mark.parametrize(
    "policy, reference, beta, z, loss, slope",
    [
        ((-10, -20), (-12, -18), 0.1, 0.4, 0.5130152524, -0.0401312340),
        ((-50, -40), (-52, -45), 0.1, -0.3, 0.8543552445, -0.0574442517),
        ((-50, -40), (-52, -45), 5.0, -15.0, 15.0000003059, -5 / (1 + math.exp(-15))),
    ],
)
def test_hand_worked_pairs(policy, reference, beta, z, loss, slope):
    lps = [torch.tensor([float(x)], dtype=torch.float64, requires_grad=True) for x in policy]
    refs = [torch.tensor([float(x)], dtype=torch.float64) for x in reference]
    rewards, margin = margins(lps, refs, beta)
    assert margin.item() == pytest.approx(z)
    assert [r.item() for r in rewards] == pytest.approx(
        [beta * (a - b) for a, b in zip(policy, reference, strict=True)]
    )
    found = pair_loss(margin)
    assert found.item() == pytest.approx(loss, abs=1e-9)
    found.sum().backward()
    assert lps[0].grad.item() == pytest.approx(slope, abs=1e-9)
    assert lps[1].grad.item() == pytest.approx(-slope, abs=1e-9)


def test_hinge_and_linear():
    z = torch.tensor([0.4, 3.0, -15.0])
    assert pair_loss(z, "hinge").tolist() == pytest.approx([0.6, 0.0, 16.0])
    assert pair_loss(z, "linear").tolist() == pytest.approx([-0.4, -3.0, 15.0])


def test_far_margins_neither_overflow_nor_vanish():
    z = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = pair_loss(z)
    loss.sum().backward()
    assert loss.tolist() == [1e4, 0.0]
    assert z.grad.tolist() == [-1.0, 0.0]


def test_at_the_reference_the_gradient_is_half_beta_times_the_difference():
    torch.manual_seed(0)
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)  # a policy over six completions
    lp = logits.log_softmax(-1)
    y, own = lp[2:3], lp[4:5]
    _, margin = margins((y, own), (y.detach(), own.detach()), 0.1)
    loss = pair_loss(margin)
    assert loss.item() == pytest.approx(LN2)
    (gradient,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
    (apart,) = torch.autograd.grad((y - own).sum(), logits)
    torch.testing.assert_close(gradient, -0.05 * apart, rtol=1e-14, atol=1e-16)


def test_an_answer_that_is_its_demonstration_has_no_gradient():
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    lp = logits.log_softmax(-1)
    _, margin = margins((lp[2:3], lp[2:3]), (torch.tensor([-3.0]), torch.tensor([-3.0])), 0.1)
    loss = pair_loss(margin)
    assert loss.item() == pytest.approx(LN2)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.abs().max() == 0


def test_the_expected_first_step_is_sft_times_half_beta():
    """Over all answers that the reference may give: why K > 1 steps from a fixed reference make the difference."""
    torch.manual_seed(1)
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    lp, beta = logits.log_softmax(-1), 0.1
    ref = lp.detach()
    _, margin = margins((lp[3].expand(5), lp), (ref[3].expand(5), ref), beta)
    (gradient,) = torch.autograd.grad((ref.exp() * pair_loss(margin)).sum(), logits, retain_graph=True)
    (sft,) = torch.autograd.grad(-lp[3], logits)
    torch.testing.assert_close(gradient, beta / 2 * sft, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    "beta, expected", [(1.0, (0.2, 0.3, 0.5)), (2.0, (0.33913, 0.32173, 0.33913)), (0.5, (0.04908, 0.18405, 0.76687))]
)
def test_the_minimiser_moves_to_the_data_by_one_over_beta(beta, expected):
    """p_{t+1} is proportional to p_t (p_data / p_t)^(1/beta) (SPIN, theorem 5.4)."""
    opponent = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    data = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)

    def objective():
        lp, ref = logits.log_softmax(-1), opponent.log()
        reward = implicit_reward(lp, ref, beta)
        weights = data[:, None] * opponent[None]
        return (weights * pair_loss(reward[:, None] - reward[None])).sum()

    optimizer = torch.optim.LBFGS(
        [logits], max_iter=200, tolerance_grad=1e-14, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = objective()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert logits.softmax(-1).tolist() == pytest.approx(expected, abs=1e-5)
    if beta == 1.0:
        assert objective().item() == pytest.approx(0.56863097, abs=1e-8)  # ln 2 minus the Jensen-Shannon divergence


def test_log_probabilities_and_losses_of_the_authors_codes(golden, tmp_path):
    """The triples that the SPIN and IRFT codes and TRL were run on: sums of both sides, losses at two betas. One pair
    is held to TRL alone: both codes hide an EOS inside the prompt from attention."""
    needs_irft()
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hf_select.training.reward_learning.irft_config import IRFTConfig
    from hf_select.training.reward_learning.irft_trainer import IRFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(golden / "model")
    model = AutoModelForCausalLM.from_pretrained(golden / "model")
    policy = PeftModel.from_pretrained(model, golden / "less" / "checkpoint-20", is_trainable=True)
    args = IRFTConfig(
        str(tmp_path), num_stages=1, activation_checkpointing=False, use_cpu=True, bf16=False, report_to="none"
    )
    rows = Dataset.from_list([{"prompt": "a", "completion": "b"}] * 2)
    trainer = IRFTTrainer(policy, args=args, train_dataset=rows, processing_class=tokenizer)
    pairs = [json.loads(line) for line in (golden / "pairs" / "pairs.jsonl").read_text().splitlines()]
    ids = [
        {"prompt_ids": p["prompt_ids"], "chosen_ids": p["demonstration_ids"], "rejected_ids": p["generated_ids"]}
        for p in pairs
    ]
    batches = [range(i, i + 4) for i in range(0, 12, 4)]
    found = {"policy": [], "reference": []}
    with torch.no_grad():
        for batch in batches:
            inputs = trainer.data_collator([ids[i] for i in batch])
            found["policy"] += zip(
                *trainer._completion_log_probs(trainer._outputs(policy.eval(), inputs).log_probs, inputs), strict=True
            )
            with policy.disable_adapter():
                sums = trainer._completion_log_probs(trainer._outputs(policy, inputs).log_probs, inputs)
            found["reference"] += zip(*sums, strict=True)
    references = json.loads((golden / "pairs" / "reference_losses.json").read_text())
    references["trl"] = json.loads((golden / "pairs" / "trl_dpo.json").read_text())
    for who in ("spin", "irft", "trl"):
        for i, pair in enumerate(pairs):
            if who != "trl" and any(pair["attention_zero_positions"].values()):
                continue
            expected = references[who]["pairs"][pair["pair_id"]]
            lps, refs = found["policy"][i], found["reference"][i]
            assert [x.item() for x in lps] == pytest.approx(expected["policy_logp"], abs=1e-3)
            assert [x.item() for x in refs] == pytest.approx(expected["reference_logp"], abs=1e-3)
            for beta, limit in ((0.1, 1e-4), (5.0, 5e-3)):
                _, margin = margins(lps, refs, beta)
                assert pair_loss(margin).item() == pytest.approx(expected[f"loss_sigmoid_beta_{beta}"], abs=limit)
                if who != "trl":
                    hinge = pair_loss(margin, "hinge").item()
                    assert hinge == pytest.approx(expected[f"loss_hinge_beta_{beta}"], abs=limit)


# --------------------------------------------------------------------------------------------------------------------
# what log-probabilities rest on


def tiny(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = {
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, intermediate_size=64)),
        "gpt_neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**sizes, intermediate_size=64)),
        "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4)),
    }[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model.double().eval()


def log_probability(model, rows, side="right", mask=True, positions=True) -> torch.Tensor:
    """Sum of the log-probabilities of each row's tokens behind its third, (B,) fp64, rows padded on a side."""
    width = max(map(len, rows))
    ids, there = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for b, row in enumerate(rows):
        at = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[b, at], there[b, at] = torch.tensor(row), 1
    given = {"attention_mask": there} if mask else {}
    if positions:
        given["position_ids"] = (there.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        logp = model(input_ids=ids, use_cache=False, **given).logits.log_softmax(-1)
    each = logp[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    begin = there.cumsum(1)[:, 1:] > 3
    return (each * (there[:, 1:].bool() & begin)).sum(1)


ROWS = [[5, 9, 11, 7, 3, 8], [4, 6, 2, 9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gpt2"])
def test_padding_on_either_side_changes_nothing_and_without_its_mask_everything(name):
    """A11: the mask is needed by all three, position ids by learned positions."""
    model = tiny(name)
    alone = torch.cat([log_probability(model, [row]) for row in ROWS])
    for side in ("right", "left"):
        torch.testing.assert_close(log_probability(model, ROWS, side), alone, rtol=0, atol=1e-10)
    # Without positions: from those, transformers 5.23 would tell the padding apart by itself.
    unmasked = log_probability(model, ROWS, "left", mask=False, positions=False)
    assert (unmasked - alone)[:2].abs().min() > 1e-3 and (unmasked - alone)[2].abs() < 1e-10
    unplaced = (log_probability(model, ROWS, "left", positions=False) - alone)[:2].abs()
    # Rotations are computed in fp32 whatever the model's type, so other places round otherwise.
    assert unplaced.min() > 1e-3 if name == "gpt2" else unplaced.max() < 1e-4


def test_an_adapter_begins_as_the_base_is_off_when_it_is_off_and_merges_into_what_it_was():
    """A12, which the reference of an adapter rests on."""
    from peft import LoraConfig, get_peft_model

    base = tiny("llama")
    before = log_probability(base, ROWS)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"])).double().eval()
    assert torch.equal(log_probability(model, ROWS), before)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.normal_(std=0.3)
    on = log_probability(model, ROWS)
    assert (on - before).abs().min() > 1e-3
    with model.disable_adapter():
        assert torch.equal(log_probability(model, ROWS), before)
    merged = model.merge_and_unload()
    torch.testing.assert_close(log_probability(merged, ROWS), on, rtol=0, atol=1e-10)
