"""hf-select validate-scores"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from hf_select.cli.score import Rows, build_parts
from hf_select.data.columns import ROW_ID, missing_column, score_column


if TYPE_CHECKING:
    from hf_select.reports.validation_result import ScoreValidation


@dataclass(kw_only=True)
class ValidateScores(Rows):
    """Do scores predict what training does? Trains a model on many random subsets of the rows, and correlates the loss
    on held-out rows with the sum of the scores of each subset (linear datamodelling score). TF-IDF, the length of the
    response and random scores are validated too, for comparison. The same command resumes a killed validation, and
    scores can be added later without training again. Under accelerate launch every process trains different runs.

    Args:
        scores: NAME=FOLDER of hf-select score, one or several, for these rows or for more rows; they are joined by
            row_id. NAME=FOLDER:COLUMN names another column than the scorer's own, NAME=COLUMN one of the dataset.
            For a held-out set SET the column COLUMN_SET is used if there is one, such as score_rds_math.
        held_out: rows to measure the loss on, NAME=FILE_OR_ID, one or several sets.
        subsets: number of random subsets to train on, at least 10.
        fraction: share of the rows in each subset.
        repeats: number of subsets to train again with another seed, to measure the noise of training; 0 for none.
        passes: over the rows of a subset in each run.
        lower_is_better: names of scores whose lower values are better. Scorers of your own that say so
            (higher_is_better) need not be named.
        seed: of subsets and training.
    """

    scores: dict[str, str]
    held_out: dict[str, str]
    subsets: int = 60
    fraction: float = 0.5
    repeats: int = 15
    passes: float = 2.0
    lower_is_better: list[str] = field(default_factory=list)
    seed: int = 0

    modules: ClassVar[tuple[str, ...]] = ("trl", "peft", "matplotlib", "scipy", "sklearn")
    example: ClassVar[str] = (
        "hf-select validate-scores --model Qwen/Qwen2.5-0.5B --dataset pool.jsonl --limit 300 "
        "--scores ifd=runs/ifd less=runs/less --held-out math=math.jsonl --lora-r 8 --output-dir validation"
    )

    @classmethod
    def parts(cls, values: Mapping[str, Any]) -> list[type]:
        from hf_select.training.equal_tokens import Recipe

        return [Recipe]

    def run(self) -> None:
        """Train, correlate and print the table."""
        from hf_select.evaluation.validate_scores import validate_scores
        from hf_select.jobs.launch import is_main_process

        recipe = build_parts(self.parts({}), self.settings, "validate-scores")
        rows, held_out = self.read(self.held_out)
        pool, scores, lower = rows, {}, set(self.lower_is_better)
        for name, value in self.scores.items():
            if value in rows.column_names and not Path(value).is_dir():
                scores[name] = value
                continue
            try:
                found, column, higher_is_better = _joined(rows, value, held_out)
            except ValueError as error:
                raise ValueError(f'score "{name}": {error}') from None
            scores[name] = f"{name}:{column}"
            for each, values in found.items():
                pool = pool.add_column(f"{name}:{each}", values)
            lower |= set() if higher_is_better else {name}
        result = validate_scores(
            pool,
            scores,
            held_out,
            recipe,
            self.output_dir,
            subsets=self.subsets,
            fraction=self.fraction,
            repeats=self.repeats,
            passes=self.passes,
            lower_is_better=lower,
            seed=self.seed,
        )
        if is_main_process():
            _print_result(result)
            print(f"\n{self.output_dir}/validation.html (open it in a browser), validation.md, validation.json; runs/")


def _joined(rows: Any, value: str, sets: Collection[str]) -> tuple[dict[str, list[float | None]], str, bool]:
    """The score columns in a folder of hf-select score for these rows, the main one, and whether higher is better.

    Raises: ValueError for a folder without finished scores, an unknown column, scores of other rows.
    """
    from hf_select.atomic import read_json
    from hf_select.data.rows import Pool
    from hf_select.data.scores import read_scored

    folder, _, column = (value, "", "") if Path(value).expanduser().is_dir() else value.rpartition(":")
    place = Path(folder or column).expanduser()
    if not place.is_dir():
        raise ValueError(f'there is no folder "{place}" of hf-select score, nor a column "{value}" of the dataset.')
    scored = read_scored(place)
    manifest, summary = (cast(dict, read_json(place / name)) for name in ("manifest.json", "summary.json"))
    column = column if folder and column else score_column(manifest["made_by"]["name"])
    if column not in scored.column_names:
        raise missing_column(column, scored.column_names, f'Name a column of "{folder}".')
    of_sets = [f"{column}_{name}" for name in sets]
    wanted = [column, *(each for each in of_sets if each in scored.column_names)]
    same = _same_rows(Pool(rows, 1000).dataset, scored, str(place))
    return {each: same[each] for each in wanted}, column, summary["higher_is_better"]


def _same_rows(rows: Any, scored: Any, folder: str) -> Any:
    """The scored rows with the row_ids of `rows`, in their order, checked to have the same conversations."""
    from hf_select.data.rows import conversations_of

    place = {row_id: i for i, row_id in enumerate(scored[ROW_ID])}
    ids = list(rows[ROW_ID])
    missing = [row_id for row_id in ids if row_id not in place]
    if missing:
        raise ValueError(
            f'{len(missing):,} of {len(ids):,} rows of the dataset have no row_id in "{folder}" (first: '
            f"{missing[0]!r}). Give scores of these rows."
        )
    same = scored.select([place[row_id] for row_id in ids])
    for row_id, mine, other in zip(ids, conversations_of(rows), conversations_of(same), strict=True):
        if mine != other and str(mine) != str(other):  # two bad rows are equal if their reasons are
            raise ValueError(
                f'row_id {row_id!r} is another row in "{folder}" than in the dataset. Give scores of these rows.'
            )
    return same


def _print_result(result: "ScoreValidation") -> None:
    from hf_select.cli.table import print_table
    from hf_select.reports.validation_result import RANDOM

    for name, of_set in result.results.items():
        rows = []
        for score, each in of_set.items():
            lds = ["none", ""] if each.lds is None else [f"{each.lds.value:+.2f}", _interval(each.lds)]
            rows.append([score, *lds])
        if name in result.chance:
            rows.append([RANDOM, f"{result.chance[name].value:+.2f}", _interval(result.chance[name])])
        print_table(["", "LDS", "95 %"], rows, name)
        for score in result.scores:
            print(f"  {score}: {of_set[score].verdict}")
    print()
    for name, signal in result.signals.items():
        known = (
            "" if signal.reliability is None else f", reliability {signal.reliability}, ceiling {signal.ceiling:.2f}"
        )
        print(f"Loss on {name}: {signal.mean:.4f} nats, spread {signal.spread:.2g}{known}")
        if signal.warning:
            print(f"  Warning: {signal.warning}.")


def _interval(estimate: Any) -> str:
    return f"[{estimate.low:+.2f}, {estimate.high:+.2f}]"
