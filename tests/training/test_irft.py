"""IRFTTrainer: stages, references, answers and logs, on a random model of two layers."""

import inspect
import json
import logging
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from releases import needs_dpo
from selection_training import NO_CHECKPOINTING
from transformers import AutoModelForCausalLM, Trainer, get_scheduler
from trl import DPOConfig, DPOTrainer

from hf_select.data.encoding import response_end
from hf_select.models.generate import uniforms
from hf_select.models.sampling import Sampling
from hf_select.training import _compat
from hf_select.training.resuming import last_whole_checkpoint
from hf_select.training.reward_learning.demonstrations import (
    CHOSEN,
    PROMPT,
    REASON,
    REJECTED,
    encode_demonstrations,
    stream_seed,
)
from hf_select.training.reward_learning.irft_config import IRFTConfig
from hf_select.training.reward_learning.irft_trainer import IRFTTrainer
from hf_select.training.reward_learning.policy_answers import weights_digest
from hf_select.training.reward_learning.sampling import answers, answers_continuously
from hf_select.training.reward_learning.stage_report import length_auc


LN2 = math.log(2)


def config(folder, **settings) -> IRFTConfig:
    base = {
        "num_stages": 2,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-2,
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
    return IRFTConfig(str(folder), **{**base, **settings})


@pytest.fixture
def model(model_path):
    return AutoModelForCausalLM.from_pretrained(model_path)


@pytest.fixture
def irft(tmp_path, model, tokenizer, sixteen):
    def make(folder="run", model=model, rows=sixteen, trained=True, trainer=None, **settings):
        args = config(tmp_path / folder, **settings)
        built = IRFTTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer, **(trainer or {}))
        if trained:
            built.train()
        return built

    return make


def steps(trainer) -> list[dict]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def logged_values(trainer, name: str) -> list:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def stage(trainer, number: int) -> dict:
    """What is on disk of a stage."""
    from pathlib import Path

    folder = Path(trainer.args.output_dir) / "_stages" / f"stage-{number:02d}"
    parts = [pq.read_table(path).to_pydict() for path in sorted(folder.glob("generated/*.parquet"))]
    return {
        "manifest": json.loads((folder / "manifest.json").read_text()),
        "answers": [ids for part in parts for ids in part[REJECTED]],
        "ended": [ended for part in parts for ended in part["ended"]],
        "reference": pq.read_table(folder / "reference.parquet").to_pydict(),
    }


# Rows -> ids.


def encoded(tokenizer, rows, **limits):
    limits = {"max_length": 160, "max_completion_length": 48, **limits}
    batch = {name: [row[name] for row in rows] for name in rows[0]}
    return encode_demonstrations(batch, tokenizer, **limits)


def test_the_prompt_of_generation_begins_the_row_and_one_token_ends_it(tokenizer):
    found = encoded(tokenizer, [{"prompt": "Name three birds.", "completion": "Owl, rook, wren."}])
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Name three birds."}], add_generation_prompt=True, tokenize=False
    )
    assert tokenizer.decode(found[PROMPT][0]) == text
    assert tokenizer.decode(found[CHOSEN][0]) == "Owl, rook, wren.<|im_end|>", "the line break after it is no answer's"


@pytest.mark.parametrize("pad", ["<|pad|>", "<|end|>", "<|im_end|>"])
def test_a_pad_token_that_ends_responses_changes_nothing(pad, tokenizer, model, tmp_path, sixteen):
    import copy

    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = pad
    trainer = IRFTTrainer(model, args=config(tmp_path), train_dataset=sixteen, processing_class=tokenizer)
    row = {**trainer.train_dataset[0], REJECTED: [7, 4]}
    inputs = trainer.data_collator([row])
    end = response_end(tokenizer)
    labels = inputs["input_ids"][inputs["completion_mask"].bool()]
    assert (labels == end).sum() == 2, "one end for each side"
    assert inputs["attention_mask"].sum() == 2 * len(row[PROMPT]) + len(row[CHOSEN]) + 2


def test_a_system_turn_opens_the_prompt_where_the_template_knows_none(tokenizer):
    import copy

    tokenizer = copy.deepcopy(tokenizer)
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    tokenizer.chat_template = refuse + tokenizer.chat_template
    turns = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
    ]
    found = encode_demonstrations({"messages": [turns]}, tokenizer, 160, 48)
    assert found[REASON] == [""]
    assert "user\nBe short.\n\nHi<|im_end|>" in tokenizer.decode(found[PROMPT][0])


