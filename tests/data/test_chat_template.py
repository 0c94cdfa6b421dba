"""Responses are placed under every template that TRL ships; what a template leaves out is said."""

import json

import pytest
from chat_templates import TEMPLATES
from datasets import Dataset
from datasets.fingerprint import Hasher
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError

from hf_select import DEITA, IFD, CausalLM, Length, Perplexity, RDSPlus, SelectIT
from hf_select.cli.main import main
from hf_select.data import response_spans
from hf_select.data.bad_rows import BadRow
from hf_select.data.chat_template import FALLBACK_TEMPLATE, LESS_TEMPLATE, Renderer, renderer
from hf_select.data.conversation import Conversation, conversations
from hf_select.data.encoding import encode
from hf_select.data.response_spans import render_with_spans
from hf_select.scoring.deita import user_pairs
from hf_select.training.reward_learning.demonstrations import REASON, encode_demonstrations
from hf_select.training.warmup import WarmUp


TRAINING = {name for name in TEMPLATES if name.endswith("_training")}
SHIPPED = sorted(set(TEMPLATES) - TRAINING)

CALL = {"id": "call12345", "type": "function", "function": {"name": "depth", "arguments": {"lake": "Inari", "m": 7}}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "depth",
            "description": "Depth of a lake",
            "parameters": {
                "type": "object",
                "properties": {
                    "lake": {"type": "string", "description": "its name"},
                    "m": {"type": "integer", "description": "where"},
                },
                "required": ["lake"],
            },
        },
    }
]


def user(text):
    return {"role": "user", "content": text}


def reply(text, **more):
    return {"role": "assistant", "content": text, **more}


def thought(text, reasoning):
    return reply(f"<think>\n{reasoning}\n</think>\n\n{text}")


SYSTEM = {"role": "system", "content": "Answer gruffly."}
RESULT = {"role": "tool", "tool_call_id": "call12345", "name": "depth", "content": "230 metres"}
ASKED = [user("How deep is it?"), reply("", tool_calls=[CALL])]
ROWS = {
    "single": [user("Which lake?"), reply("Onega.")],
    "multi": [
        user("Which lake?"),
        reply("Onega."),
        user("Another?"),
        reply("<b>Ladoga."),
        user("More?"),
        reply("Ohrid."),
    ],
    "system": [SYSTEM, user("Which lake?"), reply("Onega."), user("Another?"), reply("Ladoga.")],
    "open": [user("Which lake?"), reply("Onega."), user("Another?")],
    "call": ASKED,
    "result": [*ASKED, RESULT, reply("230.")],
    "two results": [*ASKED, RESULT, reply("230."), user("Sure?"), reply("", tool_calls=[CALL]), RESULT, reply("Yes.")],
    "reasoning": [user("Which lake?"), reply("Onega.", reasoning_content="Karelia has it.")],
    "two reasonings": [
        user("Which lake?"),
        reply("Onega.", reasoning_content="Karelia has it."),
        user("Another?"),
        reply("Ladoga.", reasoning_content="So does this."),
    ],
    "thought": [user("Which lake?"), thought("Onega.", "Karelia has it.")],
    "two thoughts": [
        user("Which lake?"),
        thought("Onega.", "Karelia has it."),
        user("Another?"),
        thought("Ladoga.", "So?"),
    ],
    "reasoned call": [
        user("How deep is it?"),
        reply("", tool_calls=[CALL], reasoning_content="I ask."),
        RESULT,
        reply("230.", reasoning_content="It said so."),
        user("Sure?"),
        reply("Yes."),
    ],
    "leading reply": [reply("What do you want?"), user("Which lake?"), reply("Onega.")],
    "two replies": [user("Which lake?"), reply("Onega."), reply("Or Ohrid.")],
}
TOOL_ROWS = ("call", "result", "two results", "reasoned call")

