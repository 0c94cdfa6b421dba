"""Answers of a causal LM to prompts given as token ids, each drawn with random numbers of its own.

An answer depends on the weights, its prompt and its own stream of uniform numbers, and on nothing else: not on the
rows it was batched with, the number of processes or what was drawn before it. One uniform number picks a token, by
the inverse of the cumulative distribution, which costs a sum over the vocabulary and makes `generate` a greedy search
among one-hot scores.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hf_select.models import batching
from hf_select.models.batching import OutOfMemory


# B prompts, T tokens, V vocabulary, N new tokens


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. The defaults draw from the policy itself, which the theory asks for.

    Args:
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_p: smallest set of tokens of at least this probability; 1 is all.
        top_k: so many of the likeliest tokens; 0 is all.
        max_new_tokens: an answer that has not ended by then is cut.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256

    def state(self) -> dict[str, Any]:
        return asdict(self)


class OwnStreams(LogitsProcessor):
    """Scores (B, V) -> one-hot scores of the token that each row's next uniform number picks.

    Args:
        uniforms: (B, N) in [0, 1); on the host where the device is Apple's MPS, which has no float64.
        start: number of tokens before the first new one.
    """

    def __init__(self, uniforms: Tensor, start: int):
        self.uniforms, self.start = uniforms, start

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        # In double: float32 would move the bounds of rare tokens by more than their probability.
        exact = scores.cpu() if scores.device.type == "mps" else scores
        cumulative = exact.to(torch.float64).softmax(-1).cumsum(-1)  # (B, V)
        u = self.uniforms[:, input_ids.shape[1] - self.start, None] * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, u, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, token.to(scores.device), 0.0)


def uniforms(seeds: Sequence[int], count: int) -> np.ndarray:
    """(B, count) numbers in [0, 1): each row the beginning of the stream of its seed."""
    return np.stack([np.random.Generator(np.random.Philox(seed)).random(count) for seed in seeds])


def answers(
    model: Any,
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
        model: in eval mode, whole or such that every forward pass is made by all processes together.
        seeds: of the prompts' streams.
        limits: longest answer to each prompt, at most sampling.max_new_tokens.
        tokens_per_batch: tokens of one batch, padding and answers included; halved when memory runs out.
        calls: where processes make their passes together, the number of `generate` calls each of them makes; they
            wait for one another at every token. None: this process runs alone.
    Raises: OutOfMemory if a prompt does not fit even alone.
    """
    if not prompts:
        return []
    device = model.device
    lengths = [len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True)]
    processors: list[Any] = []
    if sampling.temperature not in (0.0, 1.0):
        processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))

    def forward(indices: list[int]) -> list[list[int]]:
        longest = max(len(prompts[i]) for i in indices)
        most = max(limits[i] for i in indices)
        input_ids = torch.full((len(indices), longest), stop_ids[0])  # (B, T), padded on the left
        mask = torch.zeros_like(input_ids)
        for b, i in enumerate(indices):
            input_ids[b, longest - len(prompts[i]) :] = torch.tensor(prompts[i])
            mask[b, longest - len(prompts[i]) :] = 1
        drawn = list(processors)
        if sampling.temperature > 0:
            u = torch.from_numpy(uniforms([seeds[i] for i in indices], most))
            u = u if device.type == "mps" else u.to(device)
            drawn.append(OwnStreams(u, longest))
        with torch.no_grad():
            out = model.generate(
                input_ids=input_ids.to(device),
                attention_mask=mask.to(device),
                generation_config=GenerationConfig(
                    do_sample=False, max_new_tokens=most, eos_token_id=list(stop_ids), pad_token_id=stop_ids[0]
                ),
                logits_processor=LogitsProcessorList(drawn),
                synced_gpus=calls is not None,
            )
        new = out[:, longest:].tolist()
        return [ended_at(ids, stop_ids, limits[i]) for ids, i in zip(new, indices, strict=True)]

    before = model.generation_config
    model.generation_config = GenerationConfig()  # `generate` fills what we leave open from the checkpoint's own
    try:
        if calls is None:
            found = batching.run(lengths, batching.TokenBudget(tokens_per_batch), forward)
        else:
            found = [[] for _ in prompts]
            batches = batching.plan(lengths, tokens_per_batch)
            for batch in batches:
                for i, ids in zip(batch, forward(batch), strict=True):
                    found[i] = ids
            for _ in range(calls - len(batches)):  # the others are not done
                forward([len(prompts) - 1])
    finally:
        model.generation_config = before
    for answer in found:
        if isinstance(answer, OutOfMemory):
            raise RuntimeError(f"generation: {answer}; lower max_length or max_completion_length.")
    return found  # type: ignore[return-value]


def ended_at(ids: list[int], stop_ids: Sequence[int], limit: int) -> list[int]:
    """The answer up to and with its first stop token, or cut at the limit."""
    stop = next((place for place, token in enumerate(ids[:limit]) if token in stop_ids), limit - 1)
    return ids[: stop + 1]


def answers_continuously(
    model: Any,
    prompts: Sequence[list[int]],
    seed: int,
    limits: Sequence[int],
    sampling: Sampling,
    stop_ids: Sequence[int],
    settings: dict[str, Any] | None = None,
) -> list[list[int]]:
    """As `answers`, by the continuous batching of transformers: a prompt takes the place of an answer that has ended.
    Its sampler is its own, so answers repeat for the same prompts together, not for each prompt by itself."""
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
    before = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed % 2**63)
            found = model.generate_batch(
                [list(prompt) for prompt in prompts],
                config,
                continuous_batching_config=ContinuousBatchingConfig(**(settings or {})),
                progress_bar=False,
            )
    finally:
        model.generation_config = before
    ids = [found[f"req_{i}"].generated_tokens for i in range(len(prompts))]
    return [ended_at(answer, stop_ids, limit) for answer, limit in zip(ids, limits, strict=True)]
