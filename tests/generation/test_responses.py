"""Prompts answered again: what each reply was made from is what is stored with it, and nothing is lost or doubled."""

import itertools
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset
from scripted_generator import Scripted
from scripted_server import Reply, ScriptedServer

from hf_select import Responses, ServerGenerator, TransformersGenerator
from hf_select.cli.main import main
from hf_select.data.conversation import conversations
from hf_select.demo import teacher
from hf_select.generation.generator import Answer
from hf_select.generation.turns import turns
from hf_select.models.causal_lm import CausalLM


def chat(*texts, system=None):
    roles = itertools.cycle(("user", "assistant"))
    head = [] if system is None else [{"role": "system", "content": system}]
    return [*head, *({"role": role, "content": text} for role, text in zip(roles, texts, strict=False))]


CHATS = [
    chat("One?", "Gpt one.", "And two?", "Gpt two.", "And three?", "Gpt three."),
    chat("Hello", "Gpt hello.", system="Be brief."),
    chat("Same?", "Gpt same."),
    chat("Same?", "Gpt same."),
    chat("Left open?"),
    chat("First", "Gpt first.", "And the last, unanswered?"),
]


def says(model):
    """A reply that tells what it was made from."""

    def script(body):
        return (
            f"{model} after {len(body['messages'])} turns, seed {body['seed']}, on: {body['messages'][-1]['content']}"
        )

    return script


class Named(Scripted):
    def __init__(self, name="scripted", script=None, order=0):
        super().__init__(script or says(name), order)
        self.name = name


@pytest.fixture
def respond(tmp_path):
    class Runs:
        folder = tmp_path / "out"

        def __call__(self, model=None, chats=None, run=None, **settings):
            self.model = model or Named()
            rows = Dataset.from_list([{"messages": messages} for messages in chats or CHATS])
            return Responses(self.model, **settings).run(rows, self.folder, **(run or {})).to_dict()

        def rows(self):
            return pq.read_table(self.folder / "responses.parquet").to_pylist()

        def removed(self):
            return [json.loads(line) for line in (self.folder / "removed.jsonl").read_text().splitlines()]

    return Runs()


def seen_by(model):
    """What the model was shown and said, by what it said: every reply names its seed, so none is said twice."""
    return {model.script(body): body["messages"] for body in model.seen}


@pytest.mark.parametrize("history", ["own_history", "reference_history"])
def test_each_reply_is_stored_with_what_it_was_made_from(respond, history):
    summary = respond(history=history)
    rows, seen = respond.rows(), seen_by(respond.model)
    assert len(rows) == summary["rows"] == len(respond.model.seen) == 3 + 1 + 1 + 1 + 1 + 2 and not respond.removed()
    for row in rows:
        (said,) = row["completion"]
        assert said["role"] == "assistant" and row["prompt"] == seen[said["content"]]
        replies = [message["content"] for message in row["prompt"] if message["role"] == "assistant"]
        assert len(replies) == row["turn"] - 1 and row["history"] == history
        earlier = {r["turn"]: r["completion"][0]["content"] for r in rows if r["conversation"] == row["conversation"]}
        if history == "own_history":
            assert replies == [earlier[number] for number in range(1, row["turn"])]
        else:
            assert all(reply.startswith("Gpt") for reply in replies)
    found = {(row["conversation"], row["turn"]): row for row in rows}
    assert (
        found["0", 3]["turns"] == 3
        and found["0", 3]["reference"] == "Gpt three."
        and found["4", 1]["reference"] is None
    )
    assert [m["role"] for m in found["1", 1]["prompt"]] == ["system", "user"] and found["5", 2]["turns"] == 2


def test_over_http_what_the_server_got_is_what_is_stored(respond):
    def script(body):
        return Reply(f"{body['model']} {body['seed']}", finish_reason="stop")

    for history in ("own_history", "reference_history"):
        respond.folder = respond.folder.with_name(history)
        with ScriptedServer(script) as server:
            models = [ServerGenerator(name, base_url=server.url, revision=f"r-{name}") for name in ("big", "small")]
            respond(models, history=history, temperature=0.7, top_p=0.9, max_new_tokens=77, seed=5)
        rows = respond.rows()
        assert len(rows) == 18 and {row["model"]: row["model_revision"] for row in rows} == {
            "big": "r-big",
            "small": "r-small",
        }
        sent = {(body["model"], body["seed"]): body for body in server.seen}
        assert len(sent) == 18, "two replies were drawn with the same seed"
        for row in rows:
            body = sent[row["model"], row["seed"]]
            assert (
                row["prompt"] == body["messages"]
                and row["completion"][0]["content"] == f"{row['model']} {row['seed']}"
            )
            assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.7, 0.9, 77)
            assert (row["temperature"], row["top_p"], row["max_new_tokens"]) == (0.7, 0.9, 77)
            assert (row["finish_reason"], row["prompt_tokens"], row["completion_tokens"]) == ("stop", 10, 2)
            assert row["seconds"] > 0 and row["tokens_per_second"] == pytest.approx(2 / row["seconds"])


