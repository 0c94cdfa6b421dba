"""Losses of rows under the model in training: the model's own, of any kind, in the memory of training."""

import inspect
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as hf
from datasets import Dataset
from releases import needs_fused_head, needs_irft, sampling
from selection_training import NO_CHECKPOINTING, ROWS, TRL, Collator, chosen, make, pool, rounds, select
from torch.utils.data import DataLoader, RandomSampler
from transformers import Trainer, TrainingArguments

from hf_select import IFD, CausalLM, DataSelectionCallback, RDSPlus, SelectIT, TopK
from hf_select.training import _compat, label_losses, online_scores


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 128}
LLAMA = SMALL | {"intermediate_size": 32, "initializer_range": 0.3, "num_key_value_heads": 2}
BERT = SMALL | {"intermediate_size": 32, "max_position_embeddings": 64, "initializer_range": 0.3}
BART = {"vocab_size": 128, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "init_std": 0.3}  # fmt: skip
T5 = {"vocab_size": 128, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2,
      "decoder_start_token_id": 0}  # fmt: skip

KINDS = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=128, n_embd=16, n_layer=1, n_head=2)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**LLAMA, head_dim=8, final_logit_softcapping=2.0)),
    "cohere": lambda: hf.CohereForCausalLM(hf.CohereConfig(**LLAMA, logit_scale=0.5)),
    "granite": lambda: hf.GraniteForCausalLM(hf.GraniteConfig(**LLAMA, logits_scaling=3.0)),
    "roberta, causal": lambda: hf.RobertaForCausalLM(hf.RobertaConfig(**BERT, is_decoder=True)),
    "bert, masked": lambda: hf.BertForMaskedLM(hf.BertConfig(**BERT)),
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)),
    "bart": lambda: hf.BartForConditionalGeneration(hf.BartConfig(**BART)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_a_row_is_the_models_own_loss_of_it_alone(kind):
    torch.manual_seed(0)
    model = KINDS[kind]().eval()
    collator, rows = Collator(), [pool()[i] for i in (0, 5, 11)]
    with torch.no_grad():
        alone = torch.stack([model(**collator([row])).loss for row in rows])
        found = online_scores.loss(model, collator(rows))
        with label_losses.fused_head(model):
            lent = _compat.has_fused_head(model)
            fused = online_scores.loss(model, collator(rows))
    plain_heads = ("llama", "gpt2", "gemma2", "cohere", "granite") if _compat.offers_fused_head() else ()
    assert lent == (kind in plain_heads), "a head with layers of its own"
    assert not _compat.has_fused_head(model)
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fused, alone, rtol=1e-4, atol=1e-5)


def test_a_seq2seq_trainer_selects_by_the_models_own_losses(tmp_path):
    torch.manual_seed(0)
    model = KINDS["t5"]()
    args = hf.Seq2SeqTrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, num_train_epochs=1, report_to="none", use_cpu=True,
        disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    trainer = hf.Seq2SeqTrainer(model, args, train_dataset=pool(), data_collator=Collator())
    trainer.add_callback(DataSelectionCallback(trainer, online_scores.loss, rows=16))
    model.eval()
    with torch.no_grad():
        own = [model(**Collator()([row])).loss.item() for row in pool()]
    trainer.train()
    np.testing.assert_allclose(rounds(trainer)[0]["score"], own, rtol=1e-4)


@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForTokenClassification", "ForMultipleChoice"])
def test_labels_that_are_not_tokens_to_predict_are_refused_with_the_cure(tmp_path, head):
    model = getattr(hf, f"Bert{head}")(hf.BertConfig(**BERT, num_labels=3))
    rows = [{"input_ids": [i, 3, 4], "labels": [0, 1, 2] if "Token" in head else i % 3} for i in range(16)]
    args = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, report_to="none", use_cpu=True, save_strategy="no"
    )
    trainer = Trainer(model, args, train_dataset=Dataset.from_list(rows))
    trainer.add_callback(DataSelectionCallback(trainer, online_scores.loss, rows=8))
    with pytest.raises(ValueError, match=f"Bert{head} is not a causal, masked .* language model.*of your own"):
        trainer.train()
    with pytest.raises(ValueError, match=r"labels have shape \(2,\).*of your own"):
        batch = {"input_ids": torch.ones(2, 3, dtype=torch.long), "labels": torch.ones(2, dtype=torch.long)}
        online_scores.loss(KINDS["llama"](), batch)


def test_gradients_through_an_encoder_decoder_are_refused():
    score = online_scores.GradientSimilarity(pool())
    with pytest.raises(ValueError, match="the model is an encoder-decoder; use online_scores.loss"):
        score.begin(KINDS["t5"](), [])


