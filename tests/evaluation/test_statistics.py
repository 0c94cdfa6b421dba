"""Differences over seeds and items: what is planted is found, what is not there is not."""

import numpy as np
import pytest
from scipy.stats import nct
from scipy.stats import t as student

from hf_select.evaluation.statistics import _detectable, differences, holm, standard_errors


# Spread of runs, of what the method does to single items, and of both together.
LUCK_OF_RUNS = {"of_seed": 0.3, "of_item": 0.0, "noise": 0.5}
ITEMS_DIFFER = {"of_seed": 0.0, "of_item": 0.5, "noise": 0.5}
BOTH = {"of_seed": 0.1, "of_item": 0.8, "noise": 0.3}


def results(rng, effect=0.0, seeds=5, items=60, of_seed=0.3, of_item=0.0, noise=0.5):
    """(method, baseline): items differ in difficulty and in what the method does to them, runs in luck."""
    difficulty = rng.normal(0, 1.0, items)
    helped = effect + rng.normal(0, of_item, items)

    def runs(shift):
        return difficulty + shift + rng.normal(0, of_seed, (seeds, 1)) + rng.normal(0, noise, (seeds, items))

    return runs(helped), runs(0.0)


@pytest.mark.parametrize("spread", [LUCK_OF_RUNS, ITEMS_DIFFER, BOTH])
@pytest.mark.parametrize("seeds, low", [(2, 0.0), (3, 0.015), (5, 0.025)])
def test_false_alarms_stay_near_the_nominal_rate(spread, seeds, low):
    """Two or three seeds hold the rate by finding less, and five come to it from both sides."""
    rng = np.random.default_rng(0)
    alarms = inside = 0
    for _ in range(600):
        method, baseline = results(rng, seeds=seeds, **spread)
        found = differences({"m": method}, baseline)["m"]
        alarms += found.p <= 0.05
        inside += found.low <= 0 <= found.high
    assert low <= alarms / 600 <= 0.075 and inside == 600 - alarms


@pytest.mark.parametrize("spread", [LUCK_OF_RUNS, ITEMS_DIFFER, BOTH])
def test_planted_effects_are_found_as_often_as_promised(spread):
    """Three true standard errors are found in about 4 of 5, or fewer where five runs are all that is known of luck."""
    rng = np.random.default_rng(1)
    of_seed, of_item, noise = spread.values()
    error = (2 * of_seed**2 / 5 + of_item**2 / 60 + 2 * noise**2 / 300) ** 0.5
    found = [differences({"m": m}, b)["m"] for m, b in (results(rng, -3 * error, **spread) for _ in range(300))]
    seen = np.mean([d.p <= 0.05 and d.mean < 0 for d in found])
    assert seen >= (0.55 if of_item == 0 else 0.75)
    large = [differences({"m": m}, b)["m"] for m, b in (results(rng, effect=-1.0, **spread) for _ in range(100))]
    assert sum(d.p <= 0.05 and d.mean < 0 for d in large) >= 90


@pytest.mark.parametrize("spread", [LUCK_OF_RUNS, ITEMS_DIFFER, BOTH])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_smallest_difference_that_could_be_seen_is_seen_in_four_of_five(spread, seeds):
    """Of the mean squares of many studies, since those of one are as uncertain as its seeds are few."""
    rng = np.random.default_rng(1)
    each = np.array([standard_errors(np.subtract(*results(rng, seeds=seeds, **spread))) for _ in range(300)])
    typical = [((each[:, test, 0] ** 2).mean() ** 0.5, float(np.median(each[:, test, 1]))) for test in (0, 1)]
    shift = _detectable(typical, 0.025)
    studies = (results(rng, effect=shift, seeds=seeds, **spread) for _ in range(400))
    seen = np.mean([differences({"m": m}, b)["m"].p <= 0.05 for m, b in studies])
    # 0.69 to 0.77 where both tests matter and each was made to have this power alone; noise of 400 studies is 0.02.
    assert 0.76 <= seen <= 0.94


@pytest.mark.parametrize("degrees", [1, 2, 4, 20.5])
def test_of_a_single_test_the_power_is_that_of_the_noncentral_t(degrees):
    for methods in (1, 5):
        tail = 0.025 / methods
        shift = _detectable([(2.0, degrees)], tail)
        assert nct.sf(student.isf(tail, degrees), degrees, shift / 2) == pytest.approx(0.8, abs=1e-3)


