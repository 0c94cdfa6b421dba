"""What is read is what is written: no text, key, null or spelling of a number changes on the way through a file."""

import bz2
import gzip
import json
import lzma
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hf_select import Length, score
from hf_select.cli.main import main
from hf_select.data.loading import read_dataset
from hf_select.data.row_files import features_of, tables_of
from hf_select.data.writing import write_dataset


class Number(str):
    """A number by its spelling."""


def written(value) -> str:
    """The JSON text of a value, by no encoder that is tested here."""
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{written(item)}" for key, item in value.items()) + "}"
    return f"[{','.join(map(written, value))}]" if isinstance(value, list) else json.dumps(value)


def spelled(text: str):
    """What a JSON text says, with numbers by their spelling and keys in their order."""
    number = {"parse_float": Number, "parse_int": Number, "parse_constant": Number}
    return json.loads(text, object_pairs_hook=lambda pairs: [("key", *pair) for pair in pairs], **number)


TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.sampled_from(
        ["007", "1.50", "2020-01-01", "2020-01-01T00:00:00Z", "null", "true", "NA", "", " a\r\nb\u2028\t", '"']
    ),
)
NUMBERS = st.sampled_from(
    ["0", "-1", "1.0", "1.10", "1e5", "1E-7", "0.30000000000000004", "12345678901234567", "-0.0", "-0", "NaN", "1e400"]
).map(Number)
VALUES = st.recursive(
    st.one_of(TEXTS, NUMBERS, st.none(), st.booleans()),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(TEXTS, inner, max_size=2)),
    max_leaves=4,
)
MESSAGES = st.lists(
    st.one_of(
        st.fixed_dictionaries({"role": st.just("user"), "content": TEXTS}),
        st.fixed_dictionaries(
            {"role": st.just("assistant"), "content": st.one_of(TEXTS, st.none())},
            optional={
                "reasoning_content": TEXTS,
                "tool_calls": st.lists(
                    st.fixed_dictionaries(
                        {"id": TEXTS, "function": st.fixed_dictionaries({"name": TEXTS, "arguments": VALUES})}
                    ),
                    min_size=1,
                    max_size=2,
                ),
            },
        ),
    ),
    min_size=1,
    max_size=3,
)
TURNS = st.lists(
    st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt"]), "value": TEXTS}), min_size=1, max_size=3
)
LAYOUTS = {
    "messages": {"messages": MESSAGES, "tools": st.one_of(VALUES, TEXTS)},
    "sharegpt": {"conversations": TURNS, "system": st.one_of(TEXTS, st.none())},
    "prompt-completion": {"prompt": TEXTS, "completion": TEXTS},
    "lists": {"prompt": MESSAGES, "completion": MESSAGES},
    "alpaca": {"instruction": TEXTS, "input": st.one_of(TEXTS, st.none()), "output": TEXTS},
    "text": {"text": TEXTS},
}
ROWS = st.one_of(
    *(
        st.lists(
            st.fixed_dictionaries(
                {**columns, "id": TEXTS, "meta": VALUES.filter(lambda v: not isinstance(v, Number))}
            ),
            min_size=1,
            max_size=4,
        )
        for columns in LAYOUTS.values()
    )
)
KEEPING = [".jsonl", ".json", ".parquet", "", ".jsonl.gz", ".json.zst", ".jsonl.xz", ".json.bz2"]


def read(path: Path) -> Dataset:
    """As RowFiles does, without the copy that `datasets` keeps."""
    if path.is_dir():
        return read_dataset(str(path))
    features = features_of([str(path)])
    return Dataset(pa.concat_tables(tables_of(str(path), features)))


