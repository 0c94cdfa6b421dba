"""Instruction-following difficulty: how little the instruction helps the model to write the response.

Li et al. 2024, "From Quantity to Quality" (Cherry LLM, NAACL 2024, arXiv:2308.12032): ratio of losses. Li et al. 2024,
"Superfiltering" (ACL 2024, arXiv:2402.00530): ratio of perplexities under a small model; the two order rows
differently.

Left out: Cherry's pre-experienced model (train one on a diverse tenth and give it as `model`; the paper's LLaMA-2 runs
score with the base model) and Superfiltering's diversity step (use FacilityLocation).
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
from datasets import List, Value

from hf_select.data import columns
from hf_select.data.bad_rows import BadRow, attempt, map_rows, on_readable
from hf_select.data.conversation import Conversation
from hf_select.data.encoding import Encoded, cut, drop_empty_responses, encode_all, generation_prompt, nonempty_turns
from hf_select.data.text import beside_text
from hf_select.paper import Paper
from hf_select.scoring.scorer import Answer, LMScorer


# Stanford Alpaca's training prompt (Apache-2.0), the format that Cherry measures in.
ALPACA_PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
ALPACA_PROMPT_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
ALPACA_LEAD = "### Response:"

# Number of tokens before a response without its prompt, which the authors' scripts assume and do not count.
_REPO_LEAD = {"alpaca": 4, "plain": 1}


@dataclass
class Passes:
    """Token ids of one row with its prompts, and of each response without them, with the spans of the responses."""

    given: list[int]
    given_spans: list[tuple[int, int]]
    alone: list[list[int]]
    alone_spans: list[tuple[int, int]]
    note: str = ""


@dataclass
class IFD(LMScorer):
    """Ratio of the model's loss on a response given its prompt to the loss on the response alone.

    loss_ratio: ifd = nll(response | prompt) / nll(response)        (Cherry)
    ppl_ratio:  ifd = exp(nll(response | prompt) - nll(response))   (Superfiltering)
    nll is the mean over response tokens, in nats. In a row of several turns all response tokens have equal weight, and
    each is conditioned on everything before it.

    Args:
        model: Hub id, path or CausalLM; Cherry uses the model that will be trained, Superfiltering GPT-2.
        ratio: loss_ratio or ppl_ratio.
        text_format: chat is the model's own template, all turns; alpaca is Alpaca's prompt (Cherry), plain the bare
            instruction and input, a line each (Superfiltering); these two take the first exchange.
        mode: paper measures the same response tokens with and without the prompt; repo follows the authors' scripts,
            which tokenise the two texts separately and assume the number of tokens before the response alone.
        max_length: tokens kept of prompt and response; a longer response is cut on the right, in both passes alike.
            Cherry uses 512, Superfiltering 1024.
    Reads: the conversation.
    Adds: score_ifd (higher is harder; above 1 the prompt does not help); ifd_given_prompt and ifd_alone (the two mean
        NLLs, from which the other ratio follows); ifd_turns (the ratio of each response).
    Relations: Perplexity(scope="response") is ifd_given_prompt. The papers leave out rows above 1:
        TopK("score_ifd", at_most=1.0) does; their scores stay.
    Reference: arXiv:2308.12032, equations 1-3; arXiv:2402.00530, section 2.
    Differs from the authors' code: rows without a score carry the reason; both passes of many rows share batches.
    """

    ratio: Literal["loss_ratio", "ppl_ratio"] = "loss_ratio"
    text_format: Literal["chat", "alpaca", "plain"] = "chat"
    mode: Literal["paper", "repo"] = "paper"
    max_length: int | None = 2048

    name: ClassVar[str] = "ifd"
    paper: ClassVar[Paper | None] = Paper(
        "2308.12032",
        "From Quantity to Quality: Boosting LLM Performance with Self-Guided Data Selection for Instruction Tuning",
        "Li, Ming",
        2024,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._lm.check_text_format(self.text_format)
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"max_length is {self.max_length}; it must be at least 1.")
        if self.mode == "repo" and (self.text_format == "chat" or self.max_length is None):
            raise ValueError(
                "mode repo follows the authors' scripts; set text_format to alpaca or plain, and a max_length."
            )

    @property
    def columns_out(self) -> dict[str, Value | List]:
        """Columns that scoring adds, with their `datasets` types."""
        parts: dict[str, Any] = {"ifd_given_prompt": Value("float64"), "ifd_alone": Value("float64")}
        return super().columns_out | parts | {"ifd_turns": List(Value("float64"))}

    def measure(self, rows: list[Conversation]) -> list[Answer | BadRow]:
        """The columns of each row, or the reason why it has no score."""
        passes = self._chat_passes(rows) if self.text_format == "chat" else self._text_passes(rows)
        return on_readable(passes, self._score)

    def _score(self, rows: list[Passes]) -> list[Answer | BadRow]:
        nlls = iter(
            self._lm.response_nll(
                [ids for passes in rows for ids in (passes.given, *passes.alone)],
                [spans for passes in rows for spans in (passes.given_spans, *([span] for span in passes.alone_spans))],
            )
        )
        return [attempt(self._answer, passes, next(nlls), *(next(nlls) for _ in passes.alone)) for passes in rows]

    def _answer(self, passes: Passes, given: np.ndarray, *alone: np.ndarray) -> Answer:
        ends = np.cumsum([end - max(1, start) for start, end in passes.given_spans])[:-1]
        turns = [self._ratio(with_prompt, nll) for with_prompt, nll in zip(np.split(given, ends), alone, strict=True)]
        score = self._ratio(given, np.concatenate(alone))
        if not math.isfinite(score):
            raise BadRow("the ratio is not finite: the model's loss on the response alone is 0 or not a number")
        return {
            columns.score_column(self.name): score,
            columns.reason_column(self.name): passes.note,
            "ifd_given_prompt": _mean(given),
            "ifd_alone": _mean(np.concatenate(alone)),
            "ifd_turns": [turn if math.isfinite(turn) else None for turn in turns],
        }

    def _ratio(self, given: np.ndarray, alone: np.ndarray) -> float:
        with_prompt, without = _mean(given), _mean(alone)
        if self.ratio == "ppl_ratio":
            return float(np.exp(with_prompt - without))
        return with_prompt / without if without else math.nan

    def _chat_passes(self, rows: list[Conversation]) -> list[Passes | BadRow]:
        loaded = self._lm.load()
        header = loaded.tokenizer(generation_prompt(loaded.tokenizer), add_special_tokens=False)["input_ids"]

        def passes_of(row: Conversation, encoded: Encoded) -> Passes:
            if row.text is not None:
                raise BadRow("plain text has no prompt")
            if not any(nonempty_turns(row)):
                raise BadRow("empty response")
            encoded, note = cut(drop_empty_responses(row, encoded), self.max_length, loaded.max_length)
            start = encoded.input_ids[:1] if encoded.input_ids[0] == loaded.tokenizer.bos_token_id else []
            leads = [start + _header_before(encoded.input_ids, first, header) for first, _ in encoded.responses]
            return _same_tokens(encoded.input_ids, encoded.responses, leads, note)

        return map_rows(passes_of, rows, encode_all(rows, loaded.tokenizer))

    def _text_passes(self, rows: list[Conversation]) -> list[Passes | BadRow]:
        passes = on_readable(
            map_rows(self._texts, rows),
            self._paper_passes if self.mode == "paper" else partial(map_rows, self._repo_passes),
        )
        return map_rows(_with_note, passes, rows)

    def _texts(self, row: Conversation) -> tuple[str, str, str]:
        """(prompt, the text before the response alone, response) of the row's first exchange."""
        user, response = row.first_pair()
        if not response.strip():
            raise BadRow("empty response")
        extra = row.alpaca_input
        instruction = user.removesuffix(extra).removesuffix("\n\n") if extra else user
        if self.text_format == "plain":
            return instruction + "\n" + (extra + "\n" if extra else ""), "", response
        template = ALPACA_PROMPT_INPUT if extra else ALPACA_PROMPT
        return template.format(instruction=instruction, input=extra), ALPACA_LEAD, response

    def _paper_passes(self, texts: list[tuple[str, str, str]]) -> list[Passes | BadRow]:
        if not texts:
            return []
        loaded = self._lm.load()
        lead = loaded.tokenizer(texts[0][1])["input_ids"]  # the same for all
        whole = [prompt + response for prompt, _, response in texts]
        encoding = loaded.tokenizer(whole, return_offsets_mapping=True, verbose=False)

        def passes_of(texts: tuple[str, str, str], ids: list[int], offsets: list[tuple[int, int]]) -> Passes:
            # A token belongs to the response if it starts there, as in the chat format; a start token has no
            # characters.
            starts = (t for t, (a, b) in enumerate(offsets) if a >= len(texts[0]) and b > a)
            encoded = Encoded(ids, [(next(starts, len(ids)), len(ids))])
            kept, note = cut(encoded, self.max_length, loaded.max_length)
            return _same_tokens(kept.input_ids, kept.responses, [lead] * len(kept.responses), note)

        return map_rows(passes_of, texts, encoding["input_ids"], encoding["offset_mapping"])

    def _repo_passes(self, texts: tuple[str, str, str]) -> Passes:
        """The two texts tokenised apart; the lone response is cut so that both are thought to keep as much of it."""
        prompt, lead, response = texts
        assert self.max_length is not None
        tokenizer = self._lm.load().tokenizer
        prompt_length = len(tokenizer(prompt, verbose=False)["input_ids"])
        if prompt_length >= self.max_length:
            raise BadRow(f"the prompt alone reaches {self.max_length} tokens")
        given = tokenizer(prompt + response, verbose=False)["input_ids"]
        room = self.max_length - prompt_length + _REPO_LEAD[self.text_format]
        alone = tokenizer(lead + response, verbose=False)["input_ids"][:room]
        if self.text_format == "alpaca":
            start = len(tokenizer(lead)["input_ids"])
            if prompt_length + len(alone) - start > self.max_length:
                raise BadRow("too long: without a start token the script drops what it would otherwise cut")
        else:
            start = 1  # a language-modelling loss: all but the first token
        note = f"cut to {self.max_length} tokens" if len(given) > self.max_length else ""
        given = given[: self.max_length]
        if len(alone) <= start or len(given) <= prompt_length:
            raise BadRow("no token of the response is left to predict")
        context = self._lm.load().max_length
        if context is not None and max(len(given), len(alone)) > context:
            raise BadRow(f"longer than the model's context of {context} tokens; lower max_length")
        return Passes(given, [(prompt_length, len(given))], [alone], [(start, len(alone))], note)


