"""Pages of real and of large networks: small enough, quick enough, complete."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import teleojax as tj
from teleojax._errors import printable
from teleojax.report import save_statistics
from tests.pages.conftest import Opened

Visit = Callable[..., Opened]
LIMIT = 5 * 10**6  # bytes of a page of 300 tensors


def test_a_real_network_from_its_statistics(networks: dict[str, Path], visit: Visit, tmp_path: Path) -> None:
    stats, page = tmp_path / "b.stats", tmp_path / "page.html"
    measured = tj.measure(networks["blazepose"])
    save_statistics(measured, stats)
    subprocess.run([sys.executable, "-m", "teleojax", "report", str(stats), "-o", str(page)], check=True)
    assert page.stat().st_size < LIMIT
    opened = visit(page)
    assert opened.every_row() == [printable(n) for n in measured.specs]
    rows = list(map(json.loads, opened.saved("#save-jsonl").splitlines()))[:-1]
    means = {row["name"]: row["mu"] for row in rows if row["mu"] is not None}
    assert means == {n: stats.moments.mean for n, stats in measured.items() if n in means}
    assert len(means) == 192
    assert opened.source("density", "bars")["top"]
    opened.shoot("report-blazepose")


def test_three_hundred_tensors_are_a_small_page(visit: Visit, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_t(5, 9000).astype(np.float32)  # more than a histogram keeps exactly
    params = {
        f"model.layers.{i // 6}.mlp.experts.{i}.up_proj.weight": (values * (1 + i / 100)).reshape(90, 100)
        for i in range(300)
    }
    path = tmp_path / "page.html"
    tj.fit(params).to_html(path)
    size = path.stat().st_size
    begin = time.perf_counter()
    opened = visit(path)
    seconds = time.perf_counter() - begin
    assert len(opened.every_row()) == 300
    assert size < LIMIT
    print(f"300 tensors: {size / 1e6:.2f} MB, ready after {seconds:.2f} s")


def test_ten_thousand_rows_stay_usable(visit: Visit, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    line = json.loads(
        tj.fit({"w": rng.normal(size=500).astype(np.float32)}, families="lognormal").jsonl().splitlines()[0]
    )
    mu = rng.permutation(10_000) / 1000
    lines = []
    for i in range(10_000):
        fit = {**line["families"]["lognormal"], "mu": mu[i]}
        row = {**line, "name": f"layers.{i}.q_proj.weight", "role": "q", "depth": i % 100, "mu": mu[i]}
        lines.append(json.dumps(row | {"families": {**line["families"], "lognormal": fit}}))
    written = tmp_path / "r.jsonl"
    written.write_text("\n".join([*lines, json.dumps({"summary": {"tensors": 10_000}})]) + "\n")
    path = tmp_path / "page.html"
    # a process of its own: here every call is checked for its types
    subprocess.run([sys.executable, "-m", "teleojax", "report", str(written), "-o", str(path)], check=True)
    times = [time.perf_counter()]
    opened = visit(path)
    times.append(time.perf_counter())
    opened.page.click("#table thead th:nth-child(5) button")
    order = np.argsort(-mu)
    assert opened.rows() == [f"layers.{i}.q_proj.weight" for i in order[:25]]
    times.append(time.perf_counter())
    opened.page.fill("#filter", "layers.77")
    kept = [i for i in order if str(i).startswith("77")]
    assert opened.rows() == [f"layers.{i}.q_proj.weight" for i in kept[:25]]
    assert opened.page.inner_text("#count") == f"{len(kept)} of 10,000 rows"
    times.append(time.perf_counter())
    rows = list(csv.DictReader(io.StringIO(opened.saved("#save-csv"))))
    assert [float(r["mu"]) for r in rows] == mu.tolist()
    ready, sort, narrow = np.diff(times)
    print(f"10,000 rows: {path.stat().st_size / 1e6:.1f} MB")
    print(f"ready {ready:.2f} s, sort {sort:.2f} s, filter {narrow:.2f} s")
