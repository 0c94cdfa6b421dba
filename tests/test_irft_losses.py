"""The losses and log-probabilities of IRFT and SPIN: hand-worked values, limits, agreement with autograd and with TRL.

Numbers of the tables were worked out apart from this code, from the formulas alone.
"""

import json
import math

import pytest
import torch

from hf_select.training.losses import implicit_reward, pair_loss


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
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hf_select.training.irft_config import IRFTConfig
    from hf_select.training.irft_trainer import IRFTTrainer

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
                *trainer._sums(trainer._outputs(policy.eval(), inputs).log_probs, inputs), strict=True
            )
            with policy.disable_adapter():
                sums = trainer._sums(trainer._outputs(policy, inputs).log_probs, inputs)
            found["reference"] += zip(*sums, strict=True)
    said = json.loads((golden / "pairs" / "reference_losses.json").read_text())
    said["trl"] = json.loads((golden / "pairs" / "trl_dpo.json").read_text())
    for who in ("spin", "irft", "trl"):
        for i, pair in enumerate(pairs):
            if who != "trl" and any(pair["attention_zero_positions"].values()):
                continue
            expected = said[who]["pairs"][pair["pair_id"]]
            lps, refs = found["policy"][i], found["reference"][i]
            assert [x.item() for x in lps] == pytest.approx(expected["policy_logp"], abs=1e-3)
            assert [x.item() for x in refs] == pytest.approx(expected["reference_logp"], abs=1e-3)
            for beta, limit in ((0.1, 1e-4), (5.0, 5e-3)):
                _, margin = margins(lps, refs, beta)
                assert pair_loss(margin).item() == pytest.approx(expected[f"loss_sigmoid_beta_{beta}"], abs=limit)
                if who != "trl":
                    hinge = pair_loss(margin, "hinge").item()
                    assert hinge == pytest.approx(expected[f"loss_hinge_beta_{beta}"], abs=limit)
