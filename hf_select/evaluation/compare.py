"""Is a selection better than random rows here, at equal compute?

    compare(pool, {"ifd": TopK("score_ifd")}, {"my task": rows}, Recipe("my/model"), "comparison", budgets=[1000])

Every selection is trained by one recipe on equally many tokens in equally many steps (training/equal_tokens.py), with
several seeds, and measured (measure.py). The baselines are no training, random rows, random rows of as many tokens,
random rows balanced over sources, the longest rows and, if requested, the whole pool. A seed sets the random draw and
the order of training; results are paired by it (statistics.py).

output_dir/
  comparison.json                     pool, measures and recipe; a folder with others is refused
  lengths.npz                         tokens that a run reads of each row, and why some are left out
  cells/METHOD/BUDGET-seed-N.json     one training run: its cost and its result on every item
  result.json                         differences and verdicts (tables.py), costs and break-even (break_even.py)
  result.html, result.md, pictures/   the same as a page

Cells are written atomically and never computed twice; processes that share the folder share the cells. Under
accelerate launch every process computes cells of its own on its own device; a run that needs several devices is
launched separately (Recipe.accelerate_config).
"""

import functools
import hashlib
import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from filelock import FileLock

from hf_select.atomic import read_json, write_json
from hf_select.data import columns
from hf_select.data.file_names import slug
from hf_select.evaluation.break_even import add_costs
from hf_select.evaluation.held_out_loss import as_measures
from hf_select.evaluation.measure import Measure
from hf_select.evaluation.tables import MATCHED, POOLED_LOSS, Cell, measures_of, tables
from hf_select.evaluation.training_runs import (
    check_one_device,
    claim_folder,
    compute_missing,
    measured,
    trainable_rows,
)
from hf_select.extras import require
from hf_select.models.causal_lm import CausalLM
from hf_select.models.responses import tokenize_with_labels
from hf_select.reports.comparison import comparison_report
from hf_select.reports.comparison_result import RANDOM, UNTRAINED, Comparison
from hf_select.scoring.overlap import rows_that_repeat
from hf_select.selection.baselines import Longest, Random
from hf_select.selection.selection import Selection
from hf_select.selection.selector import Selector
from hf_select.training.equal_tokens import Recipe
from hf_select.training.launcher_env import without_launcher_env
from hf_select.training.train_on_tokens import train_on_tokens


logger = logging.getLogger(__name__)

# A selection whose tokens differ by more than this share from those of random rows gets random rows of as many tokens
# as another baseline.
_TOKENS_ALIKE = 0.1


@dataclass(frozen=True)
class SelectionBudget:
    """The size of a selection: "1000" or "1000 rows", or "200000 tokens"."""

    amount: int
    unit: str

    @classmethod
    def parse(cls, text: int | str) -> "SelectionBudget":
        """Read a number of rows or a text. Raises: ValueError for anything else."""
        amount, _, unit = str(text).strip().partition(" ")
        unit = unit.strip() or "rows"
        if not amount.isdigit() or int(amount) < 1 or unit not in ("rows", "tokens"):
            raise ValueError(f'budget "{text}" is neither a number of rows (1000) nor of tokens ("200000 tokens").')
        return cls(int(amount), unit)

    def __str__(self) -> str:
        return f"{self.amount} {self.unit}"

    def arguments(self) -> dict[str, int]:
        """Return the budget as keyword arguments of a selector."""
        return {"k" if self.unit == "rows" else "tokens": self.amount}