# What the vendors' templates do not write, so that no such row can have a score under them.
NO_CALLS = {
    *("cohere", "cohere2", "gemma", "gemma3", "idefics3", "lfm2", "llama3", "llava_next", "phi3", "phi3_5"),
    *("qwen2_5_vl", "smolvlm"),
}
NO_REASONING_FIELD = {
    *("cohere", "cohere2", "deepseek_r1_distill", "deepseekv3", "gemma", "gemma3", "gemma4", "gemma4_v2", "gemma4_v3"),
    *("gemma4_v4", "idefics3", "lfm2", "lfm2_v2", "llama3", "llama3_1", "llama3_2", "llava_next", "phi3", "phi3_5"),
    *("qwen2_5", "qwen2_5_vl", "qwen3_instruct_2507", "qwen3_vl", "smolvlm"),
}
REASONED_CALL = (NO_REASONING_FIELD - {"gemma4", "gemma4_v3", "gemma4_v4"}) | {"gemma4_v2"}
CUT_AT_THOUGHT = {"deepseek_r1_distill", "deepseekv3"}
ALTERNATE = {"cohere", "cohere2", "gemma", "gemma3"}
REFUSED = {
    "call": NO_CALLS,
    "result": NO_CALLS,
    "two results": NO_CALLS,
    "reasoning": NO_REASONING_FIELD,
    "two reasonings": NO_REASONING_FIELD,
    "thought": CUT_AT_THOUGHT,
    "two thoughts": CUT_AT_THOUGHT,
    "reasoned call": NO_REASONING_FIELD | NO_CALLS,
    "leading reply": ALTERNATE,
    "two replies": ALTERNATE | {"gemma4_v5", "diffusion_gemma"},  # they run into one turn without a mark between them
}


def row(kind):
    return Conversation(ROWS[kind], TOOLS if kind in TOOL_ROWS else None)


def texts(encoded, tokenizer):
    return [tokenizer.decode(encoded.input_ids[a:b]) for a, b in encoded.responses]


def answer(message):
    return message["content"].rpartition("</think>")[2].strip()


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_template_places_responses_or_says_truly_why_not(name, kind, tokenizer):
    try:
        encoded = encode(row(kind), tokenizer, TEMPLATES[name])
    except BadRow as reason:
        assert name in REFUSED.get(kind, ()), f"{reason}"
        assert_true(str(reason), row(kind), tokenizer, TEMPLATES[name])
        return
    assert name not in REFUSED.get(kind, ())
    spans, messages = texts(encoded, tokenizer), ROWS[kind]
    replies = [message for message in messages if message["role"] == "assistant"]
    assert len(spans) == len(replies)
    for i, (span, message) in enumerate(zip(spans, replies, strict=True)):
        assert answer(message) in span
        assert not any(other["content"] in span for other in messages if other["role"] != "assistant")
        assert all(
            answer(other) not in span
            for other in replies
            if other is not message and answer(other) not in ("", "230.")
        )
        if message.get("tool_calls"):
            assert "depth" in span and "Inari" in span and "7" in span
        reasoning = message.get("reasoning_content") or message["content"].partition("</think>")[0][8:].strip()
        if reasoning and reasoning not in span:  # of earlier responses, and then the row says so
            assert i < len(replies) - 1 and "the reasoning of earlier responses" in encoded.note


def assert_true(reason, row, tokenizer, template):
    """What a refusal says, seen from outside: by what transformers itself renders, in any form of the messages."""
    if "cannot be located" in reason:
        return
    texts = []
    for messages in (row.messages, [with_text(message) for message in row.messages]):
        for form in (messages, in_parts(messages)):
            try:
                render = tokenizer.apply_chat_template
                texts.append(render(form, tools=row.tools, chat_template=template, tokenize=False))
            except (TemplateError, TypeError):
                continue
    if "refuses" in reason:
        assert not texts
    elif "tool calls" in reason:
        assert all("Inari" not in text for text in texts)
    else:
        assert "the reasoning of a response" in reason
        reasonings = [m.get("reasoning_content") or m["content"].partition("</think>")[0][8:] for m in row.messages]
        assert any(all(words.strip() not in text for text in texts) for words in reasonings if words)


