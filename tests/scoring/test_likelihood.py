"""Perplexity and IFD: hand-worked limits, spans, cuts and reasons."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_select import IFD, CausalLM, Perplexity, TopK
from hf_select.data.conversation import conversations
from hf_select.data.encoding import encode_all
from hf_select.demo import tiny_model, train_tokenizer


TEXTS = ["What is the capital of Peru? Lima is the capital of Peru.", "Name three fruits: figs, plums and pears."] * 5


def chat(*turns: str) -> dict:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]}


def score(scorer, *rows: dict) -> dict[str, list]:
    return scorer({name: [row[name] for row in rows] for name in rows[0]})


@pytest.fixture(scope="module")
def uniform() -> CausalLM:
    """Every next token equally likely."""
    tokenizer = train_tokenizer(TEXTS, vocab_size=300)
    model = tiny_model(tokenizer)
    torch.nn.init.zeros_(model.lm_head.weight)
    return CausalLM(model, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    tokenizer = train_tokenizer(TEXTS, vocab_size=300)
    return CausalLM(tiny_model(tokenizer, initializer_range=0.4), tokenizer=tokenizer)


@pytest.mark.parametrize("scope", ["full", "response"])
def test_a_uniform_model_gives_log_v_nats_a_token_and_an_ifd_of_1(uniform, scope):
    row = chat("Name three fruits.", "Figs, plums and pears.")
    v = uniform.load().vocab_size
    assert score(Perplexity(uniform, scope=scope), row)["score_perplexity"][0] == pytest.approx(math.log(v), rel=1e-6)
    for ratio in ("loss_ratio", "ppl_ratio"):
        assert score(IFD(uniform, ratio=ratio), row)["score_ifd"][0] == pytest.approx(1, rel=1e-6)


def test_perplexity_is_the_models_own_loss(lm):
    loaded = lm.load()
    row = chat("Name three fruits.", "Figs, plums and pears.")
    text = loaded.tokenizer.apply_chat_template(row["messages"], tokenize=False)
    ids = torch.tensor([loaded.tokenizer(text, add_special_tokens=False)["input_ids"]])
    full = loaded.model(input_ids=ids, labels=ids).loss.item()
    labels = ids.clone()
    before = loaded.tokenizer.apply_chat_template(row["messages"][:1], tokenize=False, add_generation_prompt=True)
    labels[0, : len(loaded.tokenizer(before, add_special_tokens=False)["input_ids"])] = -100
    response = loaded.model(input_ids=ids, labels=labels).loss.item()
    assert score(Perplexity(lm), row)["score_perplexity"][0] == pytest.approx(full, rel=1e-5)
    assert score(Perplexity(lm, scope="response"), row)["score_perplexity"][0] == pytest.approx(response, rel=1e-5)
    assert score(IFD(lm), row)["ifd_given_prompt"][0] == pytest.approx(response, rel=1e-5)
    assert abs(full - response) > 0.01, "this model cannot tell the two scopes apart: the test shows nothing"


def test_a_prompt_that_adds_nothing_gives_1(lm):
    """A template that writes nothing for the user, who said nothing: with and without the prompt is one text."""
    lm.load().tokenizer.chat_template, own = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] }}{% endgeneration %}{% endif %}{% endfor %}",
        lm.load().tokenizer.chat_template,
    )
    try:
        out = score(IFD(lm), chat("", "Figs, plums and pears."))
        assert out["score_ifd"] == [1.0] and out["ifd_alone"] == out["ifd_given_prompt"]
    finally:
        lm.load().tokenizer.chat_template = own


def test_the_two_ratios_are_of_the_same_two_losses(lm):
    row = chat("What is the capital of Peru?", "Lima is the capital.")
    loss, ppl = (score(IFD(lm, ratio=ratio), row) for ratio in ("loss_ratio", "ppl_ratio"))
    given, alone = loss["ifd_given_prompt"][0], loss["ifd_alone"][0]
    assert loss["score_ifd"][0] == pytest.approx(given / alone)
    assert ppl["score_ifd"][0] == pytest.approx(math.exp(given - alone))
    assert given != pytest.approx(alone, rel=1e-3)


def test_of_several_turns_every_response_token_counts_alike(lm):
    row = chat("Name three fruits.", "Figs, plums and pears.", "And the capital of Peru?", "Lima.")
    out = score(IFD(lm), row)
    assert len(out["ifd_turns"][0]) == 2
    first = score(IFD(lm), chat(*[m["content"] for m in row["messages"][:2]]))
    assert out["ifd_turns"][0][0] == pytest.approx(first["score_ifd"][0], rel=1e-5)
    alone = []
    for reply in ("Figs, plums and pears.", "Lima."):
        single = score(IFD(lm), chat("x", reply))
        (encoded,) = encode_all(conversations({"messages": [chat("x", reply)["messages"]]}), lm.load().tokenizer)
        alone.append((single["ifd_alone"][0], encoded.responses[0][1] - encoded.responses[0][0]))
    (a, n), (b, m) = alone
    assert out["ifd_alone"][0] == pytest.approx((a * n + b * m) / (n + m), rel=1e-5)
    assert out["score_ifd"][0] != pytest.approx(np.mean(out["ifd_turns"][0]), rel=1e-4), "a mean over turns"
    said_nothing = chat("Name three fruits.", "Figs, plums and pears.", "Thanks.", " ")
    assert len(score(IFD(lm), said_nothing)["ifd_turns"][0]) == 1


@pytest.mark.parametrize("text_format", ["alpaca", "plain", "chat"])
def test_both_passes_see_the_same_response_tokens_also_when_cut(lm, text_format):
    ids = lm.encode_texts(["Figs, plums and pears. " * 30])[0]
    row = chat("Name three fruits.", "Figs, plums and pears. " * 30)
    seen = []

    def record(sequences, spans):
        seen.append((sequences, spans))
        return CausalLM.response_nll(lm, sequences, spans)

    lm.response_nll = record
    try:
        out = score(IFD(lm, text_format=text_format, max_length=180 if text_format == "alpaca" else 60), row)
    finally:
        del lm.response_nll
    (given, alone), (given_spans, alone_spans) = seen[0]
    assert [given[a:b] for a, b in given_spans] == [alone[a:b] for a, b in alone_spans]
    assert 0 < given_spans[0][1] - given_spans[0][0] < len(ids) and "cut to" in out["ifd_reason"][0]


@pytest.mark.parametrize(
    ("scorer", "row", "reason"),
    [
        (lambda lm: IFD(lm), chat("Name three fruits.", "  "), "empty response"),
        (lambda lm: IFD(lm, text_format="alpaca"), chat("Name three fruits.", ""), "empty response"),
        (lambda lm: IFD(lm, max_length=5), chat("Name three fruits.", "Figs."), r"no token of the response.*cut to 5"),
        (lambda lm: IFD(lm, max_length=None), chat("a " * 600, "Figs."), "context of 512 tokens"),
        (lambda lm: IFD(lm, text_format="plain", max_length=None), chat("a " * 600, "Figs."), "context of 512"),
        (
            lambda lm: IFD(lm, text_format="plain", mode="repo", max_length=9),
            chat("Name three fruits of the north.", "Figs."),
            "prompt alone reaches 9",
        ),
        (lambda lm: IFD(lm, text_format="alpaca"), {"messages": [{"role": "user", "content": "x"}]}, "no user turn"),
        (lambda lm: IFD(lm), {"text": "Figs, plums."}, "plain text has no prompt"),
        (
            lambda lm: IFD(lm, text_format="plain", mode="repo", max_length=2048),
            chat("Name them.", "a " * 600),
            "context of 512",
        ),
        (lambda lm: Perplexity(lm, scope="response"), chat("Name three fruits.", ""), "empty response"),
        (lambda lm: Perplexity(lm, max_length=1), chat("Name three fruits.", "Figs."), "no token of the row"),
        (lambda lm: Perplexity(lm, scope="response", max_length=4), chat("Name them.", "Figs."), "of the response is"),
        (lambda lm: Perplexity(lm, max_length=None), chat("a " * 600, "Figs."), "context of 512 tokens"),
    ],
)
def test_what_cannot_be_scored_is_null_with_its_reason(lm, scorer, row, reason):
    out = score(scorer(lm), row)
    name = "ifd" if "score_ifd" in out else "perplexity"
    assert out[f"score_{name}"] == [None]
    import re

    assert re.search(reason, out[f"{name}_reason"][0])


def test_repo_mode_is_of_the_scripts_formats_alone(lm):
    for bad in ({}, {"text_format": "plain", "max_length": None}):
        with pytest.raises(ValueError, match="alpaca or plain"):
            IFD(lm, mode="repo", **bad)


def test_rows_above_1_keep_their_score_and_are_left_out_on_request():
    data = Dataset.from_dict({"score_ifd": [0.9, 1.2, 0.5, None, 1.0]})
    assert TopK("score_ifd")(data, k=2).indices.tolist() == [1, 4]
    selection = TopK("score_ifd", at_most=1.0)(data, k=2)
    assert selection.indices.tolist() == [4, 0] and selection.chain[0]["out_of_bounds"] == 1
    with pytest.raises(ValueError, match=r"only 3 can be ranked by score_ifd within \[-inf, 1\]"):
        TopK("score_ifd", at_most=1.0)(data, k=4)
    assert TopK("score_ifd", at_least=0.9, which="worst")(data, k=3).indices.tolist() == [0, 4, 1]


def test_lengths_below_1_are_refused(lm):
    row = chat("Name three fruits.", "Figs.")
    for scorer in (lambda: Perplexity(lm, max_length=-5), lambda: IFD(lm, max_length=0)):
        with pytest.raises(ValueError, match="at least 1"):
            score(scorer(), row)


def test_an_empty_turn_counts_in_neither_score(lm):
    row = chat("Name three fruits.", "Figs, plums and pears.", "Thanks.", " ")
    response = score(Perplexity(lm, scope="response"), row)["score_perplexity"][0]
    assert score(IFD(lm), row)["ifd_given_prompt"][0] == pytest.approx(response, rel=1e-5)
