"""Write a seeded synthetic checkpoint of sharded safetensors, in bounded memory, to measure and test readers with.

    python scripts/make_checkpoint.py OUT --bytes 2GiB --dtype bfloat16 --shards 4 --tensors 200 --shapes 120 --seed 0

Names are Llama's. Matrices and norms come in `--shapes` different shapes with odd sides, so no tensor fills whole
blocks. The same arguments write the same bytes (with one NumPy version: it may change its streams), and a value
depends only on the seed, the distribution, the name of its tensor and its position. With s = the scale of the tensor,
0.02·exp(z/2) for a seeded standard normal z:

    normal       w ~ s·N(0, 1)
    lognormal    |w| ~ LN(ln s, 1), either sign
    student_t    w ~ s·t with 4 degrees of freedom

`--fast` draws one pool of 2^24 values and cuts every chunk of every tensor from it at a seeded offset, times the scale
of the tensor: for timing readers on large files. Values then repeat, so it is no sample to test statistics on.

One shard is written as model.safetensors; several come with model.safetensors.index.json, written last.
Paths on standard output, progress on standard error. Exit status: 0 done, 2 usage, 3 OUT cannot be written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
FORMAT_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}

CHUNK_VALUES = 1 << 20  # values drawn, converted and written at a time: 4 MiB of float32
POOL_VALUES = 1 << 24  # the pool of --fast: 64 MiB of float32
DEGREES_OF_FREEDOM = 4.0
TOLERANCE = 0.01  # of the bytes asked for

LAYER_TENSORS = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
# Sides of each kind of tensor in units of the width of the network, after Llama; one side is a vector.
SIDES = {
    "vocabulary": (8.0, 1.0),
    "square": (1.0, 1.0),
    "narrow": (0.25, 1.0),
    "wide": (2.75, 1.0),
    "tall": (1.0, 2.75),
    "norm": (1.0,),
}
KINDS = {
    "embed_tokens": "vocabulary",
    "lm_head": "vocabulary",
    "q_proj": "square",
    "o_proj": "square",
    "k_proj": "narrow",
    "v_proj": "narrow",
    "gate_proj": "wide",
    "up_proj": "wide",
    "down_proj": "tall",
}  # everything else is a norm


class UsageError(ValueError):
    """The arguments ask for a checkpoint that cannot be."""


class Tensor(NamedTuple):
    """One planned tensor."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


class Recipe(NamedTuple):
    """How values are drawn."""

    seed: int
    distribution: str
    dtype: str
    fast: bool


# --- the plan: names, shapes, shards -----------------------------------------------------------------------------


def tensor_names(tensors: int) -> list[str]:
    """That many Llama names in file order: embedding, as many layers as it takes, last norm, head."""
    names = ["model.embed_tokens.weight"]
    in_layers = max(tensors - 3, 0)
    for i in range(in_layers):
        layer, part = divmod(i, len(LAYER_TENSORS))
        names.append(f"model.layers.{layer}.{LAYER_TENSORS[part]}.weight")
    return [*names, "model.norm.weight", "lm_head.weight"][:tensors]


def _kind(name: str) -> str:
    return KINDS.get(name.split(".")[-2], "norm")


def _share(shapes: int, counts: dict[str, int]) -> dict[str, int]:
    """Split the number of different shapes over the kinds: at least one each, at most one a tensor, near the ratio."""
    low, high = len(counts), sum(counts.values())
    if not low <= shapes <= high:
        raise UsageError(f"--shapes {shapes}: {high} tensors come in {low} to {high} different shapes")
    shares = dict.fromkeys(counts, 1)
    for _ in range(shapes - low):
        open_kinds = [kind for kind in counts if shares[kind] < counts[kind]]
        neediest = max(open_kinds, key=lambda kind: counts[kind] / shares[kind])
        shares[neediest] += 1
    return shares


def _odd(side: float) -> int:
    return max(int(side), 1) | 1


def _shapes_at(width: float, stretches: dict[tuple[str, int], tuple[float, ...]]) -> dict[tuple[str, int], list[int]]:
    """The shape of every variant of every kind for one width of the network: odd sides, no two shapes the same."""
    taken: set[tuple[int, ...]] = set()
    shapes = {}
    for (kind, variant), stretch in stretches.items():
        shape = [_odd(width * side * s) for side, s in zip(SIDES[kind], stretch, strict=True)]
        while tuple(shape) in taken:
            shape[0] += 2
        taken.add(tuple(shape))
        shapes[kind, variant] = shape
    return shapes


