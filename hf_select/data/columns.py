"""The column names that hf_select reads and writes, and the error for a missing column.

A method called `name` adds two columns: `score_<name>` (float; null if the row cannot be scored) and `<name>_reason`
(why there is no score, or what was changed to compute it; otherwise empty). The reason is a string and never null:
`datasets` infers a column's type from the first batch, and would infer the wrong type from a batch of nulls.
"""

import difflib
import json
import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


logger = logging.getLogger(__name__)

ROW_ID = "row_id"
SCORE_PREFIX = "score_"
NUM_TOKENS = "num_tokens"
SELECTION_RANK = "selection_rank"
SELECTION_REASON = "selection_reason"


def score_column(name: str) -> str:
    """The score column of a method: ifd -> score_ifd."""
    return SCORE_PREFIX + name


def reason_column(score: str) -> str:
    """The column that explains nulls of a score column: score_ifd -> ifd_reason."""
    return score.removeprefix(SCORE_PREFIX) + "_reason"


def target_of(score: str) -> str:
    """A readable name for the target of a score column: "task math" for score_rds_math, since a targeted method adds
    `score_<name>_<task>`; the column itself for a score without a task."""
    task = score.removeprefix(SCORE_PREFIX).partition("_")[2] if score.startswith(SCORE_PREFIX) else ""
    return f"task {task}" if task else score


def missing_column(column: str, present: Iterable[str], cure: str) -> ValueError:
    """The error for a missing column: the requested name, the available ones, and how to fix it."""
    present = list(present)
    near = difflib.get_close_matches(column, present, n=1)
    hint = f' Did you mean "{near[0]}"?' if near else ""
    return ValueError(f'column "{column}" is missing; the dataset has {present}.{hint} {cure}')


def check_rows(dataset: Any) -> None:
    """Raise ValueError if rows cannot be selected by number, as in a stream or in several splits."""
    if hasattr(dataset, "select"):
        return
    cures = {
        "IterableDataset": "Load it without streaming, or make one with Dataset.from_list(list(stream)).",
        "DatasetDict": "Choose a split, e.g. dataset['train'].",
    }
    kind = type(dataset).__name__
    raise ValueError(
        f"rows can only be selected from a datasets.Dataset, and this is {kind}. "
        f"{cures.get(kind, 'Make one, e.g. with Dataset.from_list.')}"
    )


def score_values(dataset: Any, column: str, cure: str = "") -> np.ndarray:
    """A score column as float64 (n,), with NaN for rows without a score. Warns about infinite scores, which are not
    ranked."""
    cure = cure or "Add it first: dataset.map(scorer, batched=True), or hf-select score."
    values = numeric_column(dataset, column, cure)
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        logger.warning(
            '%d of %d rows have an infinite "%s" (first: row %d) and are not ranked.',
            *(len(infinite), len(values), column, infinite[0]),
        )
    return values


def without_score(dataset: Any, column: str, values: np.ndarray) -> str:
    """A note that counts the rows without a finite score, with the most common reasons; empty if there are none."""
    infinite, missing = int(np.isinf(values).sum()), np.flatnonzero(np.isnan(values))
    parts = [f"{infinite} infinite"] if infinite else []
    if len(missing):
        parts.append(f"{len(missing)} of {len(values)} without a score")
        if reason_column(column) in dataset.column_names:
            reasons = dataset.with_format("arrow")[reason_column(column)].take(missing).to_pylist()
            counts = Counter(reason for reason in reasons if reason).most_common(2)
            parts[-1] += "".join(f", {count} x {reason}" for reason, count in counts)
    return f" ({'; '.join(parts)})" if parts else ""


