"""The contract of a scorer: a callable from a batch of rows to columns of scores, one value per row.

`Dataset.map(scorer, batched=True)`, `IterableDataset.map` and Ray Data's `map_batches` call it in that way. A scorer
is a dataclass of plain settings. A model that it has loaded is kept in an attribute with a leading underscore and is
not pickled, so the `datasets` cache finds earlier results and worker processes load a model of their own.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from operator import methodcaller
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from datasets import Dataset, Features, List, Value

from hf_select.data import columns
from hf_select.data.bad_rows import BadRow, on_readable
from hf_select.data.chat_template import template_digest
from hf_select.data.conversation import READ_COLUMNS, Conversation, conversations
from hf_select.features.featurizer import Feature, Featurizer
from hf_select.models.causal_lm import CausalLM
from hf_select.paper import Paper
from hf_select.validation import check_choices


if TYPE_CHECKING:
    from hf_select.features.store import PoolIndex
    from hf_select.models.template_day import DatedTokenizer

logger = logging.getLogger(__name__)

Batch = Mapping[str, list[Any]]  # column -> values, one per row
Queries = Dataset | Mapping[str, Dataset]  # rows of the target tasks, or task -> rows
Answer = dict[str, Any]  # the columns of one row -> their values
Fit = TypeVar("Fit", bound=Callable[..., Any])


@dataclass
class Scorer(ABC):
    """Adds `score_<name>`, `<name>_reason` and, for some methods, the parts of the score to each row.

    A subclass is a dataclass of settings, described under Args in its docstring (the command line takes its flags and
    their help from there). It sets `name` and implements `measure`; everything else has a default.

    Attributes:
        name: of the method; part of its columns' names.
        higher_is_better: whether the rows to select are those with the highest scores.
        paper: that the method comes from; cards cite it.
        scoring_version: raised when the scores of the same settings change, so that old and new are never mixed.
        needs_fit: `fit` must be called with example queries first.
        needs_pool: `fit` also needs the rows that will be scored, whatever the settings.
        takes_subtasks: `fit` takes a `subtask_column`.
        featurizer: encodes rows as the vectors that the score compares. None: the score compares no vectors, and a
            `PoolIndex` cannot be used.
    """

    name: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = True
    paper: ClassVar[Paper | None] = None
    scoring_version: ClassVar[int] = 1
    needs_fit: ClassVar[bool] = False
    needs_pool: ClassVar[bool] = False
    takes_subtasks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_choices(self)
        self.featurizer: Featurizer | None = None
        self._warned: set[str] = set()
        self._fit_cost: dict[str, float] | None = None

    @property
    def columns_out(self) -> dict[str, Value | List]:
        """Columns that scoring adds, with their `datasets` types."""
        score = columns.score_column(self.name)
        return {score: Value("float64"), columns.reason_column(score): Value("string")}

    @abstractmethod
    def measure(self, rows: list[Conversation]) -> list[Answer | BadRow]:
        """The columns of each conversation by name, or a BadRow with the reason why it has no score.

        A row that has a score may carry a note in the reason column; without one the column can be left out.
        """

    def fit(
        self,
        queries: Queries,
        task_column: str | None = None,
        subtask_column: str | None = None,
        pool: "Dataset | PoolIndex | None" = None,
    ) -> "Scorer":
        """Learn the targets from example queries, for a scorer with `needs_fit`.

        Args:
            queries: a dataset of rows in any known layout, or a mapping from task to such a dataset. Each named task
                gets a column score_<name>_<task>.
            task_column: column of a single dataset that names each query's task.
            subtask_column: column that names each query's part of its task, for a scorer with `takes_subtasks`.
            pool: the rows that will be scored, or a sample of them, read only where `reads_pool` says so; a PoolIndex
                of them for a scorer that compares vectors.
        """
        raise TypeError(f"scorer {self.name} has no targets; leave out fit.")

    def reads_pool(self) -> bool:
        """Whether `fit`, with these settings, reads the rows that will be scored."""
        return self.needs_pool

    def refit(self) -> None:  # noqa: B027
        """Encode the queries again, after the weights of the model have changed."""

    def score_vectors(self, batch: Batch, vectors: Sequence[Feature | BadRow]) -> dict[str, list[Any]]:
        """Columns of a batch from stored vectors, one per row, for a scorer with a `featurizer`."""
        raise TypeError(f"scorer {self.name} compares no vectors; leave out the index.")

    def usage(self) -> dict[str, float]:
        """Tokens, counted FLOPs and seconds so far; empty for a method that runs no model."""
        return {}

    def preparation_cost(self) -> dict[str, dict[str, float]]:
        """Cost before the first row is scored, by step: seconds and, with a model, the rest of `usage`."""
        return {} if self._fit_cost is None else {"queries": self._fit_cost}

    def __call__(self, batch: Batch, rank: int | None = None) -> dict[str, list[Any]]:
        """The columns of a batch. `rank` is that of a `map` worker (with_rank=True) and picks its accelerator."""
        _check_batched(batch, type(self).__name__)
        self.load(rank)
        return self._columns(on_readable(conversations(batch), self.measure))

    def _columns(self, answers: list[Answer | BadRow]) -> dict[str, list[Any]]:
        """The columns of all rows. One warning counts the rows without a score, by reason."""
        reason = columns.reason_column(columns.score_column(self.name))
        filled = [{reason: str(a)} if isinstance(a, BadRow) else {reason: "", **a} for a in answers]
        self._warn("have no score", Counter(str(a) for a in answers if isinstance(a, BadRow)), len(answers))
        notes = [a.get(reason) for a in answers if isinstance(a, dict)]
        self._warn("carry a note", Counter(note for note in notes if note), len(answers))
        return {column: [row.get(column) for row in filled] for column in self.columns_out}

    def load(self, rank: int | None = None) -> None:  # noqa: B027
        """Load the models, once. The first call of the scorer does it if it has not been done."""

    def features(self, dataset: Dataset) -> Features:
        """Features of dataset.map(self). Pass them as `features=` if the first thousand rows may have no score:
        `datasets` takes the type of a column from the first batch that it writes."""
        return Features({**dataset.features, **self.columns_out})

    def readers(self) -> "Sequence[CausalLM | DatedTokenizer]":
        """What renders rows with a chat template, which may write the date."""
        return []

    def begin_on(self, day: str | None) -> None:
        """Render chat templates with the date on which a resumed job began."""
        for reader in self.readers():
            reader.begin_on(day)

    def settings(self) -> dict[str, object]:
        """Constructor arguments; `type(self)(**settings)` is this scorer again."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def identity(self) -> dict[str, object]:
        """Everything that the scores depend on: the settings, with the identity of each model, the data that `fit`
        learned from, and the version of the method."""
        return {**self._plain_settings(methodcaller("identity")), "scoring_version": self.scoring_version}

    def described(self) -> dict[str, object]:
        """The settings, for people to read."""
        return self._plain_settings(methodcaller("described"))

    def _plain_settings(self, of_model: Callable[[CausalLM], Any]) -> dict[str, object]:
        settings = {f.name for f in fields(self)}
        return {
            name: _plain_setting(name, value, of_model) for name, value in self._pickled().items() if name in settings
        }

    # The version is part of the pickled state, hence of the fingerprint that `Dataset.map` looks up.
    def __getstate__(self) -> dict[str, object]:
        return {**self._pickled(), "version": self.scoring_version}

    def __setstate__(self, state: dict[str, Any]) -> None:
        names = {f.name for f in fields(self)}
        vars(self).update({name: state[name] for name in names})
        self.__post_init__()
        # __post_init__ resets what fit has learned, so that is restored last.
        vars(self).update({name: value for name, value in state.items() if name not in names and name != "version"})

    def _pickled(self) -> dict[str, object]:
        return self.settings()

    def _warn(self, what: str, reasons: Counter[str], total: int, of: str = "rows of this batch") -> None:
        """Log each reason once; the reason column has those of all rows."""
        fresh = {reason: count for reason, count in reasons.items() if reason not in self._warned}
        self._warned.update(fresh)
        if fresh:
            listed = "; ".join(f"{count} x {reason}" for reason, count in Counter(fresh).most_common(3))
            logger.warning("%s: %d of %d %s %s (%s).", self.name, reasons.total(), total, of, what, listed)


