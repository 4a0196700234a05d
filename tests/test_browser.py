"""The triage page in real Chromium against real Streamlit and PostgreSQL: what people and attackers do."""

import re
from collections.abc import Iterator
from dataclasses import replace
from uuid import UUID, uuid4

import psycopg
import pytest
from playwright.sync_api import Browser, Dialog, Page, expect
from psycopg import sql

from ragblame import database
from ragblame.traces import new_trace_id, write_traces
from tests.browsing import (
    CHROMIUM,
    new_page,
    open_browser,
    serve_page,
    settle,
    strange_requests,
    visit,
)
from tests.example_cases import HOSTILE, example_explanations, hostile_explanation
from tests.triage_seed import bare_trace, seed, store_explanation

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def shared_url(postgres_url: str, migrated_template: str) -> Iterator[str]:
    """One migrated database for all tests of this file; each test brings traces of its own."""
    name = f"browser_{uuid4().hex[:12]}"
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
    with psycopg.connect(postgres_url, autocommit=True) as conn:
        conn.execute(create.format(sql.Identifier(name), sql.Identifier(migrated_template)))
    yield postgres_url.rsplit("/", 1)[0] + f"/{name}"
    with psycopg.connect(postgres_url, autocommit=True) as conn:
        conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="module")
def ids(shared_url: str) -> dict[str, UUID]:
    """The example traces, stored once."""
    return seed(shared_url)


@pytest.fixture(scope="module")
def address(shared_url: str, ids: dict[str, UUID]) -> Iterator[str]:
    """Where the triage page listens."""
    with serve_page(shared_url) as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests of this file."""
    with open_browser() as opened:
        yield opened


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A fresh session; the test fails when its page threw an error or asked anything beyond loopback."""
    opened = new_page(browser)
    strange = strange_requests(opened)
    faults: list[str] = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    yield opened
    opened.context.close()
    assert strange == []
    assert faults == []


def own_copy(shared_url: str, index: int = 1) -> UUID:
    """An example stored again under an id of its own, so that tests do not meet in one trace."""
    explanation = example_explanations()[index]
    trace = replace(explanation.trace, id=new_trace_id(explanation.trace.started_at))
    with database.connect(shared_url) as conn:
        return store_explanation(conn, replace(explanation, trace=trace))


def test_from_the_queue_to_a_stored_verdict(page: Page, address: str, shared_url: str) -> None:
    """Open the queue and a trace, click a span, see its chunk shares, give a verdict, find it stored."""
    trace_id = own_copy(shared_url)
    visit(page, address)
    row = page.locator(f'a.row[data-pick="{trace_id}/0"]')
    expect(row).to_contain_text("memory over documents")
    row.click()
    page.wait_for_url(re.compile(f"/trace\\?id={trace_id}&span=0"))
    settle(page)
    expect(page.locator(".finding .cause")).to_contain_text("chunk 1 says 7113")
    expect(page.locator(".card").first).to_contain_text("−0.42 nats")
    page.locator("mark.span", has_text="the north cluster").click()
    page.wait_for_url(re.compile("span=1"))
    settle(page)
    expect(page.locator(".card").first).to_contain_text("+7.30 nats")
    expect(page.locator(".finding")).to_contain_text("“the north cluster”")
    page.locator("mark.span", has_text="8080").click()
    expect(page.locator(".finding")).to_contain_text("“8080”")
    settle(page)
    page.get_by_label("Note").fill("checked with the owner")
    page.get_by_role("button", name=re.compile("^Fabricated")).click()
    expect(page.get_by_role("status")).to_contain_text("Saved")
    with database.connect(shared_url) as conn:
        stored = conn.execute(
            "SELECT span, verdict, cause, note, flagged_as FROM review WHERE trace_id = %s", (trace_id,)
        ).fetchall()
    assert stored == [(0, "fabricated", "memory over documents", "checked with the owner", "fabricated")]
    page.get_by_role("button", name=re.compile("Queue")).click()
    settle(page)
    expect(page.locator(f'a.row[data-pick="{trace_id}/0"]')).to_have_count(0)