def test_a_default_system_turn_is_in_prompt_and_row_alike(tokenizer):
    import copy

    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ bos_token }}", "{{ bos_token }}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}"
    )
    found = encoded(tokenizer, [{"prompt": "Hi", "completion": "Ho"}])
    assert found[REASON] == [""] and "You help." in tokenizer.decode(found[PROMPT][0])


def test_without_a_template_a_response_ends_with_eos(tokenizer):
    import copy

    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = None
    found = encoded(tokenizer, [{"prompt": "Hi", "completion": "Ho"}])
    assert tokenizer.decode(found[CHOSEN][0]) == "Ho<|end|>"


def test_rows_that_cannot_be_used_say_why(tokenizer):
    long = "word " * 60
    rows = [
        {"prompt": "Hi", "completion": ""},
        {"prompt": "Hi", "completion": long},
        {"prompt": long * 3, "completion": "x"},
    ]
    reasons = encoded(tokenizer, rows)[REASON]
    for reason, word in zip(reasons, ("empty", "max_completion_length", "prompt alone"), strict=True):
        assert word in reason
    cut = encode_demonstrations({"messages": [[{"role": "user", "content": "Hi"}]]}, tokenizer, 160, 48)
    assert "does not end with a response" in cut[REASON][0]


def test_too_many_unusable_rows_stop_training(irft, sixteen, caplog):
    data = Dataset.from_list([{**row, "completion": "word " * 60} if i < 6 else row for i, row in enumerate(sixteen)])
    with pytest.raises(ValueError, match=r"6 of 16 rows of train .*\(37.5 %: 6 x .* max_left_out is 0.25; raise max_"):
        irft(trained=False, rows=data)
    trainer = irft(trained=False, rows=data, max_left_out=0.5)
    assert len(trainer.train_dataset) == 10 and "cannot be used (37.5 %: 6 x" in caplog.text
    with pytest.raises(ValueError, match="max_left_out is 2"):
        irft(trained=False, max_left_out=2)


