"""The report in a real browser: what it asks for, what it complains of, and whether it can be used.

Debian's chromium, without a window. Each width is a phone's, a tablet's or a desktop's.
"""

from __future__ import annotations

import os
import re
import struct
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from demo import pictures
from demo.browser import Browser
from demo.past import Past
from support.needs import need
from support.sidecar import Sidecar

from paliadin_sidecar.outbox.database import FILENAME

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MARKUP = "<img src=x onerror=\"document.title='hurt'\"><script>document.title='hurt'</script>"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of a week, one in German in which each value is hostile, and one of nothing."""
    need("chromium")
    found = {}
    for name in ("week", "hostile", "empty"):
        host = Sidecar(tmp_path_factory.mktemp(name), "http://127.0.0.1:1/")
        host.state.mkdir(mode=0o700)
        days = 0 if name == "empty" else 7
        past = Past(host.state / FILENAME, until=time.time(), days=days, per_day=120)
        past.play()
        if name == "hostile":
            host.environ["PALIADIN_HOST_LABEL"] = MARKUP
            past.rewrite("backend", "persona", "user", "turn_id", "why", "error", value=MARKUP)
        found[name] = host.base / "report.html"
        language = "de" if name == "hostile" else "en"
        done = host.typed("report", "--out", str(found[name]), "--language", language)
        assert done.returncode == 0, done.stderr
    return found


@pytest.fixture(scope="module")
def browser(pages: dict[str, Path]) -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture(autouse=True)
def usual(browser: Browser) -> None:
    """A wide screen, whatever the last test looked through."""
    browser.look()


@pytest.mark.parametrize("name", ["week", "hostile", "empty"])
@pytest.mark.parametrize(
    ("width", "dark"), [(1280, False), (1280, True), (704, True), (360, False)]
)
def test_it_is_quiet_and_fits(
    browser: Browser, pages: dict[str, Path], name: str, width: int, *, dark: bool
) -> None:
    """No message on the console, no request but the page itself, nothing to scroll sideways."""
    browser.look(width=width, dark=dark)
    browser.open(pages[name].as_uri())
    assert browser.requests == [pages[name].as_uri()]
    for detail in ("open", "closed"):
        browser.value(
            "document.querySelectorAll('details').forEach("
            f"(one) => {{ one.open = {str(detail == 'open').lower()} }})"
        )
        assert browser.value("document.documentElement.scrollWidth") <= width
        assert browser.value("innerWidth") == width
    assert "hurt" not in browser.value("document.title")
    assert browser.messages == []
    dark_ground = browser.value("getComputedStyle(document.body).backgroundColor")
    assert dark_ground == ("rgb(18, 23, 29)" if dark else "rgb(255, 255, 255)")
    shown = browser.value(
        "[...document.querySelectorAll('.chart')].map("
        "(one) => [one.classList[1], one.getBoundingClientRect().width > 0])"
    )
    assert all(seen == ((kind == "small") == (width <= 704)) for kind, seen in shown)


@pytest.fixture
def served(pages: dict[str, Path]) -> Iterator[str]:
    """The week's address on a web server of this machine."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Keep the tests' output clean."""

    handler = partial(Handler, directory=str(pages["week"].parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/report.html"
        server.shutdown()
        thread.join()


def test_from_a_server_too_it_asks_for_nothing(browser: Browser, served: str) -> None:
    """Not for an icon either."""
    browser.open(served)
    assert browser.requests == [served]
    assert browser.messages == []


def test_its_policy_holds(browser: Browser, pages: dict[str, Path]) -> None:
    """What somebody put into the page would not run or load: so its silence means something."""
    browser.open(pages["week"].as_uri())
    browser.value(
        "document.body.insertAdjacentHTML('beforeend', "
        '\'<img src="http://127.0.0.1:1/x.png"><p style="color: red">x</p>\')'
    )
    browser.value(
        "{ const one = document.createElement('script'); one.textContent = 'document.title = 1'"
        "; document.body.append(one); document.title }"
    )
    assert browser.value("document.title").startswith("Paliadin")
    assert sum("Content Security Policy" in one for one in browser.messages) >= 3


def test_by_keyboard(browser: Browser, pages: dict[str, Path]) -> None:
    """The first key leads past the links; Enter on a column's head sorts by it, and again back."""
    browser.open(pages["week"].as_uri())
    browser.press("Tab", 9)
    assert browser.value("document.activeElement.getAttribute('href')") == "#report"
    browser.press("Enter", 13)
    assert browser.value("document.activeElement.id") == "report"
    seen = []
    took = (
        "[...document.querySelectorAll('[aria-labelledby=slowest] tbody td.number')]"
        ".filter((_, at) => at % 2 == 0).map((one) => Number(one.dataset.sort))"
    )
    before = browser.value(took)
    for _ in range(60):
        browser.press("Tab", 9)
        place = browser.value(
            "(document.activeElement.closest('section')?.getAttribute('aria-labelledby') ?? '')"
            " + ' ' + document.activeElement.textContent"
        )
        seen.append(place)
        assert browser.value("document.activeElement.matches(':focus-visible')")
        if place == "slowest Took":
            break
    assert seen[-1] == "slowest Took", seen
    browser.press("Enter", 13)
    head = "document.activeElement.closest('th').getAttribute('aria-sort')"
    assert browser.value(head) == "ascending"
    assert browser.value(took) == sorted(before)
    browser.press("Enter", 13)
    assert browser.value(head) == "descending"
    assert browser.value(took) == sorted(before, reverse=True)


