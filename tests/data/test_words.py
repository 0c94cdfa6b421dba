"""Words of every script: different words differ, NFC and NFD are the same, near copies and leaks are found."""

import random
import unicodedata
from collections import defaultdict
from functools import cache

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_select import DSIR, TFIDF, Length, TopK
from hf_select.data.conversation import Conversation
from hf_select.data.text import characters_of, exact, shingles, text_of, words, words_and_symbols
from hf_select.scoring.overlap import QueryOverlap
from hf_select.selection.decontaminate import Decontaminate
from hf_select.selection.dedup import Dedup


UNSPACED = [
    "THAI", "LAO", "KHMER", "MYANMAR", "CJK", "HIRAGANA", "KATAKANA", "YI", "TANGUT", "NUSHU", "TAI", "NEW", "AHOM",
    "JAVANESE", "BALINESE",
]  # fmt: skip

# The same of each: a cat sits on the mat and looks at the birds outside of the window; it is not hungry today.
SENTENCES = {
    "Thai": "แมวนั่งอยู่บนเสื่อและมองดูนกที่อยู่นอกหน้าต่างวันนี้มันไม่หิวเลย",
    "Lao": "ແມວນັ່ງຢູ່ເທິງເສື່ອແລະເບິ່ງນົກທີ່ຢູ່ນອກປ່ອງຢ້ຽມມື້ນີ້ມັນບໍ່ຫິວເລີຍ",
    "Khmer": "ឆ្មាអង្គុយលើកន្ទេលហើយមើលសត្វស្លាបនៅក្រៅបង្អួចថ្ងៃនេះវាមិនឃ្លានទេ",
    "Burmese": "ကြောင်သည်ဖျာပေါ်တွင်ထိုင်ပြီးပြတင်းပေါက်အပြင်ဘက်ရှိငှက်များကိုကြည့်နေသည်ယနေ့သူမဆာပါ",
    "Tibetan": "ཞི་མི་དེ་གདན་གྱི་སྟེང་དུ་བསྡད་ནས་སྒེའུ་ཁུང་གི་ཕྱི་རོལ་གྱི་བྱ་ལ་བལྟ་བཞིན་འདུག་དེ་རིང་དེ་ལྟོགས་མི་འདུག",
    "Chinese": "猫坐在垫子上看着窗外的鸟儿今天它一点也不饿所以不想去抓它们只是静静地看着",
    "Japanese": "猫はマットの上に座って窓の外の鳥を見ています今日はお腹が空いていません",
    "Javanese": "ꦏꦸꦕꦶꦁꦭꦸꦁꦒꦸꦃꦲꦶꦁꦏ꧀ꦭꦱꦤ꧀ꦗꦫꦺꦴꦤꦶꦁꦤ꧀ꦝꦼꦭꦺꦴꦏ꧀ꦩꦤꦸꦏ꧀ꦲꦶꦁꦗꦧꦗꦼꦤ꧀ꦝꦺꦭ",
}


@cache
def scripts() -> dict[str, list[str]]:
    """Letters, marks and the letter-like symbols of each script, by the first word of their Unicode names."""
    found = defaultdict(list)
    for code in range(0x110000):
        character = chr(code)
        name = unicodedata.name(character, "").split(" ")[0]
        if unicodedata.category(character)[0] in "LM" and name != "VARIATION" or name in ("BRAILLE", "SIGNWRITING"):
            found[name].append(character)
    del found[""]
    return {name: characters for name, characters in found.items() if len(characters) >= 8}


@st.composite
def two_words(draw):
    letters = scripts()[draw(st.sampled_from(sorted(scripts())))]
    word = st.text(st.sampled_from(letters), min_size=1, max_size=8)
    return draw(word), draw(word)


@given(two_words())
@settings(max_examples=400, derandomize=True, deadline=None)
def test_different_words_differ_and_the_same_word_is_the_same_in_nfc_and_nfd(pair):
    for of in (words, words_and_symbols, shingles, exact):
        forms = [{str(of(unicodedata.normalize(form, word))) for form in ("NFC", "NFD")} for word in pair]
        assert [len(form) for form in forms] == [1, 1], of
    a, b = (unicodedata.normalize("NFC", unicodedata.normalize("NFC", word).lower()) for word in pair)
    assert (words(pair[0]) == words(pair[1])) == (a == b)
    assert "".join(words(pair[0])) == a, "a letter or a mark is in no word"


def test_every_letter_and_mark_of_every_script_is_part_of_a_word():
    """A mark in a word must not end it: `re` ends words at the vowel signs of Devanagari, Tamil and others."""
    lost = {
        name: [c for c in characters if len(words(f"{characters[0]}{c}")) != 1]
        for name, characters in scripts().items()
        if name not in UNSPACED and words(characters[0] * 2) == [(characters[0] * 2).lower()]
    }
    # Letters of scripts without spaces stand among others: Han and kana in their variants.
    lost = {name: [c for c in found if len(words(c * 2)) == 1] for name, found in lost.items()}
    assert {name: found for name, found in lost.items() if found} == {}


def text_in(name: str, rng: random.Random, size: int) -> list[str]:
    """Words of a script, or letters of one without spaces."""
    letters = [c for c in scripts()[name] if unicodedata.category(c)[0] != "M"] or scripts()[name]
    marks = [c for c in scripts()[name] if unicodedata.category(c)[0] == "M"] or [""]
    if name in UNSPACED:
        return [rng.choice(letters) + rng.choice([*marks[:1], ""]) for _ in range(size)]
    return ["".join(rng.choice(letters) + rng.choice(["", rng.choice(marks)]) for _ in range(4)) for _ in range(size)]


