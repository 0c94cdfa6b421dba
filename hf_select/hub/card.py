"""The dataset card of a published selection."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_select.hub.card_parts import (
    card_header,
    citation_section,
    dataset_link,
    limitation_section,
    usage_section,
)
from hf_select.hub.records import Changes, License, Origin, Provenance, SourceRecord
from hf_select.paper import Paper
from hf_select.reports.ledger import Step
from hf_select.reports.markdown import inline, section_text, table_text
from hf_select.reports.report_numbers import SelectionNumbers
from hf_select.reports.sections import report_sections, step_table


# Sections of the report that the card repeats; the card has its own section on how rows were selected.
_SECTIONS = ("scores", "lengths", "sources", "tasks", "agreement", "unscored", "cost")


def selection_card(
    repo_id: str,
    numbers: SelectionNumbers,
    provenance: Provenance,
    *,
    layout: str,
    license: License,
    language: Sequence[str] | None,
    pictures: Mapping[str, str],
    changes: Changes | None,
    has_recipe: bool,
) -> str:
    """The card as Markdown with its YAML header. It has no date, so the same selection gives the same text.

    Args:
        numbers: the numbers of the report.
        provenance: where the rows came from.
        layout: columns of the subset's conversations: messages, prompt-completion or text.
        pictures: path of each picture in the repository, by name.
        changes: how the selection differs from the published version.
        has_recipe: whether config.yaml is a recipe that repeats the run.
    """
    source, rows = provenance.source, numbers.measured.rows
    scorers = list(dict.fromkeys(step.scorer for step in provenance.steps if step.scorer))
    selectors = ", then ".join(step["selector"] for step in numbers.steps)
    header = card_header(
        repo_id,
        rows=rows["selected"],
        license=license,
        language=language,
        sources=[source],
        tags=["data-selection", "hf_select", "sft", "trl", *scorers, *_synthetic(source.origin)],
        configs=["data", "scores"],
        base_model=[model.name for model in provenance.models if model.on_hub] or None,
    )
    revision = f" at revision `{source.revision}`" if source.revision else ""
    scored = f"scored with {', '.join(scorers)} and " if scorers else ""
    summary = (
        f"{rows['selected']:,} of the {rows['pool']:,} rows of {dataset_link(source)}{revision}, "
        f"{scored}selected by {selectors}. The column `selection_reason` says why each row was selected. The config "
        "`scores` has the scores of every row of the pool, selected or not."
    )
    sections = report_sections(numbers, list(pictures))
    parts = [
        header,
        summary,
        *([_origin_text(source.origin)] if source.origin else []),
        usage_section(repo_id, layout, has_scores=True),
        _selection_steps_section(numbers, provenance.steps),
        *(section_text(sections[name], pictures) for name in _SECTIONS if name in sections),
        *([_change_section(changes)] if changes else []),
        _reproduction_section(repo_id, source, has_recipe),
        limitation_section(_limitations(numbers)),
        citation_section(_papers(numbers, provenance.steps)),
    ]
    return "\n\n".join(parts) + "\n"


# --------------------------------------------------------------------------------------------------------------------


def _synthetic(origin: Origin | None) -> list[str]:
    return ["synthetic"] if origin is not None and origin.models else []


def _origin_text(origin: Origin) -> str:
    """How the rows of the source were generated or mixed."""
    kinds = {"glan": "synthetic (GLAN)", "responses": "model responses", "mixture": "a mixture"}
    writers = ", ".join(f"{inline(model.name)} ({inline(model.wrote or '')})" for model in origin.models)
    by = f", written by {writers}" if writers else ""
    return f"The rows of the source are {kinds[origin.kind]}{by}; `provenance.json` has the settings."


def _selection_steps_section(numbers: SelectionNumbers, steps: Sequence[Step]) -> str:
    parts = ["## How it was selected", table_text(*step_table(numbers.steps))]
    scorers = [step for step in steps if step.scorer is not None]
    if scorers:
        direction = {True: "higher", False: "lower", None: ""}
        lines = [
            [step.scorer or "", direction[step.higher_is_better], _settings_text(step.settings)] for step in scorers
        ]
        parts += ["Scorers, with their settings:", table_text(["scorer", "better", "settings"], lines)]
        versions = ", ".join(f"{name} {version}" for name, version in scorers[-1].versions.items())
        parts.append(f"Versions: {inline(versions)}.")
    return "\n\n".join(parts)


def _settings_text(settings: Mapping[str, Any]) -> str:
    flat = {**settings, **(settings["model"] if isinstance(settings.get("model"), dict) else {})}
    flat.pop("rating_prompts", None)  # long; they are in provenance.json
    return ", ".join(f"{name} {value}" for name, value in flat.items() if value is not None and value is not False)


def _change_section(changes: Changes) -> str:
    lines = [
        f"- {changes.kept:,} rows are in both, {changes.added:,} were added, {changes.removed:,} were removed.",
        *(f"- {inline(line)}" for line in changes.settings),
    ]
    return f"## Changes since the previous version (`{changes.commit[:10]}`)\n\n" + "\n".join(lines)


def _reproduction_section(repo_id: str, source: SourceRecord, has_recipe: bool) -> str:
    text = "## Reproduce\n\n"
    if has_recipe:
        text += (
            "`config.yaml` is the resolved recipe. Replace the names of local files and models by your own.\n\n"
            f"```bash\nhf download {repo_id} config.yaml --repo-type dataset --local-dir . && "
            "hf-select run config.yaml\n```\n\n"
        )
    arguments = ", ".join(f'"{name}"' for name in (source.name, source.config) if name)
    load = f'source = load_dataset({arguments}, split="{source.split}")\n'
    if not source.on_hub:
        load = f'source = ...  # the rows of "{inline(source.name)}"\n'
    return text + (
        "Select the same rows from the source, with their ranks and reasons. If the source changed, "
        "`load_selection` raises an error.\n\n```python\nfrom datasets import load_dataset\n"
        f"from hf_select import load_selection\n\n{load}"
        f'subset = load_selection("{repo_id}", dataset=source).apply(source)\n```'
    )


def _limitations(numbers: SelectionNumbers) -> list[str]:
    unscored = max((sum(reasons.values()) for reasons in numbers.measured.unscored.values()), default=0)
    return [
        "The rows were selected automatically and were not reviewed. Errors and harmful content of the source can be "
        "in the subset.",
        "The subset differs from the source in lengths, sources and topics (see above). Such differences may explain "
        "part of a score.",
        "This card does not show that training on this subset is better than training on a random subset of the same "
        "size.",
        *([f"{_rows_have(unscored)} no score and could not be selected."] if unscored else []),
    ]


def _rows_have(count: int) -> str:
    return "1 row of the pool has" if count == 1 else f"{count:,} rows of the pool have"


def _papers(numbers: SelectionNumbers, steps: Sequence[Step]) -> list[Paper]:
    """The papers of the scorers and the selectors, as they were recorded."""
    of_selectors = [Paper(**step["paper"]) for step in numbers.steps if step.get("paper")]
    return [step.paper for step in steps if step.paper is not None] + of_selectors
