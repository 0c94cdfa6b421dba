"""DemonstrationReward: its losses, what it reads, how it learns, and what it saves: an ordinary reward model."""

import copy
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from selection_training import NO_CHECKPOINTING
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer, RLOOConfig, RLOOTrainer

from hf_select import DemonstrationReward, Reward, demo
from hf_select.data.conversation import Conversation
from hf_select.models.reward_model import whole_rows
from hf_select.training.reward_learning.losses import pair_loss


def talk(question: str, answer: str) -> Conversation:
    return Conversation([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])


ROWS = [talk(f"Name {n} fruits.", "Figs, plums and pears. " * (1 + n % 3)) for n in range(12)]
OTHER = [talk(f"Name {n} fruits.", "No idea, ask again " * (1 + n % 3)) for n in range(12)]


@pytest.fixture
def reward(model_path):
    def make(**settings):
        settings = {"learning_rate": 1e-2, "batch_size": 6, "micro_batch_size": 2, **settings}
        return DemonstrationReward(model_path, **settings)

    return make


def fitted(made: DemonstrationReward, steps: int = 10, **options) -> dict[str, float]:
    return made.fit(made.encode(ROWS), made.encode(OTHER), steps, **options)


# The losses, on tables whose answers are known (maximum-likelihood inverse reinforcement learning).


