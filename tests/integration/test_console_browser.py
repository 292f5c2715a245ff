"""The console in a real browser: by keyboard alone, light and dark, narrow and wide, with nothing for axe to say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from seawall.console.shapes import RoomNow
from tests.support import chromium
from tests.support.console import Served, an_hour, letter, recent, served
from tests.support.ledger_rows import ALLOW, BLOCK, WITHDRAWN, word

LONG = "g-" + "0123456789abcdef" * 7
PAGES = {
    "now": "/",
    "decisions": "/decisions",
    "nothing found": "/decisions?actor=nobody",
    "a wrong field": "/decisions?since=yesterday&actor=actor-3",
    "decision": "/decisions/g-23",
    "a decision of a long id": f"/decisions/{LONG}",
    "a decision that a person overturned": "/decisions/g-57",
    "one that was decided anew since": "/decisions/g-63",
    "one whose word was taken back": "/decisions/g-51",
    "overridden": "/decisions?overridden=yes",
    "not found": "/decisions/g-unknown",
    "dead letters": "/dead-letters",
    "policies": "/policies",
    "artefacts": "/artefacts",
    "no such page": "/nothing",
}
READY = RoomNow(room="aggregator", ready=True, lag_seconds=0.02, watermark_seconds=0.3)
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    long = recent(1, ago=2, outcome=BLOCK, generation_id=LONG, actor_id="actor-" + "9" * 120, decision_id="d" * 32)
    made = [*an_hour(120), long]
    words = [word(made[57], ALLOW), word(made[63], ALLOW, decision_ids=[]), word(made[51], WITHDRAWN)]
    folder = tmp_path_factory.mktemp("console")
    with served(folder, decisions=made, letters=[letter(1, ago=50)], words=words) as running:
        running.look(READY)
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.browser() as running:
        yield running


@contextmanager
def signed_in(
    browser: Browser, console: Served, *, scheme: str = "light", size: dict[str, int] = WIDE
) -> Iterator[Page]:
    """A page that may see everything; what its console says is an error, breaches of the CSP above all."""
    context = browser.new_context(color_scheme=scheme, viewport=size)  # type: ignore[arg-type]
    context.set_default_timeout(15_000)
    page = context.new_page()
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    sign_in(page, console)
    yield page
    context.close()
    # The browser itself says which answers were failures; those are meant.
    assert [one for one in said if "the server responded with a status of" not in one] == []


def sign_in(page: Page, console: Served) -> None:
    """By the link, with one key."""
    page.goto(console.link)
    # The browser moves the focus there some time after it has loaded the page.
    expect(page.get_by_role("button", name="Sign in")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Now", level=1)).to_be_visible()


def violations(page: Page) -> list[str]:
    """What axe finds wrong, whatever its impact."""
    found = Axe().run(page).response["violations"]
    return [f"{one['id']} ({one['impact']}): {[node['target'] for node in one['nodes'][:3]]}" for one in found]


@pytest.mark.parametrize(
    ("scheme", "size"), [("light", WIDE), ("dark", WIDE), ("light", NARROW)], ids=["light", "dark", "narrow"]
)
def test_every_page_is_accessible_and_fits(
    browser: Browser, console: Served, scheme: str, size: dict[str, int]
) -> None:
    with signed_in(browser, console, scheme=scheme, size=size) as page:
        for name, path in PAGES.items():
            page.goto(console.address + path)
            assert violations(page) == [], name
            too_wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert too_wide <= 0, name
            assert page.evaluate("document.querySelectorAll('h1').length") == 1, name
        page.keyboard.press("?")
        expect(page.get_by_role("dialog")).to_be_visible()
        assert violations(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_signing_in_is_accessible(browser: Browser, console: Served, scheme: str) -> None:
    context = browser.new_context(color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(f"{console.address}/login")
    assert violations(page) == []
    page.get_by_label("One-time token").fill("not it")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("not good")
    assert violations(page) == []
    context.close()


def test_from_now_to_why_by_keyboard_alone(browser: Browser, console: Served) -> None:
    with signed_in(browser, console) as page:
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the page")).to_be_focused()
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        page.keyboard.press("g")
        page.keyboard.press("d")
        expect(page.get_by_role("heading", name="Decisions", level=1)).to_be_visible()
        page.keyboard.press("/")
        expect(page.get_by_label("Id", exact=True)).to_be_focused()
        # Letters that are typed are no commands.
        page.keyboard.type("g-23")
        page.keyboard.press("Enter")
        page.wait_for_url("**/decisions?id=g-23*")
        page.keyboard.press("j")
        expect(page.get_by_role("link", name="g-23", exact=True)).to_be_focused()
        assert page.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "2px"
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_contain_text("g-23")
        expect(page.get_by_text("demo/stand-in-017")).to_be_visible()
        page.keyboard.press("?")
        expect(page.get_by_role("dialog")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_be_hidden()
        for key, heading in {"l": "Dead letters", "p": "Policies", "m": "Models and lists", "n": "Now"}.items():
            page.keyboard.press("g")
            page.keyboard.press(key)
            expect(page.get_by_role("heading", name=heading, level=1)).to_be_visible()


def test_every_control_is_reached_by_tab(browser: Browser, console: Served) -> None:
    with signed_in(browser, console) as page:
        for path in ("/", "/decisions", "/decisions/g-23"):
            page.goto(console.address + path)
            controls = page.evaluate(
                "document.querySelectorAll('a[href], button, input:not([type=hidden]), select, summary').length"
                " - document.querySelectorAll('dialog button').length"
            )
            reached = set()
            for _ in range(controls + 20):
                page.keyboard.press("Tab")
                reached.add(
                    page.evaluate(
                        "[...document.querySelectorAll('a[href], button, input:not([type=hidden]), select, summary')]"
                        ".indexOf(document.activeElement)"
                    )
                )
            assert len(reached - {-1}) == controls, path


def test_rows_are_walked_and_keys_stop_at_their_ends(browser: Browser, console: Served) -> None:
    with signed_in(browser, console) as page:
        page.goto(f"{console.address}/decisions?outcome=HOLD")
        names = page.locator("tr.row a[href^='/decisions/g-']").all_inner_texts()
        assert len(names) == 3
        for key, at in (("j", 0), ("j", 1), ("j", 2), ("j", 2), ("k", 1), ("k", 0), ("k", 0)):
            page.keyboard.press(key)
            assert page.evaluate("document.activeElement.innerText") == names[at]


def test_a_long_id_shows_its_end_and_is_copied_whole(browser: Browser, console: Served) -> None:
    with signed_in(browser, console) as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.goto(f"{console.address}/decisions?outcome=BLOCK")
        page.keyboard.press("j")
        folded = page.locator("tr.row a:focus .id")
        # Shown are its beginning and its end; over them, while it has the focus, all of it.
        assert folded.text_content() == LONG
        assert folded.locator(".middle").evaluate("one => one.getBoundingClientRect().width") < 20
        assert folded.evaluate("one => getComputedStyle(one, '::after').content") == f'"{LONG}"'
        page.keyboard.press("c")
        expect(page.get_by_role("status").filter(has_text="Copied")).to_have_text(f"Copied {LONG}")
        assert page.evaluate("navigator.clipboard.readText()") == LONG
        page.goto(f"{console.address}/decisions/g-23")
        page.get_by_role("button", name="Copy id").click()
        expect(page.get_by_role("status").filter(has_text="Copied")).to_have_text("Copied g-23")


@pytest.mark.parametrize(("scheme", "other"), [("light", "dark"), ("dark", "light")])
def test_the_theme_follows_the_machine_until_somebody_chooses(
    browser: Browser, console: Served, scheme: str, other: str
) -> None:
    def is_dark(page: Page) -> bool:
        colour = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")) < 382

    with signed_in(browser, console, scheme=scheme) as page:
        assert is_dark(page) == (scheme == "dark")
        page.keyboard.press("t")
        assert is_dark(page) == (other == "dark")
        page.goto(f"{console.address}/policies")
        assert is_dark(page) == (other == "dark")
        page.get_by_role("button", name="Change between light and dark").click()
        assert is_dark(page) == (scheme == "dark")


def test_now_tells_of_a_room_that_stops_and_when_it_is_old_itself(browser: Browser, console: Served) -> None:
    with signed_in(browser, console) as page:
        page.clock.install()
        page.goto(console.address)
        expect(page.get_by_role("cell", name="ready")).to_be_visible()
        console.look(RoomNow(room="aggregator", ready=True, halted="FUSE_TRIPPED"))
        page.clock.run_for(6_000)
        expect(page.get_by_text("aggregator stands still: FUSE_TRIPPED")).to_be_visible()
        console.look(READY)
        page.get_by_role("button", name="Pause updates").click()
        page.clock.run_for(11_000)
        expect(page.get_by_text("aggregator stands still: FUSE_TRIPPED")).to_be_visible()
        page.get_by_role("button", name="Go on updating").click()
        page.clock.run_for(6_000)
        expect(page.get_by_text("aggregator stands still: FUSE_TRIPPED")).to_be_hidden()


def test_figures_that_are_old_say_so(browser: Browser, console: Served) -> None:
    context = browser.new_context()
    page = context.new_page()
    sign_in(page, console)
    page.clock.install()
    page.goto(console.address)
    page.route("**/*", lambda route: route.abort())
    page.clock.run_for(6_000)
    expect(page.get_by_text("no answer: these figures are old")).to_be_visible()
    page.unroute_all()
    page.clock.run_for(6_000)
    expect(page.get_by_text("no answer: these figures are old")).to_be_hidden()
    # The session has ended meanwhile: the page becomes the sign-in, not a sign-in within a page.
    context.clear_cookies()
    page.clock.run_for(6_000)
    page.wait_for_url("**/login?next=*")
    context.close()


def test_a_view_is_kept_and_forgotten(browser: Browser, console: Served) -> None:
    with signed_in(browser, console) as page:
        page.goto(f"{console.address}/decisions")
        page.get_by_label("Outcome").select_option("BLOCK")
        page.get_by_role("button", name="Search").click()
        page.get_by_label("Name of a view").fill("blocked ones")
        page.get_by_role("button", name="Keep").click()
        page.goto(f"{console.address}/decisions")
        page.get_by_role("link", name="blocked ones").click()
        page.wait_for_url("**/decisions?outcome=BLOCK")
        page.get_by_role("button", name="Delete the view blocked ones").click()
        expect(page.get_by_role("link", name="blocked ones")).to_be_hidden()


def test_an_export_is_a_file(browser: Browser, console: Served, tmp_path: Path) -> None:
    with signed_in(browser, console) as page:
        page.goto(f"{console.address}/decisions?outcome=HOLD")
        with page.expect_download() as download:
            page.get_by_role("link", name="CSV").click()
        file = tmp_path / "decisions.csv"
        download.value.save_as(file)
        assert len(file.read_text("utf-8").splitlines()) == 4
