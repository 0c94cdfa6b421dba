"""Remove secrets, paths of this machine and of private storage, and the names of its user and of the machine.

This applies to everything that hf_select writes about rows: settings, steps, reasons, cards. Rows are published
unchanged. Secrets are recognised by the formats of detect-secrets and by those of model hubs and inference providers
below.
"""

import getpass
import os
import re
import socket
from functools import lru_cache
from pathlib import Path
from typing import Any


REMOVED = "[removed]"

# Formats that detect-secrets 1.5 does not know, or matches only in part (JWT without its signature).
_KEYS = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:hf|api_org|gh[opsur]|gsk|fw|npm|r8|jina|shpat|[rs]k_live|[rs]k_test)_[A-Za-z0-9]{16,}"
    r"|(?:dckr_pat|github_pat|tgp_v1|lsv2_[ps]t)_[\w-]{16,}"
    r"|(?:sk|csk|nvapi|xai|pplx|voyage|tvly|glpat|GOCSPX)-[\w-]{16,}|ya29\.[\w-]{16,}"
    r"|xox[a-z]-[\w-]{10,}|xapp-[\w-]{10,}|AIza[\w-]{30,}|AKC[A-Za-z0-9]{40,}|dapi[0-9a-f]{32}|key-[0-9a-f]{32})"
    r"|eyJ[\w=-]{5,}\.[\w=-]+(?:\.[\w+/=-]*)*"
    r"|-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?:(?!-----END).)*(?:-----END[^-]*-----)?",
    re.DOTALL,
)
# Detectors with false positives: any word in capitals, any version number of four parts.
_EXCLUDED_DETECTORS = {"ArtifactoryDetector", "IPPublicDetector"}
# Secrets that are recognised by the word before them. A value without digits and capitals is an ordinary word.
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
# Settings about the tokens of a vocabulary.
_VOCABULARY_NAME = re.compile(
    r"(?i)(?:^|_)(?:(?:bos|eos|pad|unk|sep|cls|mask|image|video|audio|start|end|stop|score|rating|special)_token|"
    r"(?:\w+_)?tokens)$"
)
# Settings whose value is a path or a Hub id.
_PATH_NAME = re.compile(
    r"(?:^|_)(?:model|adapter|checkpoint|dataset|data|path|file|folder|dir|scores|index|output|subset|queries)$"
)
_DEEP_RELATIVE = re.compile(r"(?!score_)[\w.@+-]+(?:/[\w.@+ -]+){2,}/?")  # too many parts for a Hub id

# A folder's name may contain spaces, unless a fraction or "and/or" follows.
_FOLDER = r"[^\s\"'`<>|,;()\[\]{}/\\]+(?: (?!and/|or/|\d+/)[^\s\"'`<>|,;:()\[\]{}/\\]+){0,3}/+"
_LAST = r"[^\s\"'`<>|,;()\[\]{}/\\]*"
_WINDOWS_FOLDER, _WINDOWS_LAST = r"[^\\:*?\"<>|\r\n]+\\+", r"[^\\:*?\"<>|\s,;]*"
_HOME_FOLDER = r"(?:~(?!\d)[\w.-]*|\$\{?HOME\}?|%USERPROFILE%)"
_SHARE = r"\\\\+[\w.?$-]+\\+(?:[A-Za-z]:\\+)?"
_ROOT = rf"(?:{_HOME_FOLDER}[\\/]|\.{{0,2}}/|[A-Za-z]:[\\/]|\\\\|(?!https?:|hf:)[A-Za-z][\w+.-]+://)"
_ENDING = (
    r"\.(?:jsonl?|csv|tsv|parquet|arrow|txt|md|log|ya?ml|toml|ini|cfg|env|pem|key|py|ipynb|sh|pt|pth|bin|safetensors"
    r"|gguf|npy|npz|pkl|zip|tar|gz|zst|xz|bz2)(?:\.(?:gz|zst|xz|bz2))?"
)
_BEFORE = r"(?<![^\s\"'`(\[{<=:,;|@])"  # may precede a path
_PATH = re.compile(
    "|".join(
        [
            # Quoted paths may contain any character. A closing mark follows a letter: `a`/`b` is not a path.
            rf"{_BEFORE}(?P<mark>[\"'`])(?P<quoted>{_ROOT}[^\"'`\n]*)(?=(?P=mark))",
            rf"(?<![\w+.-])file:///?(?:{_FOLDER})+{_LAST}",
            r"(?P<address>(?<![\w+.-])[A-Za-z][\w+.-]+://[^\s\"'`<>|]*)",
            r"(?<![\w.@-])[\w.-]+@[\w.-]+:(?!//)[^\s\"'`<>|,;()]+",  # ada@host:path
            rf"(?<![A-Za-z0-9])(?:[A-Za-z]:|{_HOME_FOLDER})\\+(?:{_WINDOWS_FOLDER})+{_WINDOWS_LAST}",
            rf"(?<![A-Za-z0-9]){_SHARE}(?:{_WINDOWS_FOLDER})+{_WINDOWS_LAST}",
            rf"(?<![A-Za-z0-9])[A-Za-z]:(?:\\+|/+(?:{_FOLDER})*){_WINDOWS_LAST}",
            rf"{_BEFORE}{_HOME_FOLDER}/+(?:{_FOLDER})*{_LAST}",
            rf"{_BEFORE}/{{1,2}}(?:{_FOLDER})+(?<=[^/]/){_LAST}",  # at least two parts: "/5" is not a path
            rf"{_BEFORE}(?:\.{{1,2}}/+)+(?:{_FOLDER})*{_LAST}",
            rf"(?<![\w/.~${{}}@-])(?:[\w.@+-]+/)+[\w.@+-]+{_ENDING}(?![\w/])",  # relative, recognised by its ending
        ]
    )
)
_PUBLIC = ("http://", "https://", "hf://")
_RELATIVE = re.compile(r"[^/\n]+(?:/[^/\n]+)+")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_GENERIC_NAMES = {"root", "user", "ubuntu", "admin", "debian", "ec2-user", "runner", "jovyan", "localhost", "nobody"}
# Every path has one of these marks; every secret is long, follows a word, or has a mark. Most texts have none.
_MARKS = ("/", "\\", "@")
_LONG = re.compile(r"[\w+=-]{18}|eyJ|xox|PRIVATE")
_WORDED = re.compile(r"(?i:[abcps](?:earer|uthoriz|uth.?token|assw|ecret|redential|pi.?key|ccess.?(?:key|token)))")


