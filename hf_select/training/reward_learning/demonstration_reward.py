"""A reward that is learned from demonstrations: it tells them from the answers of the policy itself.

Li et al. 2024, arXiv:2405.17888, algorithm 1. With y a demonstration and y' an answer of the present policy to the
same prompt, r is trained to rate y above y'; a policy that is then aligned by it (KL-regularised, any of TRL's online
trainers) is pushed from its own answers towards the demonstrations.

    s(x, y) = w . h(x, y)         h: final hidden state at the last real token, w: a head without bias, in fp32
    r = s, or bounded             r = R tanh(s / R), so |r| <= R; the order of rewards is that of s
    logistic  -log sigmoid(r(y) - r(y'))      the authors' code, RewardTrainer's loss; bounded in its gradient
    linear    -(r(y) - r(y'))                 the paper's gradient; grows without end, so it needs a bound R

What the policy is given is (r - m) / d, with m and d the mean and standard deviation of r over demonstrations and
answers of the round: the KL coefficient then means the same in every round. (Over answers alone d would vanish when
every answer is told from every demonstration, and the first better answer would be worth tens of it.)

The model is an ordinary `AutoModelForSequenceClassification` with one label, whose logit is s, initialised from a
causal LM (head at zero, so that every reward begins equal) or from a reward model. Each process holds it whole,
whatever the policy is trained with, and gradients are averaged over processes: under ZeRO-3 or FSDP give it an adapter
or a smaller model. Prompts, demonstrations and answers reach it as text under its own chat template, so it may have
another tokenizer than the policy, and both sides are tokenised alike.
"""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from transformers.utils import logging

from hf_select.atomic import atomic_path, read_json, write_json
from hf_select.data.bad_rows import BadRow
from hf_select.data.conversation import Conversation, conversations
from hf_select.data.encoding import response_close, response_end
from hf_select.models import batching
from hf_select.models.batching import OutOfMemory, TokenBudget
from hf_select.models.reward_model import padded, whole_rows
from hf_select.training import _compat
from hf_select.training.reward_learning.losses import pair_loss
from hf_select.validation import check_choice


logger = logging.get_logger(__name__)

# B pairs, T tokens, D hidden

RewardLoss = Literal["logistic", "linear"]

_GRADIENT_NORM = 1.0  # gradients of a step are cut to it, as in TRL's trainers


