"""Steps of the quickstart and the tiny recipes: make a pool and a model, and show what a selection contains."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_select.cli.command import Command


@dataclass
class DemoPool(Command):
    """Make a small pool with known damage and train a tiny causal LM that rates it.

    Args:
        output_dir: folder for pool.jsonl, answer_key.jsonl, held_out.jsonl (undamaged rows of other prompts) and
            model/.
        num_rows: rows of the pool.
        damaged_share: share of rows whose response is damaged.
        steps: training steps of the tiny LM.
        query_tasks: tasks; eight rows of each are written to queries_TASK.jsonl.
        encoder: also save the tiny LM with mean pooling as a sentence-transformers model (extra `embed`).
        answers: prompts that two stand-in generators answer in answers.jsonl; one of them damages most answers.
        seed: of pool and training.
    """

    output_dir: str
    num_rows: int = 400
    damaged_share: float = 0.3
    steps: int = 120
    query_tasks: list[str] | None = None
    encoder: bool = False
    answers: int = 0
    seed: int = 0

    example = "hf-select run quickstart"

    def run(self) -> None:
        """Write the files and train the model."""
        from hf_select import demo

        folder = Path(self.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        rows = demo.make_pool(self.num_rows, self.damaged_share, self.seed)
        key = [{"row_id": row["row_id"], "damage": row.pop("damage")} for row in rows]
        held_out = demo.make_held_out(40, rows, self.seed + 3000)
        files = {"pool.jsonl": rows, "answer_key.jsonl": key, "held_out.jsonl": held_out}
        for task in self.query_tasks or []:
            files[f"queries_{task}.jsonl"] = demo.make_queries(task, 8, self.seed + 2000)
        if self.answers:
            files["answers.jsonl"] = demo.make_answers(self.answers, {"good": 0.0, "poor": 0.8}, self.seed + 3000)
        for name, lines in files.items():
            _write_lines(folder / name, lines)
        # The model trains on other rows than the pool's, hence the distant seed.
        loss = demo.train_rater(folder / "model", num_examples=3000, steps=self.steps, seed=self.seed + 1000)
        if self.encoder:
            demo.save_encoder(folder / "model", folder / "encoder")
        print(
            f"      {self.num_rows} rows, {self.damaged_share:.0%} of them damaged; a tiny Llama trained from scratch "
            f"to rate (rating loss {loss['first']:.2f} -> {loss['last']:.2f} nats)"
        )


@dataclass
class DemoTeacher(Command):
    """Serve a scripted teacher behind an OpenAI-compatible address on this machine while the recipe runs.

    Args:
        port: of http://127.0.0.1.
        taxonomy: file for a taxonomy of three disciplines, for GLAN.
    """

    port: int
    taxonomy: str | None = None

    example = "hf-select run glan_tiny"

    @property
    def prints_only(self) -> bool:
        """The teacher answers only while this process runs."""
        return True

    def run(self) -> None:
        """Write the taxonomy and start the server."""
        from hf_select.demo import serve_teacher

        path = None if self.taxonomy is None else Path(self.taxonomy)
        if path is not None and not path.exists():  # keep one that was edited
            path.write_text("Sciences:\n  Physics: [Optics, Acoustics]\nArts: [Music]\n", encoding="utf-8")
        serve_teacher(self.port)
        print(f"      a scripted teacher answers at http://127.0.0.1:{self.port}/v1 with nonsense words")


@dataclass
class DemoSources(Command):
    """Make small stand-ins for the sources of a mixture: conversations, multiple-choice questions and sums.

    Args:
        output_dir: folder for wildchat.jsonl, mmlu.jsonl and algebra.jsonl.
        num_rows: rows of each.
        seed: of the rows.
    """

    output_dir: str
    num_rows: int = 300
    seed: int = 0

    example = "hf-select run rewild_tiny"

    def run(self) -> None:
        """Write the files."""
        from hf_select.demo import make_sources

        folder = Path(self.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in make_sources(self.num_rows, self.seed).items():
            _write_lines(folder / f"{name}.jsonl", rows)
        print(f"      3 sources of {self.num_rows} rows")


@dataclass
class DemoTable(Command):
    """Compare the rows that SelectIT selected with random rows and the longest rows, using the answer key.

    Args:
        scores: folder of the SelectIT run.
        answer_key: file that lists the damage of each row.
        fraction: share of the rows that is selected.
        num_draws: random selections that are averaged.
    """

    scores: str
    answer_key: str
    fraction: float = 0.2
    num_draws: int = 20

    example = "hf-select run quickstart"

    @property
    def prints_only(self) -> bool:
        """The table is for this terminal."""
        return True

    def run(self) -> None:
        """Print the table."""
        import numpy as np

        from hf_select.cli.table import print_table
        from hf_select.data.scores import read_scored
        from hf_select.demo import DAMAGES
        from hf_select.scoring.length import Length
        from hf_select.selection.baselines import Longest, Random
        from hf_select.selection.top_k import TopK

        dataset = read_scored(self.scores).map(Length(), batched=True)
        lines = Path(self.answer_key).read_text(encoding="utf-8").splitlines()
        key = {row["row_id"]: row["damage"] for row in map(json.loads, lines)}
        damage = np.array([key[row_id] for row_id in dataset["row_id"]])
        length = np.array(dataset["score_length"])

        def line(name: str, draws: list[Any]) -> list[str]:
            shares = [(damage[indices] != "").mean() for indices in draws]
            spread = f" ({min(shares):.0%} to {max(shares):.0%})" if len(draws) > 1 else ""
            kinds = [np.mean([(damage[indices] == kind).mean() for indices in draws]) for kind in DAMAGES]
            characters = np.mean([length[indices].mean() for indices in draws])
            return [name, f"{np.mean(shares):.0%}{spread}", *(f"{kind:.0%}" for kind in kinds), f"{characters:.0f}"]

        draws = [Random(seed)(dataset, fraction=self.fraction).indices for seed in range(self.num_draws)]
        print_table(
            ["", "damaged", *(kind.replace("_", " ") for kind in DAMAGES), "characters"],
            [
                line("whole pool", [np.arange(len(dataset))]),
                line(f"random, {self.num_draws} draws", draws),
                line("longest", [Longest()(dataset, fraction=self.fraction).indices]),
                line("SelectIT", [TopK("score_selectit")(dataset, fraction=self.fraction).indices]),
            ],
            title=(
                f"What a selection of {self.fraction:.0%} contains "
                "(share of its rows; the scorer never saw the answer key)"
            ),
        )
        print(
            "\nThis is a demonstration. The tiny model was taught to rate on other rows of the same generator, "
            "which flatters SelectIT,\n"
            "and one pool proves nothing. 'Damaged' is not the same as 'bad to train on': that only training shows."
        )


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
