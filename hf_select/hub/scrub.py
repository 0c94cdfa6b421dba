"""What is never published: tokens, places on this machine, and whose machine it is.

Rows are published as they are; this is for all that hf_select writes about them: settings, steps, reasons, cards.
"""

import getpass
import os
import re
import socket
from pathlib import Path
from typing import Any


REMOVED = "[removed]"

_TOKENS = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bapi_org_[A-Za-z0-9]{16,}|\bsk-[A-Za-z0-9_-]{16,}|\bgh[opsur]_[A-Za-z0-9]{20,}"
    r"|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}|\bxox[abpr]-[\w-]{10,}|\bAKIA[0-9A-Z]{16}\b|\bAIza[\w-]{30,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)|(?i:(?<=bearer )[\w.~+/-]{12,}=*)"
)
_SECRET_NAME = re.compile(r"(?i)(^|_)(token|secret|password|passwd|api_?key|access_?key|credentials?|authorization)$")
# Two names deep at least: "and/or" and "/5" are no places.
_PLACE = re.compile(
    r"(?<![\w:/.~-])(?:file://)?(?:~|/)[^\s\"'<>|,;()\[\]{}]*/(?P<unix>[^\s\"'<>|,;()\[\]{}/]*)"
    r"|(?<![\w])[A-Za-z]:\\(?:[^\s\"'<>|,;\\]+\\)*(?P<windows>[^\s\"'<>|,;\\]*)"
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_ANYBODY = {"root", "user", "ubuntu", "admin", "debian", "ec2-user", "runner", "jovyan", "localhost", "nobody"}


def scrubbed(value: Any) -> Any:
    """The value without secrets: tokens and values of secret settings are taken out, an absolute path is cut to its
    last name, and the names of user and machine to "user" and "machine"."""
    return _scrubbed(value, _secrets(), _names())


def check_clean(name: str, text: str) -> None:
    """Raise ValueError if a text that is about to be published still holds a secret: the last look."""
    for secret in [*_secrets(), str(Path.home()), os.path.realpath(os.getcwd())]:
        if len(secret) > 5 and secret in text:
            raise ValueError(f"{name} would publish a token or a path of this machine; nothing was pushed.")


def _scrubbed(value: Any, secrets: list[str], names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {
            _scrubbed(name, secrets, names): REMOVED
            if isinstance(item, str) and item and _SECRET_NAME.search(str(name))
            else _scrubbed(item, secrets, names)
            for name, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_scrubbed(item, secrets, names) for item in value]
    if isinstance(value, Path):
        value = str(value)
    return _text(value, secrets, names) if isinstance(value, str) else value


def _text(text: str, secrets: list[str], names: dict[str, str]) -> str:
    for secret in secrets:
        text = text.replace(secret, REMOVED)
    text = _TOKENS.sub(REMOVED, text)
    if text.startswith(("/", "~", "file://")) and "\n" not in text and text.count("/") > 1:  # it may hold spaces
        text = text.rstrip("/").rpartition("/")[2]
    text = _PLACE.sub(lambda found: found["unix"] or found["windows"] or "", text)
    if _HUB_ID.fullmatch(text) and not Path(text).exists():
        return text  # on the Hub a name is public
    for name, word in names.items():
        if name in text:
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", word, text)
    return text


def _names() -> dict[str, str]:
    """Who is at work, unless it is anybody's name."""
    try:
        names = {getpass.getuser(): "user", Path.home().name: "user"}
    except (KeyError, OSError, RuntimeError):  # an account without a name
        names = {}
    names |= {socket.gethostname(): "machine"}
    return {name: word for name, word in names.items() if len(name) > 2 and name.lower() not in _ANYBODY}


def _secrets() -> list[str]:
    """Secrets that this process knows by name."""
    from huggingface_hub import get_token

    found = [value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= 8]
    token = get_token()
    return sorted({*found, *([token] if token else [])}, key=len, reverse=True)
