"""A real browser: pages are opened from files, and whatever they complain of or ask for is written down."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import teleojax as tj
from tests.pages.networks import fitted

ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "out" / "pages"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SIZES = {"desktop": (1400, 900), "phone": (360, 740)}
SCHEMES = ("light", "dark")


@dataclass
class Opened:
    """A page in the browser, with what it said and asked for."""

    page: Any
    url: str
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def rows(self) -> list[str]:
        """The names in the part of the table that shows."""
        return self.page.eval_on_selector_all("#table tbody th", "cells => cells.map(cell => cell.textContent)")

    def every_row(self) -> list[str]:
        """The names on all parts of the table, from the first."""
        while self.page.is_enabled("#previous"):
            self.page.click("#previous")
        found = self.rows()
        while self.page.is_enabled("#next"):
            self.page.click("#next")
            found += self.rows()
        return found

    def source(self, figure: str, name: str) -> dict[str, list[Any]]:
        """The data of one glyph of a figure, as the browser holds them."""
        code = f"JSON.stringify(figures.{figure}.document.get_model_by_name('{name}').data)"
        return self.page.evaluate(f"JSON.parse({code})")

    def choose(self, tensor: str) -> None:
        """Click on the row of a tensor."""
        self.page.fill("#filter", tensor)
        self.page.locator("#table tbody tr").first.locator("td").last.click()
        assert self.page.inner_text("#detail-name") == tensor

    def saved(self, button: str) -> str:
        """What a download holds."""
        with self.page.expect_download() as waiting:
            self.page.click(button)
        return Path(waiting.value.path()).read_bytes().decode()

    def shoot(self, name: str) -> None:
        """Keep a picture of the whole page under out/pages/."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


@pytest.fixture(scope="session")
def report() -> tj.Report:
    return fitted()


@pytest.fixture(scope="session")
def page(report: tj.Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    report.to_html(path)
    return path


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=program, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Opened]]:
    """Open a file; at the end of the test, no page may have complained or asked for anything but itself."""
    visited: list[Opened] = []

    def open_(path: Path, size: str = "desktop", scheme: str = "light", **options: Any) -> Opened:
        width, height = SIZES[size]
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
        opened = Opened(context.new_page(), path.as_uri())
        visited.append(opened)
        opened.page.on("console", lambda m: opened.errors.append(m.text) if m.type in ("error", "warning") else None)
        opened.page.on("pageerror", lambda e: opened.errors.append(str(e)))
        opened.page.on("dialog", lambda d: (opened.errors.append(f"dialog {d.message}"), d.dismiss()))
        opened.page.on("request", lambda r: opened.requests.append(r.url))
        opened.page.goto(opened.url)
        opened.page.wait_for_selector("html[data-ready]", timeout=20_000)
        return opened

    yield open_
    for opened in visited:
        opened.page.wait_for_timeout(50)
        opened.page.context.close()
        assert opened.errors == []
        assert [r for r in opened.requests if not r.startswith("blob:")] == [opened.url]
