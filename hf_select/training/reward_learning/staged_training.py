"""What IRFT and RFT share: training in stages, at the beginning of each of which the policy answers prompts.

A stage is a part of the demonstrations and a number of passes over rows made of them. One `train()`, one optimizer and
one engine serve all stages: each epoch gets the dataloader of its stage (what DeepSpeed and FSDP have prepared is
never prepared again), and optimizer and learning rate restart with each stage or continue. `StagedTrainingMixin` comes
before a trainer of TRL in the bases of a class, `StagesConfig` before that trainer's configuration.
"""

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from datasets import Dataset, concatenate_datasets
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback
from transformers.utils import logging

from hf_select.data import columns
from hf_select.data.chat_template import FALLBACK_TEMPLATE
from hf_select.data.encoding import response_end
from hf_select.data.rows import pool_fingerprint
from hf_select.models.sampling import Sampling
from hf_select.training import _compat
from hf_select.training.resuming import last_whole_checkpoint
from hf_select.training.reward_learning.demonstrations import stream_seed
from hf_select.training.reward_learning.policy_answers import answer_all, on_main, weights_digest
from hf_select.training.reward_learning.stage_folder import StageFolder
from hf_select.training.reward_learning.stage_plan import (
    Stage,
    position,
    reset_optimizer,
    stage_rows,
    stagewise_schedule,
)
from hf_select.training.reward_learning.stage_report import write_completions
from hf_select.training.reward_learning.stages_config import StagesConfig


if TYPE_CHECKING:
    from peft import PeftModel
    from torch.optim import Optimizer
    from torch.utils.data import DataLoader
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerControl, TrainerState, TrainingArguments
    from trl.generation.vllm_generation import VLLMGeneration

    _Trainer = Trainer
else:
    _Trainer = object


logger = logging.get_logger(__name__)


