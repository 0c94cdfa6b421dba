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
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, cast

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from hf_select.choices import check_choices
from hf_select.files import read_json, write_json, written_whole
from hf_select.generation import journal, parse, prompts
from hf_select.generation.draws import Draw, draws
from hf_select.generation.engine import Answer, Generator, Messages, Request, Sampling, seed_of
from hf_select.generation.gates import unusable, without_reasoning
from hf_select.generation.taxonomy import DEFAULT, Discipline, digest, read_taxonomy
from hf_select.inference.chunks import differences


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
        queries_per_discipline: how often each discipline's subjects are asked for. "10 queries", section 3.1.
        subjects_per_query: subjects that each query asks for; the paper reports 100 to 200 a discipline.
        min_sessions: fewest class sessions that a syllabus is asked to have. "10 to 30", section 3.1.
        max_sessions: most of them.
        questions_per_subject: questions, each on sessions and concepts drawn for it alone.
        two_session_share: share of the questions that bring two sessions together; not published.
        temperature: of subjects, syllabi and questions.
        top_p: of the same.
        max_new_tokens: of the same.
        answer_temperature: of answers.
        answer_top_p: of answers.
        answer_max_new_tokens: of answers; what is cut there is left out.
        near_duplicates: Jaccard similarity of runs of five words from which on two questions count as one; 1: only
            questions of the same words do.
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
    queries_per_discipline: int = 10
    subjects_per_query: int = 15
    min_sessions: int = 10
    max_sessions: int = 30
    questions_per_subject: int = 10
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
        self._sampling = Sampling(self.temperature, self.top_p, self.max_new_tokens)
        self._answer_sampling = Sampling(self.answer_temperature, self.answer_top_p, self.answer_max_new_tokens)

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

    def shaping(self) -> dict[str, Any]:
        """The settings that content depends on beyond the keys of the files. Counts are free to grow and shrink."""
        free = (
            "queries_per_discipline", "questions_per_subject", "max_new_tokens", "answer_max_new_tokens", "taxonomy",
            "near_duplicates", "decontaminate_n", "refusals", "prices", "answer_prices", "model", "answer_model",
        )  # fmt: skip
        mine = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in free}
        return {**mine, "model": self.model.name, "answer_model": (self.answer_model or self.model).name}


@dataclass(frozen=True)
class Item:
    """Something to be asked for: the file of its record, its key there, and the conversation."""

    path: Path
    key: str
    messages: Callable[[], Messages]


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
        return f"{self.id}:{digest(said)}"


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
        return self.record["text"].strip() if self.record is not None and not self.record["error"] else None

    @property
    def answer_key(self) -> str:
        return f"{self.key}:{digest(self.text)}"


