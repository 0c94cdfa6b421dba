"""Joined comparisons: one comparison in parts is that comparison, others stand side by side, nonsense is refused."""

import json

import pytest
from made_comparisons import MEASURES, RUN, made_cells, made_folder

from hf_select.cli.main import main
from hf_select.evaluation.join import join


ONE = {"budgets": (1000, 2000)}


def numbers(result):
    """Everything but words of what is in a result."""
    return {
        (budget, measure, name): (line.mean, line.difference, line.costs)
        for budget, of in result.budgets.items()
        for measure, lines in of.items()
        for name, line in lines.items()
        if line.costs is not None
    }


def test_a_comparison_whose_methods_are_in_two_folders_is_the_comparison(tmp_path):
    shifts = {"good": 0.1, "nothing": 0.0, "bad": -0.1}
    whole = join_of(tmp_path, "whole", [shifts, shifts])
    # The same runs: a method's place among the methods gives its numbers.
    cells = made_cells(shifts, (1000, 2000), MEASURES, 4)
    parts = [made_folder(tmp_path / name, shifts=shifts, **ONE) for name in ("first", "second")]
    for folder, left in zip(parts, (["good"], ["nothing", "bad"]), strict=True):
        result = json.loads((folder / "result.json").read_text())
        result["methods"] = left
        for of in result["budgets"].values():
            for lines in of.values():
                for name in set(shifts) - set(left):
                    del lines[name]
        (folder / "result.json").write_text(json.dumps(result))
        for name in set(shifts) - set(left):
            for path in (folder / "cells" / name).iterdir():
                path.unlink()
    assert sum(len(list((folder / "cells").rglob("*.json"))) for folder in parts) < 2 * len(cells)
    merged = join(parts, tmp_path / "merged")
    assert merged.methods == ["good", "nothing", "bad"]
    assert numbers(merged) == numbers(whole), "p-values after Holm over all three methods among them"
    assert json.loads((tmp_path / "merged" / "result.json").read_text()) == json.loads(json.dumps(merged.to_dict()))
    assert (tmp_path / "merged" / "result.html").exists() and not (tmp_path / "merged" / "joined.html").exists()


def join_of(tmp_path, name, parts):
    folders = [made_folder(tmp_path / f"{name}-{i}", shifts=shifts, **ONE) for i, shifts in enumerate(parts)]
    return join(folders, tmp_path / name)


def test_budgets_in_several_folders_make_one_curve(tmp_path):
    folders = [made_folder(tmp_path / str(budget), budgets=(budget,)) for budget in (4000, 1000, 2000)]
    merged = join(folders, tmp_path / "merged")
    assert list(merged.budgets) == ["1000 rows", "2000 rows", "4000 rows"]
    paid = merged.budgets["1000 rows"]["math"]["good"].costs.break_even
    assert paid.uses == pytest.approx(1e13 / RUN, rel=0.05), "read off the curve that no folder has alone"


def test_other_comparisons_stand_side_by_side(tmp_path):
    one = made_folder(tmp_path / "alpaca", shifts={"good": 0.1, "fickle": 0.05}, **ONE)
    losses = {f"domain {n}": MEASURES["math"] for n in range(3)} | {"exact answers": MEASURES["exact answers"]}
    two = made_folder(
        tmp_path / "tulu", "another pool", shifts={"fickle": -0.05, "good": 0.1}, budgets=(500,), measures=losses
    )
    joined = join([one, f"big={two}"], tmp_path / "joined")
    columns = [(column.comparison, column.budget, column.measure) for column in joined.columns]
    assert columns == [
        *(("alpaca", budget, measure) for budget in ("1000 rows", "2000 rows") for measure in MEASURES),
        ("big", "500 rows", "all losses"),
        ("big", "500 rows", "exact answers"),
    ], "the losses of several domains count once"
    good, fickle, random = (joined.results[name] for name in ("good", "fickle", "random"))
    assert tuple(good.counts.values()) == (6, 0, 0)
    assert good.message == "better in 6 of 6, worse in none"
    assert fickle.message == "it depends: better in 4 of 6, worse in 2"
    # good is first everywhere; fickle second in four columns and, behind random and longest, fourth in two.
    assert good.mean_rank == 1 and fickle.mean_rank == pytest.approx((4 * 2 + 2 * 4) / 6)
    assert 2 < random.mean_rank < 4 and joined.num_ranked == 5
    assert joined.results["untrained"].counts["worse"] == 6
    text = (tmp_path / "joined" / "joined.md").read_text(encoding="utf-8")
    assert "better in 6 of 6, worse in none" in text and "](pictures/verdicts.png)" in text


