"""Selection inside Trainer: the model in training selects the rows that it is trained on next.

    trainer = SFTTrainer(model, args, train_dataset=dataset, eval_dataset=queries)  # a few clean rows of the task
    score = online_scores.GradientSimilarity(trainer.eval_dataset)
    trainer.add_callback(DataSelectionCallback(trainer, score, fraction=0.25))
    trainer.train()

A sampler of constant length draws the selected rows, so that what Trainer plans from the length (steps, schedule,
epochs) stays correct. One pass over the sampler is a round, and an epoch to Trainer: before each the callback scores,
selects and writes a table of the round. (Replacing `train_dataset` or the dataloader from a callback has no effect:
transformers issue 25925.)

Not supported: iterable datasets, packing, trainers with their own samplers (GRPO, RLOO). See docs/drop_in.md.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from hf_select.data import columns
from hf_select.data.rows import pool_fingerprint
from hf_select.scoring.scorer import Scorer
from hf_select.selection.selector import Selector
from hf_select.selection.top_k import TopK
from hf_select.training import _compat
from hf_select.training.candidate_scores import CandidateScores, preserve_mode_and_rng
from hf_select.training.online_score import FunctionScore, OnlineScore
from hf_select.training.requirements import check_dataloader, check_trainer, round_rows
from hf_select.training.round_files import STATE_FILE, GivenRows, load_state, save_state, state_digest, write_round
from hf_select.validation import check_choice


if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments


logger = logging.getLogger(__name__)

Order = Literal["random", "easy_to_hard", "hard_to_easy"]


class SelectionSampler(Sampler[int]):
    """Samples the selected rows, whose number is constant. In random order it draws as Trainer's sampler does: with
    all rows selected the order is the same."""

    def __init__(self, selected: np.ndarray, seed: int, shuffled: bool):
        self.selected, self.seed, self.epoch, self.shuffled = selected, seed, 0, shuffled

    def __len__(self) -> int:
        return len(self.selected)

    def __iter__(self) -> Iterator[int]:
        order = range(len(self))
        if self.shuffled:
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(self.seed + self.epoch)).tolist()
        for index in order:
            yield int(self.selected[index])


class DataSelectionCallback(TrainerCallback, ExportableState):
    """Scores rows with the current model before each round and trains on the selected ones.

    Args:
        trainer: Trainer, Seq2SeqTrainer, or SFTTrainer, DPOTrainer, RewardTrainer, KTOTrainer of TRL, or a subclass,
            before `train()`.
        score: an `OnlineScore` or a function (model, batch) -> (B,), of `training.online_scores` or your own; a scorer
            such as IFD(CausalLM(trainer.model, tokenizer=tokenizer)), of this model or another, which reads the
            conversation columns of the dataset (queries are encoded again in each round); or the name of a score
            column.
        selector: a selector of k rows by the column `score` (or the scorer's own columns); by default the highest.
        every: "epoch": a round is `rows` or `fraction` of the dataset. N: a round is N optimizer steps. Either way a
            round is an epoch to Trainer, so num_train_epochs counts rounds.
        rows: of a round; a multiple of the rows of one optimizer step, or all.
        fraction: of the dataset in a round, rounded down to whole optimizer steps.
        keep: share of the candidates to select, one for all rounds or (first, last) for a linear ramp over the run:
            rows / keep random candidates are scored. By default all rows are.
        max_candidates: largest number of random candidates that a round scores.
        warmup: rounds of random rows before the first selection.
        consume_once: a row that was trained on is a candidate again only when too few others are left.
        random_share: share of a round that is sampled at random instead of selected (epsilon).
        order: of the rows of a round: random (that of the dataset where the trainer does not shuffle, as with
            train_sampling_strategy="sequential"); easy_to_hard by increasing score; hard_to_easy.
        source_column: column whose values are counted among the selected rows in the log.
        tokens_per_batch: tokens, padding included, of one forward pass of an online score; halved when memory runs
            out. By default those of a training batch of the longest candidates.
        seed: of candidates and random rows; by default the data seed of the trainer.
    Logs: selection/round, candidates, unscored, score quantiles, overlap with the last round, seconds, counted FLOPs,
        rows per source, rows that the trainer dropped before and that it cuts at max_length.
        output_dir/_data_selection/round-*.parquet has each round's candidates and selected rows; `row` is a row's
        number in the dataset given to the trainer, `row_id` its id if it has one.
    Raises: ValueError for packing, iterable data, a round that is not a whole number of steps, a dataloader that does
        not draw the selected rows, a checkpoint of other rows or without the callback.
    Warns: if the run ends within the first round, or within the warm-up.
    """

    def __init__(
        self,
        trainer: "Trainer",
        score: OnlineScore | Callable[[Any, Mapping[str, torch.Tensor]], torch.Tensor] | Scorer | str,
        selector: Selector | None = None,
        *,
        every: Literal["epoch"] | int = "epoch",
        rows: int | None = None,
        fraction: float | None = None,
        keep: float | tuple[float, float] | None = None,
        max_candidates: int | None = None,
        warmup: int = 0,
        consume_once: bool = False,
        random_share: float = 0.0,
        order: Order = "random",
        source_column: str | None = None,
        tokens_per_batch: int | None = None,
        seed: int | None = None,
    ):
        check_choice("order", order, Order)
        self.trainer, self.selector = trainer, selector or TopK("score")
        self.score: OnlineScore | Scorer | str = (
            score if isinstance(score, OnlineScore | Scorer | str) else FunctionScore(score)
        )
        self.keep, self.max_candidates, self.warmup = keep, max_candidates, warmup
        self.consume_once, self.random_share = consume_once, random_share
        self.order, self.source_column = order, source_column
        args = trainer.args
        data_seed = args.seed if args.data_seed is None else args.data_seed
        self.seed = data_seed if seed is None else seed
        self.tokens_per_batch = tokens_per_batch
        if any(isinstance(other, DataSelectionCallback) for other in trainer.callback_handler.callbacks):
            raise ValueError("the trainer already has a DataSelectionCallback; a run can have only one.")
        check_trainer(trainer, self.score)
        self.dataset: Dataset = cast(Any, trainer.train_dataset)
        self.step_rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.budget = round_rows(len(self.dataset), self.step_rows, every, rows, fraction)
        self._validate()
        self._candidate_scores = CandidateScores(trainer, tokens_per_batch)
        self.round = -1
        self.consumed = np.zeros(len(self.dataset), dtype=bool)
        shuffled = order == "random" and _compat.shuffles(trainer)
        self.sampler = SelectionSampler(np.arange(self.budget), data_seed, shuffled)
        self.given = GivenRows.of(trainer)
        self._restored = self._training = False
        self._checkpoint: str | None = None
        _compat.use_sampler(trainer, self.sampler)
        _compat.watch_checkpoint(trainer, self._begin)

    def _validate(self) -> None:
        """Raise ValueError for settings that cannot work."""
        if self.max_candidates is not None and self.max_candidates < self.budget:
            raise ValueError(f"max_candidates is {self.max_candidates}, and a round has {self.budget} rows.")
        shares = self.keep if isinstance(self.keep, tuple) else (self.keep,)
        if any(share is not None and not 0 < share <= 1 for share in shares):
            raise ValueError(f"keep is {self.keep}; shares are above 0 and at most 1.")
        if not 0 <= self.random_share < 1:
            raise ValueError(f"random_share is {self.random_share}; it must be at least 0 and below 1.")
        if self.tokens_per_batch is not None and self.tokens_per_batch < 1:
            raise ValueError(f"tokens_per_batch is {self.tokens_per_batch}; it must be at least 1.")
        compares_rounds = isinstance(self.score, OnlineScore) and self.score.compares_rounds
        if compares_rounds and (self.warmup < 1 or self.keep is not None or self.max_candidates is not None):
            raise ValueError(
                f"{type(self.score).__name__} compares a row with the previous round: give warmup of at least 1, and "
                "neither keep nor max_candidates."
            )
        for name in (self.source_column, self.score if isinstance(self.score, str) else None):
            if name is not None and name not in self.dataset.column_names:
                raise columns.missing_column(name, self.dataset.column_names, "Name a column of the training data.")

    # Events of Trainer.

    def on_train_begin(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Check the dataloader, restore the selection of a checkpoint, and warn of a run without selection."""
        check_dataloader(self.trainer, kwargs["train_dataloader"], self.dataset, self.sampler)
        name = type(self).__name__
        if state.global_step > 0:
            saved = cast(Any, state.stateful_callbacks).get(name)
            if saved is None:
                raise ValueError(
                    "the checkpoint was written without DataSelectionCallback and does not have the selected rows; "
                    "resume without the callback, or start again with it."
                )
            self._restore(saved["attributes"])
        self._training = True
        cast(Any, state.stateful_callbacks)[name] = self.state()
        rounds = state.max_steps * self.step_rows / self.budget
        if rounds < 1:
            logger.warning(
                "a round is %d steps and the run has %d: rows are selected once, and some are not trained on.",
                self.budget // self.step_rows,
                state.max_steps,
            )
        if rounds <= self.warmup:
            logger.warning(
                "warmup is %d rounds and the run has %.4g: all rows are sampled at random and none is selected.",
                self.warmup,
                rounds,
            )

    def on_train_end(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Stop writing the state into checkpoints."""
        self._training = False

    def on_epoch_begin(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **kwargs: Any
    ) -> None:
        """Select the rows of the round that begins."""
        done = state.epoch or 0.0
        epoch = math.floor(done + 1e-6)
        self.sampler.epoch = epoch
        restored, self._restored = self._restored, False
        if restored and done - epoch > 1e-6:  # inside a round, which continues with its rows
            return
        rounds = max(1, math.ceil(state.max_steps * self.step_rows / self.budget))
        log = self._select(epoch, rounds)
        state.log_history.append({**log, "epoch": done, "step": state.global_step})
        self.trainer.callback_handler.on_log(args, state, control, log)

    def state(self) -> dict[str, Any]:
        """The selection's part of `trainer_state.json`. Trainer calls this while it writes a checkpoint, just before
        that file: arrays of the size of the dataset are written to a file next to it."""
        arrays, score = self._arrays(), self._score_state()
        folder = Path(str(self.trainer.args.output_dir)) / f"checkpoint-{self.trainer.state.global_step}"
        if self._training and self.trainer.args.should_save and folder.is_dir():
            save_state(folder / STATE_FILE, arrays, score)
        attributes = {
            "round": self.round,
            "selected": len(self.sampler.selected),
            "rows": len(self.dataset),
            "dataset": self._fingerprint,
            "digest": state_digest(arrays, score),
        }
        return {"args": {}, "attributes": attributes}

    def _arrays(self) -> dict[str, np.ndarray]:
        return {"selected": self.sampler.selected, "consumed": np.flatnonzero(self.consumed)}

    def _score_state(self) -> dict[str, Any]:
        return self.score.state() if isinstance(self.score, OnlineScore) else {}

    @cached_property
    def _fingerprint(self) -> str:
        """Hash of the columns that training and the score read."""
        if isinstance(self.score, Scorer):
            return pool_fingerprint(self.dataset)
        names = {*_compat.model_inputs(self.trainer, self.dataset).column_names}
        names |= {self.score} if isinstance(self.score, str) else set()
        return pool_fingerprint(self.dataset.select_columns([n for n in self.dataset.column_names if n in names]))

    def _begin(self, checkpoint: str | None) -> None:
        self._training, self._checkpoint = False, checkpoint

    def _restore(self, saved: dict[str, Any]) -> None:
        if saved["rows"] != len(self.dataset) or saved["selected"] != self.budget:
            raise ValueError(
                f"the checkpoint selected {saved['selected']} of {saved['rows']} rows a round, this run selects "
                f"{self.budget} of {len(self.dataset)}; resume with the same dataset and settings."
            )
        if saved["dataset"] != self._fingerprint:
            raise ValueError(
                f"the checkpoint selected from {saved['rows']} rows that are not those of this run; resume with the "
                "same dataset in the same order, or start again in another output_dir."
            )
        path = Path(str(self._checkpoint)) / STATE_FILE
        arrays, score = load_state(path) if path.exists() else ({}, {})
        if not arrays or state_digest(arrays, score) != saved["digest"]:
            raise ValueError(
                f'"{path}" (the selected rows) is {"not that of its checkpoint" if arrays else "missing"}; copy the '
                "checkpoint again, or resume from another one."
            )
        self.round = saved["round"]
        self.sampler.selected = arrays["selected"]
        self.consumed[:] = False
        self.consumed[arrays["consumed"]] = True
        if isinstance(self.score, OnlineScore):
            self.score.restore(score)
        self._restored = True

    # One round.

    def _select(self, number: int, rounds: int) -> dict[str, float]:
        begin = time.perf_counter()
        rng = np.random.default_rng([self.seed, number])
        candidates = np.flatnonzero(~self.consumed)
        if len(candidates) < self.budget:  # too few rows were not trained on yet
            self.consumed[:] = False
            candidates = np.arange(len(self.dataset))
        scored = number >= self.warmup or (isinstance(self.score, OnlineScore) and self.score.compares_rounds)
        pool = self._candidates(candidates, number, rounds, rng)
        scores, flops = self._scores(pool) if scored else ({}, 0.0)
        if number < self.warmup:
            chosen, random_rows = np.sort(rng.choice(candidates, self.budget, replace=False)), self.budget
        else:
            chosen, random_rows = self._choose(pool, scores, rng)
        previous = self.sampler.selected if self.round >= 0 else np.empty(0, dtype=np.int64)
        self.round, self.sampler.selected = number, chosen
        if self.consume_once:
            self.consumed[chosen] = True
        self._write(pool, scores, chosen)
        log = {
            "selection/round": number,
            "selection/candidates": len(pool) if scored else 0,
            "selection/rows": len(chosen),
            **({} if self.given.dropped is None else {"selection/dropped": self.given.dropped}),
            "selection/cut": self.given.cut,
            "selection/random_rows": random_rows,
            "selection/overlap": float(np.isin(chosen, previous).mean()) if len(previous) else 0.0,
            "selection/seconds": time.perf_counter() - begin,
            "selection/flops": flops,
        }
        for name, values in scores.items():
            known, of_chosen = values[np.isfinite(values)], values[np.isin(pool, chosen) & np.isfinite(values)]
            log["selection/unscored"] = len(values) - len(known)
            for q in (0.1, 0.5, 0.9):
                log[f"selection/{name}_q{int(100 * q)}"] = float(np.quantile(known, q)) if len(known) else math.nan
            log[f"selection/{name}_selected_mean"] = float(of_chosen.mean()) if len(of_chosen) else math.nan
        if self.source_column is not None:
            for source, count in Counter(self.dataset.select(chosen.tolist())[self.source_column]).items():
                log[f"selection/rows/{source}"] = count
        return log

    def _candidates(self, rows: np.ndarray, number: int, rounds: int, rng: np.random.Generator) -> np.ndarray:
        count = len(rows) if self.max_candidates is None else min(len(rows), self.max_candidates)
        if self.keep is not None:
            first, last = self.keep if isinstance(self.keep, tuple) else (self.keep, self.keep)
            share = first + (last - first) * min(1.0, number / max(1, rounds - 1))
            count = min(count, math.ceil(self.budget / share))
        return rows if count == len(rows) else np.sort(rng.choice(rows, count, replace=False))

    def _choose(
        self, pool: np.ndarray, scores: dict[str, np.ndarray], rng: np.random.Generator
    ) -> tuple[np.ndarray, int]:
        """(rows of the round, number of random rows among them)"""
        num_random = round(self.budget * self.random_share)
        num_selected = self.budget - num_random
        nullable = {name: [float(v) if np.isfinite(v) else None for v in values] for name, values in scores.items()}
        table = Dataset.from_dict({columns.ROW_ID: pool.tolist(), **nullable})
        known = int(np.isfinite(next(iter(scores.values()))).sum())
        if known < num_selected:
            raise ValueError(
                f"round {self.round + 1}: {num_selected} rows are to be selected and only {known} of {len(pool)} "
                "candidates have a finite score; lower rows, or fix the score."
            )
        indices = self.selector(table, k=num_selected).indices if num_selected else []
        selected = np.asarray(indices, dtype=np.int64)
        if len(selected) != num_selected or len(np.unique(selected)) != num_selected:
            raise ValueError(
                f"the selector selected {len(np.unique(selected))} rows, and a round needs {num_selected}: its size "
                "is fixed when training begins. Give a selector that selects exactly k rows."
            )
        rest = np.setdiff1d(np.arange(len(pool)), selected)
        places = np.concatenate([selected, rng.choice(rest, num_random, replace=False)])
        if self.order == "random":
            return np.sort(pool[places]), num_random
        values = next(iter(scores.values()))[places]
        ranked = np.argsort(-values if self.order == "hard_to_easy" else values, kind="stable")
        return pool[places[ranked]], num_random

    # Scores, equal in all processes.

    def _scores(self, pool: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
        """(score columns of the candidates, counted FLOPs of all processes)"""
        if isinstance(self.score, str):
            return {"score": np.array(self.dataset[self.score], dtype=np.float64)[pool]}, 0.0
        args = self.trainer.args
        share = -(-len(pool) // args.world_size)
        # All processes make the same number of forward passes: under ZeRO-3 and FSDP one more would deadlock.
        mine = np.resize(pool[args.process_index :: args.world_size], share) if len(pool) >= args.world_size else pool
        with preserve_mode_and_rng(cast(torch.nn.Module, self.trainer.model)):
            local, flops = self._by_scorer(mine) if isinstance(self.score, Scorer) else self._by_online_score(mine)
        if args.world_size == 1:
            gathered = [(mine, local, flops)]
        else:
            gathered: Any = gather_object([(mine, local, flops)])
        columns_of = {name: np.full(len(self.dataset), np.nan) for name in local}
        for rows, values, _ in gathered:
            for name in local:
                columns_of[name][rows] = values[name]
        scores = {name: values[pool] for name, values in columns_of.items()}
        if isinstance(self.score, OnlineScore):
            scores = {"score": self.score.after(pool, scores["score"])}
        return scores, sum(flops for _, _, flops in gathered)

    def _by_online_score(self, rows: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
        return self._candidate_scores.by_online_score(cast(OnlineScore, self.score), self.dataset, rows)

    def _by_scorer(self, rows: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
        return self._candidate_scores.by_scorer(cast(Scorer, self.score), self.dataset, rows)

    def _write(self, pool: np.ndarray, scores: dict[str, np.ndarray], chosen: np.ndarray) -> None:
        if self.trainer.is_world_process_zero():
            path = Path(str(self.trainer.args.output_dir)) / "_data_selection" / f"round-{self.round:05d}.parquet"
            write_round(path, self.dataset, self.given.numbers, pool if scores else chosen, scores, chosen)
