"""A scorer inside `Dataset.map`: the cache hits in a new process, workers start clean, streams work."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from datasets import Dataset

from hf_select import Length, Perplexity, SelectIT, read_dataset
from hf_select.data.conversation import conversations
from hf_select.data.rows import conversations_of


USER, REPLY = {"role": "user", "content": "Name a tool."}, {"role": "assistant", "content": "A saw."}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
LAYOUTS = {
    "messages": {"messages": [[USER, REPLY], [USER, CALL], [USER, REPLY, USER, REPLY]]},
    "prompt-completion": {"prompt": ["a", "b c", ""], "completion": ["x", None, "yy"]},
    "conversational prompts": {"prompt": [[USER]] * 3, "completion": [[REPLY], [CALL], [REPLY]]},
    "sharegpt": {
        "conversations": [[{"from": "human", "value": "a"}, {"from": "gpt", "value": "b" * i}] for i in (1, 2)]
    },
    "alpaca": {"instruction": ["a", "b"], "input": ["", None], "output": ["x", "y"]},
}


@pytest.mark.parametrize("kind", ["numpy", "torch", "pandas", "arrow"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_formatted_dataset_is_scored_as_a_plain_one(layout, kind):
    """NumPy, torch and pandas hand out arrays where a row has lists, at any depth."""
    plain = Dataset.from_dict({**LAYOUTS[layout], "number": range(len(next(iter(LAYOUTS[layout].values()))))})
    scored = plain.with_format(kind).map(Length(), batched=True).with_format(None)
    expected = plain.map(Length(), batched=True)
    assert scored["score_length"][:] == expected["score_length"][:]
    assert scored["length_reason"][:] == expected["length_reason"][:]
    assert any(score is not None for score in expected["score_length"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_map_without_batched_says_so(layout, stream, model_path):
    dataset = Dataset.from_dict(LAYOUTS[layout])
    with pytest.raises(ValueError, match=r"Perplexity was given one row.*batched=True"):
        list((dataset.to_iterable_dataset() if stream else dataset).map(Perplexity(model_path)))


@pytest.mark.slow
def test_the_cache_hits_in_a_new_process(rows, model_path, tmp_path):
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    script = textwrap.dedent(f"""
        import json, os, sys
        os.environ["HF_DATASETS_CACHE"] = {str(tmp_path / "cache")!r}
        from datasets import load_dataset
        from hf_select import CausalLM, SelectIT
        calls = []
        load = CausalLM.load
        CausalLM.load = lambda self, rank=None: calls.append(1) or load(self, rank)
        scorer = SelectIT({model_path!r}, alpha=float(sys.argv[1]))
        dataset = load_dataset("parquet", data_files={str(tmp_path / "rows.parquet")!r}, split="train")
        scores = dataset.map(scorer, batched=True, batch_size=1000)["score_selectit"]
        print(json.dumps([len(calls), list(scores)]))
    """)

    def run(alpha: str):
        done = subprocess.run([sys.executable, "-c", script, alpha], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    first, again, other = run("0.2"), run("0.2"), run("0.4")
    assert first[0] > 0, "the first run must score"
    assert again[0] == 0, "the model was loaded again: the cache missed"
    assert other[0] > 0, "other settings must not hit"
    assert again[1] == first[1] and other[1] != first[1]


@pytest.mark.slow
def test_two_workers_give_the_same_scores_even_after_the_parent_has_scored(rows, model_path):
    """The parent's OpenMP threads do not survive a fork; a worker that used them would hang."""
    dataset = Dataset.from_list(rows * 3)
    one = dataset.map(SelectIT(model_path), batched=True, batch_size=16)["score_selectit"]
    two = dataset.map(SelectIT(model_path), batched=True, batch_size=16, num_proc=2, new_fingerprint="two")[
        "score_selectit"
    ]
    ranked = dataset.map(
        SelectIT(model_path), batched=True, batch_size=16, num_proc=2, with_rank=True, new_fingerprint="ranked"
    )["score_selectit"]
    np.testing.assert_allclose(two, one, rtol=1e-5)
    np.testing.assert_allclose(ranked, one, rtol=1e-5)


def test_all_readers_of_a_dataset_keep_the_nulls_of_json_columns(tmp_path):
    call = {"type": "function", "function": {"name": "f", "arguments": {"unit": None, "x": 1.5}}}
    row = {"messages": [{"role": "user", "content": "Go"}, {"role": "assistant", "content": "", "tool_calls": [call]}]}
    plain = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in (row, plain)))
    dataset, seen = read_dataset(str(tmp_path / "rows.jsonl")), []
    dataset.map(lambda batch: seen.extend(conversations(batch)), batched=True, load_from_cache_file=False)
    assert list(conversations_of(dataset, batch_rows=1)) == seen
    (found,) = seen[0].messages[1]["tool_calls"]
    assert found["function"]["arguments"] == {"unit": None, "x": 1.5}
