"""DEITA: expected ratings, pairs without history, cuts, prompts from files."""

import numpy as np
import pytest
import torch

from hf_select import DEITA, CausalLM
from hf_select.demo import tiny_model, train_tokenizer
from hf_select.scoring.deita import COMPLEXITY_PROMPT, QUALITY_PROMPT, expected_rating, user_pairs
from hf_select.scoring.rating import rating_token_ids


TEXTS = [COMPLEXITY_PROMPT, QUALITY_PROMPT, "Name three fruits: figs, plums and pears. 1 2 3 4 5 6"] * 5


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    tokenizer = train_tokenizer(TEXTS, vocab_size=400)
    return CausalLM(tiny_model(tokenizer, initializer_range=0.4), tokenizer=tokenizer)


def chat(*turns: tuple[str, str]) -> dict:
    return {"messages": [[{"role": role, "content": text} for role, text in turns]]}


def test_the_expected_rating_is_hand_worked():
    logits = np.log([[0.1, 0.2, 0.3, 0.1, 0.1, 0.2], [1, 1, 1, 1, 1, 1]])
    np.testing.assert_allclose(expected_rating(logits), [3.5, 3.5])
    np.testing.assert_allclose(expected_rating(np.array([0.0, 0, 0, 0, 0, 50])), 6)


def test_the_score_is_what_the_model_itself_gives_the_digits(lm):
    out = DEITA(lm)(chat(("user", "Name three fruits."), ("assistant", "Figs.")))
    ratings = []
    for prompt in (COMPLEXITY_PROMPT, QUALITY_PROMPT):
        text = prompt.replace("{instruction}", "Name three fruits.").replace("{response}", "Figs.")
        digits = rating_token_ids(lm, text, 6)
        logits = lm.load().model(torch.tensor(lm.encode_texts([text]))).logits[0, -1, digits]
        ratings.append((logits.softmax(0) * torch.arange(1, 7)).sum().item())
    assert ratings[0] != pytest.approx(ratings[1], rel=1e-3)
    assert out["deita_complexity"][0] == pytest.approx([ratings[0]], rel=1e-5)
    assert out["deita_quality"][0] == pytest.approx([ratings[1]], rel=1e-5)
    assert out["score_deita"][0] == pytest.approx(ratings[0] * ratings[1], rel=1e-5)


def test_turns_are_rated_alone_and_summed_and_a_missing_reply_is_empty(lm):
    turns = [("system", "Be brief."), ("user", "Name three fruits."), ("assistant", "Figs."), ("user", "And plums?")]
    whole = DEITA(lm)(chat(*turns))
    first = DEITA(lm)(chat(*turns[1:3]))
    last = DEITA(lm)(chat(turns[3], ("assistant", "")))
    assert whole["score_deita"][0] == pytest.approx(first["score_deita"][0] + last["score_deita"][0], rel=1e-5)
    assert len(whole["deita_quality"][0]) == 2
    out = DEITA(lm)(chat(("system", "Be brief."), ("assistant", "Hi.")))
    assert out["score_deita"] == [None] and out["deita_reason"] == ["no user turn"]
    from hf_select.data.conversation import Conversation

    tool = [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}, {"role": "assistant", "content": "c"}]
    assert user_pairs(Conversation(tool)) == [("a", "")]


def test_long_rows_lose_the_end_of_their_response_or_have_no_score(lm):
    long = chat(("user", "Name three fruits."), ("assistant", "Figs, plums and pears. " * 80))
    cut = DEITA(lm, max_length=90)(long)
    assert cut["score_deita"][0] is not None and "cut to fit 90" in cut["deita_reason"][0]
    assert DEITA(lm, max_length=None)(long)["deita_reason"][0].startswith("longer than the model's context of 512")
    assert "the text around the" in DEITA(lm, max_length=20)(long)["deita_reason"][0]


def test_prompts_come_as_text_or_from_a_file_and_must_have_their_places(lm, tmp_path):
    row = chat(("user", "Name three fruits."), ("assistant", "Figs."))
    path = tmp_path / "quality.txt"
    path.write_text("Rate {instruction} and {response}:\n", encoding="utf-8")
    from_file = DEITA(lm, quality_prompt=str(path))(row)
    assert from_file == DEITA(lm, quality_prompt="Rate {instruction} and {response}:\n")(row)
    assert from_file != DEITA(lm)(row)
    with pytest.raises(ValueError, match="no such file"):
        DEITA(lm, quality_prompt="nowhere.txt")
    with pytest.raises(ValueError, match="look at {response}"):
        DEITA(lm, quality_prompt="Rate {instruction}:\n")
    with pytest.raises(ValueError, match="between 2 and 9"):
        DEITA(lm, ratings=10)


def test_plain_text_has_no_pairs_and_a_prompt_ends_with_its_question(lm):
    out = DEITA(lm)({"text": ["hello there"]})
    assert out["score_deita"] == [None] and out["deita_reason"] == ["no user turn"]
    with pytest.raises(ValueError, match="must end with what asks"):
        DEITA(lm, quality_prompt="Rate {instruction}\nand {response}")
