"""The tensors of an ONNX model and where their values lie, from the wire format; what they mean is for `_onnx`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from teleojax.sources._protobuf import BYTES, Field, fields

GRAPH = 7  # of a model
NODE, INITIALIZER, SPARSE = 1, 5, 15  # of a graph
VALUES = 1  # of a sparse tensor
OP_TYPE, ATTRIBUTE = 4, 5  # of a node
TENSOR, SUBGRAPH, SUBGRAPHS = 5, 6, 11  # of an attribute
FLOATS, RAW, DOUBLES = 4, 9, 10  # of a tensor: values that lie there one after another
SMALL_BYTES = 1 << 10  # values up to which a tensor is parsed whole: scales and zero points are looked at
MAX_DEPTH = 32  # of graphs in nodes of graphs
MOST_TENSORS, MOST_FIELDS = 1 << 20, 1 << 16  # of a model; of a node or tensor: two bytes of a file make one


@dataclass(frozen=True, slots=True)
class Found:
    """A tensor of one graph: its message, without values where they are many; the field that it is, and that of its
    values, None where these are written as numbers or in several pieces.
    """

    graph: int
    message: Any
    field: Field
    values: Field | None
    sparse: bool = False


@dataclass
class Scan:
    """One walk over a model. Raises ValueError and protobuf's DecodeError where it is none."""

    raw: memoryview
    graphs: int = 0
    tensors: int = 0
    dequantised: list[tuple[int, Any]] = field(default_factory=list)  # (graph, DequantizeLinear node)
    small: dict[tuple[int, str], Any] = field(default_factory=dict)  # by graph and name

    def model(self) -> Iterator[Found]:
        """Every tensor, in the order of the file."""
        for f in fields(self.raw, 0, len(self.raw)):
            if (f.number, f.wire) == (GRAPH, BYTES):
                yield from self.graph(f, 0)

    def graph(self, whole: Field, depth: int) -> Iterator[Found]:
        """The tensors of a graph, and of those in its nodes."""
        if depth > MAX_DEPTH:
            raise ValueError(f"graphs nested more than {MAX_DEPTH} deep")
        number, self.graphs = self.graphs, self.graphs + 1
        for f in fields(self.raw, whole.start, whole.stop):
            if f.wire != BYTES:
                continue
            if f.number == INITIALIZER:
                yield self.tensor(number, f)
            elif f.number == SPARSE:
                for inner in fields(self.raw, f.start, f.stop):
                    if (inner.number, inner.wire) == (VALUES, BYTES):
                        yield self.tensor(number, inner, sparse=True)
            elif f.number == NODE:
                yield from self.node(number, f, depth)

    def node(self, graph: int, whole: Field, depth: int) -> Iterator[Found]:
        """What lies in the attributes of a node."""
        from onnx import NodeProto

        inner = self.inside(whole)
        kind = b"".join(bytes(self.raw[f.start : f.stop]) for f in inner if f.number == OP_TYPE)
        attributes = [f for f in inner if (f.number, f.wire) == (ATTRIBUTE, BYTES)]
        message = NodeProto()
        if kind in (b"DequantizeLinear", b"Constant"):
            message = NodeProto.FromString(self.without(inner, attributes))
        if kind == b"DequantizeLinear":
            self.dequantised.append((graph, message))
        for attribute in attributes:
            for f in fields(self.raw, attribute.start, attribute.stop):
                if f.number in (SUBGRAPH, SUBGRAPHS) and f.wire == BYTES:
                    yield from self.graph(f, depth + 1)
                elif f.number == TENSOR and f.wire == BYTES and kind == b"Constant":
                    yield self.tensor(graph, f, name=text(message.output[0]) if message.output else "")

    def tensor(self, graph: int, whole: Field, *, name: str | None = None, sparse: bool = False) -> Found:
        """A tensor, parsed but for its values."""
        from onnx import TensorProto

        self.tensors += 1
        if self.tensors > MOST_TENSORS:
            raise ValueError(f"more than {MOST_TENSORS} tensors")
        inner = self.inside(whole)
        held = [f for f in inner if f.number in (FLOATS, RAW, DOUBLES)]
        large = [f for f in inner if f.stop - f.start > SMALL_BYTES and f.number in (FLOATS, RAW, DOUBLES, 5, 6, 7, 11)]
        message = TensorProto.FromString(self.without(inner, large))
        if name is not None:
            message.name = name
        if whole.stop - whole.start <= 2 * SMALL_BYTES:
            self.small[graph, message.name] = message
        values = held[0] if len(held) == 1 and held[0].wire == BYTES else None
        return Found(graph, message, whole, values, sparse)

    def inside(self, whole: Field) -> list[Field]:
        """The fields of one node or tensor."""
        inner = list(islice(fields(self.raw, whole.start, whole.stop), MOST_FIELDS + 1))
        if len(inner) > MOST_FIELDS:
            raise ValueError(f"more than {MOST_FIELDS} fields in the message at byte {whole.begin}")
        return inner

    def without(self, inner: list[Field], left_out: list[Field]) -> bytes:
        """The message without some of its fields."""
        out = {f.begin for f in left_out}
        return b"".join(bytes(self.raw[f.begin : f.stop]) for f in inner if f.begin not in out)

    def scale(self, found: Found) -> float | str | None:
        """What a step of a tensor stands for where the graph dequantises it, the reason why that is not read, or None.

        To be asked once the walk is done.
        """
        nodes = [n for g, n in self.dequantised if g == found.graph and n.input[:1] == [found.message.name]]
        if not nodes:
            return None
        scales = {tuple(self.constant(found.graph, n, 1) or ()) for n in nodes}
        zeros = [self.constant(found.graph, n, 2) for n in nodes]
        if len(scales) > 1 or () in scales:
            return "quantised int8 with a scale that is computed or not the same everywhere"
        (values,) = scales
        if len(values) != 1:
            return f"quantised int8 with {len(values)} scales (not read yet)"
        if any(z is None or set(z) - {0} for z in zeros):
            return "quantised int8 with a zero point that is not 0"
        return values[0] if 0 < values[0] < math.inf else f"quantised int8 with the scale {values[0]}"

    def constant(self, graph: int, node: Any, place: int) -> list[float] | None:
        """The values of an input of a node, if they are a small tensor of its graph; [] for an input left out."""
        from onnx import TensorProto, numpy_helper

        name = node.input[place] if len(node.input) > place else ""
        message = self.small.get((graph, name))
        if message is None or message.data_location == TensorProto.EXTERNAL:
            return None if name else []
        return [float(v) for v in numpy_helper.to_array(message).reshape(-1)]


def text(value: str | bytes) -> str:
    """A string of a message, which the package gives as bytes where it is not UTF-8."""
    return value if isinstance(value, str) else value.decode("utf-8", errors="backslashreplace")
