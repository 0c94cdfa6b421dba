"""A causal LM as a measuring device: next-token probabilities, response NLL, pooled hidden states.

What keeps it fast, in the order that matters: rows sorted by length and cut by a token budget (no padding to speak
of), the backbone run without the output head, the head applied only to the positions that a measure reads, and the
key/value cache of a shared prefix computed once. Rows are padded on the right and no mask is needed for that: in a
causal model a real token never sees what follows it.

Left out: encoder-decoder models, prompt-tuning adapters, padding-free (varlen) kernels.
"""

import copy
import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hf_select.data.bad_rows import BadRow, attempt
from hf_select.data.chat_template import FALLBACK_TEMPLATE, template_digest, template_text
from hf_select.models import batching, loading
from hf_select.models.sources import Sources, content_of_loaded, content_of_tokenizer, find_all
from hf_select.models.template_day import DatedTokenizer
from hf_select.models.usage import Usage
from hf_select.validation import check_choices


if TYPE_CHECKING:
    from torch import Tensor

    from hf_select.models.loaded_model import LoadedModel

# B sequences, T tokens, S tokens of a suffix, J suffixes, D hidden, V vocabulary, K named tokens, N measured positions

FINAL_NORM = -1  # as a layer: the final norm, whose output the head reads
# Sharing costs one pass over the prefix and copies of its cache: not worth it for less.
_SHORTEST_SHARED_PREFIX = 8


