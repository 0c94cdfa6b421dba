"""Encodes rows for models that are trained or scored on response tokens."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from hf_select.data.bad_rows import BadRow, map_rows, on_readable, readable_rows
from hf_select.data.chat_template import LESS_TEMPLATE
from hf_select.data.conversation import Conversation
from hf_select.data.encoding import Encoded, cut, encode_all
from hf_select.data.rows import conversations_of
from hf_select.models.causal_lm import CausalLM, predicted


def encode_responses(
    lm: CausalLM, rows: list[Conversation], text_format: str, max_length: int | None
) -> list[tuple[Encoded, str] | BadRow]:
    """Token ids with response spans and a note; a BadRow for a row without response tokens after truncation."""
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
    """`encode_responses` for the readable rows; each BadRow stays at its position."""
    return on_readable(rows, lambda readable: encode_responses(lm, readable, text_format, max_length))


def tokenize_with_labels(
    lm: CausalLM, dataset: Any, text_format: str, max_length: int | None
) -> tuple[Dataset, Counter[str], Counter[str]]:
    """(`input_ids` and `labels` with loss on responses only, counts of reasons for omitted rows, counts of notes)"""
    rows = with_responses(lm, list(conversations_of(dataset)), text_format, max_length)
    bad = Counter(str(row) for row in rows if isinstance(row, BadRow))
    valid = readable_rows(rows)
    encoded, notes = [e for e, _ in valid], Counter(note for _, note in valid if note)
    labels = []
    for e in encoded:
        row_labels = [-100] * len(e.input_ids)
        for start, end in e.responses:
            row_labels[start:end] = e.input_ids[start:end]
        labels.append(row_labels)
    return Dataset.from_dict({"input_ids": [e.input_ids for e in encoded], "labels": labels}), bad, notes