def test_unusable_rows_are_counted_and_none_left_is_an_error(irft, rows, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = irft(trained=False, rows=Dataset.from_list(rows))
    assert len(trainer.train_dataset) < 40
    with pytest.raises(ValueError, match=r"2 of 2 rows of train cannot be used .* no demonstration is left"):
        irft(trained=False, rows=Dataset.from_list([{"prompt": "Hi", "completion": ""}] * 2))


# Answers.


def test_one_uniform_number_draws_from_the_distribution(model):
    """Two thousand answers of one token to one prompt: their shares are the model's probabilities."""
    prompt = [0, 3, 60, 61, 62]
    n = 2000
    found = answers(
        model.eval(),
        [prompt] * n,
        [stream_seed("draw", i) for i in range(n)],
        [1] * n,
        Sampling(max_new_tokens=1),
        [1],
        10**6,
    )
    with torch.no_grad():
        p = model(torch.tensor([prompt])).logits[0, -1].double().softmax(-1).numpy()
    counts = np.bincount([ids[0] for ids in found], minlength=len(p))
    often = p > 5 / n
    expected = np.append(n * p[often], n * p[~often].sum())
    seen = np.append(counts[often], counts[~often].sum())
    chi2 = float(((seen - expected) ** 2 / expected).sum())
    from scipy.stats import chi2 as law

    assert law.sf(chi2, len(expected) - 1) > 1e-4, (
        f"chi-square {chi2:.0f} on {len(expected) - 1}: another distribution"
    )


def test_an_answer_is_the_same_alone_in_any_batch_and_in_any_order(model):
    prompts = [[0, 3, *range(20, 20 + n)] for n in (3, 17, 5, 9, 30, 4)]
    seeds = [stream_seed(7, i) for i in range(6)]
    model.eval()

    def drawn(order, tokens):
        found = answers(
            model, [prompts[i] for i in order], [seeds[i] for i in order], [12] * len(order), Sampling(), [1], tokens
        )
        return dict(zip(order, found, strict=True))

    together, alone, turned = drawn(range(6), 10**6), drawn(range(6), 1), drawn([5, 3, 1, 0, 2, 4], 90)
    assert together == alone == turned


def test_answers_end_at_their_stop_token_and_at_their_limit(model):
    found = answers(
        model.eval(), [[0, 3, 9]] * 40, list(range(40)), [3, 20] * 20, Sampling(max_new_tokens=20), [50, 60], 10**6
    )
    assert all(len(ids) <= limit for ids, limit in zip(found, [3, 20] * 20, strict=True))
    assert all(not {50, 60} & set(ids[:-1]) for ids in found)


def test_the_checkpoints_own_generation_settings_play_no_part(model):
    import copy

    other = copy.deepcopy(model)
    other.generation_config.update(do_sample=True, top_k=1, repetition_penalty=5.0, max_length=7, bad_words_ids=[[60]])
    arguments = ([[0, 3, 9]] * 8, list(range(8)), [20] * 8, Sampling(max_new_tokens=20), [1], 10**6)
    assert answers(model.eval(), *arguments) == answers(other.eval(), *arguments)
    assert other.generation_config.top_k == 1, "they are the user's and stay"


def test_warpers_apply_before_the_draw(model):
    greedy = answers(model.eval(), [[0, 3, 9]], [0], [10], Sampling(temperature=0), [1], 10**6)
    for sampling in (Sampling(top_k=1), Sampling(top_p=1e-9), Sampling(temperature=1e-4)):
        assert answers(model, [[0, 3, 9]], [0], [10], sampling, [1], 10**6) == greedy


def test_continuous_batching_gives_the_same_likeliest_answers(model):
    prompts = [[0, 3, *range(20, 20 + n)] for n in (3, 17, 5)]
    small = {"num_blocks": 16, "max_batch_tokens": 64}
    one = answers(model.eval(), prompts, [0] * 3, [10] * 3, Sampling(temperature=0, max_new_tokens=10), [1], 10**6)
    other = answers_continuously(model, prompts, 0, [10] * 3, Sampling(temperature=0, max_new_tokens=10), [1], small)
    assert one == other


def test_streams_are_their_own():
    assert uniforms([5, 6], 3)[0].tolist() == uniforms([5], 9)[0, :3].tolist()
    assert len({stream_seed(0, "stage-00", i) for i in range(1000)} | {stream_seed(0, "stage-01", 0)}) == 1001


# Stages.


def test_one_stage_is_the_same_by_slices_and_in_full(irft, model_path):
    one = irft("slice", num_stages=1, data_per_stage="slice")
    model = AutoModelForCausalLM.from_pretrained(model_path)
    other = irft("full", model=model, num_stages=1, data_per_stage="full")
    assert [entry["loss"] for entry in steps(one)] == [entry["loss"] for entry in steps(other)]


def test_every_stage_begins_at_ln_2_with_pairs_of_its_own_policy(irft, tmp_path, model_path):
    trainer = irft(save_strategy="steps", save_steps=100)
    losses = [entry["loss"] for entry in steps(trainer)]
    assert len(losses) == 4
    assert losses[0] == pytest.approx(LN2, abs=1e-5) and losses[2] == pytest.approx(LN2, abs=1e-5)
    assert min(losses[1], losses[3]) < 0.68
    first, second = stage(trainer, 0), stage(trainer, 1)
    assert first["manifest"]["model"] != second["manifest"]["model"]
    # The answers of the second stage are those of the weights that the first one ended with: its own checkpoint.
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-2").eval()
    rows = trainer._demonstrations.select(range(8, 16))
    limits = [min(48, 160 - len(ids)) for ids in rows[PROMPT]]
    seeds = [stream_seed(trainer.args.seed, "stage-01", row) for row in rows["row_id"]]
    assert (
        answers(again, list(rows[PROMPT]), seeds, limits, Sampling(max_new_tokens=48), [4, 1], 10**6)
        == second["answers"]
    )
    trainer.model = again
    assert weights_digest(trainer) == second["manifest"]["model"]
    start = AutoModelForCausalLM.from_pretrained(model_path).eval()
    other = answers(start, list(rows[PROMPT]), seeds, limits, Sampling(max_new_tokens=48), [4, 1], 10**6)
    assert other != second["answers"]


def test_a_fixed_reference_stays_the_beginning(irft, model_path):
    trainer = irft(ref_update="fixed")
    losses = [entry["loss"] for entry in steps(trainer)]
    assert losses[0] == pytest.approx(LN2, abs=1e-5)
    assert abs(losses[2] - LN2) > 1e-3, "the policy has moved away from its beginning"
    last = stage(trainer, 1)
    begin = AutoModelForCausalLM.from_pretrained(model_path).eval()
    rows = trainer._demonstrations.select(range(8, 16))
    for i in range(8):
        for side, ids in (("chosen", rows[CHOSEN][i]), ("rejected", last["answers"][i])):
            whole = torch.tensor([rows[PROMPT][i] + ids])
            with torch.no_grad():
                lp = begin(whole).logits[0, :-1].log_softmax(-1).gather(1, whole[0, 1:, None])[:, 0]
            found = last["reference"][f"ref_{side}_logps"][i]
            assert found == pytest.approx(lp[-len(ids) :].sum().item(), abs=1e-3)


def test_the_last_stages_pairs_are_mixed_in_under_the_present_reference(irft):
    trainer = irft(mix_last_stage=True)
    assert [entry["step"] for entry in steps(trainer)] == [1, 2, 3, 4, 5, 6], "two updates, then twice as many"
    assert len(stage(trainer, 1)["reference"]["ref_chosen_logps"]) == 16
    assert steps(trainer)[2]["loss"] == pytest.approx(LN2, abs=1e-5), "old pairs are measured again too"


def test_optimizer_and_schedule_restart_with_a_stage_or_continue(irft, model_path):
    seen = []

    def watch(trainer):
        forget = trainer._begin_stage

        def begin(number, fresh):
            forget(number, fresh)
            seen.append(len(trainer.optimizer.optimizer.state))

        trainer._begin_stage = begin
        trainer.train()
        return [entry["learning_rate"] for entry in steps(trainer)]

    restarted = watch(irft("restarted", trained=False, stage_learning_rates=[1e-2, 1e-3], stage_betas=[0.1, 5.0]))
    assert restarted == pytest.approx([1e-2, 5e-3, 1e-3, 5e-4]) and seen == [0, 0]
    seen.clear()
    model = AutoModelForCausalLM.from_pretrained(model_path)
    on = watch(irft("on", model=model, trained=False, stage_schedule="run"))
    assert on == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3]) and seen[0] == 0 < seen[1]


