"""The end of a GLAN run: which questions are worth an answer, which pairs stay, and an account of all of them.

Copies of questions and text of evaluation sets are found before the answers are paid for. Whatever was wanted is a row
of pairs.parquet or a line of removed.jsonl with its reason. A subject's rows are in memory at a time, save for the
search for copies, which compares all questions.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from hf_select._version import __version__
from hf_select.atomic import atomic_path, sha256_of, write_json
from hf_select.data import columns
from hf_select.generation.glan import topics_page as topics
from hf_select.generation.glan.settings import STAGES, GLANSettings
from hf_select.generation.glan.stages import GLANRun
from hf_select.jobs import journal
from hf_select.selection.decontaminate import Decontaminate
from hf_select.selection.dedup import Dedup


if TYPE_CHECKING:
    from hf_select.generation.glan.tree import Asked

_TEXTS = pa.list_(pa.string())
SCHEMA = pa.schema(
    [
        (columns.ROW_ID, pa.string()),
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("field", pa.string()),
        ("sub_field", pa.string()),
        ("discipline", pa.string()),
        ("subject", pa.string()),
        ("level", pa.string()),
        ("sessions", _TEXTS),
        ("concepts", _TEXTS),
        ("question_model", pa.string()),
        ("answer_model", pa.string()),
    ]
)
_ROWS = 1000


def gates(settings: GLANSettings, against: dict[str, Any]) -> tuple[Dedup, Decontaminate | None]:
    """The searches for copies and for text of evaluation sets, made before anything is asked for: an error that could
    be told now must not come after the questions have been paid for.

    Raises: ValueError if a setting or an evaluation set makes no sense; ImportError without datasketch.
    """
    # Of copies the one that has its answer stays, wherever the taxonomy has grown; otherwise the first.
    copies = Dedup(threshold=settings.near_duplicates, of="prompt", keep_best_by="answered")
    if settings.near_duplicates < 1 and find_spec("datasketch") is None:
        raise ImportError(
            'the search for near copies needs an extra: pip install "hf-select[text]". Without it give '
            "near_duplicates=1 (--near-duplicates 1)."
        )
    rule = None
    if against:
        rule = Decontaminate(n=settings.decontaminate_n, min_words=min(8, settings.decontaminate_n)).fit(against)
    return copies, rule


def finish(run: GLANRun, copies: Dedup, rule: Decontaminate | None, answer: bool) -> dict[str, Any]:
    """Answers, pairs and removed.jsonl, if they are wanted; the summary and the page of topics in any case."""
    pairs: Counter[str] = Counter()  # of each subject
    removed: Counter[str] = Counter()
    found: dict[str, Any] = {}
    if answer:
        count, unwanted = _unwanted(run, copies, rule)
        wanted = (asked for number, asked in _numbered(run) if asked.text is not None and number not in unwanted)
        run.make_answers(wanted, count - len(unwanted))
        _write(run, unwanted, rule, pairs, removed)
        found = {"pairs": sum(pairs.values()), "removed": dict(removed.most_common())}
        if rule is not None:
            found["decontamination"] = {"n": rule.n, "sets": rule.sets_, "removed": removed["holds text of a test"]}
    tree, counts = _counts(run, pairs)
    tokens = _tokens(run)
    summary = {**counts, **found, "tokens": tokens}
    settings = run.settings
    if settings.prices is not None or settings.answer_prices is not None:
        summary["price"] = sum(
            (stage["read"] * prices[0] + stage["written"] * prices[1]) / 1e6
            for name, stage in tokens.items()
            if (prices := (settings.answer_prices or settings.prices) if name == "answers" else settings.prices)
        )
    if answer:
        write_json(run.folder / "summary.json", {**summary, **_record(run)})
    with atomic_path(run.folder / "topics.html") as temporary:
        temporary.write_text(topics.page(tree, summary), encoding="utf-8")
    return summary


def _record(run: GLANRun) -> dict[str, Any]:
    """By what the pairs were made."""
    models = {"questions": run.model, "answers": run.answer_model}
    return {
        "sha256": sha256_of(run.folder / "pairs.parquet"),
        "hf_select": __version__,
        "models": {role: {"name": model.name, "revision": model.revision} for role, model in models.items()},
        "settings": run.settings.described(),
        "paper": None if run.settings.paper is None else asdict(run.settings.paper),
    }


def _numbered(run: GLANRun) -> Iterator[tuple[int, "Asked"]]:
    """All wanted questions, by number."""
    yield from enumerate(asked for questions in run.tree.all_questions() for asked in questions)


def _unwanted(run: GLANRun, copies: Dedup, rule: Decontaminate | None) -> tuple[int, dict[int, str]]:
    """How many questions there are, and which of them need no answer, by number, and why."""
    numbers: list[int] = []
    texts: list[str] = []
    answered: list[int] = []
    path, keys = None, set()
    for number, asked in _numbered(run):
        if asked.text is None:
            continue
        file = run.tree.file("answers", asked.subject.discipline, asked.subject)
        if file != path:
            path, keys = file, set(journal.records(journal.read_lines(file)))
        numbers.append(number)
        texts.append(asked.text)
        answered.append(int(asked.answer_key in keys))
    if not texts:
        return 0, {}
    rows = Dataset.from_dict({"prompt": texts, "completion": [""] * len(texts), "answered": answered})
    copies(rows)
    unwanted = {numbers[row]: _said_of(reason) for row, reason in copies.removed_.items()}
    if rule is not None:
        for row in _shared(rule, rows):
            unwanted.setdefault(numbers[row], "holds text of a test")
    return len(texts), unwanted


def _said_of(reason: str) -> str:
    kind = "repeats another question nearly" if reason.startswith("nearly") else "repeats another question"
    return kind if "repeats" in reason else reason


def _shared(rule: Decontaminate, rows: Dataset) -> dict[int, str]:
    """Rows that share a run of words with an evaluation set."""
    found = {}
    for start in range(0, len(rows), _ROWS):
        rule(rows.select(range(start, min(start + _ROWS, len(rows)))))
        found.update({start + row: reason for row, reason in rule.removed_.items()})
    return found


def _write(
    run: GLANRun, unwanted: dict[int, str], rule: Decontaminate | None, pairs: Counter, removed: Counter
) -> None:
    """pairs.parquet and removed.jsonl, a subject at a time."""
    number = -1
    with atomic_path(run.folder / "pairs.parquet") as parquet, atomic_path(run.folder / "removed.jsonl") as other:
        with pq.ParquetWriter(parquet, SCHEMA) as writer, other.open("w", encoding="utf-8") as out:
            for questions in run.tree.all_questions():
                if not questions:
                    continue
                subject = questions[0].subject
                lines = journal.read_lines(run.tree.file("answers", subject.discipline, subject))
                answers = {key: found[-1] for key, found in journal.records(lines).items()}
                rows = []
                for asked in questions:
                    number += 1
                    reason, row = _judged(run, asked, unwanted.get(number, ""), answers)
                    if reason:
                        _leave_out(out, removed, reason, row)
                    else:
                        rows.append(row)
                bad = _shared(rule, Dataset.from_list(rows)) if rule is not None and rows else {}
                for place, why in bad.items():
                    _leave_out(out, removed, "holds text of a test", {**rows[place], "shares": why})
                rows = [row for place, row in enumerate(rows) if place not in bad]
                pairs[f"{subject.discipline.id}/{subject.id}"] = len(rows)
                if rows:
                    writer.write_table(pa.Table.from_pylist(rows, SCHEMA))


def _leave_out(out: Any, removed: Counter, reason: str, row: dict[str, Any]) -> None:
    removed[reason] += 1
    out.write(json.dumps({"reason": reason, **row}, ensure_ascii=False) + "\n")


def _judged(
    run: GLANRun, asked: "Asked", unwanted: str, answers: dict[str, dict[str, Any]]
) -> tuple[str, dict[str, Any]]:
    """Why a question is not in a pair ("" if it is), and the row."""
    discipline, subject, sessions = asked.subject.discipline, asked.subject, asked.syllabus["sessions"]
    names = (*discipline.path[:-1], "", "")[:2]
    row: dict[str, Any] = {
        columns.ROW_ID: f"{discipline.id}/{subject.id}/{asked.key}",
        "prompt": asked.text if asked.record is None or asked.text else asked.record["text"],
        "completion": "",
        "field": names[0],
        "sub_field": names[1],
        "discipline": discipline.name,
        "subject": subject.node["subject_name"],
        "level": subject.node["level"],
        "sessions": [sessions[session]["name"] for session in asked.draw.sessions],
        "concepts": [sessions[session]["key_concepts"][i] for session, i in asked.draw.concepts],
        "question_model": run.model.name,
        "answer_model": run.answer_model.name,
    }
    if asked.record is None:
        return "question: never asked for", row
    if asked.text is None:
        return f"question: {asked.record['error']}", row
    if unwanted:
        return unwanted, row
    answer = answers.get(asked.answer_key)
    if answer is None:
        return "answer: never asked for", row
    row["completion"] = answer["text"].strip()
    return f"answer: {answer['error']}" if answer["error"] else "", row


def _counts(run: GLANRun, pairs: Counter) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tree of topics for the page, and how many there are of everything."""
    tree: dict[str, Any] = {}
    counts = Counter({"disciplines": 0, "subjects": 0, "syllabi": 0, "sessions": 0, "questions": 0})
    failed: Counter[str] = Counter()
    disciplines = run.tree.disciplines() if run.tree.taxonomy_file().exists() else []
    for discipline in disciplines:
        counts["disciplines"] += 1
        branch = tree
        for name in discipline.path:
            branch = branch.setdefault(name, {})
        syllabi = run.tree.syllabi(discipline)
        subjects = run.tree.subjects(discipline)
        for stage in ("lists", "subjects", "outlines", "syllabi"):
            keys = {subject.key for subject in subjects} if stage in ("outlines", "syllabi") else None
            for key, found in journal.records(journal.read_lines(run.tree.file(stage, discipline))).items():
                if found[-1].get("error") and (keys is None or key in keys):
                    failed[f"{stage}: {found[-1]['error']}"] += 1
        for subject in subjects:
            counts["subjects"] += 1
            course = syllabi.get(subject.key)
            questions = [] if course is None else run.tree.questions(subject, course)
            counts["syllabi"] += course is not None
            counts["sessions"] += 0 if course is None else len(course["sessions"])
            counts["questions"] += sum(asked.text is not None for asked in questions)
            branch[f"{subject.id} {subject.node['subject_name']}"] = {
                "subject": subject.node["subject_name"],
                "level": subject.node["level"],
                "sessions": [session["name"] for session in course["sessions"]] if course else [],
                "questions": sum(asked.text is not None for asked in questions),
                "pairs": pairs[f"{discipline.id}/{subject.id}"],
            }
    return tree, {**counts, "failed": dict(failed.most_common())}


def _tokens(run: GLANRun) -> dict[str, dict[str, int]]:
    """What has been read and written in each stage, all attempts included that came back, and by all its runs."""

    found: dict[str, dict[str, int]] = {}
    for stage in ("taxonomy", *STAGES):
        files: list[Path] = [run.folder / "taxonomy.jsonl"] if stage == "taxonomy" else []
        total: Counter[str] = Counter()
        for path in [*files, *sorted((run.folder / stage).rglob("*.jsonl"))]:
            for line in journal.read_lines(path):
                if "key" in line:
                    total.update(
                        requests=1, read=line.get("prompt_tokens", 0), written=line.get("completion_tokens", 0)
                    )
        if total:
            found[stage] = dict(total)
    return found
