"""What IRFT and RFT share: a run in stages, at the beginning of each of which the policy answers prompts.

A stage is some rows of demonstrations and some passes over what was made of them. One `train()`, one optimizer and
one engine serve all stages: each epoch is given the loader of its stage (what DeepSpeed and FSDP prepared is never
prepared again), and optimizer and learning rate begin anew with the stages or do not. `InStages` stands before one of
TRL's trainers among the bases of a class, `StagesConfig` before that trainer's configuration.
"""

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, get_scheduler
from transformers.utils import logging

from hf_select.atomic import atomic_path
from hf_select.data import columns
from hf_select.data.chat_template import FALLBACK_TEMPLATE
from hf_select.data.encoding import response_end
from hf_select.data.rows import pool_fingerprint
from hf_select.models.sampling import Sampling
from hf_select.training import _compat
from hf_select.training.resuming import last_whole_checkpoint
from hf_select.training.reward_learning.demonstrations import (
    CHOSEN,
    MOST_LEFT_OUT,
    PROMPT,
    REJECTED,
    StageFolder,
    length_auc,
    stream_seed,
)
from hf_select.training.reward_learning.policy_answers import answer_all, on_main, weights_digest
from hf_select.validation import check_choices


logger = logging.get_logger(__name__)

_LENGTHS_TELL = 0.8  # AUC above which length alone nearly tells demonstrations from answers


