"""Retries of what may succeed a moment later: the network and the Hub."""

import logging
import time
from collections.abc import Callable
from typing import Any


logger = logging.getLogger(__name__)


def with_retries(load: Callable[[], Any], what: str) -> Any:
    """Ask again, a little later each time, when the Hub or the network stumbles. huggingface_hub does so for what it
    asks about files, but not while it fetches them (seen in 2.4)."""
    for wait in (1, 4, 16):
        try:
            return load()
        except Exception as error:
            if not is_transient(error):
                raise
            logger.warning("%s: %s; asking again in %d s.", what, str(error).splitlines()[0], wait)
            time.sleep(wait)
    return load()


def is_transient(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is of a kind that may be gone in a while."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    while error is not None:
        if isinstance(error, OfflineModeIsEnabled):
            return False
        if isinstance(error, HfHubHTTPError):
            return error.response.status_code in (408, 429, 500, 502, 503, 504)
        if isinstance(error, (ConnectionError, TimeoutError)):
            return True
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if kinds & {"NetworkError", "TimeoutException", "RemoteProtocolError"}:  # of httpx
            return True
        error = error.__cause__ or error.__context__
    return False
