"""`score` runs a scorer over a whole dataset, in chunks that are written atomically and never scored twice.

output_dir/
  manifest.json                the rows and the scorer; a run with other rows or settings raises an error
  scored/part-00000.parquet    the rows of a chunk with row_id and their scores
  scores.parquet               row_id and the score columns of all rows, written at the end
  summary.json                 counts, reasons, and costs: of the pass, of the index, of what came before

With an index (features/store.py) the vectors of the rows are read from disk, and no model runs over the pool. With
candidates (scoring/candidates.py) only some of the rows are scored.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
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
from hf_select.data.loading import as_list
from hf_select.data.rows import Pool, Stream, conversations_of, readable
from hf_select.data.scores import read_scored
from hf_select.features.store import PoolIndex
from hf_select.jobs.chunked_job import ChunkedJob, WhenRunning
from hf_select.jobs.run_folder import identity_of
from hf_select.models.template_day import began_on
from hf_select.scoring.candidates import Candidates
from hf_select.scoring.scorer import Scorer
from hf_select.selection.selection import Selection
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
    candidates: Selection | None = None,
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
        candidates: score only these rows, such as the best by a cheaper scorer. The others keep their places, with a
            null and the reason. Candidates are found by their row_id; in a stream they need one.
        when_running: what to do if another job is running in output_dir: refuse, or join it.
    Raises: ValueError if output_dir holds scores of other rows or settings, or if the index was made of other rows, by
        another model or with other settings, or if a candidate is not among the rows.
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
    chosen = None if candidates is None else Candidates(candidates, pool)
    if chosen is not None:
        made_by = {**made_by, "candidates": chosen.identity()}
    identity = identity_of(scorer.name, made_by, scorer.described())
    job = ChunkedJob(pool, folder, identity, "scored", ".parquet", "scores", "summary.json")
    job.open(source, when_running)
    job.run(
        lambda path, first, rows: _write_scored(
            path, first, rows, scorer, index, chosen, bad_rows if stream else "null", source
        ),
        scorer.load,
        lambda: _write_scores(job, scorer, index, chosen),
        f"score {scorer.name}",
        needs_load=lambda rows: chosen is None or len(chosen.places(rows)) > 0,
    )
    return read_scored(output_dir)


def whole_cost(output_dir: str | os.PathLike) -> dict[str, float]:
    """Total cost of the scores of a finished run, in seconds and (if a model ran) FLOPs: of the pass over the rows, of
    the index that it read, of what came before the first row, and of the scores that its candidates were selected by.
    """
    summary = _summary_of(output_dir)
    return _sum([_own_cost(summary), summary.get("candidates", {}).get("cost", {})])


# --------------------------------------------------------------------------------------------------------------------


def _write_scored(
    path: Path,
    first_row: int,
    rows: Dataset,
    scorer: Scorer,
    index: PoolIndex | None,
    candidates: Candidates | None,
    bad_rows: str,
    source: str | None,
) -> dict[str, float]:
    before = scorer.usage()
    if bad_rows == "error":
        _refuse_bad_rows(rows, source, first_row)
    if candidates is None:
        scores = _scores_of(rows, first_row + np.arange(len(rows)), scorer, index)
    else:
        places = candidates.places(rows)
        scores = _scores_of(rows.select(places), first_row + places, scorer, index)
        reasons = columns.reason_column(columns.score_column(scorer.name))
        scores = candidates.spread(scores, places, len(rows), reasons)
    table = cast(pa.Table, rows.with_format("arrow")[:])
    replaced = [name for name in table.column_names if name in scorer.columns_out]
    table = table.drop_columns(replaced) if replaced else table
    types = Features(scorer.columns_out).arrow_schema
    for name in scorer.columns_out:
        table = table.append_column(name, pa.array(scores[name], types.field(name).type))
    features = {**rows.features, **scorer.columns_out}
    pq.write_table(cast_for_parquet(table, Features({name: features[name] for name in table.column_names})), path)
    return {name: value - before.get(name, 0) for name, value in scorer.usage().items()}


def _scores_of(rows: Dataset, numbers: np.ndarray, scorer: Scorer, index: PoolIndex | None) -> dict[str, list[Any]]:
    """The scorer's columns for some rows of the pool, given by their row numbers, ascending."""
    if len(rows) == 0:
        return {name: [] for name in scorer.columns_out}
    read = readable(rows)
    batch = columns_of(read.with_format("arrow")[:], read.features)
    if index is None:
        return scorer(batch)
    vectors = index.read(range(numbers[0], numbers[-1] + 1))
    return scorer.score_vectors(batch, [vectors[number - numbers[0]] for number in numbers])


