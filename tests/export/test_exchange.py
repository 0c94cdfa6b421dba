"""To other trainers and from other programs' scores: nothing is lost on the way, and nothing goes to another row."""

import gzip
import json
import re
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, load_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_select.cli.main import main
from hf_select.export.jsonl import export_subset
from hf_select.scoring.imported import import_scores


@pytest.fixture(autouse=True)
def work_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def lines(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_conversations_are_exported_as_messages_with_a_snippet_for_each_trainer():
    subset = Dataset.from_dict({"instruction": ["add", "ünï"], "input": ["1 2", ""], "output": ["3", "ok"]})
    made = export_subset(subset, "out", "mine")
    assert [path.name for path in made] == ["mine.jsonl", "dataset_info.json", "axolotl.yaml", "open_instruct.yaml"]
    rows = lines("out/mine.jsonl")
    assert rows[0] == {"messages": [{"role": "user", "content": "add\n\n1 2"}, {"role": "assistant", "content": "3"}]}
    info = json.loads(Path("out/dataset_info.json").read_text())["mine"]
    assert info["formatting"] == "sharegpt" and info["columns"] == {"messages": "messages"}
    assert (Path("out") / info["file_name"]).exists()
    (first,) = yaml.safe_load(Path("out/axolotl.yaml").read_text())["datasets"]
    assert first["type"] == "chat_template" and Path(first["path"]).exists()
    read = load_dataset(first["ds_type"], data_files=first["path"], split="train")
    assert read[1][first["field_messages"]][0]["content"] == "ünï"
    mixer = yaml.safe_load(Path("out/open_instruct.yaml").read_text())["dataset_mixer_list"]
    assert Path(mixer[0]).exists() and mixer[1] == "1.0"


def test_tool_calls_and_tools_are_exported():
    call = {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'}
    subset = Dataset.from_dict(
        {"conversations": [[{"from": "human", "value": "hi"}, call]], "tools": ['[{"name": "f"}]']}
    )
    export_subset(subset, "out")
    (row,) = lines("out/subset.jsonl")
    assert row["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert json.loads(row["tools"]) == [{"name": "f"}]
    info = json.loads(Path("out/dataset_info.json").read_text())["subset"]
    assert info["formatting"] == "sharegpt" and info["columns"]["tools"] == "tools"


def converted(folder: str, name: str = "subset") -> list[dict]:
    """What LLaMA-Factory's sharegpt format, as its documentation describes it, makes of an exported dataset."""
    info = json.loads(Path(folder, "dataset_info.json").read_text(encoding="utf-8"))[name]
    assert info["formatting"] == "sharegpt"
    tags = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}
    tags |= {"observation_tag": "observation", "function_tag": "function_call", "system_tag": "system"}
    tags |= info.get("tags", {})
    found = []
    for row in lines(f"{folder}/{info['file_name']}"):
        turns = [(turn[tags["role_tag"]], turn[tags["content_tag"]]) for turn in row[info["columns"]["messages"]]]
        system = turns.pop(0)[1] if turns[0][0] == tags["system_tag"] else ""
        odd, even = ("user_tag", "observation_tag"), ("assistant_tag", "function_tag")
        assert len(turns) % 2 == 0, "it would be skipped"
        for i, (role, content) in enumerate(turns):
            assert role in [tags[tag] for tag in (odd, even)[i % 2]], "it would be skipped"
            if role == tags["function_tag"]:
                for call in json.loads(content.split("</think>")[-1].removeprefix("\n\n")):
                    assert isinstance(call["arguments"], dict) and isinstance(call["name"], str)
        tools = row[info["columns"]["tools"]] if "tools" in info["columns"] else ""
        found.append({"system": system, "tools": tools, "turns": turns})
    return found


def test_llama_factory_reads_calls_and_reasoning_and_no_word_more(caplog):
    user, done = {"role": "user", "content": "go"}, {"role": "assistant", "content": "done"}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1.50, "b": null}'}}
    calls = {"role": "assistant", "content": None, "reasoning_content": "Why not.", "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "1", "content": "5"}
    rows = [
        {
            "messages": [{"role": "system", "content": "Be brief."}, user, calls, result, done],
            "tools": '[{"name": "f"}]',
        },
        {"messages": [user, {**done, "reasoning_content": "Hm."}], "tools": None},
        {"messages": [user, calls, result, result, done], "tools": '[{"name": "f"}]'},
        {"messages": [user, user, done], "tools": None},
        {"messages": [user, {**done, "weight": 0}], "tools": None},
    ]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["export", "in.jsonl", "--output-dir", "out"]) == 0
    first, second = converted("out")
    written_call = '[{"name": "f", "arguments": {"a": 1.50, "b": null}}]'
    assert first == {
        "system": "Be brief.",
        "tools": '[{"name": "f"}]',
        "turns": [
            ("human", "go"), ("function_call", f"<think>\nWhy not.\n</think>\n\n{written_call}"),
            ("observation", "5"), ("gpt", "done"),
        ],
    }  # fmt: skip
    assert (
        second["turns"][1] == ("gpt", "<think>\nHm.\n</think>\n\ndone") and second["system"] == second["tools"] == ""
    )
    for reason in ("leaves out 3 of 5", "several tool results", "do not alternate", "not to be trained on"):
        assert reason in caplog.text
    assert [row["messages"] for row in lines("out/subset.jsonl")] == [row["messages"] for row in rows]


def test_plain_turns_are_read_from_the_one_file():
    user, reply = {"role": "user", "content": "go"}, {"role": "assistant", "content": "done"}
    export_subset(Dataset.from_list([{"messages": [{"role": "system", "content": "S"}, user, reply]}]), "out")
    assert converted("out") == [{"system": "S", "tools": "", "turns": [("user", "go"), ("assistant", "done")]}]
    assert not list(Path("out").glob("*.llama_factory.jsonl"))


def test_an_export_leaves_the_files_of_others_alone(capsys):
    rows = Dataset.from_list([{"prompt": "a", "completion": "b"}])
    Path("out").mkdir()
    Path("out/dataset_info.json").write_text('{"theirs": {"file_name": "x.json"}}')
    export_subset(rows, "out", "mine")
    with pytest.raises(ValueError, match="axolotl.yaml.*exists.*overwrite"):
        export_subset(rows, "out", "other")
    export_subset(rows, "out", "other", overwrite=True)
    info = json.loads(Path("out/dataset_info.json").read_text())
    assert list(info) == ["theirs", "mine", "other"] and info["theirs"] == {"file_name": "x.json"}
    with pytest.raises(ValueError, match='has a dataset "theirs".*--name'):
        export_subset(rows, "out", "theirs")
    Path("out/dataset_info.json").write_text("[1")
    with pytest.raises(ValueError, match="dataset_info.json.*not a JSON object"):
        export_subset(rows, "out", "new")
    assert Path("out/dataset_info.json").read_text() == "[1"
    rows.to_parquet("s.parquet")
    for name in ("../../evil", "a/b", "..", "/tmp/x"):
        assert main(["export", "s.parquet", "--output-dir", "out2", "--name", name]) == 2
        assert "names a file" in capsys.readouterr().err
    assert not Path("out2").exists()


def test_raw_text_is_exported_for_those_who_read_it():
    made = export_subset(Dataset.from_dict({"text": ["a", "b"]}), "out")
    assert [path.name for path in made] == ["subset.jsonl", "dataset_info.json", "axolotl.yaml"]
    assert lines("out/subset.jsonl") == [{"text": "a"}, {"text": "b"}]


def test_a_row_that_cannot_be_read_is_not_left_out_in_silence():
    with pytest.raises(ValueError, match="row 1 of the subset cannot be read: completion is null"):
        export_subset(Dataset.from_dict({"prompt": ["a", "b"], "completion": ["c", None]}), "out")
    assert not Path("out/subset.jsonl").exists()


def test_imported_scores_go_to_their_rows():
    dataset = Dataset.from_dict({"row_id": ["x", "y", "z", "w"], "text": list("abcd")})
    Path("s.jsonl").write_text(
        '{"id": "z", "score": 3}\n{"id": "x", "score": 0.5}\n\n{"id": "y", "score": null}\n{"id": "q", "score": 1}\n'
    )
    scored = import_scores(dataset, "s.jsonl", "judge")
    assert scored["score_judge"] == [0.5, None, 3.0, None]
    reasons = ["", "the imported score is null", "", "not among the imported"]
    assert scored["judge_reason"] == reasons
    numbered = dataset.remove_columns("row_id")
    Path("n.jsonl").write_text('{"key": 2, "quality": 7}\n{"key": 0, "quality": NaN}\n')
    by_number = import_scores(numbered, "n.jsonl", "q", id_key="key", score_key="quality")
    assert by_number["score_q"] == [None, None, 7.0, None]


def test_the_errors_of_an_import():
    dataset = Dataset.from_dict({"row_id": ["x", "y"], "score_old": [1.0, 2.0]})

    def error(text: str, name: str = "new") -> str:
        Path("s.jsonl").write_text(text)
        with pytest.raises(ValueError) as caught:
            import_scores(dataset, "s.jsonl", name)
        return str(caught.value)

    assert 'id "x" comes twice' in error('{"id": "x", "score": 1}\n{"id": "x", "score": 2}\n')
    assert "line 2" in error('{"id": "x", "score": 1}\nnonsense\n')
    unknown = error('{"id": "x", "sore": 1}\n')
    assert "it has ['id', 'sore']" in unknown and "--score-key" in unknown
    assert "it is not an object" in error("[1]\n")
    assert "names no row of the dataset" in error('{"id": "0", "score": 1}\n')
    assert "is empty" in error("\n")
    assert "already" in error('{"id": "x", "score": 1}\n', "old")


def imported(values: list, **settings) -> tuple[list, list]:
    """Scores and reasons of rows 0, 1, ... from these values."""
    Path("s.jsonl").write_text("".join(json.dumps({"id": i, "score": v}) + "\n" for i, v in enumerate(values)))
    scored = import_scores(Dataset.from_dict({"text": ["t"] * len(values)}), "s.jsonl", "judge", **settings)
    return scored["score_judge"][:], scored["judge_reason"][:]


def test_texts_that_are_numbers_are_numbers():
    values = ["4", " 4.5 ", "-.5", "1e3", 7, 0.25, "+2."]
    assert imported(values) == ([4.0, 4.5, -0.5, 1000.0, 7.0, 0.25, 2.0], [""] * 7)
    assert imported(["4/10", "3 / 5", "10/10"]) == ([0.4, 0.6, 1.0], [""] * 3)
    with pytest.raises(ValueError, match="number 4 at line 1 and the fraction 3/5 at line 2: two scales"):
        imported([4, "3/5"])


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(st.one_of(st.floats(-1e9, 1e9), st.integers(-(10**6), 10**6)), min_size=1, max_size=6))
def test_a_number_is_the_same_written_as_text(values):
    as_text, as_number = (imported(given)[0] for given in ([repr(value) for value in values], values))
    assert as_text == as_number == [float(value) for value in values]


