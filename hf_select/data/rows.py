"""Splits the rows of a long job into chunks, for datasets and for streams."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from datasets import Dataset, Features, IterableDataset, Value, concatenate_datasets
from datasets.table import InMemoryTable

from hf_select.data import columns
from hf_select.data.bad_rows import BadRow
from hf_select.data.conversation import READ_COLUMNS, Conversation, conversations
from hf_select.data.exact_json import columns_of


@dataclass
class Pool:
    """The rows of a dataset in chunks. Each row has a `row_id`, by default its row number.

    Args:
        compared: columns of the fingerprint, by default all.
    """

    dataset: Dataset
    chunk_rows: int
    compared: list[str] | None = None
    num_chunks: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        _check(self.chunk_rows)
        if len(self.dataset) == 0:
            raise ValueError("the dataset is empty; there is nothing to do.")
        self.num_chunks = -(-len(self.dataset) // self.chunk_rows)
        if columns.ROW_ID not in self.dataset.column_names:
            self.dataset = _numbered(self.dataset, 0)
        ids = cast(pa.ChunkedArray, self.dataset.with_format("arrow")[columns.ROW_ID])
        distinct = pc.count_distinct(ids, mode="all").as_py()  # pyright: ignore[reportAttributeAccessIssue]
        if distinct != len(self.dataset) or ids.null_count:
            raise ValueError(
                f"row_id must be unique; it has {distinct} values for {len(self.dataset)} rows and "
                f"{ids.null_count} nulls. Fix it, or drop the column to use row numbers."
            )

    @property
    def rows(self) -> int | None:
        """Number of rows; None if unknown."""
        return len(self.dataset)

    def fingerprint(self) -> str | None:
        """Hash of all rows; None if they cannot be read before the job."""
        return pool_fingerprint(self.dataset.select_columns(self.compared) if self.compared else self.dataset)

    def chunks(
        self, wanted: Callable[[int], bool], seen: Callable[[int, Dataset], None]
    ) -> Iterator[tuple[int, int, Dataset]]:
        """(chunk, first row, rows) of each chunk for which `wanted(chunk)` is true, evaluated just before the chunk is
        read. A stream calls `seen` with the rows of every chunk that it reads."""
        for chunk in range(self.num_chunks):
            if wanted(chunk):
                start = chunk * self.chunk_rows
                yield chunk, start, self.dataset.select(range(start, min(start + self.chunk_rows, len(self.dataset))))


@dataclass
class Stream(Pool):
    """The rows of an IterableDataset in chunks. Every process reads the whole stream and keeps one chunk in memory,
    since reading is cheap compared with scoring. The row number is the position in the stream.
    """

    dataset: IterableDataset  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        _check(self.chunk_rows)
        self._features: Features | None = self.dataset.features

    @property
    def rows(self) -> int | None:
        """None: the length of a stream is unknown."""
        return None

    def fingerprint(self) -> str | None:
        """None: a stream cannot be hashed before it is read."""
        return None

    def chunks(
        self, wanted: Callable[[int], bool], seen: Callable[[int, Dataset], None]
    ) -> Iterator[tuple[int, int, Dataset]]:
        self.num_chunks, start = 0, 0
        for table in self.dataset.with_format("arrow").iter(batch_size=self.chunk_rows):
            rows = self._typed(Dataset(InMemoryTable(cast(pa.Table, table))), start)
            rows = rows if columns.ROW_ID in rows.column_names else _numbered(rows, start)
            chunk, first = self.num_chunks, start
            self.num_chunks, start = chunk + 1, start + len(rows)
            seen(chunk, rows)
            if wanted(chunk):
                yield chunk, first, rows
        if start == 0:
            raise ValueError("the dataset is empty; there is nothing to do.")

    def _typed(self, rows: Dataset, start: int) -> Dataset:
        """Cast rows to the column types of the stream; if it declares none, to those of the first chunk."""
        if self._features is None:
            self._features = rows.features
        try:
            return rows if rows.features == self._features else rows.cast(self._features)
        except (ValueError, pa.ArrowInvalid) as error:
            raise ValueError(
                f"the columns or types of the rows from {start:,} on differ from those of the first chunk "
                f"({str(error).splitlines()[0]}). Declare the features of the stream."
            ) from None


def _check(chunk_rows: int) -> None:
    if chunk_rows < 1:
        raise ValueError(f"chunk_rows is {chunk_rows}; it must be at least 1.")


def _numbered(dataset: Dataset, first: int) -> Dataset:
    ids = range(first, first + len(dataset))
    numbers = Dataset.from_dict({columns.ROW_ID: ids}, Features({columns.ROW_ID: Value("int64")}))
    return concatenate_datasets([dataset, numbers], axis=1)


def readable(dataset: Dataset) -> Dataset:
    """Keep the columns that conversations are parsed from. Without any, keep all, so that the error can list them."""
    wanted = [name for name in dataset.column_names if name in READ_COLUMNS]
    return dataset.select_columns(wanted) if wanted else dataset


def conversations_of(dataset: Dataset, batch_rows: int = 1000) -> Iterator[Conversation | BadRow]:
    """Each row as a Conversation, or a BadRow with the reason why it cannot be read, a batch at a time. JSON columns
    are decoded exactly, as in `score` and `map`; those of `dataset[:]` lose the nulls that their author wrote."""
    rows = readable(dataset)
    table = rows.with_format("arrow")
    for start in range(0, max(len(rows), 1), batch_rows):  # an empty dataset is checked for its columns too
        yield from conversations(columns_of(table[start : start + batch_rows], rows.features))


def pool_fingerprint(dataset: Dataset) -> str:
    """Hash of all rows and column types. It depends on the content only, not on its file or the process."""
    digest = xxhash.xxh3_128()
    digest.update(str(sorted((name, str(kind)) for name, kind in dataset.features.items())).encode())
    for start in range(0, len(dataset), 4096):
        rows = range(start, min(start + 4096, len(dataset)))
        table = cast(pa.Table, dataset.with_format("arrow").select(rows)[:])
        # `take` copies into new buffers: the buffers of a slice contain bytes of adjacent rows.
        table = table.select(sorted(table.column_names)).take(pa.array(range(len(rows)))).combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.replace_schema_metadata(None).schema) as writer:
            writer.write_table(table.replace_schema_metadata(None))
        digest.update(sink.getvalue())
    return digest.hexdigest()
