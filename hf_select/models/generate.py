"""Sampling from a causal LM in this process, with an independent random stream for each row.

A row's answer depends on the weights, its prompt and its seed only: not on the other rows of its batch, the number of
processes or what was sampled before. Each token takes one uniform number of the row's stream and inverts the
cumulative distribution at it. `generate` then runs a greedy search over one-hot scores.
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
    """Scores (B, V) -> one-hot scores of the token that each row samples.

    Args:
        uniforms: (B, N) in [0, 1), one number per new token; on the CPU where the model is on Apple's MPS, which has
            no float64.
        start: tokens before the first new one.
    """

    def __init__(self, uniforms: Tensor, start: int):
        self.uniforms, self.start = uniforms, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        # In float64: float32 would move the bounds of rare tokens by more than their probability.
        exact = scores.cpu() if scores.device.type == "mps" else scores
        cumulative = exact.to(torch.float64).softmax(-1).cumsum(-1)  # (B, V)
        u = self.uniforms[:, input_ids.shape[1] - self.start, None] * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, u, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, token.to(scores.device), 0.0)


def uniforms(seeds: Sequence[int | None], count: int) -> np.ndarray:
    """(B, count) numbers in [0, 1): the beginning of each seed's stream; a random stream where the seed is None."""
    return np.stack([np.random.Generator(np.random.Philox(seed)).random(count) for seed in seeds])


@contextmanager
def without_generation_defaults(model: PreTrainedModel) -> Iterator[None]:
    """Hide the checkpoint's generation settings: `generate` takes from them whatever its own config leaves open."""
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
    """Token ids of an answer to each prompt, in one batch. An answer ends with a stop token, or is cut at its limit.

    Args:
        model: in eval mode.
        seeds: of the rows' random streams.
        limits: most new tokens of each row; `sampling.max_new_tokens` is not read.
        stop_ids: may be empty; then every answer is cut at its limit.
        synced_gpus: all processes run each forward pass together (FSDP, DeepSpeed ZeRO-3).
    """
    start, count = max(map(len, prompts)), max(limits)
    padding = stop_ids[0] if stop_ids else 0  # any id will do: it is masked
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
    """The answer up to and with its first stop token, or cut at the limit."""
    end = next((place for place, token in enumerate(ids[:limit]) if token in stop_ids), limit - 1)
    return ids[: end + 1]
