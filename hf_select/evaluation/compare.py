"""Is a selection better than random rows here, at equal compute?

    compare(pool, {"ifd": TopK("score_ifd")}, {"my task": rows}, Recipe("my/model"), "comparison", budgets=[1000])

Every selection is trained by one recipe on equally many tokens with several seeds and measured on held-out rows,
beside what it has to beat: no training, random rows, random rows of as many tokens, random rows balanced over sources,
the longest rows and, if asked for, the whole pool. A seed gives the random draw and the order of training; results are
paired by it (statistics.py).

output_dir/
  comparison.json                     pool, held-out rows and recipe; a folder with others is refused
  cells/METHOD/BUDGET-seed-N.json     one training run: what it cost and the loss of every held-out row
  result.json, result.md              tables and verdicts

A cell is written whole or not at all and never made twice; processes that share the folder share the cells.

Left out here: tasks with checkable answers and lm-evaluation-harness.
"""

import functools
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from hf_select import columns
from hf_select.evaluation.statistics import Difference, differences
from hf_select.files import read_json, write_json, written_whole
from hf_select.formats import Conversation, conversations
from hf_select.inference.causal_lm import CausalLM
from hf_select.inference.pool import pool_fingerprint, readable
from hf_select.scoring.length import Length
from hf_select.scoring.overlap import QueryOverlap
from hf_select.selection.baselines import Longest, Random
from hf_select.selection.selection import Selection
from hf_select.training.equal_tokens import Recipe, labelled, train_on_tokens, with_responses
from hf_select.training.resuming import hold_to


logger = logging.getLogger(__name__)

RANDOM, UNTRAINED = "random", "untrained"
Selector = Callable[..., Selection]


@dataclass(frozen=True)
class Cell:
    """One training run that is wanted."""

    method: str
    budget: int
    seed: int

    @property
    def file(self) -> str:
        return f"{re.sub(r'[^a-z0-9]+', '-', self.method.lower()).strip('-')}/{self.budget}-seed-{self.seed}.json"


