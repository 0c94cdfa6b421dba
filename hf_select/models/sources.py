"""Where the files of a model come from, and what identifies them: a commit on the Hub, or the content of a folder.

A branch or tag is resolved to its commit once, and that commit is what is loaded. Without a network the local cache
answers. A folder is identified by the content of the files that a model is loaded from, not by its path or their
times, so a copy on a node's own disk is the same model.

What is hashed of a folder (xxh3, 128 bits): configuration, tokenizer, templates and code whole. Weights up to 64 MiB
whole, larger ones by their size, their header (names, types, shapes and places of all tensors) and the first, middle
and last 4 KiB of every tensor: 1.2 MB of reads for each hundred tensors, however large they are. A change that leaves
all these bytes as they were, such as one edited row of an embedding, is not seen.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash

from hf_select.jobs.retry import with_retries


_COMMIT = re.compile("[0-9a-f]{40}")

# Files that a model, a tokenizer or a sentence encoder is loaded from.
_READ = (
    *("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt", "*.py"),
    *("additional_chat_templates/*.jinja", "[0-9]*_*/*.safetensors", "[0-9]*_*/*.json"),
)
# Files that training writes next to them, or that only generation reads.
_NOT_READ = re.compile(r"generation_config\.json|trainer_state\.json|train\.json|.*_results\.json")

# A repository with a tokenizer has at least one of these.
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "vocab.json", "config.json")

_WHOLE = 64 << 20
_BLOCK = 4 << 10
_BLOCKS_OF_A_FILE = 256  # that has no header


@dataclass(frozen=True)
class ResolvedSource:
    """A folder, or a repository on the Hub at one commit.

    Args:
        name: path or Hub id, as it was given.
        commit: of a repository on the Hub.
        content: hash of a folder's files.
    """

    name: str
    commit: str | None = None
    content: str | None = None

    @property
    def location(self) -> str:
        """What `from_pretrained` takes, together with the commit as its revision."""
        return resolve_source(self.name)

    @property
    def identity(self) -> str:
        """The commit, or the hash of the content, as identities of jobs name it."""
        return f"commit {self.commit}" if self.commit else f"content {self.content}"


@dataclass(frozen=True)
class Sources:
    """The sources of a causal LM; None for what was given loaded, and if there is no adapter."""

    model: ResolvedSource | None
    tokenizer: ResolvedSource | None
    adapter: ResolvedSource | None


def find(name: str, revision: str | None = None, files: Sequence[str] = ("config.json",)) -> ResolvedSource:
    """The folder or the commit behind a name.

    Args:
        revision: branch, tag or commit; of a repository on the Hub.
        files: names of which its repository has at least one.
    Raises: ValueError if there is no such folder, repository or revision.
    """
    if Path(resolve_source(name)).is_dir():
        return ResolvedSource(name, content=content_of(resolve_source(name)))
    if revision and _COMMIT.fullmatch(revision):
        return ResolvedSource(name, revision)
    return ResolvedSource(name, with_retries(lambda: _from_hub(name, revision, files), name).parent.name)


def find_all(model: Any, tokenizer: Any, adapter: str | None, revision: str | None) -> Sources:
    """The sources of a causal LM. The revision is that of the model's repository, and of its tokenizer in it.

    The name of an adapter means the base model that its configuration names, with the adapter on it.
    """
    base, base_revision = model, revision
    if isinstance(model, str) and adapter is None and (config := _adapter_config(model, revision)) is not None:
        base, base_revision, adapter = config["base_model_name_or_path"], config.get("revision"), model
        if not base:
            raise ValueError(f'"{model}" is an adapter and does not name its base model; give that as the model.')
    of_model = find(base, base_revision) if isinstance(base, str) else None
    if tokenizer is None or tokenizer == model:
        of_tokenizer = of_model if base == model else find(model, revision, TOKENIZER_FILES)
    else:
        of_tokenizer = find(tokenizer, None, TOKENIZER_FILES) if isinstance(tokenizer, str) else None
    of_adapter = None
    if adapter is not None:
        of_adapter = find(adapter, revision if adapter == model else None, ("adapter_config.json",))
    return Sources(of_model, of_tokenizer, of_adapter)


def _adapter_config(name: str, revision: str | None) -> dict[str, Any] | None:
    """Of a folder or repository that holds an adapter and no model."""
    folder = Path(resolve_source(name))
    if folder.is_dir():
        found = folder / "adapter_config.json"
        if (folder / "config.json").exists() or not found.exists():
            return None
    else:
        found = with_retries(lambda: _from_hub(name, revision, ("config.json", "adapter_config.json")), name)
    if found.name != "adapter_config.json":
        return None
    try:
        return json.loads(found.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f'"{found}" is not valid JSON ({error}); the file is damaged.') from None


def _from_hub(name: str, revision: str | None, files: Sequence[str]) -> Path:
    """The first of the files that the repository has, in the local cache, in a folder named by the commit."""
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
            return Path(hf_hub_download(name, file, revision=revision))
        except LocalEntryNotFoundError as error:
            unreachable = error
        except EntryNotFoundError:
            continue
        except GatedRepoError as error:
            raise ValueError(f'access to "{name}" on the Hub is restricted; ask for it there, then log in.') from error
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
    """Hash of a folder's files, wherever it lies and whenever they were written.

    Args:
        names: patterns of the files, by default those that a model is loaded from.
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
    """Hash of a loaded model: names, types and shapes of its tensors, and of each the ends and the middle."""
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
    """Where the tensors lie; none if the header is damaged, which loading will say."""
    try:
        entries = json.loads(header)
    except ValueError:
        return []
    return sorted(tuple(entry["data_offsets"]) for name, entry in entries.items() if name != "__metadata__")


def _starts(length: int, block: int, count: int = 3) -> list[int]:
    """Evenly spread beginnings of blocks, the first and the last among them."""
    last = max(0, length - block)
    return sorted({round(last * i / (count - 1)) for i in range(count)})


def resolve_source(source: str) -> str:
    """The path or Hub id to load from.

    Raises: ValueError for a path that does not exist, which the Hub client would take for an id.
    """
    looks_local = source.startswith((".", "/", "~")) or source.count("/") > 1
    if looks_local and not Path(source).expanduser().is_dir():
        raise ValueError(f'no model folder "{source}"; give the path of a saved model or a Hub id such as "org/name".')
    return os.path.expanduser(source)
