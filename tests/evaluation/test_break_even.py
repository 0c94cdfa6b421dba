"""What selecting cost and when it has paid, against values worked by hand."""

import json
import math
from dataclasses import replace

import pytest
from made_comparisons import RUN, made

from hf_select.evaluation.break_even import add_costs, flops_to_match, result_at, uses_to_pay


CURVE = [(100.0, 3.0), (1000.0, 2.0), (10000.0, 1.5)]


@pytest.mark.parametrize("lower", [True, False])
def test_what_random_rows_need_is_read_off_straight_lines_over_log_flops(lower):
    sign = 1 if lower else -1
    curve = [(flops, sign * mean) for flops, mean in CURVE]
    for value, expected in [
        (2.5, (math.sqrt(100 * 1000),) * 2),  # half way down is half way in the logarithm
        (2.0, (1000.0, 1000.0)),
        (1.6, (1000 * 10**0.8,) * 2),
        (3.5, (0.0, 100.0)),  # less than was measured
        (1.4, (10000.0, math.inf)),  # more than was measured: nothing is read beyond the last budget
    ]:
        assert flops_to_match(curve, sign * value, lower) == pytest.approx(expected), value
    assert flops_to_match(curve, sign * 2.5, lower, untrained=sign * 2.4) == (0.0, 0.0), "as good without training"
    assert result_at(curve, math.sqrt(1e5)) == pytest.approx(sign * 2.5)
    assert result_at(curve, 10000.0) == sign * 1.5 and result_at(curve, 100.0) == sign * 3.0
    assert result_at(curve, 10001.0) is None and result_at(curve, 99.0) is None


def test_a_curve_that_turns_back_is_met_where_it_is_first_good_enough():
    assert flops_to_match([(100.0, 2.0), (1000.0, 3.0), (10000.0, 1.0)], 2.0, True) == (0.0, 100.0)
    assert flops_to_match([(100.0, 2.5), (1000.0, 2.0), (10000.0, 2.2)], 2.1, True)[1] < 1000


def test_scores_have_paid_when_their_cost_has_been_saved():
    assert uses_to_pay(30.0, (10.0, 10.0)) == (3.0, 3.0)
    assert uses_to_pay(30.0, (-5.0, -1.0)) == uses_to_pay(30.0, (0.0, 0.0)) == (math.inf, math.inf)
    assert uses_to_pay(30.0, (10.0, math.inf)) == (0.0, 3.0)
    assert uses_to_pay(30.0, (-10.0, math.inf)) == (0.0, math.inf)


def test_every_case_of_the_break_even_has_its_words():
    # Random rows gain 0.1 a doubling: "good" is as good as random rows of twice the budget, which saves a run each.
    result = add_costs(made(shifts={"good": 0.1, "little": 0.03, "nothing": 0.0, "bad": -0.1}, scores_flops=5 * RUN))
    json.dumps(result.to_dict(), allow_nan=False)
    lines = {budget: of["math"] for budget, of in result.budgets.items()}

    def paid(budget, name):
        return lines[f"{budget} rows"][name].costs.break_even

    good = paid(1000, "good")
    assert good.kind == "uses" and good.uses == pytest.approx(5, rel=0.02)
    assert good.message in ("after 5 uses", "after 6 uses")
    assert good.interval[0] < good.uses < good.interval[1]
    # 0.03 is 0.3 of a doubling: 2 ** 0.3 - 1 of a run is saved.
    assert paid(1000, "little").uses == pytest.approx(5 / (2**0.3 - 1), rel=0.05)
    assert paid(4000, "good").kind == "unknown" and paid(4000, "good").uses is None
    assert paid(4000, "good").message.startswith("no number: random rows would have to train more than measured")
    # Half a row less than random rows is no saving, and no bound.
    results = result.budgets["4000 rows"]["math"]
    runs = replace(results["good"].runs, training_flops=0.999 * results["good"].runs.training_flops)
    results["good"] = replace(results["good"], runs=runs)
    again = add_costs(result).budgets["4000 rows"]["math"]["good"].costs
    assert again.break_even.kind == "unknown" and again.saved[0] == 0
    assert paid(1000, "nothing").message == "no number: no evidence of a difference to random rows"
    assert paid(1000, "nothing").uses is None and paid(1000, "nothing").interval is None
    assert paid(1000, "bad").message == "never: worse than random rows"
    # As good as four times the budget, which nobody trained at 2,000 rows: a bound alone.
    far = add_costs(made(shifts={"good": 0.25}, scores_flops=4 * RUN)).budgets["2000 rows"]["math"]["good"]
    assert far.costs.break_even.kind == "at most" and far.costs.random_needs[1] is None
    assert far.costs.break_even.message.startswith("after 2 uses at most: random rows would have to train more")
    free = add_costs(made(scores_flops=0.0)).budgets["1000 rows"]["math"]["good"].costs
    assert free.break_even.message == "at once: its scores cost no counted FLOPs"
    unknown = add_costs(made(scores_flops=None)).budgets["1000 rows"]["math"]["good"].costs
    assert unknown.break_even.message == "no number: the cost of its scores is not counted"
    assert unknown.total_flops is None and unknown.on_front is False


def test_what_no_training_reaches_already_saves_nothing():
    result = made(shifts={"good": 0.05})
    for of in result.budgets.values():
        of["math"]["untrained"] = replace(of["math"]["untrained"], mean=1.0)  # far better than any run
    line = add_costs(result).budgets["1000 rows"]["math"]["good"]
    assert line.outcome == "better" and line.costs.random_needs == (0.0, 0.0)
    assert line.costs.break_even.message == "never: random rows are as good with no more training"


def test_gains_and_verdicts_know_which_way_is_better():
    result = add_costs(made())
    for measure in ("math", "exact answers"):
        lines = result.budgets["2000 rows"][measure]
        outcomes = {name: line.outcome for name, line in lines.items() if line.outcome is not None}
        assert outcomes == {
            "good": "better", "nothing": "no evidence", "bad": "worse", "longest": "no evidence", "untrained": "worse",
        }  # fmt: skip
        costs = lines["good"].costs
        assert costs.gain == pytest.approx(0.1, abs=0.002)
        # Scores of 1e13 next to a run of 4e13: the gain is over 1.25 runs.
        assert costs.gain_per_run == pytest.approx(costs.gain / 1.25)
        assert costs.total_seconds == 12.0 + 20.0
        # 1.25 runs are log2(1.25) doublings.
        direction = -1 if measure == "math" else 1
        level = 2 + direction * 0.1 * (1 + math.log2(1.25))
        assert costs.random_at_total == pytest.approx(level, abs=0.002)


def test_the_front_holds_what_nothing_beats_for_less():
    result = add_costs(made(budgets=(1000, 2000), scores_flops=1e12))
    for measure, about in result.measures.items():
        points = []
        for of in result.budgets.values():
            for line in of[measure].values():
                mean = line.mean * (1 if about.better == "lower" else -1)
                points.append((line.total_flops, mean, line))
        for total, mean, line in points:
            if line.costs is not None:
                beaten = any(t <= total and m < mean or t < total and m <= mean for t, m, _ in points)
                assert line.costs.on_front == (not beaten)
        assert result.budgets["1000 rows"][measure]["good"].costs.on_front
        assert not result.budgets["1000 rows"][measure]["bad"].costs.on_front
