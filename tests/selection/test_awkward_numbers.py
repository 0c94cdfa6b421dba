"""Scores and counts that are infinite, null, equal, ragged or not numbers: what can be ranked is ranked, and the rest
has its true reason."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_select import (
    Decontaminate,
    Dedup,
    FacilityLocation,
    FarthestFirst,
    KMeansBuckets,
    Longest,
    Random,
    RoundRobin,
    Sample,
    ScoreThenThreshold,
    TopK,
    WeightedRanks,
)
from hf_select.cli.main import main
from hf_select.data.loading import read_dataset
from hf_select.selection.ranking import percentile_ranks, rank_correlation
from hf_select.selection.without_length import length_residual, length_strata


VECTORS = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
SELECTORS = {
    "top_k": TopK("score_x"),
    "residual": TopK("score_x", length="residual"),
    "strata": TopK("score_x", length="strata"),
    "worst": TopK("score_x", "worst"),
    "middle": TopK("score_x", "middle"),
    "longest": Longest("score_x"),
    "weighted": WeightedRanks({"score_x": 1, "score_y": -1}),
    "sample": Sample("score_x"),
    "round_robin": RoundRobin(["score_x", "score_y"]),
    "global_max": RoundRobin(["score_x", "score_y"], mode="global_max"),
    "mean_max": RoundRobin(["score_x", "score_y"], mode="mean_max"),
    "threshold": ScoreThenThreshold(VECTORS, "score_x", 0.99),
    "buckets": KMeansBuckets(VECTORS, 2, "score_x"),
}
BY_NUMBERS_OF_THE_ROW = {name: made for name, made in SELECTORS.items() if name not in ("threshold", "buckets")}


def pool(scores: list, **more: list) -> Dataset:
    size = len(scores)
    made = {"text": [f"text {'a ' * (i % 5)}{i}" for i in range(size)], "score_x": pa.array(scores, pa.float64())}
    return Dataset(pa.table({**made, "score_y": np.arange(size) % 3 * 1.0, "num_tokens": [10] * size, **more}))


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("infinite", [np.inf, -np.inf])
def test_an_infinite_score_is_not_ranked_and_changes_nothing_for_the_others(name, infinite, caplog):
    scores: list = [float(i * 7 % 11) for i in range(12)]
    with_null, with_infinite = ([*scores[:5], odd, *scores[6:]] for odd in (None, infinite))
    expected = SELECTORS[name](pool(with_null), k=6)
    found = SELECTORS[name](pool(with_infinite), k=6)
    assert found.indices.tolist() == expected.indices.tolist() and 5 not in found.indices
    assert np.isfinite(found.scores).all()
    assert '1 of 12 rows have an infinite "score_x" (first: row 5) and are not ranked' in caplog.text
    with pytest.raises(ValueError, match=r"12 rows were requested, but only \d+"):
        SELECTORS[name](pool(with_infinite), k=12)


def test_the_reason_of_an_infinite_score_is_that_it_is_infinite():
    data = pool([1.0, 2.0, np.inf, 3.0])
    for length in ("ignore", "residual"):
        assert "its score_x" in (said := TopK("score_x", length=length)(data, k=2).explain(2)), said
        assert "is inf, and only finite scores are ranked" in said
    with pytest.raises(ValueError, match=r"only 3 can be ranked by score_x \(1 infinite\)"):
        TopK("score_x")(data, k=4)


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("budget", [{"k": 3}, {"fraction": 0.5}, {"tokens": 30}])
def test_where_nothing_has_a_score_the_budget_is_not_blamed(name, budget):
    data = pool([None] * 12)
    with pytest.raises(ValueError) as caught:
        SELECTORS[name](data, **budget)
    said = str(caught.value)
    assert "nothing can be selected: no rows" in said and "budget" not in said
    if "round" not in name and "max" not in name and name not in ("threshold", "buckets"):
        assert "12 of 12 without a score" in said


def test_what_the_scorer_said_of_its_nulls_is_in_the_error():
    data = pool([None] * 12, x_reason=["no response"] * 8 + ["too long"] * 4)
    with pytest.raises(ValueError, match="12 of 12 without a score, 8 x no response, 4 x too long"):
        TopK("score_x")(data, k=3)


@pytest.mark.parametrize("name", ["top_k", "residual", "strata", "worst", "middle", "longest"])
@pytest.mark.parametrize("value", [3.0, 0.1, 1e-300, -7e200])
def test_equal_scores_are_a_tie_that_is_told(name, value, caplog):
    """Also with the length taken away: rounding must not rank equal scores."""
    data = pool([value] * 21)
    if name == "strata":
        data = data.map(lambda row: {"text": "same"})
    selection = SELECTORS[name](data, k=5)
    first = 6 if name == "middle" else 0
    assert selection.indices.tolist() == list(range(first, first + 5))
    assert selection.chain[-1]["tied_at_the_cut"] == 21
    assert "21 rows tie at the cut" in caplog.text and "5 of them were taken" in caplog.text


def test_only_a_tie_that_is_cut_is_told(caplog):
    data = pool([5.0, 4.0, 4.0, 3.0, 3.0, 3.0, 2.0])
    assert TopK("score_x")(data, k=3).chain[-1]["tied_at_the_cut"] == 0 and "tie" not in caplog.text
    assert TopK("score_x")(data, k=5).chain[-1]["tied_at_the_cut"] == 3
    assert TopK("score_x", "worst")(data, k=5).chain[-1]["tied_at_the_cut"] == 2
    assert "2 rows tie at the cut (score_x 4): 1 of them was taken" in caplog.text
    assert WeightedRanks({"score_x": 1})(data, k=4).chain[-1]["tied_at_the_cut"] == 3
    assert TopK("score_x")(data, tokens=40).chain[-1]["tied_at_the_cut"] == 3


NUMBERS = st.one_of(st.none(), st.sampled_from([np.inf, -np.inf, np.nan, 0.0, -0.0, 3.0, 1e300]), st.floats(-9, 9))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(scores=st.lists(NUMBERS, min_size=12, max_size=12), name=st.sampled_from(sorted(BY_NUMBERS_OF_THE_ROW)))
def test_exactly_the_rows_with_a_finite_score_can_be_selected(scores, name):
    data = pool(scores)
    finite = [i for i, score in enumerate(scores) if score is not None and np.isfinite(score)]
    choosable = finite[int(0.33 * len(finite)) :] if name == "middle" else finite
    if not choosable:
        with pytest.raises(ValueError, match="no rows"):
            SELECTORS[name](data, k=1)
        return
    selection = SELECTORS[name](data, k=len(choosable))
    assert len(set(selection.indices.tolist())) == len(choosable) and set(selection.indices.tolist()) <= set(finite)
    assert all(str(row) in selection.explain(row) for row in range(12))


def test_statistics_of_scores_pass_over_what_is_not_finite():
    scores, lengths = np.array([1.0, np.inf, 3.0, 2.0, np.nan]), np.array([1.0, 2.0, 3.0, np.inf, 4.0])
    assert np.isnan(percentile_ranks(scores)).tolist() == [False, True, False, False, True]
    assert rank_correlation(scores, np.array([1.0, 5.0, 3.0, 2.0, 0.0])) == pytest.approx(1.0)
    for debiased in (length_residual(scores, lengths), length_strata(scores, lengths, 1)):
        assert np.isnan(debiased).tolist() == [False, True, False, True, True]


# -------------------------------------------------------------------------------------------------- counts and vectors


ALL = {**SELECTORS, "random": Random(), "farthest": FarthestFirst(VECTORS), "facility": FacilityLocation(VECTORS)}


@pytest.mark.parametrize("name", ALL)
def test_rows_without_a_count_are_left_out_of_a_budget_in_tokens(name, caplog):
    data = pool([float(i) for i in range(12)]).remove_columns("num_tokens")
    counted = data.add_column("num_tokens", [10] * 7 + [None] + [10] * 4)
    selection = ALL[name](counted, tokens=50)
    assert len(selection) == 5 and 7 not in selection.indices
    assert 'cannot take 1 of 12 rows, which have no "num_tokens" (first: row 7)' in caplog.text
    assert len(ALL[name](counted, k=5)) == 5
    with pytest.raises(ValueError, match='no row has a number in "num_tokens".*Length'):
        ALL[name](data.add_column("num_tokens", [None] * 12), tokens=50)
    with pytest.raises(ValueError, match='row 2 has -1 "num_tokens"'):
        ALL[name](data.add_column("num_tokens", [10, 10, -1] + [10] * 9), tokens=50)


@pytest.mark.parametrize("lists", [[[1.0, 2.0], [3.0], [4.0, 5.0, 6.0]], [[1.0], [2.0, 3.0], [4.0]]])
def test_ragged_lists_are_refused_and_not_shared_out_among_rows(lists):
    """[2, 1, 3] numbers are as many as three rows of two."""
    data = Dataset.from_dict({"rds_similarities": lists})
    with pytest.raises(ValueError, match=r'lists in column "rds_similarities" have different lengths .*row \d'):
        RoundRobin("rds_similarities")(data, k=1)
    empty = Dataset(pa.table({"rds_similarities": pa.array([[], []], pa.list_(pa.float32()))}))
    with pytest.raises(ValueError, match="at least 1"):
        RoundRobin("rds_similarities")(empty, k=1)


def test_a_row_with_a_gap_in_its_list_is_not_ranked():
    lists = [[0.1, 0.2], [0.9, None], None, [0.3, float("inf")], [0.5, 0.4]]
    selection = RoundRobin("rds_similarities")(Dataset.from_dict({"rds_similarities": lists}), k=2)
    assert sorted(selection.indices.tolist()) == [0, 4] and selection.chain[-1]["scored"] == 2


@pytest.mark.parametrize("make", [FacilityLocation, FarthestFirst, lambda v: KMeansBuckets(v, 2)])
def test_a_later_step_takes_the_vectors_of_the_whole_dataset(make):
    data = pool([float(i * 5 % 12) for i in range(12)])
    first = TopK("score_x")(data, k=8)
    of_rows = first.compose(make(VECTORS[first.indices])(first.apply(data), k=4))
    assert first.then(make(VECTORS), data, k=4).indices.tolist() == of_rows.indices.tolist()
    assert first.then(make(VECTORS[first.indices]), data, k=4).indices.tolist() == of_rows.indices.tolist()
    listed = data.add_column("vector", VECTORS.tolist())
    assert first.then(make("vector"), listed, k=4).indices.tolist() == of_rows.indices.tolist()
    with pytest.raises(ValueError, match="5 vectors for 8 rows"):
        first.then(make(VECTORS[:5]), data, k=4)


@pytest.mark.parametrize("name", [*ALL, "dedup", "decontaminate"])
def test_a_stream_and_a_dict_of_splits_are_refused_with_the_cure(name):
    filters = {"dedup": Dedup(threshold=None), "decontaminate": Decontaminate(n=1, min_words=1)}
    selector = {**ALL, **filters}[name]
    data = pool([1.0] * 12)
    if name == "decontaminate":
        selector.fit({"exam": data})
    with pytest.raises(ValueError, match="this is IterableDataset. Load it without streaming"):
        selector(data.to_iterable_dataset(), k=2)
    with pytest.raises(ValueError, match=r"this is DatasetDict. Choose a split"):
        selector(DatasetDict({"train": data}), k=2)
    with pytest.raises(ValueError, match=r"this is list. Make one"):
        selector(data.to_list(), k=2)
    with pytest.raises(ValueError, match="this is IterableDataset"):
        TopK("score_x")(data, k=2).apply(data.to_iterable_dataset())


@pytest.mark.parametrize("kind", ["numpy", "torch", "pandas", "arrow"])
@pytest.mark.parametrize("selector", [*ALL.values(), Random(balanced_by="source")], ids=[*ALL, "balanced"])
def test_the_format_of_a_dataset_changes_no_selection(selector, kind):
    data = pool([float(i * 5 % 12) for i in range(12)]).add_column("source", [i % 3 for i in range(12)])
    expected = selector(data, k=5)
    found = selector(data.with_format(kind), k=5)
    assert found.indices.tolist() == expected.indices.tolist() and found.reasons == expected.reasons
    found.check(data)
    expected.check(data.with_format(kind))


# ---------------------------------------------------------------------------------------------------- the command line


def test_decimals_and_texts_that_are_numbers_are_numbers():
    from decimal import Decimal

    scores = {"decimal": [Decimal("1.50"), None, Decimal("2.25")], "text": ["1.50", None, "2.25"]}
    for values in scores.values():
        assert TopK("score_x")(Dataset(pa.table({"score_x": values})), k=2).indices.tolist() == [2, 0]
    with pytest.raises(ValueError, match='"score_x" holds string, not numbers: row 1 is "good". Write numbers there'):
        TopK("score_x")(Dataset.from_dict({"score_x": ["1", "good", "3"]}), k=1)
    with pytest.raises(ValueError, match='"score_x" holds bool, not numbers.*cast_column'):
        TopK("score_x")(Dataset.from_dict({"score_x": [True, False]}), k=1)


def test_a_column_of_numbers_and_texts_that_are_numbers_is_numbers(tmp_path):
    """As judges write it: 4, "4.5" and no score in one column, which a file keeps as JSON text."""
    scored = tmp_path / "scored.jsonl"
    scored.write_text("".join(f'{{"score_x": {value}}}\n' for value in ("1", '"4.50"', "null", '""', "3.5", "-2e0")))
    assert TopK("score_x")(read_dataset(str(scored)), k=4).indices.tolist() == [1, 4, 0, 5]


@pytest.mark.parametrize(
    "bad, shown",
    [('"1,234"', "1,234"), ('"12%"', "12%"), ('"4/10"', "4/10"), ("true", "true"), ("[1]", r"\[1\]"), ('"NA"', "NA")],
)
@pytest.mark.parametrize("good", ["2", '"2"'])
def test_the_first_row_that_is_not_a_number_is_named(tmp_path, good, bad, shown):
    scored = tmp_path / "scored.jsonl"
    scored.write_text("".join(f'{{"score_x": {value}}}\n' for value in (good, "null", bad, '"high"')))
    with pytest.raises(ValueError, match=f'"score_x" holds .*, not numbers: row 2 is "{shown}"'):
        TopK("score_x")(read_dataset(str(scored)), k=1)


def test_integers_that_a_float_would_round_are_named_and_not_ranked():
    expected = r'"score_x": row 2 is 9007199254740993, but .*up to 2\^53'
    with pytest.raises(ValueError, match=expected):
        TopK("score_x")(Dataset.from_dict({"score_x": [1, None, 2**53 + 1]}), k=1)


def select(tmp_path: Path, scores: list, *flags: str) -> int:
    rows = [
        {"prompt": f"q {i}", "completion": "a " * (i + 1), "score_x": s, "num_tokens": 10}
        for i, s in enumerate(scores)
    ]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["select", "--scores", str(tmp_path / "pool.jsonl"), "--output", str(tmp_path / "s.jsonl"), "--overwrite"]
    return main([*asked, "--selector", "top_k", "--column", "score_x", *flags])


def test_the_command_says_what_is_the_matter(tmp_path, capsys, caplog):
    assert select(tmp_path, [1.0, float("inf"), 3.0, 4.0], "--length", "residual", "--k", "3") == 0
    assert 'infinite "score_x" (first: row 1)' in caplog.text
    assert select(tmp_path, [None] * 9, "--tokens", "30") == 2
    said = capsys.readouterr().err
    assert "9 of 9 without a score" in said and "Raise the budget" not in said
    assert select(tmp_path, [3.0] * 21, "--k", "5") == 0
    assert "21 rows tie at the cut (score_x 3): 5 of them were taken" in caplog.text


@pytest.mark.parametrize("name", ["facility_location", "farthest_first", "kmeans_buckets", "score_then_threshold"])
def test_a_selector_over_vectors_says_how_to_make_an_index(name, tmp_path, capsys):
    (tmp_path / "pool.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    asked = ["select", "--scores", str(tmp_path / "pool.jsonl"), "--output", str(tmp_path / "s.jsonl"), "--k", "1"]
    assert main([*asked, "--selector", name]) == 2
    said = capsys.readouterr().err
    assert (
        "needs --vectors FOLDER" in said and "hf-select index --scorer rds" in said and "--output-dir FOLDER" in said
    )
    settings = {"kmeans_buckets": ["--num-clusters", "1"], "score_then_threshold": ["--column", "score_x"]}
    if name != "score_then_threshold":
        assert main([*asked, "--selector", name, "--vectors", "none", *settings.get(name, [])]) == 2
        said = capsys.readouterr().err
        assert 'column "none" is missing' in said and "hf-select index --scorer rds" in said
