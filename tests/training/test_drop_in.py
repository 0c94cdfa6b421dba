"""Selection in the trainers and settings that people use: each cell of the table in docs/drop_in.md.

A cell trains a tiny model (cells of one trainer share runs, see `RUNS`) and checks that the rows of each training step
are those that the callback selected, that the number of updates is right, and that the setting was in force. A refused
cell checks the message.
"""

import copy
import importlib.util
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from datasets import Dataset
from releases import sampling
from selection_training import NO_CHECKPOINTING, chosen, rounds
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import get_worker_info

from hf_select import DataSelectionCallback
from hf_select.training import label_losses, online_scores


PAGE = Path(__file__).parents[2] / "docs" / "drop_in.md"
ROWS, HELD_OUT, ROUND = 16, 4, 8
WORDS = ["<pad>", "<eos>", "<unk>", "say", "yes", "no", "maybe", *(f"row{i}" for i in range(ROWS + HELD_OUT))]
FIRST_ROW = WORDS.index("row0")

SETTINGS = {
    "dataloader workers": "loop",
    "group by length": "refused",
    "gradient accumulation": "loop",
    "max_steps": "loop",
    "evaluation": "loop",
    "Liger": "liger",
    "bf16": "bf16",
    "torch.compile": "compile",
    "LoRA": "lora",
    "online_scores.loss": "loss",
}
RUNS: dict[str, dict[str, Any]] = {
    "loop": {
        "dataloader_num_workers": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 5,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "per_device_eval_batch_size": 2,
    },
    # Without what Triton's interpreter, which runs the kernels on a CPU, cannot do.
    "liger": {"use_liger_kernel": True, "liger_kernel_config": {"rms_norm": False, "swiglu": False}},
    "bf16": {"bf16": True},
    "compile": {"torch_compile": True, "torch_compile_backend": "eager"},
    "lora": {},
    "loss": {},
}
OWN_SAMPLER = "GRPOTrainer has its own sampler of rows, which selection would replace; select the rows before training"
BY_LENGTH = "would be replaced by the selection; leave it out, or choose the order of a round with order="
NO_LABELS = 'and no "labels"; give the callback a function of your own that reads such a batch, or a score column'
NO_LANGUAGE_MODEL = "is not a causal, masked or encoder-decoder language model.*give the callback a function"


# Models, rows and trainers.


def tokenizer() -> Any:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="right"
    )


LLAMA = {"vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
         "num_attention_heads": 2, "initializer_range": 0.3, "pad_token_id": 0, "eos_token_id": 1,
         "bos_token_id": None}  # fmt: skip
T5 = {"vocab_size": len(WORDS), "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2,
      "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1, "dropout_rate": 0.0}  # fmt: skip


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """The models on disk: DPOTrainer loads its reference from there."""
    folder = tmp_path_factory.mktemp("models")
    for name, make in {
        "lm": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA)),
        "classes": lambda: hf.LlamaForSequenceClassification(hf.LlamaConfig(**LLAMA, num_labels=2)),
        "reward": lambda: hf.LlamaForSequenceClassification(hf.LlamaConfig(**LLAMA, num_labels=1)),
        "seq2seq": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)),
    }.items():
        torch.manual_seed(0)
        make().save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    return folder


def texts(i: int) -> tuple[str, str, str]:
    """(prompt with the row's own word, a good answer, a bad one), of different lengths."""
    return f"row{i} say" + " maybe" * (i % 3), " yes" * (1 + i % 4), " no" + " yes" * (i % 2)


def row(trainer: str, i: int) -> dict[str, Any]:
    prompt, good, bad = texts(i)
    ids = [WORDS.index(word) for word in f"{prompt}{good} <eos>".split()]
    answer = [WORDS.index(word) for word in f"{good} <eos>".split()]
    return {
        "Trainer": {"input_ids": ids, "labels": ids},
        "Trainer, classification": {"input_ids": ids, "labels": i % 2},
        "Seq2SeqTrainer": {"input_ids": ids, "labels": answer},
        "SFTTrainer": {"prompt": prompt, "completion": good},
        "DPOTrainer": {"prompt": prompt, "chosen": good, "rejected": bad},
        "RewardTrainer": {"chosen": prompt + good, "rejected": prompt + bad},
        "KTOTrainer": {"prompt": prompt, "completion": good if i % 2 else bad, "label": bool(i % 2)},
        "GRPOTrainer": {"prompt": prompt},
    }[trainer]