@pytest.mark.parametrize("n, batch, epochs, updates", [(10_000, 8, 1, 1250), (50_000, 64, 2, 1564), (10, 4, 3, 9)])
def test_updates_between_two_generations(n, batch, epochs, updates):
    args = SimpleNamespace(
        num_stages=1, data_per_stage="full", mix_last_stage=False, train_batch_size=batch, dataloader_drop_last=False
    )
    args.world_size = args.gradient_accumulation_steps = 1
    trainer: Any = IRFTTrainer.__new__(IRFTTrainer)
    trainer.args, trainer._demonstrations = args, range(n)
    args.num_train_epochs = epochs
    (only,) = trainer._plan_stages()
    assert epochs * only.updates == updates


def test_accumulated_batches_are_one_batch(irft, model_path):
    one = irft("one", num_stages=1)
    model = AutoModelForCausalLM.from_pretrained(model_path)
    two = irft("two", model=model, num_stages=1, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    # Without TRL's fused head, log-probabilities are rounded otherwise, and three steps enlarge the difference.
    rounding = 2e-5 if _compat.offers_fused_head() and not _compat.lacks_triton() else 4e-5
    assert [e["loss"] for e in steps(one)] == pytest.approx([e["loss"] for e in steps(two)], abs=rounding)
    assert [e["grad_norm"] for e in steps(one)] == pytest.approx([e["grad_norm"] for e in steps(two)], rel=1e-3)


def test_loss_and_gradients_are_those_of_trls_dpo(irft, tmp_path, model_path, tokenizer):
    needs_dpo()
    trainer = irft(num_stages=1)
    pairs = trainer.train_dataset
    inputs = trainer.data_collator([pairs[i] for i in range(6)])
    preferences = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * 2)
    args = DPOConfig(
        str(tmp_path / "dpo"),
        precompute_ref_log_probs=True,
        **NO_CHECKPOINTING,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
    )
    dpo = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(model_path),
        args=args,
        train_dataset=preferences,
        processing_class=tokenizer,
    )
    dpo.model.load_state_dict(trainer.model.state_dict())
    ours = trainer.compute_loss(trainer.model.train(), dict(inputs))
    theirs = dpo.compute_loss(dpo.model.train(), dict(inputs))
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-7)
    ours.backward(), theirs.backward()
    for p, q in zip(trainer.model.parameters(), dpo.model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-7)
    names = set(_METRICS_OF_DPO) & set(dpo._metrics["train"])
    assert names == set(_METRICS_OF_DPO)
    for name in names:
        assert trainer._metrics["train"][name][-1] == pytest.approx(dpo._metrics["train"][name][-1], abs=1e-4)


_METRICS_OF_DPO = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
)