def through(rows: list, names: list[str]) -> list:
    """The rows after a way from JSONL through the files, as the JSONL at its end spells them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        last = folder / "0.jsonl"
        last.write_text("".join(written(row) + "\n" for row in rows), encoding="utf-8", newline="")
        for i, ending in enumerate([*names, ".jsonl"], 1):
            write_dataset(read(last), folder / f"{i}{ending}")
            last = folder / f"{i}{ending}"
        return [dict(pair[1:] for pair in spelled(line)) for line in last.read_bytes().splitlines()]


def expected(row: dict) -> dict:
    return dict(pair[1:] for pair in spelled(written(row)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(ROWS, st.lists(st.sampled_from(KEEPING), min_size=1, max_size=3))
def test_rows_come_out_of_any_files_as_they_went_in(rows, names):
    assert through(rows, names) == [expected(row) for row in rows]


CSV_HAS_NUL = sys.version_info >= (3, 11)

FLAT = st.one_of(
    *(
        st.lists(
            st.fixed_dictionaries({**columns, "id": TEXTS, "n": st.integers(-9, 9).map(str).map(Number)}),
            min_size=1,
            max_size=4,
        )
        for columns in (
            {"messages": MESSAGES, "tools": TEXTS},
            {"conversations": TURNS, "system": TEXTS},
            LAYOUTS["lists"],
            {"prompt": TEXTS, "completion": TEXTS},
            {"instruction": TEXTS, "input": TEXTS, "output": TEXTS},
            {"text": TEXTS},
        )
    )
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(FLAT, st.sampled_from([".csv", ".tsv", ".csv.gz", ".tsv.zst"]), st.sampled_from(KEEPING))
def test_csv_keeps_texts_numbers_and_messages(rows, flat, other):
    assume(CSV_HAS_NUL or "\\x00" not in repr(rows))
    for found, row in zip(through(rows, [flat, other]), rows, strict=True):
        id_ = found.pop("id")  # one that is a number in every row comes back as the number that it spells
        assert row["id"] in (id_, {True: "true", False: "false", None: ""}.get(id_))
        assert found == {name: value for name, value in expected(row).items() if name != "id"}


@pytest.mark.skipif(CSV_HAS_NUL, reason="the csv module of this Python writes and reads the character NUL")
def test_nul_in_csv_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match='column "b": .*Python 3.10 cannot write the character NUL. Write .parquet'):
        write_dataset(Dataset.from_list([{"a": "x", "b": "y\0"}]), tmp_path / "rows.csv")
    (tmp_path / "rows.csv").write_text('a,b\n"x","y\0"\n')
    with pytest.raises(ValueError, match="cannot read the character NUL in CSV: give JSONL"):
        list(read_dataset(str(tmp_path / "rows.csv")))


# The whole road: `datasets` keeps a copy of what is read, or streams it.


TOOL_ROWS = [
    '{"messages": [{"role": "user", "content": "Depth?"}, {"role": "assistant", "content": null, "tool_calls": '
    '[{"id": "c1", "type": "function", "function": {"name": "depth", "arguments": {"at": 1.50, "unit": null}}}]}, '
    '{"role": "tool", "tool_call_id": "c1", "content": "9"}, {"role": "assistant", "content": "9 m"}], '
    '"day": "2024-02-29"}',
    '{"messages": [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "3", "reasoning_content": '
    '"1 + 2"}], "day": "2024-03-01"}',
]


@pytest.mark.parametrize("stream", [[], ["--stream"]])
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet", ".csv", ".tsv.gz"])
def test_scored_and_selected_rows_are_the_rows_of_the_file(tmp_path, monkeypatch, stream, ending):
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text("\n".join(TOOL_ROWS) + "\n", encoding="utf-8")
    source = "in.jsonl"
    if ending != ".jsonl":
        source = f"in{ending}"
        write_dataset(read_dataset("in.jsonl"), Path(source))
    score = ["score", "--scorer", "length", "--dataset", source, "--output-dir", "s", *stream]
    assert main(score) == 0
    select = ["select", "--scores", "s", "--selector", "longest", "--k", "2", "--output"]
    assert main([*select, f"out{ending}"]) == 0 and main([*select, "out2.jsonl"]) == 0
    write_dataset(read_dataset(f"out{ending}"), Path("out.jsonl"))
    for name in ("out.jsonl", "out2.jsonl"):
        for line in Path(name).read_text(encoding="utf-8").splitlines():
            found = dict(pair[1:] for pair in spelled(line))
            (row,) = (row for row in TOOL_ROWS if dict(p[1:] for p in spelled(row))["day"] == found["day"])
            assert {name: found[name] for name in ("messages", "day")} == dict(pair[1:] for pair in spelled(row))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "name, text",
    [
        ("late.jsonl", '{"prompt": "a", "x": null}\n' * 3000 + '{"prompt": "b", "x": {"k": [1]}}\n'),
        ("types.jsonl", '{"prompt": "a", "x": 1}\n' * 3000 + '{"prompt": "b", "x": "one"}\n'),
        ("keys.jsonl", '{"prompt": "a"}\n' * 3000 + '{"prompt": "b", "x": 1}\n'),
        ("blank.jsonl", '\n{"prompt": "a"}\n  \n\r\n' * 3000 + '{"prompt": "b", "x": 1}\n'),
        ("array.json", "[\n" + '{"prompt": "a"},\n' * 3000 + '{"prompt": "b", "x": 1}]'),
        ("long.csv", "prompt\n" + "a\n" * 3000 + f'"{"b" * 200_000}"\n'),
    ],
)
def test_what_comes_late_in_a_file_is_read(tmp_path, stream, name, text):
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    rows = list(read_dataset(str(tmp_path / name), stream=stream))
    assert len(rows) == 3001 and rows[0]["prompt"] == "a" and rows[-1]["prompt"][0] == "b"
    if "x" in rows[0]:
        assert rows[-1]["x"] in ({"k": [1]}, "one", 1) and rows[0]["x"] in (None, 1)


GOOD = b'{"prompt": "a", "completion": "b"}\n'
BROKEN = {
    "half.jsonl": (
        GOOD + b'\n{"prompt": "a", "comp',
        "half.jsonl.*row 1 .line 3.*not valid JSON.*Write one JSON object",
    ),
    "latin1.jsonl": (GOOD + '{"prompt": "é"}\n'.encode("latin1"), "row 1 .line 2., column prompt: byte 0xe9 .*iconv"),
    "latin1.csv": ("prompt,completion\na,b\nc,é\n".encode("latin1"), "row 1 .line 3., column completion: byte 0xe9"),
    "latin1.json": (b'[{"prompt": "a"}, {"prompt": ["\xe9"]}]', r"row 1, column prompt\[0\]: byte 0xe9"),
    "utf16.jsonl": (GOOD.decode().encode("utf-16"), "utf16.jsonl.*UTF-16.*iconv"),
    "utf16.tsv": ("prompt\tcompletion\n".encode("utf-16-le"), "utf16.tsv.*UTF-16.*iconv"),
    "half_pair.jsonl": (GOOD + b'{"m": [{"c": "\\ud83d"}]}\n', r"row 1 .line 2., column m\[0\].c: .ud83d.*surrogate"),
    "long.jsonl": (GOOD + b'{"n": 99999999999999999999}\n', "row 1 .line 2., column n: .*beyond 64 bits.*as text"),
    "twice.jsonl": (GOOD + b'{"a": {"b": 1, "b": 2}}\n', 'row 1 .line 2.: .* key "b" twice'),
    "deep.jsonl": (
        GOOD + b'{"x": ' + b"[" * 300 + b"]" * 300 + b"}\n",
        "row 1 .line 2., column x: .*nested too deeply",
    ),
    "deep_pair.jsonl": (
        GOOD + b'{"x": ' + b'{"a":' * 700 + b'"\\ud83d\\ude00"' + b"}" * 701 + b"\n",
        "row 1 .line 2.*nested too deeply.*as text",
    ),
    "list.jsonl": (GOOD + b"[1]\n", "row 1 .line 2.*array, not an object"),
    "pretty.json": (b'{\n "prompt": "a"\n}\n', "row 0 .line 1.*not valid JSON.*an array of objects"),
    "fields.csv": (b"prompt,completion\na,b\nc\n", "row 1 .line 3.*1 fields, and the header has 2"),
    "quote.csv": (b'prompt,completion\na,"b\n', "not valid CSV"),
    "header.csv": (b"prompt,prompt\na,b\n", 'header has "prompt" twice'),
    "cut.jsonl.gz": (gzip.compress(GOOD * 999)[:-9], "cut.jsonl.gz.*damaged or cut off"),
    "cut.jsonl.xz": (lzma.compress(GOOD * 999)[:-9], "damaged or cut off"),
    "cut.jsonl.bz2": (bz2.compress(GOOD * 999)[:-9], "damaged or cut off"),
    "cut.parquet": (b"PAR1....", "cut.parquet.*as Parquet.*write it again"),
    "none.jsonl.gz": (gzip.compress(b""), "is empty"),
    "header_alone.csv": (b"prompt,completion\n", "is empty"),
    "rows.txt": (GOOD, r"rows.txt.*unknown file extension.*\.tsv.*\.zst"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_read_is_named_with_row_column_and_cure(tmp_path, name, stream):
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        list(read_dataset(str(tmp_path / name), stream=stream))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_a_row_that_is_no_conversation_is_named_with_its_file(tmp_path, monkeypatch, capsys, stream):
    monkeypatch.chdir(tmp_path)
    rows = [*TOOL_ROWS, '{"messages": [{"role": "user", "content": "a"}, {"role": "narrator", "content": "b"}]}']
    Path("in.jsonl").write_text("\n".join(rows), encoding="utf-8")
    assert main(["score", "--scorer", "length", "--dataset", "in.jsonl", "--output-dir", "s", *stream]) == 2
    assert '1 of 3 rows of "in.jsonl" cannot be read (row 2: unknown role "narrator"' in capsys.readouterr().err


class Arguments:
    """A scorer that keeps the arguments of the first call of each row, as it is handed them."""

    def __init__(self) -> None:
        self.seen: list = []

    def __call__(self, batch: dict) -> dict:
        self.seen += [messages[1]["tool_calls"][0]["function"]["arguments"] for messages in batch["messages"]]
        return Length()(batch)

    def __getattr__(self, name: str):
        return getattr(Length(), name)


def test_a_scorer_is_handed_the_very_numbers(tmp_path):
    """The decoder of `datasets` is off by a bit in one of three floats of 17 digits."""
    numbers = [0.1 + 0.2 * i / 7 for i in range(50)]
    row = json.loads(TOOL_ROWS[0])
    rows = []
    for number in numbers:
        row["messages"][1]["tool_calls"][0]["function"]["arguments"] = {"at": number, str(number): None}
        rows.append(json.dumps(row))
    (tmp_path / "in.jsonl").write_text("\n".join(rows))
    scorer = Arguments()
    score(read_dataset(str(tmp_path / "in.jsonl")), scorer, tmp_path / "s")
    assert [arguments["at"] for arguments in scorer.seen] == numbers


def test_zstandard_files_are_whole_or_refused(tmp_path, monkeypatch):
    import zstandard

    rows = b"".join(b'{"prompt": "%d"}\n' % i for i in range(5000))
    whole = zstandard.compress(rows[:20_000]) + zstandard.compress(rows[20_000:])
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(whole)
    assert read_dataset(str(path))["prompt"] == [str(i) for i in range(5000)]
    path.write_bytes(whole[:-30])
    with pytest.raises(ValueError, match="damaged or cut off"):
        read_dataset(str(path))
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(ImportError, match="a.jsonl.zst.*pip install zstandard"):
        read_dataset(str(path))


def shards(folder: Path, *parts: list, ending: str = ".jsonl") -> str:
    folder.mkdir(exist_ok=True)
    for i, part in enumerate(parts):
        write_dataset(Dataset.from_list(part), folder / f"train-{i}{ending}")
    return str(folder)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".csv"])
def test_shards_are_one_dataset_and_one_with_other_columns_is_named(tmp_path, stream, ending):
    row = {"prompt": "a", "completion": "2024-01-01"}
    folder = shards(tmp_path / "good", [row] * 3, [row] * 2, ending=ending)
    assert list(read_dataset(folder, stream=stream)) == [row] * 5
    folder = shards(tmp_path / "bad", [row] * 3, [{**row, "extra": 1}], ending=ending)
    with pytest.raises(ValueError, match=f"train-1{ending}.*other columns than.*train-0.*it also has extra.*the same"):
        list(read_dataset(folder, stream=stream))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endings", [(".jsonl", ".json"), (".ndjson.gz", ".json"), (".csv", ".tsv")])
def test_shards_of_two_spellings_of_one_kind_are_read_without_a_change(tmp_path, stream, endings):
    rows = [{"prompt": "2024-01-01", "completion": "007"}, {"prompt": "2024-01-02", "completion": "1.50"}]
    for i, (row, ending) in enumerate(zip(rows, endings, strict=True)):
        write_dataset(Dataset.from_list([row]), tmp_path / f"train-{i}{ending}")
    assert list(read_dataset(str(tmp_path), stream=stream)) == rows


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("other", ["train-9.csv", "train-9.parquet", "labels.csv", "train-0.jsonl.bak"])
def test_no_file_of_a_folder_is_left_out_or_taken_for_rows_in_silence(tmp_path, stream, other):
    """`datasets` reads the files of the commonest kind alone, and copies such as a.jsonl.bak with them."""
    folder = shards(tmp_path, [{"prompt": "a"}] * 2, [{"prompt": "b"}])
    (tmp_path / "notes.md").write_text("not rows")
    assert len(list(read_dataset(folder, stream=stream))) == 3
    write_dataset(Dataset.from_list([{"prompt": "c"}]), tmp_path / "c.jsonl")
    (tmp_path / "c.jsonl").rename(tmp_path / other)
    with pytest.raises(ValueError, match=f'contains "train-.*" and "{other}", which have different formats. Name one'):
        list(read_dataset(folder, stream=stream))


@pytest.mark.parametrize("name, cure", [("empty", "Name a file"), ("my [set]", "a pattern. Name a file")])
def test_a_folder_without_rows_is_refused_with_the_known_endings(tmp_path, name, cure):
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"has no data files .*jsonl.*{cure}"):
        read_dataset(str(tmp_path / name))


@pytest.mark.parametrize("value", ["[" * 40 + "1.50" + "]" * 40, '{"a": ' * 90 + "null" + "}" * 90])
def test_deep_values_are_read_in_time_and_written_as_they_were(tmp_path, value):
    """`datasets` decodes a list of lists of ... in twice the time for each level of its type."""
    (tmp_path / "in.jsonl").write_text(f'{{"prompt": "a", "x": {value}}}\n')
    for name in ("a.parquet", "b", "c.jsonl"):
        write_dataset(read_dataset(str(tmp_path / "in.jsonl")), tmp_path / name)
        write_dataset(read_dataset(str(tmp_path / name)), tmp_path / "out.jsonl")
        assert (tmp_path / "out.jsonl").read_text() == (tmp_path / "in.jsonl").read_text()
        assert len(list(read_dataset(str(tmp_path / name), stream=True))) == 1
        (tmp_path / "out.jsonl").unlink()


def test_parquet_shards_agree_on_types_but_for_columns_of_nulls(tmp_path):
    for i, values in enumerate([[None, None], ["x", None]]):
        pq.write_table(pa.table({"prompt": ["a", "b"], "note": values}), tmp_path / f"train-{i}.parquet")
    assert read_dataset(str(tmp_path))["note"] == [None, None, "x", None]
    pq.write_table(pa.table({"prompt": ["a"], "note": [1]}), tmp_path / "train-2.parquet")
    with pytest.raises(ValueError, match="train-2.parquet.*other types than.*train-0"):
        read_dataset(str(tmp_path))


def test_outputs_have_a_known_ending_or_are_folders(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text("\n".join(TOOL_ROWS) + "\n", encoding="utf-8")
    select = ["select", "--scores", "in.jsonl", "--selector", "random", "--k", "1", "--output"]
    for name in ("y.txt", "y.cvs", "deep/y.arrow"):
        assert main([*select, name]) == 2 and not Path(name).exists()
        assert (
            '"' + name + '" has the unknown file extension' in (said := capsys.readouterr().err)
            and ".csv" in said
            and ".tsv" in said
        )
    assert main([*select, "y.parquet.gz"]) == 2 and "leave out" in capsys.readouterr().err
    for name in ("y.csv", "y.json", "folder", "v1.5"):
        assert main([*select, name]) == 0 and Path(name).is_file() == (name[0] == "y")
    printed = capsys.readouterr().out
    assert "Note: messages: written as JSON text" in printed
    assert write_dataset(Dataset.from_list([{"a": "x"}, {"a": None}]), Path("n.csv")) == [
        'column "a": nulls (1) are written as empty fields, which are read back as empty text.'
    ]


def test_numbers_that_a_csv_spells_in_its_own_way_are_scores(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in.csv").write_text("text,score_a\na,1\nb,0.50\nc,\nd,7e-1\n")
    select = ["select", "--scores", "in.csv", "--selector", "top_k", "--column", "score_a", "--k", "3"]
    assert main([*select, "--output", "out.csv"]) == 0
    assert read_dataset("out.csv")["score_a"] == ["1", "7e-1", "0.50"]


def test_values_that_json_does_not_have_are_refused(tmp_path):
    with pytest.raises(ValueError, match='column "picture": bytes cannot be written as JSON.*parquet'):
        write_dataset(Dataset.from_dict({"picture": [b"x"]}), tmp_path / "a.jsonl")
    assert not (tmp_path / "a.jsonl").exists()


def test_trainers_read_the_same_rows(tmp_path):
    """What is kept as JSON text is what load_dataset decodes: SFTTrainer gets the objects."""
    (tmp_path / "in.jsonl").write_text("\n".join(TOOL_ROWS) + "\n", encoding="utf-8")
    write_dataset(read_dataset(str(tmp_path / "in.jsonl")), tmp_path / "out.parquet")
    read = load_dataset("parquet", data_files=str(tmp_path / "out.parquet"), split="train")
    assert list(read) == [json.loads(row) for row in TOOL_ROWS]
