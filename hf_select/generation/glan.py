"""GLAN: synthetic instructions from a taxonomy of human knowledge (Li et al. 2024, arXiv:2402.13064).

taxonomy -> subjects of each discipline -> a syllabus for each subject -> questions on its sessions and key concepts ->
answers, by a model that may be another one. Nothing is sampled from existing instructions.

output_dir/
  glan.json                            the settings that shape the content; a run with others is refused
  taxonomy.yaml                        fields, sub-fields, disciplines: to be edited (unless a file of yours is used)
  lists/DISCIPLINE.jsonl               free lists of subjects, one a query
  subjects/DISCIPLINE.jsonl            subjects, one a line: change one, delete it, add your own
  outlines/DISCIPLINE.jsonl            free syllabi, one a subject
  syllabi/DISCIPLINE.jsonl             sessions and key concepts, one a subject: change them, or delete one to redo it
  questions/DISCIPLINE/SUBJECT.jsonl   questions
  answers/DISCIPLINE/SUBJECT.jsonl     answers
  pairs.parquet                        prompt, completion and where they come from, in the order of the taxonomy
  removed.jsonl                        what is not among them, and why
  summary.json, topics.html            counts and costs; the tree of topics

Every request has a key made of what it is about (discipline, query, subject, syllabus, draw), and its seed is made of
that key: what is there is never asked for again, whatever was added to the taxonomy or killed in between, and a run of
many pieces equals one of one piece. Below a changed line everything is made anew; below a deleted one nothing is used.

Left out, as in the paper: correctness of answers is not checked.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

from hf_select.choices import check_choices
from hf_select.files import written_whole
from hf_select.generation import journal, parse, prompts
from hf_select.generation.asking import Asking, Item
from hf_select.generation.engine import Generator, Messages, Sampling
from hf_select.generation.folder import alone, hold
from hf_select.generation.gates import read_refusals
from hf_select.generation.taxonomy import DEFAULT, Discipline
from hf_select.generation.tree import Asked, Subject, Tree


Until = Literal["taxonomy", "subjects", "syllabi", "questions", "pairs"]
STAGES = ("lists", "subjects", "outlines", "syllabi", "questions", "answers")


@dataclass
class GLAN:
    """Questions and answers on every topic of a taxonomy.

    Args:
        model: writes subjects, syllabi and questions.
        answer_model: answers the questions; by default the same.
        taxonomy: default (a list of disciplines of our own), generate (asked of the model), or a YAML file of fields,
            sub-fields and disciplines.
        language: that everything is written in.
        level: of the subjects, in words ("secondary school"); by default all levels.
        queries_per_discipline: how often each discipline's subjects are asked for: 10 in the paper, 1 by default to
            begin small. A higher number asks only for what is new.
        subjects_per_query: subjects that each query asks for; the paper reports 100 to 200 a discipline.
        min_sessions: fewest class sessions that a syllabus is asked to have. "10 to 30", section 3.1.
        max_sessions: most of them.
        questions_per_subject: questions, each on sessions and concepts drawn for it alone; 1 by default, to begin
            small.
        two_session_share: share of the questions that bring two sessions together; not published.
        temperature: of subjects, syllabi and questions.
        top_p: of the same.
        max_new_tokens: of the same.
        answer_temperature: of answers.
        answer_top_p: of answers.
        answer_max_new_tokens: of answers; what is cut there is left out.
        near_duplicates: Jaccard similarity of runs of five words from which on two questions count as one; 1: only
            exact copies do.
        decontaminate_n: words that a question or pair must share with an evaluation set to be left out.
        refusals: file of further beginnings of answers that decline, one a line; the built-in ones are English.
        prices: US dollars for a million tokens read and for a million written, for the estimate and the ledger.
        answer_prices: the same of the answers' model, if they differ.
        seed: of all draws and requests.
    Raises: ValueError if a setting makes no sense.
    Reference: Li et al. 2024, arXiv:2402.13064.
    """

    model: Any
    answer_model: Any = None
    taxonomy: str = "default"
    language: str = "English"
    level: str | None = None
    queries_per_discipline: int = 1  # "10 queries", section 3.1; those and 10 questions are 521,240 requests
    subjects_per_query: int = 15
    min_sessions: int = 10
    max_sessions: int = 30
    questions_per_subject: int = 1
    two_session_share: float = 0.5
    temperature: float = 1.0  # "temperature 1.0 and top_p 0.95", section 3.1
    top_p: float = 0.95
    max_new_tokens: int = 4096
    answer_temperature: float = 0.7  # "temperature 0.7 and top_p 0.95", section 3.1
    answer_top_p: float = 0.95
    answer_max_new_tokens: int = 2048
    near_duplicates: float = 0.8
    decontaminate_n: int = 13
    refusals: str | None = None
    prices: list[float] | None = None
    answer_prices: list[float] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("model", "answer_model"):
            if isinstance(getattr(self, name), list):
                raise ValueError(f"{name} is a list; GLAN takes one {name}.")
        counts = ("queries_per_discipline", "subjects_per_query", "min_sessions", "questions_per_subject")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.max_sessions < self.min_sessions:
            raise ValueError(f"max_sessions is {self.max_sessions}, below min_sessions ({self.min_sessions}).")
        if not 0 <= self.two_session_share <= 1:
            raise ValueError(f"two_session_share is {self.two_session_share}; it must lie in [0, 1].")
        for name in ("prices", "answer_prices"):
            prices = getattr(self, name)
            if prices is not None and (len(prices) != 2 or min(prices) < 0):
                raise ValueError(f"{name} is {prices}; give two numbers, for tokens read and for tokens written.")
        self.sampling()  # its errors come now
        self.answer_sampling()

    def sampling(self) -> Sampling:
        """Of all but answers."""
        return Sampling(self.temperature, self.top_p, self.max_new_tokens)

    def answer_sampling(self) -> Sampling:
        return Sampling(self.answer_temperature, self.answer_top_p, self.answer_max_new_tokens)

    def run(
        self,
        output_dir: str | Path,
        against: dict[str, Any] | None = None,
        until: Until = "pairs",
        retry_failed: bool = False,
    ) -> dict[str, Any]:
        """Make what is not there yet, and return the summary.

        Args:
            against: evaluation sets by name, none of whose text may be in a pair.
            until: stop after this stage, to look at its files and edit them; a later call goes on.
            retry_failed: ask again for what failed for good before: could not be read, was refused or cut.
        Raises: ValueError if the folder holds another run, if somebody else is at work in it, or if the server is not
            there, refuses the key or does not know the model.
        """
        return GLANRun(self, Path(output_dir).expanduser(), retry_failed).run(against or {}, until)

    def described(self) -> dict[str, Any]:
        """All settings but the models, for the record."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("model", "answer_model")}

    def shaping(self) -> dict[str, Any]:
        """The settings that content depends on beyond the keys of the files. Counts are free to grow and shrink."""
        free = (
            "queries_per_discipline", "questions_per_subject", "max_new_tokens", "answer_max_new_tokens", "taxonomy",
            "near_duplicates", "decontaminate_n", "refusals", "prices", "answer_prices", "model", "answer_model",
        )  # fmt: skip
        mine = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in free}
        return {**mine, "model": self.model.name, "answer_model": (self.answer_model or self.model).name}


