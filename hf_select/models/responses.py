"""Rows with response tokens, as a model reads them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from hf_select.data.bad_rows import BadRow
from hf_select.data.chat_template import LESS_TEMPLATE
from hf_select.data.conversation import Conversation, conversations
from hf_select.data.encoding import Encoded, cut, encode_all
from hf_select.models.causal_lm import CausalLM, predicted


def encode_responses(
    lm: CausalLM, rows: list[Conversation], text_format: str, max_length: int | None
) -> list[tuple[Encoded, str] | BadRow]:
    """Token ids with response spans and the note of a cut, or why a row has nothing to learn from."""
    loaded = lm.load()
    template = LESS_TEMPLATE if text_format == "tulu" else None
    found: list[tuple[Encoded, str] | BadRow] = []
    for encoded in encode_all(rows, loaded.tokenizer, template):
        try:
            if isinstance(encoded, BadRow):
                raise encoded
            kept, note = cut(encoded, max_length, loaded.max_length)
            if len(predicted(kept.responses)) == 0:
                raise BadRow(f"no token of the response is left to learn{f' ({note})' if note else ''}")
            found.append((kept, note))
        except BadRow as reason:
            found.append(reason)
    return found


def with_responses(
    lm: CausalLM, rows: Sequence[Conversation | BadRow], text_format: str, max_length: int | None
) -> list[tuple[Encoded, str] | BadRow]:
    """Rows that have a response to learn, encoded, with the note of a cut; or why they are left out."""
    found = iter(encode_responses(lm, [row for row in rows if isinstance(row, Conversation)], text_format, max_length))
    return [row if isinstance(row, BadRow) else next(found) for row in rows]


def labelled(
    lm: CausalLM, dataset: Any, text_format: str, max_length: int | None
) -> tuple[Dataset, Counter[str], Counter[str]]:
    """(rows as `input_ids` and `labels`, responses alone being learned; why rows are left out; why shortened)"""
    found = with_responses(lm, conversations(dataset[:]), text_format, max_length)
    bad = Counter(str(row) for row in found if isinstance(row, BadRow))
    whole = [row for row in found if not isinstance(row, BadRow)]
    encoded, notes = [e for e, _ in whole], Counter(note for _, note in whole if note)
    labels = []
    for e in encoded:
        of_row = [-100] * len(e.input_ids)
        for start, end in e.responses:
            of_row[start:end] = e.input_ids[start:end]
        labels.append(of_row)
    return Dataset.from_dict({"input_ids": [e.input_ids for e in encoded], "labels": labels}), bad, notes
