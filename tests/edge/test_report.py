"""What a report says in words and leaves in files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import teleojax as tj
from teleojax.report import finding

RNG = np.random.default_rng(0)
LAYERS = {
    "lognormal": np.exp(RNG.standard_normal(60_000)),
    "gaussian": RNG.standard_normal(60_000),
    "exponential": RNG.exponential(size=60_000),
    "bimodal": np.where(RNG.random(60_000) < 0.5, RNG.normal(0, 0.01, 60_000), RNG.normal(0, 1, 60_000)),
}


def report_of(*names: str) -> tj.Report:
    return tj.fit({name: LAYERS[name].astype(np.float32) for name in names})


@pytest.mark.parametrize(
    ("layer", "verdict"),
    [
        ("lognormal", "as the theory of arbitrage equilibrium predicts"),
        ("exponential", "nearer than an untrained Gaussian layer (0.163), yet not lognormal"),
        ("gaussian", "about where an untrained Gaussian layer (0.163) lies: not what the theory predicts"),
        ("bimodal", "farther than an untrained Gaussian layer (0.163): not what the theory predicts"),
    ],
)
def test_the_verdict_fits_the_layer(layer: str, verdict: str) -> None:
    report = report_of(layer)
    text = finding(report)
    gap = report[layer].lognormal.kl_nats
    assert f"over 60,000 weights in 1 tensor the mean distance from arbitrage equilibrium is {gap:.4f}" in text
    assert verdict in text
    assert f"Pooled, the weights of all tensors together lie at {gap:.4f}." in text
    assert ("halfnormal better than lognormal" in text) == (layer in ("gaussian", "exponential"))


def test_the_finding_weighs_tensors_by_their_size() -> None:
    small = {"a": LAYERS["lognormal"][:6000], "b": LAYERS["gaussian"], "too small": LAYERS["gaussian"][:999]}
    report = tj.fit({name: v.astype(np.float32) for name, v in small.items()})
    gaps = {name: report[name].lognormal.kl_nats for name in "ab"}
    text = finding(report)
    assert "66,000 weights in 2 tensors" in text
    assert f"is {(6000 * gaps['a'] + 60_000 * gaps['b']) / 66_000:.4f} nats" in text
    assert "1 of 2 lie within 0.01 nats" in text
    assert f"nearest {gaps['a']:.4f} (a), farthest {gaps['b']:.4f} (b)" in text
    mean_gain = report["b"].delta_nats
    assert f"1 of 2 fit halfnormal better than lognormal, by a mean {mean_gain:.4f}" in text


def test_control_characters_in_names_stay_out_of_the_finding() -> None:
    text = finding(tj.fit({"\x1b[31mred\n": LAYERS["gaussian"].astype(np.float32)}))
    assert re.search(r"[\x00-\x1f]", text) is None


def test_nothing_large_is_said() -> None:
    text = finding(tj.fit({"w": np.ones(9, np.float32)}))
    assert text.endswith("no tensor of 1,000 values or more has a distance from equilibrium.")


def test_files_hold_what_the_report_says(tmp_path: Path) -> None:
    report = report_of("gaussian", "lognormal")
    report.to_jsonl(tmp_path / "r.jsonl")
    report.to_csv(tmp_path / "r.csv")
    assert (tmp_path / "r.jsonl").read_text(encoding="utf-8") == report.jsonl()
    assert (tmp_path / "r.csv").read_text(encoding="utf-8") == report.csv()
    rows = [json.loads(line) for line in report.jsonl().splitlines()]
    assert [r.get("name") for r in rows] == ["gaussian", "lognormal", None]
    assert rows[0]["mu"] == report["gaussian"].lognormal.mu  # full precision survives


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "r.jsonl"
    place.write_text("old", encoding="utf-8")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(tj.UsageError, match="No space left"):
        report_of("gaussian").to_jsonl(place)
    assert place.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [place]