class GLANRun:
    """One run of GLAN in its folder."""

    def __init__(self, settings: GLAN, folder: Path, retry_failed: bool = False):
        self.settings, self.folder, self.retry_failed = settings, folder, retry_failed
        self.model: Generator = settings.model
        self.answer_model: Generator = settings.answer_model or settings.model
        self.more_refusals: list[str] = []
        if settings.refusals is not None:
            try:
                lines = Path(settings.refusals).expanduser().read_text(encoding="utf-8").lower().splitlines()
            except OSError as error:
                raise ValueError(f'cannot read refusals "{settings.refusals}": {error.strerror}.') from None
            self.more_refusals = [line.strip() for line in lines if line.strip()]

    def run(self, against: dict[str, Any], until: Until) -> dict[str, Any]:
        from hf_select.generation.pairs import finish

        if self.settings.taxonomy != "generate":
            self.disciplines()  # their errors come before anything is made
        self._open()
        with self.alone():
            self.make_taxonomy()
            if until != "taxonomy":
                self.make_subjects()
            if until not in ("taxonomy", "subjects"):
                self.make_syllabi()
            if until in ("questions", "pairs"):
                self.make_questions()
            return finish(self, against, answer=until == "pairs")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Files are read, and their torn ends taken away, by one process at a time."""
        if not self.folder.is_dir():
            yield
            return
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f'another process is at work in "{self.folder}"; wait, or choose another.') from None
        try:
            yield
        finally:
            lock.release()

    def _open(self) -> None:
        path = self.folder / "glan.json"
        here = {"settings": self.settings.shaping()}
        try:
            if not path.exists() and self.folder.is_dir():
                others = [p.name for p in self.folder.iterdir() if not p.name.startswith((".lock", "glan.json."))]
                if others:
                    raise ValueError(f'output folder "{self.folder}" holds other files; give a new or empty one.')
            self.folder.mkdir(parents=True, exist_ok=True)
            there = read_json(path)
            if there is None:
                write_json(path, here)
            elif changed := differences(there["settings"], here["settings"]):
                raise ValueError(
                    f'"{self.folder}" holds a run with other settings ({"; ".join(changed)}). Choose another folder.'
                )
        except OSError as error:
            raise ValueError(
                f'cannot write to output folder "{self.folder}": {error.strerror}. Choose another.'
            ) from None

    # The tree, read from the files of the stages as they are now.

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
                node = {"id": f"own-{digest(said['subject_name'])}", **node, **said}
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
        course = digest([subject.key, syllabus["introduction"], syllabus["sessions"]])
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
            items = [
                Item(
                    path,
                    json.dumps(names, ensure_ascii=False),
                    (lambda: prompts.fields(language))
                    if not names
                    else (lambda names=names: prompts.parts(names, kind, language)),  # noqa: B023
                )
                for names in above
            ]
            self._ask("taxonomy", items, len(items), prompts.NAMES_SCHEMA, _names_nodes)
            found = journal.records(journal.read_lines(path))
            failed = [
                records[-1].get("error") for records in (found[i.key] for i in items) if records[-1].get("error")
            ]
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
        settings, disciplines = self.settings, self.disciplines()
        queries = [str(number) for number in range(settings.queries_per_discipline)]

        def asked(discipline: Discipline) -> Messages:
            return prompts.subject_list(discipline, settings.subjects_per_query, settings.level, settings.language)

        lists = (
            Item(self.file("lists", discipline), query, lambda discipline=discipline: asked(discipline))
            for discipline in disciplines
            for query in queries
        )
        self._ask("lists", lists, len(disciplines) * len(queries))

        def extractions() -> Iterator[Item]:
            for discipline in disciplines:
                found = self._texts(self.file("lists", discipline))
                for query in queries:
                    if query in found:
                        turns = lambda d=discipline, text=found[query]: prompts.subjects_from(asked(d), text)  # noqa: E731
                        yield Item(self.file("subjects", discipline), query, turns)

        self._ask("subjects", extractions(), len(disciplines) * len(queries), prompts.SUBJECTS_SCHEMA, _subject_nodes)

    def make_syllabi(self) -> None:
        disciplines, settings = self.disciplines(), self.settings
        total = sum(len(self.subjects(discipline)) for discipline in disciplines)

        def asked(subject: Subject) -> Messages:
            sessions = (settings.min_sessions, settings.max_sessions)
            return prompts.syllabus_text(subject.discipline, subject.node, sessions, settings.language)

        def outlines() -> Iterator[Item]:
            for discipline in disciplines:
                for subject in self.subjects(discipline):
                    yield Item(self.file("outlines", discipline), subject.key, lambda subject=subject: asked(subject))

        def extractions() -> Iterator[Item]:
            for discipline in disciplines:
                found = self._texts(self.file("outlines", discipline))
                for subject in self.subjects(discipline):
                    if subject.key in found:
                        turns = lambda s=subject, text=found[subject.key]: prompts.syllabus_from(asked(s), text)  # noqa: E731
                        yield Item(self.file("syllabi", discipline), subject.key, turns)

        self._ask("outlines", outlines(), total)
        self._ask("syllabi", extractions(), total, prompts.SYLLABUS_SCHEMA, _syllabus_node)

    def make_questions(self) -> None:
        def items() -> Iterator[Item]:
            for questions in self.all_questions():
                for asked in questions:
                    path = self.file("questions", asked.subject.discipline, asked.subject)
                    yield Item(path, asked.key, lambda asked=asked: self._question(asked))

        total = self.settings.questions_per_subject * sum(
            subject.key in syllabi
            for discipline in self.disciplines()
            for syllabi in [self.syllabi(discipline)]
            for subject in self.subjects(discipline)
        )
        self._ask("questions", items(), total)

    def _question(self, asked: Asked) -> Messages:
        draw, language = asked.draw, self.settings.language
        return prompts.question(asked.subject.node, asked.syllabus, draw.sessions, draw.concepts, language)

    def make_answers(self, wanted: Iterable[Asked], total: int) -> None:
        items = (
            Item(
                self.file("answers", asked.subject.discipline, asked.subject),
                asked.answer_key,
                lambda asked=asked: prompts.answer(cast(str, asked.text)),
            )
            for asked in wanted
        )
        self._ask("answers", items, total)

    def _texts(self, path: Path) -> dict[str, str]:
        """The texts of a stage by key, without what failed."""
        found = journal.records(journal.read_lines(path))
        return {key: records[-1]["text"] for key, records in found.items() if not records[-1].get("error")}

    # Asking.

    def _ask(
        self,
        stage: str,
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
        generator = self.answer_model if stage == "answers" else self.model
        sampling = self.settings._answer_sampling if stage == "answers" else self.settings._sampling

        def first_turns() -> Iterator[Request]:
            for item, records in _with_records(items):
                own = [record for record in records if not record.get("lost") and not record.get("repaired")]
                last = records[-1] if records else None
                if last is not None and last.get("unread") and not last.get("repaired") and not self.retry_failed:
                    unread.append(item)
                if last is not None and not last.get("lost") and not (last["error"] and self.retry_failed):
                    bar.update()
                    continue
                seed = seed_of(self.settings.seed, stage, str(item.path.relative_to(self.folder)), item.key, len(own))
                yield Request(item.messages(), _with_seed(sampling, seed), schema, tag=(item, seed))

        def second_turns() -> Iterator[Request]:
            for item in unread:
                last = journal.records(journal.read_lines(item.path))[item.key][-1]
                messages = prompts.repair(item.messages(), last["text"], last["error"])
                seed = seed_of(last["seed"], "repair")
                yield Request(messages, _with_seed(sampling, seed), schema, tag=(item, seed))

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


def _with_records(items: Iterable[Item]) -> Iterator[tuple[Item, list[dict[str, Any]]]]:
    """Each item with the records of its key; a file is read once for all its items, which stand together."""
    path, found = None, {}
    for item in items:
        if item.path != path:
            path, found = item.path, journal.records(journal.read_lines(item.path))
        yield item, found.get(item.key, [])


def _with_seed(sampling: Sampling, seed: int) -> Sampling:
    return Sampling(sampling.temperature, sampling.top_p, sampling.max_new_tokens, seed)


def _names_nodes(item: Item, text: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return {"names": parse.names(text)}, []


def _subject_nodes(item: Item, text: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    nodes = [
        {"id": f"{item.key}.{number}", "of": item.key, **found} for number, found in enumerate(parse.subjects(text))
    ]
    return {}, nodes


def _syllabus_node(item: Item, text: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return parse.syllabus(text), []
