"""A browser, and services for it to look at."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from page_browser import watched_page
from page_station import Station, station

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--no-sandbox",
    "--disable-background-networking",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """No longer than its module: Playwright keeps an event loop, and `asyncio.run` of other tests refuses beside it."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def look(browser: Any) -> Iterator[Callable[..., Any]]:
    """`look(url, color_scheme="dark")`: the page in a fresh profile, watched."""
    with ExitStack() as stack:
        yield lambda url, **options: stack.enter_context(watched_page(browser, url, **options))


@pytest.fixture
def open_station(tmp_path: Path) -> Iterator[Callable[..., Station]]:
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(station(tmp_path, **options))
