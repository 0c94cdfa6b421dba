"""A model as the judge of two answers, asked in both orders (Zheng et al. 2023, arXiv:2306.05685, section 3).

Judges like what they read first, so each pair is shown twice, once with either answer first. An answer wins only if it
is called the better one both times; whatever else is said is a tie, and how often the two orders contradict each other
is reported beside the result.

folder/judge/PAIR.jsonl   what was asked and what came of it: a killed comparison goes on, and nothing is asked twice
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hf_select.data.file_names import slug
from hf_select.generation.generator import Generator, Messages
from hf_select.generation.glan import parse
from hf_select.generation.requests import Item, RequestStage
from hf_select.jobs import journal
from hf_select.models.sampling import Sampling


SCHEMA = {
    "type": "object",
    "properties": {"better": {"type": "string", "enum": ["A", "B", "tie"]}},
    "required": ["better"],
    "additionalProperties": False,
}
_PROMPT = """Somebody asked for something and got two answers. Which one serves them better? Weigh first whether it \
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
    """Of one prompt: 1 the first model's answer is better, 0 the second's, 0.5 a tie; and what was said in the two
    orders, in terms of the first model ("first", "second" or "tie")."""

    prompt: str
    result: float
    said: tuple[str, str]


@dataclass(frozen=True)
class Pair:
    """Two models' answers to the same prompts.

    Args:
        first, second: names of the models.
        rows: (name of the prompt, what was asked, first's answer, second's answer).
    """

    first: str
    second: str
    rows: Sequence[tuple[str, str, str, str]]


def judge(
    pairs: Sequence[Pair], generator: Generator, folder: Path, sampling: Sampling | None = None, seed: int = 0
) -> dict[tuple[str, str], list[Verdict]]:
    """The verdicts of each pair of models. A prompt that one of the orders has no readable verdict on has none.

    Raises: ValueError if a server is not there, refuses the key or does not know the model.
    """
    sampling = sampling or Sampling(temperature=0.0, max_new_tokens=64)
    stage = RequestStage(folder, seed, retry_failed=False, more_refusals=[])
    items = (item for pair in pairs for item in _items(pair, folder, generator.name))
    total = 2 * sum(len(pair.rows) for pair in pairs)
    stage.request_all("judge", generator, sampling, items, total, SCHEMA, _read)
    found = {}
    for pair in pairs:
        said = _said(folder, pair, generator.name)
        names = [name for name, *_ in pair.rows if (name, 0) in said and (name, 1) in said]
        orders = {name: (said[name, 0], said[name, 1]) for name in names}
        found[pair.first, pair.second] = [Verdict(name, _result(*orders[name]), orders[name]) for name in names]
    return found


def summary(pair: Pair, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Counts of a pair: wins of either, ties, prompts without a verdict, and how much the order mattered."""
    results = Counter(verdict.result for verdict in verdicts)
    orders = [order for verdict in verdicts for order in zip(verdict.said, ("first", "second"), strict=True)]
    decided = [said == shown_first for said, shown_first in orders if said != "tie"]
    return {
        "prompts": len(pair.rows),
        "judged": len(verdicts),
        "wins": results[1.0],
        "ties": results[0.5],
        "losses": results[0.0],
        "contradictions": sum({"first", "second"} == {*verdict.said} for verdict in verdicts),
        "share_for_what_stands_first": sum(decided) / len(decided) if decided else None,
    }


def prompt(asked: str, first: str, second: str) -> Messages:
    return [{"role": "user", "content": _PROMPT.format(asked=asked, first=first, second=second)}]


# --------------------------------------------------------------------------------------------------------------------


def _result(forward: str, backward: str) -> float:
    return {("first", "first"): 1.0, ("second", "second"): 0.0}.get((forward, backward), 0.5)


def _path(folder: Path, pair: Pair, judge_name: str) -> Path:
    names = json.dumps([judge_name, pair.first, pair.second])
    readable = slug(f"{pair.first}-{pair.second}", 80)
    return folder / "judge" / f"{readable}-{hashlib.sha256(names.encode()).hexdigest()[:8]}.jsonl"


def _key(name: str, order: int, texts: Sequence[str]) -> str:
    return f"{name}/{order}/{hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:12]}"


def _items(pair: Pair, folder: Path, judge_name: str) -> Iterator[Item]:
    path = _path(folder, pair, judge_name)
    for name, asked, first, second in pair.rows:
        for order, (a, b) in enumerate(((first, second), (second, first))):
            yield Item(path, _key(name, order, (asked, first, second)), partial(prompt, asked, a, b))


def _read(item: Item, text: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    said = text.strip().strip(".*\"'").lower()
    if said not in ("a", "b", "tie"):
        value = parse.find_json(text)
        said = str(value.get("better", "")).lower() if isinstance(value, dict) else ""
    if said not in ("a", "b", "tie"):
        raise parse.Unparsed('"better" must be "A", "B" or "tie"')
    return {"better": said}, []


def _said(folder: Path, pair: Pair, judge_name: str) -> dict[tuple[str, int], str]:
    """(prompt, order) -> which model's answer was called better."""
    records = journal.records(journal.read_lines(_path(folder, pair, judge_name)))
    shown: Mapping[int, dict[str, str]] = {
        0: {"a": "first", "b": "second", "tie": "tie"},
        1: {"a": "second", "b": "first", "tie": "tie"},
    }
    found = {}
    for name, *texts in pair.rows:
        for order in (0, 1):
            record = records.get(_key(name, order, texts), [{}])[-1]
            if "better" in record:
                found[name, order] = shown[order][record["better"]]
    return found
