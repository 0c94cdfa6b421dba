"""hf-select search-mixture"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from hf_select.cli.command import Command, Values


@dataclass(kw_only=True)
class SearchMixture(Command):
    """Search the weights of a mixture: train small runs, fit a regression to their results, and confirm its best
    weights with new runs. The same command resumes a stopped search.

    Args:
        sources: NAME=FILE_OR_ID, at least two.
        held_out: rows to measure the loss on, NAME=FILE_OR_ID, one or several domains of equal weight.
        output_dir: folder for the runs and result.json.
        rows: number of rows of each mixture.
        runs: number of mixtures to train; start with five per source.
        draws: dirichlet draws weights around the sources' proportions; grid takes them from a grid.
        passes: every run trains on as many tokens as this number of passes over its rows has.
        seeds: runs of the best weights, of the sources' proportions and of equal shares.
        seed: of the drawn weights.
        split: of saved or Hub datasets.
        rename: columns to rename first, in sources and held-out rows, e.g. question=prompt answer=completion.
    """

    sources: dict[str, str]
    held_out: dict[str, str]
    output_dir: str
    rows: int
    runs: int = 20
    draws: Literal["dirichlet", "grid"] = "dirichlet"
    passes: float = 1.0
    seeds: int = 3
    seed: int = 0
    split: str = "train"
    rename: dict[str, str] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    modules: ClassVar[tuple[str, ...]] = ("trl", "peft", "scipy")
    example: ClassVar[str] = (
        "hf-select search-mixture --model Qwen/Qwen2.5-0.5B --sources chat=chat.jsonl math=math.jsonl code=code.jsonl "
        "--held-out mine=held_out.jsonl --rows 1000 --output-dir search"
    )

    @classmethod
    def parts(cls, values: Values) -> list[type]:
        from hf_select.training.equal_tokens import Recipe

        return [Recipe]

    def run(self) -> str:
        """Search the weights. Returns: the command to run next."""
        from hf_select.cli.settings import build
        from hf_select.cli.table import print_table
        from hf_select.data.loading import read_named, renamed
        from hf_select.evaluation.mixture_search import search_mixture
        from hf_select.training.equal_tokens import Recipe

        sources = {name: self._source(name, where) for name, where in self.sources.items()}
        held_out = read_named(self.held_out, self.split)
        datasets = iter(renamed([*sources.values(), *held_out.values()], self.rename))
        sources, held_out = ({name: next(datasets) for name in group} for group in (sources, held_out))
        result = search_mixture(
            sources,
            held_out,
            build(Recipe, self.settings, "hf-select search-mixture"),
            self.output_dir,
            self.rows,
            self.runs,
            self.draws,
            self.passes,
            self.seeds,
            self.seed,
        )
        print_table(["source", "weight"], [[name, f"{weight:.3f}"] for name, weight in result.weights.items()])
        rows = [[name, f"{value:.4f}"] for name, value in result.confirmed.items()]
        print_table(["weights", "result, new seeds"], rows)
        for name, d in result.differences.items():
            print(f"best minus {name}: {d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}]")
        cost = result.cost
        print(f"{result.verdict}.\n{cost.tokens:,} tokens, {cost.seconds:,.0f} s, {cost.flops:.2e} FLOPs.")
        weights = " ".join(f"{name}={weight:.3f}" for name, weight in result.weights.items())
        return f"hf-select mix --sources ... --weights {weights} --rows N --output-dir mix"

    def _source(self, name: str, where: str) -> Any:
        from hf_select.data.loading import read_dataset

        try:
            return read_dataset(where, self.split)
        except ValueError as error:
            raise ValueError(f'source "{name}": {error}') from error