def with_text(message):
    """The message with the arguments of its calls as JSON text."""
    calls = [
        {**c, "function": {**c["function"], "arguments": '{"lake": "Inari"}'}} for c in message.get("tool_calls", [])
    ]
    return {**message, "tool_calls": calls} if calls else message


def in_parts(messages):
    return [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]


def test_touching_marks_of_a_training_template_are_one_span(tokenizer):
    """Phi-3's marks the EOS at the end apart from the last turn."""
    chat = [user("Two plus two?"), reply("Four."), user("And three?"), reply("Five.")]
    encoded = encode(Conversation(chat), tokenizer, TEMPLATES["phi3_training"])
    assert [text.partition("<")[0].strip() for text in texts(encoded, tokenizer)] == ["Four.", "Five."]


@pytest.mark.parametrize("name", sorted(TRAINING - {"glm4moe_training"}))  # it writes another text
def test_trls_training_templates_mark_the_same_ends_and_the_same_starts_but_for_generation_prompts(name, tokenizer):
    """Where a training template writes the same text, its marks are an independent answer. They may open before what
    the generation prompt gives (<think>, the header), or fall in two."""
    own = TEMPLATES[name.removesuffix("_training")]
    compared = 0
    for kind, messages in ROWS.items():
        tools = TOOLS if kind in TOOL_ROWS else None
        try:
            ours = render_with_spans(messages, renderer(own, tokenizer, tools))
            theirs = render_with_spans(messages, renderer(TEMPLATES[name], tokenizer, tools))
        except BadRow:
            continue
        if ours.text != theirs.text:
            continue
        compared += 1
        ends = {end for _, end in theirs.spans}
        for start, end in ours.spans:
            mark = min(begin for begin, stop in theirs.spans if stop > start)
            before = ours.text[min(mark, start) : max(mark, start)]
            assert "." not in before and "?" not in before, f"{before!r} holds somebody's words"
            after = ours.text[max(stop for stop in ends if stop <= end) : end].strip()
            assert after in ("", "<|tool_response>")  # with which Gemma stops after a call
    assert compared >= 4


@pytest.mark.parametrize("name", sorted({*SHIPPED, "ours", "less"} - NO_CALLS))
def test_arguments_as_text_and_as_an_object_are_one_row(name, tokenizer):
    template = {"ours": FALLBACK_TEMPLATE, "less": LESS_TEMPLATE, **TEMPLATES}[name]
    encoded = []
    for arguments in (CALL["function"]["arguments"], '{"lake":"Inari","m":7}', '{"lake": "Inari", "m": 7}'):
        call = {**CALL, "function": {"name": "depth", "arguments": arguments}}
        messages = [ROWS["result"][0], reply("", tool_calls=[call]), *ROWS["result"][2:]]
        encoded.append(encode(Conversation(messages, TOOLS), tokenizer, template))
    assert encoded[0] == encoded[1] == encoded[2]
    assert "Inari" in texts(encoded[0], tokenizer)[0] and "\\" not in texts(encoded[0], tokenizer)[0]


@pytest.mark.parametrize("arguments", ["{", "7", '"Ladoga"', [1]])
def test_arguments_that_are_no_object_are_refused(arguments, tokenizer):
    call = {**CALL, "function": {"name": "depth", "arguments": arguments}}
    with pytest.raises(BadRow, match="arguments of a tool call are"):
        encode(Conversation([user("x"), reply("", tool_calls=[call])]), tokenizer)


def test_a_template_that_prints_python_gets_the_text_of_arguments(tokenizer):
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}"
        "{{ c.function.arguments }}{% endfor %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert texts(encode(row("call"), tokenizer, template), tokenizer) == ['depth{"lake": "Inari", "m": 7}']


