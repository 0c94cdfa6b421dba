"""A selection, or the index of a pool, as a dataset repository: built whole in a folder, then pushed in one commit.

data/train-*.parquet     the subset in rank order, with its scores, ranks and reasons
scores/train-*.parquet   the scores of every row of the pool (config "scores")
selection.parquet        the Selection, for load_selection
provenance.json          source, models, settings, versions, costs; what every file held
config.yaml              the resolved recipe, if there was one
report.json, pictures/   the numbers and pictures of the report
README.md                the card

The same selection gives the same files byte for byte, so a second push finds nothing to do. The files of one version
replace those of the one before in a single commit: whoever loads the repository never meets half of each.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Json, List, Value, concatenate_datasets

from hf_select._version import __version__
from hf_select.atomic import read_json, sha256_of, write_json
from hf_select.data import columns
from hf_select.data.bad_rows import BadRow
from hf_select.data.conversation import Conversation, layout, readable_columns
from hf_select.features.store import PoolIndex
from hf_select.hub.card import selection_card
from hf_select.hub.output import origin_of
from hf_select.hub.repository import PROVENANCE, RECORD, about_source, build_folder, check_repo_id, push_files
from hf_select.hub.scrub import scrubbed
from hf_select.reports.ledger import Step, models_of, read_step
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
    dataset: Any,
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
    """Publish the selected rows, the scores of the whole pool, their provenance and a card, and return the address of
    the commit.

    A push that was cut off is continued by the same call: what the Hub has of it is not sent again. The same selection
    once more changes nothing; another one makes a commit whose card tells the difference.

    Args:
        selection: what was chosen.
        repo_id: dataset repository, NAME/REPOSITORY; it is made if it is not there.
        dataset: every row with its scores, in the order that the selection counts.
        private: whether a repository that is made is private; one that exists stays as it is.
        license: of the rows; by default that of the source dataset's card.
        language: of the rows; by default that of the source dataset's card.
        source: Hub id or file that the rows came from; by default what the first step has on record.
        split: of the source.
        steps: what was run and what it cost: `read_step(folder)` of each score() and index.
        recipe: the resolved recipe that made the selection.
        source_column: column of the report's sources.
        revision: branch that is pushed to.
        token: of the Hub; by default the one that is logged in.
        dry_run: new or empty folder to build the files in, or one of an earlier dry run; nothing is pushed, and the
            folder is returned.
    Raises: ValueError if the licence is not known, the dataset is another one, or the Hub refuses (the name of the
        repository is checked first); ConnectionError if it cannot be reached.
    """
    check_repo_id(repo_id)
    given = source or next((step.pool["source"] for step in steps if step.pool), None)
    about = about_source(given, split, token)
    license, language = license or about.pop("license", None), language or about.pop("language", None)
    if not license:
        raise ValueError(
            f"the licence of the rows is not known{' from the card of ' + about['name'] if about['on_hub'] else ''}. "
            "Say it: license=... (--license), an identifier such as apache-2.0, or other."
        )
    about = {name: value for name, value in about.items() if name not in ("license", "language")}
    if given and (origin := origin_of(given)):
        about["origin"] = scrubbed(origin)
    with TemporaryDirectory() as temporary:
        place = build_folder(dry_run, temporary)
        build = _Build(place, selection, dataset, repo_id, steps, about, recipe, source_column)
        build.write_data()
        settings: dict[str, Any] = {"license": license, "language": language}
        if dry_run is not None:
            build.write_card(None, None, settings)
            return str(place)

        def write_card(known: dict[str, Path], commit: str) -> None:
            build.write_card(known, commit, settings)

        return push_files(repo_id, place, write_card, private, revision, token)


def push_index(
    index: PoolIndex | str | os.PathLike,
    repo_id: str,
    *,
    license: str | Sequence[str],
    private: bool = True,
    revision: str = "main",
    token: str | None = None,
) -> str:
    """Publish the vectors of a pool, so that others compare it with their queries at no cost, and return the address
    of the commit. `PoolIndex.open(snapshot_download(repo_id, repo_type="dataset"))` opens it again.

    Args:
        index: a finished index, or its folder.
        license: of the rows that the vectors stand for.
    Raises: ValueError if there is no finished index, or the Hub refuses.
    """
    check_repo_id(repo_id)
    index = index if isinstance(index, PoolIndex) else PoolIndex.open(index)
    index.check()
    step = Step.from_dict(scrubbed(read_step(index.folder).to_dict()))
    with TemporaryDirectory() as temporary:
        place = Path(temporary)
        (place / "vectors").mkdir()
        for path in sorted((index.folder / "vectors").iterdir()):
            if path.suffix == ".arrow":
                os.symlink(path.resolve(), place / "vectors" / path.name)
        for name in ("manifest.json", "index.json", "vectors/probe.json"):
            write_json(place / name, scrubbed(json.loads((index.folder / name).read_text(encoding="utf-8"))))
        text = _index_card(repo_id, index, step, license)
        (place / "README.md").write_text(text, encoding="utf-8")
        return push_files(repo_id, place, lambda known, commit: None, private, revision, token)


def provenance_of(view: PoolView, steps: Sequence[Step], source: dict[str, Any]) -> dict[str, Any]:
    """The source of the rows and the steps behind the selection, without secrets."""
    return {
        "hf_select": __version__,
        "source": {**source, "rows": len(view), "columns": view.text_columns, "fingerprint": view.fingerprint},
        "models": scrubbed(models_of(steps)),  # before a path is cut to a name that could be one on the Hub
        "steps": scrubbed([step.to_dict() for step in steps]),
    }


def changes_since(earlier: Selection, now: Selection, commit: str) -> dict[str, Any]:
    """What is other than in an earlier version: rows, by their `row_id` where both have it, and settings."""
    ids = earlier.row_ids is not None and now.row_ids is not None
    before = set(earlier.row_ids or []) if ids else set(earlier.indices.tolist())
    after = set(now.row_ids or []) if ids else set(now.indices.tolist())
    settings = []
    sources = [selection.provenance.get("source", {}).get("fingerprint") for selection in (earlier, now)]
    if sources[0] != sources[1]:
        settings.append("The rows of the source are not the same.")
    for place in range(max(len(earlier.chain), len(now.chain))):
        old, new = ((one.chain[place : place + 1] or [{}])[0] for one in (earlier, now))
        differing = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
        named = [name for name in differing if name not in ("chosen_by", "scores")]
        told = [f"{name} {old.get(name)} -> {new.get(name)}" for name in named]
        if told:
            settings.append(f"Step {place + 1}: {', '.join(told)}.")
    return {
        "commit": commit,
        "kept": len(before & after),
        "added": len(after - before),
        "removed": len(before - after),
        "settings": settings,
    }


# --------------------------------------------------------------------------------------------------------------------
# the files


class _Build:
    """The files of a selection in a folder."""

    def __init__(
        self,
        folder: Path,
        selection: Selection,
        dataset: Any,
        repo_id: str,
        steps: Sequence[Step],
        source: dict[str, Any],
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
        self.selection.provenance = self.provenance = provenance_of(self.view, steps, source)
        numbers = describe_selection(self.view, self.selection, steps, source_column=source_column)
        self.numbers = SelectionNumbers.from_dict(scrubbed(numbers.to_dict()))

    def write_data(self) -> None:
        """All files but the card and what it depends on."""
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

    def write_card(self, known: dict[str, Path] | None, commit: str | None, settings: dict[str, Any]) -> None:
        """The card, and with it provenance.json, which keeps what the card says of the version before: the next push
        of the same files must write the same card.

        Args:
            known: record and provenance of the version that is there, if there is one.
        """
        files = {
            str(path.relative_to(self.folder)): sha256_of(path)
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and path.name not in ("README.md", PROVENANCE)
        }
        changes = None
        there = read_json(known[PROVENANCE]) if known and PROVENANCE in known else None
        if there is not None and known is not None and commit is not None:
            changes = there.get("changes")
            if there.get("files") != files:
                changes = changes_since(Selection.load(known[RECORD]), self.selection, commit)
        write_json(self.folder / PROVENANCE, {**self.provenance, "changes": changes, "files": files})
        pictures = {path.stem: f"pictures/{path.name}" for path in sorted((self.folder / "pictures").iterdir())}
        text = selection_card(
            self.repo_id,
            self.numbers,
            self.provenance,
            layout=layout(self.subset.column_names) if readable_columns(self.subset.column_names) else "text",
            pictures=pictures,
            changes=changes,
            has_recipe=self.recipe is not None,
            **settings,
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


def _write_shards(dataset: Any, folder: Path) -> None:
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
    """The reasons, which are ours, scrubbed; the rows stay as they are."""
    for place, field in enumerate(table.schema):
        if field.name.endswith("_reason") and pa.types.is_string(field.type):
            said = table[field.name].to_pylist()
            distinct = list(dict.fromkeys(said))
            known = dict(zip(distinct, scrubbed(distinct), strict=True))
            table = table.set_column(place, field, pa.array([known[reason] for reason in said], field.type))
    return table


def _index_card(repo_id: str, index: PoolIndex, step: Step, license: str | Sequence[str]) -> str:
    from huggingface_hub import DatasetCardData

    from hf_select.reports.markdown import inline, table_text

    data = DatasetCardData(
        license=license if isinstance(license, str) else list(license),
        pretty_name=repo_id.split("/")[-1],
        tags=["data-selection", "hf_select", "embeddings"],
        viewer=False,
    )
    settings = [[name, json.dumps(value, ensure_ascii=False)] for name, value in step.settings.items()]
    flops = f" and {step.cost['flops']:.3g} counted FLOPs" if "flops" in step.cost else ""
    source = (step.pool or {}).get("source") or "a dataset"
    return f"""---
{data.to_yaml()}
---

# {inline(repo_id.split("/")[-1])}

Vectors of the {len(index):,} rows of {inline(source)}, {index.dimensions:,} numbers a row, made with hf_select by
{inline(step.step.removeprefix("index "))}. With them any queries are compared with the pool without running the
model over it again; an index of other rows, another model or other settings is refused.

```python
from huggingface_hub import snapshot_download
from hf_select import PoolIndex

index = PoolIndex.open(snapshot_download("{repo_id}", repo_type="dataset"))
index.check(dataset)  # that these are its rows
```

```bash
hf download {repo_id} --repo-type dataset --local-dir index
hf-select score --scorer rds --index index --dataset ... --queries TASK=FILE --output-dir scores
```

{table_text(["setting", "value"], settings)}

Making it took {step.cost["seconds"]:,.1f} seconds{flops}.
"""
