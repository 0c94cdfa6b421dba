"""Length-sorted micro-batches under a token budget, which is halved when memory runs out.

Run time is proportional to the number of processed tokens, padding included. Therefore rows are sorted by length and
split into batches with rows x longest <= budget. The longest come first, so that memory runs out in the first batch or
not at all. Results are returned in input order.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hf_select.data.bad_rows import BadRow
from hf_select.jobs.progress import _on_batch


logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class OutOfMemory(BadRow):
    """A sequence of `tokens` tokens does not fit in memory, even in a batch of its own."""

    def __init__(self, tokens: int):
        super().__init__("out of memory on this row alone; lower max_length")
        self.details = f"{tokens} tokens do not fit in memory, even alone"


@dataclass
class TokenBudget:
    """Maximum number of tokens of a forward pass, padding included. All calls share one budget, so it is halved only
    once."""

    tokens: int

    def halve(self) -> None:
        """Halve the budget; the minimum is 1."""
        self.tokens = max(1, self.tokens // 2)


def plan(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Split indices into micro-batches, longest first, with len(batch) * longest <= max_tokens or a single index."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= max_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def run(
    lengths: Sequence[int], budget: TokenBudget, forward: Callable[[list[int]], Iterable[Result]], passes: int = 1
) -> list[Result | BadRow]:
    """Call `forward(indices)` for each micro-batch; returns one result per index, in input order.

    When memory runs out, the budget is halved and the remaining sequences are batched again. The result of a sequence
    that does not fit in a batch of its own is an `OutOfMemory`.

    Args:
        budget: token budget of one pass through the model.
        passes: number of passes over which `forward` spreads the tokens of a batch.
    """
    results: list[Result | BadRow | None] = [None] * len(lengths)
    waiting = plan(lengths, budget.tokens * passes)[::-1]  # a stack: the longest batch on top
    while waiting:
        batch = waiting.pop()
        try:
            outputs = forward(batch)
        except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
            if not is_out_of_memory(error):
                raise
            outputs = None
        # Outside the except block: its traceback would keep the tensors of the failed pass in memory.
        if outputs is not None:
            for i, output in zip(batch, outputs, strict=True):
                results[i] = output
            if (report := _on_batch.get()) is not None:
                report(sum(lengths[i] for i in batch))
            continue
        release_cached_memory()
        if len(batch) == 1:
            results[batch[0]] = OutOfMemory(lengths[batch[0]])
            continue
        budget.tokens = min(budget.tokens, len(batch) * lengths[batch[0]] // passes)
        budget.halve()
        logger.warning("Out of memory: the token budget of a micro-batch is now %d.", budget.tokens)
        remaining = [i for waiting_batch in reversed([*waiting, batch]) for i in waiting_batch]
        batches = plan([lengths[i] for i in remaining], budget.tokens * passes)
        waiting = [[remaining[j] for j in positions] for positions in batches][::-1]
    return results  # type: ignore[return-value]  # every index has a result


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that the memory of this machine or of its accelerator is full."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, MemoryError) or should_reduce_batch_size(error)


def release_cached_memory() -> None:
    """Release memory that Python and the accelerator's allocator cache."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
