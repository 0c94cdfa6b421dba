"""GLAN: what is drawn, what models may get wrong, what a person may edit, and that every pair is accounted for."""

import itertools
import json
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from scripted_generator import Scripted
from scripted_server import Reply, ScriptedServer

from hf_select.cli.main import main
from hf_select.demo import teacher
from hf_select.generation import server
from hf_select.generation.answer_filters import rejection_reason
from hf_select.generation.generator import Answer
from hf_select.generation.glan import pairs as pairs_module
from hf_select.generation.glan import parse
from hf_select.generation.glan.draws import Draw, draws, num_combinations, num_questions
from hf_select.generation.glan.run import GLAN
from hf_select.generation.glan.settings import STAGES
from hf_select.generation.glan.taxonomy import DEFAULT, read_taxonomy
from hf_select.generation.json_answers import Unparsed
from hf_select.jobs import journal


def said(body):
    return body["messages"][-1]["content"]


TAXONOMY = "Sciences:\n  Physics: [Optics, Waves]\nArts: [Music]\n"


@pytest.fixture
def glan(tmp_path):
    """Run GLAN over three disciplines; keywords change its settings."""
    file = tmp_path / "taxonomy.yaml"
    file.write_text(TAXONOMY)

    class Runs:
        folder, taxonomy = tmp_path / "out", file

        def __call__(self, model=None, run=None, **settings):
            small = {"queries_per_discipline": 2, "questions_per_subject": 4, "taxonomy": str(file)} | settings
            self.model = model or Scripted()
            return GLAN(self.model, **small).run(self.folder, **(run or {})).to_dict()

        def pairs(self):
            return pq.read_table(self.folder / "pairs.parquet").to_pylist()

        def removed(self):
            return [json.loads(line) for line in (self.folder / "removed.jsonl").read_text().splitlines()]

        def state(self):
            """All files of the stages, in an order that does not depend on which answer came first."""
            files = {
                str(path.relative_to(self.folder)): sorted(path.read_text().splitlines())
                for path in self.folder.rglob("*.jsonl")
            }
            return files, self.pairs(), self.removed()

    return Runs()


# What is drawn.


def test_combinations_are_those_of_the_paper_and_of_counting():
    assert num_combinations(5) == 31
    assert num_combinations(5, 5) == 575
    assert num_questions([5] * 20) == (20 * 31, 190 * 575) and 20 * 31 + 190 * 575 == 109_870
    for a, b in itertools.product(range(1, 6), repeat=2):
        both = [(0, i) for i in range(a)] + [(1, i) for i in range(b)]
        counted = [c for n in range(2, 6) for c in itertools.combinations(both, n) if {s for s, _ in c} == {0, 1}]
        assert num_combinations(a, b) == len(counted)


@pytest.mark.parametrize("sizes", [[5] * 20, [1, 1], [1, 7, 2], [3]])
def test_draws_keep_the_rules(sizes):
    found = draws(sizes, 400, two_session_share=0.5, seed=1)
    for draw in found:
        assert len(draw.sessions) == len({s for s, _ in draw.concepts}) <= 2
        assert {s for s, _ in draw.concepts} == set(draw.sessions), "a two-session question left one session out"
        assert len(draw.sessions) <= len(draw.concepts) <= 5 and list(draw.concepts) == sorted(set(draw.concepts))
        assert all(0 <= i < sizes[s] for s, i in draw.concepts)
    two = sum(len(draw.sessions) == 2 for draw in found) / len(found)
    if len(sizes) == 20:
        assert 0.42 < two < 0.58 and len(set(found)) == len(found), "a combination came twice though there are many"
        assert {len(draw.concepts) for draw in found} == {1, 2, 3, 4, 5}
    assert all(len(draw.sessions) == 1 for draw in draws(sizes, 50, 0.0, seed=1))
    assert len(sizes) == 1 or all(len(draw.sessions) == 2 for draw in draws(sizes, 50, 1.0, seed=1))


def test_what_is_drawn_is_drawn_alike():
    one = draws([3], 7 * 2000, 0.0, seed=5)
    sizes = Counter(len(draw.concepts) for draw in one[:7])
    assert sizes == {1: 3, 2: 3, 3: 1}
    firsts = [draws([4, 4, 4], 1, 0.5, seed)[0] for seed in range(6000)]
    two = [draw for draw in firsts if len(draw.sessions) == 2]
    assert abs(len(two) / 6000 - 0.5) < 0.03
    for what in (
        Counter(draw.sessions for draw in two),
        Counter(len(draw.concepts) for draw in two),
        Counter(draw.concepts for draw in two if len(draw.concepts) == 2),
    ):
        mean = sum(what.values()) / len(what)
        assert all(abs(count - mean) < 5 * mean**0.5 for count in what.values()), what
    assert len(Counter(draw.concepts for draw in two if len(draw.concepts) == 2)) == 3 * 16


