"""The page of topics: the tree of fields, disciplines and subjects with what there is of each, in one file."""

from html import escape
from typing import Any


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
details { margin-left: 1.2rem; } summary { cursor: pointer; } ul { margin: .2rem 0 .6rem; color: #555; }
.n { color: #666; font-variant-numeric: tabular-nums; } table { border-collapse: collapse; margin: 1rem 0; }
td { padding: .1rem 1rem .1rem 0; border-bottom: 1px solid #ddd; } td + td { text-align: right; }
@media (prefers-color-scheme: dark) { body { background: #1b1b1b; color: #ddd; } .n, ul { color: #aaa; } }
"""


def page(tree: dict[str, Any], summary: dict[str, Any]) -> str:
    rows = [(name, f"{summary[name]:,}") for name in ("disciplines", "subjects", "syllabi", "sessions", "questions")]
    if "pairs" in summary:
        rows.append(("pairs", f"{summary['pairs']:,}"))
        rows += [(f"left out: {reason}", f"{count:,}") for reason, count in summary["removed"].items()]
    rows += [(f"failed: {reason}", f"{count:,}") for reason, count in summary["failed"].items()]
    table = "".join(f"<tr><td>{escape(name)}</td><td>{count}</td></tr>" for name, count in rows)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>GLAN topics</title><style>{_STYLE}</style></head><body>\n<h1>Topics</h1>\n<table>{table}</table>\n"
        + "".join(_branch(name, below) for name, below in tree.items())
        + "</body></html>\n"
    )


def _branch(name: str, below: dict[str, Any]) -> str:
    if "subject" in below:
        level = f" ({escape(below['level'])})" if below["level"] else ""
        sessions = "".join(f"<li>{escape(session)}</li>" for session in below["sessions"])
        return (
            f"<details><summary>{escape(below['subject'])}{level} {_said(below)}</summary>"
            f"<ul>{sessions}</ul></details>\n"
        )
    inner = "".join(_branch(key, item) for key, item in below.items())
    return f"<details><summary><b>{escape(name)}</b> {_said(_sum(below))}</summary>{inner}</details>\n"


def _sum(below: dict[str, Any]) -> dict[str, int]:
    if "subject" in below:
        return {"subjects": 1, "questions": below["questions"], "pairs": below["pairs"]}
    total = {"subjects": 0, "questions": 0, "pairs": 0}
    for item in below.values():
        for name, count in _sum(item).items():
            total[name] += count
    return total


def _said(counts: dict[str, Any]) -> str:
    names = [name for name in ("subjects", "questions", "pairs") if name in counts]
    return f'<span class="n">{", ".join(f"{counts[name]:,} {name}" for name in names)}</span>'
