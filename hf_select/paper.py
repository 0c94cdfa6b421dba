"""The paper that a method comes from. Every scorer, selector and generation method names its own; cards cite it."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """A paper on arXiv.

    Args:
        arxiv_id: e.g. 2402.04333.
        title: as arXiv has it.
        first_author: family name first, e.g. "Xia, Mengzhou".
        year: of publication.
    """

    arxiv_id: str
    title: str
    first_author: str
    year: int

    @property
    def url(self) -> str:
        """The abstract's page."""
        return f"https://arxiv.org/abs/{self.arxiv_id}"

    @property
    def family_name(self) -> str:
        """Of the first author."""
        return self.first_author.split(",")[0]

    def short(self) -> str:
        """How running text cites the paper: "Xia et al. 2024, arXiv:2402.04333"."""
        return f"{self.family_name} et al. {self.year}, arXiv:{self.arxiv_id}"

    def bibtex(self) -> str:
        """The BibTeX entry."""
        key = f"{self.family_name.lower()}{self.year}{self.arxiv_id.split('.')[0]}"
        return (
            f"@misc{{{key},\n  title = {{{self.title}}},\n  author = {{{self.first_author} and others}},\n"
            f"  year = {{{self.year}}},\n  eprint = {{{self.arxiv_id}}},\n  archivePrefix = {{arXiv}}\n}}"
        )


def bibliography(papers: Iterable[Paper]) -> str:
    """The BibTeX entries of papers, each once, in the order given."""
    return "\n\n".join(paper.bibtex() for paper in dict.fromkeys(papers))


# Papers that both a scorer and a selector implement a part of.
DEITA_PAPER = Paper(
    "2312.15685",
    "What Makes Good Data for Alignment? A Comprehensive Study of Automatic Data Selection in Instruction Tuning",
    "Liu, Wei",
    2024,
)
DSIR_PAPER = Paper(
    "2302.03169", "Data Selection for Language Models via Importance Resampling", "Xie, Sang Michael", 2023
)
RDS_PAPER = Paper("2503.01807", "Large-Scale Data Selection for Instruction Tuning", "Ivison, Hamish", 2025)
