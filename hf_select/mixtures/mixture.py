"""A mixture: several sources, how much of each, and a seed -> one dataset that says where each row came from.

    mixture = Mixture({"chat": Source("chat.jsonl", weight=3), "math": Source("math.jsonl", weight=1)}, rows=10_000)
    mixture.write("mix")            # mix/mixture.parquet and mix/mixture.json: counts, reasons, settings
    rows = mixture.iterable()       # or nothing is written: an IterableDataset

Rows are `messages` (with `tools` as JSON text where a source has some) or, if all sources are raw text, `text`;
`source` and `source_row` say whose and which row each was. Messages are written as they came, with reasoning, call ids
and all other keys (messages.py); if a source may have more than roles and texts, each message is kept as JSON text,
which load_dataset and SFTTrainer read as the message. Counts are exact: row after row, a source is drawn with
probability in proportion to what is left of its count, which gives every order of the sources the same chance and
needs no list.

Rows that are no conversations, repeat an earlier row or hold text of an evaluation set are passed over and others are
taken in their place. A source that has too few is an error, or is repeated if it says so.

With stream=True sources are read front to back, once, through a shuffle buffer: memory does not grow with them, unless
copies are searched for, which keeps 8 bytes of each row in a table (about 100 bytes in all).
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from fractions import Fraction
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from datasets import Dataset, Features, IterableDataset, Json, List, Value
from tqdm.auto import tqdm

from hf_select._version import __version__
from hf_select.atomic import atomic_path, sha256_of, write_json
from hf_select.data import columns
from hf_select.data.bad_rows import BadRow
from hf_select.data.conversation import READ_COLUMNS, Conversation, layout
from hf_select.data.encoding import encode_all
from hf_select.data.exact_json import columns_of, dumps
from hf_select.data.loading import commit_of
from hf_select.data.messages import as_messages, tools_text
from hf_select.data.text import exact, text_of
from hf_select.mixtures.source import BATCH, Source, column_names, permutation, shuffled
from hf_select.scoring.score import score
from hf_select.selection.decontaminate import Decontaminate
from hf_select.selection.dedup import first_of_each, near_copies
from hf_select.selection.selection import Selection
from hf_select.validation import check_choices


SOURCE, SOURCE_ROW, EPOCH = "source", "source_row", "epoch"
_PLAIN = {"role": Value("string"), "content": Value("string")}
_COPY, _TEST = "repeats an earlier row", "holds text of an evaluation set"


@dataclass
class Mixture:
    """Sources in given amounts as one dataset.

    Args:
        sources: by name; of rows that repeat each other the one of the first source stays.
        rows: rows of the mixture, where the sources have weights.
        tokens: tokens of the mixture, where the sources have weights.
        seed: of all draws and orders.
        epochs: the whole mixture so many times, each time in another order (column `epoch`); a trainer must not
            shuffle it again.
        shuffle: mix the rows; otherwise one source follows the other.
        dedup: rows that repeat an earlier one are passed over: exact (the same text up to white space), near (by runs
            of five words; extra `text`; all rows are compared), or none.
        near_duplicates: Jaccard similarity from which on two rows are near copies.
        decontaminate_n: words that a row must share with an evaluation set to be passed over.
        bad_rows: rows that are no conversation: error, or skip them and count them.
        tokenizer: Hub id or path, to count tokens where a source has no column num_tokens.
        stream: read the sources front to back, for those too large to have at hand.
        buffer_rows: rows of each streamed source that are shuffled among themselves.
    Raises: ValueError if the settings make no sense together.
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
            raise ValueError("a mixture needs sources; there is none.")
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
        """What each source is to give: {"rows": n}, {"tokens": n}, or {} for all that it has.

        Raises: ValueError if some sources have weights and others have not, or if there is no total to share.
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

    def write(self, output_dir: str | Path, against: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Make mixture.parquet and mixture.json in the folder, and return what the latter says.

        Args:
            against: evaluation sets by name, none of whose text may come in.
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
            with pq.ParquetWriter(temporary, mixing.schema) as writer:
                with tqdm(total=mixing.total(), unit="row", unit_scale=True, desc="mix", disable=None) as bar:
                    for batch in batches(mixing.rows(), BATCH):
                        writer.write_table(_table(batch, mixing.schema))
                        bar.update(len(batch))
            digest = sha256_of(temporary)
        made = {"sha256": digest, "hf_select": __version__, "settings": self.settings()}
        record = {**mixing.record(), **made}
        write_json(folder / "mixture.json", record)
        return record

    def iterable(self, against: Mapping[str, Any] | None = None) -> IterableDataset:
        """The rows as an IterableDataset; nothing is written, and errors of a streamed source come when it is read."""
        mixing = _Mixing(self, against or {}, None)
        features = Features.from_arrow_schema(mixing.schema)
        return cast(IterableDataset, IterableDataset.from_generator(mixing.rows, features=features))

    def settings(self) -> dict[str, Any]:
        """What the mixture was made of, in words that JSON can hold."""
        mine = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "sources"}
        return {**mine, "sources": {name: _described(source) for name, source in self.sources.items()}}

    def _check_stream(self) -> None:
        units = {unit for target in self.targets().values() for unit in target}
        if len(units) != 1 or any(not target for target in self.targets().values()):
            raise ValueError("streams are mixed by rows or by tokens: give every source rows, or every source tokens.")
        if self.dedup == "near":
            raise ValueError("near copies are found among rows that are at hand; with stream=True use dedup exact.")
        for name, source in self.sources.items():
            if source.selector is not None or isinstance(source.data, Dataset):
                raise ValueError(f'source "{name}" is to be at hand; leave out stream=True.')
            if source.shortfall == "repeat":
                raise ValueError(f'source "{name}" is read once as a stream; to repeat it leave out stream=True.')


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers that add up to `total`, in proportion to the weights, by largest remainders; ties go to the first.

    Exact: weights are taken as the fractions that they are, so that integers that add up to the total are returned.
    Raises: ValueError if all weights are 0.
    """
    shares = [Fraction(weight) for weight in weights]
    if not any(shares):
        raise ValueError("all weights are 0; give at least one source a weight.")
    wanted = [total * share / sum(shares) for share in shares]
    found = [int(share) for share in wanted]
    for place in sorted(range(len(found)), key=lambda i: found[i] - wanted[i])[: total - sum(found)]:
        found[place] += 1
    return found


