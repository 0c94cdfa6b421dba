"""Mixtures: counts that are exact, rows that say where they came from, and what may be wrong with a source."""

import json
import random
from collections import Counter
from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset
from selection_training import NO_CHECKPOINTING

from hf_select import Length, Mixture, Source, TopK
from hf_select.cli.main import main
from hf_select.mixtures.draws import apportion, permutation, schedule, shuffled
from hf_select.mixtures.rewild import ROWS, rewild


def pairs(n, word="chat", first=0):
    return [{"prompt": f"{word} question {i}?", "completion": f"{word} answer {i}."} for i in range(first, first + n)]


def some(n, word="chat", first=0):
    return Dataset.from_list(pairs(n, word, first))


def save(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def mix(tmp_path):
    """Write a mixture; its rows and its record."""

    def made(sources, against=None, **settings):
        mixture = Mixture(sources, **settings)
        record = mixture.write(tmp_path / "mix", against)
        assert json.loads((tmp_path / "mix" / "mixture.json").read_text()) == json.loads(json.dumps(record))
        return pq.read_table(tmp_path / "mix" / "mixture.parquet").to_pylist(), record

    return made


def counts(rows):
    return Counter(row["source"] for row in rows)


# How many of each.


@pytest.mark.parametrize(
    "total, weights, shares",
    [
        (366_550, [246_750, 99_800, 20_000], [246_750, 99_800, 20_000]),
        (1000, [246_750, 99_800, 20_000], [673, 272, 55]),
        (10, [1, 1, 1], [4, 3, 3]),
        (7, [0.5, 0.25, 0.25], [3, 2, 2]),
        (3, [0, 5, 0], [0, 3, 0]),
        (10**15 + 1, [3, 1], [750_000_000_000_001, 250_000_000_000_000]),
    ],
)
def test_integer_weights_come_back_exactly_and_others_by_largest_remainder(total, weights, shares):
    assert apportion(total, weights) == shares


def test_every_arrangement_of_the_sources_has_the_same_chance():
    found = Counter("".join(schedule({"a": 2, "b": 1, "c": 1}, random.Random(seed))) for seed in range(12_000))
    assert set(found) == {"".join(order) for order in permutations("aabc")} and len(found) == 12
    assert all(abs(count - 1000) < 5 * 1000**0.5 for count in found.values()), found


def test_weights_rows_and_all_rows_give_exact_counts_and_say_where_each_row_came_from(mix):
    rows, record = mix({"a": Source(some(50), weight=3), "b": Source(some(20, "math"), weight=1)}, rows=40)
    assert counts(rows) == {"a": 30, "b": 10} and record["sources"]["a"]["share"] == 0.75
    for row in rows:
        said = pairs(1, {"a": "chat", "b": "math"}[row["source"]], row["source_row"])[0]
        assert [m["content"] for m in row["messages"]] == [said["prompt"], said["completion"]]
        assert [m["role"] for m in row["messages"]] == ["user", "assistant"]
    assert len({(row["source"], row["source_row"]) for row in rows}) == 40
    rows, _ = mix({"a": Source(some(50), rows=7), "b": Source(some(20, "math"))})
    assert counts(rows) == {"a": 7, "b": 20}
    rows, _ = mix({"a": Source(some(50), rows=7, take="first"), "b": Source(some(9, "math"))}, shuffle=False)
    assert [(row["source"], row["source_row"]) for row in rows][:8] == [
        *(("a", i) for i in range(7)),
        ("b", rows[7]["source_row"]),
    ]


def test_the_same_seed_gives_the_same_file_byte_for_byte_and_another_seed_other_rows(mix, tmp_path):
    sources = {"a": Source(some(90), weight=3), "b": Source(some(20, "math"), weight=1)}
    first, record = mix(sources, rows=40)
    whole = (tmp_path / "mix" / "mixture.parquet").read_bytes()
    again, same = mix(sources, rows=40)
    assert (tmp_path / "mix" / "mixture.parquet").read_bytes() == whole and same["sha256"] == record["sha256"]
    other, _ = mix(sources, rows=40, seed=1)
    assert {r["source_row"] for r in other if r["source"] == "a"} != {
        r["source_row"] for r in first if r["source"] == "a"
    }


def test_layouts_are_one_in_the_end_and_the_trainer_reads_them(tmp_path, model_path):
    from trl import SFTConfig, SFTTrainer

    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
    ]
    sources = {
        "messages": Source(Dataset.from_list([{"messages": chat, "language": "en"}] * 1)),
        "alpaca": Source(Dataset.from_list([{"instruction": "Add.", "input": "1 2", "output": "3"}])),
        "sharegpt": Source(
            Dataset.from_list([{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}])
        ),
        "question": Source(
            Dataset.from_list([{"question": "Two?", "choices": ["1", "2"], "answer": 1}]), reads="question"
        ),
    }
    Mixture(sources).write(tmp_path)
    dataset = load_dataset("parquet", data_files=str(tmp_path / "mixture.parquet"), split="train")
    found = {row["source"]: [m["content"] for m in row["messages"]] for row in dataset}
    assert found == {
        "messages": ["Be brief.", "Hi", "Ho"], "alpaca": ["Add.\n\n1 2", "3"], "sharegpt": ["a", "b"],
        "question": ["Two?\nA. 1\nB. 2", "B. 2"],
    }  # fmt: skip
    args = SFTConfig(
        str(tmp_path / "sft"), max_steps=1, use_cpu=True, report_to="none", save_strategy="no", bf16=False,
        **NO_CHECKPOINTING, disable_tqdm=True,
    )  # fmt: skip
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    tokenizer.chat_template = template
    SFTTrainer(model_path, args=args, train_dataset=dataset, processing_class=tokenizer).train()


