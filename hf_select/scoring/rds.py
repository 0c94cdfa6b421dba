"""RDS+: similarity of pooled hidden states to those of example queries from the target tasks.

Ivison et al. 2025, "Large-Scale Data Selection for Instruction Tuning" (arXiv:2503.01807), section 3.

Left out: the study's query sets (give any rows as queries), and its separate tokenisation of prompt and answer for
some of them. Queries are encoded like rows.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from hf_select.features.hidden_states import HiddenStates
from hf_select.models.causal_lm import CausalLM
from hf_select.paper import RDS_PAPER, Paper
from hf_select.scoring.dense import DenseSimilarity


@dataclass
class RDSPlus(DenseSimilarity):
    """Cosine similarity of a row to its nearest query, over position-weighted hidden states.

    e(row) = sum_i w_i h_i, w_i = i / sum_j j;   S[row, task] = max over queries v of the task of cos(e(row), e(v))

    Args:
        model: Hub id, path or CausalLM; the study uses the base model that will be trained.
        pooling: weighted_mean (the paper's), mean or last_token.
        layers: decoder layers whose outputs are compared, counted from 1, and -1 for the final norm's, which the paper
            takes; the cosines of several are averaged. The forward pass ends at the last of them.
        scope: tokens that are pooled: all (the paper's), prompt or response.
        text_format: chat is the model's own template; tulu is the study's layout for every model.
        max_length: tokens kept of a row and of a query; a longer one is cut on the right.
    Reads: the whole conversation.
    Adds: score_rds (the largest similarity over all queries), rds_query (which query that is); score_rds_TASK for
        each named task; with per_query rds_similarities.
    Raises: ValueError before `fit`, which takes the queries, and for queries that cannot be used.
    Relations: Embedding compares vectors of a sentence encoder; IFD and SelectIT have no target task.
    Reference: Ivison et al. 2025, arXiv:2503.01807, section 3.1.
    Differs from the authors' code: rows are batched and masked; queries are encoded once, not once a shard.
    """

    model: str | CausalLM
    pooling: Literal["weighted_mean", "mean", "last_token"] = "weighted_mean"
    layers: list[int] | None = None
    scope: Literal["all", "prompt", "response"] = "all"
    text_format: Literal["chat", "tulu"] = "chat"
    max_length: int | None = 2048

    name: ClassVar[str] = "rds"
    paper: ClassVar[Paper | None] = RDS_PAPER

    def __post_init__(self) -> None:
        super().__post_init__()
        self.featurizer = self._states = HiddenStates(
            self.model, self.pooling, self.layers, self.scope, self.text_format, self.max_length
        )

    def load(self, rank: int | None = None) -> None:
        """Load the models, once."""
        self._states.load(rank)

    def readers(self) -> list[CausalLM]:
        """The models, whose chat templates may write the date."""
        return self._states.readers()

    def usage(self) -> dict[str, float]:
        """Tokens, counted FLOPs and seconds of the models so far."""
        return self._states.usage()

    def identity(self) -> dict[str, object]:
        """Everything that the scores depend on."""
        return {**super().identity(), **self._states.identity()}

    def _pickled(self) -> dict[str, object]:
        return {**self.settings(), "model": self._states.lm}
