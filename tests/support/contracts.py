"""The laws of every scorer and selector. A new method adds a case to scoring/test_contracts.py or
selection/test_selector_contracts.py, not a test of its own for these.
"""

import json
import pickle
import random
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from datasets.fingerprint import Hasher

from hf_select.data import columns
from hf_select.scoring.scorer import Scorer
from hf_select.selection.selector import Selector


def check_scorer(make: Any, rows: list[dict[str, Any]], tolerance: float = 1e-5) -> None:
    """`make()` gives a fresh scorer; `rows` are rows that it can score."""
    scorer = make()
    batch = _batch(rows)
    before = {name: list(values) for name, values in batch.items()}
    hash_before = Hasher.hash(scorer)
    whole = scorer(batch)
    score = columns.score_column(scorer.name)

    assert batch == before, "the batch was changed in place"
    assert set(whole) == set(scorer.columns_out), "columns other than columns_out"
    assert {score, columns.reason_column(score)} <= set(whole)
    assert all(len(values) == len(rows) for values in whole.values()), "a column of another length than the batch"
    for value, reason in zip(whole[score], whole[columns.reason_column(score)], strict=True):
        assert isinstance(reason, str), (
            "a reason is a string, never null: datasets types the column by its first batch"
        )
        assert value is not None or reason, "a null without a reason"
        assert value is None or np.isfinite(value), "a score that is not a finite number"

    alone = [scorer(_batch([row]))[score][0] for row in rows]
    _same(whole[score], alone, tolerance, "alone and in a batch")
    shuffled = random.Random(0).sample(range(len(rows)), len(rows))
    permuted = scorer(_batch([rows[i] for i in shuffled]))[score]
    _same([whole[score][i] for i in shuffled], permuted, tolerance, "in another order")

    assert Hasher.hash(scorer) == hash_before, "the hash changed by scoring: the datasets cache would never hit"
    assert Hasher.hash(make()) == hash_before, "two scorers of the same settings hash differently"
    again = pickle.loads(pickle.dumps(scorer))
    assert Hasher.hash(again) == hash_before, "the hash changed by pickling: a run could not be continued"
    assert again.settings().keys() == scorer.settings().keys()
    _same(whole[score], again(batch)[score], tolerance, "after pickling")

    with pytest.raises(ValueError, match="nonsense"):
        scorer({"nonsense": [1]})
    broken = scorer({"prompt": [None, rows[0]["prompt"]], "completion": ["x", rows[0]["completion"]]})
    assert broken[score][0] is None and "null" in broken[columns.reason_column(score)][0]
    _same(whole[score][:1], broken[score][1:], tolerance, "beside a broken row")

    mapped = Dataset.from_list(rows).map(scorer, batched=True, batch_size=7)
    _same(whole[score], mapped[score], tolerance, "through Dataset.map")
    streamed = [row[score] for row in Dataset.from_list(rows).to_iterable_dataset().map(scorer, batched=True)]
    _same(whole[score], streamed, tolerance, "through IterableDataset.map")
    assert isinstance(scorer, Scorer) and scorer.name and isinstance(scorer.higher_is_better, bool)


def check_selector(make: Any, dataset: Any, unscored: set[int] = frozenset()) -> None:  # type: ignore[assignment]
    """`make()` gives a fresh selector; `unscored` are rows without a score, which must never be taken."""
    choosable = len(dataset) - len(unscored)
    for k in (1, 5, choosable):
        selection = make()(dataset, k=k)
        assert len(selection) == k == len(selection.reasons)
        assert len(set(selection.indices.tolist())) == k, "a row twice"
        assert all(0 <= i < len(dataset) for i in selection.indices)
        assert not unscored & set(selection.indices.tolist()), "a row without a score was taken"
        assert all(selection.reasons), "a row without a reason"
        assert make()(dataset, k=k).indices.tolist() == selection.indices.tolist(), "not deterministic"
    applied = selection.apply(dataset)
    assert applied[columns.SELECTION_RANK] == list(range(1, choosable + 1))
    with pytest.raises(ValueError, match=rf"{choosable + 1}.*{choosable}"):
        make()(dataset, k=choosable + 1)
    for bad in ({}, {"k": 1, "fraction": 0.5}, {"fraction": 0.0}, {"fraction": 1.01}, {"k": 0}, {"tokens": 0}):
        with pytest.raises(ValueError):
            make()(dataset, **bad)
    assert isinstance(make(), Selector) and json.loads(json.dumps(selection.chain)) == selection.chain
    assert selection.ranking is None or len(selection.ranking.values) == len(dataset)
    tokens = np.array(dataset[columns.NUM_TOKENS])
    budget = int(tokens.sum() // 3)
    spent = tokens[make()(dataset, tokens=budget).indices].sum()
    assert 0 < spent <= budget, f"{spent} tokens of a budget of {budget}"


def _batch(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _same(expected: Any, found: Any, tolerance: float, where: str) -> None:
    expected, found = list(expected), list(found)
    assert [e is None for e in expected] == [f is None for f in found], f"nulls differ {where}"
    numbers = [(e, f) for e, f in zip(expected, found, strict=True) if e is not None]
    np.testing.assert_allclose(
        [f for _, f in numbers],
        [e for e, _ in numbers],
        rtol=tolerance,
        atol=tolerance,
        err_msg=f"scores differ {where}",
    )
