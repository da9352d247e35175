"""Mutations that keep a format's frame: lengths, checksums and containers stay right, what they hold does not.

A mutation takes an input and a `random.Random` and returns another input; one that does not understand the input raises
anything, and the bytes are mutated instead.
"""

from __future__ import annotations

import gzip
import io
import json
import pickletools
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from random import Random
from typing import Any

Mutation = Callable[[bytes, Random], bytes]

NUMBERS = (0, 1, -1, 2, 3, 7, 8, 16, 31, 32, 64, 127, 128, 255, 256, 1000, 4096, 65535, 65536, 2**24, 2**31 - 1, 2**31,
           2**32 - 1, 2**32, 2**40, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**70, 10**30)  # fmt: skip
TEXTS = ("", "a", "\0", "\x1b[31m", "../../x", "/etc/hostname", "C:\\x", "é\u2028", "\ud800", "x" * 300, "NaN", "1e999")
STRANGE = (None, True, False, 0.5, -0.0, 1e308, 1e999, [], {}, [[]], {"": 0})
DEEP = 3000  # more than the interpreter's recursion limit


def mutate_bytes(data: bytes, rng: Random) -> bytes:
    """One to four changes of bytes, numbers or stretches."""
    raw = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, n = rng.randrange(len(raw) + 1), rng.choice((1, 1, 2, 4, 8, 16, 64))
        match rng.randrange(7):
            case 0:
                raw[at : at + 1] = bytes([rng.randrange(256)])
            case 1 if at < len(raw):
                raw[at] ^= 1 << rng.randrange(8)
            case 2:
                width = rng.choice((1, 2, 4, 8))
                order = rng.choice(("little", "little", "big"))
                raw[at : at + width] = (rng.choice(NUMBERS) % 2 ** (8 * width)).to_bytes(width, order)
            case 3:
                del raw[at : at + n]
            case 4:
                raw[at:at] = raw[at : at + n]
            case 5:
                source = rng.randrange(len(raw) + 1)
                raw[at : at + n] = raw[source : source + n]
            case _ if rng.random() < 0.2:
                del raw[at:]
    return bytes(raw)


def mutate_text(text: str, rng: Random) -> str:
    """A number in the text changed, or its characters."""
    numbers = list(re.finditer(r"-?[0-9]+", text))
    if numbers and rng.random() < 0.6:
        m = rng.choice(numbers)
        return text[: m.start()] + str(rng.choice(NUMBERS)) + text[m.end() :]
    return mutate_bytes(text.encode("utf-8", "surrogatepass"), rng).decode("utf-8", "replace")


def mutate_tree(tree: Any, rng: Random) -> Any:
    """One place of a tree of dictionaries, lists and leaves changed."""
    if isinstance(tree, dict) and tree and rng.random() < 0.85:
        made, key = dict(tree), rng.choice(list(tree))
        match rng.randrange(8):
            case 0:
                del made[key]
            case 1:
                made[rng.choice(TEXTS)] = made.pop(key)
            case 2:
                made[f"{key}{rng.randrange(3)}"] = tree[key]
            case 3:
                made[key] = tree[rng.choice(list(tree))]
            case _:
                made[key] = mutate_tree(tree[key], rng)
        return made
    if isinstance(tree, list) and tree and rng.random() < 0.85:
        at = rng.randrange(len(tree))
        match rng.randrange(6):
            case 0:
                return tree[:at] + tree[at + 1 :]
            case 1:
                return tree[:at] + [tree[at]] * rng.choice((2, 3, 100)) + tree[at + 1 :]
            case _:
                return [*tree[:at], mutate_tree(tree[at], rng), *tree[at + 1 :]]
    if isinstance(tree, str) and rng.random() < 0.6:
        return mutate_text(tree, rng)
    if isinstance(tree, int) and rng.random() < 0.6:
        return rng.choice((rng.choice(NUMBERS), tree + 1, tree - 1, -tree, 2 * tree))
    return rng.choice((*STRANGE, *NUMBERS, *TEXTS))


