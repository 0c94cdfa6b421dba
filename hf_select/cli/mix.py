"""hf-select mix"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hf_select.atomic import read_json
from hf_select.cli.command import Command, Values
from hf_select.cli.settings import build, check_names


if TYPE_CHECKING:
    from hf_select.mixtures.mixture import Mixture
    from hf_select.mixtures.source import Source


@dataclass(kw_only=True)
class Mix(Command):
    """Mix rows of several sources in given amounts into one dataset with the source of every row.

    Args:
        output_dir: folder for mixture.parquet (messages, source, source_row), which SFTTrainer reads as it is, and
            mixture.json (counts, skipped rows with reasons, settings).
        mixture: a published one: rewild (246,750 + 99,800 + 20,000 rows); --sources replaces its sources.
        sources: NAME=FILE_OR_ID, one or several. In YAML also NAME: {data: ..., rows: ..., where: ...}, with the
            settings of a source; scorer and selector are then mappings, too: {selector: top_k, column: score_ifd}.
        weights: NAME=WEIGHT, shares of --rows or --tokens.
        take_rows: NAME=ROWS, rows of each source, instead of weights.
        against: evaluation sets; rows that contain their text are skipped: NAME=FILE_OR_ID, one or several sets.
        split: split of evaluation sets that are saved or Hub datasets.
        rename: columns of evaluation sets to rename first, e.g. question=prompt answer=completion.
        quiz: for rewild, take MMLU in the published quiz format instead of plain questions and answers.
        overwrite: replace a mixture of other settings in output_dir.
    """

    output_dir: str
    mixture: Literal["rewild"] | None = None
    sources: dict[str, Any] | None = None
    weights: dict[str, Any] | None = None
    take_rows: dict[str, Any] | None = None
    against: dict[str, str] | None = None
    split: str = "train"
    rename: dict[str, str] | None = None
    quiz: bool = False
    overwrite: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    example: ClassVar[str] = (
        "hf-select mix --sources chat=chat.jsonl math=math.jsonl --weights chat=3 math=1 --rows 10000 --output-dir mix"
    )

    first_word: ClassVar[str | None] = "mixture"

    @classmethod
    def parts(cls, values: Values) -> list[type]:
        from hf_select.mixtures.mixture import Mixture

        return [Mixture]

    def run(self) -> str:
        """Write the mixture. Returns: the command to run next."""
        from hf_select.cli.table import print_table
        from hf_select.data.loading import read_named
        from hf_select.mixtures.mixture import Mixture
        from hf_select.mixtures.rewild import rewild

        sources = {name: self._source(name, given) for name, given in (self.sources or {}).items()}
        for name in [*(self.weights or {}), *(self.take_rows or {})]:
            if name not in sources:
                raise ValueError(f'there is no source "{name}"; the sources are {", ".join(sources) or "none"}.')
        if self.mixture == "rewild":
            if self.weights or self.take_rows:
                raise ValueError("rewild has fixed proportions; leave out --weights and --take-rows.")
            mixture = rewild(sources, quiz=self.quiz, **self.settings)
        elif self.quiz:
            raise ValueError("--quiz is a setting of the mixture rewild; for a source of yours set reads: quiz.")
        else:
            mixture = build(Mixture, {"sources": sources, **self.settings}, "hf-select mix")
        self._refuse_other(mixture)
        record = mixture.write(self.output_dir, read_named(self.against, self.split, self.rename))
        rows = [
            [
                name,
                f"{line['rows']:,}",
                f"{line['share']:.1%}",
                f"{sum(line.get('passed_over', {}).values()):,}",
                f"{line['each_at_most']} times" if "each_at_most" in line else "once",
            ]
            for name, line in record["sources"].items()
        ]
        print_table(["source", "rows", "share", "passed over", "each at most"], rows)
        for names, count in record.get("overlap", {}).items():
            print(f"{count:,} rows are in {names}.")
        print(f"{record['rows']:,} rows: {self.output_dir}/mixture.parquet; counts and reasons: mixture.json")
        return (
            f"hf-select train sft --model MODEL --dataset {self.output_dir}/mixture.parquet --output-dir sft, "
            "or score it."
        )

    def _refuse_other(self, mixture: "Mixture") -> None:
        """Raise if the folder holds a mixture of other settings. The same settings write the same bytes again."""
        record = read_json(Path(self.output_dir).expanduser() / "mixture.json")
        settings = json.loads(json.dumps(mixture.settings()))
        if record is None or self.overwrite or record.get("settings") == settings:
            return
        before = record.get("settings") or {}
        changed = ", ".join(name for name in settings if before.get(name) != settings[name])
        raise ValueError(
            f'"{self.output_dir}" holds a mixture with other settings ({changed}); choose another --output-dir, or '
            "replace it with --overwrite."
        )

    def _source(self, name: str, given: Any) -> "Source | str":
        """A source from its path or id, or from its settings."""
        from hf_select.mixtures.source import Source

        settings = dict(given) if isinstance(given, dict) else {"data": given}
        for setting, values in (("weight", self.weights), ("rows", self.take_rows)):
            if values and name in values:
                settings[setting] = _parse_number(name, values[name])
        if self.mixture == "rewild" and not isinstance(given, dict):
            return given
        check_names(settings, [Source], f'source "{name}"')
        try:
            settings |= {"scorer": _scorer(settings.get("scorer")), "selector": _selector(settings.get("selector"))}
            return build(Source, settings, f'source "{name}"')
        except ValueError as error:
            raise ValueError(f'source "{name}": {error}') from error


def _parse_number(name: str, text: str | float) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f'"{name}={text}": {text} is not a number.') from None
    return int(value) if value.is_integer() else value


def _scorer(given: Any) -> Any:
    """A scorer from its name or its settings."""
    from hf_select.cli.score import build_scorer

    if given is None:
        return None
    name, settings = _named(given, "scorer")
    return build_scorer(name, settings)


def _selector(given: Any) -> Any:
    """A selector from its name or its settings, or the recorded selection of a subset of hf-select select."""
    from hf_select.cli.select import selector_class
    from hf_select.selection.record import record_of
    from hf_select.selection.selection import Selection

    if given is None:
        return None
    if isinstance(given, str) and (record := record_of(Path(given).expanduser())).exists():
        return Selection.load(record)
    name, settings = _named(given, "selector")
    cls = selector_class(name)
    check_names(settings, [cls], f"selector {name}")
    return build(cls, settings, f"selector {name}")


def _named(given: Any, kind: str) -> tuple[str, dict[str, Any]]:
    """(name, settings) of a scorer or selector that is given by its name or as a mapping."""
    settings = {kind: given} if isinstance(given, str) else dict(given)
    if kind not in settings:
        raise ValueError(f"{kind} is {given!r}; it must be a name, or a mapping such as {{{kind}: NAME, ...}}.")
    return settings.pop(kind), settings
