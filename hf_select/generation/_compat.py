"""Private names of huggingface_hub that this package uses, and differences between its releases. If they change, every
test against a server fails."""

import json
from typing import TYPE_CHECKING, Any

from huggingface_hub import AsyncInferenceClient
from huggingface_hub.errors import HfHubHTTPError


# Whether the client sends its requests with aiohttp (huggingface_hub 0.36); later releases have one HTTP library.
_WITH_AIOHTTP = hasattr(AsyncInferenceClient, "_get_client_session")


def transport_errors() -> tuple[type[Exception], ...]:
    """The base classes of errors of the connection in the HTTP library that the client uses."""
    if not _WITH_AIOHTTP:
        return (HfHubHTTPError.__bases__[0],)
    import aiohttp

    return (aiohttp.ClientError, ConnectionError)


def takes_password_in_address() -> bool:
    """Whether a user and a password in an address are sent. aiohttp refuses them beside the header for a key."""
    return not _WITH_AIOHTTP


class ServerClient(AsyncInferenceClient):
    """AsyncInferenceClient that raises HfHubHTTPError for an error status, as it does since huggingface_hub 1; release
    0.36 raises aiohttp's error (before the end of `_inner_post(request_parameters, *, stream=False)`)."""

    async def _inner_post(self, request_parameters: Any, *, stream: bool = False) -> Any:
        if not _WITH_AIOHTTP:
            return await super()._inner_post(request_parameters, stream=stream)
        import aiohttp

        try:
            return await super()._inner_post(request_parameters, stream=stream)
        except aiohttp.ClientResponseError as error:
            raise HfHubHTTPError(str(error), response=_Response(error)) from None  # type: ignore[arg-type]


class NamedServerClient(ServerClient):
    """AsyncInferenceClient for a server at an address (huggingface_hub 2.4).

    - HF_HUB_OFFLINE applies to the Hub, but the client's sessions (`_get_async_client()`) also refuse local servers.
      Here they do not. Those of release 0.36 do not look at it.
    - JSON schemas are sent in OpenAI's form, which vLLM, llama.cpp and TGI 3 support. For an address the client
      rewrites them (before `_inner_post(request_parameters, *, stream=False)`) into an older form of TGI; other
      servers ignore the schema in it and return any JSON.
    """

    if TYPE_CHECKING or not _WITH_AIOHTTP:

        async def _get_async_client(self) -> Any:
            session: Any = await super()._get_async_client()
            session.event_hooks = {"request": [], "response": session.event_hooks["response"]}
            return session

    async def _inner_post(self, request_parameters: Any, *, stream: bool = False) -> Any:
        body = request_parameters.json
        response_format = body.get("response_format") or {}
        if response_format.get("type") == "json_object" and "value" in response_format:
            schema = {"name": "answer", "schema": response_format["value"], "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return await super()._inner_post(request_parameters, stream=stream)


class _Response:
    """What is read of the response of an HfHubHTTPError, from aiohttp's error."""

    def __init__(self, error: Any):
        self.status_code, self.headers = error.status, error.headers or {}
        self.request, self.url = error.request_info, str(error.request_info.real_url)
        self._body = getattr(error, "response_error_payload", None)  # set by the client if the body was JSON
        self.text = error.message if self._body is None else json.dumps(self._body)

    def json(self) -> Any:
        """The body.

        Raises: ValueError if it was not JSON.
        """
        if self._body is None:
            raise ValueError("the body is not JSON")
        return self._body