def test_the_linear_loss_is_the_gradient_of_the_demonstrations_likelihood():
    """With pi proportional to ref exp(r / beta): d/dr E_data[log pi] = (p_data - pi) / beta; the expected gradient of
    the linear loss over demonstrations and answers of pi is -(p_data - pi), so beta times that ascent's direction."""
    torch.manual_seed(0)
    ref, data = torch.rand(7, dtype=torch.float64).softmax(0), torch.rand(7, dtype=torch.float64).softmax(0)
    r, beta = torch.randn(7, dtype=torch.float64, requires_grad=True), 0.3
    log_pi = (ref.log() + r / beta).log_softmax(0)
    (likelihood,) = torch.autograd.grad((data * log_pi).sum(), r)
    pi = log_pi.detach().exp()
    torch.testing.assert_close(likelihood, (data - pi) / beta, rtol=1e-12, atol=1e-14)
    weights = data[:, None] * pi[None]
    (linear,) = torch.autograd.grad((weights * pair_loss(r[:, None] - r[None], "linear")).sum(), r)
    torch.testing.assert_close(-linear / beta, likelihood, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("ratio, share", [(1.0, 0.5761), (2.0, 0.7870), (5.0, 0.9867)])
def test_three_actions_and_data_on_one(ratio, share):
    """SFT ends at 1 for the first action; a reward within [0, R] and KL keep e^(R/beta) / (e^(R/beta) + 2). Rewards
    bounded as ours, in (-R/2, R/2), trained by the linear loss in turn with exact alignment, come to the same."""
    beta, bound = 1.0, ratio / 2
    s = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([s], lr=0.3)
    for _ in range(3000):
        r = bound * torch.tanh(s / bound)
        pi = (r.detach() / beta).softmax(0)  # a uniform reference
        optimizer.zero_grad()
        (pi * pair_loss(r[0] - r, "linear")).sum().backward()
        optimizer.step()
    assert pi[0].item() == pytest.approx(share, abs=2e-4)
    assert math.exp(ratio) / (math.exp(ratio) + 2) == pytest.approx(share, abs=5e-5)


# What is read.


def test_the_reward_is_the_fp32_head_at_the_last_real_token_alone_and_in_a_batch(reward):
    made = reward()
    # Seeded: the rounding of fp32 exceeds 1e-5 with some heads.
    torch.nn.init.normal_(made.model.score.weight, generator=torch.Generator().manual_seed(1))
    ids = made.encode([*ROWS, *OTHER])
    together = made.rewards(ids)
    assert together == pytest.approx([made.rewards([row])[0] for row in ids], abs=1e-5)
    hidden = made.model.model(torch.tensor(np.array([ids[3]], dtype=np.int64))).last_hidden_state[0, -1]
    assert together[3] == pytest.approx((made.model.score.weight.float() @ hidden.float()).item(), abs=1e-5)
    half = reward(dtype="bfloat16")
    assert half.model.score.weight.dtype == torch.float32 and half.model.model.dtype == torch.bfloat16
    assert half._read(ids[:2]).dtype == torch.float32


def test_an_answer_that_was_cut_ends_before_what_would_close_it(tokenizer):
    (whole,), (cut,) = whole_rows(ROWS[:1], tokenizer), whole_rows(ROWS[:1], tokenizer, [False])
    assert tokenizer.decode(whole).startswith(tokenizer.decode(cut))
    assert tokenizer.decode(whole[len(cut) :]) == "<|im_end|>\n"
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    (whole,), (cut,) = whole_rows(ROWS[:1], plain), whole_rows(ROWS[:1], plain, [False])
    assert whole == [*cut, plain.eos_token_id]


@pytest.mark.parametrize("pad", ["<|pad|>", "<|end|>", None])
def test_the_saved_model_reads_the_same_token_whatever_pads(pad, model_path, tmp_path):
    """transformers reads the rightmost token that is not padding."""
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    tokenizer.pad_token = pad
    made = DemonstrationReward(model_path, tokenizer, learning_rate=1e-2)
    fitted(made, 3)
    made.save_pretrained(tmp_path / "r")
    rows = [{"messages": row.messages} for row in ROWS]
    scores = Reward(str(tmp_path / "r"))({"messages": [row["messages"] for row in rows]})["score_reward"]
    assert np.std(scores) > 1e-4
    assert scores == pytest.approx(made.rewards(made.encode(ROWS)).tolist(), abs=1e-5)


def test_a_bound_holds_and_keeps_the_order(reward):
    free, bounded = reward(loss="logistic"), reward(loss="linear", bound=0.5)
    fitted(bounded, 12)
    values = bounded.rewards(bounded.encode([*ROWS, *OTHER]))
    assert np.abs(values).max() <= 0.5 and values[:12].min() > 0.4 > -0.4 > values[12:].max()
    free.model.load_state_dict(bounded.model.state_dict())
    assert np.array_equal(np.argsort(free.rewards(free.encode(ROWS))), np.argsort(values[:12]))


# How it learns.


def test_it_begins_indifferent_and_the_gap_on_pairs_it_has_not_seen_grows(reward):
    made = reward()
    first = fitted(made, 1)
    assert first == {"loss": pytest.approx(math.log(2)), "gap": 0.0, "accuracy": 0.0}
    held_out = made.encode([talk("Name a bird.", "Owls, figs and pears.")]), made.encode([talk("Name a bird.", "No")])

    def gap() -> float:
        return (made.rewards(held_out[0]) - made.rewards(held_out[1])).item()

    gaps = [gap()]
    for _ in range(3):
        fitted(made, 8)
        gaps.append(gap())
    assert gaps == sorted(gaps) and gaps[-1] > 1


def test_a_step_is_that_of_the_mean_over_its_pairs_however_they_are_taken(reward):
    whole, parts = reward(micro_batch_size=6), reward(micro_batch_size=1)
    told = [fitted(made, 4) for made in (whole, parts)]
    assert told[0] == pytest.approx(told[1], abs=1e-4)
    for p, q in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


def test_activation_checkpointing_changes_nothing(reward):
    told = [fitted(reward(checkpointing=on), 3) for on in (False, True)]
    assert told[0] == pytest.approx(told[1], abs=1e-5)


class Killed(RuntimeError):
    pass


def test_a_fit_that_was_killed_goes_on_as_if_it_had_not_been(reward, tmp_path):
    straight, broken, again = reward(), reward(), reward()
    whole = fitted(straight, 9, fresh=True)
    step, seen = broken._adamw(), []
    take = step.step

    def until_the_fifth(*args, **kwargs):
        seen.append(1)
        if len(seen) == 6:
            raise Killed
        return take(*args, **kwargs)

    step.step = until_the_fifth
    with pytest.raises(Killed):
        fitted(broken, 9, folder=tmp_path / "state", save_steps=2)
    assert fitted(again, 9, folder=tmp_path / "state", save_steps=2, fresh=True) == pytest.approx(whole, abs=1e-9)
    assert again._steps == straight._steps == 9
    for p, q in zip(straight.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_an_adapter_trains_and_is_saved_as_an_ordinary_model(reward, model_path, tmp_path):
    made = reward(lora={"r": 4, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.1})
    before = AutoModelForCausalLM.from_pretrained(model_path).state_dict()
    fitted(made, 20)
    for name, value in made.model.get_base_model().state_dict().items():
        if name.replace(".base_layer", "") in before:
            assert torch.equal(value, before[name.replace(".base_layer", "")])
    made.save_pretrained(tmp_path / "r")
    ordinary = AutoModelForSequenceClassification.from_pretrained(tmp_path / "r")
    assert ordinary.config.num_labels == 1
    ids = made.encode(ROWS)
    plain = [ordinary(torch.tensor(np.array([row], dtype=np.int64))).logits.item() for row in ids]
    assert made.rewards(ids) == pytest.approx(plain, abs=1e-4)
    assert np.std(plain) > 0
    on = DemonstrationReward(str(tmp_path / "r"))  # and it can be learned on from
    assert on.rewards(on.encode(ROWS)) == pytest.approx(plain, abs=1e-4)


def test_the_saved_model_goes_through_trls_reward_trainer_and_rloo(reward, model_path, tmp_path):
    made = reward()
    fitted(made, 5)
    made.save_pretrained(tmp_path / "r")
    quiet = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    quiet |= NO_CHECKPOINTING
    pairs = [{"prompt": [a.messages[0]], "chosen": [a.messages[1]], "rejected": [b.messages[1]]}
             for a, b in zip(ROWS, OTHER, strict=True)]  # fmt: skip
    args = RewardConfig(str(tmp_path / "on"), max_steps=1, logging_steps=1, **quiet)
    trainer = RewardTrainer(str(tmp_path / "r"), args=args, train_dataset=Dataset.from_list(pairs))
    trainer.train()
    assert trainer.state.log_history[0]["accuracy"] == 1.0, "it tells them apart before its first step"
    prompts = Dataset.from_list([{"prompt": [row.messages[0]]} for row in ROWS])
    args = RLOOConfig(str(tmp_path / "rloo"), max_steps=1, per_device_train_batch_size=4, max_completion_length=8,
                      **quiet)  # fmt: skip
    RLOOTrainer(model_path, reward_funcs=str(tmp_path / "r"), args=args, train_dataset=prompts).train()


# In a user's own script.


def online(kind, folder, model_path, made, callbacks=None, **settings):
    config, trainer = {"grpo": (GRPOConfig, GRPOTrainer), "rloo": (RLOOConfig, RLOOTrainer)}[kind]
    base = {
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 12,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "beta": 0.1,
        "max_steps": 4,
        "save_strategy": "no",
        **NO_CHECKPOINTING,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    rows = [{"prompt": [row.messages[0]], "demonstration": row.messages[1]["content"]} for row in ROWS]
    return trainer(
        model_path,
        reward_funcs=[made],
        callbacks=[made] if callbacks is None else callbacks,
        args=config(str(folder), **{**base, **settings}),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[:2]),
    )


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_it_learns_within_trls_online_trainers(kind, reward, tmp_path, model_path):
    made = reward(steps_per_call=3)
    trainer = online(kind, tmp_path, model_path, made)
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "demonstration_reward/gap" in entry]
    assert len(history) == 4 and history[0]["demonstration_reward/gap"] < history[-1]["demonstration_reward/gap"]
    assert "rewards/demonstration_reward/mean" in history[0] and "kl" in history[0]
    assert made._steps == 12
    before = [p.clone() for p in made.model.parameters()]
    trainer.evaluate()
    assert all(torch.equal(p, q) for p, q in zip(before, made.model.parameters(), strict=True)), "evaluation taught it"


def test_it_comes_back_with_a_checkpoint(reward, tmp_path, model_path):
    one = reward()
    online("rloo", tmp_path, model_path, one, save_strategy="steps", save_steps=2).train()
    two = reward()
    trainer = online("rloo", tmp_path, model_path, two, save_strategy="steps", save_steps=2)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert two._steps == 4 and (two.mean, two.deviation) == pytest.approx((one.mean, one.deviation), abs=1e-6)
    for p, q in zip(one.model.parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)
    other = reward(lora={"r": 2, "target_modules": ["q_proj"]})
    trainer = online("rloo", tmp_path, model_path, other)
    with pytest.raises(ValueError, match="state of another reward model"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_another_tokenizer_is_bridged_by_text(model_path, tmp_path):
    """A reward of another vocabulary: what both sides say is the same, and so is where they end."""
    tokenizer = demo.train_tokenizer(list(demo.rating_examples(50, seed=9)), vocab_size=300)
    other = demo.tiny_model(tokenizer, hidden_size=16, intermediate_size=32, num_hidden_layers=1)
    other.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    made = DemonstrationReward(str(tmp_path / "other"), learning_rate=1e-2, steps_per_call=2)
    trainer = online("rloo", tmp_path / "run", model_path, made)
    trainer.train()
    assert made._steps == 8
    row = made.encode([ROWS[0]])[0]
    assert "Figs, plums and pears." in tokenizer.decode(row.tolist())


# Bad input.


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"loss": "hinge"}, "logistic, linear"),
        ({"loss": "linear"}, "give it a bound"),
        ({"bound": 0.0}, "above 0"),
        ({"batch_size": 0}, "at least 1"),
        ({"column": "completion"}, "TRL does not pass a column called completion"),
    ],
)
def test_settings_that_cannot_be_say_so(settings, words, reward):
    with pytest.raises(ValueError, match=words):
        reward(**settings)


