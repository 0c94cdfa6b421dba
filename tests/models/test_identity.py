"""Scores belong to one model: its commit or its content identify it, and nothing else of where it lies does."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from adapters import train_adapter
from datasets import Dataset
from datasets.fingerprint import Hasher
from hub_cache import CachedRepo
from hypothesis import given, settings
from hypothesis import strategies as st
from killing import finished_parts
from safetensors.torch import load_file, save_file

from hf_select import DSIR, LESS, TFIDF, CausalLM, Length, Perplexity, PoolIndex, RDSPlus, Reward, score
from hf_select.data.scores import read_scored
from hf_select.features.hidden_states import HiddenStates
from hf_select.jobs.run_folder import identity_of
from hf_select.models import sources
from hf_select.models._compat import model_cache


QUERIES = Dataset.from_list([{"prompt": "Name three fruits.", "completion": "Figs, plums and pears."}] * 3)


@pytest.fixture(scope="module")
def other_path(model_path, tmp_path_factory) -> str:
    """The same model with other weights."""
    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(model_path, folder)
    weights = load_file(folder / "model.safetensors")
    torch.manual_seed(1)
    noisy = {name: w + 0.1 * torch.randn_like(w) for name, w in weights.items()}
    save_file(noisy, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.fixture
def repo(tmp_path, monkeypatch) -> CachedRepo:
    """A repository whose cache is all that there is of the Hub, in this process and in those that it starts."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    if model_cache() is not None:
        monkeypatch.setattr(transformers.utils.hub, "TRANSFORMERS_CACHE", str(tmp_path / "hub"))
    return CachedRepo(tmp_path / "hub", "org/model")


def hashed(scorer) -> str:
    return identity_of(scorer.name, scorer.identity(), scorer.described())["hash"]


# --------------------------------------------------------------------------------------------------------------------
# the Hub


def test_a_branch_is_resolved_once_and_that_commit_is_loaded(repo, model_path, other_path, rows):
    batch = {"prompt": [rows[0]["prompt"]], "completion": [rows[0]["completion"]]}
    one, other = (Perplexity(path)(batch)["score_perplexity"] for path in (model_path, other_path))
    first = repo.commit(model_path)
    scorer = Perplexity("org/model")
    before = Hasher.hash(scorer)
    second = repo.commit(other_path)
    assert scorer(batch)["score_perplexity"] == one != other, "the branch moved, and so did a model in use"
    assert Hasher.hash(scorer) == before != Hasher.hash(Perplexity("org/model")), "the cache of map would hit"
    assert Perplexity("org/model")(batch)["score_perplexity"] == other
    old = CausalLM("org/model", revision=first)
    assert Perplexity(old)(batch)["score_perplexity"] == one and old.details(None)["commit"] == first
    assert hashed(Perplexity(old)) == hashed(scorer), "a branch and its commit are the same model"
    assert CausalLM("org/model").described()["commit"] == second


def test_each_repository_has_its_own_revision(repo, model_path, other_path, tmp_path):
    """The model's revision is no revision of the tokenizer's or the adapter's repository."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    repo.commit(other_path)
    repo.commit(model_path, branch="v2")
    tokenizer = CachedRepo(repo.folder.parent, "org/tokenizer")
    (tmp_path / "t").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(Path(model_path) / name, tmp_path / "t")
    of_tokenizer = tokenizer.commit(tmp_path / "t")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model_path), LoraConfig(init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "a")
    of_adapter = CachedRepo(repo.folder.parent, "org/adapter").commit(tmp_path / "a")
    lm = CausalLM("org/model", revision="v2", tokenizer="org/tokenizer", adapter="org/adapter")
    here = CausalLM(model_path, adapter=str(tmp_path / "a"))
    np.testing.assert_array_equal(lm.next_token_logits([[5, 6]], [7]), here.next_token_logits([[5, 6]], [7]))
    assert lm.sources.tokenizer.commit == of_tokenizer and lm.sources.adapter.commit == of_adapter


def test_what_neither_the_cache_nor_a_folder_holds_is_refused_in_one_line(repo, model_path, rows, tmp_path):
    with pytest.raises(ValueError, match='no folder "org/model"; the local cache does not hold it.*hf download'):
        score(Dataset.from_list(rows), Perplexity("org/model"), tmp_path / "o")
    assert not (tmp_path / "o").exists()
    repo.commit(model_path)
    with pytest.raises(ValueError, match='does not hold it at revision "v9"'):
        CausalLM("org/model", revision="v9").load()


JOB = """
import os, sys, time
from datasets import Dataset
from hf_select import Perplexity, demo, score

class Slow(Perplexity):
    def measure(self, rows):
        time.sleep(float(sys.argv[2]))
        return super().measure(rows)