def test_a_list_of_no_calls_is_no_call(tokenizer):
    for name in ("deepseekv3", "gptoss", "qwen3"):
        empty = [ROWS["single"][0], {**ROWS["single"][1], "tool_calls": []}]
        found = [encode(Conversation(messages), tokenizer, TEMPLATES[name]) for messages in (empty, ROWS["single"])]
        assert found[0] == found[1]


@pytest.mark.parametrize(
    "asks", ["", "{% if messages[-1].role == 'assistant' %}{{ raise_exception('no') }}{% endif %}"]
)
@pytest.mark.parametrize(
    ("close", "expected"),
    [
        ("</s>", ["Onega.</s>", "<b>Ladoga.</s>", "Ohrid.</s>"]),
        ("{% if not loop.last or add_generation_prompt %}</s>{% endif %}", ["Onega.</s>", "<b>Ladoga.</s>", "Ohrid."]),
    ],
)
def test_a_response_ends_with_what_closes_it_there(close, expected, asks, tokenizer):
    """Some templates close the last response otherwise, or refuse a generation prompt behind one."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}{{ m.content }}"
        f"{close}{{% endif %}}{{% endfor %}}{{% if add_generation_prompt %}}{asks}{{% endif %}}"
    )
    found = texts(encode(row("multi"), tokenizer, template), tokenizer)
    if asks:  # then a mark that only a following turn brings is that turn's
        expected = expected if expected[-1].endswith("</s>") else ["Onega.", "<b>Ladoga.", "Ohrid."]
    assert found == expected


def test_our_template_writes_all_that_a_row_says_and_plain_rows_as_before(tokenizer):
    reasoned = reply("Ask.", tool_calls=[CALL, CALL], reasoning_content="Hm.")
    messages = [SYSTEM, {**user("How deep?"), "name": "Ann"}, reasoned, RESULT, reply("230.")]
    for template, end in ((FALLBACK_TEMPLATE, ""), (LESS_TEMPLATE, "\n")):
        encoded = encode(Conversation(messages, TOOLS), tokenizer, template)
        call = '<tool_call>\n{"name": "depth", "arguments": {"lake": "Inari", "m": 7}}\n</tool_call>'
        first = f"<think>\nHm.\n</think>\nAsk.\n{call}\n{call}<|end|>{end}"
        assert texts(encoded, tokenizer) == [first, f"230.<|end|>{end}"]
        assert encoded.note == ""
        written = tokenizer.decode(encoded.input_ids)
        assert written == (
            f"<|begin|><|tools|>\n{json.dumps(TOOLS[0])}\n<|system|>\nAnswer gruffly.\n<|user name=Ann|>\nHow deep?\n"
            f"<|assistant|>\n{first}{'' if end else chr(10)}<|tool name=depth|>\n230 metres\n"
            f"<|assistant|>\n230.<|end|>{end}"
        )


@pytest.mark.parametrize(
    ("name", "change", "note"),
    [
        ("llama3", {"tools": TOOLS}, "the chat template leaves out the tools"),
        ("qwen3", {"name": "Ann"}, "the chat template leaves out names"),
    ],
)
def test_context_that_is_left_out_gives_a_note(name, change, note, tokenizer):
    messages = [{**user("Which lake?"), **{k: v for k, v in change.items() if k == "name"}}, reply("Onega.")]
    encoded = encode(Conversation(messages, change.get("tools")), tokenizer, TEMPLATES[name])
    assert encoded.note == note


@pytest.mark.parametrize(
    ("name", "lost", "reason"),
    [
        ("qwen3", {"role": "developer", "content": "Be kind."}, "a developer turn"),
        ("qwen3_vl", {"role": "system", "content": "Be kind."}, "a system turn"),
        ("phi3", {"role": "tool", "content": "5"}, "tool results"),
    ],
)
def test_a_turn_that_is_left_out_refuses_the_row(name, lost, reason, tokenizer):
    messages = [user("Which lake, of 5?"), lost, reply("Onega.")]
    with pytest.raises(BadRow, match=f"does not write {reason}"):
        encode(Conversation(messages), tokenizer, TEMPLATES[name])


def test_a_template_that_is_not_jinja_is_an_error_of_the_user_not_of_the_row(tokenizer):
    with pytest.raises(ValueError, match="not valid Jinja: line 1") as error:
        encode(row("single"), tokenizer, "{% for m in %}")
    assert not isinstance(error.value, BadRow)


# ------------------------------------------------------------------------------------------ generated conversations

WORDS = st.text("aé世<|>/ \n{}'\"", max_size=12)
REWRITING = ["qwen3", "qwen3_5_think", "phi3_5", "gptoss", "deepseekv3", "nemotron_3_nano", "gemma4_v5"]


@pytest.mark.parametrize("name", REWRITING)
@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(pairs=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
def test_spans_hold_a_turns_words_and_nobody_elses(name, pairs, tokenizer):
    """Each turn bears a number of its own, so that whose words stand in a span can be seen."""
    messages = []
    for i, (asked, said) in enumerate(pairs):
        messages += [user(f"{asked}u{i}?{asked}"), reply(f"{said}r{i}!{said}")]
    rendered = render_with_spans(messages, renderer(TEMPLATES[name], tokenizer))
    spans = [rendered.text[a:b] for a, b in rendered.spans]
    assert len(spans) == len(pairs)
    for i, (span, (_, said)) in enumerate(zip(spans, pairs, strict=True)):
        assert f"{said}r{i}!{said}".strip() in span
        assert not any(f"r{j}!" in span for j in range(len(pairs)) if j != i)
        assert not any(f"u{j}?" in span for j in range(len(pairs)))
        assert span.strip() != f"{said}r{i}!{said}".strip()  # it ends with a mark
    whole = tokenizer.apply_chat_template(messages, chat_template=TEMPLATES[name], tokenize=False)
    assert rendered.text == whole


@pytest.mark.parametrize("name", SHIPPED)
@settings(max_examples=4, deadline=None, derandomize=True, database=None)
@given(pairs=st.lists(st.tuples(WORDS, WORDS), min_size=2, max_size=4))
def test_spans_from_one_marked_rendering_are_those_of_the_prefixes(name, pairs, tokenizer):
    messages = [message for asked, said in pairs for message in (user(asked), reply(said))]
    render = renderer(TEMPLATES[name], tokenizer)

    def spans_or_reason():
        try:
            return render_with_spans(messages, render)
        except BadRow as reason:
            return str(reason)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(response_spans, "_content_spans", lambda *_: {})
        expected = spans_or_reason()
    assert spans_or_reason() == expected


@pytest.mark.parametrize("name", [*REWRITING, "qwen2_5"])
def test_placing_plain_turns_renders_the_conversation_a_fixed_number_of_times(name, tokenizer, monkeypatch):
    calls, whole = [], Renderer._render
    monkeypatch.setattr(Renderer, "_render", lambda self, *args, **kw: calls.append(1) or whole(self, *args, **kw))
    counts = []
    for turns in (3, 3, 30):  # the first finds what is kept for a template
        messages = [m for i in range(turns) for m in (user(f"question {i}?"), reply(f"answer {i}."))]
        calls.clear()
        assert len(render_with_spans(messages, renderer(TEMPLATES[name], tokenizer)).spans) == turns
        counts.append(len(calls))
    assert counts[2] == counts[1] < 12


# --------------------------------------------------------------------------------------------- responses that count


@pytest.mark.parametrize("flag", [{"train": False}, {"training": False}, {"weight": 0}, {"weight": 0.0}])
@pytest.mark.parametrize("name", [None, "qwen3", "phi3_training", "gptoss"])
def test_a_response_that_does_not_count_has_no_span(name, flag, tokenizer):
    template = None if name is None else TEMPLATES[name]
    plain = encode(row("multi"), tokenizer, template)
    flagged = [{**m, **(flag if m["content"] == "<b>Ladoga." else {})} for m in ROWS["multi"]]
    (conversation,) = conversations({"messages": [flagged]})
    encoded = encode(conversation, tokenizer, template)
    assert encoded.input_ids == plain.input_ids
    kept = "".join(texts(encoded, tokenizer))
    assert "Onega." in kept and "Ohrid." in kept and "Ladoga" not in kept
    assert set(encoded.responses) <= set(plain.responses)


def test_scores_and_pairs_honour_what_counts(model_path):
    """Wrong words that do not count change nothing in a response's score but its context."""
    lm = CausalLM(model_path)
    wrong = [user("Which lake?"), reply("Bananas."), user("No."), reply("Onega.")]
    flagged = [wrong[0], {**wrong[1], "weight": 0}, *wrong[2:]]
    (plain,), (counted,) = (IFD(lm)({"messages": [rows]})["ifd_turns"] for rows in (wrong, flagged))
    assert counted == pytest.approx(plain[1:])
    assert user_pairs(Conversation(flagged)) == [("No.", "Onega.")]
    assert DEITA(lm)({"messages": [flagged[:2]]})["deita_reason"] == ["no user turn whose reply counts"]
    for scorer in (IFD(lm), Perplexity(lm, scope="response")):
        assert "no response counts" in scorer({"messages": [flagged[:2]]})[f"{scorer.name}_reason"][0]
    out = encode_demonstrations({"messages": [flagged[:2]]}, lm.load().tokenizer, 64, 32)
    assert out[REASON] == ["the last response does not count (train, weight)"]