def test_what_is_no_reward_says_so(reward, tmp_path, model_path, tokenizer):
    with pytest.raises(ValueError, match="must be given to the trainer as a callback too"):
        online("rloo", tmp_path, model_path, reward(), callbacks=[]).train()
    with pytest.raises(ValueError, match='no column "answer" of demonstrations'):
        online("rloo", tmp_path, model_path, reward(column="answer")).train()
    with pytest.raises(ValueError, match="needs its tokenizer"):
        DemonstrationReward(AutoModelForSequenceClassification.from_pretrained(model_path, num_labels=1))
    two = AutoModelForSequenceClassification.from_pretrained(model_path, num_labels=2)
    with pytest.raises(ValueError, match="no head `score` with one output"):
        DemonstrationReward(two, tokenizer)
    with pytest.raises(ValueError, match='is not a reward model: its files lack .*"?score.weight'):
        Reward(model_path).load()
    two.save_pretrained(tmp_path / "two")
    tokenizer.save_pretrained(tmp_path / "two")
    with pytest.raises(ValueError, match="it has 2 labels, not one"):
        Reward(str(tmp_path / "two")).load()


def test_rows_without_a_reward_say_why(reward, tmp_path):
    made = reward()
    made.save_pretrained(tmp_path / "r")
    rows = [{"prompt": "Hi", "completion": ""}, {"prompt": "Hi " * 400, "completion": "Ho"}]
    found = Reward(str(tmp_path / "r"), max_length=100)({k: [row[k] for row in rows] for k in rows[0]})
    assert found["score_reward"] == [None, None]
    assert "empty response" in found["reward_reason"][0] and "longer than 100 tokens" in found["reward_reason"][1]


def test_the_private_name_is_what_it_was():
    from transformers.integrations import deepspeed

    assert hasattr(deepspeed, "_hf_deepspeed_config_weak_ref")
