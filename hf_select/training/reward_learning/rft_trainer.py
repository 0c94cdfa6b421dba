"""RFT: learn an explicit reward from demonstrations, then align the policy with it.

Li et al. 2024, "Getting more juice out of the SFT data" (arXiv:2405.17888), algorithm 1. A stage (a round there) is:

1. the policy answers the prompts of the stage once;
2. the reward takes K steps to separate demonstrations from these answers (`demonstration_reward.py`);
3. the reward is frozen, and the policy maximises E[r] - beta KL(policy || reference) on new answers.

Step 3 is TRL's RLOOTrainer, a policy gradient that subtracts beta times the log-ratio of the whole answer from the
reward: exactly the inner problem, whose optimum is reference * exp(r / beta). (GRPO's penalty is a mean over tokens
and its advantages are divided by their standard deviation in a group, so beta would mean something else.) Policy and
reward continue from stage to stage; the reference is always the initial policy.

The authors' code does not run as published and differs: one stage, a reward at every token, and a squared-error
alignment instead of PPO. Not supported: images, `IterableDataset`, tool calls in answers.
"""

import math
from importlib.metadata import version
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainerCallback
from transformers.utils import logging
from trl import RLOOTrainer  # pyright: ignore[reportPrivateImportUsage]

from hf_select.data.encoding import response_end
from hf_select.training import _compat
from hf_select.training.reward_learning.demonstration_reward import DemonstrationReward, different_pairs
from hf_select.training.reward_learning.demonstrations import (
    CONVERSATION,
    PROMPT,
    REJECTED,
    kept_conversation,
    usable_demonstrations,
)
from hf_select.training.reward_learning.irft_trainer import IRFTTrainer
from hf_select.training.reward_learning.releases import check_overridden_methods, check_used_attributes
from hf_select.training.reward_learning.rft_config import RFTConfig
from hf_select.training.reward_learning.stage_report import stage_report
from hf_select.training.reward_learning.staged_training import (
    StagedTrainingMixin,
    check_not_streaming,
    path_of,
    with_answers,
)


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import BitsAndBytesConfig, PreTrainedModel


logger = logging.get_logger(__name__)

_MEASURED_PAIRS = 1024  # pairs of a stage that measure the gap and normalise the rewards
_STAGE_METRICS = ("reward", "reward_std", "kl", "completions/mean_length", "completions/clipped_ratio")


