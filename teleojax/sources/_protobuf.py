"""Protocol buffers on the wire: where the fields of a message lie, so that values are read without parsing a message.

The protobuf package parses whole messages into memory and tells no offsets.
Format: https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # the wire types in use; groups (3 and 4) never are


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message: it begins with its tag at byte `begin`, its content is bytes [start, stop)."""

    number: int
    wire: int
    begin: int
    start: int
    stop: int


def fields(raw: memoryview, start: int, stop: int) -> Iterator[Field]:
    """The fields of the message in bytes [start, stop). Raises ValueError where it is no message."""
    at = start
    while at < stop:
        tag, content = _varint(raw, at, stop)
        number, wire = tag >> 3, tag & 7
        if wire == BYTES:
            length, content = _varint(raw, content, stop)
        elif wire == VARINT:
            length = _varint(raw, content, stop)[1] - content
        elif wire in (FIXED64, FIXED32):
            length = 8 if wire == FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if not number or length > stop - content:
            raise ValueError(f"field {number} of {length} bytes at byte {at}, where {stop - content} are left")
        yield Field(number, wire, at, content, content + length)
        at = content + length


def _varint(raw: memoryview, at: int, stop: int) -> tuple[int, int]:
    """The number that begins at a byte, and where it ends."""
    value = 0
    for i, byte in enumerate(raw[at : min(at + 10, stop)]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, at + i + 1
    raise ValueError(f"a number without an end at byte {at}")