def test_the_same_prompt_twice_gets_a_reply_each_and_the_same_in_whatever_order(respond, tmp_path):
    respond(Named(order=1))
    rows = respond.rows()
    same = [row for row in rows if row["conversation"] in "23"]
    assert same[0]["prompt"] == same[1]["prompt"] and same[0]["completion"] != same[1]["completion"]
    respond.folder = tmp_path / "again"
    respond(Named(order=2))
    assert respond.rows() == rows
    assert len({row["row_id"] for row in rows}) == len(rows)


def test_nothing_is_asked_twice_and_other_models_and_turns_may_be_added(respond):
    respond(Named("a"), history="own_history", max_turns=1)
    assert len(respond.model.seen) == 6 and {row["turn"] for row in respond.rows()} == {1}
    respond(Named("a"), history="own_history")
    assert len(respond.model.seen) == 3, "the first turns were asked again"
    before = respond.rows()
    respond(Named("b"), history="own_history")
    rows = respond.rows()
    assert len(respond.model.seen) == 9 and Counter(row["model"] for row in rows) == {"a": 9, "b": 9}
    assert [row for row in rows if row["model"] == "a"] == before
    for changed in ({"history": "reference_history"}, {"temperature": 0.5}, {"seed": 1}):
        with pytest.raises(ValueError, match=f"of another run .{next(iter(changed))}"):
            respond(Named("a"), **{"history": "own_history", **changed})
    with pytest.raises(ValueError, match="of another run .pool"):
        respond(Named("a"), CHATS[:2], history="own_history")


def test_what_cannot_be_used_is_left_out_with_its_reason_and_ends_its_own_conversation(respond):
    bad = True

    def script(body):
        asked = body["messages"][-1]["content"]
        if bad and asked == "And two?":
            return Answer("Half an ans", "length", 3, 2)
        if bad and asked == "Hello":
            return Answer(error="the prompt of 99 tokens fills the context of 64")
        if asked == "Left open?":
            return "I'm sorry, but I can't help with that."
        return says("m")(body)

    summary = respond(Named("m", script), history="own_history")
    reasons = {(row["conversation"], row["turn"]): row["reason"] for row in respond.removed()}
    assert reasons == {
        ("0", 2): "cut off at max_new_tokens",
        ("0", 3): "an earlier turn has no reply that is kept",
        ("1", 1): "the prompt of 99 tokens fills the context of 64",
    }
    assert len(respond.rows()) + len(reasons) == 9 and summary["models"]["m"]["refused"] == 1
    assert [row["refused"] for row in respond.rows()].count(True) == 1
    respond(Named("m", script), history="own_history")
    assert not respond.model.seen, "what failed for good was asked again without being told to"
    respond(Named("m", script), history="own_history", cut="keep")
    assert respond.model.seen[0]["messages"][-2]["content"] == "Half an ans", (
        "a cut reply that is kept is not gone on from"
    )
    kept = {(row["conversation"], row["turn"]): row for row in respond.rows()}
    assert kept["0", 2]["finish_reason"] == "length" and ("0", 3) in kept
    respond(Named("m", script), history="own_history", refusals="drop")
    assert ("4", 1) in {(row["conversation"], row["turn"]) for row in respond.removed() if row["reason"] == "refused"}
    bad = False
    respond(Named("m", script), history="own_history", run={"retry_failed": True})
    rows, seen = respond.rows(), seen_by(respond.model)
    assert len(rows) == 9 and not respond.removed()
    third = next(row for row in rows if row["conversation"] == "0" and row["turn"] == 3)
    assert third["prompt"] == seen[third["completion"][0]["content"]], (
        "the reply to a history that was made anew is old"
    )
    assert "Half an ans" not in json.dumps(third["prompt"])


def test_replies_lost_with_their_server_are_asked_for_by_the_next_run(respond):
    lost = Answer(error="503 gone", retryable=True)
    respond(Named("m", lambda body: lost if len(body["messages"]) == 1 else says("m")(body)))
    assert len(respond.rows()) == 4 and len(respond.removed()) == 5
    respond(Named("m"))
    assert len(respond.model.seen) == 5 and len(respond.rows()) == 9


