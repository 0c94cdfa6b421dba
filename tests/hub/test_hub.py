"""Publishing against a real HTTP server by the real huggingface_hub client: what is there afterwards, also when the
network fails on the way."""

import io
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hub_server import TOKEN, Hub, renew_sessions
from huggingface_hub import DatasetCard
from selection_training import NO_CHECKPOINTING

from hf_select import (
    IFD,
    Length,
    PoolIndex,
    RDSPlus,
    RoundRobin,
    Selection,
    TopK,
    load_selection,
    push_index,
    push_selected,
    score,
)
from hf_select.cli.main import main
from hf_select.data.conversation import conversations
from hf_select.data.scores import read_scored
from hf_select.hub.card_parts import size_category
from hf_select.hub.push import with_messages
from hf_select.hub.scrub import check_clean, scrubbed
from hf_select.reports.ledger import read_step


@pytest.fixture
def one_picture(monkeypatch):
    """Drawing takes most of the time of a push, and the network does not care what a file shows."""
    from hf_select.hub import push as module

    monkeypatch.setattr(module, "draw", lambda numbers: [("score_a", "a picture", b"\x89PNG")])


def pool(n: int = 60, offset: int = 0) -> Dataset:
    return Dataset.from_dict(
        {
            "row_id": [f"r{i}" for i in range(n)],
            "prompt": [f"question {i}" for i in range(n)],
            "completion": [f"answer {i} " * (1 + i % 5) for i in range(n)],
            "source": ["web" if i % 3 else "books" for i in range(n)],
            "score_a": [None if i < 2 else float((i * 7 + offset) % n) for i in range(n)],
            "a_reason": ["empty response" if i < 2 else "" for i in range(n)],
        }
    )


def push(dataset: Dataset, k: int = 20, repo: str = "me/subset", **more) -> str:
    return push_selected(TopK("score_a")(dataset, k=k), repo, dataset=dataset, **{"license": "mit", **more})


def parquet(hub: Hub, name: str, repo: str = "me/subset"):
    return pq.read_table(io.BytesIO(hub.files(repo)[name]))


SHARD = "train-00000-of-00001.parquet"


def test_what_is_there_after_a_push(hub):
    dataset = pool()
    address = push(dataset, language=["en"])
    files = hub.files("me/subset")
    assert address == f"{hub.url}/datasets/me/subset/commit/{hub.repos['me/subset'].commits[-1]['sha']}"
    assert hub.repos["me/subset"].private, "private unless asked"
    assert len(hub.repos["me/subset"].commits) == 2, "one commit after the initial one"
    subset, scores = parquet(hub, f"data/{SHARD}"), parquet(hub, f"scores/{SHARD}")
    chosen = TopK("score_a")(dataset, k=20)
    assert subset["row_id"].to_pylist() == [f"r{i}" for i in chosen.indices]
    assert subset["selection_reason"].to_pylist() == chosen.reasons
    assert scores["score_a"].to_pylist() == dataset["score_a"] and "prompt" not in scores.column_names
    assert scores["row"].to_pylist() == list(range(60))
    ranks = scores["selection_rank"].to_pylist()
    assert [ranks[i] for i in chosen.indices] == list(range(1, 21)) and ranks.count(None) == 40
    assert {"pictures/score_a.png", "report.json", "provenance.json", "selection.parquet"} <= set(files)

    card = DatasetCard(files["README.md"].decode())
    assert card.data.license == "mit" and card.data.language == ["en"]
    assert card.data.size_categories == ["n<1K"] and {"data-selection", "trl"} <= set(card.data.tags)
    for picture in ("pictures/score_a.png", "pictures/sources.png"):
        assert f"]({picture})" in card.text and picture in files
    for said in (
        "20 of the 60 rows",
        "load_dataset(",
        "SFTTrainer",
        "Limitations",
        "2 rows of the pool have no score",
    ):
        assert said in card.text