def test_what_stands_in_padding_changes_nothing(irft):
    trainer = irft(num_stages=1, learning_rate=1e-4)
    inputs = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    with torch.no_grad():
        before = trainer.compute_loss(trainer.model, dict(inputs)).item()
        padded = inputs["attention_mask"] == 0
        assert padded.any()
        inputs["input_ids"] = inputs["input_ids"].masked_fill(padded, 77)
        assert trainer.compute_loss(trainer.model, dict(inputs)).item() == pytest.approx(before, abs=1e-6)
        first = next(i for i in range(4) if (~padded[i]).sum() > 5)
        inputs["input_ids"][first, 3] = 77
        assert trainer.compute_loss(trainer.model, dict(inputs)).item() != pytest.approx(before, abs=1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_log_probabilities_are_the_same_alone_and_in_a_batch(name, irft, tokenizer):
    """Right padding with a mask, for absolute and rotary positions alike."""
    from transformers import AutoConfig

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    if name == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4}
    shape = AutoConfig.for_model(name, vocab_size=len(tokenizer), **sizes, initializer_range=0.3)
    torch.manual_seed(0)
    trainer = irft(model=AutoModelForCausalLM.from_config(shape), trained=False)
    rows = [{**trainer.train_dataset[i], REJECTED: [9] * (3 * i + 2)} for i in range(4)]
    model = trainer.model.eval()
    with torch.no_grad():

        def sums(some):
            inputs = trainer.data_collator(some)
            return torch.stack(trainer._completion_log_probs(trainer._outputs(model, inputs).log_probs, inputs), 1)

        together, alone = sums(rows), torch.cat([sums([row]) for row in rows])
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-4)


@pytest.mark.parametrize("loss, first", [("sigmoid", LN2), ("hinge", 1.0), ("linear", 0.0)])
def test_losses_by_name(irft, loss, first):
    trainer = irft(num_stages=1, loss_type=loss)
    assert steps(trainer)[0]["loss"] == pytest.approx(first, abs=1e-5)
    assert steps(trainer)[-1]["loss"] < first


def test_an_nll_term_is_added_and_is_that_of_the_demonstrations(irft, model_path):
    plain = irft("plain", num_stages=1)
    model = AutoModelForCausalLM.from_pretrained(model_path)
    more = irft("more", model=model, num_stages=1, nll_coef=1.0)
    inputs = more.data_collator([plain.train_dataset[i] for i in range(4)])
    with torch.no_grad():
        outputs = more._outputs(more.model, inputs)
        chosen, _ = more._completion_log_probs(outputs.log_probs, inputs)
        nll = -chosen.sum() / inputs["completion_mask"][:4].sum()
        both = more.compute_loss(more.model, dict(inputs)).item()
        more.args.nll_coef = 0.0
        assert both == pytest.approx(more.compute_loss(more.model, dict(inputs)).item() + nll.item(), rel=1e-5)


def test_the_margin_grows_on_eight_pairs_and_both_log_probabilities_are_told(irft, sixteen):
    trainer = irft(rows=sixteen.select(range(8)), num_stages=1, num_train_epochs=25, learning_rate=3e-3)
    history = steps(trainer)
    assert history[-1]["rewards/margins"] > 2 and history[-1]["rewards/accuracies"] == 1.0
    assert all("logps/chosen" in entry and "logps/rejected" in entry for entry in history)


# PEFT.


def lora():
    from peft import LoraConfig

    return LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], lora_dropout=0.1, task_type="CAUSAL_LM")


def test_an_adapter_is_its_own_reference_at_every_stage(irft, model_path):
    before = {k: v.clone() for k, v in AutoModelForCausalLM.from_pretrained(model_path).state_dict().items()}
    trainer = irft(trainer={"peft_config": lora()}, learning_rate=5e-2)
    losses = [entry["loss"] for entry in steps(trainer)]
    assert losses[0] == pytest.approx(LN2, abs=1e-5) and losses[2] == pytest.approx(LN2, abs=1e-5)
    assert min(losses) < 0.68
    assert trainer.ref_model is None
    base = trainer.model.get_base_model()
    for name, value in base.state_dict().items():
        plain = name.replace(".base_layer", "")
        if plain in before:
            assert torch.equal(value, before[plain]), f"{name}: the base weights were touched"
    adapters = [name for name in trainer.model.state_dict() if "lora_" in name]
    assert len(adapters) == 8, "one adapter, over both stages"


