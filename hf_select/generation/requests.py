"""Requests for the missing records of a folder: each request's outcome is appended to the journal of its stage."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from tqdm.auto import tqdm

from hf_select.data.chat_template import Messages
from hf_select.generation.answer_filters import rejection_reason, without_reasoning
from hf_select.generation.generator import Answer, Generator, Request, seed_of
from hf_select.generation.json_answers import Unparsed, repair_messages
from hf_select.jobs import journal
from hf_select.jobs.journal import Line
from hf_select.models.sampling import Sampling


@dataclass(frozen=True)
class Item:
    """A record to request: its journal, its key there, and the conversation to send."""

    path: Path
    key: str
    messages: Callable[[], Messages]


# Item and text -> fields of the record, and the nodes that the text describes. Raises Unparsed.
Parser = Callable[[Item, str], tuple[Line, list[Line]]]


@dataclass(frozen=True)
class RequestStage:
    """Requests the records of a stage that its folder does not have yet.

    Args:
        seed: the seed of each request is made of this one, the stage, the journal and the key.
        retry_failed: request again what failed permanently.
        more_refusals: beginnings of answers that decline, in addition to the built-in ones.
    """

    folder: Path
    seed: int
    retry_failed: bool
    more_refusals: list[str]

    def request_all(
        self,
        stage: str,
        generator: Generator,
        sampling: Sampling,
        items: Iterable[Item],
        total: int,
        schema: Mapping[str, object] | None = None,
        parse_text: Parser | None = None,
    ) -> None:
        """Request every item without a record. Answers that cannot be parsed are requested once more, with the reason.

        Args:
            total: most items there can be, for the progress bar.
            parse_text: parses an answer's text; by default the record keeps the text.
        """
        to_repair: list[Item] = []  # few items; collecting them here avoids reading all files again

        def first_requests() -> Iterator[Request]:
            for item, records in with_records(items):
                final = [record for record in records if not record.get("retryable") and not record.get("repaired")]
                last = records[-1] if records else None
                if last is not None and last.get("unparsed") and not last.get("repaired") and not self.retry_failed:
                    to_repair.append(item)
                if last is not None and not last.get("retryable") and not (last.get("error") and self.retry_failed):
                    progress.update()
                    continue
                seed = seed_of(self.seed, stage, str(item.path.relative_to(self.folder)), item.key, len(final))
                yield Request(item.messages(), replace(sampling, seed=seed), schema, tag=(item, seed))

        def repair_requests() -> Iterator[Request]:
            for item in to_repair:
                last = journal.records(journal.read_lines(item.path))[item.key][-1]
                messages = repair_messages(item.messages(), last["text"], last["error"])
                seed = seed_of(last["seed"], "repair")
                yield Request(messages, replace(sampling, seed=seed), schema, tag=(item, seed))

        with tqdm(total=total, unit="request", desc=stage, disable=None) as progress:
            for request, answer in generator.stream(first_requests()):
                item, seed = cast(tuple[Item, int], request.tag)
                lines = self._lines(item, seed, answer, parse_text)
                if lines[-1].get("unparsed"):
                    to_repair.append(item)
                journal.append(item.path, lines)
                progress.update()
        if to_repair:
            for request, answer in generator.stream(repair_requests()):
                item, seed = cast(tuple[Item, int], request.tag)
                if answer.retryable:  # keep the record as it is; a later run requests the repair again
                    continue
                *nodes, record = self._lines(item, seed, answer, parse_text)
                journal.append(item.path, [*nodes, {**record, "repaired": True}])

    def _lines(self, item: Item, seed: int, answer: Answer, parse_text: Parser | None) -> list[Line]:
        """The journal lines of an answer: its nodes, then its record."""
        answer = replace(answer, text=without_reasoning(answer.text))
        record: Line = {
            "key": item.key,
            "text": answer.text,
            "error": answer.error or rejection_reason(answer, self.more_refusals),
            "finish_reason": answer.finish_reason,
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "seed": seed,
        }
        if answer.retryable:
            return [{**record, "retryable": True}]
        if parse_text is None or answer.error:
            return [record]
        if record["error"]:  # e.g. cut off: the same request again may succeed
            return [{**record, "unparsed": True}]
        try:
            fields, nodes = parse_text(item, answer.text)
        except Unparsed as reason:
            return [{**record, "error": str(reason), "unparsed": True}]
        # The text is dropped: the parsed fields and nodes hold all of it.
        return [*nodes, {**record, "text": "", **fields}]


def with_records(items: Iterable[Item]) -> Iterator[tuple[Item, list[Line]]]:
    """Each item with the records of its key. A file is read once for all consecutive items of it."""
    path, records = None, {}
    for item in items:
        if item.path != path:
            path, records = item.path, journal.records(journal.read_lines(item.path))
        yield item, records.get(item.key, [])
