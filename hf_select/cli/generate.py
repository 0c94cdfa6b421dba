"""hf-select generate"""

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hf_select.cli.command import Command
from hf_select.cli.score import build_parts
from hf_select.cli.settings import build, import_class, settable
from hf_select.generation import BACKENDS


if TYPE_CHECKING:
    from hf_select.generation.generator import Generator
    from hf_select.generation.glan.run import GLAN
    from hf_select.generation.glan.summary import GLANSummary
    from hf_select.generation.responses import Responses
    from hf_select.generation.responses_summary import ResponsesSummary


_UNATTENDED = 10_000  # requests that are sent without --yes where no terminal can be asked
# Stages that have run when GLAN stops after one: see glan.STAGES.
_STAGES_UNTIL = {"taxonomy": 0, "subjects": 2, "syllabi": 4, "questions": 5, "pairs": 6}


@dataclass(kw_only=True)
class GLANOptions:
    """Settings of generate glan in addition to GLAN's.

    Args:
        answer_base_url: the answers' server, if it is another.
        answer_provider: the answers' provider, if it is another.
        answer_api_key_env: environment variable that holds the key of the answers' server.
        against: evaluation sets whose text may be in no pair: NAME=FILE_OR_ID, several for several sets.
        split: their split, of saved or Hub datasets.
        rename: columns of theirs to rename first, e.g. question=prompt answer=completion.
        until: stop after this stage, to look at its files and edit them.
        dry_run: say how many requests and tokens it will take, and at what price, and ask nothing.
        yes: send the requests without asking whether to. Without it a terminal is asked, and where there is none, more
            than 10,000 requests are refused.
    """

    answer_base_url: str | None = None
    answer_provider: str | None = None
    answer_api_key_env: str | None = None
    against: dict[str, str] | None = None
    split: str = "train"
    rename: dict[str, str] | None = None
    until: Literal["taxonomy", "subjects", "syllabi", "questions", "pairs"] = "pairs"
    dry_run: bool = False
    yes: bool = False

    def answer_server(self) -> dict[str, str | None]:
        """Settings of the answers' server that differ from the other one's."""
        names = ("base_url", "provider", "api_key_env")
        given = {name: value for name in names if (value := getattr(self, f"answer_{name}")) is not None}
        return {"base_url": None, **given} if "provider" in given else given


@dataclass(kw_only=True)
class ResponsesOptions:
    """Settings of generate responses in addition to those of Responses.

    Args:
        dataset: conversations whose user turns are answered: a JSON, JSONL, CSV, TSV or Parquet file, a saved
            dataset or a Hub id.
        split: split of a saved or Hub dataset.
        rename: columns to rename first, e.g. conversation=messages conversation_hash=row_id.
        limit: only the first rows.
        yes: send the requests without asking whether to. Without it a terminal is asked, and where there is none, more
            than 10,000 requests are refused.
    """

    dataset: str
    split: str = "train"
    rename: dict[str, str] | None = None
    limit: int | None = None
    yes: bool = False


