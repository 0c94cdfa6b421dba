"""hf-select select"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hf_select.cli.command import Command
from hf_select.cli.settings import build, check_names, import_class
from hf_select.selection import SELECTORS


if TYPE_CHECKING:
    from datasets import Dataset

    from hf_select.selection.matching_pursuit import MatchingPursuit
    from hf_select.selection.selection import Selection
    from hf_select.selection.selector import Selector


@dataclass
class Select(Command):
    """Select rows of a scored dataset under a budget, with a reason for each row.

    Args:
        scores: folder of hf-select score, an earlier selection, or any dataset that has the columns (file, saved
            dataset, Hub id); several folders of scores of the same rows are joined by row_id.
        selector: top_k, weighted_ranks, round_robin, score_then_threshold, matching_pursuit, facility_location,
            farthest_first, kmeans_buckets, dedup, decontaminate, random, sample or longest; or MODULE:CLASS, a
            Selector of your own.
        output: path of the subset: .parquet, .jsonl, .json, .csv or .tsv (all but the first also .gz, .zst, .xz or
            .bz2), or a folder for a saved dataset.
        k: budget in rows.
        fraction: budget as a share of the rows, in (0, 1].
        tokens: budget in tokens, spent in the column num_tokens.
        split: split of a saved or Hub dataset.
        fit_on: scores of held-back queries, folders or datasets like scores; weighted_ranks fits its weights on them,
            in place of --weights. Score them with the scorers of the pool, fitted with the other queries (--pool of
            hf-select score).
        fit_columns: score columns to fit weights for; by default all that scores and fit_on have in common.
        against: evaluation sets, for a selector that removes rows with their text: NAME=FILE_OR_ID.
        rename: columns of evaluation sets to rename first, e.g. question=prompt answer=completion.
        overwrite: replace an existing output.
    """

    scores: str | list[str]
    selector: str
    output: str
    k: int | None = None
    fraction: float | None = None
    tokens: int | None = None
    split: str = "train"
    fit_on: str | list[str] | None = None
    fit_columns: list[str] | None = None
    against: dict[str, str] | None = None
    rename: dict[str, str] | None = None
    overwrite: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    example: ClassVar[str] = (
        "hf-select select --scores scores --selector top_k --column score_selectit --fraction 0.2 "
        "--output subset.parquet"
    )

    decided_by: ClassVar[Mapping[str, Collection[str]]] = {"selector": SELECTORS}

    @classmethod
    def parts(cls, values: Mapping[str, Any]) -> list[type]:
        return [selector_class(values["selector"])] if values.get("selector") is not None else []

    def run(self) -> None:
        """Select, write the subset and print what it contains."""
        from hf_select.cli.outputs import check_output
        from hf_select.data.loading import as_list, read_scores
        from hf_select.data.writing import write_dataset
        from hf_select.features.store import PoolIndex
        from hf_select.selection.filter import Filter
        from hf_select.selection.record import record_of
        from hf_select.selection.vectors import VectorSelector

        if self.fit_columns is not None and self.fit_on is None:
            raise ValueError("--fit-columns names columns to fit weights for; add --fit-on, or leave it out.")
        selector = None if self.fit_on is not None else self._selector()
        output = check_output(self.output, self.overwrite, *as_list(self.scores))
        dataset = read_scores(self.scores, self.split)
        if selector is None:
            selector = self._fitted_weights(dataset)
        earlier = self._earlier(dataset)
        if earlier is not None and isinstance(selector, VectorSelector) and isinstance(selector.vectors, PoolIndex):
            if len(selector.vectors) == earlier.num_rows != len(dataset):
                # The index is one of the rows that these were selected from.
                selector = selector.among(earlier.indices, read_scores(earlier.chain[0]["scores"], self.split))
        selection = selector(dataset, k=self.k, fraction=self.fraction, tokens=self.tokens)
        if len(selection) == 0:
            raise ValueError(f"selector {self.selector} leaves none of {len(dataset):,} rows; nothing was written.")
        selection.chain[-1]["scores"] = self.scores  # for the report and the card
        subset = selection.apply(dataset)
        notes = write_dataset(subset, output)
        _print_selection(dataset, selection, subset)
        if isinstance(selector, Filter):
            _print_removed(selector.removed_)
        if earlier is not None:
            # The rows were selected before: the record tells the whole way from the first dataset.
            selection = earlier.compose(selection)
            steps = [f"{s['selector']} {s['num_rows']:,} -> {s['selected']:,}" for s in selection.chain]
            print("\nSteps: " + ", then ".join(steps))
        selection.save(record_of(output))
        print(f"\n{len(subset)} rows: {output}; only their ranks and reasons: {record_of(output)}")
        for note in notes:
            print(f"Note: {note}")

    def _earlier(self, dataset: Any) -> "Selection | None":
        """The selection that left these rows, if there is one; None where the record is of another number of rows."""
        from hf_select.data.loading import as_list
        from hf_select.selection.record import record_behind
        from hf_select.selection.selection import Selection

        record = record_behind(Path(as_list(self.scores)[0]).expanduser())
        earlier = None if record is None else Selection.load(record)
        if earlier is None or len(earlier) != len(dataset):
            return None
        try:
            earlier.check_left(dataset)
        except ValueError as error:
            raise ValueError(
                f'"{self.scores}" is not what "{record}" says of it: {error} Delete that file to select from the rows '
                "as they are."
            ) from None
        return earlier

    def _fitted_weights(self, dataset: "Dataset") -> "Selector":
        """weighted_ranks with weights fitted on the scores of held-back queries; prints the evidence."""
        from hf_select.cli.table import print_table
        from hf_select.data.loading import as_list, read_scores
        from hf_select.selection.learned_weights import fit_weights

        if self.selector != "weighted_ranks":
            raise ValueError(f"--fit-on fits weights of weighted_ranks, and the selector is {self.selector}.")
        if given := [f"--{name}" for name in (*self.settings, *(["against"] if self.against else []))]:
            raise ValueError(f"--fit-on fits the weights; leave out {', '.join(given).replace('_', '-')}.")
        assert self.fit_on is not None
        _check_same_scorers(as_list(self.scores), as_list(self.fit_on))
        selector = fit_weights(dataset, read_scores(self.fit_on, self.split), self.fit_columns)
        rows = [
            [
                name,
                f"{area:.4f}",
                f"{low:.4f} to {high:.4f}",
                f"{selector.weights[name]:.3f}" if name in selector.weights else "",
            ]
            for name, (area, low, high) in selector.evidence_["area"].items()
        ]
        print_table(["found by", "area", "95 %", "weight"], rows, "Held-back queries above rows of the pool")
        print(f"\n{selector.evidence_['verdict'][0].upper()}{selector.evidence_['verdict'][1:]}.")
        return selector

    def _selector(self) -> "Selector":
        """The selector from its flat settings, with its folder of vectors opened and its evaluation sets read."""
        from hf_select.data.loading import read_named
        from hf_select.selection.matching_pursuit import MatchingPursuit
        from hf_select.selection.vectors import VectorSelector

        cls = selector_class(self.selector)
        check_names(self.settings, [cls], f"selector {self.selector}")
        if issubclass(cls, VectorSelector) and "vectors" not in self.settings:
            raise ValueError(
                f"selector {self.selector} needs --vectors FOLDER, the vectors of these rows. Make the folder first: "
                "hf-select index --scorer rds --model MODEL --dataset DATASET --output-dir FOLDER. (A column of "
                "vectors is named in the same way: --vectors COLUMN.)"
            )
        selector = build(cls, self.settings, f"selector {self.selector}")
        if isinstance(selector, VectorSelector) and isinstance(selector.vectors, str):
            if (Path(selector.vectors).expanduser() / "vectors").is_dir():
                from hf_select.features.store import PoolIndex

                selector.vectors = PoolIndex.open(selector.vectors)
        if isinstance(selector, MatchingPursuit):
            _open_targets(selector)
        if selector.needs_fit != bool(self.against):
            no_set = "compares with no other set; leave out --against"
            needs = "needs --against NAME=FILE" if selector.needs_fit else no_set
            raise ValueError(f"selector {self.selector} {needs}.")
        if self.against:
            selector.fit(read_named(self.against, self.split, self.rename))
        return selector


def _open_targets(selector: "MatchingPursuit") -> None:
    """Replace the folders of a selector's targets by the indexes in them."""
    from hf_select.features.store import PoolIndex

    for task, folder in selector.targets.items():
        index = PoolIndex.open(str(folder))
        if isinstance(selector.vectors, PoolIndex):
            selector.vectors.check_comparable(index)
        selector.targets[task] = index


