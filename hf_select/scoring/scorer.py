"""The contract of a scorer: `scorer(batch: dict[str, list]) -> dict[str, list]`, one value a row, in the order of the
rows.

That is what `Dataset.map(batched=True)`, `IterableDataset.map` and Ray Data's `map_batches` call. A scorer is a
dataclass of plain settings; what it loads lives behind names with a leading underscore and is dropped when it is
pickled, so that the `datasets` cache hits and worker processes start clean.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import wraps
from operator import methodcaller
from typing import Any, ClassVar, TypeVar, cast

from datasets import Features, Value

from hf_select.data import columns
from hf_select.data.bad_rows import BadRow, on_readable
from hf_select.data.chat_template import template_digest
from hf_select.data.conversation import READ_COLUMNS, Conversation, conversations
from hf_select.models.causal_lm import CausalLM
from hf_select.paper import Paper
from hf_select.validation import check_choices


logger = logging.getLogger(__name__)

Fit = TypeVar("Fit", bound=Callable[..., Any])


@dataclass
class Scorer(ABC):
    """Reads conversations, adds `score_<name>`, `<name>_reason` and, where a method has them, the parts of its score.

    A subclass is a dataclass that names itself, declares its columns and implements `measure`.
    """

    name: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    scoring_version: ClassVar[int] = 1  # raised when the method's numbers change; scores of two are never mixed
    paper: ClassVar[Paper | None] = None

    @property
    def columns_out(self) -> dict[str, Any]:
        """Columns added, with their `datasets` types."""
        score = columns.score_column(self.name)
        return {score: Value("float64"), columns.reason_column(score): Value("string")}

    @abstractmethod
    def measure(self, rows: list[Conversation]) -> list[dict[str, Any] | BadRow]:
        """For each conversation its columns by name (the reason only where there is one to give), or why it has
        none."""

    def usage(self) -> dict[str, float]:
        """What scoring has cost so far: tokens, counted FLOPs, seconds; empty for a method that runs no model."""
        return {}

    def preparation(self) -> dict[str, dict[str, float]]:
        """What was spent before the first row, by what it was spent on: seconds and, with a model, the rest of
        `usage`. Empty for a method that prepares nothing."""
        return {} if self._prepared is None else {"queries": self._prepared}

    def __call__(self, batch: dict[str, list[Any]], rank: int | None = None) -> dict[str, list[Any]]:
        """Columns of a batch. `rank` is that of a `map` worker (with_rank=True) and picks its accelerator."""
        _check_batched(batch, type(self).__name__)
        self.load(rank)
        return self._columns(on_readable(conversations(batch), self.measure))

    def _columns(self, answers: list[dict[str, Any] | BadRow]) -> dict[str, list[Any]]:
        """Columns of all rows; one warning counts the reasons why rows have no score."""
        reason = columns.reason_column(columns.score_column(self.name))
        filled = [{reason: str(a)} if isinstance(a, BadRow) else {reason: "", **a} for a in answers]
        self._warn("have no score", Counter(str(a) for a in answers if isinstance(a, BadRow)), len(answers))
        notes = [a.get(reason) for a in answers if isinstance(a, dict)]
        self._warn("carry a note", Counter(note for note in notes if note), len(answers))
        return {column: [row.get(column) for row in filled] for column in self.columns_out}

    def load(self, rank: int | None = None) -> None:  # noqa: B027  # nothing to load for a method without a model
        """Load what scoring needs, once; the first call does it where nobody has."""

    def features(self, dataset: Any) -> Features:
        """Features of dataset.map(self): pass them as `features=` when the first thousand rows may all be unscorable,
        since `datasets` fixes a column's type by the first batch it writes."""
        return Features({**dataset.features, **self.columns_out})

    def readers(self) -> list[Any]:
        """What renders rows by a chat template, which may write the day: has `day` and `begin_on`."""
        return []

    def begin_on(self, day: str | None) -> None:
        """Go on with the day on which a job began."""
        for reader in self.readers():
            reader.begin_on(day)

    def settings(self) -> dict[str, Any]:
        """Constructor arguments; `type(self)(**settings)` is this scorer again."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def identity(self) -> dict[str, Any]:
        """All that the scores depend on: the settings with each model as its own identity, what was learned as what it
        was learned from, and the version of the method."""
        return {**self._plain_settings(methodcaller("identity")), "scoring_version": self.scoring_version}

    def described(self) -> dict[str, Any]:
        """The settings for people to read."""
        return self._plain_settings(methodcaller("described"))

    def _plain_settings(self, of_model: Callable[[CausalLM], Any]) -> dict[str, Any]:
        settings = {f.name for f in fields(self)}
        return {name: _plain(name, value, of_model) for name, value in self._pickled().items() if name in settings}

    # The version is part of the pickled state, hence of the fingerprint that `Dataset.map` looks up.
    def __getstate__(self) -> dict[str, Any]:
        return {**self._pickled(), "version": self.scoring_version}

    def __setstate__(self, state: dict[str, Any]) -> None:
        names = {f.name for f in fields(self)}
        vars(self).update({name: state[name] for name in names})
        self.__post_init__()
        # What was learned by fit, after __post_init__ has made room for it.
        vars(self).update({name: value for name, value in state.items() if name not in names and name != "version"})

    def _pickled(self) -> dict[str, Any]:
        return self.settings()

    def __post_init__(self) -> None:
        check_choices(self)
        self._warned: set[str] = set()
        self._prepared: dict[str, float] | None = None

    def _warn(self, what: str, reasons: Counter[str], total: int, of: str = "rows of this batch") -> None:
        """One line when a reason is met first; the column has every row's."""
        fresh = {reason: count for reason, count in reasons.items() if reason not in self._warned}
        self._warned.update(fresh)
        if fresh:
            listed = "; ".join(f"{count} x {reason}" for reason, count in Counter(fresh).most_common(3))
            logger.warning("%s: %d of %d %s %s (%s).", self.name, reasons.total(), total, of, what, listed)


