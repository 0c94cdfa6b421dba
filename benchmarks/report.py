"""Size and time of a report of many selected rows, and how long a browser takes to open it.

    python benchmarks/report.py --dataset pool.jsonl --rows 50000

Rows are those of the dataset; with fewer than asked for they are repeated, each with its number in front. Scores are
random: the page does not care. Opening is from navigation to the first page of the table, in headless Chromium.
"""

import argparse
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from datasets import Dataset

from hf_select import TopK
from hf_select.cli.table import print_table
from hf_select.data.conversation import conversations, readable_columns
from hf_select.data.loading import read_dataset
from hf_select.reports.report import report


def pool_of(source: str, rows: int) -> Dataset:
    """A thousand rows more than `rows`, or a few more, of the dataset as messages, with two scores and a source."""
    dataset = read_dataset(source)
    columns = readable_columns(dataset.column_names)
    parsed = [row for row in conversations(dataset.select_columns(columns)[:]) if hasattr(row, "messages")]
    times = -(-(rows + 1000) // len(parsed))  # some are left over
    rng = np.random.default_rng(0)
    made = [
        {
            "row_id": f"{n}-{i}",
            "messages": [{"role": m["role"], "content": (f"{n} " if n else "") + m["content"]} for m in row.messages],
            "source": f"source {i % 7}",
        }
        for n in range(times)
        for i, row in enumerate(parsed)
    ]
    scored = Dataset.from_list(made)
    for name in ("score_a", "score_b"):
        scored = scored.add_column(name, rng.normal(size=len(scored)))
    return scored


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 50_000])
    parser.add_argument("--page", help="keep the last page here")
    args = parser.parse_args()
    lines = []
    for rows in args.rows:
        pool = pool_of(args.dataset, rows)
        begin = time.perf_counter()
        selection = TopK("score_a")(pool, k=rows)
        selecting = time.perf_counter() - begin
        with TemporaryDirectory() as folder:
            begin = time.perf_counter()
            path = report(pool, selection, folder)
            writing = time.perf_counter() - begin
            lines.append([f"{rows:,}", f"{len(pool):,}", f"{selecting:.1f}", f"{writing:.1f}", *opened(path)])
            if args.page:
                shutil.copy(path, args.page)
    header = ["selected", "of", "select, s", "report, s", "page, MB", "open, s", "sort, s", "filter, s", "a row, s"]
    print_table(header, lines)


def opened(path: Path) -> list[str]:
    from playwright.sync_api import sync_playwright

    chromium = next(found for name in ("chromium-headless-shell", "chromium") if (found := shutil.which(name)))
    times = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()

        def timed(act, until) -> None:
            begin = time.perf_counter()
            act()
            until()
            times.append(time.perf_counter() - begin)

        timed(lambda: page.goto(path.resolve().as_uri()), lambda: page.wait_for_selector("body[data-ready]"))
        head = page.locator("#table th button").nth(1)
        timed(head.click, page.locator("#table th[aria-sort=descending]").wait_for)
        group = page.locator("#group")
        timed(lambda: group.select_option("worst"), page.locator("#count", has_text="200 of").wait_for)
        group.select_option("selected")
        timed(page.locator(".open").nth(7).click, page.locator(".turn").first.wait_for)
        browser.close()
    return [f"{path.stat().st_size / 1e6:.1f}", *(f"{second:.2f}" for second in times)]


if __name__ == "__main__":
    main()
