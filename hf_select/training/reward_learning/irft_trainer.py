"""IRFT: learn from demonstrations and from the policy's own answers to the same prompts.

Li et al. 2024, "Getting more juice out of the SFT data" (arXiv:2405.17888); with one stage, or with `full` data and
the pairs of the last stage, it is SPIN (Chen et al. 2024, arXiv:2401.01335). In each stage the policy answers its
prompts once, log-probabilities of both completions under the reference are computed once, and K steps move the policy
from its own answers towards the demonstrations, by the loss of `losses.py`. On fixed pairs that loss is DPO's, so this
is TRL's DPOTrainer (model loading, PEFT, ZeRO and FSDP, log-probabilities without logits of the whole vocabulary,
card) with rows that change from stage to stage:

- one `train()`, one optimizer and one engine serve all stages (`staged_training.py`);
- the reference of a stage is the policy at its beginning, so its log-probabilities are one forward pass of the model
  in training: there is no second model, and an adapter is not merged (it is its own reference at every stage; the
  authors merge it and start another);
- what a killed run needs is on disk before it is needed: the answers part by part, the references, and a checkpoint
  at the end of each stage, which has the weights that answer next.

Not supported: the authors' in-training generator, which no published run used; images; `IterableDataset`.
"""

import math
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from accelerate.utils import gather_object, is_peft_model, send_to_device
from datasets import Dataset, concatenate_datasets
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.utils import logging
from trl import DPOTrainer  # pyright: ignore[reportPrivateImportUsage]

from hf_select.training import _compat
from hf_select.training.label_losses import label_log_probs, unwrapped
from hf_select.training.reward_learning.demonstrations import (
    CHOSEN,
    PROMPT,
    REJECTED,
    usable_demonstrations,
)
from hf_select.training.reward_learning.irft_config import IRFTConfig
from hf_select.training.reward_learning.losses import implicit_reward, pair_loss
from hf_select.training.reward_learning.releases import check_overridden_methods, check_used_attributes
from hf_select.training.reward_learning.stage_report import stage_report
from hf_select.training.reward_learning.staged_training import (
    StagedTrainingMixin,
    check_not_streaming,
    path_of,
    with_answers,
)
from hf_select.training.sharding import gathered_parameter, has_zero3_parameters, uses_fsdp


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import BitsAndBytesConfig
    from trl.generation.vllm_generation import VLLMGeneration


logger = logging.get_logger(__name__)

# B pairs, T tokens

_CONVERGED = 0.01  # training stops if at most this share of the answers differs from their demonstrations
_METRICS = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen")
_METRICS += ("logps/rejected",)


