"""A report as one HTML file that needs no network: it contains its styles, script, pictures and rows.

Rows are untrusted and never become markup. Jinja escapes all text that Python writes into the page. Rows are embedded
as compressed JSON in base64, which cannot end a script element, and the script shows them through `textContent` only.
A content security policy allows the page's own script, by its hash, and no other.
"""

import base64
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from hf_select._version import __version__
from hf_select.reports.pictures import Picture
from hf_select.reports.report_numbers import ComparisonNumbers, ReportNumbers
from hf_select.reports.rows import RowTable
from hf_select.reports.sections import Section


_BLOCK_ROWS = 250  # rows whose texts are decompressed together when one of them is opened
_PREVIEW_CHARACTERS = 110  # of a row, shown in the table
_EXAMPLES = 300  # rows at the start of each group that are shortened last
# Characters kept of an example and of any other row; tried in this order until the page is small enough.
_CUTS = [(None, None), *((20_000, most) for most in (20_000, 8_000, 4_000, 2_000, 1_200, 800, 500, 300, 150, 0))]
_CUTS += [(most, 0) for most in (4_000, 1_000, 200, 0)]


def report_page(
    title: str,
    numbers: ReportNumbers,
    sections: Sequence[Section],
    table: RowTable,
    light: Sequence[Picture],
    dark: Sequence[Picture],
    max_megabytes: float = 14.0,
) -> str:
    """The HTML of a report. Texts of rows are shortened until it is smaller than `max_megabytes`, those of the first
    rows of each group last; the page says so.

    Args:
        light: the pictures for a light page.
        dark: the same pictures for a dark page.
    Raises: ValueError if the page is larger even without the texts.
    """
    index = _compressed(_index(table))
    frame = sum(len(picture.png) for picture in (*light, *dark)) * 4 // 3 + len(index) + 100_000
    blocks, max_characters = _text_blocks(table, int(max_megabytes * 1e6) - frame)
    about = {
        "blockRows": _BLOCK_ROWS,
        "groups": [[group, table.groups.count(group), count] for group, count in table.counts.items()],
        "numbers": list(table.numbers),
        "numRows": len(table.rows),
        "ranks": list(table.ranks),
    }
    rows = {"about": about, "index": index, "blocks": blocks, "cut": max_characters}
    return _render_page(title, _headline_facts(numbers), sections, light, dark, rows)


def plain_page(
    title: str,
    facts: list[tuple[str, str]],
    sections: Sequence[Section],
    light: Sequence[Picture],
    dark: Sequence[Picture],
    lead: str = "",
) -> str:
    """The HTML of sections alone, without rows and without a script; `lead` stands below the title."""
    return _render_page(title, facts, sections, light, dark, None, lead)


# --------------------------------------------------------------------------------------------------------------------


def _render_page(
    title: str,
    facts: list[tuple[str, str]],
    sections: Sequence[Section],
    light: Sequence[Picture],
    dark: Sequence[Picture],
    rows: dict[str, Any] | None,
    lead: str = "",
) -> str:
    from jinja2 import Environment
    from markupsafe import Markup

    style, script = _asset("page.css"), _asset("page.js")
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_asset("page.html"))
    return template.render(
        title=title,
        lead=lead,
        facts=facts,
        sections=sections,
        pictures={
            picture.name: {"alt": picture.alt, "light": _base64(picture.png), "dark": _base64(other.png)}
            for picture, other in zip(light, dark, strict=True)
        },
        version=__version__,
        rows=rows and {**rows, "about": Markup(_script_json(rows["about"]))},
        style=Markup(style),
        script=Markup(script),
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script) if rows else None,
    )


def _headline_facts(numbers: ReportNumbers) -> list[tuple[str, str]]:
    """The most important numbers, shown at the top of the page."""
    rows = numbers.measured.rows
    facts = [("rows in the pool", f"{rows['pool']:,}")]
    if isinstance(numbers, ComparisonNumbers):
        only = [(f"only in {name}", f"{count:,}") for name, count in numbers.overlap.only.items()]
        return [*facts, ("in both", f"{numbers.overlap.both:,}"), *only]
    facts.append(("selected", f"{rows['selected']:,}"))
    lengths = numbers.measured.lengths.get("characters")
    if lengths and lengths.parts["selected"].known:
        before, after = (lengths.parts[part].quantiles["0.5"] for part in ("pool", "selected"))
        facts.append(("median characters, before and after", f"{before:,.0f} → {after:,.0f}"))
    if "seconds" in numbers.cost.total:
        facts.append(("seconds, all steps", f"{numbers.cost.total['seconds']:,.1f}"))
    return facts


def _index(table: RowTable) -> dict[str, Any]:
    """The columns that the page sorts, filters and lists rows by."""
    return {
        "row": table.rows,
        "id": table.ids,
        "group": table.groups,
        "ranks": list(table.ranks.values()),
        "numbers": [[_round(value) for value in values] for values in table.numbers.values()],
        "source": table.sources,
        "why": table.why,
        "opening": [_preview(turns) for turns in table.turns],
    }


def _preview(turns: list[tuple[str, str]]) -> str:
    text = next((text for role, text in turns if role in ("user", "text")), turns[0][1] if turns else "")
    text = " ".join(text[: 4 * _PREVIEW_CHARACTERS].split())
    return text if len(text) <= _PREVIEW_CHARACTERS else text[: _PREVIEW_CHARACTERS - 1] + "…"


def _text_blocks(table: RowTable, max_size: int) -> tuple[list[str], int | None]:
    """The texts of the rows in compressed blocks of at most `max_size` characters together, and the number of
    characters that rows were shortened to, if they were."""
    seen: Counter[str] = Counter()
    is_example = []
    for group in table.groups:
        is_example.append(seen[group] < _EXAMPLES)
        seen[group] += 1
    for of_example, of_others in _CUTS:
        blocks, size = [], 0
        kept = [of_example if example else of_others for example in is_example]
        for start in range(0, len(kept), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            blocks.append(_compressed([_shorten(*row) for row in zip(table.turns[rows], kept[rows], strict=True)]))
            size += len(blocks[-1])
            if size > max_size:
                break
        else:
            return blocks, of_others
    raise ValueError(f"a page of {len(table.rows):,} rows is larger than max_megabytes allows; raise it.")


def _shorten(turns: list[tuple[str, str]], characters: int | None) -> list[tuple[str, str, int]]:
    """Turns as (role, text, number of missing characters), with at most `characters` in all."""
    kept = []
    for role, text in turns:
        part = text if characters is None else text[:characters]
        kept.append((role, part, len(text) - len(part)))
        characters = None if characters is None else characters - len(part)
    return kept


def _round(value: float | None) -> float | None:
    """Six significant digits, as many as the table shows."""
    return None if value is None else float(f"{value:.6g}")


def _compressed(value: Any) -> str:
    return _base64(zlib.compress(json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8"), 6))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _script_json(value: Any) -> str:
    """JSON for a script element: none of its characters can end the element or open a comment."""
    text = json.dumps(value, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _csp_hash(text: str) -> str:
    return "sha256-" + _base64(hashlib.sha256(text.encode("utf-8")).digest())


@cache
def _asset(name: str) -> str:
    return resources.files("hf_select.reports").joinpath(name).read_text(encoding="utf-8")