def schedule(counts: Mapping[str, int], dice: random.Random) -> Iterator[str]:
    """Each name as often as it counts, in random order: each arrangement alike, without a list of them."""
    left = dict(counts)
    for _ in range(sum(counts.values())):
        name = _drawn(left, dice)
        left[name] -= 1
        yield name


# --------------------------------------------------------------------------------------------------------------------


class _Row(NamedTuple):
    """A row of a source that was read: its number, what it says as it came (nothing of a question), and its tokens
    where they are known."""

    number: int
    row: Conversation | BadRow
    raw: Mapping[str, Any]
    num_tokens: int | None = None


class _Mixing:
    """A mixture at work: its sources open, what comes in chosen (of streams: while they are read)."""

    def __init__(self, mixture: Mixture, against: Mapping[str, Any], folder: Path | None):
        self.mixture, self.folder = mixture, folder
        self.rule = None
        if against:
            n = mixture.decontaminate_n
            self.rule = Decontaminate(n=n, min_words=min(8, n)).fit(against)
        self._forget()
        self.sources: dict[str, Any] = {}
        for name, source in mixture.sources.items():
            try:
                self.sources[name] = self._open(name, source)
            except ValueError as error:
                raise ValueError(f'source "{name}": {error}') from error
        self.schema = self._schema()
        self.chosen: dict[str, np.ndarray] = {}
        self.times: dict[str, int] = {}
        if not mixture.stream:
            self._plan()

    def total(self) -> int | None:
        """Rows that will come out, if that is known."""
        if not self.mixture.stream:
            return self.mixture.epochs * sum(map(len, self.chosen.values()))
        counts = [target.get("rows", 0) for target in self.mixture.targets().values()]
        return self.mixture.epochs * sum(counts) if all(counts) else None

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of the mixture, epoch after epoch."""
        for epoch in range(self.mixture.epochs):
            self.given = Counter()
            for name, number, row in self._streamed(epoch) if self.mixture.stream else self._planned(epoch):
                self.given[name] += 1
                made = {**row, SOURCE: name, SOURCE_ROW: number}
                yield {**made, EPOCH: epoch} if self.mixture.epochs > 1 else made

    def _written(self, row: _Row) -> dict[str, Any]:
        """What a row is in the mixture but for where it came from."""
        conversation = cast(Conversation, row.row)
        if conversation.text is not None:
            return {"text": conversation.text}
        # A question has been put into words; what else its row holds is not of the conversation.
        messages = as_messages(row.raw, conversation) if row.raw else conversation.messages
        tools = {"tools": tools_text(row.raw)} if self.has_tools else {}
        return {"messages": messages if self.plain else [dumps(message) for message in messages], **tools}

    def record(self) -> dict[str, Any]:
        """What came out, of which sources, and what was passed over."""
        total = sum(self.given.values())
        found: dict[str, Any] = {"rows": total, "epochs": self.mixture.epochs, "sources": {}}
        for name, dataset in self.sources.items():
            line = {"rows": self.given[name], "share": self.given[name] / total}
            line |= {} if self.mixture.stream else {"rows_at_hand": len(dataset)}
            line |= {"each_at_most": self.times[name]} if name in self.times else {}
            line |= {"passed_over": dict(self.passed_over[name].most_common())} if self.passed_over[name] else {}
            line |= {"commit": commit} if (commit := commit_of(dataset)) else {}
            found["sources"][name] = line
        found |= {} if self.rule is None else {"evaluation_sets": self.rule.sets_}
        overlap = {names: count for names, count in self.overlap.most_common() if count}
        found |= {"overlap": overlap} if overlap else {}
        return found

    def _forget(self) -> None:
        self.passed_over: dict[str, Counter[str]] = {name: Counter() for name in self.mixture.sources}
        self.overlap: Counter[str] = Counter()
        self.seen: dict[int, str] = {}  # hash of a row's words -> the source that has it

    # Opening.

    def _open(self, name: str, source: Source) -> Any:
        dataset = source.open(self.mixture.stream)
        unit = self.mixture.targets()[name]
        if "tokens" in unit and self.mixture.tokenizer is None and columns.NUM_TOKENS not in column_names(dataset):
            raise ValueError("it is measured in tokens and has no column num_tokens; name a tokenizer.")
        if source.scorer is None:
            return dataset
        if self.folder is None:
            raise ValueError("scores need a folder: use write(), or score the source before.")
        return score(cast(Dataset, dataset), source.scorer, self.folder / "scores" / name)

    def _schema(self) -> pa.Schema:
        """Of the rows that will come out, from the columns that come in."""
        text, self.plain, self.has_tools = [], True, False
        for name, dataset in self.sources.items():
            names = column_names(dataset)
            if self.mixture.sources[name].reads == "conversation":
                text += [name] if layout(names) == "text" else []
                self.plain &= _is_plain(layout(names), dataset.features or {})
                self.has_tools |= "tools" in names
        if text and len(text) < len(self.sources):
            raise ValueError(f"{', '.join(text)} are raw text and the other sources conversations; mix one kind.")
        where = {SOURCE: Value("string"), SOURCE_ROW: Value("int64")}
        where |= {EPOCH: Value("int64")} if self.mixture.epochs > 1 else {}
        if text:
            return _schema_of({"text": Value("string"), **where})
        tools = {"tools": Value("string")} if self.has_tools else {}
        return _schema_of({"messages": List(_PLAIN if self.plain else Json()), **tools, **where})

    # Sources that are at hand: first all rows are chosen, then they are given out.

    def _plan(self) -> None:
        orders, targets = {}, self.mixture.targets()
        for name, target in targets.items():
            dice = random.Random(f"{self.mixture.seed}/draw/{name}")
            try:
                orders[name] = self.mixture.sources[name].candidates(self.sources[name], dice, target)
            except ValueError as error:
                raise ValueError(f'source "{name}": {error}') from error
        copies = self._near(orders) if self.mixture.dedup == "near" else {}
        for name, target in targets.items():
            self.chosen[name] = self._choose(name, orders[name], target, copies.get(name, set()))

    def _choose(self, name: str, order: np.ndarray, target: dict[str, int], copies: set[int]) -> np.ndarray:
        """Numbers of the rows that come in, in the order in which they were drawn."""
        unit, wanted = next(iter(target.items()), ("rows", None))
        found, costs, spent = [], [], 0
        if wanted == 0 or (self._takes_all() and unit == "rows" and len(order) >= (wanted or 0)):
            return order[:wanted]  # they are read once, when they are given out
        for row, key, cost in self._let_in(name, self._read(name, order), unit, copies):
            if wanted is not None and spent + cost > wanted:  # of tokens: the first row that does not fit ends it
                return np.array(found)
            self.seen.setdefault(key, name)
            found.append(row.number)
            costs.append(cost)
            spent += cost
            if spent == wanted:
                return np.array(found)
        if wanted is None and found:
            return np.array(found)
        if self.mixture.sources[name].shortfall == "error" or not spent:
            raise ValueError(self._too_few(name, spent, wanted or 1, unit))
        return np.array(self._repeated(name, found, costs, cast(int, wanted)))

    def _takes_all(self) -> bool:
        """Whether no row is ever passed over."""
        return self.mixture.dedup == "none" and self.rule is None and self.mixture.bad_rows == "error"

    def _too_few(self, name: str, there: int, wanted: int, unit: str) -> str:
        passed = ", ".join(f"{count:,}: {reason}" for reason, count in self.passed_over[name].items())
        return (
            f'source "{name}" has {there:,} {unit} of the {wanted:,} that are asked for'
            + (f" (passed over {passed})" if passed else "")
            + ". Ask for fewer, or let rows be repeated: shortfall=repeat."
        )

    def _repeated(self, name: str, rows: list[int], costs: list[int], wanted: int) -> list[int]:
        """All rows again and again, each time in another order, until the budget is spent."""
        found, spent, self.times[name] = list(rows), sum(costs), 1
        while spent < wanted:
            dice = random.Random(f"{self.mixture.seed}/again/{name}/{self.times[name]}")
            self.times[name] += 1
            for place in permutation(len(rows), dice).tolist():
                if spent + costs[place] > wanted:
                    return found
                found.append(rows[place])
                spent += costs[place]
        return found

    def _near(self, orders: dict[str, np.ndarray]) -> dict[str, set[int]]:
        """Rows of each source that repeat one of it, or of an earlier source, exactly or nearly."""
        texts, whose = [], []
        for name, order in orders.items():
            for row in self._read(name, order):
                if isinstance(row.row, Conversation):
                    texts.append(text_of(row.row))
                    whose.append((name, row.number))
        order = np.arange(len(texts))
        first = first_of_each(texts, order)
        near = near_copies(texts, order[[first[i] == i for i in order.tolist()]], self.mixture.near_duplicates)
        copies: dict[str, set[int]] = {name: set() for name in orders}
        for i, same in first.items():
            if same != i or same in near:
                (name, number), (other, _) = whose[i], whose[near[same][0] if same in near else same]
                copies[name].add(number)
                self.overlap[f"{other} and {name}"] += name != other
        return copies

    def _read(self, name: str, order: np.ndarray) -> Iterator[_Row]:
        source, dataset = self.mixture.sources[name], self.sources[name]
        dataset = dataset.select_columns(source.reading(dataset.column_names, where=False)).with_format("arrow")
        for start in range(0, len(order), BATCH):
            numbers = order[start : start + BATCH]
            batch = columns_of(dataset[numbers], dataset.features, drop_filled=True)
            yield from _rows(source, numbers.tolist(), batch)

    def _planned(self, epoch: int) -> Iterator[tuple[str, int, dict[str, Any]]]:
        mixture, readers = self.mixture, {}
        for name, numbers in self.chosen.items():
            if mixture.shuffle:
                numbers = numbers[permutation(len(numbers), random.Random(f"{mixture.seed}/order/{name}/{epoch}"))]
            readers[name] = self._read(name, numbers)
        counts = {name: len(numbers) for name, numbers in self.chosen.items()}
        in_turn = (name for name, count in counts.items() for _ in range(count))
        for name in schedule(counts, random.Random(f"{mixture.seed}/mix/{epoch}")) if mixture.shuffle else in_turn:
            row = next(readers[name])
            self._unfit(name, row)
            yield name, row.number, self._written(row)

    # Streams: rows are chosen while they are read.

    def _streamed(self, epoch: int) -> Iterator[tuple[str, int, dict[str, Any]]]:
        mixture = self.mixture
        self._forget()
        targets = mixture.targets()
        (unit,) = {unit for target in targets.values() for unit in target}
        left = wanted = {name: target[unit] for name, target in targets.items()}
        readers = {name: self._reader(name, unit, wanted[name], epoch) for name in targets}
        dice = random.Random(f"{mixture.seed}/mix/{epoch}")
        while left := {name: rest for name, rest in left.items() if rest}:
            name = _drawn(left, dice) if mixture.shuffle else next(iter(left))
            found = next(readers[name], None)
            if found is None:
                raise ValueError(self._too_few(name, wanted[name] - left[name], wanted[name], unit))
            row, cost = found
            if cost > left[name]:
                left[name] = 0
                continue
            left[name] -= cost
            yield name, row.number, self._written(row)

    def _reader(self, name: str, unit: str, wanted: int, epoch: int) -> Iterator[tuple[_Row, int]]:
        """A streamed source's rows with their costs, in the order in which they are given out."""

        def let_in() -> Iterator[tuple[_Row, int]]:
            for row, key, cost in self._let_in(name, self._front_to_back(name), unit, set()):
                self.seen.update({key: name} if self.mixture.dedup == "exact" else {})
                yield row, cost

        if not self.mixture.shuffle:
            return let_in()
        rows = let_in()
        if self.mixture.sources[name].take == "first":
            if unit == "tokens":
                return rows
            rows = islice(rows, wanted)
        dice = random.Random(f"{self.mixture.seed}/order/{name}/{epoch}")
        return shuffled(rows, self.mixture.buffer_rows, dice)

    def _front_to_back(self, name: str) -> Iterator[_Row]:
        source, stream, first = self.mixture.sources[name], self.sources[name], 0
        stream = stream.select_columns(source.reading(column_names(stream), where=True))
        for table in stream.with_format("arrow").iter(batch_size=BATCH):
            features = stream.features or Features.from_arrow_schema(cast(pa.Table, table).schema)
            rows = _rows(source, range(first, first + len(table)), columns_of(table, features, drop_filled=True))
            allowed = source.may_be_taken(columns_of(table, features))
            yield from (row for row, may in zip(rows, allowed, strict=True) if may)
            first += len(table)

    # What comes in.

    def _let_in(self, name: str, rows: Iterator[_Row], unit: str, copies: set[int]) -> Iterator[tuple[_Row, int, int]]:
        """(row, hash of its text, cost in the unit of the budget) of each row that is not passed over.

        Rows are judged one by one as they are asked for, since what is chosen of them decides what repeats an earlier
        one."""
        for batch in batches(rows, BATCH):
            sound = [row.row for row in batch if isinstance(row.row, Conversation)]
            tests, costs = iter(self._of_tests(sound)), iter(self._costs(batch, sound, unit))
            for row in batch:
                reason, key, cost = self._unfit(name, row), 0, 0
                if isinstance(row.row, Conversation):
                    test, cost = next(tests), next(costs)
                    reason = reason or test or (str(cost) if isinstance(cost, BadRow) else "")
                if not reason:
                    key = self._key(cast(Conversation, row.row))
                    reason = self._repeats(name, key, row.number, copies)
                if reason:
                    self.passed_over[name][reason] += 1
                else:
                    yield row, key, cast(int, cost)

    def _unfit(self, name: str, row: _Row) -> str:
        """Why a row cannot be written, if it cannot and may be passed over."""
        reason = str(row.row) if isinstance(row.row, BadRow) else ""
        if reason and self.mixture.bad_rows == "error":
            raise ValueError(
                f'row {row.number} of source "{name}" cannot be taken: {reason}. Mend it, or bad_rows=skip.'
            )
        return reason

    def _of_tests(self, rows: list[Conversation]) -> list[str]:
        if self.rule is None or not rows:
            return [""] * len(rows)
        read = [{"messages": dumps(row.messages)} if row.text is None else {"text": row.text} for row in rows]
        self.rule(Dataset.from_list(read))
        return [_TEST if i in self.rule.removed_ else "" for i in range(len(rows))]

    def _costs(self, batch: list[_Row], sound: list[Conversation], unit: str) -> list[int | BadRow]:
        if unit != "tokens":
            return [1] * len(sound)
        if self.mixture.tokenizer is not None:
            encoded = encode_all(sound, self._tokenizer, responses=False)
            return [row if isinstance(row, BadRow) else len(row.input_ids) for row in encoded]
        counts = [row.num_tokens for row in batch if isinstance(row.row, Conversation)]
        return [BadRow("num_tokens is null") if count is None else count for count in counts]

    def _key(self, row: Conversation) -> int:
        if self.mixture.dedup != "exact":
            return 0
        return xxhash.xxh3_64_intdigest(exact(text_of(row)).encode())

    def _repeats(self, name: str, key: int, number: int, copies: set[int]) -> str:
        if self.mixture.dedup == "near":
            return _COPY if number in copies else ""
        other = self.seen.get(key) if self.mixture.dedup == "exact" else None
        if other is None:
            return ""
        self.overlap[f"{other} and {name}"] += other != name
        return _COPY

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.mixture.tokenizer)