def test_a_fixed_reference_of_an_adapter_is_the_base_model(irft, model_path):
    trainer = irft(trainer={"peft_config": lora()}, ref_update="fixed", learning_rate=5e-2)
    last, rows = stage(trainer, 1), trainer._demonstrations.select(range(8, 16))
    inputs = trainer.data_collator(
        [{PROMPT: rows[PROMPT][i], CHOSEN: rows[CHOSEN][i], REJECTED: last["answers"][i]} for i in range(8)]
    )
    with torch.no_grad(), trainer.model.disable_adapter():
        chosen, rejected = trainer._completion_log_probs(
            trainer._outputs(trainer.model.eval(), inputs).log_probs, inputs
        )
    assert last["reference"]["ref_chosen_logps"] == pytest.approx(chosen.tolist(), abs=1e-3)
    assert last["reference"]["ref_rejected_logps"] == pytest.approx(rejected.tolist(), abs=1e-3)


# Logs, and pairs without a gradient.


def test_a_stage_logs_what_separates_the_two_sides(irft, tmp_path):
    trainer = irft(num_completions_to_log=3, log_completions=True)
    for name in ("answers", "identical", "empty", "cut", "length_chosen", "length_rejected", "ended_rejected"):
        assert len(logged_values(trainer, f"stage/{name}")) == 2
    assert logged_values(trainer, "stage/cut")[0] == sum(not ended for ended in stage(trainer, 0)["ended"]) > 0
    assert logged_values(trainer, "stage/length_rejected")[0] == np.mean(
        [len(ids) for ids in stage(trainer, 0)["answers"]]
    )
    assert len(logged_values(trainer, "stage/length_auc")) == len(logged_values(trainer, "stage/rewards/margins")) == 2
    tables = [pq.read_table(path).to_pydict() for path in sorted((tmp_path / "run/_completions").glob("*.parquet"))]
    assert [len(table["answer"]) for table in tables] == [3, 3]


def test_sides_that_length_alone_separates_are_warned_of(irft, monkeypatch):
    from hf_select.training.reward_learning import stage_report, staged_training

    def one_word(trainer, folder, *_, **__):
        for shard in range(folder.num_shards):
            folder.write(shard, [[9, 4] for _ in folder.rows_of(shard)], [True] * len(folder.rows_of(shard)))
        return {}

    warnings = []
    monkeypatch.setattr(staged_training, "answer_all", one_word)
    monkeypatch.setattr(stage_report.logger, "warning", lambda text, *values: warnings.append(text % values))
    irft(num_stages=1)
    assert "Length alone separates demonstrations" in warnings[-1] and "AUC of 1.00" in warnings[-1]


def test_length_auc_by_hand():
    assert length_auc(np.array([2, 2]), np.array([2, 2])) == 0.5
    assert length_auc(np.array([1, 2]), np.array([3, 4])) == 1.0
    assert length_auc(np.array([3]), np.array([1, 3, 5, 2])) == pytest.approx((2 + 0.5) / 4)


def test_identical_answers_are_replaced_and_all_identical_stop_training(irft, monkeypatch, caplog):
    from hf_select.training.reward_learning import staged_training

    def parrot(every):
        def answer_all(trainer, folder, demonstrations, *_, **__):
            for shard in range(folder.num_shards):
                rows = folder.rows_of(shard)
                ids = [demonstrations[i][CHOSEN] if i % every == 0 else [9, 4] for i in rows]
                folder.write(shard, ids, [True] * len(ids))
            return {}

        return answer_all

    monkeypatch.setattr(staged_training, "answer_all", parrot(2))
    trainer = irft("half", num_stages=1)
    assert logged_values(trainer, "stage/identical") == [8.0] and len(steps(trainer)) == 4, "steps stay as planned"
    assert all(row[CHOSEN] != row[REJECTED] for row in trainer.train_dataset)
    monkeypatch.setattr(staged_training, "answer_all", parrot(1))
    with caplog.at_level(logging.WARNING):
        trainer = irft("all", num_stages=1)
    assert trainer.state.global_step == 0


def test_held_out_demonstrations_are_answered_and_evaluated(irft, sixteen):
    trainer = irft(trainer={"eval_dataset": sixteen.select(range(6))}, eval_strategy="epoch")
    assert len(logged_values(trainer, "eval_rewards/margins")) == 2


def test_evaluation_on_start_waits_for_the_answers_of_the_first_stage(irft, sixteen):
    trainer = irft(trainer={"eval_dataset": sixteen.select(range(6))}, eval_on_start=True)
    places = [i for i, entry in enumerate(trainer.state.log_history) if "eval_rewards/margins" in entry]
    assert len(places) == 1 and trainer.state.log_history[places[0]]["step"] == 0
    assert "stage/answers" in trainer.state.log_history[places[0] - 1]