def _check_batched(batch: Mapping[str, Any], scorer: str) -> None:
    """Raise ValueError if this is one row, as `map` without batched=True gives it."""
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


def prepares(fit: Fit) -> Fit:
    """Around a scorer's `fit`: what it takes is its `preparation`."""

    @wraps(fit)
    def counted(self: Scorer, *args: Any, **kwargs: Any) -> Any:
        before, begin = self.usage(), time.perf_counter()
        result = fit(self, *args, **kwargs)
        spent = {name: value - before.get(name, 0) for name, value in self.usage().items()}
        self._prepared = {**spent, "seconds": time.perf_counter() - begin}
        return result

    return cast(Fit, counted)


@dataclass
class LMScorer(Scorer):
    """A scorer that measures with one causal LM.

    Args:
        model: Hub id, path or CausalLM.
    """

    model: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        self._lm = self.model if isinstance(self.model, CausalLM) else CausalLM(self.model)
        text_format = getattr(self, "text_format", "chat")
        if text_format != "chat":
            self._lm.refuse_template(f"text_format {text_format} is a layout of its own")

    def load(self, rank: int | None = None) -> None:
        self._lm.load(rank)

    def readers(self) -> list[Any]:
        return [self._lm]

    def usage(self) -> dict[str, float]:
        return vars(self._lm.usage).copy()

    def _pickled(self) -> dict[str, Any]:
        return {**self.settings(), "model": self._lm}


def _plain(name: str, value: Any, of_model: Callable[[CausalLM], Any]) -> Any:
    """A setting with each model as `of_model` describes it, and a template as its hash."""
    if name == "chat_template":
        return template_digest(value)
    if isinstance(value, list):
        return [_plain("", item, of_model) for item in value]
    return of_model(value) if isinstance(value, CausalLM) else value
