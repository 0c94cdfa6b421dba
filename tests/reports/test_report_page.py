"""The pages in a real browser: what they show, that they sort and filter, and that no row can run a script.

Needs playwright and a Chromium (Debian: apt-get install chromium-headless-shell); skipped with a message elsewhere.
"""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset
from made_comparisons import MEASURES, made, made_folder

from hf_select import Length, TopK
from hf_select.evaluation.advise import advise
from hf_select.evaluation.break_even import add_costs
from hf_select.evaluation.join import join
from hf_select.reports.comparison import comparison_report, comparison_summary
from hf_select.reports.comparison_result import MatchedDifference
from hf_select.reports.report import compare_report, report


CHROMIUMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")

HOSTILE = {
    "script": "<script>window.hacked = 1</script>",
    "end of script": "</script><script>window.hacked = 2</script><!--",
    "handler": '"><img src=x onerror="window.hacked = 3"><svg onload=window.hacked=4>',
    "link": '<a href="javascript:window.hacked=5">x</a> [x](javascript:alert(1))',
    "template": "{{ 7 * 7 }} {% raw %} ${7*7} $\\frac{1}{2}$",
    "right to left": "مرحبا بالعالم \u202e evil \u2066 שלום",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 \u0000 \u2028 \u2029 \ufffe zero\u200bwidth",
    "long": "long " * 200_000,  # 1 MB
    "unbroken": "W" * 100_000,
    "entities": "&lt;b&gt; &amp; &#x27;",
}


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not there: pages are not opened here")
    path = next((found for name in CHROMIUMS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium is there (apt-get install chromium-headless-shell): pages are not opened here")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A page, with all that it complained about or asked the network for."""

    def __init__(self, browser, path: Path, **options):
        self.said: list[str] = []
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: self.said.append(f"dialog: {dialog.message}") or dialog.dismiss())
        self.page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else self.said.append(r.url))
        self.page.goto(path.resolve().as_uri())
        self.page.wait_for_selector("body[data-ready]")

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_inner_texts()

    def waits_for(self, selector: str, text: str) -> None:
        self.page.locator(selector, has_text=re.compile(f"^{text}$")).wait_for(timeout=5000)

    def numbers(self, column: str) -> list[float]:
        return [float(text.replace(",", "")) for text in self.texts(f'tr.row td[data-name="{column}"]') if text != "–"]


@pytest.fixture
def opened(browser):
    pages: list[Opened] = []

    def open_page(path: Path, **options) -> Opened:
        pages.append(Opened(browser, path, **options))
        return pages[-1]

    yield open_page
    for page in pages:
        page.context.close()
        assert page.said == [], "the page complained, or asked the network for something"


def pool(n: int = 120) -> Dataset:
    rows = [
        {
            "row_id": f"id-{i}",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": f"Question {i} about {'fish' if i % 3 else 'birds'}?"},
                {"role": "assistant", "content": f"Answer {i}.\n  Second line, needle{i}."},
            ],
            "source": ["sea", "sky"][i % 3 == 0],
            "score_a": None if i == 7 else (i * 37 % n) / n,
            "a_reason": "cut to 5 tokens" if i == 7 else "",
            "score_b": float(i),
        }
        for i in range(n)
    ]
    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def plain_page(tmp_path_factory) -> Path:
    dataset = pool()
    return report(dataset, TopK("score_a")(dataset, k=60), tmp_path_factory.mktemp("plain"), title="A <b>title</b>")


def test_the_page_renders_its_pictures_and_tables(plain_page, opened):
    shown = opened(plain_page)
    assert shown.page.title() == "A <b>title</b>" and shown.texts("h1") == ["A <b>title</b>"]
    pictures = shown.page.evaluate("[...document.images].map(i => [i.naturalWidth, i.alt])")
    assert len(pictures) == 7 and all(width > 500 for width, _ in pictures)
    assert any(alt == "Distribution of score_a: pool, selected, random draw" for _, alt in pictures)
    assert "60" in shown.texts(".facts dd")
    assert "cut to 5 tokens" in " ".join(shown.texts(".figures td"))


