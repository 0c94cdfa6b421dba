"""Publish a selection as a dataset repository: build all files in a folder, then push them in one commit.

data/train-*.parquet     the subset in rank order, with its scores, ranks and reasons
scores/train-*.parquet   the scores of every row of the pool (config "scores")
selection.parquet        the Selection, for load_selection
provenance.json          source, models, settings, versions, costs; hashes of all files
config.yaml              the resolved recipe, if there was one
report.json, pictures/   the numbers and pictures of the report
README.md                the card

The same selection gives the same files byte for byte, so pushing it again changes nothing. A new version replaces the
files of the previous one in a single commit, so nobody can load a mixture of both.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, List, Value, concatenate_datasets

from hf_select.atomic import read_json, sha256_of, write_json
from hf_select.data import columns
from hf_select.data._compat import Json
from hf_select.data.bad_rows import BadRow
from hf_select.data.conversation import Conversation, layout, readable_columns
from hf_select.hub.card import selection_card
from hf_select.hub.lookup import look_up_source
from hf_select.hub.output import origin_of
from hf_select.hub.records import Changes, License, ModelRecord, Origin, Provenance, SourceRecord
from hf_select.hub.repository import PROVENANCE, RECORD, build_folder, check_repo_id, push_files
from hf_select.hub.scrub import scrubbed
from hf_select.reports.ledger import Step, models_of
from hf_select.reports.numbers import describe_selection
from hf_select.reports.pictures import draw
from hf_select.reports.pool_view import PoolView
from hf_select.reports.report_numbers import SelectionNumbers
from hf_select.selection.selection import Selection


_SHARD_BYTES = 400_000_000


def push_selected(
    selection: Selection,
    repo_id: str,
    *,
    dataset: Dataset,
    private: bool = True,
    license: str | Sequence[str] | None = None,
    language: Sequence[str] | None = None,
    source: str | None = None,
    split: str = "train",
    steps: Sequence[Step] = (),
    recipe: dict[str, Any] | None = None,
    source_column: str | None = None,
    revision: str = "main",
    token: str | None = None,
    dry_run: str | os.PathLike | None = None,
) -> str:
    """Publish the selected rows, the scores of the whole pool, their provenance and a card, and return the URL of the
    commit.

    The same call resumes an interrupted push: files that the Hub already has are not sent again. Pushing the same
    selection again changes nothing. Pushing another one makes a commit whose card says what changed.

    Args:
        selection: the selection.
        repo_id: dataset repository, NAME/REPOSITORY; it is created if it does not exist.
        dataset: every row with its scores, in the order that the selection refers to.
        private: whether to create the repository as private; an existing one is not changed.
        license: licence of the rows; by default that of the source dataset's card.
        language: language of the rows; by default that of the source dataset's card.
        source: Hub id or file that the rows came from; by default the one that the first step recorded.
        split: split of the source.
        steps: what was run and what it cost: `read_step(folder)` of each `score()` and index.
        recipe: the resolved recipe that made the selection.
        source_column: column that names the source of a row, for the report.
        revision: branch to push to.
        token: Hub token; by default the one that is logged in.
        dry_run: new or empty folder to build the files in, or one of an earlier dry run. Nothing is pushed, and the
            folder is returned.
    Raises: ValueError if the licence is not known, if the dataset is not the one that was selected from, or if the Hub
        refuses (the name of the repository is checked first); ConnectionError if the Hub cannot be reached.
    """
    check_repo_id(repo_id)
    given = source or next((step.pool["source"] for step in steps if step.pool), None)
    source_record = look_up_source(given, split, token)
    license, language = license or source_record.license, language or source_record.language
    if not license:
        card = f" from the card of {source_record.name}" if source_record.on_hub else ""
        raise ValueError(
            f"the licence of the rows is not known{card}. "
            "Give it: license=... (--license), an identifier such as apache-2.0, or other."
        )
    origin = origin_of(given) if given else None
    if origin is not None:
        origin = Origin.from_dict(scrubbed(origin.to_dict()))
    source_record = replace(source_record, license=None, language=None, origin=origin)
    with TemporaryDirectory() as temporary:
        folder = build_folder(dry_run, temporary)
        build = _Build(folder, selection, dataset, repo_id, steps, source_record, recipe, source_column)
        build.write_data()
        if dry_run is not None:
            build.write_card(None, None, license, language)
            return str(folder)

        def write_card(known: dict[str, Path], commit: str) -> None:
            build.write_card(known, commit, license, language)

        return push_files(repo_id, folder, write_card, private, revision, token)


def provenance_of(view: PoolView, steps: Sequence[Step], source: SourceRecord) -> Provenance:
    """The source of the rows and the steps behind the selection, without secrets."""
    provenance = Provenance(
        source=replace(source, rows=len(view), columns=view.text_columns, fingerprint=view.fingerprint),
        models=[ModelRecord(**model) for model in models_of(steps)],
        steps=steps,
    )
    return Provenance.from_dict(scrubbed(provenance.to_dict()))


def changes_since(earlier: Selection, now: Selection, commit: str) -> Changes:
    """How a selection differs from an earlier version: rows, by their `row_id` where both have it, and settings."""
    has_ids = earlier.row_ids is not None and now.row_ids is not None
    before = set(earlier.row_ids or []) if has_ids else set(earlier.indices.tolist())
    after = set(now.row_ids or []) if has_ids else set(now.indices.tolist())
    settings = []
    fingerprints = [selection.provenance.get("source", {}).get("fingerprint") for selection in (earlier, now)]
    if fingerprints[0] != fingerprints[1]:
        settings.append("The rows of the source are not the same.")
    for number in range(max(len(earlier.chain), len(now.chain))):
        old, new = ((version.chain[number : number + 1] or [{}])[0] for version in (earlier, now))
        names = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
        names = [name for name in names if name not in ("chosen_by", "paper", "ranked_by", "scores")]
        if names:
            differences = ", ".join(f"{name} {old.get(name)} -> {new.get(name)}" for name in names)
            settings.append(f"Step {number + 1}: {differences}.")
    return Changes(commit, len(before & after), len(after - before), len(before - after), settings)


# --------------------------------------------------------------------------------------------------------------------
# the files


class _Build:
    """Builds the files of a published selection in a folder."""

    def __init__(
        self,
        folder: Path,
        selection: Selection,
        dataset: Dataset,
        repo_id: str,
        steps: Sequence[Step],
        source: SourceRecord,
        recipe: dict[str, Any] | None,
        source_column: str | None,
    ):
        self.folder, self.repo_id, self.recipe = folder, repo_id, scrubbed(recipe)
        self.selection = replace(selection, reasons=scrubbed(selection.reasons), chain=scrubbed(selection.chain))
        self.subset = self.selection.apply(dataset)
        self.view = PoolView(dataset)
        is_converted = needs_conversion(self.view.text_columns)
        chosen = selection.indices.tolist()
        self.view.parse(keep=chosen if is_converted else ())
        if is_converted:
            self.subset = with_messages(self.subset, map(self.view.conversation, chosen))
        self.provenance = provenance_of(self.view, steps, source)
        self.selection.provenance = self.provenance.to_dict()
        numbers = describe_selection(self.view, self.selection, steps, source_column=source_column)
        self.numbers = SelectionNumbers.from_dict(scrubbed(numbers.to_dict()))

    def write_data(self) -> None:
        """Write all files but the card and provenance.json."""
        import yaml

        for name in ("data", "scores", "pictures"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        _write_shards(self.subset, self.folder / "data")
        _write_shards(self._scores(), self.folder / "scores")
        self.selection.save(self.folder / RECORD)
        write_json(self.folder / "report.json", self.numbers.to_dict())
        for name, _, png in draw(self.numbers):
            (self.folder / "pictures" / f"{name}.png").write_bytes(png)
        if self.recipe is not None:
            text = yaml.safe_dump(self.recipe, sort_keys=False, allow_unicode=True)
            (self.folder / "config.yaml").write_text(text, encoding="utf-8")

    def write_card(
        self, known: dict[str, Path] | None, commit: str | None, license: License, language: Sequence[str] | None
    ) -> None:
        """Write the card and provenance.json. The latter records the changes since the version before, so that
        pushing the same files again writes the same card.

        Args:
            known: selection.parquet and provenance.json of the published version, if there is one.
            commit: its commit.
        """
        files = {
            str(path.relative_to(self.folder)): sha256_of(path)
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and path.name not in ("README.md", PROVENANCE)
        }
        changes = None
        published = read_json(known[PROVENANCE]) if known and PROVENANCE in known else None
        if published is not None and known is not None and commit is not None:
            changes = Changes(**published["changes"]) if published.get("changes") else None
            if published.get("files") != files:
                changes = changes_since(Selection.load(known[RECORD]), self.selection, commit)
        record = {**self.provenance.to_dict(), "changes": asdict(changes) if changes else None, "files": files}
        write_json(self.folder / PROVENANCE, record)
        pictures = {path.stem: f"pictures/{path.name}" for path in sorted((self.folder / "pictures").iterdir())}
        text = selection_card(
            self.repo_id,
            self.numbers,
            self.provenance,
            layout=layout(self.subset.column_names) if readable_columns(self.subset.column_names) else "text",
            pictures=pictures,
            changes=changes,
            has_recipe=self.recipe is not None,
            license=license,
            language=language,
        )
        (self.folder / "README.md").write_text(text, encoding="utf-8")

    def _scores(self) -> Dataset:
        """The scores, reasons and ranks of every row of the pool, without the rows."""
        dataset, scores = self.view.dataset, self.view.score_columns
        wanted = [columns.ROW_ID, *scores, *(columns.reason_column(name) for name in scores), columns.NUM_TOKENS]
        kept = dataset.select_columns([name for name in wanted if name in dataset.column_names])
        ranks: list[int | None] = [None] * len(dataset)
        for rank, row in enumerate(self.selection.indices.tolist(), 1):
            ranks[row] = rank
        kept = kept.add_column("row", list(range(len(dataset))))
        return kept.add_column(columns.SELECTION_RANK, ranks, feature=Value("int64"))


def needs_conversion(text_columns: list[str]) -> bool:
    """Whether TRL's SFTTrainer does not read this layout of rows."""
    return bool(text_columns) and layout(text_columns) in ("alpaca", "sharegpt")


