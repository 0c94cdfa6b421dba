"""A small Hub: an HTTP server that speaks the part of the Hub's API that huggingface_hub 2.4 uses to make a dataset
repository, push to it and read it, and to look at a model (LFS protocol; Xet is turned off in the tests). With faults
on demand.

    server.fail("POST .*/commit/", 500)              answer so, once
    server.fail("PUT /lfs/", "cut", times=2)         drop the connection before the request is read
    server.fail("POST .*/commit/", "cut after")      do it, and drop the connection before the answer
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


TOKEN = "hf_" + "testtoken" * 3
LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-sa-4.0", "odc-by", "other", "unknown")


def renew_sessions() -> None:
    """Let huggingface_hub 0.36 read HF_HUB_OFFLINE again, which it does for a new session only."""
    from huggingface_hub.utils import _http

    if hasattr(_http, "reset_sessions"):
        _http.reset_sessions()


@dataclass
class Repo:
    """One dataset repository. A file is (its bytes, whether it is stored as LFS)."""

    private: bool
    commits: list[dict[str, Any]] = field(default_factory=list)
    branches: dict[str, int] = field(default_factory=dict)

    def commit(self, files: dict[str, tuple[bytes, bool]], message: str, branch: str = "main") -> str:
        tree = {name: hashlib.sha1(data).hexdigest() for name, (data, _) in files.items()}
        described = json.dumps([tree, message, len(self.commits)], sort_keys=True)
        sha = hashlib.sha1(described.encode()).hexdigest()
        self.commits.append({"sha": sha, "files": files, "message": message})
        self.branches[branch] = len(self.commits) - 1
        return sha

    def at(self, revision: str) -> dict[str, Any] | None:
        if revision in self.branches:
            return self.commits[self.branches[revision]]
        return next((commit for commit in self.commits if commit["sha"] == revision), None)


class Hub(ThreadingHTTPServer):
    """The server and all that it holds."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, Repo] = {}
        self.models: dict[str, str] = {}  # licence on the card, by id
        self.objects: dict[str, bytes] = {}  # of LFS, by sha256
        self.faults: list[list[Any]] = []
        self.requests: list[str] = []
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def fail(self, pattern: str, how: int | str, times: int = 1) -> None:
        """Fail the next `times` requests that match: a status, "cut" or "cut after"."""
        self.faults.append([pattern, how, times])

    def fault(self, request: str) -> int | str | None:
        with self.lock:
            for fault in self.faults:
                if fault[2] > 0 and re.search(fault[0], request):
                    fault[2] -= 1
                    return fault[1]
        return None

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        commit = self.repos[repo].at(revision)
        return {name: data for name, (data, _) in commit["files"].items()}  # type: ignore[index]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _handle(self) -> None:
        request = f"{self.command} {unquote(self.path)}"
        self.server.requests.append(request)
        fault = self.server.fault(request)
        if fault == "cut":
            self.close_connection = True
            self.connection.close()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if isinstance(fault, int):
            headers = {"Retry-After": "0"} if fault == 429 else {}
            self._answer(fault, {"error": f"fault {fault}"}, headers)
            return
        with self.server.lock:
            status, answer, headers = self._route(body)
        if fault == "cut after":
            self.close_connection = True
            self.connection.close()
            return
        self._answer(status, answer, headers)

    def _answer(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    @property
    def _allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _route(self, body: bytes) -> tuple[int, Any, dict[str, str]]:
        path = unquote(urlsplit(self.path).path)
        writes = (
            self.command in ("POST", "PUT", "DELETE") and "paths-info" not in path and not path.startswith("/lfs/")
        )
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if writes and not self._allowed:
            return 401, {"error": "Invalid username or password."}, {}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.startswith("/lfs/"):
            return self._lfs_object(path.removeprefix("/lfs/"), body)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path):
            return self._model(found[1])
        if found := re.fullmatch(r"/datasets/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._lfs_batch(json.loads(body))
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+?)(?:/(\w[\w-]*)(?:/([^/]+)(?:/(.*))?)?)?", path):
            name, what, revision, rest = found.groups()
        elif found := re.fullmatch(r"/datasets/([^/]+/[^/]+)/(resolve)/([^/]+)/(.+)", path):
            name, what, revision, rest = found.groups()
        else:
            return 404, {"error": f"no route {path}"}, {}
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and not self._allowed):
            return (404 if self._allowed else 401), {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        if what == "branch":
            repo.branches.setdefault(str(revision), repo.branches["main"])
            return 201, {}, {}
        commit = repo.at(revision or "main")
        if commit is None:
            return 404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"}
        if what in (None, "revision"):
            return 200, self._info(name, repo, commit), {}
        if what == "preupload":
            return 200, self._preupload(commit, json.loads(body)), {}
        if what == "commit":
            return self._commit(name, repo, commit, str(revision), body)
        if what == "tree":
            return 200, self._tree(commit, rest or ""), {}
        if what == "paths-info":
            wanted = _paths(body, self.headers.get("Content-Type", ""))
            return 200, [entry for entry in self._tree(commit, "", True) if entry["path"] in wanted], {}
        if what == "resolve":
            return self._resolve(commit, rest)
        return 404, {"error": f"no route {path}"}, {}

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        url = f"{self.server.url}/datasets/{name}"
        if name in self.server.repos:
            return 409, {"error": "You already created this dataset repo", "url": url}, {}
        repo = self.server.repos[name] = Repo(
            private=bool(asked.get("private") or asked.get("visibility") == "private")
        )
        repo.commit({".gitattributes": (b"*.parquet filter=lfs\n", False)}, "initial commit")
        return 200, {"url": url, "name": name}, {}

    def _model(self, name: str) -> tuple[int, Any, dict[str, str]]:
        if name not in self.server.models:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        card = {"license": self.server.models[name]}
        return 200, {"id": name, "sha": "0" * 40, "tags": [], "cardData": card, "siblings": []}, {}

    def _validate(self, content: str) -> tuple[int, Any, dict[str, str]]:
        """What the Hub is known to refuse."""
        errors = []
        if not content.startswith("---\n"):
            return 200, {"errors": [], "warnings": [{"message": "empty or missing yaml metadata"}]}, {}
        data = yaml.safe_load(content.split("---\n")[1])
        licenses = data.get("license") or []
        for license in [licenses] if isinstance(licenses, str) else licenses:
            if license not in LICENSES:
                errors.append({"message": f'"license" must be one of [{", ".join(LICENSES)}]'})
        for language in data.get("language") or []:
            if not re.fullmatch(r"[a-z]{2,3}|code|multilingual", language):
                errors.append({"message": '"language" must only contain lowercase characters'})
        for size in data.get("size_categories") or []:
            if not re.fullmatch(r"n<1K|\d+[KMB]<n<\d+[KMBT]|n>1T", size):
                errors.append({"message": '"size_categories" is not known'})
        if any(not isinstance(tag, str) for tag in data.get("tags") or []):
            errors.append({"message": '"tags" must be texts'})
        if sum(bool(config.get("default")) for config in data.get("configs") or []) > 1:
            errors.append({"message": "only one config can be the default"})
        return (400 if errors else 200), {"errors": errors, "warnings": []}, {}

    def _info(self, name: str, repo: Repo, commit: dict[str, Any]) -> dict[str, Any]:
        readme = commit["files"].get("README.md", (b"", False))[0].decode()
        header = yaml.safe_load(readme.split("---\n")[1]) if readme.startswith("---\n") else {}
        return {
            "_id": "1",
            "id": name,
            "author": name.split("/")[0],
            "sha": commit["sha"],
            "private": repo.private,
            "disabled": False,
            "gated": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "cardData": header,
            "lastModified": "2026-01-01T00:00:00.000Z",
            "createdAt": "2026-01-01T00:00:00.000Z",
            "siblings": [{"rfilename": path} for path in sorted(commit["files"])],
        }

    def _preupload(self, commit: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
        def mode(file: dict[str, Any]) -> str:
            return "lfs" if file["path"].endswith((".parquet", ".arrow", ".png")) else "regular"

        def oid(path: str) -> str | None:
            if path not in commit["files"]:
                return None
            data, lfs = commit["files"][path]
            return hashlib.sha256(data).hexdigest() if lfs else _git_sha(data)

        return {
            "files": [
                {"path": file["path"], "uploadMode": mode(file), "shouldIgnore": False, "oid": oid(file["path"])}
                for file in asked["files"]
            ]
        }

    def _lfs_batch(self, asked: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        objects = []
        for wanted in asked["objects"]:
            answer: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.server.objects:
                href = f"{self.server.url}/lfs/{wanted['oid']}"
                answer["actions"] = {"upload": {"href": href}, "verify": {"href": href}}
            objects.append(answer)
        return 200, {"transfer": "basic", "objects": objects}, {}

    def _lfs_object(self, oid: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        if self.command == "PUT":
            if hashlib.sha256(body).hexdigest() != oid:
                return 400, {"error": "wrong content"}, {}
            self.server.objects[oid] = body
        return (200 if oid in self.server.objects else 404), {}, {}

    def _commit(
        self, name: str, repo: Repo, commit: dict[str, Any], branch: str, body: bytes
    ) -> tuple[int, Any, dict[str, str]]:
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, commit["sha"]):
            return 412, {"error": "A commit has happened since. Please refresh and try again."}, {}
        files = dict(commit["files"])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = (base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.server.objects:
                    return 400, {"error": f"the object of {value['path']} was never sent"}, {}
                files[value["path"]] = (self.server.objects[value["oid"]], True)
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = repo.commit(files, header["summary"], branch)
        url = f"{self.server.url}/datasets/{name}/commit/{sha}"
        return 200, {"success": True, "commitOid": sha, "commitUrl": url, "pullRequestUrl": None, "hookOutput": ""}, {}

    def _tree(self, commit: dict[str, Any], under: str, everything: bool = False) -> list[dict[str, Any]]:
        query = parse_qs(urlsplit(self.path).query)
        recursive = everything or query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries: dict[str, dict[str, Any]] = {}
        for path, (data, lfs) in sorted(commit["files"].items()):
            if under and not path.startswith(under + "/"):
                continue
            inner = path.removeprefix(under + "/") if under else path
            for depth in range(1, inner.count("/") + 1):
                folder = "/".join(filter(None, [under, *inner.split("/")[:depth]]))
                if recursive or depth == 1:
                    entries[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
            if recursive or "/" not in inner:
                entries[path] = {"type": "file", "path": path, "oid": _git_sha(data), "size": len(data)}
                if lfs:
                    sha256 = hashlib.sha256(data).hexdigest()
                    entries[path]["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 130}
        return list(entries.values())

    def _resolve(self, commit: dict[str, Any], path: str) -> tuple[int, Any, dict[str, str]]:
        if path not in commit["files"]:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit["sha"]}
        data, lfs = commit["files"][path]
        etag = hashlib.sha256(data).hexdigest() if lfs else _git_sha(data)
        headers = {"X-Repo-Commit": commit["sha"], "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        headers["Content-Type"] = "application/octet-stream"
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            return 200, data, headers
        first, last = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return 206, data[first : last + 1], headers


def _git_sha(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _paths(body: bytes, content_type: str) -> list[str]:
    if "json" in content_type:
        paths = json.loads(body)["paths"]
    else:
        paths = parse_qs(body.decode()).get("paths", [])
    return [paths] if isinstance(paths, str) else paths
