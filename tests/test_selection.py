"""What is chosen, in which order, and what a Selection remembers."""

import numpy as np
import pytest
from datasets import Dataset

from hf_select import Longest, Random, Selection, TopK
from hf_select.selection.baselines import random_order
from hf_select.selection.top_k import rank


def test_ties_go_to_the_lower_row_and_null_is_never_ranked():
    scores = np.array([2.0, np.nan, 5.0, 2.0, 5.0, 0.0])
    assert rank(scores).tolist() == [2, 4, 0, 3, 5]
    assert rank(scores, "worst").tolist() == [5, 0, 3, 2, 4]


def test_the_middle_starts_just_below_the_top_third():
    """As the study's script: descending, from int(0.33 * N)."""
    assert rank(np.arange(100.0), "middle")[:3].tolist() == [66, 65, 64]


def test_a_fraction_is_floored_but_not_by_rounding_errors():
    dataset = Dataset.from_dict({"score_x": np.arange(100.0)})
    assert len(TopK("score_x")(dataset, fraction=0.29)) == 29  # 0.29 * 100 is 28.999999999999996
    assert len(TopK("score_x")(dataset, fraction=0.999)) == 99
    assert len(TopK("score_x")(dataset, fraction=1.0)) == 100


def test_a_token_budget_ends_at_the_first_row_that_does_not_fit():
    """Going on to shorter rows would bias the selection to short ones."""
    dataset = Dataset.from_dict({"score_x": [9.0, 8, 7, 6], "num_tokens": [50, 60, 5, 1]})
    assert TopK("score_x")(dataset, tokens=100).indices.tolist() == [0]
    assert TopK("score_x")(dataset, tokens=110).indices.tolist() == [0, 1]
    assert TopK("score_x")(dataset, tokens=116).indices.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="117 tokens.*hold only 116"):
        TopK("score_x")(dataset, tokens=117)
    with pytest.raises(ValueError, match="num_tokens.*Length"):
        TopK("score_x")(dataset.remove_columns("num_tokens"), tokens=10)


def test_balanced_random_shares_the_budget_and_shuffles_within_a_group():
    groups = np.array(["a"] * 90 + ["b"] * 9 + ["c"])
    order = random_order(100, 0, groups)
    assert sorted(order.tolist()) == list(range(100))
    counts = {name: int((groups[order[:19]] == name).sum()) for name in "abc"}
    assert counts == {"a": 9, "b": 9, "c": 1}, "an exhausted group must be passed over"
    heads = [random_order(100, seed, groups)[:20] for seed in range(30)]
    first_of_a = {int(next(i for i in order if groups[i] == "a")) for order in heads}
    assert len(first_of_a) > 15, "the reference script takes the head of each group; a draw must not"


def test_random_draws_are_uniform():
    counts = np.bincount(np.concatenate([random_order(20, seed)[:5] for seed in range(2000)]), minlength=20)
    assert counts.min() > 400 and counts.max() < 600  # 500 expected, standard deviation 19


def test_longest_reads_the_length_column():
    dataset = Dataset.from_dict({"score_length": [3, 9, 4]})
    assert Longest()(dataset, k=2).indices.tolist() == [1, 2]


def test_a_stored_nan_is_no_score():
    dataset = Dataset.from_dict({"score_x": [1.0, float("nan"), 3.0]})
    with pytest.raises(ValueError, match="3 rows were asked for, but only 2 can be ranked"):
        TopK("score_x")(dataset, k=3)


def test_a_missing_column_names_the_near_one_and_a_text_column_is_refused():
    dataset = Dataset.from_dict({"score_ifd": [1.0], "text": ["x"]})
    with pytest.raises(ValueError, match=r"score_idf.*\['score_ifd', 'text'\].*Did you mean \"score_ifd\""):
        TopK("score_idf")(dataset, k=1)
    with pytest.raises(ValueError, match="holds string, not numbers"):
        TopK("text")(dataset, k=1)


@pytest.fixture
def dataset() -> Dataset:
    return Dataset.from_dict({"row_id": list("abcdef"), "score_x": [1.0, 5.0, 3.0, 2.0, 4.0, None]})


def test_apply_gives_rows_in_rank_order_that_say_why(dataset):
    subset = TopK("score_x")(dataset, k=2).apply(dataset)
    assert subset["row_id"] == ["b", "e"]
    assert subset["selection_rank"] == [1, 2]
    assert subset["selection_reason"][0] == "score_x 5, highest 1 of 5 scored rows"
    assert TopK("score_x")(subset, k=1).apply(subset)["selection_rank"] == [1], "selecting again replaces the columns"


def test_a_selection_holds_to_the_dataset_that_it_was_made_on(dataset):
    selection = TopK("score_x")(dataset, k=2)
    with pytest.raises(ValueError, match="made on 6 rows, this dataset has 5"):
        selection.apply(dataset.select(range(5)))
    with pytest.raises(ValueError, match="reordered or changed"):
        selection.apply(dataset.select([5, 4, 3, 2, 1, 0]))


def test_save_and_load_keep_everything(dataset, tmp_path):
    for selection in (TopK("score_x")(dataset, k=3), Random(seed=1)(dataset, k=3)):
        selection.save(tmp_path / "s.parquet")
        again = Selection.load(tmp_path / "s.parquet")
        assert again.indices.tolist() == selection.indices.tolist()
        assert again.reasons == selection.reasons and again.chain == selection.chain
        assert again.row_ids == selection.row_ids and again.num_rows == 6
        assert (again.scores is None) == (selection.scores is None)
    assert [p.name for p in tmp_path.iterdir()] == ["s.parquet"], "a temporary file was left"
    Dataset.from_dict({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="not written by Selection.save"):
        Selection.load(tmp_path / "other.parquet")


def test_explain_and_diff(dataset):
    best, worst = TopK("score_x")(dataset, k=3), TopK("score_x", "worst")(dataset, k=3)
    assert "rank 1 of 3: score_x 5" in best.explain(1) and "not selected" in best.explain(0)
    assert best.diff(worst) == {"both": [2], "only_self": [1, 4], "only_other": [0, 3]}


def test_a_reordered_dataset_is_noticed_without_row_ids(dataset):
    """The flow of `map`: nothing but the content says which row is which."""
    plain = dataset.remove_columns("row_id").add_column("text", list("uvwxyz")).add_column("same", ["s"] * 6)
    selection = TopK("score_x")(plain, k=2)
    assert selection.apply(plain)["text"] == ["v", "y"]
    assert selection.apply(plain.remove_columns("score_x"))["text"] == ["v", "y"], "the unscored rows will do"
    with pytest.raises(ValueError, match="reordered or changed"):
        selection.apply(plain.select([5, 4, 3, 2, 1, 0]))
