"""RFTTrainer: rounds of answers, reward and alignment, on a random model of two layers."""

import inspect
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from releases import ends_answers_at_several_tokens, needs_rft
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import RLOOTrainer

from hf_select import DemonstrationReward, RFTConfig, RFTTrainer
from hf_select.training.reward_learning.demonstrations import PROMPT
from hf_select.training.reward_learning.staged_training import StagedTrainingMixin


def config(folder, **settings) -> RFTConfig:
    base = {
        "num_stages": 2,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-3,
        "reward_learning_rate": 1e-2,
        "reward_batch_size": 4,
        "reward_epochs": 2,
        "max_length": 160,
        "max_completion_length": 48,
        "logging_steps": 1,
        "save_strategy": "no",
        "activation_checkpointing": False,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "num_completions_to_log": 0,
        "rows_per_shard": 5,
    }
    return RFTConfig(str(folder), **{**base, **settings})


def one_end(model_path: str) -> dict:
    """A tokenizer whose EOS token is the end of the template's turns."""
    return {"processing_class": AutoTokenizer.from_pretrained(model_path, eos_token="<|im_end|>")}


@pytest.fixture
def rft(tmp_path, model_path, sixteen):
    needs_rft()

    def make(folder="run", model=model_path, rows=sixteen, trained=True, trainer=None, **settings):
        trainer = {**({} if ends_answers_at_several_tokens() else one_end(model_path)), **(trainer or {})}
        built = RFTTrainer(model, args=config(tmp_path / folder, **settings), train_dataset=rows, **trainer)
        if trained:
            built.train()
        return built

    return make


def logged_values(trainer, name: str) -> list:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


class Watch(TrainerCallback):
    """Weights at every step, of the policy, its reference and the reward."""

    def __init__(self):
        self.trainer, self.seen = None, {"policy": [], "reference": [], "reward": []}

    def on_step_begin(self, args, state, control, **kwargs):
        models = {
            "policy": self.trainer.model,
            "reference": self.trainer.ref_model,
            "reward": self.trainer.reward.model,
        }
        for name, model in models.items():
            self.seen[name].append(torch.cat([p.detach().flatten() for p in model.parameters()]))

    on_epoch_end = on_step_begin


def test_two_rounds_freeze_the_reward_and_widen_the_gap(rft, sixteen, tmp_path, model_path):
    watch = Watch()
    held_out = Dataset.from_list([sixteen[i] for i in range(4)])
    trainer = rft(trained=False, rows=sixteen.select(range(4, 16)), data_per_stage="full",
                  trainer={"callbacks": [watch], "eval_dataset": held_out})  # fmt: skip
    watch.trainer = trainer
    trainer.train()
    # 12 prompts in each of two rounds, two to an update of four answers
    assert trainer.state.global_step == 12
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == list(range(1, 13))
    policy, reference, reward = (watch.seen[name] for name in ("policy", "reference", "reward"))
    assert all(torch.equal(weights, reference[0]) for weights in reference), "the reference moved"
    start = AutoModelForCausalLM.from_pretrained(model_path)
    assert torch.equal(reference[0], torch.cat([p.flatten() for p in start.parameters()]))
    assert all(torch.equal(weights, reward[0]) for weights in reward[:7]), "the reward moved in the policy's steps"
    assert all(torch.equal(weights, reward[7]) for weights in reward[7:]) and not torch.equal(reward[0], reward[7])
    assert all(p.grad is None for p in trainer.reward.model.parameters())
    assert torch.equal(policy[6], policy[7]) and not torch.equal(policy[0], policy[6]), "the policy goes on"
    gaps = logged_values(trainer, "stage/held_out_gap")
    assert 0 < gaps[0] < gaps[1] and logged_values(trainer, "stage/reward_gap_after")[1] > 0
    assert len(logged_values(trainer, "stage/kl")) == 2 and len(logged_values(trainer, "kl")) == 12
    assert logged_values(trainer, "kl")[0] == pytest.approx(0, abs=1e-6) and logged_values(trainer, "stage/kl")[1] > 0
    # What is left is an ordinary reward model.
    ordinary = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "reward")
    assert ordinary.config.num_labels == 1 and not list((tmp_path / "run").rglob("optimizer.pt"))


