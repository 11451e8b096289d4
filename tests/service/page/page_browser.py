"""A page that is watched: it may ask its own service alone, and nothing may go wrong in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def watched_page(browser: Any, url: str, *, expected: tuple[int, ...] = (), **options: Any) -> Iterator[Any]:
    """`url` in a fresh profile. `expected`: statuses above 399 that are part of the test."""
    wrong: list[str] = []
    own = url.split("/#")[0].rstrip("/") + "/"

    def console(said: Any) -> None:
        """Warnings of the software renderer are not ours."""
        if said.type == "error" and not any(f"status of {status}" in said.text for status in expected):
            wrong.append(said.text)

    def response(got: Any) -> None:
        if got.status >= 400 and got.status not in expected:
            wrong.append(f"{got.status} {got.url}")

    def request(asked: Any) -> None:
        if not asked.url.startswith((own, "data:", "blob:")):
            wrong.append(f"asked {asked.url}")

    context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})
    try:
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", console)
        page.on("response", response)
        page.on("request", request)
        page.goto(url)
        yield page
    finally:
        context.close()
    assert wrong == [], wrong
