"""Scores that another program made: a JSONL, CSV or TSV file of ids and scores becomes a score column."""

import csv
import io
import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Value

from hf_select.data import columns, compression
from hf_select.data.row_files import DELIMITERS, kind_of


logger = logging.getLogger(__name__)

_NUMERAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class _NoScore(ValueError):
    """A value that is not a score; the message is the reason that its row carries."""


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

    A score is a number, or a text that is one, as judges write it: "4", "4.5", or "4/10", which is 0.4. Fractions and
    plain numbers in one file are refused, since they are on two scales.

    Args:
        path: JSONL, CSV or TSV file (also .gz, .zst, .xz, .bz2), one object or row for each score.
        name: of the score.
        id_key: key of the id in the file.
        score_key: key of the score in the file.
        row_id: column of the dataset that holds the ids; without a column "row_id" they are row numbers.
    Raises: ValueError for a line that is not such an object, an id that comes twice, a file that names no row at all
        or gives none of them a score.
    """
    score = columns.score_column(name)
    if score in dataset.column_names:
        raise ValueError(f'the dataset has a column "{score}" already; choose another name.')
    ids = _ids(dataset, row_id)
    scores = _read_scores(Path(path).expanduser(), id_key, score_key)
    present = set(ids)
    known = {key: value for key, value in scores.items() if key in present}
    if not known:
        ids_from = (
            f'the column "{row_id}"' if row_id in dataset.column_names else f'row numbers (it has no "{row_id}")'
        )
        other = [column for column in (id_key, "id") if column in dataset.column_names and column != row_id]
        hint = f' Is it the column "{other[0]}"? Then give row_id (--row-id {other[0]}).' if other else ""
        raise ValueError(
            f'"{path}" names no row of the dataset, whose ids are {ids_from}; it has ids such as '
            f"{', '.join(list(scores)[:3])}.{hint}"
        )
    if all(isinstance(value, str) for value in known.values()):
        reasons = "; ".join(f"{count} x {reason}" for reason, count in Counter(known.values()).most_common(3))
        raise ValueError(
            f'"{path}" gives none of the {len(known)} rows that it names a score: {reasons}. Write numbers under '
            f'"{score_key}", or name another key with score_key (--score-key).'
        )
    if len(known) < len(scores):
        logger.warning('%d of %d ids in "%s" name no row of the dataset.', len(scores) - len(known), len(scores), path)
    values = [known.get(key, "not among the imported") for key in ids]
    dataset = dataset.add_column(
        score, [None if isinstance(value, str) else value for value in values], feature=Value("float64")
    )
    reasons = [value if isinstance(value, str) else "" for value in values]
    return dataset.add_column(columns.reason_column(score), reasons, feature=Value("string"))


def _ids(dataset: Any, row_id: str) -> list[str]:
    if row_id in dataset.column_names:
        return [str(value) for value in dataset.with_format(None)[row_id]]
    if row_id != columns.ROW_ID:
        raise columns.missing_column(row_id, dataset.column_names, "Name the column of the ids in row_id.")
    return [str(number) for number in range(len(dataset))]


def _read_scores(path: Path, id_key: str, score_key: str) -> dict[str, float | str]:
    """id -> score, or the reason why it has none."""
    scores: dict[str, float | str] = {}
    first: dict[bool, tuple[int, Any]] = {}  # whether it is a fraction -> the first line with one, its value
    for number, row in _numbered_lines(path):
        if not isinstance(row, dict) or id_key not in row or score_key not in row:
            has = f"it has {list(row)}" if isinstance(row, dict) else "it is not an object"
            raise ValueError(
                f'line {number} of "{path}" needs "{id_key}" and "{score_key}"; {has}. Name its keys with id_key '
                "(--id-key) and score_key (--score-key)."
            )
        key, value = str(row[id_key]), row[score_key]
        if key in scores:
            raise ValueError(f'id "{key}" comes twice in "{path}", at line {number} again; a row has one score.')
        try:
            scores[key] = _score(value)
            first.setdefault(isinstance(value, str) and "/" in value, (number, value))
        except _NoScore as reason:
            scores[key] = str(reason)
    if not scores:
        raise ValueError(f'"{path}" is empty; there is nothing to import.')
    if len(first) == 2:
        (plain, number), (line, fraction) = first[False], first[True]
        raise ValueError(
            f'"{path}" has the number {number} at line {plain} and the fraction {fraction} at line {line}: two '
            "scales. Write all scores in one way."
        )
    return scores


def _numbered_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, row) for each row of a CSV or TSV file, or each line of a JSONL file; either may be compressed."""
    kind = kind_of(path)
    try:
        with io.TextIOWrapper(compression.open_to_read(path), encoding="utf-8-sig", newline="\n") as file:
            if kind in DELIMITERS:
                reader = csv.DictReader(file, delimiter=DELIMITERS[kind])
                for row in reader:
                    yield reader.line_num, row
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, json.loads(line)
    except json.JSONDecodeError:
        raise ValueError(f'line {number} of "{path}" is not JSON; one object a line is needed.') from None
    except UnicodeDecodeError as error:
        raise ValueError(f'"{path}" is not text in UTF-8 ({error.reason}).') from None
    except compression.DAMAGED as error:
        raise ValueError(f'cannot read "{path}" ({error}); the compressed file is damaged.') from None


def _score(value: Any) -> float:
    """The value as a finite number."""
    shown = json.dumps(value, ensure_ascii=False)
    shown = shown if len(shown) <= 40 else shown[:37] + "..."
    if value is None:
        raise _NoScore("the imported score is null")
    try:
        if isinstance(value, str):
            top, slash, bottom = (part.strip() for part in value.partition("/"))
            if not all(_NUMERAL.fullmatch(part) for part in ([top, bottom] if slash else [top])):
                raise _NoScore(f"the imported score {shown} is not a number")
            number = float(top) / float(bottom) if slash else float(top)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            number = float(value)
        else:
            raise _NoScore(f"the imported score {shown} is not a number")
    except (ZeroDivisionError, OverflowError):
        raise _NoScore(f"the imported score {shown} is not a finite number") from None
    if not math.isfinite(number):
        raise _NoScore(f"the imported score {shown} is not a finite number")
    return number
