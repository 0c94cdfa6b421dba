"""Resolves the sources of a model, and identifies them: by the commit on the Hub, or by the content of a folder.

A branch or tag is resolved to a commit once, and this commit is loaded. Without a network, the local cache is used. A
folder is identified by the content of the files that a model is loaded from, not by its path or modification times, so
a copy on a node's local disk is the same model.

The content hash (xxh3, 128 bits) covers all bytes of the configuration, tokenizer, templates, code, and weight files
up to 64 MiB. Of larger weight files, it covers the size, the header (names, types, shapes and offsets of all tensors)
and the first, middle and last 4 KiB of every tensor. This reads 1.2 MB per hundred tensors of any size. A change that
does not affect these bytes, such as one edited row of an embedding, is not detected.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from hf_select.jobs.retry import with_retries
from hf_select.models._compat import model_cache


_COMMIT = re.compile("[0-9a-f]{40}")

# Files that a model, a tokenizer or a sentence encoder is loaded from.
_READ = (
    *("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt", "*.py"),
    *("additional_chat_templates/*.jinja", "[0-9]*_*/*.safetensors", "[0-9]*_*/*.json"),
)
# Matching files that are not loaded: written by training, or only used for generation.
_NOT_READ = re.compile(r"generation_config\.json|trainer_state\.json|train\.json|.*_results\.json")

# A repository with a tokenizer has at least one of these.
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "vocab.json", "config.json")

_WHOLE = 64 << 20
_BLOCK = 4 << 10
_BLOCKS_OF_A_FILE = 256  # for large files without a safetensors header


@dataclass(frozen=True)
class ResolvedSource:
    """A folder, or a repository on the Hub at one commit.

    Args:
        name: path or Hub id, as given by the user.
        commit: commit of a Hub repository.
        content: content hash of a folder.
    """

    name: str
    commit: str | None = None
    content: str | None = None

    @property
    def location(self) -> str:
        """Path or Hub id for `from_pretrained`, to be used with the commit as its revision."""
        return resolve_source(self.name)

    @property
    def identity(self) -> str:
        """The commit or the content hash, as recorded in job identities."""
        return f"commit {self.commit}" if self.commit else f"content {self.content}"


@dataclass(frozen=True)
class Sources:
    """The sources of a causal LM. None for objects that were passed loaded, and for a missing adapter."""

    model: ResolvedSource | None
    tokenizer: ResolvedSource | None
    adapter: ResolvedSource | None


def find(name: str, revision: str | None = None, files: Sequence[str] = ("config.json",)) -> ResolvedSource:
    """Resolve a path or Hub id.

    Args:
        revision: branch, tag or commit of a Hub repository.
        files: file names of which the repository has at least one.
    Raises: ValueError if the folder, repository or revision does not exist.
    """
    if Path(resolve_source(name)).is_dir():
        return ResolvedSource(name, content=content_of(resolve_source(name)))
    if revision and _COMMIT.fullmatch(revision):
        return ResolvedSource(name, revision)
    return ResolvedSource(name, with_retries(lambda: _from_hub(name, revision, files), name).parent.name)


def find_all(model: Any, tokenizer: Any, adapter: str | None, revision: str | None) -> Sources:
    """Resolve the sources of a causal LM. The revision applies to the model's repository, including its tokenizer.

    If `model` names an adapter, the base model of its configuration is used, with the adapter on top.
    """
    base, base_revision = model, revision
    if isinstance(model, str) and adapter is None and (config := _adapter_config(model, revision)) is not None:
        base, base_revision, adapter = config["base_model_name_or_path"], config.get("revision"), model
        if not base:
            raise ValueError(f'"{model}" is an adapter and does not name its base model; give that as the model.')
    model_source = find(base, base_revision) if isinstance(base, str) else None
    if tokenizer is None or tokenizer == model:
        tokenizer_source = model_source if base == model else find(model, revision, TOKENIZER_FILES)
    else:
        tokenizer_source = find(tokenizer, None, TOKENIZER_FILES) if isinstance(tokenizer, str) else None
    adapter_source = None
    if adapter is not None:
        adapter_source = find(adapter, revision if adapter == model else None, ("adapter_config.json",))
    return Sources(model_source, tokenizer_source, adapter_source)


def _adapter_config(name: str, revision: str | None) -> dict[str, Any] | None:
    """The configuration of a folder or repository with an adapter and without a model; None for others."""
    folder = Path(resolve_source(name))
    if folder.is_dir():
        path = folder / "adapter_config.json"
        if (folder / "config.json").exists() or not path.exists():
            return None
    else:
        path = with_retries(lambda: _from_hub(name, revision, ("config.json", "adapter_config.json")), name)
    if path.name != "adapter_config.json":
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f'"{path}" is not valid JSON ({error}); the file is damaged.') from None


def _from_hub(name: str, revision: str | None, files: Sequence[str]) -> Path:
    """The path in the local cache of the first of the files that the repository has; its folder is the commit."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f' at revision "{revision}"' if revision else ""
    unreachable: LocalEntryNotFoundError | None = None
    for file in files:
        try:
            return Path(hf_hub_download(name, file, revision=revision, cache_dir=model_cache()))
        except LocalEntryNotFoundError as error:
            unreachable = error
        except EntryNotFoundError:
            continue
        except GatedRepoError as error:
            raise ValueError(f'access to "{name}" on the Hub is restricted; request access, then log in.') from error
        except RevisionNotFoundError as error:
            raise ValueError(f'"{name}" has no revision "{revision}" on the Hub.') from error
        except (RepositoryNotFoundError, HFValidationError) as error:
            raise ValueError(f'there is no folder "{name}", and no repository of that name on the Hub{at}.') from error
    if unreachable is not None:
        raise ValueError(
            f'there is no folder "{name}"; the local cache does not hold it{at}, and the Hub cannot be reached. '
            f"Download it first: hf download {name}."
        ) from unreachable
    raise ValueError(f'"{name}" on the Hub{at} has none of the files {", ".join(files)}.')