def test_sharegpt_turns_carry_their_weights(tokenizer):
    turns = [
        {"from": "human", "value": "Which lake?", "weight": None},
        {"from": "gpt", "value": "Bananas.", "weight": 0},
        {"from": "human", "value": "No."},
        {"from": "gpt", "value": "Onega.", "weight": 1},
    ]
    (conversation,) = conversations({"conversations": [turns]})
    assert texts(encode(conversation, tokenizer), tokenizer) == ["Onega.<|im_end|>\n"]
    assert conversation.first_pair() == ("No.", "Onega.")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({1: {"weight": 0.5}}, r"messages\[1\].weight is 0.5"),
        ({1: {"train": "no"}}, r"messages\[1\].train is 'no'"),
        ({1: {"train": True, "weight": 0}}, "contradictory"),
        ({0: {"train": True}}, r"messages\[0\] is a user turn that asks to be trained on"),
        ({1: {"weight": 0}}, "no response counts"),
        ({1: {"function_call": {"name": "depth"}}}, "give it as tool_calls"),
    ],
)
def test_weights_that_cannot_be_honoured_are_refused(changes, reason, tokenizer):
    messages = [{**m, **changes.get(i, {})} for i, m in enumerate(ROWS["single"])]
    (conversation,) = conversations({"messages": [messages]})
    with pytest.raises(BadRow, match=reason):
        raise conversation if isinstance(conversation, BadRow) else encode(conversation, tokenizer)


