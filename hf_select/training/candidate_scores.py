"""Scores of a round's candidates under the model in training, the same in every process.

Rows are sorted by length and batched under a token budget, which is halved when memory runs out. The default budget is
that of a training batch of the longest rows. Where the model is sharded (ZeRO-3, FSDP), all processes take part in
each forward pass: the batches are then fixed in advance, and running out of memory ends the run.
"""

import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow.compute as pc
import torch
from accelerate.utils import gather_object, send_to_device
from datasets import Dataset, List
from torch.utils.data import DataLoader

from hf_select.data.bad_rows import BadRow
from hf_select.models import batching
from hf_select.models.batching import OutOfMemory, TokenBudget
from hf_select.scoring.scorer import Scorer
from hf_select.training import _compat
from hf_select.training.label_losses import fused_head, unwrapped
from hf_select.training.online_score import OnlineScore
from hf_select.training.sharding import full_size, weights_are_sharded


if TYPE_CHECKING:
    from transformers import Trainer


logger = logging.getLogger(__name__)

_SCORER_ROWS = 1000  # rows per call of a scorer


class CandidateScores:
    """Scores rows with an online score or a scorer.

    Args:
        tokens_per_batch: tokens, padding included, of one forward pass of an online score; None is as many as a
            training batch of the longest candidates has.
    """

    def __init__(self, trainer: "Trainer", tokens_per_batch: int | None):
        self.trainer = trainer
        self._budget = None if tokens_per_batch is None else TokenBudget(tokens_per_batch)

    def by_online_score(
        self, score: OnlineScore, dataset: Dataset, rows: np.ndarray
    ) -> tuple[dict[str, np.ndarray], float]:
        """(scores of these rows of the dataset, counted FLOPs); NaN for a row that does not fit in memory."""
        inputs = _compat.model_inputs(self.trainer, dataset).select(rows.tolist())
        order = np.argsort(-row_lengths(inputs), kind="stable")
        lengths = np.maximum(row_lengths(inputs)[order], 1)
        sharded = weights_are_sharded(self.trainer)
        if sharded:  # one plan for all processes: row i is as long as the longest i-th row of any process
            lengths = np.max(gather_object([lengths.tolist()]), axis=0)
        budget = self._budget or TokenBudget(self.trainer.args.per_device_train_batch_size * int(lengths.max()))
        self._budget = self._budget or budget
        model: Any = self.trainer.model_wrapped if sharded else self.trainer.model
        tokens = 0

        def forward(indices: list[int]) -> list[float]:
            nonlocal tokens
            batch = self._batch(inputs, order[indices])
            values = torch.as_tensor(score(model, batch)).float().cpu().double()
            if values.shape != (len(indices),):
                raise ValueError(
                    f"the online score returned values of shape {tuple(values.shape)} for {len(indices)} rows."
                )
            tokens += sum(value.numel() for name, value in batch.items() if name.endswith("input_ids"))
            return values.tolist()

        with torch.no_grad(), self.trainer.accelerator.autocast(), fused_head(model):
            score.begin(model, self._query_batches(score.queries, budget) if score.needs_queries else ())
            results = self._passes(lengths, budget, forward, sharded)
        scores = np.empty(len(rows))
        scores[order] = [math.nan if isinstance(value, BadRow) else value for value in results]
        parameters = sum(full_size(p) for p in cast(torch.nn.Module, self.trainer.model).parameters())
        return {"score": scores}, score.forward_passes * 2.0 * parameters * tokens

    def by_scorer(self, scorer: Scorer, dataset: Dataset, rows: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
        """(scores of these rows of the dataset by name, counted FLOPs), in the precision of training."""
        before = scorer.usage().get("flops", 0.0)
        names = [name for name in scorer.columns_out if name.startswith("score_")]
        scores: dict[str, list[float]] = {name: [] for name in names}
        with _layers_under_autocast(self.trainer):
            scorer.refit()
            for start in range(0, len(rows), _SCORER_ROWS):
                batch = scorer(dataset.select(rows[start : start + _SCORER_ROWS].tolist())[:])
                for name in names:
                    scores[name] += [math.nan if value is None else value for value in batch[name]]
        named = {name: np.array(values, dtype=np.float64) for name, values in scores.items()}
        return {"score": next(iter(named.values())), **named}, scorer.usage().get("flops", 0.0) - before

    def _passes(
        self, lengths: np.ndarray, budget: TokenBudget, forward: Callable[[list[int]], list[float]], sharded: bool
    ) -> list[float | BadRow]:
        if self._one_row_per_batch:
            budget = TokenBudget(1)
        if sharded:
            results: list[float | BadRow] = [math.nan] * len(lengths)
            for indices in batching.plan(lengths.tolist(), budget.tokens):
                for i, value in zip(indices, forward(indices), strict=True):
                    results[i] = value
            return results
        results = batching.run(lengths.tolist(), budget, forward)
        failed = [value for value in results if isinstance(value, OutOfMemory)]
        if failed:
            logger.warning("%d of %d candidates have no score: %s.", len(failed), len(results), failed[0].details)
        return results

    @property
    def _one_row_per_batch(self) -> bool:
        """Whether the collator joins its rows into one sequence without padding."""
        return getattr(self.trainer.args, "padding_free", False)

    def _query_batches(self, queries: Dataset, budget: TokenBudget) -> Iterator[dict[str, torch.Tensor]]:
        inputs = _compat.model_inputs(self.trainer, queries)
        lengths = np.maximum(row_lengths(inputs), 1).tolist()
        for indices in batching.plan(lengths, 1 if self._one_row_per_batch else budget.tokens):
            yield self._batch(inputs, indices)

    def _batch(self, inputs: Dataset, indices: Sequence[int] | np.ndarray) -> dict[str, torch.Tensor]:
        """These rows as a batch of the trainer's collator."""
        loader = DataLoader(
            inputs,  # pyright: ignore[reportArgumentType]
            batch_sampler=[[int(i) for i in indices]],
            collate_fn=self.trainer.data_collator,
        )
        return cast(Any, send_to_device(next(iter(loader)), self.trainer.accelerator.device))


@contextmanager
def _layers_under_autocast(trainer: "Trainer") -> Iterator[None]:
    """Within the block the decoder and the head of the model run under the autocast of training when a scorer calls
    them separately: accelerate wraps only the forward pass of the whole model. What a scorer computes from their
    outputs stays in fp32."""
    model = unwrapped(cast(torch.nn.Module, trainer.model))
    decoder = model.base_model if model.base_model is not model else model.get_decoder()
    parts = [part for part in (decoder, model.get_output_embeddings()) if part is not None]
    before = [vars(part).get("forward") for part in parts]

    def under_autocast(forward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(forward)
        def call(*args: Any, **kwargs: Any) -> Any:
            with trainer.accelerator.autocast():
                return forward(*args, **kwargs)

        return call

    try:
        for part in parts:
            part.forward = under_autocast(part.forward)
        yield
    finally:
        for part, own in zip(parts, before, strict=True):
            vars(part).pop("forward", None)
            if own is not None:
                part.forward = own


def row_lengths(inputs: Dataset) -> np.ndarray:
    """Tokens of each row, (N,): the longest of its lists; zeros for rows without lists."""
    lists = [name for name, feature in inputs.features.items() if isinstance(feature, List)]
    lengths = [np.zeros(0, dtype=np.int64)]
    for batch in inputs.with_format("arrow").iter(1000):
        counts = [pc.list_value_length(batch[name]).to_numpy() for name in lists]  # pyright: ignore
        lengths.append(np.max([np.zeros(len(batch), dtype=np.int64), *counts], axis=0))
    return np.concatenate(lengths)


@contextmanager
def preserve_mode_and_rng(model: torch.nn.Module) -> Iterator[None]:
    """Within the block the model is in eval mode; then each module's mode and all random states are restored."""
    training = [module for module in model.modules() if module.training]
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    model.eval()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for module in training:
            module.training = True
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