def test_rows_are_paged_sorted_and_filtered(plain_page, opened):
    shown = opened(plain_page)
    page = shown.page
    assert shown.texts("#count") == ["120 of 120 rows"] and shown.texts("#place") == ["page 1 of 5"]
    assert shown.numbers("rank") == list(range(1, 26))
    page.click("#next")
    assert shown.numbers("rank") == list(range(26, 51)) and shown.texts("#place") == ["page 2 of 5"]
    page.click("#last")
    assert page.is_disabled("#next") and page.locator("tr.row").count() == 20

    page.click("#table th button:text-is('score_b')")
    assert shown.numbers("score_b") == list(range(119, 94, -1))
    assert page.get_attribute("#table th[aria-sort]", "aria-sort") == "descending"
    page.click("#table th button:text-is('score_b')")
    assert shown.numbers("score_b") == list(range(25))
    page.select_option("#sort", label="score_a")
    page.click("#direction")
    assert shown.numbers("score_a") == sorted(shown.numbers("score_a"))
    page.click("#last")
    assert shown.texts('tr.row td[data-name="score_a"]')[-1] == "–", "what a row lacks goes last"

    page.select_option("#group", "not ranked")
    assert shown.texts(".why") == ["no score_a: cut to 5 tokens"]
    page.select_option("#group", "")
    page.select_option("#source", "sky")
    assert shown.texts("#count") == ["40 of 120 rows"]
    page.fill("#search", "birds 99")
    shown.waits_for("#count", "1 of 120 rows")
    page.fill("#search", "needle42")
    shown.waits_for("#count", "0 of 120 rows")
    page.check("#whole")
    shown.waits_for("#count", "1 of 120 rows")


def test_a_row_opens_to_its_conversation_and_why_it_is_there(plain_page, opened):
    shown = opened(plain_page)
    first = shown.page.locator(".open").first
    assert first.get_attribute("aria-expanded") == "false"
    assert shown.texts(".why")[0].startswith("score_a 0.991667, highest 1 of 119")
    first.click()
    shown.page.wait_for_selector(".turn")
    assert first.get_attribute("aria-expanded") == "true"
    assert shown.texts(".turn .role") == ["system", "user", "assistant"]
    assert re.fullmatch(r"Answer (\d+)\.\n  Second line, needle\1\.", shown.texts(".turn .text")[2])
    first.click()
    assert not shown.page.locator(".detail").first.is_visible()
    shown.page.locator(".open").nth(3).focus()
    shown.page.keyboard.press("Enter")
    shown.page.wait_for_selector(".detail:visible")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling_and_dark_is_dark(plain_page, opened, scheme):
    phone = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "color_scheme": scheme}
    shown = opened(plain_page, **phone)
    shown.page.locator(".open").first.click()
    shown.page.wait_for_selector(".turn")
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= 360
    background = shown.page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(background.removeprefix("rgb(").split(",")[0])
    assert (red < 40) == (scheme == "dark")
    source = shown.page.evaluate("document.querySelector('picture img').currentSrc")
    dark = shown.page.evaluate("document.querySelector('picture source').srcset")
    assert (source == dark) == (scheme == "dark")


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory) -> Path:
    texts = list(HOSTILE.values())
    n = len(texts)
    dataset = Dataset.from_dict(
        {
            "row_id": [text[:50] for text in texts],
            "prompt": texts,
            "completion": texts[::-1],
            "source": [text[:500] for text in texts],
            "score_<img src=x onerror=window.hacked=6>": [float(i) for i in range(n)],
            "score_b": [None, *(float(i) for i in range(1, n))],
            "b_reason": [HOSTILE["handler"], *[""] * (n - 1)],
        }
    )
    selection = TopK("score_b")(dataset, k=n - 2)
    selection.reasons = [text[:300] for text in texts[: n - 2]]
    return report(dataset, selection, tmp_path_factory.mktemp("hostile"), title=HOSTILE["end of script"])


