"""Loads rows from a local file, a folder, a saved dataset, the output folder of hf-select score, or the Hub."""

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
    """Load a dataset from a file (JSON, JSONL, CSV, TSV, Parquet, also compressed), a folder of such files, a saved
    dataset, the output folder of hf-select score, or the Hub.

    A stream is read on demand, without downloading or caching it first. For local files, a first pass over the file
    determines the column types.

    Args:
        source: path or Hub id; "ID#SPLIT" or "ID#CONFIG/SPLIT" also selects the split and the configuration.
        revision: branch, tag or commit on the Hub.
        config: name of the configuration, if the dataset has several.
    Raises: ValueError that names what is missing and how to fix it.
    """
    address, (source, split, config) = source, located(source, split, config)
    path = Path(source).expanduser()
    if path.is_file() and address != source:
        raise ValueError(f'"{source}" is a file, which has no splits; leave out {address.removeprefix(source)}.')
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
    """Rename columns, each in all datasets that have it.

    Raises: ValueError if no dataset has a column, or if a new name already exists.
    """
    datasets = list(datasets)
    for old, new in (rename or {}).items():
        # A stream may not know its columns before its first row.
        column_names = [dataset.column_names or list(next(iter(dataset))) for dataset in datasets]
        if not any(old in names for names in column_names):
            known = dict.fromkeys(name for names in column_names for name in names)
            raise columns.missing_column(old, known, "It cannot be renamed: check --rename.")
        for i, names in enumerate(column_names):
            if old in names and new in names:
                raise ValueError(f'cannot rename "{old}" to "{new}": the dataset already has a column of that name.')
            if old in names:
                datasets[i] = datasets[i].rename_column(old, new)
    return datasets


def read_named(
    sources: Mapping[str, str] | None, split: str = "train", rename: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Load several datasets, given by name -> path or id, and rename their columns as in `renamed`."""
    datasets = {name: read_dataset(source, split) for name, source in (sources or {}).items()}
    return dict(zip(datasets, renamed(datasets.values(), rename if datasets else None), strict=True))


def as_list(scores: str | list[str]) -> list[str]:
    """One source of scores or several, as a list."""
    return scores if isinstance(scores, list) else [scores]


def read_scores(scores: str | list[str], split: str = "train") -> Any:
    """Load scored rows from one source, or from several joined by row_id."""
    from hf_select.data.scores import join_scores

    return join_scores({place: read_dataset(place, split) for place in as_list(scores)})


def located(source: str, split: str = "train", config: str | None = None) -> tuple[str, str, str | None]:
    """(path or id, split, configuration) of "ID", "ID#SPLIT" or "ID#CONFIG/SPLIT". What follows # takes precedence."""
    name, _, where = source.partition("#")
    if not where or Path(source).expanduser().exists():
        return source, split, config
    its_config, _, its_split = where.rpartition("/")
    return name, its_split, its_config or config


def commit_of(dataset: Any) -> str | None:
    """The commit of a Hub dataset, parsed from the URLs of its files."""
    for address in (dataset.info.download_checksums or {}) if dataset.info else {}:
        if match := re.search(r"@([0-9a-f]{40})/", address):
            return match.group(1)
    return None


def _from_file(path: Path, stream: bool) -> Any:
    if kind_of(path) is None:
        raise ValueError(f'"{path}" has an unknown file extension; supported: {KNOWN}.')
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
        if (path / "scored").is_dir():  # the output folder of a scoring run
            from hf_select.data.scores import read_scored

            return _streamed(read_scored(path), stream)
        if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            saved = load_from_disk(str(path))  # memory-mapped: rows are read on demand
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
        pattern = " datasets treats the *, ? or [ in its name as a pattern." if set("*?[") & set(source) else ""
        raise ValueError(f'folder "{source}" has no data files ({KNOWN}).{pattern} Name a file.') from error
    except (DatasetNotFoundError, ConnectionError) as error:
        raise ValueError(
            f'no file or folder "{source}", and no dataset of that name on the Hub ({str(error).splitlines()[0]}).'
        ) from error
    except DatasetGenerationError as error:
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        raise ValueError(
            f'cannot read "{source}" ({cause}). Give all its files the same columns and types.'
        ) from error
    except ValueError as error:  # the configuration is missing or unknown
        known = re.search(r"(?i)available(?: configs)?: \[(.*)\]", str(error))
        if known is None:
            raise
        names = known[1].replace("'", "").split(", ")
        what = "has several configurations" if config is None else f'has no configuration "{config}"'
        example = f"{split}/train" if split in names else f"{names[0]}/{split}"
        raise ValueError(f'"{source}" {what} ({", ".join(names)}). Name one: {source}#{example}') from error


def _refuse_uppercase_endings(folder: Path) -> None:
    """Raise ValueError for a file such as "X.JSONL", which `datasets` ignores in a folder."""
    for file in sorted(folder.rglob("*")):
        ending = next((suffix for suffix in file.suffixes if KINDS.get(suffix.lower())), "")
        if kind_of(file) and ending != ending.lower() and file.is_file():
            renamed_to = file.name.replace(ending, ending.lower())
            raise ValueError(
                f'"{folder}" contains "{file.name}", which datasets ignores for its uppercase extension. Rename it to '
                f'"{renamed_to}".'
            )


def _are_read_here(folder: str, files: list[str], files_of_all_splits: list[str]) -> bool:
    """Whether this package reads the files of a folder. If they have different formats, `datasets` silently reads only
    the most common one, together with backup copies such as "a.jsonl.bak".

    Raises: ValueError if the data files, backup copies included, have different formats.
    """
    kinds = {_family(file) for file in files}
    if kinds == {None}:
        return False
    siblings = {file for each in files for file in Path(each).parent.iterdir() if file.name not in FILES_TO_IGNORE}
    left_out = {str(file) for file in siblings if not file.name.startswith((".", "_"))} - {*files_of_all_splits}
    first = next(file for file in files if _family(file))
    others = [*files, *sorted(file for file in left_out if _family(file))]
    if other := next((file for file in others if _family(file) != _family(first)), None):
        raise ValueError(
            f'"{folder}" contains "{Path(first).name}" and "{Path(other).name}", which have different formats. Name '
            "one of them, or move the files that do not belong to this dataset."
        )
    return True


def _family(file: str) -> str | None:
    """The format family: JSON for JSON and JSON lines, CSV for CSV and TSV; None for other files."""
    kind = kind_of(file)
    return {"jsonl": "json", "tsv": "csv"}.get(kind, kind) if kind else None


def _streamed(dataset: Dataset, stream: bool) -> Any:
    return dataset.to_iterable_dataset() if stream else dataset


def _split(dataset: Any, split: str, source: str, config: str | None = None) -> Dataset:
    if split not in dataset:
        example = "/".join(filter(None, (config, next(iter(dataset)))))
        raise ValueError(
            f'"{source}" has no split "{split}"; it has {", ".join(dataset)}. Choose one with --split, or in '
            f"the name: {source}#{example}"
        )
    return dataset[split]
