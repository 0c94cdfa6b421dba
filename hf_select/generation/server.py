"""Any OpenAI-compatible server as a generator: `transformers serve`, vLLM, TGI, llama.cpp, or the Hub's Inference
Providers, through `huggingface_hub.AsyncInferenceClient`.

Requests run in an event loop in a thread of its own, since a notebook has a loop running already. The caller's thread
hands out requests and takes answers; twice as many as may fly are handed out, so that a free slot is taken at once.
"""

import asyncio
import logging
import os
import queue
import random
import threading
import time
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from huggingface_hub import AsyncInferenceClient, get_token
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError, OfflineModeIsEnabled

from hf_select.generation._compat import NamedServerClient
from hf_select.generation.generator import Answer, Generator, Request, Usage
from hf_select.validation import check_choices


logger = logging.getLogger(__name__)

# Of the HTTP library that this version of huggingface_hub is built on: all that can go wrong on the wire.
_WireError: Any = HfHubHTTPError.__bases__[0]
# The client's library keeps 20 connections open; more requests at once would each open one anew.
_KEPT_OPEN = 20
# Statuses that may be gone in a while.
_PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 529)
# Requests in a row that fail before the server is held to be gone, or to be another than we think.
_GONE = 8
# Seconds before a request is asked again for the first time; twice as many each time after, up to a minute.
_FIRST_WAIT = 0.5
# Attempts at a server that has not answered anything yet and refuses connections.
_ATTEMPTS_AT_NOBODY = 3


class _Fatal(ValueError):
    """What no other request to this server could cure."""


