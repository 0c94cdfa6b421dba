"""LESS: how much a training step on a row would lower the loss on the queries, by gradients of a LoRA adapter.

Xia et al. 2024, "LESS: Selecting Influential Data for Targeted Instruction Tuning" (ICML 2024, arXiv:2402.04333).

Without a projection, full gradients are compared layer by layer and nothing is stored. This is exact, and the fastest
way for a few hundred queries and a small adapter. With a projection, gradients are vectors of d numbers per
checkpoint, which a `PoolIndex` (`hf-select index`) stores for any later queries.
"""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from hf_select.data.bad_rows import BadRow
from hf_select.data.conversation import Conversation
from hf_select.features.adam import mean_learning_rate, training_cost
from hf_select.features.featurizer import Feature, unit
from hf_select.models.causal_lm import CausalLM
from hf_select.paper import Paper
from hf_select.scoring.similarity import Similarity, mean_by_part


if TYPE_CHECKING:
    import torch


@dataclass
class LESS(Similarity):
    """Cosine similarity of a row's gradient to those of the queries, summed over checkpoints.

    S[row, task] = max over sub-tasks V of sum_i eta_i cos(mean over v in V of g_i(v), Gamma_i(row))
    s(row, query) = sum_i eta_i cos(g_i(query), Gamma_i(row)), eta_i the learning rates scaled to sum 1

    Args:
        model: Hub id, path or CausalLM of the base model that the adapter was trained on.
        checkpoints: folders of the warm-up's adapter, one an epoch, with the state of their optimizer; or the folder
            of the run that holds them.
        learning_rates: weight of each checkpoint; by default the mean rate of its epoch, as Trainer logged it.
        form: of a row's gradient: adam (the step that Adam would take, as published) or sgd (the gradient itself).
        adam_mode: paper, or repo for the authors' code (epsilon inside the root, no bias correction).
        query_mode: paper averages the gradients of a sub-task's queries before the cosine (Eq. 2), so that a query
            counts by the length of its gradient; repo averages their cosines s, as the authors' code does.
        text_format: chat is the model's own template; tulu the layout of the authors' code.
        max_length: tokens kept of a row and of a query; a longer one is cut on the right.
        projection: none compares full gradients; dense (the published one) and factored (per layer from its two
            sides, far cheaper for large adapters) compare random projections, see features/projection.py.
        dimensions: numbers that a projected gradient keeps for each checkpoint; cosines err by about 1/sqrt of it.
        seed: of the projection.
    Reads: the whole conversation; gradients are those of the mean loss of its response tokens.
    Adds: score_less (the largest over tasks), less_query (the query with the largest similarity); score_less_TASK for
        each named task; with per_query less_similarities.
    Raises: ValueError before `fit`; for checkpoints without optimizer state or of another model.
    Relations: RDSPlus compares hidden states, at a third of the cost and without training.
    Reference: Xia et al. 2024, arXiv:2402.04333, sections 3 and 4.
    Differs from the authors' code: a row without response tokens has no score; rows share backward passes.
    """

    model: str | CausalLM
    checkpoints: list[str]
    learning_rates: list[float] | None = None
    form: Literal["adam", "sgd"] = "adam"
    adam_mode: Literal["paper", "repo"] = "paper"
    query_mode: Literal["paper", "repo"] = "paper"
    text_format: Literal["chat", "tulu"] = "chat"
    max_length: int | None = 2048
    projection: Literal["none", "dense", "factored"] = "none"
    dimensions: int = 8192
    seed: int = 0

    name: ClassVar[str] = "less"
    paper: ClassVar[Paper | None] = Paper(
        "2402.04333", "LESS: Selecting Influential Data for Targeted Instruction Tuning", "Xia, Mengzhou", 2024
    )
    default_subtask_per_query: ClassVar[bool] = False

    def __post_init__(self) -> None:
        from hf_select.features.adapter_gradients import AdapterGradients

        super().__post_init__()
        shared = [f.name for f in fields(AdapterGradients)]
        self._gradients = AdapterGradients(**{name: getattr(self, name) for name in shared})
        self.featurizer = None if self.projection == "none" else self._gradients
        self.checkpoints = self._gradients.checkpoints
        self._weights = self._checkpoint_weights()
        self._query_gradients: list[torch.Tensor] | None = None  # on the device of the model
        self._shares: np.ndarray | None = None  # (checkpoints, q), see _shares_of_means

    def load(self, rank: int | None = None) -> None:
        """Load the models, once."""
        self._gradients.load(rank)

    def readers(self) -> list[CausalLM]:
        """The models, whose chat templates may write the date."""
        return self._gradients.readers()

    def usage(self) -> dict[str, float]:
        """Tokens, counted FLOPs and seconds of the models so far."""
        return self._gradients.usage()

    def preparation_cost(self) -> dict[str, dict[str, float]]:
        """Cost of the queries and, if it was recorded, of the warm-up that trained the checkpoints."""
        trained = training_cost(self.checkpoints)
        return {**({"warm-up": trained} if trained else {}), **super().preparation_cost()}

    def identity(self) -> dict[str, object]:
        """Everything that the scores depend on."""
        return {**super().identity(), **self._gradients.identity(), "learning_rates": self._weights.tolist()}

    def _pickled(self) -> dict[str, object]:
        return {**self.settings(), "model": self._gradients.lm, "checkpoint_contents": self._gradients.contents}

    def _checkpoint_weights(self) -> np.ndarray:
        rates = self.learning_rates or [mean_learning_rate(path) for path in self.checkpoints]
        if len(rates) != len(self.checkpoints):
            raise ValueError(
                f"{len(rates)} learning_rates for {len(self.checkpoints)} checkpoints; give one for each."
            )
        if self.learning_rates is None and len(rates) == 1:  # the rate of an only step may be logged as 0
            return np.ones(1)
        if any(rate is None for rate in rates):
            raise ValueError("the checkpoints have no learning rates (trainer_state.json); give learning_rates.")
        weights = np.array(rates, dtype=np.float64)
        if not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() == 0:
            raise ValueError(f"learning_rates are {list(rates)}; give numbers of at least 0, not all of them 0.")
        return weights / weights.sum()

    # Without a projection a query's vector is its gradients under every checkpoint, and a row's vector is its cosines
    # with those.
    def _features(self, rows: list[Conversation], queries: bool) -> list[Feature | BadRow]:
        if self.featurizer is not None:
            return self.featurizer(rows, queries)
        if queries:
            return self._gradients.features(rows, self._gradients.full_gradients)
        return self._gradients.features(rows, self._compared)

    def _compared(self, rows: list[Any], checkpoint: int) -> list[Any]:
        if self._query_gradients is None:
            import torch

            device = self._gradients.lm.load().device
            self._query_gradients = [torch.as_tensor(gradients, device=device) for gradients in self.queries_]
        return self._gradients.cosines(rows, checkpoint, self._query_gradients[checkpoint])

    def _stacked(self, vectors: list[Any]) -> Any:
        """(checkpoints, q, P) or, projected, (checkpoints, q, d), float32, not normalised."""
        import torch

        self._shares = None
        if self.featurizer is not None:
            return self._by_checkpoint(vectors)
        self._query_gradients = None
        return np.stack(
            [torch.stack(of_checkpoint).float().cpu().numpy() for of_checkpoint in zip(*vectors, strict=True)]
        )

    def _compare(self, vectors: list[Any]) -> tuple[np.ndarray, np.ndarray]:
        if self.featurizer is None:
            each = np.stack([np.stack(row) for row in vectors], axis=1)  # (checkpoints, n, q)
        else:
            each = unit(self._by_checkpoint(vectors)) @ unit(self.queries_).transpose(0, 2, 1)
        similarity = np.tensordot(self._weights, each, axes=1)
        if self.query_mode == "repo":
            return similarity, mean_by_part(similarity, self.part_of_query_)
        if self._shares is None:
            self._shares = self._shares_of_means()
        # cos(mean of g, Gamma) is the mean of cos(g, Gamma) |g| / |mean of g|.
        parts = np.einsum("cq,cnq->nq", self._weights[:, None] * self._shares, each)
        return similarity, mean_by_part(parts, self.part_of_query_)

    def _shares_of_means(self) -> np.ndarray:
        """Length of each query's gradient relative to that of its sub-task's mean gradient, (checkpoints, q)."""
        belongs = (self.part_of_query_ == np.arange(len(self.task_of_part_))[:, None]).astype(np.float32)  # (p, q)
        belongs /= belongs.sum(axis=1, keepdims=True)
        shares = []
        for gradients in self.queries_:  # (q, P) of one checkpoint
            mean = np.linalg.norm(belongs @ gradients, axis=1)[self.part_of_query_]
            shares.append(np.linalg.norm(gradients, axis=1) / np.where(mean == 0, np.inf, mean))
        return np.stack(shares)

    def _by_checkpoint(self, vectors: list[np.ndarray]) -> np.ndarray:
        """(checkpoints, n, d)."""
        return np.stack(vectors).reshape(len(vectors), len(self.checkpoints), -1).transpose(1, 0, 2)
