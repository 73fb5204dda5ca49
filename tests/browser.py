"""Headless Chromium that opens a file and keeps what must not happen: words on its console, errors, requests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
_ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run", "--disable-dev-shm-usage",
]  # fmt: skip
MILLISECONDS = 60_000

Scheme = Literal["light", "dark"]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the system's Chromium; skip where there is none. It ends with the block."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(_NAMES)} is installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """A page that is open, and what it did."""

    page: Page
    requests: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def assert_quiet(self, path: Path) -> None:
        """It asked for itself, once, and said nothing."""
        assert self.requests == [path.as_uri()]
        assert self.said == []

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than the window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))


@contextmanager
def visit(browser: Browser, path: Path, *, scheme: Scheme = "light", width: int = 1280) -> Iterator[Visit]:
    """Open a file in a window of its own, with nothing kept from before."""
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}, offline=True)
    context.set_default_timeout(MILLISECONDS)
    try:
        opened = Visit(context.new_page())
        context.on("request", lambda request: opened.requests.append(request.url))
        context.on("weberror", lambda error: opened.said.append(str(error.error)))
        opened.page.on("pageerror", lambda error: opened.said.append(str(error)))
        opened.page.on("console", lambda message: opened.said.append(f"{message.type}: {message.text}"))
        opened.page.on("dialog", lambda dialog: opened.said.append(f"dialog: {dialog.message}"))
        opened.page.goto(path.as_uri())
        yield opened
    finally:
        context.close()