def test_the_same_selection_again_changes_nothing_and_another_makes_a_commit_that_tells_the_difference(hub):
    dataset, repo = pool(), "me/subset"
    first = push(dataset)
    sent = [request for request in hub.requests if request.startswith("PUT")]
    assert push(dataset) == first and len(hub.repos[repo].commits) == 2
    assert [request for request in hub.requests if request.startswith("PUT")] == sent, "files were sent again"

    second = push(dataset, k=25)
    assert second != first and len(hub.repos[repo].commits) == 3
    card = hub.files(repo)["README.md"].decode()
    before = hub.repos[repo].commits[1]["sha"]
    assert f"Changes since the previous version (`{before[:10]}`)" in card
    assert "20 rows are in both, 5 were added, 0 were removed" in card and "k 20 -&#62; 25" in card
    assert push(dataset, k=25) == second, "the card with the difference is kept as it is"
    assert push(dataset, k=25, license="cc-by-4.0") != second, "another licence is another card"
    assert "20 rows are in both, 5 were added" in hub.files(repo)["README.md"].decode()


def test_shards_of_the_previous_version_are_deleted(hub, one_picture, monkeypatch):
    from hf_select.hub import push as module

    monkeypatch.setattr(module, "_SHARD_BYTES", 2000)
    push(pool())
    many = [name for name in hub.files("me/subset") if name.startswith("data/")]
    assert len(many) > 1
    rows = [row for name in sorted(many) for row in parquet(hub, name)["selection_rank"].to_pylist()]
    assert rows == list(range(1, 21)), "shards are in rank order"
    monkeypatch.setattr(module, "_SHARD_BYTES", 10**9)
    push(pool())
    assert [name for name in hub.files("me/subset") if name.startswith("data/")] == [f"data/{SHARD}"]


# --------------------------------------------------------------------------------------------------------------------
# faults

STEPS = {
    "create": "POST /api/repos/create",
    "info": "GET /api/datasets/me/subset",
    "validate": "POST /api/validate-yaml",
    "preupload": "POST .*/preupload/",
    "batch": "POST .*/objects/batch",
    "upload": "PUT /lfs/",
    "commit": "POST .*/commit/",
}


@pytest.mark.parametrize(
    ("step", "how"),
    [*((step, how) for step in STEPS for how in (500, "cut")), *((step, 429) for step in ("preupload", "commit"))],
)
def test_a_push_survives_a_fault_at_any_step(hub, one_picture, step, how):
    hub.fail(STEPS[step], how)
    push(pool())
    assert all(times == 0 for *_, times in hub.faults), "the fault was never met"
    assert len(hub.repos["me/subset"].commits) == 2
    assert parquet(hub, f"data/{SHARD}").num_rows == 20


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub, one_picture):
    hub.fail(STEPS["commit"], "cut after")
    push(pool())
    assert len(hub.repos["me/subset"].commits) == 2


def test_a_failed_push_resumes(hub, one_picture):
    hub.fail(STEPS["commit"], 500, times=50)
    with pytest.raises(ValueError, match=r"refused.*500: fault 500.*to resume"):
        push(pool())
    assert len(hub.repos["me/subset"].commits) == 1 and hub.objects
    hub.faults.clear()
    sent = sum(request.startswith("PUT") for request in hub.requests)
    push(pool())
    assert sum(request.startswith("PUT") for request in hub.requests) == sent, "nothing is sent a second time"
    assert parquet(hub, f"data/{SHARD}").num_rows == 20


def test_an_error_of_the_hub_is_explained_and_not_retried(hub, one_picture, monkeypatch):
    hub.fail(STEPS["commit"], 403, times=50)
    with pytest.raises(ValueError, match="may not write there"):
        push(pool())
    assert sum("/commit/" in request for request in hub.requests) == 1
    hub.faults.clear()
    hub.fail(STEPS["upload"], "cut", times=200)
    with pytest.raises(OSError, match="the connection to .*failed"):
        push(pool(offset=3), repo="me/other")
    with pytest.raises(ValueError, match=r"(?s)Invalid metadata.*license"):
        push(pool(), license="my own")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong" + "x" * 20)
    with pytest.raises(ValueError, match="401.*hf auth login"):
        push(pool(), repo="me/third")
    with pytest.raises(ValueError, match="hf auth login"):
        load_selection("me/subset")  # private
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    renew_sessions()
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE"):
        push(pool())
    renew_sessions()


