"""Rows of every layout -> one conversation; response spans from the template, never from a search."""

import json
import re

import pytest

from hf_select.data.bad_rows import BadRow
from hf_select.data.chat_template import FALLBACK_TEMPLATE
from hf_select.data.conversation import Conversation, conversations, layout
from hf_select.data.encoding import encode, encode_all
from hf_select.data.exact_json import columns_of
from hf_select.data.loading import read_dataset


CHATML_MARKED = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
USER, REPLY = {"role": "user", "content": "Name a tool."}, {"role": "assistant", "content": "A saw."}


def one(**row):
    (conversation,) = conversations({name: [value] for name, value in row.items()})
    return conversation


# ---------------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, REPLY]},
        {"messages": json.dumps([USER, REPLY])},
        {"prompt": "Name a tool.", "completion": "A saw."},
        {"prompt": [USER], "completion": [REPLY]},
        {"prompt": json.dumps([USER]), "completion": json.dumps([REPLY])},
        {"messages": [USER, REPLY], "chat_template_kwargs": {"enable_thinking": None}},
        {"instruction": "Name a tool.", "input": "", "output": "A saw."},
        {"instruction": "Name a tool.", "input": None, "output": "A saw."},
        {"instruction": "Name a tool.", "output": "A saw."},
        {"conversations": [{"from": "human", "value": "Name a tool."}, {"from": "gpt", "value": "A saw."}]},
        {"conversations": [USER, REPLY]},
        {"conversations": json.dumps([USER, REPLY])},
        {
            "messages": [
                {**USER, "tool_calls": None},
                {"role": "assistant", "content": [{"type": "text", "text": "A saw."}]},
            ]
        },
    ],
)
def test_every_layout_gives_the_same_conversation(row):
    assert one(**row) == Conversation([USER, REPLY])


def test_alpaca_history_and_system_come_before_the_instruction():
    row = {"instruction": "And now?", "input": "Rain.", "output": "Wet.", "system": "Be brief."}
    earlier = [["Name a tool.", "A saw."], ["Another?", "An axe."]]
    for history in (earlier, json.dumps(earlier)):
        found = one(**row, history=history)
        assert [(m["role"], m["content"]) for m in found.messages] == [
            ("system", "Be brief."),
            *(("user", "Name a tool."), ("assistant", "A saw."), ("user", "Another?"), ("assistant", "An axe.")),
            *(("user", "And now?\n\nRain."), ("assistant", "Wet.")),
        ]
        assert found.first_pair() == ("Name a tool.", "A saw.") and found.alpaca_input == ""
    for history in ([], None, ""):
        assert one(**{**row, "system": None}, history=history) == one(
            instruction="And now?", input="Rain.", output="Wet."
        )


@pytest.mark.parametrize("history", [["Name a tool."], [["a", "b", "c"]], "Name a tool.", [["a", None]], {"a": "b"}])
def test_a_history_of_another_shape_is_refused(history):
    assert isinstance(one(instruction="And now?", output="Wet.", history=history), BadRow)


def test_a_system_column_that_repeats_the_first_turn_is_no_second_one():
    system = {"role": "system", "content": "Be brief."}
    assert one(conversations=[system, USER, REPLY], system="Be brief.").messages == [system, USER, REPLY]
    assert one(conversations=[USER, REPLY], system="Be brief.").messages == [system, USER, REPLY]
    found = one(conversations=[system, USER, REPLY], system="Be long.")
    assert isinstance(found, BadRow) and "two different system turns" in str(found)


def test_alpaca_input_follows_a_blank_line():
    assert one(instruction="Sum up.", input="Rain.", output="Wet.").messages[0]["content"] == "Sum up.\n\nRain."


