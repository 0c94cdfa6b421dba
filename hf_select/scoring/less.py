"""LESS: rows whose training step would lower the loss on the target's examples, by the gradients of an adapter.

Xia et al. 2024, "LESS: Selecting Influential Data for Targeted Instruction Tuning" (ICML 2024, arXiv:2402.04333).

Left out so far: random projection (gradients are compared whole, layer by layer, which needs the queries' gradients in
memory) and the store.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from hf_select.features import Feature
from hf_select.features.gradients import AdapterGradients, mean_learning_rate
from hf_select.formats import BadRow, Conversation
from hf_select.inference.batching import OutOfMemory
from hf_select.scoring.similarity import Similarity


@dataclass
class LESS(Similarity):
    """How much a step on the row would help the queries: cosine similarity of gradients, summed over checkpoints.

    s(row, query) = sum_i eta_i cos(g_i(query), Gamma_i(row)), eta_i the learning rates scaled to sum 1
    S[row, task] = max over sub-tasks of the mean over their queries of s

    Args:
        model: Hub id, path or CausalLM of the base model that the adapter was trained on.
        checkpoints: folders of the warm-up's adapter, one an epoch, with the state of their optimizer; or the folder
            of the run that holds them.
        learning_rates: weight of each checkpoint; by default the mean rate of its epoch, as Trainer logged it.
        form: of a row's gradient: adam (the step that Adam would take, as published) or sgd (the gradient itself).
        adam_mode: paper, or repo for the authors' code (epsilon inside the root, no bias correction).
        text_format: chat is the model's own template; tulu the layout of the authors' code.
        max_length: tokens kept of a row and of a query; a longer one is cut on the right.
    Reads: the whole conversation; gradients are those of the mean loss of its response tokens.
    Adds: score_less (the largest over tasks), less_query (the query with the largest similarity); score_less_TASK with
        several tasks; with per_query less_similarities.
    Raises: ValueError before `fit`; for checkpoints without optimizer state or of another model.
    Relations: RDSPlus asks the same of hidden states, at a third of the cost and without training.
    Reference: Xia et al. 2024, arXiv:2402.04333, sections 3 and 4.
    Differs from the authors' code: a row without response tokens has no score; rows share backward passes.
    """

    model: Any
    checkpoints: list[str]
    learning_rates: list[float] | None = None
    form: Literal["adam", "sgd"] = "adam"
    adam_mode: Literal["paper", "repo"] = "paper"
    text_format: Literal["chat", "tulu"] = "chat"
    max_length: int | None = 2048

    name: ClassVar[str] = "less"
    citation: ClassVar[str] = "arXiv:2402.04333"
    each_query_alone: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._gradients = AdapterGradients(
            self.model, self.checkpoints, self.form, self.adam_mode, self.text_format, self.max_length
        )
        self.checkpoints = self._gradients.checkpoints
        self._weights = self._checkpoint_weights()
        self._asked: list[torch.Tensor] | None = None  # the queries' gradients where the model is

    def load(self, rank: int | None = None) -> None:
        self._gradients.load(rank)

    def usage(self) -> dict[str, float]:
        return vars(self._gradients.lm.usage).copy()

    def _pickled(self) -> dict[str, Any]:
        stamps = self._gradients.identity()["checkpoint_files"]
        return {**self.settings(), "model": self._gradients.lm, "checkpoint_files": stamps}

    def _checkpoint_weights(self) -> np.ndarray:
        rates = self.learning_rates or [mean_learning_rate(path) for path in self.checkpoints]
        if len(rates) != len(self.checkpoints):
            raise ValueError(
                f"{len(rates)} learning_rates for {len(self.checkpoints)} checkpoints; give one for each."
            )
        if any(rate is None for rate in rates):
            if len(rates) == 1:
                return np.ones(1)
            raise ValueError(
                "the checkpoints do not say their learning rates (trainer_state.json); give learning_rates."
            )
        weights = np.array(rates, dtype=np.float64)
        if not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() == 0:
            raise ValueError(f"learning_rates are {list(rates)}; give numbers of at least 0, not all of them 0.")
        return weights / weights.sum()

    # A query's vector is its gradients under every checkpoint; a row's the cosines with them.
    def _features(self, rows: list[Conversation], queries: bool) -> list[Feature | BadRow]:
        encoded = self._gradients.encode(rows)
        whole = [item[0] for item in encoded if not isinstance(item, BadRow)]
        parts = []
        for checkpoint in range(len(self.checkpoints)):
            if queries:
                parts.append(self._gradients.whole(whole, checkpoint))
            else:
                if self._asked is None:
                    device = self._gradients.lm.load().device
                    self._asked = [torch.as_tensor(gradients, device=device) for gradients in self.queries_]
                parts.append(self._gradients.cosines(whole, checkpoint, self._asked[checkpoint]))
        measured = iter(zip(*parts, strict=True))
        return [item if isinstance(item, BadRow) else _feature(next(measured), item[1]) for item in encoded]

    def _stacked(self, vectors: list[Any]) -> Any:
        """(checkpoints, q, P) float32."""
        self._asked = None
        return np.stack([torch.stack(of_one).float().cpu().numpy() for of_one in zip(*vectors, strict=True)])

    def _cosines(self, vectors: list[Any]) -> np.ndarray:
        """(n, q) from each row's cosines (checkpoints, q)."""
        return np.stack([self._weights @ np.stack(row) for row in vectors])


def _feature(parts: tuple[Any, ...], note: str) -> Feature | BadRow:
    if any(isinstance(part, OutOfMemory) for part in parts):
        return BadRow("out of memory on this row alone; lower max_length")
    if not all(torch.as_tensor(part).isfinite().all() for part in parts):
        return BadRow("the gradient is not finite")
    return Feature(parts, note)  # type: ignore[arg-type]
