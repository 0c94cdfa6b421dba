"""hf-select train"""

import argparse
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hf_select.cli.score import Rows, build_parts, scorer_class
from hf_select.cli.settings import import_name, settable, suggest
from hf_select.data import columns
from hf_select.data.chat_template import TRAIN_FLAGS, counts
from hf_select.data.conversation import Conversation, readable_columns


if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig


# method -> its configuration and its trainer
METHODS = {
    "sft": ("trl:SFTConfig", "trl:SFTTrainer"),
    "sft-baseline": (
        "hf_select.training.reward_learning.sft_baseline:SFTBaselineConfig",
        "hf_select.training.reward_learning.sft_baseline:SFTBaselineTrainer",
    ),
    "irft": (
        "hf_select.training.reward_learning.irft_config:IRFTConfig",
        "hf_select.training.reward_learning.irft_trainer:IRFTTrainer",
    ),
    "rft": (
        "hf_select.training.reward_learning.rft_config:RFTConfig",
        "hf_select.training.reward_learning.rft_trainer:RFTTrainer",
    ),
}

# name -> function or class, as `--score MODULE:NAME` names one of your own
ONLINE_SCORES = {
    "loss": "hf_select.training.online_scores:loss",
    "perplexity": "hf_select.training.online_scores:perplexity",
    "loss_change": "hf_select.training.online_scores:LossChange",
    "gradients": "hf_select.training.online_scores:GradientSimilarity",
}


@dataclass(kw_only=True)
class OnlineSelection:
    """Selection by the model in training; see DataSelectionCallback.

    Args:
        score: loss, perplexity, loss_change, gradients (with queries), your own OnlineScore or function as
            MODULE:NAME, a scorer such as ifd, selectit or rds (with queries), or a score column of the dataset; by
            default every row is trained on.
        queries: rows of the target task, for gradients and scorers with targets; a file, a saved dataset or a Hub id.
        which: rows to select: best (highest score), middle or worst.
        every: optimizer steps of a round, instead of rows or fraction.
        round_rows: rows of a round.
        fraction: of the dataset in a round.
        keep: share of the candidates that is kept; two for a ramp over the run.
        max_candidates: largest number of random candidates that a round scores.
        warmup_rounds: rounds of random rows before the first selection.
        consume_once: a row that was trained on is a candidate again only when too few others are left.
        random_share: share of a round that is sampled at random.
        order: of the rows of a round: random, easy_to_hard or hard_to_easy.
        source_column: column whose values are counted among the selected rows.
        tokens_per_batch: tokens, padding included, of one forward pass that scores; halved when memory runs out.
    """

    score: str | None = None
    queries: str | None = None
    which: Literal["best", "middle", "worst"] = "best"
    every: int | None = None
    round_rows: int | None = None
    fraction: float | None = None
    keep: list[float] | None = None
    max_candidates: int | None = None
    warmup_rounds: int = 0
    consume_once: bool = False
    random_share: float = 0.0
    order: Literal["random", "easy_to_hard", "hard_to_easy"] = "random"
    source_column: str | None = None
    tokens_per_batch: int | None = None

    def callback(self, trainer: Any) -> Any:
        """The callback of these settings; the trainer has the queries, prepared, as its evaluation set "queries"."""
        from hf_select.selection.top_k import TopK
        from hf_select.training.callback import DataSelectionCallback

        if self.keep is not None and len(self.keep) > 2:
            raise ValueError(f"keep is {self.keep}; give one share, or the first and the last of a ramp.")
        return DataSelectionCallback(
            trainer,
            self._score(trainer),
            TopK("score", which=self.which),
            every="epoch" if self.every is None else self.every,
            rows=self.round_rows,
            fraction=self.fraction,
            keep=self.keep[0] if self.keep and len(self.keep) == 1 else tuple(self.keep) if self.keep else None,  # type: ignore[arg-type]
            max_candidates=self.max_candidates,
            warmup=self.warmup_rounds,
            consume_once=self.consume_once,
            random_share=self.random_share,
            order=self.order,
            source_column=self.source_column,
            tokens_per_batch=self.tokens_per_batch,
        )

    def _score(self, trainer: Any) -> Any:
        """The online score, the scorer or the column that `score` names."""
        from hf_select.models.causal_lm import CausalLM
        from hf_select.scoring import SCORERS
        from hf_select.scoring.scorer import Scorer

        assert self.score is not None
        queries = trainer.eval_dataset["queries"] if self.queries is not None else None
        if self.score in trainer.train_dataset.column_names:
            return self.score
        if self.score in ONLINE_SCORES or ":" in self.score:
            target = import_name(ONLINE_SCORES.get(self.score, self.score))
            if not (isinstance(target, type) and issubclass(target, Scorer)):
                return _online_score(self.score, target, queries)
        elif self.score not in SCORERS:
            known = (*ONLINE_SCORES, *SCORERS, *trainer.train_dataset.column_names)
            raise suggest("score", self.score, known)
        cls = scorer_class(self.score)
        if "model" not in {f.name for f in settable(cls)}:
            raise ValueError(f"scorer {self.score} runs no model; score the dataset before and name the column.")
        scorer = cls(CausalLM(trainer.model, tokenizer=trainer.processing_class))  # type: ignore[call-arg]
        if scorer.needs_fit:
            if queries is None:
                raise ValueError(f"scorer {self.score} needs --queries: rows of the target task.")
            scorer.fit(queries)
        return scorer


