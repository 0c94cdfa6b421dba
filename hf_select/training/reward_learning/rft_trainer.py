"""RFT: learn an explicit reward from demonstrations, then align the policy with it.

Li et al. 2024, "Getting more juice out of the SFT data" (arXiv:2405.17888), algorithm 1. A stage (a round there) is:

1. the policy answers the prompts of the stage once;
2. the reward takes K steps to tell demonstrations from these answers (`demonstration_reward.py`);
3. the reward is frozen, and the policy maximises E[r] - beta KL(policy || reference) on answers that it draws anew.

Step 3 is TRL's exported RLOOTrainer, a policy gradient whose reward has beta times the log-ratio of the whole answer
taken off: exactly the inner problem, whose optimum is reference * exp(r / beta). (GRPO's penalty is a mean over tokens
and its advantages are divided by their spread in a group, so beta would mean something else.) Policy and reward go on
from stage to stage; the reference is the policy's beginning throughout.

The authors' code cannot be run as published and differs: one stage, a reward at every token, and a squared-error
alignment in place of PPO. Left out: images, `IterableDataset`, tool calls in answers.
"""

import math
from pathlib import Path
from shutil import rmtree
from typing import Any, cast

import numpy as np
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainerCallback
from transformers.utils import logging
from trl import RLOOTrainer  # pyright: ignore[reportPrivateImportUsage]

from hf_select.data.encoding import response_end
from hf_select.training.reward_learning.demonstration_reward import DemonstrationReward
from hf_select.training.reward_learning.demonstrations import (
    CONVERSATION,
    PROMPT,
    REJECTED,
    kept_conversation,
    usable_demonstrations,
)
from hf_select.training.reward_learning.irft_trainer import IRFTTrainer
from hf_select.training.reward_learning.rft_config import RFTConfig
from hf_select.training.reward_learning.stages import InStages, refuse_streams, with_answers


logger = logging.get_logger(__name__)

_MEASURED = 1024  # pairs of a stage that its gap and the normalisation of its rewards are measured on
_MEANS = ("reward", "reward_std", "kl", "completions/mean_length", "completions/clipped_ratio")