@dataclass
class ComparisonRun:
    """The arguments of `compare`; `run` computes the missing cells and the result."""

    pool: Dataset
    methods: Mapping[str, Selector]
    measures: dict[str, Measure]
    recipe: Recipe
    folder: Path
    budgets: Sequence[SelectionBudget]
    seeds: int
    passes: float
    balanced_by: str | None
    whole_pool: bool
    costs: Mapping[str, Mapping[str, float]]
    lengths: np.ndarray = field(init=False)  # tokens of each row that can be trained on

    def __post_init__(self) -> None:
        check_one_device(self.recipe)
        if self.seeds < 2:
            raise ValueError(f"seeds is {self.seeds}; one run says nothing about the spread between runs: at least 2.")
        if not self.budgets:
            raise ValueError("give at least one budget.")
        for budget in self.budgets:
            if budget.unit == "rows" and budget.amount > len(self.pool):
                raise ValueError(f"budget {budget}: the pool has {len(self.pool)} rows.")
        for name in self.methods:
            if name in (RANDOM, UNTRAINED, "whole pool", "longest") or name.startswith(MATCHED):
                raise ValueError(f'"{name}" is the name of a baseline; rename the method.')
            if not slug(name) or sum(slug(other) == slug(name) for other in self.methods) > 1:
                raise ValueError(f'"{name}" would have no folder of its own; rename the method.')
        if POOLED_LOSS in self.measures:
            raise ValueError(f'"{POOLED_LOSS}" is the name of all held-out losses pooled; rename the measure.')

    def run(self) -> Comparison:
        """Compute the missing cells and write the result and its page."""
        from hf_select.reports.report_files import check_replaceable

        check_replaceable(self.folder, "result.html", "result.md", "pictures")  # before the runs, not after them
        settings = self._claim_folder()
        self.pool, left_out = trainable_rows(self.pool, self.recipe, self.folder / "lengths.npz")
        self.lengths = np.asarray(self.pool[columns.NUM_TOKENS])
        self._check_budgets()
        overlap = self._overlap()
        wanted = self._wanted()
        self._run_missing(wanted)
        cells = {cell: {**(self._record(cell) or {}), "matched_by": rows.matched_by} for cell, rows in wanted.items()}
        measures, methods = measures_of(cells, self.measures), list(self.methods)
        budgets = tables(cells, methods, measures, self.costs)
        result = add_costs(Comparison(methods, measures, budgets, overlap, left_out, settings))
        with FileLock(self.folder / ".result.lock"):  # processes end at the same time
            write_json(self.folder / "result.json", result.to_dict())
            comparison_report(result, self.folder)
        return result

    def _claim_folder(self) -> dict[str, Any]:
        """Refuse the folder of another comparison; return the settings that the result shows."""
        identities = {name: dict(measure.identity()) for name, measure in self.measures.items()}
        settings = {"passes": self.passes, "measures": identities}
        return claim_folder(self.folder / "comparison.json", self.recipe, settings, "a comparison", self.pool)

    def _check_budgets(self) -> None:
        for budget in self.budgets:
            available = len(self.pool) if budget.unit == "rows" else int(self.lengths.sum())
            if budget.amount > available - (budget.unit == "tokens"):
                raise ValueError(f"budget {budget}: the pool has {available:,} {budget.unit} to train on.")

    # Which runs, on which rows.

    def _selectors(self) -> dict[str, Callable[[SelectionBudget, int], Selection]]:
        """Return method -> a function (budget, seed) -> its rows."""
        pool = self.pool
        selectors: dict[str, Callable[[SelectionBudget, int], Selection]] = {
            RANDOM: lambda budget, seed: Random(seed)(pool, **budget.arguments())
        }
        if self.balanced_by is not None:
            column = self.balanced_by
            selectors[f"{MATCHED}balanced by {column})"] = lambda budget, seed: Random(seed, balanced_by=column)(
                pool, **budget.arguments()
            )
        for name, selector in {"longest": Longest(columns.NUM_TOKENS), **self.methods}.items():
            once = functools.cache(lambda budget, selector=selector: selector(pool, **budget.arguments()))
            selectors[name] = lambda budget, seed, once=once: once(budget)
        return selectors

    def _wanted(self) -> dict[Cell, "_Rows"]:
        """Return the cells with their rows; the untrained model is a cell without rows."""
        wanted: dict[Cell, _Rows] = {Cell(UNTRAINED, "", 0): _Rows(None)}
        for budget in self.budgets:
            baselines = {RANDOM: budget.amount * float(self.lengths.mean())}  # name -> tokens that it chooses
            for name, select in self._selectors().items():
                chosen = [select(budget, seed) for seed in range(self.seeds)]
                matched = None
                if budget.unit == "rows" and not name.startswith(RANDOM):
                    tokens = int(self.lengths[chosen[0].indices].sum())
                    matched = self._matched(tokens, baselines)
                    if matched not in baselines:
                        baselines[matched] = tokens
                        available = min(tokens, int(self.lengths.sum()) - 1)
                        for seed in range(self.seeds):
                            random = Random(seed)(self.pool, tokens=available)
                            wanted[Cell(matched, str(budget), seed)] = _Rows(random)
                for seed, rows in enumerate(chosen):
                    wanted[Cell(name, str(budget), seed)] = _Rows(rows, None if matched == RANDOM else matched)
            if self.whole_pool:
                for seed in range(self.seeds):
                    everything = Random(seed)(self.pool, k=len(self.pool))
                    wanted[Cell("whole pool", str(budget), seed)] = _Rows(everything)
        return wanted

    @staticmethod
    def _matched(tokens: int, baselines: Mapping[str, float]) -> str:
        """Return the baseline that chooses about `tokens` tokens, an existing or a new one."""
        for name, others in baselines.items():
            if abs(tokens - others) <= _TOKENS_ALIKE * others:
                return name
        return f"{MATCHED}{tokens:,} tokens)"

    def tokens_for(self, budget: SelectionBudget) -> int:
        """Return the tokens that every run of a budget trains: `passes` over its tokens, or rows of mean length."""
        tokens = budget.amount if budget.unit == "tokens" else budget.amount * float(self.lengths.mean())
        return max(1, round(self.passes * tokens))

    def _overlap(self) -> dict[str, int]:
        """Count rows of the pool that repeat a row that is measured on, by measure."""
        overlap = {}
        for name, measure in self.measures.items():
            rows = measure.rows_in_pool()
            if rows is None:
                continue
            overlap[name] = count = rows_that_repeat(self.pool, rows)
            if count:
                logger.warning(
                    '%d rows of the pool repeat rows that "%s" measures on: a method that chooses them learns the '
                    "answers. Take them out first (selector decontaminate).", count, name,
                )  # fmt: skip
        return overlap

    # Running them.

    def _path(self, cell: Cell) -> Path:
        name = "-".join(filter(None, (slug(cell.budget), f"seed-{cell.seed}.json")))
        return self.folder / "cells" / slug(cell.method) / name

    def _run_missing(self, wanted: Mapping[Cell, "_Rows"]) -> None:
        compute_missing(
            list(wanted),
            self._path,
            lambda cell: self._is_done(cell, wanted[cell]),
            lambda cell: self._run_of(cell, wanted[cell].selection),
            "compare",
        )

    def _record(self, cell: Cell) -> dict[str, Any] | None:
        return read_json(self._path(cell))

    def _is_done(self, cell: Cell, rows: "_Rows") -> bool:
        record = self._record(cell)
        if record is None:
            return False
        if record["selection"] != rows.digest():
            raise ValueError(
                f'"{self.folder}" has a run of "{cell.method}" with {cell.budget}, seed {cell.seed}, on another '
                "selection. Rename the method, or choose another folder."
            )
        return True

    def _run_of(self, cell: Cell, selection: Selection | None) -> dict[str, Any]:
        """Train a cell and measure the model; return its record."""
        lm = self.recipe.base()
        by = f"{socket.gethostname()} {os.getpid()}"
        record: dict[str, Any] = {**asdict(cell), "selection": _Rows(selection).digest(), "by": by}
        if selection is not None:
            tokens = self.tokens_for(SelectionBudget.parse(cell.budget))
            steps = self.recipe.steps(tokens, float(self.lengths.mean()))
            rows, _, notes = tokenize_with_labels(
                lm, self.pool.select(selection.indices), "chat", self.recipe.max_length
            )
            trained = train_on_tokens(self.recipe, lm, rows, tokens, steps, cell.seed)
            lm = trained.lm
            record |= {name: value for name, value in vars(trained).items() if name != "lm"}
            record |= {
                "rows": len(rows),
                "rows_cut": notes.total(),
                "could_choose_from": selection.num_candidates,
                "tokens_wanted": tokens,
                "tokens_within": max(len(ids) for ids in rows["input_ids"]) / 2,
            }
        record["values"] = {name: self._measure(name, lm, cell) for name in self.measures}
        return record

    def _measure(self, name: str, lm: CausalLM, cell: Cell) -> list[float]:
        where = f'measure "{name}" of "{cell.method}" ({cell.budget}, seed {cell.seed})'
        return measured(self.measures[name], lm, where)


