"""A dataset repository on the Hub: its name, one commit of a folder of files, and what the Hub refuses."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from hf_select._version import __version__
from hf_select.data.loading import located
from hf_select.hub.scrub import check_clean, scrubbed
from hf_select.jobs.retry import is_transient, with_retries
from hf_select.reports.ledger import is_hub_id


RECORD, PROVENANCE = "selection.parquet", "provenance.json"
_OURS = ("data/", "scores/", "pictures/", "vectors/")  # folders whose other files a new version takes away
_OF_A_SELECTION = (RECORD, "report.json", "config.yaml")  # files that go when something else takes its place
_TEXT = (".md", ".json", ".yaml")
_NO_NAMESPACES = ("datasets", "models", "spaces")  # parts of addresses


def check_repo_id(repo_id: str) -> None:
    """Raise ValueError, without asking the Hub, if it would refuse a dataset repository of this name.

    huggingface_hub checks less: it takes letters of any alphabet, and the name of a kind of repository for a user's.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    namespace, slash, _ = repo_id.partition("/")
    if not slash:
        raise ValueError(f'the repository "{repo_id}" has no namespace. Give NAME/REPOSITORY, such as me/my-subset.')
    try:
        validate_repo_id(repo_id)
        valid = repo_id.isascii()
    except HFValidationError:
        valid = False
    if not valid or namespace in _NO_NAMESPACES:
        raise ValueError(
            f'the Hub takes no repository "{repo_id}". Give NAME/REPOSITORY, such as me/my-subset: letters of ASCII, '
            'digits, "-", "_" and "."; neither "--" nor ".."; no "-" or "." at the beginning or end, no ".git" at the '
            "end; at most 96 characters."
        )


def build_folder(given: str | os.PathLike | None, temporary: str) -> Path:
    """The folder that the files of a repository are built in: the one of a dry run, or the temporary one. An earlier
    dry run in it is removed.

    Raises: ValueError if it holds anything else, since files in it would be replaced.
    """
    if given is None:
        return Path(temporary)
    folder = Path(given).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f'"{folder}" is a file; a dry run builds a folder. Give a new or empty one.')
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    built = {"README.md", PROVENANCE, *_OF_A_SELECTION, *(name.rstrip("/") for name in _OURS)}
    if there and (PROVENANCE not in there or not there <= built):
        raise ValueError(f'"{folder}" holds other files, which a dry run could replace. Give a new or empty folder.')
    for name in sorted(there):
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
    """One commit of all files, tried again while the Hub or the network stumbles. Every attempt looks again at what is
    there: of a commit that was made although its answer was lost, nothing is left to do."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download

    api = HfApi(token=token)

    def attempt() -> str:
        api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        if revision != "main":
            api.create_branch(repo_id, repo_type="dataset", branch=revision, exist_ok=True)
        there = api.dataset_info(repo_id, revision=revision)
        commit, names = cast(str, there.sha), [file.rfilename for file in there.siblings or []]
        known = {
            name: Path(hf_hub_download(repo_id, name, repo_type="dataset", revision=commit, token=token))
            for name in (RECORD, PROVENANCE)
            if RECORD in names and name in names
        }
        write_card(known, commit)
        paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        for name, path in paths.items():
            if path.suffix in _TEXT:
                check_clean(name, path.read_text(encoding="utf-8"))
        adds = [CommitOperationAdd(name, path.resolve()) for name, path in paths.items()]
        ours = (*_OURS, *(_OF_A_SELECTION if RECORD in names else ()))
        gone = [CommitOperationDelete(name) for name in names if name.startswith(ours) and name not in paths]
        message = f"hf_select {__version__}: {len(paths)} files"
        place: dict[str, Any] = {"repo_type": "dataset", "revision": revision, "parent_commit": commit}
        try:
            return str(api.create_commit(repo_id, [*adds, *gone], commit_message=message, **place).commit_url)
        except json.JSONDecodeError as error:  # a proxy's page in place of the Hub's answer
            raise ConnectionError("the Hub's answer is not JSON") from error

    return speaking_plainly(lambda: with_retries(attempt, f"push to {repo_id}"), repo_id)


def speaking_plainly(act: Callable[[], Any], repo_id: str) -> Any:
    """What the Hub refuses, in a line that says what to do; a file that is not there is left to the caller."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return act()
    except OfflineModeIsEnabled:
        raise ValueError(f'"{repo_id}" is on the Hub and HF_HUB_OFFLINE is set; unset it.') from None
    except RepositoryNotFoundError as error:
        raise ValueError(
            f'no dataset repository "{repo_id}" on the Hub that this token may see ({_status(error)}). Check the '
            "name, or log in: hf auth login."
        ) from error
    except EntryNotFoundError:  # the caller knows what a missing file means
        raise
    except RevisionNotFoundError as error:
        raise ValueError(f'"{repo_id}" on the Hub has no such branch, tag or commit. Check the revision.') from error
    except HfHubHTTPError as error:
        cures = {
            401: "The token is missing or wrong: hf auth login.",
            403: "The token may not write there: make one that may, or choose another repository.",
            412: "Somebody else pushed at the same time: run the same command again.",
            429: "The Hub asks for a pause: run the same command later, it goes on where it was.",
        }
        code = error.response.status_code
        cure = cures.get(code, "Run the same command again, it goes on where it was." if code >= 500 else "")
        raise ValueError(f'the Hub refused "{repo_id}" ({_status(error)}). {cure}'.rstrip()) from error
    except Exception as error:
        if not is_transient(error) and not isinstance(error, RuntimeError):  # that of a file that could not be sent
            raise
        said = scrubbed(str(error).splitlines()[0])
        raise ConnectionError(
            f'"{repo_id}" could not be reached to the end ({said}). Run the same command again, it goes on where it '
            "was."
        ) from error


