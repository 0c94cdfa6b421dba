"""Selection inside the stock Trainer: rows trained are rows selected, and nothing else of the training changes."""

import inspect
import math
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from datasets import Dataset
from releases import preference_inputs, sampling
from selection_training import NO_CHECKPOINTING, ROWS, TRL, Collator, chosen, make, pool, rounds, select
from transformers import Trainer, TrainingArguments

from hf_select import IFD, CausalLM, DataSelectionCallback, Perplexity, RDSPlus, SelectIT, TopK
from hf_select.features.gradient_reducers import GhostProducts
from hf_select.training import _compat, online_scores


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


def separate(trainer):
    """Batches of training apart from those of scoring, which a second collator sees."""
    scoring = Collator()
    by_online_score = DataSelectionCallback._by_online_score

    def apart(self, rows):
        own, trainer.data_collator = trainer.data_collator, scoring
        try:
            return by_online_score(self, rows)
        finally:
            trainer.data_collator = own

    return apart


@pytest.mark.parametrize("accumulation", [1, 2])
def test_rows_trained_are_the_rows_selected(tmp_path, monkeypatch, accumulation):
    trainer, collator = make(tmp_path, select(), gradient_accumulation_steps=accumulation)
    monkeypatch.setattr(DataSelectionCallback, "_by_online_score", separate(trainer))
    trainer.train()
    tables = rounds(trainer)
    assert len(tables) == 3 and trainer.state.global_step == 3 * 16 // (4 * accumulation)
    trained_rows = [row for batch in collator.seen for row in batch]
    for number, table in enumerate(tables):
        of_round = trained_rows[16 * number : 16 * (number + 1)]
        assert sorted(of_round) == sorted(chosen(table))
        best = np.argsort(-np.array(table["score"]), kind="stable")[:16]
        assert set(chosen(table)) == {table["row"][i] for i in best}
    assert sorted(chosen(tables[0])) != sorted(chosen(tables[2])), "the model learns, the choice must move"
    assert set(trainer.lr_scheduler.get_last_lr()) == {0.0}, "the schedule did not end where it should"


def test_selecting_everything_leaves_the_losses_bit_identical(tmp_path):
    plain, seen = make(tmp_path / "plain")
    plain.train()
    watched, seen_too = make(tmp_path / "watched", select(rows=ROWS))
    watched.train()
    assert losses(watched) == losses(plain)
    assert len(losses(plain)) == 18 and all(
        torch.equal(a, b) for a, b in zip(plain.model.parameters(), watched.model.parameters(), strict=True)
    )
    odd, _ = make(tmp_path / "odd", dataset=pool().select(range(45)))
    odd.train()
    odd_watched, _ = make(tmp_path / "odd_watched", select(rows=None, fraction=1), dataset=pool().select(range(45)))
    odd_watched.train()
    assert losses(odd) == losses(odd_watched)


@pytest.mark.parametrize("stop", [2, 3, 4, 5])
@pytest.mark.parametrize("settings", [{}, {"random_share": 0.25, "keep": (1.0, 0.4)}, {"consume_once": True}])
def test_a_resumed_run_trains_on_the_rows_of_an_uninterrupted_one(tmp_path, stop, settings):
    """Two steps a round: stops in the middle of a round and at its end."""
    whole, seen = make(tmp_path / "whole", select(**settings), save_steps=1)
    whole.train()
    first, seen_first = make(tmp_path / "parts", select(**settings), save_steps=1)

    class Stop(hf.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == stop

    first.add_callback(Stop())
    first.train()
    second, seen_second = make(tmp_path / "parts", select(**settings), save_steps=1)
    second.train(resume_from_checkpoint=str(tmp_path / "parts" / f"checkpoint-{stop}"))
    assert losses(second) == losses(whole)
    assert rounds(second) == rounds(whole)
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_learnability_remembers_over_a_stop(tmp_path):
    def callback(trainer):
        return DataSelectionCallback(trainer, online_scores.LossChange(), rows=16, warmup=1)

    whole, _ = make(tmp_path / "whole", callback, save_steps=1)
    whole.train()
    tables = rounds(whole)
    assert np.isnan(tables[0]["score"]).all() and np.isfinite(tables[1]["score"]).all()
    again, _ = make(tmp_path / "again", callback, save_steps=1)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert losses(again) == losses(whole) and rounds(again)[-1] == tables[2]


def test_steps_schedules_and_orders(tmp_path):
    trainer, seen = make(tmp_path / "steps", select(rows=None, every=3, order="easy_to_hard"), num_train_epochs=2)
    trainer.train()
    assert trainer.state.global_step == 6
    for table in rounds(trainer):
        by_row = dict(zip(table["row"], table["score"], strict=True))
        ranked = [by_row[row] for row in chosen(table)]
        assert len(ranked) == 24 and ranked == sorted(ranked)
    assert chosen(rounds(trainer)[1]) == [row for batch in seen.seen[-6:] for row in batch]

    trainer, _ = make(tmp_path / "ramp", select(keep=(1.0, 0.5), warmup=1), num_train_epochs=4)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "selection/round" in entry]
    assert [entry["selection/candidates"] for entry in log] == [0, math.ceil(16 / (1 - 0.5 / 3)), 24, 32]
    assert log[0]["selection/random_rows"] == 16 and log[1]["selection/random_rows"] == 0

    trainer, _ = make(tmp_path / "once", select(consume_once=True, random_share=0.5, source_column="source"))
    trainer.train()
    sets = [set(chosen(table)) for table in rounds(trainer)]
    assert set.union(*sets) == set(range(ROWS)) and not sets[0] & sets[1]
    log = [entry for entry in trainer.state.log_history if "selection/round" in entry]
    assert all(entry["selection/rows/even"] + entry["selection/rows/odd"] == 16 for entry in log)
    assert log[1]["selection/overlap"] == 0 and log[0]["selection/flops"] > 0