@pytest.mark.parametrize("fault", ["cut", 503])
def test_a_lost_connection_is_not_a_missing_file(hub, fault, tmp_path, monkeypatch):
    """huggingface_hub raises an EntryNotFoundError for a file that it could not ask for."""
    from hf_select.models.adapters import _check_files

    push(pool())
    hub.fail("(GET|HEAD) .*", fault, times=200)
    with pytest.raises(OSError, match=r'(the Hub cannot be reached for|the connection to) "me/subset".*again'):
        load_selection("me/subset")
    if fault == 503:  # a broken connection may also be raised as the HTTP library's error, which is retried
        with pytest.raises(OSError, match=r'does not hold adapter_model.safetensors of adapter "me/adapter"'):
            _check_files("me/adapter", "me/adapter", None)
    hub.faults.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    renew_sessions()
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set; unset it"):
        load_selection("me/subset")
    with pytest.raises(ValueError, match="does not hold adapter_model.safetensors"):  # which no retry would change
        _check_files("me/adapter", "me/adapter", None)
    renew_sessions()


def test_somebody_elses_commit_in_between_is_not_overwritten_unseen(hub, one_picture, monkeypatch):
    """The commit names its parent: one that came in between makes the Hub refuse, and the next attempt sees it."""
    push(pool())
    repo = hub.repos["me/subset"]
    from hf_select.hub.push import _Build

    write = _Build.write_card

    def meanwhile(self, *args):
        write(self, *args)
        monkeypatch.setattr(_Build, "write_card", write)
        repo.commit({**repo.at("main")["files"], "NOTES.md": (b"mine", False)}, "by hand")

    monkeypatch.setattr(_Build, "write_card", meanwhile)
    with pytest.raises(ValueError, match="412.*run the same command again"):
        push(pool(), k=30)
    push(pool(), k=30)
    assert hub.files("me/subset")["NOTES.md"] == b"mine" and parquet(hub, f"data/{SHARD}").num_rows == 30


# --------------------------------------------------------------------------------------------------------------------
# coming back


def test_a_selection_comes_back_with_its_provenance(hub, one_picture):
    dataset = pool()
    push(dataset)
    made, back = TopK("score_a")(dataset, k=20), load_selection("me/subset", dataset=dataset)
    assert back.indices.tolist() == made.indices.tolist() and back.reasons == made.reasons
    assert back.scores.tolist() == made.scores.tolist() and back.chain == made.chain
    assert back.provenance["source"]["rows"] == 60
    assert back.apply(dataset)["row_id"] == [f"r{i}" for i in made.indices]
    texts = Dataset.from_list(dataset.select_columns(["prompt", "completion"]).to_list())
    assert load_selection("me/subset", dataset=texts).explain(3) == made.explain(3), "the scores are not needed"


def test_a_changed_source_is_noticed(hub, one_picture, caplog):
    dataset = pool()
    push(dataset)
    rows = dataset.to_list()
    with pytest.raises(ValueError, match='"me/subset".*60 rows, this dataset has 59'):
        load_selection("me/subset", dataset=Dataset.from_list(rows[:-1]))
    more = dataset.add_column("tools", [""] * 60).add_column("score_z", [1.0] * 60)
    assert len(load_selection("me/subset", dataset=more).apply(more)) == 20, "columns may be added"
    assert len(load_selection("me/subset", dataset=dataset.select_columns(["row_id"]))) == 20, "and removed"
    chosen = load_selection("me/subset").indices[4]
    changed = [{**row, "completion": "other"} if i == chosen else row for i, row in enumerate(rows)]
    with pytest.raises(ValueError, match=f'"completion" differs in 1 of 20 chosen rows, first in row {chosen}'):
        load_selection("me/subset", dataset=Dataset.from_list(changed))
    rows[0]["completion"] += "!"  # a row that was not even chosen
    with pytest.raises(ValueError, match="selected from other rows"):
        load_selection("me/subset", dataset=Dataset.from_list(rows))
    with pytest.raises(ValueError, match="no dataset repository"):
        load_selection("me/nothing")