MODEL_OF = {"Trainer, classification": "classes", "Seq2SeqTrainer": "seq2seq", "RewardTrainer": "reward"}
TRAINERS = ("Trainer", "Trainer, classification", "Seq2SeqTrainer", "SFTTrainer", "DPOTrainer", "RewardTrainer",
            "KTOTrainer", "GRPOTrainer")  # fmt: skip
# What is refused, and how; all else works.
REFUSED: dict[tuple[str, str], str] = {(name, "group by length"): BY_LENGTH for name in TRAINERS}
REFUSED |= {("GRPOTrainer", setting): OWN_SAMPLER for setting in SETTINGS}
REFUSED |= {(name, "online_scores.loss"): NO_LABELS for name in ("DPOTrainer", "RewardTrainer", "KTOTrainer")}
REFUSED |= {("Trainer, classification", "online_scores.loss"): NO_LANGUAGE_MODEL}


def loaded(name: str, folder: Path) -> Any:
    path = folder / MODEL_OF.get(name, "lm")
    cls = {"classes": "Auto", "reward": "Auto", "seq2seq": "AutoModelForSeq2SeqLM"}.get(path.name)
    cls = {None: "AutoModelForCausalLM", "Auto": "AutoModelForSequenceClassification"}.get(cls, cls)
    return getattr(hf, str(cls)).from_pretrained(path, dtype=torch.float32, attn_implementation="eager")


def made(name: str, folder: Path, out: Path, settings: dict[str, Any], adapter: bool = False) -> Any:
    """The trainer with these settings."""
    settings = {
        "per_device_train_batch_size": 4, "num_train_epochs": 2, "learning_rate": 1e-2, "report_to": "none",
        "use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1,
        **NO_CHECKPOINTING, **settings,
    }  # fmt: skip
    if settings.get("use_liger_kernel") and MODEL_OF.get(name) in ("classes", "reward"):
        settings["liger_kernel_config"]["fused_linear_cross_entropy"] = False  # Liger's forward needs an lm_head
    words, model = tokenizer(), loaded(name, folder)
    data = Dataset.from_list([row(name, i) for i in range(ROWS)])
    held_out = Dataset.from_list([row(name, i) for i in range(ROWS, ROWS + HELD_OUT)])
    given: dict[str, Any] = {"train_dataset": data, "eval_dataset": held_out, "processing_class": words}
    lora: Any = None
    if adapter:
        from peft import LoraConfig

        targets = ["q", "v"] if "Seq2Seq" in name else ["q_proj", "v_proj"]
        kinds = {"classes": "SEQ_CLS", "reward": "SEQ_CLS", "seq2seq": "SEQ_2_SEQ_LM"}
        lora = LoraConfig(
            r=2, target_modules=targets, task_type=kinds.get(MODEL_OF.get(name, ""), "CAUSAL_LM"),
            modules_to_save=["score"] if MODEL_OF.get(name) in ("classes", "reward") else None,
        )  # fmt: skip
    if name.split(",")[0] not in ("Trainer", "Seq2SeqTrainer"):
        import trl

        if name == "GRPOTrainer":
            settings |= {"num_generations": 2, "max_completion_length": 4}
            given["reward_funcs"] = lambda completions, **_: [0.0] * len(completions)
        args = getattr(trl, name.replace("Trainer", "Config"))(str(out), **settings)
        given |= {"peft_config": lora} if adapter else {}
        return getattr(trl, name)(model, args=args, **given)
    if adapter:
        from peft import get_peft_model

        model = get_peft_model(model, lora)
    seq2seq = name == "Seq2SeqTrainer"
    args = (hf.Seq2SeqTrainingArguments if seq2seq else hf.TrainingArguments)(str(out), **settings)
    collate = hf.DataCollatorWithPadding if "class" in name else hf.DataCollatorForSeq2Seq
    collator = collate(words, pad_to_multiple_of=16)  # one shape, compiled once
    return (hf.Seq2SeqTrainer if seq2seq else hf.Trainer)(model, args, data_collator=collator, **given)


