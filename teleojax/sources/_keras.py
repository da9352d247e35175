"""Keras's `.keras` archives: the HDF5 file of weights in them is read where it lies. No model is ever built.

What the archive says of layers (`config.json`) is not looked at: it may hold code. Tensors are named by their paths in
the HDF5 file, "layers/dense/vars/0": Keras stores no names of variables, and which of them is the kernel is known to
the code of a layer alone.
Format: https://keras.io/guides/serialization_and_saving
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from teleojax._errors import CorruptInputError, InputError
from teleojax.sources._formats import zip_members
from teleojax.sources._hdf5 import Hdf5Source
from teleojax.sources._numpy import stored_offset

WEIGHTS = "model.weights.h5"


def is_keras(head: bytes, path: Path) -> bool:
    """Whether a file is an archive as Keras 3 writes it."""
    return not {WEIGHTS, "config.json"}.isdisjoint(members := zip_members(head, path)) and "metadata.json" in members


def open_keras(path: Path) -> Hdf5Source:
    """The weights in a `.keras` archive.

    Raises InputError when they are compressed or in several files, CorruptInputError when the archive is damaged,
    and what Hdf5Source raises.
    """
    try:
        with path.open("rb") as f, zipfile.ZipFile(f) as archive:
            size = f.seek(0, os.SEEK_END)
            members = [m for m in archive.infolist() if m.filename == WEIGHTS]
            if len(members) != 1:
                raise InputError(
                    path,
                    found=f"{len(members)} members named {WEIGHTS}",
                    needed="a Keras archive with one",
                    remedy="Save the model again: model.save('model.keras'), without max_shard_size.",
                )
            if members[0].compress_type != zipfile.ZIP_STORED or members[0].flag_bits & 1:
                raise InputError(
                    path,
                    found=f"{WEIGHTS} compressed or encrypted",
                    needed="weights that are stored as they are, as Keras does it",
                    remedy=f"Unpack it: unzip PATH {WEIGHTS}, and give that file.",
                )
            begin = stored_offset(f, members[0], size, f"{path}: member {WEIGHTS!r}")
            end = begin + members[0].file_size
    except InputError:
        raise
    except OSError as e:
        raise InputError(
            path, found=e.strerror or str(e), needed="a readable file", remedy="Check the path and its permissions."
        ) from e
    except Exception as e:  # zipfile lets struct, Unicode and value errors of a damaged directory through
        raise CorruptInputError(
            path,
            found=f"a zip archive that cannot be read ({str(e) or type(e).__name__})",
            needed="an intact Keras archive",
            remedy="The archive is truncated or damaged: copy or save it again.",
        ) from e
    return Hdf5Source(path, section=(begin, end))
