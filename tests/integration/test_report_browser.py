"""The report in a browser: it asks for nothing, says nothing, and shows what the store holds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import Visit, chromium, visit
from told import Told
from wordy_store import WordyStore

from cliffstore.publish.report import scale
from cliffstore.run.store import Store
from cliffstore.store.objects import ObjectStore

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

N = 500
MADE = WordyStore(n_units=10, examples_per_unit=N // 10, mean_think=149)
ROWS = "#examples-table tbody tr[data-index]"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("report") / "store")
    MADE.make(ObjectStore(path), "refusal")
    MADE.add_probe(ObjectStore(path), "half", scale=0.5, seed=1)
    with Store(path, reporter=Told()) as store:
        store.cliff("refusal")
        store.cliff("half")
        store.select("worst", top="12", probe="refusal", quota="source=70%")
        store.select("chance", top="8", strategy="random", seed=3)
    return path


@pytest.fixture(scope="module")
def report(url: str) -> Path:
    path = Path(url).parent / "report.html"
    with Store(url, reporter=Told()) as store:
        store.report(str(path))
    return path


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store(url, reporter=Told()) as opened:
        yield opened


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def window(browser: Browser, report: Path) -> Iterator[Visit]:
    with visit(browser, report) as found:
        yield found


@pytest.fixture
def opened(window: Visit, report: Path) -> Iterator[Visit]:
    """One window for many tests, since the page is large. Each begins with all examples, and none open."""
    if window.page.locator("dialog[open]").count():
        window.page.keyboard.press("Escape")
    search(window.page, "", 50)
    yield window
    window.assert_quiet(report)


def shown_ids(page: Page) -> list[str]:
    return page.locator(f"{ROWS} td[data-column='id']").all_inner_texts()


def number(text: str) -> float:
    return float(text.replace("\N{MINUS SIGN}", "-").replace(",", ""))


def open_by_id(page: Page, name: str) -> None:
    page.locator(ROWS).filter(has=page.locator("td[data-column='id']", has_text=re.compile(f"^{name}$"))).first.click()
    page.locator("dialog[open] #example-title").wait_for()


def wait_for_rows(page: Page, n: int) -> None:
    from playwright.sync_api import expect

    expect(page.locator(ROWS)).to_have_count(n, timeout=20_000)


def search(page: Page, text: str, n: int) -> None:
    page.get_by_role("searchbox").fill(text)
    wait_for_rows(page, n)


def test_the_file_is_small_and_alone(report: Path) -> None:
    """500 examples of some 195 tokens, two probes, two selections."""
    assert 500_000 < report.stat().st_size < 8_000_000
    source = report.read_text(encoding="utf-8")
    assert not re.search(r'(?:src|href)="(?!#)', source)
    assert "default-src 'none'" in source


def test_it_is_quiet_and_shows_every_example(opened: Visit) -> None:
    page = opened.page
    assert page.locator(ROWS).count() == 50
    assert f"of {N}" in page.locator("#examples-table [role=status]").inner_text()
    for name in ("probes", "curves", "cliffs", "examples", "selections", "store"):
        assert page.locator(f"section#{name}").bounding_box()["height"] > 100
    assert page.locator("figure.chart svg:visible").count() >= 6
    page.evaluate("console.warn('x')")
    assert opened.said == ["warning: x"]  # what is watched for would be seen
    opened.said.clear()


def test_search_finds_ids_prompts_and_words_together(opened: Visit, store: Store) -> None:
    page = opened.page
    search(page, "e77", 1)
    assert shown_ids(page) == ["e77"]
    thinking = store.sql("SELECT thinking FROM examples WHERE id = 'e31'").fetchall()[0][0]
    words = [max(thinking.split(), key=len).upper(), "even"]  # long words are rare ones
    text = "lower(concat_ws(chr(10), id, prompt, thinking, response, label, source))"
    condition = " AND ".join(f"contains({text}, '{word.lower()}')" for word in words)
    hits = [row[0] for row in store.sql(f"SELECT id FROM examples WHERE {condition}").fetchall()]
    assert 0 < len(hits) < 50
    search(page, " ".join(words), len(hits))
    assert sorted(shown_ids(page)) == sorted(hits)
    search(page, "no such words anywhere", 0)
    assert "Nothing matches" in page.locator("#examples-table tbody").inner_text()
    search(page, "", 50)


@pytest.mark.parametrize("column", ["cliff", "n_tokens", "id"])
def test_columns_are_sorted_both_ways(opened: Visit, store: Store, column: str) -> None:
    page = opened.page
    page.locator("#choice-probe").select_option("refusal")
    head = page.locator(f"#examples-table th[data-column='{column}']")
    found = {}
    for _ in range(2):
        head.get_by_role("button").click()
        direction = head.get_attribute("aria-sort")
        found[direction] = page.locator(f"{ROWS} td[data-column='{column}']").all_inner_texts()
    assert set(found) == {"ascending", "descending"}
    sql = {
        "cliff": "SELECT cliff FROM cliffs WHERE probe = 'refusal' AND cliff IS NOT NULL ORDER BY 1",
        "n_tokens": "SELECT n_tokens FROM examples ORDER BY 1",
        "id": "SELECT id FROM examples ORDER BY CAST(substr(id, 2) AS INT)",
    }[column]
    values = [row[0] for row in store.sql(sql).fetchall()]
    for direction, ordered in (("ascending", values), ("descending", values[::-1])):
        texts = found[direction]
        shown = texts if column == "id" else [number(text) for text in texts]
        assert shown == (ordered[:50] if column == "id" else pytest.approx(ordered[:50], abs=5.01e-4))


def test_pages_are_turned(opened: Visit) -> None:
    page = opened.page
    first = shown_ids(page)
    page.get_by_role("button", name="Next page").first.click()
    second = shown_ids(page)
    assert not set(first) & set(second)
    page.get_by_role("button", name="Previous page").first.click()
    assert shown_ids(page) == first


def test_an_example_opens_by_mouse(opened: Visit) -> None:
    page = opened.page
    search(page, "e77", 1)
    open_by_id(page, "e77")
    assert "e77" in page.locator("#example-title").inner_text()
    page.get_by_role("button", name="Close").click()
    assert page.locator("dialog[open]").count() == 0


def test_an_example_opens_by_keyboard_and_gives_the_focus_back(opened: Visit) -> None:
    page = opened.page
    ids = shown_ids(page)
    page.locator("#search").focus()
    for _ in range(200):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('tr[data-index]')"):
            break
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert ids[1] in page.locator("#example-title").inner_text()
    assert page.evaluate("document.querySelector('dialog').contains(document.activeElement)")
    page.keyboard.press("ArrowRight")
    assert ids[2] in page.locator("#example-title").inner_text()
    page.locator(".token[tabindex='0']").focus()
    assert "decision" in (page.evaluate("document.activeElement.className"))
    assert page.locator("#tip").is_visible()
    page.keyboard.press("ArrowLeft")
    assert "to decision \N{MINUS SIGN}1," in page.evaluate("document.activeElement.getAttribute('aria-label')")
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    assert page.evaluate("document.activeElement.querySelector('[data-column=id]').textContent") == ids[2]


TOKENS = """
() => [...document.querySelectorAll('dialog[open] .token')].map((token) => ({
    position: Number(token.dataset.position), score: token.dataset.score, text: token.textContent,
    background: getComputedStyle(token).backgroundColor, segment: token.closest('.segment').dataset.kind,
    classes: [...token.classList],
}))
"""


def hexadecimal(colour: str) -> str:
    return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", colour)[:3])


def colours_of(score: float, limit: float, theme: scale.Theme) -> set[str]:
    """Return the colour of a score; two where it is so near to the edge of a step that rounding decides."""
    steps = {
        round(min(max((score + by) / (limit / (scale.STEPS + 0.5)), -scale.STEPS), scale.STEPS)) for by in (-1e-3, 1e-3)
    }
    return {scale.colours(theme)[scale.STEPS + step] for step in steps}


@pytest.mark.parametrize(("probe", "theme"), [("refusal", "light"), ("half", "dark")])
def test_tokens_are_coloured_by_the_scores_of_the_store(
    browser: Browser, report: Path, store: Store, probe: str, theme: scale.Theme
) -> None:
    """Every token of examples with and without thinking: its text, score, segment, and the colour that is drawn."""
    limit = scale.limit_of(store.sql(f"SELECT score FROM scores WHERE probe = '{probe}'").fetchnumpy()["score"])
    without = store.sql("SELECT id FROM examples WHERE thinking IS NULL AND example >= 100 LIMIT 1").fetchall()[0][0]
    with visit(browser, report, scheme=theme) as opened:
        page = opened.page
        for name in ("e77", without):
            search(page, name, 1)
            open_by_id(page, name)
            page.get_by_label("Probe").last.select_option(probe)
            shown = page.evaluate(TOKENS)
            expected = store.sql(
                "SELECT t.position, t.token, t.segment, t.to_decision, s.score FROM tokens t JOIN examples e "
                "USING (example) JOIN scores s USING (example, position) WHERE e.id = $1 AND s.probe = $2 ORDER BY 1",
                [name, probe],
            ).fetchall()
            assert len(shown) == len(expected) > 5
            for token, (position, text, segment, to_decision, score) in zip(shown, expected, strict=True):
                assert (token["position"], token["text"], token["segment"]) == (position, text, segment)
                assert float(token["score"]) == pytest.approx(score, abs=5.01e-4)
                assert hexadecimal(token["background"]) in colours_of(score, limit, theme)
                assert ("above" in token["classes"]) == (score > 0)
                assert ("decision" in token["classes"]) == (to_decision == 0)
            page.get_by_role("button", name="Close").click()
        opened.assert_quiet(report)


def test_each_selected_example_says_why_it_is_in(opened: Visit, store: Store) -> None:
    page = opened.page
    page.locator("#choice-selection").select_option(label="worst")
    page.get_by_label("selected only").check()
    wait_for_rows(page, 12)
    chosen = store.sql(
        "SELECT s.id, s.rank, s.value FROM selections s WHERE s.selection = 'worst' ORDER BY rank"
    ).fetchall()
    assert sorted(shown_ids(page)) == sorted(row[0] for row in chosen)
    for name, rank, value in chosen:
        open_by_id(page, name)
        reasons = page.locator("dialog[open] tr", has=page.locator("th", has_text=re.compile("^worst$"))).inner_text()
        assert f"rank {rank} by cliff" in reasons
        assert f"{value:.3f}".replace("-", "\N{MINUS SIGN}") in reasons
        assert "source" in reasons  # the quota
        page.get_by_role("button", name="Close").click()
    card = page.locator("#selections article", has=page.locator("h3", has_text="worst"))
    assert card.locator(".why tbody tr").count() == 12


def ground(page: Page) -> str:
    return hexadecimal(page.evaluate("getComputedStyle(document.body).backgroundColor"))


def test_light_and_dark_follow_the_system_and_the_button(browser: Browser, report: Path) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        with visit(browser, report, scheme=scheme) as opened:
            seen[scheme] = ground(opened.page)
            assert opened.page.locator(f"figure .drawing.{scheme}").first.is_visible()
            other = "dark" if scheme == "light" else "light"
            assert not opened.page.locator(f"figure .drawing.{other}").first.is_visible()
    assert scale.luminance(seen["light"]) > 0.8
    assert scale.luminance(seen["dark"]) < 0.05
    with visit(browser, report, scheme="light") as opened:
        button = opened.page.get_by_role("button", name="Theme")
        found = [ground(opened.page)]
        for _ in range(3):
            button.click()
            found.append(ground(opened.page))
        assert found == [seen["light"], seen["light"], seen["dark"], seen["light"]]  # auto, light, dark, auto
        opened.assert_quiet(report)


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_never_wider_than_the_window(browser: Browser, report: Path, width: int) -> None:
    with visit(browser, report, width=width) as opened:
        assert opened.overflow() <= 0
        opened.page.locator(ROWS).first.click()
        opened.page.locator("dialog[open] .token").first.wait_for()
        assert opened.overflow() <= 0
        dialog = opened.page.locator("dialog[open]").bounding_box()
        assert dialog is not None
        assert dialog["x"] >= 0
        assert dialog["x"] + dialog["width"] <= width
        opened.assert_quiet(report)