def mutate_json(raw: bytes, rng: Random) -> bytes:
    """JSON of another tree; now and then nested past every limit, or with a key twice."""
    text = json.dumps(mutate_tree(json.loads(raw), rng), ensure_ascii=rng.random() < 0.9)
    if rng.random() < 0.02:
        at = rng.choice([m.start() for m in re.finditer(r"[\[{0-9]", text)] or [0])
        text = text[:at] + "[" * DEEP + "]" * DEEP + text[at:]
    if rng.random() < 0.05 and (m := rng.choice([*re.finditer(r'"[^"]*": ?[^,{}\[\]]+', text), None])):
        text = f"{text[: m.end()]},{m[0]}{text[m.end() :]}"
    return text.encode("utf-8", "surrogatepass")


def safetensors(data: bytes, rng: Random) -> bytes:
    """Another header of the right length, the values as they were or nearly."""
    (n,) = struct.unpack_from("<Q", data)
    header, values = mutate_json(data[8 : 8 + n], rng), data[8 + n :]
    if rng.random() < 0.2:
        values = values[: rng.randrange(len(values) + 1)] if rng.random() < 0.5 else values + bytes(rng.randrange(64))
    return struct.pack("<Q", len(header)) + header + values


def npy(data: bytes, rng: Random) -> bytes:
    """Another literal of the right length."""
    prefix, kind = (10, "<H") if data[6] == 1 else (12, "<I")
    n = int.from_bytes(data[8:prefix], "little")
    text = mutate_text(data[prefix : prefix + n].decode("latin-1"), rng)
    if rng.random() < 0.3:
        types = (
            "<f4",
            ">f8",
            "|O",
            "<f2",
            "|V2",
            "<U4",
            "|S3",
            "<M8[s]",
            "<c8",
            "<f16",
            "<i8",
            "[('a','<f4')]",
            "<f1",
            "",
        )
        text = re.sub(r"'descr': [^,]*", f"'descr': {rng.choice(types)!r}", text)
    if rng.random() < 0.02:
        text = "(" * 200 + text
    header = text.encode("utf-8", "replace")
    return data[:8] + struct.pack(kind, len(header) % (1 << 8 * (prefix - 8))) + header + data[prefix + n :]


