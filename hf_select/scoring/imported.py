"""Scores that another program made: a JSONL file with an id and a score a line becomes a score column."""

import json
import math
import os
from pathlib import Path
from typing import Any

from datasets import Value

from hf_select import columns


def import_scores(
    dataset: Any,
    path: str | os.PathLike,
    name: str,
    *,
    id_key: str = "id",
    score_key: str = "score",
    row_id: str = columns.ROW_ID,
) -> Any:
    """The dataset with `score_<name>` and `<name>_reason`: each row has the score of its id; a row that the file does
    not name has none.

    Args:
        path: JSONL file, one object a line.
        name: of the score.
        id_key: key of the id in the file.
        score_key: key of the score in the file.
        row_id: column of the dataset that holds the ids; without it they are row numbers.
    Raises: ValueError for a line that is no such object, an id that comes twice, or a file that names no row at all.
    """
    score = columns.score_column(name)
    if score in dataset.column_names:
        raise ValueError(f'the dataset has a column "{score}" already; choose another name.')
    scores = _read(Path(path).expanduser(), id_key, score_key)
    ids = [str(i) for i in (dataset[row_id] if row_id in dataset.column_names else range(len(dataset)))]
    found = [scores.get(key) for key in ids]
    if not any(key in scores for key in ids):
        there = f'the column "{row_id}"' if row_id in dataset.column_names else f'row numbers (it has no "{row_id}")'
        some = ", ".join(list(scores)[:3])
        raise ValueError(f'"{path}" names no row of the dataset, whose ids are {there}; it has ids such as {some}.')
    reasons = [
        "" if value is not None else "the imported score is no number" if key in scores else "not among the imported"
        for key, value in zip(ids, found, strict=True)
    ]
    dataset = dataset.add_column(score, found, feature=Value("float64"))
    return dataset.add_column(columns.reason_column(score), reasons, feature=Value("string"))


def _read(path: Path, id_key: str, score_key: str) -> dict[str, float | None]:
    """id -> score, None where it is no finite number."""
    scores: dict[str, float | None] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f'"{path}" is no text in UTF-8 ({error.reason}).') from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            raise ValueError(f'line {number} of "{path}" is not JSON; one object a line is needed.') from None
        if not isinstance(row, dict) or id_key not in row or score_key not in row:
            has = f"it has {list(row)}" if isinstance(row, dict) else "it is no object"
            raise ValueError(f'line {number} of "{path}" needs "{id_key}" and "{score_key}"; {has}.')
        key, value = str(row[id_key]), row[score_key]
        if key in scores:
            raise ValueError(f'id "{key}" comes twice in "{path}", at line {number} again; a row has one score.')
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        scores[key] = float(value) if is_number else None
    if not scores:
        raise ValueError(f'"{path}" is empty; there is nothing to import.')
    return scores
