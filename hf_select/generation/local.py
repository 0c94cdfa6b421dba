"""Generators in this process: transformers, batched, and vLLM (extra `vllm`).

Each request samples from its own seed: its answer does not depend on the other requests of its batch.
"""

import contextlib
import itertools
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

from hf_select.data.bad_rows import BadRow
from hf_select.data.chat_template import FALLBACK_TEMPLATE
from hf_select.data.encoding import response_end
from hf_select.extras import require
from hf_select.generation.generator import Answer, Generator, Request, RequestCounts
from hf_select.models import batching
from hf_select.models.batching import OutOfMemory, TokenBudget
from hf_select.models.causal_lm import CausalLM
from hf_select.models.sampling import Sampling


# Requests that are read ahead: enough to make batches of similar lengths.
_WINDOW = 128


@dataclass
class TransformersGenerator(Generator):
    """A causal LM in this process, with `model.generate` of transformers. JSON schemas are not enforced.

    Args:
        model: a CausalLM.
        tokens_per_batch: most tokens of a batch, prompts and answers together; halved when memory runs out.
    """

    model: CausalLM
    tokens_per_batch: int = 32768
    usage: RequestCounts = field(default_factory=RequestCounts, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._budget = TokenBudget(self.tokens_per_batch)
        self._cached_stop_ids: list[int] | None = None

    @property
    def name(self) -> str:  # type: ignore[override]
        """The model's name; answers are stored under it."""
        return self.model.name

    @property
    def revision(self) -> str | None:  # type: ignore[override]
        """The commit of a model on the Hub, or the revision that was given."""
        return self.model.details(None)["commit"] or self.model.revision

    @classmethod
    def settings_class(cls) -> type[CausalLM]:
        """CausalLM: the flags of the command line are its settings."""
        return CausalLM

    @classmethod
    def from_settings(cls, settings: CausalLM) -> "TransformersGenerator":
        """The generator of a model."""
        return cls(settings)

    def release(self) -> None:
        """Free the model's memory; the next request loads it again."""
        self.model.release()

    def stream(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Answer]]:
        for window in _windows(requests):
            prompts = [self._encode(request) for request in window]
            by_settings = defaultdict(list)
            for i, (request, prompt) in enumerate(zip(window, prompts, strict=True)):
                by_settings[self._settings(request, prompt)].append(i)
            for sampling, indices in by_settings.items():
                if sampling is None:
                    limit = self.model.load().max_length
                    answers: list[Answer | BadRow] = [
                        Answer(error=f"the prompt of {len(prompts[i])} tokens fills the context of {limit}")
                        for i in indices
                    ]
                else:
                    answers = batching.run(
                        [len(prompts[i]) + sampling.max_new_tokens for i in indices],
                        self._budget,
                        lambda batch, indices=indices, sampling=sampling: self._generate(
                            [(window[indices[b]], prompts[indices[b]]) for b in batch],  # noqa: B023
                            sampling,
                        ),
                    )
                for i, answer in zip(indices, answers, strict=True):
                    if isinstance(answer, BadRow):
                        answer = Answer(error=answer.details if isinstance(answer, OutOfMemory) else str(answer))
                    self.usage.count(answer)
                    yield window[i], answer

    def _encode(self, request: Request) -> list[int]:
        tokenizer = self.model.load().tokenizer
        template = tokenizer.chat_template or FALLBACK_TEMPLATE
        text = tokenizer.apply_chat_template(
            request.messages, chat_template=template, add_generation_prompt=True, tokenize=False
        )
        # The fallback template writes no BOS token, so the tokenizer must add it; other templates write their own.
        return tokenizer(text, add_special_tokens=template == FALLBACK_TEMPLATE)["input_ids"]

    def _stop_ids(self) -> list[int]:
        """Tokens that end an answer. A base model's tokenizer often names another token than its template writes."""
        loaded = self.model.load()
        if self._cached_stop_ids is None:
            own = loaded.model.generation_config.eos_token_id
            stop_ids = {loaded.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
            with contextlib.suppress(ValueError):  # the template has no end token: only the length ends an answer
                stop_ids.add(response_end(loaded.tokenizer))
            self._cached_stop_ids = sorted(stop_ids)
        return self._cached_stop_ids

    def _settings(self, request: Request, prompt: list[int]) -> Sampling | None:
        """What the requests of a batch have in common, max_new_tokens cut to the model's context; None if the prompt
        fills the context."""
        sampling, limit = request.sampling, self.model.load().max_length
        room = sampling.max_new_tokens if limit is None else min(sampling.max_new_tokens, limit - len(prompt))
        return None if room < 1 else replace(sampling, max_new_tokens=room, seed=None)

    def _generate(self, batch: list[tuple[Request, list[int]]], sampling: Sampling) -> list[Answer]:
        from hf_select.models.generate import sample_batch

        loaded, stop_ids = self.model.load(), self._stop_ids()
        prompts = [prompt for _, prompt in batch]
        seeds = [request.sampling.seed for request, _ in batch]
        begin = time.perf_counter()
        with self.model.measuring(prompts):
            completions = sample_batch(
                loaded.model, prompts, seeds, [sampling.max_new_tokens] * len(batch), sampling, stop_ids
            )
        seconds = time.perf_counter() - begin
        answers = []
        for prompt, tokens in zip(prompts, completions, strict=True):
            ended = tokens[-1] in stop_ids
            text = loaded.tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=True)
            finish_reason = "stop" if ended else "length"
            answers.append(Answer(text, finish_reason, len(prompt), len(tokens), seconds=seconds))
        return answers