def test_everything_works_from_the_keyboard(page: Page, address: str, shared_url: str) -> None:
    """Arrows and Enter open a row and select a span, a digit gives the verdict, J goes on."""
    trace_id = own_copy(shared_url)
    visit(page, address)
    page.locator("a.row").first.focus()
    page.keyboard.press("ArrowDown")
    focused = page.evaluate("document.querySelector('[data-testid=stApp]') && "
                            "[...document.querySelectorAll('*')].map(e => e.shadowRoot?.activeElement)"
                            ".find(Boolean)?.dataset.pick")  # fmt: skip
    assert focused == page.locator("a.row").nth(1).get_attribute("data-pick")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/trace"))
    visit(page, f"{address}/trace?id={trace_id}")
    span = page.locator("mark.span").nth(1)
    span.focus()
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("span=1"))
    expect(page.locator(".finding")).to_contain_text("“the north cluster”")
    settle(page)
    expect(page.locator("mark.span").nth(1)).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")
    page.locator(".finding").click()
    page.keyboard.press("5")
    expect(page.get_by_role("status")).to_contain_text("undetermined")
    with database.connect(shared_url) as conn:
        stored = conn.execute("SELECT span, verdict FROM review WHERE trace_id = %s", (trace_id,)).fetchall()
    assert stored == [(1, "undetermined")]
    page.keyboard.press("j")
    page.wait_for_function(f"!location.search.includes('{trace_id}')")


def test_hostile_text_does_nothing(page: Page, address: str, shared_url: str) -> None:
    """A trace full of payloads is text on every tab: nothing runs, nothing is fetched, nothing restyled."""
    dialogs: list[str] = []

    def dismiss(dialog: Dialog) -> None:
        dialogs.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", dismiss)
    explanation = hostile_explanation()
    with database.connect(shared_url) as conn:
        trace_id = store_explanation(conn, explanation)
    visit(page, address)
    expect(page.locator("a.row").first).to_be_visible()
    page.get_by_role("combobox", name="App").click()  # the hostile app name is among the options
    expect(page.get_by_role("option", name=HOSTILE[3])).to_be_visible()
    page.keyboard.press("Escape")
    for span in (0, 1, 9):
        visit(page, f"{address}/trace?id={trace_id}&span={span}")
        page.get_by_role("combobox", name="Token heat").click()
        page.get_by_role("option", name=re.compile("input x gradient")).click()
        settle(page)
        for tab in ("Prompt", "Numbers", "Raw", "Why"):
            page.get_by_role("tab", name=tab).click()
            page.wait_for_timeout(150)
        assert page.evaluate("window.ragblameHacked") is None
    shown = page.locator(".answer").inner_text()
    for payload in HOSTILE[:-1]:
        assert payload in shown
    page.get_by_label("Note").fill(HOSTILE[1])
    page.get_by_role("button", name=re.compile("^Fabricated")).click()
    expect(page.get_by_role("status")).to_contain_text("Saved")
    expect(page.locator(".finding")).to_contain_text(HOSTILE[1])  # the note, read back
    visit(page, f"{address}/?view=All+traces")
    expect(page.locator("a.row").first).to_be_visible()
    assert page.evaluate("window.ragblameHacked") is None
    assert dialogs == []
    foreign = page.evaluate(
        """() => [...document.querySelectorAll('*')]
            .flatMap(e => [e, ...(e.shadowRoot?.querySelectorAll('*') ?? [])])
            .filter(e => ['IFRAME', 'OBJECT', 'EMBED', 'FORM'].includes(e.tagName) || (e.tagName === 'IMG'
                && !e.src.startsWith(location.origin) && !e.src.startsWith('data:'))).length"""
    )
    assert foreign == 0


def test_forged_addresses_do_nothing(page: Page, address: str) -> None:
    """Markup and script in the address are data: the page says that it is no id."""
    payload = "%3Cimg%20src%3Dx%20onerror%3Dwindow.ragblameHacked%3D1%3E"
    visit(page, f"{address}/trace?id={payload}&span={payload}")
    expect(page.get_by_text("No trace chosen")).to_be_visible()
    visit(page, f"{address}/?q={payload}&app={payload}&verdict={payload}&view={payload}")
    expect(page.get_by_text("Nothing matches")).to_be_visible()
    assert page.evaluate("window.ragblameHacked") is None