@dataclass
class Comparison:
    """What `compare` is told; `run` makes the cells that are missing and the tables."""

    pool: Any
    methods: Mapping[str, Selector]
    held_out: Mapping[str, Any]
    recipe: Recipe
    folder: Path
    budgets: Sequence[int]
    seeds: int
    passes: float
    balanced_by: str | None
    whole_pool: bool
    costs: Mapping[str, Mapping[str, float]]

    def __post_init__(self) -> None:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 or torch.cuda.device_count() > 1:
            raise ValueError(
                "each run is trained by one process on one device: start the command once a device, without "
                "accelerate launch (CUDA_VISIBLE_DEVICES=0 hf-select compare ...); they share the work."
            )
        if not self.held_out or any(len(rows) == 0 for rows in self.held_out.values()):
            raise ValueError("there is nothing to measure on: give held-out rows, at least one.")
        if self.seeds < 2:
            raise ValueError(f"seeds is {self.seeds}; one run says nothing of the spread between runs: at least 2.")
        if not self.budgets or min(self.budgets) < 1 or max(self.budgets) > len(self.pool):
            raise ValueError(f"budgets are {list(self.budgets)}, and the pool has {len(self.pool)} rows.")
        for name in self.methods:
            if name in (RANDOM, UNTRAINED) or name.startswith((f"{RANDOM} (", "whole pool", "longest")):
                raise ValueError(f'"{name}" is a baseline that is there in any case; call the method otherwise.')

    def run(self) -> dict[str, Any]:
        settings = {"recipe": asdict(self.recipe), "passes": self.passes, "held_out": _fingerprints(self.held_out)}
        hold_to(self.folder / "comparison.json", settings, self.pool, "comparison")
        self.pool = _with_lengths(self.pool, self.recipe)
        self._encoded: dict[str, tuple[list[Any], list[Any]]] = {}  # the held-out rows, by the first cell's tokenizer
        overlap = self._overlap()
        wanted = self._wanted()
        self._make(wanted)
        cells = {cell: read_json(self.folder / "cells" / cell.file) for cell in wanted}
        result = {**tables(cells, list(self.methods), self.costs), "overlap": overlap, "settings": settings}
        write_json(self.folder / "result.json", result)
        with written_whole(self.folder / "result.md") as temporary:
            temporary.write_text(as_markdown(result), encoding="utf-8")
        return result

    # Which runs, on which rows.

    def _selectors(self) -> dict[str, Callable[[int, int], Selection]]:
        """Method -> (budget, seed) -> its rows."""
        pool = self.pool
        found: dict[str, Callable[[int, int], Selection]] = {RANDOM: lambda k, seed: Random(seed)(pool, k=k)}
        if self.balanced_by is not None:
            column = self.balanced_by
            found[f"random (balanced by {column})"] = lambda k, seed: Random(seed, balanced_by=column)(pool, k=k)
        found["longest"] = lambda k, seed: Longest(columns.NUM_TOKENS)(pool, k=k)
        for name, selector in self.methods.items():
            once = functools.cache(lambda k, selector=selector: selector(pool, k=k))
            found[name] = lambda k, seed, once=once: once(k)
        return found

    def _wanted(self) -> dict[Cell, Selection | None]:
        """Cells with their rows; the untrained model is a cell without."""
        lengths = np.asarray(self.pool[columns.NUM_TOKENS], dtype=np.float64)
        found: dict[Cell, Selection | None] = {}
        for budget in self.budgets:
            for name, select in self._selectors().items():
                chosen = [select(budget, seed) for seed in range(self.seeds)]
                found |= {Cell(name, budget, seed): chosen[seed] for seed in range(self.seeds)}
                tokens = int(np.nansum(lengths[chosen[0].indices]))
                expected = float(np.nanmean(lengths)) * budget
                if not name.startswith(RANDOM) and abs(tokens - expected) > 0.1 * expected:
                    matched = f"{RANDOM} (tokens of {name})"
                    for seed in range(self.seeds):
                        rows = Random(seed)(self.pool, tokens=min(tokens, int(np.nansum(lengths)) - 1))
                        found[Cell(matched, budget, seed)] = rows
            if self.whole_pool:
                for seed in range(self.seeds):
                    found[Cell("whole pool", budget, seed)] = Random(seed)(self.pool, k=len(self.pool))
        found[Cell(UNTRAINED, 0, 0)] = None
        return found

    def tokens_for(self, budget: int) -> int:
        """Tokens that every run of a budget trains: `passes` over so many rows of the pool's mean length."""
        lengths = np.asarray(self.pool[columns.NUM_TOKENS], dtype=np.float64)
        return max(1, round(self.passes * budget * float(np.nanmean(np.minimum(lengths, self.recipe.max_length)))))

    def _overlap(self) -> dict[str, int]:
        """Rows of the pool that repeat a held-out row, by set."""
        found = {}
        for name, rows in self.held_out.items():
            repeats = QueryOverlap([row for row in conversations(rows[:]) if isinstance(row, Conversation)])
            count = 0
            for batch in readable(self.pool).iter(batch_size=1000):
                parsed = conversations(cast(dict, batch))
                count += sum(bool(repeats(row)) for row in parsed if isinstance(row, Conversation))
            found[name] = count
            if count:
                logger.warning(
                    '%d rows of the pool repeat rows of the held-out set "%s": a method that chooses them learns the '
                    "answers. Take them out first (selector decontaminate).", count, name,
                )  # fmt: skip
        return found

    # Making them.

    def _make(self, wanted: dict[Cell, Selection | None]) -> None:
        missing = [cell for cell in wanted if not self._is_done(cell, wanted[cell])]
        for cell in tqdm(missing, desc="compare", unit="run", disable=not missing):
            path = self.folder / "cells" / cell.file
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.with_suffix(".lock"))
            try:
                lock.acquire(timeout=0)
            except Timeout:  # another process has it in hand
                continue
            try:
                if not self._is_done(cell, wanted[cell]):
                    write_json(path, self._cell(cell, wanted[cell]))
            finally:
                lock.release()
                path.with_suffix(".lock").unlink(missing_ok=True)
        while not all(self._is_done(cell, wanted[cell]) for cell in missing):
            time.sleep(0.5)  # others are at work on the last ones
            left = [cell for cell in missing if not self._is_done(cell, wanted[cell])]
            if not any((self.folder / "cells" / cell.file).with_suffix(".lock").exists() for cell in left):
                self._make({cell: wanted[cell] for cell in left})

    def _is_done(self, cell: Cell, selection: Selection | None) -> bool:
        found = read_json(self.folder / "cells" / cell.file)
        if found is None:
            return False
        if found["selection"] != _digest(selection):
            raise ValueError(
                f'"{self.folder}" has a run of "{cell.method}" with {cell.budget} rows, seed {cell.seed}, on another '
                "selection. Name the new one otherwise, or choose another folder."
            )
        return True

    def _cell(self, cell: Cell, selection: Selection | None) -> dict[str, Any]:
        lm = CausalLM(self.recipe.model, dtype="float32")
        if not self._encoded:
            self._encoded = {name: _measurable(lm, rows, name, self.recipe) for name, rows in self.held_out.items()}
        record: dict[str, Any] = {**asdict(cell), "selection": _digest(selection)}
        if selection is not None:
            rows, bad, _ = labelled(lm, self.pool.select(selection.indices), "chat", self.recipe.max_length)
            if not len(rows):
                raise ValueError(f'none of the rows of "{cell.method}" has a response to train on.')
            trained = train_on_tokens(self.recipe, lm, rows, self.tokens_for(cell.budget), cell.seed)
            lm = trained.lm
            record |= {name: value for name, value in vars(trained).items() if name != "lm"}
            record |= {
                "rows": len(rows),
                "rows_left_out": bad.total(),
                "could_choose_from": _could_choose_from(selection),
                "tokens_wanted": self.tokens_for(cell.budget),
                "step_tokens": self.recipe.rows_per_step * self.recipe.max_length,
            }
        record["losses"] = {
            name: [float(np.mean(cast(np.ndarray, nll))) for nll in lm.response_nll(*encoded)]
            for name, encoded in self._encoded.items()
        }
        return record


