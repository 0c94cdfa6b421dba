"""Publish the output of hf-select generate or mix: GLAN's pairs, responses of models, or a mixture.

data/train-*.parquet     the rows
provenance.json          the record of the run, its sources with revisions and licences; hashes of all files
README.md                the card, see output_card.py

As with a selection, the same output gives the same files byte for byte, and a new version is one commit.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from hf_select._version import __version__
from hf_select.atomic import read_json, sha256_of, write_json
from hf_select.data import columns
from hf_select.hub.lookup import look_up_model, look_up_source
from hf_select.hub.output_card import OutputRecord, output_card
from hf_select.hub.records import License, ModelRecord, Origin, SourceRecord
from hf_select.hub.repository import PROVENANCE, build_folder, check_repo_id, push_files
from hf_select.hub.scrub import scrubbed


Kind = Literal["glan", "responses", "mixture"]
# kind -> file of the rows, file that only such a folder has, file of the record
_OUTPUT_FILES: dict[Kind, tuple[str, str, str]] = {
    "glan": ("pairs.parquet", "glan.json", "summary.json"),
    "responses": ("responses.parquet", "responses.json", "summary.json"),
    "mixture": ("mixture.parquet", "mixture.json", "mixture.json"),
}
_SHARD_ROWS = 500_000
_MODEL_COLUMNS = ("question_model", "answer_model", "model")


@dataclass(frozen=True)
class Output:
    """The output of a finished run: its rows, and the record that the run wrote.

    Args:
        kind: kind of run.
        rows: Parquet file of the rows.
        record: the run's summary.json or mixture.json.
    """

    kind: Kind
    rows: Path
    record: dict[str, Any]

    @property
    def models(self) -> list[ModelRecord]:
        """The models that wrote the rows; for a mixture those that wrote its sources."""
        if self.kind == "mixture":
            origins = {
                name: origin_of(settings["data"]) for name, settings in self.record["settings"]["sources"].items()
            }
            return [
                replace(model, wrote=f"{name}: {model.wrote}")
                for name, origin in origins.items()
                for model in (origin.models if origin else [])
            ]
        if self.kind == "responses":
            return [
                ModelRecord(name, ", ".join(model["revisions"]), wrote="replies")
                for name, model in self.record["models"].items()
            ]
        return [
            ModelRecord(model["name"], model["revision"], wrote=role)
            for role, model in self.record.get("models", {}).items()
        ]


def origin_of(source: str) -> Origin | None:
    """How the rows of a local source were generated or mixed, or None if they were not. Counts are left out: the run
    may have continued after the rows were read."""
    path = Path(source).expanduser()
    folder = path if path.is_dir() else path.parent
    for kind, (rows, marker, name) in _OUTPUT_FILES.items():
        is_output = path in (folder, folder / rows) and (folder / marker).is_file()
        record = read_json(folder / name) if is_output else None
        if record is not None and "settings" in record:
            return Origin(kind, Output(kind, folder / rows, record).models, record["settings"])
    return None


def find_output(path: str | os.PathLike) -> Output | None:
    """The output of hf-select generate or mix in a folder, or whose rows are at a path; None if there is none.

    Raises: ValueError if the run is not finished, or if its record does not belong to these rows.
    """
    path = Path(path).expanduser()
    folder = path if path.is_dir() else path.parent
    for kind, (rows, marker, name) in _OUTPUT_FILES.items():
        if path not in (folder, folder / rows) or not (folder / marker).is_file():
            continue
        record = read_json(folder / name)
        if record is None or not (folder / rows).is_file():
            raise ValueError(f'"{folder}" has no {rows} yet; run the same command again until it is finished.')
        if "settings" not in record or "sha256" not in record:
            raise ValueError(
                f'{name} in "{folder}" was written by an earlier version and does not say how {rows} was made. Run '
                "the same command again: finished requests are not sent again."
            )
        if record["sha256"] != sha256_of(folder / rows):
            raise ValueError(f'{rows} in "{folder}" was changed: {name} has another hash. Run the command again.')
        return Output(kind, folder / rows, record)
    return None


def push_output(
    output: Output | str | os.PathLike,
    repo_id: str,
    *,
    license: str | Sequence[str] | None = None,
    language: Sequence[str] | None = None,
    source: str | None = None,
    split: str = "train",
    private: bool = True,
    revision: str = "main",
    token: str | None = None,
    dry_run: str | os.PathLike | None = None,
) -> str:
    """Publish the output of hf-select generate or mix, with its record and a card, and return the URL of the commit.

    Args:
        output: the run's folder, or the rows in it.
        repo_id: dataset repository, NAME/REPOSITORY; it is created if it does not exist.
        license: licence of the rows; by default those of a mixture's sources. Generated text has no default.
        language: language of the rows; by default those of the sources' cards.
        source: Hub id or file of the prompts that were answered, if the record does not name it.
        split: split of the source.
        private: whether to create the repository as private; an existing one is not changed.
        revision: branch to push to.
        token: Hub token; by default the one that is logged in.
        dry_run: new or empty folder to build the files in, or one of an earlier dry run. Nothing is pushed, and the
            folder is returned.
    Raises: ValueError if there is no finished output, if its licence is not known, or if the Hub refuses;
        ConnectionError if the Hub cannot be reached.
    """
    check_repo_id(repo_id)
    run = output if isinstance(output, Output) else find_output(output)
    if run is None:
        raise ValueError(f'"{output}" is not an output of hf-select generate or mix; give its folder.')
    schema, num_rows = pq.read_schema(run.rows), pq.read_metadata(run.rows).num_rows
    if num_rows == 0:
        raise ValueError(f'"{run.rows}" has no rows; there is nothing to publish.')
    sources = _look_up_sources(run, source, split, token)
    license = license or _known_license(run, sources)
    language = language or list(dict.fromkeys(name for each in sources for name in each.language or [])) or None
    models = [look_up_model(model, token) for model in run.models]
    public_names = _published_names(models)
    published = OutputRecord.from_dict(scrubbed(OutputRecord(run.kind, models, sources, run.record).to_dict()))
    with TemporaryDirectory() as temporary:
        folder = build_folder(dry_run, temporary)
        _write_output_shards(run, folder / "data", public_names)
        text = output_card(repo_id, published, rows=num_rows, names=schema.names, license=license, language=language)
        (folder / "README.md").write_text(text, encoding="utf-8")
        files = {str(path.relative_to(folder)): sha256_of(path) for path in sorted((folder / "data").iterdir())}
        write_json(folder / PROVENANCE, {"hf_select": __version__, **published.to_dict(), "files": files})
        if dry_run is not None:
            return str(folder)
        return push_files(repo_id, folder, lambda known, commit: None, private, revision, token)


# --------------------------------------------------------------------------------------------------------------------


def _look_up_sources(output: Output, source: str | None, split: str, token: str | None) -> list[SourceRecord]:
    """The datasets behind the rows, with what the Hub knows of them. The revision is the recorded one that was read,
    not the latest."""
    record = output.record
    if output.kind == "glan":
        return []
    if output.kind == "responses":
        recorded = record["source"]
        found = look_up_source(source or recorded["name"], split, token)
        return [replace(found, revision=recorded["commit"], rows=recorded["rows"])]
    sources = []
    for name, settings in record["settings"]["sources"].items():
        found = look_up_source(settings["data"], settings.get("split", "train"), token, settings.get("config"))
        line = record["sources"][name]
        revision = line.get("commit") or settings.get("revision")
        sources.append(replace(found, of=name, revision=revision, rows=line["rows"]))
    return sources


def _known_license(output: Output, sources: list[SourceRecord]) -> License:
    """The licences of a mixture's sources.

    Raises: ValueError if one is not known.
    """
    cure = "Give it: license=... (--license), an identifier such as apache-2.0, or other."
    if output.kind != "mixture":
        raise ValueError(f"the licence of generated text is not on record. {cure}")
    if unknown := [source.of or source.name for source in sources if not source.license]:
        raise ValueError(f"the licence of these sources is not known from a card: {', '.join(unknown)}. {cure}")
    licenses = [source.license for source in sources]
    names = dict.fromkeys(name for each in licenses for name in ([each] if isinstance(each, str) else each or []))
    return next(iter(names)) if len(names) == 1 else list(names)


def _published_names(models: list[ModelRecord]) -> dict[str, str]:
    """Each model's name as it is published: of a path, the last component.

    Raises: ValueError if two models would get the same name.
    """
    names = {model.name: scrubbed(model.name) for model in models}
    if len(set(names.values())) < len(names):
        raise ValueError(
            f"models {', '.join(names)} would be published under the same name, since only the last component of a "
            "path is published; rename a folder and run again."
        )
    return names


def _write_output_shards(output: Output, folder: Path, public_names: dict[str, str]) -> None:
    """Write the rows in shards, with one batch in memory at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.parquet"):
        old.unlink()
    file = pq.ParquetFile(output.rows)
    num_shards = -(-file.metadata.num_rows // _SHARD_ROWS)
    is_changed = any(name != public for name, public in public_names.items())
    writer, room, shard = None, 0, 0
    for batch in file.iter_batches(1000):
        table = pa.Table.from_batches([batch])
        table = _with_public_names(table, public_names) if is_changed else table
        while len(table):
            if room == 0:
                if writer is not None:
                    writer.close()
                path = folder / f"train-{shard:05d}-of-{num_shards:05d}.parquet"
                writer = pq.ParquetWriter(path, table.schema, compression="zstd")
                room, shard = _SHARD_ROWS, shard + 1
            assert writer is not None
            part = table.slice(0, room)
            writer.write_table(part)
            table, room = table.slice(len(part)), room - len(part)
    if writer is not None:
        writer.close()


def _with_public_names(table: pa.Table, public_names: dict[str, str]) -> pa.Table:
    """Replace names of models in their columns, and in the ids of responses, which end in them."""

    def replace_column(table: pa.Table, name: str, values: list[str]) -> pa.Table:
        return table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.string()))

    if "model" in table.column_names:
        models, ids = (table[name].to_pylist() for name in ("model", columns.ROW_ID))
        pairs = zip(ids, models, strict=True)
        ids = [row_id.removesuffix(model) + public_names[model] for row_id, model in pairs]
        table = replace_column(table, columns.ROW_ID, ids)
    for name in _MODEL_COLUMNS:
        if name in table.column_names:
            table = replace_column(table, name, [public_names[model] for model in table[name].to_pylist()])
    return table