def score_of(name: str) -> Callable[..., Any]:
    """The loss where the batch is one of a language model, otherwise a function of the model's outputs."""
    if name in ("Trainer", "Seq2SeqTrainer", "SFTTrainer"):
        return online_scores.loss

    def score(model: Any, batch: Any) -> Any:
        part = next(p for p in ("", "chosen_", "completion_") if f"{p}input_ids" in batch)
        ids, mask = batch[f"{part}input_ids"], batch[f"{part}attention_mask"]
        if name in ("DPOTrainer", "RewardTrainer") and part == "":  # chosen answers, then rejected ones
            ids, mask = ids.chunk(2)[0], mask.chunk(2)[0]
        logits = model(input_ids=ids, attention_mask=mask).logits.float()
        if logits.ndim == 2:  # one row of logits a sequence
            return logits[:, 0]
        return (logits.std(-1) * mask).sum(1) / mask.sum(1)

    return score


# One run, and what was seen of it.


@dataclass
class Run:
    updates: int = 0
    steps: list[list[int]] = field(default_factory=list)  # rows of each call of training_step
    evaluated: list[int] = field(default_factory=list)  # rows
    evaluations: list[int] = field(default_factory=list)  # update after which
    tables: list[dict[str, Any]] = field(default_factory=list)
    dtypes: dict[bool, set] = field(default_factory=lambda: {True: set(), False: set()})  # of linear layers
    changed: list[str] = field(default_factory=list)  # parameters
    losses: list[float] = field(default_factory=list)
    by_workers: set[int] = field(default_factory=set)  # rows
    graphs: int = 0
    liger: list[str] = field(default_factory=list)  # what is Liger's of a Llama
    last_step: int = 0
    max_steps: int = 0

    @property
    def scores(self) -> np.ndarray:
        """Of the rows before the first update."""
        by_row = dict(zip(self.tables[0]["row"], self.tables[0]["score"], strict=True))
        return np.array([by_row[i] for i in range(ROWS)])


def rows_in(inputs: Any) -> list[int]:
    """The rows whose words stand in a batch."""
    found: set[int] = set()
    for value in inputs.values():
        if isinstance(value, torch.Tensor) and value.ndim == 2 and not value.is_floating_point():
            found |= {int(token) - FIRST_ROW for token in value.unique() if token >= FIRST_ROW}
    return sorted(found)


class Collator:
    """A trainer's collator that notes the rows that worker processes collate."""

    def __init__(self, collator: Any, notes: Path):
        self.collator, self.notes = collator, notes

    def __call__(self, batch: list[Any]) -> Any:
        inputs = self.collator(batch)
        if get_worker_info() is not None:
            with open(self.notes / f"{os.getpid()}.txt", "a") as file:
                file.write(" ".join(map(str, rows_in(inputs))) + "\n")
        return inputs


class Watch(hf.TrainerCallback):
    def __init__(self, run: Run):
        self.run = run

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.run.updates += 1

    def on_evaluate(self, args, state, control, **kwargs):
        self.run.evaluations.append(state.global_step)


