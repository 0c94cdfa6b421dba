"""What is never published: secrets, places on this machine and in private storage, and the names of user and machine.

Rows are published as they are; this is for all that hf_select writes about them: settings, steps, reasons, cards.
Formats of secrets are those of detect-secrets, with the tokens of model hubs and inference providers added here.
"""

import getpass
import os
import re
import socket
from functools import lru_cache
from pathlib import Path
from typing import Any


REMOVED = "[removed]"

# Formats that detect-secrets 1.5 does not know, or of which it matches only a part (JWT without its signature).
_KEYS = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:hf|api_org|gh[opsur]|gsk|fw|npm|r8|jina|shpat|[rs]k_live|[rs]k_test)_[A-Za-z0-9]{16,}"
    r"|(?:dckr_pat|github_pat|tgp_v1|lsv2_[ps]t)_[\w-]{16,}"
    r"|(?:sk|csk|nvapi|xai|pplx|voyage|tvly|glpat|GOCSPX)-[\w-]{16,}|ya29\.[\w-]{16,}"
    r"|xox[a-z]-[\w-]{10,}|xapp-[\w-]{10,}|AIza[\w-]{30,}|AKC[A-Za-z0-9]{40,}|dapi[0-9a-f]{32}|key-[0-9a-f]{32})"
    r"|eyJ[\w=-]{5,}\.[\w=-]+(?:\.[\w+/=-]*)*"
    r"|-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?:(?!-----END).)*(?:-----END[^-]*-----)?",
    re.DOTALL,
)
# detect-secrets: a key of Artifactory may be any word of capitals, and an IP address any version of four numbers.
_LEFT_OUT = {"ArtifactoryDetector", "IPPublicDetector"}
# Secrets that are known by the word before them. A value with neither digit nor capital is taken for a word.
_ASSIGNED = re.compile(
    r"(?i:(?P<before>(?<![A-Za-z])(?:bearer[ :]+"
    r"|authorization[\"']?\s*[:=]\s*[\"']?(?:(?:basic|bearer|token)\s+)?"
    r"|[\w-]{0,40}(?:password|passwd|secret|credentials?|api[_-]?key|access[_-]?key|auth[_-]?token|access[_-]?token)"
    r"[\"']?(?:\s*[:=]\s*|\s+(?=[\"']?\S*\d))[\"']?)))"
    r"(?=[^\s\"',;]*[\dA-Z])[^\s\"',;&\[]{6,}"
)
_USER_INFO = re.compile(r"(?<=://)[^/\s\"'<>?#]+(?=@)")
_QUERY = re.compile(
    r"(?i:(?<=[?&])([\w-]{0,40}(?:token|sig|signature|key|keyid|secret|password|credential|auth))=)[^&\s\"'<>#]+"
)
_SECRET_NAME = re.compile(
    r"(?i)(?:^|_)(?:token|secret|password|passwd|api_?key|access_?key|credential|authorization)s?$"
)
# Names of tokens that are text of a vocabulary, or a number of them.
_NO_SECRET_NAME = re.compile(
    r"(?i)(?:^|_)(?:(?:bos|eos|pad|unk|sep|cls|mask|image|video|audio|start|end|stop|score|rating|special)_token|"
    r"(?:\w+_)?tokens)$"
)

