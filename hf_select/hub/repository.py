"""A dataset repository on the Hub: check its name, push a folder in one commit, and explain the Hub's errors."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from hf_select._version import __version__
from hf_select.hub.scrub import check_clean, scrubbed
from hf_select.jobs.retry import is_transient, with_retries


if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError


T = TypeVar("T")

RECORD, PROVENANCE = "selection.parquet", "provenance.json"
_FOLDERS = ("data/", "scores/", "pictures/", "vectors/")  # a new version deletes older files in them
_SELECTION_FILES = (RECORD, "report.json", "config.yaml")  # deleted when a selection is replaced by something else
_TEXT_SUFFIXES = (".md", ".json", ".yaml")
_RESERVED_NAMESPACES = ("datasets", "models", "spaces")  # parts of the Hub's URLs


def check_repo_id(repo_id: str) -> None:
    """Raise ValueError, without a request, if the Hub would refuse a dataset repository of this name.

    huggingface_hub checks less: it accepts letters of any alphabet and reserved names such as "datasets".
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    namespace, slash, _ = repo_id.partition("/")
    if not slash:
        raise ValueError(f'the repository "{repo_id}" has no namespace. Give NAME/REPOSITORY, such as me/my-subset.')
    try:
        validate_repo_id(repo_id)
        valid = repo_id.isascii() and not repo_id.endswith("\n")  # huggingface_hub 0.36 accepts a line break there
    except HFValidationError:
        valid = False
    if not valid or namespace in _RESERVED_NAMESPACES:
        raise ValueError(
            f'the Hub takes no repository "{repo_id}". Give NAME/REPOSITORY, such as me/my-subset: letters of ASCII, '
            'digits, "-", "_" and "."; neither "--" nor ".."; no "-" or "." at the beginning or end, no ".git" at the '
            "end; at most 96 characters."
        )