def test_the_same_seed_gives_the_same_draws_and_more_draws_go_on_from_fewer():
    sizes = [4, 5, 6, 5]
    assert draws(sizes, 30, 0.5, seed=3) == draws(sizes, 50, 0.5, seed=3)[:30]
    assert draws(sizes, 30, 0.5, seed=3) != draws(sizes, 30, 0.5, seed=4)


def test_a_small_syllabus_is_exhausted_before_anything_repeats():
    found = draws([2, 1], 40, 0.5, seed=0)
    assert num_questions([2, 1]) == (3 + 1, 3)
    assert len(set(found[:7])) == len(set(found[7:14])) == 7 and len(found) == 40
    assert len(set(draws([2, 1], 3, 1.0, seed=0))) == 3 and len(set(draws([2, 1], 4, 0.0, seed=0))) == 4
    assert Draw((0, 1), ((0, 0), (0, 1), (1, 0))) in found[:7]


# Reading what models write.

GOOD = {"subjects": [{"subject_name": "Optics", "level": "basic", "subtopics": ["lenses", "light"]}]}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(GOOD),
        "Here you are:\n```json\n" + json.dumps(GOOD, indent=2) + "\n```\nAnything else?",
        json.dumps(GOOD["subjects"]),
        json.dumps(GOOD["subjects"][0]),
        json.dumps({"result": GOOD["subjects"]}),
        '{"subjects": [{"subject_name": "Optics", "level": "basic", "subtopics": ["lenses", "light",],},]}',
        '{"subjects": [{"subject_name": " Optics ", "level": "basic", "subtopics": "lenses, light"}]}',
    ],
)
def test_json_is_read_as_models_write_it(text):
    assert [subject.to_dict() for subject in parse.subjects(text)] == GOOD["subjects"]


def test_one_object_a_line_is_a_list():
    lines = "Sure!\n" + "\n".join(json.dumps({**GOOD["subjects"][0], "subject_name": n}) for n in ("A", "B", "C"))
    assert [subject.subject_name for subject in parse.subjects(lines)] == ["A", "B", "C"]


@pytest.mark.parametrize(
    "text, reason",
    [
        ("I would rather not.", "no JSON"),
        ('{"subjects": [{"subject_name": "Opt', "broken or not finished"),
        ('{"subjects": []}', 'no list of subjects|item 1 has no text under the key "subject_name"'),
        ('{"subjects": [{"subject_name": "A"}, {"level": "x"}]}', 'item 2 has no text under the key "subject_name"'),
        ('{"subjects": ["A", "B"]}', "item 1 has no text"),
    ],
)
def test_what_is_not_there_is_not_guessed(text, reason):
    with pytest.raises(Unparsed, match=reason):
        parse.subjects(text)


def test_a_syllabus_needs_key_concepts_in_every_session():
    sessions = [{"name": "A", "description": "d", "key_concepts": ["x", "y", "x"]}, {"name": "B", "key_concepts": []}]
    assert parse.syllabus(json.dumps({"sessions": sessions[:1]})).sessions[0].key_concepts == ["x", "y"]
    with pytest.raises(Unparsed, match='item 2 has no list of texts under the key "key_concepts"'):
        parse.syllabus(json.dumps({"introduction": "", "sessions": sessions}))


@pytest.mark.parametrize(
    "text, reason",
    [
        ("  ", "empty"),
        ("I'm sorry, but I can't help with that.", "refused"),
        ("I am sorry, but I cannot assist with this request.", "refused"),
        ("As an AI language model, I do not have opinions.", "refused"),
        ("I cannot provide that.", "refused"),
        ("Es tut mir leid, dabei kann ich nicht helfen.", "refused"),
        ("Lo siento", ""),
        ("I'm sorry for your loss: here is a letter of condolence.", ""),
        ("As an AI system grows, so does its cost.", ""),
        ("Unfortunately, the reaction does not go to completion.", ""),
        ("She said: \"I'm sorry, but I can't stay.\"", ""),
        ("I can write it as x = 2.", ""),
    ],
)
def test_refusals_are_told_from_answers(text, reason):
    assert rejection_reason(Answer(text, "stop"), ["es tut mir leid"]) == reason
    assert rejection_reason(Answer(text, "length"), []) == "cut off at max_new_tokens"


def test_thoughts_before_an_answer_are_taken_off(glan):
    glan(Scripted(lambda body: f"<think>\n{{Hm}}, let me see.\n</think>\n\n{teacher(body)}"))
    pairs = glan.pairs()
    assert len(pairs) == 48 and not any("think" in pair["prompt"] + pair["completion"] for pair in pairs)


# The files.