def nodes(browser: Browser) -> list[dict[str, Any]]:
    """What a screen reader gets."""
    tree = browser.call("Accessibility.getFullAXTree")["nodes"]
    return [
        {"role": one["role"]["value"], "name": one.get("name", {}).get("value", "")}
        for one in tree
        if not one["ignored"] and "role" in one
    ]


@pytest.mark.parametrize("width", [1280, 360])
def test_by_screen_reader(browser: Browser, pages: dict[str, Path], width: int) -> None:
    """Headings, landmarks, pictures with what they show, and tables, also where they are lists."""
    browser.look(width=width)
    browser.open(pages["week"].as_uri())
    nodes_read = nodes(browser)
    roles = [one["role"] for one in nodes_read]
    assert {"banner", "navigation", "main", "contentinfo"} <= set(roles)
    assert roles.count("heading") == 11
    pictures = [one for one in nodes_read if one["role"] in {"img", "image"}]
    assert len(pictures) == 5
    for one in pictures:
        assert len(one["name"]) > 40, one["name"]
    tables = [one for one in nodes_read if one["role"] == "table"]
    seen = "[...document.querySelectorAll('table')].filter((one) => !one.closest('details')).length"
    assert len(tables) == browser.value(seen) >= 7
    assert all(one["name"] for one in tables)
    assert {"row", "cell", "columnheader", "rowheader"} <= set(roles)


def test_on_paper(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    """A4, in the colours of paper whatever its reader prefers, with the tables that are closed."""
    browser.look(dark=True)
    browser.open(pages["week"].as_uri())
    browser.print(tmp_path / "report.pdf")
    sheets = re.findall(
        rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", (tmp_path / "report.pdf").read_bytes()
    )
    assert 4 <= len(sheets) <= 12
    for width, height in sheets:
        assert (round(float(width)), round(float(height))) == (595, 842)
    browser.look(width=680, dark=True, paper=True)
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.value("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert browser.value("document.documentElement.scrollWidth") <= 680
    closed = "document.querySelector('details:not([open]) table').getBoundingClientRect().height"
    assert browser.value(closed) > 50


def test_the_pictures_of_the_documents(browser: Browser, tmp_path: Path) -> None:
    """Each is made, and each that a document shows is one of them."""
    zone = os.environ.get("TZ")
    try:
        pictures.make(tmp_path)
    finally:
        os.environ.pop("TZ")
        if zone is not None:
            os.environ["TZ"] = zone
        time.tzset()
    made = {path.name for path in tmp_path.iterdir()}
    assert made == set(pictures.PICTURES)
    assert made == {path.name for path in (ROOT / "docs/pictures").iterdir()}
    for path in tmp_path.iterdir():
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        assert width == pictures.PICTURES[path.name][0]
        assert height > 300
    shown = [
        name
        for document in (ROOT / "README.md", ROOT / "docs/audit.md")
        for name in re.findall(r"pictures/([\w-]+\.png)", document.read_text())
    ]
    assert set(shown) == made


def test_without_its_script(browser: Browser, pages: dict[str, Path]) -> None:
    """All is there, and no button that does nothing."""
    browser.look(width=360)
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(pages["week"].as_uri())
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    assert browser.value("document.querySelectorAll('button').length") == 0
    assert browser.value("document.querySelectorAll('tbody tr').length") > 50
    assert browser.value("document.documentElement.scrollWidth") <= 360
