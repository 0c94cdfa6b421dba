"""Find rows of the pool that repeat a query, which make a targeted selection look better than it is.

Queries are few, so no sketch is needed: a table maps each shingle to the queries that have it, and a row is compared
exactly with those that share one.
"""

from collections import Counter

from datasets import Dataset

from hf_select.data.bad_rows import readable_rows
from hf_select.data.conversation import Conversation
from hf_select.data.rows import conversations_of
from hf_select.data.text import prompt_of, shingles, text_of, words_and_symbols


class QueryOverlap:
    """Finds rows that repeat a query: by the same prompt, up to letter case and sentence punctuation, or by a Jaccard
    similarity of at least `threshold` between the 5-grams of words and symbols of the whole texts."""

    def __init__(self, queries: list[Conversation], threshold: float = 0.8):
        self.threshold = threshold
        self.prompts = {tuple(words_and_symbols(prompt_of(row))): i for i, row in reversed(list(enumerate(queries)))}
        self.prompts.pop((), None)
        self.texts = [shingles(text_of(row)) for row in queries]
        self.queries_with: dict[tuple[str, ...], list[int]] = {}
        for i, of_query in enumerate(self.texts):
            for shingle in of_query:
                self.queries_with.setdefault(shingle, []).append(i)

    def __call__(self, row: Conversation) -> str:
        """Which query the row repeats and how, as a note; "" if it repeats none."""
        query = self.prompts.get(tuple(words_and_symbols(prompt_of(row))))
        if query is not None:
            return f"has the prompt of query {query}"
        own = shingles(text_of(row))
        common = Counter(query for shingle in own for query in self.queries_with.get(shingle, ()))
        # The query with the most shingles in common need not be the most similar: a shorter one may be.
        for query, count in common.most_common():
            if count / (len(own) + len(self.texts[query]) - count) >= self.threshold:
                return f"nearly repeats query {query}"
        return ""


def rows_that_repeat(dataset: Dataset, queries: Dataset) -> int:
    """The number of rows of a dataset that repeat a row of `queries`."""
    repeats = QueryOverlap(readable_rows(conversations_of(queries)))
    return sum(isinstance(row, Conversation) and bool(repeats(row)) for row in conversations_of(dataset))
