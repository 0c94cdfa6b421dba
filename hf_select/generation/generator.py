"""The Generator contract: requests go in, answers come out, whoever writes them.

server.py asks any OpenAI-compatible server, local.py runs transformers or vLLM in this process; a scripted function
stands for either in tests. What uses a generator (GLAN, a judge, regenerated answers) sees only what is here.

An answer always comes back: what the model wrote and why it stopped, or why there is none. Only what no other request
could cure (no server, wrong key, unknown model) is raised.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hf_select.models.sampling import Sampling


Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Request:
    """A conversation to be answered.

    Args:
        schema: JSON schema of the answer, enforced where the model's home can. Elsewhere it is ignored: whoever needs
            JSON says so in the prompt, too, and reads the answer with care.
        tag: whatever the caller knows the request by; it is not sent.
    """

    messages: Messages
    sampling: Sampling = Sampling()
    schema: dict[str, Any] | None = None
    tag: Any = None


@dataclass(frozen=True)
class Answer:
    """What came of a request.

    Args:
        text: what the model wrote; "" if nothing.
        finish_reason: "stop" (the model ended by itself), "length" (cut at max_new_tokens), "content_filter", or what
            else a server says; "" if there is no answer.
        prompt_tokens, completion_tokens: as counted by the model's home; 0 where it does not say.
        attempts: how many times it was asked for.
        error: why there is no answer; "" if there is one.
        lost: the error was not this request's own: asked again at another time, it may well be answered.
        seconds: that the answer took at the model's home: of a server from request to reply, in this process those of
            its batch; 0 where nobody knows.
    """

    text: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    attempts: int = 1
    error: str = ""
    lost: bool = False
    seconds: float = field(default=0.0, compare=False)


@dataclass
class Usage:
    """What a generator has done since it was made."""

    answers: int = 0
    given_up: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reasons: dict[str, int] = field(default_factory=dict)

    def count(self, answer: Answer) -> None:
        self.retries += answer.attempts - 1
        if answer.error:
            self.given_up += 1
            return
        self.answers += 1
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens
        self.finish_reasons[answer.finish_reason] = self.finish_reasons.get(answer.finish_reason, 0) + 1


class Generator:
    """Answers requests. A subclass gives `name`, the model's, and `stream`; it calls `Usage.count` on each answer."""

    name: str
    usage: Usage
    revision: str | None = None  # of the model, where it is known

    def release(self) -> None:  # noqa: B027  # nothing to give back where the model is elsewhere
        """Give back what loading took; the next request loads again."""

    def stream(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Answer]]:
        """Each request with its answer, exactly once, in whatever order they are ready.

        Requests are taken from the iterable only as they are needed, so neither they nor the answers need fit in
        memory. Closing the iterator drops what is under way.
        """
        raise NotImplementedError

    def generate(
        self, conversations: Sequence[Messages], sampling: Sampling, schema: dict[str, Any] | None = None
    ) -> list[Answer]:
        """The answers, in the order of the conversations. Each draws from a seed of its own, made from the sampling's
        and its place."""
        answers: list[Answer] = [Answer()] * len(conversations)
        for request, answer in self.stream(
            Request(messages, seeded(sampling, place), schema, tag=place)
            for place, messages in enumerate(conversations)
        ):
            answers[request.tag] = answer
        return answers


def seeded(sampling: Sampling, *what: Any) -> Sampling:
    """The sampling with a seed of its own for `what`; without a seed it stays as it is."""
    return sampling if sampling.seed is None else replace(sampling, seed=seed_of(sampling.seed, *what))


def seed_of(*what: Any) -> int:
    """A seed from the content of `what`: 31 bits, which every server takes."""
    text = json.dumps(what, ensure_ascii=False, sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
