"""`score`: a scorer over a whole dataset, in chunks that are written whole or not at all and never scored twice.

output_dir/
  manifest.json                what is scored by what; a run with other rows or settings is refused
  scored/part-00000.parquet    the rows of a chunk with row_id and their scores
  scores.parquet               row_id and the score columns of all rows, written at the end
  summary.json                 counts, reasons, cost

Left out so far: several processes and streaming input.
"""

import glob
import json
import os
import resource
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from datasets import Dataset, Features, Value, load_dataset
from datasets.fingerprint import Hasher
from tqdm.auto import tqdm

from hf_select import columns
from hf_select.files import written_whole
from hf_select.formats import READ_COLUMNS, BadRow, conversations
from hf_select.inference import batching


def score(
    dataset: Dataset,
    scorer: Any,
    output_dir: str | os.PathLike,
    *,
    chunk_rows: int = 1000,
    bad_rows: Literal["error", "null"] = "error",
    source: str | None = None,
) -> Dataset:
    """Score every row and return the dataset with the scorer's columns and `row_id`.

    A killed run is continued by the same call: finished chunks are kept. Rows that have no `row_id` get their number.

    Args:
        chunk_rows: rows that are scored and written together; at most this much work is lost with a killed process.
        bad_rows: what a row that is no conversation means. error: stop before anything is scored and name the first
            ones; null: give them no score and the reason.
        source: where the rows came from, for the manifest.
    Raises: ValueError if output_dir holds scores of another pool or other settings.
    """
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"score() takes a datasets.Dataset, not {type(dataset).__name__}; "
            "for streaming data use dataset.map(scorer, batched=True)."
        )
    if len(dataset) == 0:
        raise ValueError("the dataset is empty; there is nothing to score.")
    if chunk_rows < 1:
        raise ValueError(f"chunk_rows is {chunk_rows}; it must be at least 1.")
    dataset = _with_row_ids(dataset)
    if bad_rows == "error":
        _refuse_bad_rows(dataset)
    job = _Job(dataset, scorer, Path(output_dir).expanduser(), chunk_rows)
    job.open(source)
    try:
        _score_chunks(job)
    except BaseException:
        job.leave_nothing_empty()
        raise
    _finish(job)
    return read_scored(output_dir)


def read_scored(output_dir: str | os.PathLike) -> Dataset:
    """The scored rows of a finished run."""
    folder = Path(output_dir).expanduser()
    parts = sorted((folder / "scored").glob("part-*.parquet"))
    if not parts:
        raise ValueError(f'no scores in "{folder}"; make them with hf-select score --output-dir {folder} ...')
    if not (folder / "summary.json").exists():
        raise ValueError(f'scoring in "{folder}" has not finished; run the same hf-select score command again.')
    return load_dataset("parquet", data_files=[glob.escape(str(part)) for part in parts], split="train")  # type: ignore[return-value]


