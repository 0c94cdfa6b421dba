"""Every column name that hf_select reads or writes, and the one error for a column that is not there.

A method called `name` adds `score_<name>` (float, null where a row cannot be scored) and `<name>_reason` (why there is
no score, or what was done to get one; empty otherwise). The reason is a string and never null: `datasets` fixes the
type of a column by its first batch, and a batch of nulls would fix the wrong one.
"""

import difflib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa


ROW_ID = "row_id"
SCORE_PREFIX = "score_"
NUM_TOKENS = "num_tokens"
SELECTION_RANK = "selection_rank"
SELECTION_REASON = "selection_reason"


def score_column(name: str) -> str:
    return SCORE_PREFIX + name


def reason_column(score: str) -> str:
    """The column that explains nulls of a score column: score_ifd -> ifd_reason."""
    return score.removeprefix(SCORE_PREFIX) + "_reason"


def missing_column(column: str, present: Iterable[str], cure: str) -> ValueError:
    """The error for a column that is not there: what was asked for, what there is, what to do."""
    present = list(present)
    near = difflib.get_close_matches(column, present, n=1)
    hint = f' Did you mean "{near[0]}"?' if near else ""
    return ValueError(f'column "{column}" is missing; the dataset has {present}.{hint} {cure}')


def score_values(dataset: Any, column: str) -> np.ndarray:
    """A score column as float64 (n,), NaN where a row has no score."""
    return numeric_column(dataset, column, "Add it first: dataset.map(scorer, batched=True), or hf-select score.")


def numeric_column(dataset: Any, column: str, cure: str) -> np.ndarray:
    """A number column as float64 of shape (n,), with NaN for null (and for a stored NaN: both mean "no score")."""
    if column not in dataset.column_names:
        raise missing_column(column, dataset.column_names, cure)
    values = dataset.with_format("arrow")[column].combine_chunks()
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_null(values.type)):
        raise ValueError(f'column "{column}" holds {values.type}, not numbers. {cure}')
    return np.asarray(values.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