def test_the_policy_climbs_the_reward_it_is_given(rft, model_path):
    """A reward that likes short answers, and nothing else: the policy learns to be short, and says how far it went."""

    class Short(DemonstrationReward):
        def rewards(self, sequences):
            return -np.array([len(ids) for ids in sequences], dtype=np.float64)

    trainer = rft(num_stages=1, num_train_epochs=5, learning_rate=5e-3, num_generations=4, beta=0.01,
                  per_device_train_batch_size=16, trainer={"reward": Short(model_path, steps_per_call=0)})  # fmt: skip
    lengths, kl = logged_values(trainer, "completions/mean_length"), logged_values(trainer, "kl")
    assert np.mean(lengths[-3:]) < 0.6 * np.mean(lengths[:3])
    assert kl[0] == pytest.approx(0, abs=1e-6) and np.mean(kl[-3:]) > 0.1


def test_rewards_are_normalised_once_a_round(rft):
    trainer = rft(num_stages=1)
    built = trainer.reward
    demonstrations, answers = [], []
    fit = logged_values(trainer, "stage/reward_deviation")
    assert fit == [built.deviation] and built.deviation > 0
    from hf_select.training.reward_learning.staged_training import with_answers

    folder = trainer._stage_folder("stage-00", trainer._demonstrations, trainer._stop_ids, model=None)
    demonstrations, answers = trainer._sides(with_answers(trainer._demonstrations, folder))
    values = built.normalised(built.rewards([*demonstrations, *answers]))
    assert (values.mean(), values.std()) == pytest.approx((0, 1), abs=1e-5)


def test_the_policy_draws_for_the_ids_that_the_stage_was_answered_for(rft, sixteen):
    trainer = rft(trained=False)
    rows = trainer._demonstrations
    assert trainer._tokenize_prompts(list(rows["prompt"]))[0] == list(rows[PROMPT])
    assert trainer.generation_config.eos_token_id == trainer._stop_ids == trainer.eos_token_ids
    assert 4 in trainer._stop_ids, "the template's end of a turn ends an answer"


def test_adapters_of_both_and_a_checkpoint_with_a_card_after_a_stage(rft, model_path, tmp_path):
    from peft import LoraConfig

    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = rft(trainer={"peft_config": lora}, reward_lora={"r": 4, "target_modules": ["q_proj"]},
                  save_strategy="steps", save_steps=100)  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-8"]
    assert "2405.17888" in (tmp_path / "run" / "README.md").read_text()
    assert trainer.ref_model is None and trainer.state.global_step == 8
    before = AutoModelForCausalLM.from_pretrained(model_path).state_dict()
    for name, value in trainer.model.get_base_model().state_dict().items():
        if name.replace(".base_layer", "") in before:
            assert torch.equal(value, before[name.replace(".base_layer", "")])
    assert logged_values(trainer, "kl")[-1] != 0


def test_linear_rewards_stay_within_their_bound(rft):
    trainer = rft(reward_loss="linear", reward_bound=1.0)
    assert max(logged_values(trainer, "stage/reward_gap_after")) <= 2.0


def test_it_evaluates_prompts_under_the_frozen_reward(rft, sixteen):
    trainer = rft(trainer={"eval_dataset": sixteen.select(range(4))}, eval_strategy="epoch")
    assert len(logged_values(trainer, "eval_reward")) == 2 and len(logged_values(trainer, "eval_kl")) == 2


def test_evaluation_on_start_waits_for_the_first_reward(rft, sixteen):
    trainer = rft(trainer={"eval_dataset": sixteen.select(range(4))}, eval_on_start=True)
    entries = [entry for entry in trainer.state.log_history if "eval_reward" in entry]
    assert len(entries) == 1 and entries[0]["step"] == 0
    first = next(i for i, entry in enumerate(trainer.state.log_history) if "stage/reward_gap_after" in entry)
    assert trainer.state.log_history.index(entries[0]) > first


def test_identical_answers_end_training(rft, monkeypatch, caplog):
    from hf_select.training.reward_learning import staged_training
    from hf_select.training.reward_learning.demonstrations import CHOSEN

    def parrot(trainer, folder, demonstrations, *_, **__):
        for shard in range(folder.num_shards):
            ids = [demonstrations[i][CHOSEN] for i in folder.rows_of(shard)]
            folder.write(shard, ids, [True] * len(ids))
        return {}

    monkeypatch.setattr(staged_training, "answer_all", parrot)
    with caplog.at_level(logging.WARNING):
        assert rft(num_stages=1).state.global_step == 0