# A folder's name may hold spaces; in a sentence only as far as no fraction or "and/or" begins there.
_FOLDER = r"[^\s\"'`<>|,;()\[\]{}/\\]+(?: (?!and/|or/|\d+/)[^\s\"'`<>|,;:()\[\]{}/\\]+){0,3}/+"
_LAST = r"[^\s\"'`<>|,;()\[\]{}/\\]*"
_WINDOWS_FOLDER, _WINDOWS_LAST = r"[^\\:*?\"<>|\r\n]+\\+", r"[^\\:*?\"<>|\s,;]*"
_HOME = r"(?:~(?!\d)[\w.-]*|\$\{?HOME\}?|%USERPROFILE%)"
_SHARE = r"\\\\+[\w.?$-]+\\+(?:[A-Za-z]:\\+)?"
_ROOT = rf"(?:{_HOME}[\\/]|\.{{0,2}}/|[A-Za-z]:[\\/]|\\\\|(?!https?:|hf:)[A-Za-z][\w+.-]+://)"
_ENDING = (
    r"\.(?:jsonl?|csv|tsv|parquet|arrow|txt|md|log|ya?ml|toml|ini|cfg|env|pem|key|py|ipynb|sh|pt|pth|bin|safetensors"
    r"|gguf|npy|npz|pkl|zip|tar|gz|zst|xz|bz2)(?:\.(?:gz|zst|xz|bz2))?"
)
_BEFORE = r"(?<![^\s\"'`(\[{<=:,;|@])"  # what may stand before a path
_PLACE = re.compile(
    "|".join(
        [
            # In quotation marks a path may hold anything. One that closes follows a letter: `a`/`b` is no path.
            rf"{_BEFORE}(?P<mark>[\"'`])(?P<quoted>{_ROOT}[^\"'`\n]*)(?=(?P=mark))",
            rf"(?<![\w+.-])file:///?(?:{_FOLDER})+{_LAST}",
            r"(?P<address>(?<![\w+.-])[A-Za-z][\w+.-]+://[^\s\"'`<>|]*)",
            r"(?<![\w.@-])[\w.-]+@[\w.-]+:(?!//)[^\s\"'`<>|,;()]+",  # ada@host:path
            rf"(?<![A-Za-z0-9])(?:[A-Za-z]:|{_HOME})\\+(?:{_WINDOWS_FOLDER})+{_WINDOWS_LAST}",
            rf"(?<![A-Za-z0-9]){_SHARE}(?:{_WINDOWS_FOLDER})+{_WINDOWS_LAST}",
            rf"(?<![A-Za-z0-9])[A-Za-z]:(?:\\+|/+(?:{_FOLDER})*){_WINDOWS_LAST}",
            rf"{_BEFORE}{_HOME}/+(?:{_FOLDER})*{_LAST}",
            rf"{_BEFORE}/{{1,2}}(?:{_FOLDER})+(?<=[^/]/){_LAST}",  # two names at least: "/5" is no path
            rf"{_BEFORE}(?:\.{{1,2}}/+)+(?:{_FOLDER})*{_LAST}",
            rf"(?<![\w/.~${{}}@-])(?:[\w.@+-]+/)+[\w.@+-]+{_ENDING}(?![\w/])",  # relative, known by its ending
        ]
    )
)
_PUBLIC = ("http://", "https://", "hf://")
_RELATIVE = re.compile(r"[^/\n]+(?:/[^/\n]+)+")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_ANYBODY = {"root", "user", "ubuntu", "admin", "debian", "ec2-user", "runner", "jovyan", "localhost", "nobody"}
# Every place has one of these marks, and every secret a long run, a word before it or a mark; most reasons have none.
_MARKS = ("/", "\\", "@")
_LONG = re.compile(r"[\w+=-]{18}|eyJ|xox|PRIVATE")
_WORDED = re.compile(r"(?i:[abcps](?:earer|uthoriz|uth.?token|assw|ecret|redential|pi.?key|ccess.?(?:key|token)))")


def scrubbed(value: Any) -> Any:
    """The value without secrets: tokens and values of secret settings are removed, a path and an address in private
    storage are cut to the last name, and the names of user and machine become "user" and "machine".

    Many texts in one call cost less than a call for each: what is looked up about this machine is looked up once.
    """
    return _Scrubber()(value)


def check_clean(name: str, text: str) -> None:
    """Raise ValueError if a text that is about to be published still holds a secret: the last look."""
    for secret in [*_secrets(), str(Path.home()), os.path.realpath(os.getcwd())]:
        if len(secret) > 5 and secret in text:
            raise ValueError(f"{name} would publish a token or a path of this machine; nothing was pushed.")


