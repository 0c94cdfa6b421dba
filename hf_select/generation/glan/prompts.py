"""The prompts of GLAN and the JSON schemas of their answers. The wording is ours: the paper describes its prompts and
prints few of them.

Lists of subjects and syllabi are requested in two turns, first as free text, then as JSON: when they must write JSON
at once, models give poorer content (arXiv:2402.13064, section 2.2).
"""

from collections.abc import Sequence

from hf_select.data.chat_template import Messages
from hf_select.generation.glan.draws import Draw
from hf_select.generation.glan.parse import SubjectFields, Syllabus
from hf_select.generation.glan.taxonomy import Discipline


def _object_schema(properties: dict[str, object]) -> dict[str, object]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_STRING = {"type": "string"}
_STRINGS = {"type": "array", "items": _STRING}
NAMES_SCHEMA = _object_schema({"names": _STRINGS})
SUBJECTS_SCHEMA = _object_schema(
    {
        "subjects": {
            "type": "array",
            "items": _object_schema({"subject_name": _STRING, "level": _STRING, "subtopics": _STRINGS}),
        }
    }
)
SYLLABUS_SCHEMA = _object_schema(
    {
        "introduction": _STRING,
        "sessions": {
            "type": "array",
            "items": _object_schema({"name": _STRING, "description": _STRING, "key_concepts": _STRINGS}),
        },
    }
)


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _answered(messages: Messages, text: str, then: str) -> Messages:
    return [*messages, {"role": "assistant", "content": text}, _user(then)]


def fields(language: str) -> Messages:
    """Ask for the fields at the top of a taxonomy."""
    return [
        _user(
            "Divide everything that people study, practise and teach, from school to working life, into broad fields "
            "that together leave nothing out and hardly overlap. Give 8 to 15 of them, with names in "
            f'{language}.\n\nAnswer with JSON and nothing else: {{"names": ["...", "..."]}}'
        )
    ]


def parts(above: Sequence[str], kind: str, language: str) -> Messages:
    """Ask for the sub-fields or disciplines below a path of the taxonomy."""
    return [
        _user(
            f"In a classification of human knowledge and work stands {' > '.join(above)}. Which {kind} belong under "
            "it? Name all that a person could take courses in, none too narrow to fill a year of study, each once, in "
            f'{language}.\n\nAnswer with JSON and nothing else: {{"names": ["...", "..."]}}'
        )
    ]


def subject_list(discipline: Discipline, count: int, level: str | None, language: str) -> Messages:
    """Ask for the subjects of a discipline, as free text."""
    at = f" for learners at this level: {level}" if level else ", from the first steps to the most advanced"
    where = f" (part of {discipline.within})" if discipline.within else ""
    return [
        _user(
            f"You have planned the teaching of {discipline.name}{where} for many years. Draw up a list of about "
            f"{count} subjects that somebody who wants to master it should take{at}. For each subject say in a few "
            "lines: its name, the level it is taught at, what it is about, and the topics that it is made of. Choose "
            f"subjects that differ from each other and that together cover the discipline. Write in {language}."
        )
    ]


def subjects_from(messages: Messages, text: str) -> Messages:
    """Ask for the list of subjects in `text`, the answer to `messages`, as JSON."""
    return _answered(
        messages,
        text,
        "Put this list into JSON, every subject of it and in its order, without adding or leaving out any. Answer "
        'with JSON and nothing else:\n{"subjects": [{"subject_name": "...", "level": "...", '
        '"subtopics": ["...", "..."]}]}',
    )


def syllabus_text(
    discipline: Discipline, subject: SubjectFields, sessions: tuple[int, int], language: str
) -> Messages:
    """Ask for a syllabus as free text, with a number of sessions between two limits."""
    topics = ", ".join(subject.subtopics)
    return [
        _user(
            f"Write the syllabus of a course.\n\nSubject: {subject.subject_name}\nDiscipline: {discipline.name}\n"
            + (f"Level: {subject.level}\n" if subject.level else "")
            + (f"Topics: {topics}\n" if topics else "")
            + f"\nBegin with a short introduction. Then go through the class sessions in the order in which they are "
            f"taught, {sessions[0]} to {sessions[1]} of them. Give each session a name, describe in two or three "
            "sentences what happens in it, and list about five key concepts that learners take away from it. Later "
            f"sessions should build on earlier ones. Write in {language}."
        )
    ]


def syllabus_from(messages: Messages, text: str) -> Messages:
    """Ask for the syllabus in `text`, the answer to `messages`, as JSON."""
    return _answered(
        messages,
        text,
        "Put this syllabus into JSON, every session of it and in its order, with its key concepts as you wrote them. "
        'Answer with JSON and nothing else:\n{"introduction": "...", "sessions": [{"name": "...", '
        '"description": "...", "key_concepts": ["...", "..."]}]}',
    )


def question(subject: SubjectFields, syllabus: Syllabus, draw: Draw, language: str) -> Messages:
    """Ask for a question on the sessions and concepts of a draw."""
    course = [syllabus.introduction] if syllabus.introduction else []
    for number, session in enumerate(syllabus.sessions, 1):
        course.append(
            f"Session {number}: {session.name}\n{session.description}\nKey concepts: {'; '.join(session.key_concepts)}"
        )
    names = [f"session {s + 1} ({syllabus.sessions[s].name})" for s in draw.sessions]
    concepts = [syllabus.sessions[s].key_concepts[i] for s, i in draw.concepts]
    return [
        _user(
            f"This is the syllabus of a course on {subject.subject_name}"
            + (f" ({subject.level})" if subject.level else "")
            + ":\n\n"
            + "\n\n".join(course)
            + f"\n\nLearners have followed the course up to {names[-1]}. Set them one homework question on "
            f"{' and '.join(names)}, for which they need "
            + (f"this concept: {concepts[0]}" if len(concepts) == 1 else f"these concepts: {'; '.join(concepts)}")
            + ". "
            + (
                "It should bring both sessions together and ask for more than recalling either. "
                if len(names) > 1
                else "It should show whether they have understood. "
            )
            + "Whoever answers sees neither the syllabus nor the session, so give all that the question rests on, and "
            "do not speak of the course. It must have an answer that can be written down as text. Do not answer it. "
            f"Write the question in {language}, and nothing else."
        )
    ]


def answer(text: str) -> Messages:
    """Ask a question, and nothing else."""
    return [_user(text)]
