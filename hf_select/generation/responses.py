"""Prompts answered again by one model or several (as WildChat-50M: Feuer and Hegde 2025, arXiv:2501.18511).

Every user turn of a conversation is answered by every model. The `history` is what the model sees before the turn:

reference_history   the conversation of the dataset, including the replies of its original model
own_history         the model's own replies. The user's later turns answered other replies and may not fit: keep only
                    the first turn with `max_turns=1`, or filter by the column `turn`
In WildChat-50M replies were generated with one history and stored with the other. Here the prompt of a row holds the
messages that its reply was generated from.

output_dir/
  responses.json            settings and dataset; a run with others is rejected
  answers/MODEL/00000.jsonl records of 500 conversations each
  answers/MODEL/model.json  the model's name, and the duration of its runs
  responses.parquet         a row for each (conversation, turn, model)
  removed.jsonl             turns without a row, with reasons
  summary.json              counts and throughput by model

The key of a record holds the conversation, the turn and a digest of the messages that the model saw. So conversations
with the same prompt have separate replies, no request is repeated, and a reply is never stored with a history that has
changed since. The seed is made of the key. Further models may be added to the folder at any time.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TextIO, cast

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from tqdm.auto import tqdm

from hf_select._version import __version__
from hf_select.atomic import atomic_path, read_json, sha256_of, write_json
from hf_select.data import columns
from hf_select.data.conversation import Conversation, conversations
from hf_select.data.file_names import short_digest, slug
from hf_select.data.loading import commit_of
from hf_select.data.rows import Pool, pool_fingerprint, readable
from hf_select.generation.answer_filters import read_refusals, rejection_reason, without_reasoning
from hf_select.generation.generator import Answer, Generator, Request, check_generator, seed_of
from hf_select.generation.requests import Item, with_records
from hf_select.generation.responses_summary import ModelCounts, ModelSummary, ResponsesSummary
from hf_select.generation.turns import Turn, turns, unanswerable_reason
from hf_select.jobs import journal
from hf_select.jobs.journal import Line
from hf_select.jobs.run_folder import claim_run_folder, exclusive_lock
from hf_select.models.sampling import Sampling
from hf_select.paper import Paper
from hf_select.validation import check_choices


# Conversations per file of records; a file is read as a whole.
_PER_FILE = 500
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
RESPONSES_SCHEMA = pa.schema(
    [
        (columns.ROW_ID, pa.string()),
        ("prompt", _MESSAGES),
        ("completion", _MESSAGES),
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
        max_turns: most turns of a conversation, from its first.
        temperature: sampling temperature of the replies.
        top_p: nucleus probability of the replies.
        max_new_tokens: most tokens of a reply.
        cut: whether to drop or keep replies that were cut at max_new_tokens; a model trained on them learns to stop
            there.
        refusals: whether to keep (column `refused`) or drop replies that decline.
        refusals_file: file with further beginnings of refusals, one per line; the built-in ones are English.
        seed: of all requests.
    Raises: ValueError if a setting is invalid, or two models have the same name.
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
        for model in self.models():
            check_generator(model, "model")
        names = [model.name for model in self.models()]
        if len(set(names)) < len(names):
            raise ValueError(f"models are {names}; each must have a name of its own.")
        self.sampling()  # raises if invalid

    def models(self) -> list[Generator]:
        """The generators, as a list."""
        return self.model if isinstance(self.model, list) else [self.model]

    def sampling(self) -> Sampling:
        """The sampling of replies, without the seed that each request has."""
        return Sampling(temperature=self.temperature, top_p=self.top_p, max_new_tokens=self.max_new_tokens)

    def run(
        self, dataset: Dataset, output_dir: str | Path, retry_failed: bool = False, source: str | None = None
    ) -> ResponsesSummary:
        """Request the replies that the folder does not have yet, write responses.parquet, and return the summary.

        Args:
            dataset: conversations in any layout, identified by `row_id`, or else by their position.
            retry_failed: request again what failed permanently: empty, cut, dropped as a refusal or too long.
            source: the dataset's Hub id or file, for the summary; ID#SPLIT for a split other than train.
        Raises: ValueError if the folder belongs to another run or is in use by another process, or if a server is not
            there, refuses the key or does not know the model.
        """
        return _Run(self, dataset, Path(output_dir).expanduser(), retry_failed, source).run()

    def recorded_settings(self) -> dict[str, Any]:
        """All settings except the models, for the summary."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "model"}

    def num_requests(self, dataset: Dataset) -> int:
        """Number of requests of a run in a new folder, of all models together."""
        run = _Run(self, dataset, Path(), retry_failed=False, source=None)
        per_model = sum(run.num_turns(row) for _, rows in run.files(Path()) for _, row in rows)
        return per_model * len(self.models())

    def content_settings(self) -> dict[str, Any]:
        """The settings that all rows of a folder share."""
        free = ("model", "cut", "refusals", "refusals_file", "max_turns")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in free}


