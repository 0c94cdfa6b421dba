"""Rows of the pool that are queries, or nearly: they make a targeted selection look better than it is.

Few queries against many rows need no sketch: the shingles of the queries stand in one table, and a row is compared
exactly with those that share any.
"""

from collections import Counter
from typing import Any, cast

from hf_select.data.bad_rows import readable_rows
from hf_select.data.conversation import Conversation, conversations
from hf_select.data.rows import readable
from hf_select.data.text import prompt_of, shingles, text_of, words_and_symbols


class QueryOverlap:
    """Finds rows that repeat a query: the same prompt up to letter case and sentence punctuation, or a whole text of
    which the share `threshold` of 5-grams of words and symbols is common (Jaccard similarity)."""

    def __init__(self, queries: list[Conversation], threshold: float = 0.8):
        self.threshold = threshold
        self.prompts = {tuple(words_and_symbols(prompt_of(row))): i for i, row in reversed(list(enumerate(queries)))}
        self.prompts.pop((), None)
        self.texts = [shingles(text_of(row)) for row in queries]
        self.queries_with: dict[tuple[str, ...], list[int]] = {}
        for i, found in enumerate(self.texts):
            for shingle in found:
                self.queries_with.setdefault(shingle, []).append(i)

    def __call__(self, row: Conversation) -> str:
        """What the row repeats, in words; empty if it repeats nothing."""
        query = self.prompts.get(tuple(words_and_symbols(prompt_of(row))))
        if query is not None:
            return f"has the prompt of query {query}"
        own = shingles(text_of(row))
        common = Counter(query for shingle in own for query in self.queries_with.get(shingle, ()))
        # The query with the most in common need not be the most similar: a short one may be, inside a long one.
        for query, count in common.most_common():
            if count / (len(own) + len(self.texts[query]) - count) >= self.threshold:
                return f"nearly repeats query {query}"
        return ""


def rows_that_repeat(dataset: Any, queries: Any) -> int:
    """How many rows of one dataset repeat a row of another."""
    repeats = QueryOverlap(readable_rows(conversations(queries[:])))
    count = 0
    for batch in readable(dataset).iter(batch_size=1000):
        count += sum(bool(repeats(row)) for row in readable_rows(conversations(cast(dict, batch))))
    return count
