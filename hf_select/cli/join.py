"""hf-select join"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hf_select.cli.command import Command


@dataclass(kw_only=True)
class Join(Command):
    """Join finished comparisons: show several pools or models side by side, or merge the parts of one comparison.

    Args:
        comparisons: folders of hf-select compare, FOLDER or NAME=FOLDER, at least two; those of one comparison (the
            same pool, recipe and measures) are merged.
        output_dir: folder for the tables and the page.
    """

    comparisons: list[str]
    output_dir: str

    modules: ClassVar[tuple[str, ...]] = ("matplotlib", "scipy")
    example: ClassVar[str] = "hf-select join --comparisons runs/alpaca tulu=runs/tulu_7b --output-dir joined"

    def run(self) -> None:
        """Join the comparisons and print the table."""
        from hf_select.cli.table import print_table
        from hf_select.evaluation.join import join
        from hf_select.reports.comparison_result import JoinedComparisons

        joined = join(self.comparisons, self.output_dir)
        folder = Path(self.output_dir).expanduser()
        if not isinstance(joined, JoinedComparisons):
            print(f"One comparison, merged: {folder}/result.html (open it in a browser), result.md, result.json")
            return
        rows = []
        for name, method in joined.results.items():
            rank = "" if method.mean_rank is None else f"{method.mean_rank:.2f}"
            rows.append([name, *map(str, method.counts.values()), rank])
        header = ["", "better", "worse", "no evidence", "mean rank"]
        print_table(header, rows, "compared with random rows, by comparison")
        for name in joined.methods:
            print(f"  {name}: {joined.results[name].message}")
        print(f"\n{folder}/joined.html (open it in a browser), joined.md, joined.json")
