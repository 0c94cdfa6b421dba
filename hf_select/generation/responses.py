"""The same prompts answered again by one model or many (as WildChat-50M: Feuer and Hegde 2025, arXiv:2501.18511).

Every user turn of a conversation is answered by every model. What it sees before the turn is the `history`:

reference_history   the conversation as it is in the dataset, the replies of its first model included
own_history         the model's own replies, turn by turn; the human's later turns were said to somebody else and may
                    not fit: `max_turns=1` keeps the first alone, the column `turn` tells them apart
In WildChat-50M replies were made with the one history and stored with the other; here each row has as its prompt the
very messages that its reply was made from.

output_dir/
  responses.json            settings and dataset; a run with others is refused
  answers/MODEL/00000.jsonl records of 500 conversations each: what was asked, and what came of it
  answers/MODEL/model.json  the model's name, and how long its runs took
  responses.parquet         a row for each (conversation, turn, model)
  removed.jsonl             what is not among them, and why
  summary.json              counts and throughput by model

A record's key holds the conversation, the turn and a digest of the messages that were seen, so that conversations with
the same prompt get replies of their own, nothing is asked for twice, and a reply is never stored with a history that
was changed since. The seed is made of the same. Other models may be added to the folder at any time.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from tqdm.auto import tqdm

from hf_select._version import __version__
from hf_select.atomic import atomic_path, read_json, sha256_of, write_json
from hf_select.data import columns
from hf_select.data.bad_rows import BadRow
from hf_select.data.conversation import Conversation, conversations
from hf_select.data.file_names import short_digest, slug
from hf_select.data.loading import commit_of
from hf_select.data.rows import Pool, pool_fingerprint, readable
from hf_select.generation.answer_filters import read_refusals, rejection_reason, without_reasoning
from hf_select.generation.generator import Answer, Generator, Messages, Request, seed_of
from hf_select.generation.requests import Item, with_records
from hf_select.jobs import journal
from hf_select.jobs.run_folder import claim_run_folder, exclusive_lock
from hf_select.models.sampling import Sampling
from hf_select.paper import Paper
from hf_select.validation import check_choices


# Conversations whose records share a file, which is read whole.
_PER_FILE = 500
_TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SCHEMA = pa.schema(
    [
        (columns.ROW_ID, pa.string()),
        ("prompt", _TURNS),
        ("completion", _TURNS),
        ("conversation", pa.string()),
        ("turn", pa.int32()),
        ("turns", pa.int32()),
        ("model", pa.string()),
        ("model_revision", pa.string()),
        ("history", pa.string()),
        ("reference", pa.string()),
        ("refused", pa.bool_()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("seconds", pa.float64()),
        ("tokens_per_second", pa.float64()),
        ("temperature", pa.float64()),
        ("top_p", pa.float64()),
        ("max_new_tokens", pa.int64()),
        ("seed", pa.int64()),
    ]
)


@dataclass
class Responses:
    """Replies of models to the user turns of a dataset.

    Args:
        model: a generator, or several.
        history: what a model sees before a turn: own_history, its own replies; reference_history, the dataset's.
        max_turns: only so many first turns of a conversation.
        temperature: of the replies.
        top_p: of the replies.
        max_new_tokens: of a reply; what is cut there is left out, unless `cut` keeps it.
        cut: replies that were cut at max_new_tokens: drop, or keep; a trainer should not learn that they end there.
        refusals: replies that decline: keep (column `refused`), or drop.
        refusals_file: further beginnings of replies that decline, one a line; the built-in ones are English.
        seed: of all draws.
    Raises: ValueError if a setting makes no sense, or two models have the same name.
    Reference: Feuer and Hegde 2025, arXiv:2501.18511.
    """

    model: Any
    history: Literal["own_history", "reference_history"] = "reference_history"
    max_turns: int | None = None
    temperature: float = 1.0  # no temperature is given in the authors' script: vLLM's default
    top_p: float = 1.0
    max_new_tokens: int = 2048
    cut: Literal["drop", "keep"] = "drop"
    refusals: Literal["keep", "drop"] = "keep"
    refusals_file: str | None = None
    seed: int = 0

    paper: ClassVar[Paper | None] = Paper(
        "2501.18511",
        "WILDCHAT-50M: A Deep Dive Into the Role of Synthetic Data in Post-Training",
        "Feuer, Benjamin",
        2025,
    )

    def __post_init__(self) -> None:
        check_choices(self)
        if self.max_turns is not None and self.max_turns < 1:
            raise ValueError(f"max_turns is {self.max_turns}; it must be at least 1.")
        names = [model.name for model in self.models()]
        if len(set(names)) < len(names):
            raise ValueError(f"models are {names}; each must have a name of its own.")
        self.sampling()  # its errors come now

    def models(self) -> list[Generator]:
        return self.model if isinstance(self.model, list) else [self.model]

    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, top_p=self.top_p, max_new_tokens=self.max_new_tokens)

    def run(
        self, dataset: Dataset, output_dir: str | Path, retry_failed: bool = False, source: str | None = None
    ) -> dict[str, Any]:
        """Ask for what is not there yet, write responses.parquet, and return the summary.

        Args:
            dataset: conversations in any layout; each is known by its `row_id`, or else by its number.
            retry_failed: ask again for what failed for good before: empty, cut, dropped as a refusal or too long.
            source: the dataset's Hub id or file, for the record; ID#SPLIT for a split other than train.
        Raises: ValueError if the folder holds another run, if somebody else is at work in it, or if a server is not
            there, refuses the key or does not know the model.
        """
        return _Run(self, dataset, Path(output_dir).expanduser(), retry_failed, source).run()

    def described(self) -> dict[str, Any]:
        """All settings but the models, for the record."""
        return {name: getattr(self, name) for name in (f.name for f in fields(self)) if name != "model"}

    def num_requests(self, dataset: Dataset) -> int:
        """Replies that a new run asks for, of all models together."""
        run = _Run(self, dataset, Path(), retry_failed=False, source=None)
        wanted = sum(run._wanted(row) for _, of_file in run._files(Path()) for _, row in of_file)
        return wanted * len(self.models())

    def shaping(self) -> dict[str, Any]:
        """The settings that all rows of a folder share."""
        free = ("model", "cut", "refusals", "refusals_file", "max_turns")
        return {name: getattr(self, name) for name in (f.name for f in fields(self)) if name not in free}


@dataclass(frozen=True)
class Turn:
    """A turn to be answered: its conversation, its number from 1, how many there are, and the dataset's reply."""

    conversation: str
    number: int
    of: int
    messages: Messages
    reference: str | None


