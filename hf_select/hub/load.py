"""A published selection, back from the Hub."""

import json
import logging
from typing import Any

from hf_select.data.rows import pool_fingerprint
from hf_select.hub.repository import RECORD, speaking_plainly
from hf_select.hub.scrub import scrubbed
from hf_select.jobs.retry import with_retries
from hf_select.selection.selection import Selection, row_hashes


logger = logging.getLogger(__name__)


def load_selection(
    repo_id: str, *, dataset: Any = None, revision: str | None = None, token: str | None = None
) -> Selection:
    """The Selection that `push_selected` published, with its ranks, reasons, steps and `provenance`.

    Args:
        repo_id: dataset repository.
        dataset: the source, to be held to the rows that were selected from.
        revision: branch or commit of the repository.
        token: of the Hub; by default the one that is logged in.
    Raises: ValueError if the repository holds no selection, or if the dataset is not what was selected from. Without a
        dataset, a source on the Hub that has moved on since is warned of.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    def download() -> str:
        return hf_hub_download(repo_id, RECORD, repo_type="dataset", revision=revision, token=token)

    try:
        path = speaking_plainly(lambda: with_retries(download, repo_id), repo_id)
    except EntryNotFoundError:
        raise ValueError(f'"{repo_id}" holds no selection of hf_select (it has no {RECORD}).') from None
    selection = Selection.load(path)
    source = selection.provenance.get("source", {})
    if dataset is not None:
        _hold(dataset, selection, source, repo_id)
    elif source.get("on_hub"):
        _look(source, token)
    return selection


def _hold(dataset: Any, selection: Selection, source: dict[str, Any], repo_id: str) -> None:
    """The chosen rows are compared one by one, and the whole source by its fingerprint as long as the columns that it
    was made of are there."""
    same = None
    if source.get("fingerprint") and len(dataset) == selection.num_rows:
        names = source["columns"]
        if all(name in dataset.column_names for name in names):
            same = pool_fingerprint(dataset.select_columns(names)) == source["fingerprint"]
    if same and not selection.hashes:  # published by an earlier version
        selection.hashes = row_hashes(dataset, selection.indices, source["columns"])
    try:
        selection.check(dataset)
    except ValueError as error:
        raise ValueError(f'"{repo_id}": {error}{_where(source)}') from None
    if same is False:
        raise ValueError(
            f'"{repo_id}" was selected from other rows than these: the source changed, or was reordered'
            f"{_where(source)}."
        )


def _where(source: dict[str, Any]) -> str:
    revision = source.get("revision")
    return f' (load "{source["name"]}" at revision {revision})' if revision else ""


def _look(source: dict[str, Any], token: str | None) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        now = HfApi(token=token).dataset_info(source["name"]).sha
    except (HfHubHTTPError, OSError, json.JSONDecodeError) as error:
        logger.warning("%s cannot be looked at (%s).", source["name"], scrubbed(str(error).splitlines()[0]))
        return
    if now != source["revision"]:
        logger.warning(
            "%s changed since the selection was made: load it at revision %s (now %s).",
            source["name"],
            source["revision"],
            now,
        )