class StagedTrainingMixin(ABC, _Trainer):
    """Training in stages, for a trainer of TRL. A subclass says what happens when a stage begins and how many batches
    a pass over its rows has; it calls `_set_up_stages` at the end of its constructor."""

    args: StagesConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    model: Any  # pyright: ignore[reportIncompatibleVariableOverride]
    _tokenizer: "PreTrainedTokenizerBase"

    @abstractmethod
    def _begin_stage(self, number: int, fresh: bool) -> None:
        """A stage begins, or training resumes inside it (not fresh)."""

    @abstractmethod
    def _batches_per_pass(self, rows: int) -> int:
        """Batches of a pass over this number of rows, in one process."""

    def _begin_pass(self, number: int, passed: int) -> None:
        """A pass of the stage begins."""

    def _rows_per_pass(self, number: int, rows: int) -> int:
        """Rows that a pass of a stage with `rows` demonstrations trains on."""
        return rows

    def _method_identity(self) -> dict[str, object]:
        """Further settings that the answers, and files derived from them, depend on."""
        return {}

    def _set_up_stages(self, demonstrations: Dataset, held_out: Dataset | None) -> None:
        args = self.args
        self._demonstrations, self._held_out = demonstrations, held_out
        self._check_model_and_engine()
        self._stages = self._plan_stages()
        self._sampling = Sampling(
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            max_new_tokens=args.max_completion_length,
        )
        self._stage: int | None = None
        self._loader: DataLoader | None = None
        self._evaluation_due = False
        self._stage_metrics: dict[str, list[float]] = defaultdict(list)
        self.add_callback(_SaveAtStageEnd(self))

    # What Trainer plans. Epochs differ in length, and all lengths are known before training.

    def _plan_stages(self) -> list[Stage]:
        args, total = self.args, len(self._demonstrations)
        plan: list[Stage] = []
        first_step = 0
        for number, rows in enumerate(stage_rows(total, args)):
            size = self._rows_per_pass(number, len(rows))
            batches = self._batches_per_pass(size)
            updates = max(1, math.ceil(batches / args.gradient_accumulation_steps))
            plan.append(Stage(rows, size, batches, updates, first_step))
            first_step += updates * self._passes
        if unused := total - plan[-1].rows.stop:
            logger.warning("The last %d of %d rows are in no slice of %d stages.", unused, total, len(plan))
        return plan

    @property
    def _passes(self) -> int:
        return int(self.args.num_train_epochs)

    def set_initial_training_values(self, args: "TrainingArguments", dataloader: "DataLoader") -> Any:
        """Trainer's plan of the run, with the epochs, steps and samples of all stages."""
        _, updates, examples, _, batch, batches, _ = super().set_initial_training_values(args, dataloader)
        epochs = self._passes * len(self._stages)
        steps = sum(stage.updates * self._passes for stage in self._stages)
        if args.max_steps > 0:
            steps = min(steps, args.max_steps)
        samples = sum(stage.size * self._passes for stage in self._stages)
        return epochs, updates, examples, samples, batch, batches, steps

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        super()._init_training_state(*args, **kwargs)
        self._stage = None
        epoch, updates = position(self.state.global_step, self._stages, self._passes)
        return epoch, 0 if self.args.ignore_data_skip else updates * self.args.gradient_accumulation_steps

    def create_scheduler(self, num_training_steps: int, optimizer: "Optimizer | None" = None) -> Any:
        """One learning-rate schedule for the run, or one that restarts with each stage."""
        if self.lr_scheduler is not None or self.args.stage_schedule == "run":
            return super().create_scheduler(num_training_steps, optimizer)
        super().create_scheduler(num_training_steps, optimizer)
        if not isinstance(self.lr_scheduler, LambdaLR):
            raise ValueError(
                f"lr_scheduler_type={self.args.lr_scheduler_type} follows the loss and cannot restart with a stage; "
                'choose another, or stage_schedule="run".'
            )
        self.lr_scheduler = stagewise_schedule(
            self.args, optimizer or cast(Any, self.optimizer), self._stages, self._passes
        )
        return self.lr_scheduler

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As Trainer's. `resume_from_checkpoint=True` resumes from the last complete checkpoint, and starts from the
        beginning (with the answers that are on disk) if there is none."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(Path(str(self.args.output_dir)))
        self.train_dataset = self._demonstrations
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As Trainer's. With eval_on_start it is delayed until the first stage has its answers."""
        if self.is_in_train and self._stage is None:
            self._evaluation_due = True
            return {}
        return super().evaluate(*args, **kwargs)

    def _run_epoch(self, **kwargs: Any) -> None:
        number, passed = divmod(kwargs["epoch"], self._passes)
        stage = self._stages[number]
        if self._stage != number:
            fresh = self.state.global_step == stage.first_step
            if fresh and number > 0 and self.args.stage_schedule == "stage":
                reset_optimizer(self.optimizer, in_place=self.is_deepspeed_enabled)
            self._stage_metrics.clear()
            self._begin_stage(number, fresh)
            self._stage = number
        if self.control.should_training_stop:
            return
        if self._evaluation_due:
            self._evaluation_due = False
            self.evaluate()
        self._begin_pass(number, passed)
        kwargs["train_dataloader"] = self._loader
        kwargs["steps_in_epoch"], kwargs["num_update_steps_per_epoch"] = stage.batches, stage.updates
        super()._run_epoch(**kwargs)
        if passed == self._passes - 1:
            if self._stage_metrics:
                means = {f"stage/{name}": sum(values) / len(values) for name, values in self._stage_metrics.items()}
                self._log_stage({"stage": float(number), **means})
            self._stage_metrics.clear()

    def _set_train_rows(self, rows: Dataset, stage: Stage) -> None:
        """Make the dataloader of the next epochs."""
        self.train_dataset = rows
        _compat.forget_dataloader(self, self.callback_handler.train_dataloader)
        self._loader = self.get_train_dataloader()
        assert len(self._loader) == stage.batches, f"{len(self._loader)} batches, {stage.batches} were planned"
        cast(Any, self.callback_handler).train_dataloader = self._loader

    # Answers.

    def _answer_prompts(
        self,
        name: str,
        demonstrations: Dataset,
        fresh: bool,
        remake: bool,
        engine: "VLLMGeneration | None",
        stop_ids: list[int],
    ) -> tuple[StageFolder, dict[str, float]]:
        """(folder with the policy's answers to these rows, complete; what generating them took)"""
        accelerator = self.accelerator
        folder = self._stage_folder(name, demonstrations, stop_ids, model=weights_digest(self) if fresh else None)
        if not fresh:
            on_main(accelerator, folder.check)
            self._open(folder, remake=False)
            return folder, {}
        self._open(folder, remake)
        seeds = [stream_seed(self.args.seed, name, row) for row in demonstrations[columns.ROW_ID]]
        description = f"{name} of {len(self._stages)}: answers"
        generation = answer_all(
            self, folder, demonstrations, seeds, self._sampling, stop_ids, engine, description=description
        )
        return folder, generation

    def _stage_folder(self, name: str, demonstrations: Dataset, stop_ids: list[int], model: str | None) -> StageFolder:
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
            **self._method_identity(),
        }
        if model is not None:
            identity["model"] = model
        size = min(args.rows_per_shard, math.ceil(len(demonstrations) / args.world_size))
        return StageFolder(self._stage_path(name), identity, len(demonstrations), size)

    def _stage_path(self, name: str) -> Path:
        return Path(str(self.args.output_dir)) / "_stages" / name  # Trainer uploads nothing with an underscore

    def _open(self, folder: StageFolder, remake: bool) -> None:
        def open_folder() -> int:
            folder.open(remake)
            return folder.rows_per_shard

        folder.rows_per_shard = on_main(self.accelerator, open_folder)

    def _find_stop_ids(self) -> list[int]:
        """Tokens that end an answer: the template's, the tokenizer's and the model's own."""
        model_ends = self.model.generation_config.eos_token_id
        ends = [response_end(self._tokenizer), self._tokenizer.eos_token_id]
        ends += model_ends if isinstance(model_ends, list) else [model_ends]
        return list(dict.fromkeys(end for end in ends if end is not None))

    # Logs.

    def _log_stage(self, logs: dict[str, float]) -> None:
        """Log without the means since the last log, which TRL's `log` would add and reset."""
        Trainer.log(self, logs)

    def _log_completions(self, pairs: Dataset, number: int, name: str) -> None:
        """Write and print samples of a stage's answers, with log_completions."""
        args = self.args
        if args.log_completions and args.num_completions_to_log and self.is_world_process_zero():
            sample = pairs.select(range(min(args.num_completions_to_log, len(pairs))))
            path = Path(str(args.output_dir)) / "_completions" / f"{name}.parquet"
            write_completions(path, sample, self._tokenizer, self.state.global_step, number)

    def _check_model_and_engine(self) -> None:
        """Raise ValueError for a context that is too short and a DeepSpeed schedule that cannot restart."""
        args = self.args
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if context is not None and args.max_length > context:
            raise ValueError(
                f"max_length is {args.max_length}, and the model's context has {context} tokens; lower max_length."
            )
        plugin = getattr(self.accelerator.state, "deepspeed_plugin", None)
        if plugin is not None and "scheduler" in plugin.deepspeed_config and args.stage_schedule == "stage":
            raise ValueError(
                "the DeepSpeed configuration has a scheduler of its own, which cannot restart with a stage; remove it "
                '(Trainer makes one from lr_scheduler_type), or set stage_schedule="run".'
            )


