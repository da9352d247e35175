"""Arrays in a row, read before they are asked for: several are decompressed at once, and while others are measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from teleojax._errors import InputError
from teleojax.sources._tensorstore import TensorStoreStorage, changed

AHEAD_BYTES = 64 << 20  # of arrays that are held before they are asked for
AHEAD_TIMES = 4  # nor more than so many times what has been asked for: one small array is not worth 64 MiB
MOST_WASTED = 1 / 8  # of what was asked for may have been read for nothing, where a filter leaves arrays out


class ReadAhead:
    """Opens arrays that are likely to be asked for in order, and begins those that follow before they are.

    `arrays` maps the storage to its TensorStore spec, what errors call it, and its bytes. An array that turns out not
    to be wanted has been read for nothing: no more are begun while that is more than MOST_WASTED of what was wanted.
    """

    def __init__(self, arrays: Mapping[str, tuple[Mapping[str, Any], str, int]], context: Any) -> None:
        self._arrays, self._context = arrays, context
        self._order = list(arrays)
        self._place = {storage: i for i, storage in enumerate(self._order)}
        self._begun: dict[int, TensorStoreStorage] = {}
        self._wanted = self._wasted = 0

    def open(self, storage: str) -> TensorStoreStorage:
        """The array, being read already when it was foreseen. Raises what TensorStoreStorage raises."""
        place = self._place[storage]
        for passed in [p for p in self._begun if p < place]:
            self._wasted += self._begun.pop(passed).size or 0
        spec, where, nbytes = self._arrays[storage]
        opened = self._begun.pop(place, None) or TensorStoreStorage(spec, where, self._context)
        if opened.size != nbytes:
            raise changed(where, opened.size, nbytes)
        self._wanted += nbytes
        self._begin_after(place)
        return opened

    def _begin_after(self, place: int) -> None:
        room = min(AHEAD_BYTES, AHEAD_TIMES * self._wanted) - sum(s.size or 0 for s in self._begun.values())
        for following in range(max([place, *self._begun]) + 1, len(self._order)):
            spec, where, nbytes = self._arrays[self._order[following]]
            if nbytes > room or self._wasted > MOST_WASTED * self._wanted:
                return
            try:
                self._begun[following] = TensorStoreStorage(spec, where, self._context)
            except InputError:  # which is raised when it is asked for
                return
            self._begun[following].begin()
            room -= nbytes
