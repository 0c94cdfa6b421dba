"""What selecting cost and when it has paid, against values worked by hand."""

import json
import math

import pytest
from made_comparisons import RUN, made

from hf_select.evaluation.break_even import needed, reached_with, uses_to_pay, with_ledger


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
        assert needed(curve, sign * value, lower) == pytest.approx(expected), value
    assert needed(curve, sign * 2.5, lower, untrained=sign * 2.4) == (0.0, 0.0), "as good without training"
    assert reached_with(curve, math.sqrt(1e5)) == pytest.approx(sign * 2.5)
    assert reached_with(curve, 10000.0) == sign * 1.5 and reached_with(curve, 100.0) == sign * 3.0
    assert reached_with(curve, 10001.0) is None and reached_with(curve, 99.0) is None


def test_a_curve_that_turns_back_is_met_where_it_is_first_good_enough():
    assert needed([(100.0, 2.0), (1000.0, 3.0), (10000.0, 1.0)], 2.0, True) == (0.0, 100.0)
    assert needed([(100.0, 2.5), (1000.0, 2.0), (10000.0, 2.2)], 2.1, True)[1] < 1000


def test_scores_have_paid_when_their_cost_has_been_saved():
    assert uses_to_pay(30.0, (10.0, 10.0)) == (3.0, 3.0)
    assert uses_to_pay(30.0, (-5.0, -1.0)) == uses_to_pay(30.0, (0.0, 0.0)) == (math.inf, math.inf)
    assert uses_to_pay(30.0, (10.0, math.inf)) == (0.0, 3.0)
    assert uses_to_pay(30.0, (-10.0, math.inf)) == (0.0, math.inf)


def test_every_case_of_the_break_even_has_its_words():
    # Random rows gain 0.1 a doubling: "good" is as good as random rows of twice the budget, which saves a run each.
    result = with_ledger(made(shifts={"good": 0.1, "little": 0.03, "nothing": 0.0, "bad": -0.1}, scores_flops=5 * RUN))
    json.dumps(result, allow_nan=False)
    lines = {budget: of["math"] for budget, of in result["budgets"].items()}

    def paid(budget, name):
        return lines[f"{budget} rows"][name]["ledger"]["break_even"]

    good = paid(1000, "good")
    assert good["kind"] == "uses" and good["uses"] == pytest.approx(5, rel=0.02)
    assert good["words"] in ("after 5 uses", "after 6 uses")
    assert good["interval"][0] < good["uses"] < good["interval"][1]
    # 0.03 is 0.3 of a doubling: 2 ** 0.3 - 1 of a run is saved.
    assert paid(1000, "little")["uses"] == pytest.approx(5 / (2**0.3 - 1), rel=0.05)
    assert paid(4000, "good")["kind"] == "unknown" and paid(4000, "good")["uses"] is None
    assert paid(4000, "good")["words"].startswith("no number: random rows would have to train more than measured")
    # Half a row less than random rows is no saving, and no bound.
    result["budgets"]["4000 rows"]["math"]["good"]["training_flops"] *= 0.999
    again = with_ledger(result)["budgets"]["4000 rows"]["math"]["good"]["ledger"]
    assert again["break_even"]["kind"] == "unknown" and again["saved"][0] == 0
    assert paid(1000, "nothing")["words"] == "no number: no evidence of a difference to random rows"
    assert paid(1000, "nothing")["uses"] is None and paid(1000, "nothing")["interval"] is None
    assert paid(1000, "bad")["words"] == "never: worse than random rows"
    # As good as four times the budget, which nobody trained at 2,000 rows: a bound alone.
    far = with_ledger(made(shifts={"good": 0.25}, scores_flops=4 * RUN))["budgets"]["2000 rows"]["math"]["good"]
    assert far["ledger"]["break_even"]["kind"] == "at most" and far["ledger"]["random_needs"][1] is None
    assert far["ledger"]["break_even"]["words"].startswith(
        "after 2 uses at most: random rows would have to train more"
    )
    free = with_ledger(made(scores_flops=0.0))["budgets"]["1000 rows"]["math"]["good"]["ledger"]
    assert free["break_even"]["words"] == "at once: its scores cost no counted FLOPs"
    unknown = with_ledger(made(scores_flops=None))["budgets"]["1000 rows"]["math"]["good"]["ledger"]
    assert unknown["break_even"]["words"] == "no number: nobody has counted what its scores cost"
    assert unknown["total_flops"] is None and unknown["front"] is False


def test_what_no_training_reaches_already_saves_nothing():
    result = made(shifts={"good": 0.05})
    for of in result["budgets"].values():
        of["math"]["untrained"]["mean"] = 1.0  # far better than any run
    line = with_ledger(result)["budgets"]["1000 rows"]["math"]["good"]
    assert line["outcome"] == "better" and line["ledger"]["random_needs"] == [0.0, 0.0]
    assert line["ledger"]["break_even"]["words"] == "never: random rows are as good with no more training"


def test_gains_and_verdicts_know_which_way_is_better():
    result = with_ledger(made())
    for measure in ("math", "exact answers"):
        lines = result["budgets"]["2000 rows"][measure]
        outcomes = {name: line["outcome"] for name, line in lines.items() if "outcome" in line}
        assert outcomes == {
            "good": "better", "nothing": "no evidence", "bad": "worse", "longest": "no evidence", "untrained": "worse",
        }  # fmt: skip
        ledger = lines["good"]["ledger"]
        assert ledger["gain"] == pytest.approx(0.1, abs=0.002)
        # Scores of 1e13 beside a run of 4e13: the gain is over 1.25 runs.
        assert ledger["gain_per_run"] == pytest.approx(ledger["gain"] / 1.25)
        assert ledger["total_seconds"] == 12.0 + 20.0
        # 1.25 runs are log2(1.25) doublings.
        direction = -1 if measure == "math" else 1
        level = 2 + direction * 0.1 * (1 + math.log2(1.25))
        assert ledger["random_at_total"] == pytest.approx(level, abs=0.002)


def test_the_front_holds_what_nothing_beats_for_less():
    result = with_ledger(made(budgets=(1000, 2000), scores_flops=1e12))
    for measure, about in result["measures"].items():
        points = []
        for of in result["budgets"].values():
            for line in of[measure].values():
                mean = line["mean"] * (1 if about["better"] == "lower" else -1)
                points.append((line["ledger"]["total_flops"] if "ledger" in line else 0.0, mean, line))
        for total, mean, line in points:
            if "ledger" in line:
                beaten = any(t <= total and m < mean or t < total and m <= mean for t, m, _ in points)
                assert line["ledger"]["front"] == (not beaten)
        assert result["budgets"]["1000 rows"][measure]["good"]["ledger"]["front"]
        assert not result["budgets"]["1000 rows"][measure]["bad"]["ledger"]["front"]
