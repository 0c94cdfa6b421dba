"""Fixes the date that a chat template writes.

The templates of Llama 3.2, gpt-oss and others write the current date before every conversation (with `strftime_now`
from transformers), so the score of a row would change every day. Here the date in a template is fixed to the day of
its first use, or to the day on which a resumed job began. Templates that do not read the date are unchanged.
"""

import copy
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from hf_select.atomic import read_json


_CLOCK = "strftime_now"

# Supported strftime directives. The time of day is midnight.
_DIRECTIVES = ("-d", "-m", "-H", "-I", "-M", "-S", "-j", *"aAbBcdeDfFGhHIjmMpSuUVwWxXyYzZ")


class DatedTokenizer:
    """A tokenizer whose template writes a fixed date; loaded on first use.

    Args:
        load: returns the tokenizer.
        day: YYYY-MM-DD; by default the day of the first use.
    """

    def __init__(self, load: Callable[[], Any], day: str | None = None):
        self._load, self._day = load, day
        self._own: Any = None
        self._dated: Any = None

    @property
    def tokenizer(self) -> Any:
        """The tokenizer with the fixed date in its template; loaded on first use."""
        if self._dated is None:
            self._own = self._load() if self._own is None else self._own
            self._dated = self._own
            if asks_for_day(self._own.chat_template):
                self._day = self._day or today()
                self._dated = copy.copy(self._own)  # do not modify the user's tokenizer
                self._dated.chat_template = _with_fixed_day(self._day, self._own.chat_template)
        return self._dated

    @property
    def fixed(self) -> str | None:
        """The day if it is fixed already, else None. Does not load the tokenizer."""
        return self._day

    @property
    def own_template(self) -> Any:
        """The original template of the tokenizer."""
        return self.tokenizer and self._own.chat_template

    @property
    def day(self) -> str | None:
        """The fixed day; None if the template does not read the date."""
        return self._day if asks_for_day(self.own_template) else None

    def begin_on(self, day: str | None) -> bool:
        """Use the day on which a job began; return whether this changes the day."""
        if day is None or self.day in (None, day):
            return False
        self._day, self._dated = day, None
        return True


def asks_for_day(template: Any) -> bool:
    """Whether a template, or one in a dictionary of templates, reads the date."""
    return _CLOCK in str(template or "")


def today() -> str:
    """The current date of the clock that templates read, as YYYY-MM-DD."""
    from transformers.utils.chat_template_utils import render_jinja_template

    template = "{{ strftime_now('%Y-%m-%d') }}"
    texts, _ = render_jinja_template(conversations=[[]], chat_template=template)
    return str(texts[0])


def began_on(manifest: Path) -> str | None:
    """The day on which the job, index or warm-up of a manifest began; None if not recorded."""
    return _day_in(read_json(manifest))


def _day_in(record: Any) -> str | None:
    if isinstance(record, list):
        record = dict(enumerate(record))
    if not isinstance(record, dict):
        return None
    return record.get("day") or next((day for day in map(_day_in, record.values()) if day), None)


def _with_fixed_day(day: str, template: Any) -> Any:
    """The template with a macro that replaces the clock by a fixed day."""
    if isinstance(template, dict):
        return {name: _with_fixed_day(day, text) for name, text in template.items()}
    filters = "".join(f"|replace('%{d}', {_formatted(date.fromisoformat(day), d)!r})" for d in _DIRECTIVES)
    filters += "|replace('%%', '%')"
    return f"{{% macro {_CLOCK}(format) %}}{{{{ format{filters} }}}}{{% endmacro %}}{{{{ '' }}}}{template}"


def _formatted(day: date, directive: str) -> str:
    """Format a day by one directive. "-" strips leading zeros here, because not every platform's strftime does."""
    text = day.strftime(f"%{directive[-1]}")
    return text.lstrip("0") or "0" if directive.startswith("-") else text