def test_tools_stay_with_their_rows(mix):
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}],
    }
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    with_tools = {"messages": [{"role": "user", "content": "go"}, call], "tools": json.dumps(tools)}
    rows, _ = mix({"tools": Source(Dataset.from_list([with_tools])), "plain": Source(some(1))})
    found = {row["source"]: row for row in rows}
    assert json.loads(found["tools"]["tools"]) == tools and found["plain"]["tools"] is None
    assert json.loads(found["tools"]["messages"][1]) == call


def test_raw_text_mixes_with_raw_text_alone(mix):
    text = Dataset.from_list([{"text": "once"}, {"text": "upon"}])
    rows, _ = mix({"a": Source(text), "b": Source(Dataset.from_list([{"text": "a time"}]))})
    assert sorted(row["text"] for row in rows) == ["a time", "once", "upon"]
    with pytest.raises(ValueError, match="a are raw text and the other sources conversations"):
        mix({"a": Source(text), "b": Source(some(3))})


def test_epochs_are_the_same_rows_in_another_order(mix):
    sources = {"a": Source(some(60), weight=3), "b": Source(some(20, "math"), weight=1)}
    rows, record = mix(sources, rows=40, epochs=3)
    parts = [[(r["source"], r["source_row"]) for r in rows if r["epoch"] == epoch] for epoch in range(3)]
    assert [r["epoch"] for r in rows] == [0] * 40 + [1] * 40 + [2] * 40 and record["rows"] == 40
    assert set(parts[0]) == set(parts[1]) == set(parts[2]) and parts[0] != parts[1] != parts[2]
    assert [name for name, _ in parts[0]] != [name for name, _ in parts[1]], "only rows were shuffled, not sources"


