"""The regression is what it says, grids and draws are weights, and a planted good source is found."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset
from test_compare import ground, rows_of  # noqa: F401

from hf_select import Source
from hf_select.cli.main import main
from hf_select.evaluation.mixture_regression import Regression, draw_weights, grid_weights
from hf_select.evaluation.mixture_search import compare_best, search_mixture
from hf_select.evaluation.statistics import differences, holm


def test_a_grid_is_every_share_in_steps():
    grid = grid_weights(3, 4)
    assert len(grid) == math.comb(6, 2) == len({tuple(row) for row in grid})
    np.testing.assert_allclose(grid.sum(axis=1), 1)
    assert np.isin(grid * 4, np.arange(5)).all() and (grid == np.eye(3)[0]).all(axis=1).any()


def test_draws_are_shares_around_the_sizes():
    draws = draw_weights([8, 1, 1], 4000, np.random.default_rng(0))
    np.testing.assert_allclose(draws.sum(axis=1), 1)
    np.testing.assert_allclose(draws.mean(axis=0), [0.8, 0.1, 0.1], atol=0.02)
    assert draws.max() > 0.99 and draws.min() >= 0


def test_the_regression_is_least_squares_and_its_left_out_runs_are_left_out():
    rng = np.random.default_rng(0)
    weights = draw_weights([1, 1, 1], 14, rng)
    results = weights @ [3.0, 2.0, 1.0] + 0.5 * weights[:, 0] * weights[:, 1] + 0.02 * rng.normal(size=14)
    fitted = Regression.fit(weights, results)
    for degree in (1, 2):
        one = Regression._of_degree(weights, results, degree)
        assert one is not None
        for i in range(14):
            rest = np.arange(14) != i
            other = Regression._of_degree(weights[rest], results[rest], degree)
            assert other is not None
            assert one.left_out[i] == pytest.approx(other(weights[i : i + 1])[0], abs=1e-9)
        mean_left_out = np.array([results[np.arange(14) != i].mean() for i in range(14)])
        expected = 1 - ((results - one.left_out) ** 2).sum() / ((results - mean_left_out) ** 2).sum()
        assert one.skill == pytest.approx(expected)
        assert one.skill <= fitted.skill
    exact = Regression.fit(weights, weights @ [3.0, 2.0, 1.0])
    np.testing.assert_allclose(exact.coefficients[:3], [3, 2, 1], atol=1e-6)
    noise = [Regression.fit(weights, np.random.default_rng(s).normal(size=14)).skill for s in range(20)]
    assert np.median(noise) < 0.1, "noise is predicted"
    with pytest.raises(ValueError, match="3 runs cannot tell 3 sources apart"):
        Regression.fit(weights[:3], results[:3])


def test_arms_that_differ_in_nothing_give_a_false_verdict_in_one_of_twenty_searches():
    """In one of eleven before both arms were corrected for together."""
    rng, searches, alarms, alone = np.random.default_rng(3), 500, 0, 0
    for _ in range(searches):
        difficulty = rng.normal(size=40)
        arms = {arm: difficulty + 0.5 * rng.normal(size=(5, 40)) for arm in ("best", "proportions", "equal shares")}
        against = compare_best(arms)
        assert {arm: d.p_holm for arm, d in against.items()} == holm({arm: d.p for arm, d in against.items()})
        alarms += any(d.outcome() != "no evidence" for d in against.values())
        alone += any(d.p <= 0.05 for d in against.values())
    assert alarms < alone and alarms / searches <= 0.065
    single = differences({"best": arms["best"]}, arms["equal shares"])["best"]
    assert against["equal shares"].detectable > single.detectable


@pytest.fixture(scope="module")
def searched(ground, tmp_path_factory):  # noqa: F811
    """Sources of right sums and of noise; what is measured are right sums."""
    _, held_out, recipe = ground
    folder = tmp_path_factory.mktemp("search")
    names = {"good": ("good", 11), "noise": ("bad", 12), "more_noise": ("bad", 13)}
    for name, (kind, seed) in names.items():
        Dataset.from_list(rows_of(kind, 30, seed)).to_json(folder / f"{name}.jsonl")
    sources = {name: Source(str(folder / f"{name}.jsonl")) for name in names}
    return folder, sources, recipe, held_out, {"rows": 24, "runs": 8, "passes": 6.0, "seeds": 2}


@pytest.mark.slow
def test_a_planted_source_is_found_and_a_killed_search_resumes(searched):
    folder, sources, recipe, held_out, settings = searched
    result = search_mixture(sources, {"sums": held_out}, recipe, folder / "o", **settings)
    assert result.weights["good"] > 0.9 and sum(result.weights.values()) == pytest.approx(1)
    assert result.regression.skill > 0.3 and len(result.runs) == 8
    assert result.confirmed["best"] < result.confirmed["equal shares"]
    assert result.cost.tokens > 0 and result.cost.flops > 0
    runs = {path: path.stat().st_mtime_ns for path in (folder / "o" / "runs").iterdir()}
    lost = folder / "o" / "runs" / "draw-003.json"
    lost.unlink()
    again = search_mixture(sources, {"sums": held_out}, recipe, folder / "o", **settings)
    assert replace(again, cost=result.cost) == result
    assert all(path.stat().st_mtime_ns == when for path, when in runs.items() if path != lost)
    with pytest.raises(ValueError, match=r"another run .*rows"):
        search_mixture(sources, {"sums": held_out}, recipe, folder / "o", **{**settings, "rows": 20})


def test_bad_input_of_a_search(searched, capsys):
    folder, sources, recipe, held_out, settings = searched
    sums = {"sums": held_out}
    with pytest.raises(ValueError, match="at least two"):
        search_mixture({"good": sources["good"]}, sums, recipe, folder / "x", **settings)
    with pytest.raises(ValueError, match='source "good" has 30 rows, and a mixture of it alone needs 99'):
        search_mixture(sources, sums, recipe, folder / "x", **{**settings, "rows": 99})
    with pytest.raises(ValueError, match="3 runs cannot tell 3 sources apart"):
        search_mixture(sources, sums, recipe, folder / "x", **{**settings, "runs": 3})
    with pytest.raises(ValueError, match="nothing to measure on"):
        search_mixture(sources, {}, recipe, folder / "x", **settings)
    with pytest.raises(ValueError, match='draws is "sobol"'):
        search_mixture(sources, sums, recipe, folder / "x", **settings, draws="sobol")  # type: ignore[arg-type]
    assert not (folder / "x").exists()
    command = ["search-mixture", "--model", recipe.model, "--rows", "8", "--output-dir", str(folder / "x")]
    command += ["--sources", f"good={folder}/good.jsonl", "gone=gone.jsonl", "--held-out", f"sums={folder}/good.jsonl"]
    assert main(command) == 2 and 'source "gone"' in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_searches(searched, capsys, tmp_path):
    folder, _, recipe, _, _ = searched
    command = ["search-mixture", "--model", recipe.model, "--rows", "8", "--runs", "3", "--draws", "grid"]
    command += ["--sources", f"good={folder}/good.jsonl", f"noise={folder}/noise.jsonl", "--seeds", "2"]
    command += ["--held-out", f"sums={folder}/good.jsonl", "--rows-per-step", "4", "--output-dir", str(tmp_path / "o")]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "best minus proportions" in out and "Next: hf-select mix" in out and "FLOPs" in out
    assert len(json.loads((tmp_path / "o" / "result.json").read_text())["runs"]) == 3
