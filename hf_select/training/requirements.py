"""Checks of the trainer and the settings of selection while training, before anything runs."""

from typing import TYPE_CHECKING, Literal, cast

from datasets import Dataset

from hf_select.scoring.scorer import Scorer
from hf_select.training import _compat
from hf_select.training.online_score import OnlineScore
from hf_select.training.reward_learning.staged_training import StagedTrainingMixin
from hf_select.training.sharding import weights_are_sharded


if TYPE_CHECKING:
    from torch.utils.data import DataLoader, Sampler
    from transformers import Trainer


def check_trainer(trainer: "Trainer", score: OnlineScore | Scorer | str) -> None:
    """Raises: ValueError for a trainer that selection would break or that would ignore it."""
    args = trainer.args
    if getattr(args, "packing", False):
        raise ValueError(
            "packing puts several rows into one sequence, and rows are selected one by one; set packing=False "
            "(padding_free=True avoids padding too)."
        )
    if not isinstance(trainer.train_dataset, Dataset):
        raise ValueError(
            f"the training data is a {type(trainer.train_dataset).__name__}; rows can be selected only "
            "from a datasets.Dataset. Load it without streaming, or make one with Dataset.from_list."
        )
    if isinstance(trainer, StagedTrainingMixin):
        raise ValueError(
            f"{type(trainer).__name__} trains on pairs that each stage generates, so there are no fixed rows to "
            "select from; select the demonstrations before training."
        )
    if _compat.own_sampler(trainer):
        raise ValueError(
            f"{type(trainer).__name__} has its own sampler of rows, which selection would replace; select the rows "
            "before training (hf_select.TopK and others)."
        )
    for name, wrong in (("auto_find_batch_size", True), ("restore_callback_states_from_checkpoint", True)):
        if getattr(args, name, None) == wrong:
            raise ValueError(f"{name}={wrong} does not work with selection; leave it out.")
    strategy = getattr(args, "train_sampling_strategy", "random")
    by_length = getattr(args, "group_by_length", False)  # the name before train_sampling_strategy
    if by_length or strategy not in ("random", "sequential"):
        setting = "group_by_length=True" if by_length else f'train_sampling_strategy="{strategy}"'
        raise ValueError(
            f"{setting} would be replaced by the selection; leave it out, or choose the order of a round with order=."
        )
    for kind in ("tensor", "context", "sequence"):
        size = _compat.parallel_size(trainer, kind)
        if size > 1:
            raise ValueError(
                f"{kind} parallelism lets {size} processes work on the same rows, and selection assigns different "
                "rows to all processes; use data parallelism only (DDP, DeepSpeed ZeRO, FSDP)."
            )
    online = score if isinstance(score, OnlineScore) else None
    if (isinstance(score, Scorer) or (online is not None and online.whole_model)) and weights_are_sharded(trainer):
        raise ValueError(
            f"{type(score).__name__} reads the model's layers directly, and ZeRO-3 and FSDP shard them; give a "
            "function (model, batch) -> scores such as training.online_scores.loss, a score column, or train with "
            "ZeRO-2."
        )
    if online is not None and online.needs_queries:
        _check_queries(trainer, online)


def _check_queries(trainer: "Trainer", score: OnlineScore) -> None:
    """Raises: ValueError unless the trainer has prepared the queries of the score."""
    cure = "give the trainer a few rows of the task as eval_dataset, and the score trainer.eval_dataset"
    if not isinstance(score.queries, Dataset):
        raise ValueError(
            f"the queries of {type(score).__name__} are {type(score.queries).__name__}, and a datasets.Dataset is "
            f"needed; {cure} (of several, one: trainer.eval_dataset[NAME])."
        )
    prepared = "input_ids" in cast(Dataset, trainer.train_dataset).column_names
    if prepared and "input_ids" not in score.queries.column_names:
        raise ValueError(
            f"the queries of {type(score).__name__} have the columns {', '.join(score.queries.column_names)} and no "
            f"input_ids, so the trainer has not prepared them; {cure}."
        )


def check_dataloader(trainer: "Trainer", loader: "DataLoader", dataset: Dataset, sampler: "Sampler") -> None:
    """Raises: ValueError unless the dataloader of training draws the rows of the sampler from the dataset."""
    if trainer.train_dataset is not dataset:
        raise ValueError(
            "trainer.train_dataset was replaced after DataSelectionCallback was created with other rows; create the "
            "callback afterwards."
        )
    if _compat.sampler_of(loader) is not sampler:
        raise ValueError(
            f"the training dataloader of {type(trainer).__name__} does not draw the selected rows: its "
            "get_train_dataloader() makes a loader without the trainer's sampler. Select before training "
            "(hf_select.TopK and others), or use a trainer that keeps Trainer's dataloader."
        )


def round_rows(total: int, step: int, every: Literal["epoch"] | int, rows: int | None, fraction: float | None) -> int:
    """Rows of a round out of `total`, for `step` rows per optimizer step.

    Raises: ValueError for a size that is not a whole number of steps.
    """
    if every != "epoch":
        if not isinstance(every, int) or every < 1:
            raise ValueError(f'every is {every!r}; give "epoch" or a number of steps of at least 1.')
        if rows is not None or fraction is not None:
            raise ValueError(f"every={every} steps makes a round of {every * step} rows; leave out rows and fraction.")
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
            f"a round of {rows} rows is not a whole number of optimizer steps of {step} rows (batch x accumulation x "
            f"processes); give {near}."
        )
    return rows
