"""The counts and costs of a GLAN run, and its tree of topics for the page."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from hf_select.generation.glan.settings import STAGES, GLANSettings
from hf_select.generation.glan.stages import GLANRun
from hf_select.generation.glan.topics_page import SubjectTopic, Topics
from hf_select.generation.glan.tree import Subject
from hf_select.jobs import journal


@dataclass
class StageTokens:
    """Requests of a stage that were answered, in all runs, and the tokens that the model read and wrote for them."""

    requests: int = 0
    read: int = 0
    written: int = 0


@dataclass
class Decontamination:
    """Overlap with evaluation sets: shared words from which on a text is left out, counts of each set, and the number
    of questions and pairs left out."""

    n: int
    sets: dict[str, dict[str, int]]
    removed: int


@dataclass
class GLANSummary:
    """What a run has made.

    Attributes:
        failed: counts of permanent failures by stage and reason.
        pairs, removed: pairs, and counts of questions without a pair by reason; None before the last stage.
        decontamination: None without evaluation sets.
        tokens: by stage.
        price: in US dollars; None without prices.
    """

    disciplines: int = 0
    subjects: int = 0
    syllabi: int = 0
    sessions: int = 0
    questions: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    pairs: int | None = None
    removed: dict[str, int] | None = None
    decontamination: Decontamination | None = None
    tokens: dict[str, StageTokens] = field(default_factory=dict)
    price: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The summary as JSON values, without fields that are None."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def counts(self) -> list[tuple[str, int]]:
        """All counts, with names for people."""
        names = ("disciplines", "subjects", "syllabi", "sessions", "questions")
        named = [(name, getattr(self, name)) for name in names]
        if self.pairs is not None:
            named.append(("pairs", self.pairs))
        named += [(f"left out: {reason}", count) for reason, count in (self.removed or {}).items()]
        return named + [(f"failed: {reason}", count) for reason, count in self.failed.items()]


def summarize(run: GLANRun, pairs: Counter[str]) -> tuple[GLANSummary, Topics]:
    """The counts and the tree of topics of a run, from its files.

    Args:
        pairs: number of pairs of each subject, by `subject_key`.
    """
    topics: Topics = {}
    summary = GLANSummary(tokens=_tokens(run))
    failed: Counter[str] = Counter()
    for discipline in run.tree.disciplines() if run.tree.taxonomy_file().exists() else []:
        summary.disciplines += 1
        branch = topics
        for name in discipline.path:
            branch = cast(Topics, branch.setdefault(name, {}))
        syllabi = run.tree.syllabi(discipline)
        subjects = run.tree.subjects(discipline)
        for stage in ("lists", "subjects", "outlines", "syllabi"):
            keys = {subject.key for subject in subjects} if stage in ("outlines", "syllabi") else None
            for key, records in journal.records(journal.read_lines(run.tree.file(stage, discipline))).items():
                if records[-1].get("error") and (keys is None or key in keys):
                    failed[f"{stage}: {records[-1]['error']}"] += 1
        for subject in subjects:
            syllabus = syllabi.get(subject.key)
            questions = [] if syllabus is None else run.tree.questions(subject, syllabus)
            sessions = [] if syllabus is None else [session.name for session in syllabus.sessions]
            count = sum(question.text is not None for question in questions)
            summary.subjects += 1
            summary.syllabi += syllabus is not None
            summary.sessions += len(sessions)
            summary.questions += count
            branch[f"{subject.id} {subject.fields.subject_name}"] = SubjectTopic(
                subject.fields.subject_name, subject.fields.level, sessions, count, pairs[subject_key(subject)]
            )
    summary.failed = dict(failed.most_common())
    summary.price = _price(run.settings, summary.tokens)
    return summary, topics


def subject_key(subject: Subject) -> str:
    """The name of a subject in the whole run."""
    return f"{subject.discipline.id}/{subject.id}"


def _tokens(run: GLANRun) -> dict[str, StageTokens]:
    """Tokens of each stage: of all answers in the journals, repeated attempts included."""
    tokens: dict[str, StageTokens] = {}
    for stage in ("taxonomy", *STAGES):
        taxonomy = [run.folder / "taxonomy.jsonl"] if stage == "taxonomy" else []
        for path in [*taxonomy, *sorted((run.folder / stage).rglob("*.jsonl"))]:
            for line in journal.read_lines(path):
                if "key" in line:
                    total = tokens.setdefault(stage, StageTokens())
                    total.requests += 1
                    total.read += line.get("prompt_tokens", 0)
                    total.written += line.get("completion_tokens", 0)
    return tokens


def _price(settings: GLANSettings, tokens: dict[str, StageTokens]) -> float | None:
    if settings.prices is None and settings.answer_prices is None:
        return None
    priced = ((stage, settings.prices_of(name)) for name, stage in tokens.items())
    return sum((stage.read * prices[0] + stage.written * prices[1]) / 1e6 for stage, prices in priced if prices)