NOT_NUMBERS = [
    (True, "true is not a number"),
    ({"overall": 4}, "overall.* is not a number"),
    ([4], "is not a number"),
    ("good", "good.* is not a number"),
    ("", "is not a number"),
    ("4 out of 10", "is not a number"),
    ("1_000", "is not a number"),
    ("nan", "is not a number"),
    ("3/0", "is not a finite number"),
    ("1e999", "is not a finite number"),
    (float("inf"), "Infinity is not a finite number"),
    (float("nan"), "NaN is not a finite number"),
    (10**400, "is not a finite number"),
    (None, "is null"),
]


@pytest.mark.parametrize(("value", "reason"), NOT_NUMBERS, ids=[str(value)[:20] for value, _ in NOT_NUMBERS])
def test_a_value_that_is_not_a_number_has_its_reason_and_nothing_but_such_is_a_failure(value, reason, capsys):
    scores, reasons = imported([value, 3])
    assert scores == [None, 3.0] and re.search(reason, reasons[0]) and reasons[1] == ""
    with pytest.raises(ValueError, match=f"none of the 2 rows that it names a score: 2 x .*{reason}.*score_key"):
        imported([value, value])
    Path("pool.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    assert main(["import-scores", "s.jsonl", "--dataset", "pool.jsonl", "--name", "j", "--output", "o.parquet"]) == 2
    assert "gives none of the 2 rows" in capsys.readouterr().err and not Path("o.parquet").exists()


def test_ids_are_looked_for_where_they_are(caplog):
    dataset = Dataset.from_dict({"id": ["a", "b"], "text": ["x", "y"]})
    Path("s.jsonl").write_text('{"id": "a", "score": 1}\n{"id": "c", "score": 2}\n')
    with pytest.raises(ValueError, match='names no row.*Is it the column "id"\\? Then give row_id'):
        import_scores(dataset, "s.jsonl", "j")
    with pytest.raises(ValueError, match='column "idd" is missing.*Did you mean "id"'):
        import_scores(dataset, "s.jsonl", "j", row_id="idd")
    assert import_scores(dataset, "s.jsonl", "j", row_id="id")["score_j"] == [1.0, None]
    assert '1 of 2 ids in "s.jsonl" name no row' in caplog.text


def test_from_imported_scores_to_a_report_and_an_export(rows):
    Path("pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    scores = "".join(json.dumps({"id": i, "score": (i * 7) % 40}) + "\n" for i in range(40))
    Path("judge.jsonl").write_text(scores)
    command = ["import-scores", "judge.jsonl", "--dataset", "pool.jsonl", "--name", "judge", "--output", "s.parquet"]
    assert main(command) == 0
    select = ["select", "--scores", "s.parquet", "--selector", "top_k", "--column", "score_judge", "--k", "5"]
    assert main([*select, "--output", "best.jsonl"]) == 0
    assert main(["report", "best.jsonl"]) == 0
    found = json.loads(Path("report/report.json").read_text(encoding="utf-8"))
    assert found["scores"]["score_judge"]["parts"]["selected"]["quantiles"]["0"] == 35
    assert main(["export", "best.jsonl", "--output-dir", "out"]) == 0
    assert len(lines("out/subset.jsonl")) == 5


@pytest.mark.parametrize("name", ["s.jsonl", "s.jsonl.gz", "s.csv", "s.tsv", "S.CSV.GZ"])
def test_scores_are_imported_from_every_kind_of_file(name):
    given = {"0": "4", "1": "3.5", "2": ""}
    delimiter = "\t" if "tsv" in name else ","
    text = "".join(json.dumps({"id": key, "score": value}) + "\n" for key, value in given.items())
    if "jsonl" not in name:
        text = "\r\n".join([f"score{delimiter}id", *(f"{value}{delimiter}{key}" for key, value in given.items())])
    data = b"\xef\xbb\xbf" + text.encode()
    Path(name).write_bytes(gzip.compress(data) if name.lower().endswith("gz") else data)
    scored = import_scores(Dataset.from_dict({"text": ["a", "b", "c"]}), name, "judge")
    assert scored["score_judge"] == [4.0, 3.5, None]
    assert scored["judge_reason"][2] == 'the imported score "" is not a number'
    if name.endswith("gz"):
        Path(name).write_bytes(gzip.compress(data)[:-9])
        with pytest.raises(ValueError, match="the compressed file is damaged"):
            import_scores(Dataset.from_dict({"text": ["a"]}), name, "judge")
