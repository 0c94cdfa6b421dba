"""hf-select compare"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from hf_select.cli.score import Rows, build_parts
from hf_select.data.columns import SCORE_PREFIX


if TYPE_CHECKING:
    from hf_select.reports.comparison_result import MethodResults


_WHICH = ("best", "middle", "worst")


@dataclass(kw_only=True)
class Compare(Rows):
    """Is a selection better than random rows on this pool? Trains a model on selections and baselines with the same
    number of tokens and several seeds, and measures it on held-out rows and tasks. The same command resumes a killed
    comparison. Under accelerate launch every process trains different runs on its own device.

    Args:
        methods: NAME=FOLDER of hf-select score for the dataset, one or several. NAME=FOLDER:worst or :middle takes the
            lowest scores or those below the top third instead of the highest; NAME=FOLDER:at_most=1 first removes
            scores above 1, as the IFD papers do.
        held_out: rows to measure the loss on, NAME=FILE_OR_ID, one or several domains.
        answers: rows whose answers are checked, NAME=FILE_OR_ID: the model answers each prompt, and its final answer
            is compared with that of the row's response. NAME=FILE_OR_ID:letter, :text or :contains compares the letter
            of a choice, the whole text, or whether the answer contains the right one; the default is the last number.
        max_new_tokens: of an answer.
        lm_eval: tasks of lm-evaluation-harness (extra `eval`), one or several: TASK, TASK:METRIC or
            TASK:METRIC,FILTER.
        lm_eval_limit: use only this number of documents per task.
        lm_eval_path: folder with the YAML files of your own tasks, instead of the built-in ones.
        lm_eval_chat: apply the model's chat template to these tasks.
        budgets: of a selection, one or several: rows (1000) or tokens ("200000 tokens").
        seeds: runs of each method.
        passes: every run trains on as many tokens as this number of passes over random rows of its size has.
        balanced_by: column of sources, for random rows balanced over them.
        whole_pool: also train on the whole pool, with the same number of tokens.
    """

    methods: dict[str, str]
    budgets: list[str]
    held_out: dict[str, str] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    max_new_tokens: int = 256
    lm_eval: list[str] = field(default_factory=list)
    lm_eval_limit: int | None = None
    lm_eval_path: str | None = None
    lm_eval_chat: bool = False
    seeds: int = 3
    passes: float = 2.0
    balanced_by: str | None = None
    whole_pool: bool = False

    modules: ClassVar[tuple[str, ...]] = ("trl", "peft", "matplotlib", "scipy")
    example: ClassVar[str] = (
        "hf-select compare --model Qwen/Qwen2.5-0.5B --dataset tatsu-lab/alpaca "
        "--methods ifd=runs/ifd/scores:at_most=1 --held-out task=held_out.jsonl --budgets 1000 5000 "
        "--output-dir comparison"
    )

    @classmethod
    def parts(cls, values: Mapping[str, Any]) -> list[type]:
        from hf_select.training.equal_tokens import Recipe

        return [Recipe]

    def run(self) -> None:
        """Train, measure and print the tables."""
        from hf_select.evaluation.compare import compare
        from hf_select.jobs.launch import is_main_process
        from hf_select.reports.comparison import comparison_summary
        from hf_select.reports.comparison_result import RANDOM, shown_budget
        from hf_select.selection.top_k import TopK

        recipe = build_parts(self.parts({}), self.settings, "compare")
        rows, measures = self._read()
        pool, methods, costs = rows, {}, {}
        for name, value in self.methods.items():
            folder, at_most = _split_bound(value)
            folder, which = _split_ending(folder, _WHICH, "best")
            scores, costs[name] = _scores(rows, name, Path(folder).expanduser())
            column = f"{SCORE_PREFIX}{name}_of_comparison"
            pool = pool.add_column(column, scores)
            methods[name] = TopK(column, which=which, at_most=at_most)  # type: ignore[arg-type]
        result = compare(
            pool,
            methods,
            measures,
            recipe,
            self.output_dir,
            self.budgets,
            seeds=self.seeds,
            passes=self.passes,
            balanced_by=self.balanced_by,
            whole_pool=self.whole_pool,
            costs=costs,
        )
        if not is_main_process():
            return
        print(f"\n{comparison_summary(result)}")
        for budget in result.budgets:
            for measure, results in result.headline_results(budget).items():
                shown = {name: results[name] for name in (RANDOM, *result.compared(results))}
                _print_results(f"{shown_budget(budget)}: {measure}", result.measures[measure].unit, shown)
        if result.parts:
            print(f"\nEach of {', '.join(result.parts)}: in result.md.")
        print(f"\n{self.output_dir}/result.html (open it in a browser), result.md, result.json; the runs: cells/")

    def _read(self) -> tuple[Any, dict[str, Any]]:
        """(rows, measures by name)"""
        from hf_select.evaluation.checkable_answers import CheckableAnswers, Final
        from hf_select.evaluation.lm_eval_task import LMEvalTask

        answers = {name: _split_ending(value, get_args(Final), "number") for name, value in self.answers.items()}
        sources = {name: source for name, (source, _) in answers.items()}
        rows, measures, checked_rows = self.read(self.held_out, sources)
        for name, (_, final) in answers.items():
            measures[name] = CheckableAnswers(checked_rows[name], final, self.max_new_tokens)  # type: ignore[arg-type]
        for value in self.lm_eval:
            task, _, metric = value.partition(":")
            metric, _, answer_filter = metric.partition(",")
            options = {"limit": self.lm_eval_limit, "include_path": self.lm_eval_path, "chat": self.lm_eval_chat}
            measures[value] = LMEvalTask(task, metric or None, answer_filter or None, **options)
        if len(measures) < len(self.held_out) + len(self.answers) + len(self.lm_eval):
            raise ValueError("two measures have the same name; give different names in held_out, answers and lm_eval.")
        return rows, measures


def _split_ending(value: str, endings: Sequence[str], default: str) -> tuple[str, str]:
    """The value before and after its last colon, if one of the endings follows it; else the value and the default."""
    before, _, after = value.rpartition(":")
    return (before, after) if after in endings and before else (value, default)


def _split_bound(value: str) -> tuple[str, float | None]:
    """The folder without ":at_most=NUMBER", and the number."""
    before, bound, number = value.rpartition(":at_most=")
    if not bound:
        return value, None
    try:
        return before, float(number)
    except ValueError:
        raise ValueError(f'methods: "{number}" after at_most= is not a number.') from None


def _scores(rows: Any, name: str, folder: Path) -> tuple[list[float | None], dict[str, float]]:
    """The scores in a folder of hf-select score, checked to be those of the rows, and their cost."""
    import pyarrow.parquet as pq

    from hf_select.atomic import read_json
    from hf_select.data.rows import Pool
    from hf_select.scoring.score import whole_cost

    manifest = read_json(folder / "manifest.json")
    if manifest is None or not (folder / "summary.json").exists():
        raise ValueError(f'method {name}: "{folder}" is not a finished run of hf-select score.')
    if manifest["pool"]["fingerprint"] != Pool(rows, manifest["chunk_rows"]).fingerprint():
        raise ValueError(f'method {name}: the scores in "{folder}" do not belong to the rows of the dataset.')
    scores = pq.read_table(folder / "scores.parquet")
    return scores[f"{SCORE_PREFIX}{manifest['made_by']['name']}"].to_pylist(), whole_cost(folder)


def _print_results(title: str, unit: str, results: "MethodResults") -> None:
    """Print the results of one measure as a table, then the verdicts."""
    from hf_select.cli.table import print_table
    from hf_select.reports.comparison import shown_p

    rows = []
    for name, result in results.items():
        d = result.difference
        cells = ["", "", ""] if d is None else [f"{d.mean:+.4f}", f"[{d.low:+.4f}, {d.high:+.4f}]", shown_p(d)]
        rows.append([name, f"{result.mean:.4f}", *cells])
    print_table(["", unit, "difference to random", "95 %", "p"], rows, title)
    for name, result in results.items():
        if result.verdict:
            print(f"  {name}: {result.verdict}")