@dataclass
class ServerGenerator(Generator):
    """A chat model behind an OpenAI-compatible server.

    429, 5xx, cut connections, time-outs and answers that are no JSON are asked again, later each time, as the server's
    Retry-After says. What stays unanswered comes back with its reason; if that happens to request after request, or
    if the key, the address or the model is wrong, ValueError says so. A server that refuses a JSON schema is asked
    without one. Keys come from the environment and are never written.

    Args:
        model: name of the model as the server knows it, or on the Hub.
        base_url: address of the server, e.g. http://localhost:8000/v1; none: Inference Providers of the Hub.
        provider: which of the Inference Providers; by default the first of your settings there.
        api_key_env: environment variable that holds the server's key. By default no key is sent to an address, and
            Inference Providers get the token of `hf auth login` or HF_TOKEN.
        concurrency: requests under way at once; a little more than the server has slots keeps it busy.
        timeout: seconds to wait for an answer.
        max_retries: times that a request is asked again, of these at most once after a time-out.
        json_schema: ask for JSON by its schema where there is one: auto, until the server refuses it, or off.
        revision: of the model, as you know that the server runs it; it is only written down.
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
    usage: Usage = field(default_factory=Usage, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_choices(self)
        for name, least in (("concurrency", 1), ("max_retries", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
        if self.timeout <= 0:
            raise ValueError(f"timeout is {self.timeout}; it must be more than 0 seconds.")
        if self.base_url is not None and not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f'base_url is "{self.base_url}"; it is an address such as http://localhost:8000/v1.')
        if self.base_url is not None and self.provider is not None:
            raise ValueError("base_url names a server and provider one of the Hub's; give one of them.")

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.model

    def stream(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Answer]]:
        """Each request with its answer, in the order in which they come.

        Raises: ValueError if there is no server, or if it refuses the key or does not know the model.
        """
        key = self._key()
        waiting = iter(requests)
        with _loop() as loop:
            line = _Line(self, key, random.Random(0))
            try:
                done: queue.SimpleQueue = queue.SimpleQueue()
                flying, fatal = 0, None
                while True:
                    room = 2 * self.concurrency if fatal is None else 0
                    while flying < room and (request := next(waiting, None)) is not None:
                        future = asyncio.run_coroutine_threadsafe(line.answer(request), loop)
                        future.add_done_callback(lambda future, request=request: done.put((request, future)))
                        flying += 1
                    if not flying or (fatal is not None and done.empty()):
                        break
                    request, future = done.get()
                    flying -= 1
                    try:
                        answer = future.result()
                    except _Fatal as error:  # first what has come already
                        fatal = error
                        continue
                    self.usage.count(answer)
                    yield request, answer
                if fatal is not None:
                    raise fatal
            finally:
                _in(loop, line.close())

    def _key(self) -> str:
        if self.api_key_env is not None:
            key = os.environ.get(self.api_key_env)
            if not key:
                raise ValueError(
                    f"environment variable {self.api_key_env} is not set; it is to hold the server's key."
                )
            return key
        if self.base_url is not None:
            return "none"  # without any, the client would send the token of the Hub to wherever the address leads
        token = get_token()
        if token is None:
            raise ValueError(
                "Inference Providers need a token: hf auth login, or HF_TOKEN. For a server of your own give base_url."
            )
        return token


class _Line:
    """The connections of one stream, and what is known of the server at their other end; in the loop's thread."""

    def __init__(self, settings: ServerGenerator, key: str, dice: random.Random):
        self.settings, self.key, self.dice = settings, key, dice
        # A client makes its session, which takes 0.1 s, at its first request: few requests need only the first client.
        count = -(-settings.concurrency // _KEPT_OPEN)
        self.made: list[AsyncInferenceClient] = [self._client() for _ in range(count)]
        self.clients: asyncio.LifoQueue[AsyncInferenceClient] = asyncio.LifoQueue()
        for slot in reversed(range(settings.concurrency)):
            self.clients.put_nowait(self.made[slot // _KEPT_OPEN])
        self.schemas = settings.json_schema == "auto"
        self.answered = settings.usage.answers > 0
        self.failed_in_a_row = 0
        self.pause_until = 0.0

    def _client(self) -> AsyncInferenceClient:
        if self.settings.base_url is None:
            return AsyncInferenceClient(provider=self.settings.provider, token=self.key)  # type: ignore[arg-type]
        return NamedServerClient(base_url=self.settings.base_url, token=self.key)

    async def close(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for client in self.made:
            await client.close()

    async def answer(self, request: Request) -> Answer:
        client = await self.clients.get()
        try:
            answer = await self._patiently(client, request)
        finally:
            self.clients.put_nowait(client)
        self.failed_in_a_row = self.failed_in_a_row + 1 if answer.error else 0
        # A request that is refused says nothing of the next, unless none has ever been answered.
        if self.failed_in_a_row >= _GONE and (answer.lost or not self.answered):
            times = f"asked {answer.attempts} times" if answer.attempts > 1 else "asked once"
            raise _Fatal(
                f"{self._where()} has failed {_GONE} requests in a row, the last {times} ({answer.error}). "
                "See to the server, then run the same command again: what is finished is kept."
            )
        return answer

    async def _patiently(self, client: AsyncInferenceClient, request: Request) -> Answer:
        attempts, timed_out = 0, 0
        while True:
            await self._pause()
            attempts += 1
            begin = time.perf_counter()
            schema = request.schema if self.schemas else None
            try:
                output = await asyncio.wait_for(self._ask(client, request, schema), self.settings.timeout)
                self.answered = True
                return _read(output, attempts, time.perf_counter() - begin)
            except (asyncio.TimeoutError, InferenceTimeoutError):
                timed_out += 1
                reason, wait = f"no answer in {self.settings.timeout:g} s", 0.0
            except OfflineModeIsEnabled as error:
                raise _Fatal(f"{str(error).splitlines()[0]} Or give base_url, a server of your own.") from None
            except HfHubHTTPError as error:
                status = error.response.status_code
                reason = self._said(error)
                if status in (400, 422) and schema is not None:
                    if self.schemas:
                        logger.warning("%s refuses JSON schemas (%s); asking without.", self._where(), reason)
                    self.schemas = False
                    attempts -= 1
                    continue
                self._raise_if_fatal(status, reason)
                if status not in _PASSING:  # too long a prompt, say: this request's own fault
                    return Answer(error=reason, attempts=attempts)
                wait = _retry_after(error)
                if status == 429:
                    self.pause_until = max(self.pause_until, asyncio.get_running_loop().time() + wait)
            except _Unreadable as error:
                reason, wait = self._clean(str(error)), 0.0
            except _WireError as error:
                reason, wait = self._clean(f"{type(error).__name__}: {error}".rstrip(": ")), 0.0
                if not self.answered and "Connect" in reason and attempts >= _ATTEMPTS_AT_NOBODY:
                    raise _Fatal(
                        f"{self._where()} does not answer ({reason}). Start the server, or mend base_url."
                    ) from None
            if attempts > self.settings.max_retries or timed_out > 1:
                return Answer(error=reason, attempts=attempts, lost=True)
            backoff = min(60.0, _FIRST_WAIT * 2 ** (attempts - 1)) * self.dice.uniform(0.5, 1.5)
            await asyncio.sleep(max(wait, backoff))

    async def _ask(self, client: AsyncInferenceClient, request: Request, schema: dict[str, Any] | None) -> Any:
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
        except _WireError:
            raise
        except (ValueError, TypeError, AttributeError) as error:
            raise _Unreadable(f"the server's reply is no JSON of a chat ({error})") from None

    async def _pause(self) -> None:
        """All wait while the server has said that it is asked too often."""
        loop = asyncio.get_running_loop()
        while (left := self.pause_until - loop.time()) > 0:
            await asyncio.sleep(left + self.dice.uniform(0, 0.1))

    def _raise_if_fatal(self, status: int, reason: str) -> None:
        if status == 402:
            raise _Fatal(f"{self._where()} asks for payment ({reason}); then run the same command again.")
        if status in (401, 403):
            cure = "no key was sent; name the environment variable that holds it: api_key_env (--api-key-env)"
            if self.key != "none":
                cure = f"check the key in {self.settings.api_key_env or 'HF_TOKEN'}"
            raise _Fatal(f"{self._where()} refuses the key ({reason}): {cure}.")
        if status == 404 or (status == 400 and not self.answered and self.settings.model in reason):
            raise _Fatal(
                f'{self._where()} knows no model "{self.settings.model}" at this address ({reason}). '
                "Check --model against its /v1/models, and --base-url."
            )

    def _where(self) -> str:
        address = self.settings.base_url
        return f"the server at {self._clean(address)}" if address else "the inference provider"

    def _said(self, error: HfHubHTTPError) -> str:
        """The status and what the server says of it, in one short line."""
        try:
            said = error.response.json()
            for key in ("error", "detail", "message"):
                said = said.get(key, said) if isinstance(said, dict) else said
        except Exception:  # the body may be anything, or unread
            said = error.server_message or ""
        # The key is removed before the text is cut: the cut could leave a part of it.
        return self._clean(" ".join(f"{error.response.status_code} {said}".split()))[:300]

    def _clean(self, text: str) -> str:
        """The text without the key, and without the user and password of the address."""
        user, at, _ = urlsplit(self.settings.base_url or "").netloc.rpartition("@")
        for secret in ([] if self.key == "none" else [self.key]) + ([user + at] if user else []):
            text = text.replace(secret, "***")
        return text


class _Unreadable(Exception):
    """A reply that is no chat completion."""


def _read(output: Any, attempts: int, seconds: float) -> Answer:
    choices = getattr(output, "choices", None)
    if not choices or getattr(choices[0], "message", None) is None:
        raise _Unreadable("the server's reply holds no choice")
    choice, usage = choices[0], getattr(output, "usage", None)
    refusal = getattr(choice.message, "refusal", None)  # OpenAI's own field, beside an empty content
    text = choice.message.content or refusal or ""
    return Answer(
        # Half of a surrogate pair, where a server cut a character in two, could not be written to any file.
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
def _loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True, name="hf_select requests")
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _in(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run_coroutine_threadsafe(coroutine, loop).result()