@dataclass
class CausalLM:
    """A causal LM that measures text. Nothing is loaded before the first measurement, and nothing loaded is pickled.

    Args:
        model: Hub id or local path of any `AutoModelForCausalLM`, or a loaded model (give `tokenizer` too).
        tokenizer: Hub id, local path or a loaded tokenizer; the model's own by default.
        revision: branch, tag or commit of the model's repository on the Hub. A branch is resolved to its commit once,
            when the model is first used.
        adapter: Hub id or path of a PEFT adapter that is put on the model.
        dtype: as in `from_pretrained`: auto, float32, bfloat16 or float16.
        device: torch device; by default the accelerator of this process, else cpu.
        device_map: as in `from_pretrained`, for a model that spans devices, memory and disk: auto, or part by part.
        attn_implementation: as in `from_pretrained`: sdpa, eager, flash_attention_2, ...
        quantization: 4bit or 8bit, through bitsandbytes (extra `quantization`).
        tokens_per_batch: tokens, padding included, of one forward pass; halved when memory runs out. By default 32768
            on an accelerator and what its caches hold on a cpu.
        trust_remote_code: run model code from the Hub; off unless you have read it.
        batch_invariant: run each row alone and share no prefix, so that a score is the same to the last bit in any
            batch. Took 1.3 to 2.3 times as long on a CPU; on an accelerator it costs far more. See Rounding.
        chat_template: file of a Jinja template, or its text, in place of the tokenizer's own.
    Rounding: matrix kernels add in another order for another batch shape. Measured on Gemma 3 270M, 24 rows alone and
        in one batch, the largest difference of a SelectIT score (standard deviation over rows 0.17): float32 1.4e-6,
        bfloat16 3.3e-2, with batch_invariant 0 in both. Logits are formed in float32 in every case; the rest of the
        model runs in its own type, so dtype="float32" is the cure where a card has the memory for it.
    Raises: ValueError at the first measurement if the model is not a causal LM.
    """

    model: Any
    tokenizer: Any = None
    revision: str | None = None
    adapter: str | None = None
    dtype: str = "auto"
    device: str | None = None
    device_map: str | dict[str, Any] | None = None
    attn_implementation: str | None = None
    quantization: Literal["4bit", "8bit"] | None = None
    tokens_per_batch: int | None = None
    trust_remote_code: bool = False
    batch_invariant: bool = False
    chat_template: str | None = field(default=None, repr=False)
    usage: Usage = field(default_factory=Usage, repr=False, compare=False)

    def __post_init__(self):
        if isinstance(self.model, list):
            raise ValueError(f"model is a list of {len(self.model)}, and one model is measured with; give one.")
        if not isinstance(self.model, str) and self.tokenizer is None:
            raise ValueError("a loaded model needs its tokenizer: CausalLM(model, tokenizer=tokenizer).")
        check_choices(self)
        if self.chat_template is not None:
            self.chat_template = template_text(self.chat_template)  # the text is what results depend on
        if self.batch_invariant and self.tokens_per_batch is not None:
            raise ValueError(
                "batch_invariant runs each row alone, so tokens_per_batch has no effect; give one of them."
            )
        self._loaded: LoadedModel | None = None
        self.dated = DatedTokenizer(lambda: loading.load_tokenizer(self))

    @cached_property
    def sources(self) -> Sources:
        """The commits or folders behind the names, resolved once."""
        return find_all(self.model, self.tokenizer, self.adapter, self.revision)

    # The `datasets` cache and worker processes see the settings and what was resolved: the same hash before and after
    # loading and in every process, and workers start clean and load the same commit.
    def __getstate__(self) -> dict[str, Any]:
        return {**self.settings(), "sources": self.sources, "day": self.day}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({name: value for name, value in state.items() if name != "day"})
        self.usage, self._loaded = Usage(), None
        self.dated = DatedTokenizer(lambda: loading.load_tokenizer(self), state["day"])

    def fresh(self) -> "CausalLM":
        """A separate copy of the model, loaded again, that may be changed.

        Raises: ValueError for a model that was given loaded: there is only the one.
        """
        if not isinstance(self.model, str):
            raise ValueError("the loaded model would be changed; give its path or Hub id in place of it.")
        again = CausalLM(**self.settings())
        again.__dict__.update({name: value for name, value in vars(self).items() if name == "sources"})
        again.dated = DatedTokenizer(lambda: loading.load_tokenizer(again), self.dated.fixed)
        return again

    def settings(self) -> dict[str, Any]:
        """Constructor arguments by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "usage"}

    def described(self) -> dict[str, Any]:
        """The settings for people to read, with the commit of a model on the Hub."""
        words = {**self.settings(), "model": self.name, "chat_template": template_digest(self.chat_template)}
        if self.tokenizer is not None and not isinstance(self.tokenizer, str):
            words["tokenizer"] = type(self.tokenizer).__name__
        return words if self.commit is None else {**words, "commit": self.commit}

    def identity(self) -> dict[str, Any]:
        """What measurements depend on: commits or contents, not names; not where and in which batches they run."""
        places = ("model", "tokenizer", "adapter", "revision")
        where = ("device", "device_map", "tokens_per_batch", "attn_implementation")
        model, tokenizer, adapter = self.sources.model, self.sources.tokenizer, self.sources.adapter
        return {
            **{name: value for name, value in self.settings().items() if name not in (*places, *where)},
            "chat_template": template_digest(self.chat_template),
            "weights": content_of_loaded(self.model) if model is None else model.identity,
            "tokenizer": content_of_tokenizer(self.tokenizer) if tokenizer is None else tokenizer.identity,
            "adapter": None if adapter is None else adapter.identity,
            "day": self.day,
        }

    @property
    def day(self) -> str | None:
        """The date that the chat template renders, or None: of the first use, or of the resumed job."""
        return self.dated.day

    def begin_on(self, day: str | None) -> bool:
        """Render chat templates with the date on which a job began; returns whether the date changed."""
        changed = self.dated.begin_on(day)
        if changed and self._loaded is not None:
            self._loaded.tokenizer = self.dated.tokenizer
        return changed

    @property
    def commit(self) -> str | None:
        """The commit of a model on the Hub; None for other models."""
        return None if self.sources.model is None else self.sources.model.commit

    def refuse_template(self, why: str) -> None:
        """Raise if a chat template was given that would have no effect."""
        if self.chat_template is not None:
            raise ValueError(f"{why}, so chat_template has no effect; leave it out.")

    def check_text_format(self, text_format: str) -> None:
        """Raise ValueError if a chat template was given and the format does not use it."""
        if text_format != "chat":
            self.refuse_template(f"text_format {text_format} is a layout of its own")

    def details(self, template: str | None) -> dict[str, Any]:
        """What runs: name, commit and dtype of the model, and a hash of the template (None: the model's own)."""
        loaded = self.load()
        template = template or self.dated.own_template or FALLBACK_TEMPLATE
        return {
            "model": self.name,
            "commit": self.commit,
            "dtype": str(loaded.model.dtype).removeprefix("torch."),
            "template_sha256": hashlib.sha256(str(template).encode()).hexdigest(),
        }

    def load(self, rank: int | None = None) -> "LoadedModel":
        """The loaded model; `rank` (of a `map` worker) picks its accelerator."""
        if self._loaded is None:
            self._loaded = loading.load(self, rank)
        return self._loaded

    def release(self) -> None:
        """Free the memory of the model; the next measurement loads it again."""
        self._loaded = None
        batching.release_cached_memory()

    @property
    def name(self) -> str:
        """The model's path or Hub id, or the class name of a loaded model."""
        return self.model if isinstance(self.model, str) else type(self.model).__name__

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the model, which is loaded if it is not yet."""
        return self.load().num_parameters

    def encode_texts(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Token ids of plain texts, with the special tokens that the tokenizer adds by itself."""
        if not texts:
            return []
        return self.load().tokenizer(list(texts), add_special_tokens=add_special_tokens, verbose=False)["input_ids"]

    def next_token_logits(self, prompts: Sequence[list[int]], token_ids: Sequence[int]) -> list[np.ndarray | BadRow]:
        """fp32 logits of the named tokens after each prompt: one array of shape (K,) a prompt.

        A prefix that all prompts share is run once. Logits of half-precision models are formed from the final hidden
        state with fp32 accumulation: a bf16 head rounds logits near 20 to steps of 0.125 and ties ratings that differ.
        """
        import torch

        prefix = _common_prefix(prompts)
        loaded = self.load()
        with self.measuring(prompts):
            cache = self._prefix_cache(prompts[0][:prefix]) if prefix >= _SHORTEST_SHARED_PREFIX else None
            start = prefix if cache is not None else 0
            ends = [len(prompt) - start - 1 for prompt in prompts]

            def forward(indices: list[int]) -> np.ndarray:
                input_ids = self.pad([prompts[i][start:] for i in indices])  # (B, T)
                last = torch.tensor([ends[i] for i in indices], device=input_ids.device)
                with loaded.last_layer_at(last):
                    hidden = self._backbone(input_ids, _repeated(cache, len(indices)))  # (B, T, D)
                return (
                    loaded.logits(hidden[torch.arange(len(indices)), last.to(hidden.device)], token_ids).cpu().numpy()
                )

            return batching.run([len(prompt) - start for prompt in prompts], loaded.budget, forward)

    def next_token_logits_after(
        self, contexts: Sequence[list[int]], suffixes: Sequence[list[int]], token_ids: Sequence[int]
    ) -> list[np.ndarray | BadRow]:
        """fp32 logits of the named tokens after context + suffix, for every pair: one array of shape (len(suffixes),
        K) a context.

        Each context is run once and its cache serves all suffixes.
        """
        import torch

        loaded = self.load()
        pairs = [context + suffix for context in contexts for suffix in suffixes]
        if not loaded.shares_padded_cache:
            each = self.next_token_logits(pairs, token_ids)
            rows = [each[i : i + len(suffixes)] for i in range(0, len(each), len(suffixes))]
            return [attempt(lambda *logits: np.stack(logits), *row) for row in rows]

        longest = max(map(len, suffixes))
        tails = self.pad(suffixes)  # (J, S)
        ends = torch.tensor([len(suffix) - 1 for suffix in suffixes], device=tails.device)  # (J,)
        with self.measuring(pairs):

            def forward(indices: list[int]) -> np.ndarray:
                input_ids = self.pad([contexts[i] for i in indices])  # (B, T)
                lengths = torch.tensor([len(contexts[i]) for i in indices], device=input_ids.device)
                cache = loaded.new_cache()
                with loaded.last_layer_at(torch.zeros_like(lengths)):  # only its keys and values are wanted
                    self._backbone(input_ids, cache)
                cache.batch_repeat_interleave(len(suffixes))
                # Padding is now between a context and its suffix: it is masked, and positions continue from the
                # context's true end.
                real = torch.arange(input_ids.shape[1], device=input_ids.device) < lengths[:, None]  # (B, T)
                real = real.repeat_interleave(len(suffixes), dim=0)  # (B * J, T)
                start = lengths.repeat_interleave(len(suffixes))[:, None]
                suffix_ids = tails.repeat(len(indices), 1)  # (B * J, S)
                last = ends.repeat(len(indices))
                with loaded.last_layer_at(last):
                    hidden = self._backbone(
                        suffix_ids,
                        cache,
                        attention_mask=torch.cat([real.long(), torch.ones_like(suffix_ids)], dim=1),
                        position_ids=start + torch.arange(longest, device=start.device),
                    )
                logits = loaded.logits(hidden[torch.arange(len(last)), last.to(hidden.device)], token_ids)
                return logits.view(len(indices), len(suffixes), -1).cpu().numpy()

            # Contexts and suffixes go through the model one after the other.
            sizes = [len(context) + len(suffixes) * longest for context in contexts]
            return batching.run(sizes, loaded.budget, forward, passes=2)

    def response_nll(
        self, sequences: Sequence[list[int]], responses: Sequence[Sequence[tuple[int, int]]]
    ) -> list[np.ndarray | BadRow]:
        """Negative log-likelihood in nats of each response token given all tokens before it, fp32.

        Args:
            responses: for each sequence its half-open token spans, as `formats.encode` gives them. The first token of
                a sequence has no context and is left out.
        Returns: for each sequence one array over its response tokens in order.
        """
        import torch
        from torch.nn.functional import cross_entropy

        loaded = self.load()
        positions = [predicted(spans) for spans in responses]
        with self.measuring(sequences):

            def forward(indices: list[int]) -> list[np.ndarray]:
                counts = [len(positions[i]) for i in indices]
                hidden = self._backbone(self.pad([sequences[i] for i in indices]))  # (B, T, D)
                row = np.repeat(np.arange(len(indices)), counts)
                before = np.concatenate([positions[i] for i in indices]) - 1
                predicting = hidden[torch.from_numpy(row), torch.from_numpy(before)]  # (N, D)
                ids = [np.asarray(sequences[i])[positions[i]] for i in indices]
                target = torch.from_numpy(np.concatenate(ids)).to(hidden.device)
                block = loaded.head_rows()
                nll = torch.empty(len(target), dtype=torch.float32, device=hidden.device)
                for part in range(0, len(target), block):
                    logits = loaded.logits(predicting[part : part + block])  # (block, V)
                    y = target[part : part + block].to(logits.device)
                    nll[part : part + block] = cross_entropy(logits, y, reduction="none").to(nll.device)
                self.usage.flops += 2.0 * loaded.head_parameters * len(target)
                return np.split(nll.cpu().numpy(), np.cumsum(counts)[:-1])

            return batching.run([len(s) for s in sequences], loaded.budget, forward)

    def pooled_hidden_states(
        self, sequences: Sequence[list[int]], weights: Sequence[np.ndarray], layers: Sequence[int] | None = None
    ) -> list[np.ndarray | BadRow]:
        """Weighted sums of final hidden states (after the final norm), accumulated in fp32: one (D,) array a sequence.

        With L layers, (L * D,): their sums in the given order.

        Args:
            weights: for each sequence its token weights; i / sum(1..T) is the position-weighted mean of RDS+
                (arXiv:2503.01807), 1 / T the mean, (0, ..., 0, 1) the last token.
            layers: pool the outputs of these decoder layers, counted from 1, and of the final norm (-1) in one forward
                pass, which stops at the last of them.
        """
        import torch

        loaded = self.load()
        with self.measuring(sequences):

            def forward(indices: list[int]) -> np.ndarray:
                input_ids = self.pad([sequences[i] for i in indices])  # (B, T)
                pooling = torch.zeros(input_ids.shape, dtype=torch.float32)
                for b, i in enumerate(indices):
                    pooling[b, : len(weights[i])] = torch.as_tensor(weights[i], dtype=torch.float32)
                sums = [
                    torch.einsum("bt,btd->bd", pooling.to(hidden.device), hidden.float()).cpu()
                    for hidden in self._layer_states(input_ids, layers or [FINAL_NORM])  # each (B, T, D)
                ]
                return torch.cat(sums, dim=1).numpy()

            return batching.run([len(s) for s in sequences], loaded.budget, forward)

    def pad(self, sequences: Sequence[list[int]]) -> "Tensor":
        """Token ids (B, T), padded on the right with 0; no real token attends to padding."""
        import torch

        longest = max(map(len, sequences))
        ids = np.zeros((len(sequences), longest), dtype=np.int64)
        for row, sequence in zip(ids, sequences, strict=True):
            row[: len(sequence)] = sequence
        return torch.from_numpy(ids).to(self.load().device)

    def _backbone(
        self,
        input_ids: "Tensor",
        cache: Any = None,
        attention_mask: "Tensor | None" = None,
        position_ids: "Tensor | None" = None,
    ) -> "Tensor":
        """Final hidden states (B, T, D) of the model without its output head."""
        return self._layer_states(input_ids, [FINAL_NORM], cache, attention_mask, position_ids)[0]

    def _layer_states(
        self,
        input_ids: "Tensor",
        layers: Sequence[int],
        cache: Any = None,
        attention_mask: "Tensor | None" = None,
        position_ids: "Tensor | None" = None,
    ) -> "list[Tensor]":
        """Hidden states (B, T, D) after each of these layers; -1 is the final norm."""
        import torch

        loaded = self.load()
        with torch.inference_mode(), loaded.states_of(layers) as states_of:
            states = states_of(
                input_ids=input_ids,
                attention_mask=attention_mask,
                return_dict=True,
                **loaded.inputs(cache, position_ids),
            )
        self.usage.processed_tokens += input_ids.numel()
        share = 1.0 if FINAL_NORM in layers else max(layers) / loaded.num_layers
        self.usage.flops += 2.0 * share * loaded.backbone_parameters * input_ids.numel()
        return states

    def _prefix_cache(self, prefix: list[int]) -> Any:
        if not self.load().shares_cache or self.batch_invariant:
            return None
        cache = self.load().new_cache()
        self._backbone(self.pad([prefix]), cache)
        return cache

    @contextmanager
    def measuring(self, sequences: Sequence[list[int]]) -> Iterator[None]:
        """Measure the time of the block and run the model in eval mode; its mode is restored afterwards."""
        model = self.load().model
        training = model.training
        if training:  # a walk over all modules: not for every call
            model.eval()
        start = time.perf_counter()
        try:
            yield
        finally:
            if training:
                model.train()
            self.usage.seconds += time.perf_counter() - start
            self.usage.sequences += len(sequences)
            self.usage.tokens += sum(map(len, sequences))


def predicted(spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Positions of the tokens in the spans that have a token before them."""
    return np.concatenate([np.arange(max(start, 1), end) for start, end in spans] or [np.empty(0, dtype=np.int64)])


def _common_prefix(sequences: Sequence[list[int]]) -> int:
    """Length of the prefix that all sequences share, at least one token short of each of them."""
    if len(sequences) < 2:
        return 0
    low, high = min(sequences), max(sequences)  # in lexical order, these two differ first
    end = min(map(len, sequences)) - 1
    return next((t for t in range(end) if low[t] != high[t]), end)


def _repeated(cache: Any, batch_size: int) -> Any:
    """A cache of one sequence, copied for a batch; the original stays as it is."""
    if cache is None:
        return None
    cache = copy.deepcopy(cache)
    cache.batch_repeat_interleave(batch_size)
    return cache
