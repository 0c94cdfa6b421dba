"""Do the scores of rows predict what training on the rows does? A check by retraining.

    validate_scores(pool, {"ifd": "score_ifd"}, {"my task": rows}, Recipe("my/model"), "validation")

Random subsets of the pool each train a model by one recipe, in equally many steps on equally many rows, and the loss
on held-out sets is measured. The linear datamodelling score (lds.py) of a score column is the rank correlation of the
predicted gain of a subset, the sum of its rows' scores, with the true one. Yardsticks are validated too: word overlap
with the held-out rows (TF-IDF), the length of the response, and random scores. They are not easy to beat: in bergson's
table of attribution methods (GPT-2 on WikiText) EK-FAC has an LDS of .454, TrackStar .276, BM25 .220 and the cosine of
gradients .156. BM25 is left out here, since no dependency of hf_select implements it.

TF-IDF reads the rows that the loss is measured on, as influence methods do in an LDS. Scores without targets, such as
IFD, know nothing of them.

output_dir/
  retraining.json                     pool, held-out sets, recipe, fraction; a folder with others is refused
  lengths.npz                         tokens that a run reads of each row, and why some are left out
  runs/subset-NUMBER.json             one training run: its cost and the loss on every held-out row
  runs/subset-NUMBER-again.json       the same subset with another training seed
  validation.json                     correlations, differences and verdicts
  validation.html, validation.md, pictures/

Runs do not depend on the scores: in the same folder, further scores, subsets and repeats can be validated later, and
only what is missing is trained. Processes share the runs (training_runs.py).
"""

import hashlib
import logging
import os
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from datasets import Dataset
from filelock import FileLock

from hf_select.atomic import read_json, write_json
from hf_select.data import columns
from hf_select.data.bad_rows import BadRow
from hf_select.data.conversation import Conversation
from hf_select.data.rows import conversations_of
from hf_select.data.text import characters_of, text_of, words
from hf_select.evaluation.held_out_loss import HeldOutLoss
from hf_select.evaluation.lds import (
    FEWEST_REPEATS,
    FEWEST_SUBSETS,
    RowScores,
    detectable_correlation,
    draw_subsets,
    loss_signal,
    score_results,
)
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
from hf_select.reports.report_files import check_replaceable
from hf_select.reports.validation import validation_report
from hf_select.reports.validation_result import (
    LENGTH,
    MEAN,
    RANDOM,
    TFIDF,
    YARDSTICKS,
    ScoreValidation,
    ValidationCost,
)
from hf_select.scoring import lexical
from hf_select.scoring.overlap import rows_that_repeat
from hf_select.training.equal_tokens import Recipe
from hf_select.training.launcher_env import without_launcher_env
from hf_select.training.train_on_tokens import train_on_tokens


logger = logging.getLogger(__name__)

_PART = "held_out_set"  # column of the queries: TF-IDF takes the mean over a set, as the loss does


def validate_scores(
    pool: Dataset,
    scores: Mapping[str, str],
    held_out: Mapping[str, Dataset],
    recipe: Recipe,
    output_dir: str | os.PathLike,
    subsets: int = 60,
    fraction: float = 0.5,
    repeats: int = 15,
    passes: float = 2.0,
    lower_is_better: Collection[str] = (),
    seed: int = 0,
) -> ScoreValidation:
    """Train on random subsets of the pool and correlate the losses with the scores. A killed validation resumes.

    Args:
        pool: the dataset with the score columns. Rows without a response to learn are left out first, and counted. A
            pool of a few hundred rows shows most: the effect of a row shrinks as the pool grows.
        scores: name -> score column. For a held-out set SET the column COLUMN_SET is used if there is one, such as
            score_rds_math of a scorer with targets, and otherwise COLUMN. Rows without a score count as the mean of
            the others.
        held_out: name -> rows that the loss is measured on (mean response NLL, in nats).
        recipe: how every run is trained.
        output_dir: folder for the runs and the result.
        subsets: number of random subsets, at least 10.
        fraction: share of the pool in each subset.
        repeats: number of subsets that are trained again with another training seed, to measure the noise; 0 or at
            least 5.
        passes: every run trains on each row of its subset about as many times.
        lower_is_better: names of scores whose lower values are better.
        seed: of subsets, training and bootstrap.
    Returns: the result, which is also written to validation.json.
    Raises: ValueError for a folder of other runs, an unknown column, an empty held-out set, too few subsets, a run
        that diverged. ImportError without trl, matplotlib, scipy or scikit-learn.
    """
    require("a validation of scores", "trl", "matplotlib", "scipy", "sklearn")
    with without_launcher_env(recipe.accelerate_config is not None):
        return ValidationRun(
            pool, scores, _held_out_losses(held_out, recipe), recipe, Path(output_dir).expanduser(), subsets, fraction,
            repeats, passes, lower_is_better, seed,
        ).run()  # fmt: skip


