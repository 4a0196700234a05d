"""Real Streamlit and real Chromium for tests and for the README's screenshot; nothing leaves loopback.

with serve_page(database_url) as address, open_browser() as browser:
    screenshot(browser, f"{address}/", Path("docs/triage.png"))
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit
from urllib.request import urlopen

from playwright.sync_api import Browser, Page, Request, sync_playwright

from ragblame.ui.launch import streamlit_command

Theme = Literal["light", "dark"]

START_SECONDS = 90
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# No sandbox: tests run as root in containers. The rest keeps the browser itself from calling home.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
]


@contextmanager
def serve_page(database_url: str) -> Iterator[str]:
    """The triage page as ``ragblame ui`` serves it, on a free port; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAGBLAME_")}
    environment["RAGBLAME_DATABASE_URL"] = database_url
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as log:
        command = streamlit_command(address="127.0.0.1", port=port)
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            _await_health(process, address)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Headless Chromium of the system; raises ``FileNotFoundError`` when there is none."""
    if CHROMIUM is None:
        raise FileNotFoundError("no chromium on the path: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def new_page(browser: Browser, theme: Theme = "light", width: int = 1440, height: int = 900) -> Page:
    """A page of its own session with the given size and colours."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
    page = context.new_page()
    page.set_default_timeout(30_000)
    return page


def visit(page: Page, url: str) -> None:
    """Go there and wait until Streamlit has drawn everything."""
    page.goto(url)
    settle(page)


def settle(page: Page) -> None:
    """Wait until the script has run and nothing is stale."""
    page.wait_for_selector(".ragblame > *")
    page.wait_for_function(
        "() => document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'"
        " && !document.querySelector('[data-stale=true]')"
    )


def strange_requests(page: Page) -> list[str]:
    """A list that fills with the address of every request that would leave loopback."""
    found: list[str] = []

    def look(request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob", "about") and address.hostname != "127.0.0.1":
            found.append(request.url)

    page.on("request", look)
    return found


def screenshot(browser: Browser, url: str, path: Path, theme: Theme = "light", *, full: bool = False) -> None:
    """Save a picture of a page of the triage view; ``full``: as tall as the page, up to 3000 pixels."""
    page = new_page(browser, theme)
    try:
        visit(page, url)
        page.wait_for_timeout(1_200)  # charts fade in
        if full:
            height = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
            page.set_viewport_size({"width": 1440, "height": min(int(height) + 10, 3_000)})
            page.wait_for_timeout(600)
        page.screenshot(path=path)
    finally:
        page.context.close()


def _await_health(process: "subprocess.Popen[bytes]", address: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, "the triage page ended while starting"
        try:
            with urlopen(f"{address}/_stcore/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            assert time.monotonic() < deadline, "the triage page does not get ready"
            time.sleep(0.1)