def _with_note(passes: Passes, row: Conversation) -> Passes:
    """The passes with a note on what else the first reply says besides its text."""
    notes = (beside_text(row.first_exchange()[1]), passes.note)
    return replace(passes, note="; ".join(filter(None, notes)))


def _header_before(ids: list[int], start: int, header: list[int]) -> list[int]:
    """The part of the generation prompt that precedes a response: DeepSeek's and Qwen3.5's opens a thought that they
    do not write in a finished turn. All of it where the row's tokens run over its edge."""
    sizes = (n for n in range(len(header), 0, -1) if ids[max(start - n, 0) : start] == header[:n])
    return header[: next(sizes, len(header))]


def _same_tokens(ids: list[int], spans: list[tuple[int, int]], leads: list[list[int]], note: str) -> Passes:
    """Both passes over the same response tokens: with the text before them in the row, and after its lead alone.

    Without a lead (no start token, no header) the first token of a response has nothing before it when alone, so it
    counts in neither.
    """
    alone, alone_spans, given_spans = [], [], []
    for (start, end), lead in zip(spans, leads, strict=True):
        skipped = 0 if lead else 1
        if end - start <= skipped:
            continue
        given_spans.append((start + skipped, end))
        alone.append(lead + ids[start:end])
        alone_spans.append((len(lead) + skipped, len(lead) + end - start))
    if not alone:
        raise BadRow(f"no token of the response is left to predict{f' ({note})' if note else ''}")
    return Passes(ids, given_spans, alone, alone_spans, note)


def _mean(nll: np.ndarray) -> float:
    return float(np.mean(nll, dtype=np.float64))