def plan(values: int, *, tensors: int, shapes: int, seed: int) -> list[Tensor]:
    """Names and shapes with about `values` values in all. Raises UsageError when that cannot be."""
    if tensors < 1:
        raise UsageError(f"--tensors {tensors}: needed at least 1")
    names = tensor_names(tensors)
    counts: dict[str, int] = {}
    variants = []
    for name in names:
        kind = _kind(name)
        variants.append((kind, counts.get(kind, 0)))
        counts[kind] = counts.get(kind, 0) + 1
    shares = _share(shapes, counts)
    keys = [(kind, i % shares[kind]) for kind, i in variants]
    rng = _generator(seed, "plan")
    stretches = {
        (kind, variant): tuple(rng.uniform(0.7, 1.3, len(SIDES[kind])))
        for kind in sorted(shares)
        for variant in range(shares[kind])
    }

    def total(width: float) -> int:
        made = _shapes_at(width, stretches)
        return sum(math.prod(made[key]) for key in keys)

    low, high = 1.0, 2.0 + math.sqrt(values)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if total(middle) <= values else (low, middle)
    made = _shapes_at(low, stretches)
    # What rounding the sides left over goes to the embedding, a row at a time; it keeps its odd number of rows.
    first = made[keys[0]]
    row = first[1] * keys.count(keys[0])
    first[0] = max(first[0] + 2 * round((values - total(low)) / row / 2), 1)
    planned = [Tensor(name, tuple(made[key])) for name, key in zip(names, keys, strict=True)]
    found = sum(tensor.size for tensor in planned)
    if abs(found - values) > TOLERANCE * values or len({tensor.shape for tensor in planned}) != shapes:
        raise UsageError(
            f"{tensors} tensors in {shapes} shapes do not fit {values} values: ask for more bytes or fewer tensors"
        )
    return planned


def split(tensors: Sequence[Tensor], shards: int) -> list[list[Tensor]]:
    """Cut the list into that many runs of about the same size, none empty."""
    if not 1 <= shards <= len(tensors):
        raise UsageError(f"--shards {shards}: {len(tensors)} tensors go into 1 to {len(tensors)} shards")
    total = sum(tensor.size for tensor in tensors)
    runs: list[list[Tensor]] = [[] for _ in range(shards)]
    before, shard = 0, -1
    for i, tensor in enumerate(tensors):
        wanted = int((before + tensor.size / 2) * shards / total)
        least = shards - (len(tensors) - i)  # so that the tensors left can fill the shards left
        shard = min(max(wanted, least, shard), shard + 1)
        runs[shard].append(tensor)
        before += tensor.size
    return runs


def file_names(shards: int) -> list[str]:
    """Names of the shards, as Hugging Face writes them."""
    if shards == 1:
        return ["model.safetensors"]
    return [f"model-{i:05d}-of-{shards:05d}.safetensors" for i in range(1, shards + 1)]


# --- the values ---------------------------------------------------------------------------------------------------


