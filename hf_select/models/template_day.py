"""The day that a chat template writes, fixed once.

Llama 3.2, gpt-oss and others put today's date before every conversation (`strftime_now`, which transformers gives to
templates), so a row has another score tomorrow. Here a tokenizer's template gets the day when it is first used, or the
day on which the job began that is resumed; a template that does not ask for the date stays as it is.
"""

import copy
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from hf_select.atomic import read_json


_CLOCK = "strftime_now"

# What a template may ask of a date. Times of day are those of midnight.
_DIRECTIVES = ("-d", "-m", "-H", "-I", "-M", "-S", "-j", *"aAbBcdeDfFGhHIjmMpSuUVwWxXyYzZ")


class DatedTokenizer:
    """A tokenizer, loaded when it is first asked for, whose template writes one day.

    Args:
        load: gives the tokenizer.
        day: as YYYY-MM-DD; by default the day of the first use.
    """

    def __init__(self, load: Callable[[], Any], day: str | None = None):
        self._load, self._day = load, day
        self._own: Any = None
        self._dated: Any = None

    @property
    def tokenizer(self) -> Any:
        """The tokenizer with the day in its template; loaded on first use."""
        if self._dated is None:
            self._own = self._load() if self._own is None else self._own
            self._dated = self._own
            if asks_for_day(self._own.chat_template):
                self._day = self._day or today()
                self._dated = copy.copy(self._own)  # one that was given keeps its own template
                self._dated.chat_template = _on(self._day, self._own.chat_template)
        return self._dated

    @property
    def fixed(self) -> str | None:
        """The day as far as it is fixed, without loading anything."""
        return self._day

    @property
    def own_template(self) -> Any:
        """The template as the tokenizer came with it."""
        return self.tokenizer and self._own.chat_template

    @property
    def day(self) -> str | None:
        """None if the template does not ask for it."""
        return self._day if asks_for_day(self.own_template) else None

    def begin_on(self, day: str | None) -> bool:
        """Take the day on which a job began; says whether that is another one."""
        if day is None or self.day in (None, day):
            return False
        self._day, self._dated = day, None
        return True


def asks_for_day(template: Any) -> bool:
    """Whether a template, or one of several that go by name, reads the clock."""
    return _CLOCK in str(template or "")


def today() -> str:
    """By the clock that templates read."""
    from transformers.utils.chat_template_utils import render_jinja_template

    asked = "{{ strftime_now('%Y-%m-%d') }}"
    texts, _ = render_jinja_template(conversations=[[]], chat_template=asked)
    return str(texts[0])


def began_on(manifest: Path) -> str | None:
    """The day on which the job, index or warm-up of a manifest began; None if it is not recorded."""
    return _day_in(read_json(manifest))


def _day_in(record: Any) -> str | None:
    if isinstance(record, list):
        record = dict(enumerate(record))
    if not isinstance(record, dict):
        return None
    return record.get("day") or next((day for day in map(_day_in, record.values()) if day), None)


def _on(day: str, template: Any) -> Any:
    """The template with a macro of that day in place of the clock."""
    if isinstance(template, dict):
        return {name: _on(day, text) for name, text in template.items()}
    written = "".join(f"|replace('%{d}', {_said(date.fromisoformat(day), d)!r})" for d in _DIRECTIVES)
    written += "|replace('%%', '%')"
    return f"{{% macro {_CLOCK}(format) %}}{{{{ format{written} }}}}{{% endmacro %}}{{{{ '' }}}}{template}"


def _said(day: date, directive: str) -> str:
    """A directive's text; "-" leaves out leading zeros, which not every platform's strftime knows."""
    text = day.strftime(f"%{directive[-1]}")
    return text.lstrip("0") or "0" if directive.startswith("-") else text
