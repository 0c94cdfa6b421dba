"""A generator for OpenAI-compatible servers: `transformers serve`, vLLM, TGI, llama.cpp, or the Hub's Inference
Providers, with `huggingface_hub.AsyncInferenceClient`.

Requests run in an event loop in a separate thread, since a notebook already runs a loop. The caller's thread submits
requests and collects answers. It submits twice as many as may be in flight, so that a free slot is filled at once.
"""

import asyncio
import logging
import os
import queue
import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from huggingface_hub import AsyncInferenceClient, get_token
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError, OfflineModeIsEnabled

from hf_select.generation._compat import NamedServerClient, ServerClient, takes_password_in_address, transport_errors
from hf_select.generation.generator import Answer, Generator, Request, RequestCounts
from hf_select.validation import check_choices


logger = logging.getLogger(__name__)

_TRANSPORT_ERRORS = transport_errors()
# The HTTP library keeps 20 connections open; each further concurrent request would open a new one.
_CONNECTIONS_PER_CLIENT = 20
# HTTP statuses that are worth a retry.
_TRANSIENT_STATUSES = (408, 409, 425, 429, 500, 502, 503, 504, 529)
# Consecutive failed requests after which the run stops: the server is down, or not the one that was meant.
_MAX_CONSECUTIVE_FAILURES = 8
# Seconds before the first retry of a request; doubled for each further retry, up to a minute.
_FIRST_BACKOFF = 0.5
# Attempts to connect to a server that has not answered any request yet.
_MAX_CONNECT_ATTEMPTS = 3


class _Fatal(ValueError):
    """An error that every request to this server would meet."""


