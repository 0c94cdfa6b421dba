"""hf-select publish"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar


@dataclass
class Publish:
    """Push a selected subset to the Hub, with the scores of the whole pool, its provenance and a card; or the index of
    a pool. The same command continues a push that was cut off; once more it changes nothing.

    Args:
        subset: what hf-select select wrote, the folder of hf-select run (its last selection), or that of hf-select
            index.
        repo_id: dataset repository, NAME/REPOSITORY.
        license: of the rows, an identifier such as apache-2.0; by default that of the source dataset's card.
        language: of the rows, such as en; by default that of the source dataset's card.
        private: whether a repository that is made is private; --no-private makes it public.
        revision: branch that is pushed to.
        scores: the scored rows, if they are no longer where they were.
        source: Hub id or file that the rows came from, if the records do not say it.
        split: split of a saved or Hub dataset.
        source_column: column that says where a row comes from, for the report.
        dry_run: folder to build the files in and look at; nothing is pushed.
    """

    subset: str
    repo_id: str
    license: str | None = None
    language: list[str] | None = None
    private: bool = True
    revision: str = "main"
    scores: str | None = None
    source: str | None = None
    split: str = "train"
    source_column: str | None = None
    dry_run: str | None = None

    example: ClassVar[str] = "hf-select publish hf_select_runs/quickstart --repo-id me/my-subset --license apache-2.0"
    positional: ClassVar[str] = "subset"

    @staticmethod
    def parts(values: dict[str, Any]) -> list[type]:
        return []

    def run(self) -> None:
        from hf_select.hub.push import push_index, push_selected

        if (Path(self.subset).expanduser() / "vectors").is_dir():
            if self.license is None:
                raise ValueError("an index is published under the licence of its rows: give --license.")
            if self.dry_run is not None:
                raise ValueError(f'the files of an index are those in "{self.subset}"; leave out --dry-run.')
            where = {"private": self.private, "revision": self.revision}
            print(push_index(self.subset, self.repo_id, license=self.license, **where))
            return
        from hf_select.cli.finished import read_finished

        found = read_finished(self.subset, self.scores, self.split)
        address = push_selected(
            found.selection,
            self.repo_id,
            dataset=found.pool,
            private=self.private,
            license=self.license,
            language=self.language,
            source=self.source or found.source,
            split=self.split,
            steps=found.steps,
            recipe=found.recipe,
            source_column=self.source_column,
            revision=self.revision,
            dry_run=self.dry_run,
        )
        print(f"built, not pushed: {address}" if self.dry_run else address)
