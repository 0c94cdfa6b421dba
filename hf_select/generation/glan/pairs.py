"""The end of a GLAN run: the questions that get an answer, the pairs that are kept, and a reason for each of the rest.

Duplicates and text of evaluation sets are found before the answers are paid for. Each question is a row of
pairs.parquet or a line of removed.jsonl with its reason. Rows are written one subject at a time; only the search for
duplicates holds all questions in memory.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from hf_select._version import __version__
from hf_select.atomic import atomic_path, sha256_of, write_json
from hf_select.data import columns
from hf_select.generation.glan.settings import GLANSettings
from hf_select.generation.glan.stages import GLANRun
from hf_select.generation.glan.summary import Decontamination, GLANSummary, subject_key, summarize
from hf_select.generation.glan.topics_page import topics_page
from hf_select.generation.glan.tree import Question
from hf_select.jobs import journal
from hf_select.jobs.journal import Line
from hf_select.selection.decontaminate import Decontaminate
from hf_select.selection.dedup import Dedup


_STRING_LIST = pa.list_(pa.string())
PAIRS_SCHEMA = pa.schema(
    [
        (columns.ROW_ID, pa.string()),
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("field", pa.string()),
        ("sub_field", pa.string()),
        ("discipline", pa.string()),
        ("subject", pa.string()),
        ("level", pa.string()),
        ("sessions", _STRING_LIST),
        ("concepts", _STRING_LIST),
        ("question_model", pa.string()),
        ("answer_model", pa.string()),
    ]
)
_ROWS = 1000
_OVERLAP = "holds text of a test"


def build_filters(settings: GLANSettings, against: Mapping[str, Any]) -> tuple[Dedup, Decontaminate | None]:
    """The filters for duplicates and for overlap with evaluation sets.

    They are built before the first request, so that their errors cost nothing.

    Raises: ValueError if a setting or an evaluation set is invalid; ImportError without datasketch.
    """
    # Of duplicates the one that already has an answer is kept, however the taxonomy has grown; else the first.
    dedup = Dedup(threshold=settings.near_duplicates, of="prompt", keep_best_by="answered")
    if settings.near_duplicates < 1 and find_spec("datasketch") is None:
        raise ImportError(
            'the search for near duplicates needs an extra: pip install "hf-select[text]". Without it give '
            "near_duplicates=1 (--near-duplicates 1)."
        )
    if not against:
        return dedup, None
    min_words = min(8, settings.decontaminate_n)
    return dedup, Decontaminate(n=settings.decontaminate_n, min_words=min_words).fit(against)


def finish(run: GLANRun, dedup: Dedup, decontaminate: Decontaminate | None, answer: bool) -> GLANSummary:
    """Request the answers and write pairs.parquet, removed.jsonl and summary.json if `answer`; write the page of
    topics in any case."""
    pairs: Counter[str] = Counter()  # of each subject
    removed: Counter[str] = Counter()
    if answer:
        total, skipped = _skipped(run, dedup, decontaminate)
        questions = (
            question
            for number, question in _numbered_questions(run)
            if question.text is not None and number not in skipped
        )
        run.make_answers(questions, total - len(skipped))
        _write(run, skipped, decontaminate, pairs, removed)
    summary, topics = summarize(run, pairs)
    if answer:
        summary.pairs, summary.removed = sum(pairs.values()), dict(removed.most_common())
        if decontaminate is not None:
            summary.decontamination = Decontamination(decontaminate.n, decontaminate.sets_, removed[_OVERLAP])
        write_json(run.folder / "summary.json", {**summary.to_dict(), **_provenance(run)})
    with atomic_path(run.folder / "topics.html") as temporary:
        temporary.write_text(topics_page(topics, summary.counts()), encoding="utf-8")
    return summary


def _provenance(run: GLANRun) -> dict[str, Any]:
    models = {"questions": run.model, "answers": run.answer_model}
    return {
        "sha256": sha256_of(run.folder / "pairs.parquet"),
        "hf_select": __version__,
        "models": {role: {"name": model.name, "revision": model.revision} for role, model in models.items()},
        "settings": run.settings.recorded_settings(),
        "paper": None if run.settings.paper is None else asdict(run.settings.paper),
    }


def _numbered_questions(run: GLANRun) -> Iterator[tuple[int, Question]]:
    """All questions with their numbers in the run."""
    yield from enumerate(question for questions in run.tree.all_questions() for question in questions)


def _skipped(run: GLANRun, dedup: Dedup, decontaminate: Decontaminate | None) -> tuple[int, dict[int, str]]:
    """The number of questions that have a text, and the reasons of those that need no answer, by question number."""
    numbers: list[int] = []
    texts: list[str] = []
    answered: list[int] = []
    path, keys = None, set()
    for number, question in _numbered_questions(run):
        if question.text is None:
            continue
        file = run.tree.file("answers", question.subject.discipline, question.subject)
        if file != path:
            path, keys = file, set(journal.records(journal.read_lines(file)))
        numbers.append(number)
        texts.append(question.text)
        answered.append(int(question.answer_key in keys))
    if not texts:
        return 0, {}
    rows = Dataset.from_dict({"prompt": texts, "completion": [""] * len(texts), "answered": answered})
    dedup(rows)
    skipped = {numbers[row]: _duplicate_reason(reason) for row, reason in dedup.removed_.items()}
    if decontaminate is not None:
        for row in _overlaps(decontaminate, rows):
            skipped.setdefault(numbers[row], _OVERLAP)
    return len(texts), skipped


def _duplicate_reason(reason: str) -> str:
    """The reason of a removed question without the row that it repeats, so that reasons can be counted."""
    if "repeats" not in reason:
        return reason
    return "repeats another question nearly" if reason.startswith("nearly") else "repeats another question"


def _overlaps(decontaminate: Decontaminate, rows: Dataset) -> dict[int, str]:
    """Rows that overlap with an evaluation set, and how."""
    overlaps = {}
    for start in range(0, len(rows), _ROWS):
        decontaminate(rows.select(range(start, min(start + _ROWS, len(rows)))))
        overlaps.update({start + row: reason for row, reason in decontaminate.removed_.items()})
    return overlaps


def _write(
    run: GLANRun,
    skipped: Mapping[int, str],
    decontaminate: Decontaminate | None,
    pairs: Counter[str],
    removed: Counter[str],
) -> None:
    """Write pairs.parquet and removed.jsonl, one subject at a time, and add to the counts."""
    number = -1
    with atomic_path(run.folder / "pairs.parquet") as parquet, atomic_path(run.folder / "removed.jsonl") as other:
        with pq.ParquetWriter(parquet, PAIRS_SCHEMA) as writer, other.open("w", encoding="utf-8") as out:
            for questions in run.tree.all_questions():
                if not questions:
                    continue
                subject = questions[0].subject
                lines = journal.read_lines(run.tree.file("answers", subject.discipline, subject))
                answers = {key: records[-1] for key, records in journal.records(lines).items()}
                rows = []
                for question in questions:
                    number += 1
                    row = _row(run, question)
                    if reason := _complete(row, question, skipped.get(number, ""), answers):
                        _leave_out(out, removed, reason, row)
                    else:
                        rows.append(row)
                overlaps = _overlaps(decontaminate, Dataset.from_list(rows)) if decontaminate and rows else {}
                for i, text in overlaps.items():
                    _leave_out(out, removed, _OVERLAP, {**rows[i], "shares": text})
                rows = [row for i, row in enumerate(rows) if i not in overlaps]
                pairs[subject_key(subject)] = len(rows)
                if rows:
                    writer.write_table(pa.Table.from_pylist(rows, PAIRS_SCHEMA))


def _leave_out(out: TextIO, removed: Counter[str], reason: str, row: Mapping[str, Any]) -> None:
    removed[reason] += 1
    out.write(json.dumps({"reason": reason, **row}, ensure_ascii=False) + "\n")


def _row(run: GLANRun, question: Question) -> dict[str, Any]:
    """The row of a question, without its answer."""
    discipline, subject, sessions = question.subject.discipline, question.subject, question.syllabus.sessions
    field, sub_field = (*discipline.path[:-1], "", "")[:2]
    return {
        columns.ROW_ID: f"{subject_key(subject)}/{question.key}",
        "prompt": question.text if question.record is None or question.text else question.record["text"],
        "completion": "",
        "field": field,
        "sub_field": sub_field,
        "discipline": discipline.name,
        "subject": subject.fields.subject_name,
        "level": subject.fields.level,
        "sessions": [sessions[session].name for session in question.draw.sessions],
        "concepts": [sessions[session].key_concepts[i] for session, i in question.draw.concepts],
        "question_model": run.model.name,
        "answer_model": run.answer_model.name,
    }


def _complete(row: dict[str, Any], question: Question, skipped: str, answers: Mapping[str, Line]) -> str:
    """Put the answer into a row. Returns: why the row is not a pair, or ""."""
    if question.record is None:
        return "question: never asked for"
    if question.text is None:
        return f"question: {question.record['error']}"
    if skipped:
        return skipped
    answer = answers.get(question.answer_key)
    if answer is None:
        return "answer: never asked for"
    row["completion"] = answer["text"].strip()
    return f"answer: {answer['error']}" if answer["error"] else ""