@dataclass
class StagesConfig:
    """Settings of stages and of the answers that each begins with. `num_train_epochs` counts the passes of a stage."""

    num_stages: int = field(
        default=5,  # code: 5 slices of 10,000 prompts; paper: "IRFT T=5", caption of table 8
        metadata={"help": "T: how many times the policy answers anew. 1 is one iteration of SPIN."},
    )
    data_per_stage: Literal["slice", "full"] = field(
        default="slice",  # code
        metadata={
            "help": "'slice': each stage has its own part of the rows, so that all stages together answer each prompt "
            "once. 'full': each stage answers every prompt (SPIN)."
        },
    )
    stage_schedule: Literal["stage", "run"] = field(
        default="stage",  # code: optimizer and schedule restart in every stage
        metadata={
            "help": "'stage': the optimizer's state and the learning-rate schedule begin anew with each stage. 'run': "
            "one optimizer and one schedule over all stages."
        },
    )
    num_train_epochs: float = field(
        default=1.0,  # code: 1 for the 7B stages; caption of table 3 and SPIN: 2
        metadata={"help": "Passes over the rows of a stage; a whole number."},
    )
    stage_learning_rates: list[float] | None = field(
        default=None,
        metadata={"help": "Highest learning rate of each stage in place of one (SPIN: 5e-7 5e-7 1e-7 1e-7)."},
    )

    # Answers

    max_length: int = field(
        default=1024,  # SPIN's code
        metadata={"help": "Tokens of prompt and completion. Rows that are longer are left out and counted."},
    )
    max_completion_length: int = field(
        default=256,  # code and SPIN's code: 256 new tokens
        metadata={"help": "Tokens of an answer, and so of a demonstration: longer ones are left out and counted."},
    )
    max_left_out: float = field(
        default=MOST_LEFT_OUT,
        metadata={
            "help": "Share of the rows that may be left out because they are too long or have no response; above it "
            "training does not begin."
        },
    )
    temperature: float = field(
        default=1.0, metadata={"help": "Of sampling; 1 draws from the policy itself, 0 takes the likeliest token."}
    )
    top_p: float = field(default=1.0, metadata={"help": "Of sampling; 1 is all of the distribution."})
    top_k: int = field(default=0, metadata={"help": "Of sampling; 0 is all of the vocabulary."})
    generation_tokens_per_batch: int = field(
        default=32768,
        metadata={
            "help": "Tokens of one batch of generation, prompts, answers and padding; halved when memory runs out."
        },
    )
    rows_per_shard: int = field(
        default=256,
        metadata={"help": "Answers that are written together; a killed run has to make at most so many again."},
    )
    use_transformers_continuous_batching: bool = field(
        default=False,
        metadata={"help": "Let a prompt take the place of an answer that has ended (transformers' generate_batch)."},
    )
    transformers_continuous_batching_config: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Settings of its engine: page_size, num_blocks, max_batch_tokens ..."}
    )
    ds3_gather_for_generation: bool = field(
        default=True,
        metadata={
            "help": "Under ZeRO-3 put the weights together on each device for generation: far faster. False where "
            "they do not fit."
        },
    )
    use_vllm: bool = field(default=False, metadata={"help": "Answer with vLLM, through TRL (extra `vllm`)."})
    vllm_mode: Literal["colocate", "server"] = field(
        default="colocate", metadata={"help": "'colocate': on the training devices. 'server': `trl vllm-serve`."}
    )
    vllm_server_base_url: str | None = field(default=None, metadata={"help": "Where the server listens."})
    vllm_tensor_parallel_size: int = field(default=1, metadata={"help": "Devices that share one colocated model."})
    vllm_gpu_memory_utilization: float = field(
        default=0.3, metadata={"help": "Share of a device's memory for colocated vLLM."}
    )
    vllm_enable_sleep_mode: bool = field(
        default=True, metadata={"help": "Let colocated vLLM give its memory back while a stage trains."}
    )

    # Logging, memory

    activation_checkpointing: bool | None = field(
        default=True,  # as in every trainer of TRL 1.16, there under the name that transformers 5.23 takes back
        metadata={"help": "Compute activations again in the backward pass in place of keeping them."},
    )
    num_completions_to_log: int = field(
        default=8, metadata={"help": "Answers of each stage that log_completions shows next to their demonstrations."}
    )
    log_completions: bool = field(
        default=False,
        metadata={
            "help": "Print a table of answers of each stage and keep it in output_dir/_completions, which Trainer "
            "does not upload."
        },
    )

    # Settings of TRL's configuration that mean nothing here, or something else, and what that is called: a value that
    # was set and not used would be a lie.
    _not_ours: ClassVar[tuple[str, ...]] = ()
    _method: ClassVar[tuple[str, str]] = ("", "")

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]  # of TRL's configuration, which stands behind this class
        check_choices(self)
        theirs, ours = self._method
        for f in fields(self):
            default = f.default_factory() if f.default_factory is not MISSING else f.default
            if f.name in self._not_ours and getattr(self, f.name) != default:
                raise ValueError(f"{f.name} is a setting of {theirs} that {ours} does not have; leave it out.")
        for name, smallest in (("num_stages", 1), ("rows_per_shard", 1), ("max_completion_length", 1)):
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {smallest}.")
        if self.num_train_epochs < 1 or self.num_train_epochs != int(self.num_train_epochs):
            raise ValueError(
                f"num_train_epochs is {self.num_train_epochs}; a stage takes whole passes over its rows, at least 1."
            )
        self._one_for_each_stage("stage_learning_rates")
        if self.max_length is None or self.max_completion_length >= self.max_length:
            raise ValueError(
                f"max_completion_length is {self.max_completion_length} and max_length {self.max_length}, which "
                "leaves no room for a prompt; raise max_length."
            )
        if not 0 <= self.max_left_out <= 1:
            raise ValueError(f"max_left_out is {self.max_left_out}; it is a share of the rows, from 0 to 1.")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(
                f"temperature is {self.temperature}, top_p {self.top_p} and top_k {self.top_k}; they must be at least "
                "0, in (0, 1] and at least 0."
            )
        if self.use_vllm and self.use_transformers_continuous_batching:
            raise ValueError("use_vllm and use_transformers_continuous_batching are two ways to answer; choose one.")
        if self.stage_schedule == "run" and self.stage_learning_rates is not None:
            raise ValueError('stage_learning_rates need stage_schedule="stage"; one schedule has one learning rate.')

    def _one_for_each_stage(self, name: str) -> None:
        values: Any = getattr(self, name)
        if values is not None and len(values) != self.num_stages:
            raise ValueError(f"{name} has {len(values)} values for {self.num_stages} stages; give one for each.")


@dataclass(frozen=True)
class Stage:
    """rows: of the demonstrations; size: rows that each pass trains on; batches: of a pass in one process; updates: of
    a pass; first_step: of the run."""

    rows: range
    size: int
    batches: int
    updates: int
    first_step: int