def test_a_selection_without_hashes_is_checked_by_the_fingerprint_of_its_source(hub, one_picture, monkeypatch):
    """As earlier versions published it."""
    dataset = pool()
    save = Selection.save
    monkeypatch.setattr(Selection, "save", lambda one, path: save(replace(one, hashes={}, row_ids=None), path))
    push(dataset.remove_columns("row_id"))
    with pytest.raises(ValueError, match="earlier version"):
        load_selection("me/subset").apply(dataset)
    assert len(load_selection("me/subset", dataset=dataset).apply(dataset)) == 20
    with pytest.raises(ValueError, match="earlier version"):
        load_selection("me/subset", dataset=dataset.select(range(59, -1, -1)))


def test_a_source_on_the_hub_gives_its_licence_and_its_revision_and_is_watched(hub, one_picture, caplog):
    from hub_server import Repo

    readme = b"---\nlicense: cc-by-sa-4.0\nlanguage: de\n---\n"
    source = hub.repos["them/source"] = Repo(private=False)
    sha = source.commit({"README.md": (readme, False)}, "data")
    push(pool(), license=None, source="them/source")
    card = DatasetCard(hub.files("me/subset")["README.md"].decode())
    assert card.data.license == "cc-by-sa-4.0" and card.data.language == ["de"]
    assert card.data.source_datasets == ["them/source"] and sha in card.text
    assert 'load_dataset("them/source", split="train")' in card.text
    push(pool(), license=None, source="them/source#main/test")
    card = DatasetCard(hub.files("me/subset")["README.md"].decode())
    assert card.data.source_datasets == ["them/source"]
    assert 'load_dataset("them/source", "main", split="test")' in card.text
    load_selection("me/subset")
    assert "changed since" not in caplog.text
    source.commit({"README.md": (readme + b"new", False)}, "more data")
    load_selection("me/subset")
    assert f"them/source changed since the selection was made: load it at revision {sha}" in caplog.text
    hub.repos["them/bare"] = Repo(private=False)
    hub.repos["them/bare"].commit({"README.md": (b"# nothing", False)}, "data")
    with pytest.raises(ValueError, match="not known from the card of them/bare"):
        push(pool(), license=None, source="them/bare")


def test_an_index_is_pushed_and_opens_again(hub, model_path, rows, tmp_path):
    from huggingface_hub import snapshot_download

    dataset = Dataset.from_list([row for row in rows if row["completion"]])
    rds = RDSPlus(model_path)
    index = PoolIndex.build(
        dataset, rds.featurizer, tmp_path / "index", source=str(tmp_path / "secret" / "pool.jsonl")
    )
    first = push_index(index, "me/index", license="mit")
    assert push_index(tmp_path / "index", "me/index", license="mit") == first
    again = PoolIndex.open(snapshot_download("me/index", repo_type="dataset"))
    again.check(dataset, rds.featurizer)
    assert (again.to_numpy() == index.to_numpy()).all()
    assert not [name for name, data in hub.files("me/index").items() if str(tmp_path).encode() in data]
    assert "PoolIndex.open(snapshot_download(" in hub.files("me/index")["README.md"].decode()


