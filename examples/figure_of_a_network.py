"""Where each layer of BlazePose stands between its Gaussian start and equilibrium: one figure, for a paper or a README.

    python scripts/fetch_models.py blazepose
    python examples/figure_of_a_network.py docs/images/blazepose.png

Left and middle: the effective utility of the connections of an early and of a late convolution, which at arbitrage
equilibrium would be flat. Right: the distance from equilibrium of every layer, with its interval. Needs
`pip install 'teleojax[plots,tflite]'`.
"""

import argparse
from pathlib import Path

from matplotlib import pyplot as plt

import teleojax as tj
from teleojax.report import plots

UNTRAINED = 0.162975  # nats: a Gaussian layer of any scale from its maximum-likelihood lognormal
LEAST = 4096  # weights a layer must have to be shown

parser = argparse.ArgumentParser(description="The figure of a network.")
parser.add_argument("path", type=Path, help="where the picture goes; its extension says the format")
path = parser.parse_args().path
plt.switch_backend("Agg")

report = tj.fit("models/blazepose", min_size=LEAST)
figure, (early, late, depth) = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
for ax, number in ((early, 13), (late, 42)):
    layer = report[f"model_1/model/conv2d_{number}/Conv2D"]
    plots.plot_utility(layer, ax)
    ax.set_ylim(layer.lognormal.h_star - 6, layer.lognormal.h_star + 6)
    ax.set_title(f"convolution {number}: {layer.lognormal.kl_nats:.3f} nats from equilibrium")
plots.plot_depth(report, "kl_nats", depth, roles=["conv", "depthwise_conv"])
for level, words in ((0, "equilibrium: lognormal"), (UNTRAINED, "untrained: Gaussian")):
    depth.axhline(level, color="#222222", lw=1, ls=":")
    depth.annotate(words, (1, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7.5)
depth.set(title=f"every layer of {LEAST:,} weights or more", xlabel="number of the convolution", ylim=(-0.01, None))
depth.legend(loc="upper right", bbox_to_anchor=(1, 0.85), frameon=False, fontsize=7.5)
path.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(path, dpi=100)