class RFTTrainer(StagedTrainingMixin, RLOOTrainer):
    """Trainer for RFT.

        trainer = RFTTrainer("Qwen/Qwen2.5-0.5B-Instruct", args=RFTConfig("out"), train_dataset=demonstrations)
        trainer.train(resume_from_checkpoint=True)  # resumes a killed run, or starts
        trainer.reward  # DemonstrationReward; after training also in out/reward, as an ordinary reward model

    Args:
        model: a path or Hub id, a model loaded from one (the reference is loaded from there), or a PeftModel.
        args: see RFTConfig.
        train_dataset: demonstrations in any layout of `hf_select.data.conversation`; the last turn is the completion.
            Rows that cannot be used are left out, and one warning counts them.
        eval_dataset: held-out demonstrations: the policy of each stage answers them too, and stage/held_out_* say
            whether the reward separates the two.
        processing_class: the tokenizer; the model's own by default.
        reward: a DemonstrationReward instead of the one that args describe.
        callbacks, optimizers, quantization_config, peft_config: as in RLOOTrainer.
    Logs: the names of RLOOTrainer (reward, kl, entropy, completions/* ...) while it trains; stage/* at the beginning
        (answers, lengths, how well length alone separates the two sides; loss, gap and accuracy of the reward, each
        pair before its step, and the gap afterwards) and at the end of each stage (means over it, including kl).
        Answers are in output_dir/_stages and, with log_completions, samples of them in output_dir/_completions.
    Raises: ValueError for settings that cannot work.
    Resuming: exact where every update samples new answers (the default). With num_iterations above 1, or
        steps_per_generation above gradient_accumulation_steps, a run that resumes inside such a block samples the rest
        of it again.
    """

    args: RFTConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    model: Any  # pyright: ignore[reportIncompatibleVariableOverride]

    _tag_names = ["trl", "rft", "hf_select"]
    _name = "RFT"
    _paper = IRFTTrainer._paper

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        args: RFTConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward: DemonstrationReward | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: "tuple[Optimizer | None, LambdaLR | None]" = (None, None),
        quantization_config: "BitsAndBytesConfig | None" = None,
        peft_config: "PeftConfig | None" = None,
    ):
        name = path_of(model)
        if args is None:
            args = RFTConfig(f"{name.split('/')[-1]}-RFT")
        check_not_streaming(train_dataset, eval_dataset)
        check_overridden_methods(type(self))
        if _compat.lacks_triton():
            raise ValueError(
                f"RLOOTrainer of trl {version('trl')} needs Triton, which cannot be imported here; pip install "
                '"trl>=1.16"'
            )
        if not name:
            raise ValueError(
                "the model was loaded from nowhere (it has no path), and the reference is loaded from the same path; "
                "save the model and give its path."
            )
        tokenizer = processing_class or AutoTokenizer.from_pretrained(name, trust_remote_code=args.trust_remote_code)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise ValueError(f"{type(tokenizer).__name__} is not a tokenizer; RFT trains on text.")
        self._ids_of: dict[str, list[int]] = {}
        self.reward = reward or _make_reward(args, name)
        if args.use_vllm:
            args.generation_kwargs = {"stop_token_ids": [response_end(tokenizer)]}
        train = self._encoded(train_dataset, tokenizer, args, "train")
        held_out = None if eval_dataset is None else self._encoded(eval_dataset, tokenizer, args, "eval")
        super().__init__(
            model,
            reward_funcs=cast(Any, [self.demonstration_reward]),
            args=args,
            train_dataset=train,
            eval_dataset=held_out,
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        check_used_attributes(self, "_tokenizer", "_metrics")
        self.shuffle_dataset = False  # each pass has its own order, which a resumed run repeats
        self._stop_ids = self.eos_token_ids = self._usable_stop_ids()
        if not args.use_vllm:
            check_used_attributes(self, "generation_config", "generation_kwargs")
            self.generation_config.eos_token_id = self.generation_kwargs["eos_token_id"] = self._stop_ids
        self._set_up_stages(train, held_out)
        self.reward.on_init_end(args, self.state, self.control, model=self.model, processing_class=tokenizer)
        self.add_callback(self.reward)  # after the callback that asks for a checkpoint at the end of a stage

    def _usable_stop_ids(self) -> list[int]:
        """Tokens that end an answer. RLOOTrainer of trl 1.14 knows only the tokenizer's EOS token.

        Raises: ValueError with that release if the chat template ends responses with another token.
        """
        if hasattr(self, "eos_token_ids"):
            return self._find_stop_ids()
        end, eos = response_end(self._tokenizer), cast(int, self._tokenizer.eos_token_id)
        if end not in (None, eos):
            theirs, ours = self._tokenizer.convert_ids_to_tokens([eos, cast(int, end)])
            raise ValueError(
                f"the RLOOTrainer of trl {version('trl')} ends answers only at the tokenizer's EOS token {theirs}, "
                f'and the chat template ends responses with {ours}; pip install "trl>=1.15"'
            )
        return [eos]

    def _encoded(
        self, dataset: Dataset | None, tokenizer: PreTrainedTokenizerBase, args: RFTConfig, name: str
    ) -> Dataset:
        if dataset is None:
            raise ValueError("train_dataset is missing; give the demonstrations.")
        with args.main_process_first(desc="demonstrations as tokens", local=False):
            rows = usable_demonstrations(
                dataset, tokenizer, args, name, min_answer_tokens=args.max_completion_length, keep=True
            )
        # RLOO takes prompts as text. These texts represent the ids that the stage's answers were generated for.
        texts = tokenizer.batch_decode(list(rows[PROMPT]))
        self._ids_of.update(zip(texts, rows[PROMPT], strict=True))
        return rows.add_column("prompt", texts)  # type: ignore[call-arg]

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [list(self._ids_of[prompt]) for prompt in prompts], None, {}

    def _batches_per_pass(self, rows: int) -> int:
        args = self.args
        prompts = args.generation_batch_size // args.num_generations  # type: ignore[operator]
        if rows < prompts:
            raise ValueError(
                f"a stage has {rows} rows, and the policy answers {prompts} prompts together "
                "(generation_batch_size / num_generations); lower num_stages or the batch."
            )
        return rows // prompts * args.num_iterations * args.steps_per_generation  # type: ignore[operator]

    def _method_identity(self) -> dict[str, object]:
        args, reward = self.args, self.reward
        names = ("loss", "bound", "batch_size", "learning_rate", "weight_decay")
        return {
            "reward_model": path_of(reward.model),
            "reward_lora": args.reward_lora,
            "reward_steps": args.reward_steps,
            "reward_epochs": args.reward_epochs,
            **{f"reward_{name}": getattr(reward, name) for name in names},
        }

    # A stage begins.

    def _begin_stage(self, number: int, fresh: bool) -> None:
        name = f"stage-{number:02d}"
        rows = self._demonstrations.select(self._stages[number].rows)
        self._rows = rows
        if not fresh:  # the checkpoint has the reward
            return
        engine = self.vllm_generation if self.args.use_vllm else None
        folder, generation = self._answer_prompts(name, rows, fresh, number > 0, engine, self._stop_ids)
        pairs = with_answers(rows, folder)
        self._log_completions(pairs, number, name)
        report = {**stage_report(pairs, generation), **self._learn(pairs, number)}
        if self.control.should_training_stop:
            return
        if self._held_out is not None:
            folder, _ = self._answer_prompts(f"{name}-eval", self._held_out, fresh, number > 0, engine, self._stop_ids)
            demonstrations, answers = self._sides(with_answers(self._held_out, folder))
            if answers:
                gap, _ = self._gap(demonstrations, answers)
                report |= {f"stage/held_out_{name}": value for name, value in gap.items()}
        self._log_stage({"stage": float(number), **report})

    def _begin_pass(self, number: int, passed: int) -> None:
        order = np.random.default_rng([self.args.seed, number, passed]).permutation(len(self._rows))
        self._set_train_rows(self._rows.select(order), self._stages[number])

    def _learn(self, pairs: Dataset, number: int) -> dict[str, float]:
        """Train the reward for its K steps, then normalise rewards on the stage's pairs."""
        args = self.args
        demonstrations, answers = self._sides(pairs)
        if not answers:
            logger.warning(
                "Stage %d: all %d answers are identical to their demonstrations. There is nothing left to learn "
                "from them; training stops.",
                number,
                len(pairs),
            )
            self.control.should_training_stop = True
            return {}
        steps = args.reward_steps or args.reward_epochs * math.ceil(len(answers) / self.reward.batch_size)
        self._forget(number - 1)
        learned = self.reward.fit(
            demonstrations,
            answers,
            steps,
            folder=self._stage_path(f"stage-{number:02d}") / "reward",
            save_steps=max(1, int(args.save_steps)) if args.save_steps >= 1 else None,
            fresh=True,
        )
        sample = np.random.default_rng([args.seed, number]).permutation(len(answers))[:_MEASURED_PAIRS]
        gap, values = self._gap([demonstrations[i] for i in sample], [answers[i] for i in sample])
        self.reward.normalise(values)
        return {
            "stage/reward_steps": float(steps),
            **{f"stage/reward_{name}": value for name, value in learned.items()},
            **{f"stage/reward_{name}_after": value for name, value in gap.items()},
            "stage/reward_deviation": self.reward.deviation,
        }

    def _forget(self, number: int) -> None:
        """Delete the reward's state inside a stage, which checkpoints have now."""
        if number >= 0 and self.is_world_process_zero():
            rmtree(self._stage_path(f"stage-{number:02d}") / "reward", ignore_errors=True)

    def _sides(self, pairs: Dataset) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Demonstrations and answers as the reward reads them, without pairs that are identical."""
        texts = self._tokenizer.batch_decode(list(pairs[REJECTED]), skip_special_tokens=True)
        texts_of_rows = list(pairs[CONVERSATION])
        demonstrations = self.reward.encode([kept_conversation(row) for row in texts_of_rows])
        rows = [kept_conversation(row, text) for row, text in zip(texts_of_rows, texts, strict=True)]
        answers = self.reward.encode(rows, list(pairs["ended"]))
        sides = different_pairs(demonstrations, answers)
        return [demonstration for demonstration, _ in sides], [answer for _, answer in sides]

    def _gap(self, demonstrations: list[np.ndarray], answers: list[np.ndarray]) -> tuple[dict[str, float], np.ndarray]:
        """(mean of r(y) - r(y') before normalisation and share of pairs where it is above 0; all r)"""
        both = self.reward.rewards_together([*demonstrations, *answers])
        margin = both[: len(answers)] - both[len(answers) :]
        return {"gap": float(margin.mean()), "accuracy": float((margin > 0).mean())}, both

    # Alignment of the policy.

    def demonstration_reward(
        self, completions: list[str], completion_ids: list[list[int]], conversation: list[str], **_: Any
    ) -> list[float]:
        """RLOO's reward function: normalised rewards under the frozen reward."""
        ended = [bool(ids) and ids[-1] in self._stop_ids for ids in completion_ids]
        rows = [kept_conversation(row, text) for row, text in zip(conversation, completions, strict=True)]
        return self.reward.normalised(self.reward.rewards(self.reward.encode(rows, ended))).tolist()

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Any:
        outputs = super()._generate_and_score_completions(inputs)
        if self.model.training:
            for name in _STAGE_METRICS:
                self._stage_metrics[name] += self._metrics["train"].get(name, [])[-1:]
        return outputs

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As Trainer's. `resume_from_checkpoint=True` resumes from the last complete checkpoint, and starts from the
        beginning (with the answers that are on disk) if there is none. At the end the reward is saved in
        output_dir/reward."""
        output = super().train(resume_from_checkpoint, **kwargs)
        self.reward.save_pretrained(Path(str(self.args.output_dir)) / "reward")
        if self._stage is not None:
            self._forget(self._stage)
        return output


def _make_reward(args: RFTConfig, policy: str) -> DemonstrationReward:
    lora: Any = args.reward_lora
    return DemonstrationReward(
        args.reward_model or policy,
        loss=args.reward_loss,
        bound=args.reward_bound,
        steps_per_call=0,
        batch_size=args.reward_batch_size,
        micro_batch_size=args.per_device_train_batch_size,
        learning_rate=args.reward_learning_rate,
        weight_decay=args.reward_weight_decay,
        max_length=args.max_length,
        lora=lora,
        dtype=args.reward_dtype,
        bf16=bool(args.bf16),
        checkpointing=bool(args.gradient_checkpointing or args.activation_checkpointing),
        seed=args.seed,
        trust_remote_code=args.trust_remote_code,
    )