def compare(
    pool: Any,
    methods: Mapping[str, Selector],
    held_out: Mapping[str, Any],
    recipe: Recipe,
    output_dir: str | Path,
    budgets: Sequence[int],
    seeds: int = 3,
    passes: float = 2.0,
    balanced_by: str | None = None,
    whole_pool: bool = False,
    costs: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """Train and measure every method at every budget; a killed comparison goes on.

    Args:
        pool: the dataset that is selected from, with the score columns that the methods read.
        methods: name -> selector.
        held_out: domain -> rows that are measured: mean response NLL of each, in nats.
        recipe: how every run is trained.
        budgets: rows of a selection.
        seeds: runs of each method; those of random rows draw anew.
        passes: every run of a budget trains as many tokens as so many passes over random rows of its size.
        balanced_by: column of sources, for random rows balanced over them.
        whole_pool: also train on the whole pool, for as many tokens.
        costs: name -> {"flops", "seconds"} of its scores, for the ledger.
    Returns: the result that is written to result.json.
    Raises: ValueError for a folder of another comparison, budgets above the pool, nothing to measure on.
    """
    return Comparison(
        pool, methods, held_out, recipe, Path(output_dir).expanduser(), budgets, seeds, passes, balanced_by,
        whole_pool, costs or {},
    ).run()  # fmt: skip


# --------------------------------------------------------------------------------------------------------------------
# tables


def tables(
    cells: Mapping[Cell, Any], methods: Sequence[str], costs: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """For each budget and domain the methods and the other baselines beside random rows.

    Raises: ValueError if runs of one budget have trained unequally many tokens.
    """
    untrained = next(record for cell, record in cells.items() if cell.method == UNTRAINED)
    domains = [*untrained["losses"], *(["all"] if len(untrained["losses"]) > 1 else [])]
    found: dict[str, Any] = {}
    for budget in dict.fromkeys(cell.budget for cell in cells if cell.method != UNTRAINED):
        of_budget = {cell: record for cell, record in cells.items() if cell.budget == budget}
        _refuse_unequal(of_budget)
        names = list(dict.fromkeys(cell.method for cell in of_budget))
        lines = {name: _line([r for c, r in of_budget.items() if c.method == name], costs.get(name)) for name in names}
        for domain in domains:
            results = {
                name: np.array([_losses(r, domain) for c, r in of_budget.items() if c.method == name])
                for name in names
            }
            baseline = results[RANDOM]
            before = np.tile(_losses(untrained, domain), (len(baseline), 1))
            others = {UNTRAINED: before} | {name: r for name, r in results.items() if name != RANDOM}
            # Baselines are no hypotheses: only the methods count for Holm's correction.
            asked = {name: r for name, r in others.items() if name in methods}
            against = {name: differences({name: r}, baseline)[name] for name, r in others.items() if name not in asked}
            against |= differences(asked, baseline)
            found.setdefault(str(budget), {})[domain] = {
                RANDOM: {"loss": float(baseline.mean()), **lines[RANDOM]},
                **{
                    name: {
                        "loss": float(others[name].mean()),
                        **lines.get(name, {}),
                        "difference": vars(difference),
                        "verdict": difference.verdict(),
                    }
                    for name, difference in against.items()
                },
            }
    return {"methods": list(methods), "budgets": found}


def as_markdown(result: dict[str, Any]) -> str:
    """The tables in Markdown."""
    parts = ["# Is a selection better than random rows?\n"]
    for budget, domains in result["budgets"].items():
        for domain, methods in domains.items():
            some = next(iter(methods.values()))
            parts.append(
                f"## {int(budget):,} rows, held-out: {domain}\n\nEvery run trained {some['tokens']:,} tokens; "
                f"{some['seeds']} seeds. Loss in nats; differences to random rows with their 95 % intervals; p after "
                f"Holm over {len(result['methods'])} methods. Selecting: FLOPs of the scores over those of a run.\n"
            )
            parts.append("| method | loss | less random | p | seeds won | rows | passes | selecting | |")
            parts.append("|---|---|---|---|---|---|---|---|---|")
            parts += [_markdown_line(name, line) for name, line in methods.items()]
            parts.append("")
    overlap = {name: count for name, count in result["overlap"].items() if count}
    for name, count in overlap.items():
        parts.append(f"{count} rows of the pool repeat rows of the held-out set {name}.\n")
    return "\n".join(parts)


def _markdown_line(name: str, line: dict[str, Any]) -> str:
    rows = f"{line['rows']:,.0f} | {line['passes']:.2f} | {line['selecting']}" if "rows" in line else " | | "
    if "difference" not in line:
        return f"| {name} | {line['loss']:.4f} | | | | {rows} | |"
    d = Difference(**line["difference"])
    return (
        f"| {name} | {line['loss']:.4f} | {d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}] | {d.p_holm:.3f} | "
        f"{d.wins} of {d.seeds} | {rows} | {line['verdict']} |"
    )


def _line(records: list[dict[str, Any]], cost: Mapping[str, float] | None) -> dict[str, Any]:
    """What a method's runs were, on average."""
    flops = float(np.mean([r["flops"] for r in records]))
    choice = records[0]["could_choose_from"]
    return {
        "rows": float(np.mean([r["rows"] for r in records])),
        "tokens": round(float(np.mean([r["tokens"] for r in records]))),
        "passes": float(np.mean([r["passes"] for r in records])),
        "seeds": len(records),
        "could_choose_from": choice,
        "training_seconds": float(np.mean([r["seconds"] for r in records])),
        "training_flops": flops,
        "selection_seconds": None if cost is None else cost.get("seconds"),
        "selection_flops": None if cost is None else cost.get("flops"),
        "selecting": "" if cost is None or not cost.get("flops") else f"{cost['flops'] / flops:.2f}",
    }


def _losses(record: dict[str, Any], domain: str) -> list[float]:
    if domain != "all":
        return record["losses"][domain]
    return [value for values in record["losses"].values() for value in values]


def _refuse_unequal(records: Mapping[Cell, dict[str, Any]]) -> None:
    for cell, record in records.items():
        if not 0 <= record["tokens"] - record["tokens_wanted"] <= record["step_tokens"]:
            raise ValueError(
                f'the run of "{cell.method}" ({cell.budget} rows, seed {cell.seed}) trained {record["tokens"]:,} '
                f"tokens and not {record['tokens_wanted']:,}: unequal runs are not compared. Delete "
                f"cells/{cell.file} and run the comparison again."
            )
    if len({record["tokens_wanted"] for record in records.values()}) > 1:
        raise ValueError("runs of one budget were to train unequally many tokens; they are not compared.")


# --------------------------------------------------------------------------------------------------------------------


def _with_lengths(pool: Any, recipe: Recipe) -> Any:
    """The pool with tokens counted, which token-matched baselines and the longest rows need."""
    if columns.NUM_TOKENS in pool.column_names:
        return pool
    counter, counts = Length(tokenizer=recipe.model), []
    for batch in readable(pool).iter(batch_size=1000):
        counts += counter(cast(dict, batch))[columns.NUM_TOKENS]
    return pool.add_column(columns.NUM_TOKENS, counts)


def _measurable(lm: CausalLM, rows: Any, name: str, recipe: Recipe) -> tuple[list[Any], list[Any]]:
    """(token ids, response spans) of held-out rows."""
    encoded, bad, _ = with_responses(lm, rows, "chat", recipe.max_length)
    if bad:
        raise ValueError(
            f'{bad.total()} of {len(rows)} rows of the held-out set "{name}" cannot be measured (the first: '
            f"{next(iter(bad))}). Take them out."
        )
    return [e.input_ids for e in encoded], [e.responses for e in encoded]


def _could_choose_from(selection: Selection) -> int:
    """Rows that the method could rank: those without a score were out of its reach."""
    step = selection.chain[-1] if selection.chain else {}
    return step.get("scored", selection.num_rows)


def _digest(selection: Selection | None) -> str:
    return "" if selection is None else hashlib.sha256(selection.indices.tobytes()).hexdigest()[:32]


def _fingerprints(held_out: Mapping[str, Any]) -> dict[str, str]:
    return {name: pool_fingerprint(readable(rows)) for name, rows in held_out.items()}
