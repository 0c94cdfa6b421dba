"""Generators: every request comes back once, with its answer or with the reason why there is none."""

import asyncio
import json
import socket
import threading
import time
from collections import Counter

import pytest
from scripted_server import Reply, ScriptedServer

from hf_select.generation import server as server_module
from hf_select.generation._compat import takes_password_in_address
from hf_select.generation.generator import Request, seed_of, seeded
from hf_select.generation.server import ServerGenerator
from hf_select.models.sampling import Sampling


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


def said(body: dict) -> str:
    return body["messages"][-1]["content"]


def ask(*texts: str, **options) -> list[Request]:
    return [Request([{"role": "user", "content": text}], tag=text, **options) for text in texts]


def generator(server: ScriptedServer, **options) -> ServerGenerator:
    return ServerGenerator("tiny", base_url=server.url, **options)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Back-off without the wait."""
    monkeypatch.setattr(server_module, "_FIRST_BACKOFF", 0.005)


def test_what_is_sent_and_what_comes_back():
    with ScriptedServer(lambda body: Reply("one two three", finish_reason="length")) as server:
        sampling = Sampling(temperature=0.7, top_p=0.95, max_new_tokens=5, seed=3)
        request = Request([{"role": "user", "content": "hello"}], sampling, SCHEMA)
        ((back, answer),) = generator(server).stream([request])
    assert back is request
    assert (answer.text, answer.finish_reason, answer.attempts, answer.error) == ("one two three", "length", 1, "")
    assert (answer.prompt_tokens, answer.completion_tokens) == (10, 3)
    sent = server.seen[0]
    assert sent["messages"] == [{"role": "user", "content": "hello"}] and sent["model"] == "tiny"
    assert (sent["temperature"], sent["top_p"], sent["max_tokens"], sent["seed"]) == (0.7, 0.95, 5, 3)
    assert (
        sent["response_format"]["type"] == "json_schema" and sent["response_format"]["json_schema"]["schema"] == SCHEMA
    )


def test_every_request_comes_back_once_from_a_server_that_does_everything_wrong():
    """Each request meets its own mishap first; then the server behaves."""
    mishaps = {
        "busy": Reply("slow down", 429, {"Retry-After": "0"}),
        "broken": Reply("oops", 500),
        "gateway": Reply(raw="<html>bad gateway</html>", status=502),
        "cut": Reply(cut=True),
        "no json": Reply(raw='{"choices": [{"mess'),
        "no choices": Reply(raw='{"choices": []}'),
        "no object": Reply(raw='["not", "a", "chat"]'),
        "hang": Reply(hang=True),
    }
    times: Counter = Counter()

    def script(body):
        kind = said(body).rpartition(" ")[0]
        times[said(body)] += 1
        return (
            mishaps[kind]
            if times[said(body)] == 1 and kind in mishaps
            else Reply(f"answer to {said(body)}", delay=0.1)
        )

    texts = [f"{kind} {i}" for i in range(12) for kind in [*mishaps, "well"]]
    with ScriptedServer(script) as server:
        asked = generator(server, concurrency=16, timeout=1.0)
        found = [(request.tag, answer) for request, answer in asked.stream(ask(*texts))]
    assert sorted(tag for tag, _ in found) == sorted(texts), "a request was lost or doubled"
    assert all(answer.text == f"answer to {tag}" and not answer.error for tag, answer in found)
    assert {tag: a.attempts for tag, a in found} == {t: 1 if t.startswith("well") else 2 for t in texts}
    assert asked.usage.retries == 12 * len(mishaps) and asked.usage.answers == len(texts)
    assert 10 < server.most_busy <= 16


def test_what_stays_unanswered_says_why():
    bad = {
        "overloaded": Reply("engine is dead", 503),
        "too long": Reply("This model's maximum context length is 8 tokens", 400),
        "hang": Reply(hang=True),
        "refusal": Reply(raw=json.dumps({"choices": [{"message": {"content": None, "refusal": "No."}}]})),
    }
    with ScriptedServer(lambda body: bad.get(said(body), "fine")) as server:
        requests = ask(*bad, *(f"well {i}" for i in range(30)))
        asked = generator(server, concurrency=4, timeout=0.5, max_retries=2)
        found = {request.tag: answer for request, answer in asked.stream(requests)}
    assert (found["overloaded"].error, found["overloaded"].attempts) == ("503 engine is dead", 3)
    assert found["overloaded"].retryable and found["hang"].retryable
    assert "maximum context length" in found["too long"].error and found["too long"].attempts == 1
    assert not found["too long"].retryable, "asking again would not help"
    assert (found["hang"].error, found["hang"].attempts) == ("no answer in 0.5 s", 2)
    assert (found["refusal"].text, found["refusal"].finish_reason) == ("No.", "content_filter")
    assert asked.usage.failed == 3 and asked.usage.answers == 31


def test_half_a_character_is_mended_before_it_reaches_a_file():
    raw = '{"choices": [{"message": {"content": "a \\ud83d b \\ud83d\\ude00"}, "finish_reason": "stop"}]}'
    with ScriptedServer(lambda body: Reply(raw=raw)) as server:
        ((_, answer),) = generator(server).stream(ask("a"))
    assert answer.text == "a \ufffd b \U0001f600" and answer.text.encode()
    assert (answer.prompt_tokens, answer.completion_tokens) == (0, 0), "a server need not count"


def test_a_server_without_schemas_is_asked_without_and_only_told_once():
    def script(body):
        return Reply("response_format is not supported", 400) if "response_format" in body else '{"a": 1}'

    with ScriptedServer(script) as server:
        asked = generator(server, concurrency=1)
        found = [answer for _, answer in asked.stream(ask(*"abcdef", schema=SCHEMA))]
        assert [answer.text for answer in found] == ['{"a": 1}'] * 6 and found[0].attempts == 1
        assert sum("response_format" in body for body in server.seen) == 1
        list(generator(server, json_schema="off").stream(ask("g", schema=SCHEMA)))
        assert "response_format" not in server.seen[-1]


def test_a_wrong_key_an_unknown_model_and_no_server_are_one_clear_line_each(monkeypatch):
    def script(body):
        if body["model"] == "dear":
            return Reply("credits are spent", 402)
        if body["model"] != "tiny":
            return Reply(f"The model `{body['model']}` does not exist.", 404)
        return Reply("Incorrect API key provided", 401)

    with ScriptedServer(script) as server:
        with pytest.raises(ValueError, match="refuses the key .401 Incorrect.*no key was sent.*--api-key-env"):
            list(generator(server).stream(ask("a", "b")))
        monkeypatch.setenv("MY_KEY", "sk-secret")
        with pytest.raises(ValueError, match="refuses the key.*check the key in MY_KEY"):
            list(generator(server, api_key_env="MY_KEY").stream(ask("a", "b")))
        assert server.headers[-1]["authorization"] == "Bearer sk-secret"
        with pytest.raises(ValueError, match="asks for payment .402 credits"):
            list(ServerGenerator("dear", base_url=server.url).stream(ask("a")))
        with pytest.raises(ValueError, match='knows no model "huge".*--model'):
            list(ServerGenerator("huge", base_url=server.url).stream(ask("a")))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(ValueError, match=f"server at {nobody} does not answer .*Start the server"):
        list(ServerGenerator("tiny", base_url=nobody).stream(ask(*"abc")))
    with pytest.raises(ValueError, match="variable NOT_SET is not set"):
        list(ServerGenerator("tiny", base_url=nobody, api_key_env="NOT_SET").stream(ask("a")))


def test_the_token_of_the_hub_is_not_sent_to_any_address_and_no_key_is_told(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    monkeypatch.setenv("MY_KEY", "sk-secret")
    with ScriptedServer(lambda body: Reply("bad key sk-secret in the prompt", 400)) as server:
        list(generator(server).stream(ask("a")))
        assert "hf_mine" not in json.dumps(server.headers)
        ((_, answer),) = generator(server, api_key_env="MY_KEY").stream(ask("a"))
    assert answer.error == "400 bad key *** in the prompt"


def test_no_part_of_a_key_is_left_wherever_a_long_error_is_cut(monkeypatch):
    key = "sk-" + "".join(chr(97 + i % 26) for i in range(60))
    monkeypatch.setenv("MY_KEY", key)
    with ScriptedServer(lambda body: Reply("." * int(said(body)) + key, 400 if said(body) > "0" else 200)) as server:
        asked = generator(server, api_key_env="MY_KEY", concurrency=1)
        errors = [answer.error for _, answer in asked.stream(ask("0", *map(str, range(225, 305, 4))))][1:]
    assert len(errors) == 20 and all(len(error) <= 300 for error in errors)
    assert not [error for error in errors if key[:8] in error], "a part of the key stands at the cut"


def test_the_password_of_an_address_is_in_no_message():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://ada:hunter22@127.0.0.1:{free.getsockname()[1]}/v1"
    if not takes_password_in_address():
        with pytest.raises(ValueError, match="base_url has a user or a password") as error:
            ServerGenerator("tiny", base_url=nobody)
        assert "hunter22" not in str(error.value)
        return
    with pytest.raises(ValueError, match="does not answer") as error:
        list(ServerGenerator("tiny", base_url=nobody).stream(ask(*"abc")))
    assert "hunter22" not in str(error.value) and "***127.0.0.1" in str(error.value)


def test_a_server_that_dies_stops_the_stream_after_what_it_had_answered():
    count = [0]

    def script(body):
        count[0] += 1
        return "fine" if count[0] <= 50 else Reply("worker died", 500)

    with ScriptedServer(script) as server:
        found = []
        with pytest.raises(ValueError, match="failed 8 requests in a row, .*3 attempts .500 worker died.*same"):
            for _, answer in generator(server, concurrency=8, max_retries=2).stream(ask(*map(str, range(1000)))):
                found.append(answer)
    assert sum(not answer.error for answer in found) == 50
    assert len(server.seen) < 150, "it went on asking"


def test_a_server_that_refuses_everything_is_not_asked_a_thousand_times():
    with ScriptedServer(lambda body: Reply("max_tokens is not supported", 400)) as server:
        with pytest.raises(ValueError, match="8 requests in a row, the last after one attempt .400 max_tokens is not"):
            list(generator(server, concurrency=4).stream(ask(*map(str, range(1000)))))
        assert len(server.seen) < 20


def test_a_server_that_has_answered_may_refuse_many_requests_for_their_own_sake():
    with ScriptedServer(lambda body: Reply("too long", 400) if said(body) != "0" else "fine") as server:
        asked = generator(server, concurrency=1)
        assert [not a.error for _, a in asked.stream(ask(*map(str, range(30))))] == [True] + 29 * [False]
        assert len(list(asked.stream(ask(*map(str, range(1, 30)))))) == 29, "a later stage knows it, too"


def test_a_429_holds_all_requests_back_for_as_long_as_it_says():
    begin, times = time.perf_counter(), []

    def script(body):
        times.append(time.perf_counter() - begin)
        return Reply("slow down", 429, {"Retry-After": "1"}) if len(times) == 1 else Reply("fine", delay=0.2)

    with ScriptedServer(script) as server:
        assert len(list(generator(server, concurrency=2).stream(ask(*"abcdef")))) == 6
    early = [t for t in times[1:] if t < times[0] + 0.95]
    assert len(early) <= 1, "only what was under way already may come before the second is over"
    assert max(times) > times[0] + 1


def test_requests_are_taken_only_as_they_are_needed_and_can_be_left():
    taken = []

    def requests():
        for i in range(10_000):
            taken.append(i)
            yield from ask(str(i))

    before = threading.active_count()
    with ScriptedServer(lambda body: "fine") as server:
        stream = generator(server, concurrency=10).stream(requests())
        for _ in range(100):
            next(stream)
        stream.close()
        assert 100 <= len(taken) <= 120
        assert threading.active_count() == before + 1, "the thread of the requests is left"


def test_it_works_where_a_loop_runs_already():
    async def notebook():
        with ScriptedServer(lambda body: "fine") as server:
            return generator(server).generate([[{"role": "user", "content": "a"}]], Sampling())

    assert asyncio.run(notebook())[0].text == "fine"


def test_generate_keeps_the_order_and_gives_each_conversation_a_seed_of_its_own():
    with ScriptedServer(
        lambda body: Reply(f"{said(body)} {body.get('seed')}", delay=0.05 * (said(body) == "0"))
    ) as server:
        chats = [[{"role": "user", "content": text}] for text in "0120"]
        first = [answer.text for answer in generator(server).generate(chats, Sampling(seed=7))]
        again = [answer.text for answer in generator(server, concurrency=1).generate(chats, Sampling(seed=7))]
        other = [answer.text for answer in generator(server).generate(chats, Sampling(seed=8))]
        none = generator(server).generate(chats, Sampling())
    assert first == again and [text[0] for text in first] == list("0120")
    assert len(set(first)) == 4, "the same prompt twice must not get the same draw twice"
    assert not set(first) & set(other)
    assert none[0].text == "0 None"


def test_seeds_come_from_content_alone():
    assert seed_of(1, "ä", 2) == 1306306972 and all(0 <= seed_of(i) < 2**31 for i in range(1000))
    assert len({seed_of(0, i) for i in range(10_000)}) > 9_990
    assert seeded(Sampling(), "x").seed is None


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"base_url": "localhost:8000"}, "must be an address"),
        ({"base_url": "http://x", "provider": "together"}, "give one of them"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"timeout": 0}, "timeout is 0"),
        ({"json_schema": "on"}, "json_schema is"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        ServerGenerator("tiny", **settings)
    for wrong in ({"temperature": -1}, {"top_p": 0}, {"max_new_tokens": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Sampling(**wrong)
