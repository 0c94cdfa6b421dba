"""Centred, whitened and layered similarities: index and encoding, orders and processes agree."""

import pickle

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset

from hf_select import CausalLM, PoolIndex, RDSPlus, score
from hf_select.data.conversation import conversations
from hf_select.features.hidden_states import HiddenStates


SETTINGS = [
    {"center": True},
    {"center": True, "whiten": 0.5},
    {"layers": [1, -1]},
    {"layers": [2, 1, -1], "center": True, "whiten": 1.0},
]
QUERIES = {
    "fruits": Dataset.from_list([{"prompt": "Name three fruits.", "completion": "Figs, plums and pears."}] * 2),
    "sums": Dataset.from_list([{"prompt": "What is 2 + 2?", "completion": "4"}]),
}


@pytest.fixture
def pool(rows) -> Dataset:
    return Dataset.from_list([*rows, {"prompt": None, "completion": "x"}])


def scores_of(dataset: Dataset) -> np.ndarray:
    names = ("score_rds", "score_rds_fruits", "score_rds_sums")
    return np.array([dataset[name] for name in names], dtype=np.float64)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_an_index_and_encoding_agree(pool, model_path, tmp_path, settings):
    def scorer() -> RDSPlus:
        return RDSPlus(model_path, per_query=True, **settings)

    direct = score(pool, scorer().fit(QUERIES, pool=pool), tmp_path / "direct", bad_rows="null")
    index = PoolIndex.build(pool, scorer().featurizer, tmp_path / "i", stored_dtype="float32", chunk_rows=7)
    read = score(pool, scorer().fit(QUERIES, pool=index), tmp_path / "read", bad_rows="null", index=index)
    np.testing.assert_allclose(scores_of(read), scores_of(direct), atol=2e-5)
    again = PoolIndex.open(tmp_path / "i")  # with the moments that were kept
    kept = score(pool, scorer().fit(QUERIES, pool=again), tmp_path / "again", bad_rows="null", index=again)
    np.testing.assert_array_equal(scores_of(kept), scores_of(read))
    assert direct["rds_query"][0] is not None and np.isnan(scores_of(direct)[:, -1]).all()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_two_orders_and_other_chunks_give_the_same_scores(pool, model_path, tmp_path, settings):
    order = np.random.default_rng(0).permutation(len(pool))
    found = []
    for name, rows, chunk in (("a", pool, 5), ("b", pool.select(order), 11)):
        featurizer = RDSPlus(model_path, **settings).featurizer
        index = PoolIndex.build(rows, featurizer, tmp_path / name, stored_dtype="float32", chunk_rows=chunk)
        scorer = RDSPlus(model_path, **settings).fit(QUERIES, pool=index)
        found.append(scores_of(score(rows, scorer, tmp_path / f"{name}-scores", bad_rows="null", index=index)))
        if settings.get("center"):
            assert scorer.pool_rows_ == len(pool) - 1
    np.testing.assert_allclose(found[1], found[0][:, order], atol=2e-5)


def test_several_layers_take_one_pass_and_are_those_of_one_each(rows, model_path):
    lm, parsed = CausalLM(model_path), conversations(Dataset.from_list(rows)[:6])
    lm.load()
    before = vars(lm.usage).copy()
    together = [feature.vector for feature in HiddenStates(lm, layers=[2, -1, 1])(parsed)]
    spent = lm.usage.flops - before["flops"]
    alone = [np.concatenate([HiddenStates(lm, layers=[n])([row])[0].vector for n in (2, -1, 1)]) for row in parsed]
    np.testing.assert_allclose(together, alone, rtol=2e-4, atol=2e-5)
    HiddenStates(lm)(parsed)
    assert lm.usage.flops - before["flops"] > 2 * spent  # less than twice one whole pass, three layers and all
    default = [feature.vector for feature in HiddenStates(lm)(parsed)]
    np.testing.assert_array_equal(default, [feature.vector for feature in HiddenStates(lm, layers=[-1])(parsed)])


def test_similarities_are_the_mean_of_the_layers(rows, model_path):
    parsed = conversations(Dataset.from_list(rows)[:])
    found = {}
    for layers in ([1], [2], [1, 2]):
        found[str(layers)], _ = RDSPlus(model_path, layers=layers).fit(QUERIES).similarities(parsed)
    np.testing.assert_allclose(found["[1, 2]"], (found["[1]"] + found["[2]"]) / 2, atol=1e-5)


def test_what_was_learned_of_the_pool_is_pickled_and_part_of_the_identity(pool, model_path):
    scorer = RDSPlus(model_path, center=True, whiten=0.5).fit(QUERIES, pool=pool)
    again = pickle.loads(pickle.dumps(scorer))
    batch = pool.select(range(4))[:]
    assert again(batch)["score_rds"] == scorer(batch)["score_rds"] and again.identity() == scorer.identity()
    other = RDSPlus(model_path, center=True, whiten=0.5).fit(QUERIES, pool=pool.select(range(9)))
    assert other.identity() != scorer.identity()
    plain = RDSPlus(model_path).fit(QUERIES, pool=pool)
    assert plain.identity() == RDSPlus(model_path).fit(QUERIES).identity()  # the paper's form reads no pool


def test_refit_takes_the_mean_again(pool, model_path):
    scorer = RDSPlus(model_path, center=True).fit(QUERIES, pool=pool)
    batch, readers = pool.select(range(4))[:], scorer.readers()
    before = scorer(batch)["score_rds"]
    model = readers[0].load().model
    model.model.norm.weight.data.mul_(
        model.model.norm.weight.new_tensor(range(1, model.model.norm.weight.numel() + 1))
    )
    scorer.refit()
    changed = scorer(batch)["score_rds"]
    fresh = RDSPlus(readers[0], center=True).fit(QUERIES, pool=pool)
    assert changed != before and changed == fresh(batch)["score_rds"]


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"whiten": 0.5}, "whiten needs centred vectors"),
        ({"center": True, "whiten": 1.5}, "give a power from 0"),
        ({"layers": []}, "give different decoder layers"),
        ({"layers": [0]}, "give different decoder layers"),
        ({"layers": [1, 1]}, "give different decoder layers"),
    ],
)
def test_settings_that_make_no_sense_are_named(model_path, settings, error):
    with pytest.raises(ValueError, match=error):
        RDSPlus(model_path, **settings)


def test_centring_needs_a_pool_and_lengths(pool, model_path, tmp_path):
    scorer = RDSPlus(model_path, center=True)
    with pytest.raises(ValueError, match=r"fit\(queries, pool=dataset\)"):
        scorer.fit(QUERIES)
    with pytest.raises(ValueError, match="0 rows of the pool have a vector"):
        scorer.fit(QUERIES, pool=pool.select([len(pool) - 1]))
    index = PoolIndex.build(pool, scorer.featurizer, tmp_path / "i", chunk_rows=100)
    part = tmp_path / "i" / "vectors" / "part-00000.arrow"
    with pa.memory_map(str(part)) as file:
        table = pa.ipc.open_stream(file).read_all().drop_columns(["length"])
    with pa.OSFile(str(part), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ValueError, match="earlier version of hf_select, without the lengths"):
        scorer.fit(QUERIES, pool=index)