class GLANRun:
    """One run of GLAN in its folder."""

    def __init__(self, settings: GLAN, folder: Path, retry_failed: bool = False):
        self.settings, self.folder = settings, folder
        self.model: Generator = settings.model
        self.answer_model: Generator = settings.answer_model or settings.model
        self.writing = (self.model, settings.sampling())
        self.answering = (self.answer_model, settings.answer_sampling())
        self.tree = Tree(settings, folder)
        self.ask = Asking(folder, settings.seed, retry_failed, read_refusals(settings.refusals))

    def run(self, against: dict[str, Any], until: Until) -> dict[str, Any]:
        from hf_select.generation.pairs import finish, gates

        copies, rule = gates(self.settings, against)
        if self.settings.taxonomy != "generate":
            self.tree.disciplines()  # their errors come before anything is made
        hold(self.folder / "glan.json", self.settings.shaping())
        with alone(self.folder):
            self.make_taxonomy()
            if until != "taxonomy":
                self.make_subjects()
            if until not in ("taxonomy", "subjects"):
                self.make_syllabi()
            if until in ("questions", "pairs"):
                self.make_questions()
            return finish(self, copies, rule, answer=until == "pairs")

    # The stages.

    def make_taxonomy(self) -> None:
        path = self.folder / "taxonomy.yaml"
        if path.exists() or self.settings.taxonomy not in ("default", "generate"):
            return
        text = DEFAULT.read_text(encoding="utf-8") if self.settings.taxonomy == "default" else self._generated()
        with written_whole(path) as temporary:
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
            self.ask("taxonomy", *self.writing, items, len(items), prompts.NAMES_SCHEMA, _names_nodes)
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
        self.ask("lists", *self.writing, lists, total)

        def extractions() -> Iterator[Item]:
            for discipline in disciplines:
                found = self._texts(self.tree.file("lists", discipline))
                for query in queries:
                    if query in found:
                        turns = partial(prompts.subjects_from, asked(discipline), found[query])
                        yield Item(self.tree.file("subjects", discipline), query, turns)

        self.ask("subjects", *self.writing, extractions(), total, prompts.SUBJECTS_SCHEMA, _subject_nodes)

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

        self.ask("outlines", *self.writing, outlines(), total)
        self.ask("syllabi", *self.writing, extractions(), total, prompts.SYLLABUS_SCHEMA, _syllabus_node)

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
        self.ask("questions", *self.writing, items(), total)

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
        self.ask("answers", *self.answering, items, total)

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
