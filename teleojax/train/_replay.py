"""A traced function run again with an accumulator threaded through: loops, branches and remat carry it along.

No tracer leaves the loop or the rematerialised function it was made in: the accumulator is an operand and a result of
each, and nothing is stored on the side.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from teleojax.train._accumulator import Accumulator
from teleojax.train._tag import tag_p

Values = list[Any]
Result = tuple[Accumulator, Values]
CALLS = ("jit", "pjit", "closed_call", "core_call")


def tags_in(jaxpr: Jaxpr, chosen: re.Pattern[str] | None = None) -> dict[str, Any]:
    """Name -> shape and dtype of the first value under it, where `replay` gets to; of names elsewhere a warning."""
    found: dict[str, Any] = {}
    for eqn in jaxpr.eqns:
        if eqn.primitive is tag_p:
            name = eqn.params["name"]
            if chosen is None or chosen.search(name):
                found.setdefault(name, eqn.invars[0].aval)
        elif eqn.primitive.name in RULES:
            for inner in _inner(eqn):
                found = {**tags_in(inner, chosen), **found}
        elif lost := sorted({name for inner in _inner(eqn) for name in _all_tags(inner)}):
            text = f"{', '.join(lost)}: not captured inside {eqn.primitive.name}, only what comes out of it is"
            warnings.warn(text, stacklevel=3)
    return found


def replay(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any], acc: Accumulator) -> Result:
    """The function's results, and the accumulator with every tagged value that it has a name for."""
    values: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        inputs = [read(v) for v in eqn.invars]
        acc, outputs = _run(eqn, inputs, acc)
        values.update(zip(eqn.outvars, outputs, strict=True))
    return acc, [read(v) for v in jaxpr.outvars]


def _run(eqn: JaxprEqn, inputs: Values, acc: Accumulator) -> Result:
    if eqn.primitive is tag_p:
        return (acc.observe(eqn.params["name"], inputs[0]) if eqn.params["name"] in acc.layers else acc), inputs
    rule = RULES.get(eqn.primitive.name)
    tagged = {name for inner in _inner(eqn) for name in _all_tags(inner)} & set(acc.layers)
    if rule is not None and tagged:
        return rule(eqn, inputs, acc)
    scope = str(eqn.source_info.name_stack)
    with jax.named_scope(scope) if scope else nullcontext(), eqn.ctx.manager:
        outputs = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
    return acc, list(outputs) if eqn.primitive.multiple_results else [outputs]


def _call(eqn: JaxprEqn, inputs: Values, acc: Accumulator) -> Result:
    closed = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    return _closed(closed, inputs, acc)


def _closed(jaxpr: Any, inputs: Sequence[Any], acc: Accumulator) -> Result:
    if isinstance(jaxpr, ClosedJaxpr):
        return replay(jaxpr.jaxpr, jaxpr.consts, inputs, acc)
    return replay(jaxpr, (), inputs, acc)


def _remat(eqn: JaxprEqn, inputs: Values, acc: Accumulator) -> Result:
    def inner(acc: Accumulator, *args: Any) -> Result:
        return _closed(eqn.params["jaxpr"], args, acc)

    policy, cse = eqn.params["policy"], eqn.params["prevent_cse"]
    return jax.checkpoint(inner, policy=policy, prevent_cse=cse)(acc, *inputs)


def _scan(eqn: JaxprEqn, inputs: Values, acc: Accumulator) -> Result:
    p = eqn.params
    if "ft_in" in p:  # JAX 0.12
        n_consts, n_carry = (len(part) for part in p["ft_in"].unpack()[:2])
    else:
        n_consts, n_carry = p["num_consts"], p["num_carry"]
    consts, carry, xs = inputs[:n_consts], inputs[n_consts : n_consts + n_carry], inputs[n_consts + n_carry :]

    def body(state: Result, x: Values) -> tuple[Result, Values]:
        acc, carry = state
        acc, outputs = _closed(p["jaxpr"], (*consts, *carry, *x), acc)
        return (acc, outputs[:n_carry]), outputs[n_carry:]

    (acc, carry), ys = lax.scan(
        body, (acc, carry), xs, length=p["length"], reverse=p["reverse"], unroll=p.get("unroll", 1)
    )
    return acc, [*carry, *ys]


def _while(eqn: JaxprEqn, inputs: Values, acc: Accumulator) -> Result:
    p = eqn.params
    n_cond, n_body = p["cond_nconsts"], p["body_nconsts"]
    of_cond, of_body, carry = inputs[:n_cond], inputs[n_cond : n_cond + n_body], inputs[n_cond + n_body :]

    def go_on(state: Result) -> Any:
        return _closed(p["cond_jaxpr"], (*of_cond, *state[1]), state[0])[1][0]

    def body(state: Result) -> Result:
        return _closed(p["body_jaxpr"], (*of_body, *state[1]), state[0])

    return lax.while_loop(go_on, body, (acc, carry))


def _cond(eqn: JaxprEqn, inputs: Values, acc: Accumulator) -> Result:
    def branch(jaxpr: ClosedJaxpr) -> Callable[..., Result]:
        return lambda acc, *args: _closed(jaxpr, args, acc)

    index, *operands = inputs
    return lax.switch(index, [branch(b) for b in eqn.params["branches"]], acc, *operands)


RULES: dict[str, Callable[[JaxprEqn, Values, Accumulator], Result]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "checkpoint": _remat,
    "remat": _remat,
    "remat2": _remat,
    **dict.fromkeys(CALLS, _call),
}


def _inner(eqn: JaxprEqn) -> Iterator[Jaxpr]:
    """The functions that an equation calls."""
    for value in eqn.params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, Jaxpr):
                yield one


def _all_tags(jaxpr: Jaxpr) -> Iterator[str]:
    for eqn in jaxpr.eqns:
        if eqn.primitive is tag_p:
            yield eqn.params["name"]
        for inner in _inner(eqn):
            yield from _all_tags(inner)
