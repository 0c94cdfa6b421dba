"""IRFT in two real processes: two stages to the end with answers of different lengths, and after real kills."""

import json
import math
from pathlib import Path

import pytest
from launching import EXPECTED, generated, launched, reported


SCRIPT = Path(__file__).parents[1] / "support" / "irft_training.py"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(kind: str, folder: Path, base: str, where: str = "", **settings):
    words = [str(SCRIPT), kind, str(folder), base, where, json.dumps(settings)]
    return launched(kind, words, folder, PYTHONFAULTHANDLER="1")


def ranks(kind: str, folder: Path, base: str, **settings) -> list[dict]:
    done = run(kind, folder, base, **settings)
    assert done.returncode == 0, done.stderr[-3000:]
    return reported(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model_path):
    """Uninterrupted runs, each done once: folder, and what its processes saw."""
    runs = {}

    def of(kind: str) -> tuple[Path, list[dict]]:
        if kind not in runs:
            folder = tmp_path_factory.mktemp(kind)
            runs[kind] = folder, ranks(kind, folder, model_path)
        return runs[kind]

    return of


@pytest.mark.parametrize("kind", EXPECTED)
def test_two_processes_go_through_two_stages(kind, whole):
    if kind.startswith("zero"):
        pytest.importorskip("deepspeed")
    folder, found = whole(kind)
    apart, (alone,) = whole("alone")
    assert len(found) == 2 and all(rank["world"] == 2 and rank["steps"] == 6 for rank in found)
    assert all(rank[key] == value for rank in found for key, value in EXPECTED[kind].items()), found[0]
    assert found[0]["losses"] == found[1]["losses"]
    assert found[0]["losses"][0] == pytest.approx(math.log(2), abs=1e-4)
    assert found[0]["losses"][3] == pytest.approx(math.log(2), abs=1e-4)
    assert len({len(ids) for ids in generated(folder, 0)}) > 3, "answers of one length do not try who waits for whom"
    # Neither the number of processes nor how the weights are cut changes what is drawn or learnt.
    assert generated(folder, 0) == generated(apart, 0)
    assert found[0]["losses"][:3] == pytest.approx(alone["losses"][:3], abs=2e-4)
    if generated(folder, 1) == generated(apart, 1):  # sums in another order may turn a rare draw
        assert found[0]["losses"] == pytest.approx(alone["losses"], abs=2e-3)


@pytest.mark.parametrize(
    "kind, kills, settings",
    [
        ("alone", ("generation", "reference", "training"), {}),
        # Here each token of an answer is made by both processes together, so one that dies leaves the other waiting.
        ("zero3", ("generation", "training"), {"ds3_gather_for_generation": False}),
    ],
)
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(kind, kills, settings, whole, tmp_path, model_path):
    if kind.startswith("zero"):
        pytest.importorskip("deepspeed")
    apart, uninterrupted = whole(kind)
    kept: dict[Path, int] = {}
    for where in kills:
        died = run(kind, tmp_path, model_path, where, **settings)
        assert died.returncode != 0 and not list(tmp_path.glob("rank-*.json")), f"it was to be killed in {where}"
        assert all(path.stat().st_mtime_ns == time for path, time in kept.items()), "parts that are there are kept"
        parts = (tmp_path / "run" / "_stages").rglob("part-*.parquet")
        kept = {path: path.stat().st_mtime_ns for path in parts}
        assert len(kept) < 12 if where == "generation" else len(kept) == 12
    found = ranks(kind, tmp_path, model_path, **settings)
    assert found[0]["begun_at"] == 4, "neither the first stage nor the first step of the second is trained again"
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    for stage in (0, 1):
        assert generated(tmp_path, stage) == generated(apart, stage)
    assert found[0]["losses"] == pytest.approx(uninterrupted[0]["losses"], abs=1e-6)
    assert found[0]["margins"] == pytest.approx(uninterrupted[0]["margins"], abs=1e-5)
