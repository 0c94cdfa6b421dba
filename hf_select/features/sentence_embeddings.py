"""Sentence embeddings by any sentence-transformers model (extra `embed`).

The RDS+ study (arXiv:2503.01807) runs GTR-T5-base and NV-Embed-v2 as baselines: text in the Tulu layout without start
and end tokens, cosine similarity, an instruction before the queries only.
"""

import time
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from hf_select.data.bad_rows import BadRow
from hf_select.data.conversation import Conversation
from hf_select.extras import require
from hf_select.features._compat import embedding_dimension
from hf_select.features.featurizer import Feature, Featurizer
from hf_select.models.load_errors import checked_device, named
from hf_select.models.sources import ResolvedSource, find
from hf_select.models.usage import Usage


@dataclass
class SentenceEmbeddings(Featurizer):
    """Embeddings of whole rows, float32, not normalised. Loaded at the first call; nothing loaded is pickled.

    Args:
        model: Hub id or path of a sentence-transformers model.
        query_instruction: text before each query, as retrieval models want it; rows get none.
        revision: branch, tag or commit on the Hub.
        device: torch device; by default the accelerator, else cpu.
        batch_size: rows that are encoded together; sentence-transformers sorts them by length.
    """

    model: str
    query_instruction: str | None = None
    revision: str | None = None
    device: str | None = None
    batch_size: int = 32

    def __post_init__(self) -> None:
        self._encoder: Any = None
        self._usage = Usage()

    def usage(self) -> dict[str, float]:
        """Tokens, counted FLOPs and seconds of the model so far."""
        return vars(self._usage).copy()

    def __getstate__(self) -> dict[str, object]:
        return {**self.described(), "source": self.source}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.__post_init__()

    def identity(self) -> dict[str, object]:
        """Everything that the vectors depend on."""
        # The vectors of rows do not depend on the queries' instruction, the device or the batches.
        return {"encoder": self.source.identity, "vectors_version": self.scoring_version}

    def described(self) -> dict[str, object]:
        """The settings, for people to read."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @cached_property
    def source(self) -> ResolvedSource:
        """The commit or folder behind the name, resolved once."""
        return find(self.model, self.revision, ("modules.json", "config.json"))

    def details(self) -> dict[str, Any]:
        """What runs: the commit of the weights, their dtype and the number of dimensions."""
        encoder = self.load()
        return {
            "model": self.model,
            "commit": self.source.commit,
            "dtype": str(encoder.dtype).removeprefix("torch."),
            "dimensions": embedding_dimension(encoder),
        }

    def load(self, rank: int | None = None) -> Any:
        """Load the model, once."""
        if self._encoder is None:
            require("sentence embeddings", "sentence_transformers")
            from sentence_transformers import SentenceTransformer

            source, device = self.source, self.device and checked_device(self.device)
            with named(self.model):
                self._encoder = SentenceTransformer(source.location, revision=source.commit, device=device)
        return self._encoder

    def __call__(self, rows: list[Conversation], queries: bool = False) -> list[Feature | BadRow]:
        if not rows:
            return []
        encoder, begin = self.load(), time.perf_counter()
        texts = [tulu_text(row) for row in rows]
        prompt = self.query_instruction if queries else None
        vectors = encoder.encode(
            texts, prompt=prompt, batch_size=self.batch_size, show_progress_bar=False, convert_to_numpy=True
        )
        limit, lengths = encoder.max_seq_length, [0] * len(texts)
        if callable(getattr(encoder, "tokenizer", None)):  # not so for models of word vectors
            whole = encoder.tokenizer([(prompt or "") + text for text in texts], truncation=False, verbose=False)
            lengths = [len(ids) for ids in whole["input_ids"]]
        self._count([n if limit is None else min(n, limit) for n in lengths], time.perf_counter() - begin)
        return [
            Feature(np.asarray(vector, dtype=np.float32), f"cut to {limit} tokens" if limit and n > limit else "")
            if np.isfinite(vector).all()
            else BadRow("the embedding is not finite")
            for vector, n in zip(vectors, lengths, strict=True)
        ]

    def _count(self, lengths: list[int], seconds: float) -> None:
        """Count usage. Padding, which sentence-transformers adds, is not counted."""
        looked_up = getattr(getattr(self._encoder[0], "auto_model", None), "get_input_embeddings", lambda: None)()
        weights = sum(p.numel() for p in self._encoder.parameters())
        weights -= sum(p.numel() for p in looked_up.parameters()) if looked_up is not None else 0
        self._usage.sequences += len(lengths)
        self._usage.tokens += sum(lengths)
        self._usage.processed_tokens += sum(lengths)
        self._usage.seconds += seconds
        self._usage.flops += 2.0 * weights * sum(lengths)


def tulu_text(row: Conversation) -> str:
    """The row in the Tulu layout, without start and end tokens."""
    if row.text is not None:
        return row.text
    return "\n".join(f"<|{message['role']}|>\n{message['content'].strip()}" for message in row.messages)
