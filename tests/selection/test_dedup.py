"""Deduplication and decontamination: both leave rows out for what stands in them, and say what."""

import random
import sys
from functools import cache

import numpy as np
import pytest
from datasets import Dataset

from hf_select.data.text import shingles
from hf_select.selection.decontaminate import Decontaminate
from hf_select.selection.dedup import Dedup, _missed


WORDS = [f"word{i}" for i in range(400)]


def sentence(rng: random.Random, length: int) -> list[str]:
    return [rng.choice(WORDS) for _ in range(length)]


def rows_of(texts) -> Dataset:
    return Dataset.from_dict({"text": [text if isinstance(text, str) else " ".join(text) for text in texts]})


def with_copies(seed: int) -> list[str]:
    """300 texts, many of them others with a few words changed: similarities of all sizes."""
    rng = random.Random(seed)
    texts = [sentence(rng, rng.randrange(6, 70)) for _ in range(100)]
    while len(texts) < 300:
        changed = list(rng.choice(texts))
        for _ in range(rng.randrange(0, 4)):
            changed[rng.randrange(len(changed))] = rng.choice(WORDS)
        texts.append(changed)
    rng.shuffle(texts)
    return [" ".join(text) for text in texts]


runs_of = cache(shingles)


def jaccard(a: str, b: str) -> float:
    one, other = runs_of(a), runs_of(b)
    return len(one & other) / len(one | other)


def kept_by_brute_force(texts: list[str], order: list[int], threshold: float) -> list[int]:
    """Each row against every one kept before it."""
    kept: list[int] = []
    for row in order:
        near = [
            texts[row] == texts[j]
            or (min(len(runs_of(texts[i])) for i in (row, j)) > 1 and jaccard(texts[row], texts[j]) >= threshold)
            for j in kept
        ]
        if not any(near):
            kept.append(row)
    return sorted(kept)


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("seed", [0, 1])
def test_near_copies_are_those_of_brute_force(seed, threshold):
    texts = with_copies(seed)
    selection = Dedup(threshold=threshold)(rows_of(texts))
    expected = kept_by_brute_force(texts, list(range(len(texts))), threshold)
    assert selection.indices.tolist() == expected
    assert 100 <= len(expected) < 300, "the texts are to hold copies and others"


def test_a_removed_row_names_the_first_kept_row_that_it_repeats_and_how_much():
    texts = with_copies(2)
    dedup = Dedup(threshold=0.7)
    kept = dedup(rows_of(texts)).indices.tolist()
    assert sorted([*kept, *dedup.removed_]) == list(range(300))
    near = 0
    for row, reason in dedup.removed_.items():
        other = int(reason.split("row ")[1].split()[0])
        assert other in kept and other < row
        if reason.startswith("nearly"):
            near += 1
            assert reason == f"nearly repeats row {other} (Jaccard {jaccard(texts[row], texts[other]):.2f})"
            assert other == next(j for j in kept if jaccard(texts[row], texts[j]) >= 0.7)
        else:
            assert reason == f"repeats row {other} exactly" and texts[row] == texts[other]
    assert near > 20


def test_a_row_does_not_go_because_of_one_that_goes_itself():
    # Each text shares 0.6 of its runs with the next and less with the one after: the first repeats the second, the
    # second the third. The middle one goes, and the third stays, since all it resembles is gone.
    rng = random.Random(0)
    long = sentence(rng, 60)
    texts = [" ".join(long[start : start + 44]) for start in (0, 8, 16)]  # 40 runs each, 32 and 24 of them common
    assert [round(jaccard(texts[0], text), 3) for text in texts] == [1, round(32 / 48, 3), round(24 / 56, 3)]
    assert Dedup(threshold=0.6)(rows_of(texts)).indices.tolist() == [0, 2]
    assert Dedup(threshold=0.4)(rows_of(texts)).indices.tolist() == [0]
    assert Dedup(threshold=32 / 48)(rows_of(texts)).indices.tolist() == [0, 2], "at least the threshold"
    assert Dedup(threshold=32 / 48 + 1e-6)(rows_of(texts)).indices.tolist() == [0, 1, 2]


def test_exact_copies_differ_in_nothing_but_white_space_and_normalisation():
    dataset = rows_of(
        ["The café, sat.", " the\ncafé,  sat.", "The\ncafe\u0301, sat. ", "The café sat", "The cafe, sat."]
    )
    dedup = Dedup(threshold=None)
    selection = dedup(dataset)
    assert selection.indices.tolist() == [0, 1, 3, 4]
    assert dedup.removed_ == {2: "repeats row 0 exactly"}
    assert selection.reasons[0] == "kept for 1 row that repeats it"
    assert {name: selection.chain[0][name] for name in ("removed_exact", "removed_near", "unreadable")} == {
        "removed_exact": 1,
        "removed_near": 0,
        "unreadable": 0,
    }