def test_alpaca_and_sharegpt_rows_are_published_as_messages(hub, one_picture):
    alpaca = Dataset.from_dict(
        {"instruction": ["add"], "input": ["1 2"], "output": ["3"], "source": ["x"], "score_a": [1.0]}
    )
    push(alpaca, k=1)
    (row,) = parquet(hub, f"data/{SHARD}").to_pylist()
    assert row["messages"] == [{"role": "user", "content": "add\n\n1 2"}, {"role": "assistant", "content": "3"}]
    assert (
        row["source"] == "x"
        and "instruction" not in row
        and "`messages`" in hub.files("me/subset")["README.md"].decode()
    )
    calls = [
        [{"from": "human", "value": "hi"}, {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'}],
        [
            {"from": "human", "value": "ho"},
            {"from": "function_call", "value": '{"name": "g", "arguments": {"b": []}}'},
        ],
    ]
    shared = Dataset.from_dict({"conversations": calls})
    made = with_messages(shared, conversations(shared[:]))
    first, second = made["messages"]
    assert first[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}
    assert second[1]["tool_calls"][0]["function"]["arguments"] == {"b": []}, "no arguments of another row"


@pytest.mark.parametrize("layout", ["alpaca", "prompt-completion"])
def test_the_published_subset_trains_with_the_stock_trainer(hub, one_picture, model_path, tmp_path, layout):
    """The snippet of the card, with the columns that were published beside the conversations."""
    from trl import SFTConfig, SFTTrainer

    rows = pool()
    if layout == "alpaca":
        rows = rows.rename_columns({"prompt": "instruction", "completion": "output"})
    push(rows, k=8)
    (tmp_path / "train.parquet").write_bytes(hub.files("me/subset")[f"data/{SHARD}"])
    dataset = Dataset.from_parquet(str(tmp_path / "train.parquet"))
    quiet = {"report_to": "none", **NO_CHECKPOINTING}
    args = SFTConfig(output_dir=str(tmp_path / "sft"), max_steps=1, use_cpu=True, bf16=False, **quiet)
    trainer = SFTTrainer(model_path, args=args, train_dataset=dataset)
    assert trainer.train().training_loss > 0


# --------------------------------------------------------------------------------------------------------------------
# secrets

SECRETS = {
    "token": "hf_" + "AbCdEfGhIjKlMnOpQrStUvWx",
    "key": "sk-proj-" + "a1b2c3d4" * 4,
    "password": "hunter2hunter2",
}


def test_no_secret_is_published(hub, monkeypatch, tmp_path, model_path, rows):
    home = tmp_path / "home" / "ottilie"
    (home / "my models").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USER", "ottilie")
    monkeypatch.setenv("LOGNAME", "ottilie")
    monkeypatch.setenv("WANDB_API_KEY", SECRETS["password"])
    monkeypatch.setattr(socket, "gethostname", lambda: "ottilies-laptop")
    os.symlink(model_path, home / "my models" / "tiny")
    dataset = Dataset.from_list([row for row in rows if row["completion"]])
    scored = score(dataset, IFD(str(home / "my models" / "tiny")), home / "scores", source=str(home / "pool.jsonl"))
    selection = TopK("score_ifd")(scored, k=5)
    selection.chain[0] |= {"scores": str(home / "scores"), "note": f"Bearer {SECRETS['token']} by ottilie"}
    selection.reasons[0] += f" (see {home}/log.txt, {SECRETS['key']})"
    recipe = {
        "description": f"ottilie's run on ottilies-laptop, {SECRETS['password']}",
        "steps": {"score": {"model": str(home / "my models" / "tiny"), "api_key": SECRETS["key"], "k": 5}},
    }
    push_selected(
        selection, "me/clean", dataset=scored, license="mit", steps=[read_step(home / "scores")], recipe=recipe
    )
    for name, data in hub.files("me/clean").items():
        text = data.decode("utf-8", "replace")
        if name.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(data))
            text = str(table.schema.metadata) + json.dumps(table.to_pylist(), ensure_ascii=False)
        for secret in [*SECRETS.values(), str(tmp_path), str(home), "ottilie", model_path, TOKEN]:
            assert secret not in text, f"{name} holds {secret}"
    assert DatasetCard(hub.files("me/clean")["README.md"].decode()).data.to_dict().get("base_model") is None
    config = hub.files("me/clean")["config.yaml"].decode()
    assert "model: tiny" in config and "api_key: '[removed]'" in config and "k: 5" in config
    assert "see log.txt, [removed]" in parquet(hub, f"data/{SHARD}", "me/clean")["selection_reason"].to_pylist()[0]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("/data/team/pool.jsonl", "pool.jsonl"),
        ("/data/my team/pool.jsonl", "pool.jsonl"),
        ("see ~/pool.jsonl, or 3/4 and/or x", "see pool.jsonl, or 3/4 and/or x"),
        (r"C:\Users\Ada\pool.jsonl", "pool.jsonl"),
        ("file:///data/team/pool.jsonl", "pool.jsonl"),
        ("https://huggingface.co/datasets/a/b", "https://huggingface.co/datasets/a/b"),
        ("https://ada:secretword@host/x", "https://[removed]@host/x"),
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
        ("runs/demo/model", "runs/demo/model"),
        ("score 0.5, at 50 % (a/b)", "score 0.5, at 50 % (a/b)"),
        ("${output_dir}/scores", "${output_dir}/scores"),
        ("AKIAABCDEFGHIJKLMNOP", "[removed]"),
    ],
)
def test_what_scrubbing_takes_and_leaves(text, clean):
    assert scrubbed(text) == clean