def test_sharegpt_tool_turns_become_tool_calls():
    call = {"name": "find", "arguments": {"q": "x"}}
    row = one(
        conversations=[
            {"from": "human", "value": "Find x."},
            {"from": "function_call", "value": json.dumps(call)},
            {"from": "observation", "value": "found"},
            {"from": "gpt", "value": "Here."},
        ],
        tools=json.dumps([{"name": "find"}]),
        system="Be brief.",
    )
    assert [m["role"] for m in row.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert row.messages[2]["tool_calls"] == [{"type": "function", "function": call}]
    assert row.tools == [{"name": "find"}]


def test_plain_text_has_no_roles():
    assert one(text="Once upon a time.") == Conversation([], text="Once upon a time.")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": []}, "empty"),
        ({"messages": None}, "empty or not a list"),
        ({"messages": ["hello"]}, "has no role"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, 'unknown role "narrator"'),
        ({"messages": [{"role": "user", "content": None}]}, r"messages\[0\].content is null"),
        ({"messages": [{"role": "user", "content": 3}]}, "int, not text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "other than text"),
        ({"prompt": None, "completion": "x"}, "prompt is null"),
        ({"prompt": "x", "completion": 5}, "completion is int"),
        ({"prompt": "x", "completion": ["y"]}, "list, not text"),
        ({"instruction": "x", "input": 7, "output": "y"}, "input is int"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, 'unknown role "alien"'),
        ({"conversations": [{"from": ["human"], "value": "x"}]}, "unknown role"),
        ({"conversations": [{"from": {"name": "human"}, "value": "x"}]}, "unknown role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "unknown role"),
        ({"conversations": [{"from": "human"}]}, "no from and value"),
        ({"conversations": [{"from": "function_call", "value": "{"}]}, "not valid JSON"),
        ({"conversations": [{"from": "function_call", "value": "[1]"}]}, r"tool_calls\[0\] is not a call"),
        ({"messages": [USER, {**REPLY, "tool_calls": "look"}]}, r"messages\[1\].tool_calls is str, not a list"),
        ({"messages": [USER, {**REPLY, "tool_calls": ["look"]}]}, r"tool_calls\[0\] is not a call"),
        ({"messages": [USER, {**REPLY, "tool_calls": [{"function": "look"}]}]}, r"tool_calls\[0\] is not a call"),
        ({"messages": [USER, {**REPLY, "tool_calls": [{"id": "a"}]}]}, r"tool_calls\[0\] is not a call"),
        ({"messages": [USER, REPLY], "tools": "{"}, "tools is not valid JSON"),
        ({"text": None}, "text is null"),
        ({"messages": [USER, REPLY], "chat_template_kwargs": {"enable_thinking": False}}, "which only TRL's trainers"),
    ],
)
def test_a_broken_row_says_why_and_leaves_its_neighbour_alone(row, reason):
    found = one(**row)
    assert isinstance(found, BadRow)
    with pytest.raises(BadRow, match=reason):
        raise found
    whole = {"messages": [USER, REPLY]}
    name = next(iter(row))
    if name == "messages":
        assert conversations({"messages": [row["messages"], whole["messages"]]})[1] == Conversation([USER, REPLY])


def test_columns_that_fit_no_layout_are_listed_with_the_cure():
    with pytest.raises(ValueError, match=r"\['question', 'answer'\].*rename_columns.*--rename"):
        layout(["question", "answer"])


# ------------------------------------------------------------------------------------------------------------ spans


def spans(encoded, tokenizer):
    return [tokenizer.decode(encoded.input_ids[a:b]) for a, b in encoded.responses]


def test_a_response_opens_after_the_generation_prompt_and_holds_its_end_mark(tokenizer):
    encoded = encode(Conversation([{"role": "system", "content": "A saw."}, USER, REPLY, USER, REPLY]), tokenizer)
    assert spans(encoded, tokenizer) == ["A saw.<|im_end|>\n"] * 2
    rendered = tokenizer.apply_chat_template(
        [{"role": "system", "content": "A saw."}, USER, REPLY, USER, REPLY], tokenize=True, return_dict=True
    )
    assert encoded.input_ids == rendered["input_ids"]


def test_generation_marks_agree_with_prefixes(tokenizer):
    conversation = Conversation([USER, REPLY, USER, REPLY])
    marked = encode(conversation, tokenizer, CHATML_MARKED)
    plain = encode(conversation, tokenizer)
    assert marked.input_ids == plain.input_ids
    assert spans(marked, tokenizer) == ["A saw.<|im_end|>"] * 2  # the line break after it is outside the marks
    assert [a for a, _ in marked.responses] == [a for a, _ in plain.responses]


def test_a_response_that_repeats_its_prompt_is_still_placed(tokenizer):
    """A substring search would find the prompt first."""
    echo = Conversation([USER, {"role": "assistant", "content": USER["content"]}])
    encoded = encode(echo, tokenizer)
    (start, end) = encoded.responses[0]
    assert spans(encoded, tokenizer) == [USER["content"] + "<|im_end|>\n"]
    assert end == len(encoded.input_ids) and start > end // 2


def test_empty_and_leading_responses(tokenizer):
    encoded = encode(Conversation([USER, {"role": "assistant", "content": ""}]), tokenizer)
    assert spans(encoded, tokenizer) == ["<|im_end|>\n"]


@pytest.mark.parametrize("default_system", ["", "You are helpful."])
def test_a_conversation_that_opens_with_the_assistant(tokenizer, default_system):
    """What the template writes before the first turn, such as a system text of its own, is no response."""
    template = f"{{{{ '<|im_start|>system\\n{default_system}<|im_end|>\\n' }}}}" + tokenizer.chat_template
    encoded = encode(Conversation([REPLY, USER, REPLY]), tokenizer, template)
    assert spans(encoded, tokenizer) == ["A saw.<|im_end|>\n"] * 2


def test_token_ids_without_spans_need_no_placeable_response(tokenizer):
    template = (
        "{% for m in messages %}[{{ m['role'] }}]{% if m['role'] == 'assistant' and loop.last %}<think>{% endif %}"
        "{{ m['content'] }}{% endfor %}"
    )
    (encoded,) = encode_all([Conversation([USER, REPLY, USER, REPLY])], tokenizer, template, responses=False)
    assert "<think>A saw." in tokenizer.decode(encoded.input_ids) and encoded.responses == []


def test_a_tokenizer_with_a_template_for_tools(tokenizer, monkeypatch):
    plain = tokenizer.chat_template
    monkeypatch.setattr(tokenizer, "chat_template", {"default": plain, "tool_use": "TOOLS" + plain})
    tool = {"name": "find", "description": "", "parameters": {"type": "object", "properties": {}}}
    texts = [
        tokenizer.decode(encode(Conversation([USER, REPLY], tools=tools), tokenizer).input_ids)
        for tools in (None, [tool])
    ]
    assert texts[0].startswith("<|begin|>") and texts[1].startswith("TOOLS")


def test_keys_that_arrow_filled_in_are_dropped_at_any_depth():
    """`Dataset.from_list` gives every struct the keys of all rows."""
    call = {"type": "function", "function": {"name": "f", "arguments": {"city": "x", "q": None}}}
    reply = {"role": "assistant", "content": None, "tool_calls": [call]}
    row = one(
        messages=[{"role": "user", "content": "a", "tool_calls": None}, reply],
        tools=[{"name": "f", "parameters": {"city": {"type": "string"}, "q": None}}],
    )
    assert row.messages[1]["tool_calls"][0]["function"]["arguments"] == {"city": "x"}
    assert row.tools == [{"name": "f", "parameters": {"city": {"type": "string"}}}]


@pytest.mark.parametrize(("prompt", "completion"), [("[1]", "[2]"), ("[]", "[]"), ('[{"role": "user"}]', "A saw.")])
def test_text_that_is_not_all_messages_stays_text(prompt, completion):
    assert [message["content"] for message in one(prompt=prompt, completion=completion).messages] == [
        prompt,
        completion,
    ]


def test_nulls_that_an_author_wrote_stay_and_those_of_arrow_go(tmp_path):
    """Arguments as text and as objects are one call, in `map` as in a pass over the table that `score` makes."""

    def row(as_text, **arguments):
        function = {"name": "find", "arguments": json.dumps(arguments) if as_text else arguments}
        schema = {"type": "object", "properties": {"unit": {"default": None}}}
        tools = [{"type": "function", "function": {"name": "find", "parameters": schema}}]
        call = {"type": "function", "function": function}
        messages = [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]
        return {"messages": messages, "tools": json.dumps(tools) if as_text else tools}

    asked = [{"lake": "Inari", "unit": None}, {"depth": 7}]
    for as_text, name in ((True, "text"), (False, "objects")):
        lines = [json.dumps(row(as_text, **arguments)) for arguments in asked]
        lines.append(json.dumps({"messages": [USER, {**REPLY, "train": True}], "tools": None}))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    found = []
    for name in ("text", "objects"):
        dataset = read_dataset(str(tmp_path / f"{name}.jsonl"))
        found.append(conversations(columns_of(dataset.with_format("arrow")[:], dataset.features)))
        seen = []
        dataset.map(lambda batch, seen=seen: seen.append(conversations(batch)) or {}, batched=True)
        found += seen[-1:]
    calls = [[row.messages[1]["tool_calls"][0]["function"]["arguments"] for row in rows[:2]] for rows in found]
    assert [[json.loads(each) for each in some] for some in calls[:2]] == calls[2:] == [asked] * 2
    for rows in found:
        assert rows[0].tools[0]["function"]["parameters"]["properties"] == {"unit": {"default": None}}
        assert rows[2] == Conversation([USER, {**REPLY, "train": True}])


def test_a_base_model_without_template_gets_the_documented_one(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    encoded = encode(Conversation([{"role": "user", "content": "  Name a tool. "}, REPLY]), tokenizer)
    assert tokenizer.decode(encoded.input_ids) == "<|begin|><|user|>\nName a tool.\n<|assistant|>\nA saw.<|end|>"
    assert spans(encoded, tokenizer) == ["A saw.<|end|>"]
    assert encode(Conversation([USER, REPLY]), tokenizer, FALLBACK_TEMPLATE).responses == encoded.responses


def test_messages_that_are_text_but_not_json_give_the_reason():
    assert str(one(messages="Name a tool.")) == "messages is not valid JSON"
    assert "not a list" in str(one(messages='{"role": "user"}'))


def test_text_is_all_response_but_its_start_token(tokenizer):
    encoded = encode(Conversation([], text="Once upon a time."), tokenizer)
    assert encoded.input_ids[0] == tokenizer.bos_token_id
    assert encoded.responses == [(1, len(encoded.input_ids))]


def test_system_text_opens_the_first_user_turn_where_the_template_has_no_system_role(tokenizer):
    template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + ("[{{ m['role'] }}]{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}")
    )
    encoded = encode(Conversation([{"role": "system", "content": "Be brief."}, USER, REPLY]), tokenizer, template)
    assert tokenizer.decode(encoded.input_ids) == "[user]Be brief.\n\nName a tool.[assistant]A saw."
    assert spans(encoded, tokenizer) == ["A saw."]
    with pytest.raises(BadRow, match="no system role"):
        encode(Conversation([USER, {"role": "system", "content": "Late."}, REPLY]), tokenizer, template)


def test_a_template_that_rewrites_earlier_turns_places_them_as_they_are_written(tokenizer):
    """As Qwen3's does, which opens a thought in the last turn alone."""
    template = (
        "{% for m in messages %}[{{ m['role'] }}]{% if m['role'] == 'assistant' and loop.last %}<think>{% endif %}"
        "{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert spans(encode(Conversation([USER, REPLY]), tokenizer, template), tokenizer) == ["<think>A saw."]
    twice = encode(Conversation([USER, REPLY, USER, REPLY]), tokenizer, template)
    assert spans(twice, tokenizer) == ["A saw.", "<think>A saw."]


def test_a_response_that_stands_in_two_places_is_refused(tokenizer):
    template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% else %}{{ messages[1]['content'] }}{% endif %}"
    )
    with pytest.raises(BadRow, match="a response cannot be located in the rendered chat template"):
        encode(Conversation([USER, REPLY, USER, REPLY]), tokenizer, template)