@pytest.mark.parametrize(
    "queries",
    [
        None,
        {"task": Dataset.from_list([{"input_ids": [1, 2], "labels": [1, 2]}])},
        Dataset.from_list([{"prompt": "Say it."}]),
    ],
)
def test_queries_that_the_trainer_has_not_prepared_are_refused_at_once(tmp_path, queries):
    def callback(trainer):
        return DataSelectionCallback(trainer, online_scores.GradientSimilarity(queries), rows=8)

    with pytest.raises(ValueError, match="as eval_dataset, and the score trainer.eval_dataset"):
        make(tmp_path, callback)


def test_scoring_takes_no_more_tokens_than_training_and_forms_no_logits(tmp_path, model_path, rows):
    """The head's own forward pass is what forms (B, T, V)."""
    needs_fused_head()
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

    data = Dataset.from_list([row for row in rows if row["completion"]][:16])
    settings = TRL | {"per_device_train_batch_size": 2, "num_train_epochs": 1, "save_strategy": "no"}
    trainer = SFTTrainer(model_path, args=SFTConfig(str(tmp_path), max_length=64, **settings), train_dataset=data)
    heads, sizes = [], []
    trainer.model.lm_head.register_forward_hook(lambda *_: heads.append(1))

    def score(model, batch):
        sizes.append(batch["input_ids"].numel())
        return online_scores.loss(model, batch)

    trainer.add_callback(DataSelectionCallback(trainer, score, rows=8))
    trainer.train()
    longest = max(map(len, trainer.train_dataset["input_ids"]))
    assert not heads and len(sizes) < 16 and max(sizes) <= 2 * longest


def test_the_token_budget_halves_when_memory_runs_out(tmp_path, caplog):
    asked = []

    def score(model, batch):
        asked.append(tuple(batch["input_ids"].shape))
        if batch["input_ids"].numel() > 26 or batch["input_ids"].shape[1] > 12:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return batch["input_ids"][:, 0].float()

    trainer, _ = make(tmp_path, select(score, tokens_per_batch=200))
    trainer.train()
    table = rounds(trainer)[0]
    longest = {i for i in range(ROWS) if len(pool()[i]["input_ids"]) > 12}
    for row, value in zip(table["row"], table["score"], strict=True):
        assert math.isnan(value) if row in longest else value == row
    assert asked[0][0] > 8 and all(rows * tokens <= 26 for rows, tokens in asked[-10:])
    assert f"{len(longest)} of 48 candidates have no score: 13 tokens do not fit in memory" in caplog.text


class OwnLoader(Trainer):
    """Draws every row, as AsyncGRPOTrainer and others do."""

    def get_train_dataloader(self):
        loader = DataLoader(self.train_dataset, 4, sampler=RandomSampler(range(ROWS)), collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)


class WrappedLoader(Trainer):
    def get_train_dataloader(self):
        return super().get_train_dataloader()


