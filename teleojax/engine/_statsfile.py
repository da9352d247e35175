"""The statistics file: what was measured, tensor by tensor, to merge, fit and compare later without the weights.

    teleojax statistics 1\\n      magic
    record*                      8 bytes length, 4 bytes CRC-32 (little-endian), payload

A payload is zlib: 4 bytes length of a JSON header, the header, and 64-bit little-endian arrays (see stats/_codec.py).
The first record is {"kind": "source"}, then come {"kind": "tensor"} records, those of skipped and failed tensors
without statistics, and last {"kind": "end"} with their number. Numbers and names alone: reading executes nothing.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from teleojax._errors import CorruptInputError, InputError
from teleojax.engine._measure import Measured
from teleojax.sources import TensorSpec
from teleojax.sources._index import natural_key
from teleojax.stats import TensorStats
from teleojax.stats._codec import each_record, pack, record, unpack
from teleojax.stats._tensor import merge

MAGIC = b"teleojax statistics 1\n"
MAX_RANK = 64  # NumPy's limit


def dump_statistics(measured: Measured) -> bytes:
    """The bytes of a statistics file."""
    records = [pack({"kind": "source", "name": measured.source})]
    for name, spec in measured.specs.items():
        reason = {"skipped": measured.skipped.get(name), "failed": measured.failed.get(name)}
        header = {"kind": "tensor", "spec": asdict(spec), **{k: v for k, v in reason.items() if v is not None}}
        records.append(pack(header, measured.stats.get(name)))
    records.append(pack({"kind": "end", "tensors": len(measured.specs)}))
    return MAGIC + b"".join(map(record, records))


def is_statistics(path: Path) -> bool:
    """Whether a file begins as a statistics file does."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def load_statistics(path: str | Path) -> Measured:
    """Read a statistics file. Raises InputError and CorruptInputError for one that cannot be read or is not whole.

    The `seconds` of what is returned are those that it took to load.
    """
    begin = time.perf_counter()
    path = Path(path)
    try:
        raw = memoryview(path.read_bytes())
    except OSError as e:
        raise InputError(
            path, found=e.strerror or str(e), needed="a readable statistics file", remedy="Check the path."
        ) from e
    if bytes(raw[: len(MAGIC)]) != MAGIC:
        raise CorruptInputError(
            path,
            found=f"a file that begins with {bytes(raw[: len(MAGIC)])!r}",
            needed=f"{MAGIC.decode().strip()!r}",
            remedy="Write one with teleojax measure.",
        )
    headers = [unpack(payload, str(path)) for _, payload in each_record(raw, len(MAGIC))]
    if not headers or headers[-1][0].get("kind") != "end" or headers[0][0].get("kind") != "source":
        raise CorruptInputError(
            path, found=f"{len(headers)} whole records and no end", needed="the whole file", remedy="Measure again."
        )
    specs: dict[str, TensorSpec] = {}
    stats: dict[str, TensorStats] = {}
    reasons: dict[str, dict[str, str]] = {"skipped": {}, "failed": {}}
    for header, found in headers[1:-1]:
        spec = _spec(header, path)
        specs[spec.name] = spec
        if found is not None:
            stats[spec.name] = found
        for kind, mine in reasons.items():
            if kind in header:
                mine[spec.name] = str(header[kind])
    seconds = time.perf_counter() - begin
    return Measured(str(headers[0][0].get("name")), specs, stats, **reasons, seconds=seconds)


def _spec(header: dict[str, Any], path: Path) -> TensorSpec:
    try:
        fields = dict(header["spec"])
        shape = tuple(fields["shape"])
        if not all(isinstance(fields[key], str) for key in ("name", "dtype", "storage")):
            raise TypeError("a name that is no text")
        sizes = (*shape, fields["offset"], fields["nbytes"])
        if len(shape) > MAX_RANK or not all(type(n) is int and 0 <= n < 2**64 for n in sizes):
            raise ValueError("a size that is no size")
        return TensorSpec(**{**fields, "shape": shape})
    except (KeyError, TypeError, ValueError) as e:
        raise CorruptInputError(
            path, found=f"a tensor record without its description ({e})", needed="name, shape and type",
            remedy="Measure again.",
        ) from e  # fmt: skip


def merge_measured(*parts: Measured) -> Measured:
    """Statistics of several sources as one: tensors of one name merge to the whole, in the order given.

    The specification of a tensor that came in parts has their total size, as a flat tensor. A tensor that any part
    lists as failed stays failed: its statistics would not be those of the whole.
    """
    specs: dict[str, TensorSpec] = {}
    stats: dict[str, list[TensorStats]] = {}
    skipped: dict[str, str] = {}
    failed: dict[str, str] = {}
    for part in parts:
        failed |= part.failed
        skipped |= part.skipped
        for name, spec in part.specs.items():
            if name in specs and name in part.stats and name in stats:
                size = specs[name].size + spec.size
                specs[name] = TensorSpec(name, (size,), spec.dtype, "merged", 0, specs[name].nbytes + spec.nbytes)
            elif name not in specs or name in part.stats:
                specs[name] = spec
            if name in part.stats:
                stats.setdefault(name, []).append(part.stats[name])
    merged = {n: s[0] if len(s) == 1 else merge(*s) for n, s in stats.items() if n not in failed}
    order = sorted(specs, key=natural_key)
    return Measured(
        " + ".join(p.source for p in parts),
        {n: specs[n] for n in order},
        {n: merged[n] for n in order if n in merged},
        {n: r for n, r in skipped.items() if n not in merged and n not in failed},
        failed,
        sum(p.seconds for p in parts),
    )