def test_a_torn_end_is_taken_away_and_a_slip_of_a_person_is_not(tmp_path):
    path = tmp_path / "a.jsonl"
    journal.append(path, [{"id": "1", "of": "k"}, {"key": "k"}])
    journal.append(path, [{"id": "2", "of": "l"}, {"key": "l"}])
    whole = path.read_bytes()
    block = len(whole) // 2
    for end in range(block, len(whole)):
        path.write_bytes(whole[:end])
        lines = journal.read_lines(path)
        assert [line.get("id") for line in journal.nodes(lines)] == (["1", "2"] if end == len(whole) - 1 else ["1"])
        journal.append(path, [{"key": "new"}])
        assert path.read_bytes().endswith(b'}\n{"key": "new"}\n')
    path.unlink()
    journal.append(path, [{"key": "k", "text": "a\u2028b\x0bc\x85d\r\ne"}])
    assert journal.read_lines(path) == [{"key": "k", "text": "a\u2028b\x0bc\x85d\r\ne"}]
    path.write_text('{"key": "k"}\n{"id": "mine"}')  # an editor that leaves out the last line break
    assert len(journal.read_lines(path)) == 2
    path.write_text('{"key": "k"}\n{"id": mine}\n{"key": "l"}\n')
    with pytest.raises(ValueError, match='line 2 of ".*a.jsonl" is not a JSON object'):
        journal.read_lines(path)


# Whole runs.


def test_every_question_is_a_pair_of_its_own_topic(glan):
    summary = glan()
    pairs = glan.pairs()
    assert summary["pairs"] == len(pairs) == 3 * 2 * 2 * 4 and not glan.removed()
    assert len({pair["row_id"] for pair in pairs}) == len({pair["prompt"] for pair in pairs}) == len(pairs)
    for pair in pairs:
        assert pair["completion"].startswith(f"An answer to {pair['prompt'][:20]}")
        assert all(concept in pair["prompt"] for concept in pair["concepts"])
        assert {concept.rpartition(".")[0] for concept in pair["concepts"]} == set(pair["sessions"])
    assert [pair["discipline"] for pair in pairs] == ["Optics"] * 16 + ["Waves"] * 16 + ["Music"] * 16
    assert (pairs[0]["field"], pairs[0]["sub_field"], pairs[-1]["field"]) == ("Sciences", "Physics", "Arts")
    assert Counter(len(pair["sessions"]) for pair in pairs).keys() == {1, 2}


def test_the_question_sees_the_whole_syllabus_and_the_answer_only_the_question(glan):
    glan()
    asked = [said(body) for body in glan.model.seen if "Set them one homework question" in said(body)]
    assert all(text.count("Session ") == 3 and text.count("Key concepts:") == 3 for text in asked)
    answers = glan.model.seen[-48:]
    assert {said(body) for body in answers} == {pair["prompt"] for pair in glan.pairs()}
    assert all(len(body["messages"]) == 1 for body in answers)
    assert all(body["schema"] is None for body in glan.model.seen if len(body["messages"]) == 1)
    assert all(body["schema"] is not None for body in glan.model.seen if len(body["messages"]) == 3)


def test_the_same_seed_gives_the_same_run_in_whatever_order_answers_come(glan, tmp_path):
    glan(Scripted(order=1))
    first = glan.state()
    glan.folder = tmp_path / "again"
    glan(Scripted(order=2))
    assert glan.state() == first
    glan.folder = tmp_path / "other"
    glan(seed=1)
    assert not {p["prompt"] for p in glan.pairs()} & {p["prompt"] for p in first[1]}


def test_a_finished_run_asks_nothing_and_more_of_anything_asks_only_for_that(glan):
    glan()
    before = glan.pairs()
    glan()
    assert not glan.model.seen
    glan(questions_per_subject=5)
    assert len(glan.model.seen) == 2 * 12
    assert [pair for pair in glan.pairs() if pair["row_id"] in {b["row_id"] for b in before}] == before
    glan.taxonomy.write_text("Trades: [Welding]\n" + TAXONOMY)
    glan(questions_per_subject=5)
    assert len(glan.model.seen) == 2 * 2 + 4 * 2 + 20 * 2, "something was redone for a new field"
    assert [p for p in glan.pairs() if p["row_id"] in {b["row_id"] for b in before}] == before
    glan()
    assert not glan.model.seen and len(glan.pairs()) == 48 + 16, "fewer questions are wanted, none is asked for"


