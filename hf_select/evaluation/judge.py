"""A model as the judge of two answers, asked in both orders (Zheng et al. 2023, arXiv:2306.05685, section 3).

Judges prefer the answer that they read first, so each pair is judged twice, once with either answer first. An answer
wins only if both verdicts name it; everything else is a tie. How often the two verdicts contradict each other is
reported with the result.

folder/judge/PAIR.jsonl   requests and verdicts: a killed comparison resumes without repeating a request
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hf_select.data.chat_template import Messages
from hf_select.data.file_names import slug
from hf_select.generation import json_answers
from hf_select.generation.generator import Generator
from hf_select.generation.requests import Item, RequestStage
from hf_select.jobs import journal
from hf_select.models.sampling import Sampling
from hf_select.reports.generator_result import PairVerdicts


VERDICT_SCHEMA = {
    "type": "object",
    "properties": {"better": {"type": "string", "enum": ["A", "B", "tie"]}},
    "required": ["better"],
    "additionalProperties": False,
}
_QUESTION = """Somebody asked for something and got two answers. Which one serves them better? Weigh first whether it \
is right and does what was asked, then whether it is clear and complete. Length and decoration are no merits of their \
own, and neither is the order in which the answers stand.

[what was asked]
{asked}

[answer A]
{first}

[answer B]
{second}

[your verdict]
Reply with JSON alone: {{"better": "A"}}, {{"better": "B"}}, or {{"better": "tie"}} if neither is better."""


@dataclass(frozen=True)
class Verdict:
    """The verdict on a prompt.

    Args:
        prompt: name of the prompt.
        result: 1 if the first model's answer is better, 0 if the second's, 0.5 for a tie.
        winners: "first", "second" or "tie" when the first model's and when the second model's answer was shown first.
    """

    prompt: str
    result: float
    winners: tuple[str, str]


@dataclass(frozen=True)
class Pair:
    """Two models' answers to the same prompts.

    Args:
        first, second: names of the models.
        rows: (name of the prompt, its text, first's answer, second's answer).
    """

    first: str
    second: str
    rows: Sequence[tuple[str, str, str, str]]


def judge(
    pairs: Sequence[Pair], generator: Generator, folder: Path, sampling: Sampling | None = None, seed: int = 0
) -> dict[tuple[str, str], list[Verdict]]:
    """Return the verdicts on each pair of models; a prompt without a readable verdict in both orders has none.

    Raises: ValueError if a server cannot be reached, refuses the key or does not know the model.
    """
    sampling = sampling or Sampling(temperature=0.0, max_new_tokens=64)
    stage = RequestStage(folder, seed, retry_failed=False, more_refusals=[])
    items = (item for pair in pairs for item in _items(pair, folder, generator.name))
    total = 2 * sum(len(pair.rows) for pair in pairs)
    stage.request_all("judge", generator, sampling, items, total, VERDICT_SCHEMA, _read_verdict)
    return {(pair.first, pair.second): _verdicts_of(folder, pair, generator.name) for pair in pairs}


def pair_verdicts(pair: Pair, verdicts: Sequence[Verdict]) -> PairVerdicts:
    """Count the verdicts on a pair, and how much the order mattered."""
    results = Counter(verdict.result for verdict in verdicts)
    shown = [order for verdict in verdicts for order in zip(verdict.winners, ("first", "second"), strict=True)]
    decided = [winner == shown_first for winner, shown_first in shown if winner != "tie"]
    return PairVerdicts(
        first=pair.first,
        second=pair.second,
        prompts=len(pair.rows),
        judged=len(verdicts),
        wins=results[1.0],
        ties=results[0.5],
        losses=results[0.0],
        contradictions=sum({"first", "second"} == {*verdict.winners} for verdict in verdicts),
        share_for_first_shown=sum(decided) / len(decided) if decided else None,
    )


def judge_prompt(request: str, first: str, second: str) -> Messages:
    """Return the messages that ask for a verdict on two answers to a request."""
    return [{"role": "user", "content": _QUESTION.format(asked=request, first=first, second=second)}]


# --------------------------------------------------------------------------------------------------------------------


def _result_of(winners: tuple[str, str]) -> float:
    return {("first", "first"): 1.0, ("second", "second"): 0.0}.get(winners, 0.5)


def _journal_path(folder: Path, pair: Pair, judge_name: str) -> Path:
    names = json.dumps([judge_name, pair.first, pair.second])
    readable = slug(f"{pair.first}-{pair.second}", 80)
    return folder / "judge" / f"{readable}-{hashlib.sha256(names.encode()).hexdigest()[:8]}.jsonl"


def _key(name: str, order: int, texts: Sequence[str]) -> str:
    return f"{name}/{order}/{hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:12]}"


def _items(pair: Pair, folder: Path, judge_name: str) -> Iterator[Item]:
    path = _journal_path(folder, pair, judge_name)
    for name, request, first, second in pair.rows:
        for order, (a, b) in enumerate(((first, second), (second, first))):
            yield Item(path, _key(name, order, (request, first, second)), partial(judge_prompt, request, a, b))


def _read_verdict(item: Item, text: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    better = text.strip().strip(".*\"'").lower()
    if better not in ("a", "b", "tie"):
        value = json_answers.find_json(text)
        better = str(value.get("better", "")).lower() if isinstance(value, dict) else ""
    if better not in ("a", "b", "tie"):
        raise json_answers.Unparsed('"better" must be "A", "B" or "tie"')
    return {"better": better}, []


def _verdicts_of(folder: Path, pair: Pair, judge_name: str) -> list[Verdict]:
    """Read the verdicts on the prompts that have one in both orders."""
    records = journal.records(journal.read_lines(_journal_path(folder, pair, judge_name)))
    winner_of: Mapping[int, dict[str, str]] = {
        0: {"a": "first", "b": "second", "tie": "tie"},
        1: {"a": "second", "b": "first", "tie": "tie"},
    }
    verdicts = []
    for name, *texts in pair.rows:
        last = [records.get(_key(name, order, texts), [{}])[-1] for order in (0, 1)]
        if all("better" in record for record in last):
            winners = (winner_of[0][last[0]["better"]], winner_of[1][last[1]["better"]])
            verdicts.append(Verdict(name, _result_of(winners), winners))
    return verdicts
