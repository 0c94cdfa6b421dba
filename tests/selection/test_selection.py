"""What is chosen, in which order, and what a Selection remembers."""

import json

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_select import Longest, Random, RoundRobin, Selection, TopK, WeightedRanks
from hf_select.data.loading import read_dataset
from hf_select.selection.baselines import random_order
from hf_select.selection.ranking import rank
from hf_select.selection.selection import row_hashes


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
    with pytest.raises(ValueError, match="3 rows were requested, but only 2 can be ranked"):
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


# ------------------------------------------------------------------------------- the rows that a selection was made on


LAYOUTS = {
    "messages": lambda t: {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": t}]},
    "prompt-completion": lambda t: {"prompt": "same in all rows", "completion": t},
    "alpaca": lambda t: {"instruction": "same", "input": t, "output": "same"},
    "sharegpt": lambda t: {"conversations": [{"from": "human", "value": t}, {"from": "gpt", "value": "a"}]},
    "text": lambda t: {"text": t},
    "unknown": lambda t: {"question": "same", "answer": t},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_reordered_within_their_source_are_refused(layout):
    """On the road of `map` nothing but what the rows say tells which is which, and `source` agrees everywhere."""
    rng = np.random.default_rng(0)
    source = np.repeat(["a", "b", "c"], 50)
    rows = [LAYOUTS[layout](f"row {i}") for i in range(150)]
    pool = Dataset.from_list(
        [{**row, "source": s, "score_x": x} for row, s, x in zip(rows, source, rng.random(150), strict=True)]
    )
    selection = TopK("score_x")(pool, k=30)
    order = np.concatenate([rng.permutation(np.flatnonzero(source == name)) for name in "abc"])
    with pytest.raises(ValueError, match=r"differs in \d+ of 30 chosen rows, first in row .* reordered or changed"):
        selection.apply(pool.select(order))
    changed = pool.to_list()
    changed[int(selection.indices[-1])] |= LAYOUTS[layout]("another")
    with pytest.raises(ValueError, match=f"in 1 of 30 chosen rows, first in row {selection.indices[-1]}:"):
        selection.check(Dataset.from_list(changed))


def test_columns_added_or_removed_since_do_not_matter(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": f"q {i}"}, {"role": "assistant", "content": "a"}]} for i in range(9)
    ]
    pool = Dataset.from_list([{"row_id": i, **row, "score_x": float(i), "x_reason": ""} for i, row in enumerate(rows)])
    selection = TopK("score_x")(pool, k=3)
    plain = pool.select_columns(["messages"])
    more = plain.add_column("score_y", [0.0] * 9).add_column("text", list("abcdefghi")).add_column("tag", ["t"] * 9)
    keyed = Dataset.from_list([{"messages": [{**m, "name": None} for m in row["messages"]]} for row in rows])
    pool.to_json(tmp_path / "rows.jsonl")
    read = Dataset.from_json(str(tmp_path / "rows.jsonl"))
    for same in (plain, more, keyed, read, pool.with_format("numpy"), pool.select_columns(["row_id"])):
        assert selection.apply(same).num_rows == 3
    with pytest.raises(
        ValueError, match=r"knows its rows by \['row_id', 'messages'\].*has \['tag'\].*by their numbers"
    ):
        selection.apply(more.select_columns(["tag"]))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    texts=st.lists(st.text(max_size=8), min_size=2, max_size=12),
    k=st.integers(1, 12),
    swap=st.tuples(st.integers(0, 11), st.integers(0, 11)),
    layout=st.sampled_from(sorted(LAYOUTS)),
)
def test_a_dataset_is_accepted_exactly_if_the_chosen_rows_are_the_same(texts, k, swap, layout):
    k, (i, j) = min(k, len(texts)), (place % len(texts) for place in swap)
    rows = [LAYOUTS[layout](text) for text in texts]
    scores = [float((7 * n) % 13) for n in range(len(rows))]
    selection = TopK("score_x")(Dataset.from_list(rows).add_column("score_x", scores), k=k)
    rows[i], rows[j] = rows[j], rows[i]
    now, chosen = [texts[n] for n in _swapped(len(texts), i, j)], selection.indices.tolist()
    changed = Dataset.from_list(rows).add_column("score_z", scores)
    if [now[n] for n in chosen] == [texts[n] for n in chosen]:
        selection.check(changed)
    else:
        with pytest.raises(ValueError, match="reordered or changed"):
            selection.check(changed)


def _swapped(size: int, i: int, j: int) -> list[int]:
    places = list(range(size))
    places[i], places[j] = j, i
    return places


def test_rows_are_the_same_with_and_without_json_columns(tmp_path):
    """Arguments of two types make a JSON column of the whole file; the rows without them are read as structs."""
    rows: list = [{"messages": [{"role": "user", "content": f"q{i}"}]} for i in range(4)]
    for i, arguments in ((0, {"x": [1, None]}), (2, {"x": "1"})):
        rows[i]["messages"][0]["tool_calls"] = [{"function": {"name": "f", "arguments": arguments}}]
    for name, some in (("all.jsonl", rows), ("left.jsonl", [rows[3], rows[1]])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in some))
    whole, left = (read_dataset(str(tmp_path / name)) for name in ("all.jsonl", "left.jsonl"))
    assert whole.features["messages"] != left.features["messages"]
    selection = Selection(np.array([3, 1]), 4, ["", ""], hashes=row_hashes(whole, np.array([3, 1]), ["messages"]))
    selection.check_left(left)
    with pytest.raises(ValueError, match="differs in 2 of 2"):
        selection.check_left(left.select([1, 0]))


