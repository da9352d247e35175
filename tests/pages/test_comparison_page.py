"""The page of a comparison in a real browser, and the commands that write pages."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import teleojax as tj
from teleojax.cli import run
from tests.pages.conftest import SCHEMES, SIZES, Opened
from tests.pages.networks import UP, Q, fitted, layers, name

Visit = Callable[..., Opened]
ALONE = "only<b>here</b>"


@pytest.fixture(scope="module")
def comparison() -> tj.Comparison:
    before, after = layers(0), layers(1)
    after[name(4, Q)] = (3 * before[name(4, Q)]).astype(np.float32)
    after[ALONE] = np.ones((3, 4), np.float32) * np.arange(1, 5, dtype=np.float32)
    return tj.compare(fitted(), tj.fit(after, families=("lognormal", "halfnormal", "exponential")))


@pytest.fixture(scope="module")
def page(comparison: tj.Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    assert comparison.to_html(path) is None
    assert comparison.to_html() == path.read_text(encoding="utf-8")
    return path


@pytest.mark.parametrize(("size", "scheme"), list(zip(SIZES, SCHEMES, strict=True)))
def test_the_page_is_readable_and_accessible(page: Path, visit: Visit, size: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    plain = visit(page, size, scheme)
    plain.shoot(f"comparison-{size}-{scheme}")
    width = plain.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert width[0] <= width[1]
    found = axe.run(visit(page, size, scheme, bypass_csp=True).page)
    assert found.response["violations"] == [], found.generate_report()


def test_a_click_shows_both_histograms(comparison: tj.Comparison, page: Path, visit: Visit) -> None:
    opened, tensor = visit(page), name(4, Q)
    opened.choose(tensor)
    bars = {key: np.asarray(values) for key, values in opened.source("density", "bars").items()}
    sides = list(dict.fromkeys(bars["color"]))
    assert len(sides) == 2
    before = np.log(np.abs(layers(0)[tensor].astype(np.float64))).ravel()
    for side, y in zip(sides, (before, before + np.log(3)), strict=True):
        mine = bars["color"] == side
        share = bars["top"][mine] * (bars["right"][mine] - bars["left"][mine])
        middle = (bars["right"][mine] + bars["left"][mine]) / 2
        assert share.sum() == pytest.approx(1, abs=2e-3)
        assert share @ middle == pytest.approx(y.mean(), abs=0.02)
    assert len(opened.source("density", "lines")["ys"]) == 2
    change = comparison[tensor]
    table = opened.page.inner_text("#detail-fits").replace("−", "-").split("\n")
    row = next(line for line in table if line.startswith("μ")).split()
    assert [row[1], row[2], row[3]] == [f"{change.mu.a:.4f}", f"{change.mu.b:.4f}", f"{change.mu.delta:+.4f}"]
    assert row[-1] == "↑"


def test_changes_sort_and_are_marked(comparison: tj.Comparison, page: Path, visit: Visit) -> None:
    opened = visit(page)
    opened.page.click("#table thead th:nth-child(4) button")
    assert opened.rows()[0] == name(4, Q)
    marks = opened.page.eval_on_selector_all(
        "#table tbody td:nth-child(4) .sign", "cells => cells.map(c => c.textContent)"
    )
    order = sorted((c for c in comparison.values() if c.mu.sign is not None), key=lambda c: -c.mu.delta)
    assert marks == [{1: "↑", -1: "↓", 0: "="}[c.mu.sign] for c in order[:25]]
    opened.page.fill("#filter", UP)
    assert len(opened.every_row()) == 10
    said = opened.page.inner_text("main")
    rising, falling = (sum(c.mu.sign == sign for c in order) for sign in (1, -1))
    assert f"μ rose in {rising} and fell in {falling} of 30 pairs" in said
    assert f"it changed most in {name(4, Q)} (+{np.log(3):.4f})" in said


def test_roles_and_tensors_without_counterpart(comparison: tj.Comparison, page: Path, visit: Visit) -> None:
    opened = visit(page)
    assert ALONE in opened.page.inner_text("main")
    assert opened.page.locator("b").count() == 0
    drawn = opened.source("roles", "points")
    assert dict(zip(drawn["name"], drawn["x"], strict=True)) == {
        role: pytest.approx(change.kl_nats.delta, rel=1e-5) for role, change in comparison.roles.items()
    }
    assert opened.saved("#save-jsonl") == comparison.jsonl()
    assert opened.saved("#save-csv") == comparison.csv()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_file({n: v for n, v in layers(0, 1).items() if n != "ids"}, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def test_commands_write_pages(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = {command: tmp_path / f"{command}.html" for command in ("fit", "report", "lines", "compare")}
    stats, lines = str(tmp_path / "m.stats"), str(tmp_path / "m.jsonl")
    assert run(["measure", str(model), "-o", stats]) == 0
    assert run(["fit", stats, "--families", "exponential", "-o", lines]) == 0
    assert run(["fit", str(model), "-o", str(out["fit"])]) == 0
    assert run(["report", stats, "--families", "weibull", "--include", "q_proj", "-o", str(out["report"])]) == 0
    assert run(["report", lines, "-o", str(out["lines"])]) == 0
    assert run(["compare", str(model), stats, "-o", str(out["compare"])]) == 0
    assert capsys.readouterr().out == ""
    texts = {command: path.read_text(encoding="utf-8") for command, path in out.items()}
    assert all(text.startswith("<!DOCTYPE html>") and text.endswith("</html>") for text in texts.values())
    assert "weibull" in texts["report"]
    assert texts["report"].count('"status": "skipped"') == 3  # but for the q_proj
    assert run(["report", lines]) == run(["fit", stats, "--format", "html"]) == 0
    first, second = capsys.readouterr().out.split("</html>")[:2]
    assert first == texts["lines"].removesuffix("</html>")
    assert '"edges"' in second
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".html"] * 4 + [".jsonl", ".safetensors", ".stats"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["fit", "{model}", "--format", "page"], 2, "'page'"),
        (["compare", "{model}", "{model}", "--format", "htm"], 2, "'htm'"),
        (["fit", "{model}", "--format", "html", "--axis", "0"], 2, "jsonl or csv"),
        (["report"], 2, "Missing argument"),
        (["report", "{model}"], 3, "JSON lines"),
        (["report", "no-such-file.jsonl"], 3, "no-such-file.jsonl"),
        (["report", "{lines}", "--families", "weibull"], 2, "in statistics, not in results"),
        (["report", "{lines}", "--include", "q"], 2, "in statistics, not in results"),
        (["report", "{stats}", "--families", "gauss"], 2, "'gauss'"),
        (["report", "{stats}", "-o", "/no/such/directory/page.html"], 2, "/no/such/directory"),
        (["report", "{cut}"], 3, "m.cut"),
    ],
    ids=lambda v: " ".join(v)[:40] if isinstance(v, list) else None,
)
def test_bad_use(
    arguments: list[str], code: int, message: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stats, lines, cut = (tmp_path / f"m.{ending}" for ending in ("stats", "jsonl", "cut"))
    run(["measure", str(model), "-o", str(stats)])
    run(["fit", str(stats), "-o", str(lines)])
    cut.write_bytes(stats.read_bytes()[:-9])
    capsys.readouterr()
    assert run([a.format(model=model, stats=stats, lines=lines, cut=cut) for a in arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("package", ["bokeh", "jinja2"])
@pytest.mark.parametrize("command", [["fit", "{model}", "--format", "html"], ["report", "{model}"],
                                     ["compare", "{model}", "{model}", "--format", "html"]])  # fmt: skip
def test_a_missing_extra_is_named(
    command: list[str], package: str, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert run([part.format(model=model) for part in command]) == 2
    assert f"no module '{package}'" in (said := capsys.readouterr().err)
    assert "pip install 'teleojax[report]'" in said
    with pytest.raises(tj.MissingExtraError):
        fitted().to_html()