def test_a_budget_in_tokens_is_kept_and_the_first_row_that_does_not_fit_ends_it(mix, model_path):
    counted = some(20).add_column("num_tokens", [10 + i for i in range(20)])
    rows, _ = mix({"a": Source(counted, tokens=48, take="first")}, shuffle=False)
    assert [row["source_row"] for row in rows] == [0, 1, 2, 3]  # 10 + 11 + 12 + 13; the fifth would be 60
    mixture = {"a": Source(some(40), weight=1), "b": Source(some(40, "math"), weight=1)}
    rows, _ = mix(mixture, tokens=400, tokenizer=model_path)
    lengths = Length(tokenizer=model_path)({"messages": [row["messages"] for row in rows]})["num_tokens"]
    spent = Counter()
    for row, length in zip(rows, lengths, strict=True):
        spent[row["source"]] += length
    assert all(200 - max(lengths) < spent[name] <= 200 for name in "ab"), spent
    with pytest.raises(ValueError, match='"a": it is measured in tokens and has no column num_tokens; name a tokeniz'):
        mix(mixture, tokens=400)


def test_a_source_that_is_repeated_gives_each_row_equally_often_or_once_more(mix):
    rows, record = mix(
        {"a": Source(some(10), rows=34, shortfall="repeat"), "b": Source(some(5, "math"), rows=5, shortfall="repeat")}
    )
    times = Counter(row["source_row"] for row in rows if row["source"] == "a")
    assert sorted(times.values()) == [3] * 6 + [4] * 4
    assert record["sources"]["a"]["each_at_most"] == 4 and "each_at_most" not in record["sources"]["b"]


# Which of them.


def test_where_lets_in_what_it_names(mix):
    data = Dataset.from_list(
        [{**row, "language": ["en", "de", "fr"][i % 3], "turns": i} for i, row in enumerate(pairs(30))]
    )
    rows, _ = mix({"a": Source(data, where={"language": ["en", "de"]})})
    assert sorted(row["source_row"] for row in rows) == [i for i in range(30) if i % 3 < 2]
    rows, _ = mix({"a": Source(data, where={"language": "de", "turns": [1, 4, 5]})})
    assert sorted(row["source_row"] for row in rows) == [1, 4]
    rows, _ = mix({"a": Source(data, where=lambda row: row["turns"] > 27)})
    assert sorted(row["source_row"] for row in rows) == [28, 29]


def test_a_source_may_be_selected_by_a_selector_a_scorer_or_an_earlier_selection(mix):
    data = Dataset.from_list(
        [{"prompt": f"q {i}", "completion": "long " * ((7 * i) % 20 + 1), "n": i} for i in range(20)]
    )
    data = data.add_column("score_x", [float((7 * i) % 20) for i in range(20)])
    best = sorted(range(20), key=lambda i: -((7 * i) % 20))[:5]
    chosen = [
        Source(data, rows=5, selector=TopK("score_x")),
        Source(data, selector=TopK("score_x")(data, k=5)),
        Source(data.remove_columns("score_x"), rows=5, scorer=Length(), selector=TopK("score_length")),
    ]
    for source in chosen:
        rows, _ = mix({"a": source}, shuffle=False)
        assert [row["source_row"] for row in rows] == best
    rows, _ = mix({"a": Source(data, rows=3, where={"n": [*range(10)]}, selector=TopK("score_x"))}, shuffle=False)
    assert [row["source_row"] for row in rows] == [i for i in sorted(range(10), key=lambda i: -((7 * i) % 20))][:3]
    with pytest.raises(ValueError, match='source "a": the selection was made on 20 rows, this dataset has 9'):
        mix({"a": Source(data.select(range(9)), selector=TopK("score_x")(data, k=5))})


def test_a_selection_made_before_its_columns_were_renamed_is_compared_all_the_same(mix):
    """Every column that tells rows apart has another name in the mixture."""
    data = Dataset.from_dict({"q": [f"q {i}" for i in range(9)], "a": list("abcdefghi"), "score_x": [*range(9)]})
    selection, rename = TopK("score_x")(data, k=2), {"q": "prompt", "a": "completion"}
    rows, _ = mix({"s": Source(data, selector=selection, rename=rename)}, shuffle=False)
    assert [row["source_row"] for row in rows] == [8, 7]
    with pytest.raises(ValueError, match='"q" differs.*reordered or changed'):
        mix({"s": Source(data.select([*range(8, -1, -1)]), selector=selection, rename=rename)})


