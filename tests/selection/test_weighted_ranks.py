"""Ranks, residuals and strata by hand; selections that follow one another."""

import numpy as np
import pytest
from datasets import Dataset

from hf_select import Random, Selection, TopK, WeightedRanks
from hf_select.selection.ranking import percentile_ranks
from hf_select.selection.without_length import length_residual, length_strata


nan = float("nan")


def test_percentile_ranks_by_hand():
    np.testing.assert_allclose(percentile_ranks(np.array([3.0, 1, nan, 2, 2])), [1, 0, nan, 0.5, 0.5])
    np.testing.assert_allclose(percentile_ranks(np.array([5.0, nan])), [0.5, nan])
    assert np.isnan(percentile_ranks(np.array([nan]))).all()


def test_a_score_that_is_length_has_no_residual_and_the_rest_is_uncorrelated():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 1000, 500).astype(float)
    np.testing.assert_allclose(length_residual(3 * np.log1p(lengths) - 7, lengths), 0, atol=1e-9)
    noise = rng.normal(size=500)
    residual = length_residual(np.log1p(lengths) + noise, lengths)
    assert abs(np.corrcoef(residual, np.log1p(lengths))[0, 1]) < 1e-9 < 0.9 < np.corrcoef(residual, noise)[0, 1]
    np.testing.assert_allclose(length_residual(np.array([1.0, 3, nan]), np.array([5.0, 5, 5])), [-1, 1, nan])


def test_strata_take_the_same_share_of_every_length():
    lengths = np.arange(100.0)
    ranks = length_strata(lengths**2, lengths)  # nothing but length
    best = np.argsort(-ranks, kind="stable")[:20]
    assert np.bincount((best // 10).astype(int), minlength=10).tolist() == [2] * 10


def test_top_k_without_length_keeps_the_plain_score_and_says_both():
    lengths = [1, 10, 100, 1000, 10000]
    scores = [float(np.log1p(n)) for n in lengths]
    scores[1] += 1.0
    data = Dataset.from_dict({"s": scores, "n": lengths, "text": ["x" * n for n in lengths]})
    assert TopK("s")(data, k=1).indices.tolist() == [4]
    for selector in (TopK("s", length="residual", length_column="n"), TopK("s", length="residual")):
        selection = selector(data, k=1)
        assert selection.indices.tolist() == [1] and "without its length" in selection.reasons[0]
        assert selection.apply(data)["s"] == [scores[1]]
        assert selection.scores is not None and selection.scores[0] == pytest.approx(0.8, abs=0.2)
    gone = Dataset.from_dict({"s": scores, "n": [1, None, 100, 1000, 10000]})
    partly = TopK("s", length="strata", length_column="n")(gone, k=4)
    assert "of 4 scored rows" in partly.reasons[0] and partly.chain[0]["without_length"] == 1
    with pytest.raises(ValueError, match="not lengths"):
        TopK("s", length="residual", length_column="n")(Dataset.from_dict({"s": [1.0, 2], "n": [-2, 5]}), k=1)
    with pytest.raises(ValueError, match="no text to count"):
        TopK("s", length="strata")(data.select_columns(["s"]), k=1)


def test_weighted_ranks_by_hand():
    data = Dataset.from_dict({"a": [0.0, 1, 2, 3, 4], "b": [50.0, 20, 10, 40, None]})
    selection = WeightedRanks({"a": 3, "b": -1})(data, k=4)
    # ranks of a: 0 .25 .5 .75 1; of b: 1 1/3 0 2/3 -
    expected = [(3 * a + 1 - b) / 4 for a, b in ((0, 1), (0.25, 1 / 3), (0.5, 0), (0.75, 2 / 3))]
    order = np.argsort(expected)[::-1]
    assert selection.indices.tolist() == order.tolist() and selection.scores is not None
    np.testing.assert_allclose(selection.scores, np.array(expected)[order])
    assert "a at 75 %" in selection.explain(3)
    with pytest.raises(ValueError, match="only 4 have all of a, b"):
        WeightedRanks({"a": 1, "b": 1})(data, k=5)
    for bad in ({}, {"a": 0}, {"a": "much"}):
        with pytest.raises(ValueError, match="weight"):
            WeightedRanks(bad)


def test_a_selection_from_a_selection_is_one_of_the_dataset_and_knows_both_steps(tmp_path):
    data = Dataset.from_dict({"s": [float(i * 7 % 20) for i in range(20)], "row_id": [f"r{i}" for i in range(20)]})
    first = TopK("s", at_least=5)(data, k=12)
    both = first.then(TopK("s", which="worst"), data, k=3)
    assert sorted(np.array(data["s"])[both.indices].tolist()) == [8.0, 9.0, 10.0]
    assert [step["selector"] for step in both.chain] == ["TopK", "TopK"]
    assert "; then s 8, lowest 1" in both.explain(int(both.indices[0]))
    assert both.apply(data)["row_id"] == [f"r{i}" for i in both.indices]
    both.save(tmp_path / "s.parquet")
    again = Selection.load(tmp_path / "s.parquet")
    assert again.indices.tolist() == both.indices.tolist() and again.chain == both.chain
    with pytest.raises(ValueError, match="made from 20 rows"):
        first.compose(Random()(data, k=2))
