"""The worked examples run as a reader would run them, and what they print and draw is right.

Seeds are fixed; tolerances of simulated numbers are some 5 of their standard errors or more.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

import teleojax as tj

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"[-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?")
BLUE, ORANGE = (0, 0x72, 0xB2), (0xD5, 0x5E, 0)  # what was measured, and what theory says
QUERY, CONVOLUTION = "MiniLM, query 0", "BlazePose, conv 42"
GAUSSIAN, LOGNORMAL = "Gaussian, untrained", "lognormal, exact"


def run(name: str, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / name), *arguments]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done


def section(text: str, heading: str) -> dict[str, list[float]]:
    """The numbers of each line of the table that follows a heading, by the words the line begins with."""
    table = text[text.index(heading) + len(heading) :].split("\n\n")[1]
    lines = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in table.splitlines()]
    return {line[0]: numbers(line[1]) for line in lines if len(line) == 2 and numbers(line[1])}


def numbers(text: str) -> list[float]:
    return [float(n.replace(",", "").replace("−", "-")) for n in NUMBER.findall(text)]


def picture(folder: Path, name: str, least: tuple[int, int]) -> np.ndarray:
    """The only file in the folder: an image of at least this height and width, light, and drawn upon."""
    (path,) = folder.iterdir()
    assert path.name == f"{name}.png"
    rgb = np.round(255 * imread(path)[:, :, :3]).astype(int)
    assert rgb.shape[0] >= least[0]
    assert rgb.shape[1] >= least[1]
    light = (rgb > 240).all(axis=2)
    assert light[[0, 0, -1, -1], [0, -1, 0, -1]].all()
    assert 0.6 < light.mean() < 0.98
    return rgb


def drawn(rgb: np.ndarray, colour: tuple[int, int, int]) -> int:
    """How many pixels have the colour, but for smoothing."""
    return int((np.abs(rgb - colour).max(axis=2) < 40).sum())


@pytest.fixture(scope="module")
def layers(networks: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    assert networks
    folder = tmp_path_factory.mktemp("layers")
    return run("is_this_layer_at_equilibrium.py", "--quick", "--out", str(folder)).stdout, folder


@pytest.fixture(scope="module")
def game(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("game")
    return run("a_game_that_becomes_lognormal.py", "--quick", "--out", str(folder)).stdout, folder


def test_distances_of_layers_and_controls(layers: tuple[str, Path]) -> None:
    table = section(layers[0], "The maximum-likelihood lognormal")
    kl = {title: line[4] for title, line in table.items() if title in (GAUSSIAN, QUERY, CONVOLUTION)}
    assert kl[GAUSSIAN] == pytest.approx(0.162975, abs=0.01)
    assert abs(kl[GAUSSIAN] - 0.162975) < 2 * table[GAUSSIAN][5]  # 3.9 standard errors
    assert kl[QUERY] == pytest.approx(0.1328, abs=2e-4)
    assert kl[CONVOLUTION] == pytest.approx(0.0171, abs=2e-4)
    assert re.search(rf"{LOGNORMAL} .*< 0\.0001", layers[0])
    assert table[LOGNORMAL][:2] == pytest.approx([-5, 2], abs=0.02)
    assert table["in theory: Gaussian"] == pytest.approx(
        [0.162975, 2 - 8 / np.pi**2, np.pi**2 / 8 - 0.5, 0.22], abs=3e-3
    )
    assert table[GAUSSIAN][7] == pytest.approx(2 - 8 / np.pi**2, rel=0.03)
    for title, gap in kl.items():
        sigma, (fisher, bound) = table[title][1], table[title][7:9]
        assert gap < bound
        assert bound == pytest.approx(0.5 * sigma**2 * fisher, rel=2e-3)


def test_the_curve_holds_the_numbers_of_the_fit(layers: tuple[str, Path]) -> None:
    fits, curves = section(layers[0], "The maximum-likelihood lognormal"), section(layers[0], "The same from the curve")
    for title in (GAUSSIAN, QUERY, CONVOLUTION):
        kl, _, dispersion, fisher = fits[title][4:8]
        assert curves[title][:3] == pytest.approx([kl, dispersion, fisher], rel=2e-3, abs=2e-4)
        low, high = curves[title][3:]
        assert low < 0 < high
    assert curves[LOGNORMAL] == pytest.approx([0] * 5, abs=2e-3)
    assert numbers(re.search(r"the same within (.*) nats", layers[0])[1])[0] < 1e-4


def test_what_channel_scales_make_of_it(layers: tuple[str, Path], networks: dict[str, Path]) -> None:
    table = section(layers[0], "With the scale of every output")
    name = "model_1/model/conv2d_42/Conv2D"
    per_channel = [tj.fit(networks["blazepose"], axis=axis, include=f"^{name}$")[name].mu for axis in (0, 3)]
    whole = tj.fit(networks["blazepose"], include=f"^{name}$")[name].lognormal
    assert whole is not None
    assert table[CONVOLUTION][0] == pytest.approx(100 * sum(mu.var() for mu in per_channel) / whole.sigma**2, abs=1)
    assert table[CONVOLUTION][2] > 3 * table[CONVOLUTION][1]
    assert table[GAUSSIAN][2] == pytest.approx(0.162975, abs=0.01)
    assert table[LOGNORMAL][0] <= 1
    assert re.search(rf"{LOGNORMAL} +0% .*< 0\.0001 +lognormal", layers[0])


def test_words_follow_from_the_numbers(layers: tuple[str, Path]) -> None:
    text = layers[0]
    assert "Trained layers at arbitrage equilibrium: 0 of 2. Equal utility is not what these weights show." in text
    assert "Both controls came out as they must" in text
    gains = section(text, "What the best single law gains")
    assert re.search(rf"{GAUSSIAN} +halfnormal", text)
    assert gains[QUERY] == pytest.approx([0.1329], abs=2e-4)


def test_figure_of_the_layers(layers: tuple[str, Path]) -> None:
    rgb = picture(layers[1], "is_this_layer_at_equilibrium", (1200, 1600))
    height, width = rgb.shape[:2]
    for row, column in itertools.product(range(3), range(4)):
        top, left = int((0.04 + 0.23 * row) * height), int((0.14 + 0.215 * column) * width)
        panel = rgb[top : top + int(0.2 * height), left : left + int(0.2 * width)]
        assert drawn(panel, BLUE) > 300
        assert drawn(panel, ORANGE) > 300
    assert drawn(rgb[int(0.77 * height) :], BLUE) > 600


def test_a_layer_that_is_lognormal_is_found_so(tmp_path: Path) -> None:
    path = tmp_path / "layer.npy"
    np.save(path, np.exp(np.random.default_rng(7).normal(-3, 1, (160, 160))).astype(np.float32))
    text = run("is_this_layer_at_equilibrium.py", str(path), "--quick", "--out", str(tmp_path / "out")).stdout
    assert "Trained layers at arbitrage equilibrium: 1 of 1. The prediction holds here." in text
    picture(tmp_path / "out", "is_this_layer_at_equilibrium", (1200, 1600))


def test_without_weights_it_says_what_to_do(tmp_path: Path) -> None:
    done = run("is_this_layer_at_equilibrium.py", str(tmp_path / "none"), "--out", str(tmp_path / "out"), status=3)
    assert "no such file" in done.stderr
    assert "fetch_models.py" in done.stderr


def test_game_before_and_at_rest(game: tuple[str, Path]) -> None:
    text, m, agents = game[0], 64, 100_000
    log_x = -5 + 2 * 3.5 * (np.arange(m) + 0.5 - m / 2) / (m / 2)
    u = -1.25 * log_x - 0.125 * log_x**2
    p = np.exp(u) / np.exp(u).sum()
    q = (1 / p) / (1 / p).sum()
    assert float(re.search(r"φ\* = (\S+) nats", text)[1]) == pytest.approx(np.log(np.exp(u).sum()), abs=1e-4)
    steps = section(text, "The population plays")
    assert steps["0"][1] == pytest.approx(np.sum(q * np.log(q / p)), rel=1e-3)
    assert steps["0"][2] == pytest.approx(2 * np.sqrt(q @ (u - q @ u) ** 2), rel=1e-3)
    potentials = [line[0] for line in steps.values()]
    assert (np.diff(potentials[:7]) > 0).all()
    assert potentials[-1] == pytest.approx(np.log(np.exp(u).sum()), abs=1e-3)

    rest = section(text, "At rest")
    assert rest["gap φ* − φ"][0] == pytest.approx((m - 1) / (2 * agents), rel=0.03)
    assert rest["its fluctuation"][0] == pytest.approx(np.sqrt((m - 1) / 2) / agents, rel=0.1)
    assert rest["SD of utility"][0] == pytest.approx(np.sqrt((m - 1) / agents), rel=0.03)
    second = float(re.search(r"to second order += (\S+)", text)[1])
    assert second == pytest.approx((m - 1) / (2 * agents) + (np.sum(1 / p) - 1) / (12 * agents**2), rel=1e-3)


def test_replicator_and_where_the_game_ends(game: tuple[str, Path]) -> None:
    path = section(game[0], "The replicator, by its closed form")
    gaps = [path[t][0] for t in ("0.0", "1.0", "2.0", "3.0", "4.0")]
    assert (np.diff(gaps) < 0).all()
    assert max(line[2] for line in path.values()) < 1e-5
    assert float(re.search(r"falls as exp\((\S+) t\)", game[0])[1]) == pytest.approx(-2, abs=0.05)
    ended = section(game[0], "Where they ended")
    assert ended["one replica"] == pytest.approx([-5, 1.9939], abs=0.03)
    assert ended["equilibrium p*"] == pytest.approx([-5, 1.9939], abs=1e-3)
    chi2, expected, sd = numbers(re.search(r"χ² = (.*)", game[0])[1])
    assert expected == 63
    assert abs(chi2 - expected) < 4 * sd


def test_game_of_a_boltzmann_machine(game: tuple[str, Path]) -> None:
    spins = np.array(list(itertools.product((-1, 1), repeat=6)))
    patterns = np.array([[1, 1, 1, -1, -1, -1], [1, -1, 1, -1, 1, -1]])
    weights = patterns.T @ patterns / 6 * (1 - np.eye(6))
    energies = -0.5 * np.einsum("si,ij,sj->s", spins, weights, spins)
    table = section(game[0], "The same agents in a Hopfield network")
    for temperature in (1.0, 0.5):
        exact_f, f, exact_e, e, gap, floor, exact_low, low = table[f"{temperature:.1f}"]
        boltzmann = np.exp(-energies / temperature)
        assert exact_f == pytest.approx(-temperature * np.log(boltzmann.sum()), abs=1e-4)
        assert exact_e == pytest.approx(energies @ boltzmann / boltzmann.sum(), abs=1e-4)
        assert f - exact_f == pytest.approx(temperature * floor, rel=0.05)
        assert e == pytest.approx(exact_e, abs=2e-3)
        assert gap == pytest.approx(floor, rel=0.03)
        assert low == pytest.approx(exact_low, abs=2e-3)
    assert "64 of 64 at a stored pattern" in game[0]


def test_figure_of_the_game(game: tuple[str, Path]) -> None:
    rgb = picture(game[1], "a_game_that_becomes_lognormal", (1000, 1800))
    height, width = rgb.shape[:2]
    for row, column in itertools.product(range(2), range(3)):
        panel = rgb[row * height // 2 : (row + 1) * height // 2, column * width // 3 : (column + 1) * width // 3]
        assert drawn(panel, BLUE) > 500
        assert drawn(panel, ORANGE) > 300 or (row, column) == (0, 2)  # chance has no part in the replicator


def test_figure_of_a_network_is_that_of_the_readme(networks: dict[str, Path], tmp_path: Path) -> None:
    assert networks
    run("figure_of_a_network.py", str(tmp_path / "blazepose.png"))
    rgb = picture(tmp_path, "blazepose", (300, 1200))
    shown = np.round(255 * imread(ROOT / "docs" / "images" / "blazepose.png")[:, :, :3])
    assert np.abs(rgb - shown).mean() < 2  # grey levels of 255
    for left in range(3):
        panel = rgb[:, left * rgb.shape[1] // 3 : (left + 1) * rgb.shape[1] // 3]
        assert drawn(panel, BLUE) > 300
        assert drawn(panel, ORANGE) > 200