class Run(NamedTuple):
    """A training run: the number of its subset, and whether it repeats a run with another training seed."""

    subset: int
    again: bool = False


@dataclass
class ValidationRun:
    """The arguments of `validate_scores`; `run` trains what is missing and computes the result."""

    pool: Dataset
    scores: Mapping[str, str]
    held_out: dict[str, HeldOutLoss]
    recipe: Recipe
    folder: Path
    subsets: int
    fraction: float
    repeats: int
    passes: float
    lower_is_better: Collection[str]
    seed: int
    members: np.ndarray = field(init=False)  # (s, k) row numbers

    def __post_init__(self) -> None:
        check_one_device(self.recipe)
        columns.check_rows(self.pool)
        if self.subsets < FEWEST_SUBSETS:
            raise ValueError(f"subsets is {self.subsets}; a correlation needs at least {FEWEST_SUBSETS}.")
        if self.repeats and not FEWEST_REPEATS <= self.repeats <= self.subsets:
            raise ValueError(
                f"repeats is {self.repeats}; give 0, or {FEWEST_REPEATS} to {self.subsets}, the number of subsets."
            )
        if not 0 < self.fraction < 1:
            raise ValueError(f"fraction is {self.fraction}; it is a share of the pool, above 0 and below 1.")
        self._check_subset_rows(len(self.pool))
        if self.passes <= 0:
            raise ValueError(f"passes is {self.passes}; it must be above 0.")
        if not self.scores:
            raise ValueError("there is nothing to validate: give at least one score column.")
        for name in self.scores:
            if name in (*YARDSTICKS, RANDOM):
                raise ValueError(f'"{name}" is the name of a yardstick; rename the score.')
        if MEAN in self.held_out:
            raise ValueError(f'"{MEAN}" is the name of the mean over held-out sets; rename the set.')
        for name in self.lower_is_better:
            if name not in self.scores:
                raise ValueError(f'lower_is_better names "{name}"; the scores are {", ".join(self.scores)}.')
        self._read_scores()  # a wrong column is an error before the training, not after it

    def run(self) -> ScoreValidation:
        """Train the missing runs and write the result and its page."""
        check_replaceable(self.folder, "validation.html", "validation.md", "pictures")
        identities = {name: dict(loss.identity()) for name, loss in self.held_out.items()}
        settings = {"passes": self.passes, "fraction": self.fraction, "seed": self.seed, "held_out": identities}
        settings = claim_folder(self.folder / "retraining.json", self.recipe, settings, "a validation", self.pool)
        self.pool, left_out = trainable_rows(self.pool, self.recipe, self.folder / "lengths.npz")
        self._check_subset_rows(len(self.pool))
        self.members = draw_subsets(len(self.pool), self.subsets, self.fraction, self.seed)
        overlap = self._overlap()
        scores = self._read_scores()
        for name, of_set in self._yardsticks().items():
            scores[name] |= of_set
        self._log_cost()
        records = self._train()
        losses = self._losses(records, again=False)
        again = self._losses(records, again=True)
        results, chance = score_results(scores, losses, self.members, self.seed)
        signals = {
            name: loss_signal(losses[name], again[name], len(self.held_out[name].rows), overlap[name])
            for name in losses
        }
        result = ScoreValidation(
            scores=list(self.scores),
            signals=signals,
            results=results,
            chance=chance,
            detectable=detectable_correlation(self.subsets),
            subsets=self.subsets,
            repeats=self.repeats,
            subset_rows=self.members.shape[1],
            pool_rows=len(self.pool),
            left_out=left_out,
            cost=_cost_of(records),
            settings=settings,
        )
        for name, signal in signals.items():
            if signal.warning:
                logger.warning("%s: %s.", name, signal.warning)
        with FileLock(self.folder / ".validation.lock"):  # processes end at the same time
            write_json(self.folder / "validation.json", result.to_dict())
            validation_report(result, self.folder)
        return result

    def _check_subset_rows(self, rows: int) -> None:
        if not 0 < round(self.fraction * rows) < rows:
            raise ValueError(
                f"fraction {self.fraction:g} of {rows} rows is no subset; take more rows or another fraction."
            )

    # What is correlated with the losses.

    def _read_scores(self) -> dict[str, dict[str, RowScores]]:
        """Return held-out set -> score -> its values."""
        return {
            task: {name: self._row_scores(name, column, task) for name, column in self.scores.items()}
            for task in self.held_out
        }

    def _row_scores(self, name: str, column: str, task: str) -> RowScores:
        own = f"{column}_{task}"
        column = own if own in self.pool.column_names else column
        try:
            values = columns.score_values(self.pool, column)
        except ValueError as error:
            raise ValueError(f'score "{name}": {error}') from None
        return RowScores(-values if name in self.lower_is_better else values, column)

    def _yardsticks(self) -> dict[str, dict[str, RowScores]]:
        """Return held-out set -> yardstick -> its values."""
        rows = list(conversations_of(self.pool))
        length = np.array([characters_of(cast(Conversation, row), "response") for row in rows], dtype=float)
        by_set = {}
        for name, loss in self.held_out.items():
            by_set[name] = {TFIDF: _word_overlap(self.pool, rows, loss.rows), LENGTH: RowScores(length)}
        return by_set

    def _overlap(self) -> dict[str, int]:
        """Count rows of the pool that repeat a held-out row, by set."""
        overlap = {name: rows_that_repeat(self.pool, loss.rows) for name, loss in self.held_out.items()}
        for name, count in overlap.items():
            if count:
                logger.warning(
                    '%d rows of the pool repeat rows of "%s": every targeted score finds them. Take them out first '
                    "(selector decontaminate).", count, name,
                )  # fmt: skip
        return overlap

    # The training runs.

    @cached_property
    def _tokens(self) -> Dataset:
        """The tokens and labels of the pool, row by row."""
        tokens, _, _ = tokenize_with_labels(self.recipe.base(), self.pool, "chat", self.recipe.max_length)
        assert len(tokens) == len(self.pool), "rows that cannot be trained on were left out"
        return tokens

    def _lengths(self, run: Run) -> np.ndarray:
        return np.asarray(self.pool[columns.NUM_TOKENS])[self.members[run.subset]]

    def _runs(self) -> list[Run]:
        return [Run(number) for number in range(self.subsets)] + [Run(number, True) for number in range(self.repeats)]

    def _path(self, run: Run) -> Path:
        return self.folder / "runs" / f"subset-{run.subset:03d}{'-again' if run.again else ''}.json"

    def _digest(self, run: Run) -> str:
        return hashlib.sha256(self.members[run.subset].tobytes()).hexdigest()[:32]

    def _record(self, run: Run) -> dict[str, Any] | None:
        record = read_json(self._path(run))
        return record if record is not None and record["rows"] == self._digest(run) else None

    def _log_cost(self) -> None:
        runs = self._runs()
        done = sum(self._record(run) is not None for run in runs)
        tokens = round(float(np.mean([self.passes * self._lengths(run).sum() for run in runs])))
        logger.warning(
            "validation: %d training runs of about %s tokens on %d of %d rows; %d are done.",
            len(runs), f"{tokens:,}", self.members.shape[1], len(self.pool), done,
        )  # fmt: skip

    def _train(self) -> dict[Run, dict[str, Any]]:
        """Train the missing runs; return the records of all."""
        runs = self._runs()
        compute_missing(runs, self._path, lambda run: self._record(run) is not None, self._run_of, "validate-scores")
        return {run: cast(dict[str, Any], self._record(run)) for run in runs}

    def _run_of(self, run: Run) -> dict[str, Any]:
        """Train on a subset and measure the model; return the record."""
        tokens = round(self.passes * float(self._lengths(run).sum()))
        steps = max(1, round(self.passes * self.members.shape[1] / self.recipe.rows_per_step))
        rows = self._tokens.select(self.members[run.subset])
        # One seed for all subsets: what a seed adds to every loss alike is no noise of a rank correlation.
        trained = train_on_tokens(self.recipe, self.recipe.base(), rows, tokens, steps, self.seed + run.again)
        record = {name: value for name, value in vars(trained).items() if name != "lm"}
        by = f"{socket.gethostname()} {os.getpid()}"
        values = {name: self._measure(name, trained.lm, run) for name in self.held_out}
        return {**run._asdict(), "rows": self._digest(run), "by": by, **record, "values": values}

    def _measure(self, name: str, lm: CausalLM, run: Run) -> list[float]:
        return measured(self.held_out[name], lm, f'the loss on "{name}" after training on subset {run.subset}')

    def _losses(self, records: Mapping[Run, Mapping[str, Any]], again: bool) -> dict[str, np.ndarray]:
        """Return held-out set -> mean loss of each run."""
        of = [record["values"] for run, record in records.items() if run.again == again]
        return {name: np.array([np.mean(values[name]) for values in of]) for name in self.held_out}