def _generator(*key: object) -> np.random.Generator:
    """A generator that depends on the key and nothing else."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.SFC64(int.from_bytes(digest[:16], "little")))


def scale_of(seed: int, name: str) -> float:
    """The scale s of a tensor."""
    return 0.02 * math.exp(0.5 * _generator(seed, name, "scale").standard_normal())


def _fill_unit(rng: np.random.Generator, distribution: str, out: np.ndarray) -> None:
    """Fill float32 `out` with draws of scale 1."""
    rng.standard_normal(out=out, dtype=np.float32)
    if distribution == "lognormal":
        np.exp(out, out=out)
        signs = np.unpackbits(np.frombuffer(rng.bytes(-(-out.size // 8)), np.uint8), count=out.size)
        bits = out.view(np.uint32)
        bits |= signs.astype(np.uint32) << np.uint32(31)
    elif distribution == "student_t":
        gamma = rng.standard_gamma(DEGREES_OF_FREEDOM / 2, size=out.size, dtype=np.float32)
        out *= np.sqrt(np.float32(DEGREES_OF_FREEDOM / 2) / gamma)


def make_pool(recipe: Recipe) -> np.ndarray | None:
    """The values that --fast cuts from; None without it."""
    if not recipe.fast:
        return None
    pool = np.empty(POOL_VALUES, np.float32)
    for i, start in enumerate(range(0, POOL_VALUES, CHUNK_VALUES)):
        _fill_unit(_generator(recipe.seed, "pool", i), recipe.distribution, pool[start : start + CHUNK_VALUES])
    return pool


def chunks(tensor: Tensor, recipe: Recipe, pool: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """The values of a tensor in C order, at most CHUNK_VALUES at a time. `pool` is that of `make_pool`."""
    scale = np.float32(scale_of(recipe.seed, tensor.name))
    dtype = DTYPES[recipe.dtype]
    buffer = np.empty(min(CHUNK_VALUES, tensor.size), np.float32)
    for i, start in enumerate(range(0, tensor.size, CHUNK_VALUES)):
        out = buffer[: min(CHUNK_VALUES, tensor.size - start)]
        rng = _generator(recipe.seed, tensor.name, i)
        if pool is None:
            _fill_unit(rng, recipe.distribution, out)
            out *= scale
        else:
            offset = int(rng.integers(POOL_VALUES - out.size + 1))
            np.multiply(pool[offset : offset + out.size], scale, out=out)
        yield out.astype(dtype, copy=False)


# --- the files ----------------------------------------------------------------------------------------------------


def header(tensors: Sequence[Tensor], dtype: str) -> bytes:
    """The length and the JSON that open a safetensors file."""
    ends = np.cumsum([0] + [tensor.size * DTYPES[dtype].itemsize for tensor in tensors], dtype=np.int64).tolist()
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for tensor, offsets in zip(tensors, pairwise(ends), strict=True):
        entries[tensor.name] = {"dtype": FORMAT_NAMES[dtype], "shape": tensor.shape, "data_offsets": offsets}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _write(path: Path, pieces: Iterator[bytes | memoryview]) -> None:
    """Write to a temporary name, then rename: a file with the final name is whole."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb", buffering=0) as stream:
            for piece in pieces:
                rest = memoryview(piece)
                while rest:
                    rest = rest[stream.write(rest) :]
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _shard_pieces(tensors: Sequence[Tensor], recipe: Recipe, pool: np.ndarray | None) -> Iterator[bytes | memoryview]:
    yield header(tensors, recipe.dtype)
    for tensor in tensors:
        for chunk in chunks(tensor, recipe, pool):
            yield chunk.view(np.uint8).data


def write(
    out: Path, tensors: Sequence[Tensor], recipe: Recipe, *, shards: int, say: Callable[[str], None]
) -> list[Path]:
    """Write the shards, then the index; return their paths. Raises UsageError or OSError."""
    runs = split(tensors, shards)
    names = file_names(shards)
    strange = sorted({path.name for path in out.glob("*.safetensors*")} - {*names, "model.safetensors.index.json"})
    if strange:
        raise UsageError(f"{out} holds {strange[0]}, which is no part of this checkpoint: name another folder")
    out.mkdir(parents=True, exist_ok=True)
    index = out / "model.safetensors.index.json"
    index.unlink(missing_ok=True)  # until the new one is there, the folder is not a whole checkpoint
    pool = make_pool(recipe)
    paths = []
    for name, run in zip(names, runs, strict=True):
        say(f"{name}: {len(run)} tensors")
        _write(out / name, _shard_pieces(run, recipe, pool))
        paths.append(out / name)
    if shards > 1:
        total = sum(tensor.size for tensor in tensors) * DTYPES[recipe.dtype].itemsize
        weight_map = {tensor.name: name for name, run in zip(names, runs, strict=True) for tensor in run}
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n"
        _write(index, iter([text.encode()]))
        paths.append(index)
    return paths


# --- the command line ---------------------------------------------------------------------------------------------

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def parse_bytes(text: str) -> int:
    """A number of bytes: 1048576, 500MB, 2GiB, 1.5GiB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes; write 1048576, 500MB or 2GiB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Write a seeded synthetic checkpoint of sharded safetensors.")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--bytes", type=parse_bytes, default="2GiB", help="bytes of all tensors, within 1%%")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--tensors", type=int, default=200)
    parser.add_argument("--shapes", type=int, default=120, help="how many different shapes they come in")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--distribution", choices=("normal", "lognormal", "student_t"), default="normal")
    parser.add_argument("--fast", action="store_true", help="cut the values from one pool, so that they repeat")
    args = parser.parse_args(argv)
    recipe = Recipe(args.seed, args.distribution, args.dtype, args.fast)

    def say(message: str) -> None:
        if sys.stderr.isatty():
            print(message, file=sys.stderr, flush=True)

    try:
        values = args.bytes // DTYPES[args.dtype].itemsize
        tensors = plan(values, tensors=args.tensors, shapes=args.shapes, seed=args.seed)
        paths = write(args.out, tensors, recipe, shards=args.shards, say=say)
    except UsageError as error:
        parser.error(str(error))
    except OSError as error:
        print(f"{args.out}: {error}", file=sys.stderr)
        return 3
    print(*paths, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
