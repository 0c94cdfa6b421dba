"""A reward that is learned from demonstrations: it separates them from the policy's own answers.

Li et al. 2024, arXiv:2405.17888, algorithm 1. With y a demonstration and y' an answer of the current policy to the
same prompt, r is trained to rate y above y'. A policy that is then aligned with it (KL-regularised, by any of TRL's
online trainers) moves from its own answers towards the demonstrations.

    s(x, y) = w . h(x, y)         h: final hidden state at the last real token, w: a head without bias, in fp32
    r = s, or bounded             r = R tanh(s / R), so |r| <= R; the order of rewards is that of s
    logistic  -log sigmoid(r(y) - r(y'))      the authors' code, RewardTrainer's loss; bounded in its gradient
    linear    -(r(y) - r(y'))                 the paper's gradient; unbounded, so it needs a bound R

The policy gets (r - m) / d, with m and d the mean and standard deviation of r over demonstrations and answers of the
round, so that the KL coefficient means the same in every round. (Over answers alone d would vanish once all answers
are separated from all demonstrations, and the first better answer would be worth tens of standard deviations.)

The model is an ordinary `AutoModelForSequenceClassification` with one label, whose logit is s, initialised from a
causal LM (head at zero, so all rewards begin equal) or from a reward model. Each process holds the whole model,
however the policy is trained, and gradients are averaged over processes: under ZeRO-3 or FSDP give it an adapter or a
smaller model. It reads prompts, demonstrations and answers as text under its own chat template, so its tokenizer may
differ from the policy's, and both sides are tokenized alike.
"""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainerCallback

from hf_select.atomic import atomic_path, read_json
from hf_select.data.bad_rows import BadRow
from hf_select.data.conversation import Conversation, conversations
from hf_select.data.encoding import response_close, response_end
from hf_select.models import batching
from hf_select.models.batching import OutOfMemory, TokenBudget
from hf_select.models.reward_model import padded, whole_rows
from hf_select.training import _compat
from hf_select.training.reward_learning.losses import pair_loss
from hf_select.training.reward_learning.process_group import rank_and_size, sum_gradients, sum_values
from hf_select.training.reward_learning.reward_setup import (
    add_reward_adapter,
    disable_dropout,
    load_reward,
    set_padding_token,
)
from hf_select.training.reward_learning.reward_state import read_state, write_state
from hf_select.validation import check_choice


if TYPE_CHECKING:
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )


# B pairs, T tokens, D hidden

RewardLoss = Literal["logistic", "linear"]

_MAX_GRADIENT_NORM = 1.0  # as in TRL's trainers