def test_a_file_without_hashes_is_held_to_its_row_ids_or_refused(dataset, tmp_path):
    """As earlier versions wrote it."""
    selection = TopK("score_x")(dataset, k=2)
    for with_ids in (True, False):
        old = Selection(selection.indices, 6, selection.reasons, row_ids=selection.row_ids if with_ids else None)
        old.save(tmp_path / "old.parquet")
        again = Selection.load(tmp_path / "old.parquet")
        if with_ids:
            assert again.apply(dataset)["row_id"] == ["b", "e"]
            with pytest.raises(ValueError, match='"row_id" differs'):
                again.apply(dataset.select([5, 4, 3, 2, 1, 0]))
        else:
            with pytest.raises(
                ValueError, match="no hashes of its rows.*earlier version.*Select again.*by their numbers"
            ):
                again.apply(dataset)


def test_a_later_selection_from_other_rows_is_not_composed(dataset):
    texts = dataset.add_column("text", list("uvwxyz"))
    first = TopK("score_x")(texts, k=3)
    left = first.apply(texts)
    first.check_left(left)
    assert first.compose(TopK("score_x")(left, k=1)).indices.tolist() == [1]
    other = left.select([2, 1, 0])
    with pytest.raises(ValueError, match="differs"):
        first.check_left(other)
    with pytest.raises(ValueError, match="made from other rows"):
        first.compose(TopK("score_x")(other, k=2))


# ----------------------------------------------------------------------------------------------- what a selection says


def test_a_row_that_was_not_selected_has_its_score_its_rank_and_the_cut(dataset, tmp_path):
    selection = TopK("score_x")(dataset, k=2)  # scores 1, 5, 3, 2, 4, null
    selection.save(tmp_path / "s.parquet")
    for made in (selection, Selection.load(tmp_path / "s.parquet")):
        said = made.explain(2)
        assert "not selected (2 of 6 were): its score_x is 3, rank 3 of 5; scores from 4 to 5 were taken" in said
        assert "rank 5 of 5" in made.explain(0) and "it has no score_x" in made.explain(5)
        with pytest.raises(ValueError, match="rows 0 to 5"):
            made.explain(6)
    assert "rank 5 of 5" in TopK("score_x", "worst")(dataset, k=2).explain(1)
    bounded = TopK("score_x", at_most=4.0)(dataset, k=2)
    assert "score_x of 5 is out of the bounds [-inf, 4]" in bounded.explain(1) and "rank 3 of 4" in bounded.explain(3)
    tasks = dataset.add_column("score_y", [0.0, 0.0, 9.0, 0.0, 0.0, 0.0])
    taken = RoundRobin(["score_x", "score_y"])(tasks, k=2)  # rows 1 and 2
    assert "highest similarity is 4, rank 3 of 5" in taken.explain(4)
    assert "combined rank" in WeightedRanks({"score_x": 1})(dataset, k=2).explain(0)
    assert Random()(dataset, k=5).explain(_left_by(Random()(dataset, k=5))).endswith("(5 of 6 were)")
    later = Random(seed=1)(dataset, k=4)
    both = later.then(TopK("score_x", at_least=0.0), dataset, k=1)
    assert "an earlier step left it out (Random)" in both.explain(_left_by(later))


def _left_by(selection: Selection) -> int:
    return next(row for row in range(selection.num_rows) if row not in selection.indices)


def test_ranks_of_rows_that_were_not_selected_continue_those_that_were():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 9, 60).astype(float)
    pool = Dataset.from_dict({"score_x": scores})
    order = rank(scores).tolist()
    selection = TopK("score_x")(pool, k=20)
    assert all(f"rank {place + 1} of 60" in selection.explain(order[place]) for place in range(20, 60))


def test_a_selection_prints_on_one_line_and_shows_its_first_rows_in_a_notebook(dataset):
    rows = [f"<script>{i}</script>" for i in range(300)]
    pool = Dataset.from_dict({"text": rows, "score_x": np.arange(300.0), "source": rows})
    selection = TopK("score_x")(pool, k=200)
    assert repr(selection) == "Selection(200 of 300 rows; TopK 300 -> 200; scores 299 to 100)" == str(selection)
    balanced = Random(balanced_by="source")(pool, k=50)
    page = balanced._repr_html_()
    assert "50 of 300 rows" in page and "<script>" not in page and "&lt;script&gt;" in page
    assert page.count("<tr>") == 6 and "45 more rows" in page
    assert "4 of 6 rows; Random 6 -&gt; 4" in Random()(dataset, k=4)._repr_html_()