class _Scrubber:
    def __init__(self) -> None:
        secrets, self.names = _secrets(), _names()
        self.secrets = re.compile("|".join(map(re.escape, secrets))) if secrets else None
        self.own = [*secrets, *self.names]
        self.known: dict[str, str] = {}

    def __call__(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {
                self(name): self._removed(item) if _is_secret(name) else self(item) for name, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self(item) for item in value]
        if isinstance(value, Path):
            value = str(value)
        if not isinstance(value, str):
            return value
        if value not in self.known:
            self.known[value] = self._text(value)
        return self.known[value]

    def _removed(self, value: Any) -> Any:
        """What stands under the name of a secret: its texts are removed, whatever they look like."""
        if isinstance(value, dict):
            return {self(name): self._removed(item) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._removed(item) for item in value]
        return REMOVED if isinstance(value, str) and value else value

    def _text(self, text: str) -> str:
        has_mark, is_long, is_worded = any(mark in text for mark in _MARKS), _LONG.search(text), _WORDED.search(text)
        if not has_mark and not is_long and not is_worded and not any(own in text for own in self.own):
            return text
        if self.secrets is not None:
            text = self.secrets.sub(REMOVED, text)
        if has_mark:
            text = _QUERY.sub(rf"\1={REMOVED}", _USER_INFO.sub(REMOVED, text))
        if is_long:
            text = _KEYS.sub(REMOVED, text)
            for pattern in _formats():
                text = pattern.sub(REMOVED, text)
        if is_worded:
            text = _ASSIGNED.sub(rf"\g<before>{REMOVED}", text)
        if has_mark:
            text = _last_name(text) if _is_place(text) else _PLACE.sub(_cut, text)
        if _HUB_ID.fullmatch(text):
            return text  # on the Hub a name is public
        for name, word in self.names.items():
            if name in text:
                text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", word, text)
        return text


@lru_cache(maxsize=1)
def _formats() -> list[re.Pattern]:
    """The formats of detect-secrets. What follows a match without a break belongs to it: some are of fixed lengths."""
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    from detect_secrets.plugins.base import RegexBasedDetector

    found = []
    for detector in get_mapping_from_secret_type_to_class().values():
        if issubclass(detector, RegexBasedDetector) and detector.__name__ not in _LEFT_OUT:
            for pattern in detector.denylist:  # type: ignore[attr-defined]  # a property of the base, a list in each
                found.append(re.compile(rf"(?:{pattern.pattern})(?:[\w+/=~-]|\.(?=\w))*", pattern.flags))
    return found


def _is_secret(name: Any) -> bool:
    plain = re.sub(r"(?<=[a-z])(?=[A-Z])|[^A-Za-z0-9]+", "_", str(name))
    return bool(_SECRET_NAME.search(plain)) and not _NO_SECRET_NAME.search(plain)


def _is_place(text: str) -> bool:
    """Whether the whole text is a path, which then may hold spaces: it begins as one, or is one that exists here."""
    if "\n" in text or len(text) > 1000:
        return False
    if re.match(_ROOT, text):
        return len(re.findall(r"[^\\/]+", text)) > 1 and not re.search(r"[,;:.] | (?:and|or|\d+)/", text)
    return bool(_RELATIVE.fullmatch(text)) and os.path.exists(text)


def _cut(found: re.Match) -> str:
    if found["mark"]:
        return found["mark"] + _last_name(found["quoted"])
    return found[0] if (found["address"] or "").startswith(_PUBLIC) else _last_name(found[0])


def _last_name(place: str) -> str:
    scheme, _, rest = place.rpartition("://")
    names = re.findall(r"[^\\/]+", rest)
    if not names:  # "/", "../"
        return place
    # Of a bucket or a server alone the only name is private.
    return REMOVED if scheme and len(names) < 2 and not rest.startswith("/") else names[-1]


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

    found = [value for name, value in os.environ.items() if _is_secret(name) and len(value) >= 8]
    token = get_token()
    return sorted({*found, *([token] if token else [])}, key=len, reverse=True)