class RFTTrainer(InStages, RLOOTrainer):
    """Trainer for RFT.

        trainer = RFTTrainer("Qwen/Qwen2.5-0.5B-Instruct", args=RFTConfig("out"), train_dataset=demonstrations)
        trainer.train(resume_from_checkpoint=True)  # goes on where a killed run stopped; begins if there is none
        trainer.reward  # DemonstrationReward; after training also in out/reward, as an ordinary reward model

    Args:
        model: a path or Hub id, a model loaded from one (the reference is loaded from there), or a PeftModel.
        args: see RFTConfig.
        train_dataset: demonstrations in any layout of `hf_select.data.conversation`; the last turn is the completion.
            Rows that cannot be used are left out, and one warning counts them.
        eval_dataset: held-out demonstrations: the policy of each stage answers them too, and stage/held_out_* say
            whether the reward tells the two apart.
        processing_class: the tokenizer; the model's own by default.
        reward: a DemonstrationReward in place of the one that args describe.
        callbacks, optimizers, quantization_config, peft_config: as in RLOOTrainer.
    Logs: the names of RLOOTrainer (reward, kl, entropy, completions/* ...) while it trains; stage/* at the beginning
        (answers, lengths, how well length alone tells the sides apart; loss, gap and accuracy of the reward, each pair
        as it was before its step, and the gap afterwards) and at the end of each stage (means over it, kl among them).
        Answers are in output_dir/_stages and, with log_completions, samples of them in output_dir/_completions.
    Raises: ValueError for what cannot work, with the cure.
    Resuming: exact where every update draws its answers anew (the default). With num_iterations above 1, or
        steps_per_generation above gradient_accumulation_steps, a run that goes on in the middle of such a block draws
        the rest of it anew.
    """

    args: RFTConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    model: Any  # pyright: ignore[reportIncompatibleVariableOverride]

    _tag_names = ["trl", "rft", "hf_select"]
    _name = "RFT"
    _paper = IRFTTrainer._paper

    def __init__(
        self,
        model: Any,
        args: RFTConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward: DemonstrationReward | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
    ):
        name = model if isinstance(model, str) else getattr(model.config, "_name_or_path", "")
        if args is None:
            args = RFTConfig(f"{name.split('/')[-1]}-RFT")
        refuse_streams(train_dataset, eval_dataset)
        if not name:
            raise ValueError(
                "the model was loaded from nowhere, and the reference is loaded from where the model was; save it and "
                "give its path."
            )
        tokenizer = processing_class or AutoTokenizer.from_pretrained(name, trust_remote_code=args.trust_remote_code)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise ValueError(f"{type(tokenizer).__name__} is no tokenizer; RFT is for text.")
        self._ids_of: dict[str, list[int]] = {}
        self.reward = reward or _reward_of(args, name)
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
        self.shuffle_dataset = False  # each pass has an order of its own, which a resumed run finds again
        self._stop_ids = self.eos_token_ids = self._ends()
        if not args.use_vllm:
            self.generation_config.eos_token_id = self.generation_kwargs["eos_token_id"] = self._stop_ids
        self._plan(train, held_out)
        self.reward.on_init_end(args, self.state, self.control, model=self.model, processing_class=tokenizer)
        self.add_callback(self.reward)  # behind the one that asks for a checkpoint at the end of a stage

    def _encoded(self, dataset: Any, tokenizer: Any, args: RFTConfig, name: str) -> Dataset:
        if dataset is None:
            raise ValueError("train_dataset is missing; give the demonstrations.")
        with args.main_process_first(desc="demonstrations as tokens", local=False):
            rows = usable_demonstrations(dataset, tokenizer, args, name, room=args.max_completion_length, keep=True)
        # RLOO takes prompts as text. These texts stand for the very ids that the stage's answers were drawn for.
        texts = tokenizer.batch_decode(list(rows[PROMPT]))
        self._ids_of.update(zip(texts, rows[PROMPT], strict=True))
        return rows.add_column("prompt", texts)  # type: ignore[call-arg]

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        return [list(self._ids_of[prompt]) for prompt in prompts], None, {}

    def _batches(self, size: int) -> int:
        args = self.args
        prompts = args.generation_batch_size // args.num_generations  # type: ignore[operator]
        if size < prompts:
            raise ValueError(
                f"a stage has {size} rows, and the policy answers {prompts} prompts together "
                "(generation_batch_size / num_generations); lower num_stages or the batch."
            )
        return size // prompts * args.num_iterations * args.steps_per_generation  # type: ignore[operator]

    def _further_identity(self) -> dict[str, Any]:
        args, reward = self.args, self.reward
        names = ("loss", "bound", "batch_size", "learning_rate", "weight_decay")
        return {
            "reward_model": getattr(reward.model.config, "_name_or_path", ""),
            "reward_lora": args.reward_lora,
            "reward_steps": args.reward_steps,
            "reward_epochs": args.reward_epochs,
            **{f"reward_{name}": getattr(reward, name) for name in names},
        }

    # A stage begins.

    def _begin(self, number: int, fresh: bool) -> None:
        name = f"stage-{number:02d}"
        rows = self._demonstrations.select(self._stages[number].rows)
        self._rows = rows
        if not fresh:  # the reward came back with the checkpoint
            return
        engine = self.vllm_generation if self.args.use_vllm else None
        folder, made = self._answered(name, rows, fresh, number > 0, engine, self._stop_ids)
        pairs = with_answers(rows, folder)
        self._log_completions(pairs, number, name)
        report = {**self._report(pairs, made), **self._learn(pairs, number)}
        if self.control.should_training_stop:
            return
        if self._held_out is not None:
            folder, _ = self._answered(f"{name}-eval", self._held_out, fresh, number > 0, engine, self._stop_ids)
            demonstrations, answers = self._sides(with_answers(self._held_out, folder))
            if answers:
                gap, _ = self._gap(demonstrations, answers)
                report |= {f"stage/held_out_{name}": value for name, value in gap.items()}
        self._say({"stage": float(number), **report})

    def _begin_pass(self, number: int, passed: int) -> None:
        order = np.random.default_rng([self.args.seed, number, passed]).permutation(len(self._rows))
        self._train_on(self._rows.select(order), self._stages[number])

    def _learn(self, pairs: Dataset, number: int) -> dict[str, float]:
        """The reward takes its K steps; rewards are normalised by what it then gives the stage's pairs."""
        args = self.args
        demonstrations, answers = self._sides(pairs)
        if not answers:
            logger.warning(
                "Stage %d: all %d answers are their demonstrations, word for word. There is nothing left to learn "
                "from them; training stops.",
                number,
                len(pairs),
            )
            self.control.should_training_stop = True
            return {}
        steps = args.reward_steps or args.reward_epochs * math.ceil(len(answers) / self.reward.batch_size)
        self._forget(number - 1)
        learnt = self.reward.fit(
            demonstrations,
            answers,
            steps,
            folder=self._stage_path(f"stage-{number:02d}") / "reward",
            save_steps=max(1, int(args.save_steps)) if args.save_steps >= 1 else None,
            fresh=True,
        )
        some = np.random.default_rng([args.seed, number]).permutation(len(answers))[:_MEASURED]
        gap, values = self._gap([demonstrations[i] for i in some], [answers[i] for i in some])
        self.reward.normalise(values)
        return {
            "stage/reward_steps": float(steps),
            **{f"stage/reward_{name}": value for name, value in learnt.items()},
            **{f"stage/reward_{name}_after": value for name, value in gap.items()},
            "stage/reward_deviation": self.reward.deviation,
        }

    def _forget(self, number: int) -> None:
        """What a killed run would have needed while the reward learnt from a stage; checkpoints have it now."""
        if number >= 0 and self.is_world_process_zero():
            rmtree(self._stage_path(f"stage-{number:02d}") / "reward", ignore_errors=True)

    def _sides(self, pairs: Dataset) -> tuple[list[Any], list[Any]]:
        """Demonstrations and answers as the reward reads them, without pairs that it cannot tell apart."""
        texts = self._tokenizer.batch_decode(list(pairs[REJECTED]), skip_special_tokens=True)
        kept = list(pairs[CONVERSATION])
        demonstrations = self.reward.encode([kept_conversation(row) for row in kept])
        rows = [kept_conversation(row, text) for row, text in zip(kept, texts, strict=True)]
        answers = self.reward.encode(rows, list(pairs["ended"]))
        sides = [(y, own) for y, own in zip(demonstrations, answers, strict=True) if not np.array_equal(y, own)]
        return [y for y, _ in sides], [own for _, own in sides]

    def _gap(self, demonstrations: list[Any], answers: list[Any]) -> tuple[dict[str, float], np.ndarray]:
        """Mean of r(y) - r(y') in the reward's own unit, share of pairs where it is above 0; and all r."""
        both = self.reward.rewards_together([*demonstrations, *answers])
        margin = both[: len(answers)] - both[len(answers) :]
        return {"gap": float(margin.mean()), "accuracy": float((margin > 0).mean())}, both

    # While the policy is aligned.

    def demonstration_reward(
        self, completions: list[str], completion_ids: list[list[int]], conversation: list[str], **_: Any
    ) -> list[float]:
        """What RLOO asks for: normalised rewards under the frozen reward."""
        ended = [bool(ids) and ids[-1] in self._stop_ids for ids in completion_ids]
        rows = [kept_conversation(row, text) for row, text in zip(conversation, completions, strict=True)]
        return self.reward.normalised(self.reward.rewards(self.reward.encode(rows, ended))).tolist()

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        found = super()._generate_and_score_completions(inputs)
        if self.model.training:
            for name in _MEANS:
                self._of_stage[name] += self._metrics["train"].get(name, [])[-1:]
        return found

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """As Trainer's. `resume_from_checkpoint=True` goes on from the last checkpoint that was written whole, and
        begins anew (with the answers that are on disk) if there is none. At the end the reward is in
        output_dir/reward."""
        done = super().train(resume_from_checkpoint, **kwargs)
        self.reward.save_pretrained(Path(str(self.args.output_dir)) / "reward")
        if self._stage is not None:
            self._forget(self._stage)
        return done


def _reward_of(args: RFTConfig, policy: str) -> DemonstrationReward:
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
