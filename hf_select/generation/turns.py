"""The user turns of a conversation, each with the messages that a model sees before it answers."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from hf_select.data.bad_rows import BadRow
from hf_select.data.chat_template import Messages
from hf_select.data.conversation import Conversation


@dataclass(frozen=True)
class Turn:
    """A turn to be answered.

    Attributes:
        conversation: its row_id.
        number: of the turn, from 1.
        of: number of turns of the conversation.
        messages: what the model sees.
        reference: the dataset's reply.
    """

    conversation: str
    number: int
    of: int
    messages: Messages
    reference: str | None

    @property
    def key(self) -> str:
        """The key of its reply: the conversation, the turn and a digest of the messages."""
        text = json.dumps(self.messages, ensure_ascii=False, sort_keys=True)
        return f"{self.conversation}/{self.number}/{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def turns(conversation: str, row: Conversation, own: list[str] | None = None) -> Iterator[Turn]:
    """The turns of a conversation, as far as their histories are known.

    A turn ends with the last user message before a reply.

    Args:
        own: the model's own replies so far, in place of the dataset's. It may grow while the turns are read.
    """
    history: Messages = []
    messages = [{"role": message["role"], "content": message["content"]} for message in row.messages]
    user_turns = [
        i
        for i, message in enumerate(messages)
        if message["role"] == "user" and (i + 1 == len(messages) or messages[i + 1]["role"] == "assistant")
    ]
    begin = 0
    for number, last in enumerate(user_turns, 1):
        history = [*history, *messages[begin : last + 1]]
        end = last + 1
        while end < len(messages) and messages[end]["role"] == "assistant":
            end += 1
        replies = messages[last + 1 : end]
        reference = replies[-1]["content"] if replies else None
        yield Turn(conversation, number, len(user_turns), history, reference)
        if own is not None and number > len(own):
            return
        history = [*history, *(replies if own is None else [{"role": "assistant", "content": own[number - 1]}])]
        begin = end


def unanswerable_reason(row: Conversation | BadRow) -> str:
    """Why the turns of a row cannot be answered; "" if they can."""
    if isinstance(row, BadRow):
        return str(row)
    if row.text is not None:
        return "raw text has no turns"
    if row.tools or any(message["role"] == "tool" or message.get("tool_calls") for message in row.messages):
        return "it calls tools"
    return "" if any(message["role"] == "user" for message in row.messages) else "it has no user turn"
