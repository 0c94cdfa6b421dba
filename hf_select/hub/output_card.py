"""The dataset card of what was generated or mixed: models, sources, what was left out and why, cost, licences."""

from collections.abc import Callable, Sequence
from typing import Any

from hf_select.hub.card import citations, size_category, usage
from hf_select.reports.markdown import inline, table_text


_Table = tuple[str, list[str], list[list[str]]]  # title, header, rows


def output_card(
    repo_id: str,
    made: dict[str, Any],
    *,
    rows: int,
    names: Sequence[str],
    license: str | Sequence[str],
    language: Sequence[str] | None,
) -> str:
    """The card as Markdown under its YAML header. The same output gives the same text: there is no date in it.

    Args:
        made: kind, models, sources and record, without secrets.
        rows: in the repository.
        names: of their columns.
    """
    from huggingface_hub import DatasetCardData

    kind, record, title = made["kind"], made["record"], repo_id.split("/")[-1]
    synthetic = bool(made["models"])
    data = DatasetCardData(
        license=license if isinstance(license, str) else list(license),
        language=list(language) if language else None,
        pretty_name=title,
        size_categories=[size_category(rows)],
        task_categories=["text-generation"],
        source_datasets=list(dict.fromkeys(one["name"] for one in made["sources"] if one["on_hub"])) or None,
        tags=["hf_select", "sft", "trl", kind, *(["synthetic"] if synthetic else [])],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}],
    )
    layout = next((name for name in ("messages", "text") if name in names), "prompt-completion")
    parts = [f"---\n{data.to_yaml()}\n---", f"# {inline(title)}", _SUMMARY[kind](made, rows)]
    parts += [usage(repo_id, layout, scores=False), "## How it was made"]
    for caption, header, lines in [*_models(made), *_sources(made), *_TABLES[kind](record), *_left_out(record)]:
        parts += [f"{caption}:", table_text(header, lines)] if lines else []
    parts += [_text for _text in (_tests(record), _cost(record)) if _text]
    parts += ["Settings:", table_text(["setting", "value"], _settings(record["settings"]))]
    parts.append(f"Made with hf_select {inline(record.get('hf_select', ''))}; `provenance.json` has the whole record.")
    parts += [_licences(made, synthetic), _limitations(kind), citations([kind])]
    return "\n\n".join(parts) + "\n"


# --------------------------------------------------------------------------------------------------------------------


def _of_glan(made: dict[str, Any], rows: int) -> str:
    record, models = made["record"], dict.fromkeys(model["name"] for model in made["models"])
    return (
        f"{rows:,} synthetic questions with answers (subjects: {record['subjects']:,}, disciplines: "
        f"{record['disciplines']:,}), written by {' and '.join(map(inline, models))}: from a taxonomy over subjects "
        "and syllabi to questions (GLAN, arXiv:2402.13064). No row comes from an existing dataset. Each row says its "
        "discipline, subject, sessions and key concepts, and which models wrote it."
    )


def _of_responses(made: dict[str, Any], rows: int) -> str:
    (source,), record = made["sources"], made["record"]
    seen = {
        "reference_history": "the conversation as it is in the dataset",
        "own_history": "the model's own earlier replies",
    }[record["settings"]["history"]]
    return (
        f"{rows:,} replies of {', '.join(inline(model['name']) for model in made['models'])} to the user turns of "
        f"{record['conversations']:,} conversations of {_shown(source)}. Before a turn a model sees {seen}; the "
        "prompt of each row is what its reply was made from."
    )


def _of_mixture(made: dict[str, Any], rows: int) -> str:
    epochs = made["record"]["epochs"]
    return (
        f"{rows:,} rows of {len(made['sources']):,} sources, mixed in given amounts"
        + (f", {epochs:,} times in another order (column `epoch`)" if epochs > 1 else "")
        + ". Each row says in `source` and `source_row` where it comes from."
    )


_SUMMARY: dict[str, Callable[[dict[str, Any], int], str]] = {
    "glan": _of_glan,
    "responses": _of_responses,
    "mixture": _of_mixture,
}


def _shown(source: dict[str, Any]) -> str:
    name = inline(source["name"])
    return f"[{name}](https://huggingface.co/datasets/{source['name']})" if source["on_hub"] else name


def _models(made: dict[str, Any]) -> list[_Table]:
    lines = [
        [model["wrote"], model["name"], model["revision"] or "not on record", model["license"] or "not known"]
        for model in made["models"]
    ]
    return [("Models", ["wrote", "model", "revision", "licence of the model"], lines)]


