"""The output of hf-select generate or mix as a dataset repository: GLAN's pairs, replies of models, a mixture.

data/train-*.parquet     the rows
provenance.json          the record of the run, its sources with revisions and licences; what every file held
README.md                the card, see output_card.py

As with a selection, the same output gives the same files byte for byte, and a new version is one commit.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from hf_select._version import __version__
from hf_select.atomic import read_json, sha256_of, write_json
from hf_select.data import columns
from hf_select.hub.output_card import output_card
from hf_select.hub.repository import PROVENANCE, about_model, about_source, build_folder, check_repo_id, push_files
from hf_select.hub.scrub import scrubbed


Kind = Literal["glan", "responses", "mixture"]
# kind -> file of the rows, file that only such a folder has, file of the record
_FILES: dict[Kind, tuple[str, str, str]] = {
    "glan": ("pairs.parquet", "glan.json", "summary.json"),
    "responses": ("responses.parquet", "responses.json", "summary.json"),
    "mixture": ("mixture.parquet", "mixture.json", "mixture.json"),
}
_SHARD_ROWS = 500_000
_MODEL_COLUMNS = ("question_model", "answer_model", "model")


@dataclass(frozen=True)
class Output:
    """A finished output: its rows, and the record of the run that wrote them."""

    kind: Kind
    rows: Path
    record: dict[str, Any]

    @property
    def models(self) -> list[dict[str, Any]]:
        """The models that wrote the rows, or those of a mixture's sources: name, revision, and what each wrote."""
        if self.kind == "mixture":
            sources = {name: settings["data"] for name, settings in self.record["settings"]["sources"].items()}
            found = {name: origin_of(data) for name, data in sources.items()}
            return [
                {**model, "wrote": f"{name}: {model['wrote']}"}
                for name, origin in found.items()
                for model in (origin or {}).get("models", [])
            ]
        if self.kind == "responses":
            found = self.record["models"].items()
            return [
                {"name": name, "revision": ", ".join(model["revisions"]), "wrote": "replies"} for name, model in found
            ]
        return [{**model, "wrote": role} for role, model in self.record.get("models", {}).items()]


def origin_of(source: str) -> dict[str, Any] | None:
    """How the rows of a local source were generated or mixed, if they were: kind, models and settings. Counts are left
    out, since the run may have gone further since the rows were read."""
    path = Path(source).expanduser()
    folder = path if path.is_dir() else path.parent
    for kind, (rows, marker, name) in _FILES.items():
        record = read_json(folder / name) if path in (folder, folder / rows) and (folder / marker).is_file() else None
        if record is not None and "settings" in record:
            output = Output(kind, folder / rows, record)
            return {"kind": kind, "models": output.models, "settings": record["settings"]}
    return None


def find_output(path: str | os.PathLike) -> Output | None:
    """The output of hf-select generate or mix at a path, which is its folder or its rows; None if it is none.

    Raises: ValueError if the run is not finished, or if its record is not that of these rows.
    """
    path = Path(path).expanduser()
    folder = path if path.is_dir() else path.parent
    for kind, (rows, marker, name) in _FILES.items():
        if path not in (folder, folder / rows) or not (folder / marker).is_file():
            continue
        record = read_json(folder / name)
        if record is None or not (folder / rows).is_file():
            raise ValueError(f'"{folder}" has no {rows} yet; run the same command again to its end.')
        if "settings" not in record or "sha256" not in record:
            raise ValueError(
                f'{name} in "{folder}" was written by an earlier version and does not say how {rows} was made. Run '
                "the same command again: what is there is not asked for twice."
            )
        if record["sha256"] != sha256_of(folder / rows):
            raise ValueError(
                f'{rows} in "{folder}" is not what {name} tells of: it was changed. Run the command again.'
            )
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
    """Publish what hf-select generate or mix wrote, with its record and a card, and return the address of the commit.

    Args:
        output: the folder, or the rows in it.
        repo_id: dataset repository, NAME/REPOSITORY; it is made if it is not there.
        license: of the rows; by default those of a mixture's sources. Of text that models wrote none is known.
        language: of the rows; by default those of the sources' cards.
        source: Hub id or file of the prompts that were answered, if the record does not say it.
        split: of the source.
        private: whether a repository that is made is private; one that exists stays as it is.
        revision: branch that is pushed to.
        token: of the Hub; by default the one that is logged in.
        dry_run: new or empty folder to build the files in, or one of an earlier dry run; nothing is pushed, and the
            folder is returned.
    Raises: ValueError if there is no finished output, its licence is not known, or the Hub refuses; ConnectionError if
        it cannot be reached.
    """
    check_repo_id(repo_id)
    found = output if isinstance(output, Output) else find_output(output)
    if found is None:
        raise ValueError(f'"{output}" is no output of hf-select generate or mix; give its folder.')
    size = pq.read_metadata(found.rows).num_rows
    if size == 0:
        raise ValueError(f'"{found.rows}" has no rows; there is nothing to publish.')
    sources = _sources(found, source, split, token)
    license = license or _license(found, sources)
    language = language or list(dict.fromkeys(name for one in sources for name in one.get("language") or [])) or None
    models = [{**model, **about_model(model["name"], token)} for model in found.models]
    public = _public_names(models)
    with TemporaryDirectory() as temporary:
        place = build_folder(dry_run, temporary)
        _write_rows(found, place / "data", public)
        shown = scrubbed({"kind": found.kind, "models": models, "sources": sources, "record": found.record})
        text = output_card(
            repo_id, shown, rows=size, names=pq.read_schema(found.rows).names, license=license, language=language
        )
        (place / "README.md").write_text(text, encoding="utf-8")
        files = {str(path.relative_to(place)): sha256_of(path) for path in sorted((place / "data").iterdir())}
        write_json(place / PROVENANCE, {"hf_select": __version__, **shown, "files": files})
        if dry_run is not None:
            return str(place)
        return push_files(repo_id, place, lambda known, commit: None, private, revision, token)


