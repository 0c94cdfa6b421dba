"""`score` runs a scorer over a whole dataset, in chunks that are written atomically and never scored twice.

output_dir/
  manifest.json                the rows and the scorer; a run with other rows or settings raises an error
  scored/part-00000.parquet    the rows of a chunk with row_id and their scores
  scores.parquet               row_id and the score columns of all rows, written at the end
  summary.json                 counts, reasons, and costs: of the pass, of the index, of what came before

With an index (features/store.py) the vectors of the rows are read from disk, and no model runs over the pool.
"""

import json
import os
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, IterableDataset

from hf_select.atomic import atomic_path, write_json
from hf_select.data import columns
from hf_select.data._compat import cast_for_parquet
from hf_select.data.bad_rows import BadRow
from hf_select.data.exact_json import columns_of
from hf_select.data.rows import Pool, Stream, conversations_of, readable
from hf_select.data.scores import read_scored
from hf_select.features.store import PoolIndex
from hf_select.jobs.chunked_job import ChunkedJob, WhenRunning
from hf_select.jobs.run_folder import identity_of
from hf_select.models.template_day import began_on
from hf_select.scoring.scorer import Scorer
from hf_select.validation import check_choice


def score(
    dataset: Dataset | IterableDataset,
    scorer: Scorer,
    output_dir: str | os.PathLike,
    *,
    chunk_rows: int = 1000,
    bad_rows: Literal["error", "null"] = "error",
    source: str | None = None,
    index: PoolIndex | None = None,
    when_running: WhenRunning = "refuse",
) -> Dataset:
    """Score every row and return the dataset with the scorer's columns and `row_id`.

    In the processes of `accelerate launch` (or torchrun, or srun on a shared file system) each call does a part of the
    chunks. The same call resumes a killed run with any number of processes; finished chunks are kept. Rows without a
    `row_id` get their number.

    Args:
        dataset: rows. Of a streaming dataset, each process holds one chunk in memory.
        chunk_rows: rows that are scored and written together; a killed process loses at most one chunk.
        bad_rows: what to do with rows that are not conversations. error: raise before any row is scored (with a
            streaming dataset: at their chunk); null: leave them without a score and give the reason.
        source: where the rows came from, for the manifest.
        index: a PoolIndex of these rows, for a scorer that compares vectors, which are then read from it.
        when_running: what to do if another job is running in output_dir: refuse, or join it.
    Raises: ValueError if output_dir holds scores of other rows or settings, or if the index was made of other rows, by
        another model or with other settings.
    """
    stream = isinstance(dataset, IterableDataset)
    if not stream and not isinstance(dataset, Dataset):
        raise ValueError(f"score() takes a Dataset or an IterableDataset of `datasets`, not {type(dataset).__name__}.")
    check_choice("when_running", when_running, WhenRunning)
    pool = Stream(cast(Any, dataset), chunk_rows) if stream else Pool(cast(Dataset, dataset), chunk_rows)
    if bad_rows == "error" and not stream:
        _refuse_bad_rows(cast(Dataset, pool.dataset), source)
    folder = Path(output_dir).expanduser()
    scorer.begin_on(began_on(folder / "manifest.json") if index is None else index.day)
    made_by = scorer.identity()
    if index is not None:
        if scorer.featurizer is None:
            raise ValueError(f"scorer {scorer.name} compares no vectors; leave out the index.")
        if stream:
            raise ValueError(
                "an index cannot be checked against a streaming dataset; load the dataset without streaming."
            )
        index.check(cast(Dataset, pool.dataset), scorer.featurizer)
        made_by = {**made_by, "index": index.manifest["made_by"]["hash"]}
    identity = identity_of(scorer.name, made_by, scorer.described())
    job = ChunkedJob(pool, folder, identity, "scored", ".parquet", "scores", "summary.json")
    job.open(source, when_running)
    job.run(
        lambda path, first, rows: _write_scored(
            path, first, rows, scorer, index, bad_rows if stream else "null", source
        ),
        scorer.load,
        lambda: _write_scores(job, scorer, index),
        f"score {scorer.name}",
    )
    return read_scored(output_dir)


def whole_cost(output_dir: str | os.PathLike) -> dict[str, float]:
    """Total cost of the scores of a finished run, in seconds and (if a model ran) FLOPs: of the pass over the rows, of
    the index that it read and of what came before the first row."""
    summary = json.loads((Path(output_dir).expanduser() / "summary.json").read_text(encoding="utf-8"))
    costs = [summary["cost"], summary.get("index_cost", {}), *summary.get("preparation_cost", {}).values()]
    return {name: sum(cost.get(name, 0.0) for cost in costs) for name in ("flops", "seconds") if name in costs[0]}