# --------------------------------------------------------------------------------------------- a template of one's own

CHATML = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}OPENS{% endif %}"
)


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_template_is_given_as_text_or_as_a_file_and_identifies_the_model(model_path, tokenizer, tmp_path):
    file = tmp_path / "own.jinja"
    file.write_text(TEMPLATES["qwen3"], encoding="utf-8")
    lm, same, none = (CausalLM(model_path, chat_template=t) for t in (str(file), TEMPLATES["qwen3"], None))
    assert lm.identity() == same.identity() != none.identity()
    assert Hasher.hash(lm) == Hasher.hash(same) != Hasher.hash(none)
    file.unlink()  # the text is kept
    assert lm.fresh().load().tokenizer.chat_template == TEMPLATES["qwen3"]
    own = tokenizer.chat_template
    given = CausalLM(lm.load().model, tokenizer=tokenizer, chat_template=TEMPLATES["qwen3"])
    assert given.load().tokenizer.chat_template == TEMPLATES["qwen3"] and tokenizer.chat_template == own


def test_a_template_that_cannot_be_read_or_would_have_no_effect_is_refused(model_path):
    with pytest.raises(ValueError, match=r'chat_template is "none.jinja", which is neither a file'):
        CausalLM(model_path, chat_template="none.jinja")
    with pytest.raises(ValueError, match="not valid Jinja"):
        CausalLM(model_path, chat_template="{% if %}")
    lm = CausalLM(model_path, chat_template=TEMPLATES["qwen3"])
    uses = (
        lambda: SelectIT(lm),
        lambda: DEITA(lm),
        lambda: Perplexity(lm, text_format="tulu"),
        lambda: IFD(lm, text_format="alpaca"),
        lambda: RDSPlus(lm, text_format="tulu"),
        lambda: WarmUp(lm, text_format="tulu"),
        lambda: Length(chat_template=TEMPLATES["qwen3"]),
    )
    for use in uses:
        with pytest.raises(ValueError, match="chat_template"):
            use()


