"""Two real processes on a CPU: one selection made from all scores, rows trained are rows selected, exact resume."""

import json
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from launching import EXPECTED, launched
from releases import needs_fsdp2, needs_optimizer_on_cpus


SCRIPT = Path(__file__).parents[1] / "support" / "distributed_training.py"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def start(kind: str, folder: Path, score: str = "loss", resume: str = "") -> subprocess.CompletedProcess:
    words = [str(SCRIPT), kind, str(folder), score, *([resume] if resume else [])]
    return launched(kind, words, folder)


def launch(kind: str, folder: Path, score: str = "loss", resume: str = "") -> list[dict]:
    found = start(kind, folder, score, resume)
    needs_optimizer_on_cpus(found.stderr)
    assert found.returncode == 0, found.stderr[-3000:]
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]


def chosen(folder: Path) -> list[set[int]]:
    tables = [pq.read_table(path).to_pydict() for path in sorted(folder.glob("run/_data_selection/round-*.parquet"))]
    return [{row for row, place in zip(t["row"], t["place"], strict=True) if place is not None} for t in tables]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    launch("alone", folder)
    return folder


@pytest.mark.parametrize("kind", EXPECTED)
def test_all_processes_train_on_one_selection(kind, alone, tmp_path):
    if kind.startswith("zero"):
        pytest.importorskip("deepspeed")
    if kind == "fsdp2":
        needs_fsdp2()
    ranks = launch(kind, tmp_path / kind)
    assert len(ranks) == 2 and all(rank["world"] == 2 for rank in ranks)
    assert all(rank[name] == value for rank in ranks for name, value in EXPECTED[kind].items()), ranks[0]
    assert ranks[0]["selected"] == ranks[1]["selected"] and ranks[0]["steps"] == 6
    assert [rank["scored"] for rank in ranks] == [72, 72], "each process scores its half of 48 rows, three times"
    seen = [[row for batch in rank["seen"] for row in batch] for rank in ranks]
    sets = chosen(tmp_path / kind)
    assert len(sets) == 3
    for number, of_round in enumerate(sets):
        halves = [rows[16 * number : 16 * (number + 1)] for rows in seen]
        assert sorted(halves[0] + halves[1]) == sorted(of_round)
    assert sets == chosen(alone), "two processes choose otherwise than one"


def test_gradients_are_measured_where_the_model_is_whole(tmp_path):
    pytest.importorskip("deepspeed")
    launch("alone", tmp_path / "alone", "gradients")
    for kind in ("ddp", "zero2"):
        ranks = launch(kind, tmp_path / kind, "gradients")
        assert all(rank["distributed"] == EXPECTED[kind]["distributed"] and rank["steps"] == 6 for rank in ranks)
        assert chosen(tmp_path / kind) == chosen(tmp_path / "alone")
    refused = start("zero3", tmp_path / "zero3", "gradients")
    assert refused.returncode != 0 and "GradientSimilarity reads the model's layers directly" in refused.stderr


@pytest.mark.parametrize("kind", ["ddp", "zero2", "zero3"])
@pytest.mark.parametrize("stop", [3, 4])
def test_a_run_that_was_stopped_goes_on_with_its_rows(kind, stop, tmp_path):
    if kind.startswith("zero"):
        pytest.importorskip("deepspeed")
    whole = launch(kind, tmp_path / kind)
    sets = chosen(tmp_path / kind)
    again = launch(kind, tmp_path / kind, resume=str(tmp_path / kind / "run" / f"checkpoint-{stop}"))
    assert chosen(tmp_path / kind) == sets
    for before, after in zip(whole, again, strict=True):
        assert after["selected"] == before["selected"]
        left = len(before["seen"]) * (6 - stop) // 6
        assert after["seen"][-left:] == before["seen"][-left:]
        assert after["losses"] == pytest.approx(before["losses"], rel=1e-5)
