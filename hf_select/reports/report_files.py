"""Write a report to a folder: the page, the same as Markdown, and its pictures as PNGs."""

from collections.abc import Sequence
from pathlib import Path

from hf_select.atomic import atomic_path
from hf_select.reports.markdown import markdown_report
from hf_select.reports.page import plain_page
from hf_select.reports.pictures import Figure, Paint, Picture
from hf_select.reports.sections import Section


# Subject of a picture -> its name, its description, what paints it, its height in inches.
Figures = dict[tuple[str, ...], tuple[str, str, Paint, float]]


def write_sections(
    folder: Path,
    name: str,
    title: str,
    facts: list[tuple[str, str]],
    sections: Sequence[Section],
    figures: Figures,
    lead: str = "",
) -> Path:
    """Write sections and their pictures as name.html, name.md and pictures/*.png, and return the page's path.

    Args:
        lead: the outcome in a sentence or two, below the title.
    """
    check_replaceable(folder, f"{name}.html", f"{name}.md", "pictures")
    folder.mkdir(parents=True, exist_ok=True)
    light = [Figure(*figure).draw("light") for figure in figures.values()]
    dark = [Figure(*figure).draw("dark") for figure in figures.values()]
    write_texts(
        folder,
        {
            f"{name}.html": plain_page(title, facts, sections, light, dark, lead),
            f"{name}.md": markdown_report(title, sections, picture_paths("pictures", light), lead),
        },
    )
    write_pictures(folder / "pictures", light)
    return folder / f"{name}.html"


def check_replaceable(folder: Path, page: str, *others: str) -> None:
    """Raise ValueError if one of the names is in the folder, but no earlier page that it would belong to."""
    if (folder / page).exists():
        return
    if existing := [folder / name for name in others if (folder / name).exists()]:
        raise ValueError(
            f'"{existing[0]}" belongs to no earlier {page} and is not replaced; choose another output_dir '
            "(--output-dir)."
        )


def picture_paths(folder: str, pictures: Sequence[Picture]) -> dict[str, str]:
    """Name of a picture -> its path in the folder."""
    return {picture.name: f"{folder}/{picture.name}.png" for picture in pictures}


def write_texts(folder: Path, texts: dict[str, str]) -> None:
    """Write text files atomically, in order."""
    for name, text in texts.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def write_pictures(folder: Path, pictures: Sequence[Picture]) -> None:
    """Replace a folder by the PNGs of a page. Call it after the page is written: `check_replaceable` recognises a
    folder of pictures by its page."""
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for picture in pictures:
            (temporary / f"{picture.name}.png").write_bytes(picture.png)