def test_a_person_may_veto_edit_and_add_between_the_stages(glan):
    glan(run={"until": "subjects"})
    assert not (glan.folder / "outlines").exists()
    path = next((glan.folder / "subjects").glob("optics-*.jsonl"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    nodes = [line for line in lines if "id" in line]
    keep = [line for line in lines if line is not nodes[0]]
    nodes[1]["subject_name"] = "Fibre optics"
    keep.append({"subject_name": "Mirrors", "subtopics": ["reflection"]})
    path.write_text("".join(json.dumps(line) + "\n" for line in keep))
    glan(run={"until": "syllabi"})
    assert not any(said(body).startswith("Draw up") for body in glan.model.seen)
    told = "\n".join(said(body) for body in glan.model.seen)
    assert "Subject: Fibre optics" in told and "Subject: Mirrors" in told and nodes[0]["subject_name"] not in told
    summary = glan()
    subjects = {pair["subject"] for pair in glan.pairs() if pair["discipline"] == "Optics"}
    assert subjects == {"Fibre optics", "Mirrors", *(node["subject_name"] for node in nodes[2:])}
    assert summary["pairs"] == 48

    # A changed session makes new questions for that course alone; a vetoed discipline takes its pairs with it.
    course = next((glan.folder / "syllabi").glob("waves-*.jsonl"))
    changed = [json.loads(line) for line in course.read_text().splitlines()]
    changed[0]["sessions"][0]["key_concepts"] = ["interference"]
    course.write_text("".join(json.dumps(line) + "\n" for line in changed))
    glan.taxonomy.write_text("Sciences:\n  Physics: [Optics, Waves]\n")
    glan()
    assert len(glan.model.seen) == 4 + 4 and len(glan.pairs()) == 32
    glan.taxonomy.write_text(TAXONOMY)
    glan()
    assert not glan.model.seen and len(glan.pairs()) == 48


@pytest.mark.parametrize(
    "line, reason",
    [
        ({"level": "x"}, 'no text under the key "subject_name"'),
        ({"id": "../x", "subject_name": "A"}, "is not a file name"),
        ({"id": "0.0", "subject_name": "A"}, 'another has the id "0.0"'),
    ],
)
def test_a_line_that_cannot_be_used_is_named(glan, line, reason):
    glan(run={"until": "subjects"})
    path = next((glan.folder / "subjects").glob("optics-*.jsonl"))
    journal.append(path, [line])
    with pytest.raises(ValueError, match=f"subject 5 of .*optics.*cannot be used.*{reason}"):
        glan()


def test_what_cannot_be_read_is_told_why_and_asked_once_more(glan):
    def script(body):
        if len(body["messages"]) == 3 and "Put this" in said(body):
            return {0: "Of course! Which format?", 1: '{"subjects": [{"sub', 2: None}[body["seed"] % 3]
        if len(body["messages"]) == 5:
            assert "That cannot be read: " in said(body) and "JSON" in said(body)
            return teacher({**body, "messages": body["messages"][:3], "seed": 0})
        return None

    summary = glan(Scripted(script))
    assert not summary["failed"] and len(glan.pairs()) == 48
    repairs = sum(len(body["messages"]) == 5 for body in glan.model.seen)
    assert 0 < repairs < 18
    lines = [json.loads(line) for path in glan.folder.rglob("*.jsonl") for line in path.read_text().splitlines()]
    assert sum(bool(line.get("repaired")) for line in lines) == repairs
    assert all(line["text"] for line in lines if line.get("unparsed")), "the answer that could not be read is kept"
    glan()
    assert not glan.model.seen


def test_what_fails_is_kept_with_its_reason_and_asked_again_only_on_request(glan):
    bad = True

    def script(body):
        if not bad:
            return None
        if "discipline" not in body and "Waves" in said(body) and "Draw up" in said(body):
            return "I'm sorry, but I can't help with that."
        if "Put this syllabus" in said(body) and "Optics" in body["messages"][0]["content"]:
            return "no json, ever"
        if len(body["messages"]) == 5:
            return "still none"
        if "Set them one" in said(body):
            return {0: Answer("Half a quest", "length", 3, 2), 1: Answer("", "stop", 3, 2)}.get(body["seed"] % 4)
        if len(body["messages"]) == 1 and "explain" in said(body):
            return {0: "As an AI, I can't say.", 1: Answer("Half", "length")}.get(body["seed"] % 3)
        return None

    summary = glan(Scripted(script), questions_per_subject=10)
    assert summary["failed"] == {"syllabi: there is no JSON in the answer": 4, "lists: refused": 2}
    wanted = 4 * 10  # of music alone
    assert len(glan.pairs()) + len(glan.removed()) == wanted == summary["pairs"] + sum(summary["removed"].values())
    cut = "cut off at max_new_tokens"
    assert set(summary["removed"]) == {f"question: {cut}", "question: empty", "answer: refused", f"answer: {cut}"}
    assert all(row["prompt"] is not None and row["row_id"] for row in glan.removed())
    assert next(row for row in glan.removed() if row["reason"] == "answer: refused")["completion"].startswith("As an")
    glan(Scripted(script), questions_per_subject=10)
    assert not glan.model.seen, "what failed for good was asked again without being told to"
    bad = False
    summary = glan(Scripted(script), run={"retry_failed": True})
    assert not summary["failed"] and not summary["removed"] and summary["pairs"] == 48


def test_answers_lost_with_their_server_are_asked_for_by_the_next_run(glan):
    lost = Answer(error="503 gone", retryable=True)
    glan(
        Scripted(
            lambda body: lost if (body["seed"] // 8) % 5 == 0 and random.Random(body["seed"]).random() < 0.9 else None
        )
    )
    assert any(
        json.loads(line).get("retryable") for p in glan.folder.rglob("*.jsonl") for line in p.read_text().splitlines()
    )
    summary = glan()
    assert glan.model.seen and summary["pairs"] == 48 and not summary["failed"] and not summary["removed"]


def test_copies_cost_no_answer_and_the_one_that_is_answered_stays(glan):
    text = "How does the loudness of a string change when it is plucked twice as far from its rest, and why is it so"

    def script(body):
        if "Set them one" in said(body) and body["seed"] % 2:
            return text + random.Random(body["seed"]).choice(["?", "!", " today?"])
        return None

    summary = glan(Scripted(script))
    copies = summary["removed"]["repeats another question"] + summary["removed"]["repeats another question nearly"]
    assert summary["pairs"] + copies == 48 and copies > 10
    assert sum(pair["prompt"].startswith(text[:30]) for pair in glan.pairs()) == 1
    assert sum(said(body).startswith(text[:30]) for body in glan.model.seen) == 1, "a copy was answered"
    kept = [pair for pair in glan.pairs() if pair["prompt"].startswith(text[:30])]
    glan.taxonomy.write_text("Trades: [Welding]\n" + TAXONOMY)
    glan(Scripted(script))
    again = [pair for pair in glan.pairs() if pair["prompt"].startswith(text[:30])]
    assert again == kept, "a field that was added took the place of what was there"


def test_text_of_evaluation_sets_is_left_out_of_questions_and_answers(glan):
    leak = "a train leaves the station at noon and another one leaves at one how long until they meet"

    def script(body):
        if "Set them one" in said(body) and body["seed"] % 5 == 0:
            return f"{random.Random(body['seed']).random()} Consider: {leak}? Say why."
        if len(body["messages"]) == 1 and "explain" in said(body) and body["seed"] % 5 == 0:
            return f"Well, {leak.upper()}!"
        return None

    tests = Dataset.from_list([{"prompt": f"If {leak}, what then?", "completion": "An hour."}])
    summary = glan(Scripted(script), run={"against": {"exam": tests}}, near_duplicates=1.0)
    assert summary["decontamination"]["n"] == 13 and summary["decontamination"]["removed"] > 5
    assert summary["pairs"] + summary["removed"]["holds text of a test"] == 48
    assert not any(leak in (pair["prompt"] + pair["completion"]).lower() for pair in glan.pairs())
    assert not any(said(body).startswith("0.") for body in glan.model.seen[-40:]), "a question of a test was answered"
    assert any("shares 13 words with exam item 0" in row.get("shares", "") for row in glan.removed())


def test_what_the_gates_cannot_do_is_said_before_anything_is_asked(glan, monkeypatch):
    short = Dataset.from_list([{"prompt": "2 + 2?", "completion": "4"}])
    with pytest.raises(ValueError, match='"exam" is empty'):
        glan(run={"against": {"exam": short.select([])}})
    with pytest.raises(ValueError, match="threshold is 1.5"):
        glan(near_duplicates=1.5)
    with pytest.raises(ValueError, match="n is 0"):
        glan(decontaminate_n=0, run={"against": {"exam": short}})
    monkeypatch.setattr(pairs_module, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"hf-select\[text\].*near_duplicates=1"):
        glan()
    assert not glan.model.seen and not glan.folder.exists()


def test_a_taxonomy_can_be_asked_of_the_model_and_vetoed(glan):
    glan(taxonomy="generate", run={"until": "taxonomy"})
    path = glan.folder / "taxonomy.yaml"
    found = read_taxonomy(path)
    assert len(found) == 8 and {d.path[0] for d in found} == {"Sciences", "Arts"}
    assert len(glan.model.seen) == 1 + 2 + 4
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if found[0].name not in line))
    summary = glan(taxonomy="generate", queries_per_discipline=1, questions_per_subject=1)
    assert summary["disciplines"] == 7 and summary["pairs"] == 14


def test_a_taxonomy_that_fails_is_asked_again_on_request(glan):
    fails = Scripted(
        lambda body: "I'd rather not." if "classification" in said(body) or len(body["messages"]) > 1 else None
    )
    with pytest.raises(ValueError, match="2 of 2 requests for sub-fields of the taxonomy failed .there is no JSON"):
        glan(fails, taxonomy="generate")
    assert glan(taxonomy="generate", run={"until": "taxonomy", "retry_failed": True})["disciplines"] == 8


def test_our_own_list_of_disciplines_is_whole():
    found = read_taxonomy(DEFAULT)
    assert len(found) >= 126 and len({d.id for d in found}) == len({d.name for d in found}) == len(found)
    assert len({d.path[0] for d in found}) >= 10 and all(len(d.path) == 3 for d in found)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "is empty"),
        ("Sciences:\n", "is empty"),
        ("A: &a\n  B: *a\n", "is cyclic: A > B contains itself"),
        ("A: &a [x, *a]\n", "is cyclic: A contains itself"),
        ("A: {B: {A: [x]}}", "is cyclic: A > B > A"),
        ("A: {B: {C: [x]}}", "too deep at A > B > C > x"),
        ("A: [x, y, x]", "names A > x twice"),
        ("A: [x\n", "is not valid YAML at line"),
        ('A: ["", x]', "nameless entry under A"),
    ],
)
def test_the_errors_of_a_taxonomy(glan, text, reason):
    glan.taxonomy.write_text(text)
    with pytest.raises(ValueError, match=reason):
        glan()
    assert not glan.folder.exists()