def build_folder(given: str | os.PathLike | None, temporary: str) -> Path:
    """The folder to build a repository's files in: that of a dry run, emptied of an earlier one, or the temporary one.

    Raises: ValueError if the folder holds other files, which would be replaced.
    """
    if given is None:
        return Path(temporary)
    folder = Path(given).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f'"{folder}" is a file; a dry run builds a folder. Give a new or empty one.')
    existing = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    built = {"README.md", PROVENANCE, *_SELECTION_FILES, *(name.rstrip("/") for name in _FOLDERS)}
    if existing and (PROVENANCE not in existing or not existing <= built):
        raise ValueError(f'"{folder}" holds other files, which a dry run could replace. Give a new or empty folder.')
    for name in sorted(existing):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def push_files(
    repo_id: str,
    folder: Path,
    write_card: Callable[[dict[str, Path], str], None],
    private: bool,
    revision: str,
    token: str | None,
) -> str:
    """Push all files in one commit, with retries, and return its URL.

    Every attempt compares the folder with the repository first. If a commit was made but its response was lost, the
    next attempt finds nothing to do.

    Args:
        folder: the files.
        write_card: called with the repository's record and provenance files and its commit before each attempt, to
            write the files that depend on them.
        private: whether to create the repository as private; an existing one is not changed.
        revision: branch to push to; it is created if it does not exist.
    Raises: ValueError if the Hub refuses; ConnectionError if it cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download

    api = HfApi(token=token)

    def attempt() -> str:
        api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        if revision != "main":
            api.create_branch(repo_id, repo_type="dataset", branch=revision, exist_ok=True)
        info = api.dataset_info(repo_id, revision=revision)
        commit, names = cast(str, info.sha), [file.rfilename for file in info.siblings or []]
        known = {
            name: Path(hf_hub_download(repo_id, name, repo_type="dataset", revision=commit, token=token))
            for name in (RECORD, PROVENANCE)
            if RECORD in names and name in names
        }
        write_card(known, commit)
        paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        for name, path in paths.items():
            if path.suffix in _TEXT_SUFFIXES:
                check_clean(name, path.read_text(encoding="utf-8"))
        adds = [CommitOperationAdd(name, path.resolve()) for name, path in paths.items()]
        replaced = (*_FOLDERS, *(_SELECTION_FILES if RECORD in names else ()))
        deletes = [CommitOperationDelete(name) for name in names if name.startswith(replaced) and name not in paths]
        message = f"hf_select {__version__}: {len(paths)} files"
        try:
            made = api.create_commit(
                repo_id,
                [*adds, *deletes],
                commit_message=message,
                repo_type="dataset",
                revision=revision,
                parent_commit=commit,
            )
            return str(made.commit_url)
        except json.JSONDecodeError as error:  # a proxy's page in place of the Hub's response
            raise ConnectionError("the Hub's response is not JSON") from error

    return translate_hub_errors(lambda: with_retries(attempt, f"push to {repo_id}"), repo_id)


def translate_hub_errors(act: Callable[[], T], repo_id: str) -> T:
    """The result of `act()`. An error of the Hub or the network is raised again with a message that says what to do;
    EntryNotFoundError is left to the caller, who knows what a missing file means."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return act()
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        if constants.HF_HUB_OFFLINE or isinstance(error, OfflineModeIsEnabled):
            raise ValueError(f'"{repo_id}" is on the Hub and HF_HUB_OFFLINE is set; unset it.') from None
        raise ConnectionError(  # an EntryNotFoundError, but nobody was asked
            f'the Hub cannot be reached for "{repo_id}", and the local cache does not hold the file. Run the same '
            "command again."
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f'no dataset repository "{repo_id}" on the Hub that this token may see ({_status(error)}). Check the '
            "name, or log in: hf auth login."
        ) from error
    except EntryNotFoundError:
        raise
    except RevisionNotFoundError as error:
        raise ValueError(f'"{repo_id}" on the Hub has no such branch, tag or commit. Check the revision.') from error
    except HfHubHTTPError as error:
        cures = {
            401: "The token is missing or wrong: hf auth login.",
            403: "The token may not write there: make one that may, or choose another repository.",
            412: "Somebody else pushed at the same time: run the same command again.",
            429: "Too many requests: run the same command later to resume.",
        }
        code = error.response.status_code
        cure = cures.get(code, "Run the same command again to resume." if code >= 500 else "")
        raise ValueError(f'the Hub refused "{repo_id}" ({_status(error)}). {cure}'.rstrip()) from error
    except Exception as error:
        if not is_transient(error) and not isinstance(error, RuntimeError):  # a failed upload is a RuntimeError
            raise
        message = scrubbed(str(error).splitlines()[0])
        raise ConnectionError(
            f'the connection to "{repo_id}" failed ({message}). Run the same command again to resume.'
        ) from error


def validate_card(folder: Path, repo_id: str) -> bool:
    """Let the Hub validate the metadata of a card that was not pushed; False if the Hub cannot be reached.

    Raises: ValueError with the Hub's reasons if it would refuse the card.
    """
    from huggingface_hub import DatasetCard

    try:
        DatasetCard.load(folder / "README.md").validate()
    except OSError:  # refused connections, errors of the Hub, HF_HUB_OFFLINE
        return False
    except ValueError as error:
        raise ValueError(f'the Hub would refuse the card in "{folder}": {_reasons(str(error))}.') from error
    except Exception as error:
        if not is_transient(error):
            raise
        return False
    return True


def _reasons(response: str) -> str:
    """The messages in the Hub's response to a card that it refuses."""
    try:
        return "; ".join(error["message"] for error in json.loads(response)["errors"])
    except (ValueError, KeyError, TypeError):
        return response.rstrip(".")


def _status(error: "HfHubHTTPError") -> str:
    # Shortened after scrubbing: part of a token would not be recognised.
    message = scrubbed(" ".join(error.server_message.split()))[:200] if error.server_message else ""
    return f"{error.response.status_code}{': ' + message if message else ''}"
