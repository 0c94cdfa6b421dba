"""SelectIT: the numeric checkpoints of the paper and of the authors' code, worked by hand, and the choices around
them.
"""

import numpy as np
import pytest

from hf_select import CausalLM, SelectIT, demo
from hf_select.scoring.rating import rating_probabilities, rating_token_ids
from hf_select.scoring.selectit import ANSWER, RATING_PROMPTS, model_score, sentence_score, token_scores


CHECKPOINTS = [  # probabilities of 1..5, score by the paper, score by the authors' code
    ((0.05, 0.10, 0.50, 0.25, 0.10), 1.125, 0.24811847),
    ((1, 2, 3, 5, 4), 0.66666667, 0.13756858),
    ((0.2, 0.2, 0.2, 0.2, 0.2), 0.0, 0.0),
    ((0, 0, 0.5, 0.5, 0), 1.125, 0.23178026),  # a tie: the lower rating wins
    ((0.1, 0.1, 0.1, 0.2, 0.5), 1.875, 0.41587666),
    ((0, 0, 0, 0, 1), 5.0, 1.27881047),
]


@pytest.mark.parametrize(("p", "paper", "repo"), CHECKPOINTS)
def test_token_score_of_a_distribution(p, paper, repo):
    assert token_scores(np.array(p, dtype=float))[0] == pytest.approx(paper, abs=1e-8)
    assert token_scores(np.array(p, dtype=float), mode="repo")[0] == pytest.approx(repo, abs=1e-8)


def test_token_score_depends_on_the_top_probability_alone():
    """Because P' sums to 1, Eq. 3 is rating * (K max P' - 1) / (K - 1)."""
    p = np.random.default_rng(0).dirichlet(np.ones(5), size=200)
    score, uncertainty = token_scores(p)
    np.testing.assert_allclose(score, (p.argmax(1) + 1) * (5 * p.max(1) - 1) / 4, rtol=1e-12)
    np.testing.assert_allclose(score, (p.argmax(1) + 1) * (1 - uncertainty), rtol=1e-12)


def test_sentence_score_takes_the_population_deviation():
    paper, repo = (
        np.array([token_scores(np.array(p, float), mode)[0] for p, _, _ in CHECKPOINTS[:5]])
        for mode in ("paper", "repo")
    )
    assert sentence_score(paper, alpha=0.2) == pytest.approx(0.85316706, abs=1e-8)
    assert sentence_score(repo, alpha=0.2) == pytest.approx(0.201164, abs=1e-6)


def test_model_score_weighs_by_parameters():
    sentences = np.array([1.59, 2.13, 1.89])
    assert model_score(sentences, [7, 13, 70]) == pytest.approx(1.90133, abs=1e-5)
    assert model_score(sentences, [7, 13, 70], mode="repo") == pytest.approx(3.411, abs=1e-3)
    with pytest.raises(ValueError, match="exactly three models"):
        model_score(sentences[:2], [7, 13], mode="repo")


def test_softmax_over_five_logits_is_the_full_softmax_renormalised():
    logits = np.random.default_rng(1).normal(size=(20, 300)) * 5
    full = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(
        rating_probabilities(logits[:, 7:12]), full[:, 7:12] / full[:, 7:12].sum(1, keepdims=True)
    )