# --------------------------------------------------------------------------------------------------------------------


def _held_out_losses(held_out: Mapping[str, Dataset], recipe: Recipe) -> dict[str, HeldOutLoss]:
    if not held_out:
        raise ValueError("there is nothing to measure on: give at least one held-out set.")
    losses = {}
    for name, rows in held_out.items():
        try:
            losses[name] = HeldOutLoss(rows, recipe.max_length)
        except ValueError as error:
            raise ValueError(f'held-out set "{name}": {error}') from None
    return losses


def _word_overlap(pool: Dataset, rows: list[Conversation | BadRow], held_out: Dataset) -> RowScores:
    """Return the mean TF-IDF similarity of each row to the held-out rows that have a word."""
    parsed = list(conversations_of(held_out))
    usable = [i for i, row in enumerate(parsed) if isinstance(row, Conversation) and words(text_of(row))]
    nothing = np.full(len(rows), np.nan)
    if not usable:
        return RowScores(nothing, missing="no held-out row has a word")
    queries = held_out.select(usable)
    if _PART in queries.column_names:
        queries = queries.remove_columns(_PART)
    queries = cast(Any, queries).add_column(_PART, [""] * len(queries))
    try:
        scorer = lexical.TFIDF().fit(queries, subtask_column=_PART, pool=pool)
    except ValueError as error:  # a pool without words
        return RowScores(nothing, missing=str(error).rstrip("."))
    column = columns.score_column(scorer.name)
    answers = []
    for start in range(0, len(rows), 1000):
        answers += scorer.measure(cast(list[Conversation], rows[start : start + 1000]))
    return RowScores(np.array([np.nan if isinstance(each, BadRow) else each[column] for each in answers]))


def _cost_of(records: Mapping[Run, Mapping[str, Any]]) -> ValidationCost:
    tokens, seconds, flops = (sum(each[name] for each in records.values()) for name in ("tokens", "seconds", "flops"))
    return ValidationCost(len(records), tokens, seconds, flops)
