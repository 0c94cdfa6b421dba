"""Aligned tables for the terminal."""


def print_table(header: list[str], rows: list[list[str]], title: str = "") -> None:
    """Print a table with the first column aligned left and the others right."""
    lines = [header, *rows] if any(header) else rows
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    if title:
        print(f"\n{title}")
    for n, line in enumerate(lines):
        cells = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        print("  " + "  ".join(cells).rstrip())
        if n == 0 and any(header):
            print("  " + "  ".join("-" * width for width in widths))
