"""A finished selection as the report and the card need it: its pool with every score, its record, and its costs."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hf_select.atomic import read_json
from hf_select.data import columns
from hf_select.data.conversation import readable_columns
from hf_select.data.loading import as_list, read_scores
from hf_select.data.rows import pool_fingerprint
from hf_select.recipe import fill_output_dir, read_recipe_file, texts_of
from hf_select.reports.ledger import Step, read_step
from hf_select.selection.record import record_behind, record_of
from hf_select.selection.selection import Selection


@dataclass
class FinishedSelection:
    """A selection with the rows, steps and recipe that it was made from.

    Args:
        subset: the file or folder that holds the selected rows.
        pool: the rows that the first step selected from, with the scores of all steps.
        earlier: the selection of the steps before the last one, if there are any.
        steps: the costs of the steps, see `reports.ledger`.
        recipe: the resolved recipe, if the selection belongs to a run.
        source: name of the dataset that was scored.
    """

    subset: Path
    pool: Any
    selection: Selection
    earlier: Selection | None = None
    steps: list[Step] = field(default_factory=list)
    recipe: dict[str, Any] | None = None
    source: str | None = None

    @property
    def name(self) -> str:
        """The name of the run, or of the subset."""
        return self.subset.resolve().parent.name if self.recipe else self.subset.name.split(".")[0]


def read_finished(subset: str, scores: str | list[str] | None = None, split: str = "train") -> FinishedSelection:
    """Read the output of `hf-select select`, or the last selection in the folder of a run.

    Args:
        subset: path of the output, or of the folder.
        scores: the scored rows, if they are not where the record says.
        split: of a saved or Hub dataset.
    Raises: ValueError if a record or the rows are missing.
    """
    path = Path(subset).expanduser()
    run = path if (path / "config.yaml").is_file() else path.parent
    recipe = read_recipe_file(run / "config.yaml") if (run / "config.yaml").is_file() else None
    steps = {} if recipe is None else fill_output_dir(recipe["steps"], str(run))
    if path == run:
        selects = [step for step in steps.values() if step.get("command") == "select"]
        if not selects:
            raise ValueError(f'the run in "{run}" selects nothing; give a subset or the folder of generate or mix.')
        path = Path(selects[-1]["output"]).expanduser()
    selection = _record(path)
    mine = next((s for s in steps.values() if s.get("output") and _same(s["output"], path)), None)
    if mine is None:
        recipe = None  # the subset is in the folder of a run but not one of its outputs
    found = scores or (mine["scores"] if mine else _recorded(record_of(path), path))
    try:
        pool, earlier = _pool(found, split)
    except ValueError as error:
        if scores is None:
            raise ValueError(f'{error} That is where "{path}" was selected from; give --scores.') from error
        raise
    ledger = [read_step(folder) for folder in _before(found)[1]] if mine is None else list(_ledger(steps, mine, run))
    return FinishedSelection(path, pool, selection, earlier, ledger, recipe, _before(found)[0])


def with_columns_of(pool: Any, other: Any) -> Any:
    """The pool with the columns of another scoring of the same rows.

    Raises: ValueError if the rows are not the same.
    """
    first, second = (_fingerprint(one) for one in (pool, other))
    if len(pool) != len(other) or first != second:
        raise ValueError(
            f"the two selections were made from different rows ({len(pool):,} and {len(other):,}); only selections "
            "from one pool can be compared."
        )
    return _spread(pool, other, np.arange(len(pool)))


# --------------------------------------------------------------------------------------------------------------------


def _fingerprint(dataset: Any) -> str | None:
    """The fingerprint of the rows without their scores; of scores without rows, that of their row_id."""
    names = readable_columns(dataset.column_names) or [n for n in (columns.ROW_ID,) if n in dataset.column_names]
    return pool_fingerprint(dataset.select_columns(names)) if names else None


def _record(path: Path) -> Selection:
    record = record_of(path)
    if not record.exists():
        raise ValueError(f'no record of a selection beside "{path}"; give what hf-select select wrote, or a run.')
    return Selection.load(record)


def _recorded(record: Path, subset: Path) -> str | list[str]:
    """The path of the rows that the last step selected from."""
    scores = _recorded_scores(record)
    if scores is None:
        raise ValueError(f'the record of "{subset}" does not say which rows it was selected from; give --scores.')
    return scores


def _pool(scores: str | list[str], split: str) -> tuple[Any, Selection | None]:
    """The rows that the first step selected from, with the columns of later steps; and the selection of all steps but
    the last."""
    dataset = read_scores(scores, split)
    record = record_behind(Path(as_list(scores)[0]).expanduser())
    earlier = None if record is None else Selection.load(record)
    if record is None or earlier is None or len(earlier) != len(dataset):
        return dataset, None
    earlier.check_left(dataset)
    return _spread(_pool(_recorded(record, record), split)[0], dataset, earlier.indices), earlier


def _spread(pool: Any, part: Any, rows: np.ndarray) -> Any:
    """The pool with the additional columns of `part`, which has its rows `rows`; null in the other rows."""
    place = np.full(len(pool), -1)
    place[rows] = np.arange(len(part))
    table, known = part.with_format("arrow")[:], {*pool.column_names, columns.ROW_ID}
    for name in part.column_names:
        if name in known or name in (columns.SELECTION_RANK, columns.SELECTION_REASON):
            continue
        values = table[name].combine_chunks().take(pa.array(place, mask=place < 0))
        if name.endswith("_reason") and pa.types.is_string(values.type):
            values = values.fill_null("left out by an earlier step")
        pool = pool.add_column(name, values, feature=part.features[name])
    return pool


def _before(scores: str | list[str]) -> tuple[str, list[Path]]:
    """The dataset at the beginning, and the folders of the scoring runs between it and these rows."""
    histories = [_history(each) for each in as_list(scores)]
    return histories[0][0], list(dict.fromkeys(folder for _, folders in histories for folder in folders))


def _history(scores: str) -> tuple[str, list[Path]]:
    path = Path(scores).expanduser()
    manifest = read_json(path / "manifest.json") if path.is_dir() else None
    if manifest is not None and "made_by" in manifest:
        source, own = manifest["pool"]["source"], [path]
    else:
        source, own = _recorded_scores(record_of(path)), []
    first, folders = _before(source) if source else (scores, [])
    return first, [*folders, *own]


def _recorded_scores(record: Path) -> str | list[str] | None:
    return Selection.load(record).chain[-1].get("scores") if record.exists() else None


def _ledger(steps: dict[str, dict[str, Any]], last: dict[str, Any], run: Path) -> Iterator[Step]:
    """The costs of the steps of a run whose outputs the selection `last` reads, directly or through other steps."""
    behind, reading = [last], set(texts_of(last))
    while more := [s for s in steps.values() if s not in behind and {s.get("output"), s.get("output_dir")} & reading]:
        behind += more
        reading |= {text for step in more for text in texts_of(step)}
    for name, settings in steps.items():
        if settings not in behind:
            continue
        if settings["command"] in ("score", "index"):
            yield read_step(settings["output_dir"])
        elif settings["command"] in ("select", "warm-up"):
            marker = read_json(run / ".steps" / f"{name}.json")
            if marker is not None and "seconds" in marker:  # the step is finished
                yield Step(name, cost={"seconds": marker["seconds"]})


def _same(a: str, b: Path) -> bool:
    return Path(a).expanduser().resolve() == b.resolve()