def test_rows_that_repeat_an_earlier_source_are_passed_over_and_others_taken(mix):
    a, b = some(10), Dataset.from_list([*pairs(6), *pairs(10, "math"), *pairs(2, "math")])
    sources = {"a": Source(a), "b": Source(b, rows=10)}
    rows, record = mix(sources)
    assert counts(rows) == {"a": 10, "b": 10} and len({row["messages"][0]["content"] for row in rows}) == 20
    assert 0 < record["overlap"]["a and b"] <= 6
    with pytest.raises(
        ValueError, match='"b" has 10 rows of the 11 that are asked for .passed over 8: repeats an earlier'
    ):
        mix({"a": Source(a), "b": Source(b, rows=11)})
    rows, record = mix({**sources, "b": Source(b, rows=18)}, dedup="none")
    assert len({row["messages"][0]["content"] for row in rows}) == 20 and "overlap" not in record


def test_what_is_not_taken_does_not_stand_in_the_way_of_a_later_source(mix):
    rows, record = mix({"a": Source(some(1500), rows=3, take="first"), "b": Source(some(1500), rows=1497)})
    assert counts(rows) == {"a": 3, "b": 1497} and record["overlap"] == {"a and b": 3}


def test_near_copies_are_passed_over(mix):
    text = "the loudness of a string that is plucked twice as far from its rest grows by a factor of about four"
    a = Dataset.from_list([{"prompt": text, "completion": "yes"}])
    b = Dataset.from_list([{"prompt": text + " today", "completion": "yes"}, *pairs(3, "math")])
    rows, record = mix({"a": Source(a), "b": Source(b, rows=3)}, dedup="near")
    assert counts(rows) == {"a": 1, "b": 3} and record["overlap"] == {"a and b": 1}
    assert counts(mix({"a": Source(a), "b": Source(b)})[0]) == {"a": 1, "b": 4}


def test_text_of_evaluation_sets_does_not_come_in(mix):
    leak = "a train leaves the station at noon and another one leaves at one how long until they meet"
    data = Dataset.from_list([*pairs(5), {"prompt": f"Well, {leak}?", "completion": "An hour."}])
    tests = {"exam": Dataset.from_list([{"prompt": leak, "completion": "60 minutes"}])}
    rows, record = mix({"a": Source(data)}, tests)
    assert len(rows) == 5 and record["sources"]["a"]["passed_over"] == {"holds text of an evaluation set": 1}
    assert record["evaluation_sets"]["exam"]["items"] == 1
    with pytest.raises(ValueError, match="passed over 1: holds text of an evaluation set"):
        mix({"a": Source(data, rows=6)}, tests)


# Streams.


def test_a_stream_gives_the_same_counts_and_only_rows_of_its_sources(tmp_path):
    files = {name: save(tmp_path / f"{name}.jsonl", pairs(n, name)) for name, n in (("a", 5000), ("b", 900))}
    sources = {"a": Source(files["a"], weight=3, where=None), "b": Source(files["b"], weight=1)}
    mixture = Mixture(sources, rows=2000, stream=True, dedup="none", buffer_rows=300)
    record = mixture.write(tmp_path / "s")
    rows = pq.read_table(tmp_path / "s" / "mixture.parquet").to_pylist()
    assert counts(rows) == {"a": 1500, "b": 500} and record["rows"] == 2000
    for row in rows:
        assert row["messages"][0]["content"] == f"{row['source']} question {row['source_row']}?"
    assert len({(row["source"], row["source_row"]) for row in rows}) == 2000
    numbers = [row["source_row"] for row in rows if row["source"] == "a"]
    assert numbers != sorted(numbers) and max(numbers) <= 1500 + 300
    assert record["sha256"] == mixture.write(tmp_path / "t")["sha256"]
    streamed = list(mixture.iterable())
    assert streamed == rows == list(mixture.iterable())
    planned = Mixture(sources, rows=2000)
    planned.write(tmp_path / "p")
    assert list(planned.iterable()) == pq.read_table(tmp_path / "p" / "mixture.parquet").to_pylist()


