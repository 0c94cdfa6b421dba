"""Selection inside the stock Trainer: the model that is being trained says which rows it is trained on next.

    trainer = SFTTrainer(model, args, train_dataset=dataset)
    trainer.add_callback(DataSelectionCallback(trainer, online_scores.loss, fraction=0.25))
    trainer.train()

A sampler of constant length carries it: what Trainer has planned from the length (steps, schedule, epochs) stays
right. One pass over the sampler is a round, and to Trainer an epoch: before each the callback scores, selects and
writes down what it chose. (Replacing `train_dataset` or the dataloader from a callback has no effect: transformers
issue 25925.)

Left out: iterable datasets, packing, trainers with samplers of their own (GRPO, RLOO).
"""

import logging
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from accelerate.utils import gather_object, send_to_device
from datasets import Dataset, List
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Sampler
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from hf_select import columns
from hf_select.choices import check_choice
from hf_select.files import written_whole
from hf_select.scoring.scorer import Scorer
from hf_select.selection.top_k import TopK
from hf_select.training import _compat


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
        score: a function (model, batch) -> (B,) of `training.online_scores` or your own; a scorer such as
            IFD(CausalLM(trainer.model, tokenizer=tokenizer)), of this model or another, which reads the conversation
            columns of the dataset (queries are encoded anew in each round); or the name of a score column.
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
        order: of the rows of a round: random; easy_to_hard by rising score; hard_to_easy.
        source_column: column whose values are counted among the selected rows in the log.
        seed: of candidates and random rows; by default the data seed of the trainer.
    Logs: selection/round, candidates, unscored, score quantiles, overlap with the last round, seconds, counted FLOPs,
        rows per source; output_dir/data_selection/round-*.parquet has each round's candidates and what was chosen.
    Raises: ValueError for what cannot work, with the cure: packing, iterable data, a budget that is no whole number of
        steps, a checkpoint that was written without the callback.
    Warns: when the run ends within the first round, or within the warm-up.
    """

    def __init__(
        self,
        trainer: Any,
        score: Callable[..., Any] | Scorer | str,
        selector: Any = None,
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
        seed: int | None = None,
    ):
        check_choice("order", order, Order)
        self.trainer, self.score, self.selector = trainer, score, selector or TopK("score")
        self.keep, self.max_candidates, self.warmup = keep, max_candidates, warmup
        self.consume_once, self.random_share = consume_once, random_share
        self.order, self.source_column = order, source_column
        args = trainer.args
        data_seed = args.seed if args.data_seed is None else args.data_seed
        self.seed = data_seed if seed is None else seed
        self._refuse_what_cannot_work()
        self.dataset: Dataset = trainer.train_dataset
        self.step_rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.budget = self._budget(every, rows, fraction)
        self._check_settings()
        self.round = -1
        self.consumed = np.zeros(len(self.dataset), dtype=bool)
        self.sampler = SelectionSampler(np.arange(self.budget), data_seed, shuffled=order == "random")
        self._restored = False
        _compat.use_sampler(trainer, self.sampler)

    # What Trainer calls.

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        name = type(self).__name__
        if state.global_step > 0:
            saved = state.stateful_callbacks.get(name)
            if saved is None:
                raise ValueError(
                    "the checkpoint was written without DataSelectionCallback and does not say which rows were "
                    "selected; resume without the callback, or start anew with it."
                )
            self._restore(saved["attributes"])
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
        attributes = {
            "round": self.round,
            "selected": self.sampler.selected.tolist(),
            "consumed": np.flatnonzero(self.consumed).tolist(),
            "rows": len(self.dataset),
            "score": self.score.state() if hasattr(self.score, "state") else None,  # type: ignore[union-attr]
        }
        return {"args": {}, "attributes": attributes}

    def _restore(self, saved: dict[str, Any]) -> None:
        if saved["rows"] != len(self.dataset) or len(saved["selected"]) != self.budget:
            raise ValueError(
                f"the checkpoint selected {len(saved['selected'])} of {saved['rows']} rows a round, this run selects "
                f"{self.budget} of {len(self.dataset)}; resume with the same dataset and settings."
            )
        self.round = saved["round"]
        self.sampler.selected = np.array(saved["selected"], dtype=np.int64)
        self.consumed[:] = False
        self.consumed[saved["consumed"]] = True
        if saved["score"] is not None:
            self.score.restore(saved["score"])  # type: ignore[union-attr]
        self._restored = True

    # One round.

    def _select(self, number: int, rounds: int) -> dict[str, float]:
        begin = time.perf_counter()
        rng = np.random.default_rng([self.seed, number])
        open_rows = np.flatnonzero(~self.consumed)
        if len(open_rows) < self.budget:  # every row has had its turn
            self.consumed[:] = False
            open_rows = np.arange(len(self.dataset))
        measuring = number >= self.warmup or hasattr(self.score, "after")
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
        with _untouched(self.trainer.model):
            found, flops = self._by_scorer(mine) if isinstance(self.score, Scorer) else self._by_function(mine)
        if args.world_size == 1:
            gathered = [(mine, found, flops)]
        else:
            gathered = gather_object([(mine, found, flops)])
        columns_of = {name: np.full(len(self.dataset), np.nan) for name in found}
        for rows, values, _ in gathered:
            for name in found:
                columns_of[name][rows] = values[name]
        scores = {name: values[pool] for name, values in columns_of.items()}
        if hasattr(self.score, "after"):
            scores = {"score": cast(Any, self.score).after(pool, scores["score"])}
        return scores, sum(flops for _, _, flops in gathered)

    def _by_function(self, rows: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
        score: Any = self.score
        inputs = _compat.model_inputs(self.trainer, self.dataset).select(rows.tolist())
        order = np.argsort(-_lengths(inputs), kind="stable")  # neighbours of one length waste no padding
        scores, tokens = np.empty(len(rows)), 0
        with torch.no_grad():
            if hasattr(score, "begin"):
                queries = _compat.model_inputs(self.trainer, score.queries)
                score.begin(self.trainer.model_wrapped, self._batches(queries, np.arange(len(queries))))
            start = 0
            for batch in self._batches(inputs, order):
                values = torch.as_tensor(score(self.trainer.model_wrapped, batch)).float().cpu()
                there = order[start : start + self._scored_together]
                if values.shape != there.shape:
                    raise ValueError(
                        f"the score function gave numbers of shape {tuple(values.shape)} for {len(there)} rows."
                    )
                scores[there] = values.double()
                start += len(there)
                tokens += sum(value.numel() for name, value in batch.items() if name.endswith("input_ids"))
        parameters = sum(_full_size(p) for p in self.trainer.model.parameters())
        return {"score": scores}, getattr(score, "forward_passes", 1.0) * 2.0 * parameters * tokens

    @property
    def _scored_together(self) -> int:
        args = self.trainer.args
        return 1 if getattr(args, "padding_free", False) else args.per_device_eval_batch_size

    def _batches(self, inputs: Dataset, order: np.ndarray) -> Iterator[Any]:
        """The rows in this order as the trainer's collator makes them into batches, within its autocast."""
        loader = DataLoader(
            inputs,  # pyright: ignore[reportArgumentType]
            batch_size=self._scored_together,
            sampler=order.tolist(),
            collate_fn=self.trainer.data_collator,
        )
        for batch in loader:
            with self.trainer.compute_loss_context_manager():
                yield send_to_device(batch, self.trainer.accelerator.device)

    def _by_scorer(self, rows: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
        scorer: Any = self.score
        if hasattr(scorer, "refit"):
            scorer.refit()
        before = scorer.usage().get("flops", 0.0)
        wanted = [name for name in scorer.columns_out if name.startswith("score_")]
        found: dict[str, list[float]] = {name: [] for name in wanted}
        for start in range(0, len(rows), 1000):
            batch = scorer(self.dataset.select(rows[start : start + 1000].tolist())[:])
            for name in wanted:
                found[name] += [math.nan if value is None else value for value in batch[name]]
        named = {name: np.array(values, dtype=np.float64) for name, values in found.items()}
        return {"score": next(iter(named.values())), **named}, scorer.usage().get("flops", 0.0) - before

    def _write(self, pool: np.ndarray, scores: dict[str, np.ndarray], chosen: np.ndarray) -> None:
        if not self.trainer.is_world_process_zero():
            return
        rows = pool if scores else chosen
        rank = {row: place for place, row in enumerate(chosen.tolist())}
        missing = np.setdiff1d(chosen, rows)  # of a warm-up round that measures other rows than it trains on
        rows = np.concatenate([rows, missing])
        filled = {name: np.concatenate([v, np.full(len(missing), np.nan)]) for name, v in scores.items()}
        table = pa.table(
            {"row": rows, **filled, "place": pa.array([rank.get(row) for row in rows.tolist()], pa.int64())}
        )
        path = Path(self.trainer.args.output_dir) / "data_selection" / f"round-{self.round:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            pq.write_table(table, temporary)

    # What cannot work, before anything runs.

    def _refuse_what_cannot_work(self) -> None:
        trainer, args = self.trainer, self.trainer.args
        if any(isinstance(other, DataSelectionCallback) for other in trainer.callback_handler.callbacks):
            raise ValueError("the trainer has a DataSelectionCallback already; one run has one selection.")
        if getattr(args, "packing", False):
            raise ValueError(
                "packing puts several rows into one sequence, and rows are selected one by one; set packing=False "
                "(padding_free=True saves the padding all the same)."
            )
        if not isinstance(trainer.train_dataset, Dataset):
            raise ValueError(
                f"the training data is a {type(trainer.train_dataset).__name__}; rows can be picked from a "
                "datasets.Dataset only. Load it without streaming, or make one with Dataset.from_list."
            )
        if _compat.own_sampler(trainer):
            raise ValueError(f"{type(trainer).__name__} draws rows in a way of its own; selection would break it.")
        for name, wrong in (("auto_find_batch_size", True), ("restore_callback_states_from_checkpoint", True)):
            if getattr(args, name, None) == wrong:
                raise ValueError(f"{name}={wrong} cannot work with selection; leave it out.")
        if getattr(args, "train_sampling_strategy", "random") != "random":
            raise ValueError(
                f'train_sampling_strategy="{args.train_sampling_strategy}" would be replaced by the selection; leave '
                "it out, or choose the order of a round with order=."
            )
        if (isinstance(self.score, Scorer) or getattr(self.score, "whole_model", False)) and _in_pieces(trainer):
            raise ValueError(
                f"{type(self.score).__name__} reads the model's layers directly, and under ZeRO-3 and FSDP they are "
                "in pieces; give a function (model, batch) -> scores such as training.online_scores.loss, a score "
                "column, or train with ZeRO-2."
            )

    def _budget(self, every: Any, rows: int | None, fraction: float | None) -> int:
        total, step = len(self.dataset), self.step_rows
        if every != "epoch":
            if not isinstance(every, int) or every < 1:
                raise ValueError(f'every is {every!r}; give "epoch" or a number of steps of at least 1.')
            if rows is not None or fraction is not None:
                raise ValueError(
                    f"every={every} steps makes a round of {every * step} rows; leave out rows and fraction."
                )
            budget = every * step
            if budget > total:
                raise ValueError(
                    f"{every} steps take {budget} rows and the dataset has {total}; lower every to {total // step}."
                )
            return budget
        if (rows is None) == (fraction is None):
            raise ValueError("give the size of a round: either rows or fraction.")
        if fraction is not None:
            if not 0 < fraction <= 1:
                raise ValueError(f"fraction is {fraction}; it must be above 0 and at most 1.")
            rows = total if fraction == 1 else int(total * fraction + 1e-9) // step * step
        if rows == total:
            return total
        if rows is None or rows < step or rows > total or rows % step:
            below, above = (rows or 0) // step * step, ((rows or 0) // step + 1) * step
            near = " or ".join(str(n) for n in (below, above) if step <= n <= total) or f"all {total}"
            raise ValueError(
                f"a round of {rows} rows is no whole number of optimizer steps of {step} rows (batch x accumulation x "
                f"processes); give {near}."
            )
        return rows

    def _check_settings(self) -> None:
        if self.max_candidates is not None and self.max_candidates < self.budget:
            raise ValueError(f"max_candidates is {self.max_candidates}, and a round has {self.budget} rows.")
        shares = self.keep if isinstance(self.keep, tuple) else (self.keep,)
        if any(share is not None and not 0 < share <= 1 for share in shares):
            raise ValueError(f"keep is {self.keep}; shares are above 0 and at most 1.")
        if not 0 <= self.random_share < 1:
            raise ValueError(f"random_share is {self.random_share}; it must be at least 0 and below 1.")
        if hasattr(self.score, "after") and (
            self.warmup < 1 or self.keep is not None or self.max_candidates is not None
        ):
            raise ValueError(
                f"{type(self.score).__name__} compares a row with itself a round before: give warmup of at least 1, "
                "and neither keep nor max_candidates."
            )
        for name in (self.source_column, self.score if isinstance(self.score, str) else None):
            if name is not None and name not in self.dataset.column_names:
                raise columns.missing_column(name, self.dataset.column_names, "Name a column of the training data.")


def _in_pieces(trainer: Any) -> bool:
    """Whether no process holds, or will hold, a whole parameter."""
    plugin = trainer.accelerator.state.deepspeed_plugin
    return (
        (plugin is not None and plugin.zero_stage == 3)
        or trainer.is_fsdp_enabled
        or any(isinstance(p, DTensor) for p in trainer.model.parameters())
    )


def _lengths(inputs: Dataset) -> np.ndarray:
    """Tokens of each row, the longest of its lists; zeros where rows hold no lists."""
    lists = [name for name, feature in inputs.features.items() if isinstance(feature, List)]
    lengths = [np.zeros(0, dtype=np.int64)]
    for batch in inputs.with_format("arrow").iter(1000):
        counts = [pc.list_value_length(batch[name]).to_numpy() for name in lists]  # pyright: ignore
        lengths.append(np.max([np.zeros(len(batch), dtype=np.int64), *counts], axis=0))
    return np.concatenate(lengths)


def _full_size(parameter: Any) -> int:
    """Numbers of a parameter, also where DeepSpeed ZeRO-3 holds it in pieces."""
    return getattr(parameter, "ds_numel", None) or parameter.numel()


@contextmanager
def _untouched(model: torch.nn.Module) -> Iterator[None]:
    """Within the block the model is in eval mode; after it every module's mode and every random state is as before."""
    training = [module for module in model.modules() if module.training]
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    model.eval()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for module in training:
            module.training = True
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
