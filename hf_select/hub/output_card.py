"""The dataset card of generated or mixed rows: models, sources, what was left out and why, cost, licences."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_select.hub.card_parts import (
    card_header,
    citation_section,
    dataset_link,
    limitation_section,
    usage_section,
)
from hf_select.hub.records import License, ModelRecord, SourceRecord
from hf_select.paper import Paper
from hf_select.reports.markdown import inline, table_text


_Table = tuple[str, list[str], list[list[str]]]  # title, header, rows


@dataclass(frozen=True)
class OutputRecord:
    """What is published about an output.

    Args:
        kind: kind of run: glan, responses or mixture.
        models: the models that wrote the rows.
        sources: the datasets behind the rows.
        record: the record that the run wrote, as JSON.
    """

    kind: str
    models: list[ModelRecord]
    sources: list[SourceRecord]
    record: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON."""
        return {
            "kind": self.kind,
            "models": [model.to_dict() for model in self.models],
            "sources": [source.to_dict() for source in self.sources],
            "record": self.record,
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "OutputRecord":
        """The record that `to_dict` returned."""
        return cls(
            kind=value["kind"],
            models=[ModelRecord.from_dict(model) for model in value["models"]],
            sources=[SourceRecord.from_dict(source) for source in value["sources"]],
            record=value["record"],
        )


def output_card(
    repo_id: str,
    output: OutputRecord,
    *,
    rows: int,
    names: Sequence[str],
    license: License,
    language: Sequence[str] | None,
) -> str:
    """The card as Markdown with its YAML header. It has no date, so the same output gives the same text.

    Args:
        output: the output's record, without secrets.
        rows: number of rows in the repository.
        names: names of their columns.
    """
    kind, record = output.kind, output.record
    header = card_header(
        repo_id,
        rows=rows,
        license=license,
        language=language,
        sources=output.sources,
        tags=["hf_select", "sft", "trl", kind, *(["synthetic"] if output.models else [])],
        configs=["data"],
    )
    layout = next((name for name in ("messages", "text") if name in names), "prompt-completion")
    parts = [header, _SUMMARY[kind](output, rows), usage_section(repo_id, layout, has_scores=False)]
    parts.append("## How it was made")
    tables = [_model_table(output), _source_table(output), *_TABLES[kind](record), _table_of_left_out(record)]
    for caption, columns, lines in tables:
        parts += [f"{caption}:", table_text(columns, lines)] if lines else []
    parts += [text for text in (_evaluation_overlap(record), _cost_text(record)) if text]
    parts += ["Settings:", table_text(["setting", "value"], _setting_rows(record["settings"]))]
    parts.append(f"Made with hf_select {inline(record.get('hf_select', ''))}; `provenance.json` has the full record.")
    paper = Paper(**record["paper"]) if record.get("paper") else None
    parts += [
        _license_section(output),
        limitation_section(_LIMITATIONS[kind]),
        citation_section([paper] if paper else []),
    ]
    return "\n\n".join(parts) + "\n"


# --------------------------------------------------------------------------------------------------------------------


def _glan_summary(output: OutputRecord, rows: int) -> str:
    record, models = output.record, dict.fromkeys(model.name for model in output.models)
    return (
        f"{rows:,} synthetic questions with answers (subjects: {record['subjects']:,}, disciplines: "
        f"{record['disciplines']:,}), written by {' and '.join(map(inline, models))}. They were generated from a "
        "taxonomy of disciplines, by way of subjects and syllabi (GLAN, arXiv:2402.13064). No row comes from an "
        "existing dataset. Each row has its discipline, subject, class sessions and key concepts, and the models that "
        "wrote it."
    )


def _responses_summary(output: OutputRecord, rows: int) -> str:
    (source,), record = output.sources, output.record
    history = {
        "reference_history": "the conversation as it is in the dataset",
        "own_history": "the model's own earlier replies",
    }[record["settings"]["history"]]
    return (
        f"{rows:,} replies of {', '.join(inline(model.name) for model in output.models)} to the user turns of "
        f"{record['conversations']:,} conversations of {dataset_link(source)}. Before each turn a model sees "
        f"{history}. The prompt of a row is the text that the model replied to."
    )


def _mixture_summary(output: OutputRecord, rows: int) -> str:
    epochs = output.record["epochs"]
    repeated = f", repeated for {epochs:,} epochs, each in another order (column `epoch`)" if epochs > 1 else ""
    return (
        f"{rows:,} rows of {len(output.sources):,} sources, mixed in given amounts{repeated}. The columns `source` "
        "and `source_row` say where each row comes from."
    )


_SUMMARY: dict[str, Callable[[OutputRecord, int], str]] = {
    "glan": _glan_summary,
    "responses": _responses_summary,
    "mixture": _mixture_summary,
}


def _model_table(output: OutputRecord) -> _Table:
    lines = [
        [model.wrote or "", model.name, model.revision or "not on record", _listed(model.license)]
        for model in output.models
    ]
    return "Models", ["wrote", "model", "revision", "licence of the model"], lines


def _source_table(output: OutputRecord) -> _Table:
    header = ["source", "dataset", "split", "revision", "licence", "rows"]
    lines = [
        [
            source.of or "prompts",
            source.name,
            "/".join(filter(None, [source.config, source.split])),
            source.revision or "not on record",
            _listed(source.license),
            f"{source.rows:,}",
        ]
        for source in output.sources
    ]
    return "Sources", header, lines


def _listed(license: License | None) -> str:
    return license if isinstance(license, str) else ", ".join(license or ["not known"])


def _tables_of_glan(record: dict[str, Any]) -> list[_Table]:
    counted = ("disciplines", "subjects", "syllabi", "sessions", "questions", "pairs")
    stages = [
        [stage, *(f"{tokens[name]:,}" for name in ("requests", "read", "written"))]
        for stage, tokens in record["tokens"].items()
    ]
    return [
        ("Numbers of each kind", ["kind", "number"], [[name, f"{record[name]:,}"] for name in counted]),
        ("Stages", ["stage", "requests", "tokens read", "tokens written"], stages),
    ]


def _tables_of_responses(record: dict[str, Any]) -> list[_Table]:
    header = ["model", "replies", "refusals", "tokens read", "tokens written", "seconds"]
    lines = [
        [
            name,
            *(f"{model[count]:,}" for count in ("rows", "refused", "prompt_tokens", "completion_tokens")),
            f"{model['throughput']['seconds']:,.1f}",
        ]
        for name, model in record["models"].items()
    ]
    return [("Replies", header, lines)]


def _tables_of_mixture(record: dict[str, Any]) -> list[_Table]:
    lines = [
        [
            name,
            f"{line['rows']:,}",
            f"{line['share']:.1%}",
            f"{line['each_at_most']} times" if "each_at_most" in line else "once",
            f"{sum(line.get('passed_over', {}).values()):,}",
        ]
        for name, line in record["sources"].items()
    ]
    overlap = [[names, f"{count:,}"] for names, count in record.get("overlap", {}).items()]
    return [
        (
            "Amounts" + (" in each epoch" if record["epochs"] > 1 else ""),
            ["source", "rows", "share", "uses of a row, at most", "skipped"],
            lines,
        ),
        ("Rows that occur in two sources", ["sources", "rows"], overlap),
    ]


_TABLES: dict[str, Callable[[dict[str, Any]], list[_Table]]] = {
    "glan": _tables_of_glan,
    "responses": _tables_of_responses,
    "mixture": _tables_of_mixture,
}


def _table_of_left_out(record: Mapping[str, Any]) -> _Table:
    """Why rows were left out, for any kind of run."""
    counts = {"": {**record.get("failed", {}), **record.get("removed", {}), **record.get("unreadable", {})}}
    if isinstance(record.get("sources"), dict):  # a mixture
        counts |= {name: line.get("passed_over", {}) for name, line in record["sources"].items()}
    elif isinstance(record.get("models"), dict):
        counts |= {name: model["removed"] for name, model in record["models"].items() if "removed" in model}
    lines = [[of, reason, f"{count:,}"] for of, reasons in counts.items() for reason, count in reasons.items()]
    return "Left out", ["of", "reason", "number"], lines


def _evaluation_overlap(record: Mapping[str, Any]) -> str:
    sets = record.get("decontamination", {}).get("sets") or record.get("evaluation_sets") or {}
    if not sets:
        return "The rows were not compared with any evaluation set."
    n = record.get("decontamination", {}).get("n") or record["settings"]["decontaminate_n"]
    return f"No row has a sequence of {n} words in common with {', '.join(map(inline, sets))}."


def _cost_text(record: Mapping[str, Any]) -> str:
    if "tokens" not in record:
        return ""
    requests, read, written = (
        sum(stage[name] for stage in record["tokens"].values()) for name in ("requests", "read", "written")
    )
    price = f", {record['price']:,.4g} US dollars at the given prices" if "price" in record else ""
    return f"It took {requests:,} requests, {read:,} tokens read and {written:,} tokens written{price}."


def _setting_rows(settings: Mapping[str, Any]) -> list[list[str]]:
    flat = {name: value for name, value in settings.items() if name != "sources"}
    for source, own in settings.get("sources", {}).items():
        flat |= {f"{source}: {name}": value for name, value in own.items()}
    return [[name, str(value)] for name, value in flat.items() if value is not None]


def _license_section(output: OutputRecord) -> str:
    text = "## Licences\n\nThe publisher of these rows states the licence above."
    if output.models:
        links = [
            f"[{inline(model.name)}](https://huggingface.co/{model.name})" if model.on_hub else inline(model.name)
            for model in output.models
        ]
        text += (
            " Whether text written by a model may be shared and trained on depends on the model's licence and on the "
            f"terms of its provider: {', '.join(dict.fromkeys(links))}."
        )
    if output.sources:
        text += " Rows that come from a source are also under the licence of that source; see the table of sources."
    return text


_NOT_COMPARED = "This card does not show that training on these rows is better than training on other rows."
_LIMITATIONS = {
    "glan": [
        "Nobody has checked that the answers are right, or that each question has an answer.",
        "The rows have the errors, gaps and preferences of the models that wrote them.",
        "The topics are those of one taxonomy.",
        _NOT_COMPARED,
    ],
    "responses": [
        "Nobody has checked that the replies are right. They have the errors and preferences of the models.",
        "Later user turns were written in reply to another model and may not fit the reply before them.",
        _NOT_COMPARED,
    ],
    "mixture": [
        "The rows are those of the sources, with any errors and harmful content that they have.",
        _NOT_COMPARED,
    ],
}