@dataclass
class VLLMGenerator(Generator):
    """A model in this process with vLLM (extra `vllm`; needs a GPU that vLLM supports).

    Args:
        model: Hub id or path.
        revision: branch, tag or commit on the Hub.
        dtype: as in vLLM: auto, bfloat16, float16 or float32.
        tensor_parallel_size: number of GPUs that share the model.
        max_model_len: most tokens of prompt and answer; by default the model's own limit.
        gpu_memory_utilization: share of a GPU's memory that vLLM takes.
        quantization: as in vLLM, e.g. awq or fp8.
        trust_remote_code: run model code from the Hub; turn it on only if you have read the code.
    """

    model: str
    revision: str | None = None
    dtype: str = "auto"
    tensor_parallel_size: int = 1
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.9
    quantization: str | None = None
    trust_remote_code: bool = False
    usage: RequestCounts = field(default_factory=RequestCounts, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._llm: Any = None

    @property
    def name(self) -> str:  # type: ignore[override]
        """The model's name; answers are stored under it."""
        return self.model

    def release(self) -> None:
        """Drop the engine; the next request starts it again."""
        self._llm = None

    def stream(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Answer]]:
        require("vLLM in this process", "vllm")
        from vllm import LLM, SamplingParams  # type: ignore[import-not-found]
        from vllm.sampling_params import StructuredOutputsParams  # type: ignore[import-not-found]

        engine_settings = [f.name for f in fields(self) if f.name not in ("model", "usage")]
        # vLLM makes its own batches; windows only bound the requests in memory.
        for window in _windows(requests, 8 * _WINDOW):
            if self._llm is None:
                options = {name: getattr(self, name) for name in engine_settings}
                self._llm = LLM(model=self.model, **options)
            params = [
                SamplingParams(
                    temperature=request.sampling.temperature,
                    top_p=request.sampling.top_p,
                    max_tokens=request.sampling.max_new_tokens,
                    seed=request.sampling.seed,
                    **({"top_k": request.sampling.top_k} if request.sampling.top_k else {}),
                    structured_outputs=None
                    if request.schema is None
                    else StructuredOutputsParams(json=request.schema),
                )
                for request in window
            ]
            outputs = self._llm.chat([request.messages for request in window], params, use_tqdm=False)
            for request, output in zip(window, outputs, strict=True):
                completion = output.outputs[0]
                answer = Answer(
                    completion.text,
                    completion.finish_reason or "stop",
                    len(output.prompt_token_ids),
                    len(completion.token_ids),
                )
                self.usage.count(answer)
                yield request, answer


def _windows(requests: Iterable[Request], size: int = _WINDOW) -> Iterator[list[Request]]:
    remaining = iter(requests)
    while window := list(itertools.islice(remaining, size)):
        yield window
