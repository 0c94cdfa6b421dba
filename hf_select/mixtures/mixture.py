"""Mixtures: given amounts of several sources as one dataset that names the source of each row.

    mixture = Mixture({"chat": Source("chat.jsonl", weight=3), "math": Source("math.jsonl", weight=1)}, rows=10_000)
    mixture.write("mix")            # mix/mixture.parquet and mix/mixture.json: counts, reasons, settings
    rows = mixture.iterable()       # an IterableDataset; nothing is written

Rows are `messages` (with `tools` as JSON text where a source has some) or, if all sources are raw text, `text`;
`source` and `source_row` are the name of the source and the row's number there. Messages are written as they came,
with reasoning, call ids and all other keys (data/messages.py); if a source may have more than roles and texts, each
message is kept as JSON text, which load_dataset and SFTTrainer read as the message. Counts are exact: row after row, a
source is drawn with probability in proportion to what is left of its count, so that every order of the sources has the
same chance and no list is needed.

Rows that are not conversations, repeat an earlier row or hold text of an evaluation set are passed over and others are
taken in their place. A source with too few rows is an error, or is repeated if it says so.

With stream=True sources are read from front to back, once, through a shuffle buffer: memory does not grow with them,
unless copies are searched for, which keeps 8 bytes of each row in a table (about 100 bytes in all).
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, IterableDataset
from tqdm.auto import tqdm

from hf_select._version import __version__
from hf_select.atomic import atomic_path, sha256_of, write_json
from hf_select.data import columns
from hf_select.data.exact_json import columns_of
from hf_select.data.loading import commit_of
from hf_select.mixtures.admission import Admission
from hf_select.mixtures.draws import apportion, batches, draw_name, permutation, schedule, shuffled
from hf_select.mixtures.layout import EPOCH, SOURCE, SOURCE_ROW, MixtureLayout
from hf_select.mixtures.source import BATCH, Source, SourceRow, column_names
from hf_select.scoring.score import score
from hf_select.selection.decontaminate import Decontaminate
from hf_select.selection.selection import Selection
from hf_select.validation import check_choices


@dataclass
class Mixture:
    """Sources in given amounts as one dataset.

    Args:
        sources: by name; of rows that repeat each other the one of the first source is kept.
        rows: rows of the mixture, where the sources have weights.
        tokens: tokens of the mixture, where the sources have weights.
        seed: of all draws and orders.
        epochs: repeats of the whole mixture, each in another order (column `epoch`); a trainer must not shuffle it
            again.
        shuffle: mix the rows; otherwise one source follows the other.
        dedup: rows that repeat an earlier one are passed over: exact (the same text up to white space), near (by runs
            of five words; extra `text`; all rows are compared), or none.
        near_duplicates: Jaccard similarity from which on two rows are near copies.
        decontaminate_n: words that a row must share with an evaluation set to be passed over.
        bad_rows: rows that are not conversations: error, or skip them and count them.
        tokenizer: Hub id or path, to count tokens where a source has no column num_tokens.
        stream: read the sources from front to back, for those too large to load.
        buffer_rows: size of the shuffle buffer of each streamed source.
    Raises: ValueError if the settings contradict each other.
    """

    sources: dict[str, Source]
    rows: int | None = None
    tokens: int | None = None
    seed: int = 0
    epochs: int = 1
    shuffle: bool = True
    dedup: Literal["exact", "near", "none"] = "exact"
    near_duplicates: float = 0.8
    decontaminate_n: int = 13
    bad_rows: Literal["error", "skip"] = "error"
    tokenizer: str | None = None
    stream: bool = False
    buffer_rows: int = 10_000

    def __post_init__(self) -> None:
        check_choices(self)
        if not self.sources:
            raise ValueError("sources is empty; a mixture needs at least one.")
        for name in ("epochs", "buffer_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("rows", "tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not 0 < self.near_duplicates <= 1:
            raise ValueError(f"near_duplicates is {self.near_duplicates}; it must lie in (0, 1].")
        self.targets()
        if self.stream:
            self._check_stream()

    def targets(self) -> dict[str, dict[str, int]]:
        """The budget of each source: {"rows": n}, {"tokens": n}, or {} for all that it has.

        Raises: ValueError if some sources have weights and others do not, or if there is no total to share.
        """
        weighted = [name for name, source in self.sources.items() if source.weight is not None]
        totals = {name: value for name in ("rows", "tokens") if (value := getattr(self, name)) is not None}
        if not weighted:
            if totals:
                raise ValueError(f"{'/'.join(totals)} of the mixture are shared by weights; give the sources weights.")
            return {
                name: {unit: value for unit in ("rows", "tokens") if (value := getattr(source, unit)) is not None}
                for name, source in self.sources.items()
            }
        if others := [name for name in self.sources if name not in weighted]:
            raise ValueError(f"some sources have a weight and others ({', '.join(others)}) have none; give all one.")
        if len(totals) != 1:
            raise ValueError("weights share the rows or the tokens of the mixture: give one of the two.")
        ((unit, total),) = totals.items()
        shares = apportion(total, [cast(float, source.weight) for source in self.sources.values()])
        return {name: {unit: share} for name, share in zip(self.sources, shares, strict=True)}

    def write(self, output_dir: str | Path, against: Mapping[str, Dataset] | None = None) -> dict[str, Any]:
        """Write mixture.parquet and mixture.json to the folder. Returns: the record in mixture.json.

        Args:
            against: evaluation sets by name; rows that hold their text are passed over.
        Raises: ValueError if a source is missing, has too few rows, or rows that cannot be read.
        """
        folder = Path(output_dir).expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f'cannot write to "{folder}": {error.strerror}. Choose another.') from None
        mixing = _Mixing(self, against or {}, folder)
        path = folder / "mixture.parquet"
        with atomic_path(path) as temporary:
            with pq.ParquetWriter(temporary, mixing.layout.schema) as writer:
                with tqdm(total=mixing.total(), unit="row", unit_scale=True, desc="mix", disable=None) as bar:
                    for batch in batches(mixing.rows(), BATCH):
                        writer.write_table(mixing.layout.table(batch))
                        bar.update(len(batch))
            digest = sha256_of(temporary)
        record = {**mixing.record(), "sha256": digest, "hf_select": __version__, "settings": self.settings()}
        write_json(folder / "mixture.json", record)
        return record

    def iterable(self, against: Mapping[str, Dataset] | None = None) -> IterableDataset:
        """The rows as an IterableDataset; nothing is written, and errors of a streamed source are raised when it is
        read."""
        mixing = _Mixing(self, against or {}, None)
        features = Features.from_arrow_schema(mixing.layout.schema)
        return cast(IterableDataset, IterableDataset.from_generator(mixing.rows, features=features))

    def settings(self) -> dict[str, Any]:
        """The settings as JSON values."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "sources"}
        return {**own, "sources": {name: _source_settings(source) for name, source in self.sources.items()}}

    def _check_stream(self) -> None:
        units = {unit for target in self.targets().values() for unit in target}
        if len(units) != 1 or any(not target for target in self.targets().values()):
            raise ValueError("streams are mixed by rows or by tokens: give every source rows, or every source tokens.")
        if self.dedup == "near":
            raise ValueError("near copies are searched for in loaded rows; with stream=True use dedup exact.")
        for name, source in self.sources.items():
            if source.selector is not None or isinstance(source.data, Dataset):
                raise ValueError(f'source "{name}" needs random access to its rows; leave out stream=True.')
            if source.shortfall == "repeat":
                raise ValueError(f'source "{name}" is read once as a stream; to repeat it leave out stream=True.')