def _write_scores(job: ChunkedJob, scorer: Scorer, index: PoolIndex | None, candidates: Candidates | None) -> None:
    """Write scores.parquet and the summary, one part at a time; only one number per row stays in memory."""
    column = columns.score_column(scorer.name)
    cost, reasons, notes = Counter(), Counter(), Counter()
    values: list[np.ndarray] = []
    rows, writer, found = 0, None, set()
    with atomic_path(job.folder / "scores.parquet") as temporary:
        for chunk in range(job.pool.num_chunks):
            cost.update(cast(Any, job.record(chunk))["cost"])
            scores = pq.read_table(job.part(chunk), columns=[columns.ROW_ID, *scorer.columns_out])
            scores = scores.replace_schema_metadata(None)
            writer = writer or pq.ParquetWriter(temporary, scores.schema)
            writer.write_table(scores)
            rows += len(scores)
            if candidates is not None:
                found.update(row_id for row_id in scores[columns.ROW_ID].to_pylist() if row_id in candidates)
            values.append(scores[column].drop_null().to_numpy())
            reason_of_row = scores[columns.reason_column(column)].to_pylist()
            for reason, has_score in zip(reason_of_row, scores[column].is_valid().to_pylist(), strict=True):
                if reason or not has_score:
                    (notes if has_score else reasons)[reason] += 1
        cast(Any, writer).close()
        if candidates is not None:
            candidates.check_found(found)  # a stream is known at its end
    known = np.concatenate(values)
    asked = rows if candidates is None else len(candidates)
    summary = {
        "rows": rows,
        "scored": len(known),
        "reasons": dict(reasons.most_common()),
        "notes": dict(notes.most_common()),
        "quantiles": {q: float(np.quantile(known, float(q))) for q in ("0", "0.25", "0.5", "0.75", "1")}
        if len(known)
        else {},
        "cost": {**cost, "rows_per_second": asked / cost["seconds"], "peak_memory_mib": _peak_memory_mib()},
        **({} if index is None else {"index_cost": index.summary["cost"]}),  # the model's passes over these rows
        **({} if candidates is None else {"candidates": _candidates_summary(candidates)}),
        "preparation_cost": scorer.preparation_cost(),  # before them, once: the queries, a warm-up
        "device": _device_name(),
        "paper": None if scorer.paper is None else asdict(scorer.paper),  # dataset cards cite it
        "higher_is_better": scorer.higher_is_better,
    }
    write_json(job.folder / job.summary, summary)


def _candidates_summary(candidates: Candidates) -> dict[str, Any]:
    """How many rows were scored, what chose them, and what the scores cost that they were selected by: of the folders
    that the selection names, those that are there."""
    named = [folder for step in candidates.selection.chain for folder in as_list(step.get("scores") or [])]
    earlier: dict[str, dict[str, Any]] = {}
    for folder in named:  # grows: earlier scores may be of candidates, too
        place = Path(folder).expanduser()
        if folder not in earlier and (place / "scored").is_dir() and (place / "summary.json").exists():
            earlier[folder] = _summary_of(folder)
            named += earlier[folder].get("candidates", {}).get("scores", [])
    return {
        "rows": len(candidates),
        "chosen_by": candidates.chosen_by,
        **({"scores": [*earlier], "cost": _sum(map(_own_cost, earlier.values()))} if earlier else {}),
    }


def _summary_of(output_dir: str | os.PathLike) -> dict[str, Any]:
    return json.loads((Path(output_dir).expanduser() / "summary.json").read_text(encoding="utf-8"))


def _own_cost(summary: dict[str, Any]) -> dict[str, float]:
    """Cost of a run without that of its candidates, which other runs scored."""
    costs = [summary["cost"], summary.get("index_cost", {}), *summary.get("preparation_cost", {}).values()]
    return {name: sum(cost.get(name, 0.0) for cost in costs) for name in ("flops", "seconds") if name in costs[0]}


def _sum(costs: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: Counter[str] = Counter()
    for cost in costs:
        total.update(cost)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return dict(total)


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
