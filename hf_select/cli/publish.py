"""hf-select publish"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hf_select.cli.command import Command


@dataclass
class Publish(Command):
    """Push a selected subset to the Hub, with the scores of the whole pool, its provenance and a card; or the output
    of hf-select generate or mix with its record and a card; or the index of a pool. The same command resumes an
    interrupted push; repeating a finished push changes nothing.

    Args:
        subset: output of hf-select select, or the folder of hf-select run (its last selection), generate, mix or
            index.
        repo_id: dataset repository, NAME/REPOSITORY.
        license: of the rows, an identifier of the Hub such as apache-2.0; by default that of the source dataset's
            card. There is no default for text written by models.
        language: of the rows, such as en; by default that of the source dataset's card.
        private: create the repository as private; --no-private creates a public one.
        revision: branch to push to.
        scores: the scored rows, if they have been moved; several folders are joined by row_id.
        source: Hub id or file that the rows came from, if the records do not name it.
        split: split of a saved or Hub dataset.
        source_column: column that names the source of a row, for the report.
        dry_run: new or empty folder to build the files in and look at; nothing is pushed, and the Hub checks the
            card's metadata, such as the license.
    """

    subset: str
    repo_id: str
    license: str | None = None
    language: list[str] | None = None
    private: bool = True
    revision: str = "main"
    scores: str | list[str] | None = None
    source: str | None = None
    split: str = "train"
    source_column: str | None = None
    dry_run: str | None = None

    example: ClassVar[str] = "hf-select publish hf_select_runs/quickstart --repo-id me/my-subset --license apache-2.0"
    positional: ClassVar[tuple[str, ...]] = ("subset",)

    def run(self) -> None:
        """Build the files and push them."""
        from hf_select.hub.output import find_output, push_output
        from hf_select.hub.push import push_selected
        from hf_select.hub.push_index import push_index
        from hf_select.hub.repository import check_repo_id, validate_card

        check_repo_id(self.repo_id)
        where = {"private": self.private, "revision": self.revision}
        card = {"license": self.license, "language": self.language, "split": self.split, "dry_run": self.dry_run}
        if (Path(self.subset).expanduser() / "vectors").is_dir():
            self._refuse("an index", "dry_run", "language", "scores", "source", "source_column")
            if self.license is None:
                raise ValueError("an index is published under the licence of its rows: give --license.")
            address = push_index(self.subset, self.repo_id, license=self.license, **where)
        elif (output := find_output(self.subset)) is not None:
            self._refuse("the output of generate or mix", "scores", "source_column")
            address = push_output(output, self.repo_id, source=self.source, **card, **where)
        else:
            from hf_select.reports.finished_selection import read_finished

            finished = read_finished(self.subset, self.scores, self.split)
            address = push_selected(
                finished.selection,
                self.repo_id,
                dataset=finished.pool,
                source=self.source or finished.source,
                steps=finished.steps,
                recipe=finished.recipe,
                source_column=self.source_column,
                **card,
                **where,
            )
        if self.dry_run is None:
            print(address)
            return
        print(f"built, not pushed: {address}")
        if not validate_card(Path(address), self.repo_id):
            print("The Hub cannot be reached: whether it accepts the card, with this license, was not checked.")

    def _refuse(self, what: str, *names: str) -> None:
        """Raise for flags that would be ignored."""
        if given := [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) is not None]:
            raise ValueError(f"{what} is published without these settings; leave out {', '.join(given)}.")
