"""Selection inside the stock Trainer: the model that is being trained says which rows it is trained on next.

    trainer = SFTTrainer(model, args, train_dataset=dataset, eval_dataset=queries)  # a few clean rows of the task
    score = online_scores.GradientSimilarity(trainer.eval_dataset)
    trainer.add_callback(DataSelectionCallback(trainer, score, fraction=0.25))
    trainer.train()

A sampler of constant length carries it: what Trainer has planned from the length (steps, schedule, epochs) stays
right. One pass over the sampler is a round, and to Trainer an epoch: before each the callback scores, selects and
writes down what it chose. (Replacing `train_dataset` or the dataloader from a callback has no effect: transformers
issue 25925.)

Left out: iterable datasets, packing, trainers with samplers of their own (GRPO, RLOO).
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

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
from hf_select.training.candidate_scores import CandidateScores, untouched
from hf_select.training.online_score import FunctionScore, OnlineScore
from hf_select.training.requirements import check_dataloader, check_settings, check_trainer, round_rows
from hf_select.training.round_files import STATE_FILE, GivenRows, load_state, save_state, state_digest, write_round
from hf_select.validation import check_choice


logger = logging.getLogger(__name__)

Order = Literal["random", "easy_to_hard", "hard_to_easy"]


class SelectionSampler(Sampler[int]):
    """The selected rows, always the same number of them. In random order it draws as the stock sampler does: with all
    rows selected the order is the stock one."""

    def __init__(self, selected: np.ndarray, seed: int, shuffled: bool):
        self.selected, self.seed, self.epoch, self.shuffled = selected, seed, 0, shuffled

    def __len__(self) -> int:
        return len(self.selected)

    def __iter__(self) -> Iterator[int]:
        order = range(len(self))
        if self.shuffled:
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(self.seed + self.epoch)).tolist()
        for place in order:
            yield int(self.selected[place])


class DataSelectionCallback(TrainerCallback, ExportableState):
    """Scores rows with the current model before each round and trains the round on the selected ones.

    Args:
        trainer: Trainer, SFTTrainer, DPOTrainer or a subclass, before `train()`.
        score: an `OnlineScore` or a function (model, batch) -> (B,), of `training.online_scores` or your own; a scorer
            such as IFD(CausalLM(trainer.model, tokenizer=tokenizer)), of this model or another, which reads the
            conversation columns of the dataset (queries are encoded again in each round); or the name of a score
            column.
        selector: takes a dataset with the column `score` (or the scorer's own columns) and k; by default the highest.
        every: "epoch": a round is `rows` or `fraction` of the dataset. N: a round is N optimizer steps. To Trainer a
            round is an epoch either way, so num_train_epochs counts rounds.
        rows: of a round; a multiple of the rows of one optimizer step, or all.
        fraction: of the dataset in a round, rounded down to whole optimizer steps.
        keep: share of the candidates that is kept, each round's own or (first, last) for a linear ramp over the run:
            rows / keep random candidates are scored. By default all are.
        max_candidates: at most so many random candidates are scored in a round.
        warmup: rounds of random rows before the first selection.
        consume_once: a row that was trained on is no candidate again until too few are left.
        random_share: share of a round that is drawn at random in place of selected (epsilon).
        order: of the rows of a round: random (as they stand in the dataset with train_sampling_strategy="sequential");
            easy_to_hard by rising score; hard_to_easy.
        source_column: column whose values are counted among the selected rows in the log.
        tokens_per_batch: tokens, padding included, of one forward pass of a score function; halved when memory runs
            out. By default as many as a training batch of the longest candidates has.
        seed: of candidates and random rows; by default the data seed of the trainer.
    Logs: selection/round, candidates, unscored, score quantiles, overlap with the last round, seconds, counted FLOPs,
        rows per source, rows that the trainer dropped before and that it cuts at max_length.
        output_dir/_data_selection/round-*.parquet has each round's candidates and what was chosen; `row` is a row's
        number in the dataset that the trainer was given, `row_id` its id if that has one.
    Raises: ValueError for what cannot work, with the cure: packing, iterable data, a budget that is no whole number of
        steps, a dataloader that does not draw the selected rows, a checkpoint of other rows or without the callback.
    Warns: when the run ends within the first round, or within the warm-up.
    """

    def __init__(
        self,
        trainer: Any,
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
            raise ValueError("the trainer has a DataSelectionCallback already; one run has one selection.")
        check_trainer(trainer, self.score)
        self.dataset: Dataset = trainer.train_dataset
        self.step_rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.budget = round_rows(len(self.dataset), self.step_rows, every, rows, fraction)
        check_settings(self)
        self._candidate_scores = CandidateScores(trainer, self.score, tokens_per_batch)
        self.round = -1
        self.consumed = np.zeros(len(self.dataset), dtype=bool)
        shuffled = order == "random" and getattr(args, "train_sampling_strategy", "random") == "random"
        self.sampler = SelectionSampler(np.arange(self.budget), data_seed, shuffled)
        self.given = GivenRows.of(trainer)
        self._restored = self._training = False
        self._checkpoint: str | None = None
        _compat.use_sampler(trainer, self.sampler)
        _compat.watch_checkpoint(trainer, self._begin)

    # What Trainer calls.

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        check_dataloader(self.trainer, kwargs["train_dataloader"], self.dataset, self.sampler)
        name = type(self).__name__
        if state.global_step > 0:
            saved = state.stateful_callbacks.get(name)
            if saved is None:
                raise ValueError(
                    "the checkpoint was written without DataSelectionCallback and does not say which rows were "
                    "selected; resume without the callback, or start anew with it."
                )
            self._restore(saved["attributes"])
        self._training = True
        state.stateful_callbacks[name] = self.state()
        rounds = state.max_steps * self.step_rows / self.budget
        if rounds < 1:
            logger.warning(
                "a round is %d steps and the run has %d: rows are selected once, and not all of them are trained on.",
                self.budget // self.step_rows,
                state.max_steps,
            )
        if rounds <= self.warmup:
            logger.warning(
                "warmup is %d rounds and the run has %.4g: every row is drawn at random and none is selected.",
                self.warmup,
                rounds,
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._training = False

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        done = state.epoch or 0.0
        epoch = math.floor(done + 1e-6)
        self.sampler.epoch = epoch
        restored, self._restored = self._restored, False
        if restored and done - epoch > 1e-6:  # in the middle of a round, which goes on with its own rows
            return
        rounds = max(1, math.ceil(state.max_steps * self.step_rows / self.budget))
        log = self._select(epoch, rounds)
        state.log_history.append({**log, "epoch": done, "step": state.global_step})
        self.trainer.callback_handler.on_log(args, state, control, log)

    def state(self) -> dict[str, Any]:
        """What `trainer_state.json` says of the selection. Trainer asks for it while it writes a checkpoint, just
        before that file: what grows with the dataset is written next to it."""
        arrays, score = self._arrays(), self._score_state()
        folder = Path(self.trainer.args.output_dir) / f"checkpoint-{self.trainer.state.global_step}"
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
        """Hash of the rows, as far as training and the score read them."""
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
                f"the checkpoint selected from {saved['rows']} other rows than those of this run; resume with the "
                "same dataset in the same order, or start again in another output_dir."
            )
        path = Path(str(self._checkpoint)) / STATE_FILE
        arrays, score = load_state(path) if path.exists() else ({}, {})
        if not arrays or state_digest(arrays, score) != saved["digest"]:
            raise ValueError(
                f'"{path}" is {"not that of its checkpoint" if arrays else "missing"}, and with it the rows that were '
                "selected; copy the checkpoint again, or resume from another one."
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
        open_rows = np.flatnonzero(~self.consumed)
        if len(open_rows) < self.budget:  # every row has had its turn
            self.consumed[:] = False
            open_rows = np.arange(len(self.dataset))
        measuring = number >= self.warmup or (isinstance(self.score, OnlineScore) and self.score.compares_rounds)
        pool = self._candidates(open_rows, number, rounds, rng)
        scores, flops = self._scores(pool) if measuring else ({}, 0.0)
        if number < self.warmup:
            chosen, drawn = np.sort(rng.choice(open_rows, self.budget, replace=False)), self.budget
        else:
            chosen, drawn = self._chosen(pool, scores, rng)
        before = self.sampler.selected if self.round >= 0 else np.empty(0, dtype=np.int64)
        self.round, self.sampler.selected = number, chosen
        if self.consume_once:
            self.consumed[chosen] = True
        self._write(pool, scores, chosen)
        log = {
            "selection/round": number,
            "selection/candidates": len(pool) if measuring else 0,
            "selection/rows": len(chosen),
            **({} if self.given.dropped is None else {"selection/dropped": self.given.dropped}),
            "selection/cut": self.given.cut,
            "selection/random_rows": drawn,
            "selection/overlap": float(np.isin(chosen, before).mean()) if len(before) else 0.0,
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

    def _chosen(
        self, pool: np.ndarray, scores: dict[str, np.ndarray], rng: np.random.Generator
    ) -> tuple[np.ndarray, int]:
        """(rows of the round, how many of them were drawn at random)."""
        drawn = round(self.budget * self.random_share)
        wanted = self.budget - drawn
        nullable = {name: [float(v) if np.isfinite(v) else None for v in values] for name, values in scores.items()}
        table = Dataset.from_dict({columns.ROW_ID: pool.tolist(), **nullable})
        known = int(np.isfinite(next(iter(scores.values()))).sum())
        if known < wanted:
            raise ValueError(
                f"round {self.round + 1}: {wanted} rows are to be selected and only {known} of {len(pool)} candidates "
                "have a finite score; lower rows, or mend the score."
            )
        picked = (
            np.asarray(self.selector(table, k=wanted).indices, dtype=np.int64) if wanted else np.empty(0, np.int64)
        )
        if len(picked) != wanted or len(np.unique(picked)) != wanted:
            raise ValueError(
                f"the selector gave {len(np.unique(picked))} rows, and a round needs {wanted}: its size is fixed when "
                "training begins. Give a selector that fills k."
            )
        rest = np.setdiff1d(np.arange(len(pool)), picked)
        places = np.concatenate([picked, rng.choice(rest, drawn, replace=False)])
        if self.order == "random":
            return np.sort(pool[places]), drawn
        values = next(iter(scores.values()))[places]
        ranked = np.argsort(-values if self.order == "hard_to_easy" else values, kind="stable")
        return pool[places[ranked]], drawn

    # Scores, the same in every process.

    def _scores(self, pool: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
        """(score columns of the candidates, counted FLOPs of all processes)."""
        if isinstance(self.score, str):
            return {"score": np.array(self.dataset[self.score], dtype=np.float64)[pool]}, 0.0
        args = self.trainer.args
        share = -(-len(pool) // args.world_size)
        # Every process does as many forward passes as the others: under ZeRO-3 and FSDP one alone would wait for ever.
        mine = np.resize(pool[args.process_index :: args.world_size], share) if len(pool) >= args.world_size else pool
        with untouched(self.trainer.model):
            found, flops = self._by_scorer(mine) if isinstance(self.score, Scorer) else self._by_online_score(mine)
        if args.world_size == 1:
            gathered = [(mine, found, flops)]
        else:
            gathered = gather_object([(mine, found, flops)])
        columns_of = {name: np.full(len(self.dataset), np.nan) for name in found}
        for rows, values, _ in gathered:
            for name in found:
                columns_of[name][rows] = values[name]
        scores = {name: values[pool] for name, values in columns_of.items()}
        if isinstance(self.score, OnlineScore):
            scores = {"score": self.score.after(pool, scores["score"])}
        return scores, sum(flops for _, _, flops in gathered)

    def _by_online_score(self, rows: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
        return self._candidate_scores.by_online_score(self.dataset, rows)

    def _by_scorer(self, rows: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
        return self._candidate_scores.by_scorer(self.dataset, rows)

    def _write(self, pool: np.ndarray, scores: dict[str, np.ndarray], chosen: np.ndarray) -> None:
        if self.trainer.is_world_process_zero():
            path = Path(self.trainer.args.output_dir) / "_data_selection" / f"round-{self.round:05d}.parquet"
            write_round(path, self.dataset, self.given.numbers, pool if scores else chosen, scores, chosen)