def test_scorer_equals_the_procedure_done_by_hand(model_path, rows):
    """One row and one prompt at a time, full logits, as published."""
    import torch

    lm = CausalLM(model_path).load()
    digits = [lm.tokenizer("x\n" + d)["input_ids"][-1] for d in "12345"]
    expected = []
    for row in rows:
        scores = []
        for line in RATING_PROMPTS:
            text = f"{line}\nInstruction:{row['prompt']}\nResponse:{row['completion']}\n{ANSWER}"
            with torch.no_grad():
                logits = lm.model(**lm.tokenizer(text, return_tensors="pt", return_token_type_ids=False)).logits[0, -1]
            p = torch.softmax(logits.double(), -1)[digits]
            p = (p / p.sum()).numpy()
            scores.append((p.argmax() + 1) * np.abs(p - p.max()).sum() / 4)
        expected.append(np.mean(scores) / (1 + 0.2 * np.std(scores)))
    found = SelectIT(model_path)({k: [r[k] for r in rows] for k in rows[0]})["score_selectit"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.std(expected) > 1e-3, "the model rates all rows alike: this test would not see a mistake"


def test_rating_last_equals_its_own_layout_done_by_hand(model_path, rows):
    lm = CausalLM(model_path)
    row = rows[0]
    head = lm.encode_texts([f"Instruction:{row['prompt']}\nResponse:{row['completion']}\n\n"])[0]
    asks = lm.encode_texts([line + ANSWER for line in RATING_PROMPTS], add_special_tokens=False)
    ids = rating_token_ids(lm, "x\n", 5)
    by_hand = [lm.next_token_logits([head + ask], ids)[0] for ask in asks]
    scores, _ = token_scores(rating_probabilities(np.stack(by_hand)))
    batch = {k: [r[k] for r in rows] for k in row}
    last = SelectIT(model_path, rating_position="last")(batch)["score_selectit"]
    assert last[0] == pytest.approx(float(sentence_score(scores)), rel=1e-5)
    assert not np.allclose(last, SelectIT(model_path)(batch)["score_selectit"], rtol=1e-3), (
        "another layout, other scores"
    )


def test_details_explain_the_score(model_path, rows):
    out = SelectIT(model_path, details=True)({k: [r[k] for r in rows] for k in rows[0]})
    tokens = np.array(out["selectit_ratings"]) * (1 - np.array(out["selectit_uncertainty"]))
    np.testing.assert_allclose(sentence_score(tokens), out["score_selectit"], rtol=1e-9)


def test_only_the_first_pair_is_rated_and_system_text_is_not(model_path):
    pair = [
        {"role": "user", "content": "Name three tools."},
        {"role": "assistant", "content": "Saws, files and drills."},
    ]
    more = [{"role": "user", "content": "More."}, {"role": "assistant", "content": "Hammers."}]
    system = [{"role": "system", "content": "Be brief."}]
    out = SelectIT(model_path)({"messages": [pair, pair + more, system + pair, pair[:1], more[1:]]})
    assert out["score_selectit"][0] == pytest.approx(out["score_selectit"][1], rel=1e-5)
    assert out["score_selectit"][0] == pytest.approx(out["score_selectit"][2], rel=1e-5)
    assert out["score_selectit"][3:] == [None, None]
    assert out["selectit_reason"] == ["", "", "", *["no user turn with an assistant turn after it"] * 2]


def test_long_rows_have_no_score_or_lose_the_end_of_their_response(model_path):
    batch = {"prompt": ["Go on."] * 2, "completion": ["word " * 600, "short"]}
    uncut = SelectIT(model_path)(batch)
    assert uncut["score_selectit"][0] is None and "context of 512" in uncut["selectit_reason"][0]
    for position in ("first", "last"):
        cut = SelectIT(model_path, max_length=120, rating_position=position)(batch)
        assert cut["score_selectit"][0] is not None and "response cut to fit 120" in cut["selectit_reason"][0]
        assert cut["selectit_reason"][1] == ""
        tight = SelectIT(model_path, max_length=20, rating_position=position)(batch)
        assert tight["score_selectit"] == [None, None]
        assert "the text around the response" in tight["selectit_reason"][0]


def test_a_cut_prompt_keeps_its_question_and_the_start_of_its_response(model_path):
    lm = CausalLM(model_path)
    seen = []
    original = lm.next_token_logits
    scorer = SelectIT(lm, max_length=100, level="token", rating_prompts=[RATING_PROMPTS[0]])
    scorer._models[0].next_token_logits = lambda prompts, ids: seen.extend(prompts) or original(prompts, ids)
    scorer({"prompt": ["Go on."], "completion": ["first " + "word " * 600]})
    text = lm.load().tokenizer.decode(seen[0])
    assert len(seen[0]) == 100
    assert text.startswith("<|begin|>" + RATING_PROMPTS[0] + "\nInstruction:Go on.\nResponse:first word")
    assert text.endswith("\n" + ANSWER)


def test_rating_prompts_from_a_file_keep_their_line_breaks(model_path, tmp_path):
    """The reference adds one line break to each line as read: the last line of a file without one gets a single
    break."""
    path = tmp_path / "prompts.txt"
    path.write_text("one\ntwo\nthree\u2028still three\nfour\nfive", encoding="utf-8")
    scorer = SelectIT(model_path, rating_prompts=str(path))
    assert scorer._prompts == ["one\n", "two\n", "three\u2028still three\n", "four\n", "five"]
    with pytest.raises(ValueError, match="5 rating prompts.*needs 6"):
        SelectIT(model_path, rating_prompts=str(path), k=6)
    path.write_text("one\n\nthree\n", encoding="utf-8")
    with pytest.raises(ValueError, match="prompt 2 is empty"):
        SelectIT(model_path, rating_prompts=str(path), k=2)
    with pytest.raises(ValueError, match="no file"):
        SelectIT(model_path, rating_prompts=str(tmp_path / "none.txt"))


def test_the_token_level_draws_its_prompt_with_the_seed(model_path):
    drawn = {SelectIT(model_path, level="token", seed=seed)._prompts[0] for seed in range(60)}
    assert drawn == set(RATING_PROMPTS)
    assert SelectIT(model_path, level="token", seed=2)._prompts == SelectIT(model_path, level="token", seed=2)._prompts


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 1}, "k is 1"),
        ({"k": 10}, "k is 10"),
        ({"mode": "papr"}, "mode"),
        ({"alpha": -1}, "alpha"),
        ({"sizes": [1, 2]}, "2 sizes"),
    ],
)
def test_settings_are_checked_at_construction(settings, message):
    with pytest.raises(ValueError, match=message):
        SelectIT("model", **settings)