# --------------------------------------------------------------------------------------------------------------------


def _sources(output: Output, source: str | None, split: str, token: str | None) -> list[dict[str, Any]]:
    """The datasets behind the rows, with what the Hub says of those that are there. The revision is the one that was
    read, if that is on record; not what is there today."""
    if output.kind == "glan":
        return []
    if output.kind == "responses":
        told = output.record["source"]
        about = about_source(source or told["name"], split, token)
        return [{**about, "revision": told["commit"], "rows": told["rows"]}]
    found = []
    for name, settings in output.record["settings"]["sources"].items():
        about = about_source(settings["data"], settings.get("split", "train"), token, settings.get("config"))
        line = output.record["sources"][name]
        read = line.get("commit") or settings.get("revision")
        found.append({**about, "of": name, "revision": read, "rows": line["rows"]})
    return found


def _license(output: Output, sources: list[dict[str, Any]]) -> str | list[str]:
    """The licences of a mixture's sources, if all are known."""
    say = "Say it: license=... (--license), an identifier such as apache-2.0, or other."
    if output.kind != "mixture":
        raise ValueError(f"a licence of text that models wrote is on no record. {say}")
    if unknown := [one["of"] for one in sources if not one.get("license")]:
        raise ValueError(f"the licence of these sources is not known from a card: {', '.join(unknown)}. {say}")
    found = [one["license"] for one in sources]
    known = dict.fromkeys(name for one in found for name in ([one] if isinstance(one, str) else one))
    return next(iter(known)) if len(known) == 1 else list(known)


def _public_names(models: list[dict[str, Any]]) -> dict[str, str]:
    """Each model's name as it is published: of a path the last name.

    Raises: ValueError if two models would get the same.
    """
    names = {model["name"]: scrubbed(model["name"]) for model in models}
    if len(set(names.values())) < len(names):
        raise ValueError(
            f"models {', '.join(names)} would be published under one name, since of a path the last name alone is; "
            "rename a folder and run again."
        )
    return names


def _write_rows(output: Output, folder: Path, public: dict[str, str]) -> None:
    """The rows in shards, a batch in memory at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.parquet"):
        old.unlink()
    file = pq.ParquetFile(output.rows)
    count = -(-file.metadata.num_rows // _SHARD_ROWS)
    clean = _with_public_names(public) if any(name != shown for name, shown in public.items()) else lambda table: table
    writer, left, number = None, 0, 0
    for batch in file.iter_batches(1000):
        table = clean(pa.Table.from_batches([batch]))
        while len(table):
            if left == 0:
                if writer is not None:
                    writer.close()
                path = folder / f"train-{number:05d}-of-{count:05d}.parquet"
                writer, left, number = (
                    pq.ParquetWriter(path, table.schema, compression="zstd"),
                    _SHARD_ROWS,
                    number + 1,
                )
            assert writer is not None
            part = table.slice(0, left)
            writer.write_table(part)
            table, left = table.slice(len(part)), left - len(part)
    if writer is not None:
        writer.close()


def _with_public_names(public: dict[str, str]) -> Callable[[pa.Table], pa.Table]:
    """Names of models in their columns, and in the ids of replies, which end in them."""

    def renamed(table: pa.Table) -> pa.Table:
        if "model" in table.column_names:
            models, ids = (table[name].to_pylist() for name in ("model", columns.ROW_ID))
            ids = [row_id.removesuffix(name) + public[name] for row_id, name in zip(ids, models, strict=True)]
            table = table.set_column(table.schema.get_field_index(columns.ROW_ID), columns.ROW_ID, pa.array(ids))
        for name in _MODEL_COLUMNS:
            if name in table.column_names:
                shown = pa.array([public[model] for model in table[name].to_pylist()], pa.string())
                table = table.set_column(table.schema.get_field_index(name), name, shown)
        return table

    return renamed