def test_what_a_generation_prompt_adds_beyond_a_finished_turn_does_not_change_ifd(model_path):
    """As DeepSeek's, which opens a thought that no finished turn has: alone, a response has the header it has."""
    batch = {"messages": [ROWS["multi"], ROWS["single"]]}
    plain, opens = (
        IFD(CausalLM(model_path, chat_template=CHATML.replace("OPENS", opening)))(batch)
        for opening in ("", "{{ '<think>\n' }}")
    )
    assert opens == plain and None not in plain["score_ifd"]


def test_score_takes_a_template_and_continues_under_that_one_alone(model_path, tmp_path, capsys):
    data = jsonl(tmp_path / "rows.jsonl", [{"messages": ROWS["multi"]}] * 3)
    templates = {}
    for name in ("qwen3", "phi3_5"):
        templates[name] = tmp_path / f"{name}.jinja"
        templates[name].write_text(TEMPLATES[name], encoding="utf-8")
    argv = [
        "score",
        "--scorer",
        "ifd",
        "--model",
        model_path,
        "--dataset",
        data,
        "--output-dir",
        str(tmp_path / "out"),
    ]
    assert main([*argv, "--chat-template", str(templates["qwen3"])]) == 0
    out = capsys.readouterr().out
    assert "Next: " in out and "Only" not in out
    assert main([*argv, "--chat-template", str(templates["qwen3"])]) == 0
    assert main([*argv, "--chat-template", str(templates["phi3_5"])]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "model.chat_template sha256" in line and len(line) < 600


def test_a_run_without_scores_fails_and_one_with_few_says_so_first(model_path, tmp_path, capsys):
    rows = [{"messages": ROWS["reasoning"]}] * 3
    template = tmp_path / "llama3.jinja"
    template.write_text(TEMPLATES["llama3"], encoding="utf-8")
    for name, more, code in (("none", [], 2), ("few", [{"messages": ROWS["single"]}], 0)):
        data = jsonl(tmp_path / f"{name}.jsonl", rows + more)
        argv = ["--model", model_path, "--chat-template", str(template), "--dataset", data]
        argv += ["--output-dir", str(tmp_path / name)]
        assert main(["score", "--scorer", "perplexity", *argv]) == code
        captured = capsys.readouterr()
        assert captured.out.startswith(
            f"{'None' if code else 'Only 1'} of {len(rows + more)} rows has a score. Reasons: 3 x"
        )
        assert ("Next:" in captured.out) == (code == 0)
        assert ("no row has a score. Reasons: 3 x the chat template does not write the reas" in captured.err) == bool(
            code
        )
        argv[-1] += "-index"
        assert main(["index", "--scorer", "rds", *argv]) == code
        assert ("Next:" in capsys.readouterr().out) == (code == 0)


def test_every_scorer_carries_what_the_template_leaves_out(model_path):
    """A note beside the score, and no score where a response is not written whole."""
    batch = {"messages": [ROWS["two reasonings"], ROWS["multi"]]}
    lm = CausalLM(model_path, chat_template=TEMPLATES["qwen3"])
    note = "the chat template leaves out the reasoning of earlier responses"
    for scorer in (IFD(lm), Perplexity(lm), Perplexity(lm, scope="response")):
        assert scorer(batch)[f"{scorer.name}_reason"] == [note, ""]
    rds = RDSPlus(lm).fit({"t": Dataset.from_dict(batch)})(batch)["rds_reason"]
    assert note in rds[0] and note not in rds[1]
    length = Length(tokenizer=model_path, chat_template=TEMPLATES["qwen3"])
    assert length(batch)["length_reason"] == [note, ""]


# -------------------------------------------------------------------------------------------- thoughts in odd places


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "glm4moe", "qwen3_training"])
@pytest.mark.parametrize(
    "message",
    [
        reply("Hm, LOST. <think>\nKarelia has it.\n</think>\n\nOnega."),
        reply("<think>Karelia has it.</think>LOST.<think>So it is.</think>Onega."),
        reply("Onega.", reasoning_content="Karelia has it.", reasoning="LOST."),
    ],
)
def test_a_piece_of_a_thought_that_is_left_out_refuses_the_row(name, message, tokenizer):
    """As words before a thought, which Qwen's and GLM's templates drop; the fields of reasoning may differ, too."""
    messages = [user("Which lake?"), message]
    assert "LOST" not in renderer(TEMPLATES[name], tokenizer).text(messages)
    with pytest.raises(BadRow, match="does not write the reasoning of a response"):
        encode(Conversation(messages), tokenizer, TEMPLATES[name])
    same = reply("Onega.", reasoning_content="Karelia has it.", reasoning="Karelia has it.")
    assert encode(Conversation([messages[0], same]), tokenizer, TEMPLATES[name]).note == ""