class DemonstrationReward(TrainerCallback):
    """A reward function for TRL's online trainers that learns from a column of demonstrations.

        reward = DemonstrationReward("Qwen/Qwen2.5-0.5B-Instruct")
        trainer = GRPOTrainer(model, reward_funcs=[reward], callbacks=[reward], args=args, train_dataset=dataset)
        trainer.train()
        reward.save_pretrained("my-reward")  # for RewardTrainer, reward_funcs="my-reward", hf-select score

    The dataset has, beside `prompt`, a column with what should be answered. Each time the trainer asks for rewards,
    the reward first learns from the answers it is shown (so many steps), is then frozen, and rates them. It is a
    callback too: so it is saved in every checkpoint and comes back with it, knows which tokens end an answer, and does
    not learn while the trainer evaluates.

    Args:
        model: Hub id or path of a causal LM to begin as, or of a reward model; or a loaded sequence classifier with
            one label (give `tokenizer` too).
        tokenizer: of this model; by default its own. The policy may have another.
        column: column of the demonstrations, in the layout of the prompts: text, or a list of messages. Not
            `completion`, which TRL keeps to itself: rename that.
        loss: logistic, or linear (the paper's), which needs a bound.
        bound: R, in |r| <= R; None is no bound.
        steps_per_call: gradient steps each time the trainer asks; 0: it learns only by `fit`.
        batch_size: pairs of a step, over all processes.
        micro_batch_size: pairs that one process takes at a time.
        learning_rate, weight_decay: of AdamW.
        max_length: tokens kept of prompt and answer; the front of longer ones is cut, since the end is what is read.
        lora: train an adapter with these settings of LoraConfig in place of all weights; the head is trained anyway.
        dtype: of the weights but for the head: float32, bfloat16 or auto.
        bf16: run the model's layers under bf16 autocast, as the trainer's argument of that name does.
        checkpointing: compute activations again in the backward pass.
        tokens_per_batch: tokens, padding included, of one forward pass without gradients.
        seed: of the order of pairs and of what is new in the model.
        trust_remote_code: run model code from the Hub.
    Raises: ValueError for what cannot work, with the cure.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
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
            raise ValueError("the linear loss grows without end; give it a bound, e.g. bound=1.0, or take logistic.")
        for name, value in (("batch_size", batch_size), ("micro_batch_size", micro_batch_size)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        if column == "completion":
            raise ValueError(
                "TRL keeps a column called completion from reward functions; rename it, e.g. to demonstration."
            )
        self.column, self.loss, self.bound = column, loss, bound
        self.steps_per_call, self.batch_size, self.micro_batch_size = steps_per_call, batch_size, micro_batch_size
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.max_length, self.bf16, self.checkpointing, self.seed = max_length, bf16, checkpointing, seed
        self.mean, self.deviation = 0.0, 1.0
        self._budget = TokenBudget(tokens_per_batch)
        self._steps = 0
        self._optimizer: Any = None
        self._policy: Any = None
        self._stop_ids: set[int] = set()
        with _compat.whole_weights(), torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model, tokenizer = _loaded(model, tokenizer, dtype, trust_remote_code)
            self.tokenizer = copy.deepcopy(tokenizer)  # it may be the policy's, and its padding may be changed here
            close = response_close(self.tokenizer)
            _give_padding(self.model, self.tokenizer, {close[-1] if close else self.tokenizer.eos_token_id})
            self.model.score.float()
            if lora is not None:
                self.model = _with_adapter(self.model, lora)
        for module in self.model.modules():  # rewards are compared, so nothing random between them
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if isinstance(getattr(module, "attention_dropout", None), float):
                setattr(module, "attention_dropout", 0.0)  # noqa: B010
        if checkpointing:
            self.model.activation_checkpointing_enable()
        self.model.eval()

    # Rewards.

    def encode(self, rows: Sequence[Conversation], ended: Sequence[bool] | None = None) -> list[Any]:
        """Token ids of each conversation as the reward model reads it.

        Raises: ValueError if one has none.
        """
        found = whole_rows(rows, self.tokenizer, ended)
        for ids in found:
            if isinstance(ids, BadRow):
                raise ValueError(f"the reward model's chat template cannot write a conversation: {ids}.")
        return [np.asarray(ids[-self.max_length :], dtype=np.int32) for ids in found]  # type: ignore[index]

    def rewards(self, sequences: Sequence[Any]) -> np.ndarray:
        """r of each, (n,), without gradients and not normalised.

        Raises: RuntimeError if one does not fit in memory even alone; ValueError if one is not finite.
        """

        def forward(indices: list[int]) -> list[float]:
            with torch.no_grad():
                return self._read([sequences[i] for i in indices]).float().tolist()

        self.model.eval()
        found = batching.run([len(ids) for ids in sequences], self._budget, forward)
        for value in found:
            if isinstance(value, OutOfMemory):
                raise RuntimeError(f"the reward model: {value.details}; lower max_length.")
        values = np.array(found, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError("the reward model gives rewards that are not finite; lower its learning rate.")
        return values

    def rewards_together(self, sequences: Sequence[Any]) -> np.ndarray:
        """As `rewards`, of sequences that are the same in all processes, each of which takes its share."""
        rank, world = _place()
        found = np.empty(len(sequences))
        for first, values in enumerate(gather_object([self.rewards(sequences[rank::world]).tolist()])):
            found[first::world] = values
        return found

    def normalise(self, values: np.ndarray) -> None:
        """From now on a reward is (r - mean) / standard deviation of these, the demonstrations and answers of a round.
        Where they are all alike there is nothing to tell apart, and only the mean is taken away."""
        self.mean, deviation = float(values.mean()), float(values.std())
        self.deviation = deviation if deviation > 1e-6 else 1.0

    def normalised(self, values: np.ndarray) -> np.ndarray:
        return (values - self.mean) / self.deviation

    def _read(self, sequences: Sequence[Any]) -> Tensor:
        """r, (B,), fp32."""
        device = self.model.device
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        ids, mask = padded(sequences, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            hidden = base.base_model(
                input_ids=ids.masked_fill(mask == 0, self.tokenizer.pad_token_id), attention_mask=mask, use_cache=False
            ).last_hidden_state  # (B, T, D)
        last = hidden[torch.arange(len(sequences), device=device), mask.sum(1) - 1]  # (B, D)
        s = base.score(last.float())[:, 0]
        return s if self.bound is None else self.bound * torch.tanh(s / self.bound)

    # Learning.

    def fit(
        self,
        demonstrations: Sequence[Any],
        answers: Sequence[Any],
        steps: int,
        folder: Path | None = None,
        save_steps: int | None = None,
        fresh: bool = False,
    ) -> dict[str, float]:
        """So many gradient steps on pairs, the same in all processes.

        Args:
            demonstrations, answers: token ids (see `encode`), one pair each.
            folder: where the state is kept while this runs; a call that was killed goes on from there.
            save_steps: the state is kept after so many steps, and at the end.
            fresh: begin with a new optimizer and leave none behind.
        Returns: means over these steps of loss, gap r(y) - r(y') and accuracy, each pair as it was before its step.
        """
        rank, world = _place()
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
        self.model.train(self.checkpointing)  # layers compute activations again only in this mode; dropout is off
        for step in range(done, steps):
            rows = order[step * self.batch_size : (step + 1) * self.batch_size]
            mine = rows[rank::world]
            seen = np.zeros(4)
            for start in range(0, len(mine), self.micro_batch_size):
                some = mine[start : start + self.micro_batch_size]
                r = self._read([*(demonstrations[i] for i in some), *(answers[i] for i in some)])  # (2B,)
                margin = r[: len(some)] - r[len(some) :]
                losses = pair_loss(margin, "sigmoid" if self.loss == "logistic" else "linear")
                (losses.sum() / len(rows)).backward()
                margin = margin.detach()
                each = (losses.detach().sum(), margin.sum(), (margin > 0).sum(), torch.tensor(len(some)))
                seen += [float(value) for value in each]
            _average(parameters)
            torch.nn.utils.clip_grad_norm_(parameters, _GRADIENT_NORM)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            totals += _summed(seen, self.model.device)
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

    def _adamw(self) -> Any:
        if self._optimizer is None:
            parameters = [p for p in self.model.parameters() if p.requires_grad]
            self._optimizer = torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)
        return self._optimizer

    # As TRL's online trainers ask.

    def __call__(
        self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **given: Any
    ) -> list[float]:
        """Rewards of a batch, after learning from it (see the class)."""
        if self._policy is None:
            raise ValueError(
                "DemonstrationReward must be given to the trainer as a callback too (callbacks=[reward]), so that it "
                "is saved with checkpoints and does not learn from evaluation."
            )
        ended = [bool(ids) and ids[-1] in self._stop_ids for ids in completion_ids]
        answers = self.encode(_conversations(prompts, completions), ended)
        demonstrations: list[Any] = []
        learns = self._policy.training and self.steps_per_call > 0
        if learns:
            if self.column not in given:
                raise ValueError(
                    f'the dataset has no column "{self.column}" of demonstrations; rename yours, or name it: '
                    "DemonstrationReward(..., column=...)."
                )
            demonstrations = self.encode(_conversations(prompts, given[self.column]))
            pairs = [(y, own) for y, own in zip(demonstrations, answers, strict=True) if not np.array_equal(y, own)]
            everybodys: Any = gather_object(pairs)
            if everybodys:
                ours, theirs = zip(*everybodys, strict=True)
                told = self.fit(ours, theirs, self.steps_per_call)
                if "log_metric" in given:
                    for name, value in told.items():
                        given["log_metric"](f"demonstration_reward/{name}", value)
        values = self.rewards(answers)
        if learns:
            both = [*self.rewards(demonstrations).tolist(), *values.tolist()]
            self.normalise(np.array(gather_object(both)))
        return self.normalised(values).tolist()

    @property
    def __name__(self) -> str:  # what TRL calls it in its logs
        return "demonstration_reward"

    # On disk.

    def save_pretrained(self, folder: str | Path) -> None:
        """An ordinary reward model with its tokenizer, whose logit is s; an adapter is merged into it. By the first
        process. Load it with AutoModelForSequenceClassification, and push it from there."""
        if _place()[0] > 0:
            return
        model = self.model
        if hasattr(model, "merge_and_unload"):
            model = copy.deepcopy(model).cpu().merge_and_unload()
        with atomic_path(Path(folder)) as temporary:
            model.save_pretrained(temporary)
            self.tokenizer.save_pretrained(temporary)

    def save_state(self, folder: Path, further: dict[str, Any] | None = None) -> None:
        """All that goes on from: trained weights, optimizer, normalisation. By the first process."""
        if _place()[0] > 0:
            return
        from safetensors.torch import save_file

        trained = {name: p.detach().contiguous() for name, p in self.model.named_parameters() if p.requires_grad}
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            save_file(trained, temporary / "reward.safetensors")
            if self._optimizer is not None:
                torch.save(self._optimizer.state_dict(), temporary / "optimizer.pt")
            state = {"steps": self._steps, "mean": self.mean, "deviation": self.deviation, **(further or {})}
            write_json(temporary / "state.json", state)

    def load_state(self, folder: Path) -> None:
        """Raises: ValueError if the folder holds no state of such a reward."""
        from safetensors.torch import load_file

        state = read_json(folder / "state.json")
        if state is None:
            raise ValueError(
                f'"{folder}" holds no state of the reward; it was trained without it, or the copy is not whole. Begin '
                "in another output_dir, or resume from a checkpoint that has it."
            )
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        there = load_file(folder / "reward.safetensors")
        if there.keys() != trained.keys() or any(there[n].shape != trained[n].shape for n in trained):
            raise ValueError(f'"{folder}" holds the state of another reward model; begin in another output_dir.')
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(there[name])
        if (folder / "optimizer.pt").exists():
            self._adamw().load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
        self._steps, self.mean, self.deviation = state["steps"], state["mean"], state["deviation"]

    # As a callback of the trainer.

    def on_init_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._policy, tokenizer = given["model"], given["processing_class"]
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        own = self._policy.generation_config.eos_token_id
        ends = [response_end(tokenizer), tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
        self._stop_ids = {end for end in ends if end is not None}
        self.model.to(args.device)

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step > 0:
            self.load_state(_in_checkpoint(args, state))

    # Written before the checkpoint, which is whole once the trainer's own state is there: a kill between leaves a
    # folder that nobody resumes from.

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if control.should_save:
            self.save_state(_in_checkpoint(args, state))

    on_epoch_end = on_step_end

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if not (_in_checkpoint(args, state) / "state.json").exists():  # a callback after this one asked for it
            self.save_state(_in_checkpoint(args, state))


def _in_checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / "demonstration_reward"


def _conversations(prompts: list[Any], completions: list[Any]) -> list[Conversation]:
    completions = [
        [{"role": "assistant", "content": text}] if isinstance(prompt, list) and isinstance(text, str) else text
        for prompt, text in zip(prompts, completions, strict=True)
    ]
    found = conversations({"prompt": prompts, "completion": completions})
    for row in found:
        if isinstance(row, BadRow):
            raise ValueError(f"the reward cannot read a row: {row}.")
    return found  # type: ignore[return-value]


def _order(pairs: int, count: int, seed: list[int]) -> np.ndarray:
    """Pairs in random order, pass after pass, (count,)."""
    rng = np.random.default_rng(seed)
    passes = [rng.permutation(pairs) for _ in range(math.ceil(count / pairs))] if pairs else []
    return np.concatenate([*passes, np.zeros(0, dtype=np.int64)])[:count].astype(np.int64)


def _loaded(model: Any, tokenizer: Any, dtype: str, trust_remote_code: bool) -> tuple[Any, Any]:
    if isinstance(model, str):
        before = logging.get_verbosity()
        logging.set_verbosity_error()  # it would report the head that is about to be made
        try:
            made, info = AutoModelForSequenceClassification.from_pretrained(
                model, num_labels=1, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True
            )
        finally:
            logging.set_verbosity(before)
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
        missing = set(info["missing_keys"])
        if missing - {"score.weight"}:
            raise ValueError(f'"{model}" cannot be a reward: its files lack {sorted(missing)[:2]}.')
        if missing:
            torch.nn.init.zeros_(made.score.weight)
        model = made
    elif tokenizer is None:
        raise ValueError("a loaded reward model needs its tokenizer: DemonstrationReward(model, tokenizer).")
    score = getattr(model, "score", None)
    if not isinstance(score, torch.nn.Linear) or score.out_features != 1:
        raise ValueError(
            f"{type(model).__name__} has no head `score` with one output at the last token; give a causal LM or a "
            "sequence-classification model made from one (num_labels=1)."
        )
    return model, tokenizer


def _give_padding(model: Any, tokenizer: Any, last: set[int]) -> None:
    """A padding token that no row ends with. transformers reads the rightmost token that is not padding, so with the
    end token as padding the saved model would read another token than was trained."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in last:
        tokenizer.add_special_tokens({"pad_token": "<|reward_pad|>"})
        if tokenizer.pad_token_id >= model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def _with_adapter(model: Any, settings: dict[str, Any]) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="SEQ_CLS", modules_to_save=["score"], **settings)
    adapted = get_peft_model(model, config, autocast_adapter_dtype=True)
    adapted.enable_input_require_grads()
    return adapted


# Processes, with or without a trainer around.


def _place() -> tuple[int, int]:
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def _average(parameters: list[Any]) -> None:
    """Each process has the gradient of its own pairs' share of the mean, so the sum over processes is the mean's."""
    if _place()[1] == 1:
        return
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        torch.distributed.all_reduce(p.grad)


def _summed(values: np.ndarray, device: Any) -> np.ndarray:
    if _place()[1] == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float32, device=device)
    torch.distributed.all_reduce(tensor)
    return tensor.cpu().double().numpy()
