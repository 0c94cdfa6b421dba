"""hf-select advise"""

import shlex
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hf_select.cli.score import OverRows, build_scorer, fitted
from hf_select.cli.settings import command_words, settable


if TYPE_CHECKING:
    from datasets import Dataset


# Settings of one of the two questions that `advise` answers; the other would ignore them.
_OF_SCORING = ("small", "fraction", "which", "trainee", "passes", "source_column")
_OF_REPRESENTATIONS = ("splits", "sentence_encoder", "warm_up")


@dataclass(kw_only=True)
class Advise(OverRows):
    """Is this pool worth scoring, and with which model? Scores a sample with the intended scorer and a smaller one,
    and reports whether they agree, what the scores follow, and what scoring all rows would cost. With
    --representations: which representation finds the target? Holds back half of the queries, and reports under which
    layers, centring and whitening, beside TF-IDF, the other half finds them among the rows of the sample.

    Args:
        representations: answer the second question, for a scorer with targets (rds or embedding).
        small: settings of the smaller scorer that differ from the scorer's, e.g. model=Qwen/Qwen2.5-0.5B.
        share: share of the rows to score.
        fraction: share of the rows that you will select.
        which: whether you will select the highest or the lowest scores.
        trainee: model that you will train, to compare the cost of scoring with that of training; by default the model
            of the scorer.
        passes: passes over the rows in training.
        queries: rows of the target tasks, TASK=FILE_OR_ID; for scorers without targets, rows to look for in the pool.
            With --representations at least 8 a task.
        source_column: column that names the source of a row.
        splits: with --representations, random splits of the queries into halves.
        sentence_encoder: with --representations, also try this sentence-transformers model, as scorer embedding.
        warm_up: with --representations, also try LESS with the model and this folder of hf-select warm-up.
        seed: of the sample and of the splits.
    """

    representations: bool = False
    small: dict[str, str] | None = None
    share: float = 0.02
    fraction: float = 0.1
    which: Literal["best", "worst"] = "best"
    trainee: str | None = None
    passes: float = 2.0
    queries: dict[str, str] | None = None
    source_column: str | None = None
    splits: int = 10
    sentence_encoder: str | None = None
    warm_up: str | None = None
    seed: int = 0

    modules: ClassVar[tuple[str, ...]] = ("matplotlib", "scipy")
    example: ClassVar[str] = (
        "hf-select advise --scorer ifd --model Qwen/Qwen2.5-7B --small model=Qwen/Qwen2.5-0.5B --dataset "
        "tatsu-lab/alpaca --share 0.05 --output-dir advice"
    )

    def run(self) -> str | None:
        """Score the sample and print the recommendation. Returns: the command to run next."""
        ignored = _OF_SCORING if self.representations else _OF_REPRESENTATIONS
        for setting in fields(self):
            if setting.name in ignored and getattr(self, setting.name) != setting.default:
                flag = "--" + setting.name.replace("_", "-")
                raise ValueError(
                    f"{flag} changes nothing {'with' if self.representations else 'without'} --representations; "
                    "leave it out."
                )
        pool, queries = self.read(self.queries)
        return self._advise_target(pool, queries) if self.representations else self._advise(pool, queries)

    def _advise(self, pool: "Dataset", queries: dict[str, Any]) -> None:
        from hf_select.evaluation.advise import advise
        from hf_select.models.causal_lm import CausalLM
        from hf_select.strict_yaml import parse_yaml

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

    def _advise_target(self, pool: "Dataset", queries: dict[str, Any]) -> str:
        from hf_select.cli.table import print_table
        from hf_select.evaluation.advise_target import advise_target
        from hf_select.reports.target_advice import representation_table

        given = {
            "tfidf": {},
            "embedding": None if self.sentence_encoder is None else {"encoder": self.sentence_encoder},
            self.scorer: self.settings,
            "less": None if self.warm_up is None else self._less_settings(self.warm_up),
        }
        given = {name: settings for name, settings in given.items() if settings is not None}
        result = advise_target(
            pool,
            queries,
            [build_scorer(name, settings) for name, settings in given.items()],  # type: ignore[misc]
            self.output_dir,
            share=self.share,
            splits=self.splits,
            seed=self.seed,
            chunk_rows=self.chunk_rows,
        )
        header, rows = representation_table(result)
        print_table(header, rows)
        print(f"\n{result.message}.")
        for note in result.notes:
            print(f"- {note}.")
        print(f"\n{self.output_dir}/advice.html (open it in a browser), advice.md, advice.json; pictures/")
        chosen = result.results[result.recommended]
        settings = {name: value for name, value in given[chosen.scorer].items() if name != "layers"}
        return self._score_command({"scorer": chosen.scorer, **settings, **chosen.settings})

    def _less_settings(self, warm_up: str) -> dict[str, Any]:
        if "model" not in self.settings:
            raise ValueError("--warm-up needs the model that was trained; give --scorer rds --model MODEL.")
        known = {setting.name for part in self.parts({"scorer": "less"}) for setting in settable(part)}
        return {**{name: value for name, value in self.settings.items() if name in known}, "checkpoints": [warm_up]}

    def _score_command(self, settings: dict[str, Any]) -> str:
        of_rows = {
            "dataset": self.dataset,
            "split": None if self.split == "train" else self.split,
            "rename": self.rename,
            "queries": self.queries,
            "output_dir": "scores",
        }
        return shlex.join(["hf-select", "score", *command_words({**settings, **of_rows})])
