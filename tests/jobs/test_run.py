"""`score`: chunks whole or absent, resumed after a kill, refused for other rows or settings."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset
from killing import finished_parts

from hf_select import CausalLM, Length, SelectIT, score
from hf_select.data.rows import pool_fingerprint


def dataset_of(rows):
    return Dataset.from_list(rows)


def test_scores_equal_those_of_map_and_stand_alone_too(rows, model_path, tmp_path):
    scored = score(dataset_of(rows), SelectIT(model_path), tmp_path / "o", chunk_rows=7)
    mapped = dataset_of(rows).map(SelectIT(model_path), batched=True, batch_size=7)
    assert scored["score_selectit"] == mapped["score_selectit"]
    assert scored["row_id"] == list(range(len(rows))) and scored["prompt"] == mapped["prompt"]
    alone = pq.read_table(tmp_path / "o" / "scores.parquet")
    assert alone.column_names == ["row_id", "score_selectit", "selectit_reason"]
    assert alone["score_selectit"].to_pylist() == scored["score_selectit"]
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert summary["rows"] == summary["scored"] == len(rows) and summary["cost"]["flops"] > 0
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == [
        "done",
        "manifest.json",
        "running",
        "scored",
        "scores.parquet",
        "summary.json",
    ]


def test_a_second_run_scores_nothing_again(rows, tmp_path, monkeypatch):
    score(dataset_of(rows), Length(), tmp_path / "o", chunk_rows=9)
    monkeypatch.setattr(Length, "measure", lambda *_: pytest.fail("scored again"))
    score(dataset_of(rows), Length(), tmp_path / "o", chunk_rows=9)
    os.remove(tmp_path / "o" / "scored" / "part-00001.parquet")
    with pytest.raises(pytest.fail.Exception):
        score(dataset_of(rows), Length(), tmp_path / "o", chunk_rows=9)


def test_other_rows_or_settings_are_refused_by_name(rows, tmp_path):
    score(dataset_of(rows), Length(), tmp_path / "o")
    with pytest.raises(ValueError, match="of all there, response here"):
        score(dataset_of(rows), Length(of="response"), tmp_path / "o")
    with pytest.raises(ValueError, match="other rows"):
        score(dataset_of([*rows[:-1], {"prompt": "changed", "completion": "x"}]), Length(), tmp_path / "o")
    with pytest.raises(ValueError, match="chunk_rows 1000 there, 5 here"):
        score(dataset_of(rows), Length(), tmp_path / "o", chunk_rows=5)


def test_the_pool_fingerprint_follows_the_content_alone(rows, tmp_path):
    dataset = dataset_of(rows)
    dataset.to_parquet(tmp_path / "a.parquet")
    read = load_dataset("parquet", data_files=str(tmp_path / "a.parquet"), split="train")
    assert pool_fingerprint(dataset) == pool_fingerprint(read)
    many = Dataset.from_dict({"a": [str(i) * (i % 7) for i in range(10_000)], "b": [None, 1] * 5_000})
    many.to_parquet(tmp_path / "many.parquet", batch_size=777)
    read = load_dataset("parquet", data_files=str(tmp_path / "many.parquet"), split="train")
    assert pool_fingerprint(many) == pool_fingerprint(read)
    twins = [Dataset.from_dict({"a": ["x", "y", other], "b": [True, None, other == "z"]}) for other in "zq"]
    assert len({pool_fingerprint(twin.select(range(2))) for twin in twins}) == 1, "the row after the slice leaked in"
    turned = dataset.select(list(range(len(rows)))[::-1])
    assert pool_fingerprint(turned) != pool_fingerprint(dataset)
    assert pool_fingerprint(turned.select(list(range(len(rows)))[::-1])) == pool_fingerprint(dataset)


def test_a_killed_run_goes_on_with_a_smaller_batch(rows, model_path, tmp_path):
    """What a user does whose run was killed for memory. The type of the weights, though, changes the scores."""

    def run(**options):
        return score(dataset_of(rows), SelectIT(CausalLM(model_path, **options)), tmp_path / "o", chunk_rows=7)

    run()
    os.remove(tmp_path / "o" / "scored" / "part-00002.parquet")
    run(tokens_per_batch=300, device="cpu")
    with pytest.raises(ValueError, match="model.dtype auto there, bfloat16 here"):
        run(dtype="bfloat16")


def test_rows_scored_in_part_are_counted_apart(rows, model_path, tmp_path):
    score(dataset_of(rows), SelectIT(model_path, max_length=90), tmp_path / "o")
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert summary["scored"] == len(rows) and summary["reasons"] == {}
    assert 0 < summary["notes"]["response cut to fit 90 tokens"] < len(rows)


def test_a_folder_left_by_a_kill_before_the_manifest_is_used(rows, tmp_path):
    (tmp_path / "o" / "scored").mkdir(parents=True)
    assert len(score(dataset_of(rows), Length(), tmp_path / "o")) == len(rows)


def test_brackets_in_a_path_are_no_pattern(rows, tmp_path):
    assert len(score(dataset_of(rows), Length(), tmp_path / "run[1]")) == len(rows)


def test_another_tokenizer_under_the_same_path_is_another_scorer(model_path, tmp_path):
    import shutil

    from datasets.fingerprint import Hasher

    shutil.copytree(model_path, tmp_path / "t")
    before = Hasher.hash(Length(tokenizer=str(tmp_path / "t")))
    path = tmp_path / "t" / "tokenizer.json"
    path.write_text(path.read_text().replace('"id": 1,', '"id": 2,', 1))
    assert Hasher.hash(Length(tokenizer=str(tmp_path / "t"))) != before


def test_a_failure_before_the_first_chunk_leaves_nothing(rows, tmp_path):
    with pytest.raises(ValueError, match="no model folder"):
        score(dataset_of(rows), SelectIT("/nowhere/at/all"), tmp_path / "a" / "o")
    with pytest.raises(ValueError, match="no conversation"):
        score(Dataset.from_dict({"x": [1]}), Length(), tmp_path / "a" / "o")
    assert list(tmp_path.iterdir()) == []


def test_broken_rows_stop_the_run_before_it_starts_or_go_unscored(tmp_path):
    data = Dataset.from_dict({"prompt": ["a", None, "c"], "completion": ["x", "y", "z"]})
    with pytest.raises(ValueError, match=r"1 of 3 rows.*row 1: prompt is null.*--bad-rows null"):
        score(data, Length(), tmp_path / "o")
    scored = score(data, Length(), tmp_path / "o", bad_rows="null")
    assert scored["score_length"] == [2.0, None, 2.0] and scored["length_reason"] == ["", "prompt is null", ""]
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert summary["reasons"] == {"prompt is null": 1} and summary["scored"] == 2


def test_a_first_chunk_without_any_score_does_not_fix_a_wrong_type(tmp_path):
    """`datasets` would type such a column as null and fail at the first number."""
    data = Dataset.from_dict({"prompt": [None] * 5 + ["a"] * 5, "completion": ["x"] * 10})
    assert (
        score(data, Length(), tmp_path / "o", chunk_rows=5, bad_rows="null")["score_length"] == [None] * 5 + [2.0] * 5
    )
    mapped = data.map(Length(), batched=True, batch_size=5, writer_batch_size=5, features=Length().features(data))
    assert mapped["score_length"] == [None] * 5 + [2.0] * 5


def test_row_ids_must_name_each_row_once(rows, tmp_path):
    data = dataset_of(rows).add_column("row_id", [0] * len(rows))
    with pytest.raises(ValueError, match="row_id must be unique"):
        score(data, Length(), tmp_path / "o")


def test_foreign_files_in_the_output_folder_are_not_touched(rows, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        score(dataset_of(rows), Length(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_only_the_chunk_in_flight(model_path, tmp_path):
    from hf_select import demo

    script = tmp_path / "job.py"
    script.write_text(
        textwrap.dedent(f"""
        from datasets import Dataset
        from hf_select import SelectIT, demo, score
        rows = [{{"prompt": r["prompt"], "completion": r["completion"]}} for r in demo.make_pool(240, seed=8)]
        print(len(score(Dataset.from_list(rows), SelectIT({model_path!r}), {str(tmp_path / "o")!r}, chunk_rows=8)))
        """)
    )
    kept: dict[str, int] = {}
    for wait in (0.0, 0.08, 0.2, 0.31):
        process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(finished_parts(tmp_path / "o", "scored/*.parquet")) <= len(kept):
            time.sleep(0.01)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        parts = finished_parts(tmp_path / "o", "scored/*.parquet")
        assert all(parts[name] == stamp for name, stamp in kept.items()), "a finished chunk was written again"
        for part in (tmp_path / "o").glob("scored/*.parquet"):
            assert pq.read_table(part).num_rows == 8, "half-written"
        kept = parts
    assert 0 < len(kept) < 30
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.stdout.strip() == "240", done.stderr
    assert len(list((tmp_path / "o" / "scored").iterdir())) == 30, "something other than the 30 chunks was left"
    rows = [{"prompt": r["prompt"], "completion": r["completion"]} for r in demo.make_pool(240, seed=8)]
    whole = score(dataset_of(rows), SelectIT(model_path), tmp_path / "whole", chunk_rows=8)
    resumed = load_dataset(
        "parquet", data_files=[str(p) for p in sorted((tmp_path / "o").glob("scored/part-*"))], split="train"
    )
    assert resumed["score_selectit"] == whole["score_selectit"] and resumed["row_id"] == whole["row_id"]