def test_thoughts_are_neither_stored_nor_part_of_the_history(respond):
    respond(
        Named("m", lambda body: f"<think>hm, {body['seed']}</think>\n\n Well, {len(body['messages'])}."),
        history="own_history",
    )
    assert not any("think" in json.dumps([row["prompt"], row["completion"]]) for row in respond.rows())
    assert all("think" not in json.dumps(body["messages"]) for body in respond.model.seen)


def test_rows_that_cannot_be_answered_are_counted(respond, tmp_path):
    tools = {"messages": [{"role": "user", "content": "x"}, {"role": "tool", "content": "y"}]}
    data = Dataset.from_list([{"messages": CHATS[0]}, tools, {"messages": [{"role": "assistant", "content": "Hi"}]}])
    summary = Responses(Named()).run(data, tmp_path / "o").to_dict()
    assert summary["unreadable"] == {"it calls tools": 1, "it has no user turn": 1} and summary["rows"] == 3
    with pytest.raises(ValueError, match="no row of the dataset can be answered: {'raw text has no turns': 2}"):
        Responses(Named()).run(Dataset.from_list([{"text": "a"}, {"text": "b"}]), tmp_path / "p")


def test_turns_of_odd_conversations():
    def of(*messages):
        (row,) = conversations({"messages": [[{"role": role, "content": text} for role, text in messages]]})
        return [[m["content"] for m in turn.messages] for turn in turns("0", row)]

    u, a, s = "user", "assistant", "system"
    assert of((u, "1"), (u, "2"), (a, "3")) == [["1", "2"]]
    assert of((a, "0"), (u, "1"), (a, "2")) == [["0", "1"]]
    assert of((u, "1"), (a, "2"), (a, "3"), (u, "4")) == [["1"], ["1", "2", "3", "4"]]
    assert of((s, "0"), (u, "1"), (a, "2"), (s, "3"), (u, "4"), (a, "5")) == [["0", "1"], ["0", "1", "2", "3", "4"]]
    (row,) = conversations({"messages": [chat("1", "2", "3", "4", "5")]})
    own = [[m["content"] for m in turn.messages] for turn in turns("0", row, ["x", "y"])]
    assert own == [["1"], ["1", "x", "3"], ["1", "x", "3", "y", "5"]]
    assert len(list(turns("0", row, ["x"]))) == 2


@pytest.fixture
def tiny(model_path, tmp_path, monkeypatch) -> str:
    """The random model under a name that is the same in every run: draws are made of it, and some draws are empty."""
    monkeypatch.chdir(tmp_path)
    Path("tiny").symlink_to(model_path)
    return "tiny"