def write_json(path: Path, value: Any) -> None:
    """Written whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


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


# --------------------------------------------------------------------------------------------------------------------


@dataclass
class _Job:
    """One scoring run: its rows, its scorer and the folder that carries it."""

    dataset: Dataset
    scorer: Any
    folder: Path
    chunk_rows: int

    def __post_init__(self) -> None:
        self.features = Features({**self.dataset.features, **self.scorer.columns_out})
        self.starts = range(0, len(self.dataset), self.chunk_rows)
        self.made: list[Path] = []

    def part(self, chunk: int) -> Path:
        return self.folder / "scored" / f"part-{chunk:05d}.parquet"

    def open(self, source: str | None) -> None:
        """Make the folder, or hold an existing one to this pool and these settings."""
        manifest = {
            "pool": {"source": source, "rows": len(self.dataset), "fingerprint": pool_fingerprint(self.dataset)},
            "scorer": {"name": self.scorer.name, **_identity(self.scorer)},
            "chunk_rows": self.chunk_rows,
            "versions": _versions(),
        }
        path = self.folder / "manifest.json"
        if path.exists():
            _refuse_other(json.loads(path.read_text(encoding="utf-8")), manifest, self.folder)
            for left in self.folder.glob("scored/*.tmp"):  # of a killed run
                left.unlink()
            return
        self.made = [p for p in (self.folder, *self.folder.parents) if not p.exists()]
        if self.folder.is_dir() and any(p.is_file() or p.name != "scored" for p in self.folder.rglob("*")):
            raise ValueError(f'output folder "{self.folder}" holds other files; give a new or empty one.')
        try:
            (self.folder / "scored").mkdir(parents=True, exist_ok=True)
            write_json(path, manifest)
        except OSError as error:
            self.leave_nothing_empty()
            raise ValueError(
                f'cannot write to output folder "{self.folder}": {error.strerror}. Choose another.'
            ) from None

    def leave_nothing_empty(self) -> None:
        """Take back the folders that this run made, if it failed before it had anything to show."""
        if any(self.folder.glob("scored/part-*.parquet")):
            return
        shutil.rmtree(self.folder / "scored", ignore_errors=True)
        (self.folder / "manifest.json").unlink(missing_ok=True) if self.folder.is_dir() else None
        for path in self.made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def _score_chunks(job: _Job) -> None:
    done = {chunk for chunk in range(len(job.starts)) if job.part(chunk).exists()}
    finished_rows = sum(min(job.chunk_rows, len(job.dataset) - job.starts[chunk]) for chunk in done)
    if len(done) < len(job.starts):
        job.scorer.load()  # before the bar: a model that cannot be loaded is no progress of zero rows
    tokens, begin = 0, time.perf_counter()
    with tqdm(total=len(job.dataset), initial=finished_rows, unit="row", desc=f"score {job.scorer.name}") as bar:

        def count(batch_tokens: int) -> None:
            nonlocal tokens
            tokens += batch_tokens
            bar.set_postfix_str(f"{tokens / (time.perf_counter() - begin):,.0f} tokens/s")

        with batching.on_batch(count):
            for chunk, start in enumerate(job.starts):
                if chunk not in done:
                    stop = min(start + job.chunk_rows, len(job.dataset))
                    _write_part(job, chunk, start, stop)
                    bar.update(stop - start)


def _write_part(job: _Job, chunk: int, start: int, stop: int) -> None:
    before, begin = job.scorer.usage(), time.perf_counter()
    rows = job.dataset.select(range(start, stop))
    scores = job.scorer(_readable(rows)[:])
    table = cast(pa.Table, rows.with_format("arrow")[:])
    replaced = [name for name in table.column_names if name in job.scorer.columns_out]
    table = table.drop_columns(replaced) if replaced else table
    types = Features(job.scorer.columns_out).arrow_schema
    for name in job.scorer.columns_out:
        table = table.append_column(name, pa.array(scores[name], types.field(name).type))
    cost = {name: value - before.get(name, 0) for name, value in job.scorer.usage().items()}
    cost["seconds"] = time.perf_counter() - begin
    schema = Features({name: job.features[name] for name in table.column_names}).arrow_schema
    schema = schema.with_metadata({**(schema.metadata or {}), "hf_select_cost": json.dumps(cost)})
    with written_whole(job.part(chunk)) as temporary:
        pq.write_table(table.cast(schema), temporary)


def _finish(job: _Job) -> None:
    parts = [job.part(chunk) for chunk in range(len(job.starts))]
    added = [columns.ROW_ID, *job.scorer.columns_out]
    scores = pa.concat_tables([pq.read_table(part, columns=added) for part in parts])
    with written_whole(job.folder / "scores.parquet") as temporary:
        pq.write_table(scores.replace_schema_metadata(None), temporary)

    cost: Counter[str] = Counter()
    for part in parts:
        cost.update(json.loads((pq.read_schema(part).metadata or {})[b"hf_select_cost"]))
    column = columns.score_column(job.scorer.name)
    values = scores[column].drop_null().to_numpy()
    scored = scores[column].is_valid().to_pylist()
    said = scores[columns.reason_column(column)].to_pylist()
    reasons = Counter(reason for reason, has_score in zip(said, scored, strict=True) if not has_score)
    notes = Counter(note for note, has_score in zip(said, scored, strict=True) if has_score and note)
    summary = {
        "rows": len(scores),
        "scored": len(values),
        "reasons": dict(reasons.most_common()),
        "notes": dict(notes.most_common()),
        "quantiles": {q: float(np.quantile(values, float(q))) for q in ("0", "0.25", "0.5", "0.75", "1")}
        if len(values)
        else {},
        "cost": {**cost, "rows_per_second": len(scores) / cost["seconds"], "peak_memory_mib": _peak_memory_mib()},
        "device": _device_name(),
    }
    write_json(job.folder / "summary.json", summary)


def _with_row_ids(dataset: Dataset) -> Dataset:
    if columns.ROW_ID not in dataset.column_names:
        numbers = Dataset.from_dict({columns.ROW_ID: range(len(dataset))}, Features({columns.ROW_ID: Value("int64")}))
        from datasets import concatenate_datasets

        return concatenate_datasets([dataset, numbers], axis=1)
    ids = cast(pa.ChunkedArray, dataset.with_format("arrow")[columns.ROW_ID])
    distinct = pc.count_distinct(ids, mode="all").as_py()  # pyright: ignore[reportAttributeAccessIssue]
    if distinct != len(dataset) or ids.null_count:
        raise ValueError(
            f"row_id must name each row once; it has {distinct} values for {len(dataset)} rows and {ids.null_count} "
            "nulls. Mend it, or drop the column and rows are numbered."
        )
    return dataset


def _readable(dataset: Dataset) -> Dataset:
    """The columns that a conversation is read from, or all of them if there are none such (for the error that
    names them)."""
    wanted = [name for name in dataset.column_names if name in READ_COLUMNS]
    return dataset.select_columns(wanted) if wanted else dataset


def _refuse_bad_rows(dataset: Dataset) -> None:
    """Read every row once, before a model is loaded: hours later is too late to learn of row 17."""
    bad: list[tuple[int, BadRow]] = []
    readable = _readable(dataset)
    for start in range(0, len(dataset), 1000):
        rows = conversations(readable[start : start + 1000])
        bad += [(start + i, row) for i, row in enumerate(rows) if isinstance(row, BadRow)]
    if bad:
        first = "; ".join(f"row {i}: {reason}" for i, reason in bad[:3])
        raise ValueError(
            f"{len(bad)} of {len(dataset)} rows cannot be read ({first}). "
            "Mend them, or keep them without a score: bad_rows=null (--bad-rows null)."
        )


def _refuse_other(there: dict[str, Any], here: dict[str, Any], folder: Path) -> None:
    differing = []
    if there["pool"]["fingerprint"] != here["pool"]["fingerprint"]:
        differing.append(f"other rows ({there['pool']['rows']} there, {here['pool']['rows']} here)")
    if there["scorer"]["name"] != here["scorer"]["name"]:
        differing.append(f"scorer {there['scorer']['name']} there, {here['scorer']['name']} here")
    elif there["scorer"]["hash"] != here["scorer"]["hash"]:
        changed = _differences(there["scorer"]["settings"], here["scorer"]["settings"])
        differing += changed or ["model files, rating prompts, queries or the version of hf_select changed"]
    if there["chunk_rows"] != here["chunk_rows"]:
        differing.append(f"chunk_rows {there['chunk_rows']} there, {here['chunk_rows']} here")
    if differing:
        raise ValueError(
            f'"{folder}" holds scores of another run ({"; ".join(differing)}). Choose another output folder.'
        )


def _identity(scorer: Any) -> dict[str, Any]:
    """What its scores depend on, as a hash and in words: not the device or the batch size."""
    state = scorer.identity()
    words = {key: value for key, value in state.items() if key in scorer.settings()}
    return {"settings": json.loads(json.dumps(words, default=str)), "hash": Hasher.hash(state)}


def _differences(there: Any, here: Any, name: str = "") -> list[str]:
    """Settings that differ, by their dotted names."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = [key for key in here if key != "files"]
        return [text for key in keys for text in _differences(there.get(key), here[key], f"{name}.{key}".strip("."))]
    return [f"{name} {there} there, {here} here"] if there != here else []


def _versions() -> dict[str, str]:
    found = {}
    for package in ("hf-select", "torch", "transformers", "datasets", "peft"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _peak_memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _device_name() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu, {torch.get_num_threads()} threads"