class _Run:
    """One run of Responses in its folder."""

    def __init__(self, settings: Responses, dataset: Dataset, folder: Path, retry_failed: bool, source: str | None):
        self.settings, self.folder, self.retry_failed = settings, folder, retry_failed
        self.source = {"name": source, "commit": commit_of(dataset), "rows": len(dataset)}
        self.dataset = Pool(dataset, _PER_FILE).dataset  # with a unique row_id
        self.own = settings.history == "own_history"
        self.more_refusals = read_refusals(settings.refusals_file)
        self.unreadable: Counter[str] = Counter()

    def run(self) -> ResponsesSummary:
        pool = pool_fingerprint(readable(self.dataset))
        settings = {**self.settings.content_settings(), "pool": pool}
        claim_run_folder(self.folder / "responses.json", {"settings": settings}, "responses")
        with exclusive_lock(self.folder):
            self._count_turns()
            for model in self.settings.models():
                self._answer(model)
                model.release()
            return self._write()

    def _count_turns(self) -> None:
        """Count turns and conversations, and the rows that cannot be answered."""
        self.unreadable.clear()
        counts = [self.num_turns(row) for _, rows in self.files(self.folder, self.unreadable) for _, row in rows]
        if not counts:
            raise ValueError(f"no row of the dataset can be answered: {dict(self.unreadable.most_common())}.")
        self.most_turns, self.num_conversations, self.total_turns = max(counts), len(counts), sum(counts)

    def num_turns(self, row: Conversation) -> int:
        """Turns of a conversation that are to be answered."""
        return sum(1 for _ in self._turns("", row, None))

    def files(
        self, folder: Path, unreadable: Counter[str] | None = None
    ) -> Iterator[tuple[Path, list[tuple[str, Conversation]]]]:
        """The journals of a model's folder, each with its conversations and their ids.

        Args:
            unreadable: counts rows that cannot be answered, by reason.
        """
        dataset = self.dataset.select_columns([*readable(self.dataset).column_names, columns.ROW_ID])
        for number, start in enumerate(range(0, len(dataset), _PER_FILE)):
            batch = cast(dict, dataset[start : start + _PER_FILE])
            ids = [str(row_id) for row_id in batch.pop(columns.ROW_ID)]
            rows: list[tuple[str, Conversation]] = []
            for row_id, row in zip(ids, conversations(batch), strict=True):
                reason = unanswerable_reason(row)
                if not reason:
                    rows.append((row_id, cast(Conversation, row)))
                elif unreadable is not None:
                    unreadable[reason] += 1
            yield folder / f"{number:05d}.jsonl", rows

    def _turns(self, row_id: str, row: Conversation, records: Mapping[str, list[Line]] | None) -> Iterator[Turn]:
        """The turns of a conversation whose histories are known. A model's own history ends at the first reply that is
        missing or dropped.

        Args:
            records: of the model; None: the dataset's replies make the history.
        """
        own: list[str] | None = [] if self.own and records is not None else None
        for turn in turns(row_id, row, own):
            if self.settings.max_turns is not None and turn.number > self.settings.max_turns:
                return
            yield turn
            if own is not None and records is not None:
                record = records.get(turn.key, [None])[-1]
                if record is None or self._drop_reason(record):
                    return
                own.append(record["text"])

    def _drop_reason(self, record: Line) -> str:
        """Why a reply is dropped; "" if it is kept."""
        policy = {"cut off at max_new_tokens": self.settings.cut, "refused": self.settings.refusals}
        error = record["error"]
        return "" if policy.get(error) == "keep" and record["text"] else error

    # Requests.

    def _answer(self, model: Generator) -> None:
        folder = self.folder / "answers" / f"{slug(model.name, 50) or 'x'}-{short_digest(model.name)}"
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "model.json").exists():
            write_json(folder / "model.json", {"name": model.name, "runs": []})
        if not self.own:
            self._request(model, folder, None)
            return
        for number in range(1, self.most_turns + 1):  # a turn needs the model's replies to the turns before it
            self._request(model, folder, number)

    def _request(self, model: Generator, folder: Path, number: int | None) -> None:
        """Request the replies without a record: to the turns of this number, or to all."""
        done: Counter[str] = Counter()
        begin = time.perf_counter()

        def requests() -> Iterator[Request]:
            for path, rows in self.files(folder):
                for item, records in with_records(self._items(path, rows, number)):
                    attempts = sum(not record.get("retryable") for record in records)
                    last = records[-1] if records else None
                    if last is None or last.get("retryable") or (self.retry_failed and self._drop_reason(last)):
                        seed = seed_of(self.settings.seed, model.name, item.key, attempts)
                        yield Request(item.messages(), replace(self.settings.sampling(), seed=seed), tag=(item, seed))
                    else:
                        progress.update()

        total = self.num_conversations if self.own else self.total_turns
        title = f"{model.name}, turn {number}" if self.own else model.name
        with tqdm(total=total, unit="reply", desc=title, disable=None) as progress:
            for request, answer in model.stream(requests()):
                item, seed = cast(tuple[Item, int], request.tag)
                journal.append(item.path, [self._record(item.key, seed, answer, model)])
                done.update(answers=1, read=answer.prompt_tokens, written=answer.completion_tokens)
                progress.update()
        if done["answers"]:
            record = cast(dict, read_json(folder / "model.json"))
            record["runs"].append({**done, "seconds": time.perf_counter() - begin})
            write_json(folder / "model.json", record)

    def _items(self, path: Path, rows: list[tuple[str, Conversation]], number: int | None) -> Iterator[Item]:
        records = journal.records(journal.read_lines(path))
        for row_id, row in rows:
            for turn in self._turns(row_id, row, records):
                if number in (None, turn.number):
                    yield Item(path, turn.key, lambda turn=turn: turn.messages)

    def _record(self, key: str, seed: int, answer: Answer, model: Generator) -> Line:
        text = without_reasoning(answer.text).strip()
        record = {
            "key": key,
            "text": text,
            "error": answer.error or rejection_reason(replace(answer, text=text), self.more_refusals),
            "finish_reason": answer.finish_reason,
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "seconds": answer.seconds,
            "seed": seed,
            "revision": model.revision,
        }
        return {**record, "retryable": True} if answer.retryable else record

    # Results.

    def _write(self) -> ResponsesSummary:
        """Write responses.parquet and removed.jsonl of all models in the folder, and summary.json."""
        models: dict[str, ModelSummary] = {}
        with atomic_path(self.folder / "responses.parquet") as parquet:
            with atomic_path(self.folder / "removed.jsonl") as other, other.open("w", encoding="utf-8") as out:
                with pq.ParquetWriter(parquet, RESPONSES_SCHEMA) as writer:
                    for path in sorted(self.folder.glob("answers/*/model.json")):
                        model = cast(dict, read_json(path))
                        counts = self._write_model(path.parent, model["name"], writer, out)
                        models[model["name"]] = counts.summary(model["runs"])
        rows = sum(model.rows for model in models.values())
        unreadable = dict(self.unreadable.most_common())
        summary = ResponsesSummary(rows, models, self.num_conversations, unreadable)
        provenance = {
            "sha256": sha256_of(self.folder / "responses.parquet"),
            "hf_select": __version__,
            "source": self.source,
            "settings": self.settings.recorded_settings(),
            "paper": None if self.settings.paper is None else asdict(self.settings.paper),
        }
        write_json(self.folder / "summary.json", {**summary.to_dict(), **provenance})
        return summary

    def _write_model(self, folder: Path, model: str, writer: pq.ParquetWriter, out: TextIO) -> ModelCounts:
        """Write the rows of a model, one journal at a time."""
        counts = ModelCounts()

        def leave_out(row_id: str, number: int, reason: str, **more: object) -> None:
            counts.removed[reason] += 1
            line = {"reason": reason, "conversation": row_id, "turn": number, "model": model, **more}
            out.write(json.dumps(line, ensure_ascii=False) + "\n")

        for path, conversation_rows in self.files(folder):
            records, rows = journal.records(journal.read_lines(path)), []
            for row_id, conversation in conversation_rows:
                reached = list(self._turns(row_id, conversation, records))
                for turn in reached:
                    record = records.get(turn.key, [None])[-1]
                    reason = "never asked for" if record is None else self._drop_reason(record)
                    if reason or record is None:
                        leave_out(row_id, turn.number, reason, record=record)
                    else:
                        rows.append(self._row(turn, model, record))
                for number in range(len(reached) + 1, self.num_turns(conversation) + 1):
                    leave_out(row_id, number, "an earlier turn has no reply that is kept")
            for row in rows:
                counts.add(row)
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, RESPONSES_SCHEMA))
        return counts

    def _row(self, turn: Turn, model: str, record: Line) -> dict[str, Any]:
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