def test_the_same_name_in_two_fields_is_two_disciplines(glan):
    glan.taxonomy.write_text("A: [Calculus]\nB: [Calculus]\n")
    glan()
    assert len({p["row_id"] for p in glan.pairs()}) == len({p["prompt"] for p in glan.pairs()}) == 32
    glan.taxonomy.write_text("- Music\n- Law\n")  # a bare list
    assert {(p["field"], p["discipline"]) for p in (glan(), glan.pairs())[1]} == {("", "Music"), ("", "Law")}


@pytest.mark.parametrize(
    "settings",
    [
        {"queries_per_discipline": 0}, {"questions_per_subject": 0}, {"subjects_per_query": 0}, {"min_sessions": 0},
        {"max_sessions": 5}, {"two_session_share": 1.5}, {"temperature": -1.0}, {"answer_top_p": 0.0},
    ],
)  # fmt: skip
def test_settings_that_make_no_sense(settings):
    name = next(iter(settings)).removeprefix("answer_")
    with pytest.raises(ValueError, match=f"{name} is {next(iter(settings.values()))}"):
        GLAN(Scripted(), **settings)


def test_a_folder_holds_one_run_and_one_process(glan):
    glan(run={"until": "subjects"})
    with pytest.raises(ValueError, match="of another run .language English there, German here"):
        glan(language="German")
    other = Scripted()
    other.name = "another"
    with pytest.raises(ValueError, match="model scripted there, another here"):
        glan(other)
    begun, go = threading.Event(), threading.Event()

    def slow(body):
        begun.set()
        go.wait(20)

    thread = threading.Thread(target=lambda: glan(Scripted(slow)))
    thread.start()
    begun.wait(20)
    with pytest.raises(ValueError, match="another process is running"):
        glan()
    go.set()
    thread.join()
    (glan.folder.parent / "mine").mkdir()
    (glan.folder.parent / "mine" / "thesis.tex").touch()
    glan.folder = glan.folder.parent / "mine"
    with pytest.raises(ValueError, match="holds other files"):
        glan()


