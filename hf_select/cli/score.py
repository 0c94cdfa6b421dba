"""hf-select score"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from hf_select.atomic import read_json
from hf_select.cli.command import Command
from hf_select.cli.settings import build, check_names, import_class, settable
from hf_select.data.columns import SCORE_PREFIX
from hf_select.scoring import SCORERS


if TYPE_CHECKING:
    from hf_select.scoring.scorer import Scorer


# The part of the scores that the papers select, as flags of select and of compare. Damaged rows have IFD above 1 and
# the highest perplexities (benchmarks/results/likelihood_cpu.md).
_PART = {"ifd": (" --at-most 1", ":at_most=1"), "perplexity": (" --which middle", ":middle")}


@dataclass(kw_only=True)
class Rows(Command):
    """Settings of the commands that read rows and write a folder.

    Args:
        dataset: a JSON, JSONL, CSV, TSV or Parquet file (also .gz, .zst, .xz, .bz2), a folder of them, a saved dataset
            or a Hub id. ID#SPLIT or ID#CONFIG/SPLIT names another split, in every setting that names rows.
        output_dir: folder for all results; the same command resumes a killed run in it.
        split: split of every saved or Hub dataset that does not name its own.
        rename: columns to rename first, in the rows, queries and held-out sets, e.g. question=prompt
            answer=completion.
        limit: read only this number of rows.
    """

    dataset: str
    output_dir: str
    split: str = "train"
    rename: dict[str, str] | None = None
    limit: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def rows(self) -> Any:
        return self.read()[0]

    def read(self, *named: Mapping[str, str] | None, stream: bool = False) -> list[Any]:
        """The rows, then for each mapping of names to files or ids a mapping of names to datasets, columns renamed."""
        from hf_select.data.loading import read_dataset, read_named, renamed

        rows = read_dataset(self.dataset, self.split, limit=self.limit, stream=stream)
        groups = [read_named(sources, self.split) for sources in named]
        datasets = iter(renamed([rows, *(each for group in groups for each in group.values())], self.rename))
        return [next(datasets), *({name: next(datasets) for name in group} for group in groups)]


@dataclass(kw_only=True)
class OverRows(Rows):
    """Settings of the commands that run a scorer over a dataset.

    Args:
        scorer: the method: deita, dsir, embedding, ifd, length, less, perplexity, rds, reward, selectit or tfidf.
        chunk_rows: rows that are processed and written together.
        when_running: if another job is running in output_dir: refuse to start, or join it and share its work.
    """

    scorer: str
    chunk_rows: int = 1000
    when_running: Literal["refuse", "join"] = "refuse"

    decided_by: ClassVar[Mapping[str, Collection[str]]] = {"scorer": SCORERS}

    @classmethod
    def parts(cls, values: Mapping[str, Any]) -> list[type]:
        """The scorer and, if it runs a model, CausalLM."""
        name = values.get("scorer")
        if name is None:
            return []
        scorer = scorer_class(name)
        if "model" not in {f.name for f in settable(scorer)}:
            return [scorer]
        from hf_select.models.causal_lm import CausalLM

        return [scorer, CausalLM]


@dataclass(kw_only=True)
class Score(OverRows):
    """Score every row of a dataset with one method. The same command resumes a killed run. Under accelerate launch the
    processes share the work. hf-select status DIR shows the progress of a job.

    Args:
        bad_rows: for rows that are not conversations: error stops before scoring, null leaves them without a score.
        queries: rows of the target tasks, for scorers that need them: TASK=FILE_OR_ID, one or several tasks. Each task
            has a column score_SCORER_TASK, and score_SCORER is their maximum.
        subtask_column: column of the queries that names their subtask.
        pool: rows that the scorer learns word weights or a mean vector from (tfidf, dsir, --center), by default those
            that are scored. Name the pool here to score other rows like it, such as held-back queries. For --center
            also a folder of hf-select index.
        index: folder of hf-select index for the same rows; its vectors are compared with the queries.
        candidates: score only the rows that hf-select select chose, such as the best by a cheaper scorer: its subset
            or its record. The others are written with a null and the reason; --dataset is that of the first scores.
        stream: read the rows while scoring, in constant memory and without downloading them first.
    """

    bad_rows: Literal["error", "null"] = "error"
    queries: dict[str, str] | None = None
    subtask_column: str | None = None
    pool: str | None = None
    index: str | None = None
    candidates: str | None = None
    stream: bool = False

    example: ClassVar[str] = (
        "hf-select score --scorer selectit --model Qwen/Qwen2.5-0.5B --dataset tatsu-lab/alpaca --output-dir scores"
    )
    other_commands: ClassVar[Mapping[str, str]] = {"--status": "status"}

    def run(self) -> str | None:
        """Score the rows. Returns: the command to run next."""
        from hf_select.cli.table import print_table
        from hf_select.jobs.launch import is_main_process
        from hf_select.scoring.score import score

        scorer = build_scorer(self.scorer, self.settings)
        rows, queries = self.read(self.queries, stream=self.stream)
        candidates = None
        if self.candidates is not None:
            from hf_select.selection.record import read_selection

            candidates = read_selection(self.candidates, self.split)
        index = None
        if self.index is not None:
            from hf_select.features.store import PoolIndex

            index = PoolIndex.open(self.index)
        if scorer.needs_fit:
            pool = None
            if scorer.reads_pool():
                pool = index or (self.read(self.queries)[0] if self.stream else rows)
                if self.pool is not None:
                    pool = self._pool(self.pool)
            elif self.pool is not None:
                raise ValueError(f"scorer {self.scorer} learns nothing from a pool; leave out --pool.")
            scorer = fitted(scorer, self.scorer, queries, pool, self.subtask_column)
        elif queries:
            raise ValueError(f"scorer {self.scorer} has no targets; leave out --queries.")
        elif self.pool is not None:
            raise ValueError(f"scorer {self.scorer} learns nothing from a pool; leave out --pool.")
        scored = score(
            rows,
            scorer,
            self.output_dir,
            chunk_rows=self.chunk_rows,
            bad_rows=self.bad_rows,
            source=self.dataset,
            index=index,
            candidates=candidates,
            when_running=self.when_running,
        )
        if not is_main_process():  # one of the processes says how it went
            return None
        summary = cast(dict[str, Any], read_json(Path(self.output_dir).expanduser() / "summary.json"))
        asked, reasons = summary["rows"], summary["reasons"]
        if candidates is not None:
            asked = len(candidates)
            reasons = {why: count for why, count in reasons.items() if not why.startswith("not among the candidates")}
        say_if_few(summary["scored"], asked, reasons, "a score")
        print_table(["", ""], _summary(summary, scorer.name))
        check_any(summary["scored"], reasons, "a score")
        print(f"{len(scored)} rows with their scores: {self.output_dir}/scored; only the scores: scores.parquet")
        return next_step(scorer, self.output_dir, self.dataset, None if candidates is None else len(candidates))

    def _pool(self, source: str) -> Any:
        """The rows or the index that --pool names."""
        if (Path(source).expanduser() / "vectors").is_dir():
            from hf_select.features.store import PoolIndex

            return PoolIndex.open(source)
        return self.read({"pool": source})[1]["pool"]


def say_if_few(found: int, rows: int, reasons: dict[str, int], what: str) -> None:
    """Print the reasons if fewer than half of the rows have `what`."""
    if found * 2 < rows:
        print(f"{f'Only {found:,}' if found else 'None'} of {rows:,} rows has {what}. {_most(reasons)}")


def check_any(found: int, reasons: dict[str, int], what: str) -> None:
    """Raise ValueError with the reasons if no row has `what`."""
    if not found:
        raise ValueError(f"no row has {what}. {_most(reasons)}")


def _most(reasons: dict[str, int]) -> str:
    return f"Reasons: {'; '.join(f'{count:,} x {reason}' for reason, count in list(reasons.items())[:3])}."


def next_step(scorer: Any, output_dir: str, dataset: str, num_candidates: int | None = None) -> str:
    """The command that follows. With targets it is the selection that beat random rows in our comparisons. Without, it
    is the selection of the paper, and the comparison that shows whether it beats random rows on this pool.

    Args:
        num_candidates: number of rows that were scored, if not all were.
    """
    name = scorer.name
    several = [column for column in scorer.columns_out if column.startswith(f"{SCORE_PREFIX}{name}_")]
    if f"{name}_similarities" in scorer.columns_out:
        several = [f"{name}_similarities"]
    part, of_methods = _PART.get(name, ("", "") if scorer.higher_is_better else (" --which worst", ":worst"))
    taken = f"--selector top_k --column {SCORE_PREFIX}{name}{part}"
    if name == "dsir":
        taken = f"--selector sample --column {SCORE_PREFIX}{name}"
    elif len(several) > 1 or several == [f"{name}_similarities"]:
        taken = f"--selector round_robin --similarities {' '.join(several)}"
    budget = "--fraction 0.2" if num_candidates is None else f"--k {-(-num_candidates // 5)}"
    select = f"hf-select select --scores {output_dir} {taken} {budget} --output subset.parquet"
    if scorer.needs_fit:
        return select
    return (
        f"{select}\n   or, to see whether it beats random rows here: hf-select compare --model MODEL "
        f"--dataset {dataset} --methods {name}={output_dir}{of_methods} --held-out NAME=FILE --budgets ROWS "
        "--output-dir comparison"
    )


def scorer_class(name: str) -> "type[Scorer]":
    """The class of a scorer by its name, or by MODULE:CLASS."""
    from hf_select.scoring.scorer import Scorer

    cls: type[Scorer] = import_class("scorer", name, SCORERS, Scorer)
    if not cls.name:
        raise ValueError(f'scorer "{name}" has no name; set the class variable `name`, as in name = "my_score".')
    return cls


def build_scorer(name: str, settings: dict[str, Any]) -> "Scorer":
    """A scorer from its name and flat settings, those of its model included."""
    return build_parts(Score.parts({"scorer": name}), settings, f"scorer {name}")


def fitted(
    scorer: "Scorer", name: str, queries: dict[str, Any], pool: Any, subtask_column: str | None = None
) -> "Scorer":
    """A scorer with targets, fitted to its queries; `pool` is read by those that need it."""
    if not queries:
        raise ValueError(f"scorer {name} needs --queries TASK=FILE.")
    if subtask_column is not None and not scorer.takes_subtasks:
        raise ValueError(f"scorer {name} knows no sub-tasks; leave out --subtask-column.")
    return scorer.fit(queries, subtask_column=subtask_column, pool=pool)


def build_parts(
    parts: list[type], settings: dict[str, Any], where: str, wrap: Callable[[Any], Any] = lambda model: model
) -> Any:
    """The first of the classes from flat settings; those of the second, if there is one, go to each of its models,
    which `wrap` may replace."""
    check_names(settings, parts, where)
    own = {f.name for f in settable(parts[0])}
    mine = {key: value for key, value in settings.items() if key in own}
    if len(parts) == 2:
        shared = {key: value for key, value in settings.items() if key not in own}
        for setting in [key for key in mine if key == "model" or key.endswith("_model")]:
            models = mine[setting] if isinstance(mine[setting], list) else [mine[setting]]
            mine[setting] = [wrap(build(parts[1], {"model": model, **shared}, where)) for model in models]
    return build(parts[0], mine, where)


def _summary(summary: dict[str, Any], name: str) -> list[list[str]]:
    cost, quantiles = summary["cost"], summary["quantiles"]
    candidates = summary.get("candidates")
    rows = [
        ["rows", f"{summary['rows']:,}"],
        *([["candidates", f"{candidates['rows']:,}"]] if candidates else []),
        ["with a score", f"{summary['scored']:,}"],
        *([f"of these: {note}", f"{count:,}"] for note, count in summary["notes"].items()),
        *([f"without: {reason}", f"{count:,}"] for reason, count in summary["reasons"].items()),
        [
            f"score_{name}: lowest, median, highest",
            ", ".join(f"{quantiles[q]:.4g}" for q in ("0", "0.5", "1") if quantiles),
        ],
        ["seconds, rows/s", f"{cost['seconds']:,.1f}, {cost['rows_per_second']:,.1f}"],
    ]
    if "tokens" in cost:
        rows.append(["tokens, counted FLOPs", f"{cost['tokens']:,}, {cost['flops']:.3g}"])
    if candidates and "cost" in candidates:
        rows.append(["seconds of the earlier scores", f"{candidates['cost']['seconds']:,.1f}"])
    rows.append(["peak memory, device", f"{cost['peak_memory_mib']:,.0f} MiB, {summary['device']}"])
    return rows