def test_short_copies_may_differ_in_letter_case_and_sentence_punctuation_but_not_in_a_word():
    dedup = Dedup()
    dataset = rows_of(["The cat, sat.", "the CAT sat", ' the\n"cat" sat!', "the cat sits", "The cat sat"])
    assert dedup(dataset).indices.tolist() == [0, 3]
    assert dedup.removed_ == dict.fromkeys([1, 2, 4], "nearly repeats row 0 (Jaccard 1.00)")


@pytest.mark.parametrize("threshold", [None, 0.8])
def test_symbols_that_carry_meaning_tell_texts_apart(threshold):
    alike = [
        ["What is C++?", "What is C#?", "What is C?"],
        ["a < b", "a > b", "a <= b", "a = b", "a != b", "a b"],
        ["x/2", "x*2", "x-2", "x+2", "x^2", "x_2", "x%2", "x2", "x 2", "x²", "x!2"],
        ["What is -5 squared?", "What is 5 squared?", "What is 5! squared?"],
        ["2*(3+4)", "2*3+4"],
        ["f'(x)", "f(x)", "f[x]"],
        ["3.5", "3,5", "35", "3:5", "3 5", "3-5", "3–5"],
        ["$5", "€5", "5", "5%", "5‰", "5°", "#5", "@5"],
        ["😀", "😡", "?!", "!!", "{}", "[]"],
        ["!done", "done"],
    ]
    texts = list(dict.fromkeys(text for group in alike for text in group))
    dedup = Dedup(threshold=threshold)
    dedup(rows_of(texts))
    assert dedup.removed_ == {}


