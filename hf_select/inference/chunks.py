"""A long job over the rows of a dataset: chunks that are written whole or not at all and never made twice.

folder/
  manifest.json          what is made from which rows; a run with other rows or settings is refused
  PARTS/part-00000.*     what was made of a chunk of rows

Left out so far: several processes and streaming input.
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import xxhash
from datasets import Dataset
from datasets.fingerprint import Hasher
from tqdm.auto import tqdm

from hf_select.files import write_json, written_whole
from hf_select.formats import READ_COLUMNS
from hf_select.inference import batching


@dataclass
class ChunkedJob:
    """One run: how many rows, in what chunks, by what, into which folder.

    Args:
        identity: what the parts depend on besides the rows: `name`, `settings` in words, a `hash` of everything.
        parts: folder of the parts within `folder`.
        suffix: file name ending of a part.
        what: what the folder holds, for messages: "scores", "an index".
    """

    dataset: Dataset
    folder: Path
    chunk_rows: int
    identity: dict[str, Any]
    parts: str
    suffix: str
    what: str
    made: list[Path] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if len(self.dataset) == 0:
            raise ValueError("the dataset is empty; there is nothing to do.")
        if self.chunk_rows < 1:
            raise ValueError(f"chunk_rows is {self.chunk_rows}; it must be at least 1.")
        self.starts = range(0, len(self.dataset), self.chunk_rows)

    def part(self, chunk: int) -> Path:
        return self.folder / self.parts / f"part-{chunk:05d}{self.suffix}"

    def rows(self, chunk: int) -> range:
        return range(self.starts[chunk], min(self.starts[chunk] + self.chunk_rows, len(self.dataset)))

    def open(self, source: str | None = None) -> None:
        """Make the folder, or hold an existing one to this pool and these settings."""
        manifest = {
            "pool": {"source": source, "rows": len(self.dataset), "fingerprint": pool_fingerprint(self.dataset)},
            "made_by": self.identity,
            "chunk_rows": self.chunk_rows,
            "versions": _versions(),
        }
        path = self.folder / "manifest.json"
        if path.exists():
            self._refuse_other(json.loads(path.read_text(encoding="utf-8")), manifest)
            for left in (self.folder / self.parts).glob("*.tmp"):  # of a killed run
                left.unlink()
            return
        self.made = [p for p in (self.folder, *self.folder.parents) if not p.exists()]
        if self.folder.is_dir() and any(p.is_file() or p.name != self.parts for p in self.folder.rglob("*")):
            raise ValueError(f'output folder "{self.folder}" holds other files; give a new or empty one.')
        try:
            (self.folder / self.parts).mkdir(parents=True, exist_ok=True)
            write_json(path, manifest)
        except OSError as error:
            self._leave_nothing_empty()
            raise ValueError(
                f'cannot write to output folder "{self.folder}": {error.strerror}. Choose another.'
            ) from None

    def run(self, write: Callable[[Path, range], None], load: Callable[[], Any], description: str) -> None:
        """`write(path, rows)` for every chunk that is not there yet; `load` is called before the first of them."""
        try:
            self._run(write, load, description)
        except BaseException:
            self._leave_nothing_empty()
            raise

    def _run(self, write: Callable[[Path, range], None], load: Callable[[], Any], description: str) -> None:
        missing = [chunk for chunk in range(len(self.starts)) if not self.part(chunk).exists()]
        left = sum(len(self.rows(chunk)) for chunk in missing)
        if missing:
            load()  # before the bar: a model that cannot be loaded is no progress of zero rows
        tokens, begin = 0, time.perf_counter()
        with tqdm(total=len(self.dataset), initial=len(self.dataset) - left, unit="row", desc=description) as bar:

            def count(batch_tokens: int) -> None:
                nonlocal tokens
                tokens += batch_tokens
                bar.set_postfix_str(f"{tokens / (time.perf_counter() - begin):,.0f} tokens/s")

            with batching.on_batch(count):
                for chunk in missing:
                    with written_whole(self.part(chunk)) as temporary:
                        write(temporary, self.rows(chunk))
                    bar.update(len(self.rows(chunk)))

    def _leave_nothing_empty(self) -> None:
        """Take back the folders that this run made, if it failed before it had anything to show."""
        if any((self.folder / self.parts).glob("part-*")):
            return
        shutil.rmtree(self.folder / self.parts, ignore_errors=True)
        (self.folder / "manifest.json").unlink(missing_ok=True) if self.folder.is_dir() else None
        for path in self.made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()

    def _refuse_other(self, there: dict[str, Any], here: dict[str, Any]) -> None:
        mine, made_by = here["made_by"], there["made_by"]
        differing = []
        if there["pool"]["fingerprint"] != here["pool"]["fingerprint"]:
            differing.append(f"other rows ({there['pool']['rows']} there, {here['pool']['rows']} here)")
        if made_by["name"] != mine["name"]:
            differing.append(f"made by {made_by['name']} there, {mine['name']} here")
        elif made_by["hash"] != mine["hash"]:
            changed = differences(made_by["settings"], mine["settings"])
            differing += changed or ["model files, rating prompts, queries or the version of hf_select changed"]
        if there["chunk_rows"] != here["chunk_rows"]:
            differing.append(f"chunk_rows {there['chunk_rows']} there, {here['chunk_rows']} here")
        if differing:
            raise ValueError(
                f'"{self.folder}" holds {self.what} of another run ({"; ".join(differing)}). '
                "Choose another output folder."
            )


def identity_of(name: str, state: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """What results depend on, as a hash of the state and, for people, in the words of the settings."""
    words = {key: value for key, value in state.items() if key in settings}
    return {"name": name, "settings": json.loads(json.dumps(words, default=str)), "hash": Hasher.hash(state)}


def differences(there: Any, here: Any, name: str = "") -> list[str]:
    """Settings that differ, by their dotted names."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = [key for key in here if key != "files"]
        return [text for key in keys for text in differences(there.get(key), here[key], f"{name}.{key}".strip("."))]
    return [f"{name} {there} there, {here} here"] if there != here else []


def readable(dataset: Dataset) -> Dataset:
    """The columns that a conversation is read from, or all of them if there are none such (for the error that
    names them)."""
    wanted = [name for name in dataset.column_names if name in READ_COLUMNS]
    return dataset.select_columns(wanted) if wanted else dataset


def pool_fingerprint(dataset: Dataset) -> str:
    """Hash of all rows and column types: the same for the same content, whatever file or process it came from."""
    digest = xxhash.xxh3_128()
    digest.update(str(sorted((name, str(kind)) for name, kind in dataset.features.items())).encode())
    for start in range(0, len(dataset), 4096):
        rows = range(start, min(start + 4096, len(dataset)))
        table = cast(pa.Table, dataset.with_format("arrow").select(rows)[:])
        # `take` copies into fresh buffers: those of a slice hold bytes of its neighbours.
        table = table.select(sorted(table.column_names)).take(pa.array(range(len(rows)))).combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.replace_schema_metadata(None).schema) as writer:
            writer.write_table(table.replace_schema_metadata(None))
        digest.update(sink.getvalue())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    found = {}
    for package in ("hf-select", "torch", "transformers", "datasets", "peft"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
