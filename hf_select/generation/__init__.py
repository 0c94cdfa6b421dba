"""Synthetic data: generators that answer requests, and GLAN and Responses that use them."""

# Names of the backends, and their classes. The class is imported when it is used.
BACKENDS = {
    "server": "hf_select.generation.server:ServerGenerator",
    "transformers": "hf_select.generation.local:TransformersGenerator",
    "vllm": "hf_select.generation.local:VLLMGenerator",
}
