"""The tree of a GLAN run: its disciplines, subjects, syllabi and questions, read from the files of its stages."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hf_select.data.file_names import short_digest
from hf_select.generation.generator import seed_of
from hf_select.generation.glan import parse
from hf_select.generation.glan.draws import Draw, draws
from hf_select.generation.glan.parse import SubjectFields, Syllabus
from hf_select.generation.glan.settings import GLANSettings
from hf_select.generation.glan.taxonomy import DEFAULT, Discipline, read_taxonomy
from hf_select.generation.json_answers import Unparsed
from hf_select.jobs import journal
from hf_select.jobs.journal import Line


@dataclass(frozen=True)
class Subject:
    """A subject of a discipline."""

    discipline: Discipline
    id: str
    fields: SubjectFields

    @property
    def key(self) -> str:
        """The key of its syllabus. It changes with the fields, and the syllabus is then requested again."""
        return f"{self.id}:{short_digest(self.fields.to_dict())}"


@dataclass(frozen=True)
class Question:
    """A question of the run, with its record if it has been requested."""

    subject: Subject
    syllabus: Syllabus
    draw: Draw
    key: str
    record: Line | None

    @property
    def text(self) -> str | None:
        """The question, or None if it has not been requested or failed."""
        return self.record["text"].strip() if self.record is not None and not self.record.get("error") else None

    @property
    def answer_key(self) -> str:
        """The key of its answer, which changes with the text."""
        return f"{self.key}:{short_digest(self.text)}"


class Tree:
    """Disciplines, subjects, syllabi and questions of a run, read from its folder."""

    def __init__(self, settings: GLANSettings, folder: Path):
        self.settings, self.folder = settings, folder

    def taxonomy_file(self) -> Path:
        """The file of the taxonomy; it need not exist yet."""
        if self.settings.taxonomy not in ("default", "generate"):
            return Path(self.settings.taxonomy).expanduser()
        own = self.folder / "taxonomy.yaml"
        return DEFAULT if self.settings.taxonomy == "default" and not own.exists() else own

    def disciplines(self) -> list[Discipline]:
        """The disciplines of the taxonomy, in its order."""
        return read_taxonomy(self.taxonomy_file())

    def file(self, stage: str, discipline: Discipline, subject: Subject | None = None) -> Path:
        """The journal of a stage for a discipline, or for one of its subjects."""
        folder = self.folder / stage
        return folder / f"{discipline.id}.jsonl" if subject is None else folder / discipline.id / f"{subject.id}.jsonl"

    def subjects(self, discipline: Discipline) -> list[Subject]:
        """The subjects of a discipline: those of the first queries_per_discipline queries, then the user's own.

        Raises: ValueError if a line of the file cannot be used.
        """
        path = self.file("subjects", discipline)
        subjects: list[tuple[tuple[int, int], Subject]] = []
        for number, node in enumerate(journal.nodes(journal.read_lines(path)), 1):
            if int(node.get("of") or 0) >= self.settings.queries_per_discipline:
                continue
            try:
                subject = self._subject(discipline, node)
                if any(subject.id == other.id for _, other in subjects):
                    raise Unparsed(f'another has the id "{subject.id}"; leave it out in the one that you added')
            except Unparsed as reason:
                raise ValueError(f'subject {number} of "{path}" cannot be used: {reason}.') from None
            order = (int(node["of"]), int(subject.id.split(".")[1])) if "of" in node else (1 << 30, number)
            subjects.append((order, subject))
        return [subject for _, subject in sorted(subjects, key=lambda pair: pair[0])]

    def _subject(self, discipline: Discipline, node: Line) -> Subject:
        (fields,) = parse.subjects(json.dumps([node]))
        subject_id = node.get("id", f"own-{short_digest(fields.subject_name)}")
        if re.fullmatch(r"[\w.-]+", subject_id) is None:
            raise Unparsed(f'its id "{subject_id}" is not a file name; leave it out')
        return Subject(discipline, subject_id, fields)

    def syllabi(self, discipline: Discipline) -> dict[str, Syllabus]:
        """The syllabi of a discipline by the keys of their subjects.

        Raises: ValueError if one cannot be used.
        """
        path, syllabi = self.file("syllabi", discipline), {}
        for key, records in journal.records(journal.read_lines(path)).items():
            if not records[-1].get("error"):
                try:
                    syllabi[key] = parse.syllabus(json.dumps(records[-1]))
                except Unparsed as reason:
                    raise ValueError(f'syllabus "{key}" of "{path}" cannot be used: {reason}.') from None
        return syllabi

    def questions(self, subject: Subject, syllabus: Syllabus) -> list[Question]:
        """The questions on a subject, requested or not."""
        records = journal.records(journal.read_lines(self.file("questions", subject.discipline, subject)))
        settings = self.settings
        course = short_digest([subject.key, syllabus.introduction, syllabus.to_dict()["sessions"]])
        drawn = draws(
            [len(session.key_concepts) for session in syllabus.sessions],
            settings.questions_per_subject,
            settings.two_session_share,
            seed_of(settings.seed, subject.discipline.path, subject.id, course),
        )
        keys = [f"{course}:{number}" for number in range(len(drawn))]
        return [
            Question(subject, syllabus, draw, key, records[key][-1] if key in records else None)
            for key, draw in zip(keys, drawn, strict=True)
        ]

    def all_questions(self) -> Iterator[list[Question]]:
        """The questions of one subject at a time, which bounds the memory of large runs."""
        for discipline in self.disciplines():
            syllabi = self.syllabi(discipline)
            for subject in self.subjects(discipline):
                if subject.key in syllabi:
                    yield self.questions(subject, syllabi[subject.key])