def trained(name: str, kind: str, folder: Path, out: Path) -> Run:
    """A whole training, watched from outside the callback."""
    trainer = made(name, folder, out, copy.deepcopy(RUNS[kind]), adapter=kind == "lora")
    run = Run()
    score = online_scores.loss if kind == "loss" else score_of(name)
    trainer.add_callback(DataSelectionCallback(trainer, score, rows=ROUND))
    trainer.add_callback(Watch(run))
    out.mkdir(parents=True, exist_ok=True)
    trainer.data_collator = Collator(trainer.data_collator, out)
    training_step, prediction_step = trainer.training_step, trainer.prediction_step

    def watched_step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        run.steps.append(rows_in(inputs))
        return training_step(model, inputs, *args, **kwargs)

    def watched_evaluation(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        run.evaluated += rows_in(inputs)
        return prediction_step(model, inputs, *args, **kwargs)

    trainer.training_step, trainer.prediction_step = watched_step, watched_evaluation
    if kind == "bf16":
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(lambda layer, _, output: run.dtypes[layer.training].add(output.dtype))
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    if kind == "compile":
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
    trainer.train()
    if kind == "compile":
        run.graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        torch._dynamo.reset()
    inner = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    run.changed = [n for n, p in inner.named_parameters() if not torch.equal(p.detach(), before[n])]
    rotate = hf.models.llama.modeling_llama.apply_rotary_pos_emb
    run.liger = [name for name, code in (("head", inner.forward), ("rope", rotate)) if "liger" in code.__module__]
    run.last_step, run.max_steps = trainer.state.global_step, trainer.state.max_steps
    run.tables = rounds(trainer)
    run.losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    notes = [line.split() for path in out.glob("*.txt") for line in path.read_text().splitlines()]
    run.by_workers = {int(number) for line in notes for number in line}
    return run


@pytest.fixture(scope="session")
def run(model_folder, tmp_path_factory):
    """Runs by (trainer, kind), each made once."""

    @cache
    def one(name: str, kind: str) -> Run:
        return trained(name, kind, model_folder, tmp_path_factory.mktemp("run") / "out")

    return one


@pytest.fixture(scope="session")
def liger_runs(model_folder, tmp_path_factory) -> dict[str, Run]:
    """Runs with Liger by trainer, in a process of their own: Liger replaces functions of transformers, and Triton is
    told before it is imported to interpret kernels on the CPU."""
    for package in ("liger_kernel", "triton"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is missing: pip install liger-kernel triton")
    out = tmp_path_factory.mktemp("liger")
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, __file__, str(model_folder), str(out)],
        env={**os.environ, **interpreted, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    if old := re.search("liger-kernel requires transformers .*", done.stderr):
        pytest.skip(old[0])
    if done.returncode != 0:
        pytest.fail(done.stderr[-2000:], pytrace=False)
    return pickle.loads((out / "runs.pickle").read_bytes())


# The cells.


def check_rows(run: Run, updates: int, per_step: int) -> None:
    """Rows trained are rows selected, those with the highest scores; the number of updates is right."""
    per_update = 4 // per_step
    assert run.updates == updates == run.last_step
    assert len(run.steps) == updates * per_update and all(len(rows) == per_step for rows in run.steps)
    assert len(run.tables) == -(-updates * 4 // ROUND)
    for number, table in enumerate(run.tables):
        ranked = np.argsort(-np.array(table["score"]), kind="stable")[:ROUND]
        assert set(chosen(table)) == {table["row"][i] for i in ranked}
        steps = run.steps[number * ROUND // per_step :][: ROUND // per_step]
        of_round = [row for rows in steps for row in rows]
        if len(of_round) == ROUND:
            assert sorted(of_round) == sorted(chosen(table))
        else:  # the run ended inside the round
            assert len(set(of_round)) == len(of_round) and set(of_round) < set(chosen(table))
    assert np.isfinite(run.losses).all() and len(run.changed) > 0


def check_workers(run: Run) -> None:
    assert {row for rows in run.steps for row in rows} <= run.by_workers


def check_accumulation(run: Run) -> None:
    assert len(run.steps) == 2 * run.updates


def check_max_steps(run: Run) -> None:
    assert run.updates == RUNS["loop"]["max_steps"] and run.max_steps == run.updates


def check_evaluation(run: Run) -> None:
    assert run.evaluations[:2] == [2, 4] and len(run.evaluations) <= 3  # some releases evaluate at the end, too
    assert sorted(run.evaluated) == sorted(len(run.evaluations) * [*range(ROWS, ROWS + HELD_OUT)])


def check_liger(name: str, run: Run, reference: Run) -> None:
    if name != "Seq2SeqTrainer":  # Liger has no kernels for T5 and BART, and leaves them as they are
        assert "rope" in run.liger and ("head" in run.liger or name != "Trainer"), run.liger
    np.testing.assert_allclose(run.scores, reference.scores, rtol=1e-4, atol=1e-5)


def check_bf16(run: Run, reference: Run) -> None:
    assert torch.bfloat16 in run.dtypes[True] and run.dtypes[False] == run.dtypes[True]
    np.testing.assert_allclose(run.scores, reference.scores, rtol=0.05, atol=0.05)
    assert not np.array_equal(run.scores, reference.scores), "scored without autocast"


def check_compile(run: Run, reference: Run) -> None:
    assert run.graphs > 0, "nothing was compiled"
    np.testing.assert_allclose(run.scores, reference.scores, rtol=1e-4, atol=1e-5)


def check_lora(run: Run, reference: Run) -> None:
    assert all("lora_" in name or "modules_to_save" in name for name in run.changed), run.changed
    assert any("lora_" in name for name in run.changed)
    np.testing.assert_allclose(run.scores, reference.scores, rtol=1e-4, atol=1e-5)  # a new adapter changes nothing


CHECKS: dict[str, Callable[..., None]] = {
    "dataloader workers": check_workers,
    "gradient accumulation": check_accumulation,
    "max_steps": check_max_steps,
    "evaluation": check_evaluation,
    "Liger": check_liger,
    "bf16": check_bf16,
    "torch.compile": check_compile,
    "LoRA": check_lora,
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", TRAINERS)
def test_a_cell(name, setting, run, model_folder, tmp_path, request):
    if (name, setting) in REFUSED:
        message = REFUSED[name, setting]
        settings = {}
        if message == BY_LENGTH:
            settings = sampling("group_by_length")
            # With its KL term KTOTrainer of trl 1.16 refuses it itself.
            settings |= {"loss_type": "apo_zero_unpaired"} if name == "KTOTrainer" else {}
        trainer = made(name, model_folder, tmp_path, settings)
        with pytest.raises(ValueError, match=message):
            trainer.add_callback(DataSelectionCallback(trainer, online_scores.loss, rows=ROUND))
            trainer.train()
        assert trainer.state.global_step == 0
        return
    kind = SETTINGS[setting]
    done: Run = request.getfixturevalue("liger_runs")[name] if kind == "liger" else run(name, kind)
    check_rows(done, updates=5 if kind == "loop" else 4, per_step=2 if kind == "loop" else 4)
    if setting in CHECKS:
        check = CHECKS[setting]
        if kind == "loop":
            check(done)
        elif kind == "liger":
            check(name, done, run(name, "loop"))
        else:
            check(done, run(name, "loop"))


# The page.


def table() -> dict[tuple[str, str], str]:
    lines = [line for line in PAGE.read_text().partition("## Refusals")[0].splitlines() if line.startswith("|")]
    header, _, *body = [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines]
    return {(cells[0], name): cell for cells in body for name, cell in zip(header[1:], cells[1:], strict=True)}


def test_the_page_shows_the_cells_as_they_are_tested():
    """A refused cell links to a section that quotes the message."""
    cells = table()
    assert {*cells} == {(name, setting) for name in TRAINERS for setting in SETTINGS}
    sections = {}
    for section in PAGE.read_text().split("\n### ")[1:]:
        title, _, text = section.partition("\n")
        sections[title.lower().replace(" ", "-")] = " ".join(text.replace("> ", "").split())
    for cell, text in cells.items():
        if cell not in REFUSED:
            assert text == "works", cell
            continue
        link = re.fullmatch(r"\[refused\]\(#(.*)\)", text)
        assert link is not None and re.search(REFUSED[cell], sections[link[1]]), cell


def test_a_forward_that_forms_no_logits_with_labels_gives_the_losses_of_rows(model_folder):
    """As Liger's forward does while training: only the mean loss of the batch."""
    model, words = loaded("Trainer", model_folder), tokenizer()
    batch = hf.DataCollatorForSeq2Seq(words)([row("Trainer", i) for i in range(4)])
    with torch.no_grad():
        expected = online_scores.loss(model, batch)
        forward = model.forward

        def fused(*args: Any, labels: Any = None, **kwargs: Any) -> Any:
            output = forward(*args, labels=labels, **kwargs)
            if labels is not None:
                output.logits = None
            return output

        model.forward = fused
        with label_losses.fused_head(model):
            torch.testing.assert_close(online_scores.loss(model, batch), expected)
        torch.testing.assert_close(online_scores.loss(model, batch), expected)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="TorchInductor needs a C++ compiler on a CPU")
def test_inductor_compiles_training_steps_beside_the_scores(model_folder, tmp_path, run, monkeypatch):
    monkeypatch.setitem(RUNS["compile"], "torch_compile_backend", "inductor")
    done = trained("Trainer", "compile", model_folder, tmp_path)
    check_rows(done, updates=4, per_step=4)
    check_compile(done, run("Trainer", "loop"))


if __name__ == "__main__":
    models_in, runs_in = map(Path, sys.argv[1:])
    names = [name for name in TRAINERS if name != "GRPOTrainer"]
    runs = {name: trained(name, "liger", models_in, runs_in / str(i)) for i, name in enumerate(names)}
    sys.modules["test_drop_in"] = sys.modules["__main__"]  # the module's name where the runs are read
    Run.__module__ = "test_drop_in"
    (runs_in / "runs.pickle").write_bytes(pickle.dumps(runs))
