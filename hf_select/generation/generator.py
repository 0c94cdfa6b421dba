"""The contract of a generator: it answers requests with a language model, wherever the model runs.

server.py calls an OpenAI-compatible server; local.py runs transformers or vLLM in this process. GLAN, Responses and
judges use a generator only through this interface, so a backend of your own needs no change to the package.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from hf_select.data.chat_template import Messages
from hf_select.models.sampling import Sampling


@dataclass(frozen=True)
class Request:
    """A conversation to be answered.

    Args:
        schema: JSON schema of the answer. Backends that cannot enforce it ignore it, so the prompt must ask for JSON
            too, and the answer must be validated.
        tag: any object by which the caller recognises the request; it is not sent.
    """

    messages: Messages
    sampling: Sampling = Sampling()
    schema: Mapping[str, object] | None = None
    tag: object = None


@dataclass(frozen=True)
class Answer:
    """The outcome of a request.

    Args:
        text: what the model wrote; "" if nothing.
        finish_reason: "stop" (the model ended the answer), "length" (cut at max_new_tokens), "content_filter", or
            another reason of a server; "" if there is no answer.
        prompt_tokens, completion_tokens: as the backend counts them; 0 if unknown.
        attempts: how often the request was sent.
        error: why there is no answer; "" if there is one.
        retryable: the error was not caused by this request: sent again later, it may be answered.
        seconds: time to the answer: from request to reply for a server, of the whole batch in this process; 0 if
            unknown.
    """

    text: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    attempts: int = 1
    error: str = ""
    retryable: bool = False
    seconds: float = field(default=0.0, compare=False)


@dataclass
class RequestCounts:
    """Running totals of the answers of a generator."""

    answers: int = 0
    failed: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reasons: dict[str, int] = field(default_factory=dict)

    def count(self, answer: Answer) -> None:
        """Add an answer to the totals."""
        self.retries += answer.attempts - 1
        if answer.error:
            self.failed += 1
            return
        self.answers += 1
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens
        self.finish_reasons[answer.finish_reason] = self.finish_reasons.get(answer.finish_reason, 0) + 1


class Generator(ABC):
    """Answers requests with a language model. A subclass sets `name` and implements `stream`; the rest has defaults.

    The command line takes a subclass as `--backend MODULE:CLASS` if it is a dataclass with a field `model`: the fields
    that its docstring describes under Args are its flags.

    Attributes:
        name: of the model. Answers are stored under it.
        revision: of the model, if it is known.
    """

    name: str
    revision: str | None = None

    @abstractmethod
    def stream(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Answer]]:
        """Yield each request with its answer, exactly once, in any order.

        Take requests from the iterable only as they are needed: neither they nor the answers need fit in memory. A
        request that cannot be answered gets an `Answer` with an error. Raise ValueError only for what would fail every
        request: no server, a wrong key, an unknown model. Closing the iterator cancels requests that are under way.
        """

    def release(self) -> None:  # noqa: B027
        """Free what loading the model took; the next request loads it again. By default there is nothing to free."""

    def generate(
        self, conversations: Sequence[Messages], sampling: Sampling, schema: Mapping[str, object] | None = None
    ) -> list[Answer]:
        """The answers, in the order of the conversations. Each has its own seed, made from the sampling's and its
        position."""
        answers: list[Answer] = [Answer()] * len(conversations)
        requests = (
            Request(messages, seeded(sampling, position), schema, tag=position)
            for position, messages in enumerate(conversations)
        )
        for request, answer in self.stream(requests):
            answers[cast(int, request.tag)] = answer
        return answers

    @classmethod
    def settings_class(cls) -> type:
        """The dataclass whose fields the command line offers as flags; by default this class."""
        return cls

    @classmethod
    def from_settings(cls, settings: Any) -> "Generator":
        """The generator of an instance of `settings_class()`; by default that instance."""
        return settings


def check_generator(value: object, name: str) -> None:
    """Raise ValueError if a setting is not a Generator."""
    if not isinstance(value, Generator):
        raise ValueError(f"{name} is {value!r}; it must be a Generator, for example ServerGenerator(model).")


def seeded(sampling: Sampling, *key: object) -> Sampling:
    """The sampling with a seed made from its own and the key; unchanged if it has no seed."""
    return sampling if sampling.seed is None else replace(sampling, seed=seed_of(sampling.seed, *key))


def seed_of(*key: object) -> int:
    """A seed made from JSON values: 31 bits, which every server accepts."""
    text = json.dumps(key, ensure_ascii=False, sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
