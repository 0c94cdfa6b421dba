"""Sampling from a causal LM in this process, with an independent random stream for each row.

The answer of a row depends only on the weights, its prompt and its seed: not on the other rows of the batch, the
number of processes or earlier samples. For each token, one uniform number of the row's stream is mapped to a token by
the inverse cumulative distribution. `generate` then runs greedy search over the one-hot scores of this token.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hf_select.models.sampling import Sampling


# B prompts, T tokens, V vocabulary, N new tokens


class RowSampler(LogitsProcessor):
    """Replaces scores (B, V) by one-hot scores of the token sampled for each row.

    Args:
        uniforms: (B, N) in [0, 1), one number per new token. On the CPU for models on Apple's MPS, which has no
            float64.
        start: number of tokens before the first new one.
    """

    def __init__(self, uniforms: Tensor, start: int):
        self.uniforms, self.start = uniforms, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        # float64, because rounding in float32 can exceed the probability of a rare token.
        exact = scores.cpu() if scores.device.type == "mps" else scores
        cumulative = exact.to(torch.float64).softmax(-1).cumsum(-1)  # (B, V)
        u = self.uniforms[:, input_ids.shape[1] - self.start, None] * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, u, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, token.to(scores.device), 0.0)


def uniforms(seeds: Sequence[int | None], count: int) -> np.ndarray:
    """The first `count` numbers in [0, 1) of each seed's stream, (B, count). Seed None is a random stream."""
    return np.stack([np.random.Generator(np.random.Philox(seed)).random(count) for seed in seeds])


@contextmanager
def without_generation_defaults(model: PreTrainedModel) -> Iterator[None]:
    """Disable the checkpoint's generation settings, which `generate` uses for all values missing in its config."""
    before = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before


def sample_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int | None],
    limits: Sequence[int],
    sampling: Sampling,
    stop_ids: Sequence[int],
    synced_gpus: bool = False,
) -> list[list[int]]:
    """Sample an answer to each prompt, in one batch. An answer ends with a stop token, or is cut at its limit.

    Args:
        model: in eval mode.
        seeds: seed of each row's random stream.
        limits: maximum number of new tokens of each row; `sampling.max_new_tokens` is ignored.
        stop_ids: if empty, every answer is cut at its limit.
        synced_gpus: all processes run each forward pass together (FSDP, DeepSpeed ZeRO-3).
    """
    start, count = max(map(len, prompts)), max(limits)
    padding = stop_ids[0] if stop_ids else 0  # any id works, because it is masked
    input_ids = torch.full((len(prompts), start), padding)  # (B, T), padded on the left
    mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, start - len(prompt) :] = torch.tensor(prompt)
        mask[row, start - len(prompt) :] = 1
    processors = LogitsProcessorList()
    if sampling.temperature not in (0.0, 1.0):
        processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    if sampling.temperature > 0:
        streams = torch.from_numpy(uniforms(seeds, count))
        processors.append(RowSampler(streams if model.device.type == "mps" else streams.to(model.device), start))
    with without_generation_defaults(model), torch.no_grad():
        output = model.generate(  # type: ignore[misc]
            input_ids=input_ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=GenerationConfig(
                do_sample=False, max_new_tokens=count, eos_token_id=list(stop_ids) or None, pad_token_id=padding
            ),
            logits_processor=processors,
            synced_gpus=synced_gpus,
        )
    new = output[:, start:].tolist()
    return [cut_answer(ids, stop_ids, limit) for ids, limit in zip(new, limits, strict=True)]


def cut_answer(ids: list[int], stop_ids: Sequence[int], limit: int) -> list[int]:
    """The answer up to and including its first stop token, or cut at the limit."""
    end = next((place for place, token in enumerate(ids[:limit]) if token in stop_ids), limit - 1)
    return ids[: end + 1]
