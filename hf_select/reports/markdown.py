"""Sections of a report as Markdown."""

from collections.abc import Iterable, Mapping

from hf_select.reports.sections import Section


def markdown_report(title: str, sections: Iterable[Section], pictures: Mapping[str, str], lead: str = "") -> str:
    """A report as one Markdown text; `pictures` is the path of each picture by name, `lead` stands below the title."""
    opening = [f"# {inline(title)}", *([inline(lead)] if lead else [])]
    return "\n\n".join([*opening, *(section_text(section, pictures) for section in sections)]) + "\n"


def section_text(section: Section, pictures: Mapping[str, str], level: int = 2) -> str:
    """A section as Markdown under a heading of this level."""
    parts = ["#" * level + f" {section.title}"]
    if section.text:
        parts.append(inline(section.text))
    parts += [table_text(*table) for table in section.tables]
    parts += [f"![{name.replace('_', ' ')}]({pictures[name]})" for name in section.pictures]
    return "\n\n".join(parts)


def table_text(header: list[str], rows: list[list[str]]) -> str:
    """A table as Markdown, with columns of numbers to the right.

    Cells may hold any text: characters that Markdown or HTML would interpret are escaped.
    """
    lines = [[inline(cell) for cell in line] for line in (header, *rows)]
    is_text = [any(character.isalpha() for row in rows for character in str(row[i])) for i in range(len(header))]
    lines.insert(1, ["---" if i == 0 or is_text[i] else "---:" for i in range(len(header))])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


_ESCAPED = {ord(sign): f"&#{ord(sign)};" for sign in "|<>[]`*~\\!&$"}


def inline(text: str) -> str:
    """Text on one line that Markdown and HTML show literally, also inside a table."""
    return " ".join(str(text).split()).translate(_ESCAPED)
