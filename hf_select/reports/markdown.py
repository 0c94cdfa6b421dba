"""The numbers of a report as Markdown."""

from typing import Any

from hf_select.reports.sections import Section, sections


def markdown(title: str, numbers: dict[str, Any], pictures: dict[str, str]) -> str:
    """The report as one Markdown text; `pictures` is the place of each by name."""
    parts = [f"# {inline(title)}", *(section_text(part, pictures) for part in sections(numbers, list(pictures)))]
    return "\n\n".join(parts) + "\n"


def section_text(section: Section, pictures: dict[str, str], level: int = 2) -> str:
    parts = ["#" * level + f" {section.title}"]
    if section.text:
        parts.append(inline(section.text))
    parts += [table_text(*table) for table in section.tables]
    parts += [f"![{name.replace('_', ' ')}]({pictures[name]})" for name in section.pictures]
    return "\n\n".join(parts)


def table_text(header: list[str], rows: list[list[str]]) -> str:
    """A table whose cells may hold anything: what Markdown or HTML would read as a sign is written out."""
    lines = [[inline(cell) for cell in line] for line in (header, *rows)]
    lines.insert(1, ["---", *["---:"] * (len(header) - 1)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


_SIGNS = {ord(sign): f"&#{ord(sign)};" for sign in "|<>[]`*~\\!&$"}


def inline(text: str) -> str:
    """Text on one line, as it is, also inside a table."""
    return " ".join(str(text).split()).translate(_SIGNS)