def test_rows_are_links(page: Page, address: str, ids: dict[str, UUID]) -> None:
    """A row opens in a new tab by the usual means, and the address alone brings back trace and span."""
    visit(page, address)
    row = page.locator("a.row", has_text="falcon cache").first
    with page.context.expect_page() as opened:
        row.click(modifiers=["ControlOrMeta"])
    other = opened.value
    settle(other)
    assert str(ids["When was the falcon cach"]) in other.url
    expect(other.locator("mark.selected")).to_contain_text("2019")
    assert page.url.rstrip("/") == address


def test_one_screen_without_a_click(page: Page, address: str, ids: dict[str, UUID]) -> None:
    """At 1440 × 900 question, answer, cause, basis, verdict keys and first chunk are on screen at once."""
    visit(page, f"{address}/trace?id={ids['How long does the kestre']}")
    places = [
        page.locator(".question"),
        page.locator(".answer"),
        page.locator(".finding .cause"),
        page.locator(".finding > .facts"),
        page.get_by_role("button", name=re.compile("^Undetermined")),
        page.locator(".card").first,
    ]
    for place in places:
        box = place.bounding_box()
        assert box is not None
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= 900
        assert box["x"] + box["width"] <= 1440


def test_nothing_overflows(page: Page, address: str, ids: dict[str, UUID]) -> None:
    """On laptops and large screens nothing has to be scrolled sideways."""
    for path in ("/", "/?view=All+traces", f"/trace?id={ids['How long does the kestre']}", "/health"):
        visit(page, address + path)
        for width in (1024, 1440, 1920):
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(200)
            main = page.locator("[data-testid=stMain]")
            assert main.evaluate("e => e.scrollWidth <= e.clientWidth"), (path, width)


def test_waiting_trace_updates_by_itself(page: Page, address: str, shared_url: str) -> None:
    """A page opened before the worker is done shows the results when they are there, without a click."""
    explanation = example_explanations()[0]
    waiting = replace(
        bare_trace("not yet", "nothing"), answer=explanation.trace.answer, chunks=explanation.trace.chunks
    )
    with database.connect(shared_url) as conn:
        write_traces(conn, [waiting])
    visit(page, f"{address}/trace?id={waiting.id}")
    expect(page.get_by_text("Waiting for a worker")).to_be_visible()
    with database.connect(shared_url) as conn:
        store_explanation(conn, replace(explanation, trace=waiting))
        conn.execute(
            "DELETE FROM jobs.procrastinate_jobs WHERE queueing_lock = %s", (f"attribute-{waiting.id}",)
        )
    expect(page.locator(".finding .cause")).to_contain_text("chunk 1 says 14 days", timeout=30_000)


def test_new_spans_are_announced(page: Page, address: str, shared_url: str) -> None:
    """What is flagged while the queue is open is announced, and shown when asked for: rows never jump."""
    visit(page, address)
    before = page.locator("a.row").count()
    trace_id = own_copy(shared_url, 0)
    button = page.get_by_role("button", name=re.compile("^Show"))
    expect(button).to_be_visible(timeout=30_000)
    assert page.locator("a.row").count() == before
    page.keyboard.press("u")
    expect(page.locator(f'a.row[data-pick="{trace_id}/0"]')).to_be_visible()
    expect(button).to_have_count(0)


def test_both_themes_draw_the_same(browser: Browser, address: str, ids: dict[str, UUID]) -> None:
    """The dark theme has a dark page and light words; the text is the same, but for counts that go on: other
    tests of this file add traces, and the page keeps a count for a moment."""
    texts = []
    for theme in ("light", "dark"):
        page = new_page(browser, theme)
        visit(page, f"{address}/trace?id={ids['How long does the kestre']}")
        texts.append(re.sub(r"\d+ in (24 h|7 d)", r"n in \1", page.locator(".finding").inner_text()))
        colour = page.evaluate(
            "getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor"
        )
        assert colour == {"light": "rgb(255, 255, 255)", "dark": "rgb(16, 21, 28)"}[theme]
        page.context.close()
    assert texts[0] == texts[1]