def numeric_column(dataset: Any, column: str, cure: str) -> np.ndarray:
    """A numeric column as float64 (n,), with NaN for null. A stored NaN also means "no score".

    A text column is converted if every text is a number: a CSV column with 1 and 0.50 is read as text, to preserve
    its spelling.
    """
    from hf_select.data._compat import Json  # here, so that --help does not load `datasets`

    check_rows(dataset)
    if column not in dataset.column_names:
        raise missing_column(column, dataset.column_names, cure)
    values = dataset.with_format("arrow")[column].combine_chunks()
    if isinstance(dataset.features[column], Json):
        stored = values.storage if isinstance(values, pa.ExtensionArray) else values
        texts = pa.array([_text(value) for value in stored.to_pylist()], pa.string())
        values = _numbers_of(texts, column, "several types")
    elif pa.types.is_string(values.type):
        values = _numbers_of(values, column, "string")
    kind = values.type
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if not (numbers or pa.types.is_null(kind)):
        if pa.types.is_boolean(kind):
            cure = f'Convert it: dataset.cast_column("{column}", Value("float64")). Or name another column.'
        raise ValueError(f'column "{column}" holds {kind}, not numbers. {cure}')
    if pa.types.is_integer(kind):
        _check_exact(values, column)
    return np.asarray(values.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)


def _text(value: str | None) -> str | None:
    """Decode a JSON string; leave any other JSON value as its text."""
    if value is None or not value.startswith('"'):
        return value
    return json.loads(value)


def _numbers_of(texts: pa.Array, column: str, kind: str) -> pa.Array:
    """Convert texts to numbers; empty text becomes null.

    Raises: ValueError that names the first text that is not a number.
    """
    texts = pc.if_else(pc.equal(texts, ""), None, texts)  # type: ignore[attr-defined]
    try:
        return texts.cast(pa.float64())
    except pa.ArrowInvalid:
        row, text = next((i, text) for i, text in enumerate(texts) if not _is_number(text))
    shown = json.dumps(text.as_py()[:40], ensure_ascii=False)
    raise ValueError(
        f'column "{column}" holds {kind}, not numbers: row {row} is {shown}. Write numbers there, or name another '
        "column."
    )


def _is_number(text: pa.Scalar) -> bool:
    try:
        text.cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def _check_exact(values: pa.Array, column: str) -> None:
    """Raise ValueError for the first integer that float64 cannot represent exactly."""
    try:
        values.cast(pa.float64())
    except pa.ArrowInvalid:
        row, value = next((i, each.as_py()) for i, each in enumerate(values) if abs(each.as_py() or 0) > 2**53)
        raise ValueError(
            f'column "{column}": row {row} is {value}, but integers are exact in float64 only up to 2^53. Write '
            "smaller numbers, or name another column."
        ) from None


def list_column(dataset: Any, column: str, cure: str) -> np.ndarray:
    """A column of equally long lists of numbers as float32 (n, length), with NaN for null."""
    check_rows(dataset)
    if column not in dataset.column_names:
        raise missing_column(column, dataset.column_names, cure)
    values = dataset.with_format("arrow")[column].combine_chunks()
    kind = values.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise ValueError(f'column "{column}" holds {kind}, not lists of numbers. {cure}')
    valid = np.asarray(values.is_valid())
    sizes = np.asarray(pc.list_value_length(values.drop_null()))  # type: ignore[attr-defined]
    lengths = np.unique(sizes).tolist()
    if len(lengths) > 1:
        row = np.flatnonzero(valid)[int(np.argmax(sizes != sizes[0]))]
        raise ValueError(
            f'the lists in column "{column}" have different lengths {lengths[:5]}, from row {row} on; all need the '
            f"same length. {cure}"
        )
    if lengths == [0]:
        raise ValueError(f'the lists in column "{column}" are empty; each needs at least 1 number. {cure}')
    vectors = np.full((len(values), lengths[0] if lengths else 0), np.nan, dtype=np.float32)
    flat = values.drop_null().flatten().cast(pa.float32()).to_numpy(zero_copy_only=False)
    vectors[valid] = flat.reshape(len(sizes), -1)
    return vectors