def _online_score(name: str, target: Any, queries: "Dataset | None") -> Any:
    """The online score of a class, or the function itself."""
    from hf_select.training.online_score import OnlineScore

    if not isinstance(target, type):
        return target
    if not issubclass(target, OnlineScore):
        raise ValueError(f"score {name} is a class that does not extend hf_select.OnlineScore or hf_select.Scorer.")
    if not target.needs_queries:
        return target()
    if queries is None:
        raise ValueError(f"score {name} needs --queries: rows of the target task.")
    return target(queries=queries)  # type: ignore[call-arg]


@dataclass(kw_only=True)
class Train(Rows):
    """Train a model with a trainer of TRL or of this package; the same command resumes a killed run. Under accelerate
    launch all processes train together.

    Args:
        method: sft: supervised, on all rows or on those that the model selects while it trains. irft: reward learning
            from demonstrations and the model's own answers, in stages (IRFT, SPIN). rft: the same with an explicit
            reward model and policy gradients. sft-baseline: supervised, on the tokens that irft trains on.
        model: Hub id or path of the causal LM.
        args: settings of the method's configuration (sft: TRL's SFTConfig; irft: IRFTConfig; rft: RFTConfig), e.g.
            learning_rate=1e-5 max_steps=100.
        lora: train a LoRA adapter with these settings of PEFT's LoraConfig, e.g. r=16 lora_alpha=32.
        eval_dataset: rows to measure the loss on; a file, a saved dataset or a Hub id.
    """

    method: str
    model: str
    args: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Any] | None = None
    eval_dataset: str | None = None

    modules: ClassVar[tuple[str, ...]] = ("trl", "peft")
    example: ClassVar[str] = (
        "hf-select train sft --model Qwen/Qwen2.5-0.5B --dataset subset.parquet --output-dir sft "
        "--args learning_rate=2e-5 num_train_epochs=2"
    )

    first_word: ClassVar[str | None] = "method"
    decided_by: ClassVar[Mapping[str, Collection[str]]] = {"method": METHODS}

    @classmethod
    def parts(cls, values: Mapping[str, Any]) -> list[type]:
        return [OnlineSelection] if values.get("method") == "sft" else []

    def run(self) -> None:
        """Train the model and save it."""
        from hf_select.jobs.run_folder import claim_run_folder
        from hf_select.training.resuming import last_whole_checkpoint
        from hf_select.training.reward_learning.releases import check_trl

        if self.method not in METHODS:
            raise suggest("method", self.method, METHODS)
        if self.method in ("irft", "rft"):
            check_trl()
        config, trainer_class = (import_name(home) for home in METHODS[self.method])
        selection = build_parts(self.parts({"method": self.method}), self.settings, "train") if self.settings else None
        folder = Path(self.output_dir).expanduser()
        named = {"eval": self.eval_dataset, "queries": None if selection is None else selection.queries}
        rows, evaluation = self.read({name: source for name, source in named.items() if source is not None})
        if self.method == "sft":
            _refuse_left_out_turns(rows)
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("output_dir", "rename")}
        args = configured(config, {"output_dir": str(folder), **self.args})
        settings["weights"] = _identity(self.model, (args.model_init_kwargs or {}).get("revision"))
        last = last_whole_checkpoint(folder)
        # Trainer uploads no file whose name begins with an underscore.
        claim_run_folder(folder / "_train.json", settings, "a training", rows)
        if columns.ROW_ID not in rows.column_names:  # TRL's trainers leave rows out and shuffle
            rows = rows.add_column(columns.ROW_ID, range(len(rows)))
        trainer = trainer_class(
            self.model,
            args=args,
            train_dataset=rows,
            eval_dataset=evaluation if "queries" in evaluation else evaluation.get("eval"),
            peft_config=None if self.lora is None else _lora(self.lora),
        )
        if selection is not None and selection.score is not None:
            trainer.add_callback(selection.callback(trainer))
        trainer.train(resume_from_checkpoint=last)
        trainer.save_model()
        if trainer.is_world_process_zero():
            print(f"{trainer.state.global_step} steps; the model is in {self.output_dir}")


