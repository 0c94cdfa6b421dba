"""Scores of a round's candidates under the model that is being trained, the same in every process.

Rows are sorted by length and packed into batches of a token budget that is halved when memory runs out. By default
the budget is that of a training batch of the longest rows, which is known to fit. Where the processes hold the model
in pieces (ZeRO-3, FSDP) all make each forward pass together, so the batches are fixed beforehand and memory that runs
out ends the run.
"""

import logging
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from accelerate.utils import gather_object, send_to_device
from datasets import Dataset, List
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from hf_select.models import batching
from hf_select.models.batching import OutOfMemory, TokenBudget
from hf_select.training import _compat
from hf_select.training.label_losses import fused_head, unwrapped


logger = logging.getLogger(__name__)

_SCORER_ROWS = 1000  # rows that a scorer is given at a time


class CandidateScores:
    """Measures rows by an online score or by a scorer.

    Args:
        tokens_per_batch: tokens, padding included, of one forward pass of an online score; None is as many as a
            training batch of the longest candidates has.
    """

    def __init__(self, trainer: Any, score: Any, tokens_per_batch: int | None):
        self.trainer, self.score = trainer, score
        self._budget = None if tokens_per_batch is None else TokenBudget(tokens_per_batch)

    def by_online_score(self, dataset: Dataset, rows: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
        """(the scores of rows of the dataset, counted FLOPs); NaN for a row that does not fit in memory."""
        score: Any = self.score
        inputs = _compat.model_inputs(self.trainer, dataset).select(rows.tolist())
        order = np.argsort(-row_lengths(inputs), kind="stable")
        lengths = np.maximum(row_lengths(inputs)[order], 1)
        together = in_pieces(self.trainer)
        if together:  # the same plan in all processes: row i is as long as the longest i-th row of any
            lengths = np.max(gather_object([lengths.tolist()]), axis=0)
        budget = self._budget or TokenBudget(self.trainer.args.per_device_train_batch_size * int(lengths.max()))
        self._budget = self._budget or budget
        model = self.trainer.model_wrapped if together else self.trainer.model
        tokens = 0

        def forward(indices: list[int]) -> list[float]:
            nonlocal tokens
            batch = self._batch(inputs, order[indices])
            values = torch.as_tensor(score(model, batch)).float().cpu().double()
            if values.shape != (len(indices),):
                raise ValueError(
                    f"the online score gave values of shape {tuple(values.shape)} for {len(indices)} rows."
                )
            tokens += sum(value.numel() for name, value in batch.items() if name.endswith("input_ids"))
            return values.tolist()

        with torch.no_grad(), self.trainer.accelerator.autocast(), fused_head(model):
            score.begin(model, self._query_batches(budget) if score.needs_queries else ())
            found = self._passes(lengths, budget, forward, together)
        scores = np.empty(len(rows))
        scores[order] = [math.nan if isinstance(value, OutOfMemory) else value for value in found]
        parameters = sum(_full_size(p) for p in self.trainer.model.parameters())
        return {"score": scores}, score.forward_passes * 2.0 * parameters * tokens

    def by_scorer(self, dataset: Dataset, rows: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
        """(the scores of rows of the dataset by name, counted FLOPs), in the precision of training."""
        scorer: Any = self.score
        before = scorer.usage().get("flops", 0.0)
        wanted = [name for name in scorer.columns_out if name.startswith("score_")]
        found: dict[str, list[float]] = {name: [] for name in wanted}
        with _layers_as_trained(self.trainer):
            scorer.refit()
            for start in range(0, len(rows), _SCORER_ROWS):
                batch = scorer(dataset.select(rows[start : start + _SCORER_ROWS].tolist())[:])
                for name in wanted:
                    found[name] += [math.nan if value is None else value for value in batch[name]]
        named = {name: np.array(values, dtype=np.float64) for name, values in found.items()}
        return {"score": next(iter(named.values())), **named}, scorer.usage().get("flops", 0.0) - before

    def _passes(self, lengths: np.ndarray, budget: TokenBudget, forward: Any, together: bool) -> list[Any]:
        if self._one_row_a_batch:
            budget = TokenBudget(1)
        if together:
            found: list[Any] = [None] * len(lengths)
            for indices in batching.plan(lengths.tolist(), budget.tokens):
                for i, value in zip(indices, forward(indices), strict=True):
                    found[i] = value
            return found
        found = batching.run(lengths.tolist(), budget, forward)
        failed = [value for value in found if isinstance(value, OutOfMemory)]
        if failed:
            logger.warning("%d of %d candidates have no score: %s.", len(failed), len(found), failed[0].details)
        return found

    @property
    def _one_row_a_batch(self) -> bool:
        """A collator without padding puts its rows into one sequence, in which they could not be told apart."""
        return getattr(self.trainer.args, "padding_free", False)

    def _query_batches(self, budget: TokenBudget) -> Iterator[Any]:
        queries = _compat.model_inputs(self.trainer, self.score.queries)
        lengths = np.maximum(row_lengths(queries), 1).tolist()
        for indices in batching.plan(lengths, 1 if self._one_row_a_batch else budget.tokens):
            yield self._batch(queries, indices)

    def _batch(self, inputs: Dataset, indices: Any) -> Any:
        """These rows as the trainer's collator makes them into a batch."""
        loader = DataLoader(
            inputs,  # pyright: ignore[reportArgumentType]
            batch_sampler=[[int(i) for i in indices]],
            collate_fn=self.trainer.data_collator,
        )
        return send_to_device(next(iter(loader)), self.trainer.accelerator.device)


@contextmanager
def _layers_as_trained(trainer: Any) -> Iterator[None]:
    """Within the block the decoder and the head of the trained model run under the autocast of training, also when
    they are called by themselves, as scorers do: accelerate wraps the forward pass of the whole model alone. What a
    scorer computes from their outputs stays in fp32."""
    model = unwrapped(trainer.model)
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


def in_pieces(trainer: Any) -> bool:
    """Whether no process holds, or will hold, a whole parameter."""
    plugin = trainer.accelerator.state.deepspeed_plugin
    return (
        (plugin is not None and plugin.zero_stage == 3)
        or trainer.is_fsdp_enabled
        or any(isinstance(p, DTensor) for p in trainer.model.parameters())
    )


def row_lengths(inputs: Dataset) -> np.ndarray:
    """Tokens of each row, the longest of its lists; zeros where rows hold no lists."""
    lists = [name for name, feature in inputs.features.items() if isinstance(feature, List)]
    lengths = [np.zeros(0, dtype=np.int64)]
    for batch in inputs.with_format("arrow").iter(1000):
        counts = [pc.list_value_length(batch[name]).to_numpy() for name in lists]  # pyright: ignore
        lengths.append(np.max([np.zeros(len(batch), dtype=np.int64), *counts], axis=0))
    return np.concatenate(lengths)


def _full_size(parameter: Any) -> int:
    """Numbers of a parameter, also where DeepSpeed ZeRO-3 holds it in pieces."""
    return getattr(parameter, "ds_numel", None) or parameter.numel()


@contextmanager
def untouched(model: torch.nn.Module) -> Iterator[None]:
    """Within the block the model is in eval mode; after it every module's mode and every random state is as before."""
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