def test_settings_about_tokens_are_no_secrets():
    settings = {
        "tokens": 5,
        "max_tokens": 3,
        "tokens_column": "num_tokens",
        "tokenizer": "x",
        "token": "abc",
        "score_token": 1.0,
    }
    assert scrubbed(settings) == {**settings, "token": "[removed]"}


def test_a_secret_in_a_text_stops_a_push():
    with pytest.raises(ValueError, match="nothing was pushed"):
        check_clean("README.md", f"see {Path.cwd()}/x")


# --------------------------------------------------------------------------------------------------------------------
# cards


def test_size_categories_are_the_hubs():
    sizes = [1, 999, 1000, 9999, 10_000, 123_456, 5_000_000, 10**12]
    words = ["n<1K", "n<1K", "1K<n<10K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "n>1T"]
    assert [size_category(size) for size in sizes] == words


@pytest.mark.parametrize(
    "repo_id",
    ["subset", "me/", "/subset", "me/a/b", "datasets/me/subset", "datasets/subset", "https://huggingface.co/me/subset",
     "me/sub set", "me/sub--set", "me/sub..set", "me/-subset", "me/subset.", "me/subset.git", "me/donn\u00e9es",
     "me/" + "x" * 97, "me/sub#set", "", "../me/subset", "me/subset\n"],
)  # fmt: skip
def test_a_name_that_the_hub_refuses_is_refused_before_anything_is_built(repo_id, tmp_path):
    with pytest.raises(ValueError, match=r"(?s)(the Hub takes no|has no namespace).*NAME/REPOSITORY"):
        push(pool(), repo=repo_id, dry_run=tmp_path / "out")
    with pytest.raises(ValueError, match="NAME/REPOSITORY"):
        push_index(tmp_path / "index", repo_id, license="mit")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("repo_id", ["me/subset", "a-b/C.d_e-1", "me/" + "x" * 96, "HuggingFaceH4/ultrachat_200k"])
def test_names_that_the_hub_takes(repo_id):
    from hf_select.hub.repository import check_repo_id

    check_repo_id(repo_id)


def test_a_windows_path_is_not_a_hub_id():
    from hf_select.reports.ledger import is_hub_id

    assert is_hub_id("Qwen/Qwen2.5-0.5B") and is_hub_id("gpt2")
    for path in (r"C:\models\tiny", r"\\nas\models\tiny", r"models\tiny", "gs://bucket", "my model/tiny", "a/b/c"):
        assert not is_hub_id(path), path


# Scorers and generators by name and selectors by class -> their paper; those that have none are not here.
PAPERS = {
    "deita": "2312.15685",
    "dsir": "2302.03169",
    "embedding": "2503.01807",
    "glan": "2402.13064",
    "ifd": "2308.12032",
    "length": "2402.04833",
    "less": "2402.04333",
    "perplexity": "2503.01807",
    "rds": "2503.01807",
    "responses": "2501.18511",
    "reward": "2405.17888",
    "selectit": "2402.16705",
    "Dedup": "2107.06499",
    "FarthestFirst": "1708.00489",
    "MatchingPursuit": "2603.13790",
    "RoundRobin": "2503.01807",
    "Sample": "2302.03169",
    "ScoreThenThreshold": "2312.15685",
}


def test_citations_are_those_of_the_methods(hub, one_picture, tmp_path):
    from hf_select import GLAN, Responses
    from hf_select.cli.score import scorer_class
    from hf_select.scoring import SCORERS
    from hf_select.selection import SELECTORS

    selectors = [getattr(import_module(path.partition(":")[0]), path.partition(":")[2]) for path in SELECTORS.values()]
    methods = {name: scorer_class(name) for name in SCORERS} | {each.__name__: each for each in selectors}
    for name, method in {**methods, "glan": GLAN, "responses": Responses}.items():
        assert PAPERS.get(name, "") == (method.paper.arxiv_id if method.paper else ""), name
    rows = pool().remove_columns(["score_a", "a_reason"])
    scored = score(rows, Length(), tmp_path / "scores")
    step, selection = read_step(tmp_path / "scores"), RoundRobin(["score_length"])(scored, k=9)
    push_selected(selection, "me/cited", dataset=scored, license="mit", steps=[step, step])
    card = hub.files("me/cited")["README.md"].decode()
    assert [card.count(f"eprint = {{{paper}}}") for paper in ("2402.04833", "2503.01807")] == [1, 1]
    assert card.count("@misc") == 2


@pytest.mark.timeout(180)
def test_the_command_publishes_survives_a_kill_and_the_configs_load(hub, rows, tmp_path, monkeypatch):
    """In processes of their own, as users run them: HF_ENDPOINT, kill -9 amid the upload, load_dataset by config."""
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": TOKEN, "HF_DATASETS_OFFLINE": "0"}

    def start(*argv: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "hf_select.cli.main", *argv]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)

    def run(*argv: str) -> str:
        process = start(*argv)
        said, errors = process.communicate()
        assert process.returncode == 0, errors
        return said

    monkeypatch.chdir(tmp_path)
    assert main(["score", "--scorer", "length", "--dataset", "pool.jsonl", "--output-dir", "scores"]) == 0
    assert main(["select", "--scores", "scores", "--selector", "longest", "--k", "9", "--output", "s.jsonl"]) == 0
    publish = ("publish", "s.jsonl", "--repo-id", "me/killed", "--license", "mit")
    hub.fail("POST .*/commit/", 503, times=1000)
    victim = start(*publish)
    deadline = time.monotonic() + 90
    while not any("/commit/" in request for request in hub.requests):
        assert time.monotonic() < deadline and victim.poll() is None
        time.sleep(0.05)
    victim.kill()
    victim.communicate()
    assert len(hub.repos["me/killed"].commits) == 1
    hub.faults.clear()
    address = run(*publish)
    assert "/datasets/me/killed/commit/" in address and len(hub.repos["me/killed"].commits) == 2
    code = (
        "from datasets import load_dataset\n"
        "subset = load_dataset('me/killed', split='train')\n"
        "scores = load_dataset('me/killed', 'scores', split='train')\n"
        "print(len(subset), len(scores), sorted(subset.column_names), 'score_length' in scores.column_names)\n"
        "from hf_select import load_selection\n"
        "print(load_selection('me/killed').explain(subset[0]['row_id']))\n"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert loaded.returncode == 0, loaded.stderr
    first, second = loaded.stdout.splitlines()
    assert first.startswith("9 40 ['completion', 'length_reason', 'prompt'") and first.endswith("True")
    assert "has rank 1 of 9: score_length" in second


def test_a_pool_on_the_hub_is_scored_while_it_is_read(hub, tmp_path, capsys):
    """hf-select score --stream of a Hub id: the scores of the rows as they lie there, and no copy of them here."""
    from huggingface_hub import HfApi

    rows = pool(90).remove_columns(["score_a", "a_reason"])
    for shard in range(3):
        (tmp_path / "shards").mkdir(exist_ok=True)
        rows.shard(3, shard).to_parquet(tmp_path / "shards" / f"train-{shard:05d}-of-00003.parquet")
    api = HfApi(endpoint=hub.url, token=TOKEN)
    api.create_repo("me/pool", repo_type="dataset", private=True)
    api.upload_folder(repo_id="me/pool", repo_type="dataset", folder_path=tmp_path / "shards", path_in_repo="data")
    words = ["score", "--scorer", "length", "--dataset", "me/pool", "--stream", "--chunk-rows", "20"]
    assert main([*words, "--output-dir", str(tmp_path / "o")]) == 0, capsys.readouterr().err
    scored = read_scored(tmp_path / "o")
    assert scored["row_id"] == rows["row_id"]
    assert scored["score_length"] == Length()(rows[:])["score_length"]
    assert not list((tmp_path / "hub_cache").rglob("*.parquet")), "the shards were downloaded"
