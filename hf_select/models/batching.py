"""Length-sorted micro-batches under a token budget that halves itself when memory runs out.

Time on every device follows processed tokens, padding included, so rows are sorted by length (longest first: memory
runs out in the first batch or never) and cut where rows x longest would pass the budget. Results come back in the
order of the input.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from accelerate.utils.memory import should_reduce_batch_size

from hf_select.data.bad_rows import BadRow
from hf_select.jobs.progress import _on_batch


logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class OutOfMemory(BadRow):
    """A sequence of `tokens` tokens that does not fit in memory even alone."""

    def __init__(self, tokens: int):
        super().__init__("out of memory on this row alone; lower max_length")
        self.details = f"{tokens} tokens do not fit in memory, even alone"


@dataclass
class TokenBudget:
    """Tokens, padding included, that one forward pass may process; shared by all calls so that one halving is
    enough."""

    tokens: int

    def halve(self) -> None:
        """Halve the budget, to 1 at least."""
        self.tokens = max(1, self.tokens // 2)


def plan(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices in micro-batches, longest first, each with len(batch) * longest <= max_tokens (or a single index)."""
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
    """`forward(indices)` over micro-batches; one result for each index, in input order.

    `passes` is the number of passes through the model over which `forward` spreads its tokens; the budget is that of
    one pass.

    When memory runs out, the budget is halved and the remaining sequences are planned again. The result of a sequence
    that does not fit alone is an `OutOfMemory`.
    """
    results: list[Result | BadRow | None] = [None] * len(lengths)
    waiting = plan(lengths, budget.tokens * passes)[::-1]  # a stack: the longest batch on top
    while waiting:
        batch = waiting.pop()
        try:
            outputs = forward(batch)
        except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
            if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
                raise
            outputs = None
        # Outside the handler, which would keep the failed pass's tensors alive through its traceback.
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
        left = [i for waiting_batch in reversed([*waiting, batch]) for i in waiting_batch]
        waiting = [[left[j] for j in again] for again in plan([lengths[i] for i in left], budget.tokens * passes)][
            ::-1
        ]
    return results  # type: ignore[return-value]  # every index has been answered


def release_cached_memory() -> None:
    """Return memory that Python and the accelerator's allocator keep for later."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