def test_tools_reach_the_template(tokenizer):
    template = (
        "{% if tools %}{{ tools[0]['name'] }}{% endif %}"
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    tool = {"name": "find", "description": "", "parameters": {"type": "object", "properties": {}}}
    encoded = encode(Conversation([USER, REPLY], tools=[tool]), tokenizer, template)
    assert tokenizer.decode(encoded.input_ids).startswith("find[user]")
    assert spans(encoded, tokenizer) == ["A saw."]


HALF = json.loads('"cut off \\ud83d"')


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "Which lake?", "output": "Onega.", "history": 7}, "history is not a list of"),
        ({"prompt": [USER], "completion": "Onega."}, "prompt is list, not text; give prompt and completion both"),
        ({"prompt": [USER], "completion": None}, "completion is null"),
        ({"messages": [USER, REPLY], "tools": ["depth"]}, r"tools\[0\] is str, not an object"),
        ({"messages": [USER, {**REPLY, "reasoning": ["Hm."]}]}, r"messages\[1\].reasoning is list, not text"),
        ({"messages": [{**USER, "name": 7}, REPLY]}, r"messages\[0\].name is int, not text"),
        ({"messages": [USER, {**REPLY, "content": HALF}]}, r"unpaired surrogate \(\\ud83d\)"),
        ({"messages": json.dumps([USER, {**REPLY, "content": HALF}])}, "unpaired surrogate"),
        ({"text": HALF}, "unpaired surrogate"),
    ],
)
def test_a_row_that_cannot_be_read_has_a_reason(row, reason):
    found = one(**row)
    assert isinstance(found, BadRow) and re.search(reason, str(found))


def test_half_a_character_within_the_arguments_of_a_call_gives_a_reason(tokenizer):
    call = {"function": {"name": "depth", "arguments": '{"lake": "\\ud83d"}'}}
    bad = Conversation([USER, {**REPLY, "tool_calls": [call]}])
    refused, encoded = encode_all([bad, Conversation([USER, REPLY])], tokenizer, FALLBACK_TEMPLATE)
    assert "unpaired surrogate" in str(refused) and not isinstance(encoded, BadRow)


def test_sharegpt_turns_keep_their_reasoning():
    turns = [{"from": "human", "value": "Which lake?"}, {"from": "gpt", "value": "Onega.", "reasoning": "Karelia."}]
    row = one(conversations=turns)
    assert isinstance(row, Conversation)
    assert row.messages[1] == {"role": "assistant", "content": "Onega.", "reasoning": "Karelia."}