def path_of(model: "str | PreTrainedModel | PeftModel") -> str:
    """Path or Hub id of a model; empty if it was not loaded from one."""
    return model if isinstance(model, str) else getattr(model.config, "_name_or_path", "")


def check_not_streaming(train_dataset: object, eval_dataset: object) -> None:
    """Raises: ValueError for a dataset that is not a datasets.Dataset."""
    for dataset, name in ((train_dataset, "train_dataset"), (eval_dataset, "eval_dataset")):
        if dataset is not None and not isinstance(dataset, Dataset):
            raise ValueError(
                f"{name} is a {type(dataset).__name__}; prompts are answered stage by stage, which needs a "
                "datasets.Dataset. Load it without streaming."
            )


def with_answers(demonstrations: Dataset, folder: StageFolder) -> Dataset:
    """Demonstrations and the answers of a complete folder, row by row."""
    return concatenate_datasets([demonstrations, folder.read()], axis=1)


class _SaveAtStageEnd(TrainerCallback):
    """Saves a checkpoint at the end of each stage: the weights that answer next, if generation is killed. With
    save_strategy="no" it saves none; a killed run then restarts at its first stage, whose answers are kept."""

    def __init__(self, trainer: StagedTrainingMixin):
        self.trainer = trainer

    def on_epoch_end(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: object
    ) -> None:
        """Ask for a checkpoint if the next step begins a stage."""
        starts = {stage.first_step for stage in self.trainer._stages[1:]}
        if args.save_strategy != "no" and state.global_step in starts:
            control.should_save = True
