"""Answers of a causal LM to prompts given as token ids, in batches under a token budget. models/generate.py describes
the independent random stream of each answer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import GenerationConfig

from hf_select.models import batching
from hf_select.models.batching import OutOfMemory
from hf_select.models.generate import cut_answer, sample_batch, without_generation_defaults
from hf_select.models.sampling import Sampling


if TYPE_CHECKING:
    from transformers import PreTrainedModel


def answers(
    model: "PreTrainedModel",
    prompts: Sequence[list[int]],
    seeds: Sequence[int],
    limits: Sequence[int],
    sampling: Sampling,
    stop_ids: Sequence[int],
    tokens_per_batch: int,
    calls: int | None = None,
) -> list[list[int]]:
    """Token ids of an answer to each prompt, ending with a stop token unless it was cut at its limit.

    Args:
        model: in eval mode, unsharded or with all processes taking part in every forward pass.
        seeds: of the prompts' streams.
        limits: longest answer to each prompt, at most sampling.max_new_tokens.
        tokens_per_batch: tokens of one batch, padding and answers included; halved when memory runs out.
        calls: where processes make their passes together, the number of `generate` calls each of them makes; they
            wait for one another at every token. None: this process runs alone.
    Raises: OutOfMemory if a prompt does not fit even alone.
    """
    if not prompts:
        return []
    lengths = [len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True)]

    def forward(indices: list[int]) -> list[list[int]]:
        return sample_batch(
            model,
            [prompts[i] for i in indices],
            [seeds[i] for i in indices],
            [limits[i] for i in indices],
            sampling,
            stop_ids,
            synced_gpus=calls is not None,
        )

    if calls is None:
        results = batching.run(lengths, batching.TokenBudget(tokens_per_batch), forward)
    else:
        results = [[] for _ in prompts]
        batches = batching.plan(lengths, tokens_per_batch)
        for batch in batches:
            for i, ids in zip(batch, forward(batch), strict=True):
                results[i] = ids
        for _ in range(calls - len(batches)):  # other processes still have batches to run
            forward([len(prompts) - 1])
    for answer in results:
        if isinstance(answer, OutOfMemory):
            raise RuntimeError(f"generation: {answer.details}; lower max_length or max_completion_length.")
    return results  # type: ignore[return-value]


def answers_continuously(
    model: "PreTrainedModel",
    prompts: Sequence[list[int]],
    seed: int,
    limits: Sequence[int],
    sampling: Sampling,
    stop_ids: Sequence[int],
    settings: dict[str, Any] | None = None,
) -> list[list[int]]:
    """As `answers`, by the continuous batching of transformers: a prompt takes the place of an answer that has ended.
    Its sampler is its own, so answers repeat for the same prompts together, not for each prompt by itself."""
    from transformers import ContinuousBatchingConfig  # transformers 5.23 has it, 4.57 does not

    if not prompts:
        return []
    greedy = sampling.temperature == 0
    config = GenerationConfig(
        do_sample=not greedy,
        max_new_tokens=max(limits),
        eos_token_id=list(stop_ids),
        pad_token_id=stop_ids[0],
        **({} if greedy else {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}),
    )
    with without_generation_defaults(model), torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed % 2**63)
        outputs = cast(Any, model).generate_batch(
            [list(prompt) for prompt in prompts],
            config,
            continuous_batching_config=ContinuousBatchingConfig(**(settings or {})),
            progress_bar=False,
        )
    ids = [outputs[f"req_{i}"].generated_tokens for i in range(len(prompts))]
    return [cut_answer(answer, stop_ids, limit) for answer, limit in zip(ids, limits, strict=True)]
