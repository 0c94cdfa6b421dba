"""hf-select report"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hf_select.cli.command import Command


if TYPE_CHECKING:
    from hf_select.reports.finished_selection import FinishedSelection


@dataclass
class Report(Command):
    """Write a report on a selection, or on two: one HTML page that works offline, and the same as Markdown, JSON and
    PNG files.

    Args:
        subset: output of hf-select select, or the folder of hf-select run (its last selection).
        compare_with: another subset or run from the same rows; the page then compares the two.
        output_dir: folder for the report; by default the folder report next to the subset. The report of another
            selection in that folder is not replaced.
        scores: the scored rows, if they have been moved; several folders are joined by row_id.
        split: split of a saved or Hub dataset.
        title: of the page.
        source_column: column that names the source of a row; by default source, dataset, task, category, domain or
            subset.
        examples: rows on the page of each kind that was not selected.
        max_megabytes: largest size of the page; texts are cut to fit, and the page says so.
        seed: of the random rows that the selection is compared with.
    """

    subset: str
    compare_with: str | None = None
    output_dir: str | None = None
    scores: str | list[str] | None = None
    split: str = "train"
    title: str | None = None
    source_column: str | None = None
    examples: int = 200
    max_megabytes: float = 14.0
    seed: int = 0

    modules: ClassVar[tuple[str, ...]] = ("matplotlib",)
    example: ClassVar[str] = "hf-select report hf_select_runs/quickstart"
    positional: ClassVar[tuple[str, ...]] = ("subset",)

    def run(self) -> None:
        """Write the report."""
        from hf_select.reports.finished_selection import read_finished, with_columns_of
        from hf_select.reports.report import compare_report, report

        if self.examples < 0:
            raise ValueError(f"examples is {self.examples}; it must be at least 0.")
        finished = read_finished(self.subset, self.scores, self.split)
        folder = Path(self.output_dir or finished.subset.parent / "report").expanduser()
        settings: dict[str, Any] = {
            "source_column": self.source_column,
            "examples": self.examples,
            "max_megabytes": self.max_megabytes,
        }
        if self.compare_with is None:
            title = self.title or f"Selection report: {finished.name}"
            self._check_default(finished, folder / "report.md", title)
            settings |= {"steps": finished.steps, "earlier": finished.earlier, "seed": self.seed}
            page = report(finished.pool, finished.selection, folder, title=title, **settings)
        else:
            other = read_finished(self.compare_with, None, self.split)
            named = ([each.name, each.subset.name.split(".")[0], str(each.subset)] for each in (finished, other))
            names = next((pair for pair in zip(*named, strict=True) if pair[0] != pair[1]), None)
            if names is None:
                raise ValueError(f'"{self.subset}" is compared with itself; give another selection.')
            title = self.title or f"Comparison: {names[0]} and {names[1]}"
            self._check_default(finished, folder / "comparison.md", title)
            pool = with_columns_of(finished.pool, other.pool)
            selections = dict(zip(names, (finished.selection, other.selection), strict=True))
            page = compare_report(pool, selections, folder, title=title, **settings)
        others = ", ".join(str(page.with_suffix(suffix)) for suffix in (".md", ".json"))
        print(
            f"{page} ({page.stat().st_size / 1e6:.1f} MB; open it in a browser), {others}; pictures in the same folder"
        )

    def _check_default(self, finished: "FinishedSelection", page: Path, title: str) -> None:
        """Raise if the default folder, which all subsets of a folder share, holds a page with another title."""
        from hf_select.reports.markdown import inline

        if self.output_dir is not None or finished.recipe is not None or not page.exists():
            return
        with page.open(encoding="utf-8") as file:
            heading = file.readline().rstrip("\n")
        if heading != f"# {inline(title)}":
            raise ValueError(
                f'"{page.parent}" holds another report ("{heading.removeprefix("# ")}"); give --output-dir.'
            )
