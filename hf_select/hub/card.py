"""The dataset card of a published selection: what was done, in words that a reader can check."""

from collections.abc import Sequence
from typing import Any

from hf_select.hub.citations import bibtex
from hf_select.reports.ledger import Step
from hf_select.reports.markdown import inline, section_text, table_text
from hf_select.reports.report_numbers import SelectionNumbers
from hf_select.reports.sections import report_sections, step_table


# Sections of the report that the card has, too; how the rows were selected it says itself.
_SECTIONS = ("scores", "lengths", "sources", "tasks", "agreement", "unscored", "cost")


def selection_card(
    repo_id: str,
    numbers: SelectionNumbers,
    provenance: dict[str, Any],
    *,
    layout: str,
    license: str | Sequence[str],
    language: Sequence[str] | None,
    pictures: dict[str, str],
    changes: dict[str, Any] | None,
    has_recipe: bool,
) -> str:
    """The card as Markdown under its YAML header. The same selection gives the same text: there is no date in it.

    Args:
        numbers: of the report.
        provenance: see `push.provenance_of`.
        layout: columns of the subset's conversations: messages, prompt-completion or text.
        pictures: place of each picture in the repository, by name.
        changes: what is other than in the version before, see `push.changes_since`.
        has_recipe: whether config.yaml is a recipe that repeats the run.
    """
    from huggingface_hub import DatasetCardData

    source, rows = provenance["source"], numbers.measured.rows
    steps = [Step.from_dict(step) for step in provenance["steps"]]
    scorers = list(dict.fromkeys(step.scorer for step in steps if step.scorer))
    selectors = [step["selector"] for step in numbers.steps]
    written = source.get("origin", {}).get("models")
    on_hub = source["name"] if source["on_hub"] else None
    data = DatasetCardData(
        license=license if isinstance(license, str) else list(license),
        language=list(language) if language else None,
        pretty_name=repo_id.split("/")[-1],
        size_categories=[size_category(rows["selected"])],
        task_categories=["text-generation"],
        source_datasets=[on_hub] if on_hub else None,
        base_model=[model["name"] for model in provenance["models"] if model["on_hub"]] or None,
        tags=["data-selection", "hf_select", "sft", "trl", *scorers, *(["synthetic"] if written else [])],
        configs=[
            {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}], "default": True},
            {"config_name": "scores", "data_files": [{"split": "train", "path": "scores/train-*"}]},
        ],
    )
    shown = f"[{on_hub}](https://huggingface.co/datasets/{on_hub})" if on_hub else inline(source["name"])
    revision = f" at revision `{source['revision']}`" if source.get("revision") else ""
    how = ", then ".join(selectors)
    sections = report_sections(numbers, list(pictures))
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {inline(repo_id.split('/')[-1])}",
        f"{rows['selected']:,} of the {rows['pool']:,} rows of {shown}{revision}, selected by {how}"
        + (f" on the scores {', '.join(scorers)}" if scorers else "")
        + ". Every row says in `selection_reason` why it was taken; the config `scores` has the scores of all rows of "
        "the pool, also of those that were not.",
        *_origin(source),
        usage(repo_id, layout),
        _method(numbers, steps),
        *(section_text(sections[name], pictures) for name in _SECTIONS if name in sections),
    ]
    if changes:
        parts.append(_changes(changes))
    parts += [_reproduce(repo_id, source, has_recipe), _limitations(numbers), citations([*scorers, *selectors])]
    return "\n\n".join(parts) + "\n"


def _origin(source: dict[str, Any]) -> list[str]:
    """What is known of a source that was generated or mixed."""
    origin = source.get("origin")
    if origin is None:
        return []
    names = {"glan": "synthetic (GLAN)", "responses": "replies of models", "mixture": "a mixture"}
    wrote = [f"{inline(model['name'])} ({inline(model['wrote'])})" for model in origin["models"]]
    by = f", written by {', '.join(wrote)}" if wrote else ""
    return [f"The rows of the source are {names[origin['kind']]}{by}; `provenance.json` has the settings."]


def size_category(rows: int) -> str:
    """The Hub's word for a number of rows."""
    marks = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    limit = 1000
    for place, mark in enumerate(marks):
        if rows < limit:
            return f"n<{mark}" if place == 0 else f"{marks[place - 1]}<n<{mark}"
        limit *= 10
    return f"n>{marks[-1]}"


