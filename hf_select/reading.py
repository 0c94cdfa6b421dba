"""Rows from wherever they lie: a local file, a saved dataset, the folder of hf-select score, the Hub."""

import glob
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from datasets import Dataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from hf_select import columns


_READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_COMPRESSED = (".gz", ".zst", ".xz", ".bz2")


def read_dataset(
    source: str,
    split: str = "train",
    rename: dict[str, str] | None = None,
    limit: int | None = None,
    stream: bool = False,
    revision: str | None = None,
    config: str | None = None,
) -> Any:
    """A dataset from a file (JSON, JSONL, CSV, Parquet, also compressed), a saved dataset, the folder of hf-select
    score or the Hub (there at a revision, and of several configurations one by name); as a stream it is read while it
    is used, and nothing is downloaded or kept before.

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


def located(source: str, split: str = "train", config: str | None = None) -> tuple[str, str, str | None]:
    """(path or id, split, configuration) of "ID", "ID#SPLIT" or "ID#CONFIG/SPLIT"; what stands after # comes first."""
    name, _, where = source.partition("#")
    if not where or Path(source).expanduser().exists():
        return source, split, config
    its_config, _, its_split = where.rpartition("/")
    return name, its_split, its_config or config


def _from_file(path: Path, stream: bool) -> Any:
    suffixes = [suffix for suffix in path.suffixes if suffix not in _COMPRESSED]
    reader = _READERS.get(suffixes[-1] if suffixes else "")
    if reader is None:
        raise ValueError(f'"{path}" is no kind of file known here; give one of {", ".join(_READERS)}, also as .gz.')
    if path.stat().st_size == 0:
        raise ValueError(f'"{path}" is empty; there is nothing to do.')
    # In a CSV an empty field is an empty text, and "None" or "NA" are words: pandas would make nulls of them.
    options: dict[str, Any] = {"keep_default_na": False} if reader == "csv" else {}
    options["streaming"] = stream
    try:
        dataset = load_dataset(reader, data_files=glob.escape(str(path)), split="train", **options)
        # A Parquet file is read ahead of whoever reads slowly, up to its end (pyarrow 26); a row group is not.
        return cast(Any, dataset).reshard() if stream else dataset
    except (DatasetGenerationError, StopIteration, ValueError) as error:
        # A compressed file of no bytes, and one of no rows.
        if isinstance(error, StopIteration) or "corresponds to no data" in str(error):
            raise ValueError(f'"{path}" is empty; there is nothing to do.') from None
        cause = error.__cause__ or error
        raise ValueError(f'cannot read "{path}" as {reader}: {str(cause).splitlines()[0]}. Mend the file.') from error


def _from_folder_or_hub(
    source: str, path: Path, split: str, stream: bool, revision: str | None, config: str | None
) -> Any:
    if path.is_dir():
        if (path / "scored").is_dir():  # a finished scoring run: its rows with their scores
            from hf_select.inference.run import read_scored

            return _streamed(read_scored(path), stream)
        if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            saved = load_from_disk(str(path))  # memory-mapped: nothing is read before its turn
            return _streamed(saved if isinstance(saved, Dataset) else _split(saved, split, source), stream)
    elif source.startswith((".", "/", "~")) or source.count("/") > 1 or path.suffix in (*_READERS, *_COMPRESSED):
        raise ValueError(
            f'no file or folder "{source}"; give a {", ".join(_READERS)} file, a saved dataset or a Hub id.'
        )
    try:
        return _split(load_dataset(source, config, streaming=stream, revision=revision), split, source, config)
    except ValueError as error:  # no configuration is named, or one that is not there
        known = re.search(r"(?i)available(?: configs)?: \[(.*)\]", str(error))
        if known is None:
            raise
        names = known[1].replace("'", "").split(", ")
        what = "has several configurations" if config is None else f'has no configuration "{config}"'
        one = f"{split}/train" if split in names else f"{names[0]}/{split}"
        raise ValueError(f'"{source}" {what} ({", ".join(names)}). Name one: {source}#{one}') from error
    except (DatasetNotFoundError, ConnectionError) as error:
        raise ValueError(
            f'no file or folder "{source}", and no dataset of that name on the Hub ({str(error).splitlines()[0]}).'
        ) from error


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
