"""Integers of a few bits packed into words and bytes, unpacked a stretch at a time."""

from __future__ import annotations

import numpy as np

WORD = 32  # bits
AWQ_PLACES = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # of column k of eight among the nibbles of a word


def unpacked(words: np.ndarray, bits: int, start: int, stop: int) -> np.ndarray:
    """Integers [start, stop) of `bits` bits each, one after another along the first axis of 32-bit words: uint8.

    The lowest bits come first, and an integer may begin in one word and end in the next.
    """
    first = start * bits // WORD
    held = words[first : -(-stop * bits // WORD)].view(np.uint32)
    bit = np.arange(start, stop) * bits - first * WORD
    word, shift = bit // WORD, (bit % WORD).astype(np.uint32).reshape(-1, *[1] * (words.ndim - 1))
    found = held[word] >> shift
    if over := np.flatnonzero(bit % WORD + bits > WORD).tolist():
        found[over] |= held[word[over] + 1] << (WORD - shift[over])
    return (found & ((1 << bits) - 1)).astype(np.uint8)


def unpacked_awq(words: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Columns [start, stop) of the nibbles in rows of 32-bit words, in the order in which AWQ's kernels take them."""
    first = start // 8
    held = words[:, first : -(-stop // 8)].view(np.uint32)[..., None]
    each = (held >> (4 * AWQ_PLACES).astype(np.uint32) & 15).astype(np.uint8)
    return each.reshape(len(each), -1)[:, start - 8 * first : stop - 8 * first]


def nibbles(packed: np.ndarray, start: int, stop: int, *, high_first: bool = False) -> np.ndarray:
    """Integers [start, stop) of four bits along the last axis of bytes: uint8."""
    first = start // 2
    held = packed[..., first : -(-stop // 2)]
    pair = (held >> 4, held & 15) if high_first else (held & 15, held >> 4)
    return np.stack(pair, axis=-1).reshape(*held.shape[:-1], -1)[..., start - 2 * first : stop - 2 * first]