# --------------------------------------------------------------------------------------------------------------------
# content


def content_of(folder: str, names: Sequence[str] = _READ) -> str:
    """Hash of the files of a folder. It does not depend on the path or on modification times.

    Args:
        names: glob patterns of the files, by default those that a model is loaded from.
    """
    root = Path(folder).expanduser()
    files = {path for pattern in names for path in root.glob(pattern) if not _NOT_READ.fullmatch(path.name)}
    digest = xxhash.xxh3_128()
    for path in sorted(files):
        digest.update(f"{path.relative_to(root).as_posix()}\n{path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            for block in _blocks(file, path):
                digest.update(block)
    return digest.hexdigest()


def content_of_loaded(model: Any) -> str:
    """Hash of a loaded model: name, type and shape of each tensor, and blocks at its start, middle and end."""
    import torch

    digest = xxhash.xxh3_128()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.is_meta:  # offloaded
            continue
        flat, size = tensor.detach().reshape(-1), _BLOCK // tensor.element_size()
        for start in _starts(len(flat), size):
            digest.update(flat[start : start + size].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def content_of_tokenizer(tokenizer: Any) -> str:
    """Hash of a loaded tokenizer: its vocabulary and rules, its special tokens and its template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = sorted(tokenizer.get_vocab().items()) if backend is None else backend.to_str()
    parts = [rules, tokenizer.special_tokens_map, tokenizer.chat_template]
    return xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True, default=str).encode())


def _blocks(file: BinaryIO, path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    if size <= _WHOLE:
        yield file.read()
        return
    places = [(0, size)]
    if path.suffix == ".safetensors":
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, size))
        yield header
        places = [(8 + length + start, 8 + length + end) for start, end in _offsets(header)]
    for start, end in places:
        count = 3 if path.suffix == ".safetensors" else _BLOCKS_OF_A_FILE
        for place in _starts(end - start, _BLOCK, count):
            file.seek(start + place)
            yield file.read(min(_BLOCK, end - start))


def _offsets(header: bytes) -> list[tuple[int, int]]:
    """(start, end) offsets of the tensors. [] if the header is damaged; loading raises the error."""
    try:
        entries = json.loads(header)
    except ValueError:
        return []
    return sorted(tuple(entry["data_offsets"]) for name, entry in entries.items() if name != "__metadata__")


def _starts(length: int, block: int, count: int = 3) -> list[int]:
    """Evenly spaced start positions of blocks, including the first and the last block."""
    last = max(0, length - block)
    return sorted({round(last * i / (count - 1)) for i in range(count)})


def resolve_source(source: str) -> str:
    """The path or Hub id to load from.

    Raises: ValueError for a path that does not exist, which the Hub client would treat as an id.
    """
    looks_local = source.startswith((".", "/", "~")) or source.count("/") > 1
    if looks_local and not Path(source).expanduser().is_dir():
        raise ValueError(f'no model folder "{source}"; give the path of a saved model or a Hub id such as "org/name".')
    return os.path.expanduser(source)
