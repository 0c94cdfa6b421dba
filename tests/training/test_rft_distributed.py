"""RFT in two real processes: two stages to the end, and after a real kill in each phase of a stage."""

import json
from pathlib import Path

import pytest
from launching import EXPECTED, generated, launched, reported
from transformers import AutoModelForSequenceClassification


SCRIPT = Path(__file__).parents[1] / "support" / "rft_training.py"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(kind: str, folder: Path, base: str, where: str = "", **settings):
    return launched(kind, [str(SCRIPT), str(folder), base, where, json.dumps(settings)], folder)


def ranks(kind: str, folder: Path, base: str, **settings) -> list[dict]:
    done = run(kind, folder, base, **settings)
    assert done.returncode == 0, done.stderr[-3000:]
    return reported(folder)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, model_path) -> tuple[Path, dict]:
    """A run that nothing stopped."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, ranks("alone", folder, model_path)[0]


@pytest.mark.parametrize("kind", ["ddp", "zero2", "zero3"])
def test_two_processes_go_through_two_stages(kind, alone, tmp_path, model_path):
    if kind.startswith("zero"):
        pytest.importorskip("deepspeed")
    apart, one = alone
    found = ranks(kind, tmp_path, model_path)
    assert len(found) == 2 and all(rank["world"] == 2 and rank["steps"] == one["steps"] == 12 for rank in found)
    assert all(rank[key] == value for rank in found for key, value in EXPECTED[kind].items()), found[0]
    # What is drawn and learnt does not depend on the number of processes, nor on how the policy is cut.
    assert generated(tmp_path, 0) == generated(apart, 0)
    assert found[0]["learnt"][0] == pytest.approx(one["learnt"][0], abs=1e-3)
    assert found[0]["reward"] == found[1]["reward"], "each process has learnt another reward"
    assert found[0]["course"] == found[1]["course"]
    assert 0 < found[0]["gaps"][0] and len(found[0]["gaps"]) == 2
    ordinary = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "reward")
    assert sum(p.double().abs().sum().item() for p in ordinary.parameters()) == pytest.approx(found[0]["reward"])


def test_a_run_killed_in_each_phase_equals_an_uninterrupted_one(alone, tmp_path, model_path):
    apart, one = alone
    for where in ("generation", "reward", "training"):
        died = run("alone", tmp_path, model_path, where)
        assert died.returncode != 0 and not list(tmp_path.glob("rank-*.json")), f"it was to be killed in {where}"
        state = tmp_path / "run" / "_stages" / "stage-01" / "reward" / "state.json"
        assert state.exists() == (where != "generation")
        if where == "reward":
            assert json.loads(state.read_text())["done"] == 4
    (found,) = ranks("alone", tmp_path, model_path)
    assert found["begun_at"] == 8, "neither the first stage nor the first updates of the second are made again"
    assert generated(tmp_path, 1) == generated(apart, 1)
    # What the killed processes had logged came back with the checkpoint.
    assert [value for step in found["course"] for value in step] == pytest.approx(
        [value for step in one["course"] for value in step], rel=1e-4, abs=1e-6
    )
    assert found["learnt"] == pytest.approx(one["learnt"], abs=1e-6)
    assert found["reward"] == pytest.approx(one["reward"], rel=1e-9)
