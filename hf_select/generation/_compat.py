"""Private names of huggingface_hub that this package uses, and the version in which they were found. If they change,
every test against a server fails."""

from typing import Any

from huggingface_hub import AsyncInferenceClient


class NamedServerClient(AsyncInferenceClient):
    """AsyncInferenceClient for a server at an address (huggingface_hub 2.4).

    - HF_HUB_OFFLINE applies to the Hub, but the client's sessions (`_get_async_client()`) also refuse local servers.
      Here they do not.
    - JSON schemas are sent in OpenAI's form, which vLLM, llama.cpp and TGI 3 support. For an address the client
      rewrites them (before `_inner_post(request_parameters, *, stream=False)`) into an older form of TGI; other
      servers ignore the schema in it and return any JSON.
    """

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