def with_messages(subset: Dataset, parsed: Iterable[Conversation | BadRow]) -> Dataset:
    """Replace the text columns by `messages`, which TRL's SFTTrainer reads.

    Args:
        parsed: the rows of the subset, in its order.
    Raises: ValueError if a row cannot be read.
    """
    rows: list[Conversation] = []
    for row in parsed:
        if isinstance(row, BadRow):
            raise ValueError(f"row {len(rows)} of the subset cannot be read: {row}. Leave it out, or fix it.")
        rows.append(row)
    message: Any = {"role": Value("string"), "content": Value("string")}
    if any(set(turn) - set(message) for row in rows for turn in row.messages):
        # The arguments of tools differ from row to row; a column of structs would give each row the keys of all.
        message = Json()
    messages = Dataset.from_dict({"messages": [row.messages for row in rows]}, Features({"messages": List(message)}))
    others = [name for name in readable_columns(subset.column_names) if name != "tools"]
    return concatenate_datasets([subset.remove_columns(others), messages], axis=1)


def _write_shards(dataset: Dataset, folder: Path) -> None:
    count = max(1, -(-dataset.data.nbytes // _SHARD_BYTES))
    for old in folder.glob("*.parquet"):
        old.unlink()
    for n in range(count):
        shard = dataset.shard(count, n, contiguous=True)
        table = cast(pa.Table, shard.with_format("arrow")[:])
        schema = Features(dataset.features).arrow_schema
        path = folder / f"train-{n:05d}-of-{count:05d}.parquet"
        pq.write_table(_without_secrets(table.cast(schema)), path, compression="zstd")


def _without_secrets(table: pa.Table) -> pa.Table:
    """The table with scrubbed reasons, which hf_select wrote; the rows are not changed."""
    for number, field in enumerate(table.schema):
        if field.name.endswith("_reason") and pa.types.is_string(field.type):
            reasons = table[field.name].to_pylist()
            distinct = list(dict.fromkeys(reasons))
            clean = dict(zip(distinct, scrubbed(distinct), strict=True))
            table = table.set_column(number, field, pa.array([clean[reason] for reason in reasons], field.type))
    return table
