"""Every selector by scores through the shared laws; those by vectors are in test_vector_selectors.py."""

import pytest
from contracts import check_selector
from datasets import Dataset

from hf_select import Longest, Random, RoundRobin, Sample, TopK, WeightedRanks


SELECTORS = {
    "best": lambda: TopK("score_x"),
    "worst": lambda: TopK("score_x", which="worst"),
    "bounded": lambda: TopK("score_x", at_least=0, at_most=6),
    "sample": lambda: Sample("score_x", seed=3),
    "longest": lambda: Longest("score_x"),
    "without_length": lambda: TopK("score_x", length="residual", length_column="score_y"),
    "length_strata": lambda: TopK("score_x", length="strata", length_column="score_y"),
    "weighted_ranks": lambda: WeightedRanks({"score_x": 1, "score_y": -0.5}),
    "round_robin": lambda: RoundRobin(["score_x", "score_y"]),
    "global_max": lambda: RoundRobin(["score_x", "score_y"], mode="global_max"),
}


@pytest.fixture(scope="module")
def scored() -> Dataset:
    scores = [float(i % 7) if i % 5 else None for i in range(30)]
    other = [float(i % 11) for i in range(30)]
    columns = {"score_x": scores, "score_y": other}
    return Dataset.from_dict({**columns, "num_tokens": list(range(10, 40)), "source": list("aabbbbbbbc") * 3})


@pytest.mark.parametrize("name", SELECTORS)
def test_ranking_selector_keeps_the_laws(name, scored):
    check_selector(SELECTORS[name], scored, unscored={i for i in range(30) if i % 5 == 0})


@pytest.mark.parametrize("balanced_by", [None, "source"])
def test_random_keeps_the_laws(balanced_by, scored):
    check_selector(lambda: Random(seed=4, balanced_by=balanced_by), scored)
