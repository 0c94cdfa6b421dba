"""hf-select compare-generators"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from hf_select.cli.command import Values
from hf_select.cli.score import Rows, build_parts


if TYPE_CHECKING:
    from hf_select.features.sentence_embeddings import SentenceEmbeddings
    from hf_select.generation.server import ServerGenerator
    from hf_select.reports.generator_result import GeneratorComparison


@dataclass(kw_only=True)
class CompareGenerators(Rows):
    """Which model's answers are better training data? Reports statistics and agreement of several models' answers to
    the same prompts; on request also a judge's verdicts in both orders, a score column, and the results of a base
    model trained on each model's answers with the same number of tokens.

    Args:
        model_column: column that names the model of each answer.
        encoder: sentence-transformers model, for the agreement of embeddings (extra `embed`).
        judge: name of a model that compares pairs of answers.
        judge_base_url: address of its OpenAI-compatible server; by default Inference Providers of the Hub.
        judge_api_key_env: environment variable that holds that server's key.
        judge_prompts: number of prompts to judge, twice for each pair of models.
        score_column: column with a score of the answers, such as that of a reward model.
        held_out: rows to measure trained models on, NAME=FILE_OR_ID, one or several domains; with --model.
        train_prompts: number of prompts whose answers are trained on; by default all that all models have answered.
        seeds: training runs of each model.
        passes: every run trains on as many tokens as this number of passes over random answers has.
    """

    model_column: str = "model"
    encoder: str | None = None
    judge: str | None = None
    judge_base_url: str | None = None
    judge_api_key_env: str | None = None
    judge_prompts: int = 200
    score_column: str | None = None
    held_out: dict[str, str] | None = None
    train_prompts: int | None = None
    seeds: int = 3
    passes: float = 2.0

    modules: ClassVar[tuple[str, ...]] = ("matplotlib", "scipy")
    example: ClassVar[str] = (
        "hf-select compare-generators --dataset responses/responses.parquet --output-dir generators "
        "--judge Qwen/Qwen2.5-72B-Instruct --model Qwen/Qwen2.5-0.5B --held-out mine=held_out.jsonl"
    )

    @classmethod
    def parts(cls, values: Values) -> list[type]:
        from hf_select.training.equal_tokens import Recipe

        return [Recipe]

    def run(self) -> None:
        """Compare the answers and print the tables."""
        from hf_select.atomic import atomic_path, write_json
        from hf_select.evaluation.generator_comparison import (
            describe,
            judge_answers,
            score_answers,
            train_on_answers,
        )
        from hf_select.evaluation.model_answers import Answers
        from hf_select.reports.generators import generators_markdown

        if ("model" in self.settings) != bool(self.held_out):
            raise ValueError("to train on the answers give both --model, the base model, and --held-out NAME=FILE.")
        rows, held_out = self.read(self.held_out)
        answers = Answers(rows, self.model_column)
        folder = Path(self.output_dir).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        result = describe(answers, self._featurizer())
        if self.score_column is not None:
            result = replace(result, score=self.score_column, scores=score_answers(answers, self.score_column))
        if self.judge is not None:
            result = replace(result, judgement=judge_answers(answers, self._judge(), folder, self.judge_prompts))
        if held_out:
            recipe = build_parts(self.parts({}), self.settings, "compare-generators")
            training = train_on_answers(
                answers, held_out, recipe, folder / "trained", self.train_prompts, self.seeds, self.passes
            )
            result = replace(result, training=training)
        write_json(folder / "generators.json", result.to_dict())
        with atomic_path(folder / "generators.md") as temporary:
            temporary.write_text(generators_markdown(result), encoding="utf-8")
        self._print(result)

    def _featurizer(self) -> "SentenceEmbeddings | None":
        """The sentence encoder for the agreement of embeddings, if one is given."""
        if self.encoder is None:
            return None
        from hf_select.features.sentence_embeddings import SentenceEmbeddings

        return SentenceEmbeddings(self.encoder)

    def _judge(self) -> "ServerGenerator":
        """The judge behind its server."""
        from hf_select.generation.server import ServerGenerator

        return ServerGenerator(str(self.judge), base_url=self.judge_base_url, api_key_env=self.judge_api_key_env)

    def _print(self, result: "GeneratorComparison") -> None:
        from hf_select.cli.table import print_table

        rows = []
        for model, statistics in result.statistics.items():
            rate = None if result.judgement is None else result.judgement.models[model].win_rate
            rows.append(
                [
                    model,
                    f"{statistics.words:,.0f}",
                    f"{statistics.refusals:.1%}",
                    f"{statistics.distinct[1]:.3f}",
                    f"{result.agreement['rouge_l'].consensus[model]:.3f}",
                    "-" if rate is None else f"{rate:.3f}",
                ]
            )
        header = ["model", "words", "refusals", "distinct 2-grams", "ROUGE-L to others", "win rate"]
        print_table(header, rows, f"{result.prompts:,} prompts that all models have answered")
        between = {} if result.training is None else result.training.between
        for domain, pairs in between.items():
            print(f"\nThe same base model trained on each, loss on {domain}:")
            for name, pair in pairs.items():
                d = pair.difference
                print(f"  {name}: {d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}], {pair.verdict}")
        print(f"\nAll tables: {self.output_dir}/generators.md, generators.json")
