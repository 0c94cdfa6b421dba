"""Generators in this process: transformers, batched, and vLLM (extra `vllm`).

Each request draws from a seed of its own, whatever else stands in its batch: with transformers by the Gumbel trick,
argmax(log p + g) with g = -log(-log u), which draws from p, and u from the request's own generator.
"""

import contextlib
import itertools
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from hf_select.data.chat_template import FALLBACK_TEMPLATE
from hf_select.data.encoding import response_end
from hf_select.generation.generator import Answer, Generator, Request, Usage
from hf_select.models import batching
from hf_select.models.batching import OutOfMemory, TokenBudget
from hf_select.models.causal_lm import CausalLM


# Requests that are taken together: enough to make batches of like lengths.
_WINDOW = 128


@dataclass
class TransformersGenerator(Generator):
    """A causal LM in this process, by `model.generate`. JSON schemas are not enforced.

    Args:
        model: a CausalLM.
        tokens_per_batch: tokens of prompts and answers together that a batch may take; halved when memory runs out.
    """

    model: CausalLM
    tokens_per_batch: int = 32768
    usage: Usage = field(default_factory=Usage, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._budget = TokenBudget(self.tokens_per_batch)
        self._ended_by: set[int] | None = None

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.model.name

    @property
    def revision(self) -> str | None:  # type: ignore[override]
        return self.model.details(None)["commit"] or self.model.revision

    def release(self) -> None:
        self.model.release()

    def stream(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Answer]]:
        for window in _windows(requests):
            prompts = [self._encode(request) for request in window]
            alike = defaultdict(list)
            for i, (request, prompt) in enumerate(zip(window, prompts, strict=True)):
                alike[self._settings(request, prompt)].append(i)
            for settings, indices in alike.items():
                if settings[0] < 1:
                    limit = self.model.load().max_length
                    answers: list[Any] = [
                        Answer(error=f"the prompt of {len(prompts[i])} tokens fills the context of {limit}")
                        for i in indices
                    ]
                else:
                    answers = batching.run(
                        [len(prompts[i]) + settings[0] for i in indices],
                        self._budget,
                        lambda batch, indices=indices, settings=settings: self._generate(
                            [(window[indices[b]], prompts[indices[b]]) for b in batch],  # noqa: B023
                            *settings,
                        ),
                    )
                for i, answer in zip(indices, answers, strict=True):
                    if isinstance(answer, OutOfMemory):
                        answer = Answer(error=str(answer))
                    self.usage.count(answer)
                    yield window[i], answer

    def _encode(self, request: Request) -> list[int]:
        tokenizer = self.model.load().tokenizer
        template = tokenizer.chat_template or FALLBACK_TEMPLATE
        text = tokenizer.apply_chat_template(
            request.messages, chat_template=template, add_generation_prompt=True, tokenize=False
        )
        # The fallback leaves it to the tokenizer to open the text; other templates do so themselves.
        return tokenizer(text, add_special_tokens=template == FALLBACK_TEMPLATE)["input_ids"]

    def _ends(self) -> set[int]:
        """What ends an answer. A base model's tokenizer often names another token than its template writes."""
        loaded = self.model.load()
        if self._ended_by is None:
            own = loaded.model.generation_config.eos_token_id
            found = {loaded.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
            with contextlib.suppress(ValueError):  # nothing ends it but its length
                found.add(response_end(loaded.tokenizer))
            self._ended_by = found
        return self._ended_by

    def _settings(self, request: Request, prompt: list[int]) -> tuple[int, float, float]:
        """New tokens that there is room for, temperature, top_p: what a batch has in common."""
        sampling, limit = request.sampling, self.model.load().max_length
        room = sampling.max_new_tokens if limit is None else min(sampling.max_new_tokens, limit - len(prompt))
        return room, sampling.temperature, sampling.top_p

    def _generate(
        self, batch: list[tuple[Request, list[int]]], max_new_tokens: int, temperature: float, top_p: float
    ) -> list[Answer]:
        import torch
        from transformers import GenerationConfig, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

        loaded = self.model.load()
        ends = self._ends()
        longest = max(len(prompt) for _, prompt in batch)
        ids = torch.zeros((len(batch), longest), dtype=torch.long)  # padded on the left: any id, it is masked
        mask = torch.zeros_like(ids)
        for row, (_, prompt) in enumerate(batch):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        processors = LogitsProcessorList()
        if temperature > 0:
            processors += [TemperatureLogitsWarper(temperature)] if temperature != 1 else []
            processors += [TopPLogitsWarper(top_p)] if top_p < 1 else []
            processors.append(_own_noise([request.sampling.seed for request, _ in batch], loaded.device))
        config = GenerationConfig(  # explicit: what the checkpoint would like is not asked
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(ends) or None,  # type: ignore[arg-type]
            pad_token_id=min(ends, default=0),
        )
        begin = time.perf_counter()
        with self.model.measuring([prompt for _, prompt in batch]), torch.inference_mode():
            out = loaded.model.generate(
                input_ids=ids.to(loaded.device),
                attention_mask=mask.to(loaded.device),
                generation_config=config,
                logits_processor=processors,
            )[:, longest:].tolist()
        seconds = time.perf_counter() - begin
        answers = []
        for (_, prompt), tokens in zip(batch, out, strict=True):
            end = next((t for t, token in enumerate(tokens) if token in ends), None)
            text = loaded.tokenizer.decode(tokens[:end], skip_special_tokens=True)
            count = len(tokens) if end is None else end + 1
            finish = "length" if end is None else "stop"
            answers.append(Answer(text, finish, len(prompt), count, seconds=seconds))
        return answers


def _own_noise(seeds: list[int | None], device: Any) -> Any:
    import torch
    from transformers import LogitsProcessor

    generators = [torch.Generator(device=device) for _ in seeds]
    for generator, seed in zip(generators, seeds, strict=True):
        generator.seed() if seed is None else generator.manual_seed(seed)

    class OwnNoise(LogitsProcessor):
        """Gumbel noise on the log-probabilities of each row (B, V), from its own generator."""

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            for row, generator in enumerate(generators):
                # Exponential variates are -log u; a float32 one may be 0, whose logarithm would choose its token.
                noise = torch.empty(scores.shape[1], device=scores.device).exponential_(generator=generator)
                scores[row] -= noise.clamp_min(1e-30).log().to(scores.dtype)
            return scores

    return OwnNoise()


@dataclass
class VLLMGenerator(Generator):
    """A model in this process by vLLM (extra `vllm`; needs a GPU that vLLM runs on).

    Args:
        model: Hub id or path.
        revision: branch, tag or commit on the Hub.
        dtype: as in vLLM: auto, bfloat16, float16 or float32.
        tensor_parallel_size: GPUs that share the model.
        max_model_len: tokens of prompt and answer; by default the model's own.
        gpu_memory_utilization: share of a GPU's memory that is taken.
        quantization: as in vLLM, e.g. awq or fp8.
        trust_remote_code: run model code from the Hub; off unless you have read it.
    """

    model: str
    revision: str | None = None
    dtype: str = "auto"
    tensor_parallel_size: int = 1
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.9
    quantization: str | None = None
    trust_remote_code: bool = False
    usage: Usage = field(default_factory=Usage, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._llm: Any = None

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.model

    def release(self) -> None:
        self._llm = None

    def stream(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Answer]]:
        try:
            from vllm import LLM, SamplingParams  # type: ignore[import-not-found]
            from vllm.sampling_params import StructuredOutputsParams  # type: ignore[import-not-found]
        except ImportError as error:
            raise ImportError('vLLM in this process needs an extra: pip install "hf-select[vllm]"') from error
        of_llm = [f.name for f in fields(self) if f.name not in ("model", "usage")]
        # vLLM batches by itself: windows only bound what is held here.
        for window in _windows(requests, 8 * _WINDOW):
            if self._llm is None:
                options = {name: getattr(self, name) for name in of_llm}
                self._llm = LLM(model=self.model, **options)
            params = [
                SamplingParams(
                    temperature=request.sampling.temperature,
                    top_p=request.sampling.top_p,
                    max_tokens=request.sampling.max_new_tokens,
                    seed=request.sampling.seed,
                    structured_outputs=None
                    if request.schema is None
                    else StructuredOutputsParams(json=request.schema),
                )
                for request in window
            ]
            outputs = self._llm.chat([request.messages for request in window], params, use_tqdm=False)
            for request, output in zip(window, outputs, strict=True):
                best = output.outputs[0]
                finish, counts = best.finish_reason or "stop", (len(output.prompt_token_ids), len(best.token_ids))
                answer = Answer(best.text, finish, *counts)
                self.usage.count(answer)
                yield request, answer


def _windows(requests: Iterable[Request], size: int = _WINDOW) -> Iterator[list[Request]]:
    waiting = iter(requests)
    while window := list(itertools.islice(waiting, size)):
        yield window
