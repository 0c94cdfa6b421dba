"""The pool index: vectors on disk that are those of the rows, and that refuse every other pool, model and setting."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from killing import finished_parts

from hf_select import PoolIndex, RDSPlus, score
from hf_select.data.conversation import conversations
from hf_select.features.featurizer import unit
from hf_select.features.hidden_states import HiddenStates
from hf_select.reports.ledger import read_step
from hf_select.scoring.score import whole_cost


QUERIES = Dataset.from_list([{"prompt": "Name three fruits.", "completion": "Figs, plums and pears."}] * 2)


@pytest.fixture
def pool(rows) -> Dataset:
    return Dataset.from_list([*rows, {"prompt": None, "completion": "x"}])


def build(pool, model_path, folder, stored_dtype="float32", chunk_rows=7, **settings):
    featurizer = HiddenStates(model_path, **settings)
    return PoolIndex.build(pool, featurizer, folder, stored_dtype=stored_dtype, chunk_rows=chunk_rows)


@pytest.mark.parametrize(("stored_dtype", "tolerance"), [("float32", 1e-6), ("float16", 1e-3)])
def test_stored_vectors_are_the_rows_own_at_length_one(pool, model_path, tmp_path, stored_dtype, tolerance):
    index = build(pool, model_path, tmp_path / "i", stored_dtype)
    direct = HiddenStates(model_path)(conversations(pool[: len(pool) - 1]))
    np.testing.assert_allclose(index.to_numpy()[:-1], unit(np.stack([f.vector for f in direct])), atol=tolerance)
    assert np.isnan(index.to_numpy()[-1]).all() and "null" in str(index.read(range(len(pool) - 1, len(pool)))[0])
    assert len(index) == len(pool) and index.row_ids() == list(range(len(pool)))
    across = index.to_numpy(range(5, 16))  # three parts
    np.testing.assert_array_equal(across, index.to_numpy()[5:16])
    read = Dataset.from_file(str(tmp_path / "i" / "vectors" / "part-00000.arrow"))
    assert read.column_names == ["row_id", "vector", "length", "reason"] and len(read[0]["vector"]) == index.dimensions


def test_scores_from_an_index_are_those_of_encoding(pool, model_path, tmp_path):
    index = build(pool, model_path, tmp_path / "i")

    def fitted():
        return RDSPlus(model_path, per_query=True).fit({"a": QUERIES, "b": pool.select([3, 4])})

    asked = score(pool, fitted(), tmp_path / "direct", bad_rows="null")
    scorer = fitted()
    scorer.featurizer.load()
    before = scorer.usage()["sequences"]
    stored = score(pool, scorer, tmp_path / "stored", bad_rows="null", index=index, chunk_rows=10)
    assert scorer.usage()["sequences"] == before + 2, "more than the two probe texts went through the model"
    assert stored.column_names == asked.column_names and stored["rds_reason"] == asked["rds_reason"]
    for column in ("score_rds", "score_rds_a", "score_rds_b"):
        np.testing.assert_allclose(stored[column][:-1], asked[column][:-1], atol=1e-6)
        assert stored[column][-1] is asked[column][-1] is None
    # What the scores cost: a pass over the pool in either case, in the index once for all that is asked of it; and the
    # queries, which no index holds.
    direct, of_index = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("direct", "stored"))
    assert of_index["index_cost"]["tokens"] == direct["cost"]["tokens"] > 0 == of_index["cost"]["tokens"]
    queries = of_index["preparation_cost"]["queries"]
    assert 0 < queries["tokens"] < direct["cost"]["tokens"] and queries["flops"] > 0
    cost = whole_cost(tmp_path / "stored")
    assert cost["flops"] == of_index["index_cost"]["flops"] + queries["flops"]
    assert cost["seconds"] > of_index["cost"]["seconds"] + queries["seconds"]
    assert whole_cost(tmp_path / "direct")["flops"] == direct["cost"]["flops"] + queries["flops"]
    assert read_step(tmp_path / "direct").cost["flops"] == direct["cost"]["flops"] + queries["flops"]
    best, direct = (fitted().best_rows(pool, 4, batch_size=9, index=i) for i in (index, None))
    np.testing.assert_allclose(best.similarities, direct.similarities, atol=1e-6)  # near ties may swap their rows


def test_rows_that_repeat_a_query_are_found_with_an_index_too(pool, model_path, tmp_path):
    index = build(pool, model_path, tmp_path / "i")
    scorer = RDSPlus(model_path, query_overlap="null").fit(pool.select([3]))
    scored = score(pool, scorer, tmp_path / "o", bad_rows="null", index=index)
    assert scored["score_rds"][3] is None and "has the prompt of query 0" in scored["rds_reason"][3]


def test_an_index_of_another_pool_model_or_setting_is_refused_and_nothing_is_written(pool, model_path, tmp_path):
    index = build(pool, model_path, tmp_path / "i")
    fitted = RDSPlus(model_path).fit(QUERIES)

    def refused(dataset, scorer, match):
        with pytest.raises(ValueError, match=match):
            score(dataset, scorer, tmp_path / "o", bad_rows="null", index=index)
        assert not (tmp_path / "o").exists()

    refused(pool.select(range(9)), fitted, r"other rows \(\d+ there, 9 here\)")
    refused(pool.select(list(range(len(pool)))[::-1]), fitted, "other rows")
    refused(pool, RDSPlus(model_path, pooling="mean").fit(QUERIES), "pooling weighted_mean there, mean here")
    refused(pool, RDSPlus(model_path, text_format="tulu").fit(QUERIES), "text_format chat there, tulu here")
    other = _with_other_weights(model_path, tmp_path / "other")
    refused(pool, RDSPlus(other).fit(QUERIES), "another model.*apart")
    other = _with_other_template(model_path, tmp_path / "template")
    refused(pool, RDSPlus(other).fit(QUERIES), "another chat template")
    with pytest.raises(ValueError, match="other rows"):
        fitted.best_rows(pool.select(range(9)), 2, index=index)
    from hf_select import Length

    refused(pool, Length(), "compares no vectors")


def test_the_same_model_in_another_place_opens_the_index(pool, model_path, tmp_path):
    import shutil

    index = build(pool, model_path, tmp_path / "i")
    shutil.copytree(model_path, tmp_path / "copy")
    os.rename(tmp_path / "i", tmp_path / "moved")
    index = PoolIndex.open(tmp_path / "moved")
    index.check(pool, HiddenStates(str(tmp_path / "copy")))


def test_an_index_without_an_identity_is_refused(pool, model_path, tmp_path):
    index = build(pool, model_path, tmp_path / "i")
    del index.manifest["made_by"]["identity"]
    with pytest.raises(ValueError, match="of an earlier version of hf_select; build it again"):
        index.check(pool, HiddenStates(model_path))


def test_building_goes_on_after_a_kill_and_refuses_other_settings(pool, model_path, tmp_path):
    index = build(pool, model_path, tmp_path / "i")
    whole = index.to_numpy()
    part = tmp_path / "i" / "vectors" / "part-00001.arrow"
    others = {p: p.stat().st_mtime_ns for p in part.parent.glob("part-*") if p != part}
    part.unlink()
    with pytest.raises(ValueError, match="does not exist; run the same hf-select index"):
        index.to_numpy()
    again = build(pool, model_path, tmp_path / "i")
    np.testing.assert_allclose(again.to_numpy(), whole, atol=1e-6)
    assert {p: p.stat().st_mtime_ns for p in others} == others, "a finished part was made again"
    with pytest.raises(ValueError, match="stored_dtype float32 there, float16 here"):
        build(pool, model_path, tmp_path / "i", "float16")
    with pytest.raises(ValueError, match="other rows"):
        build(pool.select(range(5)), model_path, tmp_path / "i")
    with pytest.raises(ValueError, match="can be float32, float16, int8, 1bit"):
        build(pool, model_path, tmp_path / "j", "int3")
    assert not (tmp_path / "j").exists()


def test_what_is_damaged_or_unfinished_is_said(pool, model_path, tmp_path):
    index = build(pool, model_path, tmp_path / "i")
    part = tmp_path / "i" / "vectors" / "part-00001.arrow"
    sound = part.read_bytes()

    def write(vectors: np.ndarray) -> None:
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        table = pa.table({"row_id": list(range(7)), "vector": column, "reason": [""] * 7})
        with pa.OSFile(str(part), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)

    vectors = np.ones((7, index.dimensions), dtype=np.float32)
    vectors[2, 5] = np.nan
    write(vectors)
    with pytest.raises(ValueError, match="row 9 is not finite.*part-00001"):
        index.to_numpy()
    with pytest.raises(ValueError, match="row 9 is not finite"):
        score(pool, RDSPlus(model_path).fit(QUERIES), tmp_path / "o", index=index, bad_rows="null")
    assert not (tmp_path / "o").exists()
    write(np.ones((7, 3), dtype=np.float32))
    with pytest.raises(ValueError, match="vectors of 3 numbers, the index of"):
        index.read(range(8, 9))
    part.write_bytes(sound)
    (tmp_path / "i" / "index.json").unlink()
    with pytest.raises(ValueError, match="not finished"):
        PoolIndex.open(tmp_path / "i")
    with pytest.raises(ValueError, match="no index in"):
        PoolIndex.open(tmp_path)


def test_a_pool_without_a_single_vector_is_still_an_index(model_path, tmp_path):
    pool = Dataset.from_dict({"prompt": ["a", None], "completion": [None, "b"]}, None)
    index = build(pool, model_path, tmp_path / "i")
    assert index.summary["with_vector"] == 0 and np.isnan(index.to_numpy()).all()


@pytest.mark.slow
def test_kill_9_while_building_loses_only_the_part_in_flight(model_path, tmp_path):
    code = textwrap.dedent(
        f"""
        from datasets import Dataset
        from hf_select import PoolIndex
        from hf_select.features.hidden_states import HiddenStates
        pool = Dataset.from_list([{{"prompt": "a b c " * (i % 90), "completion": "d " * 60}} for i in range(3000)])
        PoolIndex.build(pool, HiddenStates({model_path!r}, max_length=512), {str(tmp_path / "i")!r}, chunk_rows=50)
        """
    )

    def start():
        return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)

    killed = 0
    for parts in (2, 9):
        process = start()
        while process.poll() is None and len(list((tmp_path / "i").glob("vectors/*.arrow"))) < parts:
            time.sleep(0.005)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
    assert killed == 2
    finished = finished_parts(tmp_path / "i", "vectors/*.arrow")
    assert len(finished) >= 8
    assert start().wait() == 0
    index = PoolIndex.open(tmp_path / "i")
    assert index.summary["with_vector"] == 3000 and np.isfinite(index.to_numpy()).all()
    for name, stamp in finished.items():
        assert (tmp_path / "i" / "vectors" / name).stat().st_mtime_ns == stamp
    assert not list((tmp_path / "i" / "vectors").glob("*.tmp"))


def _with_other_weights(model_path: str, folder) -> str:
    import shutil

    import torch
    from transformers import AutoModelForCausalLM

    shutil.copytree(model_path, folder)
    model = AutoModelForCausalLM.from_pretrained(model_path)
    with torch.no_grad():
        for weight in model.model.layers.parameters():
            weight += 0.01 * torch.randn_like(weight)
    model.save_pretrained(folder)
    return str(folder)


def _with_other_template(model_path: str, folder) -> str:
    import shutil

    shutil.copytree(model_path, folder)
    path = folder / "chat_template.jinja"
    if path.exists():
        path.write_text(path.read_text().replace("<|im_start|>", "<|im_end|>"))
    else:
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config["chat_template"] = config["chat_template"].replace("<|im_start|>", "<|im_end|>")
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)
