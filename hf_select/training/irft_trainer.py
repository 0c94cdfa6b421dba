"""IRFT: learn from demonstrations and from the policy's own answers to the same prompts.

Li et al. 2024, "Getting more juice out of the SFT data" (arXiv:2405.17888); with one stage, or with `full` data and
the pairs of the last stage, it is SPIN (Chen et al. 2024, arXiv:2401.01335). A stage is: the policy answers its
prompts once; log-probabilities of both completions under the reference are computed once; then K steps push the
policy from its own answers towards the demonstrations, by the loss of `losses.py`. That loss on fixed pairs is DPO's,
so this is TRL's exported DPOTrainer (model loading, PEFT, ZeRO and FSDP, log-probabilities without logits of the
whole vocabulary, card) with rows that change from stage to stage:

- one `train()`, one optimizer, one engine: each epoch is given the loader of its stage (what DeepSpeed and FSDP
  prepared is never prepared again), and the schedule of the learning rate repeats with the stages;
- the reference of a stage is the policy at its beginning, so its log-probabilities are one forward pass of the very
  model that is trained: no second model, and with an adapter no merging (an adapter that goes on is at every stage
  its own reference; the authors merge it and begin another);
- everything that a killed run needs is on disk before it is needed: the answers part by part, the references, and a
  checkpoint at the end of each stage, so that the weights which answer can be had again.

Left out: the authors' in-training generator, which no published run used; images; `IterableDataset`.
"""

import math
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate.utils import gather_object, is_peft_model, send_to_device
from datasets import Dataset, concatenate_datasets
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerBase, TrainerCallback, get_scheduler
from transformers.utils import logging
from trl import DPOTrainer  # pyright: ignore[reportPrivateImportUsage]

from hf_select import columns
from hf_select.files import written_whole
from hf_select.formats import FALLBACK_TEMPLATE
from hf_select.inference.pool import pool_fingerprint
from hf_select.training import _compat
from hf_select.training.answering import answer_all, on_main, weights_digest, whole
from hf_select.training.irft_config import IRFTConfig
from hf_select.training.losses import implicit_reward, pair_loss
from hf_select.training.pairs import (
    CHOSEN,
    PROMPT,
    REJECTED,
    StageFolder,
    length_auc,
    response_end,
    stream_seed,
    usable_demonstrations,
)
from hf_select.training.resuming import last_whole_checkpoint
from hf_select.training.sampling import Sampling


logger = logging.get_logger(__name__)

# B pairs, T tokens

_LENGTHS_TELL = 0.8  # AUC above which length alone nearly tells demonstrations from answers
_CONVERGED = 0.01  # share of answers that differ from their demonstration, below which there is nothing to learn from
_METRICS = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen")
_METRICS += ("logps/rejected",)


@dataclass(frozen=True)
class _Stage:
    """rows: of the demonstrations; pairs: trained in each pass; batches: of a pass in one process; updates: of a
    pass; first_step: of the run."""

    rows: range
    pairs: int
    batches: int
    updates: int
    first_step: int