def scrubbed(value: Any) -> Any:
    """The value without secrets.

    Tokens and the values of secret settings are removed. Paths, and URLs of private storage, are shortened to their
    last part. The names of the user and the machine become "user" and "machine".

    Scrub many texts in one call: what this machine's secrets and names are is determined once a call.
    """
    return _Scrubber()(value)


def check_clean(name: str, text: str) -> None:
    """Raise ValueError if a text that is about to be published contains a secret or path of this machine."""
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
            # The name that a server gives a model is not a path.
            is_remote = any(isinstance(name, str) and name.endswith("base_url") for name in value)
            return {self(name): self._setting(name, item, is_remote) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self(item) for item in value]
        if isinstance(value, Path):
            value = str(value)
        if not isinstance(value, str):
            return value
        if value not in self.known:
            self.known[value] = self._text(value)
        return self.known[value]

    def _setting(self, name: Any, value: Any, is_remote: bool = False) -> Any:
        if _is_secret_name(name):
            return self._removed(value)
        if _is_path_name(name) and not (is_remote and name.endswith("model")):
            if isinstance(value, str) and _DEEP_RELATIVE.fullmatch(value):
                return self(_last_part(value))
            if isinstance(value, (list, tuple)):
                return [self._setting(name, item) for item in value]
        return self(value)

    def _removed(self, value: Any) -> Any:
        """The value of a secret setting, without any of its texts."""
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
            text = _last_part(text) if _is_path(text) else _PATH.sub(_shorten_path, text)
        if _HUB_ID.fullmatch(text):
            return text  # names on the Hub are public
        for name, word in self.names.items():
            if name in text:
                text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", word, text)
        return text


@lru_cache(maxsize=1)
def _formats() -> list[re.Pattern]:
    """The formats of detect-secrets, extended to the end of the word: some match a fixed length."""
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    from detect_secrets.plugins.base import RegexBasedDetector

    formats = []
    for detector in get_mapping_from_secret_type_to_class().values():
        if issubclass(detector, RegexBasedDetector) and detector.__name__ not in _EXCLUDED_DETECTORS:
            for pattern in detector.denylist:  # type: ignore[attr-defined]  # a property of the base, a list in each
                formats.append(re.compile(rf"(?:{pattern.pattern})(?:[\w+/=~-]|\.(?=\w))*", pattern.flags))
    return formats


@lru_cache(maxsize=4096)
def _is_secret_name(name: Any) -> bool:
    plain = re.sub(r"(?<=[a-z])(?=[A-Z])|[^A-Za-z0-9]+", "_", str(name))
    return bool(_SECRET_NAME.search(plain)) and not _VOCABULARY_NAME.search(plain)


@lru_cache(maxsize=4096)
def _is_path_name(name: Any) -> bool:
    return isinstance(name, str) and _PATH_NAME.search(name) is not None


def _is_path(text: str) -> bool:
    """Whether the whole text is a path, possibly with spaces: it starts as one, or exists on this machine."""
    if "\n" in text or len(text) > 1000:
        return False
    if re.match(_ROOT, text):
        return len(re.findall(r"[^\\/]+", text)) > 1 and not re.search(r"[,;:.] | (?:and|or|\d+)/", text)
    return bool(_RELATIVE.fullmatch(text)) and os.path.exists(text)


def _shorten_path(match: re.Match) -> str:
    if match["mark"]:
        return match["mark"] + _last_part(match["quoted"])
    return match[0] if (match["address"] or "").startswith(_PUBLIC) else _last_part(match[0])


def _last_part(path: str) -> str:
    scheme, _, rest = path.rpartition("://")
    names = re.findall(r"[^\\/]+", rest)
    if not names:  # "/", "../"
        return path
    # The name of a bucket or a server is private.
    return REMOVED if scheme and len(names) < 2 and not rest.startswith("/") else names[-1]


def _names() -> dict[str, str]:
    """The names of the user and the machine, except generic ones, and what replaces them."""
    try:
        names = {getpass.getuser(): "user", Path.home().name: "user"}
    except (KeyError, OSError, RuntimeError):  # the account has no name
        names = {}
    names |= {socket.gethostname(): "machine"}
    return {name: word for name, word in names.items() if len(name) > 2 and name.lower() not in _GENERIC_NAMES}


def _secrets() -> list[str]:
    """Secrets in the environment, and the Hub token."""
    from huggingface_hub import get_token

    values = [value for name, value in os.environ.items() if _is_secret_name(name) and len(value) >= 8]
    token = get_token()
    return sorted({*values, *([token] if token else [])}, key=len, reverse=True)