# --------------------------------------------------------------------------------------------------------------------


def _write_scored(
    path: Path,
    first_row: int,
    rows: Dataset,
    scorer: Scorer,
    index: PoolIndex | None,
    bad_rows: str,
    source: str | None,
) -> dict[str, float]:
    read = readable(rows)
    before, batch = scorer.usage(), columns_of(read.with_format("arrow")[:], read.features)
    if bad_rows == "error":
        _refuse_bad_rows(rows, source, first_row)
    vectors = None if index is None else index.read(range(first_row, first_row + len(rows)))
    scores = scorer(batch) if vectors is None else scorer.score_vectors(batch, vectors)
    table = cast(pa.Table, rows.with_format("arrow")[:])
    replaced = [name for name in table.column_names if name in scorer.columns_out]
    table = table.drop_columns(replaced) if replaced else table
    types = Features(scorer.columns_out).arrow_schema
    for name in scorer.columns_out:
        table = table.append_column(name, pa.array(scores[name], types.field(name).type))
    features = {**rows.features, **scorer.columns_out}
    pq.write_table(cast_for_parquet(table, Features({name: features[name] for name in table.column_names})), path)
    return {name: value - before.get(name, 0) for name, value in scorer.usage().items()}


def _write_scores(job: ChunkedJob, scorer: Scorer, index: PoolIndex | None) -> None:
    """Write scores.parquet and the summary, one part at a time; only one number per row stays in memory."""
    column = columns.score_column(scorer.name)
    cost, reasons, notes = Counter(), Counter(), Counter()
    values: list[np.ndarray] = []
    rows, writer = 0, None
    with atomic_path(job.folder / "scores.parquet") as temporary:
        for chunk in range(job.pool.num_chunks):
            cost.update(cast(Any, job.record(chunk))["cost"])
            scores = pq.read_table(job.part(chunk), columns=[columns.ROW_ID, *scorer.columns_out])
            scores = scores.replace_schema_metadata(None)
            writer = writer or pq.ParquetWriter(temporary, scores.schema)
            writer.write_table(scores)
            rows += len(scores)
            values.append(scores[column].drop_null().to_numpy())
            reason_of_row = scores[columns.reason_column(column)].to_pylist()
            for reason, has_score in zip(reason_of_row, scores[column].is_valid().to_pylist(), strict=True):
                if reason or not has_score:
                    (notes if has_score else reasons)[reason] += 1
        cast(Any, writer).close()
    known = np.concatenate(values)
    summary = {
        "rows": rows,
        "scored": len(known),
        "reasons": dict(reasons.most_common()),
        "notes": dict(notes.most_common()),
        "quantiles": {q: float(np.quantile(known, float(q))) for q in ("0", "0.25", "0.5", "0.75", "1")}
        if len(known)
        else {},
        "cost": {**cost, "rows_per_second": rows / cost["seconds"], "peak_memory_mib": _peak_memory_mib()},
        **({} if index is None else {"index_cost": index.summary["cost"]}),  # the model's passes over these rows
        "preparation_cost": scorer.preparation_cost(),  # before them, once: the queries, a warm-up
        "device": _device_name(),
        "paper": None if scorer.paper is None else asdict(scorer.paper),  # dataset cards cite it
        "higher_is_better": scorer.higher_is_better,
    }
    write_json(job.folder / job.summary, summary)


def _refuse_bad_rows(dataset: Dataset, source: str | None, first_row: int = 0) -> None:
    """Raise if a row is not a conversation. This reads every row once, before a model is loaded."""
    rows = enumerate(conversations_of(dataset), first_row)
    bad = [(number, row) for number, row in rows if isinstance(row, BadRow)]
    if bad:
        first = "; ".join(f"row {i}: {reason}" for i, reason in bad[:3])
        part = f" from row {first_row} on" if first_row else ""
        where = f' of "{source}"' if source else ""
        raise ValueError(
            f"{len(bad)} of {len(dataset)} rows{where}{part} cannot be read ({first}). Fix them, or keep them without "
            "a score: bad_rows=null (--bad-rows null)."
        )


def _peak_memory_mib() -> float:
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20  # pyright: ignore[reportAttributeAccessIssue]
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _device_name() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu, {torch.get_num_threads()} threads"