def test_a_stream_knows_copies_tokens_filters_epochs_and_shortfalls(tmp_path):
    rows = [{**row, "num_tokens": 10, "odd": i % 2} for i, row in enumerate([*pairs(50), *pairs(50)])]
    file = save(tmp_path / "a.jsonl", rows)

    def streamed(source, **settings):
        return list(Mixture({"a": source}, stream=True, **settings).iterable())

    assert len({row["messages"][0]["content"] for row in streamed(Source(file, rows=50))}) == 50
    with pytest.raises(ValueError, match='"a" has 50 rows of the 51 .*passed over 50: repeats an earlier row'):
        streamed(Source(file, rows=51))
    assert len(streamed(Source(file, tokens=205))) == 20
    assert all(row["source_row"] % 2 for row in streamed(Source(file, rows=20, where={"odd": 1})))
    found = streamed(Source(file, rows=50), epochs=2)
    orders = [[row["source_row"] for row in found if row["epoch"] == epoch] for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]
    first = streamed(Source(file, rows=10, take="first"))
    assert sorted(row["source_row"] for row in first) == list(range(10))


def test_a_buffer_as_large_as_the_stream_is_a_permutation_and_keeps_every_row():
    assert sorted(shuffled(iter(range(100)), 7, random.Random(0))) == list(range(100))
    found = Counter(tuple(shuffled(iter(range(3)), 5, random.Random(seed))) for seed in range(6000))
    assert len(found) == 6 and all(abs(count - 1000) < 150 for count in found.values())
    assert np.array_equal(np.sort(permutation(50, random.Random(1))), np.arange(50))


# RE-WILD.


def standins(size=1):
    w, q, m = 246_750 // size + 250, 99_800 // size + 42, 20_000 // size + 1
    chat = [
        [{"role": "user", "content": f"p {i % 977}"}, {"role": "assistant", "content": f"r {i}"}] for i in range(w)
    ]
    questions = {
        "question": [f"q {i}" for i in range(q)],
        "choices": [["no", "yes", f"{i}", "so"] for i in range(q)],
        "answer": [i % 4 for i in range(q)],
        "subject": ["logic"] * q,
    }
    math = [
        [{"role": "user", "content": f"solve {i}"}, {"role": "assistant", "content": f"x = {i}"}] for i in range(m)
    ]
    return {
        "wildchat": Source(Dataset.from_dict({"messages": chat}), take="first"),
        "mmlu": Source(Dataset.from_dict(questions), reads="question"),
        "algebra": Source(Dataset.from_dict({"messages": math}), take="first"),
    }


@pytest.mark.slow
def test_rewild_has_its_published_counts_and_is_the_same_file_twice(tmp_path):
    assert ROWS == 366_550 == sum((246_750, 99_800, 20_000))
    records = [rewild(standins()).write(tmp_path / name) for name in ("a", "b")]
    rows = {name: line["rows"] for name, line in records[0]["sources"].items()}
    assert rows == {"wildchat": 246_750, "mmlu": 99_800, "algebra": 20_000} and records[0]["rows"] == ROWS
    table = pq.read_table(tmp_path / "a" / "mixture.parquet", columns=["source", "source_row"]).to_pandas()
    assert table["source"].value_counts().to_dict() == rows
    chat = np.sort(table.loc[table["source"] == "wildchat", "source_row"])
    assert np.array_equal(chat, np.arange(246_750)), "not the first rows of WildChat"
    assert (tmp_path / "a" / "mixture.parquet").read_bytes() == (tmp_path / "b" / "mixture.parquet").read_bytes()