class DemonstrationReward(TrainerCallback):
    """A reward function for TRL's online trainers that learns from a column of demonstrations.

        reward = DemonstrationReward("Qwen/Qwen2.5-0.5B-Instruct")
        trainer = GRPOTrainer(model, reward_funcs=[reward], callbacks=[reward], args=args, train_dataset=dataset)
        trainer.train()
        reward.save_pretrained("my-reward")  # for RewardTrainer, reward_funcs="my-reward", hf-select score

    The dataset has a column of demonstrations next to `prompt`. Each time the trainer asks for rewards, the reward
    first learns from the answers it is given (`steps_per_call` steps), is then frozen, and rates them. It is also a
    callback: it is saved in every checkpoint and restored from it, knows which tokens end an answer, and does not
    learn while the trainer evaluates.

    Args:
        model: Hub id or path of a causal LM or a reward model to start from; or a loaded sequence classifier with one
            label (give `tokenizer` too).
        tokenizer: of this model; by default its own. The policy may have another.
        column: column of the demonstrations, in the layout of the prompts: text, or a list of messages. Not
            `completion`, which TRL does not pass to reward functions: rename that.
        loss: logistic, or linear (the paper's), which needs a bound.
        bound: R in |r| <= R; None for no bound.
        steps_per_call: gradient steps each time the trainer asks for rewards; 0: only `fit` trains it.
        batch_size: pairs per step, over all processes.
        micro_batch_size: pairs per forward pass of a process.
        learning_rate, weight_decay: of AdamW.
        max_length: tokens kept of prompt and answer; longer ones are cut on the left, since the reward reads the end.
        lora: train an adapter with these settings of LoraConfig instead of all weights; the head is always trained.
        dtype: of the weights except the head: float32, bfloat16 or auto.
        bf16: run the model's layers under bf16 autocast, as TrainingArguments.bf16 does.
        checkpointing: recompute activations in the backward pass.
        tokens_per_batch: tokens, padding included, of one forward pass without gradients.
        seed: of the order of pairs and of new weights.
        trust_remote_code: run model code from the Hub.
    Raises: ValueError for settings or a model that cannot work.
    """

    def __init__(
        self,
        model: "str | PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        *,
        column: str = "demonstration",
        loss: RewardLoss = "logistic",
        bound: float | None = None,
        steps_per_call: int = 1,
        batch_size: int = 16,
        micro_batch_size: int = 8,
        learning_rate: float = 1e-5,
        weight_decay: float = 0.0,
        max_length: int = 1024,
        lora: dict[str, Any] | None = None,
        dtype: str = "float32",
        bf16: bool = False,
        checkpointing: bool = False,
        tokens_per_batch: int = 16384,
        seed: int = 0,
        trust_remote_code: bool = False,
    ):
        check_choice("loss", loss, RewardLoss)
        if bound is not None and bound <= 0:
            raise ValueError(f"bound is {bound}; rewards lie in [-bound, bound], so it must be above 0.")
        if loss == "linear" and bound is None:
            raise ValueError("the linear loss is unbounded; give it a bound, e.g. bound=1.0, or take logistic.")
        for name, value in (("batch_size", batch_size), ("micro_batch_size", micro_batch_size)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        if column == "completion":
            raise ValueError(
                "TRL does not pass a column called completion to reward functions; rename it, e.g. to demonstration."
            )
        self.column, self.loss, self.bound = column, loss, bound
        self.steps_per_call, self.batch_size, self.micro_batch_size = steps_per_call, batch_size, micro_batch_size
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.max_length, self.bf16, self.checkpointing, self.seed = max_length, bf16, checkpointing, seed
        self.mean, self.deviation = 0.0, 1.0
        self._budget = TokenBudget(tokens_per_batch)
        self._steps = 0
        self._optimizer: torch.optim.AdamW | None = None
        self._policy: torch.nn.Module | None = None
        self._stop_ids: set[int] = set()
        self._kept_metrics: dict[str, list[float]] = {}
        with _compat.whole_weights(), torch.random.fork_rng():
            torch.manual_seed(seed)
            base, tokenizer = load_reward(model, tokenizer, dtype, trust_remote_code)
            self.tokenizer: Any = copy.deepcopy(tokenizer)  # it may be the policy's; its padding may change
            close = response_close(self.tokenizer)
            set_padding_token(base, self.tokenizer, close[-1] if close else self.tokenizer.eos_token_id)
            self._base: Any = base  # a sequence classifier: `base_model` and the head `score`
            self._base.score.float()
            self.model: Any = base if lora is None else add_reward_adapter(base, lora)
        disable_dropout(self.model)
        if checkpointing:
            _compat.checkpoint_activations(self.model)
        self.model.eval()

    # Rewards.

    def encode(self, rows: Sequence[Conversation], ended: Sequence[bool] | None = None) -> list[np.ndarray]:
        """Token ids of each conversation as the reward model reads it.

        Raises: ValueError if one has none.
        """
        sequences: list[np.ndarray] = []
        for ids in whole_rows(rows, self.tokenizer, ended):
            if isinstance(ids, BadRow):
                raise ValueError(f"the reward model's chat template cannot render a conversation: {ids}.")
            sequences.append(np.asarray(ids[-self.max_length :], dtype=np.int32))
        return sequences

    def rewards(self, sequences: Sequence[np.ndarray]) -> np.ndarray:
        """r of each sequence, (N,), without gradients and not normalised.

        Raises: RuntimeError if one does not fit in memory even alone; ValueError if one is not finite.
        """

        def forward(indices: list[int]) -> list[float]:
            with torch.no_grad():
                return self._read([sequences[i] for i in indices]).float().tolist()

        self.model.eval()
        results = batching.run([len(ids) for ids in sequences], self._budget, forward)
        for value in results:
            if isinstance(value, OutOfMemory):
                raise RuntimeError(f"the reward model: {value.details}; lower max_length.")
        values = np.array(results, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError("the reward model gives rewards that are not finite; lower its learning rate.")
        return values

    def rewards_together(self, sequences: Sequence[np.ndarray]) -> np.ndarray:
        """As `rewards`, of sequences that are the same in all processes, each of which computes its share."""
        rank, world = rank_and_size()
        rewards = np.empty(len(sequences))
        for first, values in enumerate(gather_object([self.rewards(sequences[rank::world]).tolist()])):
            rewards[first::world] = values
        return rewards

    def normalise(self, values: np.ndarray) -> None:
        """Normalise later rewards by the mean and standard deviation of these, the r of a round's demonstrations and
        answers. If they are all equal, only the mean is subtracted."""
        self.mean, deviation = float(values.mean()), float(values.std())
        self.deviation = deviation if deviation > 1e-6 else 1.0

    def normalised(self, values: np.ndarray) -> np.ndarray:
        """(r - mean) / standard deviation."""
        return (values - self.mean) / self.deviation

    def _read(self, sequences: Sequence[np.ndarray]) -> Tensor:
        """r, (B,), fp32."""
        device = self.model.device
        ids, mask = padded(sequences, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            hidden = self._base.base_model(
                input_ids=ids.masked_fill(mask == 0, self.tokenizer.pad_token_id), attention_mask=mask, use_cache=False
            ).last_hidden_state  # (B, T, D)
        last = hidden[torch.arange(len(sequences), device=device), mask.sum(1) - 1]  # (B, D)
        s = self._base.score(last.float())[:, 0]
        return s if self.bound is None else self.bound * torch.tanh(s / self.bound)

    # Training.

    def fit(
        self,
        demonstrations: Sequence[np.ndarray],
        answers: Sequence[np.ndarray],
        steps: int,
        folder: Path | None = None,
        save_steps: int | None = None,
        fresh: bool = False,
    ) -> dict[str, float]:
        """Take `steps` gradient steps on pairs, which are the same in all processes.

        Args:
            demonstrations, answers: token ids (see `encode`), one pair each.
            folder: where the state is saved during the call; a killed call resumes from there.
            save_steps: save the state every this many steps, and at the end.
            fresh: use a new optimizer and drop it at the end.
        Returns: means over these steps of loss, gap r(y) - r(y') and accuracy, each pair before its step.
        """
        rank, world = rank_and_size()
        if fresh:
            self._optimizer = None
        order = _order(len(answers), steps * self.batch_size, [self.seed, self._steps])
        done, totals = 0, np.zeros(4)
        if folder is not None and (state := read_json(folder / "state.json")) is not None:
            self.load_state(folder)
            done, totals = state["done"], np.array(state["totals"])
            order = _order(len(answers), steps * self.batch_size, [self.seed, state["begun"]])
        begun = self._steps - done
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = self._adamw()
        self.model.train(self.checkpointing)  # activations are recomputed in this mode only; dropout is off
        for step in range(done, steps):
            rows = order[step * self.batch_size : (step + 1) * self.batch_size]
            sums = np.zeros(4)  # loss, gap, accuracy, pairs
            mine = rows[rank::world]
            for start in range(0, len(mine), self.micro_batch_size):
                sums += self._backward(demonstrations, answers, mine[start : start + self.micro_batch_size], len(rows))
            sum_gradients(parameters)
            torch.nn.utils.clip_grad_norm_(parameters, _MAX_GRADIENT_NORM)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            totals += sum_values(sums, self.model.device)
            self._steps += 1
            last = step + 1 == steps
            if folder is not None and (last or (save_steps and (step + 1) % save_steps == 0)):
                self.save_state(folder, {"done": step + 1, "totals": totals.tolist(), "begun": begun})
        self.model.eval()
        if fresh:
            self._optimizer = None
        count = max(totals[3], 1.0)
        means = (totals[:3] / count).tolist()
        return dict(zip(("loss", "gap", "accuracy"), means, strict=True))

    def _backward(
        self, demonstrations: Sequence[np.ndarray], answers: Sequence[np.ndarray], rows: np.ndarray, of_step: int
    ) -> list[float]:
        """Add the gradient of the pairs `rows` out of the `of_step` of a step; sums of loss, gap, accuracy, pairs."""
        r = self._read([*(demonstrations[i] for i in rows), *(answers[i] for i in rows)])  # (2B,)
        margin = r[: len(rows)] - r[len(rows) :]
        losses = pair_loss(margin, "sigmoid" if self.loss == "logistic" else "linear")
        (losses.sum() / of_step).backward()
        margin = margin.detach()
        return [float(losses.detach().sum()), float(margin.sum()), float((margin > 0).sum()), float(len(rows))]

    def _adamw(self) -> torch.optim.AdamW:
        if self._optimizer is None:
            parameters = [p for p in self.model.parameters() if p.requires_grad]
            self._optimizer = torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)
        return self._optimizer

    # Reward function of TRL's online trainers.

    def __call__(
        self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **inputs: Any
    ) -> list[float]:
        """Rewards of a batch, after learning from it (see the class)."""
        if self._policy is None:
            raise ValueError(
                "DemonstrationReward must be given to the trainer as a callback too (callbacks=[reward]), so that it "
                "is saved with checkpoints and does not learn from evaluation."
            )
        ended = [bool(ids) and ids[-1] in self._stop_ids for ids in completion_ids]
        answers = self.encode(_conversations(prompts, completions), ended)
        demonstrations: list[np.ndarray] = []
        learns = self._policy.training and self.steps_per_call > 0
        if learns:
            if self.column not in inputs:
                raise ValueError(
                    f'the dataset has no column "{self.column}" of demonstrations; rename yours, or name it: '
                    "DemonstrationReward(..., column=...)."
                )
            demonstrations = self.encode(_conversations(prompts, inputs[self.column]))
            pairs: Any = gather_object(different_pairs(demonstrations, answers))  # of all processes
            if pairs:
                ours, theirs = zip(*pairs, strict=True)
                metrics = self.fit(ours, theirs, self.steps_per_call)
                log = inputs.get("log_metric", self._keep_metric)
                for name, value in metrics.items():
                    log(f"demonstration_reward/{name}", value)
        values = self.rewards(answers)
        if learns:
            both = [*self.rewards(demonstrations).tolist(), *values.tolist()]
            self.normalise(np.array(gather_object(both)))
        return self.normalised(values).tolist()

    @property
    def __name__(self) -> str:
        """The name in TRL's logs."""
        return "demonstration_reward"

    def _keep_metric(self, name: str, value: float) -> None:
        """Keep a metric for `on_log`, where TRL passes no function that logs it (0.24; 1.0 does)."""
        self._kept_metrics.setdefault(name, []).append(value)

    # On disk.

    def save_pretrained(self, folder: str | Path) -> None:
        """Save an ordinary reward model with its tokenizer, whose logit is s; an adapter is merged. Only the main
        process writes. Load it with AutoModelForSequenceClassification, and push it from there."""
        if rank_and_size()[0] > 0:
            return
        model = self.model
        if model is not self._base:
            model = copy.deepcopy(model).cpu().merge_and_unload()
        with atomic_path(Path(folder)) as temporary:
            model.save_pretrained(temporary)
            self.tokenizer.save_pretrained(temporary)

    def save_state(self, folder: Path, progress: dict[str, Any] | None = None) -> None:
        """Save trained weights, optimizer, normalisation and the progress of a call of `fit`. Only the main process
        writes."""
        if rank_and_size()[0] > 0:
            return
        normalisation = {"steps": self._steps, "mean": self.mean, "deviation": self.deviation}
        write_state(folder, self.model, self._optimizer, {**normalisation, **(progress or {})})

    def load_state(self, folder: Path) -> None:
        """Load what `save_state` wrote.

        Raises: ValueError if the folder holds no state of such a reward.
        """
        state, optimizer = read_state(folder, self.model)
        if optimizer is not None:
            self._adamw().load_state_dict(optimizer)
        self._steps, self.mean, self.deviation = state["steps"], state["mean"], state["deviation"]

    # Callback of the trainer.

    def on_init_end(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Learn which tokens end an answer of the policy."""
        self._policy, tokenizer = kwargs["model"], kwargs["processing_class"]
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        model_ends: Any = kwargs["model"].generation_config.eos_token_id
        ends = [response_end(tokenizer), tokenizer.eos_token_id]
        ends += model_ends if isinstance(model_ends, list) else [model_ends]
        self._stop_ids = {end for end in ends if end is not None}
        self.model.to(args.device)

    def on_train_begin(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Load the state of the checkpoint that training resumes from."""
        if state.global_step > 0:
            self.load_state(_in_checkpoint(args, state))

    # The state is written before the checkpoint, which is complete once it has the trainer's own state: a kill in
    # between leaves a folder that no run resumes from.

    def on_step_end(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Write the state into the checkpoint that is about to be saved."""
        if control.should_save:
            self.save_state(_in_checkpoint(args, state))

    on_epoch_end = on_step_end

    def on_save(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Write the state if a later callback asked for the checkpoint."""
        if not (_in_checkpoint(args, state) / "state.json").exists():
            self.save_state(_in_checkpoint(args, state))

    def on_log(
        self,
        args: "TrainingArguments",
        state: "TrainerState",
        control: "TrainerControl",
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add kept metrics to this entry of the log. Callbacks that report to other services have seen it before."""
        if logs is not None and "loss" in logs:
            means = {name: sum(values) / len(values) for name, values in self._kept_metrics.items()}
            self._kept_metrics.clear()
            logs.update(means)
            state.log_history[-1].update(means)


def _in_checkpoint(args: "TrainingArguments", state: "TrainerState") -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / "demonstration_reward"


def _conversations(prompts: list[Any], completions: list[Any]) -> list[Conversation]:
    completions = [
        [{"role": "assistant", "content": text}] if isinstance(prompt, list) and isinstance(text, str) else text
        for prompt, text in zip(prompts, completions, strict=True)
    ]
    rows: list[Conversation] = []
    for row in conversations({"prompt": prompts, "completion": completions}):
        if isinstance(row, BadRow):
            raise ValueError(f"the reward cannot read a row: {row}.")
        rows.append(row)
    return rows


def different_pairs(
    demonstrations: Sequence[np.ndarray], answers: Sequence[np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The pairs of token ids that are not identical."""
    pairs = zip(demonstrations, answers, strict=True)
    return [(demonstration, answer) for demonstration, answer in pairs if not np.array_equal(demonstration, answer)]


def _order(pairs: int, count: int, seed: list[int]) -> np.ndarray:
    """Indices of pairs in random order, one pass after the other, (count,)."""
    rng = np.random.default_rng(seed)
    passes = [rng.permutation(pairs) for _ in range(math.ceil(count / pairs))] if pairs else []
    return np.concatenate([*passes, np.zeros(0, dtype=np.int64)])[:count].astype(np.int64)