def test_a_resumed_run_equals_an_uninterrupted_one(rft, tmp_path, model_path):
    """From the middle of the second stage, from its beginning, and from the second pass of the first."""
    settings = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 1}
    whole = rft("whole", **settings)
    losses = {entry["step"]: (entry["reward"], entry["kl"], entry["grad_norm"]) for entry in whole.state.log_history
              if "loss" in entry}  # fmt: skip
    assert len(losses) == 16
    for step in (5, 8, 9):
        trainer = rft("whole", trained=False, **settings)
        trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        found = {entry["step"]: (entry["reward"], entry["kl"], entry["grad_norm"]) for entry in
                 trainer.state.log_history if "loss" in entry}  # fmt: skip
        for later in range(step + 1, 17):
            assert found[later] == pytest.approx(losses[later], rel=1e-4, abs=1e-5), f"step {later} from {step}"


# Bad input.


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"beta": 0.0}, "beta must be above 0"),
        ({"temperature": 0.0}, "no advantage"),
        ({"sync_ref_model": True}, "sync_ref_model is a setting of RLOO that RFT does not have"),
        ({"repetition_penalty": 1.2}, "repetition_penalty is a setting of RLOO"),
        ({"reward_loss": "linear"}, "set reward_bound"),
        ({"reward_steps": 0}, "at least 1"),
        ({"num_train_epochs": 0.5}, "whole passes"),
        ({"stage_learning_rates": [1e-3]}, "1 values for 2 stages"),
        ({"max_completion_length": 160}, "leaves no room"),
    ],
)
def test_settings_that_cannot_be_say_so(settings, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        config(tmp_path, **settings)


def test_what_cannot_work_is_refused(rft, sixteen, tmp_path, model_path):
    with pytest.raises(ValueError, match="num_stages is 17, and there are 16 demonstrations"):
        rft(trained=False, num_stages=17)
    with pytest.raises(ValueError, match="a stage has 8 rows, and the policy answers 16 prompts together"):
        rft(trained=False, per_device_train_batch_size=32)
    with pytest.raises(ValueError, match="train_dataset is a IterableDataset"):
        rft(trained=False, rows=sixteen.to_iterable_dataset())
    from_nowhere = AutoModelForCausalLM.from_pretrained(model_path)
    from_nowhere.config._name_or_path = ""
    with pytest.raises(ValueError, match="loaded from nowhere"):
        rft(trained=False, model=from_nowhere)
    rft("one", num_stages=1)
    with pytest.raises(ValueError, match="holds answers of another run .*reward_loss"):
        rft("one", num_stages=1, reward_loss="linear", reward_bound=1.0)


def test_vllm_is_asked_through_trls_own_class(rft, monkeypatch):
    from trl.trainer import rloo_trainer

    calls = []

    class Fake:  # takes what TRL's VLLMGeneration takes
        def __init__(self, **settings):
            calls.append(("made", settings["mode"], settings["generation_kwargs"]))

        def sync_weights(self):
            calls.append("sync")

        def generate(self, prompts, images, num_generations, profiler=None):
            calls.append((len(prompts), num_generations))
            return prompts, [[9 + i, 4] for i in range(len(prompts))], None, None

    monkeypatch.setattr(rloo_trainer, "VLLMGeneration", Fake, raising=False)
    rft(use_vllm=True, vllm_mode="server", num_stages=1, max_steps=2)
    assert calls[0] == ("made", "server", {"stop_token_ids": [4]})
    assert calls[1:] == ["sync", (5, 1), (5, 1), (5, 1), (1, 1), "sync", (4, 2), "sync", (4, 2)]


def test_the_private_names_are_what_they_were():
    assert list(inspect.signature(RLOOTrainer._tokenize_prompts).parameters) == ["self", "prompts"]
    assert list(inspect.signature(RLOOTrainer._generate_and_score_completions).parameters) == ["self", "inputs"]
    assert issubclass(RFTTrainer, StagedTrainingMixin)


def test_an_end_that_trl_does_not_know_is_refused(tokenizer):
    """trl 1.14 has no eos_token_ids: it would train on what follows the end of a turn."""
    message = r"only at the tokenizer's EOS token <\|end\|>, and .* with <\|im_end\|>; pip install \"trl>=1.15\""
    with pytest.raises(ValueError, match=message):
        RFTTrainer._usable_stop_ids(SimpleNamespace(_tokenizer=tokenizer))