def test_hostile_rows_are_shown_and_run_nothing(hostile_page, opened):
    shown = opened(hostile_page)
    page = shown.page
    assert shown.texts("#count") == ["10 of 10 rows"]
    for i in range(10):
        page.locator(".open").nth(i).click()
        detail = page.locator("tr.detail").nth(i)
        detail.locator(".turn").nth(1).wait_for()
        while detail.locator(".turn button").count():
            detail.locator(".turn button").first.click()
        turns = detail.locator(".text").evaluate_all("texts => texts.map(text => text.textContent)")
        assert turns[0] in HOSTILE.values() and turns[1] in HOSTILE.values(), "the text is shown as it is"
        page.locator(".open").nth(i).click()
    assert page.evaluate("window.hacked") is None
    made = page.locator("main script, main svg, #table img, #table a, main iframe")
    assert made.count() == 0, "a row became markup"
    for search in ("<script>", "onerror", "مرحبا"):
        page.fill("#search", search)
        page.wait_for_timeout(250)
        assert page.locator("tr.row").count() in range(1, 5)
    for source in page.locator("#source option").all()[1:]:
        page.select_option("#source", source.get_attribute("value"))
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


def test_hostile_rows_do_not_widen_a_phone(hostile_page, opened):
    shown = opened(hostile_page, viewport={"width": 360, "height": 740}, is_mobile=True)
    for i in range(10):
        shown.page.locator(".open").nth(i).click()
    shown.page.locator(".turn").nth(18).wait_for()
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= 360


def test_even_a_script_that_got_in_would_not_run(hostile_page, browser):
    """The content security policy stands behind the escaping: injected markup does nothing."""
    shown = Opened(browser, hostile_page)
    shown.page.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked = 7\">');"
        "const s = document.createElement('script'); s.textContent = 'window.hacked = 8'; document.body.append(s);"
    )
    shown.page.wait_for_timeout(200)
    assert shown.page.evaluate("window.hacked") is None
    assert any("Content Security Policy" in text for text in shown.said)
    shown.context.close()


def test_two_selections_are_compared_row_by_row(tmp_path, opened):
    dataset = pool()
    selections = {"first": TopK("score_a")(dataset, k=30), "<i>second</i>": TopK("score_b")(dataset, k=30)}
    shown = opened(compare_report(dataset, selections, tmp_path))
    both = len(set(selections["first"].indices.tolist()) & set(range(90, 120)))
    assert shown.texts(".facts dd") == ["120", str(both), str(30 - both), str(30 - both)]
    shown.page.select_option("#group", "both")
    assert shown.texts("#count") == [f"{both} of {60 - both} rows"]
    assert all("first: score_a" in why and "<i>second</i>: score_b" in why for why in shown.texts(".why"))


def test_a_large_selection_is_cut_to_the_size_that_was_set(tmp_path, opened):
    import random

    rng = random.Random(0)
    letters = "".join(chr(rng.randrange(33, 0x2FF)) for _ in range(500_000))
    texts = [letters[start : start + 3000] for start in (rng.randrange(490_000) for _ in range(3000))]
    dataset = Dataset.from_dict({"text": texts, "score_a": [float(i) for i in range(3000)]})
    path = report(dataset, TopK("score_a")(dataset, k=2500), tmp_path, max_megabytes=8)
    assert path.stat().st_size < 8e6
    shown = opened(path)
    assert "texts are cut to" in " ".join(shown.texts("#rows .note"))
    shown.page.locator(".open").first.click()
    shown.page.wait_for_selector(".turn")
    assert len(shown.texts(".turn .text")[0]) == 3000, "the first rows are cut last"
    shown.page.select_option("#size", "100")
    for _ in range(4):
        shown.page.click("#next")
    shown.page.locator(".open").first.click()
    shown.page.wait_for_selector(".turn")
    assert "more characters are not in this page" in shown.texts(".turn")[0]
    with pytest.raises(ValueError, match="raise it"):
        report(dataset, TopK("score_a")(dataset, k=2500), tmp_path / "small", max_megabytes=0.3)