def test_evaluation_before_there_are_answers_is_refused_with_the_cure(irft, sixteen):
    trainer = irft(trained=False, trainer={"eval_dataset": sixteen.select(range(6))})
    with pytest.raises(ValueError, match="no answers of the policy.*call train"):
        trainer.evaluate()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("cosine_with_min_lr", {"min_lr": 1e-3}),
        ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
        ("polynomial", {"lr_end": 1e-3, "power": 2.0}),
        ("linear", None),
    ],
)
def test_every_stage_has_the_schedule_of_its_own_rate_down_to_the_floor(irft, kind, settings):
    """As transformers' own schedule of an optimizer with that rate."""
    highest = [2e-2, 5e-3]
    trainer = irft(trained=False, num_train_epochs=4, lr_scheduler_type=kind, stage_learning_rates=highest,
                   lr_scheduler_kwargs=settings)  # fmt: skip
    trainer.create_optimizer()
    trainer.create_scheduler(16)
    found, expected = [], []
    for rate in highest:
        alone = torch.optim.SGD([torch.zeros(1)], lr=rate)
        schedule = get_scheduler(kind, alone, 0, 8, scheduler_specific_kwargs=settings)
        for _ in range(8):
            found.append(trainer.lr_scheduler.get_last_lr()[0])
            expected.append(schedule.get_last_lr()[0])
            trainer.lr_scheduler.step()
            schedule.step()
    assert found == pytest.approx(expected) and trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(
        schedule.get_last_lr()[0]
    )
    assert (found[7] > 0 and min(found) > 5e-4) or kind == "linear"


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_generation_preserves_mode_cache_checkpointing_and_row_order(irft, model_path):
    trainer = irft("once", trained=False, activation_checkpointing=True, num_stages=1)
    before, seen = torch.get_rng_state(), {}
    begin = trainer._begin_stage

    def watch(number, fresh):
        trainer.model.train()
        begin(number, fresh)
        seen["train"] = trainer.model.training and all(m.training for m in trainer.model.modules())
        seen["checkpointing"] = _compat.recomputes_activations(trainer.model)
        seen["cache"] = trainer.model.config.use_cache

    use_cache = trainer.model.config.use_cache
    trainer._begin_stage = watch
    trainer.train()
    assert seen == {"train": True, "checkpointing": True, "cache": use_cache}
    torch.set_rng_state(before)
    plain = irft("plain", model=AutoModelForCausalLM.from_pretrained(model_path), num_stages=1)
    assert [e["loss"] for e in steps(trainer)] == pytest.approx([e["loss"] for e in steps(plain)], abs=2e-5)


# Bad input.


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"loss_type": "ipo"}, "sigmoid, hinge, linear"),
        ({"label_smoothing": 0.1}, "label_smoothing is a setting of DPO"),
        ({"sync_ref_model": True}, "sync_ref_model is a setting of DPO"),
        ({"num_train_epochs": 0.5}, "whole passes"),
        ({"stage_betas": [0.1]}, "1 values for 2 stages"),
        ({"max_completion_length": 160}, "leaves no room"),
        ({"beta": 0.0}, "beta must be above 0"),
        ({"ref_update": "never"}, "stage, fixed"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"stage_schedule": "run", "stage_learning_rates": [1e-3, 1e-3]}, "one schedule"),
    ],
)
def test_settings_that_cannot_be_say_so(settings, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        config(tmp_path, **settings)


def test_more_stages_than_rows_and_longer_rows_than_the_context_are_refused(irft, sixteen):
    with pytest.raises(ValueError, match="num_stages is 17, and there are 16 demonstrations"):
        irft(trained=False, num_stages=17)
    with pytest.raises(ValueError, match="max_length is 1024, and the model's context has 512"):
        irft(trained=False, max_length=1024)
    with pytest.raises(ValueError, match="train_dataset is a IterableDataset"):
        irft(trained=False, rows=sixteen.to_iterable_dataset())


def test_a_reference_is_never_left_out(irft, model_path, tokenizer):
    from hf_select import demo

    trainer = irft(num_stages=1)
    inputs = trainer.data_collator([trainer.train_dataset[0]])
    del inputs["ref_chosen_logps"]
    with pytest.raises(ValueError, match="no log-probabilities under a reference"):
        trainer.compute_loss(trainer.model, inputs)
    smaller = demo.tiny_model(tokenizer, hidden_size=16, intermediate_size=32, num_hidden_layers=1)
    with pytest.raises(ValueError, match="of another shape than the policy"):
        irft(trained=False, ref_update="fixed", trainer={"ref_model": smaller})
    with pytest.raises(ValueError, match='set ref_update="fixed"'):
        irft(trained=False, trainer={"ref_model": model_path})


def test_a_reference_of_ones_own_is_used(irft, model_path):
    other = AutoModelForCausalLM.from_pretrained(model_path)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.9)
    trainer = irft(num_stages=1, ref_update="fixed", trainer={"ref_model": other})
    assert abs(steps(trainer)[0]["loss"] - LN2) > 1e-3
    whole = torch.tensor([trainer._demonstrations[0][PROMPT] + trainer._demonstrations[0][CHOSEN]])
    with torch.no_grad():
        lp = other(whole).logits[0, :-1].log_softmax(-1).gather(1, whole[0, 1:, None])[:, 0]
    expected = lp[-len(trainer._demonstrations[0][CHOSEN]) :].sum().item()
    assert stage(trainer, 0)["reference"]["ref_chosen_logps"][0] == pytest.approx(expected, abs=1e-3)


