"""Results written and read back: JSON lines, Parquet, the tables of other libraries."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import teleojax as tj
from teleojax.cli import run
from teleojax.report import write_atomically

HOSTILE = "a\x1b[31m|<b>$x_{1}$\n\u2028“é”"


@pytest.fixture(scope="module")
def report() -> tj.Report:
    rng = np.random.default_rng(0)
    params = {
        "model.layers.0.self_attn.q_proj.weight": rng.normal(0, 0.02, (90, 60)).astype(np.float32),
        "model.layers.1.self_attn.q_proj.weight": rng.lognormal(-4, 1, (90, 60)).astype(np.float32),
        HOSTILE: rng.standard_t(3, 3000).astype(np.float32),
        "ids": np.arange(5),
        "zeros": np.zeros(5, np.float32),
        "constant": np.full(50, 0.5, np.float32),
    }
    families = ("lognormal", "halfnormal", "weibull", "pareto", "lognormal_mixture")
    measured = tj.measure(params, groups=5)
    return tj.fit(measured, families=families, bootstrap=3, vuong=True)


def test_json_lines_read_back_are_what_was_written(report: tj.Report, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    report.to_jsonl(path)
    back = tj.load_report(path)
    assert back.jsonl() == path.read_text(encoding="utf-8")
    assert back.csv() == report.csv()
    assert list(back) == list(report)
    for name, result in report.items():
        assert back[name].to_dict() == result.to_dict()
        assert back[name].stats is None
    assert back.summary == report.summary
    assert [r.name for r in back.rank("kl_nats")] == [r.name for r in report.rank("kl_nats")]
    assert back.wins("role") == report.wins("role")
    assert back.to_markdown() == report.to_markdown()
    got, want = back[HOSTILE].families, report[HOSTILE].families
    assert got is not None
    assert want is not None
    assert got["lognormal_mixture"].params == want["lognormal_mixture"].params
    assert got["weibull"].interval("shape") == want["weibull"].interval("shape")


@pytest.mark.parametrize("method", ["histogram", "probability-plot", "interval"])
def test_of_every_method(method: str, tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=500).astype(np.float16)
    path = tmp_path / "r.jsonl"
    assert run(["fit", str(_saved(tmp_path, x)), "--method", method, "-o", str(path)]) == 0
    assert tj.load_report(path).jsonl() == path.read_text(encoding="utf-8")


def _saved(folder: Path, x: np.ndarray) -> Path:
    np.save(folder / "x.npy", x)
    return folder / "x.npy"


def test_a_report_by_groups_too(report: tj.Report, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    groups = report.group_by("role")
    groups.to_jsonl(path)
    back = tj.load_report(path)
    assert back.jsonl() == groups.jsonl()
    assert back["q"].tensors == 2


def test_what_needs_statistics_says_so(report: tj.Report, tmp_path: Path) -> None:
    report.to_jsonl(tmp_path / "r.jsonl")
    back = tj.load_report(tmp_path / "r.jsonl")
    with pytest.raises(tj.UsageError, match="results read from a file; needed statistics, for groups by role"):
        back.group_by("role")
    for draw in ("plot_density", "plot_probability", "plot_utility"):
        with pytest.raises(tj.UsageError, match=f"no histogram of its values; needed one, for {draw}"):
            getattr(back["constant"], draw)()
    with pytest.raises(KeyError, match="results without statistics"):
        back.measured["model.layers.0.self_attn.q_proj.weight"]


def lines_of(report: tj.Report) -> list[dict[str, Any]]:
    return [json.loads(line) for line in report.jsonl().split("\n")[:-1]]


def text_of(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def without_summary(rows: list[dict[str, Any]]) -> str:
    return text_of(rows[:-1])


def cut_short(rows: list[dict[str, Any]]) -> str:
    return text_of(rows)[: len(text_of(rows[:2])) - 30]


def changed(**values: Any) -> Any:
    return lambda rows: text_of([{**rows[0], **values}, *rows[1:]])


def dropped(key: str) -> Any:
    return lambda rows: text_of([{k: v for k, v in rows[0].items() if k != key}, *rows[1:]])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda _: "", "no summary"),
        (lambda _: "\x00\x01", "line 1: found no JSON"),
        (lambda _: "[" * 100_000, "line 1: found no JSON"),
        (lambda _: "[1, 2]\n", "JSON of type list"),
        (without_summary, "no summary"),
        (cut_short, "line 2: found no JSON"),
        (lambda rows: text_of([rows[0], *rows]), "a second line for"),
        (lambda rows: text_of(rows).replace("null", "NaN", 1), "NaN, which is no JSON"),
        (changed(mu="2"), "needed a number"),
        (changed(mu=True), "needed a number"),
        (changed(mu=10**400), "OverflowError"),
        (lambda rows: text_of(rows).replace('"alpha": ', '"alpha": 1e999, "x": ', 1), "unknown or contradicting"),
        (changed(n=-1), "needed a count"),
        (changed(name=None), "needed text"),
        (changed(name="\ud800"), "surrogates not allowed"),
        (changed(shape=5), "not iterable"),
        (changed(status="good"), "needed one of ok"),
        (changed(best_bic="halfnormal?"), "unknown or contradicting values under best_bic"),
        (changed(more=1), "unknown or contradicting values under more"),
        (changed(families=[1]), "families is a list"),
        (changed(families={"lognormal": 5}), "not iterable"),
        (dropped("kl_nats"), "KeyError"),
    ],
)
def test_a_damaged_file_is_refused_with_its_line(damage: Any, says: str, report: tj.Report, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(damage(lines_of(report)), encoding="utf-8")
    with pytest.raises(tj.CorruptInputError, match=says) as caught:
        tj.load_report(path)
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(tj.InputError, match="No such file"):
        tj.load_report(tmp_path / "none.jsonl")
    (tmp_path / "r.jsonl").write_bytes(b"\xff\xfe{}")
    with pytest.raises(tj.CorruptInputError, match="no UTF-8"):
        tj.load_report(tmp_path / "r.jsonl")


def csv_rows(report: tj.Report) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(report.csv())))


def same(value: object, text: str) -> bool:
    """A value of a table, and what the CSV writes of it."""
    if value is None or value != value:
        return text == ""
    if isinstance(value, float) and not isinstance(value, bool):
        return value == float(text)
    return str(value) == text


def test_parquet_as_polars_reads_it_has_the_rows_of_the_csv(report: tj.Report, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    pl = pytest.importorskip("polars")
    path = tmp_path / "r.parquet"
    report.to_parquet(path)
    frame, rows = pl.read_parquet(path), csv_rows(report)
    assert frame.columns == list(rows[0])
    for got, want in zip(frame.iter_rows(named=True), rows, strict=True):
        assert all(same(got[key], want[key]) for key in want), got["name"]
    assert (frame.schema["n"], frame.schema["mu"], frame.schema["role"]) == (pl.Int64, pl.Float64, pl.String)
    assert frame.schema["lognormal_mixture.mus"] == pl.List(pl.Float64)


def test_parquet_as_arrow_reads_it_has_the_rows_and_says_what_they_are(report: tj.Report, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "r.parquet"
    report.to_parquet(path)
    rows = csv_rows(report)
    for got, want in zip(pq.read_table(path).to_pylist(), rows, strict=True):
        assert all(same(got[key], want[key]) for key in want), got["name"]
    metadata = pq.read_metadata(path).metadata
    units = json.loads(metadata[b"teleojax.units"])
    assert (units["mu"], units["kl_nats"], units["weibull.scale"]) == ("ln|w|", "nats per connection", "|w|")
    assert set(units) == set(json.loads(metadata[b"teleojax.meanings"])) == set(rows[0])
    assert json.loads(metadata[b"teleojax"]) == report.summary
    assert pq.read_schema(path).field("sigma").metadata[b"unit"] == b"ln|w|"


def test_parquet_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    x = _saved(tmp_path, np.random.default_rng(1).normal(size=500).astype(np.float32))
    assert run(["fit", str(x), "-o", str(tmp_path / "r.parquet")]) == 0
    assert pq.read_table(tmp_path / "r.parquet")["n"].to_pylist() == [500]
    assert run(["fit", str(x), "--format", "parquet"]) == 2
    assert "give -o FILE" in capsys.readouterr().err
    assert run(["fit", str(x), "--axis", "0", "-o", str(tmp_path / "axis.parquet")]) == 2
    assert "written as jsonl or csv" in capsys.readouterr().err
    assert not (tmp_path / "axis.parquet").exists()


def test_polars(report: tj.Report) -> None:
    pl = pytest.importorskip("polars")
    frame = report.to_polars()
    assert isinstance(frame, pl.DataFrame)
    for got, want in zip(frame.iter_rows(named=True), csv_rows(report), strict=True):
        assert all(same(got[key], want[key]) for key in want)


def test_arrow(report: tj.Report) -> None:
    pa = pytest.importorskip("pyarrow")
    table = report.to_arrow()
    assert isinstance(table, pa.Table)
    assert table.schema.field("h_star").metadata[b"meaning"] == b"effective utility at equilibrium"
    for got, want in zip(table.to_pylist(), csv_rows(report), strict=True):
        assert all(same(got[key], want[key]) for key in want)


def test_polars_and_arrow_agree(report: tj.Report) -> None:
    pytest.importorskip("pyarrow")
    pl = pytest.importorskip("polars")
    assert report.to_polars().equals(pl.from_arrow(report.to_arrow()))


def test_pandas(report: tj.Report) -> None:
    pd = pytest.importorskip("pandas")
    frame = report.to_pandas()
    assert isinstance(frame, pd.DataFrame)
    for got, want in zip(frame.to_dict("records"), csv_rows(report), strict=True):
        for key, text in want.items():
            value = None if got[key] is pd.NA else got[key]
            assert same(value, text), key
    assert str(frame.dtypes["n"]) == "Int64"
    assert frame.attrs["teleojax.units"]["sigma"] == "ln|w|"


def test_xarray(report: tj.Report) -> None:
    pytest.importorskip("xarray")
    data, rows = report.to_xarray(), csv_rows(report)
    assert set(data.data_vars) == set(rows[0]) - {"name"}
    for want in rows:
        got = data.sel(tensor=want["name"])
        for key in ("role", "n", "mu", "weibull.shape", "status", "kl_nats"):
            value = got[key].item()
            text = want[key]
            assert same(float(value), text) if key == "n" else same(value, text), key
    assert data["mu"].attrs == {
        "long_name": "mean of ln|w|: location of the maximum-likelihood lognormal", "units": "ln|w|",
    }  # fmt: skip
    assert data["size"].dtype == np.int64
    assert data["lognormal_mixture.mus"].dims == ("tensor", "component")
    assert data.attrs["values"] == report.summary["values"]


@pytest.mark.parametrize(
    ("module", "ask", "extra"),
    [
        ("polars", "to_polars", "polars"),
        ("pandas", "to_pandas", "pandas"),
        ("pyarrow", "to_arrow", "arrow"),
        ("xarray", "to_xarray", "xarray"),
        ("matplotlib.pyplot", "plot_depth", "plots"),
    ],
)
def test_without_the_package_the_extra_is_named(
    module: str, ask: str, extra: str, report: tj.Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(tj.MissingExtraError, match=rf"pip install 'teleojax\[{extra}\]'"):
        getattr(report, ask)()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_written_to_and_not_renamed_over(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as threads:
        read = threads.submit(pipe.read_text)
        write_atomically(pipe, "σ = 1\n")
        assert read.result(timeout=60) == "σ = 1\n"
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]
