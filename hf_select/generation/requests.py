"""Asking for what is not there yet, and keeping whatever comes: a record of each request in the file of its stage."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from tqdm.auto import tqdm

from hf_select.generation.answer_filters import unusable, without_reasoning
from hf_select.generation.generator import Answer, Generator, Messages, Request, seed_of
from hf_select.generation.glan import parse, prompts
from hf_select.jobs import journal
from hf_select.models.sampling import Sampling


@dataclass(frozen=True)
class Item:
    """Something to be asked for: the file of its record, its key there, and the conversation."""

    path: Path
    key: str
    messages: Callable[[], Messages]


@dataclass(frozen=True)
class Asking:
    """How things are asked for in a folder.

    Args:
        seed: each request's own is made of this one, its stage, file and key.
        retry_failed: ask again for what failed for good before.
        more_refusals: beginnings of answers that decline, besides the built-in ones.
    """

    folder: Path
    seed: int
    retry_failed: bool
    more_refusals: list[str]

    def __call__(
        self,
        stage: str,
        generator: Generator,
        sampling: Sampling,
        items: Iterable[Item],
        total: int,
        schema: dict[str, Any] | None = None,
        read: "Callable[[Item, str], tuple[dict[str, Any], list[dict[str, Any]]]] | None" = None,
    ) -> None:
        """Ask for what has no record yet, then once more, with the reason, for what could not be read.

        Args:
            total: how many items there are at most, for the bar.
            read: what a record and its nodes hold beyond the text, or Unparsed.
        """
        unread: list[Item] = []  # what could not be read is rare; else it would be looked for in the files again

        def first_turns() -> Iterator[Request]:
            for item, records in with_records(items):
                own = [record for record in records if not record.get("lost") and not record.get("repaired")]
                last = records[-1] if records else None
                if last is not None and last.get("unread") and not last.get("repaired") and not self.retry_failed:
                    unread.append(item)
                if last is not None and not last.get("lost") and not (last.get("error") and self.retry_failed):
                    bar.update()
                    continue
                seed = seed_of(self.seed, stage, str(item.path.relative_to(self.folder)), item.key, len(own))
                yield Request(item.messages(), replace(sampling, seed=seed), schema, tag=(item, seed))

        def second_turns() -> Iterator[Request]:
            for item in unread:
                last = journal.records(journal.read_lines(item.path))[item.key][-1]
                messages = prompts.repair(item.messages(), last["text"], last["error"])
                seed = seed_of(last["seed"], "repair")
                yield Request(messages, replace(sampling, seed=seed), schema, tag=(item, seed))

        with tqdm(total=total, unit="request", desc=stage, disable=None) as bar:
            for request, answer in generator.stream(first_turns()):
                item, seed = cast(Any, request.tag)
                record = self._record(item, seed, answer, read)
                if record[-1].get("unread"):
                    unread.append(item)
                journal.append(item.path, record)
                bar.update()
        if unread:
            for request, answer in generator.stream(second_turns()):
                item, seed = cast(Any, request.tag)
                if answer.lost:  # what is known of it stays as it was, and a later run asks again
                    continue
                *nodes, record = self._record(item, seed, answer, read)
                journal.append(item.path, [*nodes, {**record, "repaired": True}])

    def _record(self, item: Item, seed: int, answer: Answer, read: Any) -> list[dict[str, Any]]:
        """The lines that an answer becomes: its nodes, and last its record."""
        answer = replace(answer, text=without_reasoning(answer.text))
        record: dict[str, Any] = {
            "key": item.key,
            "text": answer.text,
            "error": answer.error or unusable(answer, self.more_refusals),
            "finish_reason": answer.finish_reason,
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "seed": seed,
        }
        if answer.lost:
            return [{**record, "lost": True}]
        if read is None or answer.error:
            return [record]
        if record["error"]:  # cut off, say: the same turn again may do
            return [{**record, "unread": True}]
        try:
            more, nodes = read(item, answer.text)
        except parse.Unparsed as reason:
            return [{**record, "error": str(reason), "unread": True}]
        # The text says no more than what was read from it.
        return [*nodes, {**record, "text": "", **more}]


def with_records(items: Iterable[Item]) -> Iterator[tuple[Item, list[dict[str, Any]]]]:
    """Each item with the records of its key; a file is read once for all its items, which stand together."""
    path, found = None, {}
    for item in items:
        if item.path != path:
            path, found = item.path, journal.records(journal.read_lines(item.path))
        yield item, found.get(item.key, [])