class InStages(ABC):
    """Training in stages, for a trainer of TRL. A subclass says what a stage begins with and how many batches a pass
    over its rows has; it calls `_plan` at the end of its constructor."""

    # What the trainer behind this class has; Any, since no type says "a mixin of Trainer".
    args: Any
    model: Any
    state: Any
    control: Any
    accelerator: Any
    optimizer: Any
    lr_scheduler: Any
    callback_handler: Any
    train_dataset: Any
    eval_dataset: Any
    is_in_train: bool
    is_deepspeed_enabled: Any
    _tokenizer: Any

    @abstractmethod
    def _begin(self, number: int, fresh: bool) -> None:
        """A stage begins, or training goes on in the middle of it (not fresh)."""

    @abstractmethod
    def _batches(self, size: int) -> int:
        """Batches of a pass over so many rows, in one process."""

    def _begin_pass(self, number: int, passed: int) -> None:  # noqa: B027
        """A pass of the stage begins."""

    def _rows_trained(self, number: int, rows: int) -> int:
        """Rows that a pass of a stage trains on, of so many demonstrations."""
        return rows

    def _plan(self, demonstrations: Dataset, held_out: Dataset | None) -> None:
        args = self.args
        self._demonstrations, self._held_out = demonstrations, held_out
        self._refuse_what_no_stage_has()
        self._stages = self._planned()
        self._sampling = Sampling(
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            max_new_tokens=args.max_completion_length,
        )
        self._stage: int | None = None
        self._loader: Any = None
        self._evaluation_due = False
        self._of_stage: dict[str, list[float]] = defaultdict(list)
        cast(Any, self).add_callback(_SaveAtStageEnd(self))

    # What Trainer plans: epochs of different lengths, all known beforehand.

    def _planned(self) -> list[Stage]:
        args = self.args
        total, stages = len(self._demonstrations), args.num_stages
        if stages > total:
            raise ValueError(f"num_stages is {stages}, and there are {total} demonstrations; lower num_stages.")
        size = total // stages if args.data_per_stage == "slice" else total
        if args.data_per_stage == "slice" and total % stages:
            logger.warning("The last %d of %d rows are in no slice of %d stages.", total % stages, total, stages)
        plan, first_step = [], 0
        for number in range(stages):
            rows = range(number * size, (number + 1) * size) if args.data_per_stage == "slice" else range(total)
            trained = self._rows_trained(number, size)
            batches = self._batches(trained)
            updates = max(1, math.ceil(batches / args.gradient_accumulation_steps))
            plan.append(Stage(rows, trained, batches, updates, first_step))
            first_step += updates * self._passes
        return plan

    @property
    def _passes(self) -> int:
        return int(self.args.num_train_epochs)

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        found = super().set_initial_training_values(args, dataloader)  # type: ignore[misc]
        _, updates, examples, _, batch, batches, _ = found
        epochs = self._passes * len(self._stages)
        steps = sum(stage.updates * self._passes for stage in self._stages)
        if args.max_steps > 0:
            steps = min(steps, args.max_steps)
        samples = sum(stage.size * self._passes for stage in self._stages)
        return epochs, updates, examples, samples, batch, batches, steps

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        super()._init_training_state(*args, **kwargs)  # type: ignore[misc]
        self._stage = None
        step = self.state.global_step
        epoch = 0
        for stage in self._stages:
            for _ in range(self._passes):
                if step < stage.updates:
                    return epoch, 0 if self.args.ignore_data_skip else step * self.args.gradient_accumulation_steps
                step, epoch = step - stage.updates, epoch + 1
        return epoch, 0

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule of the whole run or, begun anew with every stage, those of the stages one after the other."""
        if self.lr_scheduler is not None or self.args.stage_schedule == "run":
            return super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]
        super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]
        if not isinstance(self.lr_scheduler, LambdaLR):
            raise ValueError(
                f"lr_scheduler_type={self.args.lr_scheduler_type} follows the loss and cannot begin anew with a "
                'stage; choose another, or stage_schedule="run".'
            )
        curves, args = [], self.args
        for number, stage in enumerate(self._stages):
            steps = stage.updates * self._passes
            highest = (args.stage_learning_rates or [args.learning_rate] * len(self._stages))[number]
            alone = get_scheduler(
                args.lr_scheduler_type,
                optimizer=torch.optim.SGD([torch.zeros(1)], lr=highest),  # a floor is a share of this rate
                num_warmup_steps=args.get_warmup_steps(steps),
                num_training_steps=steps,
                scheduler_specific_kwargs=cast(Any, args.lr_scheduler_kwargs),
            )
            curves.append((stage.first_step, highest / args.learning_rate, cast(Any, alone).lr_lambdas[0]))

        def share(step: int) -> float:
            first, height, curve = next(c for c in reversed(curves) if c[0] <= step)
            return height * curve(step - first)

        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, share)
        return self.lr_scheduler

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """As Trainer's. `resume_from_checkpoint=True` goes on from the last checkpoint that was written whole, and
        begins anew (with the answers that are on disk) if there is none."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(Path(self.args.output_dir))
        self.train_dataset = self._demonstrations
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)  # type: ignore[misc]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As Trainer's. With eval_on_start it waits for the answers that the first stage begins with."""
        if self.is_in_train and self._stage is None:
            self._evaluation_due = True
            return {}
        return super().evaluate(*args, **kwargs)  # type: ignore[misc]

    def _run_epoch(self, **kwargs: Any) -> None:
        number, passed = divmod(kwargs["epoch"], self._passes)
        stage = self._stages[number]
        if self._stage != number:
            fresh = self.state.global_step == stage.first_step
            if fresh and number > 0 and self.args.stage_schedule == "stage":
                _reset(self.optimizer, in_place=self.is_deepspeed_enabled)
            self._of_stage.clear()
            self._begin(number, fresh)
            self._stage = number
        if self.control.should_training_stop:
            return
        if self._evaluation_due:
            self._evaluation_due = False
            self.evaluate()
        self._begin_pass(number, passed)
        kwargs["train_dataloader"] = self._loader
        kwargs["steps_in_epoch"], kwargs["num_update_steps_per_epoch"] = stage.batches, stage.updates
        super()._run_epoch(**kwargs)  # type: ignore[misc]
        if passed == self._passes - 1:
            if self._of_stage:
                means = {f"stage/{name}": sum(values) / len(values) for name, values in self._of_stage.items()}
                self._say({"stage": float(number), **means})
            self._of_stage.clear()

    def _train_on(self, rows: Dataset, stage: Stage) -> None:
        """Make the loader of the next epochs."""
        self.train_dataset = rows
        _compat.forget_dataloader(self, self.callback_handler.train_dataloader)
        self._loader = cast(Any, self).get_train_dataloader()
        assert len(self._loader) == stage.batches, f"{len(self._loader)} batches, {stage.batches} were planned"
        self.callback_handler.train_dataloader = self._loader

    # Answers.

    def _answered(
        self, name: str, demonstrations: Dataset, fresh: bool, remake: bool, engine: Any, stop_ids: list[int]
    ) -> tuple[StageFolder, dict[str, float]]:
        """The folder that holds the policy's answers to these rows, all there, and what making them took."""
        accelerator = self.accelerator
        folder = self._folder(name, demonstrations, stop_ids, model=weights_digest(self) if fresh else None)
        if not fresh:
            on_main(accelerator, folder.check)
            self._open(folder, remake=False)
            return folder, {}
        self._open(folder, remake)
        seeds = [stream_seed(self.args.seed, name, row) for row in demonstrations[columns.ROW_ID]]
        description = f"{name} of {len(self._stages)}: answers"
        made = answer_all(
            self, folder, demonstrations, seeds, self._sampling, stop_ids, engine, description=description
        )
        return folder, made

    def _folder(self, name: str, demonstrations: Dataset, stop_ids: list[int], model: str | None) -> StageFolder:
        args = self.args
        template = self._tokenizer.chat_template or FALLBACK_TEMPLATE
        identity = {
            "demonstrations": pool_fingerprint(demonstrations),
            "template": stream_seed(str(template)),
            "stop_ids": stop_ids,
            "max_length": args.max_length,
            "sampling": self._sampling.settings(),
            "seed": args.seed,
            "by": "vllm" if args.use_vllm else "paged" if args.use_transformers_continuous_batching else "generate",
            **self._further_identity(),
        }
        if model is not None:
            identity["model"] = model
        size = min(args.rows_per_shard, math.ceil(len(demonstrations) / args.world_size))
        return StageFolder(self._stage_path(name), identity, len(demonstrations), size)

    def _stage_path(self, name: str) -> Path:
        return Path(self.args.output_dir) / "_stages" / name  # Trainer uploads nothing with an underscore

    def _further_identity(self) -> dict[str, Any]:
        """What answers and what is made of them depend on besides."""
        return {}

    def _open(self, folder: StageFolder, remake: bool) -> None:
        def opened() -> int:
            folder.open(remake)
            return folder.rows_per_shard

        folder.rows_per_shard = on_main(self.accelerator, opened)

    def _ends(self) -> list[int]:
        """Tokens that end an answer: the template's, the tokenizer's and the model's own."""
        ends = [response_end(self._tokenizer), self._tokenizer.eos_token_id]
        own = self.model.generation_config.eos_token_id
        ends += own if isinstance(own, list) else [own]
        return list(dict.fromkeys(end for end in ends if end is not None))

    # What is said of a stage.

    def _say(self, logs: dict[str, float]) -> None:
        """Log without the means of the steps since the last log, which TRL's own `log` adds and forgets."""
        Trainer.log(cast(Any, self), logs)

    def _report(self, pairs: Dataset, made: dict[str, float]) -> dict[str, float]:
        chosen, rejected = (np.array([len(ids) for ids in pairs[name]]) for name in (CHOSEN, REJECTED))
        ended = np.array(pairs["ended"])
        same = sum(a == b for a, b in zip(pairs[CHOSEN], pairs[REJECTED], strict=True))
        report = {
            "stage/answers": float(len(pairs)),
            "stage/identical": float(same),
            "stage/empty": float(((rejected == 1) & ended).sum()),
            "stage/cut": float((~ended).sum()),
            "stage/length_chosen": float(chosen.mean()),
            "stage/length_rejected": float(rejected.mean()),
            "stage/ended_chosen": 1.0,  # longer ones were left out at the door
            "stage/ended_rejected": float(ended.mean()),
            "stage/length_auc": length_auc(chosen, rejected),
            **{f"stage/generation_{name}": value for name, value in made.items()},
        }
        if report["stage/length_auc"] > _LENGTHS_TELL:
            logger.warning(
                "Length alone tells demonstrations (mean %.0f tokens) from answers (%.0f; %.0f %% cut) with an AUC of "
                "%.2f: the policy may learn to be long or short and nothing else. Compare max_completion_length with "
                "the demonstrations, and the prompts with those that the model was trained on.",
                chosen.mean(),
                rejected.mean(),
                100 * (~ended).mean(),
                report["stage/length_auc"],
            )
        return report

    def _log_completions(self, pairs: Dataset, number: int, name: str) -> None:
        """A table of a stage's first answers next to their demonstrations, if asked for."""
        args = self.args
        if not (args.log_completions and args.num_completions_to_log and cast(Any, self).is_world_process_zero()):
            return
        some = pairs.select(range(min(self.args.num_completions_to_log, len(pairs))))
        decode = self._tokenizer.batch_decode
        texts = {"prompt": PROMPT, "demonstration": CHOSEN, "answer": REJECTED}
        table = pa.table(
            {
                "step": [self.state.global_step] * len(some),
                "stage": [number] * len(some),
                columns.ROW_ID: list(some[columns.ROW_ID]),
                **{title: decode(list(some[column])) for title, column in texts.items()},
                "ended": list(some["ended"]),
            }
        )
        path = Path(self.args.output_dir) / "_completions" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary)
        for row in table.to_pylist():
            print(f"[{name}] {row['prompt']!r}\n  demonstration {row['demonstration']!r}\n  answer {row['answer']!r}")

    # What cannot work, before anything runs.

    def _refuse_what_no_stage_has(self) -> None:
        args = self.args
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if context is not None and args.max_length > context:
            raise ValueError(
                f"max_length is {args.max_length}, and the model's context has {context} tokens; lower max_length."
            )
        plugin = getattr(self.accelerator.state, "deepspeed_plugin", None)
        if plugin is not None and "scheduler" in plugin.deepspeed_config and args.stage_schedule == "stage":
            raise ValueError(
                "the DeepSpeed configuration has a scheduler of its own, which cannot begin anew with a stage; take "
                'it out (Trainer makes one from lr_scheduler_type), or set stage_schedule="run".'
            )