def test_language_and_level_are_asked_for(glan):
    glan(language="Swahili", level="secondary school")
    free = [said(body) for body in glan.model.seen if len(body["messages"]) == 1 and "explain" not in said(body)]
    assert free and all("Swahili" in text for text in free)
    assert all("secondary school" in text for text in free if "Draw up" in text)


def test_the_page_of_topics_shows_the_tree_and_runs_nothing(glan):
    glan.taxonomy.write_text('"<script>alert(1)</script>": ["A & B"]\n')
    glan(questions_per_subject=2)
    page = (glan.folder / "topics.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "A &amp; B" in page and "<script" not in page
    assert "4 subjects, 8 questions, 8 pairs" in page and "http" not in page


def test_pairs_go_straight_into_scoring(glan, tmp_path):
    glan()
    words = ["--dataset", str(glan.folder / "pairs.parquet"), "--output-dir", str(tmp_path / "scores")]
    assert main(["score", "--scorer", "length", *words]) == 0


def test_the_ledger_counts_every_answer_that_came_back(glan):
    summary = glan()
    requests = {stage: tokens["requests"] for stage, tokens in summary["tokens"].items()}
    assert requests == {"lists": 6, "subjects": 6, "outlines": 12, "syllabi": 12, "questions": 48, "answers": 48}
    assert sum(tokens["read"] for tokens in summary["tokens"].values()) == glan.model.usage.prompt_tokens == 3 * 132
    assert glan()["tokens"] == summary["tokens"], "a second run forgets what the first has cost"


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_nothing(glan, tmp_path):
    """Children are killed at random moments; then one finishes. Its files are those of a run that nobody killed."""
    kills, dice = int(os.environ.get("HF_SELECT_KILLS", "6")), random.Random(0)
    # The requests take two seconds at eight a time, and the children together less: most die with work left.
    with ScriptedServer(lambda body: Reply(teacher(body), delay=dice.uniform(0, 0.1))) as server:
        runs = {}
        for name, moments in (("whole", []), ("killed", [dice.uniform(0.05, 3 / kills) for _ in range(kills)])):
            folder, begin = tmp_path / name, len(server.seen)
            done = subprocess.run(
                [sys.executable, "glan_killed.py", folder, glan.taxonomy, server.url],
                input="".join(f"{moment}\n" for moment in moments),
                cwd=Path(__file__).parents[1] / "support", text=True, capture_output=True, timeout=240,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            glan.folder = folder
            runs[name] = (glan.state(), len(server.seen) - begin, int(done.stdout))
    (whole, asked, _), (found, asked_in_pieces, killed) = runs["whole"], runs["killed"]
    assert killed > kills // 2, "too few were at work when they were killed"
    assert found == whole and len(found[1]) == 144
    assert asked == 6 + 6 + 12 + 12 + 144 + 144
    assert asked_in_pieces <= asked + 16 * killed, "what was finished was asked for again"
    assert (tmp_path / "killed" / "pairs.parquet").read_bytes() == (tmp_path / "whole" / "pairs.parquet").read_bytes()


# Over the wire, with a server that does everything wrong, and from the command line.


def test_a_bad_server_loses_and_doubles_nothing(glan, tmp_path, capsys, monkeypatch):
    """Broken JSON, refusals, 429, 500, cut connections, answers that repeat and a server that hangs: every question
    that was wanted is a pair or has its reason, and none is there twice."""
    monkeypatch.setattr(server, "_FIRST_BACKOFF", 0.01)
    times: Counter = Counter()
    mishaps = [
        Reply("slow down", 429, {"Retry-After": "0"}), Reply("worker died", 500), Reply(cut=True), Reply(hang=True),
        Reply(raw='{"choices": [{"mess'), Reply(raw="<html>"), None, None,
    ]  # fmt: skip

    def script(body):
        key = json.dumps([body["messages"], body["seed"]])
        times[key] += 1
        dice = random.Random(key)
        mishap = mishaps[dice.randrange(len(mishaps))]
        asked, kind = body["messages"][-1]["content"], dice.random()
        if times[key] == 1 and mishap is not None and (not mishap.hang or "explain" in asked):
            return mishap
        if len(body["messages"]) == 5:
            return "Sorry, no." if kind < 0.3 else teacher({**body, "messages": body["messages"][:3]})
        if "Put this" in asked and kind < 0.5:  # to be told what is wrong
            return "Here is the JSON: {" + teacher(body)[:40]
        if "Set them one" in asked and kind < 0.3:
            return "Why does a string sound lower when it is longer, and by how much if it is twice as long?"
        if len(body["messages"]) == 1 and "explain" in asked and kind < 0.2:
            return "I'm sorry, but I can't help with that."
        if len(body["messages"]) == 1 and "explain" in asked and kind < 0.3:
            return Reply("half an ans", finish_reason="length")
        return teacher(body)

    with ScriptedServer(script) as bad:
        words = [
            *("--model", "scripted", "--base-url", bad.url, "--taxonomy", str(glan.taxonomy), "--timeout", "5"),
            *("--output-dir", str(glan.folder), "--queries-per-discipline", "3", "--questions-per-subject", "9"),
        ]
        assert main(["generate", "glan", *words]) == 0
        first = len(bad.seen)
        assert main(["generate", "glan", *words]) == 0
        assert len(bad.seen) == first, "a finished run asked again"
    assert max(times.values()) == 2, "a request was sent again without need"
    summary = json.loads((glan.folder / "summary.json").read_text())
    pairs, removed = glan.pairs(), glan.removed()
    ids = [row["row_id"] for row in (*pairs, *removed)]
    assert len(ids) == len(set(ids)) == summary["syllabi"] * 9 and len(pairs) > 20
    assert len({pair["prompt"] for pair in pairs}) == len(pairs)
    assert {"repeats another question", "answer: refused", "answer: cut off at max_new_tokens"} <= set(
        summary["removed"]
    )
    assert sum(summary["removed"].values()) == len(removed)
    lines = [json.loads(line) for path in glan.folder.rglob("*.jsonl") for line in path.read_text().splitlines()]
    assert any(line.get("repaired") for line in lines) and not any(line.get("retryable") for line in lines)
    assert "asks for it again" in capsys.readouterr().out


def fails(capsys, *words: str) -> str:
    """The one line that a failing command prints."""
    assert main(["generate", "glan", *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-select: error: ")]
    return line


def test_bad_input_is_one_clear_line(glan, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)

    def script(body):
        if body["model"] != "tiny":
            return Reply(f"The model `{body['model']}` does not exist.", 404)
        return Reply("Unauthorized", 401)

    with ScriptedServer(script) as strict:

        def error(**changed: str) -> str:
            flags = {"model": "tiny", "base-url": strict.url, "taxonomy": str(glan.taxonomy)}
            flags = {**flags, "output-dir": str(glan.folder), **changed}
            return fails(capsys, *(word for key, value in flags.items() for word in (f"--{key}", value)))

        assert "refuses the key (401 Unauthorized): no key was sent" in error()
        assert "variable NOT_SET is not set" in error(**{"api-key-env": "NOT_SET"})
        assert 'knows no model "huge"' in error(model="huge", **{"output-dir": str(tmp_path / "other")})
        assert "does not answer" in error(**{"base-url": "http://127.0.0.1:9/v1"})
        assert "must be an address such as" in error(**{"base-url": "localhost"})
        assert "queries_per_discipline is 0" in error(**{"queries-per-discipline": "0"})
        assert "questions_per_subject is 0" in error(**{"questions-per-subject": "0"})
        assert "give two numbers" in error(prices="3")
        assert "needs the name of its model: --answer-model" in error(**{"answer-base-url": "http://x/v1"})
        assert "cannot read refusals" in error(refusals="none.txt")
        assert 'no taxonomy file "none.yaml"' in error(taxonomy="none.yaml")
        assert 'no file or folder "none.jsonl"' in error(against="exam=none.jsonl")
        assert "invalid choice" in error(until="tomorrow")
        for text, reason in (("", "is empty"), ("A: &a {B: *a}\n", "is cyclic")):
            (tmp_path / "bad.yaml").write_text(text)
            assert reason in error(taxonomy=str(tmp_path / "bad.yaml"))
        (tmp_path / "file").touch()
        assert "cannot write to output folder" in error(**{"output-dir": str(tmp_path / "file" / "o")})
    assert "needs --model" in fails(capsys, "--output-dir", "o")
    assert "Did you mean --taxonomy" in fails(capsys, "--taxonmy", "x")
    assert main(["generate", "magic"]) == 2 and 'unknown method "magic"' in capsys.readouterr().err


def test_a_dry_run_asks_and_writes_nothing_and_learns_from_what_has_run(glan, capsys):
    def estimate(folder):
        words = ["--model", "m", "--base-url", "http://127.0.0.1:9/v1", "--taxonomy", str(glan.taxonomy), "--dry-run"]
        counts = ["--queries-per-discipline", "2", "--questions-per-subject", "10", "--prices", "1", "3"]
        assert main(["generate", "glan", *words, *counts, "--output-dir", str(folder)]) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
        return {line[0]: [float(word.replace(",", "")) for word in line[1:]] for line in lines[2:]}

    table = estimate(glan.folder)
    assert not glan.folder.exists()
    assert 'no taxonomy file "x.yaml"' in fails(
        capsys, *("--model", "m", "--taxonomy", "x.yaml", "--output-dir", "o", "--dry-run")
    )
    assert [table[stage][0] for stage in STAGES] == [6, 6, 90, 90, 900, 900] and table["all"][0] == 1992
    assert all(abs(row[4] - (row[2] + 3 * row[3]) / 1e6) < 0.01 for row in table.values())
    glan(questions_per_subject=4)
    table = estimate(glan.folder)
    assert [table[stage][:2] for stage in STAGES] == [[6, 6], [6, 6], [12, 12], [12, 12], [120, 48], [120, 48]]
    assert table["questions"][2:4] == [72 * 3, 72 * 2], "the tokens that the stage has taken are known"


def test_the_answers_may_come_from_another_server(glan):
    def only(model):
        return lambda body: teacher(body) if body["model"] == model else Reply("wrong server", 404)

    with ScriptedServer(only("writer")) as first, ScriptedServer(only("solver")) as second:
        words = [
            *(
                "--model",
                "writer",
                "--base-url",
                first.url,
                "--answer-model",
                "solver",
                "--answer-base-url",
                second.url,
            ),
            *("--taxonomy", str(glan.taxonomy), "--output-dir", str(glan.folder), "--queries-per-discipline", "1"),
        ]
        assert main(["generate", "glan", *words, "--questions-per-subject", "2"]) == 0
    assert {(pair["question_model"], pair["answer_model"]) for pair in glan.pairs()} == {("writer", "solver")}
    assert len(second.seen) == 12 and all(body["temperature"] == 0.7 for body in second.seen)
    assert all((body["temperature"], body["top_p"]) == (1.0, 0.95) for body in first.seen)


def test_the_price_is_said_before_the_first_request_and_many_need_a_yes(glan, capsys, monkeypatch):
    asked = []

    def script(body):
        asked.append(body)
        return teacher(body)

    with ScriptedServer(script) as server:
        words = ["--model", "m", "--base-url", server.url, "--output-dir", str(glan.folder)]
        many = ["--taxonomy", str(glan.taxonomy), "--queries-per-discipline", "9", "--questions-per-subject", "12"]
        said = fails(capsys, *words, *many)
        assert "about 10,584 requests" in said and "add --yes" in said
        assert not asked and not glan.folder.exists()
        monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": staticmethod(lambda: True)}))
        questions = []
        for answer in ("", "n", "y"):
            monkeypatch.setattr("builtins.input", lambda text, answer=answer: questions.append(text) or answer)
            one = [*many[:2], "--until", "subjects"]
            assert main(["generate", "glan", *words, *one]) == (0 if answer == "y" else 2)
            printed = capsys.readouterr()
            assert "still to do" in printed.out and "At most" not in printed.out, "six requests are two stages of six"
            assert ("nothing was asked" in printed.err) == (answer != "y")
            assert len(asked) == (6 if answer == "y" else 0)
        assert questions == ["Send about 6 requests? [y/N] "] * 3
        monkeypatch.setattr("builtins.input", lambda text: pytest.fail("asked though nothing is left to do"))
        assert main(["generate", "glan", *words, *one]) == 0
        assert main(["generate", "glan", *words, *many[:2], "--yes"]) == 0
    assert len(glan.pairs()) > 0


def test_the_defaults_begin_small_enough_to_run_unattended(capsys, tmp_path):
    words = ["--model", "m", "--base-url", "http://127.0.0.1:9/v1", "--output-dir", str(tmp_path / "o"), "--dry-run"]
    assert main(["generate", "glan", *words]) == 0
    total = next(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  all"))
    requests, _, read, written = (int(word.replace(",", "")) for word in total[1:])
    assert requests < 10_000 and read + written < 25_000_000
