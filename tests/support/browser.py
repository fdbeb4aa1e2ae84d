"""A real browser, for tests of the page: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from tests.support.child import find_program

# Root has no sandbox; and nothing but the page may make a connection.
_ARGUMENTS = ("--no-sandbox", "--disable-background-networking", "--disable-component-update")
TIMEOUT_MS = 30_000


@contextlib.contextmanager
def chromium(program: Path | None = None) -> Iterator[Browser]:
    """Start it without a window; it ends with the block. Another `program` is a script that starts it its own way."""
    program = program or Path(find_program("chromium", package="chromium"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(_ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def tab(browser: Browser, *, dark: bool = False, width: int = 1280, height: int = 800) -> Iterator[Page]:
    """A page with storage of its own. What it complains about fails the test when the block is left: errors of scripts,
    and what the content policy had to stop. Requests that fail are the page's to handle.
    """
    complaints: list[str] = []
    scheme = "dark" if dark else "light"

    def hear(message: ConsoleMessage) -> None:
        if message.type == "error" and not message.text.startswith(
            ("Failed to load resource", "WebSocket connection")
        ):
            complaints.append(message.text)

    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height})
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    page.on("console", hear)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    try:
        yield page
    finally:
        context.close()
    assert complaints == []