def compare(
    pool: Dataset,
    methods: Mapping[str, Selector],
    measures: Mapping[str, Dataset | Measure],
    recipe: Recipe,
    output_dir: str | Path,
    budgets: Sequence[int | str],
    seeds: int = 3,
    passes: float = 2.0,
    balanced_by: str | None = None,
    whole_pool: bool = False,
    costs: Mapping[str, Mapping[str, float]] | None = None,
) -> Comparison:
    """Train and measure every method at every budget. A killed comparison resumes.

    Args:
        pool: the dataset to select from, with the score columns that the methods read. Rows without a response to
            learn are left out first, and counted.
        methods: name -> selector.
        measures: name -> what every run is measured by: held-out rows (mean response NLL of each, in nats),
            CheckableAnswers, LMEvalTask or another Measure.
        recipe: how every run is trained.
        budgets: sizes of a selection: rows (1000) or tokens ("200000 tokens").
        seeds: number of runs of each method; random rows are drawn again for each.
        passes: every run of a budget trains as many tokens as `passes` over random rows of its size.
        balanced_by: column of sources, for random rows balanced over them.
        whole_pool: also train on the whole pool, for as many tokens.
        costs: name -> {"flops", "seconds"} of its scores.
    Returns: the result, which is also written to result.json.
    Raises: ValueError for a folder of another comparison, budgets above the pool, nothing to measure on, a run that
        diverged. ImportError without trl or matplotlib.
    """
    require("a comparison", "trl", "matplotlib")
    with without_launcher_env(recipe.accelerate_config is not None):
        return ComparisonRun(
            pool, methods, as_measures(measures, recipe.max_length), recipe, Path(output_dir).expanduser(),
            [SelectionBudget.parse(budget) for budget in budgets], seeds, passes, balanced_by, whole_pool, costs or {},
        ).run()  # fmt: skip


@dataclass(frozen=True)
class _Rows:
    """What a cell trains on, and the baseline of as many tokens if random rows have clearly more or fewer."""

    selection: Selection | None
    matched_by: str | None = None

    def digest(self) -> str:
        """Return a hash of the selected indices, "" without a selection."""
        if self.selection is None:
            return ""
        return hashlib.sha256(self.selection.indices.tobytes()).hexdigest()[:32]