def archive(data: bytes, rng: Random, *, inner: dict[str, Mutation], align: bool = False) -> bytes:
    """A zip archive one of whose members is another, renamed, doubled, left out or packed differently.

    `inner` maps the end of a member's name to the mutation of what it holds. `align` pads members as PyTorch does.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as held:
        members = [(i.filename, held.read(i), i.compress_type) for i in held.infolist()]
    at = rng.randrange(len(members))
    name, raw, packed = members[at]
    match rng.randrange(10):
        case 0:
            members[at] = (rng.choice([*TEXTS[1:], *(m[0] for m in members)]), raw, packed)
        case 1:
            members.append((rng.choice(members)[0], raw, packed))
        case 2:
            del members[at]
        case 3:
            kinds = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
            members[at] = (name, raw, rng.choice(kinds))
        case _:
            mutation = next((m for end, m in inner.items() if name.endswith(end)), mutate_bytes)
            members[at] = (name, attempt(mutation, raw, rng), packed)
    made = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(made, "w") as out:
        warnings.simplefilter("ignore")  # of names that repeat
        for name, raw, packed in members:
            info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode())
            info.compress_type = packed
            if align:
                pad = -(made.tell() + 30 + len(info.filename) + 4) % 64
                info.extra = struct.pack("<HH", 0x4246, pad) + bytes(pad)
            out.writestr(info, raw)
    return made.getvalue() if rng.random() < 0.9 else mutate_bytes(made.getvalue(), rng)


def pickled(data: bytes, rng: Random) -> bytes:
    """Opcodes left out, repeated, exchanged, or with another argument; nothing is ever unpickled here."""
    starts = [at for *_, at in pickletools.genops(data)]
    steps = [data[a:b] for a, b in pairwise([*starts, len(data)])]
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(1, len(steps))
        match rng.randrange(5):
            case 0:
                del steps[at]
            case 1:
                steps.insert(at, rng.choice(steps))
            case 2:
                steps[at : at + 1] = [b"q\xfeh\xfe\x86"] * rng.choice((1, 4, 40))  # what lies there, twice in a tuple
            case 3:
                steps[at] = rng.choice(PICKLED)
            case _:
                steps[at] = steps[at][:1] + mutate_bytes(steps[at][1:], rng)
    return b"".join(steps)


PICKLED = (  # opcodes with their arguments
    *(b"N", b"}", b"]", b")", b"(", b"t", b"l", b"d", b"s", b"u", b"a", b"e", b"R", b"Q", b"b", b"0", b"2", b"\x85"),
    *(b"K\x02", b"J\xff\xff\xff\xff", b"M\x00\x10", b"\x8a\x08" + b"\x7f" * 8, b"G\x7f\xf0" + bytes(6), b"\x86"),
    *(b"X\x03\x00\x00\x00\xed\xa0\x80", b"cos\nsystem\n", b"cbuiltins\neval\n", b"ccollections\nOrderedDict\n"),
    *(b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nHalfStorage\n", b"ctorch\nSize\n"),
)


def protobuf(data: bytes, rng: Random, depth: int = 0) -> bytes:
    """A message of which one field, at any depth, is another, twice or left out."""
    fields = list(_fields(data))
    at = rng.randrange(len(fields))
    number, wire, content = fields[at]
    match rng.randrange(8):
        case 0:
            del fields[at]
        case 1:
            fields.insert(at, fields[rng.randrange(len(fields))])
        case 2:
            fields[at] = (rng.choice((number, 1, 4, 5, 7, 8, 9, 10, 15)), wire, content)
        case _ if wire == 0:
            fields[at] = (number, wire, _varint(rng.choice(NUMBERS) % 2**64))
        case _ if wire == 2 and depth < 8 and rng.random() < 0.8:
            fields[at] = (number, wire, attempt(partial(protobuf, depth=depth + 1), content, rng))
        case _:
            fields[at] = (number, wire, mutate_bytes(content, rng)[: len(content) if wire != 2 else None])
    return b"".join(
        _varint(number << 3 | wire) + (_varint(len(content)) if wire == 2 else b"") + content
        for number, wire, content in fields
    )


def _fields(data: bytes) -> list[tuple[int, int, bytes]]:
    found, at = [], 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        start, n = at, {1: 8, 5: 4}.get(tag & 7, 0)
        if tag & 7 == 0:
            n = _read_varint(data, at)[1] - at
        elif tag & 7 == 2:
            n, start = _read_varint(data, at)
        if tag & 7 not in (0, 1, 2, 5) or not tag >> 3 or start + n > len(data):
            raise ValueError("no message")
        found.append((tag >> 3, tag & 7, data[start : start + n]))
        at = start + n
    return found


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def gguf(data: bytes, rng: Random) -> bytes:
    """A file made up from nothing: any fields and tensors, the values of the input behind them."""

    def text(choices: tuple[str, ...]) -> bytes:
        raw = rng.choice((*choices, *TEXTS)).encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(raw)) + raw

    def value(kind: int, depth: int = 0) -> bytes:
        if kind == 8:
            return text(("llama", "gpt2"))
        if kind == 9 and depth < 12:
            inner, n = rng.choice((0, 4, 6, 8, 9, rng.randrange(14))), rng.randrange(4)
            claimed = n if rng.random() < 0.9 else rng.choice(NUMBERS) % 2**64
            return struct.pack("<IQ", inner, claimed) + b"".join(value(inner, depth + 1) for _ in range(n))
        return rng.randbytes({0: 1, 1: 1, 2: 2, 3: 2, 7: 1, 10: 8, 11: 8, 12: 8}.get(kind, 4))

    fields, tensors = rng.randrange(4), rng.randrange(5)
    out = struct.pack("<4sIQQ", b"GGUF", rng.choice((2, 3, 3, 3)), tensors, fields)
    for _ in range(fields):
        kind = rng.choice((4, 8, 9, rng.randrange(14)))
        out += text(("general.alignment", "general.architecture")) + struct.pack("<I", kind)
        out += struct.pack("<I", rng.choice((1, 8, 32, 64, *NUMBERS)) % 2**32) if kind == 4 else value(kind)
    offset = 0
    for i in range(tensors):
        shape = [
            rng.choice((1, 2, 32, 64, 256, rng.choice(NUMBERS) % 2**64)) for _ in range(rng.choice((0, 1, 2, 2, 5)))
        ]
        out += text((f"blk.{i}.w",) * 9) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        at = offset if rng.random() < 0.8 else rng.choice(NUMBERS) % 2**64
        out += struct.pack("<IQ", rng.choice((0, 1, 2, 8, 30, rng.randrange(45))), at)
        offset += rng.choice((32, 64, 256))
    return out + bytes(-len(out) % 32) + data[-rng.randrange(1, 1024) :]


def flax(data: bytes, rng: Random) -> bytes:
    """Another tree, the inside of arrays included."""
    import msgpack

    def unpacked(raw: bytes) -> Any:
        return msgpack.unpackb(raw, strict_map_key=False)

    def mutated(tree: Any) -> Any:
        if isinstance(tree, dict) and tree and rng.random() < 0.7:
            key = rng.choice(list(tree))
            return {**tree, key: mutated(tree[key])}
        if isinstance(tree, msgpack.ExtType):
            if tree.code in (1, 3) and rng.random() < 0.8:
                return msgpack.ExtType(tree.code, packed(mutate_tree(unpacked(tree.data), rng)))
            return msgpack.ExtType(rng.randrange(5), mutate_bytes(tree.data, rng))
        return mutate_tree(tree, rng)

    def packed(tree: Any) -> bytes:
        return msgpack.packb(tree, default=str, unicode_errors="replace")

    if rng.random() < 0.02:
        return b"\x81\xa1a" * DEEP + b"\xc0"
    return packed(mutated(unpacked(data)))


def records(data: bytes, rng: Random, *, magic: int) -> bytes:
    """Statistics whose records have the right length and checksum, and another header or other numbers."""
    payloads, at = [], magic
    while at + 12 <= len(data):
        (n,) = struct.unpack_from("<Q", data, at)
        payloads.append(data[at + 12 : at + 12 + n])
        at += 12 + n
    at = rng.randrange(len(payloads))
    match rng.randrange(8):
        case 0:
            del payloads[at]
        case 1:
            payloads.insert(at, rng.choice(payloads))
        case 2:
            payloads[at] = mutate_bytes(payloads[at], rng)
        case _:
            raw = zlib.decompress(payloads[at])
            (n,) = struct.unpack_from("<I", raw)
            header, arrays = raw[4 : 4 + n], raw[4 + n :]
            if arrays and rng.random() < 0.4:
                arrays = mutate_bytes(arrays, rng)
            else:
                header = mutate_json(header, rng)
            payloads[at] = zlib.compress(struct.pack("<I", len(header)) + header + arrays, level=1)
    return data[:magic] + b"".join(struct.pack("<QI", len(p), zlib.crc32(p)) + p for p in payloads)


def compressed(data: bytes, rng: Random) -> bytes:
    """Compressed again after a change inside: a bomb of zeros now and then."""
    import zstandard

    if data[:2] == b"\x1f\x8b":
        raw, pack = gzip.decompress(data), partial(gzip.compress, mtime=0)
    else:
        with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
            raw = reader.read()
        pack = zstandard.ZstdCompressor(write_checksum=True).compress
    raw = attempt(safetensors, raw, rng)
    if rng.random() < 0.01:
        raw += bytes(rng.choice((1 << 20, 1 << 24)))
    return pack(raw)


def one_file(data: bytes, rng: Random, *, inner: Mutation) -> bytes:
    """Of a directory's file: the first byte says which, the others are JSON or what `inner` mutates."""
    if data[1:2] == b"{":
        return data[:1] + mutate_json(data[1:], rng)
    return data[:1] + inner(data[1:], rng)