def _rows(source: Source, numbers: Sequence[int], batch: Mapping[str, list[Any]]) -> Iterator[_Row]:
    tokens = batch.get(columns.NUM_TOKENS) or [None] * len(numbers)
    kept = [name for name in batch if name in READ_COLUMNS] if source.reads == "conversation" else []
    for i, (number, row) in enumerate(zip(numbers, source.read(batch), strict=True)):
        yield _Row(number, row, {name: batch[name][i] for name in kept}, tokens[i])


def _drawn(left: Mapping[str, int], dice: random.Random) -> str:
    """A name with probability in proportion to what is left of it."""
    place = dice.random() * sum(left.values())
    for name, count in left.items():
        if place < count:
            return name
        place -= count
    return next(name for name in reversed(list(left)) if left[name])  # rounding


def _is_plain(kind: str, features: Mapping[str, Any]) -> bool:
    """Whether the messages of a source are roles and texts alone, by its column types. ShareGPT turns are not: some
    of them are calls."""
    if kind == "messages":
        return features.get("messages") == List(_PLAIN)
    if kind == "prompt-completion":
        return all(features.get(name) in (Value("string"), List(_PLAIN)) for name in ("prompt", "completion"))
    return kind != "sharegpt"


def _schema_of(features: dict[str, Any]) -> pa.Schema:
    return Features(features).arrow_schema.remove_metadata()


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows whose Json values are texts already."""
    stored = [pa.field(f.name, pa.list_(pa.string())) if f.type == pa.list_(pa.json_()) else f for f in schema]
    return pa.Table.from_pylist(rows, pa.schema(stored)).cast(schema)


def _described(source: Source) -> dict[str, Any]:
    """The settings of a source that are not at their defaults; of objects what they are."""
    found: dict[str, Any] = {}
    for f in fields(source):
        value = getattr(source, f.name)
        if f.name != "data" and value == f.default:
            continue
        if isinstance(value, Selection):
            value = f"a selection of {len(value):,} of {value.num_rows:,} rows"
        elif not isinstance(value, (str, int, float, dict)):
            plain = is_dataclass(value) or callable(value)
            value = str(value) if plain else f"{type(value).__name__} in memory"
        found[f.name] = value
    return found


def batches(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rows = iter(rows)
    while batch := list(islice(rows, size)):
        yield batch
