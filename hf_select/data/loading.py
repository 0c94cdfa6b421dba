"""Rows from wherever they lie: a local file, a saved dataset, the folder of hf-select score, the Hub."""

import glob
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset, load_dataset_builder, load_from_disk
from datasets.data_files import FILES_TO_IGNORE, EmptyDatasetError
from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetNotFoundError

from hf_select.data import columns, compression
from hf_select.data.row_files import KINDS, KNOWN, RowFiles, kind_of


def read_dataset(
    source: str,
    split: str = "train",
    rename: dict[str, str] | None = None,
    limit: int | None = None,
    stream: bool = False,
    revision: str | None = None,
    config: str | None = None,
) -> Any:
    """A dataset from a file (JSON, JSONL, CSV, TSV, Parquet, also compressed), a folder of such files, a saved
    dataset, the folder of hf-select score or the Hub (there at a revision, and of several configurations one by name).

    As a stream it is read while it is used, and nothing is downloaded or kept before; of a file on this machine the
    types are read first.

    Args:
        source: its path or id; "ID#SPLIT" or "ID#CONFIG/SPLIT" names the split, and the configuration, along with it.
    Raises: ValueError that says what is missing and what to do.
    """
    said, (source, split, config) = source, located(source, split, config)
    path = Path(source).expanduser()
    if path.is_file() and said != source:
        raise ValueError(f'"{source}" is a file, which has no splits; leave out {said.removeprefix(source)}.')
    if path.is_file():
        dataset = _from_file(path, stream)
    else:
        dataset = _from_folder_or_hub(source, path, split, stream, revision, config)
    (dataset,) = renamed([dataset], rename)
    if limit is not None:
        if limit < 1:
            raise ValueError(f"limit is {limit}; it must be at least 1.")
        dataset = dataset.take(limit) if stream else dataset.select(range(min(limit, len(dataset))))
    if not stream and len(dataset) == 0:
        raise ValueError(f'"{source}" is empty; there is nothing to do.')
    return dataset


def renamed(datasets: Iterable[Any], rename: Mapping[str, str] | None) -> list[Any]:
    """The datasets with columns by their new names, each in all that have it.

    Raises: ValueError for a column that none has, or for a new name that is taken.
    """
    datasets = list(datasets)
    for old, new in (rename or {}).items():
        there = [dataset.column_names or list(next(iter(dataset))) for dataset in datasets]  # a stream may not know
        if not any(old in names for names in there):
            known = dict.fromkeys(name for names in there for name in names)
            raise columns.missing_column(old, known, "It was to be renamed: check --rename.")
        for i, names in enumerate(there):
            if old in names and new in names:
                raise ValueError(f'cannot rename "{old}" to "{new}": the dataset has a column of that name already.')
            if old in names:
                datasets[i] = datasets[i].rename_column(old, new)
    return datasets