def refuse_streams(train_dataset: Any, eval_dataset: Any) -> None:
    for given, name in ((train_dataset, "train_dataset"), (eval_dataset, "eval_dataset")):
        if given is not None and not isinstance(given, Dataset):
            raise ValueError(
                f"{name} is a {type(given).__name__}; prompts are answered stage by stage, which needs a "
                "datasets.Dataset. Load it without streaming."
            )


def with_answers(demonstrations: Dataset, folder: StageFolder) -> Dataset:
    return concatenate_datasets([demonstrations, folder.read()], axis=1)


class _SaveAtStageEnd(TrainerCallback):
    """A checkpoint at the end of each stage: the weights that answer next, if generation is killed. Not where the user
    saves nothing; a killed run then begins with its first stage, whose answers are kept."""

    def __init__(self, trainer: InStages):
        self.trainer = trainer

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        starts = {stage.first_step for stage in self.trainer._stages[1:]}
        if args.save_strategy != "no" and state.global_step in starts:
            control.should_save = True


def _reset(optimizer: Any, in_place: bool) -> None:
    """The optimizer as it was before its first step. DeepSpeed's optimizers keep views of their states, so there the
    states are set to zero where they are; elsewhere they are dropped."""
    while hasattr(optimizer, "optimizer"):  # accelerate's and DeepSpeed's wrappers
        optimizer = optimizer.optimizer
    for group in optimizer.param_groups:
        if "step" in group:
            group["step"] = 0
    if not in_place:
        optimizer.state.clear()
        return
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, Tensor):
                value.zero_()
            elif name == "step":
                state[name] = 0
