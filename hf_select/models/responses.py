"""Rows with response tokens, as a model reads them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from hf_select.data.bad_rows import BadRow, map_rows, on_readable, readable_rows
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

    def cut_to_fit(encoded: Encoded) -> tuple[Encoded, str]:
        kept, note = cut(encoded, max_length, loaded.max_length)
        if len(predicted(kept.responses)) == 0:
            raise BadRow(f"no token of the response is left to learn{f' ({note})' if note else ''}")
        return kept, note

    return map_rows(cut_to_fit, encode_all(rows, loaded.tokenizer, template))


def with_responses(
    lm: CausalLM, rows: Sequence[Conversation | BadRow], text_format: str, max_length: int | None
) -> list[tuple[Encoded, str] | BadRow]:
    """Rows that have a response to learn, encoded, with the note of a cut; or why they are left out."""
    return on_readable(rows, lambda readable: encode_responses(lm, readable, text_format, max_length))


def tokenize_with_labels(
    lm: CausalLM, dataset: Any, text_format: str, max_length: int | None
) -> tuple[Dataset, Counter[str], Counter[str]]:
    """(rows as `input_ids` and `labels`, responses alone being learned; why rows are left out; why shortened)"""
    found = with_responses(lm, conversations(dataset[:]), text_format, max_length)
    bad = Counter(str(row) for row in found if isinstance(row, BadRow))
    whole = readable_rows(found)
    encoded, notes = [e for e, _ in whole], Counter(note for _, note in whole if note)
    labels = []
    for e in encoded:
        of_row = [-100] * len(e.input_ids)
        for start, end in e.responses:
            of_row[start:end] = e.input_ids[start:end]
        labels.append(of_row)
    return Dataset.from_dict({"input_ids": [e.input_ids for e in encoded], "labels": labels}), bad, notes