def test_scorers_columns_and_selectors(tmp_path, model_path, rows):
    trainer, _ = make(tmp_path / "column", select("old", selector=TopK("score", which="worst")))
    trainer.train()
    assert set(chosen(rounds(trainer)[0])) == set(range(32, 48))

    tokenizer = hf.AutoTokenizer.from_pretrained(model_path)
    model = hf.AutoModelForCausalLM.from_pretrained(model_path)
    whole = [row for row in rows if row["completion"]][:32]
    texts = [f"{row['prompt']} {row['completion']}" for row in whole]
    encoded = [tokenizer(text)["input_ids"][:40] for text in texts]
    data = Dataset.from_list([{**r, "input_ids": e, "labels": e} for r, e in zip(whole, encoded, strict=True)])
    args = TrainingArguments(
        str(tmp_path / "scorer"), per_device_train_batch_size=4, num_train_epochs=2, report_to="none", use_cpu=True,
        learning_rate=1e-2, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, args, train_dataset=data, data_collator=Collator())
    scorer = Perplexity(CausalLM(model, tokenizer=tokenizer))
    trainer.add_callback(DataSelectionCallback(trainer, scorer, fraction=0.25))
    trainer.train()
    first, second = rounds(trainer)
    before = Perplexity(model_path)({name: [row[name] for row in whole] for name in ("prompt", "completion")})
    np.testing.assert_allclose(first["score_perplexity"], before["score_perplexity"], rtol=1e-4)
    assert not np.allclose(first["score_perplexity"], second["score_perplexity"], rtol=0.01), "not the current model"
    assert model.training


