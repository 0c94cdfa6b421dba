"""Steps of the quickstart and the tiny recipes: make pools and models, and show what selections contain."""

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

    example = "hf-select run selectit_tiny"

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
class QuickstartData(Command):
    """Make the pool of the quickstart, examples of its target, held-out rows of the target and a tiny causal LM.

    Args:
        output_dir: folder for pool.jsonl, answer_key.jsonl, target.jsonl, held_out.jsonl and model/.
        num_rows: rows of the pool.
        num_examples: rows of the target that the scorers see.
        num_held_out: other rows of the target, to measure on.
        steps: training steps of the tiny LM.
        seed: of rows and training.
    """

    output_dir: str
    num_rows: int = 1000
    num_examples: int = 24
    num_held_out: int = 80
    steps: int = 50
    seed: int = 0

    modules = ("sklearn", "datasketch")  # of the steps that follow
    example = "hf-select run quickstart"

    def run(self) -> None:
        """Write the files and train the model."""
        import torch

        from hf_select import quickstart

        # For the steps that follow too: a model of this size gains little from more threads, and where other programs
        # use the cores, waiting for each other makes them many times slower.
        torch.set_num_threads(1)
        folder = Path(self.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        pool, key = quickstart.make_pool(self.num_rows, seed=self.seed)
        target, held_out = quickstart.make_target(self.num_examples, self.num_held_out, self.seed + 2000)
        files = {"pool": pool, "answer_key": key, "target": target, "held_out": held_out}
        for name, rows in files.items():
            _write_lines(folder / f"{name}.jsonl", rows)
        # The model trains on other rows than the pool's, hence the distant seed.
        loss = quickstart.train_model(folder / "model", self.steps, self.seed + 1000)
        damaged, copies = (sum(row[name] != "" for row in key) for name in ("damage", "copy"))
        print(
            f"A pool of {len(pool):,} rows from {len(quickstart.SOURCES)} sources: {damaged} rows are damaged, "
            f"{copies} repeat another.\n"
            f"A target, arithmetic about a farm: {len(target)} examples and {len(held_out)} other rows to measure.\n"
            "The pool has no row of the target.\n"
            "A tiny Llama, trained on undamaged text of the same sources "
            f"(loss {loss['first']:.2f} -> {loss['last']:.2f} nats)."
        )
        print("For example, the target: " + target[0]["prompt"])
        for source in quickstart.SOURCES:
            print(f"  {source}: " + next(row["prompt"] for row in pool if row["source"] == source))


@dataclass
class QuickstartTable(Command):
    """Show which sources the rows of several selections come from, and how many are damaged by the answer key.

    Args:
        scores: name=folder of hf-select score for the same rows; the highest are selected, with name=folder:middle
            those below the top third.
        lengths: folder of the scores of `length`, whose tokens are the budget.
        answer_key: file with the damage of each row.
        tokens: budget of a selection.
    """

    scores: dict[str, str]
    lengths: str
    answer_key: str
    tokens: int

    example = "hf-select run quickstart"

    @property
    def prints_only(self) -> bool:
        """The table is for this terminal."""
        return True

    def run(self) -> None:
        """Print the table."""
        import numpy as np

        from hf_select.cli.table import print_table
        from hf_select.data.loading import read_scores
        from hf_select.quickstart import SOURCES
        from hf_select.selection.baselines import Random
        from hf_select.selection.top_k import TopK

        lines = Path(self.answer_key).read_text(encoding="utf-8").splitlines()
        damaged = {row["row_id"]: row["damage"] != "" for row in map(json.loads, lines)}
        dataset = read_scores(self.lengths, "train")
        chosen = {"pool": np.arange(len(dataset)), "random rows": Random(0)(dataset, tokens=self.tokens).indices}
        for name, value in self.scores.items():
            folder, middle = value.removesuffix(":middle"), value.endswith(":middle")
            selector = TopK(f"score_{name}", which="middle" if middle else "best")
            chosen[name] = selector(read_scores([self.lengths, folder], "train"), tokens=self.tokens).indices
        rows = []
        for name, indices in chosen.items():
            sources = [dataset[int(i)]["source"] for i in indices]
            shares = [sources.count(source) / len(sources) for source in SOURCES]
            broken = np.mean([damaged[dataset[int(i)]["row_id"]] for i in indices])
            rows.append([name, f"{len(indices):,}", *(f"{share:.0%}" for share in (*shares, broken))])
        title = f"Where the rows come from, at {self.tokens:,} tokens (the scorers see neither source nor damage)"
        print_table(["", "rows", *SOURCES, "damaged"], rows, title)


@dataclass
class QuickstartNext(Command):
    """Say how to repeat the quickstart with other rows."""

    example = "hf-select run quickstart"

    @property
    def prints_only(self) -> bool:
        """The text is for this terminal."""
        return True

    def run(self) -> str:
        """Return the commands."""
        return """the same with your own rows, examples of your target, and other rows of it that are held out:
  hf-select select --scores POOL.jsonl --selector dedup --output distinct.jsonl
  hf-select score --scorer rds --model MODEL --dataset distinct.jsonl --queries target=EXAMPLES.jsonl --output-dir rds
  hf-select select --scores rds --selector top_k --column score_rds --fraction 0.05 --output subset.jsonl
  hf-select compare --model MODEL --dataset distinct.jsonl --methods rds=rds --held-out target=HELD_OUT.jsonl \\
    --budgets ROWS --seeds 5 --output-dir comparison"""


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