def _check_batched(batch: Batch, scorer: str) -> None:
    """Raise ValueError for a single row, which `map` passes without batched=True."""
    for name in getattr(batch, "column_names", batch):
        value = batch[name] if name in READ_COLUMNS else []
        chat = (
            isinstance(value, list) and value and all(isinstance(v, dict) and {"role", "from"} & {*v} for v in value)
        )
        if chat or value is None or isinstance(value, (str, dict)):
            raise ValueError(
                f'{scorer} was given one row and not a batch (column "{name}" is not a list of rows). '
                f"Call dataset.map({scorer}(...), batched=True)."
            )


def records_fit_cost(fit: Fit) -> Fit:
    """Decorates a scorer's `fit`, whose cost becomes part of `preparation_cost`."""

    @wraps(fit)
    def measured(self: Scorer, *args: Any, **kwargs: Any) -> Any:
        before, begin = self.usage(), time.perf_counter()
        result = fit(self, *args, **kwargs)
        spent = {name: value - before.get(name, 0) for name, value in self.usage().items()}
        self._fit_cost = {**spent, "seconds": time.perf_counter() - begin}
        return result

    return cast(Fit, measured)


@dataclass
class LMScorer(Scorer):
    """A scorer that runs one causal LM.

    Args:
        model: Hub id, path or CausalLM.
    """

    model: str | CausalLM

    def __post_init__(self) -> None:
        super().__post_init__()
        self._lm = self.model if isinstance(self.model, CausalLM) else CausalLM(self.model)

    def load(self, rank: int | None = None) -> None:
        """Load the model, once."""
        self._lm.load(rank)

    def readers(self) -> list[CausalLM]:
        """The model, whose chat template may write the date."""
        return [self._lm]

    def usage(self) -> dict[str, float]:
        """Tokens, counted FLOPs and seconds of the model so far."""
        return vars(self._lm.usage).copy()

    def _pickled(self) -> dict[str, object]:
        return {**self.settings(), "model": self._lm}


def _plain_setting(name: str, value: Any, of_model: Callable[[CausalLM], Any]) -> Any:
    """A setting with `of_model` applied to each model, and a chat template replaced by its hash."""
    if name == "chat_template":
        return template_digest(value)
    if isinstance(value, list):
        return [_plain_setting("", item, of_model) for item in value]
    return of_model(value) if isinstance(value, CausalLM) else value
