"""Compilation of pure functions from the rooms to the right, which do not jit themselves."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jax


@cache
def compiled(function: Callable[..., Any], *static: str) -> Callable[..., Any]:
    """`function` compiled for the default device, once per shape and value of the arguments named `static`."""
    return jax.jit(function, static_argnames=static)


@cache
def compiled_float64(function: Callable[..., Any], *static: str) -> Callable[..., Any]:
    """`function` compiled for the host's CPU in a scoped float64 context, whatever the device: for what is small.

    No global setting is touched. The same numbers come out on every platform.
    """
    run = jax.jit(function, static_argnames=static)

    def call(*args: Any, **kwargs: Any) -> Any:
        with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
            return run(*args, **kwargs)

    return call
