"""Selectors by vectors: each against its definition written out plainly, on vectors with ties, copies and gaps."""

from itertools import combinations, islice

import numpy as np
import pytest
from contracts import check_selector
from datasets import Dataset

import hf_select.selection.facility_location
import hf_select.selection.score_then_threshold
from hf_select.selection.facility_location import FacilityLocation, facility_location
from hf_select.selection.farthest_first import FarthestFirst, farthest_first
from hf_select.selection.kmeans_buckets import KMeansBuckets, take_turns
from hf_select.selection.score_then_threshold import ScoreThenThreshold, threshold_filter


def unit(vectors) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms == 0, 1, norms)


def some_vectors(seed: int, n: int = 90, d: int = 6) -> np.ndarray:
    """Clustered unit vectors with copies, a zero vector and rows that have none."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((5, d))[rng.integers(0, 5, n)] + 0.5 * rng.standard_normal((n, d))
    vectors[n // 2 : n // 2 + 10] = vectors[:10]
    vectors[7] = vectors[70] = 0
    vectors = unit(vectors)
    vectors[[3, 41]] = np.nan
    return vectors


def signs(seed: int, n: int = 40) -> np.ndarray:
    """Unit vectors of which every similarity is a multiple of 1/4: float32 adds them without error, ties abound."""
    rng = np.random.default_rng(seed)
    return rng.choice([-0.5, 0.5], (n, 4)).astype(np.float32)


VECTORS = [some_vectors(0), some_vectors(1), some_vectors(2, n=130, d=3), signs(0), signs(1), np.eye(9, dtype="f4")]


def present(vectors: np.ndarray) -> list[int]:
    return [i for i in range(len(vectors)) if np.isfinite(vectors[i]).all()]


def lowest_of_the_best(rows: list[int], values: list[float], margin: float) -> int:
    return next(row for row, value in zip(rows, values, strict=True) if value >= max(values) - margin)


# facility location


def coverage(vectors: np.ndarray, chosen: list[int]) -> float:
    exact = vectors[present(vectors)].astype(np.float64)
    return sum(max([0.0] + [float(row @ vectors[j].astype(np.float64)) for j in chosen]) for row in exact)


def plain_greedy(vectors: np.ndarray, k: int) -> list[int]:
    """Every candidate measured anew for every pick, in float64."""
    exact = vectors.astype(np.float64)
    rows = present(vectors)
    similarity = np.maximum(exact[rows] @ exact[rows].T, 0)  # (row, candidate)
    nearest, left, chosen = np.zeros(len(rows)), list(range(len(rows))), []
    while left and len(chosen) < k:
        gains = [np.maximum(similarity[:, c] - nearest, 0).sum() for c in left]
        # Nothing left to gain: by row number.
        nothing = max(gains) < 1e-6 + 1e-7 * len(rows)
        best = left[0] if nothing else lowest_of_the_best(left, gains, 1e-6 + 1e-5 * max(gains))
        left.remove(best)
        chosen.append(rows[best])
        nearest = np.maximum(nearest, similarity[:, best])
    return chosen


@pytest.mark.parametrize("vectors", VECTORS, ids=range(len(VECTORS)))
def test_facility_location_is_plain_greedy(vectors):
    everything = len(present(vectors))
    expected = plain_greedy(vectors, everything)
    rows, gains, _ = facility_location(vectors, everything)
    assert rows.tolist() == expected
    assert facility_location(vectors, 3)[0].tolist() == expected[:3]
    assert sum(gains[:5]) == pytest.approx(coverage(vectors, expected[:5]), rel=1e-5)


@pytest.mark.parametrize("vectors", VECTORS, ids=range(len(VECTORS)))
@pytest.mark.parametrize("block, kept_bytes", [(1, 0), (7, 0), (7, 1 << 30), (64, 2000), (1000, 1 << 30)])
def test_blocks_and_memory_do_not_change_what_facility_location_picks(vectors, block, kept_bytes, monkeypatch):
    expected = facility_location(vectors, len(vectors))
    monkeypatch.setattr(hf_select.selection.facility_location, "BLOCK", block)
    monkeypatch.setattr(hf_select.selection.facility_location, "KEPT_BYTES", kept_bytes)
    found = facility_location(vectors, len(vectors))
    assert found[0].tolist() == expected[0].tolist()
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-4)


def test_facility_location_by_hand():
    # Row 1 is like both of its neighbours (0.8, 0.6) and so stands for the three; row 3 alone has nobody else.
    vectors = np.array([[1, 0, 0], [0.8, 0.6, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float32)
    rows, gains, nearer = facility_location(vectors, 4)
    assert rows.tolist() == [1, 3, 2, 0]
    np.testing.assert_allclose(gains, [0.8 + 1 + 0.6, 1, 0.4, 0.2], rtol=1e-5)
    assert nearer.tolist() == [3, 1, 1, 1]


def test_copies_of_a_chosen_row_gain_nothing_and_follow_by_number():
    vectors = unit([[1, 2, 3], [2, 4, 6], [0, 1, 0], [3, 6, 9], [0, 3, 0]])
    rows, gains, _ = facility_location(vectors, 5)
    assert rows.tolist() == [0, 2, 1, 3, 4]
    assert gains[2:].tolist() == [0, 0, 0]


def test_what_is_opposite_counts_for_nothing():
    assert facility_location(unit([[1, 0], [-1, 0.1], [-1, 0]]), 2)[0].tolist() == [1, 0]


# farthest first


def plain_farthest(vectors: np.ndarray, first: int) -> list[int]:
    exact = vectors.astype(np.float64)
    chosen, left = [first], [row for row in present(vectors) if row != first]
    while left:
        distances = [min(_distance(exact[row], exact[j]) for j in chosen) for row in left]
        chosen.append(lowest_of_the_best(left, distances, 1e-6))
        left.remove(chosen[-1])
    return chosen


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return 0.0 if not a.any() and not b.any() else 1 - float(a @ b)


@pytest.mark.parametrize("vectors", VECTORS, ids=range(len(VECTORS)))
def test_farthest_first_is_the_plain_rule(vectors):
    first = present(vectors)[4]
    found = [row for row, _ in farthest_first(vectors, first)]
    assert found == plain_farthest(vectors, first)
    assert sorted(found) == present(vectors), "each row once"


def test_farthest_first_by_hand():
    # From row 0: row 3 is opposite (distance 2); then row 1 is at distance 1 of both, row 2 at 0.4 of row 3.
    vectors = np.array([[1, 0], [0, 1], [-0.6, 0.8], [-1, 0]], dtype=np.float32)
    picks = list(farthest_first(vectors, 0))
    assert [row for row, _ in picks] == [0, 3, 1, 2]
    np.testing.assert_allclose([distance for _, distance in picks[1:]], [2, 1, 1 - 0.8], rtol=1e-5)


def test_farthest_first_starts_at_the_mean_or_at_the_best_score():
    vectors = np.array([[1, 0], [0, 1], [0.6, 0.8], [np.nan, np.nan]], dtype=np.float32)
    dataset = Dataset.from_dict({"score_x": [2.0, 1.0, None, 5.0]})
    assert FarthestFirst(vectors)(dataset, k=2).indices.tolist() == [2, 0]
    by_score = FarthestFirst(vectors, column="score_x")(dataset, k=2)
    assert by_score.indices.tolist() == [0, 1], "row 3 has the best score but no vector"
    assert by_score.reasons == ["start, best score_x", "at distance 1.0000 from the rows before"]
    with pytest.raises(ValueError, match="row 3 has no vector"):
        next(farthest_first(vectors, 3))


def test_farthest_first_stays_within_twice_the_best_radius():
    vectors = some_vectors(5, n=80, d=3)[:20]
    rows = present(vectors)
    chord = np.linalg.norm(vectors[rows, None] - vectors[None, rows], axis=2)  # a metric, of the same order as cosine
    order = [rows.index(row) for row, _ in farthest_first(vectors, rows[0])]
    best = min(chord[:, some].min(axis=1).max() for some in map(list, combinations(range(len(rows)), 3)))
    assert chord[:, order[:3]].min(axis=1).max() <= 2 * best + 1e-6


# score, then threshold


def plain_filter(vectors: np.ndarray, order: list[int], threshold: float) -> list[int]:
    kept: list[int] = []
    for row in order:
        if np.isfinite(vectors[row]).all() and all(float(vectors[row] @ vectors[j]) <= threshold for j in kept):
            kept.append(row)
    return kept


@pytest.mark.parametrize("vectors", VECTORS, ids=range(len(VECTORS)))
@pytest.mark.parametrize("threshold", [0.3, 0.9])
@pytest.mark.parametrize("block", [1, 8, 256])
def test_threshold_filter_is_the_plain_rule(vectors, threshold, block, monkeypatch):
    monkeypatch.setattr(hf_select.selection.score_then_threshold, "BLOCK", block)
    order = np.random.default_rng(0).permutation(len(vectors))
    expected = plain_filter(vectors, order.tolist(), threshold)
    assert list(threshold_filter(vectors, order, threshold)) == expected
    assert list(islice(threshold_filter(vectors, order, threshold), 2)) == expected[:2]


def test_score_then_threshold_by_hand():
    # By score 3, 0, 1, 2. Row 0 has cosine 0.96 to row 3 and goes; row 1 has 0.6 to row 3; row 2 has 0.8 to row 1,
    # and its 0.96 to row 0 does not matter, since row 0 was not kept.
    vectors = np.array([[0.96, 0.28], [0.6, 0.8], [0.84, 0.5426], [1, 0]])
    dataset = Dataset.from_dict({"score_x": [3.0, 2.0, 1.0, 4.0], "num_tokens": [1, 1, 1, 1]})
    selector = ScoreThenThreshold(vectors, "score_x", threshold=0.95)
    selection = selector(dataset, k=3)
    assert selection.indices.tolist() == [3, 1, 2]
    assert selection.reasons[1] == "score_x 2, rank 3, 1 better rows passed over as alike"
    assert selection.chain[0]["passed_over"] == 1 and selection.chain[0]["scored"] == 4
    assert selector(dataset, tokens=2).indices.tolist() == [3, 1]
    with pytest.raises(
        ValueError, match="4 rows were requested, but only 3 of 4 rows with a score and a vector are left"
    ):
        selector(dataset, k=4)
    for threshold in (0, 1, 1.5):
        with pytest.raises(ValueError, match="between 0 and 1"):
            ScoreThenThreshold(vectors, "score_x", threshold=threshold)


# clusters in turn


def test_clusters_take_turns_the_largest_first():
    clusters = np.array([0, 1, 1, 1, 2, 2, 0])
    # Sizes among the ordered rows: 0 has 2, 1 has 3, 2 has 2.
    order = np.array([6, 5, 4, 3, 2, 1, 0])
    assert take_turns(order, clusters).tolist() == [3, 6, 5, 2, 0, 4, 1]


def test_k_means_buckets_take_the_best_of_each_theme():
    rng = np.random.default_rng(0)
    themes = np.repeat([0, 1, 2], [30, 20, 10])
    vectors = np.eye(3)[themes] + 0.05 * rng.standard_normal((60, 3))
    scores = rng.permutation(60).astype(float)
    dataset = Dataset.from_dict({"score_x": scores})
    selection = KMeansBuckets(vectors, num_clusters=3, column="score_x", seed=1)(dataset, k=6)
    assert themes[selection.indices].tolist() == [0, 1, 2, 0, 1, 2], "the themes are to take turns, largest first"
    for theme in range(3):
        best = np.flatnonzero(themes == theme)[np.argsort(-scores[themes == theme])[:2]]
        assert selection.indices[theme::3].tolist() == best.tolist()
    central = KMeansBuckets(vectors, num_clusters=3, seed=1)(dataset, k=3)
    for theme, row in enumerate(central.indices):
        own = unit(vectors)[themes == theme]
        centre = own.mean(axis=0) / np.linalg.norm(own.mean(axis=0))
        assert unit(vectors)[row] @ centre >= np.quantile(own @ centre, 0.9), "the first row should be a central one"
    for k in (5, 60):
        again = [KMeansBuckets(vectors, num_clusters=5, seed=7)(dataset, k=k).indices.tolist() for _ in range(2)]
        assert again[0] == again[1]
    with pytest.raises(ValueError, match="61 clusters of 60 vectors"):
        KMeansBuckets(vectors, num_clusters=61)(dataset, k=1)
    with pytest.raises(ValueError, match="num_clusters is 0"):
        KMeansBuckets(vectors, num_clusters=0)


# all of them


def selectors(vectors):
    return {
        "farthest_first": FarthestFirst(vectors),
        "facility_location": FacilityLocation(vectors),
        "score_then_threshold": ScoreThenThreshold(vectors, "score_x", threshold=0.9999),
        "k_means_buckets": KMeansBuckets(vectors, num_clusters=4, column="score_x"),
        "k_means_central": KMeansBuckets(vectors, num_clusters=4),
    }


@pytest.mark.parametrize("name", selectors(None))
def test_selector_keeps_the_laws(name):
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((30, 5))
    vectors[::5] = np.nan
    scores = [float(i % 7) for i in range(30)]
    dataset = Dataset.from_dict({"score_x": scores, "num_tokens": list(range(10, 40))})
    check_selector(lambda: selectors(vectors)[name], dataset, unscored=set(range(0, 30, 5)))


class Index:
    """Stands for a PoolIndex."""

    def __init__(self, vectors):
        self.vectors = vectors

    def to_numpy(self):
        return self.vectors.astype(np.float32)


@pytest.mark.parametrize("name", selectors(None))
def test_arrays_columns_and_indices_give_the_same_rows(name, tmp_path):
    vectors = np.random.default_rng(4).standard_normal((25, 4)).astype(np.float32) * 3
    lists: list = vectors.tolist()
    vectors[6] = np.nan
    lists[6] = None
    before = vectors.copy()
    dataset = Dataset.from_dict({"score_x": list(range(25)), "embedding": lists})
    found = {
        kind: selectors(given)[name](dataset, k=8)
        for kind, given in {"array": vectors, "column": "embedding", "index": Index(vectors)}.items()
    }
    assert found["array"].indices.tolist() == found["column"].indices.tolist() == found["index"].indices.tolist()
    np.testing.assert_array_equal(vectors, before, "the caller's vectors were changed")
    assert found["array"].chain[0]["vectors"] == "ndarray of shape (25, 4)"
    assert found["column"].chain[0]["vectors"] == "embedding"
    assert found["array"].chain[0]["without_vector"] == 1
    found["array"].save(tmp_path / "selection.parquet")
    assert type(found["array"]).load(tmp_path / "selection.parquet").chain == found["array"].chain


def test_length_of_the_vectors_tells_nothing_apart():
    vectors = np.random.default_rng(4).standard_normal((25, 4))
    scaled = vectors * np.random.default_rng(5).uniform(0.1, 10, (25, 1))
    dataset = Dataset.from_dict({"score_x": list(range(25))})
    for name in selectors(None):
        rows = [selectors(given)[name](dataset, k=8).indices.tolist() for given in (vectors, scaled)]
        assert rows[0] == rows[1], name


def test_wrong_vectors_are_refused():
    dataset = Dataset.from_dict({"a": [[1.0, 2.0], [1.0]], "text": ["x", "y"]})
    for given, message in (
        (np.ones((3, 2)), "3 vectors for 2 rows"),
        (np.ones(2), r"shape \(2,\)"),
        ("b", '"b" is missing'),
        ("a", r"lengths \[1, 2\]"),
        ("text", "not lists of numbers"),
        (np.full((2, 2), np.nan), "none of 2 rows has a vector"),
    ):
        with pytest.raises(ValueError, match=message):
            FacilityLocation(given)(dataset, k=1)
    with pytest.raises(ValueError, match="score_x.*missing"):
        ScoreThenThreshold(np.ones((2, 2)), "score_x")(dataset, k=1)
