"""Retries after transient errors of the network and the Hub."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar


logger = logging.getLogger(__name__)


Loaded = TypeVar("Loaded")

# Names of errors of httpx, and of requests (used by huggingface_hub before 1.0).
_TRANSIENT = {"NetworkError", "TimeoutException", "RemoteProtocolError"} | {
    "ConnectionError",
    "Timeout",
    "ChunkedEncodingError",
}


def with_retries(load: Callable[[], Loaded], what: str) -> Loaded:
    """Call `load()`, and retry after transient errors with increasing waits. huggingface_hub retries metadata requests
    but not downloads (as of 2.4)."""
    for wait in (1, 4, 16):
        try:
            return load()
        except Exception as error:
            if not is_transient(error):
                raise
            logger.warning("%s: %s; retrying in %d s.", what, str(error).splitlines()[0], wait)
            time.sleep(wait)
    return load()


def is_transient(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, is transient."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    while error is not None:
        if isinstance(error, OfflineModeIsEnabled):
            return False
        # In huggingface_hub 0.36 a file that is not in the local cache is an HTTP error without a response.
        if isinstance(error, HfHubHTTPError) and error.response is not None:
            return error.response.status_code in (408, 429, 500, 502, 503, 504)
        if isinstance(error, (ConnectionError, TimeoutError)):
            return True
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if kinds & _TRANSIENT:
            return True
        error = error.__cause__ or error.__context__
    return False
