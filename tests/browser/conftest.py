"""A real browser, where there is one."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS = 120_000
"""A machine that also builds something else needs minutes for what takes a second."""


@dataclass
class Visit:
    """A page that is open, and what happened on it."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    """Errors of the page's scripts and of the browser, and requests that failed."""
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")  # while it is open, its thread has an event loop, which other modules' tests may not
def browser() -> Iterator[Any]:
    path = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is here: `make browser`")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, timeout=PATIENCE_MS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Visit]]:
    """Opens an address in a window of the given width; further arguments are those of Playwright's `new_context`."""
    opened = []

    def go(url: str, width_px: int = 1280, **options: Any) -> Visit:
        context = browser.new_context(viewport={"width": width_px, "height": 900}, **options)
        context.set_default_timeout(PATIENCE_MS)
        opened.append(context)
        seen = Visit(context.new_page())
        seen.page.on("console", lambda said: seen.complaints.append(said.text) if said.type == "error" else None)
        seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        seen.page.on("requestfailed", lambda request: seen.complaints.append(f"failed: {request.url[:200]}"))
        seen.page.on("request", lambda request: seen.requests.append(request.url))
        seen.page.goto(url)
        return seen

    yield go
    for context in opened:
        context.close()
