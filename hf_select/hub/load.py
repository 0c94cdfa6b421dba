"""Load a published selection from the Hub."""

import json
import logging
from typing import TYPE_CHECKING

from hf_select.data.rows import pool_fingerprint
from hf_select.hub.records import SourceRecord
from hf_select.hub.repository import RECORD, translate_hub_errors
from hf_select.hub.scrub import scrubbed
from hf_select.jobs.retry import with_retries
from hf_select.selection.selection import Selection, row_hashes


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.getLogger(__name__)


def load_selection(
    repo_id: str, *, dataset: "Dataset | None" = None, revision: str | None = None, token: str | None = None
) -> Selection:
    """The Selection that `push_selected` published, with its ranks, reasons, steps and `provenance`.

    Without a dataset, a source on the Hub that changed since the selection was made causes a warning.

    Args:
        repo_id: dataset repository.
        dataset: the source; it is compared with the rows that were selected from.
        revision: branch or commit of the repository.
        token: Hub token; by default the one that is logged in.
    Raises: ValueError if the repository holds no selection, or if the dataset is not what was selected from.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    def download() -> str:
        return hf_hub_download(repo_id, RECORD, repo_type="dataset", revision=revision, token=token)

    try:
        path = translate_hub_errors(lambda: with_retries(download, repo_id), repo_id)
    except EntryNotFoundError:
        raise ValueError(f'"{repo_id}" holds no selection of hf_select (it has no {RECORD}).') from None
    selection = Selection.load(path)
    if "source" in selection.provenance:
        source = SourceRecord.from_dict(selection.provenance["source"])
    else:
        source = SourceRecord("a dataset")
    if dataset is not None:
        _verify_dataset(dataset, selection, source, repo_id)
    elif source.on_hub:
        _warn_if_source_changed(source, token)
    return selection


def _verify_dataset(dataset: "Dataset", selection: Selection, source: SourceRecord, repo_id: str) -> None:
    """Compare the chosen rows one by one, and all rows by their fingerprint if the dataset has the same columns."""
    is_same, names = None, source.columns or []
    if source.fingerprint and len(dataset) == selection.num_rows and set(names) <= set(dataset.column_names):
        is_same = pool_fingerprint(dataset.select_columns(names)) == source.fingerprint
    if is_same and not selection.hashes:  # published by an earlier version
        selection.hashes = row_hashes(dataset, selection.indices, names)
    cure = f' (load "{source.name}" at revision {source.revision})' if source.revision else ""
    try:
        selection.check(dataset)
    except ValueError as error:
        raise ValueError(f'"{repo_id}": {error}{cure}') from None
    if is_same is False:
        raise ValueError(
            f'"{repo_id}" was selected from other rows than these: the source changed, or was reordered{cure}.'
        )


def _warn_if_source_changed(source: SourceRecord, token: str | None) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        now = HfApi(token=token).dataset_info(source.name).sha
    except (HfHubHTTPError, OSError, json.JSONDecodeError) as error:
        reason = scrubbed(str(error).splitlines()[0])
        logger.warning("could not check whether %s changed (%s).", source.name, reason)
        return
    if now != source.revision:
        message = "%s changed since the selection was made: load it at revision %s (now %s)."
        logger.warning(message, source.name, source.revision, now)