def _check_same_scorers(scores: list[str], fit_on: list[str]) -> None:
    """Raise ValueError if a scorer of the queries has other settings, targets or a pool than that of the rows."""
    from hf_select.atomic import read_json
    from hf_select.jobs.run_folder import changed_settings

    made_by: list[dict[str, Any]] = []
    for folders in (scores, fit_on):
        manifests = [read_json(Path(folder).expanduser() / "manifest.json") for folder in folders]
        made_by.append({each["made_by"]["name"]: each["made_by"]["identity"] for each in manifests if each})
    for name in made_by[0].keys() & made_by[1].keys():
        # Neither an index nor candidates change a score.
        of_pool, of_queries = (
            {key: value for key, value in of[name].items() if key not in ("index", "candidates")} for of in made_by
        )
        if differing := changed_settings(of_queries, of_pool):
            raise ValueError(
                f"the {name} scores of fit_on and of scores are not comparable ({'; '.join(differing)[:300]}). Score "
                "the held-back queries with the settings and --queries of the pool, and with --pool POOL if it is "
                "tfidf, dsir or --center."
            )


def selector_class(name: str) -> "type[Selector]":
    """The class of a selector by its name, or by MODULE:CLASS."""
    from hf_select.selection.selector import Selector

    return import_class("selector", name, SELECTORS, Selector)


