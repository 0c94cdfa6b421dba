"""The stages of a GLAN run: taxonomy, subjects, syllabi, questions, answers, and the requests of each."""

import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import cast

from hf_select.atomic import atomic_path
from hf_select.data.chat_template import Messages
from hf_select.generation.answer_filters import read_refusals
from hf_select.generation.generator import Generator
from hf_select.generation.glan import parse, prompts
from hf_select.generation.glan.settings import GLANSettings
from hf_select.generation.glan.taxonomy import DEFAULT, Discipline
from hf_select.generation.glan.tree import Question, Subject, Tree
from hf_select.generation.requests import Item, RequestStage
from hf_select.jobs import journal
from hf_select.jobs.journal import Line


class GLANRun:
    """One run of GLAN in its folder."""

    def __init__(self, settings: GLANSettings, folder: Path, retry_failed: bool = False):
        self.settings, self.folder = settings, folder
        self.model: Generator = settings.model
        self.answer_model: Generator = settings.answer_model or settings.model
        self.for_content = (self.model, settings.sampling())
        self.for_answers = (self.answer_model, settings.answer_sampling())
        self.tree = Tree(settings, folder)
        stage = RequestStage(folder, settings.seed, retry_failed, read_refusals(settings.refusals))
        self.request_all = stage.request_all

    def make_taxonomy(self) -> None:
        """Write taxonomy.yaml, unless it is there or the user's own file is used."""
        path = self.folder / "taxonomy.yaml"
        if path.exists() or self.settings.taxonomy not in ("default", "generate"):
            return
        text = DEFAULT.read_text(encoding="utf-8") if self.settings.taxonomy == "default" else self._generated()
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def _generated(self) -> str:
        """The YAML text of a taxonomy that the model writes, level by level."""
        import yaml

        path, language = self.folder / "taxonomy.jsonl", self.settings.language
        tree: dict[str, dict[str, list[str]]] = {}
        parents: list[tuple[str, ...]] = [()]
        for level in ("fields", "sub-fields", "disciplines"):
            messages = [
                partial(prompts.parts, names, level, language) if names else partial(prompts.fields, language)
                for names in parents
            ]
            keys = [json.dumps(names, ensure_ascii=False) for names in parents]
            items = [Item(path, key, turn) for key, turn in zip(keys, messages, strict=True)]
            self.request_all("taxonomy", *self.for_content, items, len(items), prompts.NAMES_SCHEMA, _parse_names)
            records = journal.records(journal.read_lines(path))
            failed = [error for item in items if (error := records[item.key][-1].get("error"))]
            if failed:
                raise ValueError(
                    f"{len(failed)} of {len(items)} requests for {level} of the taxonomy failed ({failed[0]}). Ask "
                    "again with retry_failed (--retry-failed), or give a taxonomy file."
                )
            children = [records[item.key][-1]["names"] for item in items]
            paths = [(*names, name) for names, new in zip(parents, children, strict=True) for name in new]
            parents = [names for names in paths if names[-1] not in names[:-1]]
        for field, sub_field, discipline in parents:
            tree.setdefault(field, {}).setdefault(sub_field, []).append(discipline)
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)

    def make_subjects(self) -> None:
        """Request lists of subjects in free text, then the same as JSON."""
        settings, disciplines = self.settings, self.tree.disciplines()
        queries = [str(number) for number in range(settings.queries_per_discipline)]

        def list_messages(discipline: Discipline) -> Messages:
            return prompts.subject_list(discipline, settings.subjects_per_query, settings.level, settings.language)

        lists = (
            Item(self.tree.file("lists", discipline), query, partial(list_messages, discipline))
            for discipline in disciplines
            for query in queries
        )
        total = len(disciplines) * len(queries)
        self.request_all("lists", *self.for_content, lists, total)

        def extractions() -> Iterator[Item]:
            for discipline in disciplines:
                texts = self._texts(self.tree.file("lists", discipline))
                for query in queries:
                    if query in texts:
                        messages = partial(prompts.subjects_from, list_messages(discipline), texts[query])
                        yield Item(self.tree.file("subjects", discipline), query, messages)

        self.request_all("subjects", *self.for_content, extractions(), total, prompts.SUBJECTS_SCHEMA, _parse_subjects)

    def make_syllabi(self) -> None:
        """Request a syllabus for each subject in free text, then the same as JSON."""
        disciplines, settings = self.tree.disciplines(), self.settings
        total = sum(len(self.tree.subjects(discipline)) for discipline in disciplines)

        def outline_messages(subject: Subject) -> Messages:
            sessions = (settings.min_sessions, settings.max_sessions)
            return prompts.syllabus_text(subject.discipline, subject.fields, sessions, settings.language)

        def outlines() -> Iterator[Item]:
            for discipline in disciplines:
                for subject in self.tree.subjects(discipline):
                    yield Item(self.tree.file("outlines", discipline), subject.key, partial(outline_messages, subject))

        def extractions() -> Iterator[Item]:
            for discipline in disciplines:
                texts = self._texts(self.tree.file("outlines", discipline))
                for subject in self.tree.subjects(discipline):
                    if subject.key in texts:
                        messages = partial(prompts.syllabus_from, outline_messages(subject), texts[subject.key])
                        yield Item(self.tree.file("syllabi", discipline), subject.key, messages)

        self.request_all("outlines", *self.for_content, outlines(), total)
        self.request_all("syllabi", *self.for_content, extractions(), total, prompts.SYLLABUS_SCHEMA, _parse_syllabus)

    def make_questions(self) -> None:
        """Request the questions on each syllabus."""

        def items() -> Iterator[Item]:
            for questions in self.tree.all_questions():
                for question in questions:
                    path = self.tree.file("questions", question.subject.discipline, question.subject)
                    yield Item(path, question.key, partial(self._question_messages, question))

        total = self.settings.questions_per_subject * sum(
            subject.key in syllabi
            for discipline in self.tree.disciplines()
            for syllabi in [self.tree.syllabi(discipline)]
            for subject in self.tree.subjects(discipline)
        )
        self.request_all("questions", *self.for_content, items(), total)

    def _question_messages(self, question: Question) -> Messages:
        return prompts.question(question.subject.fields, question.syllabus, question.draw, self.settings.language)

    def make_answers(self, questions: Iterable[Question], total: int) -> None:
        """Request the answers to questions that have a text."""
        items = (
            Item(
                self.tree.file("answers", question.subject.discipline, question.subject),
                question.answer_key,
                partial(prompts.answer, cast(str, question.text)),
            )
            for question in questions
        )
        self.request_all("answers", *self.for_answers, items, total)

    def _texts(self, path: Path) -> dict[str, str]:
        """The texts of a journal by key, without failed records."""
        records = journal.records(journal.read_lines(path))
        return {key: of_key[-1]["text"] for key, of_key in records.items() if not of_key[-1].get("error")}


def _parse_names(item: Item, text: str) -> tuple[Line, list[Line]]:
    return {"names": parse.names(text)}, []


def _parse_subjects(item: Item, text: str) -> tuple[Line, list[Line]]:
    nodes = [
        {"id": f"{item.key}.{number}", "of": item.key, **subject.to_dict()}
        for number, subject in enumerate(parse.subjects(text))
    ]
    return {}, nodes


def _parse_syllabus(item: Item, text: str) -> tuple[Line, list[Line]]:
    return parse.syllabus(text).to_dict(), []
