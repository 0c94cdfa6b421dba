"""The cost of a GLAN run before its first request: requests, tokens and price by stage.

A stage with enough finished requests is estimated from its own answers, any other from the assumptions below about the
usual lengths of such texts. They may be off by a factor of two: run one discipline, then estimate again.
"""

from dataclasses import dataclass

from hf_select.generation.glan.settings import STAGES
from hf_select.generation.glan.stages import GLANRun
from hf_select.generation.glan.summary import StageTokens
from hf_select.jobs import journal


# Tokens that models write for a subject in a list, a session of a syllabus, a question, an answer.
_SUBJECT, _SESSION, _QUESTION, _ANSWER = 60, 90, 110, 400
# Tokens of our prompts, without what is filled in.
_PROMPT = 150
# Finished requests from which on a stage is estimated from its own answers.
_MIN_FINISHED = 20
# Disciplines of a taxonomy that is not generated yet; the paper kept 126.
_DISCIPLINES = 126


@dataclass(frozen=True)
class StageEstimate:
    """Requests of a stage in total and finished, tokens still to be read and written, and their price in US dollars
    (0 without prices)."""

    stage: str
    requests: int
    done: int
    read: int
    written: int
    price: float


def estimate(run: GLANRun) -> list[StageEstimate]:
    """The estimate of each stage, from the settings and the folder of a run. The folder need not exist."""
    settings = run.settings
    has_taxonomy = settings.taxonomy != "generate" or run.tree.taxonomy_file().exists()
    disciplines = run.tree.disciplines() if has_taxonomy else []
    lists = (len(disciplines) if has_taxonomy else _DISCIPLINES) * settings.queries_per_discipline
    finished = {stage: _finished(run, stage) for stage in STAGES}
    # Subjects of finished queries are counted, those of the others assumed.
    counted = sum(len(run.tree.subjects(discipline)) for discipline in disciplines)
    subjects = counted + max(0, lists - finished["subjects"].requests) * settings.subjects_per_query
    questions = subjects * settings.questions_per_subject
    sessions = (settings.min_sessions + settings.max_sessions) // 2
    subject_list, course = settings.subjects_per_query * _SUBJECT, sessions * _SESSION
    assumed = {  # requests, tokens read and written by each
        "lists": (lists, _PROMPT, subject_list),
        "subjects": (lists, 2 * _PROMPT + subject_list, subject_list),
        "outlines": (subjects, _PROMPT + _SUBJECT, course),
        "syllabi": (subjects, 2 * _PROMPT + course, course),
        "questions": (questions, _PROMPT + course, _QUESTION),
        "answers": (questions, _QUESTION, _ANSWER),
    }
    return [
        _stage_estimate(stage, *assumed[stage], finished[stage], settings.prices_of(stage) or [0.0, 0.0])
        for stage in STAGES
    ]


def _stage_estimate(
    stage: str, requests: int, read: float, written: float, finished: StageTokens, prices: list[float]
) -> StageEstimate:
    if finished.requests >= _MIN_FINISHED:
        read, written = finished.read / finished.requests, finished.written / finished.requests
    left = max(0, requests - finished.requests)
    price = left * (read * prices[0] + written * prices[1]) / 1e6
    done = min(requests, finished.requests)
    return StageEstimate(stage, requests, done, int(left * read), int(left * written), price)


def _finished(run: GLANRun, stage: str) -> StageTokens:
    """Finished requests of a stage, each counted once, and the tokens of all its attempts."""
    total = StageTokens()
    for path in sorted((run.folder / stage).rglob("*.jsonl")):
        for records in journal.records(journal.read_lines(path)).values():
            if not records[-1].get("retryable"):
                total.requests += 1
                total.read += sum(record.get("prompt_tokens", 0) for record in records)
                total.written += sum(record.get("completion_tokens", 0) for record in records)
    return total