@pytest.mark.parametrize("cls", [OwnLoader, WrappedLoader])
def test_a_dataloader_that_does_not_draw_the_selected_rows_is_refused(tmp_path, cls):
    plain, collator = make(tmp_path)
    trainer = cls(plain.model, plain.args, train_dataset=pool(), data_collator=collator)
    trainer.add_callback(DataSelectionCallback(trainer, online_scores.loss, rows=8))
    if cls is WrappedLoader:
        trainer.train()
        assert len(rounds(trainer)) == 3
        return
    with pytest.raises(ValueError, match="training dataloader of OwnLoader does not draw the selected rows"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_trainer_whose_rows_change_with_its_stages_is_refused(tmp_path, model_path, sixteen):
    needs_irft()
    from hf_select.training.reward_learning.irft_config import IRFTConfig
    from hf_select.training.reward_learning.irft_trainer import IRFTTrainer

    args = IRFTConfig(str(tmp_path), max_length=160, max_completion_length=64, num_stages=2, **TRL | {"bf16": False})
    trainer = IRFTTrainer(model_path, args=args, train_dataset=sixteen)
    with pytest.raises(ValueError, match="IRFTTrainer trains on pairs that each stage generates"):
        DataSelectionCallback(trainer, online_scores.loss, rows=8)


def test_the_fused_head_of_trl_takes_a_model():
    needs_fused_head()
    from trl.trainer import add_fused_lm_head  # pyright: ignore[reportPrivateImportUsage]

    assert next(iter(inspect.signature(add_fused_lm_head).parameters)) == "model"


def test_the_private_names_of_datasets_and_transformers_are_those_that_were_seen():
    data = pool().filter(lambda row: row["old"] % 3 == 0).shuffle(seed=0)
    assert data._indices.column(0).to_pylist() == [-row for row in data["old"]] and data._data.num_rows == ROWS
    seen_by = getattr(Trainer, "_init_training_state", Trainer._inner_training_loop)  # transformers 4.57 has only this
    assert "resume_from_checkpoint" in inspect.signature(seen_by).parameters


def test_a_dataset_that_is_replaced_after_the_callback_is_refused(tmp_path):
    trainer, _ = make(tmp_path, select())
    trainer.train_dataset = pool().select(range(24))
    with pytest.raises(ValueError, match="train_dataset was replaced after"):
        trainer.train()


@pytest.mark.parametrize(("kind", "method"), [("tensor", "tp"), ("context", "cp"), ("sequence", "sp")])
def test_processes_that_share_rows_are_refused(tmp_path, monkeypatch, kind, method):
    trainer, _ = make(tmp_path)
    if hasattr(trainer, f"get_{method}_size"):
        monkeypatch.setattr(trainer, f"get_{method}_size", lambda: 2)
    else:  # transformers 4.57: only accelerate has it
        config = SimpleNamespace(**{f"{method}_size": 2})
        monkeypatch.setattr(trainer.accelerator.state, "parallelism_config", config, raising=False)
    with pytest.raises(ValueError, match=f"{kind} parallelism lets 2 processes work on the same rows"):
        DataSelectionCallback(trainer, online_scores.loss, rows=16)


def test_grouping_by_length_is_refused_under_its_older_name(tmp_path):
    trainer, _ = make(tmp_path)
    trainer.args.group_by_length = True
    with pytest.raises(ValueError, match="group_by_length=True would be replaced"):
        DataSelectionCallback(trainer, online_scores.loss, rows=16)


def test_a_sequential_trainer_draws_the_selected_rows_as_they_stand(tmp_path):
    trainer, collator = make(tmp_path, select("old", rows=16), **sampling("sequential"))
    trainer.train()
    assert [row for batch in collator.seen[:4] for row in batch] == list(range(16))


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_kto_trainer_takes_it(tmp_path, model_path, loss):
    from trl import KTOConfig, KTOTrainer  # pyright: ignore[reportPrivateImportUsage]

    rows = [{"prompt": f"Say {i}.", "completion": f" {i}", "label": i % 2 == 0, "mark": i} for i in range(16)]
    settings = TRL | NO_CHECKPOINTING | {"num_train_epochs": 1, "save_strategy": "no"}
    args = KTOConfig(str(tmp_path), loss_type=loss, **settings)
    tokenizer = hf.AutoTokenizer.from_pretrained(model_path)
    trainer = KTOTrainer(model_path, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.add_callback(DataSelectionCallback(trainer, "mark", TopK("score"), rows=8))
    trainer.train()
    assert trainer.state.global_step == 2
    (table,) = rounds(trainer)
    assert sorted(chosen(table)) == list(range(8, 16))


@pytest.mark.parametrize("method", ["ifd", "selectit", "rds"])
@pytest.mark.parametrize("bf16", [True, False])
def test_scorers_run_the_layers_in_the_precision_that_trains(tmp_path, model_path, rows, method, bf16):
    """In and out of training every linear layer gives what autocast makes of it; scores stay fp32."""
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

    data = Dataset.from_list([row for row in rows if row["completion"]][:16])
    settings = TRL | {"bf16": bf16, "num_train_epochs": 1, "save_strategy": "no"} | NO_CHECKPOINTING
    trainer = SFTTrainer(
        model_path, args=SFTConfig(str(tmp_path), max_length=64, model_init_kwargs={"dtype": "float32"}, **settings),
        train_dataset=data,
    )  # fmt: skip
    lm = CausalLM(trainer.model, tokenizer=trainer.processing_class)
    scorer = {"ifd": IFD, "rds": RDSPlus, "selectit": partial(SelectIT, level="token")}[method](lm)
    scorer = scorer.fit(data.select(range(3))) if method == "rds" else scorer
    before = {name: vars(module).get("forward") for name, module in trainer.model.named_modules()}
    seen: dict[bool, set] = {True: set(), False: set()}
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda layer, args, output: seen[layer.training].add(output.dtype))
    trainer.add_callback(DataSelectionCallback(trainer, scorer, rows=8))
    trainer.train()
    assert seen[True] == {torch.bfloat16 if bf16 else torch.float32} == seen[False]
    assert np.isfinite(rounds(trainer)[0][f"score_{method}"]).all()
    after = {name: vars(module).get("forward") for name, module in trainer.model.named_modules()}
    assert {name: value for name, value in after.items() if name} == {name: v for name, v in before.items() if name}
