"""The tree of a GLAN run, read from the files of its stages as they are now: what is there and what is wanted."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_select.data.file_names import short_digest
from hf_select.generation.generator import seed_of
from hf_select.generation.glan import parse
from hf_select.generation.glan.draws import Draw, draws
from hf_select.generation.glan.settings import GLANSettings
from hf_select.generation.glan.taxonomy import DEFAULT, Discipline, read_taxonomy
from hf_select.jobs import journal


@dataclass(frozen=True)
class Subject:
    """A subject of a discipline, with the number of its line for its place in the final order."""

    discipline: Discipline
    node: dict[str, Any]

    @property
    def id(self) -> str:
        return self.node["id"]

    @property
    def key(self) -> str:
        """Changes with what is said of the subject: its syllabus is then made anew."""
        said = {name: self.node[name] for name in ("subject_name", "level", "subtopics")}
        return f"{self.id}:{short_digest(said)}"


@dataclass(frozen=True)
class Asked:
    """A question that is wanted: its draw, and the record of it if it has been asked for."""

    subject: Subject
    syllabus: dict[str, Any]
    draw: Draw
    key: str
    record: dict[str, Any] | None

    @property
    def text(self) -> str | None:
        return self.record["text"].strip() if self.record is not None and not self.record.get("error") else None

    @property
    def answer_key(self) -> str:
        return f"{self.key}:{short_digest(self.text)}"


class Tree:
    """Disciplines, subjects, syllabi and questions of a run, from its folder."""

    def __init__(self, settings: GLANSettings, folder: Path):
        self.settings, self.folder = settings, folder

    def taxonomy_file(self) -> Path:
        """The file that says what the taxonomy is; it may be yet to be generated."""
        if self.settings.taxonomy not in ("default", "generate"):
            return Path(self.settings.taxonomy).expanduser()
        own = self.folder / "taxonomy.yaml"
        return DEFAULT if self.settings.taxonomy == "default" and not own.exists() else own

    def disciplines(self) -> list[Discipline]:
        return read_taxonomy(self.taxonomy_file())

    def file(self, stage: str, discipline: Discipline, subject: Subject | None = None) -> Path:
        folder = self.folder / stage
        return folder / f"{discipline.id}.jsonl" if subject is None else folder / discipline.id / f"{subject.id}.jsonl"

    def subjects(self, discipline: Discipline) -> list[Subject]:
        """The subjects of a discipline: those of the queries that are wanted, and those that a person has added."""
        path, found = self.file("subjects", discipline), []
        for number, node in enumerate(journal.nodes(journal.read_lines(path)), 1):
            if int(node.get("of") or 0) >= self.settings.queries_per_discipline:
                continue
            try:
                (said,) = parse.subjects(json.dumps([node]))
                node = {"id": f"own-{short_digest(said['subject_name'])}", **node, **said}
                if re.fullmatch(r"[\w.-]+", node["id"]) is None:
                    raise parse.Unparsed(f'its id "{node["id"]}" is no file name; leave it out')
                if any(node["id"] == subject.id for _, subject in found):
                    raise parse.Unparsed(f'another has the id "{node["id"]}"; leave it out in the one that you added')
            except parse.Unparsed as reason:
                raise ValueError(f'subject {number} of "{path}" cannot be used: {reason}.') from None
            place = (int(node["of"]), int(node["id"].split(".")[1])) if "of" in node else (1 << 30, number)
            found.append((place, Subject(discipline, node)))
        return [subject for _, subject in sorted(found, key=lambda item: item[0])]

    def syllabi(self, discipline: Discipline) -> dict[str, dict[str, Any]]:
        """The syllabi of a discipline by the keys of their subjects."""
        path, found = self.file("syllabi", discipline), {}
        for key, records in journal.records(journal.read_lines(path)).items():
            if not records[-1].get("error"):
                try:
                    found[key] = parse.syllabus(json.dumps(records[-1]))
                except parse.Unparsed as reason:
                    raise ValueError(f'syllabus "{key}" of "{path}" cannot be used: {reason}.') from None
        return found

    def questions(self, subject: Subject, syllabus: dict[str, Any]) -> list[Asked]:
        """The questions that are wanted on a subject, asked for or not."""
        found = journal.records(journal.read_lines(self.file("questions", subject.discipline, subject)))
        settings = self.settings
        course = short_digest([subject.key, syllabus["introduction"], syllabus["sessions"]])
        sizes = [len(session["key_concepts"]) for session in syllabus["sessions"]]
        drawn = draws(
            sizes,
            settings.questions_per_subject,
            settings.two_session_share,
            seed_of(settings.seed, subject.discipline.path, subject.id, course),
        )
        keys = [f"{course}:{number}" for number in range(len(drawn))]
        return [
            Asked(subject, syllabus, draw, key, found[key][-1] if key in found else None)
            for key, draw in zip(keys, drawn, strict=True)
        ]

    def all_questions(self) -> Iterator[list[Asked]]:
        """The questions of each subject in turn: of the whole run no more than this is ever in memory."""
        for discipline in self.disciplines():
            syllabi = self.syllabi(discipline)
            for subject in self.subjects(discipline):
                if subject.key in syllabi:
                    yield self.questions(subject, syllabi[subject.key])
