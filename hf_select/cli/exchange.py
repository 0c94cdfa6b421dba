"""hf-select export and import-scores: exchange with other trainers and other scoring programs."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hf_select.cli.command import Command


@dataclass
class Export(Command):
    """Write a selected subset for other trainers: one JSONL file, with the dataset_info.json of LLaMA-Factory and the
    dataset settings of axolotl and open-instruct.

    Args:
        subset: what hf-select select wrote, or any dataset.
        output_dir: folder for the files.
        name: of the JSONL file and of the dataset.
        split: split of a saved or Hub dataset.
        overwrite: replace existing files of these names; other entries of dataset_info.json are always kept.
    """

    subset: str
    output_dir: str
    name: str = "subset"
    split: str = "train"
    overwrite: bool = False

    example: ClassVar[str] = "hf-select export subset.parquet --output-dir export"
    positional: ClassVar[tuple[str, ...]] = ("subset",)

    def run(self) -> None:
        """Write the files."""
        from hf_select.data.loading import read_dataset
        from hf_select.export.jsonl import export_subset

        dataset = read_dataset(self.subset, self.split)
        files = export_subset(dataset, self.output_dir, self.name, self.overwrite)
        print(f"{len(dataset):,} rows: {', '.join(map(str, files))}")


@dataclass
class ImportScores(Command):
    """Add scores from another program to a dataset, so that hf-select select and report can use them.

    Args:
        scores: JSONL, CSV or TSV file (also .gz, .zst, .xz, .bz2) of ids and scores; a score is a number, or a text
            such as "4" or "4/10".
        dataset: the rows: a file, a saved dataset, a folder of hf-select score or a Hub id.
        name: of the score; the column is score_NAME.
        output: path of the scored rows: .parquet, .jsonl, .json, .csv or .tsv (all but the first also .gz, .zst,
            .xz or .bz2), or a folder for a saved dataset.
        id_key: key or column of the id in the file of scores.
        score_key: key or column of the score in it.
        row_id: column of the dataset that holds the ids; without a column "row_id" the ids are row numbers.
        split: split of a saved or Hub dataset.
        overwrite: replace an existing output.
    """

    scores: str
    dataset: str
    name: str
    output: str
    id_key: str = "id"
    score_key: str = "score"
    row_id: str = "row_id"
    split: str = "train"
    overwrite: bool = False

    example: ClassVar[str] = (
        "hf-select import-scores judge.jsonl --dataset pool.jsonl --name judge --output scored.parquet"
    )
    positional: ClassVar[tuple[str, ...]] = ("scores",)

    def run(self) -> None:
        """Add the scores and write the dataset."""
        from hf_select.cli.outputs import check_output
        from hf_select.data.columns import numeric_column, score_column, without_score
        from hf_select.data.loading import read_dataset
        from hf_select.data.writing import write_dataset
        from hf_select.scoring.imported import import_scores

        output = check_output(self.output, self.overwrite, self.dataset)
        dataset = read_dataset(self.dataset, self.split)
        keys = {"id_key": self.id_key, "score_key": self.score_key, "row_id": self.row_id}
        scored = import_scores(dataset, Path(self.scores), self.name, **keys)
        notes = write_dataset(scored, output)
        column = score_column(self.name)
        missing = without_score(scored, column, numeric_column(scored, column, ""))
        print(f"{len(scored):,} rows with {column}{missing}: {output}")
        for note in notes:
            print(f"Note: {note}")
