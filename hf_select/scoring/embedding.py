"""Similarity of sentence embeddings to those of example queries, the baseline of RDS+.

As in the RDS+ study (Ivison et al. 2025, arXiv:2503.01807), which finds it cheap and, at 5.8 million rows, second only
to RDS+.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from hf_select.features.sentence_embeddings import SentenceEmbeddings
from hf_select.paper import RDS_PAPER, Paper
from hf_select.scoring.dense import DenseSimilarity


@dataclass
class Embedding(DenseSimilarity):
    """Cosine similarity of a row to its nearest query, over embeddings of a sentence-transformers model.

    S[row, task] = max over queries v of the task of cos(e(row), e(instruction + v))

    Args:
        encoder: Hub id or path of a sentence-transformers model (extra `embed`), e.g.
            sentence-transformers/gtr-t5-base.
        query_instruction: text before each query, as retrieval models want it; rows get none.
        revision: branch, tag or commit on the Hub.
        device: torch device; by default the accelerator, else cpu.
        batch_size: rows that are encoded together.
    Reads: the whole conversation, in the Tulu layout.
    Adds: score_embedding, embedding_query; score_embedding_TASK for each named task; with per_query
        embedding_similarities.
    Raises: ValueError before `fit`; ImportError without the extra.
    Relations: RDSPlus compares hidden states of the model that is trained.
    Reference: Ivison et al. 2025, arXiv:2503.01807, section 3.2.
    """

    encoder: str
    query_instruction: str | None = None
    revision: str | None = None
    device: str | None = None
    batch_size: int = 32

    name: ClassVar[str] = "embedding"
    paper: ClassVar[Paper | None] = RDS_PAPER

    def __post_init__(self) -> None:
        super().__post_init__()
        self.featurizer = self._sentences = SentenceEmbeddings(
            self.encoder, self.query_instruction, self.revision, self.device, self.batch_size
        )

    def load(self, rank: int | None = None) -> None:
        """Load the models, once."""
        self._sentences.load(rank)

    def usage(self) -> dict[str, float]:
        """Tokens, counted FLOPs and seconds of the models so far."""
        return self._sentences.usage()

    def identity(self) -> dict[str, object]:
        """Everything that the scores depend on."""
        where = ("encoder", "revision", "device", "batch_size")  # they change nothing but the time
        settings = {name: value for name, value in super().identity().items() if name not in where}
        return {**settings, **self._sentences.identity()}

    def _pickled(self) -> dict[str, object]:
        return {**self.settings(), "_source": self._sentences.source}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._sentences.source = state["_source"]
