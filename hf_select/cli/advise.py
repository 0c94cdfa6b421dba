"""hf-select advise"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from hf_select.cli.score import OverRows, build_scorer, fitted


@dataclass(kw_only=True)
class Advise(OverRows):
    """Is this pool worth scoring, and with which model? Scores a sample with the intended scorer and a smaller one,
    and reports whether they agree, what the scores follow, and what scoring all rows would cost.

    Args:
        small: settings of the smaller scorer that differ from the scorer's, e.g. model=Qwen/Qwen2.5-0.5B.
        share: share of the rows to score.
        fraction: share of the rows that you will select.
        which: whether you will select the highest or the lowest scores.
        trainee: model that you will train, to compare the cost of scoring with that of training; by default the model
            of the scorer.
        passes: passes over the rows in training.
        queries: rows of the target tasks, TASK=FILE_OR_ID; for scorers without targets, rows to look for in the pool.
        source_column: column that names the source of a row.
        seed: of the sample.
    """

    small: dict[str, str] | None = None
    share: float = 0.02
    fraction: float = 0.1
    which: Literal["best", "worst"] = "best"
    trainee: str | None = None
    passes: float = 2.0
    queries: dict[str, str] | None = None
    source_column: str | None = None
    seed: int = 0

    modules: ClassVar[tuple[str, ...]] = ("matplotlib", "scipy")
    example: ClassVar[str] = (
        "hf-select advise --scorer ifd --model Qwen/Qwen2.5-7B --small model=Qwen/Qwen2.5-0.5B --dataset "
        "tatsu-lab/alpaca --share 0.05 --output-dir advice"
    )

    def run(self) -> None:
        """Score the sample and print the recommendation."""
        from hf_select.evaluation.advise import advise
        from hf_select.models.causal_lm import CausalLM
        from hf_select.strict_yaml import parse_yaml

        pool, queries = self.read(self.queries)
        scorers: dict[str, Any] = {}
        # On the command line settings of a mapping are texts; in a recipe they have their types already.
        own = {
            key: parse_yaml(value, f'the value of small "{key}"') if isinstance(value, str) else value
            for key, value in (self.small or {}).items()
        }
        for name, settings in {"large": {}, **({"small": own} if own else {})}.items():
            scorer = build_scorer(self.scorer, {**self.settings, **settings})
            scorers[name] = fitted(scorer, self.scorer, queries, pool) if scorer.needs_fit else scorer
        model = scorers["large"].settings().get("model")
        model = model.model if isinstance(model, CausalLM) else model
        result = advise(
            pool,
            scorers["large"],
            self.output_dir,
            small=scorers.get("small"),
            share=self.share,
            fraction=self.fraction,
            which=self.which,
            trainee=self.trainee or (model if isinstance(model, str) else None),
            passes=self.passes,
            queries=queries,
            source_column=self.source_column,
            seed=self.seed,
            chunk_rows=self.chunk_rows,
        )
        print(f"\n{result.advice.message}.")
        for note in result.advice.notes:
            print(f"- {note}.")
        print(f"\n{self.output_dir}/advice.html (open it in a browser), advice.md, advice.json; pictures/")