# --------------------------------------------------------------------------------------------------------------------
# comparisons


def test_a_comparison_shows_verdicts_differences_and_what_they_cost(tmp_path, opened):
    path = comparison_report(add_costs(made()), tmp_path)
    shown = opened(path)
    assert shown.texts(".facts dd") == ["3", "1 of 3", "1 of 3", "4"]
    pictures = shown.page.evaluate("[...document.images].map(i => [i.naturalWidth, i.alt])")
    assert len(pictures) == 3 * 2 + 2 and all(width > 500 for width, _ in pictures)
    assert "Differences to random rows with their 95 % intervals: 1,000 rows, math" in [alt for _, alt in pictures]
    assert shown.page.locator("script").count() == 0 and shown.page.locator("details").count() == 0
    verdicts = shown.texts("#section-1 td")
    assert verdicts[0] == "good" and verdicts[1].startswith("better by 0.") and "no evidence" in verdicts
    costs = " ".join(shown.texts("#section-6 td"))
    for words in ("after one use", "never: worse than random rows", "no evidence of a difference to random rows"):
        assert words in costs
    text = (tmp_path / "result.md").read_text(encoding="utf-8")
    for picture in (tmp_path / "pictures").iterdir():
        assert f"](pictures/{picture.name})" in text
    assert opened(path, viewport={"width": 390, "height": 800}).page.evaluate("document.body.scrollWidth") <= 390


def test_a_comparison_opens_with_its_outcome_in_words(tmp_path, opened):
    result = add_costs(made(budgets=(1000,)))
    good, random = (result.budgets["1000 rows"]["math"][name] for name in ("good", "random"))
    summary = comparison_summary(result)
    d = good.difference
    assert summary == (
        f"1,000 rows: training on the rows that good selected gives a loss of {good.mean:.3f} nats on math; as many "
        f"tokens of random rows give a loss of {random.mean:.3f} nats. good is better by {-d.mean:.3f} "
        f"(95 % interval {-d.high:.3f} to {-d.low:.3f}), in 4 of 4 seeds. "
        "No evidence of a difference: nothing. Worse: bad."
    )
    path = comparison_report(result, tmp_path)
    shown = opened(path, viewport={"width": 1280, "height": 800})
    assert shown.texts("h1 + p") == [summary]
    places = shown.page.evaluate(
        "['.lead', '.facts', '#section-1 tbody'].map(s => document.querySelector(s).getBoundingClientRect().bottom)"
    )
    assert places == sorted(places) and places[-1] < 800, "the outcome and its table are on the first screen"
    assert (tmp_path / "result.md").read_text(encoding="utf-8").splitlines()[2].startswith("1,000 rows: training on")


def test_the_outcome_names_no_winner_where_there_is_none():
    losers = {"nothing": 0.0, "bad": -0.1}
    exact = {"exact answers": MEASURES["exact answers"]}
    assert comparison_summary(made(losers, (1000,), measures=exact)) == (
        "1,000 rows: on exact answers, no method is better than as many tokens of random rows. "
        "No evidence of a difference: nothing. Worse: bad."
    )
    both = comparison_summary(made({"good": 0.1, "best": 0.2}, (1000, 2000), measures=exact))
    assert (
        both.count("rows that best selected gives") == 2 == both.count("Also better: good.") and "2,000 rows:" in both
    )


