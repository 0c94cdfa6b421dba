"""A report as one HTML file that needs no network: styles, script, pictures and rows are inside.

Rows come from anywhere and are never markup. What Python writes into the page is escaped by Jinja; rows travel as
compressed JSON in base64, whose letters cannot end a script element, and the page shows them by `textContent` alone. A
content security policy forbids every script but the page's own, by its hash.
"""

import base64
import hashlib
import json
import zlib
from collections import Counter
from functools import cache
from importlib import resources
from typing import Any

from hf_select._version import __version__
from hf_select.reports.rows import Table
from hf_select.reports.sections import Section, sections


_BLOCK_ROWS = 250  # rows whose texts are unpacked together when one of them is opened
_OPENING = 110  # characters of a row that the table shows
_EXAMPLES = 300  # rows of each group, the first, that are cut last
# Characters kept of an example and of any other row: what is tried in turn until the page is small enough.
_CUTS = [(None, None), *((20_000, most) for most in (20_000, 8_000, 4_000, 2_000, 1_200, 800, 500, 300, 150, 0))]
_CUTS += [(most, 0) for most in (4_000, 1_000, 200, 0)]


def page(
    title: str,
    numbers: dict[str, Any],
    table: Table,
    light: list[tuple[str, str, bytes]],
    dark: list[tuple[str, str, bytes]],
    max_megabytes: float = 14.0,
) -> str:
    """The page. Texts of rows are cut until it keeps within `max_megabytes`, those of the first rows of each group
    last; it says so.

    Args:
        light: name, description and PNG of each picture for a light page; `dark` the same for a dark one.
    Raises: ValueError if the page is larger even without the texts.
    """
    index = _packed(_index(table))
    frame = sum(len(png) for _, _, png in (*light, *dark)) * 4 // 3 + len(index) + 100_000
    blocks, cut = _blocks(table, int(max_megabytes * 1e6) - frame)
    about = {
        "blockRows": _BLOCK_ROWS,
        "groups": [[group, table.groups.count(group), count] for group, count in table.counts.items()],
        "numbers": list(table.numbers),
        "numRows": len(table.rows),
        "ranks": list(table.ranks),
    }
    shown = {"about": about, "index": index, "blocks": blocks, "cut": cut}
    return _rendered(title, _facts(numbers), sections(numbers, [name for name, *_ in light]), light, dark, shown)


def plain_page(
    title: str,
    facts: list[tuple[str, str]],
    parts: list[Section],
    light: list[tuple[str, str, bytes]],
    dark: list[tuple[str, str, bytes]],
) -> str:
    """A page of sections alone: no rows, and no script."""
    return _rendered(title, facts, parts, light, dark, None)


# --------------------------------------------------------------------------------------------------------------------


def _rendered(
    title: str,
    facts: list[tuple[str, str]],
    parts: list[Section],
    light: list[tuple[str, str, bytes]],
    dark: list[tuple[str, str, bytes]],
    rows: dict[str, Any] | None,
) -> str:
    from jinja2 import Environment
    from markupsafe import Markup

    style, script = _part("page.css"), _part("page.js")
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_part("page.html"))
    return template.render(
        title=title,
        facts=facts,
        sections=parts,
        pictures={
            name: {"alt": alt, "light": _base64(png), "dark": _base64(other)}
            for (name, alt, png), (_, _, other) in zip(light, dark, strict=True)
        },
        version=__version__,
        rows=rows and {**rows, "about": Markup(_json(rows["about"]))},
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script) if rows else None,
    )


def _facts(numbers: dict[str, Any]) -> list[tuple[str, str]]:
    """What a reader wants to know first."""
    rows = numbers["rows"]
    if numbers["kind"] == "comparison":
        overlap = numbers["overlap"]
        only = [(f"only in {name}", f"{count:,}") for name, count in overlap["only"].items()]
        return [("rows in the pool", f"{rows['pool']:,}"), ("in both", f"{overlap['both']:,}"), *only]
    facts = [("rows in the pool", f"{rows['pool']:,}"), ("selected", f"{rows['selected']:,}")]
    sizes = numbers["lengths"].get("characters")
    if sizes and sizes["parts"]["selected"]["known"]:
        before, after = (sizes["parts"][part]["quantiles"]["0.5"] for part in ("pool", "selected"))
        facts.append(("median characters, before and after", f"{before:,.0f} → {after:,.0f}"))
    if "seconds" in numbers["cost"]["total"]:
        facts.append(("seconds, all steps", f"{numbers['cost']['total']['seconds']:,.1f}"))
    return facts


def _index(table: Table) -> dict[str, Any]:
    """What sorting, filtering and the table need of every row, by column."""
    return {
        "row": table.rows,
        "id": table.ids,
        "group": table.groups,
        "ranks": list(table.ranks.values()),
        "numbers": [[_rounded(value) for value in values] for values in table.numbers.values()],
        "source": table.sources,
        "why": table.why,
        "opening": [_opening(turns) for turns in table.turns],
    }


def _opening(turns: list[tuple[str, str]]) -> str:
    text = next((text for role, text in turns if role in ("user", "text")), turns[0][1] if turns else "")
    text = " ".join(text[: 4 * _OPENING].split())
    return text if len(text) <= _OPENING else text[: _OPENING - 1] + "…"


def _blocks(table: Table, size: int) -> tuple[list[str], int | None]:
    """The texts of the rows in blocks that together take at most `size` characters, and to what most were cut."""
    seen: Counter[str] = Counter()
    example = []
    for group in table.groups:
        example.append(seen[group] < _EXAMPLES)
        seen[group] += 1
    for most_of_example, most in _CUTS:
        blocks, used = [], 0
        kept = [most_of_example if first else most for first in example]
        for start in range(0, len(kept), _BLOCK_ROWS):
            some = slice(start, start + _BLOCK_ROWS)
            blocks.append(_packed([_cut(*row) for row in zip(table.turns[some], kept[some], strict=True)]))
            used += len(blocks[-1])
            if used > size:
                break
        else:
            return blocks, most
    raise ValueError(f"a page of {len(table.rows):,} rows is larger than max_megabytes allows; raise it.")


def _cut(turns: list[tuple[str, str]], most: int | None) -> list[list[Any]]:
    """Turns as [role, text, characters that are missing], with at most `most` characters in all."""
    kept = []
    for role, text in turns:
        part = text if most is None else text[:most]
        kept.append([role, part, len(text) - len(part)])
        most = None if most is None else most - len(part)
    return kept


def _rounded(value: float | None) -> float | None:
    """Six digits: what the table shows, at half the size."""
    return None if value is None else float(f"{value:.6g}")


def _packed(value: Any) -> str:
    return _base64(zlib.compress(json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8"), 6))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _json(value: Any) -> str:
    """JSON that can stand inside a script element: no letter of it can end the element or open a comment."""
    text = json.dumps(value, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    return "sha256-" + _base64(hashlib.sha256(text.encode("utf-8")).digest())


@cache
def _part(name: str) -> str:
    return resources.files("hf_select.reports").joinpath(name).read_text(encoding="utf-8")