def test_rewild_is_plain_questions_or_on_request_a_quiz(tmp_path):
    for quiz, question, answer in (
        (False, "q 1\nA. no\nB. yes\nC. 1\nD. so", "B. yes"),
        (True, "Quiz show. Answer the clue in as few words as you can.\nCategory: logic\nClue: q 1", "What is yes"),
    ):
        record = rewild(standins(100), rows=3665, quiz=quiz).write(tmp_path)
        assert {name: line["rows"] for name, line in record["sources"].items()} == {
            "wildchat": 2467,
            "mmlu": 998,
            "algebra": 200,
        }
        rows = pq.read_table(tmp_path / "mixture.parquet").to_pylist()
        (row,) = [row for row in rows if row["source"] == "mmlu" and row["source_row"] == 1]
        assert [message["content"] for message in row["messages"]] == [question, answer]
    with pytest.raises(ValueError, match='RE-WILD has no source "gsm8k"; its sources are wildchat, mmlu, algebra'):
        rewild({"gsm8k": "x.jsonl"})


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, "answer 2 is none of the 2 choices"),
        ({"question": "q", "choices": ["a", "1"], "answer": "C"}, "answer 'C' is none of the 2 choices"),
        ({"question": " ", "answer": "a"}, "question is empty"),
        ({"question": "q", "answer": ""}, "answer is empty"),
    ],
)
def test_a_question_without_its_answer_is_a_bad_row(mix, row, reason):
    with pytest.raises(ValueError, match=f'row 0 of source "a" cannot be taken: {reason}'):
        mix({"a": Source(Dataset.from_list([row]), reads="question")})
    good = {**row, "question": "q", "answer": type(row["answer"])(1) if row.get("choices") else "x"}
    rows, record = mix({"a": Source(Dataset.from_list([good, row]), reads="question")}, bad_rows="skip")
    assert len(rows) == 1 and sum(record["sources"]["a"]["passed_over"].values()) == 1


# What may be wrong.


@pytest.mark.parametrize(
    "source, reason",
    [
        ({"weight": -1.0}, "weight of a source is -1.0; it must be a number of at least 0"),
        ({"weight": float("nan")}, "weight of a source is nan"),
        ({"weight": float("inf")}, "weight of a source is inf"),
        ({"rows": 0}, "rows of a source is 0"),
        ({"rows": 5, "weight": 1.0}, "takes rows, tokens or a weight; given: rows, weight"),
        ({"take": "last"}, 'take is "last"; it can be random, first'),
        ({"where": "en"}, "where is 'en'; it is a mapping"),
        ({"scorer": Length()}, "are for its selector; name one"),
        ({"selector": TopK("score_x"), "shortfall": "repeat"}, "a selection is not repeated"),
    ],
)
def test_settings_of_a_source_that_make_no_sense(source, reason):
    with pytest.raises(ValueError, match=reason):
        Source("x.jsonl", **source)


@pytest.mark.parametrize(
    "weights, settings, reason",
    [
        ([1, None], {"rows": 10}, r"some sources have a weight and others \(b\) have none"),
        ([1, 1], {}, "give one of the two"),
        ([1, 1], {"rows": 10, "tokens": 10}, "give one of the two"),
        ([None, None], {"rows": 10}, "rows of the mixture are shared by weights; give the sources weights"),
        ([0, 0], {"rows": 10}, "all weights are 0"),
        ([1, 1], {"rows": 0}, "rows is 0"),
        ([1, 1], {"rows": 5, "stream": True, "dedup": "near"}, "with stream=True use dedup exact"),
        ([1, 1], {"rows": 5, "stream": True}, 'source "a" needs random access to its rows; leave out stream=True'),
        ([None, None], {"stream": True}, "give every source rows, or every source tokens"),
    ],
)
def test_settings_of_a_mixture_that_make_no_sense(weights, settings, reason):
    with pytest.raises(ValueError, match=reason):
        Mixture({name: Source(some(3), weight=weight) for name, weight in zip("ab", weights, strict=True)}, **settings)


