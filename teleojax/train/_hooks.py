"""Every module's output tagged with the module's name, without a change to the model: Equinox, Flax NNX, Flax Linen.

A Linen or NNX model can only be there if Flax has been imported, so Flax is looked for and never imported here.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import ModuleType
from typing import Any

import equinox as eqx

from teleojax.train._tag import tag_outputs

TAGGED = "_teleojax_tag"
CLASSES = 4096  # tagging classes kept: a class is part of what jit compares, so a new one compiles anew


@contextmanager
def linen_tagged() -> Iterator[None]:
    """Within it, the output of every call of a Linen module is tagged with the module's path."""
    linen = sys.modules.get("flax.linen")
    if linen is None:
        yield
        return

    def interceptor(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        outputs = call(*args, **kwargs)
        if context.method_name != "__call__":
            return outputs
        return tag_outputs("/".join(context.module.path) or type(context.module).__name__, outputs)

    with linen.intercept_methods(interceptor):
        yield


def is_equinox(x: Any) -> bool:
    """Whether x is an Equinox module."""
    return isinstance(x, eqx.Module)


def is_nnx(x: Any) -> bool:
    """Whether x is a Flax NNX module."""
    nnx = flax_nnx()
    return nnx is not None and isinstance(x, nnx.Module)


def flax_nnx() -> ModuleType | None:
    """flax.nnx, if something has imported it."""
    return sys.modules.get("flax.nnx")


def tag_equinox(module: Any, path: str) -> Any:
    """A copy of an Equinox module in which every module that can be called tags its outputs with its own path.

    Fields and instance checks are those of the module itself: its class is a subclass with another `__call__`. Private
    names are no part of a path, and private classes, as `eqx.filter_vmap` wraps a model in, are not tagged.
    """
    if is_equinox(module):
        fields = {
            f.name: tag_equinox(getattr(module, f.name), _join(path, "" if f.name.startswith("_") else f.name))
            for f in dataclasses.fields(module)
            if hasattr(module, f.name)
        }
        cls = type(module)
        copy = object.__new__(_tagging(cls, path or cls.__name__) if _own_call(cls) else cls)
        for name, value in fields.items():
            object.__setattr__(copy, name, value)
        return copy
    if type(module) in (list, tuple):
        return type(module)(tag_equinox(m, _join(path, str(i))) for i, m in enumerate(module))
    if type(module) is dict:
        return {k: tag_equinox(m, _join(path, str(k))) for k, m in module.items()}
    return module


def tag_nnx(module: Any, path: str) -> None:
    """Make every module within an NNX module tag its outputs with its path; the modules themselves are changed."""
    nnx: Any = flax_nnx()
    for parts, one in list(nnx.iter_modules(module)):
        cls = type(one)
        if _own_call(cls):
            name = _join(path, "/".join(map(str, parts))) or cls.__name__
            object.__setattr__(one, "__class__", _tagging(cls, name))


def _join(path: str, more: str) -> str:
    return f"{path}/{more}" if path and more else path or more


def _own_call(cls: type) -> bool:
    called = any("__call__" in base.__dict__ for base in cls.__mro__)  # getattr would find the metaclass's
    return called and not cls.__name__.startswith("_") and not hasattr(cls, TAGGED)


@lru_cache(CLASSES)
def _tagging(cls: type, name: str) -> type:
    call = cls.__call__

    @functools.wraps(call)
    def tagged(self: Any, *args: Any, **kwargs: Any) -> Any:
        return tag_outputs(name, call(self, *args, **kwargs))

    attributes = {"__call__": tagged, TAGGED: name, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls)(cls.__name__, (cls,), attributes)