rows = [{"prompt": r["prompt"], "completion": r["completion"]} for r in demo.make_pool(60, seed=8)]
score(Dataset.from_list(rows), Slow("org/model"), sys.argv[1], chunk_rows=5)
"""


@pytest.mark.slow
def test_a_branch_that_moved_after_a_kill_does_not_mix_two_models(repo, model_path, other_path, tmp_path):
    (tmp_path / "job.py").write_text(textwrap.dedent(JOB))
    first = repo.commit(model_path)

    def start(seconds: float) -> subprocess.Popen:
        words = [sys.executable, str(tmp_path / "job.py"), str(tmp_path / "o"), str(seconds)]
        return subprocess.Popen(words, stderr=subprocess.PIPE, text=True)

    job = start(0.3)
    while job.poll() is None and len(finished_parts(tmp_path / "o", "scored/*.parquet")) < 3:
        time.sleep(0.02)
    job.send_signal(signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL
    kept = finished_parts(tmp_path / "o", "scored/*.parquet")
    assert 3 <= len(kept) < 12
    second = repo.commit(other_path)
    again = start(0)
    said = again.communicate()[1]
    assert again.returncode == 1 and f"model.weights commit {first} there, commit {second} here" in said
    assert "give the commit of that run as the revision" in said.splitlines()[-1]
    repo.move("main", first)
    assert start(0).wait() == 0
    assert finished_parts(tmp_path / "o", "scored/*.parquet").items() >= kept.items()
    scored = read_scored(tmp_path / "o")
    whole = Perplexity(model_path)({name: scored[name][:] for name in ("prompt", "completion")})
    np.testing.assert_allclose(scored["score_perplexity"], whole["score_perplexity"], rtol=1e-5)


# --------------------------------------------------------------------------------------------------------------------
# a folder


def test_a_job_is_resumed_with_copied_weights_other_batches_and_another_release(
    rows, model_path, other_path, tmp_path, monkeypatch
):
    import hf_select

    pool, copied = Dataset.from_list(rows), tmp_path / "node" / "weights"
    shutil.copytree(model_path, copied, copy_function=shutil.copyfile)
    for path in copied.iterdir():
        os.utime(path, (1, 1))

    def run(path, **options):
        scorer = RDSPlus(CausalLM(str(path), **options)).fit(QUERIES)
        if options:  # as other devices would
            scorer.queries_ = scorer.queries_ + np.float32(1e-7)
        return score(pool, scorer, tmp_path / "o", chunk_rows=7)

    whole = run(model_path)["score_rds"]
    (tmp_path / "o" / "scored" / "part-00002.parquet").unlink()
    monkeypatch.setattr(hf_select, "__version__", "9.9")
    again = run(copied, tokens_per_batch=300, device="cpu", attn_implementation="eager")["score_rds"]
    np.testing.assert_allclose(again, whole, atol=1e-5)
    with pytest.raises(ValueError, match="model.weights content [0-9a-f]+ there, content [0-9a-f]+ here"):
        run(other_path)
    monkeypatch.setattr(RDSPlus, "scoring_version", 2)
    with pytest.raises(ValueError, match="scoring_version 1 there, 2 here"):
        run(model_path)


def test_an_index_is_resumed_with_copied_weights(rows, model_path, other_path, tmp_path):
    pool = Dataset.from_list(rows)
    shutil.copytree(model_path, tmp_path / "copy", copy_function=shutil.copyfile)
    PoolIndex.build(pool, HiddenStates(model_path), tmp_path / "i", chunk_rows=7)
    (tmp_path / "i" / "vectors" / "part-00001.arrow").unlink()
    PoolIndex.build(pool, HiddenStates(str(tmp_path / "copy")), tmp_path / "i", chunk_rows=7)
    with pytest.raises(ValueError, match="model.weights content"):
        PoolIndex.build(pool, HiddenStates(other_path), tmp_path / "i", chunk_rows=7)


def test_scores_belong_to_the_texts_that_were_learned_from(model_path, rows):
    pool, few = Dataset.from_list(rows), Dataset.from_list(rows[:9])
    made = {
        "rds": lambda queries, pool: RDSPlus(model_path).fit(queries),
        "tfidf": lambda queries, pool: TFIDF().fit(queries, pool=pool),
        "dsir": lambda queries, pool: DSIR().fit(queries, pool=pool),
    }
    for name, fit in made.items():
        one = hashed(fit(QUERIES, pool))
        assert hashed(fit(QUERIES, pool)) == one
        assert hashed(fit(QUERIES.select([0]), pool)) != one, f"{name}: other queries"
        assert hashed(fit({"other": QUERIES}, pool)) != one, f"{name}: another task"
        assert name == "rds" or hashed(fit(QUERIES, few)) != one, f"{name}: another pool"


def test_a_less_job_follows_the_content_of_its_checkpoints(model_path, rows, tmp_path):
    checkpoints = train_adapter(model_path, Path(model_path).parent / "identity", rows)
    copies = [shutil.copytree(path, tmp_path / "copy" / Path(path).name) for path in checkpoints]
    one = hashed(LESS(model_path, checkpoints).fit(QUERIES))
    assert hashed(LESS(model_path, [str(path) for path in copies]).fit(QUERIES)) == one
    (copies[1] / "README.md").write_text("a note")
    assert hashed(LESS(model_path, [str(path) for path in copies]).fit(QUERIES)) == one
    state = torch.load(copies[1] / "optimizer.pt", weights_only=True)
    state["state"][0]["exp_avg"] += 1
    torch.save(state, copies[1] / "optimizer.pt")
    assert hashed(LESS(model_path, [str(path) for path in copies]).fit(QUERIES)) != one
    assert hashed(LESS(model_path, checkpoints[::-1]).fit(QUERIES)) != one


def test_every_model_a_scorer_reads_is_in_its_identity(model_path, other_path, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    for name, path in {"a": model_path, "b": other_path}.items():
        AutoModelForSequenceClassification.from_pretrained(path, num_labels=1).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    a, b, c = (hashed(Reward(str(tmp_path / name))) for name in "abc")
    assert a == c != b
    assert hashed(Reward(str(tmp_path / "a"), device="cpu", tokens_per_batch=9)) == a
    assert hashed(Length(str(tmp_path / "a"))) == hashed(Length(str(tmp_path / "c"))) != hashed(Length())


def test_a_loaded_model_is_identified_by_its_tensors_and_its_tokenizer(model_path, other_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def given(path, template=None):
        tokenizer = AutoTokenizer.from_pretrained(model_path)
        tokenizer.chat_template = template or tokenizer.chat_template
        return hashed(Perplexity(CausalLM(AutoModelForCausalLM.from_pretrained(path), tokenizer=tokenizer)))

    assert given(model_path) == given(model_path) != given(other_path)
    assert given(model_path, "{{ messages[0].content }}") != given(model_path)


def test_an_adapters_name_alone_stands_for_its_base_model_too(model_path, other_path, tmp_path, tokenizer):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_path), LoraConfig(init_lora_weights=False))
    model.save_pretrained(tmp_path / "a")
    tokenizer.save_pretrained(tmp_path / "a")
    alone, both = CausalLM(str(tmp_path / "a")), CausalLM(model_path, adapter=str(tmp_path / "a"))
    np.testing.assert_array_equal(alone.next_token_logits([[5, 6]], [7]), both.next_token_logits([[5, 6]], [7]))
    before = CausalLM(str(tmp_path / "a")).identity()
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": other_path}))
    assert CausalLM(str(tmp_path / "a")).identity()["weights"] != before["weights"]


# --------------------------------------------------------------------------------------------------------------------
# what is hashed


@pytest.fixture
def sampled(monkeypatch):
    """Small files are read as if they were large."""
    monkeypatch.setattr(sources, "_WHOLE", 100)
    monkeypatch.setattr(sources, "_BLOCK", 64)


def test_a_change_at_the_ends_or_in_the_middle_of_any_tensor_is_another_content(sampled, tmp_path):
    tensors = {f"layer.{i}": torch.arange(1000 + i, dtype=torch.float32) for i in range(5)}

    def content(change=None) -> str:
        changed = {name: tensor.clone() for name, tensor in tensors.items()}
        if change:
            changed[change[0]][change[1]] += 1
        save_file(changed, tmp_path / "model.safetensors")
        return sources.content_of(str(tmp_path))

    one = content()
    places = [(name, place) for name, tensor in tensors.items() for place in (0, len(tensor) // 2, -1)]
    found = [content(place) for place in places]
    assert one not in found and len(set(found)) == len(places)
    assert content() == one
    tensors["layer.9"] = tensors.pop("layer.0")
    assert content() != one, "another name of a tensor"


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.binary(min_size=1, max_size=300), st.data())
def test_a_small_file_counts_to_its_last_byte_and_its_time_does_not(tmp_path_factory, content, data):
    folder = tmp_path_factory.mktemp("folder")
    (folder / "model.safetensors").write_bytes(content)
    one = sources.content_of(str(folder))
    os.utime(folder / "model.safetensors", (1, 1))
    (folder / "notes.md").write_text("beside it")
    assert sources.content_of(str(folder)) == one
    place = data.draw(st.integers(0, len(content) - 1))
    flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    (folder / "model.safetensors").write_bytes(flipped)
    assert sources.content_of(str(folder)) != one


def test_large_weights_cost_three_small_reads_a_tensor(tmp_path, monkeypatch):
    header, size, tensors = {}, 1 << 26, 40
    for i in range(tensors):
        header[f"layer.{i}"] = {"dtype": "F32", "shape": [size // 4], "data_offsets": [i * size, (i + 1) * size]}
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + tensors * size)  # 2.5 GiB, none of which is on the disk
    blocks = sources._blocks
    read = []
    monkeypatch.setattr(sources, "_blocks", lambda *args: (read.append(len(b)) or b for b in blocks(*args)))
    begin = time.perf_counter()
    sources.content_of(str(tmp_path))
    assert sum(read) == len(text) + tensors * 3 * 4096
    assert time.perf_counter() - begin < 5