def test_a_response_of_reasoning_alone_is_scored(model_path):
    lm = CausalLM(model_path, chat_template=TEMPLATES["qwen3"])
    batch = {"messages": [[user("Which lake?"), reply("", reasoning_content=words)] for words in ("Karelia.", " ")]}
    for scorer in (IFD(lm), Perplexity(lm, scope="response")):
        scores = scorer(batch)
        assert scores[f"score_{scorer.name}"][0] is not None
        assert scores[f"{scorer.name}_reason"] == ["", "empty response"]


def test_methods_that_read_the_text_of_a_reply_alone_say_what_else_it_says(model_path):
    lm = CausalLM(model_path)
    replies = [
        reply("Onega.", reasoning="Karelia has it."),
        reply("Onega.", tool_calls=[CALL], reasoning_content="Hm."),
        reply("Onega.", tool_calls=[]),
        reply("", tool_calls=[CALL]),
    ]
    batch = {"messages": [[user("Which lake?"), each] for each in replies]}
    for scorer in (SelectIT(lm), DEITA(lm), IFD(lm, text_format="alpaca"), IFD(lm, text_format="plain")):
        scores = scorer(batch)
        *notes, refusal = scores[f"{scorer.name}_reason"]
        assert notes == ["read without its reasoning", "read without its reasoning and tool calls", ""]
        assert "reply is a tool call, not an answer" in refusal
        *known, none = scores[f"score_{scorer.name}"]
        assert none is None and known[0] == pytest.approx(known[2], rel=1e-6)