def test_a_method_that_is_not_everywhere_has_no_mean_rank(tmp_path):
    one = made_folder(tmp_path / "one", shifts={"good": 0.1, "here": 0.0}, **ONE)
    two = made_folder(tmp_path / "two", "another pool", shifts={"good": 0.1, "there": 0.0}, **ONE)
    three = made_folder(tmp_path / "three", "another pool", shifts={"good": 0.1, "there": 0.0}, budgets=(4000,))
    joined = join([one, two, three], tmp_path / "joined")
    assert list(joined.comparisons) == ["one", "two"] and len(joined.comparisons["two"].folders) == 2
    assert joined.results["here"].mean_rank is None
    assert [cell is None for cell in joined.results["here"].cells] == [False] * 4 + [True] * 6
    assert joined.results["here"].message == "no evidence in any of 4"
    assert (tmp_path / "joined" / "two" / "result.html").exists(), "a comparison that was merged has its own page"


def test_what_cannot_be_joined_is_refused(tmp_path):
    one = made_folder(tmp_path / "one", **ONE)
    with pytest.raises(ValueError, match="joining takes at least two"):
        join([one], tmp_path / "j")
    with pytest.raises(ValueError, match="was given twice"):
        join([one, tmp_path / "." / "one"], tmp_path / "j")
    with pytest.raises(ValueError, match='"nowhere" holds no finished comparison'):
        join([one, "nowhere"], tmp_path / "j")
    with pytest.raises(ValueError, match='one" is one of the comparisons; choose another output folder'):
        join([one, made_folder(tmp_path / "a=b", "another pool", **ONE)], one)
    other = made_folder(tmp_path / "other", "another pool", shifts={"other": 0.1}, **ONE)
    with pytest.raises(ValueError, match="no method in common \\(one: good, nothing, bad; other: other\\)"):
        join([one, other], tmp_path / "j")
    with pytest.raises(ValueError, match="have the same name .*give NAME=FOLDER"):
        join([one, f"one={other}"], tmp_path / "j")
    fewer = made_folder(tmp_path / "fewer", shifts={"more": 0.1}, seeds=3, **ONE)
    with pytest.raises(ValueError, match='"more" has 3 runs of 1000 rows and random rows 4.*--seeds 4'):
        join([one, fewer], tmp_path / "j")
    changed = made_folder(tmp_path / "changed", **ONE)
    path = changed / "cells" / "good" / "1000 rows-seed-1.json"
    path.write_text(path.read_text().replace("good 1000", "others"))
    with pytest.raises(ValueError, match='runs of "good" \\(1000 rows, seed 1\\) on different rows'):
        join([one, changed], tmp_path / "j")
    assert not (tmp_path / "j").exists()


def test_the_command_joins(tmp_path, capsys):
    one = made_folder(tmp_path / "one", **ONE)
    two = made_folder(tmp_path / "two", "another pool", seed=1, **ONE)
    assert main(["join", "--comparisons", str(one), str(two), "--output-dir", str(tmp_path / "j")]) == 0
    out = capsys.readouterr().out
    assert "good: better in 8 of 8, worse in none" in out and "joined.html" in out
    assert main(["join", "--comparisons", str(one), "--output-dir", str(tmp_path / "j")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