class IRFTTrainer(StagedTrainingMixin, DPOTrainer):
    """Trainer for IRFT and SPIN.

        trainer = IRFTTrainer("Qwen/Qwen2.5-1.5B", args=IRFTConfig("out"), train_dataset=demonstrations)
        trainer.train(resume_from_checkpoint=True)  # resumes a killed run, or starts

    Args:
        model: a path or Hub id, a model, or a PeftModel.
        args: see IRFTConfig.
        train_dataset: demonstrations in any layout of `hf_select.data.conversation` (messages, Alpaca ...); the last
            turn is the completion. Rows that cannot be used are left out, and one warning counts them.
        eval_dataset: held-out demonstrations; the policy of each stage answers them too, and eval_rewards/* say
            whether it separates them from its own answers.
        processing_class: the tokenizer; the model's own by default.
        ref_model: with ref_update="fixed", a model of the policy's architecture that is the reference instead of the
            initial policy. Its weights are kept in host memory.
        callbacks, optimizers, quantization_config, peft_config: as in DPOTrainer.
    Logs: the names of DPOTrainer (rewards/chosen, rewards/margins, logps/rejected ...) while it trains; stage/* at the
        beginning (answers, identical, empty, cut, lengths, ends, how well length alone separates the two sides) and
        at the end of each stage (means of the metrics over it). Answers are in output_dir/_stages and, with
        log_completions, samples of them in output_dir/_completions.
    Raises: ValueError for settings that cannot work.
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
        model: "str | PreTrainedModel | PeftModel",
        args: IRFTConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        ref_model: str | PreTrainedModel | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: "tuple[Optimizer | None, LambdaLR | None]" = (None, None),
        quantization_config: "BitsAndBytesConfig | None" = None,
        peft_config: "PeftConfig | None" = None,
    ):
        if args is None:
            args = IRFTConfig(f"{path_of(model).split('/')[-1]}-IRFT")
        check_not_streaming(train_dataset, eval_dataset)
        check_overridden_methods(type(self))
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
        check_used_attributes(self, "_tokenizer", "_metrics", "_total_train_tokens", "aux_loss_enabled", "beta")
        self._validate()
        self._stop_ids = self._find_stop_ids()
        self._reference = self._given_reference(ref_model)
        self._engine = self._vllm() if args.use_vllm else None
        self._set_up_stages(cast(Dataset, self.train_dataset), cast("Dataset | None", self.eval_dataset))

    # Rows.

    def _prepare_dataset(
        self, dataset: Dataset, processing_class: object, args: IRFTConfig, dataset_name: str
    ) -> Dataset:
        if not isinstance(processing_class, PreTrainedTokenizerBase):
            raise ValueError(f"{type(processing_class).__name__} is not a tokenizer; IRFT trains on text.")
        with args.main_process_first(desc="demonstrations as tokens", local=False):
            return usable_demonstrations(dataset, processing_class, args, dataset_name)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        return dataset  # each stage computes its references

    def _batches_per_pass(self, rows: int) -> int:
        args = self.args
        batches = rows / args.train_batch_size
        batches = math.floor(batches) if args.dataloader_drop_last else math.ceil(batches)
        return math.ceil(batches / args.world_size)

    def _rows_per_pass(self, number: int, rows: int) -> int:
        return rows * (2 if self.args.mix_last_stage and number > 0 else 1)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As Trainer's. `resume_from_checkpoint=True` resumes from the last complete checkpoint, and starts from the
        beginning (with the answers that are on disk) if there is none."""
        if self.args.ref_update == "fixed" and self._reference is None:
            self._reference = {name: _to_host(p) for name, p in self.model.named_parameters() if p.requires_grad}
        return super().train(resume_from_checkpoint, **kwargs)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As Trainer's, on pairs. With eval_on_start it is delayed until the first stage has its answers."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        waits = self.is_in_train and self._stage is None
        if not waits and isinstance(rows, Dataset) and REJECTED not in rows.column_names:
            raise ValueError(
                "the demonstrations to evaluate have no answers of the policy; those of eval_dataset are answered "
                "when a stage begins, so call train() first (eval_on_start=True evaluates at its beginning)."
            )
        return super().evaluate(eval_dataset, *args, **kwargs)

    # A stage begins.

    def _begin_stage(self, number: int, fresh: bool) -> None:
        args, stage = self.args, self._stages[number]
        self.beta = (args.stage_betas or [args.beta] * len(self._stages))[number]
        name = f"stage-{number:02d}"
        pairs, report = self._pairs(name, number, self._demonstrations.select(stage.rows), fresh)
        kept = np.flatnonzero([a != b for a, b in zip(pairs[CHOSEN], pairs[REJECTED], strict=True)])
        if len(kept) <= _CONVERGED * len(pairs):
            logger.warning(
                "Stage %d: %d of %d answers are identical to their demonstrations. There is nothing left to learn "
                "from them; training stops.",
                number,
                len(pairs) - len(kept),
                len(pairs),
            )
            self.control.should_training_stop = True
            return
        # A pair of identical completions has no gradient: other pairs replace it, so that steps and schedule stay as
        # planned and every batch is full.
        rng = np.random.default_rng([args.seed, number])
        replacements = np.resize(rng.permutation(kept), len(pairs) - len(kept))
        self._set_train_rows(pairs.select(np.concatenate([kept, replacements])), stage)
        if self._held_out is not None:
            self.eval_dataset, _ = self._pairs(f"{name}-eval", number, self._held_out, fresh, mixed=False)
        self._log_stage({"stage": float(number), **report})

    def _pairs(
        self, name: str, number: int, demonstrations: Dataset, fresh: bool, mixed: bool = True
    ) -> tuple[Dataset, dict[str, float]]:
        """(prompts, demonstrations, answers and references of a stage; the log of its answers)"""
        args, accelerator = self.args, self.accelerator
        folder, generation = self._answer_prompts(
            name, demonstrations, fresh, remake=number > 0, engine=self._engine, stop_ids=self._stop_ids
        )
        pairs = with_answers(demonstrations, folder)
        report = stage_report(pairs, generation)
        self._log_completions(pairs, number, name)
        if mixed and args.mix_last_stage and number > 0:
            before = self._demonstrations.select(self._stages[number - 1].rows)
            last = self._stage_folder(f"stage-{number - 1:02d}", before, self._stop_ids, model=None)
            self._open(last, remake=False)
            pairs = concatenate_datasets([pairs, with_answers(before, last)])
        reference = folder.read_reference()
        if reference is None:
            values = self._reference_log_probabilities(pairs)
            if accelerator.is_main_process:
                folder.write_reference(values)
            accelerator.wait_for_everyone()
            reference = cast(Dataset, folder.read_reference())
        return concatenate_datasets([pairs, reference], axis=1), report

    def _method_identity(self) -> dict[str, object]:
        return {"mix_last_stage": self.args.mix_last_stage, "ref_update": self.args.ref_update}

    # Log-probabilities.

    def _reference_log_probabilities(self, pairs: Dataset) -> np.ndarray:
        """Log-probabilities under the reference of this stage, (n, 2). Every process computes the same number of
        batches, longest pairs first."""
        args, accelerator = self.args, self.accelerator
        size = args.precompute_ref_batch_size or args.per_device_eval_batch_size
        lengths = [
            len(p) + max(len(c), len(r)) for p, c, r in zip(pairs[PROMPT], pairs[CHOSEN], pairs[REJECTED], strict=True)
        ]
        order = np.argsort(-np.array(lengths), kind="stable")
        batches: list[np.ndarray] = [order[i : i + size] for i in range(0, len(order), size)]
        batches += [batches[-1]] * (-len(batches) % accelerator.num_processes)
        inputs_of, results = pairs.select_columns([PROMPT, CHOSEN, REJECTED]), []
        training = self.model.training
        self.model.eval()
        with torch.no_grad(), self._with_reference_weights():
            for rows in cast(Any, batches)[accelerator.process_index :: accelerator.num_processes]:
                inputs: Any = self.data_collator(inputs_of.select(rows).to_list())
                with self.compute_loss_context_manager():
                    outputs = self._outputs(
                        cast(Any, self.model_wrapped), cast(Any, send_to_device(inputs, accelerator.device))
                    )
                values = torch.stack(self._completion_log_probs(outputs.log_probs, inputs), dim=1)
                results.append((rows.tolist(), values.cpu().double().tolist()))
        self.model.train(training)
        log_probs = np.full((len(pairs), 2), np.nan)
        for rows, values in gather_object(results):
            log_probs[rows] = values
        if not np.isfinite(log_probs).all():
            raise ValueError(
                f"{np.isnan(log_probs).any(1).sum()} pairs have no finite log-probability under the reference; check "
                "its weights and their precision."
            )
        return log_probs

    @contextmanager
    def _with_reference_weights(self) -> Iterator[None]:
        """Within the block the model has the weights of the reference. With ref_update="stage" nothing changes."""
        if self.args.ref_update == "stage":
            yield
            return
        assert self._reference is not None
        parameters = {name: p for name, p in self.model.named_parameters() if name in self._reference}
        current = {name: _to_host(p) for name, p in parameters.items()}
        try:
            for name, p in parameters.items():
                _restore(p, self._reference[name])
            yield
        finally:
            for name, p in parameters.items():
                _restore(p, current[name])

    def _outputs(self, model: torch.nn.Module, inputs: dict[str, Tensor]) -> Any:
        """The model's output with `log_probs` (2B, T-1), zero outside the completions."""
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        extra: dict[str, Any] = {"output_router_logits": True} if self.aux_loss_enabled else {}
        fused = _compat.has_fused_head(unwrapped(self.model))  # DPOTrainer adds one since trl 1.15
        if fused:
            extra |= {"labels": labels, "fused_lm_head": True}
        outputs = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False, **extra
        )
        if not fused:
            logits = outputs.logits[:, outputs.logits.shape[1] - labels.shape[1] :]  # prompt tuning prepends tokens
            outputs.log_probs = label_log_probs(logits[:, :-1], labels[:, 1:])
        return outputs

    @staticmethod
    def _completion_log_probs(log_probs: Tensor, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """lp(y) and lp(y'), (B,) each. Leaves out the positions that prompt tuning prepends."""
        chosen, rejected = log_probs[:, 1 - inputs["input_ids"].shape[1] :].sum(1).chunk(2)
        return chosen, rejected

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Mean loss of the pairs; see losses.py."""
        if return_outputs:
            raise ValueError("IRFT computes no logits; leave out compute_metrics, or set prediction_loss_only=True.")
        mode = "train" if self.model.training else "eval"
        if "ref_chosen_logps" not in inputs:
            raise ValueError(
                "the pairs have no log-probabilities under a reference, which the implicit reward needs; a stage "
                "computes them, so call train() first."
            )
        outputs = self._outputs(model, inputs)
        chosen, rejected = self._completion_log_probs(outputs.log_probs, inputs)
        reward = implicit_reward(chosen, inputs["ref_chosen_logps"].to(chosen), self.beta)
        answer_reward = implicit_reward(rejected, inputs["ref_rejected_logps"].to(chosen), self.beta)
        margin = reward - answer_reward
        loss = pair_loss(margin, cast(Any, self.args.loss_type[0])).mean()
        if self.args.nll_coef:
            tokens = inputs["completion_mask"][: len(chosen), 1:].sum()
            loss = loss - self.args.nll_coef * chosen.sum() / tokens
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss
        with torch.no_grad():
            tokens = inputs["attention_mask"].sum(1).chunk(2)
            metrics = (reward, answer_reward, (reward > answer_reward).float(), margin, chosen, rejected)
            metrics += ((tokens[0] + tokens[1]).float(),)
            gathered = cast(Tensor, self.accelerator.gather(torch.stack(metrics, dim=1).detach()))
        means = gathered.cpu().double().mean(0).tolist()
        for name, value in zip(_METRICS, means, strict=False):
            self._metrics[mode][name].append(value)
            if mode == "train":
                self._stage_metrics[name].append(value)
        if mode == "train":
            self._total_train_tokens += round(means[-1] * len(gathered))
            self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        return loss

    # Checks, the given reference and vLLM.

    def _validate(self) -> None:
        if self.args.train_sampling_strategy != "random":
            raise ValueError(
                f'train_sampling_strategy="{self.args.train_sampling_strategy}" needs the lengths of rows before the '
                "policy has generated them; leave it out."
            )

    def _given_reference(self, ref_model: str | PreTrainedModel | None) -> dict[str, Tensor] | None:
        """Weights of `ref_model` in host memory, or None without one."""
        if ref_model is None:
            return None
        if self.args.ref_update != "fixed":
            raise ValueError(
                'ref_model is given, and with ref_update="stage" the reference is the policy at the beginning of each '
                'stage; set ref_update="fixed", or leave ref_model out.'
            )
        if is_peft_model(self.model):
            raise ValueError("the policy is an adapter, whose reference is its initial state; leave ref_model out.")
        mine = dict(self.model.named_parameters())
        if has_zero3_parameters(self.model) or uses_fsdp(self):
            raise ValueError("ref_model needs unsharded weights in each process (DDP, ZeRO-1 or 2); leave it out.")
        if isinstance(ref_model, str):
            from transformers import AutoModelForCausalLM

            ref_model = AutoModelForCausalLM.from_pretrained(ref_model, dtype=self.model.dtype)
        theirs = dict(ref_model.named_parameters())
        for name in sorted(mine.keys() | theirs.keys()):
            shapes = [tuple(weights[name].shape) if name in weights else "none" for weights in (mine, theirs)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"ref_model is of another shape than the policy ({name}: {shapes[1]}, and {shapes[0]} in the "
                    "policy); give the checkpoint that the policy was initialised from, or leave it out."
                )
        return {name: p.detach().cpu().clone() for name, p in theirs.items() if mine[name].requires_grad}

    def _vllm(self) -> "VLLMGeneration":
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


def _to_host(parameter: Tensor) -> Tensor:
    """A copy of a parameter in host memory; of its local shard under FSDP2."""
    if isinstance(parameter, DTensor):
        return cast(DTensor, parameter.detach()).to_local().cpu().clone()
    with gathered_parameter(parameter) as tensor:
        return tensor.detach().cpu().clone()


def _restore(parameter: Tensor, value: Tensor) -> None:
    """Write a copy made by `_to_host` back into the parameter."""
    with torch.no_grad():
        if isinstance(parameter, DTensor):
            parameter.to_local().copy_(value)
            return
        with gathered_parameter(parameter, changed=True) as tensor:
            tensor.copy_(value)
