"""What a GLAN run will take, before a single request: requests, tokens and their price, by stage.

A stage that has run a little is judged by what its answers really took; before that by the assumptions below, which
say how long such texts are with current models. They may be off by a factor of two: run one discipline, and ask again.
"""

from collections import Counter
from dataclasses import dataclass

from hf_select.generation.glan.settings import STAGES
from hf_select.generation.glan.stages import GLANRun
from hf_select.jobs import journal


# Tokens of what models write for: a subject in a list, a session of a syllabus, a question, an answer.
_SUBJECT, _SESSION, _QUESTION, _ANSWER = 60, 90, 110, 400
# Of our own prompts, without what is filled in.
_PROMPT = 150
# Records from which a stage is judged by itself.
_ENOUGH = 20
# Disciplines of a taxonomy that is yet to be asked for; the paper kept 126.
_DISCIPLINES = 126


@dataclass(frozen=True)
class StageEstimate:
    """One stage: requests in all and done already, tokens still to be read and written, and their price in dollars (0
    where no prices are known)."""

    stage: str
    requests: int
    done: int
    read: int
    written: int
    price: float


def estimate(run: GLANRun) -> list[StageEstimate]:
    """The stages of a run as its settings and its folder, which may not exist yet, have them now."""
    settings = run.settings
    known = settings.taxonomy != "generate" or run.tree.taxonomy_file().exists()
    disciplines = run.tree.disciplines() if known else []
    queries = settings.queries_per_discipline
    lists = (len(disciplines) if known else _DISCIPLINES) * queries
    made = {stage: _made(run, stage) for stage in STAGES}
    # Subjects are counted where their queries are done, and assumed where they are not.
    counted = sum(len(run.tree.subjects(discipline)) for discipline in disciplines)
    subjects = counted + max(0, lists - made["subjects"]["requests"]) * settings.subjects_per_query
    questions = subjects * settings.questions_per_subject
    sessions = (settings.min_sessions + settings.max_sessions) // 2
    listed, course = settings.subjects_per_query * _SUBJECT, sessions * _SESSION
    assumed = {
        "lists": (lists, _PROMPT, listed),
        "subjects": (lists, 2 * _PROMPT + listed, listed),
        "outlines": (subjects, _PROMPT + _SUBJECT, course),
        "syllabi": (subjects, 2 * _PROMPT + course, course),
        "questions": (questions, _PROMPT + course, _QUESTION),
        "answers": (questions, _QUESTION, _ANSWER),
    }
    found = []
    for stage, (requests, read, written) in assumed.items():
        done = made[stage]
        if done["requests"] >= _ENOUGH:
            read, written = done["read"] / done["requests"], done["written"] / done["requests"]
        left = max(0, requests - done["requests"])
        prices = (settings.answer_prices or settings.prices) if stage == "answers" else settings.prices
        price = 0.0 if prices is None else left * (read * prices[0] + written * prices[1]) / 1e6
        found.append(
            StageEstimate(
                stage, requests, min(requests, done["requests"]), int(left * read), int(left * written), price
            )
        )
    return found


def _made(run: GLANRun, stage: str) -> Counter[str]:
    """Keys that are done in a stage, and the tokens that they took."""
    total: Counter[str] = Counter()
    for path in sorted((run.folder / stage).rglob("*.jsonl")):
        for records in journal.records(journal.read_lines(path)).values():
            if not records[-1].get("retryable"):
                read, written = (sum(r.get(f"{kind}_tokens", 0) for r in records) for kind in ("prompt", "completion"))
                total.update(requests=1, read=read, written=written)
    return total
