"""The stages of a GLAN run: taxonomy, subjects, syllabi, questions and the requests for them."""

import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

from hf_select.atomic import atomic_path
from hf_select.generation.answer_filters import read_refusals
from hf_select.generation.generator import Generator, Messages
from hf_select.generation.glan import parse, prompts
from hf_select.generation.glan.settings import GLANSettings
from hf_select.generation.glan.taxonomy import DEFAULT, Discipline
from hf_select.generation.glan.tree import Asked, Subject, Tree
from hf_select.generation.requests import Item, RequestStage
from hf_select.jobs import journal


class GLANRun:
    """One run of GLAN in its folder."""

    def __init__(self, settings: GLANSettings, folder: Path, retry_failed: bool = False):
        self.settings, self.folder = settings, folder
        self.model: Generator = settings.model
        self.answer_model: Generator = settings.answer_model or settings.model
        self.writing = (self.model, settings.sampling())
        self.answering = (self.answer_model, settings.answer_sampling())
        self.tree = Tree(settings, folder)
        stage = RequestStage(folder, settings.seed, retry_failed, read_refusals(settings.refusals))
        self.request_all = stage.request_all

    def make_taxonomy(self) -> None:
        path = self.folder / "taxonomy.yaml"
        if path.exists() or self.settings.taxonomy not in ("default", "generate"):
            return
        text = DEFAULT.read_text(encoding="utf-8") if self.settings.taxonomy == "default" else self._generated()
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def _generated(self) -> str:
        """A taxonomy asked of the model, level by level."""
        import yaml

        path, language = self.folder / "taxonomy.jsonl", self.settings.language
        tree: dict[str, Any] = {}
        above: list[tuple[str, ...]] = [()]
        for kind in ("fields", "sub-fields", "disciplines"):
            turns = [
                partial(prompts.parts, names, kind, language) if names else partial(prompts.fields, language)
                for names in above
            ]
            keys = [json.dumps(names, ensure_ascii=False) for names in above]
            items = [Item(path, key, turn) for key, turn in zip(keys, turns, strict=True)]
            self.request_all("taxonomy", *self.writing, items, len(items), prompts.NAMES_SCHEMA, _names_nodes)
            found = journal.records(journal.read_lines(path))
            failed = [error for item in items if (error := found[item.key][-1].get("error"))]
            if failed:
                raise ValueError(
                    f"{len(failed)} of {len(items)} requests for {kind} of the taxonomy failed ({failed[0]}). Ask "
                    "again with retry_failed (--retry-failed), or give a taxonomy file."
                )
            named = [found[item.key][-1]["names"] for item in items]
            below = [(*names, name) for names, new in zip(above, named, strict=True) for name in new]
            above = [names for names in below if names[-1] not in names[:-1]]
        for names in above:
            tree.setdefault(names[0], {}).setdefault(names[1], []).append(names[2])
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)

    def make_subjects(self) -> None:
        settings, disciplines = self.settings, self.tree.disciplines()
        queries = [str(number) for number in range(settings.queries_per_discipline)]

        def asked(discipline: Discipline) -> Messages:
            return prompts.subject_list(discipline, settings.subjects_per_query, settings.level, settings.language)

        lists = (
            Item(self.tree.file("lists", discipline), query, partial(asked, discipline))
            for discipline in disciplines
            for query in queries
        )
        total = len(disciplines) * len(queries)
        self.request_all("lists", *self.writing, lists, total)

        def extractions() -> Iterator[Item]:
            for discipline in disciplines:
                found = self._texts(self.tree.file("lists", discipline))
                for query in queries:
                    if query in found:
                        turns = partial(prompts.subjects_from, asked(discipline), found[query])
                        yield Item(self.tree.file("subjects", discipline), query, turns)

        self.request_all("subjects", *self.writing, extractions(), total, prompts.SUBJECTS_SCHEMA, _subject_nodes)

    def make_syllabi(self) -> None:
        disciplines, settings = self.tree.disciplines(), self.settings
        total = sum(len(self.tree.subjects(discipline)) for discipline in disciplines)

        def asked(subject: Subject) -> Messages:
            sessions = (settings.min_sessions, settings.max_sessions)
            return prompts.syllabus_text(subject.discipline, subject.node, sessions, settings.language)

        def outlines() -> Iterator[Item]:
            for discipline in disciplines:
                for subject in self.tree.subjects(discipline):
                    yield Item(self.tree.file("outlines", discipline), subject.key, partial(asked, subject))

        def extractions() -> Iterator[Item]:
            for discipline in disciplines:
                found = self._texts(self.tree.file("outlines", discipline))
                for subject in self.tree.subjects(discipline):
                    if subject.key in found:
                        turns = partial(prompts.syllabus_from, asked(subject), found[subject.key])
                        yield Item(self.tree.file("syllabi", discipline), subject.key, turns)

        self.request_all("outlines", *self.writing, outlines(), total)
        self.request_all("syllabi", *self.writing, extractions(), total, prompts.SYLLABUS_SCHEMA, _syllabus_node)

    def make_questions(self) -> None:
        def items() -> Iterator[Item]:
            for questions in self.tree.all_questions():
                for asked in questions:
                    path = self.tree.file("questions", asked.subject.discipline, asked.subject)
                    yield Item(path, asked.key, partial(self._question, asked))

        total = self.settings.questions_per_subject * sum(
            subject.key in syllabi
            for discipline in self.tree.disciplines()
            for syllabi in [self.tree.syllabi(discipline)]
            for subject in self.tree.subjects(discipline)
        )
        self.request_all("questions", *self.writing, items(), total)

    def _question(self, asked: Asked) -> Messages:
        draw, language = asked.draw, self.settings.language
        return prompts.question(asked.subject.node, asked.syllabus, draw.sessions, draw.concepts, language)

    def make_answers(self, wanted: Iterable[Asked], total: int) -> None:
        items = (
            Item(
                self.tree.file("answers", asked.subject.discipline, asked.subject),
                asked.answer_key,
                partial(prompts.answer, cast(str, asked.text)),
            )
            for asked in wanted
        )
        self.request_all("answers", *self.answering, items, total)

    def _texts(self, path: Path) -> dict[str, str]:
        """The texts of a stage by key, without what failed."""
        found = journal.records(journal.read_lines(path))
        return {key: records[-1]["text"] for key, records in found.items() if not records[-1].get("error")}


def _names_nodes(item: Item, text: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return {"names": parse.names(text)}, []


def _subject_nodes(item: Item, text: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    nodes = [
        {"id": f"{item.key}.{number}", "of": item.key, **found} for number, found in enumerate(parse.subjects(text))
    ]
    return {}, nodes


def _syllabus_node(item: Item, text: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return parse.syllabus(text), []
