"""The data of the quickstart: what its text says of them is true."""

from collections import Counter

import pytest
from datasets import Dataset

from hf_select import Dedup
from hf_select.quickstart import DAMAGES, SOURCES, make_pool, make_target


def test_a_seed_makes_the_same_data_and_another_seed_makes_others():
    assert make_pool(200, seed=3) == make_pool(200, seed=3) != make_pool(200, seed=4)
    assert make_target(5, 7, seed=3) == make_target(5, 7, seed=3) != make_target(5, 7, seed=4)


def test_the_pool_has_the_sources_copies_and_damage_of_its_answer_key():
    pool, key = make_pool(1000)
    assert len(pool) == len(key) == 1000 and [row["row_id"] for row in pool] == [row["row_id"] for row in key]
    assert all(set(row) == {"row_id", "source", "prompt", "completion"} for row in pool), "a scorer would see the key"
    shares = Counter(row["source"] for row in pool)
    assert {name: round(shares[name] / 1000, 1) for name in SOURCES} == {
        name: round(share, 1) for name, (_, share) in SOURCES.items()
    }
    assert Counter(row["copy"] for row in key) == {"": 850, "exact copy": 75, "near copy": 75}
    assert {row["damage"] for row in key} == {"", *DAMAGES}
    assert sum(row["damage"] != "" for row in key if not row["copy"]) == 68, "8 % of 850"


@pytest.mark.parametrize("seed", range(3))
def test_dedup_removes_the_copies_and_hardly_any_other_row(seed):
    pool, _ = make_pool(1000, seed=seed)
    assert 840 <= len(Dedup()(Dataset.from_list(pool))) <= 856, "850 rows are no copies"


@pytest.mark.parametrize("seed", range(3))
def test_no_row_of_the_target_is_in_the_pool_or_measured_as_well(seed):
    examples, held_out = ({row["prompt"] for row in rows} for rows in make_target(24, 80, seed=seed))
    assert len(examples) == 24 and len(held_out) == 80 and not examples & held_out
    assert not (examples | held_out) & {row["prompt"] for row in make_pool(1000, seed=seed)[0]}