def test_reasoning_names_and_tool_calls_are_part_of_what_is_said():
    def call(name, arguments, id):
        return [{"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}]

    ask = {"role": "user", "content": "Is 2 prime?"}
    answers = [
        {"content": "It is.", "reasoning_content": "Its only divisors are one and two."},
        {"content": "It is.", "reasoning_content": "Nothing lies between one and two."},
        {"content": "It is.", "thinking": "No smaller number would do."},
        {"content": "It is.", "reasoning": "Every table of primes begins with it."},
        {"content": "It is."},
        {"content": "It is.", "name": "Euclid"},
        {"content": "", "tool_calls": call("is_prime", '{"n": 2, "fast": true}', "a")},
        {"content": "", "tool_calls": call("is_prime", '{"n": 3, "fast": true}', "b")},
        {"content": "", "tool_calls": call("is_prime", '{"fast":true,"n":2}', "c")},
    ]
    rows = [{"messages": [ask, {"role": "assistant", **answer}]} for answer in answers]
    for of in ("all", "response"):
        dedup = Dedup(of=of)
        dedup(Dataset.from_list(rows))
        assert dedup.removed_ == {8: "repeats row 6 exactly"}, of


def test_short_texts_and_texts_without_words_are_copies_only_if_equal():
    # "a b c d e" is one run, found whole in the sixth text: Jaccard 0.5, yet no copy.
    texts = ["a b c d e", "a b c d", "{}", "[]", "{} ", "a b c d e f", "", " "]
    assert Dedup(threshold=0.3)(rows_of(texts)).indices.tolist() == [0, 1, 2, 3, 5, 6]


def test_without_a_threshold_near_copies_stay_and_no_library_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    text = " ".join(sentence(random.Random(1), 50))
    dataset = rows_of([text, text + " more", text.upper()])
    assert Dedup(threshold=None)(dataset).indices.tolist() == [0, 1, 2]
    assert Dedup(threshold=1)(dataset).indices.tolist() == [0, 1, 2]
    with pytest.raises(
        ImportError, match=r'datasketch is needed for near-duplicate search: pip install "hf-select\[text\]"'
    ):
        Dedup()(dataset)


def test_which_texts_are_kept_does_not_depend_on_the_order_of_the_rest():
    texts = with_copies(3)
    scores = [float(len(text)) + i / 1000 for i, text in enumerate(texts)]
    kept = []
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(texts))
        dataset = rows_of([texts[i] for i in order]).add_column("score_x", [scores[i] for i in order])
        selection = Dedup(threshold=0.7, keep_best_by="score_x")(dataset)
        kept.append(sorted(order[selection.indices].tolist()))
    by_score = np.argsort(-np.array(scores), kind="stable").tolist()
    assert kept[0] == kept[1] == kept[2] == kept_by_brute_force(texts, by_score, 0.7)


def test_the_best_copy_is_kept_and_one_without_a_score_last():
    text = " ".join(sentence(random.Random(1), 60))
    dataset = rows_of([text, text + " more", text, "another"]).add_column("score_x", [None, 1.0, 0.5, None])
    dedup = Dedup(keep_best_by="score_x")
    assert dedup(dataset).indices.tolist() == [1, 3]
    assert dedup.removed_[2] == dedup.removed_[0] and dedup.removed_[2].startswith(
        "nearly repeats row 1 (Jaccard 0.98"
    )
    with pytest.raises(ValueError, match="score_y.*Did you mean"):
        Dedup(keep_best_by="score_y")(dataset)


def test_a_copy_of_a_row_that_nearly_repeats_another_repeats_that_other_too():
    text = " ".join(sentence(random.Random(1), 60))
    dedup = Dedup()
    selection = dedup(rows_of([text, text + " more", text + " more", text]))
    assert selection.indices.tolist() == [0] and selection.reasons == ["kept for 3 rows that repeat it"]
    assert dedup.removed_[1] == dedup.removed_[2] == "nearly repeats row 0 (Jaccard 0.98)"
    assert dedup.removed_[3] == "repeats row 0 exactly"
    assert selection.chain[0]["removed_exact"] == 1 and selection.chain[0]["removed_near"] == 2


def test_a_part_of_the_row_can_be_compared():
    dataset = Dataset.from_dict(
        {"prompt": ["Say hello.", "Say hello!", "Greet me."], "completion": ["Hello.", "Hi.", "hello"]}
    )
    kept = {of: Dedup(of=of)(dataset).indices.tolist() for of in ("all", "prompt", "response")}
    assert kept == {"all": [0, 1, 2], "prompt": [0, 2], "response": [0, 1]}
    with pytest.raises(ValueError, match='row 0: "the row has no prompt"'):
        Dedup(of="prompt")(rows_of(["raw text", "raw text"]))
    with pytest.raises(ValueError, match='of is "answer"'):
        Dedup(of="answer")  # type: ignore[arg-type]


def test_rows_that_cannot_be_read_are_left_out_with_the_reason():
    dataset = Dataset.from_dict({"prompt": ["a", None, "b", None], "completion": ["x", "y", "z", "y"]})
    dedup = Dedup()
    selection = dedup(dataset)
    assert selection.indices.tolist() == [0, 2] and selection.chain[0]["unreadable"] == 2
    assert "null" in dedup.removed_[1] and "null" in dedup.removed_[3]
    with pytest.raises(ValueError, match="no conversation in columns"):
        Dedup()(Dataset.from_dict({"question": ["a"]}))
    with pytest.raises(ValueError, match="dataset is empty"):
        Dedup()(Dataset.from_dict({"text": []}))


def test_a_budget_cuts_what_is_kept():
    dataset = rows_of(["a", "A", "b", "c", "c", "d"]).add_column("num_tokens", [5, 5, 5, 5, 5, 5])
    assert not Dedup.needs_budget and not Decontaminate.needs_budget
    assert Dedup()(dataset, k=2).indices.tolist() == [0, 2]
    assert Dedup()(dataset, fraction=0.5).indices.tolist() == [0, 2, 3]
    assert Dedup()(dataset, tokens=11).indices.tolist() == [0, 2]
    with pytest.raises(ValueError, match="5 rows were requested, but only 4 are kept by Dedup"):
        Dedup()(dataset, k=5)
    with pytest.raises(ValueError, match="exactly one"):
        Dedup()(dataset, k=2, tokens=5)


def test_many_copies_and_a_crowd_of_near_copies_cost_little():
    rng = random.Random(0)
    text = sentence(rng, 60)
    crowd = [" ".join([*text, f"ending{i}"]) for i in range(3000)]
    selection = Dedup()(rows_of([" ".join(text)] * 20_000 + crowd))
    assert selection.indices.tolist() == [0]
    assert selection.chain[0]["removed_exact"] == 19_999 and selection.chain[0]["removed_near"] == 3000


def test_the_selection_is_a_selection_as_any(tmp_path):
    dataset = rows_of(["a", "A", "b"]).add_column("row_id", ["x", "y", "z"])
    selection = Dedup()(dataset)
    applied = selection.apply(dataset)
    assert applied["row_id"] == ["x", "z"] and applied["selection_rank"] == [1, 2]
    selection.save(tmp_path / "kept.parquet")
    assert type(selection).load(tmp_path / "kept.parquet").chain == selection.chain
    assert Dedup()(dataset).indices.tolist() == selection.indices.tolist()


@pytest.mark.parametrize("settings", [{"threshold": 0}, {"threshold": 1.1}, {"num_perm": 0}])
def test_settings_are_checked(settings):
    with pytest.raises(ValueError, match="is (0|1.1)"):
        Dedup(**settings)


def test_bands_miss_as_often_as_the_formula_says():
    assert _missed(0.8, 5, 128) == pytest.approx((1 - 0.8**5) ** 25)
    assert _missed(1.0, 5, 128) == 0


# decontamination


def contaminated() -> tuple[list[list[str]], Dataset, Dataset]:
    rng = random.Random(5)
    rows = [sentence(rng, 40) for _ in range(6)]
    maths = [sentence(rng, 30), sentence(rng, 25)]
    code = [sentence(rng, 20), sentence(rng, 9), sentence(rng, 4)]
    rows[1][10:23] = maths[1][3:16]  # 13 words
    rows[2][10:22] = maths[1][3:15]  # 12 words
    rows[3][0:9] = code[1]  # a whole item of 9 words
    rows[4][5:9] = code[2]  # an item too short to count
    rows[5][0:20] = code[0]
    return rows, rows_of(maths), rows_of(code)


def test_a_row_that_shares_a_run_with_an_item_goes_and_says_so():
    rows, maths, code = contaminated()
    clean = Decontaminate().fit({"maths": maths, "code": code})
    selection = clean(rows_of(rows))
    assert selection.indices.tolist() == [0, 2, 4]
    assert set(clean.removed_) == {1, 3, 5}
    shared = " ".join(rows[1][10:18])
    assert clean.removed_[1] == f'shares 13 words with maths item 1: "{shared} ..."'
    assert clean.removed_[3].startswith("shares 9 words with code item 1: ")
    step = selection.chain[0]
    assert step["n"] == 13 and step["removed"] == {"maths": 1, "code": 2} and step["unreadable"] == 0
    assert step["sets"]["code"] == {"items": 3, "too_short": 1, "unreadable": 0}
    assert selection.reasons[0] == "shares no run of 13 words with maths, code"


def test_of_two_items_with_the_same_words_the_first_is_named():
    item = " ".join(sentence(random.Random(2), 20))
    clean = Decontaminate().fit({"maths": rows_of([item]), "code": rows_of(["x " * 9, item])})
    step = clean(rows_of([item, "other"])).chain[0]
    assert "maths item 0" in clean.removed_[0] and step["removed"] == {"maths": 1, "code": 0}


def test_n_and_min_words_say_how_long_a_run_is():
    rows, maths, code = contaminated()
    twelve = Decontaminate(n=12).fit({"maths": maths, "code": code})
    assert twelve(rows_of(rows)).indices.tolist() == [0, 4]
    whole = Decontaminate(min_words=13).fit({"maths": maths, "code": code})
    assert whole(rows_of(rows)).indices.tolist() == [0, 2, 3, 4]
    four = Decontaminate(min_words=4).fit({"maths": maths, "code": code})
    assert four(rows_of(rows)).indices.tolist() == [0, 2]


@pytest.mark.parametrize("seed", range(3))
def test_it_is_brute_force_on_random_texts(seed):
    rng = random.Random(seed)
    small = WORDS[:6]
    rows = [[rng.choice(small) for _ in range(rng.randrange(0, 14))] for _ in range(80)]
    items = [[rng.choice(small) for _ in range(rng.randrange(0, 9))] for _ in range(12)]

    def shares(row: list[str], item: list[str]) -> bool:
        length = min(4, len(item))
        runs = [item[i : i + length] for i in range(len(item) - length + 1)] if length >= 3 else []
        return any(row[i : i + length] == run for run in runs for i in range(len(row)))

    found = Decontaminate(n=4, min_words=3).fit({"x": rows_of(items)})(rows_of(rows))
    short = [item for item in items if 0 < len(item) < 3]
    expected = [i for i, row in enumerate(rows) if row not in short and not any(shares(row, item) for item in items)]
    assert found.indices.tolist() == expected and 0 < len(expected) < 80


def test_case_and_punctuation_hide_nothing():
    item = "How many legs do three spiders and two beetles have in all, together?"
    row = "Q: how many legs do three spiders -- and TWO beetles -- have in all together"
    clean = Decontaminate().fit({"sums": rows_of([item])})
    assert clean(rows_of([row, "Something else."])).indices.tolist() == [1]


def test_an_item_too_short_for_a_run_is_compared_whole():
    clean = Decontaminate().fit({"sums": rows_of(["What is 3 + 4?", "", "!?"])})
    texts = ["what is 3 + 4", "What is 3 - 4?", "They ask: what is 3 + 4?", "!?", "?!", ""]
    step = clean(rows_of(texts)).chain[0]
    assert clean.removed_ == {0: 'repeats sums item 0: "what is 3 + 4"', 3: 'repeats sums item 2: "!?"'}
    assert step["sets"] == {"sums": {"items": 3, "too_short": 2, "unreadable": 1}} and step["removed"] == {"sums": 2}
    asked = Dataset.from_dict({"prompt": ["What is 3 + 4?"] * 2, "completion": ["7", "It is seven."]})
    for of, kept in (("all", []), ("prompt", []), ("response", [1])):
        assert Decontaminate(of=of).fit({"sums": asked.select([0])})(asked).indices.tolist() == kept, of


def test_a_run_of_thai_has_twice_as_many_letters_as_one_of_chinese_has_characters():
    thai, chinese = "กขคงจชซญดตถทนบปผพฟมยรลวสหอฮ", "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏"
    clean = Decontaminate().fit({"thai": rows_of([thai]), "chinese": rows_of([chinese])})
    rows = [f"ฬ{thai[:26]}ฬ", f"ฬ{thai[:25]}ฬ", f"的{chinese[3:16]}的", f"的{chinese[3:15]}的"]
    assert clean(rows_of(rows)).indices.tolist() == [1, 3]


def test_the_compared_part_is_that_of_rows_and_items_alike():
    rng = random.Random(1)
    question, answer, other = (" ".join(sentence(rng, 15)) for _ in range(3))
    evaluation = Dataset.from_dict({"prompt": [question], "completion": [answer]})
    pool = Dataset.from_dict({"prompt": [question, other, answer, other], "completion": [other, answer, other, other]})
    clean = {
        of: Decontaminate(of=of).fit({"x": evaluation})(pool).indices.tolist() for of in ("all", "prompt", "response")
    }
    assert clean == {"all": [3], "prompt": [1, 2, 3], "response": [0, 2, 3]}


def test_unreadable_rows_are_left_out_and_counted_on_both_sides():
    rng = random.Random(1)
    question = " ".join(sentence(rng, 15))
    evaluation = Dataset.from_dict({"prompt": [None, question], "completion": ["x", "y"]})
    pool = Dataset.from_dict({"prompt": ["a", None, question], "completion": ["x", "y", "z"]})
    clean = Decontaminate().fit({"x": evaluation})
    selection = clean(pool)
    assert selection.indices.tolist() == [0] and "null" in clean.removed_[1] and "x item 1" in clean.removed_[2]
    assert selection.chain[0]["unreadable"] == 1
    assert selection.chain[0]["sets"] == {"x": {"items": 2, "too_short": 0, "unreadable": 1}}


def test_a_fit_forgets_the_one_before_and_a_budget_cuts():
    rows, maths, code = contaminated()
    clean = Decontaminate().fit({"maths": maths}).fit({"code": code})
    dataset = rows_of(rows)
    assert clean(dataset).indices.tolist() == [0, 1, 2, 4]
    assert clean(dataset, k=2).indices.tolist() == [0, 1]
    with pytest.raises(ValueError, match="only 4 are kept by Decontaminate"):
        clean(dataset, k=5)


def test_nothing_may_be_left():
    rows, maths, _ = contaminated()
    selection = Decontaminate().fit({"maths": maths})(rows_of(rows[1:2]))
    assert len(selection) == 0 and len(selection.apply(rows_of(rows[1:2]))) == 0


def test_evaluation_sets_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="call fit"):
        Decontaminate()(rows_of(["a"]))
    for sets, message in (
        ({}, "no evaluation set"),
        ({"gsm8k": rows_of([])}, '"gsm8k" is empty'),
        ({"gsm8k": rows_of(["", " "])}, '"gsm8k" has no item with text; item 0: the item has no text'),
    ):
        with pytest.raises(ValueError, match=message):
            Decontaminate().fit(sets)
    with pytest.raises(ValueError, match="min_words is 14 and n is 13"):
        Decontaminate(min_words=14)
