"""Publishing what hf-select generate and mix wrote: real folders, a scripted model server, the real Hub client against
a Hub of our own."""

import inspect
import io
import json

import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hub_server import Repo
from huggingface_hub import DatasetCard, RepoCard
from scripted_server import Reply, ScriptedServer
from selection_training import NO_CHECKPOINTING

from hf_select import push_output
from hf_select.cli.main import main
from hf_select.demo import teacher
from hf_select.hub import output as output_module
from hf_select.hub.output import find_output


SHARD = "data/train-00000-of-00001.parquet"
TEACHER = "them/teacher-7b"


def run(*words, code=0):
    assert main([str(word) for word in words]) == code


def table(data: bytes) -> list[dict]:
    return pq.read_table(io.BytesIO(data)).to_pylist()


def card_of(hub, repo: str) -> DatasetCard:
    return DatasetCard(hub.files(repo)["README.md"].decode())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The outputs of the three commands, by real requests: glan/, replies/, mix/."""
    folder = tmp_path_factory.mktemp("Zqprivate")
    (folder / "taxonomy.yaml").write_text("Sciences:\n  Physics: [Optics]\n")
    chats = [{"messages": [{"role": "user", "content": f"What is {i}?"}]} for i in range(5)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    for name, size in (("web", 30), ("books", 20)):
        rows = [{"prompt": f"{name} {i}", "completion": f"{name} answer {i}"} for i in range(size)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def script(body):
        if "bad" in body["messages"][-1]["content"]:
            return Reply(f"refused by {folder}/server.log", 400)
        return teacher(body)

    with ScriptedServer(script) as server:
        small = ("--queries-per-discipline", 1, "--questions-per-subject", 3, "--near-duplicates", 1)
        to = ("--model", TEACHER, "--base-url", server.url)
        where = ("--taxonomy", folder / "taxonomy.yaml", "--output-dir", folder / "glan")
        run("generate", "glan", *to, "--revision", "v1.0", "--prices", 1, 2, *small, *where)
        chats.append({"messages": [{"role": "user", "content": "a bad one"}]})
        (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
        run("generate", "responses", *to, "--dataset", folder / "chats.jsonl", "--output-dir", folder / "replies")
    sources = ("--sources", f"web={folder}/web.jsonl", f"books={folder}/books.jsonl")
    run("mix", *sources, "--weights", "web=3", "books=1", "--rows", 20, "--output-dir", folder / "mix")
    return folder


def test_pairs_of_glan_are_published_with_their_models_counts_and_cost(hub, folders, capsys):
    hub.models[TEACHER] = "apache-2.0"
    run("publish", folders / "glan", "--repo-id", "me/pairs", "--license", "cc-by-4.0", "--language", "en")
    assert "/datasets/me/pairs/commit/" in capsys.readouterr().out
    files, card = hub.files("me/pairs"), card_of(hub, "me/pairs")
    assert table(files[SHARD]) == pq.read_table(folders / "glan" / "pairs.parquet").to_pylist()
    summary = json.loads((folders / "glan" / "summary.json").read_text())
    assert card.data.license == "cc-by-4.0" and {"synthetic", "glan"} <= set(card.data.tags)
    requests = sum(stage["requests"] for stage in summary["tokens"].values())
    for said in (
        f"{summary['pairs']:,} synthetic questions with answers (subjects: 2, disciplines: 1)",
        f"| questions | {TEACHER} | v1.0 | apache-2.0 |",
        f"| answers | {summary['tokens']['answers']['requests']} |",
        f"It took {requests} requests",
        "US dollars",
        "| questions_per_subject | 3 |",
        "arXiv:2402.13064",
        "The rows were not compared with any evaluation set",
        'load_dataset("me/pairs", split="train")',
        f"https://huggingface.co/{TEACHER}",
    ):
        assert said in card.text, said
    provenance = json.loads(files["provenance.json"])
    assert provenance["record"]["tokens"] == summary["tokens"] and provenance["models"][0]["revision"] == "v1.0"
    assert not [name for name, data in files.items() if b"Zqprivate" in data]
    first = hub.repos["me/pairs"].commits[-1]["sha"]
    run(
        "publish",
        folders / "glan" / "pairs.parquet",
        "--repo-id",
        "me/pairs",
        "--license",
        "cc-by-4.0",
        "--language",
        "en",
    )
    assert hub.repos["me/pairs"].commits[-1]["sha"] == first, "the same output once more made a commit"


def test_replies_are_published_with_their_source_and_what_was_left_out(hub, folders):
    run("publish", folders / "replies", "--repo-id", "me/replies", "--license", "mit")
    files, card = hub.files("me/replies"), card_of(hub, "me/replies")
    assert table(files[SHARD]) == pq.read_table(folders / "replies" / "responses.parquet").to_pylist()
    for said in (
        "5 replies of them/teacher-7b to the user turns of 6 conversations of chats.jsonl",
        "| prompts | chats.jsonl | train | not on record | not known | 6 |",
        "400 refused by server.log | 1 |",
        "2501.18511",
    ):
        assert said in card.text, said
    assert not [name for name, data in files.items() if b"Zqprivate" in data]


def test_a_mixture_is_published_with_its_sources_and_their_licences(hub, folders):
    run("publish", folders / "mix", "--repo-id", "me/mix", "--license", "odc-by")
    files, card = hub.files("me/mix"), card_of(hub, "me/mix")
    assert table(files[SHARD]) == pq.read_table(folders / "mix" / "mixture.parquet").to_pylist()
    assert "synthetic" not in card.data.tags and "mixture" in card.data.tags
    for said in (
        "20 rows of 2 sources, mixed in given amounts",
        "| web | web.jsonl | train | not on record | not known | 15 |",
        "| books | 5 | 25.0% | once | 0 |",
        "| web: weight | 3.0 |",
    ):
        assert said in card.text, said
    assert not [name for name, data in files.items() if b"Zqprivate" in data]


def test_licences_and_revisions_of_a_mixture_come_from_its_sources(hub, folders, tmp_path):
    """The revision is the one that was read, not what the Hub has today."""
    data = tmp_path / "mix"
    data.mkdir()
    record = json.loads((folders / "mix" / "mixture.json").read_text())
    for name, license in (("web", "mit"), ("books", "cc-by-4.0")):
        hub.repos[f"them/{name}"] = Repo(private=False)
        readme = f"---\nlicense: {license}\nlanguage: en\n---\n".encode()
        hub.repos[f"them/{name}"].commit({"README.md": (readme, False)}, "data")
        record["settings"]["sources"][name]["data"] = f"them/{name}#main/train"
    record["sources"]["web"]["commit"] = "c" * 40
    (data / "mixture.json").write_text(json.dumps(record))
    (data / "mixture.parquet").write_bytes((folders / "mix" / "mixture.parquet").read_bytes())
    run("publish", data, "--repo-id", "me/mix")
    card = card_of(hub, "me/mix")
    assert card.data.license == ["mit", "cc-by-4.0"] and card.data.language == ["en"]
    assert card.data.source_datasets == ["them/web", "them/books"]
    assert f"| web | them/web | main/train | {'c' * 40} | mit | 15 |" in card.text
    assert "| books | them/books | main/train | not on record | cc-by-4.0 | 5 |" in card.text


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ("glan", (), "the licence of generated text is not on record. Give it"),
        ("replies", (), "the licence of generated text is not on record. Give it"),
        ("mix", (), "the licence of these sources is not known from a card: web, books. Give it"),
        ("mix", ("--license", "mit", "--scores", "x"), "leave out --scores"),
        ("glan", ("--license", "mit", "--repo-id", "me/a/b"), "takes no repository"),
    ],
)
def test_what_is_missing_or_would_be_ignored_is_said(hub, folders, capsys, kind, words, message):
    run("publish", folders / kind, *([] if "--repo-id" in words else ["--repo-id", "me/x"]), *words, code=2)
    assert message in capsys.readouterr().err
    assert not hub.repos


def test_a_dry_run_builds_the_same_files_and_pushes_nothing(hub, folders, tmp_path, capsys):
    words = ("publish", folders / "glan", "--repo-id", "me/pairs", "--license", "mit")
    run(*words, "--dry-run", tmp_path / "out")
    assert "built, not pushed" in capsys.readouterr().out and not hub.repos
    run(*words)
    pushed = hub.files("me/pairs")
    pushed.pop(".gitattributes")
    assert pushed == {str(p.relative_to(tmp_path / "out")): p.read_bytes() for p in (tmp_path / "out").rglob("*.*")}


def test_a_dry_run_finds_what_the_hub_would_refuse(hub, folders, tmp_path, capsys):
    if '"https://huggingface.co/api' in inspect.getsource(RepoCard.validate):
        pytest.skip("huggingface_hub 0.36 validates cards at huggingface.co only, whatever HF_ENDPOINT is")
    words = ["publish", folders / "glan", "--repo-id", "me/pairs", "--license", "foo", "--dry-run", tmp_path / "out"]
    assert main([str(word) for word in words]) == 2
    refused = capsys.readouterr().err
    assert "the Hub would refuse the card" in refused and '"license" must be one of [apache-2.0, mit' in refused
    hub.fail(r"POST /api/validate-yaml", 503, times=50)
    run(*words)
    assert "The Hub cannot be reached: whether it accepts the card" in capsys.readouterr().out
    assert not hub.repos


def test_a_dry_run_replaces_nothing_but_an_earlier_one(folders, tmp_path):
    mine = tmp_path / "project" / "data" / "mine.parquet"
    mine.parent.mkdir(parents=True)
    mine.write_text("rows of mine")
    for place in (tmp_path / "project", mine):
        with pytest.raises(ValueError, match="new or empty"):
            push_output(folders / "mix", "me/x", license="mit", dry_run=place)
    assert mine.read_text() == "rows of mine"
    for kind in ("mix", "glan"):
        push_output(folders / kind, "me/x", license="mit", dry_run=tmp_path / "out")
    assert len(pq.read_table(tmp_path / "out" / SHARD)) == 6
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        push_output(folders / "mix", "me/x", license="mit", dry_run=tmp_path / "out")


def test_an_unfinished_changed_or_older_output_is_refused(folders, tmp_path):
    glan = tmp_path / "glan"
    glan.mkdir()
    (glan / "glan.json").write_text("{}")
    with pytest.raises(ValueError, match="has no pairs.parquet yet"):
        find_output(glan)
    rows = (folders / "glan" / "pairs.parquet").read_bytes()
    (glan / "pairs.parquet").write_bytes(rows)
    (glan / "summary.json").write_text('{"pairs": 6}')
    with pytest.raises(ValueError, match="earlier version.*Run the same command again"):
        find_output(glan)
    (glan / "summary.json").write_bytes((folders / "glan" / "summary.json").read_bytes())
    assert find_output(glan).record["pairs"] == 6
    (glan / "pairs.parquet").write_bytes(rows[:-1] + b"x")
    with pytest.raises(ValueError, match="was changed: summary.json has another hash"):
        find_output(glan)
    assert find_output(tmp_path) is None
    with pytest.raises(ValueError, match="is not an output of hf-select generate or mix"):
        push_output(tmp_path, "me/x", license="mit")


def test_of_a_model_in_a_folder_the_last_name_is_published(hub, folders, tmp_path):
    """Also in the rows: these columns are ours."""
    out = tmp_path / "replies"
    out.mkdir()
    record = json.loads((folders / "replies" / "summary.json").read_text())
    rows = pq.read_table(folders / "replies" / "responses.parquet").to_pylist()
    schema = pq.read_schema(folders / "replies" / "responses.parquet")
    place = "/home/Zqada/models/tiny"
    for row in rows:
        row["row_id"], row["model"] = row["row_id"].removesuffix(TEACHER) + place, place
    Dataset.from_list(rows).to_parquet(out / "responses.parquet")
    record["models"] = {place: record["models"][TEACHER]}
    record["sha256"] = output_module.sha256_of(out / "responses.parquet")
    (out / "summary.json").write_text(json.dumps(record))
    (out / "responses.json").write_text("{}")
    push_output(out, "me/replies", license="mit")
    pushed = table(hub.files("me/replies")[SHARD])
    assert {row["model"] for row in pushed} == {"tiny"} and pushed[0]["row_id"].endswith("/1/tiny")
    assert [row["completion"] for row in pushed] == [row["completion"] for row in rows] and "row_id" in schema.names
    assert not [name for name, data in hub.files("me/replies").items() if b"Zqada" in data]
    record["models"]["/other/tiny"] = record["models"][place]
    (out / "summary.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="published under the same name"):
        push_output(out, "me/replies", license="mit")


def test_a_selection_and_a_mixture_of_synthetic_rows_say_who_wrote_them(hub, folders, tmp_path):
    pairs, chosen = folders / "glan" / "pairs.parquet", tmp_path / "chosen.parquet"
    run("score", "--scorer", "length", "--dataset", pairs, "--output-dir", tmp_path / "scores")
    run("select", "--scores", tmp_path / "scores", "--selector", "longest", "--k", 2, "--output", chosen)
    run("publish", chosen, "--repo-id", "me/chosen", "--license", "mit")
    card = card_of(hub, "me/chosen")
    assert f"synthetic (GLAN), written by {TEACHER} (questions), {TEACHER} (answers)" in card.text
    assert "synthetic" in card.data.tags
    provenance = json.loads(hub.files("me/chosen")["provenance.json"])
    assert provenance["source"]["origin"]["settings"]["questions_per_subject"] == 3
    sources = ("--sources", f"pairs={pairs}", f"web={folders}/web.jsonl", "--take-rows", "pairs=4", "web=4")
    run("mix", *sources, "--output-dir", tmp_path / "mix")
    run("publish", tmp_path / "mix", "--repo-id", "me/both", "--license", "mit")
    card = card_of(hub, "me/both")
    assert f"| pairs: answers | {TEACHER} | v1.0 |" in card.text and "synthetic" in card.data.tags
    for repo in ("me/chosen", "me/both"):
        assert not [name for name, data in hub.files(repo).items() if str(folders).encode() in data]


def test_nothing_is_left_of_a_selection_that_was_there_before(hub, folders):
    from hf_select import TopK, load_selection, push_selected

    rows = Dataset.from_dict({"prompt": ["a", "b"], "completion": ["c", "d"], "score_a": [1.0, 2.0]})
    push_selected(TopK("score_a")(rows, k=1), "me/x", dataset=rows, license="mit", recipe={"steps": {}})
    assert "config.yaml" in hub.files("me/x")
    push_output(folders / "mix", "me/x", license="mit")
    assert set(hub.files("me/x")) == {".gitattributes", "README.md", "provenance.json", SHARD}
    with pytest.raises(ValueError, match="holds no selection"):
        load_selection("me/x")
    with pytest.raises(ValueError, match="no such branch, tag or commit"):
        load_selection("me/x", revision="v9")


def test_many_rows_come_in_shards_in_their_order(hub, folders, monkeypatch):
    monkeypatch.setattr(output_module, "_SHARD_ROWS", 8)
    push_output(folders / "mix", "me/mix", license="mit")
    names = sorted(name for name in hub.files("me/mix") if name.startswith("data/"))
    assert names == [f"data/train-0000{i}-of-00003.parquet" for i in range(3)]
    pushed = [row for name in names for row in table(hub.files("me/mix")[name])]
    assert pushed == pq.read_table(folders / "mix" / "mixture.parquet").to_pylist()


def test_the_published_rows_load_and_train_as_the_card_says(folders, tmp_path, model_path):
    from trl import SFTConfig, SFTTrainer

    quiet = {"report_to": "none", **NO_CHECKPOINTING}
    args = SFTConfig(output_dir=str(tmp_path / "sft"), max_steps=1, use_cpu=True, bf16=False, **quiet)
    for kind in ("glan", "replies", "mix"):
        push_output(folders / kind, "me/x", license="mit", dry_run=tmp_path / kind)
        rows = Dataset.from_parquet(str(tmp_path / kind / SHARD))
        assert SFTTrainer(model_path, args=args, train_dataset=rows).train().training_loss > 0
