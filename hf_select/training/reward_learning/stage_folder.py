"""The answers of one stage on disk.

STAGE/
  manifest.json              what the answers depend on: weights, template, sampling, seed, rows
  generated/part-00000.parquet   answers to the next `rows_per_shard` prompts: token ids, whether the model ended them
  reference.parquet          log-probabilities of both completions under the reference of the stage (IRFT)
  reward/                    the reward while it learns from the stage (RFT)

Every file is written atomically, and a part that exists is never generated again.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from datasets.table import InMemoryTable

from hf_select.atomic import atomic_path, read_json, write_json
from hf_select.jobs.run_folder import changed_settings
from hf_select.training.reward_learning.demonstrations import REJECTED


@dataclass
class StageFolder:
    """The answers of one stage, in parts.

    Args:
        identity: what the answers depend on; its `model` is the digest of the weights that answer.
        rows: number of prompts.
        rows_per_shard: answers in each part.
    """

    folder: Path
    identity: dict[str, object]
    rows: int
    rows_per_shard: int

    def open(self, remake: bool) -> None:
        """Create the folder, or check that an existing one has this identity.

        Args:
            remake: discard answers of other weights under the same settings instead of refusing them: the weights of
                a later stage come from training, which is not always bitwise reproducible.
        Raises: ValueError if the folder holds answers of another run.
        """
        path = self.folder / "manifest.json"
        stored = read_json(path)
        manifest = {**self.identity, "rows": self.rows, "rows_per_shard": self.rows_per_shard}
        if stored is not None:
            self.rows_per_shard = stored["rows_per_shard"]  # of a run with another number of processes
            manifest["rows_per_shard"] = self.rows_per_shard
            changed = changed_settings({name: stored.get(name) for name in manifest}, manifest)
            if not changed:  # an identity without `model` accepts the answers of any weights
                return
            only_weights = all(text.startswith("model ") for text in changed)
            if not (remake and only_weights):
                raise ValueError(
                    f'"{self.folder}" holds answers of another run ({"; ".join(changed)}). Choose another output_dir.'
                )
            for stale in (*self.folder.glob("generated/*"), self._reference_path):
                stale.unlink(missing_ok=True)
            shutil.rmtree(self.folder / "reward", ignore_errors=True)
        (self.folder / "generated").mkdir(parents=True, exist_ok=True)
        write_json(path, manifest)

    def check(self) -> None:
        """Raise ValueError unless all answers and references exist, as resuming inside a stage needs them."""
        if self.missing() or not self._reference_path.exists():
            raise ValueError(
                f'the checkpoint is inside a stage whose answers in "{self.folder}" are incomplete, and the weights '
                "that generated them no longer exist; restore the folder, or resume from the checkpoint at which the "
                "stage began."
            )

    @property
    def _reference_path(self) -> Path:
        return self.folder / "reference.parquet"

    @property
    def num_shards(self) -> int:
        """Number of parts."""
        return math.ceil(self.rows / self.rows_per_shard)

    def part(self, shard: int) -> Path:
        """The file of a part."""
        return self.folder / "generated" / f"part-{shard:05d}.parquet"

    def rows_of(self, shard: int) -> range:
        """The prompts of a part."""
        return range(shard * self.rows_per_shard, min((shard + 1) * self.rows_per_shard, self.rows))

    def missing(self) -> list[int]:
        """The parts that do not exist yet."""
        return [shard for shard in range(self.num_shards) if not self.part(shard).exists()]

    def write(self, shard: int, answers: Sequence[list[int]], ended: Sequence[bool]) -> None:
        """Write a part: token ids of its answers, and whether each ended by itself."""
        ids = pa.array(answers, pa.list_(pa.int32()))
        with atomic_path(self.part(shard)) as temporary:
            pq.write_table(pa.table({REJECTED: ids, "ended": pa.array(ended, pa.bool_())}), temporary)

    def read(self) -> Dataset:
        """All answers in the order of their prompts: `rejected_ids`, `ended`."""
        table = pa.concat_tables([pq.read_table(self.part(shard)) for shard in range(self.num_shards)])
        assert len(table) == self.rows, f"{len(table)} answers to {self.rows} prompts"
        return Dataset(InMemoryTable(table))

    def write_reference(self, values: np.ndarray) -> None:
        """Write log-probabilities under the reference, (n, 2): of the demonstration and the answer of each pair."""
        columns = {"ref_chosen_logps": values[:, 0], "ref_rejected_logps": values[:, 1]}
        with atomic_path(self._reference_path) as temporary:
            pq.write_table(pa.table(columns), temporary)

    def read_reference(self) -> Dataset | None:
        """`ref_chosen_logps` and `ref_rejected_logps` of each pair, or None if they were not written yet."""
        path = self._reference_path
        return Dataset(InMemoryTable(pq.read_table(path))) if path.exists() else None