def test_a_folder_of_another_run_is_refused(irft, model_path):
    irft(num_stages=1)
    with pytest.raises(ValueError, match="holds answers of another run"):
        irft(num_stages=1, temperature=0.5, model=AutoModelForCausalLM.from_pretrained(model_path))


def test_vllm_is_asked_through_trls_own_class(irft, monkeypatch, tokenizer):
    import trl.generation

    calls = []

    class Fake:  # takes what TRL's VLLMGeneration takes
        def __init__(self, **settings):
            calls.append(("made", settings["mode"], settings["generation_kwargs"], settings["top_k"]))

        def sync_weights(self):
            calls.append("sync")

        def generate(self, prompts, images, num_generations):
            calls.append(len(prompts))
            return prompts, [[9, 4] for _ in prompts], None, None

    monkeypatch.setattr(trl.generation, "VLLMGeneration", Fake, raising=False)
    trainer = irft(use_vllm=True, vllm_mode="server")
    assert calls == [("made", "server", {"stop_token_ids": [4, 1]}, 0), "sync", 5, 3, "sync", 5, 3]
    assert stage(trainer, 1)["answers"] == [[9, 4]] * 8


def test_vllm_that_is_not_there_names_the_extra(irft):
    with pytest.raises(ImportError, match=r"hf-select\[vllm\]"):
        irft(trained=False, use_vllm=True)


# Checkpoints, card, upstream.


def test_only_checkpoints_that_were_written_to_their_end_count(tmp_path):
    assert last_whole_checkpoint(tmp_path) is None
    for step, whole in ((2, True), (10, True), (12, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text('{"global_step": 1}' if whole else '{"global')
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def test_a_stage_leaves_a_checkpoint_and_a_card_with_the_paper(irft, tmp_path):
    irft(save_strategy="steps", save_steps=100)
    assert sorted(p.name for p in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert "2405.17888" in (tmp_path / "run" / "README.md").read_text()


def test_the_private_names_are_what_they_were():
    names = list(inspect.signature(Trainer._run_epoch).parameters)
    assert names[1:5] == ["model", "epoch", "train_dataloader", "steps_in_epoch"]
    assert names[5:6] == ["num_update_steps_per_epoch"] and names[-2:] == [
        "epochs_trained",
        "steps_trained_in_current_epoch",
    ]
    names = list(inspect.signature(Trainer._init_training_state).parameters)
    assert names == [
        "self",
        "max_steps",
        "num_update_steps_per_epoch",
        "num_train_epochs",
        "resume_from_checkpoint",
        "trial",
    ]
    names = list(inspect.signature(DPOTrainer._prepare_dataset).parameters)
    assert names == ["self", "dataset", "processing_class", "args", "dataset_name"]
    names = list(inspect.signature(DPOTrainer._precompute_ref_logps).parameters)
    assert names == ["self", "dataset", "name", "batch_size"]
    from trl.models.utils import add_hooks, remove_hooks
    from trl.trainer import dpo_trainer

    assert list(inspect.signature(dpo_trainer.hash_module).parameters) == ["module"]
    assert (
        list(inspect.signature(add_hooks).parameters) == list(inspect.signature(remove_hooks).parameters) == ["model"]
    )
