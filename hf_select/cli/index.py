"""hf-select index"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from hf_select.cli.score import OverRows, build_scorer, check_any, say_if_few


@dataclass(kw_only=True)
class Index(OverRows):
    """Encode every row once and store the vectors, so that any queries can be compared with them without the model.
    With --center and --whiten their mean and covariance are stored, too; the vectors themselves stay as they are.

    Args:
        stored_dtype: of the vectors on disk: float16 takes 2 bytes per dimension and changes similarities by about
            1e-4; int8 and 1bit are for the projected gradients of less.
    """

    stored_dtype: Literal["float32", "float16", "int8", "1bit"] = "float16"

    example: ClassVar[str] = (
        "hf-select index --scorer rds --model Qwen/Qwen2.5-0.5B --dataset tatsu-lab/alpaca --output-dir index"
    )
    other_commands: ClassVar[Mapping[str, str]] = {"--status": "status"}

    def run(self) -> str | None:
        """Build the index. Returns: the command to run next."""
        from hf_select.cli.table import print_table
        from hf_select.features.store import PoolIndex
        from hf_select.jobs.launch import is_main_process
        from hf_select.scoring.dense import DenseSimilarity

        scorer = build_scorer(self.scorer, self.settings)
        if scorer.featurizer is None:
            raise ValueError(
                f"scorer {self.scorer} compares no vectors; an index is for rds, embedding and less with a projection."
            )
        index = PoolIndex.build(
            self.rows(),
            scorer.featurizer,
            self.output_dir,
            stored_dtype=self.stored_dtype,
            chunk_rows=self.chunk_rows,
            source=self.dataset,
            when_running=self.when_running,
        )
        if not is_main_process():  # one of the processes says how it went
            return None
        if isinstance(scorer, DenseSimilarity) and scorer.center:
            index.moments(covariance=scorer.whiten > 0)
        summary = index.summary
        rows = [
            ["rows", f"{len(index):,}"],
            ["with a vector", f"{summary['with_vector']:,}"],
            *([f"without: {reason}", f"{count:,}"] for reason, count in summary["reasons"].items()),
            ["dimensions, stored as", f"{index.dimensions:,}, {self.stored_dtype}"],
            ["seconds, rows/s", f"{summary['cost']['seconds']:,.1f}, {len(index) / summary['cost']['seconds']:,.1f}"],
        ]
        say_if_few(summary["with_vector"], len(index), summary["reasons"], "a vector")
        print_table(["", ""], rows)
        check_any(summary["with_vector"], summary["reasons"], "a vector")
        return (
            f"hf-select score --scorer {self.scorer} --index {self.output_dir} --dataset {self.dataset} "
            "--queries TASK=FILE --output-dir scores, with the settings of this command."
        )
