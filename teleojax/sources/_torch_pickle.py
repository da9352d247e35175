"""What a PyTorch description may not hold: tuples that hold each other over and over, as keys.

Python's hash of a tuple visits all that it holds, as often as it is held: thirty tuples, each twice in the next, take a
hundred bytes and minutes, and nothing can interrupt it. So the opcodes are counted before anything is loaded.
"""

from __future__ import annotations

import io
import pickletools
from typing import Any, cast

MOST_IN_TUPLE = 10_000  # values in a tuple and the tuples in it; PyTorch itself writes sizes and the places of storages
PUT, GET = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}), frozenset({"GET", "BINGET", "LONG_BINGET"})
TUPLE = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"})


def _effect(op: pickletools.OpcodeInfo) -> tuple[bool, int, int]:
    """Whether an opcode takes all down to the last mark, how many objects it takes below that, how many it leaves."""
    before = list(op.stack_before)
    marked = pickletools.markobject in before
    return marked, before.index(pickletools.markobject) if marked else len(before), len(op.stack_after)


EFFECTS = {op.name: _effect(op) for op in pickletools.opcodes}


def check_tuples(file: io.BufferedIOBase, n_pickles: int) -> None:
    """Read `n_pickles` pickles, one after another, as opcodes alone. Raises ValueError for tuples past MOST_IN_TUPLE,
    and whatever a parser of malformed bytes raises.
    """
    for _ in range(n_pickles):
        _check(file)


def _check(file: io.BufferedIOBase) -> None:
    stack: list[int] = []  # how many values each object has for a hash: one, unless it is a tuple; 0 is a mark
    memo: dict[Any, int] = {}
    for op, argument, _ in pickletools.genops(cast(Any, file)):
        name = op.name
        if name in PUT:
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name in GET:
            stack.append(memo[argument])
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "MARK":
            stack.append(0)
        else:
            marked, taken, left = EFFECTS[name]
            held = 0
            while marked and (top := stack.pop()):
                held += top
            for _ in range(taken):
                held += stack.pop()
            if name in TUPLE and held >= MOST_IN_TUPLE:
                raise ValueError(f"a tuple that comes to {held} values by holding others")
            stack += [1 + held if name in TUPLE else 1] * left
