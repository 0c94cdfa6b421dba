"""The papers of the methods, for the cards of what they selected or wrote."""

from collections.abc import Iterable


# arXiv number -> title, first author, year
_PAPERS = {
    "1708.00489": ("Active Learning for Convolutional Neural Networks: A Core-Set Approach", "Sener, Ozan", 2018),
    "2107.06499": ("Deduplicating Training Data Makes Language Models Better", "Lee, Katherine", 2022),
    "2302.03169": ("Data Selection for Language Models via Importance Resampling", "Xie, Sang Michael", 2023),
    "2308.12032": (
        "From Quantity to Quality: Boosting LLM Performance with Self-Guided Data Selection for Instruction Tuning",
        "Li, Ming",
        2024,
    ),
    "2312.15685": (
        "What Makes Good Data for Alignment? A Comprehensive Study of Automatic Data Selection in Instruction Tuning",
        "Liu, Wei",
        2024,
    ),
    "2402.04333": ("LESS: Selecting Influential Data for Targeted Instruction Tuning", "Xia, Mengzhou", 2024),
    "2402.04833": (
        "Long Is More for Alignment: A Simple but Tough-to-Beat Baseline for Instruction Fine-Tuning",
        "Zhao, Hao",
        2024,
    ),
    "2402.13064": (
        "Synthetic Data (Almost) from Scratch: Generalized Instruction Tuning for Language Models",
        "Li, Haoran",
        2024,
    ),
    "2402.16705": (
        "SelectIT: Selective Instruction Tuning for LLMs via Uncertainty-Aware Self-Reflection",
        "Liu, Liangxin",
        2024,
    ),
    "2405.17888": (
        "Getting More Juice Out of the SFT Data: Reward Learning from Human Demonstration Improves SFT for LLM "
        "Alignment",
        "Li, Jiaxiang",
        2024,
    ),
    "2501.18511": (
        "WILDCHAT-50M: A Deep Dive Into the Role of Synthetic Data in Post-Training",
        "Feuer, Benjamin",
        2025,
    ),
    "2503.01807": ("Large-Scale Data Selection for Instruction Tuning", "Ivison, Hamish", 2025),
}

# Scorers and generators by name and selectors by class -> their paper; those that have none are not here.
PAPER_OF = {
    "deita": "2312.15685",
    "dsir": "2302.03169",
    "embedding": "2503.01807",
    "glan": "2402.13064",
    "ifd": "2308.12032",
    "length": "2402.04833",
    "less": "2402.04333",
    "perplexity": "2503.01807",
    "rds": "2503.01807",
    "responses": "2501.18511",
    "reward": "2405.17888",
    "selectit": "2402.16705",
    "Dedup": "2107.06499",
    "FarthestFirst": "1708.00489",
    "RoundRobin": "2503.01807",
    "Sample": "2302.03169",
    "ScoreThenThreshold": "2312.15685",
}


def bibtex(methods: Iterable[str]) -> str:
    """BibTeX entries of the papers behind these scorers and selectors, each once."""
    papers = dict.fromkeys(PAPER_OF[method] for method in methods if method in PAPER_OF)
    entries = []
    for number in papers:
        title, author, year = _PAPERS[number]
        key = author.split(",")[0].lower() + str(year) + number.split(".")[0]
        entries.append(
            f"@misc{{{key},\n  title = {{{title}}},\n  author = {{{author} and others}},\n  year = {{{year}}},\n"
            f"  eprint = {{{number}}},\n  archivePrefix = {{arXiv}}\n}}"
        )
    return "\n\n".join(entries)
