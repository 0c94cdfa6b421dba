"""hf-select join"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hf_select.cli.command import Command


@dataclass(kw_only=True)
class Join(Command):
    """Join finished comparisons: of other pools or models side by side, or the folders of one comparison as one.

    Args:
        comparisons: folders of hf-select compare, FOLDER or NAME=FOLDER, at least two; those of one comparison (the
            same pool, recipe and measures) are merged.
        output_dir: folder for the tables and the page.
    """

    comparisons: list[str]
    output_dir: str

    example: ClassVar[str] = "hf-select join --comparisons runs/alpaca tulu=runs/tulu_7b --output-dir joined"

    def run(self) -> None:
        from hf_select.cli.table import print_table
        from hf_select.evaluation.join import join

        found = join(self.comparisons, self.output_dir)
        folder = Path(self.output_dir).expanduser()
        if "columns" not in found:
            print(f"One comparison, merged: {folder}/result.html (open it in a browser), result.md, result.json")
            return
        rows = []
        for name, of in found["methods"].items():
            rank = "" if of["mean_rank"] is None else f"{of['mean_rank']:.2f}"
            rows.append([name, *(str(of[key]) for key in ("better", "worse", "no evidence")), rank])
        print_table(["", "better", "worse", "no evidence", "mean rank"], rows, "beside random rows, by comparison")
        for name in found["asked"]:
            print(f"  {name}: {found['methods'][name]['words']}")
        print(f"\n{folder}/joined.html (open it in a browser), joined.md, joined.json")