def _sources(made: dict[str, Any]) -> list[_Table]:
    header = ["source", "dataset", "split", "revision", "licence", "rows"]
    lines = [
        [
            one.get("of", "prompts"),
            one["name"],
            "/".join(filter(None, [one.get("config"), one["split"]])),
            one.get("revision") or "not on record",
            _listed(one.get("license") or "not known"),
            f"{one['rows']:,}",
        ]
        for one in made["sources"]
    ]
    return [("Sources", header, lines)]


def _listed(value: str | list[str]) -> str:
    return value if isinstance(value, str) else ", ".join(value)


def _tables_of_glan(record: dict[str, Any]) -> list[_Table]:
    counted = ("disciplines", "subjects", "syllabi", "sessions", "questions", "pairs")
    stages = [
        [stage, *(f"{tokens[name]:,}" for name in ("requests", "read", "written"))]
        for stage, tokens in record["tokens"].items()
    ]
    return [
        ("What there is of each", ["of", "number"], [[name, f"{record[name]:,}"] for name in counted]),
        ("Stages", ["stage", "requests", "tokens read", "tokens written"], stages),
    ]


def _tables_of_responses(record: dict[str, Any]) -> list[_Table]:
    header = ["model", "replies", "refusals", "tokens read", "tokens written", "seconds"]
    lines = [
        [
            name,
            *(f"{model[of]:,}" for of in ("rows", "refused", "prompt_tokens", "completion_tokens")),
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
            "Amounts" + (", in each epoch" if record["epochs"] > 1 else ""),
            ["source", "rows", "share", "each at most", "passed over"],
            lines,
        ),
        ("Rows that are in two sources", ["sources", "rows"], overlap),
    ]


_TABLES: dict[str, Callable[[dict[str, Any]], list[_Table]]] = {
    "glan": _tables_of_glan,
    "responses": _tables_of_responses,
    "mixture": _tables_of_mixture,
}


def _left_out(record: dict[str, Any]) -> list[_Table]:
    """Why rows are not there, of whichever kind."""
    counts = {"": {**record.get("failed", {}), **record.get("removed", {}), **record.get("unreadable", {})}}
    counts |= {name: model["removed"] for name, model in record.get("models", {}).items() if "removed" in model}
    if isinstance(record.get("sources"), dict):
        counts |= {name: line.get("passed_over", {}) for name, line in record["sources"].items()}
    lines = [[of, reason, f"{count:,}"] for of, found in counts.items() for reason, count in found.items()]
    return [("Left out", ["of", "reason", "number"], lines)]


def _tests(record: dict[str, Any]) -> str:
    found = record.get("decontamination", {}).get("sets") or record.get("evaluation_sets") or {}
    if not found:
        return "No evaluation set was compared with the rows."
    n = record.get("decontamination", {}).get("n") or record["settings"]["decontaminate_n"]
    return f"No row shares a run of {n} words with {', '.join(map(inline, found))}."


def _cost(record: dict[str, Any]) -> str:
    if "tokens" not in record:
        return ""
    requests, read, written = (
        sum(stage[name] for stage in record["tokens"].values()) for name in ("requests", "read", "written")
    )
    price = f", at the given prices {record['price']:,.4g} US dollars" if "price" in record else ""
    return f"It took {requests:,} requests, {read:,} tokens read and {written:,} written{price}."


def _settings(settings: dict[str, Any]) -> list[list[str]]:
    flat = {name: value for name, value in settings.items() if name != "sources"}
    for source, own in settings.get("sources", {}).items():
        flat |= {f"{source}: {name}": value for name, value in own.items()}
    return [[name, str(value)] for name, value in flat.items() if value is not None]


def _licences(made: dict[str, Any], synthetic: bool) -> str:
    text = "## Licences\n\nThe licence above is what the publisher states for these rows."
    if synthetic:
        links = [
            f"[{inline(model['name'])}](https://huggingface.co/{model['name']})"
            if model["on_hub"]
            else inline(model["name"])
            for model in made["models"]
        ]
        text += (
            " Whether text of a model may be shared and trained on depends on the model's licence, and on the terms "
            f"of whoever runs it: {', '.join(dict.fromkeys(links))}."
        )
    if made["sources"]:
        text += " The licence of each source holds for what comes from it; see the table of sources."
    return text


def _limitations(kind: str) -> str:
    lines = {
        "glan": [
            "Nobody has checked that answers are right, or that questions have one.",
            "What the models get wrong, leave out or prefer is in the rows.",
            "The topics are those of one taxonomy.",
        ],
        "responses": [
            "Nobody has checked that replies are right. What the models get wrong or prefer is in the rows.",
            "Later user turns answered what another model had said and may not fit the reply before them.",
        ],
        "mixture": ["The rows are those of the sources: what is wrong or harmful there can be here."],
    }[kind]
    lines.append("This card does not show that training on these rows is better than on others: compare.")
    return "## Limitations\n\n" + "\n".join(f"- {line}" for line in lines)