class IRFTTrainer(DPOTrainer):
    """Trainer for IRFT and SPIN.

        trainer = IRFTTrainer("Qwen/Qwen2.5-1.5B", args=IRFTConfig("out"), train_dataset=demonstrations)
        trainer.train(resume_from_checkpoint=True)  # goes on where a killed run stopped; begins if there is none

    Args:
        model: a path or Hub id, a model, or a PeftModel.
        args: see IRFTConfig.
        train_dataset: demonstrations in any layout of `hf_select.formats` (messages, prompt + completion, Alpaca ...);
            the last turn is the completion. Rows that cannot be used are left out, and one warning counts them.
        eval_dataset: held-out demonstrations; the policy of each stage answers them too, and eval_rewards/* say
            whether it tells them from its own answers.
        processing_class: the tokenizer; the model's own by default.
        ref_model: with ref_update="fixed", a model of the policy's shape whose weights are the reference in place of
            the policy's first ones. Its weights are kept in host memory.
        callbacks, optimizers, quantization_config, peft_config: as in DPOTrainer.
    Logs: the names of DPOTrainer (rewards/chosen, rewards/margins, logps/rejected ...) while it trains; stage/* at the
        beginning (answers, identical, empty, cut, lengths, ends, how well length alone tells the sides apart) and at
        the end of each stage (means of the metrics over it). Answers are in output_dir/stages, samples of them in
        output_dir/completions.
    Raises: ValueError for what cannot work, with the cure.
    """

    args: IRFTConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    model: Any  # pyright: ignore[reportIncompatibleVariableOverride]

    _tag_names = ["trl", "irft", "hf_select"]
    _name = "IRFT"
    _paper = {
        "title": "Getting More Juice Out of the SFT Data: Reward Learning from Human Demonstration Improves SFT for "
        "LLM Alignment",
        "id": "2405.17888",
        "citation": textwrap.dedent("""\
            @inproceedings{li2024getting,
                title     = {{Getting More Juice Out of the SFT Data: Reward Learning from Human Demonstration Improves SFT for LLM Alignment}},
                author    = {Jiaxiang Li and Siliang Zeng and Hoi-To Wai and Chenliang Li and Alfredo Garcia and Mingyi Hong},
                year      = 2024,
                booktitle = {Advances in Neural Information Processing Systems 37, NeurIPS 2024},
            }"""),  # noqa: E501
    }

    def __init__(
        self,
        model: Any,
        args: IRFTConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        ref_model: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
    ):
        if args is None:
            name = model if isinstance(model, str) else getattr(model.config, "_name_or_path", "")
            args = IRFTConfig(f"{name.split('/')[-1]}-IRFT")
        for given, name in ((train_dataset, "train_dataset"), (eval_dataset, "eval_dataset")):
            if given is not None and not isinstance(given, Dataset):
                raise ValueError(
                    f"{name} is a {type(given).__name__}; prompts are answered stage by stage, which needs a "
                    "datasets.Dataset. Load it without streaming."
                )
        with _compat.unhashed_weights():
            super().__init__(
                model,
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                callbacks=callbacks,
                optimizers=optimizers,
                quantization_config=quantization_config,
                peft_config=peft_config,
            )
        self._refuse_what_cannot_work()
        self._demonstrations = cast(Dataset, self.train_dataset)
        self._held_out = cast("Dataset | None", self.eval_dataset)
        self._stages = self._planned()
        self._sampling = Sampling(args.temperature, args.top_p, args.top_k, args.max_completion_length)
        ends = [response_end(self._tokenizer), self._tokenizer.eos_token_id]
        own = self.model.generation_config.eos_token_id
        ends += own if isinstance(own, list) else [own]
        self._stop_ids = list(dict.fromkeys(end for end in ends if end is not None))
        self._reference = self._given_reference(ref_model)
        self._engine = self._vllm() if args.use_vllm else None
        self._stage: int | None = None
        self._loader: Any = None
        self._of_stage: dict[str, list[float]] = defaultdict(list)
        self.add_callback(_SaveAtStageEnd(self))

    # Rows, once.

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        if not isinstance(processing_class, PreTrainedTokenizerBase):
            raise ValueError(f"{type(processing_class).__name__} is no tokenizer; IRFT is for text.")
        with args.main_process_first(desc="demonstrations as tokens", local=False):
            return usable_demonstrations(
                dataset,
                processing_class,
                args.max_length,
                args.max_completion_length,
                num_proc=args.dataset_num_proc,
                name=dataset_name,
            )

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        return dataset  # references come with each stage

    # What Trainer plans: epochs of different lengths, all known beforehand.

    def _planned(self) -> list[_Stage]:
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
            pairs = size * (2 if args.mix_last_stage and number > 0 else 1)
            batches = pairs / args.train_batch_size
            batches = math.floor(batches) if args.dataloader_drop_last else math.ceil(batches)
            batches = math.ceil(batches / args.world_size)
            updates = max(1, math.ceil(batches / args.gradient_accumulation_steps))
            plan.append(_Stage(rows, pairs, batches, updates, first_step))
            first_step += updates * self._passes
        return plan

    @property
    def _passes(self) -> int:
        return int(self.args.num_train_epochs)

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        _, updates, examples, _, batch, batches, _ = super().set_initial_training_values(args, dataloader)
        epochs = self._passes * len(self._stages)
        steps = sum(stage.updates * self._passes for stage in self._stages)
        if args.max_steps > 0:
            steps = min(steps, args.max_steps)
        samples = sum(stage.pairs * self._passes for stage in self._stages)
        return epochs, updates, examples, samples, batch, batches, steps

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        super()._init_training_state(*args, **kwargs)
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
            return super().create_scheduler(num_training_steps, optimizer)
        super().create_scheduler(num_training_steps, optimizer)
        if not isinstance(self.lr_scheduler, LambdaLR):
            raise ValueError(
                f"lr_scheduler_type={self.args.lr_scheduler_type} follows the loss and cannot begin anew with a "
                'stage; choose another, or stage_schedule="run".'
            )
        curves, args = [], self.args
        for number, stage in enumerate(self._stages):
            steps = stage.updates * self._passes
            alone = get_scheduler(
                args.lr_scheduler_type,
                optimizer=torch.optim.SGD([torch.zeros(1)], lr=1.0),
                num_warmup_steps=args.get_warmup_steps(steps),
                num_training_steps=steps,
                scheduler_specific_kwargs=cast(Any, args.lr_scheduler_kwargs),
            )
            highest = (args.stage_learning_rates or [args.learning_rate] * len(self._stages))[number]
            curves.append((stage.first_step, highest / args.learning_rate, cast(Any, alone).lr_lambdas[0]))

        def share(step: int) -> float:
            first, height, curve = next(c for c in reversed(curves) if c[0] <= step)
            return height * curve(step - first)

        self.lr_scheduler = LambdaLR(optimizer or cast(Any, self.optimizer), share)
        return self.lr_scheduler

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """As Trainer's. `resume_from_checkpoint=True` goes on from the last checkpoint that was written whole, and
        begins anew (with the answers that are on disk) if there is none."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(Path(cast(str, self.args.output_dir)))
        self.train_dataset = self._demonstrations
        if self.args.ref_update == "fixed" and self._reference is None:
            self._reference = {name: _kept(p) for name, p in self.model.named_parameters() if p.requires_grad}
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _run_epoch(self, **kwargs: Any) -> None:
        number, passed = divmod(kwargs["epoch"], self._passes)
        if self._stage != number:
            self._begin(number)
        stage = self._stages[number]
        if self.control.should_training_stop:
            return
        kwargs["train_dataloader"] = self._loader
        kwargs["steps_in_epoch"], kwargs["num_update_steps_per_epoch"] = stage.batches, stage.updates
        super()._run_epoch(**kwargs)
        if passed == self._passes - 1 and self._of_stage:
            means = {f"stage/{name}": sum(values) / len(values) for name, values in self._of_stage.items()}
            self._say({"stage": float(number), **means})
        if passed == self._passes - 1:
            self._of_stage.clear()

    # A stage begins.

    def _begin(self, number: int) -> None:
        args, stage = self.args, self._stages[number]
        fresh = self.state.global_step == stage.first_step
        if fresh and number > 0 and args.stage_schedule == "stage":
            _reset(self.optimizer, in_place=self.is_deepspeed_enabled)
        self.beta = (args.stage_betas or [args.beta] * len(self._stages))[number]
        self._of_stage.clear()
        name = f"stage-{number:02d}"
        pairs, report = self._pairs(name, number, self._demonstrations.select(stage.rows), fresh)
        self._stage = number
        kept = np.flatnonzero([a != b for a, b in zip(pairs[CHOSEN], pairs[REJECTED], strict=True)])
        if len(kept) <= _CONVERGED * len(pairs):
            logger.warning(
                "Stage %d: %d of %d answers are their demonstrations, word for word. There is nothing left to learn "
                "from them; training stops.",
                number,
                len(pairs) - len(kept),
                len(pairs),
            )
            self.control.should_training_stop = True
            return
        # An answer that is its demonstration has no gradient: others take its place, so that steps and schedule
        # stay as planned and every batch is full.
        rng = np.random.default_rng([args.seed, number])
        again = np.resize(rng.permutation(kept), len(pairs) - len(kept))
        self.train_dataset = pairs.select(np.concatenate([kept, again]))
        _compat.forget_dataloader(self, self.callback_handler.train_dataloader)
        self._loader = self.get_train_dataloader()
        assert len(self._loader) == stage.batches, f"{len(self._loader)} batches, {stage.batches} were planned"
        self.callback_handler.train_dataloader = self._loader
        if self._held_out is not None:
            self.eval_dataset, _ = self._pairs(f"{name}-eval", number, self._held_out, fresh, mixed=False)
        self._say({"stage": float(number), **report})

    def _pairs(
        self, name: str, number: int, demonstrations: Dataset, fresh: bool, mixed: bool = True
    ) -> tuple[Dataset, dict[str, float]]:
        """Prompts, demonstrations, answers and references of a stage, and what is to be said of them."""
        args, accelerator = self.args, self.accelerator
        folder = self._folder(name, demonstrations, model=weights_digest(self) if fresh else None)
        if fresh:
            folder.rows_per_shard = on_main(accelerator, lambda: self._opened(folder, remake=number > 0))
            seeds = [stream_seed(args.seed, name, row) for row in demonstrations[columns.ROW_ID]]
            made = answer_all(
                self,
                folder,
                demonstrations,
                seeds,
                self._sampling,
                self._stop_ids,
                self._engine,
                description=f"{name} of {len(self._stages)}: answers",
            )
        else:
            on_main(accelerator, folder.check)
            folder.rows_per_shard = on_main(accelerator, lambda: self._opened(folder, remake=False))
            made = {}
        pairs = concatenate_datasets([demonstrations, folder.read()], axis=1)
        report = self._report(pairs, made)
        self._log_completions(pairs, number, name)
        if mixed and args.mix_last_stage and number > 0:
            before = self._demonstrations.select(self._stages[number - 1].rows)
            last = self._folder(f"stage-{number - 1:02d}", before, model=None)
            last.rows_per_shard = on_main(accelerator, lambda: self._opened(last, remake=False))
            pairs = concatenate_datasets([pairs, concatenate_datasets([before, last.read()], axis=1)])
        reference = folder.read_reference()
        if reference is None:
            values = self._reference_log_probabilities(pairs)
            if accelerator.is_main_process:
                folder.write_reference(values)
            accelerator.wait_for_everyone()
            reference = cast(Dataset, folder.read_reference())
        return concatenate_datasets([pairs, reference], axis=1), report

    def _folder(self, name: str, demonstrations: Dataset, model: str | None) -> StageFolder:
        args = self.args
        template = self._tokenizer.chat_template or FALLBACK_TEMPLATE
        identity = {
            "demonstrations": pool_fingerprint(demonstrations),
            "template": stream_seed(str(template)),
            "stop_ids": self._stop_ids,
            "max_length": args.max_length,
            "sampling": self._sampling.state(),
            "seed": args.seed,
            "by": "vllm" if args.use_vllm else "paged" if args.use_transformers_continuous_batching else "generate",
            "mix_last_stage": args.mix_last_stage,
            "ref_update": args.ref_update,
        }
        if model is not None:
            identity["model"] = model
        path = Path(cast(str, args.output_dir)) / "stages" / name
        size = min(args.rows_per_shard, math.ceil(len(demonstrations) / args.world_size))
        return StageFolder(path, identity, len(demonstrations), size)

    @staticmethod
    def _opened(folder: StageFolder, remake: bool) -> int:
        folder.open(remake)
        return folder.rows_per_shard

    # Log-probabilities.

    def _reference_log_probabilities(self, pairs: Dataset) -> np.ndarray:
        """(n, 2) under the reference of this stage, longest pairs first, as many batches in every process."""
        args, accelerator = self.args, self.accelerator
        size = args.precompute_ref_batch_size or args.per_device_eval_batch_size
        lengths = [
            len(p) + max(len(c), len(r)) for p, c, r in zip(pairs[PROMPT], pairs[CHOSEN], pairs[REJECTED], strict=True)
        ]
        order = np.argsort(-np.array(lengths), kind="stable")
        batches: list[np.ndarray] = [order[i : i + size] for i in range(0, len(order), size)]
        batches += [batches[-1]] * (-len(batches) % accelerator.num_processes)
        some, found = pairs.select_columns([PROMPT, CHOSEN, REJECTED]), []
        training = self.model.training
        self.model.eval()
        with torch.no_grad(), self._as_reference():
            for rows in cast(Any, batches)[accelerator.process_index :: accelerator.num_processes]:
                inputs: Any = self.data_collator(some.select(rows).to_list())
                with self.compute_loss_context_manager():
                    outputs = self._outputs(self.model_wrapped, cast(Any, send_to_device(inputs, accelerator.device)))
                values = torch.stack(self._sums(outputs.log_probs, inputs), dim=1).double().cpu().numpy()
                found.append((rows.tolist(), values.tolist()))
        self.model.train(training)
        result = np.full((len(pairs), 2), np.nan)
        for rows, values in gather_object(found):
            result[rows] = values
        if not np.isfinite(result).all():
            raise ValueError(
                f"{np.isnan(result).any(1).sum()} pairs have no finite log-probability under the reference; "
                "its weights are broken, or their precision."
            )
        return result

    @contextmanager
    def _as_reference(self) -> Iterator[None]:
        """Within the block the model has the weights of the reference: with ref_update="stage" those that it has."""
        if self.args.ref_update == "stage":
            yield
            return
        assert self._reference is not None
        parameters = {name: p for name, p in self.model.named_parameters() if name in self._reference}
        now = {name: _kept(p) for name, p in parameters.items()}
        try:
            for name, p in parameters.items():
                _put(p, self._reference[name])
            yield
        finally:
            for name, p in parameters.items():
                _put(p, now[name])

    def _outputs(self, model: Any, inputs: dict[str, Tensor]) -> Any:
        """The model's output with `log_probs` (2B, T-1), zero outside the completions."""
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        extra = {"output_router_logits": True} if self.aux_loss_enabled else {}
        return model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            labels=labels,
            use_cache=False,
            fused_lm_head=True,
            **extra,
        )

    @staticmethod
    def _sums(log_probs: Tensor, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """lp(y) and lp(y'), (B,) each. Prompt-tuning puts positions in front, which are left out."""
        chosen, rejected = log_probs[:, 1 - inputs["input_ids"].shape[1] :].sum(1).chunk(2)
        return chosen, rejected

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean loss of the pairs; see losses.py."""
        if return_outputs:
            raise ValueError("IRFT makes no logits; leave out compute_metrics, or set prediction_loss_only=True.")
        mode = "train" if self.model.training else "eval"
        if "ref_chosen_logps" not in inputs:
            raise ValueError(
                "the pairs have no log-probabilities under a reference, without which there is no implicit reward; "
                "they come with a stage, so call train() first."
            )
        outputs = self._outputs(model, inputs)
        chosen, rejected = self._sums(outputs.log_probs, inputs)
        reward = implicit_reward(chosen, inputs["ref_chosen_logps"].to(chosen), self.beta)
        own = implicit_reward(rejected, inputs["ref_rejected_logps"].to(chosen), self.beta)
        margin = reward - own
        loss = pair_loss(margin, cast(Any, self.args.loss_type[0])).mean()
        if self.args.nll_coef:
            tokens = inputs["completion_mask"][: len(chosen), 1:].sum()
            loss = loss - self.args.nll_coef * chosen.sum() / tokens
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss
        with torch.no_grad():
            tokens = inputs["attention_mask"].sum(1).chunk(2)
            each = (reward, own, (reward > own).float(), margin, chosen, rejected, (tokens[0] + tokens[1]).float())
            of_all = self.accelerator.gather(torch.stack(each, dim=1).detach())
        means = cast(Tensor, of_all).double().mean(0).tolist()
        for name, value in zip(_METRICS, means, strict=False):
            self._metrics[mode][name].append(value)
            if mode == "train":
                self._of_stage[name].append(value)
        if mode == "train":
            self._total_train_tokens += round(means[-1] * len(cast(Tensor, of_all)))
            self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        return loss

    # What is said of a stage.

    def _say(self, logs: dict[str, float]) -> None:
        """Log without the means of the steps since the last log, which DPOTrainer's own `log` adds and forgets."""
        super(DPOTrainer, self).log(logs)

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
        """A table of a stage's first answers beside their demonstrations, where TRL's other trainers put theirs."""
        if not self.is_world_process_zero() or not self.args.num_completions_to_log:
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
        path = Path(cast(str, self.args.output_dir)) / "completions" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            pq.write_table(table, temporary)
        if self.args.log_completions:
            for row in table.to_pylist():
                print(
                    f"[{name}] {row['prompt']!r}\n  demonstration {row['demonstration']!r}\n  answer {row['answer']!r}"
                )

    # What cannot work, before anything runs; and parts that come from elsewhere.

    def _refuse_what_cannot_work(self) -> None:
        args = self.args
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if context is not None and args.max_length > context:
            raise ValueError(
                f"max_length is {args.max_length}, and the model's context has {context} tokens; lower max_length."
            )
        if args.train_sampling_strategy != "random":
            raise ValueError(
                f'train_sampling_strategy="{args.train_sampling_strategy}" needs the length of rows before the policy '
                "has written them; leave it out."
            )
        plugin = getattr(self.accelerator.state, "deepspeed_plugin", None)
        if plugin is not None and "scheduler" in plugin.deepspeed_config and args.stage_schedule == "stage":
            raise ValueError(
                "the DeepSpeed configuration has a scheduler of its own, which cannot begin anew with a stage; take "
                'it out (Trainer makes one from lr_scheduler_type), or set stage_schedule="run".'
            )

    def _given_reference(self, ref_model: Any) -> dict[str, Tensor] | None:
        """Weights of a reference that is not the policy's own beginning, on the host."""
        if ref_model is None:
            return None
        if self.args.ref_update != "fixed":
            raise ValueError(
                'ref_model is given, and with ref_update="stage" the reference is the policy at the beginning of each '
                'stage; set ref_update="fixed", or leave ref_model out.'
            )
        if is_peft_model(self.model):
            raise ValueError("the policy is an adapter, whose reference is its beginning; leave ref_model out.")
        mine = dict(self.model.named_parameters())
        if any(hasattr(p, "ds_id") or isinstance(p, DTensor) for p in mine.values()) or self.is_fsdp_enabled:
            raise ValueError("ref_model needs whole weights in each process (DDP, ZeRO-1 or 2); leave it out.")
        if isinstance(ref_model, str):
            from transformers import AutoModelForCausalLM

            ref_model = AutoModelForCausalLM.from_pretrained(ref_model, dtype=self.model.dtype)
        theirs = dict(ref_model.named_parameters())
        for name in sorted(mine.keys() | theirs.keys()):
            shapes = [tuple(there[name].shape) if name in there else "none" for there in (mine, theirs)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"ref_model is of another shape than the policy ({name}: {shapes[1]} there, {shapes[0]} here); "
                    "give the checkpoint that the policy began as, or leave it out."
                )
        return {name: p.detach().cpu().clone() for name, p in theirs.items() if mine[name].requires_grad}

    def _vllm(self) -> Any:
        try:
            from trl.generation import VLLMGeneration  # pyright: ignore[reportAttributeAccessIssue]
        except ImportError:
            raise ImportError('use_vllm needs an extra: pip install "hf-select[vllm]"') from None
        args = self.args
        return VLLMGeneration(
            model=self.model,
            accelerator=self.accelerator,
            processing_class=self._tokenizer,
            mode=args.vllm_mode,
            server_base_url=args.vllm_server_base_url,
            tensor_parallel_size=args.vllm_tensor_parallel_size,
            gpu_memory_utilization=args.vllm_gpu_memory_utilization,
            enable_sleep_mode=args.vllm_enable_sleep_mode,
            max_model_length=args.max_length,
            trust_remote_code=args.trust_remote_code,
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            max_completion_length=args.max_completion_length,
            generation_kwargs={"stop_token_ids": self._stop_ids},
        )


class _SaveAtStageEnd(TrainerCallback):
    """A checkpoint at the end of each stage: the weights that answer next, if generation is killed. Not where the user
    saves nothing; a killed run then begins with its first stage, whose answers are kept."""

    def __init__(self, trainer: IRFTTrainer):
        self.trainer = trainer

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        starts = {stage.first_step for stage in self.trainer._stages[1:]}
        if args.save_strategy != "no" and state.global_step in starts:
            control.should_save = True


def _kept(parameter: Any) -> Tensor:
    """A copy of a parameter on the host; of its own piece where FSDP2 holds it in pieces."""
    if isinstance(parameter, DTensor):
        return cast(DTensor, parameter.detach()).to_local().cpu().clone()
    with whole(parameter) as tensor:
        return tensor.detach().cpu().clone()


def _put(parameter: Any, value: Tensor) -> None:
    with torch.no_grad():
        if isinstance(parameter, DTensor):
            parameter.to_local().copy_(value)
            return
        with whole(parameter, changed=True) as tensor:
            tensor.copy_(value)


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