# --------------------------------------------------------------------------------------------------------------------


class _Mixing:
    """One run of a mixture: its sources opened, and its rows chosen (of streams: while they are read)."""

    def __init__(self, mixture: Mixture, against: Mapping[str, Dataset], folder: Path | None):
        self.mixture, self.folder = mixture, folder
        tests = None
        if against:
            n = mixture.decontaminate_n
            tests = Decontaminate(n=n, min_words=min(8, n)).fit(against)
        self.admission = Admission(mixture.dedup, mixture.bad_rows, mixture.tokenizer, tests)
        self.admission.reset(mixture.sources)
        self.opened: dict[str, Any] = {}  # Dataset, or with stream=True IterableDataset
        for name, source in mixture.sources.items():
            try:
                self.opened[name] = self._open(name, source)
            except ValueError as error:
                raise ValueError(f'source "{name}": {error}') from error
        self.layout = MixtureLayout(mixture.sources, self.opened, mixture.epochs)
        self.counts: Counter[str] = Counter()  # rows of each source in the current epoch
        self.chosen: dict[str, np.ndarray] = {}
        self.repeats: dict[str, int] = {}
        if not mixture.stream:
            self._choose_rows()

    def total(self) -> int | None:
        """Number of rows of the mixture, if it is known beforehand."""
        if not self.mixture.stream:
            return self.mixture.epochs * sum(map(len, self.chosen.values()))
        counts = [target.get("rows", 0) for target in self.mixture.targets().values()]
        return self.mixture.epochs * sum(counts) if all(counts) else None

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of the mixture, epoch after epoch."""
        for epoch in range(self.mixture.epochs):
            self.counts.clear()
            for name, row in self._streamed(epoch) if self.mixture.stream else self._planned(epoch):
                self.counts[name] += 1
                written = {**self.layout.row(row), SOURCE: name, SOURCE_ROW: row.number}
                yield {**written, EPOCH: epoch} if self.mixture.epochs > 1 else written

    def record(self) -> dict[str, Any]:
        """Rows of the mixture and of each source, and what was passed over."""
        total, admission = sum(self.counts.values()), self.admission
        sources: dict[str, dict[str, Any]] = {}
        for name, dataset in self.opened.items():
            line: dict[str, Any] = {"rows": self.counts[name], "share": self.counts[name] / total}
            line |= {} if self.mixture.stream else {"rows_at_hand": len(dataset)}
            line |= {"each_at_most": self.repeats[name]} if name in self.repeats else {}
            passed_over = admission.passed_over[name]
            line |= {"passed_over": dict(passed_over.most_common())} if passed_over else {}
            line |= {"commit": commit} if (commit := commit_of(dataset)) else {}
            sources[name] = line
        record: dict[str, Any] = {"rows": total, "epochs": self.mixture.epochs, "sources": sources}
        record |= {} if admission.tests is None else {"evaluation_sets": admission.tests.sets_}
        overlap = {names: count for names, count in admission.overlap.most_common() if count}
        return record | ({"overlap": overlap} if overlap else {})

    def _open(self, name: str, source: Source) -> Dataset | IterableDataset:
        dataset = source.open(self.mixture.stream)
        unit = self.mixture.targets()[name]
        if "tokens" in unit and self.mixture.tokenizer is None and columns.NUM_TOKENS not in column_names(dataset):
            raise ValueError("it is measured in tokens and has no column num_tokens; name a tokenizer.")
        if source.scorer is None:
            return dataset
        if self.folder is None:
            raise ValueError("scores need a folder: use write(), or score the source before.")
        return score(dataset, source.scorer, self.folder / "scores" / name)

    # Loaded sources: all rows are chosen first, then they are read again in the order of the mixture.

    def _choose_rows(self) -> None:
        mixture, orders, targets = self.mixture, {}, self.mixture.targets()
        for name, target in targets.items():
            rng = random.Random(f"{mixture.seed}/draw/{name}")
            try:
                orders[name] = mixture.sources[name].candidates(self.opened[name], rng, target)
            except ValueError as error:
                raise ValueError(f'source "{name}": {error}') from error
        if mixture.dedup == "near":
            rows = {name: self._read(name, order) for name, order in orders.items()}
            self.admission.find_near_copies(rows, mixture.near_duplicates)
        for name, target in targets.items():
            self.chosen[name] = self._choose(name, orders[name], target)

    def _choose(self, name: str, order: np.ndarray, target: dict[str, int]) -> np.ndarray:
        """Numbers of the rows that come in, in the order in which they were drawn."""
        unit, budget = next(iter(target.items()), ("rows", None))
        if budget == 0 or (self.admission.admits_all and unit == "rows" and len(order) >= (budget or 0)):
            return order[:budget]  # checked when they are read for the mixture
        numbers, costs, spent = [], [], 0
        for row, key, cost in self.admission.admit(name, self._read(name, order), unit):
            if budget is not None and spent + cost > budget:  # of tokens: the first row that does not fit is the end
                return np.array(numbers)
            self.admission.remember(name, key)
            numbers.append(row.number)
            costs.append(cost)
            spent += cost
            if spent == budget:
                return np.array(numbers)
        if budget is None and numbers:
            return np.array(numbers)
        if self.mixture.sources[name].shortfall == "error" or not spent:
            raise ValueError(self._too_few(name, spent, budget or 1, unit))
        return np.array(self._repeated(name, numbers, costs, cast(int, budget)))

    def _too_few(self, name: str, available: int, budget: int, unit: str) -> str:
        passed = ", ".join(f"{count:,}: {reason}" for reason, count in self.admission.passed_over[name].items())
        return (
            f'source "{name}" has {available:,} {unit} of the {budget:,} that are asked for'
            + (f" (passed over {passed})" if passed else "")
            + ". Ask for fewer, or let rows be repeated: shortfall=repeat."
        )

    def _repeated(self, name: str, rows: list[int], costs: list[int], budget: int) -> list[int]:
        """All rows again and again, each time in another order, until the budget is spent."""
        numbers, spent, self.repeats[name] = list(rows), sum(costs), 1
        while spent < budget:
            rng = random.Random(f"{self.mixture.seed}/again/{name}/{self.repeats[name]}")
            self.repeats[name] += 1
            for place in permutation(len(rows), rng).tolist():
                if spent + costs[place] > budget:
                    return numbers
                numbers.append(rows[place])
                spent += costs[place]
        return numbers

    def _read(self, name: str, order: np.ndarray) -> Iterator[SourceRow]:
        source, dataset = self.mixture.sources[name], self.opened[name]
        dataset = dataset.select_columns(source.columns_read(dataset.column_names, where=False)).with_format("arrow")
        for start in range(0, len(order), BATCH):
            numbers = order[start : start + BATCH]
            yield from source.rows_of(numbers, columns_of(dataset[numbers], dataset.features, drop_filled=True))

    def _planned(self, epoch: int) -> Iterator[tuple[str, SourceRow]]:
        mixture, readers = self.mixture, {}
        for name, numbers in self.chosen.items():
            if mixture.shuffle:
                numbers = numbers[permutation(len(numbers), random.Random(f"{mixture.seed}/order/{name}/{epoch}"))]
            readers[name] = self._read(name, numbers)
        counts = {name: len(numbers) for name, numbers in self.chosen.items()}
        in_order = (name for name, count in counts.items() for _ in range(count))
        for name in schedule(counts, random.Random(f"{mixture.seed}/mix/{epoch}")) if mixture.shuffle else in_order:
            row = next(readers[name])
            self.admission.unreadable(name, row)
            yield name, row

    # Streams: rows are chosen while they are read.

    def _streamed(self, epoch: int) -> Iterator[tuple[str, SourceRow]]:
        mixture = self.mixture
        self.admission.reset(mixture.sources)
        targets = mixture.targets()
        (unit,) = {unit for target in targets.values() for unit in target}
        left = budgets = {name: target[unit] for name, target in targets.items()}
        readers = {name: self._reader(name, unit, budgets[name], epoch) for name in targets}
        rng = random.Random(f"{mixture.seed}/mix/{epoch}")
        while left := {name: rest for name, rest in left.items() if rest}:
            name = draw_name(left, rng) if mixture.shuffle else next(iter(left))
            row_and_cost = next(readers[name], None)
            if row_and_cost is None:
                raise ValueError(self._too_few(name, budgets[name] - left[name], budgets[name], unit))
            row, cost = row_and_cost
            if cost > left[name]:
                left[name] = 0
                continue
            left[name] -= cost
            yield name, row

    def _reader(self, name: str, unit: str, budget: int, epoch: int) -> Iterator[tuple[SourceRow, int]]:
        """A streamed source's rows with their costs, in the order of the mixture."""
        rows = self._admitted(name, unit)
        if not self.mixture.shuffle:
            return rows
        if self.mixture.sources[name].take == "first":
            if unit == "tokens":
                return rows
            rows = islice(rows, budget)
        rng = random.Random(f"{self.mixture.seed}/order/{name}/{epoch}")
        return shuffled(rows, self.mixture.buffer_rows, rng)

    def _admitted(self, name: str, unit: str) -> Iterator[tuple[SourceRow, int]]:
        for row, key, cost in self.admission.admit(name, self._front_to_back(name), unit):
            self.admission.remember(name, key)
            yield row, cost

    def _front_to_back(self, name: str) -> Iterator[SourceRow]:
        source, stream, first = self.mixture.sources[name], self.opened[name], 0
        stream = stream.select_columns(source.columns_read(column_names(stream), where=True))
        for table in stream.with_format("arrow").iter(batch_size=BATCH):
            features = stream.features or Features.from_arrow_schema(cast(pa.Table, table).schema)
            numbers = np.arange(first, first + len(table))
            rows = source.rows_of(numbers, columns_of(table, features, drop_filled=True))
            allowed = source.may_be_taken(columns_of(table, features))
            yield from (row for row, may in zip(rows, allowed, strict=True) if may)
            first += len(table)


def _source_settings(source: Source) -> dict[str, Any]:
    """The settings of a source that are not at their defaults; of objects a description."""
    settings: dict[str, Any] = {}
    for f in fields(source):
        value = getattr(source, f.name)
        if f.name != "data" and value == f.default:
            continue
        if isinstance(value, Selection):
            value = f"a selection of {len(value):,} of {value.num_rows:,} rows"
        elif not isinstance(value, (str, int, float, dict)):
            plain = is_dataclass(value) or callable(value)
            value = str(value) if plain else f"{type(value).__name__} in memory"
        settings[f.name] = value
    return settings
