"""Round robin: the paper's rule, its duplicates and ties, weights and caps; and the alternatives by name."""

import numpy as np
import pytest
from datasets import Dataset

from hf_select import RoundRobin
from hf_select.selection.round_robin import round_robin


A, B = np.array([0.9, 0.8, 0.7, 0.1]), np.array([0.1, 0.2, 0.3, 0.4])


def by_the_book(similarities, k):
    """Algorithm 1 word for word: full sorts, and a duplicate consumes the turn."""
    rankings = [np.argsort(-s, kind="stable").tolist() for s in similarities]
    rows, targets, taken = [], [], set()
    for step in range(len(rankings[0])):
        for target, ranking in enumerate(rankings):
            if len(rows) < k and ranking[step] not in taken:
                taken.add(ranking[step])
                rows.append(ranking[step])
                targets.append(target)
    return rows, targets


def test_every_target_has_its_say():
    assert round_robin([A, B], 2)[0].tolist() == [0, 3]
    dataset = Dataset.from_dict({"score_a": A, "score_b": B})
    assert RoundRobin(["score_a", "score_b"])(dataset, k=2).indices.tolist() == [0, 3]
    assert RoundRobin(["score_a", "score_b"], mode="global_max")(dataset, k=2).indices.tolist() == [0, 1]


def test_a_duplicate_consumes_its_turn():
    a, b = np.array([0.9, 0.8, 0.1, 0.5]), np.array([0.95, 0.2, 0.3, 0.6])
    rows, targets = round_robin([a, b], 3)
    assert rows.tolist() == [0, 1, 3] and targets.tolist() == [0, 0, 1]


@pytest.mark.parametrize("num_targets", [1, 3, 20])
def test_it_is_algorithm_1_on_random_scores_with_ties(num_targets):
    rng = np.random.default_rng(num_targets)
    similarities = [rng.integers(0, 30, 400) / 30 for _ in range(num_targets)]
    for k in (1, 5, 60, 399, 400):
        rows, targets = round_robin(similarities, k)
        assert (rows.tolist(), targets.tolist()) == by_the_book(similarities, k)


def test_the_order_of_the_targets_is_the_order_of_their_turns():
    assert round_robin([B, A], 2)[0].tolist() == [3, 0]


def test_mean_max_lets_a_task_with_high_similarities_rule():
    high, low = np.array([0.99, 0.98, 0.9, 0.9]), np.array([0.0, 0.0, 0.05, 0.06])
    dataset = Dataset.from_dict({"score_a": high, "score_b": low})
    assert RoundRobin(["score_a", "score_b"], mode="mean_max")(dataset, k=2).indices.tolist() == [0, 1]
    assert RoundRobin(["score_a", "score_b"])(dataset, k=2).indices.tolist() == [0, 3]


def test_weights_share_out_the_turns():
    rng = np.random.default_rng(0)
    targets = round_robin([rng.random(10_000), rng.random(10_000)], 400, weights=[3, 1])[1]
    assert (targets == 0).sum() == pytest.approx(300, abs=12)  # a few turns are lost to duplicates
    assert targets[:4].tolist() == [0, 0, 0, 1]
    equal = round_robin([A, B], 4, weights=[1, 1])
    assert equal[0].tolist() == round_robin([A, B], 4)[0].tolist()


def test_a_cap_passes_over_rows_of_a_full_source():
    dataset = Dataset.from_dict({"score_a": [9.0, 8, 7, 6, 5, 4], "source": list("xxxyyz")})
    capped = RoundRobin(["score_a"], max_per="source", cap=1)
    assert capped(dataset, k=3).indices.tolist() == [0, 3, 5]
    with pytest.raises(ValueError, match="4 rows were requested, but only 3"):
        capped(dataset, k=4)


def test_a_row_that_one_task_cannot_rank_none_can():
    dataset = Dataset.from_dict({"score_a": [0.9, 0.8, 0.7], "score_b": [None, 0.1, 0.2]})
    assert sorted(RoundRobin(["score_a", "score_b"])(dataset, k=2).indices.tolist()) == [1, 2]
    with pytest.raises(ValueError, match="only 2"):
        RoundRobin(["score_a", "score_b"])(dataset, k=3)


def test_each_row_says_which_target_chose_it_and_how_near_it_was():
    dataset = Dataset.from_dict({"score_rds_math": A, "score_rds_code": B})
    selection = RoundRobin(["score_rds_math", "score_rds_code"])(dataset, k=3)
    assert selection.reasons == [
        "chosen by task math, similarity 0.9000",
        "chosen by task code, similarity 0.4000",
        "chosen by task math, similarity 0.8000",
    ]
    np.testing.assert_allclose(selection.scores, [0.9, 0.4, 0.8])


def test_a_list_column_has_a_target_for_each_query():
    rows = [[a, b] for a, b in zip(A.tolist(), B.tolist(), strict=True)]
    dataset = Dataset.from_dict({"rds_similarities": [*rows, None]})
    selection = RoundRobin("rds_similarities")(dataset, k=3)
    assert selection.indices.tolist() == [0, 3, 1] and "query 1" in selection.reasons[1]


def test_a_token_budget_ends_the_turns():
    dataset = Dataset.from_dict({"score_a": A, "score_b": B, "num_tokens": [10, 10, 10, 10]})
    assert RoundRobin(["score_a", "score_b"])(dataset, tokens=25).indices.tolist() == [0, 3]


def test_settings_are_checked():
    for settings in (
        {"mode": "max"},
        {"weights": [0.0]},
        {"cap": 3},
        {"max_per": "x"},
        {"mode": "mean_max", "weights": [1.0]},
    ):
        with pytest.raises(ValueError):
            RoundRobin(["score_a"], **settings)
    with pytest.raises(ValueError, match="similarities is empty"):
        RoundRobin([])
    dataset = Dataset.from_dict({"score_a": A})
    with pytest.raises(ValueError, match="2 weights for 1 targets"):
        RoundRobin(["score_a"], weights=[1, 2])(dataset, k=1)
    with pytest.raises(ValueError, match="score_b.*Did you mean"):
        RoundRobin(["score_b"])(dataset, k=1)
