"""Differences over seeds and items: what is planted is found, what is not there is not."""

import numpy as np
import pytest

from hf_select.evaluation.statistics import differences, holm, standard_error


def results(rng, effect=0.0, seeds=5, items=60, of_seed=0.3, of_item=1.0, noise=0.5):
    """(method, baseline): items differ in difficulty, runs in luck, and methods by the effect."""
    difficulty = rng.normal(0, of_item, items)

    def runs(shift):
        return difficulty + shift + rng.normal(0, of_seed, (seeds, 1)) + rng.normal(0, noise, (seeds, items))

    return runs(effect), runs(0.0)


def test_false_alarms_stay_near_the_nominal_rate_and_planted_effects_are_found():
    rng = np.random.default_rng(0)
    alarms = inside = 0
    for repeat in range(400):
        method, baseline = results(rng)
        found = differences({"m": method}, baseline, seed=repeat)["m"]
        alarms += found.p <= 0.05
        inside += found.low <= 0 <= found.high
    assert 0.02 <= alarms / 400 <= 0.08 and inside == 400 - alarms
    planted = [differences({"m": m}, b)["m"] for m, b in (results(rng, effect=-1.0) for _ in range(100))]
    assert sum(d.p <= 0.05 and d.mean < 0 for d in planted) >= 90


def test_the_smallest_difference_that_could_be_seen_is_seen_in_four_of_five():
    rng = np.random.default_rng(1)
    each = [differences({"m": m}, b)["m"].detectable for m, b in (results(rng) for _ in range(100))]
    typical = np.mean(np.square(each)) ** 0.5  # as the error's square has no bias
    seen = [differences({"m": m}, b)["m"].p <= 0.05 for m, b in (results(rng, effect=typical) for _ in range(300))]
    assert 0.7 <= np.mean(seen) <= 0.92


def test_by_hand():
    baseline = np.zeros((3, 1))
    found = differences({"m": np.array([[-1.0], [-2.0], [-3.0]])}, baseline)["m"]
    assert found.mean == -2 and (found.wins, found.losses, found.seeds, found.items) == (3, 0, 3, 1)
    # Three differences of spread 1: standard error 1 / sqrt(3), t of two degrees of freedom 4.303.
    assert found.high - found.low == pytest.approx(2 * 4.303 / 3**0.5, rel=0.05)
    assert found.p == pytest.approx(0.0742, abs=0.01)  # t = 3.464
    even = differences({"m": baseline}, baseline)["m"]
    assert even.p == 1 and "no evidence" in even.verdict()


def test_items_count_as_a_sample_too():
    """One item that is far off is a property of the item, not of the method."""
    rng = np.random.default_rng(2)
    d = np.zeros((4, 5))
    d[:, 0] = 10
    assert standard_error(d, rng) == pytest.approx(10 * np.sqrt(4 / 25 / 5) * np.sqrt(4 / 3), rel=0.1)
    assert standard_error(np.ones((4, 5)), rng) == pytest.approx(0, abs=1e-9)


def test_holm():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == pytest.approx({"a": 1.0, "b": 1.0})


def test_verdicts_and_errors():
    rng = np.random.default_rng(3)
    method, baseline = results(rng, effect=-3.0)
    assert differences({"m": method}, baseline)["m"].verdict().startswith("better than the baseline by")
    assert differences({"m": method}, baseline)["m"].verdict(lower_is_better=False).startswith("worse")
    with pytest.raises(ValueError, match="give at least two"):
        differences({"m": method[:1]}, baseline[:1])
    with pytest.raises(ValueError, match="seeds x items"):
        differences({"m": method[:, :3]}, baseline)
    with pytest.raises(ValueError, match="no number"):
        differences({"m": method * np.nan}, baseline)
