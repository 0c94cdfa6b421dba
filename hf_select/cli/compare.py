"""hf-select compare"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hf_select.cli.score import Rows, build_parts
from hf_select.columns import SCORE_PREFIX


_WHICH = ("best", "middle", "worst")


@dataclass(kw_only=True)
class Compare(Rows):
    """Is a selection better than random rows here? Trains selections and baselines on equally many tokens, with
    several seeds, and measures them on held-out rows; a killed comparison goes on, and processes share the work.

    Args:
        methods: NAME=FOLDER of hf-select score over the dataset, several for several; NAME=FOLDER:worst or :middle
            takes the lowest scores or those below the top third in place of the highest.
        held_out: rows to measure on, NAME=FILE_OR_ID, several for several domains.
        budgets: rows of a selection, one or several.
        seeds: runs of each method.
        passes: every run trains as many tokens as so many passes over random rows of its size.
        balanced_by: column of sources, for random rows balanced over them.
        whole_pool: also train on the whole pool, for as many tokens.
    """

    methods: dict[str, str]
    held_out: dict[str, str]
    budgets: list[int]
    seeds: int = 3
    passes: float = 2.0
    balanced_by: str | None = None
    whole_pool: bool = False

    example: ClassVar[str] = (
        "hf-select compare --model Qwen/Qwen2.5-0.5B --dataset tatsu-lab/alpaca --methods ifd=runs/ifd/scores "
        "--held-out task=held_out.jsonl --budgets 1000 5000 --output-dir comparison"
    )

    @staticmethod
    def parts(values: dict[str, Any]) -> list[type]:
        """Classes whose settings this command takes besides its own."""
        from hf_select.training.equal_tokens import Recipe

        return [Recipe]

    def run(self) -> None:
        from hf_select.cli.data import read_dataset
        from hf_select.evaluation.compare import compare
        from hf_select.selection.top_k import TopK

        recipe = build_parts(self.parts({}), self.settings, "compare")
        rows, methods, costs = self.rows(), {}, {}
        pool = rows
        for name, said in self.methods.items():
            folder, _, which = said.rpartition(":") if said.rpartition(":")[2] in _WHICH else (said, "", "best")
            scores, costs[name] = _scores(rows, name, Path(folder).expanduser())
            column = f"{SCORE_PREFIX}{name}_of_comparison"
            pool = pool.add_column(column, scores)
            methods[name] = TopK(column, which=which)  # type: ignore[arg-type]
        result = compare(
            pool,
            methods,
            {name: read_dataset(source, self.split) for name, source in self.held_out.items()},
            recipe,
            self.output_dir,
            self.budgets,
            seeds=self.seeds,
            passes=self.passes,
            balanced_by=self.balanced_by,
            whole_pool=self.whole_pool,
            costs=costs,
        )
        for budget, domains in result["budgets"].items():
            for domain, lines in domains.items():
                _print(f"{int(budget):,} rows, held-out: {domain}", lines)
        print(f"\nTables and figures: {self.output_dir}/result.md, result.json; the runs: cells/")


def _scores(rows: Any, name: str, folder: Path) -> tuple[list[float | None], dict[str, float]]:
    """The scores of a run over these rows, and what they cost."""
    import pyarrow.parquet as pq

    from hf_select.files import read_json
    from hf_select.inference.pool import Pool

    manifest, summary = read_json(folder / "manifest.json"), read_json(folder / "summary.json")
    if manifest is None or summary is None:
        raise ValueError(f'method {name}: "{folder}" is no finished run of hf-select score.')
    if manifest["pool"]["fingerprint"] != Pool(rows, manifest["chunk_rows"]).fingerprint():
        raise ValueError(f'method {name}: the scores in "{folder}" are of other rows than the dataset.')
    scores = pq.read_table(folder / "scores.parquet")
    return scores[f"{SCORE_PREFIX}{manifest['made_by']['name']}"].to_pylist(), summary["cost"]


def _print(title: str, lines: dict[str, Any]) -> None:
    from hf_select.cli.table import print_table

    rows = []
    for name, line in lines.items():
        d = line.get("difference")
        shown = ["", "", ""] if d is None else [f"{d['mean']:+.4f}", f"[{d['low']:+.4f}, {d['high']:+.4f}]"]
        rows.append([name, f"{line['loss']:.4f}", *shown[:2], "" if d is None else f"{d['p_holm']:.3f}"])
    print_table(["", "loss (nats)", "less random", "95 %", "p"], rows, title)
    for name, line in lines.items():
        if "verdict" in line:
            print(f"  {name}: {line['verdict']}")
