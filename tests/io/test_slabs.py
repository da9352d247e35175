"""The cut of chunked arrays into slabs: contiguous, within bounds, and each chunk touched as seldom as promised."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from teleojax.sources._slabs import Slabs, plan_slabs, split_box


@st.composite
def chunked(draw):
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    chunk = tuple(draw(st.integers(1, n)) for n in shape)
    return shape, chunk


def walk(slabs: Slabs) -> list[tuple[int, int]]:
    found, at = [], 0
    while at < math.prod(slabs.shape):
        found.append(slabs.around(at))
        at = found[-1][1]
    return found


def touched_by(box, chunk) -> set[tuple[int, ...]]:
    return set(product(*(range(a // c, (b - 1) // c + 1) for (a, b), c in zip(box, chunk, strict=True))))


def values_of(box, shape) -> np.ndarray:
    return np.arange(math.prod(shape)).reshape(shape)[tuple(slice(a, b) for a, b in box)]


@given(chunked(), st.integers(1, 800))
def test_slabs_follow_one_another_and_read_a_chunk_as_often_as_they_say(chunks, hold):
    shape, chunk = chunks
    slabs = plan_slabs(shape, chunk, hold)
    found = walk(slabs)
    assert [a for a, _ in found] == [0, *(b for _, b in found[:-1])]
    times: dict[tuple[int, ...], int] = {}
    for start, stop in found:
        assert 0 < stop - start <= hold
        assert {slabs.around(v) for v in range(start, stop)} == {(start, stop)}
        (box,) = slabs.boxes(start, stop)
        np.testing.assert_array_equal(values_of(box, shape).ravel(), np.arange(start, stop))
        for c in touched_by(box, chunk):
            times[c] = times.get(c, 0) + 1
    assert max(times.values()) == slabs.times_read
    if chunk[0] * math.prod(shape[1:]) <= hold:
        assert slabs.times_read == 1


@given(chunked(), st.integers(1, 100), st.data())
def test_boxes_of_several_slabs_are_the_run_of_values(chunks, hold, data):
    shape, chunk = chunks
    slabs = plan_slabs(shape, chunk, hold)
    edges = sorted({0, *(b for _, b in walk(slabs))})
    start, stop = sorted(data.draw(st.tuples(st.sampled_from(edges), st.sampled_from(edges))))
    read = [values_of(box, shape).ravel() for box in slabs.boxes(start, stop)]
    np.testing.assert_array_equal(np.concatenate([np.empty(0, int), *read]), np.arange(start, stop))


@given(chunked(), st.integers(0, 30))
def test_parts_of_a_box_touch_few_chunks_and_no_chunk_twice(chunks, most):
    shape, chunk = chunks
    parts = list(split_box(tuple((0, n) for n in shape), chunk, most))
    touched = [touched_by(part, chunk) for part in parts]
    assert max(map(len, touched)) <= max(1, most)
    assert sum(map(len, touched)) == len(set.union(*touched))
    values = np.concatenate([values_of(part, shape).ravel() for part in parts])
    np.testing.assert_array_equal(np.sort(values), np.arange(math.prod(shape)))


def test_examples():
    assert plan_slabs((4096, 4096), (512, 1024), 2**21) == Slabs((4096, 4096), (512, 1024), 0, 512)
    wide = plan_slabs((4096, 4096), (2048, 1024), 2**21)  # a row of chunks holds 2^23 values
    assert (wide.axis, wide.lines, wide.times_read) == (0, 512, 4)
    experts = plan_slabs((8, 1024, 1024), (8, 256, 1024), 2**19)  # one expert holds 2^20 values
    assert (experts.axis, experts.lines, experts.times_read) == (1, 256, 8)
