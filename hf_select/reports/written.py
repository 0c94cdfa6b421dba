"""Sections and their pictures in a folder: one page, the same as Markdown, and PNGs."""

from collections.abc import Callable
from pathlib import Path

from hf_select.atomic import written_whole
from hf_select.reports.markdown import inline, section_text
from hf_select.reports.page import plain_page
from hf_select.reports.pictures import Theme, png
from hf_select.reports.sections import Section


# What a picture is of -> its name, what it shows, what paints it, its height in inches.
Figures = dict[tuple[str, ...], tuple[str, str, Callable[..., None], float]]


def write_sections(
    folder: Path, name: str, title: str, facts: list[tuple[str, str]], parts: list[Section], figures: Figures
) -> Path:
    """Sections and their pictures as name.html, name.md and pictures/*.png."""
    check_place(folder, f"{name}.html", f"{name}.md", "pictures")
    folder.mkdir(parents=True, exist_ok=True)
    light, dark = (_drawn(figures, theme) for theme in ("light", "dark"))
    places = {picture: f"pictures/{picture}.png" for picture, *_ in light}
    texts = {
        f"{name}.html": plain_page(title, facts, parts, light, dark),
        f"{name}.md": "\n\n".join([f"# {inline(title)}", *(section_text(part, places) for part in parts)]) + "\n",
    }
    for file, text in texts.items():
        with written_whole(folder / file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    write_pictures(folder / "pictures", light)
    return folder / f"{name}.html"


def check_place(folder: Path, page: str, *others: str) -> None:
    """Only what belongs to an earlier page is replaced; raise if something else has the name of a file or folder."""
    if (folder / page).exists():
        return
    if there := [folder / name for name in others if (folder / name).exists()]:
        raise ValueError(
            f'"{there[0]}" belongs to no earlier {page} and is not replaced; choose another output_dir (--output-dir).'
        )


def write_pictures(folder: Path, pictures: list[tuple[str, str, bytes]]) -> None:
    """The PNGs of a page. They are written after it: a page without pictures tells that the folder is its own."""
    with written_whole(folder) as temporary:
        temporary.mkdir()
        for name, _, content in pictures:
            (temporary / f"{name}.png").write_bytes(content)


# --------------------------------------------------------------------------------------------------------------------


def _drawn(figures: Figures, theme: Theme) -> list[tuple[str, str, bytes]]:
    return [(name, alt, png(paint, height, theme)) for name, alt, paint, height in figures.values()]