def _identity(model: str, revision: str | None) -> str:
    """What identifies a base model: its commit on the Hub or the content of its folder, and that of its adapter."""
    from hf_select.models.sources import find_all

    sources = find_all(model, None, None, revision)
    return ", adapter ".join(source.identity for source in (sources.model, sources.adapter) if source is not None)


def _refuse_left_out_turns(rows: "Dataset") -> None:
    """Raise ValueError for a reply marked as not trained on: TRL's SFTTrainer would train on it."""
    chats = [
        rows.features[name] for name in ("messages", "conversations") if name in readable_columns(rows.column_names)
    ]
    if not any(_may_have_marks(feature) for feature in chats):
        return
    from hf_select.data.rows import conversations_of

    for i, row in enumerate(conversations_of(rows)):
        messages = row.messages if isinstance(row, Conversation) else []
        turn = next((n for n, m in enumerate(messages) if m["role"] == "assistant" and not counts(m)), None)
        if turn is not None:
            raise ValueError(
                f"turn {turn} of row {i} is not to be trained on (train: false or weight: 0), and TRL's "
                "SFTTrainer ignores such marks. Use sft-baseline to train on the last reply only, or remove the "
                "row or the mark."
            )


def _may_have_marks(feature: Any) -> bool:
    """Whether a column of messages may have such marks: the type of structs names their keys, JSON and text do not."""
    turn = getattr(feature, "feature", feature)
    return not isinstance(turn, dict) or not turn.keys().isdisjoint(TRAIN_FLAGS)


def configured(config: type, values: dict[str, Any]) -> Any:
    """The configuration of a trainer from plain values, with names checked and types as its own flags have them."""
    from transformers import HfArgumentParser

    from hf_select.training._compat import checkpointing

    known = {f.name for f in fields(config)}
    on = checkpointing(config, True)
    if on.keys() <= known and not {"gradient_checkpointing", "activation_checkpointing"} & values.keys():
        values = {**values, **on}
    parser = HfArgumentParser(config, exit_on_error=False)  # type: ignore[arg-type]
    flags = []
    for name, value in values.items():
        if name not in known:
            raise suggest("setting", name, known, of=config.__name__)
        if (settings := _json_object(value)) is not None:
            parser.set_defaults(**{name: settings})  # trl 0.24 has such settings that its flags cannot read
            continue
        several = value if isinstance(value, list) else [value]
        flags += [f"--{name}", *(json.dumps(v) if isinstance(v, dict) else str(v) for v in several)]
    try:
        (configuration,) = parser.parse_args_into_dataclasses(flags)
    except argparse.ArgumentError as error:
        raise ValueError(f"{config.__name__}: {error}") from None
    except ValueError as error:
        if "use_cpu" not in str(error) and "support bf16/gpu" not in str(error):  # transformers 4.57: the second
            raise
        raise ValueError(
            "PyTorch finds no accelerator. To train on the CPU: --args use_cpu=true (and bf16=false for "
            "float32); in a recipe args: {use_cpu: true}."
        ) from error
    return configuration


def _json_object(value: Any) -> dict[str, Any] | None:
    """The value as a dict, if it is one or the text of a JSON object."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return None
    return value if isinstance(value, dict) else None


def _lora(values: dict[str, Any]) -> "LoraConfig":
    """The adapter's configuration from plain values, with names checked."""
    import yaml
    from peft import LoraConfig

    from hf_select.training.lora import lora_config

    known = {f.name for f in fields(LoraConfig)}
    for name in values:
        if name not in known:
            raise suggest("setting", name, known, of="LoraConfig")
    read = {name: yaml.safe_load(value) if isinstance(value, str) else value for name, value in values.items()}
    return lora_config(**read)
