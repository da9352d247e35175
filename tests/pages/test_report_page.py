"""The page of a report in a real browser: what it shows is what was fitted, to every hand and eye."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import halfnorm, norm

import teleojax as tj
from teleojax.cli import run
from teleojax.report._table import Cells
from teleojax.report.page._places import Group, Place, extremes
from tests.pages.conftest import SCHEMES, SIZES, Opened
from tests.pages.networks import DOWN, UP, Q, layers, name

Visit = Callable[..., Opened]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_page_is_readable_and_accessible(page: Path, visit: Visit, size: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    plain = visit(page, size, scheme)
    plain.shoot(f"report-{size}-{scheme}")
    width = plain.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert width[0] <= width[1]
    wide = plain.page.eval_on_selector_all("#table .wide", "cells => cells.filter(c => c.offsetWidth > 0).length")
    assert (wide > 0) == (size == "desktop")
    paper = plain.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 29)"}[scheme]
    tested = visit(page, size, scheme, bypass_csp=True)  # axe is a script that the policy does not know
    tested.page.click("summary")
    found = axe.run(tested.page)
    assert found.response["violations"] == [], found.generate_report()
    assert len(found.response["passes"]) > 15


def test_the_policy_lets_nothing_out(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.replace("&#39;", "'").split("; ")}
    assert rules["default-src"] == ["'none'"]
    assert rules["img-src"] == ["data:"]
    assert all(source.startswith("'sha256-") for source in rules["script-src"])
    assert len(rules["script-src"]) == 3
    assert all(source.startswith(("'sha256-", "'nonce-")) for source in rules["style-src"])
    assert "Copyright (c) Anaconda, Inc., and Bokeh Contributors" in text


def test_equal_results_give_equal_pages(report: tj.Report, page: Path) -> None:
    assert report.to_html() == page.read_text(encoding="utf-8")


def test_what_is_said_in_words(report: tj.Report, page: Path, visit: Visit) -> None:
    shown = visit(page).page.inner_text("main")
    assert "mean distance from arbitrage equilibrium is" in shown
    roles, depths = report.group_by("role"), report.group_by("depth")
    known = {r.name: r.lognormal.kl_nats for r in roles.values() if r.role and r.lognormal}
    near, far = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    assert re.search(rf"By role, {near} is nearest .*{known[near]:.4f}.* and {far} farthest .*{known[far]:.4f}", shown)
    numbers = [g.lognormal.mu for g in (*roles.values(), *depths.values()) if g.lognormal]
    assert len(numbers) == 13
    assert all(f"{mu:.4f}" in shown for mu in numbers)


@pytest.mark.parametrize("key", ["name", "depth", "mu", "kl_nats", "best_bic"])
def test_headings_sort(report: tj.Report, page: Path, visit: Visit, key: str) -> None:
    opened = visit(page)
    column = ["name", "role", "depth", "n", "mu", "sigma", "kl_nats", "best_bic", "gain"].index(key)
    heading = opened.page.locator("#table thead th").nth(column)
    rows = {r.name: r.to_dict()[key] for r in report.values()}
    there = [n for n in rows if rows[n] is not None]

    def natural(n: str) -> Any:
        value = rows[n]
        return [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", value)] if isinstance(value, str) else value

    directions = set()
    for _ in range(2):
        heading.locator("button").click()
        assert opened.page.locator("#table th[aria-sort]").count() == 1
        directions.add(direction := heading.get_attribute("aria-sort"))
        found = opened.every_row()
        ordered = sorted(there, key=natural, reverse=direction == "descending")
        assert [rows[n] for n in found[: len(there)]] == [rows[n] for n in ordered]
        assert set(found[len(there) :]) == {n for n in rows if rows[n] is None}
        assert len(found) == len(report)
    assert directions == {"ascending", "descending"}


def test_filters_narrow_the_table(report: tj.Report, page: Path, visit: Visit) -> None:
    opened = visit(page)
    opened.page.fill("#filter", "LAYERS.3 weight")
    assert opened.every_row() == [n for n in report if "layers.3." in n]
    assert opened.page.inner_text("#count") == f"3 of {len(report)} rows"
    opened.page.fill("#filter", "")
    opened.page.select_option("#role-filter", "up")
    assert opened.every_row() == [n for n, r in report.items() if r.role == "up"]
    opened.page.fill("#filter", "nothing has this name")
    assert opened.page.inner_text("#table tbody") == "No row matches the filter."
    opened.page.select_option("#role-filter", "")
    opened.page.fill("#filter", "degenerate")
    assert opened.every_row() == ["zeros"]


@pytest.mark.parametrize("part", [Q, UP, DOWN])
def test_a_click_shows_the_law_of_the_values(report: tj.Report, page: Path, visit: Visit, part: str) -> None:
    opened, tensor = visit(page), name(3, part)
    opened.choose(tensor)
    y = np.log(np.abs(layers(0)[tensor].astype(np.float64))).ravel()
    bars = {key: np.asarray(opened.source("density", "bars")[key]) for key in ("left", "right", "top")}
    assert 10 < len(bars["top"]) <= 120
    share = bars["top"] * (bars["right"] - bars["left"])
    assert share.sum() == pytest.approx(1, abs=2e-3)
    for edge in bars["right"]:
        assert share[bars["right"] <= edge].sum() == pytest.approx(np.mean(y <= edge), abs=5e-3)
    lines = opened.source("density", "lines")
    fit, families = report[tensor].lognormal, report[tensor].families
    assert fit is not None
    assert families is not None
    laws = {
        "lognormal": norm.logpdf(lines["xs"][0], fit.mu, fit.sigma),
        "halfnormal": halfnorm.logpdf(np.exp(lines["xs"][1]), scale=families["halfnormal"].params["scale"])
        + lines["xs"][1],
    }
    for drawn, law in zip(lines["ys"], laws.values(), strict=False):
        pairs = [(math.log(d), p) for d, p in zip(drawn, law, strict=True) if d is not None]
        assert len(pairs) > 15
        assert all(d == pytest.approx(p, abs=6e-3) for d, p in pairs)
    assert len(lines["ys"]) == 3


def test_a_click_shows_the_utility_of_its_categories(report: tj.Report, page: Path, visit: Visit) -> None:
    opened, tensor = visit(page), name(2, DOWN)
    opened.choose(tensor)
    fit = report[tensor].lognormal
    assert fit is not None
    bars, points = opened.source("density", "bars"), opened.source("utility", "points")
    middles = (np.asarray(bars["left"]) + np.asarray(bars["right"])) / 2
    assert len(points["x"]) > 20
    for y, utility in zip(points["x"], points["y"], strict=True):
        density = bars["top"][int(np.argmin(np.abs(middles - y)))]
        assert utility == pytest.approx(
            fit.alpha * y - fit.beta * y**2 - math.log(density) + y - math.log(4200), abs=0.02
        )
    curve, star = opened.source("utility", "lines")["ys"]
    assert star == [pytest.approx(fit.h_star)] * 2
    assert np.abs(np.asarray(curve, float) - fit.h_star).max() < 0.5  # lognormal values: all but flat


def test_a_click_shows_fits_and_numbers(report: tj.Report, page: Path, visit: Visit) -> None:
    opened, tensor = visit(page), name(0, Q)
    opened.choose(tensor)
    fits = opened.page.inner_text("#detail-fits").replace("−", "-")
    families = report[tensor].families
    assert families is not None
    for family, fit in families.items():
        assert family in fits
        for key, value in fit.params.items():
            assert f"{key} {float(f'{value:.4g}')}" in fits
        if family != "lognormal":
            assert f"{report[tensor].gain(family):+.4f}" in fits
    opened.page.click("summary")
    assert f"{report[tensor].lognormal.kl_nats:.4g}" in opened.page.inner_text("#detail-numbers")
    opened.choose("zeros")
    assert opened.page.inner_text("#detail-reason") == "no finite non-zero value"
    assert not opened.page.is_visible("#density")
    assert not opened.page.is_visible("#utility")


def test_figures_by_role_and_depth(report: tj.Report, page: Path, visit: Visit) -> None:
    opened = visit(page)
    roles = report.group_by("role")
    drawn = opened.source("roles", "points")
    known = {r.name: r.lognormal.kl_nats for r in roles.values() if r.lognormal and math.isfinite(r.lognormal.kl_nats)}
    assert dict(zip(drawn["name"], drawn["x"], strict=True)) == {
        n: pytest.approx(v, rel=1e-5) for n, v in known.items()
    }
    opened.page.select_option("#stat", "mu")
    points = opened.source("depths", "points")
    found = dict(zip(points["name"], zip(points["x"], points["y"], strict=True), strict=True))
    expected = {r.name: (r.depth, r.lognormal.mu) for r in report.values() if r.depth is not None and r.lognormal}
    assert found == expected
    means = opened.source("depths", "lines")["ys"]
    assert means[0] == [pytest.approx(report[name(d, Q)].lognormal.mu, rel=1e-5) for d in range(10)]


def test_downloads_are_the_files_that_teleojax_writes(report: tj.Report, page: Path, visit: Visit) -> None:
    opened = visit(page)
    assert opened.saved("#save-jsonl") == report.jsonl()
    assert opened.saved("#save-csv") == report.csv()


def test_everything_is_done_with_keys_alone(report: tj.Report, page: Path, visit: Visit) -> None:
    opened = visit(page)
    keys = opened.page.keyboard

    def focused() -> str:
        return opened.page.evaluate("document.activeElement.id || document.activeElement.textContent")

    def tab_to(what: str) -> None:
        for _ in range(60):
            keys.press("Tab")
            outline = opened.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none", focused()
            if focused() == what:
                return
        raise AssertionError(what)

    keys.press("Tab")
    assert focused() == "Skip to the table"
    keys.press("Enter")
    tab_to("filter")
    keys.type("q_proj")
    tab_to("save-csv")
    with opened.page.expect_download():
        keys.press("Enter")
    tab_to("μ")
    keys.press("Enter")
    by_mu = sorted((n for n in report if "q_proj" in n), key=lambda n: -report[n].lognormal.mu)
    assert opened.rows() == by_mu
    tab_to(by_mu[0])
    keys.press("ArrowDown")
    assert focused() == by_mu[1]
    keys.press("Enter")
    assert opened.page.inner_text("#detail-name") == by_mu[1]
    assert opened.page.inner_text("#said") == f"Showing {by_mu[1]}"
    assert opened.page.locator("#table tr[aria-current]").inner_text().startswith(by_mu[1][:12])
    for _ in range(60):
        keys.press("Tab")
        if opened.page.evaluate("document.activeElement.localName") == "summary":
            break
    keys.press("Enter")
    assert opened.page.is_visible("#detail-numbers")
    tab_to("stat")
    keys.press("ArrowDown")
    assert opened.page.input_value("#stat") == "mu"


def test_on_a_phone_the_way_to_the_figures_and_back(page: Path, visit: Visit) -> None:
    opened = visit(page, "phone")
    row = opened.page.locator("#table tbody tr").nth(4)
    row.locator("button").focus()
    opened.page.keyboard.press("Enter")
    assert opened.page.evaluate("document.activeElement.id") == "detail-name"
    place = opened.page.evaluate("document.getElementById('detail').getBoundingClientRect().top")
    assert abs(place) < 100
    opened.page.click("#back")
    assert opened.page.evaluate("document.activeElement.textContent") == row.locator("button").text_content()


def test_figures_follow_the_scheme(page: Path, visit: Visit) -> None:
    opened = visit(page)
    before = opened.source("density", "lines")["color"][0]
    opened.page.emulate_media(color_scheme="dark")
    opened.page.wait_for_function(
        "before => figures.density.document.get_model_by_name('lines').data.color[0] !== before", arg=before
    )
    ink = opened.page.evaluate("figures.density.left[0].major_label_text_color")
    assert ink == "#e8e8e8"


def test_lines_without_histograms_say_so(report: tj.Report, visit: Visit, tmp_path: Path) -> None:
    report.to_jsonl(tmp_path / "r.jsonl")
    assert run(["report", str(tmp_path / "r.jsonl"), "-o", str(tmp_path / "page.html")]) == 0
    opened = visit(tmp_path / "page.html")
    assert "hold no histograms" in opened.page.inner_text("main")
    opened.choose(name(1, Q))
    assert opened.source("density", "bars")["top"] == []
    assert len(opened.source("density", "lines")["ys"]) == 3
    assert not opened.page.is_visible("#utility")
    assert "weighted by their values" in opened.page.inner_text("main")
    q = [r for r in report.values() if r.role == "q"]
    mean = np.average([r.lognormal.mu for r in q if r.lognormal], weights=[r.moments.n for r in q if r.moments])
    cells = opened.page.locator("section[aria-labelledby=by-role] tbody tr", has_text="q").first.inner_text().split()
    assert float(cells[3]) == pytest.approx(mean, abs=5e-5)
    opened.shoot("report-without-histograms")


def test_groups_have_a_page_too(report: tj.Report, visit: Visit, tmp_path: Path) -> None:
    report.group_by("role").to_html(tmp_path / "page.html")
    opened = visit(tmp_path / "page.html")
    assert opened.every_row() == ["down", "q", "up", "unknown"]
    assert "30 tensors" not in opened.page.inner_text("#detail")
    assert "10 tensors" in opened.page.inner_text("#detail")
    assert opened.page.locator("#figure-roles").count() == 0


def test_a_group_that_is_hardly_known_is_no_extreme() -> None:
    groups = [Group("0", 0.0, 0.02), Group("1", 0.03, 0.002), Group("2", 0.15, 0.01), Group("3", 0.3, 0.011)]
    said = extremes(Place("", Cells([], [], []), groups), "depth")
    assert said is not None
    assert "block 1 is nearest to arbitrage equilibrium (0.0300 ± 0.0020 nats" in said
    assert "block 2 farthest from it (0.1500 ± 0.0100)" in said
    assert extremes(Place("", Cells([], [], []), groups[:2]), "depth") is None
