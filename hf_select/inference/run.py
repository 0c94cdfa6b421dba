"""`score`: a scorer over a whole dataset, in chunks that are written whole or not at all and never scored twice.

output_dir/
  manifest.json                what is scored by what; a run with other rows or settings is refused
  scored/part-00000.parquet    the rows of a chunk with row_id and their scores
  scores.parquet               row_id and the score columns of all rows, written at the end
  summary.json                 counts, reasons, cost

With an index (features/store.py) the vectors of the rows are read from it and no model runs over the pool.
"""

import glob
import json
import os
import resource
import time
from collections import Counter
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value, load_dataset

from hf_select import columns
from hf_select.files import write_json, written_whole
from hf_select.formats import BadRow, conversations
from hf_select.inference.chunks import ChunkedJob, identity_of, readable


def score(
    dataset: Dataset,
    scorer: Any,
    output_dir: str | os.PathLike,
    *,
    chunk_rows: int = 1000,
    bad_rows: Literal["error", "null"] = "error",
    source: str | None = None,
    index: Any = None,
) -> Dataset:
    """Score every row and return the dataset with the scorer's columns and `row_id`.

    A killed run is continued by the same call: finished chunks are kept. Rows that have no `row_id` get their number.

    Args:
        chunk_rows: rows that are scored and written together; at most this much work is lost with a killed process.
        bad_rows: what a row that is no conversation means. error: stop before anything is scored and name the first
            ones; null: give them no score and the reason.
        source: where the rows came from, for the manifest.
        index: a PoolIndex of these rows, for a scorer that compares vectors; they are read in place of encoding.
    Raises: ValueError if output_dir holds scores of another pool or other settings, or if the index was made of other
        rows, by another model or by other settings.
    """
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"score() takes a datasets.Dataset, not {type(dataset).__name__}; "
            "for streaming data use dataset.map(scorer, batched=True)."
        )
    dataset = _with_row_ids(dataset)
    if bad_rows == "error":
        _refuse_bad_rows(dataset)
    state = scorer.identity()
    if index is not None:
        if getattr(scorer, "featurizer", None) is None:
            raise ValueError(f"scorer {scorer.name} reads no vectors; leave out the index.")
        index.check(dataset, scorer.featurizer)
        state = {**state, "index": index.manifest["made_by"]["hash"]}
    identity = identity_of(scorer.name, state, scorer.settings())
    folder = Path(output_dir).expanduser()
    job = ChunkedJob(dataset, folder, chunk_rows, identity, "scored", ".parquet", "scores")
    job.open(source)
    job.run(lambda path, rows: _write_part(path, dataset, rows, scorer, index), scorer.load, f"score {scorer.name}")
    _finish(job, scorer)
    return read_scored(output_dir)


def read_scored(output_dir: str | os.PathLike) -> Dataset:
    """The scored rows of a finished run."""
    folder = Path(output_dir).expanduser()
    parts = sorted((folder / "scored").glob("part-*.parquet"), key=lambda part: int(part.stem[5:]))
    if not parts:
        raise ValueError(f'no scores in "{folder}"; make them with hf-select score --output-dir {folder} ...')
    if not (folder / "summary.json").exists():
        raise ValueError(f'scoring in "{folder}" has not finished; run the same hf-select score command again.')
    return load_dataset("parquet", data_files=[glob.escape(str(part)) for part in parts], split="train")  # type: ignore[return-value]


# --------------------------------------------------------------------------------------------------------------------


def _write_part(path: Path, dataset: Dataset, chunk: range, scorer: Any, index: Any) -> None:
    before, begin = scorer.usage(), time.perf_counter()
    rows = dataset.select(chunk)
    batch = readable(rows)[:]
    scores = scorer(batch) if index is None else scorer.score_vectors(batch, index.read(chunk))
    table = cast(pa.Table, rows.with_format("arrow")[:])
    replaced = [name for name in table.column_names if name in scorer.columns_out]
    table = table.drop_columns(replaced) if replaced else table
    types = Features(scorer.columns_out).arrow_schema
    for name in scorer.columns_out:
        table = table.append_column(name, pa.array(scores[name], types.field(name).type))
    cost = {name: value - before.get(name, 0) for name, value in scorer.usage().items()}
    cost["seconds"] = time.perf_counter() - begin
    features = {**dataset.features, **scorer.columns_out}
    schema = Features({name: features[name] for name in table.column_names}).arrow_schema
    schema = schema.with_metadata({**(schema.metadata or {}), "hf_select_cost": json.dumps(cost)})
    pq.write_table(table.cast(schema), path)


def _finish(job: ChunkedJob, scorer: Any) -> None:
    parts = [job.part(chunk) for chunk in range(len(job.starts))]
    added = [columns.ROW_ID, *scorer.columns_out]
    scores = pa.concat_tables([pq.read_table(part, columns=added) for part in parts])
    with written_whole(job.folder / "scores.parquet") as temporary:
        pq.write_table(scores.replace_schema_metadata(None), temporary)

    cost: Counter[str] = Counter()
    for part in parts:
        cost.update(json.loads((pq.read_schema(part).metadata or {})[b"hf_select_cost"]))
    column = columns.score_column(scorer.name)
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


def _refuse_bad_rows(dataset: Dataset) -> None:
    """Read every row once, before a model is loaded: hours later is too late to learn of row 17."""
    bad: list[tuple[int, BadRow]] = []
    texts = readable(dataset)
    for start in range(0, len(dataset), 1000):
        rows = conversations(texts[start : start + 1000])
        bad += [(start + i, row) for i, row in enumerate(rows) if isinstance(row, BadRow)]
    if bad:
        first = "; ".join(f"row {i}: {reason}" for i, reason in bad[:3])
        raise ValueError(
            f"{len(bad)} of {len(dataset)} rows cannot be read ({first}). "
            "Mend them, or keep them without a score: bad_rows=null (--bad-rows null)."
        )


def _peak_memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _device_name() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu, {torch.get_num_threads()} threads"