def attempt(mutation: Mutation, data: bytes, rng: Random) -> bytes:
    """The mutation, or one of the bytes where it does not understand them."""
    try:
        return mutation(data, rng)
    except Exception:
        return mutate_bytes(data, rng)


ZARR = {"zarr.json": mutate_json, ".zarray": mutate_json, ".zgroup": mutate_json, ".zattrs": mutate_json}
MUTATIONS: dict[str, Mutation] = {
    "safetensors": safetensors,
    "stream": safetensors,
    "safetensors_index": partial(one_file, inner=safetensors),
    "npy": npy,
    "npz": partial(archive, inner={".npy": npy}),
    "torch": partial(archive, inner={"data.pkl": pickled}, align=True),
    "gguf": gguf,
    "onnx": protobuf,
    "keras": partial(archive, inner={".json": mutate_json}),
    "flax": flax,
    "zarr2": partial(one_file, inner=mutate_bytes),
    "zarr3": partial(one_file, inner=mutate_bytes),
    "zarr_zip": partial(archive, inner=ZARR),
    "orbax": partial(one_file, inner=mutate_bytes),
    "orbax_zarr3": partial(one_file, inner=mutate_bytes),
    "compressed": compressed,
    "statistics": partial(records, magic=len("teleojax statistics 1\n")),
    "journal": partial(records, magic=len("teleojax journal 1\n")),
}