# --------------------------------------------------------------------------------------------------------------------


def usage(repo_id: str, layout: str, scores: bool = True) -> str:
    """How to load the rows and train on them, and to load the scores if there are some."""
    reads = {
        "messages": "`messages`, which the trainer reads as they are",
        "prompt-completion": "`prompt` and `completion`; the loss is on the completion",
        "text": "`text`",
    }[layout]
    of_scores = (
        f'\nscores = load_dataset("{repo_id}", "scores", split="train")  # of the whole pool\n' if scores else ""
    )
    return f"""## Load and train

```python
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

dataset = load_dataset("{repo_id}", split="train")
trainer = SFTTrainer("Qwen/Qwen2.5-0.5B", args=SFTConfig(output_dir="sft"), train_dataset=dataset)
trainer.train()
{of_scores}```

The conversations are in {reads}."""


def _method(numbers: SelectionNumbers, steps: Sequence[Step]) -> str:
    parts = [
        "## How it was selected",
        table_text(*step_table(numbers.steps)),
    ]
    scorers = [step for step in steps if step.scorer is not None]
    if scorers:
        lines = [[step.scorer or "", _settings(step.settings)] for step in scorers]
        parts += ["Scorers, with their settings:", table_text(["scorer", "settings"], lines)]
        versions = ", ".join(f"{name} {version}" for name, version in scorers[-1].versions.items())
        parts.append(f"Versions: {inline(versions)}.")
    return "\n\n".join(parts)


def _settings(settings: dict[str, Any]) -> str:
    flat = {**settings, **(settings["model"] if isinstance(settings.get("model"), dict) else {})}
    flat.pop("rating_prompts", None)  # long; they are in provenance.json
    return ", ".join(f"{name} {value}" for name, value in flat.items() if value is not None and value is not False)


def _changes(changes: dict[str, Any]) -> str:
    lines = [
        f"- {changes['kept']:,} rows are in both, {changes['added']:,} are new, {changes['removed']:,} are gone.",
        *(f"- {inline(line)}" for line in changes["settings"]),
    ]
    before = f"## Changes since the version before (`{changes['commit'][:10]}`)"
    return "\n\n".join([before, "\n".join(lines)])


def _reproduce(repo_id: str, source: dict[str, Any], has_recipe: bool) -> str:
    text = "## Reproduce\n\n"
    if has_recipe:
        text += (
            "`config.yaml` is the resolved recipe; where it names local files or models, give yours.\n\n```bash\n"
            f"hf download {repo_id} config.yaml --repo-type dataset --local-dir . && hf-select run config.yaml\n"
            "```\n\n"
        )
    which = [f'"{name}"' for name in (source["name"], source.get("config")) if name]
    text += (
        "The same rows from the source, with ranks and reasons; a source that changed is refused:\n\n```python\n"
        "from datasets import load_dataset\nfrom hf_select import load_selection\n\n"
        + (
            f'source = load_dataset({", ".join(which)}, split="{source["split"]}")\n'
            if source["on_hub"]
            else f'source = ...  # the rows of "{inline(source["name"])}"\n'
        )
        + f'subset = load_selection("{repo_id}", dataset=source).apply(source)\n```'
    )
    return text


def _limitations(numbers: SelectionNumbers) -> str:
    unscored = max((sum(reasons.values()) for reasons in numbers.measured.unscored.values()), default=0)
    lines = [
        "- The rows were selected by a program; nobody has read them all. What is wrong or harmful in the source can "
        "be in the subset.",
        "- A selection shifts lengths, sources and topics (see above); part of what a score measures may be just "
        "that.",
        "- This card does not show that training on this subset is better than on a random one of its size: compare.",
    ]
    if unscored:
        lines.append(f"- {unscored:,} rows of the pool have no score and could not be taken.")
    return "## Limitations\n\n" + "\n".join(lines)


def citations(methods: list[str]) -> str:
    """The section of the papers behind scorers, selectors and methods of generation."""
    entries = bibtex(methods)
    made = "Made with hf_select."
    return f"## Citations\n\n{made}" + (f"\n\n```bibtex\n{entries}\n```" if entries else "")
