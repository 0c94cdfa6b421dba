"""Parts that all dataset cards share: the YAML header, and sections on loading, limitations and citations."""

from collections.abc import Iterable, Sequence
from typing import Any

from hf_select.hub.records import License, SourceRecord
from hf_select.paper import Paper, bibliography
from hf_select.reports.markdown import inline


def card_header(
    repo_id: str,
    *,
    rows: int,
    license: License,
    language: Sequence[str] | None,
    sources: Iterable[SourceRecord],
    tags: Sequence[str],
    configs: Sequence[str],
    **more: Any,
) -> str:
    """The YAML header of a card and its title.

    Args:
        rows: number of rows, for the size category.
        configs: folders of Parquet files, each a configuration; the first is the default one.
    """
    from huggingface_hub import DatasetCardData

    names = ["default", *configs[1:]]
    data = DatasetCardData(
        license=license if isinstance(license, str) else list(license),
        language=list(language) if language else None,
        pretty_name=repo_id.split("/")[-1],
        size_categories=[size_category(rows)],
        task_categories=["text-generation"],
        source_datasets=list(dict.fromkeys(source.name for source in sources if source.on_hub)) or None,
        tags=list(tags),
        configs=[
            {
                "config_name": name,
                "data_files": [{"split": "train", "path": f"{folder}/train-*"}],
                **({"default": True} if name == "default" and len(configs) > 1 else {}),
            }
            for name, folder in zip(names, configs, strict=True)
        ],
        **more,
    )
    return f"---\n{data.to_yaml()}\n---\n\n# {inline(repo_id.split('/')[-1])}"


def size_category(rows: int) -> str:
    """The Hub's size category of a number of rows."""
    marks = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    limit = 1000
    for i, mark in enumerate(marks):
        if rows < limit:
            return f"n<{mark}" if i == 0 else f"{marks[i - 1]}<n<{mark}"
        limit *= 10
    return f"n>{marks[-1]}"


def dataset_link(source: SourceRecord) -> str:
    """The name of a dataset, with a link if it is on the Hub."""
    name = inline(source.name)
    return f"[{name}](https://huggingface.co/datasets/{source.name})" if source.on_hub else name


def usage_section(repo_id: str, layout: str, has_scores: bool) -> str:
    """How to load the rows and train on them, and how to load the scores."""
    columns = {
        "messages": "`messages`, a format that the trainer reads directly",
        "prompt-completion": "`prompt` and `completion`; the loss is computed on the completion only",
        "text": "`text`",
    }[layout]
    scores = f'scores = load_dataset("{repo_id}", "scores", split="train")  # of the whole pool\n'
    return f"""## Load and train

```python
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

dataset = load_dataset("{repo_id}", split="train")
trainer = SFTTrainer("Qwen/Qwen2.5-0.5B", args=SFTConfig(output_dir="sft"), train_dataset=dataset)
trainer.train()
{scores if has_scores else ""}```

The conversations are in {columns}."""


def limitation_section(limitations: Iterable[str]) -> str:
    """The section of limitations, one sentence or two each."""
    return "## Limitations\n\n" + "\n".join(f"- {line}" for line in limitations)


def citation_section(papers: Iterable[Paper]) -> str:
    """The section that cites the papers of the methods."""
    entries = bibliography(papers)
    return "## Citations\n\nMade with hf_select." + (f"\n\n```bibtex\n{entries}\n```" if entries else "")