def fails(capsys, *words):
    assert main(["mix", *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-select: error: ")]
    return line


def test_bad_input_is_one_clear_line_and_nothing_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.jsonl", pairs(20))
    save(tmp_path / "q.jsonl", [{"question": "q", "answer": "a"}])
    save(tmp_path / "n.jsonl", [{"number": 1}])
    save(tmp_path / "bad.jsonl", [*pairs(3), {"prompt": None, "completion": "x"}])
    (tmp_path / "empty.jsonl").touch()
    out = ("--output-dir", "mix")
    assert 'source "a": no file or folder "none.jsonl"' in fails(capsys, "--sources", "a=none.jsonl", *out)
    assert 'source "a": "empty.jsonl" is empty' in fails(capsys, "--sources", "a=empty.jsonl", *out)
    assert "read them with reads=question" in fails(capsys, "--sources", "q=q.jsonl", *out)
    assert "no conversation in columns ['number']" in fails(capsys, "--sources", "n=n.jsonl", *out)
    assert 'row 3 of source "bad" cannot be taken: prompt is null' in fails(capsys, "--sources", "bad=bad.jsonl", *out)
    short = fails(capsys, "--sources", "a=a.jsonl", "--take-rows", "a=21", *out)
    assert '"a" has 20 rows of the 21 that are asked for. Ask for fewer, or let rows be repeated' in short
    two = ("--sources", "a=a.jsonl", "b=a.jsonl")
    over = fails(capsys, *two, "--take-rows", "a=15", "b=15", *out)
    assert '"b" has 5 rows of the 15' in over and "passed over 15: repeats an earlier row" in over
    assert "weight of a source is -1" in fails(capsys, *two, "--weights", "a=-1", "b=1", "--rows", "5", *out)
    assert "weight is nan" in fails(capsys, *two, "--weights", "a=nan", "b=1", "--rows", "5", *out)
    assert "x is not a number" in fails(capsys, *two, "--weights", "a=x", "b=1", "--rows", "5", *out)
    assert 'there is no source "c"' in fails(capsys, *two, "--weights", "c=1", "--rows", "5", *out)
    assert "leave out --weights" in fails(capsys, "rewild", "--sources", "mmlu=q.jsonl", "--weights", "mmlu=1", *out)
    assert "sources" in fails(capsys, *out)
    assert not list((tmp_path / "mix").glob("mixture*")), "something was written"
    with pytest.raises(ValueError, match='source "a": column "lang" is missing'):
        Mixture({"a": Source("a.jsonl", where={"lang": "en"})}).write("mix")
    with pytest.raises(ValueError, match='source "a": column "q" is missing'):
        Mixture({"a": Source("a.jsonl", rename={"q": "prompt"})}).write("mix")
    with pytest.raises(ValueError, match='source "a": the source is a stream'):
        Mixture({"a": Source(some(3).to_iterable_dataset())}).write("mix")
    (tmp_path / "file").touch()
    assert "cannot write to" in fails(capsys, "--sources", "a=a.jsonl", "--output-dir", "file/x")


def test_a_mixture_from_yaml(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.jsonl", [{**row, "score_x": float(i), "lang": "en"} for i, row in enumerate(pairs(20))])
    save(tmp_path / "q.jsonl", [{"q": f"question {i}", "answer": "a"} for i in range(9)])
    Path("mine.yaml").write_text(
        "steps:\n  mix:\n    output_dir: ${output_dir}/mix\n    rows: 8\n    sources:\n"
        "      a: {data: a.jsonl, weight: 3, where: {lang: en}, selector: {selector: top_k, column: score_x}}\n"
        "      q: {data: q.jsonl, weight: 1, reads: question, rename: {q: question}}\n"
    )
    assert main(["run", "mine.yaml", "--output-dir", "o"]) == 0
    rows = pq.read_table("o/mix/mixture.parquet").to_pylist()
    assert counts(rows) == {"a": 6, "q": 2}
    assert sorted(row["source_row"] for row in rows if row["source"] == "a") == [14, 15, 16, 17, 18, 19]
    capsys.readouterr()
    assert main(["run", "mine.yaml", "--output-dir", "o"]) == 0 and "skipped" in capsys.readouterr().out
    Path("mine.yaml").write_text(Path("mine.yaml").read_text().replace("reads:", "raeds:"))
    assert main(["run", "mine.yaml", "--output-dir", "p"]) == 2
    assert "Did you mean reads" in capsys.readouterr().err
