"""Sources: what tensors there are and how to read their bytes; no statistics."""

from teleojax.sources._index import Source as Source
from teleojax.sources._index import Storage as Storage
from teleojax.sources._index import TensorSpec as TensorSpec
from teleojax.sources._open import open_source as open_source
from teleojax.sources._pytree import PytreeSource as PytreeSource

__all__ = ["PytreeSource", "Source", "Storage", "TensorSpec", "open_source"]
from teleojax.sources._roles import fan_in as fan_in