def turns(conversation: str, row: Conversation, own: list[str] | None = None) -> Iterator[Turn]:
    """The turns of a conversation with what is seen before each.

    A turn is answered after its last user message. Turns whose history is not known yet are not given.

    Args:
        own: the model's own replies so far, in place of the dataset's.
    """
    messages: Messages = []
    said = [{"role": message["role"], "content": message["content"]} for message in row.messages]
    starts = [
        i
        for i, message in enumerate(said)
        if message["role"] == "user" and (i + 1 == len(said) or said[i + 1]["role"] == "assistant")
    ]
    begin = 0
    for number, place in enumerate(starts, 1):
        messages = [*messages, *said[begin : place + 1]]
        end = place + 1
        while end < len(said) and said[end]["role"] == "assistant":
            end += 1
        replies = said[place + 1 : end]
        yield Turn(conversation, number, len(starts), messages, replies[-1]["content"] if replies else None)
        if own is not None and number > len(own):
            return
        messages = [*messages, *(replies if own is None else [{"role": "assistant", "content": own[number - 1]}])]
        begin = end


class _Run:
    def __init__(self, settings: Responses, dataset: Dataset, folder: Path, retry_failed: bool, source: str | None):
        self.settings, self.folder, self.retry_failed = settings, folder, retry_failed
        self.source = {"name": source, "commit": commit_of(dataset), "rows": len(dataset)}
        self.dataset = Pool(dataset, _PER_FILE).dataset  # with a row_id that names each row once
        self.own = settings.history == "own_history"
        self.more_refusals = read_refusals(settings.refusals_file)
        self.bad: Counter[str] = Counter()

    def run(self) -> dict[str, Any]:
        pool = pool_fingerprint(readable(self.dataset))
        settings = {**self.settings.shaping(), "pool": pool}
        claim_run_folder(self.folder / "responses.json", {"settings": settings}, "responses")
        with exclusive_lock(self.folder):
            self._survey()
            for model in self.settings.models():
                self._answer(model)
                model.release()
            return self._write()

    # Asking.

    def _answer(self, model: Generator) -> None:
        place = self._place(model.name)
        place.mkdir(parents=True, exist_ok=True)
        if not (place / "model.json").exists():
            write_json(place / "model.json", {"name": model.name, "runs": []})
        # With its own history a model needs its reply to a turn before the next can be asked; else all at once.
        for number in range(1, self.longest + 1 if self.own else 2):
            self._ask(model, place, number if self.own else None)

    def _survey(self) -> None:
        """How many turns the longest conversation has, and what cannot be answered, and why."""
        self.bad.clear()
        rows = [self._wanted(row) for _, of_file in self._files(self.folder, self.bad) for _, row in of_file]
        if not rows:
            raise ValueError(f"no row of the dataset can be answered: {dict(self.bad.most_common())}.")
        self.longest, self.readable, self.wanted = max(rows), len(rows), sum(rows)

    def _ask(self, model: Generator, place: Path, number: int | None) -> None:
        """Ask for all turns of this number, or of any, that have no record yet."""
        done: Counter[str] = Counter()
        begin = time.perf_counter()

        def requests() -> Iterator[Request]:
            for path, of_file in self._files(place):
                for item, records in with_records(self._items(path, of_file, number)):
                    own = [record for record in records if not record.get("retryable")]
                    last = records[-1] if records else None
                    if last is None or last.get("retryable") or (self.retry_failed and self._dropped(last)):
                        seed = seed_of(self.settings.seed, model.name, item.key, len(own))
                        yield Request(item.messages(), replace(self.settings.sampling(), seed=seed), tag=(item, seed))
                    else:
                        bar.update()

        total = self.readable if self.own else self.wanted
        title = f"{model.name}, turn {number}" if self.own else model.name
        with tqdm(total=total, unit="reply", desc=title, disable=None) as bar:
            for request, answer in model.stream(requests()):
                item, seed = cast(Any, request.tag)
                journal.append(item.path, [self._record(item.key, seed, answer, model)])
                done.update(answers=1, read=answer.prompt_tokens, written=answer.completion_tokens)
                bar.update()
        if done["answers"]:
            known = cast(dict, read_json(place / "model.json"))
            known["runs"].append({**done, "seconds": time.perf_counter() - begin})
            write_json(place / "model.json", known)

    def _record(self, key: str, seed: int, answer: Answer, model: Generator) -> dict[str, Any]:
        text = without_reasoning(answer.text).strip()
        found = {
            "key": key,
            "text": text,
            "error": answer.error or rejection_reason(replace(answer, text=text), self.more_refusals),
            **{name: getattr(answer, name) for name in ("finish_reason", "prompt_tokens", "completion_tokens")},
            "seconds": answer.seconds,
            "seed": seed,
            "revision": model.revision,
        }
        return {**found, "retryable": True} if answer.retryable else found

    def _items(self, path: Path, of_file: list[tuple[str, Conversation]], number: int | None) -> Iterator[Item]:
        known = journal.records(journal.read_lines(path))
        for name, row in of_file:
            for turn in self._turns(name, row, known):
                if number in (None, turn.number):
                    yield Item(path, key_of(turn), partial(_seen, turn))

    def _turns(self, name: str, row: Conversation, known: dict[str, list[Any]] | None) -> Iterator[Turn]:
        """The turns of a conversation as far as their histories are known, which of a model's own replies are only
        those that will be kept.

        Args:
            known: records by key; none: the dataset's replies.
        """
        own: list[str] | None = [] if self.own and known is not None else None
        for turn in turns(name, row, own):
            if self.settings.max_turns is not None and turn.number > self.settings.max_turns:
                return
            yield turn
            if own is not None:
                record = cast(dict, known).get(key_of(turn), [None])[-1]
                if record is None or self._dropped(record):
                    return
                own.append(record["text"])

    def _dropped(self, record: dict[str, Any]) -> str:
        """Why a reply is not kept, if it is not."""
        kept = {"cut off at max_new_tokens": self.settings.cut, "refused": self.settings.refusals}
        error = record["error"]
        return "" if kept.get(error) == "keep" and record["text"] else error

    def _place(self, name: str) -> Path:
        return self.folder / "answers" / f"{slug(name, 50) or 'x'}-{short_digest(name)}"

    def _files(
        self, place: Path, bad: Counter[str] | None = None
    ) -> Iterator[tuple[Path, list[tuple[str, Conversation]]]]:
        """Journals with their conversations, without rows that cannot be answered."""
        rows = self.dataset.select_columns([*readable(self.dataset).column_names, columns.ROW_ID])
        for number, start in enumerate(range(0, len(rows), _PER_FILE)):
            batch = cast(dict, rows[start : start + _PER_FILE])
            ids, found = [str(row_id) for row_id in batch.pop(columns.ROW_ID)], []
            for name, row in zip(ids, conversations(batch), strict=True):
                reason = _unanswerable(row)
                if not reason:
                    found.append((name, row))
                elif bad is not None:
                    bad[reason] += 1
            yield place / f"{number:05d}.jsonl", found

    # Writing.

    def _write(self) -> dict[str, Any]:
        """responses.parquet and removed.jsonl of all models of the folder, a file of records at a time."""
        summary: dict[str, Any] = {"rows": 0, "models": {}}
        places = sorted(self.folder.glob("answers/*/model.json"))
        with atomic_path(self.folder / "responses.parquet") as parquet:
            with atomic_path(self.folder / "removed.jsonl") as other, other.open("w", encoding="utf-8") as out:
                with pq.ParquetWriter(parquet, SCHEMA) as writer:
                    for path in places:
                        known = cast(dict, read_json(path))
                        summary["models"][known["name"]] = self._write_model(path.parent, known, writer, out)
        summary["rows"] = sum(model["rows"] for model in summary["models"].values())
        summary["conversations"] = self.readable
        summary["unreadable"] = dict(self.bad.most_common())
        summary["sha256"] = sha256_of(self.folder / "responses.parquet")
        summary |= {"hf_select": __version__, "source": self.source, "settings": self.settings.described()}
        summary["paper"] = None if self.settings.paper is None else asdict(self.settings.paper)
        write_json(self.folder / "summary.json", summary)
        return summary

    def _write_model(self, place: Path, known: dict[str, Any], writer: Any, out: Any) -> dict[str, Any]:
        removed: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        tokens: Counter[str] = Counter()
        revisions: set[str] = set()
        count = refused = 0
        for path, of_file in self._files(place):
            records, rows = journal.records(journal.read_lines(path)), []
            for name, row in of_file:
                asked = list(self._turns(name, row, records))
                for turn in asked:
                    record = records.get(key_of(turn), [None])[-1]
                    reason = "never asked for" if record is None else self._dropped(record)
                    if reason:
                        removed[reason] += 1
                        line = {"reason": reason, "conversation": name, "turn": turn.number, "model": known["name"]}
                        out.write(json.dumps({**line, "record": record}, ensure_ascii=False) + "\n")
                    else:
                        rows.append(self._row(turn, known["name"], cast(dict, record)))
                for number in range(len(asked) + 1, self._wanted(row) + 1):
                    reason = "an earlier turn has no reply that is kept"
                    removed[reason] += 1
                    line = {"reason": reason, "conversation": name, "turn": number, "model": known["name"]}
                    out.write(json.dumps(line, ensure_ascii=False) + "\n")
            for row in rows:
                reasons[row["finish_reason"]] += 1
                tokens.update(read=row["prompt_tokens"], written=row["completion_tokens"])
                refused += row["refused"]
                revisions.update(filter(None, [row["model_revision"]]))
            count += len(rows)
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
        total = Counter()
        for run in known["runs"]:
            total.update(run)
        seconds = total["seconds"]
        return {
            "rows": count,
            "revisions": sorted(revisions),
            "removed": dict(removed.most_common()),
            "refused": refused,
            "finish_reasons": dict(reasons.most_common()),
            "prompt_tokens": tokens["read"],
            "completion_tokens": tokens["written"],
            "throughput": {  # of all that was asked in whole runs, replies that are not kept included
                "seconds": seconds,
                "tokens_read_per_second": total["read"] / seconds if seconds else None,
                "tokens_written_per_second": total["written"] / seconds if seconds else None,
            },
        }

    def _wanted(self, row: Conversation) -> int:
        return sum(1 for _ in self._turns("", row, None))

    def _row(self, turn: Turn, model: str, record: dict[str, Any]) -> dict[str, Any]:
        written, seconds = record["completion_tokens"], record["seconds"]
        return {
            columns.ROW_ID: f"{turn.conversation}/{turn.number}/{model}",
            "prompt": turn.messages,
            "completion": [{"role": "assistant", "content": record["text"]}],
            "conversation": turn.conversation,
            "turn": turn.number,
            "turns": turn.of,
            "model": model,
            "model_revision": record["revision"],
            "history": self.settings.history,
            "reference": turn.reference,
            "refused": record["error"] == "refused",
            "finish_reason": record["finish_reason"],
            "prompt_tokens": record["prompt_tokens"],
            "completion_tokens": written,
            "seconds": seconds,
            "tokens_per_second": written / seconds if written and seconds else None,
            **self.settings.sampling().settings(),
            "seed": record["seed"],
        }


def _seen(turn: Turn) -> Messages:
    return turn.messages


def _unanswerable(row: Conversation | BadRow) -> str:
    """Why the turns of a row cannot be answered; "" if they can."""
    if isinstance(row, BadRow):
        return str(row)
    if row.text is not None:
        return "raw text has no turns"
    if row.tools or any(message["role"] == "tool" or message.get("tool_calls") for message in row.messages):
        return "it calls tools"
    return "" if any(message["role"] == "user" for message in row.messages) else "it has no user turn"


def key_of(turn: Turn) -> str:
    """Of a reply: its conversation, its turn, and a digest of all that was seen."""
    seen = json.dumps(turn.messages, ensure_ascii=False, sort_keys=True)
    return f"{turn.conversation}/{turn.number}/{hashlib.sha256(seen.encode()).hexdigest()[:16]}"
