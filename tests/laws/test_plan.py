"""The plan covers every byte of every tensor once, whatever the offsets, types and window length."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teleojax import UsageError
from teleojax.blocks import ROW, plan_frames, plan_windows, split_piece, window_bytes
from teleojax.blocks._plan import BLOCK_BYTES, FRAME_ROWS, GRID_BYTES, WINDOW_BYTES
from teleojax.blocks._share import CUT_BYTES, shares
from teleojax.sources import TensorSpec

ITEMSIZE = {"float64": 8, "float32": 4, "bfloat16": 2, "float8_e4m3fn": 1}


SIZES = [1, 3, 8191, 8192, 20_000, 300_000, 5_000_000, 40_000_000]
# first offset, and of each tensor: type, size, gap after it
LAYOUTS = st.tuples(
    st.integers(0, 200),
    st.lists(
        st.tuples(st.sampled_from(sorted(ITEMSIZE)), st.sampled_from(SIZES), st.sampled_from([0, 0, 1, 64])),
        min_size=1,
        max_size=6,
    ),
)
Layout = tuple[int, list[tuple[str, int, int]]]


def lay_out(layout: Layout) -> list[TensorSpec]:
    offset, tensors = layout
    specs = []
    for i, (dtype, size, gap) in enumerate(tensors):
        specs.append(TensorSpec(str(i), (size,), dtype, "s", offset, size * ITEMSIZE[dtype]))
        offset += size * ITEMSIZE[dtype] + gap
    return specs


@settings(deadline=None)
@given(LAYOUTS, st.sampled_from([BLOCK_BYTES, WINDOW_BYTES]))
def test_windows_and_splits_cover_each_tensor_once(layout: Layout, length: int) -> None:
    specs = lay_out(layout)
    reached = {i: s.offset for i, s in enumerate(specs)}
    previous_stop = 0
    for window in plan_windows(specs, length):
        assert window.start % length == 0
        assert window.start >= previous_stop - 8
        assert window.stop - window.start < length + 8
        previous_stop = window.stop
        for piece in window.pieces:
            spec = specs[piece.tensor]
            assert window.start - 8 < piece.start < piece.stop <= window.stop
            assert piece.start == reached[piece.tensor]
            reached[piece.tensor] = piece.stop
            split = split_piece(spec, piece)
            row_bytes = ROW * ITEMSIZE[spec.dtype]
            parts = [*split.fragments, (split.first_row * row_bytes, split.stop_row * row_bytes)]
            parts = sorted(p for p in parts if p[0] < p[1])
            assert [a for a, _ in parts] == [piece.start, *(b for _, b in parts[:-1])]
            assert parts[-1][1] == piece.stop
            for start, stop in split.fragments:
                assert stop - start <= row_bytes
                assert (start - spec.offset) % ITEMSIZE[spec.dtype] == 0
    assert reached == {i: s.offset + s.nbytes for i, s in enumerate(specs)}


@settings(deadline=None)
@given(LAYOUTS)
def test_fragments_do_not_depend_on_the_window_length(layout: Layout) -> None:
    specs = lay_out(layout)

    def parts(length: int) -> set[tuple[int, int, int]]:
        found = set()
        for window in plan_windows(specs, length):
            for piece in window.pieces:
                split = split_piece(specs[piece.tensor], piece)
                row_bytes = ROW * ITEMSIZE[specs[piece.tensor].dtype]
                rows = range(split.first_row, split.stop_row)
                found |= {(piece.tensor, r * row_bytes, (r + 1) * row_bytes) for r in rows}
                found |= {(piece.tensor, a, b) for a, b in split.fragments}
        return found

    assert parts(BLOCK_BYTES) == parts(WINDOW_BYTES)


@given(
    st.lists(st.tuples(st.integers(0, 500), st.integers(1, 300)), min_size=1, max_size=5),
    st.integers(1, 3000),
    st.sampled_from([256, 1024]),
)
def test_frames_answer_for_every_wanted_row_once(gaps: list[tuple[int, int]], n_rows: int, large: int) -> None:
    spans, row = [], 0
    for gap, length in gaps:
        start = row + gap
        row = start + length
        spans.append((start, min(row, n_rows)))
    spans = [s for s in spans if s[0] < s[1] and s[1] <= large]
    answered: list[int] = []
    for frame in plan_frames(spans, 0, n_rows, large):
        assert frame.first + frame.size <= max(n_rows, FRAME_ROWS)
        for start, stop in spans:
            rows = range(max(start, frame.own_first), min(stop, frame.own_stop))
            assert all(frame.first <= r < frame.first + frame.size for r in rows)
            answered += rows
    assert sorted(answered) == [r for start, stop in spans for r in range(start, stop)]


def test_budget() -> None:
    assert window_bytes(None) == WINDOW_BYTES
    assert window_bytes(64 << 20) == BLOCK_BYTES
    assert window_bytes(1 << 40) == WINDOW_BYTES
    with pytest.raises(UsageError, match="at least 67108864 bytes"):
        window_bytes((64 << 20) - 1)


@settings(deadline=None)
@given(st.lists(LAYOUTS, min_size=1, max_size=3), st.sampled_from([1, 2, 3, 4, 16]))
def test_shares_cover_each_tensor_once_and_are_even(layouts: list[Layout], n: int) -> None:
    stored = {f"s{i}": lay_out(layout) for i, layout in enumerate(layouts)}
    reached = {(storage, i): s.offset for storage, specs in stored.items() for i, s in enumerate(specs)}
    owners: dict[tuple[str, int], set[int]] = {}
    total = sum(s.nbytes for specs in stored.values() for s in specs)
    runs = shares(stored, n)
    assert len(runs) == n
    for process, run in enumerate(runs):
        mine = 0
        for storage, (start, stop) in run.items():
            for window in plan_windows(stored[storage], WINDOW_BYTES, start, stop):
                assert window.start % GRID_BYTES == 0
                for piece in window.pieces:
                    tensor = storage, piece.tensor
                    assert window.start - 8 < piece.start < piece.stop <= window.stop
                    assert piece.start == reached[tensor]
                    reached[tensor] = piece.stop
                    owners.setdefault(tensor, set()).add(process)
                    mine += piece.stop - piece.start
        assert mine <= total / n + CUT_BYTES + BLOCK_BYTES
    for storage, specs in stored.items():
        for i, spec in enumerate(specs):
            assert reached[storage, i] == spec.offset + spec.nbytes
            assert spec.nbytes > CUT_BYTES or len(owners[storage, i]) == 1
