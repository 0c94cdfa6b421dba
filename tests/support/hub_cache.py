"""A local cache of the Hub as huggingface_hub lays it out: commits of one repository and the branch that names one."""

import hashlib
import shutil
from pathlib import Path


class CachedRepo:
    """A repository in a cache folder; nothing of it is on any server."""

    def __init__(self, cache: Path, name: str):
        self.name, self.folder = name, cache / f"models--{name.replace('/', '--')}"

    def commit(self, files: str | Path, branch: str = "main") -> str:
        """Put a folder's files into the cache as the branch's newest commit."""
        sha = hashlib.sha1(str(files).encode()).hexdigest()
        shutil.copytree(files, self.folder / "snapshots" / sha)
        self.move(branch, sha)
        return sha

    def move(self, branch: str, sha: str) -> None:
        (self.folder / "refs").mkdir(exist_ok=True)
        (self.folder / "refs" / branch).write_text(sha)
