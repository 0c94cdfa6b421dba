"""hf-select generate"""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal


@dataclass(kw_only=True)
class Generate:
    """Make synthetic instructions: GLAN, from a taxonomy of human knowledge over subjects and syllabi to questions and
    answers. A killed run goes on where it stopped; between stages its files may be edited.

    Args:
        method: glan.
        output_dir: folder for all that is made; the same command continues a killed run in it.
        backend: where the models are: behind an OpenAI-compatible server or at Inference Providers, or in this
            process by transformers or vllm.
        answer_base_url: the answers' server, if it is another.
        answer_provider: the answers' provider, if it is another.
        answer_api_key_env: environment variable that holds the key of the answers' server.
        against: evaluation sets whose text may be in no pair: NAME=FILE_OR_ID, several for several sets.
        split: their split, of saved or Hub datasets.
        until: stop after this stage, to look at its files and edit them.
        retry_failed: ask again for what failed for good before: could not be read, was refused or cut.
        dry_run: say how many requests and tokens it will take, and at what price, and ask nothing.
    """

    method: Literal["glan"]
    output_dir: str
    backend: Literal["server", "transformers", "vllm"] = "server"
    answer_base_url: str | None = None
    answer_provider: str | None = None
    answer_api_key_env: str | None = None
    against: dict[str, str] | None = None
    split: str = "train"
    until: Literal["taxonomy", "subjects", "syllabi", "questions", "pairs"] = "pairs"
    retry_failed: bool = False
    dry_run: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    example: ClassVar[str] = (
        "hf-select generate glan --model Qwen/Qwen2.5-7B-Instruct --base-url http://localhost:8000/v1 "
        "--output-dir glan --dry-run"
    )

    @property
    def prints_only(self) -> bool:
        """A dry run is for this terminal; a recipe does not count it as done."""
        return self.dry_run

    @staticmethod
    def parts(values: dict[str, Any]) -> list[type]:
        """Classes whose settings this command takes besides its own: GLAN and the home of its models."""
        from hf_select.generation.glan import GLAN

        backend = values.get("backend")
        if backend == "transformers":
            from hf_select.inference.causal_lm import CausalLM

            return [GLAN, CausalLM]
        if backend == "vllm":
            from hf_select.generation.local import VLLMGenerator

            return [GLAN, VLLMGenerator]
        from hf_select.generation.server import ServerGenerator

        return [GLAN, ServerGenerator]

    def run(self) -> None:
        from hf_select.cli.data import read_dataset

        glan = self._glan()
        if self.dry_run:
            self._print_estimate(glan)
            return
        against = {name: read_dataset(source, self.split) for name, source in (self.against or {}).items()}
        summary = glan.run(self.output_dir, against, self.until, self.retry_failed)
        self._print_summary(summary, glan)

    def _glan(self) -> Any:
        from hf_select.cli.score import build_parts

        settings = dict(self.settings)
        elsewhere = {
            name.removeprefix("answer_"): value
            for name in ("answer_base_url", "answer_provider", "answer_api_key_env")
            if (value := getattr(self, name)) is not None
        }
        if elsewhere and self.backend != "server":
            raise ValueError(f"backend {self.backend} asks no server; leave out --answer-{'/'.join(elsewhere)}.")
        if elsewhere and "answer_model" not in settings:
            raise ValueError("another server for the answers needs the name of its model: --answer-model.")
        glan = build_parts(self.parts({"backend": self.backend}), settings, f"generate {self.method}")
        if elsewhere:
            other = {"base_url": None} if "provider" in elsewhere else {}
            glan.answer_model = replace(glan.answer_model, **{**other, **elsewhere})
        if self.backend == "transformers":
            from hf_select.generation.local import TransformersGenerator

            glan.model = TransformersGenerator(glan.model)
            glan.answer_model = None if glan.answer_model is None else TransformersGenerator(glan.answer_model)
        return glan

    def _print_estimate(self, glan: Any) -> None:
        from pathlib import Path

        from hf_select.cli.table import print_table
        from hf_select.generation.estimate import estimate
        from hf_select.generation.glan import GLANRun

        run = GLANRun(glan, Path(self.output_dir).expanduser())
        with run.alone():
            stages = estimate(run)
        priced = glan.prices is not None or glan.answer_prices is not None
        rows = [
            [
                stage.stage,
                f"{stage.requests:,}",
                f"{stage.done:,}",
                f"{stage.read:,}",
                f"{stage.written:,}",
                *([f"{stage.price:,.2f}"] if priced else []),
            ]
            for stage in stages
        ]
        total = [sum(getattr(stage, name) for stage in stages) for name in ("requests", "done", "read", "written")]
        cost = [f"{sum(stage.price for stage in stages):,.2f}"] if priced else []
        rows.append(["all", *(f"{count:,}" for count in total), *cost])
        header = ["stage", "requests", "done", "tokens to read", "tokens to write", *(["US$"] if priced else [])]
        print_table(header, rows, title=f"{glan.model.name} -> {(glan.answer_model or glan.model).name}: still to do")
        print(
            f"\nAt most {stages[-1].requests:,} pairs. Nothing was asked. Where a stage has run a little, its own "
            "tokens are counted on;\nelsewhere usual lengths are assumed, which may be off by a factor of two."
            + ("" if priced else " With --prices: dollars.")
        )

    def _print_summary(self, summary: dict[str, Any], glan: Any) -> None:
        from hf_select.cli.table import print_table

        names = ("disciplines", "subjects", "syllabi", "sessions", "questions", "pairs")
        rows = [[name, f"{summary[name]:,}"] for name in names if name in summary]
        rows += [[f"left out: {reason}", f"{count:,}"] for reason, count in summary.get("removed", {}).items()]
        rows += [[f"failed: {reason}", f"{count:,}"] for reason, count in summary["failed"].items()]
        if summary["tokens"]:
            read, written = (sum(stage[kind] for stage in summary["tokens"].values()) for kind in ("read", "written"))
            rows.append(["tokens read, written", f"{read:,}, {written:,}"])
        if "price" in summary:
            rows.append(["US$", f"{summary['price']:,.2f}"])
        if "decontamination" in summary:
            found = summary["decontamination"]
            rows.append([f"of the pairs, {found['n']} words in common with a test", f"{found['removed']:,}"])
        print_table(["", ""], rows)
        if summary["failed"] or any(":" in reason for reason in summary.get("removed", {})):
            print("What failed is kept with its reason; the same command with --retry-failed asks for it again.")
        if self.until != "pairs":
            print(f"Stopped after {self.until}. Look at {self.output_dir}, edit it, and go on without --until.")
            return
        print(f"Pairs: {self.output_dir}/pairs.parquet; what is not among them: removed.jsonl; topics: topics.html")
        print(
            f"Next: hf-select score --scorer ifd --model MODEL --dataset {self.output_dir}/pairs.parquet "
            "--output-dir scores"
        )