def read_named(
    sources: Mapping[str, str] | None, split: str = "train", rename: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Name -> the dataset at its path or id; columns as in `renamed`."""
    found = {name: read_dataset(source, split) for name, source in (sources or {}).items()}
    return dict(zip(found, renamed(found.values(), rename if found else None), strict=True))


def as_list(scores: str | list[str]) -> list[str]:
    """One place of scores or several, as a list."""
    return scores if isinstance(scores, list) else [scores]


def read_scores(scores: str | list[str], split: str = "train") -> Any:
    """Scored rows from one place, or from several, joined by row_id."""
    from hf_select.data.scores import join_scores

    return join_scores({place: read_dataset(place, split) for place in as_list(scores)})


def located(source: str, split: str = "train", config: str | None = None) -> tuple[str, str, str | None]:
    """(path or id, split, configuration) of "ID", "ID#SPLIT" or "ID#CONFIG/SPLIT"; what follows # takes precedence."""
    name, _, where = source.partition("#")
    if not where or Path(source).expanduser().exists():
        return source, split, config
    its_config, _, its_split = where.rpartition("/")
    return name, its_split, its_config or config


def commit_of(dataset: Any) -> str | None:
    """The commit of a dataset of the Hub, from the addresses of its files."""
    for address in (dataset.info.download_checksums or {}) if dataset.info else {}:
        if found := re.search(r"@([0-9a-f]{40})/", address):
            return found.group(1)
    return None


def _from_file(path: Path, stream: bool) -> Any:
    if kind_of(path) is None:
        raise ValueError(f'"{path}" has no ending that is known here; they are {KNOWN}.')
    if path.stat().st_size == 0:
        raise ValueError(f'"{path}" is empty; there is nothing to do.')
    return _from_files([str(path)], stream)


def _from_files(files: list[str], stream: bool) -> Any:
    builder = RowFiles(data_files={"train": [glob.escape(file) for file in files]})
    if stream:
        return builder.as_streaming_dataset("train")
    try:
        builder.download_and_prepare()
    except DatasetGenerationError as error:
        raise (error.__cause__ if isinstance(error.__cause__, ValueError) else error) from None
    return builder.as_dataset("train")


def _from_folder_or_hub(
    source: str, path: Path, split: str, stream: bool, revision: str | None, config: str | None
) -> Any:
    if path.is_dir():
        if (path / "scored").is_dir():  # a finished scoring run: its rows with their scores
            from hf_select.data.scores import read_scored

            return _streamed(read_scored(path), stream)
        if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            saved = load_from_disk(str(path))  # memory-mapped: nothing is read before its turn
            return _streamed(saved if isinstance(saved, Dataset) else _split(saved, split, source), stream)
    elif source.startswith((".", "/", "~")) or source.count("/") > 1 or path.suffix in (*KINDS, *compression.SUFFIXES):
        raise ValueError(f'no file or folder "{source}"; give a file ({KNOWN}), a saved dataset or a Hub id.')
    try:
        if path.is_dir():
            _refuse_uppercase_endings(path)
            data_files = load_dataset_builder(source, config).config.data_files or {}
            files = [str(file) for file in _split(data_files, split, source, config)]
            if _are_read_here(source, files, [str(file) for named in data_files.values() for file in named]):
                return _from_files(files, stream)
        return _split(load_dataset(source, config, streaming=stream, revision=revision), split, source, config)
    except (EmptyDatasetError, DataFilesNotFoundError) as error:
        pattern = " Its name has one of *?[, which datasets takes for a pattern." if set("*?[") & set(source) else ""
        raise ValueError(f'"{source}" is a folder without files of rows ({KNOWN}).{pattern} Name a file.') from error
    except (DatasetNotFoundError, ConnectionError) as error:
        raise ValueError(
            f'no file or folder "{source}", and no dataset of that name on the Hub ({str(error).splitlines()[0]}).'
        ) from error
    except DatasetGenerationError as error:
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        raise ValueError(
            f'cannot read "{source}" ({cause}). Give all its files the same columns and types.'
        ) from error
    except ValueError as error:  # no configuration is named, or one that is not there
        known = re.search(r"(?i)available(?: configs)?: \[(.*)\]", str(error))
        if known is None:
            raise
        names = known[1].replace("'", "").split(", ")
        what = "has several configurations" if config is None else f'has no configuration "{config}"'
        one = f"{split}/train" if split in names else f"{names[0]}/{split}"
        raise ValueError(f'"{source}" {what} ({", ".join(names)}). Name one: {source}#{one}') from error


def _refuse_uppercase_endings(folder: Path) -> None:
    """Raise ValueError for a file such as "X.JSONL": `datasets` does not see it in a folder."""
    for file in sorted(folder.rglob("*")):
        ending = next((suffix for suffix in file.suffixes if KINDS.get(suffix.lower())), "")
        if kind_of(file) and ending != ending.lower() and file.is_file():
            renamed_to = file.name.replace(ending, ending.lower())
            raise ValueError(
                f'"{folder}" holds "{file.name}", which would be left out for its uppercase ending. Rename it to '
                f'"{renamed_to}".'
            )


def _are_read_here(folder: str, files: list[str], files_of_all_splits: list[str]) -> bool:
    """Whether the files of a folder are of the kinds known here. `datasets` reads only the commonest of several kinds
    without a word, but with it copies such as "a.jsonl.bak".

    Raises: ValueError for a file of rows, or a copy, that does not belong with the others.
    """
    kinds = {_family(file) for file in files}
    if kinds == {None}:
        return False
    beside = {file for each in files for file in Path(each).parent.iterdir() if file.name not in FILES_TO_IGNORE}
    left_out = {str(file) for file in beside if not file.name.startswith((".", "_"))} - {*files_of_all_splits}
    first = next(file for file in files if _family(file))
    others = [*files, *sorted(file for file in left_out if _family(file))]
    if other := next((file for file in others if _family(file) != _family(first)), None):
        raise ValueError(
            f'"{folder}" holds "{Path(first).name}" and "{Path(other).name}", which are of different kinds. Name one '
            "of them, or move what are not rows of this dataset."
        )
    return True


def _family(file: str) -> str | None:
    """What is read as one kind: JSON with JSON lines, CSV with TSV."""
    kind = kind_of(file)
    return {"jsonl": "json", "tsv": "csv"}.get(kind, kind) if kind else None


def _streamed(dataset: Dataset, stream: bool) -> Any:
    return dataset.to_iterable_dataset() if stream else dataset


def _split(dataset: Any, split: str, source: str, config: str | None = None) -> Dataset:
    if split not in dataset:
        one = "/".join(filter(None, (config, next(iter(dataset)))))
        raise ValueError(
            f'"{source}" has no split "{split}"; it has {", ".join(dataset)}. Choose one with --split, or by the '
            f"name: {source}#{one}"
        )
    return dataset[split]
