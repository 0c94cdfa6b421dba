"""The reward of a row under a reward model: any sequence-classification model with one output.

TRL's `RewardTrainer` and `DemonstrationReward` train such models, and most reward models on the Hub are of this kind.
The paper on reward learning from demonstrations (Li et al. 2024, arXiv:2405.17888) ranks its demonstrations by one.
"""

import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from hf_select.data import columns
from hf_select.data.bad_rows import BadRow, map_rows, on_readable
from hf_select.data.chat_template import counts, template_text
from hf_select.data.conversation import Conversation
from hf_select.data.encoding import Encoded
from hf_select.data.text import says_something
from hf_select.models import batching
from hf_select.models.batching import TokenBudget
from hf_select.models.load_errors import named
from hf_select.models.loading import tokenizer_of
from hf_select.models.parameters import active_parameters
from hf_select.models.reward_model import _load, encode_whole, padded
from hf_select.models.sources import ResolvedSource, find
from hf_select.models.template_day import DatedTokenizer
from hf_select.models.usage import Usage
from hf_select.paper import Paper
from hf_select.scoring.scorer import Answer, Scorer


@dataclass
class Reward(Scorer):
    """Reward of a conversation under a reward model.

    score = the model's one logit for the conversation under its own chat template (without one, under the Tulu layout)

    Args:
        reward_model: Hub id or path of a sequence-classification model with one label.
        revision: branch, tag or commit on the Hub.
        dtype: as in `from_pretrained`: auto, float32, bfloat16 or float16.
        device: torch device; by default the accelerator of this process, else cpu.
        max_length: tokens of a row; a longer one has no score, since the reward of a part is not the row's. By default
            what the model was built for.
        tokens_per_batch: tokens, padding included, of one forward pass; halved when memory runs out.
        trust_remote_code: run model code from the Hub; off unless you have read it.
        chat_template: file of a Jinja template, or its text, in place of the tokenizer's own.
    Reads: the whole conversation, which must end with a response.
    Adds: score_reward (higher = better; no unit: only differences under the same model mean something).
    Raises: ValueError if the model is not a reward model.
    Relations: DEITA asks a causal LM for ratings; a reward model was trained on comparisons.
    Reference: Li et al. 2024, arXiv:2405.17888, whose data were the top rows of a set by reward. Their code for it is
        not published.
    """

    reward_model: str
    revision: str | None = None
    dtype: str = "auto"
    device: str | None = None
    max_length: int | None = None
    tokens_per_batch: int = 16384
    trust_remote_code: bool = False
    chat_template: str | None = field(default=None, repr=False)

    name: ClassVar[str] = "reward"
    paper: ClassVar[Paper | None] = Paper(
        "2405.17888",
        "Getting More Juice Out of the SFT Data: Reward Learning from Human Demonstration Improves SFT for LLM "
        "Alignment",
        "Li, Jiaxiang",
        2024,
    )
    _day: ClassVar[str | None] = None  # of an instance that was pickled: the day that its template writes

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chat_template is not None:
            self.chat_template = template_text(self.chat_template)
        self._model: Any = None
        self._active_parameters = 0
        self._usage = Usage()

    def load(self, rank: int | None = None) -> None:
        """Load the models, once."""
        if self._model is None:
            with named(self.reward_model):
                self._model = _load(self, rank)
            self._active_parameters = active_parameters(self._model)
            self._budget = TokenBudget(self.tokens_per_batch)

    def usage(self) -> dict[str, float]:
        """Tokens, counted FLOPs and seconds of the models so far."""
        return vars(self._usage).copy()

    def identity(self) -> dict[str, object]:
        """Everything that the scores depend on."""
        where = ("revision", "device", "tokens_per_batch")  # of the same weights; they change nothing but the time
        settings = {name: value for name, value in super().identity().items() if name not in where}
        return {**settings, "reward_model": self.source.identity, "day": self._dated.day}

    def readers(self) -> list[Any]:
        """The models, whose chat templates may write the date."""
        return [self._dated]

    def _pickled(self) -> dict[str, object]:
        return {**self.settings(), "source": self.source, "_day": self._dated.day}

    @cached_property
    def _dated(self) -> DatedTokenizer:
        return DatedTokenizer(self._load_tokenizer, self._day)

    def _load_tokenizer(self) -> Any:
        return tokenizer_of(self.source, self.trust_remote_code, self.chat_template)

    @cached_property
    def source(self) -> ResolvedSource:
        """The commit or folder behind the name, resolved once."""
        return find(self.reward_model, self.revision)

    def measure(self, rows: list[Conversation]) -> list[Answer | BadRow]:
        """The columns of each row, or the reason why it has no score."""
        begin = time.perf_counter()
        limits = (self.max_length, getattr(self._model.config.get_text_config(), "max_position_embeddings", None))
        limit = min((n for n in limits if n is not None), default=None)

        def fitting(_: Conversation, encoded: Encoded) -> Encoded:
            if limit is not None and len(encoded.input_ids) > limit:
                raise BadRow(f"longer than {limit} tokens")
            return encoded

        encoded = map_rows(fitting, map_rows(_ending_with_response, rows), encode_whole(rows, self._dated.tokenizer))
        answers = on_readable(encoded, self._rewards)
        self._usage.flops = 2.0 * self._active_parameters * self._usage.processed_tokens
        self._usage.seconds += time.perf_counter() - begin
        return answers

    def _rewards(self, rows: list[Encoded]) -> list[Answer | BadRow]:
        import torch

        sequences = [row.input_ids for row in rows]

        def forward(indices: list[int]) -> list[float]:
            ids, mask = padded([sequences[i] for i in indices], self._model.device)
            # Where the checkpoint names no padding, the model would read its last token: so it does with a token that
            # no row of the batch has.
            config = self._model.config.get_text_config()
            before = config.pad_token_id
            if before is None:
                config.pad_token_id = int(np.setdiff1d(np.arange(len(ids.unique()) + 1), ids.cpu().numpy())[0])
                ids = ids.masked_fill(mask == 0, config.pad_token_id)
            else:
                ids = ids.masked_fill(mask == 0, before)
            try:
                with torch.inference_mode():
                    logits = self._model(input_ids=ids, attention_mask=mask).logits  # (B, 1)
            finally:
                config.pad_token_id = before
            self._usage.processed_tokens += ids.numel()
            return logits[:, 0].float().tolist()

        def answer(reward: float, row: Encoded) -> dict[str, Any]:
            if not np.isfinite(reward):
                raise BadRow("the reward is not finite")
            score = columns.score_column(self.name)
            return {score: reward, columns.reason_column(score): row.note}

        rewards = batching.run([len(s) for s in sequences], self._budget, forward)
        self._usage.sequences += len(sequences)
        self._usage.tokens += sum(map(len, sequences))
        return map_rows(answer, rewards, rows)


def _ending_with_response(row: Conversation) -> Conversation:
    """The row.

    Raises: BadRow if it does not end with a response that counts.
    """
    if not row.messages or row.messages[-1]["role"] != "assistant":
        raise BadRow("the row does not end with a response")
    if not counts(row.messages[-1]):
        raise BadRow("the last response does not count (train, weight)")
    if not says_something(row.messages[-1]):
        raise BadRow("empty response")
    return row