@dataclass
class ServerGenerator(Generator):
    """A chat model behind an OpenAI-compatible server.

    Status 429 and 5xx, broken connections, time-outs and replies that are not JSON are retried with exponential
    backoff that respects Retry-After. A request that still fails gets an answer with the reason. Several consecutive
    failures, or a wrong key, address or model, raise ValueError. If the server rejects JSON schemas, requests are sent
    without them. Keys are read from the environment and never written.

    Args:
        model: name of the model on the server, or its Hub id.
        base_url: address of the server, e.g. http://localhost:8000/v1; by default the Hub's Inference Providers.
        provider: one of the Inference Providers; by default the first in your Hub settings.
        api_key_env: environment variable that holds the server's key. By default no key is sent to a base_url, and
            Inference Providers get the token of `hf auth login` or HF_TOKEN.
        concurrency: requests in flight at once; slightly more than the server's slots keep it busy.
        timeout: seconds to wait for an answer.
        max_retries: retries of a request, at most one of them after a time-out.
        json_schema: auto sends the JSON schema of a request until the server rejects one; off never does.
        revision: of the model that the server runs, for the record only.
    """

    model: str
    base_url: str | None = None
    provider: str | None = None
    api_key_env: str | None = None
    concurrency: int = 64
    timeout: float = 600.0
    max_retries: int = 6
    json_schema: Literal["auto", "off"] = "auto"
    revision: str | None = None
    usage: RequestCounts = field(default_factory=RequestCounts, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_choices(self)
        for name, least in (("concurrency", 1), ("max_retries", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
        if self.timeout <= 0:
            raise ValueError(f"timeout is {self.timeout}; it must be more than 0 seconds.")
        if self.base_url is not None and not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f'base_url is "{self.base_url}"; it must be an address such as http://localhost:8000/v1.')
        if "@" in urlsplit(self.base_url or "").netloc and not takes_password_in_address():
            raise ValueError(
                "base_url has a user or a password, which this release of huggingface_hub cannot send; pip install "
                '"huggingface_hub>=1", or leave it out.'
            )
        if self.base_url is not None and self.provider is not None:
            raise ValueError("base_url and provider exclude each other; give one of them.")

    @property
    def name(self) -> str:  # type: ignore[override]
        """The model's name; answers are stored under it."""
        return self.model

    def stream(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Answer]]:
        """Yield each request with its answer, in the order of arrival.

        Raises: ValueError if there is no server, or if it refuses the key or does not know the model.
        """
        key = self._key()
        remaining = iter(requests)
        with _background_loop() as loop:
            session = _Session(self, key, random.Random(0))
            try:
                done: queue.SimpleQueue[tuple[Request, Future[Answer]]] = queue.SimpleQueue()
                pending, fatal = 0, None
                while True:
                    limit = 2 * self.concurrency if fatal is None else 0
                    while pending < limit and (request := next(remaining, None)) is not None:
                        future = asyncio.run_coroutine_threadsafe(session.answer(request), loop)
                        future.add_done_callback(lambda future, request=request: done.put((request, future)))
                        pending += 1
                    if not pending or (fatal is not None and done.empty()):
                        break
                    request, future = done.get()
                    pending -= 1
                    try:
                        answer = future.result()
                    except _Fatal as error:  # raised after the answers that have already arrived
                        fatal = error
                        continue
                    self.usage.count(answer)
                    yield request, answer
                if fatal is not None:
                    raise fatal
            finally:
                asyncio.run_coroutine_threadsafe(session.close(), loop).result()

    def _key(self) -> str:
        if self.api_key_env is not None:
            key = os.environ.get(self.api_key_env)
            if not key:
                raise ValueError(f"environment variable {self.api_key_env} is not set; it must hold the server's key.")
            return key
        if self.base_url is not None:
            return "none"  # without a key, the client would send the Hub's token to the address
        token = get_token()
        if token is None:
            raise ValueError(
                "Inference Providers need a token: hf auth login, or HF_TOKEN. For a server of your own give base_url."
            )
        return token


class _Session:
    """The connections of one stream and the state of the server. Its coroutines run in the background loop."""

    def __init__(self, settings: ServerGenerator, key: str, rng: random.Random):
        self.settings, self.key, self.rng = settings, key, rng
        # A client opens its session at its first request, which takes 0.1 s: few requests use only the first client.
        count = -(-settings.concurrency // _CONNECTIONS_PER_CLIENT)
        self.all_clients: list[AsyncInferenceClient] = [self._client() for _ in range(count)]
        self.free_clients: asyncio.LifoQueue[AsyncInferenceClient] = asyncio.LifoQueue()
        for slot in reversed(range(settings.concurrency)):
            self.free_clients.put_nowait(self.all_clients[slot // _CONNECTIONS_PER_CLIENT])
        self.send_schemas = settings.json_schema == "auto"
        self.answered = settings.usage.answers > 0
        self.consecutive_failures = 0
        self.pause_until = 0.0

    def _client(self) -> AsyncInferenceClient:
        if self.settings.base_url is None:
            return ServerClient(provider=self.settings.provider, token=self.key)  # type: ignore[arg-type]
        return NamedServerClient(base_url=self.settings.base_url, token=self.key)

    async def close(self) -> None:
        """Cancel all requests in flight and close the connections."""
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for client in self.all_clients:
            await client.close()

    async def answer(self, request: Request) -> Answer:
        """The answer to a request, with an error after too many attempts."""
        client = await self.free_clients.get()
        try:
            answer = await self._answer_with_retries(client, request)
        finally:
            self.free_clients.put_nowait(client)
        self.consecutive_failures = self.consecutive_failures + 1 if answer.error else 0
        # A rejected request does not predict the next one, unless no request has ever been answered.
        if self.consecutive_failures >= _MAX_CONSECUTIVE_FAILURES and (answer.retryable or not self.answered):
            attempts = f"{answer.attempts} attempts" if answer.attempts > 1 else "one attempt"
            raise _Fatal(
                f"{self._where()} failed {_MAX_CONSECUTIVE_FAILURES} requests in a row, the last after {attempts} "
                f"({answer.error}). Check the server, then run the same command again: finished answers are kept."
            )
        return answer

    async def _answer_with_retries(self, client: AsyncInferenceClient, request: Request) -> Answer:
        attempts, timed_out = 0, 0
        while True:
            await self._wait_out_rate_limit()
            attempts += 1
            begin = time.perf_counter()
            schema = request.schema if self.send_schemas else None
            try:
                output = await asyncio.wait_for(self._send(client, request, schema), self.settings.timeout)
                self.answered = True
                return _parse_completion(output, attempts, time.perf_counter() - begin)
            except (asyncio.TimeoutError, InferenceTimeoutError):
                timed_out += 1
                reason, wait = f"no answer in {self.settings.timeout:g} s", 0.0
            except OfflineModeIsEnabled as error:
                raise _Fatal(f"{str(error).splitlines()[0]} Or give base_url, a server of your own.") from None
            except HfHubHTTPError as error:
                status = error.response.status_code
                reason = self._error_text(error)
                if status in (400, 422) and schema is not None:
                    if self.send_schemas:
                        logger.warning(
                            "%s rejects JSON schemas (%s); requests are sent without them.", self._where(), reason
                        )
                    self.send_schemas = False
                    attempts -= 1
                    continue
                self._raise_if_fatal(status, reason)
                if status not in _TRANSIENT_STATUSES:  # the fault of this request, e.g. too long a prompt
                    return Answer(error=reason, attempts=attempts)
                wait = _retry_after(error)
                if status == 429:
                    self.pause_until = max(self.pause_until, asyncio.get_running_loop().time() + wait)
            except _BadReply as error:
                reason, wait = self._redact(str(error)), 0.0
            except _TRANSPORT_ERRORS as error:
                reason, wait = self._redact(f"{type(error).__name__}: {error}".rstrip(": ")), 0.0
                if not self.answered and "Connect" in reason and attempts >= _MAX_CONNECT_ATTEMPTS:
                    raise _Fatal(
                        f"{self._where()} does not answer ({reason}). Start the server, or fix base_url."
                    ) from None
            if attempts > self.settings.max_retries or timed_out > 1:
                return Answer(error=reason, attempts=attempts, retryable=True)
            backoff = min(60.0, _FIRST_BACKOFF * 2 ** (attempts - 1)) * self.rng.uniform(0.5, 1.5)
            await asyncio.sleep(max(wait, backoff))

    async def _send(self, client: AsyncInferenceClient, request: Request, schema: Mapping[str, object] | None) -> Any:
        sampling = request.sampling
        try:
            return await client.chat_completion(
                request.messages,  # type: ignore[arg-type]
                model=self.settings.model,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_new_tokens,
                seed=sampling.seed,
                extra_body={"top_k": sampling.top_k} if sampling.top_k else None,
                response_format=None
                if schema is None
                else {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}},  # type: ignore[arg-type]
            )
        except (HfHubHTTPError, *_TRANSPORT_ERRORS):
            raise
        except (ValueError, TypeError, AttributeError) as error:
            raise _BadReply(f"the server's reply is not a chat completion ({error})") from None

    async def _wait_out_rate_limit(self) -> None:
        """Wait until the time that the last status 429 asked for; it holds for all requests."""
        loop = asyncio.get_running_loop()
        while (left := self.pause_until - loop.time()) > 0:
            await asyncio.sleep(left + self.rng.uniform(0, 0.1))

    def _raise_if_fatal(self, status: int, reason: str) -> None:
        if status == 402:
            raise _Fatal(f"{self._where()} asks for payment ({reason}). After that, run the same command again.")
        if status in (401, 403):
            advice = "no key was sent; name the environment variable that holds it: api_key_env (--api-key-env)"
            if self.key != "none":
                advice = f"check the key in {self.settings.api_key_env or 'HF_TOKEN'}"
            raise _Fatal(f"{self._where()} refuses the key ({reason}): {advice}.")
        if status == 404 or (status == 400 and not self.answered and self.settings.model in reason):
            raise _Fatal(
                f'{self._where()} knows no model "{self.settings.model}" at this address ({reason}). '
                "Check --model against its /v1/models, and --base-url."
            )

    def _where(self) -> str:
        address = self.settings.base_url
        return f"the server at {self._redact(address)}" if address else "the inference provider"

    def _error_text(self, error: HfHubHTTPError) -> str:
        """The status and the server's message, in one short line."""
        try:
            message = error.response.json()
            for key in ("error", "detail", "message"):
                message = message.get(key, message) if isinstance(message, dict) else message
        except Exception:  # the body may be anything, or not read
            message = error.server_message or ""
        # The key is removed before the text is cut: the cut could leave a part of it.
        return self._redact(" ".join(f"{error.response.status_code} {message}".split()))[:300]

    def _redact(self, text: str) -> str:
        """The text without the key, and without the user and password of the address."""
        user, at, _ = urlsplit(self.settings.base_url or "").netloc.rpartition("@")
        for secret in ([] if self.key == "none" else [self.key]) + ([user + at] if user else []):
            text = text.replace(secret, "***")
        return text


class _BadReply(Exception):
    """A reply that is not a chat completion."""


def _parse_completion(output: Any, attempts: int, seconds: float) -> Answer:
    choices = getattr(output, "choices", None)
    if not choices or getattr(choices[0], "message", None) is None:
        raise _BadReply("the server's reply has no choices")
    choice, usage = choices[0], getattr(output, "usage", None)
    refusal = getattr(choice.message, "refusal", None)  # OpenAI's field, next to an empty content
    text = choice.message.content or refusal or ""
    return Answer(
        # Half of a surrogate pair, left by a server that cut a character in two, could not be written to a file.
        text=text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
        finish_reason="content_filter" if refusal else choice.finish_reason or "stop",
        prompt_tokens=getattr(usage, "prompt_tokens", None) or 0,
        completion_tokens=getattr(usage, "completion_tokens", None) or 0,
        attempts=attempts,
        seconds=seconds,
    )


def _retry_after(error: HfHubHTTPError) -> float:
    try:
        return min(300.0, float(error.response.headers.get("Retry-After", 0)))
    except ValueError:  # a date
        return 0.0


@contextmanager
def _background_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs in a separate thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True, name="hf_select requests")
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