def test_a_tokenizer_that_adds_bos_leaks_none_and_gives_the_model_one(tiny, tmp_path):
    """The template writes <s>, as Llama's do, and the tokenizer would add one of its own."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", bos)]
    )
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    assert tokenizer("x")["input_ids"][0] == bos
    lm = CausalLM(tiny, tokenizer=tokenizer)
    model, prompts = TransformersGenerator(lm), []
    lm.load().model.resize_token_embeddings(len(tokenizer))
    encode = model._encode
    model._encode = lambda request: prompts.append(encode(request)) or prompts[-1]  # type: ignore[method-assign]
    data = Dataset.from_list([{"messages": messages} for messages in CHATS[:2]])
    Responses(model, history="own_history", max_new_tokens=8, cut="keep", seed=3).run(data, tmp_path / "o")
    rows = pq.read_table(tmp_path / "o" / "responses.parquet").to_pylist()
    assert len(prompts) == len(rows) == 4
    header = tokenizer("assistant: ", add_special_tokens=False)["input_ids"]
    for ids in prompts:
        assert ids.count(bos) == 1 and ids[0] == bos, "BOS is missing or doubled"
        assert ids[-len(header) :] == header, "the generation header was cut"
    for row in rows:
        assert "<s>" not in json.dumps([row["prompt"], row["completion"]]), "BOS leaked into stored text"
        assert (
            row["completion_tokens"] <= 8
            and row["tokens_per_second"] > 0
            and row["prompt_tokens"] in map(len, prompts)
        )


def test_a_prompt_that_fills_the_context_is_refused_and_not_cut(tiny, tmp_path):
    data = Dataset.from_list([{"messages": chat("word " * 5000)}, {"messages": chat("Hi")}])
    Responses(TransformersGenerator(CausalLM(tiny)), max_new_tokens=4, cut="keep").run(data, tmp_path / "o")
    (line,) = [json.loads(line) for line in (tmp_path / "o" / "removed.jsonl").read_text().splitlines()]
    assert line["conversation"] == "0" and "fills the context" in line["reason"]
    assert pq.read_table(tmp_path / "o" / "responses.parquet").num_rows == 1


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_nothing(tmp_path):
    dice = random.Random(0)
    file = tmp_path / "chats.jsonl"
    chats = [chat(*(f"{i} turn {t}" for t in range(2 * (i % 3) + 1))) for i in range(700)]
    file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in chats))
    wanted = 2 * sum(i % 3 + 1 for i in range(700))
    found = {}
    with ScriptedServer(lambda body: Reply(teacher(body), delay=dice.uniform(0, 0.01))) as server:
        for name, moments in (("whole", []), ("killed", [dice.uniform(0.2, 1.5) for _ in range(6)])):
            begin = len(server.seen)
            done = subprocess.run(
                [sys.executable, "responses_killed.py", str(tmp_path / name), str(file), server.url],
                input="".join(f"{moment}\n" for moment in moments),
                cwd=Path(__file__).parents[1] / "support", text=True, capture_output=True, timeout=240,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            table = pq.read_table(tmp_path / name / "responses.parquet").drop_columns(["seconds", "tokens_per_second"])
            found[name] = (table, len(server.seen) - begin, int(done.stdout))
    (whole, asked, _), (pieces, asked_in_pieces, killed) = found["whole"], found["killed"]
    assert killed > 3 and pieces.equals(whole) and len(whole) == wanted == asked
    assert asked_in_pieces <= asked + 16 * killed, "what was finished was asked for again"


def test_from_the_command_line_and_straight_into_the_trainer(capsys, tiny):
    Path("chats.jsonl").write_text(
        "".join(json.dumps({"conversation": m, "hash": f"h{i}"}) + "\n" for i, m in enumerate(CHATS))
    )
    with ScriptedServer(lambda body: teacher(body)) as server:
        words = [
            "generate",
            "responses",
            "--dataset",
            "chats.jsonl",
            "--rename",
            "conversation=messages",
            "hash=row_id",
        ]
        words += ["--base-url", server.url, "--output-dir", "o", "--model", "a", "b"]
        assert main(words) == 0 and "compare-generators" in capsys.readouterr().out
        assert main(words) == 0 and len(server.seen) == 18
        assert main([*words, "--history", "own_history"]) == 2 and "of another run (history" in capsys.readouterr().err
        assert main([*words, "--model", "a"]) == 2 and "a name of its own" in capsys.readouterr().err
        assert main([*words, "--max-turns", "0"]) == 2 and "max_turns is 0" in capsys.readouterr().err
        assert (
            main(["none.jsonl" if word == "chats.jsonl" else word for word in words]) == 2
            and 'no file or folder "none.jsonl"' in capsys.readouterr().err
        )
        assert main(["generate", "responses", "--model", "a"]) == 2 and "needs --" in capsys.readouterr().err
        assert main(["generate", "responses", "--taxonomy", "x"]) == 2 and "unknown flag" in capsys.readouterr().err
    rows = load_dataset("parquet", data_files="o/responses.parquet", split="train")
    assert {row["conversation"] for row in rows} == {f"h{i}" for i in range(6)}
    assert main(["score", "--scorer", "length", "--dataset", "o/responses.parquet", "--output-dir", "scores"]) == 0
    local = [
        "--backend",
        "transformers",
        "--model",
        tiny,
        "--max-new-tokens",
        "4",
        "--cut",
        "keep",
        "--output-dir",
        "l",
    ]
    assert main([*words[:7], *local]) == 0
    assert pq.read_table("l/responses.parquet").num_rows > 5


def test_many_replies_need_a_yes(capsys, monkeypatch, tmp_path):
    from hf_select.cli import generate

    monkeypatch.chdir(tmp_path)
    Path("chats.jsonl").write_text("".join(json.dumps({"messages": m}) + "\n" for m in CHATS))
    with ScriptedServer(lambda body: teacher(body)) as server:
        words = ["generate", "responses", "--dataset", "chats.jsonl", "--base-url", server.url, "--output-dir", "o"]
        words += ["--model", "a", "b"]
        monkeypatch.setattr(generate, "_UNATTENDED", 17)
        assert main(words) == 2 and not server.seen and not Path("o").exists()
        printed = capsys.readouterr()
        assert "18 replies of at most 2,048 tokens" in printed.out and "add --yes, or give a --limit" in printed.err
        assert main([*words, "--yes"]) == 0 and len(server.seen) == 18
