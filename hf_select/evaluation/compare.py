"""Is a selection better than random rows here, at equal compute?

    compare(pool, {"ifd": TopK("score_ifd")}, {"my task": rows}, Recipe("my/model"), "comparison", budgets=[1000])

Every selection is trained by one recipe on equally many tokens in equally many steps (training/equal_tokens.py) with
several seeds and measured (measures.py), beside what it has to beat: no training, random rows, random rows of as many
tokens, random rows balanced over sources, the longest rows and, if asked for, the whole pool. A seed gives the random
draw and the order of training; results are paired by it (statistics.py).

output_dir/
  comparison.json                     pool, measures and recipe; a folder with others is refused
  lengths.npz                         tokens that a run reads of each row, and why some are left out
  cells/METHOD/BUDGET-seed-N.json     one training run: what it cost and its result on every item
  result.json                         tables and verdicts (tables.py), costs and when they have paid (break_even.py)
  result.html, result.md, pictures/   the same to look at

A cell is written whole or not at all and never made twice; processes that share the folder share the cells. Under
accelerate launch every process makes cells of its own on its own device; a run that needs several devices is launched
by itself (Recipe.accelerate_config).
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from hf_select.atomic import atomic_path, read_json, write_json
from hf_select.data import columns
from hf_select.data.bad_rows import BadRow
from hf_select.data.conversation import conversations
from hf_select.data.file_names import slug
from hf_select.data.rows import readable
from hf_select.evaluation.break_even import with_ledger
from hf_select.evaluation.held_out_loss import as_measures
from hf_select.evaluation.measure import Measure
from hf_select.evaluation.tables import MATCHED, RANDOM, TOGETHER, UNTRAINED, Cell, tables
from hf_select.jobs.run_folder import claim_run_folder
from hf_select.models.responses import tokenize_with_labels, with_responses
from hf_select.models.sources import find
from hf_select.reports.comparison import comparison_report
from hf_select.scoring.overlap import rows_that_repeat
from hf_select.selection.baselines import Longest, Random
from hf_select.selection.selection import Selection
from hf_select.selection.selector import Selector
from hf_select.training.equal_tokens import Recipe
from hf_select.training.train_on_tokens import train_on_tokens


logger = logging.getLogger(__name__)

# A selection whose tokens differ by more than this from those of random rows gets random rows of as many beside it.
_TOKENS_ALIKE = 0.1


@dataclass(frozen=True)
class Budget:
    """How much a selection may take: "1000" or "1000 rows", or "200000 tokens"."""

    amount: int
    unit: str

    @classmethod
    def read(cls, said: int | str) -> "Budget":
        amount, _, unit = str(said).strip().partition(" ")
        unit = unit.strip() or "rows"
        if not amount.isdigit() or int(amount) < 1 or unit not in ("rows", "tokens"):
            raise ValueError(f'budget "{said}" is neither a number of rows (1000) nor of tokens ("200000 tokens").')
        return cls(int(amount), unit)

    def __str__(self) -> str:
        return f"{self.amount} {self.unit}"

    def asked(self) -> dict[str, int]:
        """As a selector is asked for it."""
        return {"k" if self.unit == "rows" else "tokens": self.amount}


@dataclass
class Comparison:
    """What `compare` is told; `run` makes the cells that are missing and the tables."""

    pool: Any
    methods: Mapping[str, Selector]
    measures: dict[str, Measure]
    recipe: Recipe
    folder: Path
    budgets: Sequence[Budget]
    seeds: int
    passes: float
    balanced_by: str | None
    whole_pool: bool
    costs: Mapping[str, Mapping[str, float]]

    def __post_init__(self) -> None:
        if torch.cuda.device_count() > 1 and self.recipe.accelerate_config is None:
            raise ValueError(
                "one process sees several devices, and a run is trained on one of them: start the command under "
                "accelerate launch, or show it one (CUDA_VISIBLE_DEVICES=0). A run that needs several devices is "
                "launched by itself: recipe setting accelerate_config."
            )
        if self.seeds < 2:
            raise ValueError(f"seeds is {self.seeds}; one run says nothing of the spread between runs: at least 2.")
        if not self.budgets:
            raise ValueError("give at least one budget.")
        for budget in self.budgets:
            if budget.unit == "rows" and budget.amount > len(self.pool):
                raise ValueError(f"budget {budget}: the pool has {len(self.pool)} rows.")
        for name in self.methods:
            if name in (RANDOM, UNTRAINED, "whole pool", "longest") or name.startswith(MATCHED):
                raise ValueError(f'"{name}" is a baseline that is there in any case; call the method otherwise.')
            if not slug(name) or sum(slug(other) == slug(name) for other in self.methods) > 1:
                raise ValueError(f'"{name}" would have no folder of its own; call the method otherwise.')
        if TOGETHER in self.measures:
            raise ValueError(
                f'"{TOGETHER}" is what all held-out sets together are called; name the measure otherwise.'
            )

    def run(self) -> dict[str, Any]:
        from hf_select.reports.report_files import check_replaceable

        check_replaceable(self.folder, "result.html", "result.md", "pictures")  # before the runs, not after them
        recipe = {name: value for name, value in self.recipe.described().items() if name not in _WHERE}
        measured = {name: measure.identity() for name, measure in self.measures.items()}
        settings = {"recipe": recipe, "passes": self.passes, "measures": measured}
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder.parent / f".{self.folder.name}.lock") as lock:  # processes start at once
            held = {**settings, "recipe": {**recipe, "model": find(self.recipe.model).identity}}
            claim_run_folder(self.folder / "comparison.json", held, "a comparison", self.pool)
            Path(lock.lock_file).unlink(missing_ok=True)
        self.pool, left_out = _trainable(self.pool, self.recipe, self.folder / "lengths.npz")
        self.lengths = np.asarray(self.pool[columns.NUM_TOKENS])
        for budget in self.budgets:
            there = len(self.pool) if budget.unit == "rows" else int(self.lengths.sum())
            if budget.amount > there - (budget.unit == "tokens"):
                raise ValueError(f"budget {budget}: the pool has {there:,} {budget.unit} to train on.")
        overlap = self._overlap()
        wanted = self._wanted()
        self._make(wanted)
        cells = {}
        for cell, rows in wanted.items():
            cells[cell] = {**(self._record(cell) or {}), "matched_by": rows.matched_by}
        about = {name: {"better": m.better, "unit": m.unit} for name, m in self.measures.items()}
        found = tables(cells, list(self.methods), about, self.costs)
        result = with_ledger({**found, "overlap": overlap, "left_out": left_out, "settings": settings})
        with FileLock(self.folder / ".result.lock"):  # processes end at once
            write_json(self.folder / "result.json", result)
            comparison_report(result, self.folder)
        return result

    # Which runs, on which rows.

    def _selectors(self) -> dict[str, Callable[[Budget, int], Selection]]:
        """Method -> (budget, seed) -> its rows."""
        pool = self.pool
        found: dict[str, Callable[[Budget, int], Selection]] = {
            RANDOM: lambda budget, seed: Random(seed)(pool, **budget.asked())
        }
        if self.balanced_by is not None:
            column = self.balanced_by
            found[f"{MATCHED}balanced by {column})"] = lambda budget, seed: Random(seed, balanced_by=column)(
                pool, **budget.asked()
            )
        for name, selector in {"longest": Longest(columns.NUM_TOKENS), **self.methods}.items():
            once = functools.cache(lambda budget, selector=selector: selector(pool, **budget.asked()))
            found[name] = lambda budget, seed, once=once: once(budget)
        return found

    def _wanted(self) -> dict[Cell, "_Rows"]:
        """Cells with their rows; the untrained model is a cell without."""
        found: dict[Cell, _Rows] = {Cell(UNTRAINED, "", 0): _Rows(None)}
        for budget in self.budgets:
            alike = {RANDOM: budget.amount * float(self.lengths.mean())}  # baselines and the tokens they choose
            for name, select in self._selectors().items():
                chosen = [select(budget, seed) for seed in range(self.seeds)]
                matched = None
                if budget.unit == "rows" and not name.startswith(RANDOM):
                    tokens = int(self.lengths[chosen[0].indices].sum())
                    matched = self._matched(tokens, alike)
                    if matched not in alike:
                        alike[matched] = tokens
                        paid = min(tokens, int(self.lengths.sum()) - 1)
                        for seed in range(self.seeds):
                            found[Cell(matched, str(budget), seed)] = _Rows(Random(seed)(self.pool, tokens=paid))
                for seed, rows in enumerate(chosen):
                    found[Cell(name, str(budget), seed)] = _Rows(rows, None if matched == RANDOM else matched)
            if self.whole_pool:
                for seed in range(self.seeds):
                    everything = Random(seed)(self.pool, k=len(self.pool))
                    found[Cell("whole pool", str(budget), seed)] = _Rows(everything)
        return found

    @staticmethod
    def _matched(tokens: int, alike: Mapping[str, float]) -> str:
        """The baseline that chooses about so many tokens, there already or wanted."""
        for name, others in alike.items():
            if abs(tokens - others) <= _TOKENS_ALIKE * others:
                return name
        return f"{MATCHED}{tokens:,} tokens)"

    def tokens_for(self, budget: Budget) -> int:
        """Tokens that every run of a budget trains: `passes` over so many tokens, or over so many rows of the pool's
        mean length."""
        tokens = budget.amount if budget.unit == "tokens" else budget.amount * float(self.lengths.mean())
        return max(1, round(self.passes * tokens))

    def _overlap(self) -> dict[str, int]:
        """Rows of the pool that repeat a row that is measured on, by measure."""
        found = {}
        for name, measure in self.measures.items():
            rows = measure.rows_in_pool()
            if rows is None:
                continue
            found[name] = count = rows_that_repeat(self.pool, rows)
            if count:
                logger.warning(
                    '%d rows of the pool repeat rows that "%s" measures on: a method that chooses them learns the '
                    "answers. Take them out first (selector decontaminate).", count, name,
                )  # fmt: skip
        return found

    # Making them.

    def _path(self, cell: Cell) -> Path:
        named = "-".join(filter(None, (slug(cell.budget), f"seed-{cell.seed}.json")))
        return self.folder / "cells" / slug(cell.method) / named

    def _make(self, wanted: Mapping[Cell, "_Rows"]) -> None:
        missing = [cell for cell, rows in wanted.items() if not self._is_done(cell, rows)]
        with tqdm(total=len(missing), desc="compare", unit="run", disable=not missing) as bar:
            while missing:
                for cell in missing:
                    self._make_one(cell, wanted[cell])
                    bar.update()
                missing = [cell for cell in missing if not self._is_done(cell, wanted[cell])]
                bar.n = bar.total - len(missing)
                if missing:
                    time.sleep(0.5)  # others are at work on the last ones

    def _make_one(self, cell: Cell, rows: "_Rows") -> None:
        path = self._path(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:  # another process has it in hand
            return
        try:
            if not self._is_done(cell, rows):
                write_json(path, self._run_of(cell, rows.selection))
        finally:
            lock.release()
            path.with_suffix(".lock").unlink(missing_ok=True)

    def _record(self, cell: Cell) -> dict[str, Any] | None:
        return read_json(self._path(cell))

    def _is_done(self, cell: Cell, rows: "_Rows") -> bool:
        found = self._record(cell)
        if found is None:
            return False
        if found["selection"] != rows.digest():
            raise ValueError(
                f'"{self.folder}" has a run of "{cell.method}" with {cell.budget}, seed {cell.seed}, on another '
                "selection. Name the new one otherwise, or choose another folder."
            )
        return True

    def _run_of(self, cell: Cell, selection: Selection | None) -> dict[str, Any]:
        lm = self.recipe.base()
        by = f"{socket.gethostname()} {os.getpid()}"
        record: dict[str, Any] = {**asdict(cell), "selection": _Rows(selection).digest(), "by": by}
        if selection is not None:
            tokens = self.tokens_for(Budget.read(cell.budget))
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
        record["values"] = {}
        for name, measure in self.measures.items():
            of = f'measure "{name}" of "{cell.method}" ({cell.budget}, seed {cell.seed})'
            try:
                record["values"][name] = values = measure(lm)
            except ValueError as error:
                raise ValueError(f"{of}: {error}") from error
            if not np.isfinite(values).all():
                raise ValueError(f"{of} is no number: the run has diverged. Lower the learning rate.")
        return record


def compare(
    pool: Any,
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
) -> dict[str, Any]:
    """Train and measure every method at every budget; a killed comparison goes on.

    Args:
        pool: the dataset that is selected from, with the score columns that the methods read. Rows without a response
            to learn are left out first, and counted.
        methods: name -> selector.
        measures: name -> what every run is measured by: held-out rows (mean response NLL of each, in nats),
            CheckableAnswers, LMEvalTask or another Measure.
        recipe: how every run is trained.
        budgets: of a selection: rows (1000) or tokens ("200000 tokens").
        seeds: runs of each method; those of random rows draw anew.
        passes: every run of a budget trains as many tokens as so many passes over random rows of its size.
        balanced_by: column of sources, for random rows balanced over them.
        whole_pool: also train on the whole pool, for as many tokens.
        costs: name -> {"flops", "seconds"} of its scores, for the ledger.
    Returns: the result that is written to result.json.
    Raises: ValueError for a folder of another comparison, budgets above the pool, nothing to measure on, a run that
        diverged.
    """
    with _alone(recipe.accelerate_config is not None):
        return Comparison(
            pool, methods, as_measures(measures, recipe.max_length), recipe, Path(output_dir).expanduser(),
            [Budget.read(budget) for budget in budgets], seeds, passes, balanced_by, whole_pool, costs or {},
        ).run()  # fmt: skip


@dataclass(frozen=True)
class _Rows:
    """What a cell trains on, and the baseline of as many tokens, if random rows have clearly more or fewer."""

    selection: Selection | None
    matched_by: str | None = None

    def digest(self) -> str:
        if self.selection is None:
            return ""
        return hashlib.sha256(self.selection.indices.tobytes()).hexdigest()[:32]


# Where a run is trained, not how.
_WHERE = ("accelerate_config", "rows_per_batch")

# What a launcher tells its processes of one another.
_LAUNCHED = re.compile(
    "RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|GROUP_RANK|GROUP_WORLD_SIZE|ROLE_.*|MASTER_(ADDR|PORT)|TORCHELASTIC_.*"
)


@contextlib.contextmanager
def _alone(launches: bool) -> Iterator[None]:
    """Under a launcher every process is to make its own runs on its own device: meanwhile the others are forgotten, or
    Trainer would train with them.

    Args:
        launches: runs are launched on several devices each, which are not shared out among processes.
    Raises: ValueError under DeepSpeed or FSDP, whose processes train together, and for several processes that launch.
    """
    if launches and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("with accelerate_config every run is launched by itself: start the command as one process.")
    for engine in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"):
        if os.environ.get(engine) == "true":
            raise ValueError(
                "runs that DeepSpeed or FSDP train are launched one by one: start the command itself without them and "
                "name the configuration in the recipe (accelerate_config)."
            )
    known = {name: value for name, value in os.environ.items() if _LAUNCHED.fullmatch(name)}
    if "LOCAL_RANK" in known:
        # CUDA reads this when it is first used; if that was before, several devices are seen and the start is refused.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        rank, named = int(known["LOCAL_RANK"]), visible.split(",") if visible else []
        if visible != "":  # nothing is to be seen
            if visible and rank >= len(named):
                raise ValueError(
                    f"process {rank + 1} of the launch has no device: CUDA_VISIBLE_DEVICES={visible}. Start as many "
                    "processes as there are devices."
                )
            os.environ["CUDA_VISIBLE_DEVICES"] = named[rank] if named else str(rank)
    for name in known:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(known)


def _trainable(pool: Any, recipe: Recipe, kept: Path) -> tuple[Any, dict[str, int]]:
    """The rows that have a response to learn, with the tokens that a run reads of each, and why others are left out.
    Whatever is drawn is drawn from these: a row that nothing is learned from is no part of a budget."""
    if kept.exists():
        found = np.load(kept)
        lengths, reasons = found["lengths"], json.loads(str(found["reasons"]))
    else:
        lm, tokens, bad = recipe.base(), [], Counter()
        for batch in readable(pool).iter(batch_size=1000):
            for row in with_responses(lm, conversations(cast(dict, batch)), "chat", recipe.max_length):
                tokens.append(0 if isinstance(row, BadRow) else len(row[0].input_ids))
                bad[str(row)] += isinstance(row, BadRow)
        lengths, reasons = np.array(tokens), {reason: count for reason, count in bad.most_common() if count}
        with atomic_path(kept) as temporary, open(temporary, "wb") as file:
            np.savez(file, lengths=lengths, reasons=json.dumps(reasons))
    for reason, count in reasons.items():
        logger.warning("%d rows of the pool cannot be trained on and are left out: %s", count, reason)
    there = np.flatnonzero(lengths)
    if columns.NUM_TOKENS in pool.column_names:
        pool = pool.remove_columns(columns.NUM_TOKENS)
    if len(there) < len(pool):
        pool = pool.select(there)
    return pool.add_column(columns.NUM_TOKENS, lengths[there].tolist()), reasons