def test_many_held_out_sets_are_shown_together_and_then_each(tmp_path, opened):
    losses = {f"domain {n}": MEASURES["math"] for n in range(3)} | {"exact answers": MEASURES["exact answers"]}
    result = made(budgets=(1000, 2000), measures=losses)
    for lines in (lines for of in result.budgets.values() for lines in of.values()):
        lines["random (77 tokens)"] = lines["longest"]  # beside which the method "bad" was set
        bad = lines["bad"]
        matched = MatchedDifference("random (77 tokens)", bad.difference, bad.verdict)
        lines["bad"] = replace(bad, runs=replace(bad.runs, matched_by="random (77 tokens)"), matched=matched)
    shown = opened(comparison_report(add_costs(result), tmp_path))
    titles = ["Verdicts", "1,000 rows", "2,000 rows", "Each held-out set", "Results against compute"]
    assert shown.texts("h2")[:5] == titles
    asked = [
        "1,000 rows: all losses",
        "1,000 rows: exact answers",
        "2,000 rows: all losses",
        "2,000 rows: exact answers",
    ]
    assert shown.texts("#section-1 th") == ["", *asked]
    assert "random (77 tokens)" not in shown.texts("#section-1 td, #section-4 td")
    assert "random (77 tokens)" in shown.texts("#section-2 td"), "beside the method, and among what was trained"
    alts = shown.page.evaluate("[...document.images].map(i => i.alt)")
    assert len(alts) == 2 * 2 + 2 + 2 and "Verdict of each method on each held-out set: 1,000 rows" in alts
    assert shown.page.locator("#section-4 details").count() == 2 * 3 == shown.page.locator("details").count()
    assert "1,000 rows: domain 0, as a table" in shown.texts("#section-4 summary")


def test_names_of_methods_and_measures_are_text(tmp_path, opened):
    measures = {f"{name}: {text[:300]}": MEASURES["math"] for name, text in HOSTILE.items()}
    names = {text[:300]: 0.1 for text in HOSTILE.values()}
    path = comparison_report(add_costs(made(names, (1000,), measures={**dict([*measures.items()][:2])})), tmp_path)
    shown = opened(path)
    assert shown.page.evaluate("window.hacked") is None
    assert "<script>window.hacked = 1</script>" in shown.texts("#section-1 td")


def test_the_same_comparison_twice_is_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        comparison_report(add_costs(made(budgets=(1000,))), tmp_path / folder)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 2 + 4
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


def test_advice_is_shown_with_its_reasons(tmp_path, opened):
    lengths = {"small": Length(of="response"), "share": 0.5, "source_column": "source"}
    result = advise(pool(), Length(), tmp_path, **lengths)
    shown = opened(tmp_path / "advice.html")
    assert (
        shown.texts(".facts dd")[:2] == ["the longest rows", "60 of 120"] and result.advice.recommendation == "longest"
    )
    assert shown.texts("#section-1 .note")[0].startswith(
        "Take the longest rows: the scores follow the length of the row"
    )
    pictures = shown.page.evaluate("[...document.images].map(i => i.naturalWidth)")
    assert len(pictures) == 3 and all(width > 500 for width in pictures)
    assert "![length row](pictures/length_row.png)" in (tmp_path / "advice.md").read_text(encoding="utf-8")


def test_joined_comparisons_show_a_verdict_for_each(tmp_path, opened):
    folders = [made_folder(tmp_path / name, name, budgets=(1000,)) for name in ("alpaca", "tulu")]
    join(folders, tmp_path / "joined")
    shown = opened(tmp_path / "joined" / "joined.html")
    assert shown.texts(".facts dd") == ["2", "3", "4 of 12", "4 of 12"]
    assert "better in 4 of 4, worse in none" in shown.texts("#section-1 td")
    assert "alpaca, 1,000 rows: exact answers" in shown.texts("#section-2 th")
    assert shown.page.evaluate("[...document.images].map(i => i.naturalWidth > 500)") == [True]
