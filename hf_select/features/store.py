"""A pool index: the vectors of a pool on disk, computed once and compared with any later queries.

folder/
  manifest.json              rows, settings and model; resuming with others raises an error
  vectors/part-00000.arrow   row_id, vector (fixed-size list), length, reason; memory-mapped, `datasets` reads it
  vectors/probe.json         the model that ran, and its vectors of two fixed texts
  vectors/moments.npz        mean, covariance and row count of the vectors, once a scorer has asked for them
  index.json                 dimensions, counts, cost; written at the end

Vectors are stored at length 1 as float32 or float16; as int8, each number in steps of 1/127 of the row's largest; or
as 1bit, the numbers' signs (eight a byte, the first highest). Each part of a vector (a layer) has the same share of
that length; its own length before that is stored beside it, because a mean is one of vectors and not of directions.

The probe checks an index against a model on another machine, where paths and file times differ: the same model,
template and pooling give the same vectors.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
from datasets import Dataset

from hf_select.atomic import write_json
from hf_select.data import columns
from hf_select.data.bad_rows import BadRow, map_rows, on_readable
from hf_select.data.conversation import Conversation
from hf_select.data.rows import Pool, conversations_of, pool_fingerprint, readable
from hf_select.features.featurizer import Feature, Featurizer, unit
from hf_select.features.geometry import Geometry, Moments
from hf_select.jobs.chunked_job import ChunkedJob, WhenRunning
from hf_select.jobs.run_folder import changed_settings, identity_of
from hf_select.models.template_day import began_on
from hf_select.validation import check_choice


logger = logging.getLogger(__name__)

StoredType = Literal["float32", "float16", "int8", "1bit"]

PROBE = [
    Conversation([{"role": role, "content": content} for role, content in turns])
    for turns in (
        [("user", "How many legs do three spiders have?"), ("assistant", "Three spiders have 3 * 8 = 24 legs.")],
        [("user", "Hello!"), ("assistant", "Hi."), ("user", "Ein Wort, bitte."), ("assistant", "Gern: Brot.")],
    )
]

# Relative distance of a probe's vectors between kernels and machines; another template moves them by 0.08.
_SAME_VECTOR = {"float32": 1e-3}
_SAME_VECTOR_HALF_PRECISION = 0.03

# The probe compares these.
_PROBED = ("weights", "tokenizer", "adapter", "encoder", "dtype", "checkpoints")


@dataclass
class PoolIndex:
    """Unit vectors of every row of a pool, on disk. `build` computes them, `open` reads them.

    A row without a vector keeps its position and has a reason.
    """

    folder: Path
    manifest: dict[str, Any]
    summary: dict[str, Any]

    @classmethod
    def build(
        cls,
        dataset: Dataset,
        featurizer: Featurizer,
        folder: str | os.PathLike,
        *,
        stored_dtype: StoredType = "float16",
        chunk_rows: int = 1000,
        source: str | None = None,
        when_running: WhenRunning = "refuse",
    ) -> "PoolIndex":
        """Encode every row and store the vectors. The same call resumes a killed build; several processes share the
        work, as in `score`.

        Args:
            featurizer: HiddenStates, SentenceEmbeddings, or the `featurizer` of a scorer.
            stored_dtype: of the numbers on disk. float16 takes 2 bytes a dimension and moves cosines by about 1e-4;
                int8 (1 byte) and 1bit (an eighth) are for projected gradients, whose dimensions have similar sizes.
            chunk_rows: rows that are encoded and written together.
            source: where the rows came from, for the manifest.
            when_running: what to do if another job is running in the folder: refuse, or join it.
        Raises: ValueError if the folder holds an index of other rows, another model or other settings.
        """
        check_choice("stored_dtype", stored_dtype, StoredType)
        folder = Path(folder).expanduser()
        for reader in featurizer.readers():
            reader.begin_on(began_on(folder / "manifest.json"))
        stored = {"stored_dtype": stored_dtype}
        made_by, settings = {**featurizer.identity(), **stored}, {**featurizer.described(), **stored}
        identity = identity_of(type(featurizer).__name__, made_by, settings)
        pool = Pool(dataset, chunk_rows, compared=readable(dataset).column_names)
        job = ChunkedJob(pool, folder, identity, "vectors", ".arrow", "an index", "index.json")
        probe = job.folder / "vectors" / "probe.json"

        def load() -> None:
            featurizer.load()
            here = _run_probe(featurizer)
            if probe.exists():
                _refuse_other_vectors(json.loads(probe.read_text()), here, job.folder)
            else:
                write_json(probe, here)

        def write(path: Path, first_row: int, rows: Dataset) -> dict[str, float]:
            return _write_vectors(path, rows, featurizer, stored_dtype)

        job.open(source, when_running)
        job.run(write, load, lambda: _write_summary(job), "index")
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | os.PathLike) -> "PoolIndex":
        """A finished index. Raises: ValueError if there is none."""
        folder = Path(folder).expanduser()
        if not (folder / "vectors").is_dir():
            raise ValueError(f'no index in "{folder}"; make one with hf-select index --output-dir {folder} ...')
        if not (folder / "index.json").exists():
            raise ValueError(f'the index in "{folder}" is not finished; run the same hf-select index command again.')
        manifest, summary = (
            json.loads((folder / name).read_text(encoding="utf-8")) for name in ("manifest.json", "index.json")
        )
        return cls(folder, manifest, summary)

    def __len__(self) -> int:
        return self.manifest["pool"]["rows"]

    @property
    def dimensions(self) -> int:
        """Numbers per vector."""
        return self.summary["dimensions"]

    @property
    def parts(self) -> int:
        """Equal parts of a vector, such as layers."""
        return self.summary.get("parts", 1)

    @property
    def day(self) -> str | None:
        """The day that the rows' chat template wrote, if it asks for one."""
        return began_on(self.folder / "manifest.json")

    @property
    def _stored_dtype(self) -> str:
        return self.manifest["made_by"]["settings"]["stored_dtype"]

    @property
    def _stored_width(self) -> int:
        return -(-self.dimensions // 8) if self._stored_dtype == "1bit" else self.dimensions

    def check(self, dataset: Dataset | None = None, featurizer: Featurizer | None = None) -> None:
        """Check the index against a dataset and against the featurizer of the queries.

        Raises: ValueError if the rows, the settings or the model differ; the message says which.
        """
        if dataset is not None:
            pool = self.manifest["pool"]
            if len(dataset) != pool["rows"] or pool_fingerprint(readable(dataset)) != pool["fingerprint"]:
                raise ValueError(
                    f'the index in "{self.folder}" is one of other rows ({pool["rows"]} there, {len(dataset)} here); '
                    "give the dataset it was made of, or build another index."
                )
        if featurizer is None:
            return
        for reader in featurizer.readers():
            reader.begin_on(self.day)
        made_by = self.manifest["made_by"]
        if "identity" not in made_by:
            raise ValueError(f'the index in "{self.folder}" is of an earlier version of hf_select; build it again.')
        here = identity_of(type(featurizer).__name__, featurizer.identity(), {})
        there = {name: value for name, value in made_by["identity"].items() if name != "stored_dtype"}
        differing = changed_settings(_without_probed(there), _without_probed(here["identity"]))
        if made_by["name"] != here["name"]:
            differing = [f"{made_by['name']} there, {here['name']} here"]
        if differing:
            raise ValueError(
                f'the index in "{self.folder}" was made with other settings ({"; ".join(differing)}); '
                "use the same settings for the queries, or build another index."
            )
        featurizer.load()
        probe = json.loads((self.folder / "vectors" / "probe.json").read_text(encoding="utf-8"))
        _refuse_other_vectors(probe, _run_probe(featurizer), self.folder)

    def check_comparable(self, other: "PoolIndex") -> None:
        """Raise ValueError if another index was made by another model or with other settings, by its probe."""
        here, there = (json.loads((i.folder / "vectors" / "probe.json").read_text("utf-8")) for i in (self, other))
        _refuse_other_vectors(there, here, other.folder)

    def read(self, rows: range) -> list[Feature | BadRow]:
        """A Feature for each of these rows, of its length before it was stored, or the BadRow with the reason why it
        has none."""
        return [
            Feature(vector, note) if valid else BadRow(note)
            for vectors, has_vector, table in self._blocks(rows)
            for vector, valid, note in zip(
                _of_length(vectors, _lengths(table)), has_vector, table["reason"].to_pylist(), strict=True
            )
        ]

    def moments(self, covariance: bool = False) -> Moments:
        """Mean and, on request, covariance of the vectors before they were scaled to length 1.

        The first call reads all vectors once, a part at a time, and keeps the result in the index.
        Raises: ValueError for an index without lengths (of an earlier version), or with fewer than two vectors.
        """
        path = self.folder / "vectors" / "moments.npz"
        if path.exists():
            known = Moments.load(path)
            if known.covariance is not None or not covariance:
                return known
        if any("length" not in table.column_names for _, table in self._tables(range(min(1, len(self))))):
            raise ValueError(
                f'the index in "{self.folder}" is of an earlier version of hf_select, without the lengths of vectors '
                "that centring needs; build it again."
            )
        moments = Moments.of(
            (_of_length(vectors, _lengths(table))[there] for vectors, there, table in self._blocks(range(len(self)))),
            self.parts,
            covariance,
        )
        try:
            moments.save(path)
        except OSError as error:
            logger.warning('the mean of the vectors could not be kept in "%s": %s.', path, error)
        return moments

    def to_numpy(self, rows: range | None = None) -> np.ndarray:
        """Unit vectors (n, d) float32 of these rows (default all), NaN for a row that has none."""
        blocks = [np.empty((0, self.dimensions), dtype=np.float32)]
        for vectors, has_vector, _ in self._blocks(range(len(self)) if rows is None else rows):
            vectors[~has_vector] = np.nan
            blocks.append(vectors)
        return np.concatenate(blocks)

    def row_ids(self) -> list[Any]:
        """The row_id of every row."""
        return [row_id for _, table in self._tables(range(len(self))) for row_id in table[columns.ROW_ID].to_pylist()]

    def _tables(self, rows: range) -> Iterator[tuple[int, pa.Table]]:
        """(first row, memory-mapped slice) of each part that holds some of the rows."""
        size, start = self.manifest["chunk_rows"], rows.start
        while start < rows.stop:
            part = start // size
            stop = min(rows.stop, (part + 1) * size)
            path = self.folder / "vectors" / f"part-{part:05d}.arrow"
            if not path.exists():
                raise ValueError(f'"{path}" does not exist; run the same hf-select index command again to restore it.')
            table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
            width, expected = table.schema.field("vector").type.list_size, self._stored_width
            if width != expected:
                raise ValueError(f'"{path}" holds vectors of {width} numbers, the index of {expected}.')
            yield start, table.slice(start - part * size, stop - start)
            start = stop

    def _blocks(self, rows: range) -> Iterator[tuple[np.ndarray, np.ndarray, pa.Table]]:
        """(vectors (n, d), which rows have one (n,), their table) of each part that holds some of the rows."""
        for start, table in self._tables(rows):
            vectors = _restored(_stored_vectors(table), self._stored_dtype, self.dimensions)
            has_vector = np.array(table["vector"].is_valid().to_pylist(), dtype=bool)
            bad = np.flatnonzero(has_vector & ~np.isfinite(vectors).all(axis=1))
            if len(bad):
                part = self.folder / "vectors" / f"part-{(start + bad[0]) // self.manifest['chunk_rows']:05d}.arrow"
                raise ValueError(
                    f'the stored vector of row {start + bad[0]} is not finite: "{part}" is damaged. Delete that file '
                    "and run the same hf-select index command again; only that file is computed again."
                )
            yield vectors, has_vector, table


# --------------------------------------------------------------------------------------------------------------------


def _write_vectors(path: Path, rows: Dataset, featurizer: Featurizer, dtype: str) -> dict[str, float]:
    usage, parsed = featurizer.usage(), list(conversations_of(rows))
    features: list[Feature | BadRow] = on_readable(parsed, featurizer)
    if dtype == "1bit":
        features = map_rows(_not_zero, features)
    has_vector = np.array([isinstance(feature, Feature) for feature in features])
    size = featurizer.details()["dimensions"]
    vectors = np.zeros((len(features), size), dtype=np.float32)
    lengths = np.zeros((len(features), featurizer.parts), dtype=np.float32)
    if has_vector.any():
        raw = np.stack([f.vector for f in features if isinstance(f, Feature)])
        vectors[has_vector] = Geometry(featurizer.parts)(raw)
        lengths[has_vector] = np.linalg.norm(raw.reshape(len(raw), featurizer.parts, -1), axis=2)
    values = _shortened(vectors, dtype)
    table = pa.table(
        {
            columns.ROW_ID: rows[columns.ROW_ID][:],
            "vector": pa.FixedSizeListArray.from_arrays(
                pa.array(values.ravel()), values.shape[1], mask=pa.array(~has_vector)
            ),
            "length": pa.FixedSizeListArray.from_arrays(
                pa.array(lengths.ravel()), lengths.shape[1], mask=pa.array(~has_vector)
            ),
            "reason": [f.note if isinstance(f, Feature) else str(f) for f in features],
        }
    )
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return {name: value - usage.get(name, 0) for name, value in featurizer.usage().items()}


def _not_zero(feature: Feature) -> Feature:
    if not feature.vector.any():
        raise BadRow("its vector is zero")
    return feature


def _shortened(vectors: np.ndarray, dtype: str) -> np.ndarray:
    """Unit vectors (n, d) as they are stored, (n, d) or, as bits, (n, d / 8)."""
    if dtype == "1bit":
        return np.packbits(vectors >= 0, axis=1)
    if dtype == "int8":
        largest = np.abs(vectors).max(axis=1, keepdims=True)
        return np.rint(vectors * (127 / np.where(largest == 0, 1, largest))).astype(np.int8)
    return vectors.astype(dtype)


def _restored(stored: np.ndarray, dtype: str, dimensions: int) -> np.ndarray:
    """(n, d) float32 of length 1."""
    if dtype == "1bit":
        return unit(2.0 * np.unpackbits(stored, axis=1, count=dimensions) - 1)
    return unit(stored)


def _of_length(vectors: np.ndarray, lengths: np.ndarray | None) -> np.ndarray:
    """Vectors (n, d) whose parts have these lengths (n, p); unchanged if the index has none."""
    if lengths is None:
        return vectors
    parts = unit(vectors.reshape(len(vectors), lengths.shape[1], -1))
    return (parts * lengths[:, :, None]).reshape(len(vectors), -1)


def _lengths(table: pa.Table) -> np.ndarray | None:
    """(n, p) of a table's vectors, part by part; an index of an earlier version has none."""
    return _lists(table, "length") if "length" in table.column_names else None


def _stored_vectors(table: pa.Table) -> np.ndarray:
    """(n, numbers a row) of a table's vectors as they are on disk; rows without one are zeros."""
    return _lists(table, "vector")


def _lists(table: pa.Table, name: str) -> np.ndarray:
    """(n, size) of a column of lists of one size."""
    column = cast(Any, table[name].combine_chunks())
    size = column.type.list_size
    flat = column.values.to_numpy(zero_copy_only=False)[column.offset * size : (column.offset + len(column)) * size]
    return flat.reshape(-1, size)


def _write_summary(job: ChunkedJob) -> None:
    cost, reasons, with_vector, rows = Counter(), Counter(), 0, 0
    for chunk in range(job.pool.num_chunks):
        cost.update(cast(Any, job.record(chunk))["cost"])
        table = pa.ipc.open_stream(pa.memory_map(str(job.part(chunk)))).read_all()
        valid = table["vector"].is_valid().to_pylist()
        with_vector, rows = with_vector + sum(valid), rows + len(valid)
        reasons.update(reason for reason, there in zip(table["reason"].to_pylist(), valid, strict=True) if not there)
    probe = json.loads((job.folder / "vectors" / "probe.json").read_text(encoding="utf-8"))
    summary = {
        "rows": rows,
        "with_vector": with_vector,
        "reasons": dict(reasons.most_common()),
        "dimensions": probe["dimensions"],
        "parts": probe["parts"],
        "cost": dict(cost),
    }
    write_json(job.folder / job.summary, summary)


def _run_probe(featurizer: Featurizer) -> dict[str, Any]:
    """The details of the featurizer, and the unit vectors of the probe texts (or why one has none)."""
    features = featurizer(PROBE)
    vectors = [str(f) if isinstance(f, BadRow) else unit(f.vector).astype(float).tolist() for f in features]
    return {**featurizer.details(), "parts": featurizer.parts, "vectors": vectors}


def _refuse_other_vectors(there: dict[str, Any], here: dict[str, Any], folder: Path) -> None:
    types = {there["dtype"], here["dtype"]}
    allowed = max(_SAME_VECTOR.get(kind, _SAME_VECTOR_HALF_PRECISION) for kind in types)
    for mine, theirs in zip(here["vectors"], there["vectors"], strict=True):
        if isinstance(mine, str) or isinstance(theirs, str):
            same, how = mine == theirs, "a text that one can encode and the other cannot"
        elif len(mine) != len(theirs):
            same, how = False, f"{len(theirs)} dimensions there, {len(mine)} here"
        else:
            distance = float(np.linalg.norm(np.subtract(mine, theirs)))
            same, how = distance <= allowed, f"the same text lies {distance:.2g} apart (unit vectors)"
        if not same:
            template = there.get("template_sha256") != here.get("template_sha256")
            what = "another chat template" if template else "another model"
            raise ValueError(
                f'the index in "{folder}" was made with {what}: {how}. It was made by {there["model"]}'
                f"{' at commit ' + there['commit'] if there.get('commit') else ''}; use that, or build another index."
            )


def _without_probed(identity: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_probed(value) if isinstance(value, dict) else value
        for name, value in identity.items()
        if name not in _PROBED
    }