@dataclass(kw_only=True)
class Generate(Command):
    """Generate synthetic data. glan: from a taxonomy of human knowledge to subjects, syllabi, questions and answers.
    responses: answer the prompts of a dataset again, with one model or several. The same command resumes a killed run.

    Args:
        method: glan or responses.
        output_dir: folder for all results; the same command resumes a killed run in it.
        backend: where the models run: server (an OpenAI-compatible server or Inference Providers), transformers or
            vllm (in this process), or MODULE:CLASS, a Generator of your own.
        retry_failed: request again what failed in earlier runs: invalid, refused or truncated answers.
    """

    method: Literal["glan", "responses"]
    output_dir: str
    backend: str = "server"
    retry_failed: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    example: ClassVar[str] = (
        "hf-select generate glan --model Qwen/Qwen2.5-7B-Instruct --base-url http://localhost:8000/v1 "
        "--output-dir glan --dry-run"
    )

    first_word: ClassVar[str | None] = "method"
    decided_by: ClassVar[Mapping[str, Collection[str]]] = {
        "method": ("glan", "responses"),
        "backend": BACKENDS,
    }

    @property
    def prints_only(self) -> bool:
        """A dry run is for this terminal; a recipe does not count it as done."""
        return bool(self.settings.get("dry_run"))

    @classmethod
    def parts(cls, values: Mapping[str, Any]) -> list[type]:
        from hf_select.generation.glan.run import GLAN
        from hf_select.generation.responses import Responses

        of_method = [ResponsesOptions, Responses] if values.get("method") == "responses" else [GLANOptions, GLAN]
        return [*of_method, generator_class(values.get("backend", "server")).settings_class()]

    def run(self) -> str | None:
        """Generate the data. Returns: the command to run next."""
        command, *parts = self.parts({"method": self.method, "backend": self.backend})
        own = {f.name for f in settable(command)}
        options = build(command, {k: v for k, v in self.settings.items() if k in own}, f"generate {self.method}")
        rest = {key: value for key, value in self.settings.items() if key not in own}
        wrap = generator_class(self.backend).from_settings
        if self.method == "glan":
            self._check_answer_server(options, rest)
            return self._run_glan(options, build_parts(parts, rest, "generate glan", wrap))
        return self._run_responses(options, build_parts(parts, rest, "generate responses", wrap))

    def _run_glan(self, options: GLANOptions, glan: "GLAN") -> str | None:
        from hf_select.data.loading import read_named

        if given := options.answer_server():
            glan.answer_model = replace(glan.answer_model, **given)
        against = None if options.dry_run else read_named(options.against, options.split, options.rename)
        requests = self._print_estimate(glan, options.until)
        if options.dry_run:
            return None
        _agree(requests, options.yes, "lower --queries-per-discipline or --questions-per-subject")
        summary = glan.run(self.output_dir, against, options.until, self.retry_failed)
        self._print_summary(summary, options.until)
        if options.until != "pairs":
            return f"look at {self.output_dir}, edit it, and run the same command without --until."
        return (
            f"hf-select score --scorer ifd --model MODEL --dataset {self.output_dir}/pairs.parquet --output-dir scores"
        )

    def _run_responses(self, options: ResponsesOptions, responses: "Responses") -> str:
        from hf_select.data.loading import read_dataset

        rows = read_dataset(options.dataset, options.split, options.rename, options.limit)
        requests = responses.num_requests(rows)
        print(f"{requests:,} replies of at most {responses.max_new_tokens:,} tokens, those of earlier runs included")
        _agree(requests, options.yes, "give a --limit")
        source = options.dataset
        if options.split != "train" and "#" not in source and not Path(source).expanduser().is_file():
            source = f"{source}#{options.split}"
        self._print_responses(responses.run(rows, self.output_dir, self.retry_failed, source))
        return f"hf-select compare-generators --dataset {self.output_dir}/responses.parquet --output-dir generators"

    def _check_answer_server(self, options: GLANOptions, settings: dict[str, Any]) -> None:
        """Raise if the answers have a server of their own that would be ignored."""
        given = [name for name, value in options.answer_server().items() if value is not None]
        if given and self.backend != "server":
            raise ValueError(f"backend {self.backend} asks no server; leave out --answer-{'/'.join(given)}.")
        if given and "answer_model" not in settings:
            raise ValueError("another server for the answers needs the name of its model: --answer-model.")

    def _print_estimate(self, glan: "GLAN", until: str) -> int:
        """Print what is still to do up to a stage. Returns: the requests of that."""
        from hf_select.cli.table import print_table
        from hf_select.generation.glan.estimate import estimate
        from hf_select.generation.glan.stages import GLANRun
        from hf_select.jobs.run_folder import exclusive_lock

        run = GLANRun(glan, Path(self.output_dir).expanduser())
        there = next(path for path in (run.folder, *run.folder.absolute().parents) if path.exists())
        if not there.is_dir():
            raise ValueError(f'cannot write to output folder "{run.folder}": "{there}" is a file. Choose another.')
        with exclusive_lock(run.folder):
            stages = estimate(run)[: _STAGES_UNTIL[until]]
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
        pairs = f"At most {stages[-1].requests:,} pairs. " if until == "pairs" else ""
        print(
            f"\n{pairs}Where a stage has run a little, its own tokens are counted on; elsewhere usual lengths are\n"
            f"assumed, which may be off by a factor of two.{'' if priced else ' With --prices: dollars.'}",
            flush=True,
        )
        return sum(stage.requests - stage.done for stage in stages)

    def _print_summary(self, summary: "GLANSummary", until: str) -> None:
        from hf_select.cli.table import print_table

        rows = [[name, f"{count:,}"] for name, count in summary.counts()]
        if summary.tokens:
            read = sum(stage.read for stage in summary.tokens.values())
            written = sum(stage.written for stage in summary.tokens.values())
            rows.append(["tokens read, written", f"{read:,}, {written:,}"])
        if summary.price is not None:
            rows.append(["US$", f"{summary.price:,.2f}"])
        if (overlap := summary.decontamination) is not None:
            rows.append([f"of the pairs, {overlap.n} words in common with a test", f"{overlap.removed:,}"])
        print_table(["", ""], rows)
        if summary.failed or any(":" in reason for reason in summary.removed or {}):
            print("What failed is kept with its reason; the same command with --retry-failed asks for it again.")
        if until != "pairs":
            print(f"Stopped after {until}.")
            return
        print(f"Pairs: {self.output_dir}/pairs.parquet; what is not among them: removed.jsonl; topics: topics.html")

    def _print_responses(self, summary: "ResponsesSummary") -> None:
        from hf_select.cli.table import print_table

        rows = []
        for name, model in summary.models.items():
            speed = model.throughput.tokens_written_per_second
            rows.append(
                [
                    name,
                    f"{model.rows:,}",
                    f"{sum(model.removed.values()):,}",
                    f"{model.refused:,}",
                    f"{model.completion_tokens / model.rows:,.0f}" if model.rows else "-",
                    "-" if speed is None else f"{speed:,.0f}",
                ]
            )
        print_table(["model", "replies", "left out", "refusals", "tokens each", "tokens/s"], rows)
        for name, model in summary.models.items():
            for reason, count in model.removed.items():
                print(f"  {name}, left out: {count:,} {reason}")
        for reason, count in summary.unreadable.items():
            print(f"  {count:,} rows were not asked: {reason}")
        print(f"Replies: {self.output_dir}/responses.parquet; what is not among them: removed.jsonl")


def generator_class(backend: str) -> "type[Generator]":
    """The class of a backend, one of the package's or MODULE:CLASS.

    Raises: ValueError if there is no such class, or it cannot be used from the command line.
    """
    from hf_select.generation.generator import Generator

    cls = import_class("backend", backend, BACKENDS, Generator)
    if "model" not in {f.name for f in settable(cls.settings_class())}:
        raise ValueError(f'backend "{backend}" has no field `model` that its docstring describes under Args.')
    return cls


def _agree(requests: int, yes: bool, cure: str) -> None:
    """Raise unless the requests may be sent: by --yes, by an answer at the terminal, or because they are few."""
    if yes or requests == 0:
        return
    if sys.stdin is not None and sys.stdin.isatty():
        answer = input(f"Send about {requests:,} requests? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            raise ValueError("nothing was asked, as you answered; --yes sends the requests without this question.")
    elif requests > _UNATTENDED:
        raise ValueError(
            f"this takes about {requests:,} requests, and more than {_UNATTENDED:,} are not sent unasked: add --yes, "
            f"or {cure}. Nothing was asked."
        )