def test_an_own_function_is_asked_in_eval_mode_without_gradients(tmp_path):
    seen = []

    def score(model, batch):
        seen.append((model.training, torch.is_grad_enabled()))
        torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002
        return batch["input_ids"][:, 0].float()

    plain, _ = make(tmp_path / "plain")
    plain.train()
    trainer, _ = make(tmp_path / "own", select(score, rows=ROWS))
    trainer.train()
    assert set(seen) == {(False, False)} and losses(trainer) == losses(plain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": 20}, "not a whole number of optimizer steps of 8 rows.*give 16 or 24"),
        ({"rows": 4}, "give 8"),
        ({"rows": 60}, "give all 48|give 48"),
        ({"rows": None}, "either rows or fraction"),
        ({"fraction": 0.5}, "either rows or fraction"),
        ({"rows": None, "fraction": 0.1}, "a round of 0 rows"),
        ({"every": 2}, "leave out rows"),
        ({"rows": None, "every": 7}, "lower every to 6"),
        ({"rows": None, "every": "step"}, "number of steps"),
        ({"max_candidates": 8}, "max_candidates is 8"),
        ({"keep": 1.5}, "keep is 1.5"),
        ({"random_share": 1.0}, "random_share"),
        ({"order": "sorted"}, 'order is "sorted"'),
        ({"source_column": "nothing"}, '"nothing" is missing'),
        ({"score": "nothing"}, '"nothing" is missing'),
        ({"score": online_scores.LossChange()}, "warmup of at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_cure(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, select(**settings))


def test_runs_that_cannot_work_are_refused_with_the_cure(tmp_path):
    with pytest.raises(ValueError, match="IterableDataset; rows can be selected only from a datasets.Dataset"):
        make(tmp_path, select(), dataset=pool().to_iterable_dataset(), max_steps=3)
    with pytest.raises(ValueError, match="train_sampling_strategy|group_by_length"):
        make(tmp_path, select(), **sampling("group_by_length"))
    with pytest.raises(ValueError, match="auto_find_batch_size=True does not work"):
        make(tmp_path, select(), auto_find_batch_size=True)
    trainer, _ = make(tmp_path, select())
    with pytest.raises(ValueError, match="already has a DataSelectionCallback"):
        DataSelectionCallback(trainer, online_scores.loss, rows=16)
    trainer, _ = make(tmp_path / "nan", select(lambda model, batch: batch["input_ids"][:, 0] * math.nan))
    with pytest.raises(ValueError, match="16 rows are to be selected and only 0 of 48"):
        trainer.train()
    trainer, _ = make(tmp_path / "few", select(selector=lambda data, k: TopK("score")(data, k=k - 1)))
    with pytest.raises(ValueError, match="selected 15 rows, and a round needs 16"):
        trainer.train()
    trainer, _ = make(tmp_path / "shape", select(lambda model, batch: torch.zeros(1)))
    with pytest.raises(ValueError, match=r"shape \(1,\) for 4 rows"):
        trainer.train()
    plain, _ = make(tmp_path / "plain", save_steps=2)
    plain.train()
    trainer, _ = make(tmp_path / "late", select())
    with pytest.raises(ValueError, match="written without DataSelectionCallback"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-2"))
    chosen_before, _ = make(tmp_path / "before", select(), save_steps=2)
    chosen_before.train()
    trainer, _ = make(tmp_path / "other", select(rows=24))
    with pytest.raises(ValueError, match="selected 16 of 48 rows a round, this run selects 24"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "before" / "checkpoint-2"))


def test_evaluation_alone_selects_nothing(tmp_path):
    trainer, _ = make(tmp_path, select())
    trainer.evaluate(pool().select(range(8)))
    assert not (tmp_path / "_data_selection").exists()


def test_nan_scores_are_never_selected(tmp_path):
    def score(model, batch):
        first = batch["input_ids"][:, 0].float()
        return torch.where(first % 2 == 0, torch.nan, first)

    trainer, _ = make(tmp_path, select(score))
    trainer.train()
    assert all(row % 2 for table in rounds(trainer) for row in chosen(table))
    log = next(entry for entry in trainer.state.log_history if "selection/round" in entry)
    assert log["selection/unscored"] == 24


def test_the_private_names_are_those_that_were_seen():
    assert list(inspect.signature(Trainer._get_train_sampler).parameters) == ["self", "train_dataset"]
    assert list(inspect.signature(Trainer._remove_unused_columns).parameters)[:3] == ["self", "dataset", "description"]
    from trl import DPOTrainer, GRPOTrainer, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

    own = [_compat.own_sampler(object.__new__(cls)) for cls in (Trainer, SFTTrainer, DPOTrainer, GRPOTrainer)]
    assert own == [False, False, False, True]


def test_sft_trainer_takes_it_and_packing_is_refused(tmp_path, model_path, rows):
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

    data = Dataset.from_list([row for row in rows if row["completion"]][:32])

    def sft(**settings):
        args = SFTConfig(str(tmp_path / "sft"), max_length=64, **TRL, **settings)
        return SFTTrainer(model_path, args=args, train_dataset=data)

    trainer = sft(padding_free=False)
    trainer.add_callback(DataSelectionCallback(trainer, online_scores.loss, rows=8))
    trainer.train()
    table = rounds(trainer)[0]
    assert trainer.state.global_step == 4 and len(table["row"]) == len(trainer.train_dataset)
    best = np.argsort(-np.array(table["score"]), kind="stable")[:8]
    assert set(chosen(table)) == {table["row"][i] for i in best}
    with pytest.raises(ValueError, match="packing puts several rows into one sequence.*packing=False"):
        trainer = sft(packing=True)
        DataSelectionCallback(trainer, online_scores.loss, rows=8)


def test_lora_and_sequences_without_padding(tmp_path, model_path, rows):
    """Gradients are those of the adapter, and rows that stand in one sequence are measured one by one."""
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

    data = Dataset.from_list([row for row in rows if row["completion"]][:16])
    tables = []
    for padding_free in (False, True):
        args = SFTConfig(str(tmp_path / str(padding_free)), max_length=None, padding_free=padding_free, **TRL)
        trainer = SFTTrainer(
            model_path, args=args, train_dataset=data, eval_dataset=data.select(range(4)),
            peft_config=LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj", "v_proj"]),
        )  # fmt: skip
        torch.manual_seed(0)
        for name, parameter in trainer.model.named_parameters():
            if "lora" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        score = online_scores.GradientSimilarity(trainer.eval_dataset)
        trainer.add_callback(DataSelectionCallback(trainer, score, rows=8))
        trainer.train()
        assert all("lora" in name for name, _ in score._layers(trainer.model))
        tables.append(rounds(trainer)[0])
    np.testing.assert_allclose(tables[0]["score"], tables[1]["score"], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_the_recipe_runs_as_it_stands(tmp_path, model_path, rows):
    data = tmp_path / "rows.jsonl"
    Dataset.from_list([row for row in rows if row["completion"]][:32]).to_json(data)
    script = Path(__file__).parents[2] / "recipes" / "sft_with_selection.py"
    words = ["--model", model_path, "--dataset", str(data), "--output-dir", str(tmp_path / "o"), "--use-cpu"]
    found = subprocess.run(
        [sys.executable, str(script), *words, "--rounds", "2", "--max-length", "64"], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert "selection/score_q50" in found.stdout
    assert (tmp_path / "o" / "model.safetensors").exists()
    assert len(list((tmp_path / "o" / "_data_selection").iterdir())) == 2


def test_loss_is_the_models_own_loss_of_each_row_alone(tmp_path):
    trainer, collator = make(tmp_path)
    model = trainer.model.eval()
    rows = [pool()[i] for i in (0, 5, 11)]
    with torch.no_grad():
        found = online_scores.loss(model, collator(rows))
        alone = torch.stack([model(**collator([row])).loss for row in rows])
    torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-6)
    unlabelled = collator([{**rows[0], "labels": [-100] * len(rows[0]["labels"])}])
    assert online_scores.loss(model, unlabelled).isnan().all()


def gradient_of(model, rows, names):
    """autograd's own gradient of the rows' mean loss."""
    model.zero_grad()
    torch.stack([model(**Collator()([row])).loss for row in rows]).mean().backward()
    found = torch.cat([p.grad.flatten() for name, p in model.named_parameters() if name in names])
    model.zero_grad()
    return found


@pytest.mark.parametrize("layers", [None, ["down_proj", "q_proj"]])
@pytest.mark.parametrize("cosine", [True, False])
def test_gradient_similarity_is_that_of_autograds_gradients(tmp_path, layers, cosine):
    trainer, collator = make(tmp_path)
    model = trainer.model.eval()
    data = pool()
    queries, rows = data.select([1, 6]), [data[i] for i in (0, 5, 10, 11)]
    score = online_scores.GradientSimilarity(queries, cosine=cosine, layers=layers)
    score.begin(model, [collator([queries[0], queries[1]])])
    found = score(model, collator(rows))
    names = {f"{name}.weight" for name, _ in score._layers(model)}
    assert len(names) == (14 if layers is None else 4)
    direction = gradient_of(model, list(queries), names)
    for row, value in zip(rows, found, strict=True):
        gradient = gradient_of(model, [row], names)
        wanted = gradient @ direction
        wanted = wanted / gradient.norm() / direction.norm() if cosine else wanted
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in model.parameters())
    unlabelled = {**rows[0], "labels": [-100] * len(rows[0]["labels"])}
    assert score(model, collator([unlabelled, rows[1]])).isnan().tolist() == [True, False]
    with pytest.raises(ValueError, match="no linear layer's name ends with none"):
        online_scores.GradientSimilarity(queries, layers=["none"]).begin(model, [collator(rows)])


def test_gradient_similarity_finds_the_queries_kind_with_the_model_of_each_round(tmp_path):
    queries = pool().select(range(1, 17, 2))

    def callback(trainer):
        return DataSelectionCallback(trainer, online_scores.GradientSimilarity(queries), rows=16)

    trainer, _ = make(tmp_path, callback)
    trainer.train()
    tables = rounds(trainer)
    for table in tables:
        assert sum(row % 2 for row in chosen(table)) >= 14  # rows of one token, as the queries are
    by_row = [dict(zip(table["row"], table["score"], strict=True)) for table in tables]
    assert by_row[0] != by_row[1]


@pytest.mark.parametrize("sizes", [(4, 6, 6, 6), (32, 6, 3, 2)])  # gradients formed and not
def test_ghost_products_are_those_of_the_gradients(sizes):
    rows, tokens, inputs, outputs = sizes[0], sizes[1], 8 * sizes[2], 8 * sizes[3]
    torch.manual_seed(0)
    x, y = torch.randn(rows, tokens, inputs), torch.randn(rows, tokens, outputs)
    direction = torch.randn(outputs, inputs)
    ghost = GhostProducts(rows, {"layer": direction})
    ghost.add("layer", slice(0, 2), x[:2], y[:2])
    ghost.add("layer", slice(2, None), x[2:], y[2:])
    gradients = torch.einsum("bto,bti->boi", y, x)
    products, squares = map(torch.tensor, zip(*ghost.results(), strict=True))
    torch.testing.assert_close(products, (gradients * direction).sum((1, 2)), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(squares, gradients.square().sum((1, 2)), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("method", ["ifd", "selectit", "rds"])
def test_scorers_measure_the_model_as_it_is_in_each_round(tmp_path, model_path, rows, method):
    """The second round's scores are those of the model as it was saved before it."""
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

    data = Dataset.from_list([row for row in rows if row["completion"]][:16])

    def scorer(model):
        scorer = {"ifd": IFD, "rds": RDSPlus, "selectit": partial(SelectIT, level="token")}[method](model)
        return scorer.fit(data.select(range(3))) if method == "rds" else scorer

    settings = TRL | {"save_strategy": "epoch", "learning_rate": 1e-2}
    args = SFTConfig(str(tmp_path / "sft"), max_length=64, **settings)
    trainer = SFTTrainer(model_path, args=args, train_dataset=data)
    online = scorer(CausalLM(trainer.model, tokenizer=trainer.processing_class))
    trainer.add_callback(DataSelectionCallback(trainer, online, rows=8))
    trainer.train()
    first, second = rounds(trainer)
    saved = scorer(str(tmp_path / "sft" / "checkpoint-2"))
    expected = saved(trainer.train_dataset[:])[f"score_{method}"]
    np.testing.assert_allclose(second[f"score_{method}"], expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(first[f"score_{method}"], second[f"score_{method}"], rtol=1e-3)


def test_dpo_trainer_takes_it(tmp_path, model_path):
    from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportPrivateImportUsage]

    pairs = [{"prompt": f"Say {i}.", "chosen": f" {i}" * (1 + i % 3), "rejected": " no"} for i in range(16)]
    args = DPOConfig(str(tmp_path / "dpo"), **TRL | NO_CHECKPOINTING)
    tokenizer = hf.AutoTokenizer.from_pretrained(model_path)
    data = Dataset.from_list(pairs)
    trainer = DPOTrainer(model_path, args=args, train_dataset=data, processing_class=tokenizer)

    def margin(model, batch):
        chosen_loss, rejected_loss = online_scores.loss(model, preference_inputs(batch)).chunk(2)
        return rejected_loss - chosen_loss

    trainer.add_callback(DataSelectionCallback(trainer, margin, TopK("score", which="worst"), rows=8))
    trainer.train()
    assert trainer.state.global_step == 4
    for table in rounds(trainer):
        lowest = np.argsort(table["score"], kind="stable")[:8]
        assert set(chosen(table)) == {table["row"][i] for i in lowest}
    with pytest.raises(ValueError, match='attention_mask.* and no "labels"; give the callback a function'):
        trainer = DPOTrainer(model_path, args=args, train_dataset=data, processing_class=tokenizer)
        trainer.add_callback(DataSelectionCallback(trainer, online_scores.loss, rows=8))
        trainer.train()


def test_a_run_without_a_second_round_says_so(tmp_path, caplog):
    trainer, _ = make(tmp_path / "short", select(rows=None, every=6, warmup=1), max_steps=4)
    trainer.train()
    assert "a round is 6 steps and the run has 4: rows are selected once" in caplog.text
    assert "all rows are sampled at random and none is selected" in caplog.text
    assert trainer.state.global_step == 4
