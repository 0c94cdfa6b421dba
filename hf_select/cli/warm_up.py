"""hf-select warm-up"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from hf_select.cli.settings import build, check_names, settable


@dataclass
class WarmUpCommand:
    """Train a LoRA adapter on a random share of a pool, a checkpoint an epoch, as LESS needs it; a killed run goes on.

    Args:
        dataset: a JSON, JSONL, CSV or Parquet file (also .gz), a saved dataset or a Hub id.
        output_dir: folder of the run and its checkpoints.
        split: split of a saved or Hub dataset.
        rename: columns to rename first, e.g. question=prompt answer=completion.
        limit: only the first rows.
    """

    dataset: str
    output_dir: str
    split: str = "train"
    rename: dict[str, str] | None = None
    limit: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    example: ClassVar[str] = (
        "hf-select warm-up --model meta-llama/Llama-2-7b-hf --dataset tatsu-lab/alpaca --output-dir warm_up"
    )

    @staticmethod
    def parts(values: dict[str, Any]) -> list[type]:
        """Classes whose settings this command takes besides its own."""
        from hf_select.inference.causal_lm import CausalLM
        from hf_select.training.warmup import WarmUp

        return [WarmUp, CausalLM]

    def run(self) -> None:
        from hf_select.cli.data import read_dataset

        warm_up, causal_lm = self.parts({})
        check_names(self.settings, [warm_up, causal_lm], "warm-up")
        own = {f.name for f in settable(warm_up)}
        mine = {key: value for key, value in self.settings.items() if key in own}
        shared = {key: value for key, value in self.settings.items() if key not in own}
        if "model" in mine:
            mine["model"] = build(causal_lm, {"model": mine["model"], **shared}, "warm-up")
        run = build(warm_up, mine, "warm-up")
        checkpoints = run.run(read_dataset(self.dataset, self.split, self.rename, self.limit), self.output_dir)
        print(f"{len(checkpoints)} checkpoints in {self.output_dir}")
        print(
            f"Next: hf-select score --scorer less --checkpoints {self.output_dir} --queries TASK=FILE "
            f"--dataset {self.dataset} --output-dir scores, with the model of this command."
        )
