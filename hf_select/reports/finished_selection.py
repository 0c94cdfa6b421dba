"""Read a finished selection from its files: the pool with every score, the selection, and the cost of all steps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

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


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class FinishedSelection:
    """A selection with everything that a report or a publication needs.

    Args:
        subset: the file or folder that holds the selected rows.
        pool: the rows that the first step selected from, with the scores of all steps.
        selection: the selection, as rows of the pool.
        earlier: what the steps before the last one left, if there were any.
        steps: settings and costs of the steps behind the selection.
        recipe: the resolved recipe, if the selection is part of a run.
        source: the dataset that was scored, as it was given.
    """

    subset: Path
    pool: "Dataset"
    selection: Selection
    earlier: Selection | None = None
    steps: Sequence[Step] = field(default_factory=list)
    recipe: dict[str, Any] | None = None
    source: str | None = None

    @property
    def name(self) -> str:
        """The name of the run's folder, or of the subset's file."""
        return self.subset.resolve().parent.name if self.recipe else self.subset.name.split(".")[0]


def read_finished(subset: str, scores: str | list[str] | None = None, split: str = "train") -> FinishedSelection:
    """Read what `hf-select select` wrote, or the last selection of a run's folder.

    Args:
        subset: the file or folder of the subset, or the folder of the run.
        scores: the scored rows, if they are not at the recorded path.
        split: split of a saved or Hub dataset.
    Raises: ValueError that says what is missing and what to give.
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
    selection = _load_record(path)
    step = next((step for step in steps.values() if step.get("output") and _is_same_path(step["output"], path)), None)
    if step is None:
        recipe = None  # the subset is in the run's folder, but not part of the run
    found = scores or (step["scores"] if step else _scores_on_record(record_of(path), path))
    try:
        pool, earlier = _pool_and_earlier(found, split)
    except ValueError as error:
        if scores is None:
            raise ValueError(f'{error} "{path}" was selected from there; give --scores.') from error
        raise
    source, folders = _source_and_folders(found)
    ledger = [read_step(folder) for folder in folders] if step is None else list(_steps_of_run(steps, step, run))
    return FinishedSelection(path, pool, selection, earlier, ledger, recipe, source)


def with_columns_of(pool: "Dataset", other: "Dataset") -> "Dataset":
    """The pool with the columns of another scoring of the same rows.

    Raises: ValueError if the rows are not the same.
    """
    if len(pool) != len(other) or _fingerprint_of_rows(pool) != _fingerprint_of_rows(other):
        raise ValueError(
            f"the two selections were made from different rows ({len(pool):,} and {len(other):,}); only selections "
            "from one pool can be compared."
        )
    return _add_columns(pool, other, np.arange(len(pool)))


# --------------------------------------------------------------------------------------------------------------------


def _fingerprint_of_rows(dataset: "Dataset") -> str | None:
    """Hash of the rows without their scores; of `row_id` for scores without their rows."""
    names = readable_columns(dataset.column_names) or [n for n in (columns.ROW_ID,) if n in dataset.column_names]
    return pool_fingerprint(dataset.select_columns(names)) if names else None


def _load_record(path: Path) -> Selection:
    record = record_of(path)
    if not record.exists():
        raise ValueError(f'no record of a selection next to "{path}"; give the output of hf-select select, or a run.')
    return Selection.load(record)


def _scores_on_record(record: Path, subset: Path) -> str | list[str]:
    """The path of the rows that the last step selected from.

    Raises: ValueError if the record does not name it.
    """
    scores = _recorded_scores(record)
    if scores is None:
        raise ValueError(f'the record of "{subset}" does not say which rows it was selected from; give --scores.')
    return scores


def _recorded_scores(record: Path) -> str | list[str] | None:
    return Selection.load(record).chain[-1].get("scores") if record.exists() else None


def _pool_and_earlier(scores: str | list[str], split: str) -> tuple["Dataset", Selection | None]:
    """The rows that the first step selected from, with the columns that later steps added, and the rows that all steps
    but the last left."""
    dataset = read_scores(scores, split)
    record = record_behind(Path(as_list(scores)[0]).expanduser())
    earlier = None if record is None else Selection.load(record)
    if record is None or earlier is None or len(earlier) != len(dataset):
        return dataset, None
    earlier.check_left(dataset)
    pool, _ = _pool_and_earlier(_scores_on_record(record, record), split)
    return _add_columns(pool, dataset, earlier.indices), earlier


def _add_columns(pool: "Dataset", part: "Dataset", rows: np.ndarray) -> "Dataset":
    """The pool with the additional columns of `part`, which holds these rows of it; null in the other rows."""
    place = np.full(len(pool), -1)
    place[rows] = np.arange(len(part))
    table, present = cast(pa.Table, part.with_format("arrow")[:]), {*pool.column_names, columns.ROW_ID}
    for name in part.column_names:
        if name in present or name in (columns.SELECTION_RANK, columns.SELECTION_REASON):
            continue
        values = table[name].combine_chunks().take(pa.array(place, mask=place < 0))
        if name.endswith("_reason") and pa.types.is_string(values.type):
            values = values.fill_null("left out by an earlier step")
        pool = pool.add_column(name, values, feature=part.features[name])
    return pool


def _source_and_folders(scores: str | list[str]) -> tuple[str, list[Path]]:
    """The dataset that was scored first, and the folders of all scoring runs from it to these scores."""
    paths = [_source_and_folders_of(each) for each in as_list(scores)]
    return paths[0][0], list(dict.fromkeys(folder for _, folders in paths for folder in folders))


def _source_and_folders_of(scores: str) -> tuple[str, list[Path]]:
    path = Path(scores).expanduser()
    manifest = read_json(path / "manifest.json") if path.is_dir() else None
    if manifest is not None and "made_by" in manifest:
        source, own = manifest["pool"]["source"], [*_scores_of_candidates(path), path]
    else:
        source, own = _recorded_scores(record_of(path)), []
    first, folders = _source_and_folders(source) if source else (scores, [])
    return first, [*folders, *own]


def _scores_of_candidates(folder: Path) -> list[Path]:
    """The scoring runs by which the candidates of this one were selected, if they are still there."""
    candidates = (read_json(folder / "summary.json") or {}).get("candidates", {})
    named = [Path(name).expanduser() for name in candidates.get("scores", [])]
    return [path for path in named if (path / "summary.json").exists()]


def _steps_of_run(steps: dict[str, dict[str, Any]], last: dict[str, Any], run: Path) -> Iterator[Step]:
    """The steps of a run behind its selection `last`: those whose output it reads, directly or indirectly."""
    behind, inputs = [last], set(texts_of(last))
    while more := [s for s in steps.values() if s not in behind and {s.get("output"), s.get("output_dir")} & inputs]:
        behind += more
        inputs |= {text for step in more for text in texts_of(step)}
    for name, settings in steps.items():
        if settings not in behind:
            continue
        if settings["command"] in ("score", "index"):
            yield read_step(settings["output_dir"])
        elif settings["command"] in ("select", "warm-up"):
            marker = read_json(run / ".steps" / f"{name}.json")
            if marker is not None and "seconds" in marker:  # the step is finished
                yield Step(name, cost={"seconds": marker["seconds"]})


def _is_same_path(name: str, path: Path) -> bool:
    return Path(name).expanduser().resolve() == path.resolve()
