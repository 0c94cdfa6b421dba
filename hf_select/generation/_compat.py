"""The private names of huggingface_hub that this room touches, with the version they were seen in; every test against
a server fails if they change."""

from typing import Any

from huggingface_hub import AsyncInferenceClient


class NamedServerClient(AsyncInferenceClient):
    """AsyncInferenceClient for a server that the user names by its address (huggingface_hub 2.4).

    - HF_HUB_OFFLINE forbids the Hub, not a server on this machine or in this cluster; the client's sessions
      (`_get_async_client()`) refuse both.
    - A JSON schema is sent as OpenAI's API has it, which vLLM, llama.cpp and TGI 3 read. For an address the client
      rewrites it (before `_inner_post(request_parameters, *, stream=False)`) into an older dialect of TGI, of which
      the others read only that some JSON is wanted.
    """

    async def _get_async_client(self) -> Any:
        session: Any = await super()._get_async_client()
        session.event_hooks = {"request": [], "response": session.event_hooks["response"]}
        return session

    async def _inner_post(self, request_parameters: Any, *, stream: bool = False) -> Any:
        body = request_parameters.json
        asked = body.get("response_format") or {}
        if asked.get("type") == "json_object" and "value" in asked:
            schema = {"name": "answer", "schema": asked["value"], "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return await super()._inner_post(request_parameters, stream=stream)