def test_copies_and_leaks_are_found_in_every_script():
    """Of each script a text, a near copy of it in the other normal form, another text and two short ones."""
    rng, texts, of = random.Random(0), [], []
    for name in scripts():
        space = "" if name in UNSPACED else " "
        one, other, changed = text_in(name, rng, 70), text_in(name, rng, 70), text_in(name, rng, 1)
        short = [space.join(other[:2]), space.join(other[2:4])]
        near = unicodedata.normalize("NFD", space.join([*one[:30], *changed, *one[31:]]))
        texts += [unicodedata.normalize("NFC", space.join(one)), near, space.join(other), *short]
        of += [(name, kind) for kind in ("one", "near", "other", "short", "other short")]
    pool = Dataset.from_dict({"text": texts})
    dedup = Dedup(threshold=0.75)
    dedup(pool)
    # By chance two short texts are the same, or two letters one character.
    unlike = [of[row] for row in range(len(texts)) if (row in dedup.removed_) != (of[row][1] == "near")]
    assert len(unlike) <= 3, unlike
    items = pool.select(range(2, len(texts), 5))
    leaks = [f"before {texts[row]} after" for row in range(2, len(texts), 5)]
    clean = Decontaminate().fit({"test": items})
    assert len(clean(Dataset.from_dict({"text": leaks}))) == 0
    assert len(clean(pool.select(range(0, len(texts), 5)))) == len(scripts())
    repeats = QueryOverlap([Conversation([], text=text) for text in items["text"]], threshold=0.75)
    assert all(repeats(Conversation([], text=text)) for text in items["text"])
    assert not any(repeats(Conversation([], text=text)) for text in texts[::5])


@pytest.mark.parametrize("make", [TFIDF, DSIR])
def test_word_statistics_tell_the_texts_of_every_script_apart(make):
    rng = random.Random(1)
    names = [name for name in scripts() if name not in UNSPACED]
    right, wrong = ([" ".join(text_in(name, rng, 6)) for name in names] for _ in "ab")
    pool = Dataset.from_dict({"text": right + wrong})
    for i in range(0, len(names), 20):
        query = Dataset.from_dict({"text": [unicodedata.normalize("NFD", right[i])]})
        scores = make().fit(query, pool=pool)({"text": [right[i], wrong[i]]})[f"score_{make.name}"]
        assert scores[0] > scores[1], names[i]


@pytest.mark.parametrize("language", SENTENCES)
def test_near_copies_and_leaks_are_found_in_languages_without_spaces(language):
    sentence = SENTENCES[language]
    twice = sentence + "".join(reversed(words(sentence)))
    other = next(text for name, text in SENTENCES.items() if name != language)
    rows = Dataset.from_dict({"text": [twice, f"{twice}123", other, f"{other[:20]} {sentence}"]})
    dedup = Dedup()
    dedup(rows)
    assert list(dedup.removed_) == [1] and dedup.removed_[1].startswith("nearly repeats row 0")
    clean = Decontaminate().fit({"test": Dataset.from_dict({"text": [unicodedata.normalize("NFD", sentence)]})})
    assert clean(rows).indices.tolist() == [2]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("བོད་ཡིག", ["བོད", "ཡིག"]),
        ("می‌خواهم", ["می‌خواهم"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("猫mat", ["猫", "mat"]),
        ("Maße Masse", ["maße", "masse"]),
        ("⠓⠑ x² ❤️", ["⠓⠑", "x²"]),
        ("?! {}", []),
    ],
)
def test_words_by_hand(text, found):
    assert words(text) == found


def test_dashes_between_white_space_are_a_pause_and_others_a_sign():
    for pause in ("lakes -- of", "lakes --- of", "lakes of"):
        assert words_and_symbols(pause) == ["lakes", "of"]
    assert words_and_symbols("x - 2") == words_and_symbols("x-2") == ["x", "-", "2"]
    assert words_and_symbols("--flag") == ["-", "-", "flag"]
    assert words_and_symbols("well-known") == ["well", "known"]


def test_characters_of_a_row_are_counted_in_one_way():
    """Characters of what is said, without spaces between turns: Length, the residual of TopK and the text agree."""
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": 1}}}
    turns = [
        {"role": "user", "content": "see", "name": "ann"},
        {"role": "assistant", "content": "so", "reasoning_content": "hmm", "tool_calls": [call]},
        {"role": "tool", "content": "12", "name": "look"},
    ]
    row = Conversation(turns)
    assert text_of(row) == 'ann see hmm so look {"at": 1} look 12' and text_of(row, "response").startswith(
        "hmm so look"
    )
    sizes = {"all": 3 + 3 + 3 + 2 + 14 + 4 + 2, "prompt": 3 + 3 + 4 + 2, "response": 3 + 2 + 14}
    assert {of: characters_of(row, of) for of in sizes} == sizes
    assert {of: Length(of=of)({"messages": [turns]})["score_length"][0] for of in sizes} == sizes
    dataset = Dataset.from_list([{"messages": [turns[0], {"role": "assistant", "content": "a"}]}, {"messages": turns}])
    assert TopK("x", length="residual")._lengths(dataset).tolist() == [7, sizes["all"]]