def test_equal_differences_say_nothing_of_their_spread():
    """Two seeds and one item that agree are no proof: t has no error to divide by, and the sign test is left."""
    for shape, p in (((2, 1), 0.5), ((2, 50), 0.5), ((6, 1), 1 / 32), ((6, 3), 0.25), ((6, 50), 1 / 32)):
        baseline = np.random.default_rng(0).normal(size=shape)
        found = differences({"m": baseline - 0.1}, baseline)["m"]  # equal up to rounding
        assert found.p == p and found.detectable == 0 and found.mean == pytest.approx(-0.1)
        assert found.outcome() == ("better" if p < 0.05 else "no evidence")
        if p > 0.05:
            assert found.verdict().endswith("(it is -0.1 throughout, so its spread is not known)")
    assert differences({"m": baseline + 1e-17}, baseline)["m"].verdict().endswith("(all results are equal)")


def test_of_several_methods_only_larger_differences_can_be_seen():
    rng = np.random.default_rng(4)
    method, baseline = results(rng)
    alone = differences({"m": method}, baseline)["m"]
    among = differences({name: method for name in "mnopq"}, baseline)["m"]
    assert among.detectable > 1.2 * alone.detectable and among.low == alone.low


def test_by_hand():
    baseline = np.zeros((3, 1))
    found = differences({"m": np.array([[-1.0], [-2.0], [-3.0]])}, baseline)["m"]
    assert found.mean == -2 and (found.wins, found.losses, found.seeds, found.items) == (3, 0, 3, 1)
    # Three differences of spread 1: standard error 1 / sqrt(3), t of two degrees of freedom 4.303.
    assert found.high - found.low == pytest.approx(2 * 4.3027 / 3**0.5, rel=1e-4)
    assert found.p == pytest.approx(0.0742, abs=1e-4)  # t = 3.464
    even = differences({"m": baseline}, baseline)["m"]
    assert even.p == 1 and "no evidence" in even.verdict()


def test_items_count_as_a_sample_too():
    """One item that is far off is a property of the item, not of the method."""
    d = np.zeros((4, 5))
    d[:, 0] = 10
    # The items' means are 10, 0, 0, 0, 0: a standard deviation of sqrt(20), of the mean of five sqrt(20 / 5).
    assert standard_errors(d) == [(0.0, 3.0), (pytest.approx(2.0), pytest.approx(4.0))]
    assert standard_errors(d.T) == [(pytest.approx(2.0), 4.0), (pytest.approx(2.0), pytest.approx(4.0))]
    assert [error for error, _ in standard_errors(np.ones((4, 5)))] == [0, 0]


def test_mean_squares_by_hand():
    """2 x 2: the mean 3; seeds' means 2 and 4, items' 2.5 and 3.5; left are 0.5 and -0.5."""
    d = np.array([[2.0, 2.0], [3.0, 5.0]])
    ms_seeds, ms_items, ms_rest = 2 * (1 + 1), 2 * (0.25 + 0.25), 4 * 0.25
    both = ms_seeds + ms_items - ms_rest
    degrees = both**2 / (ms_seeds**2 + ms_items**2 + ms_rest**2)
    assert standard_errors(d) == [(pytest.approx((4 / 4) ** 0.5), 1.0), (pytest.approx(1.0), max(1.0, degrees))]


def test_holm():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == pytest.approx({"a": 1.0, "b": 1.0})


def test_verdicts_and_errors():
    rng = np.random.default_rng(3)
    method, baseline = results(rng, effect=-3.0)
    assert differences({"m": method}, baseline)["m"].verdict().startswith("better than the baseline by")
    assert differences({"m": method}, baseline)["m"].verdict(lower_is_better=False).startswith("worse")
    # No answer is right, of nobody: that says nothing of what would have been found.
    assert differences({"m": 0 * method}, 0 * method)["m"].verdict().endswith("(all results are equal)")
    assert "would be found in 4 of 5" in differences({"m": method[::-1]}, method)["m"].verdict()
    with pytest.raises(ValueError, match="give at least two"):
        differences({"m": method[:1]}, baseline[:1])
    with pytest.raises(ValueError, match="seeds x items"):
        differences({"m": method[:, :3]}, baseline)
    with pytest.raises(ValueError, match="not numbers"):
        differences({"m": method * np.nan}, baseline)