def validate_card(folder: Path, repo_id: str) -> bool:
    """Let the Hub check the metadata of a card that was built and not pushed. Returns: False if it cannot be reached.

    Raises: ValueError with the Hub's reasons for refusing the card.
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


def _reasons(answer: str) -> str:
    """The messages in the Hub's answer to a card that it refuses."""
    try:
        return "; ".join(error["message"] for error in json.loads(answer)["errors"])
    except (ValueError, KeyError, TypeError):
        return answer.rstrip(".")


def _status(error: Any) -> str:
    server = getattr(error, "server_message", None)
    said = scrubbed(" ".join(server.split()))[:200] if server else ""  # cut last: half a token is not recognised
    return f"{error.response.status_code}{': ' + said if said else ''}"


def about_source(source: str | None, split: str, token: str | None, config: str | None = None) -> dict[str, Any]:
    """Name of the source, and for a dataset on the Hub its revision, licence and language."""
    source, split, config = located(source or "", split, config)
    if not source or not is_hub_id(source):
        return {"name": scrubbed(source) if source else "a dataset", "on_hub": False, "split": split}
    from huggingface_hub import HfApi

    info = speaking_plainly(lambda: with_retries(lambda: HfApi(token=token).dataset_info(source), source), source)
    said = info.card_data or {}
    language = said.get("language")
    return {
        "name": source,
        "on_hub": True,
        "split": split,
        "config": config,
        "revision": info.sha,
        "license": said.get("license"),
        "language": [language] if isinstance(language, str) else language,
    }


def about_model(name: str, token: str | None) -> dict[str, Any]:
    """Whether a model is on the Hub, and the licence on its card.

    It counts as not there if it cannot be seen or the Hub may not be asked, and if the name has no namespace: what a
    server calls a model may be the name of another one on the Hub.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

    def look() -> dict[str, Any]:
        try:
            return {"on_hub": True, "license": (HfApi(token=token).model_info(name).card_data or {}).get("license")}
        except (OfflineModeIsEnabled, RepositoryNotFoundError):
            return {"on_hub": False, "license": None}

    if "/" not in name or not is_hub_id(name):
        return {"on_hub": False, "license": None}
    return speaking_plainly(lambda: with_retries(look, name), name)
