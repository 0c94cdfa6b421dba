"""hf-select warm-up"""

from dataclasses import dataclass
from typing import ClassVar

from hf_select.cli.command import Values
from hf_select.cli.score import Rows, build_parts


@dataclass(kw_only=True)
class WarmUpCommand(Rows):
    """Train a LoRA adapter on a random share of a pool, with a checkpoint per epoch, as LESS needs it. The same
    command resumes a stopped run.
    """

    modules: ClassVar[tuple[str, ...]] = ("trl", "peft")
    example: ClassVar[str] = (
        "hf-select warm-up --model meta-llama/Llama-2-7b-hf --dataset tatsu-lab/alpaca --output-dir warm_up"
    )

    @classmethod
    def parts(cls, values: Values) -> list[type]:
        from hf_select.models.causal_lm import CausalLM
        from hf_select.training.warmup import WarmUp

        return [WarmUp, CausalLM]

    def run(self) -> str:
        """Train the checkpoints. Returns: the command to run next."""
        warm_up = build_parts(self.parts({}), self.settings, "warm-up")
        checkpoints = warm_up.run(self.rows(), self.output_dir)
        print(f"{len(checkpoints)} checkpoints in {self.output_dir}")
        return (
            f"hf-select score --scorer less --checkpoints {self.output_dir} --queries TASK=FILE "
            f"--dataset {self.dataset} --output-dir scores, with the model of this command."
        )