def test_ratings_that_are_not_single_tokens_are_refused(tmp_path):
    """A word-level vocabulary without digits gives every rating the same unknown token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "answer": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(tmp_path)
    config = LlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="single token"):
        SelectIT(str(tmp_path))({"prompt": ["a"], "completion": ["b"]})


def test_several_models_are_weighted_by_their_counted_parameters(model_path, rows):
    one, two = CausalLM(model_path), CausalLM(model_path)
    batch = {k: [r[k] for r in rows[:5]] for k in rows[0]}
    both = SelectIT([one, two])(batch)["score_selectit"]
    np.testing.assert_allclose(both, SelectIT(model_path)(batch)["score_selectit"], rtol=1e-6)
    assert one.num_parameters == sum(p.numel() for p in one.load().model.parameters())


def small_gpt2(tokenizer) -> CausalLM:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=len(tokenizer), n_positions=128, n_embd=32, n_layer=2, n_head=4)
    return CausalLM(GPT2LMHeadModel(config), tokenizer=tokenizer)


def test_a_limit_above_the_models_context_is_the_context(tokenizer):
    """A learned position table ends there: beyond it is an index error, or silent nonsense."""
    out = SelectIT(small_gpt2(tokenizer), max_length=300)({"prompt": ["Go on."], "completion": ["word " * 200]})
    assert out["score_selectit"][0] is not None and out["selectit_reason"] == ["response cut to fit 128 tokens"]


def test_a_cut_is_logged_and_noted_whichever_model_needed_it(tokenizer, model_path, caplog):
    models = [CausalLM(model_path), small_gpt2(tokenizer)]
    for order in (models, models[::-1]):
        out = SelectIT(order, max_length=400)({"prompt": ["Go on."], "completion": ["word " * 200]})
        assert "response cut to fit 128 tokens" in out["selectit_reason"][0]
    assert "carry a note (1 x response cut" in caplog.text


def test_a_reply_that_is_a_tool_call_is_no_empty_answer(model_path):
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f"}}]}
    out = SelectIT(model_path)({"messages": [[{"role": "user", "content": "Find x."}, call]]})
    assert out["score_selectit"] == [None] and "tool call" in out["selectit_reason"][0]


@pytest.fixture(scope="module")
def gpt2_like_path(tmp_path_factory) -> str:
    """A random model whose tokenizer splits text as GPT-2 and GPT-NeoX do: a final " \\n" is one token, and two before
    a digit."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    raw.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"])  # type: ignore[call-arg]
    raw.train_from_iterator(["The answer is: \n", "It is:  \n"] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    folder = tmp_path_factory.mktemp("gpt2_like")
    sizes: dict = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    demo.tiny_model(tokenizer, **sizes, initializer_range=0.3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("position", ["first", "last"])
def test_the_rating_is_read_where_the_tokenizer_writes_it(gpt2_like_path, position):
    import torch

    lm = CausalLM(gpt2_like_path).load()
    alone, followed = (lm.tokenizer(ANSWER + digit)["input_ids"] for digit in ("", "1"))
    assert followed[: len(alone)] != alone, "this tokenizer would not show the fault"
    row = {"prompt": "Name a river.", "completion": "The Loire."}
    scores = []
    for line in RATING_PROMPTS:
        pair = f"Instruction:{row['prompt']}\nResponse:{row['completion']}\n"
        text = f"{line}\n{pair}{ANSWER}" if position == "first" else f"{pair}\n{line}{ANSWER}"
        rated = [lm.tokenizer(text + digit)["input_ids"] for digit in "12345"]
        assert all(ids[:-1] == rated[0][:-1] for ids in rated)
        with torch.no_grad():
            logits = lm.model(torch.tensor([rated[0][:-1]])).logits[0, -1]
        scores.append(token_scores(rating_probabilities(logits[[ids[-1] for ids in rated]].numpy()))[0])
    found = SelectIT(gpt2_like_path, rating_position=position)({k: [v] for k, v in row.items()})
    assert found["selectit_reason"] == [""]
    assert found["score_selectit"][0] == pytest.approx(float(sentence_score(np.array(scores))), rel=1e-4)


def test_a_tokenizer_that_joins_digits_to_the_prompt_is_refused_with_what_it_writes(gpt2_like_path):
    lm = CausalLM(gpt2_like_path)
    with pytest.raises(ValueError, match=r"each rating 1 to 15 .* ends with the tokens \[.a., .<.endoftext.>., .1.\]"):
        rating_token_ids(lm, "a<|endoftext|>", 15)