def _print_selection(dataset: "Dataset", selection: "Selection", subset: Any) -> None:
    """Print scores of the pool and of the selection, then the first rows with their reasons."""
    import numpy as np

    from hf_select.cli.table import print_table
    from hf_select.data import columns

    rows = [["rows", f"{len(dataset):,}", f"{len(selection):,}"]]
    shown: list[np.ndarray] = []
    for name in dataset.column_names:
        if not (name.startswith(columns.SCORE_PREFIX) or name == columns.NUM_TOKENS):
            continue
        try:
            values = columns.numeric_column(dataset, name, "")
        except ValueError:  # a column of the user's with such a name and without numbers
            continue
        values = np.where(np.isfinite(values), values, np.nan)
        if any(np.array_equal(values, others, equal_nan=True) for others in shown):
            continue  # of a single task: the same as the column of all tasks
        shown.append(values)
        for label, part in ((f"{name}, mean", np.nanmean), (f"{name}, median", np.nanmedian)):
            if not np.isnan(values).all():
                chosen = values[selection.indices]
                rows.append([label, f"{part(values):,.4g}", "" if np.isnan(chosen).all() else f"{part(chosen):,.4g}"])
    print_table(["", "pool", "selected"], rows)
    _print_lengths(dataset, selection)
    places, note = _first_different(subset)
    top = [
        [str(row[columns.SELECTION_RANK]), _opening(row), row[columns.SELECTION_REASON]]
        for row in subset.select(places)
    ]
    width = max(len(line[1]) for line in top)
    print("\nThe first rows, with reasons:")
    for rank, text, reason in top:
        print(f"  {rank}  {text.ljust(width)}  {reason}")
    if note:
        print(note)


def _first_different(subset: "Dataset", shown: int = 5, sample: int = 20_000) -> tuple[list[int], str]:
    """The first rows that repeat no earlier row, and a note on those that do."""
    import numpy as np

    from hf_select.data.conversation import readable_columns
    from hf_select.selection.dedup import first_of_each
    from hf_select.selection.filter import compared_texts

    size = min(len(subset), sample)
    readable = readable_columns(subset.column_names)
    if not readable:  # scores without their rows
        return list(range(min(shown, size))), ""
    texts, unreadable = compared_texts(subset.select_columns(readable).select(range(size)), "all")
    first = first_of_each(texts, np.array([row for row in range(size) if row not in unreadable], dtype=np.int64))
    places = [row for row in range(size) if first.get(row, row) == row]
    copies = size - len(places)
    of = f"{size:,} selected rows" if size == len(subset) else f"first {size:,} selected rows"
    note = f"{copies:,} of the {of} repeat another one exactly: select from the output of --selector dedup instead."
    return places[:shown], note if copies else ""


def _print_removed(removed: dict[int, str], shown: int = 5) -> None:
    """The number of rows that a filter left out, and why the first of them."""
    print(f"\n{len(removed):,} rows removed{', the first of them:' if removed else '.'}")
    for row in sorted(removed)[:shown]:
        print(f"  row {row}: {removed[row]}")


def _print_lengths(dataset: "Dataset", selection: "Selection", sample: int = 20_000) -> None:
    """Print lengths of the pool, the selection and random rows: scores often select by length."""
    import numpy as np

    from hf_select.cli.table import print_table
    from hf_select.data.conversation import readable_columns
    from hf_select.scoring.length import Length

    readable = readable_columns(dataset.column_names)
    if not readable:  # scores without their rows
        return
    rng, size = np.random.default_rng(0), min(len(selection), sample)
    draws = {
        "pool": rng.permutation(len(dataset))[:sample],
        "selected": rng.permutation(selection.indices)[:size],
        "random draw": rng.permutation(len(dataset))[:size],
    }
    lines = []
    for name, indices in draws.items():
        scores = Length()(dataset.select_columns(readable).select(np.sort(indices))[:])["score_length"]
        lengths = np.array([score for score in scores if score is not None])
        marks = np.quantile(lengths, (0.1, 0.5, 0.9)) if len(lengths) else [np.nan] * 3
        lines.append([name, *(f"{mark:,.0f}" for mark in marks)])
    print_table(["characters of a row", "10 %", "median", "90 %"], lines, title="Length")


def _opening(row: dict[str, Any], width: int = 48) -> str:
    """The first words of a row's first turn."""
    from hf_select.data import columns
    from hf_select.data.bad_rows import BadRow
    from hf_select.data.conversation import conversations

    try:
        (conversation,) = conversations({name: [value] for name, value in row.items()})
    except ValueError:  # scores without their rows
        return str(row.get(columns.ROW_ID, ""))
    if isinstance(conversation, BadRow):
        return "(unreadable row)"
    text = conversation.text or next((m["content"] for m in conversation.messages if m["role"] == "user"), "")
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 3] + "..."
