"""Many training runs by one recipe in one folder: its settings, the rows to train on, and the sharing of the runs.

Records of runs are written atomically and never computed twice. Processes that share a folder share its runs: each
takes the next one that no other process is computing, and a run of a killed process is taken over.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from datasets import Dataset
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from hf_select.atomic import atomic_path, write_json
from hf_select.data import columns
from hf_select.data.bad_rows import BadRow
from hf_select.data.rows import conversations_of
from hf_select.evaluation.measure import Measure
from hf_select.jobs.run_folder import claim_run_folder
from hf_select.models.causal_lm import CausalLM
from hf_select.models.responses import with_responses
from hf_select.models.sources import find
from hf_select.training.equal_tokens import Recipe


logger = logging.getLogger(__name__)

Run = TypeVar("Run")

# Where a run is trained, not how.
_WHERE = ("accelerate_config", "rows_per_batch")


def check_one_device(recipe: Recipe) -> None:
    """Raise ValueError if this process sees several devices and would train each run on only one of them."""
    if torch.cuda.device_count() > 1 and recipe.accelerate_config is None:
        raise ValueError(
            "one process sees several devices, and a run is trained on one of them: start the command under "
            "accelerate launch, or show it one (CUDA_VISIBLE_DEVICES=0). A run that needs several devices is "
            "launched by itself: recipe setting accelerate_config."
        )


def claim_folder(path: Path, recipe: Recipe, settings: Mapping[str, Any], what: str, pool: Dataset) -> dict[str, Any]:
    """Refuse the folder of `path` if its runs have other settings, another pool or another recipe.

    Args:
        path: JSON file that the settings are kept in.
        what: result of such runs, for messages: "a comparison".
    Returns: the settings with the recipe, as results show them.
    """
    described = {name: value for name, value in recipe.described().items() if name not in _WHERE}
    folder = path.parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock") as lock:  # processes start at the same time
        claimed = {**settings, "recipe": {**described, "model": find(recipe.model).identity}}
        claim_run_folder(path, claimed, what, pool)
        Path(lock.lock_file).unlink(missing_ok=True)
    return {"recipe": described, **settings}


def trainable_rows(pool: Dataset, recipe: Recipe, cache: Path) -> tuple[Dataset, dict[str, int]]:
    """Return the rows that have a response to learn, with their number of tokens, and why others are left out.

    Selections, baselines and subsets are drawn from these rows alone: a row that nothing is learned from counts in no
    budget.
    """
    if cache.exists():
        cached = np.load(cache)
        lengths, reasons = cached["lengths"], json.loads(str(cached["reasons"]))
    else:
        lm, tokens, bad = recipe.base(), [], Counter()
        rows = conversations_of(pool)
        while batch := list(islice(rows, 1000)):
            for row in with_responses(lm, batch, "chat", recipe.max_length):
                tokens.append(0 if isinstance(row, BadRow) else len(row[0].input_ids))
                bad[str(row)] += isinstance(row, BadRow)
        lengths, reasons = np.array(tokens), {reason: count for reason, count in bad.most_common() if count}
        with atomic_path(cache) as temporary, open(temporary, "wb") as file:
            np.savez(file, lengths=lengths, reasons=json.dumps(reasons))
    for reason, count in reasons.items():
        logger.warning("%d rows of the pool cannot be trained on and are left out: %s", count, reason)
    trainable = np.flatnonzero(lengths)
    if columns.NUM_TOKENS in pool.column_names:
        pool = pool.remove_columns(columns.NUM_TOKENS)
    if len(trainable) < len(pool):
        pool = pool.select(trainable)
    return cast(Any, pool).add_column(columns.NUM_TOKENS, lengths[trainable].tolist()), reasons


def compute_missing(
    runs: Sequence[Run],
    path_of: Callable[[Run], Path],
    is_done: Callable[[Run], bool],
    compute: Callable[[Run], dict[str, Any]],
    title: str,
) -> None:
    """Compute and write the records of all runs that are not done, together with the other processes in the folder.

    Args:
        path_of: JSON file of a run's record.
        title: of the progress bar.
    """
    missing = [run for run in runs if not is_done(run)]
    with tqdm(total=len(missing), desc=title, unit="run", disable=not missing) as bar:
        while missing:
            for run in missing:
                _compute_unless_taken(run, path_of(run), is_done, compute)
                bar.update()
            missing = [run for run in missing if not is_done(run)]
            bar.n = bar.total - len(missing)
            if missing:
                time.sleep(0.5)  # other processes run the last ones


def measured(measure: Measure, lm: CausalLM, where: str) -> list[float]:
    """What a measure finds after a run.

    Args:
        where: the measure and the run, for errors.
    Raises: ValueError if the model cannot be measured, or if its run has diverged.
    """
    try:
        values = measure(lm)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if not np.isfinite(values).all():
        raise ValueError(f"{where} is not finite: the run has diverged. Lower the learning rate.")
    return values


# --------------------------------------------------------------------------------------------------------------------


def _compute_unless_taken(
    run: Run, path: Path, is_done: Callable[[Run], bool], compute: Callable[[Run], dict[str, Any]]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:  # another process runs it
        return
    try:
        if not is_done(run):
            write_json(path, compute(run))
    finally:
        lock.release()
        path.with_suffix(".lock").unlink(missing_ok=True)
