"""Safetensors behind a URL (`https://`, `s3://`, `gs://`, `memory://`, whatever fsspec knows), read by ranges.

Nothing is kept on disk. A window is fetched in pieces over several connections while the one before it is at work.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from importlib import import_module
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import numpy as np

from teleojax._errors import CorruptInputError, InputError, MissingExtraError, TeleojaxError
from teleojax.sources._index import Storage, TensorSpec, natural_key
from teleojax.sources._quantised import undecoded
from teleojax.sources._ranges import Ranges
from teleojax.sources._safetensors import INDEX_SUFFIX, MAX_HEADER_BYTES, parse_index, read_sized_header

T = TypeVar("T")
PIECE_BYTES = 8 << 20  # fetched in one request
CONNECTIONS = 4  # at once: one stream of an object store is slower than a disk
HEAD_BYTES = 256 << 10  # fetched first, which holds most headers whole
TRIES = 3  # of a request that is answered badly or not at all
PAUSE_SECONDS = 0.5  # before the second try, twice that before the third
SILENCE_SECONDS = 60.0  # after which a connection is given up
SUFFIX = ".safetensors"
HTTP = ("http://", "https://")
NEEDED = "the URL of a .safetensors file, of an index, or of a directory with either (other formats: local paths)"
UNKNOWN_CALLER = frozenset(  # exceptions of botocore and google.auth, which are not imported to tell them
    {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"}
    | {"DefaultCredentialsError", "RefreshError"}
)
_S3 = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; of a public bucket: FSSPEC_S3_ANON=true."
_GS = "Run: gcloud auth application-default login; of a public bucket set FSSPEC_GCS_TOKEN=anon."
CREDENTIALS = {"s3": _S3, "s3a": _S3, "gs": _GS, "gcs": _GS}
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


class RemoteSource:
    """The tensors of a safetensors file, or of the shards that an index names, behind a URL.

    A URL that ends like neither is taken for a directory where the protocol has such or where the usual index or file
    is found in it, else for a file. Only headers are fetched here. URLs are shown without user and query, which may be
    secret. Raises MissingExtraError without `fsspec`, InputError when the protocol is unknown or its package missing,
    when there is no such file, no permission, no answer or a server that does not send ranges, CorruptInputError when a
    header does not describe its file.
    """

    def __init__(self, url: str) -> None:
        place = _Place.of(url)
        self._files: dict[str, _Place] = {}
        specs: dict[str, TensorSpec] = {}
        for file, wanted in _files(place):
            mine = file.specs()
            names = {s.name for s in mine}
            if absent := sorted((wanted or set()) - names):
                raise CorruptInputError(
                    file.shown,
                    found=f"no tensor {absent[0][:120]!r}",
                    needed=f"the {len(wanted or ())} tensors that the index promises",
                    remedy="Index and shards belong to different models: upload both again.",
                )
            if wanted is None and (twice := sorted(names & set(specs))):
                raise InputError(
                    file.shown,
                    found=f"tensor {twice[0][:120]!r}, which another file holds too",
                    needed="each tensor name in one file, or an index that decides",
                    remedy="Give the URL of one file or of an index.",
                )
            self._files[file.shown] = file
            specs |= {s.name: s for s in mine if wanted is None or s.name in wanted}
        self.name, self.storages, self.files = place.name, tuple(self._files), ()
        self.specs = undecoded(specs.values(), "not dequantised from a URL: download the files")

    def open(self, storage: str) -> AbstractContextManager[Storage]:
        """One file, by ranges. Raises InputError when it is out of reach."""
        return self._files[storage].ranges()


def _files(place: _Place) -> Iterator[tuple[_Place, set[str] | None]]:
    """The files to read, each with the tensors to take from it, None for all."""
    if place.path_only.endswith(INDEX_SUFFIX):
        weight_map = parse_index(place.head(MAX_HEADER_BYTES + 1), place.shown)
        shards = {shard: {t for t, s in weight_map.items() if s == shard} for shard in set(weight_map.values())}
        for shard, wanted in sorted(shards.items(), key=lambda item: natural_key(str(item[0]))):
            yield place.beside(str(shard)), wanted
    elif place.path_only.endswith(SUFFIX) or not (inside := place.inside()):
        yield place, None
    elif indexes := [p for p in inside if p.path_only.endswith(INDEX_SUFFIX)]:
        usual = [p for p in indexes if p.path_only.endswith(f"/model{INDEX_SUFFIX}")]
        if len(indexes) > 1 and not usual:
            raise InputError(
                place.shown,
                found=f"{len(indexes)} indexes",
                needed="one index",
                remedy="Give the URL of the index to read.",
            )
        yield from _files((usual or indexes)[0])
    else:
        yield from ((p, None) for p in inside)


class _Place:
    """A file or directory of a file system."""

    def __init__(self, fs: Any, path: str, shown: str) -> None:
        self._fs, self._path, self.shown = fs, path, shown
        self._is_http = path.startswith(HTTP)
        self.path_only = re.sub(r"[?#].*", "", path) if self._is_http else path
        self.name = self.path_only.rstrip("/").rpartition("/")[2] or shown
        self._size: int | None = None

    @classmethod
    def of(cls, url: str) -> _Place:
        shown = re.sub(r"//[^/@]*@", "//", re.sub(r"[?#].*", "", url))
        try:
            core = import_module("fsspec.core")
        except ImportError as e:
            raise MissingExtraError(shown, package="fsspec", extra="remote") from e
        try:
            fs, path = core.url_to_fs(url, **_http_options() if url.startswith(HTTP) else {})
        except ImportError as e:
            protocol = url.partition("://")[0]
            raise InputError(
                shown,
                found=f"no package for {protocol}:// ({' '.join(str(e).split())[:200]})",
                needed="the package that fsspec reads it with",
                remedy=f"Run: pip install {PACKAGES.get(protocol, 'the package named above')}",
            ) from e
        except Exception as e:  # an unknown protocol, a URL that does not parse, missing credentials
            raise InputError(
                shown,
                found=f"a URL that cannot be opened ({' '.join(str(e).split())[:200] or type(e).__name__})",
                needed=NEEDED,
                remedy="Check the URL and the credentials of this machine.",
            ) from e
        return cls(fs, path, shown)

    def beside(self, name: str) -> _Place:
        """Another file of the same directory."""
        return self._joined(self.path_only.rpartition("/")[0], self.shown.rpartition("/")[0], name)

    def _joined(self, folder: str, shown: str, name: str) -> _Place:
        query = self._path.removeprefix(self.path_only)
        return _Place(self._fs, f"{folder}/{name}{query}", f"{shown}/{name}")

    def inside(self) -> list[_Place]:
        """Indexes and safetensors files in this directory, by name; none where it is a file."""
        folder, shown = self.path_only.rstrip("/"), self.shown.rstrip("/")
        if self._is_http:  # which knows no directories
            usual = (f"model{INDEX_SUFFIX}", f"model{SUFFIX}")
            return [p for n in usual if self._fs.exists((p := self._joined(folder, shown, n))._path)][:1]
        found = self._asked(lambda: self._fs.ls(self._path, detail=False) if self._fs.isdir(self._path) else None)
        if found is None:
            return []
        names = [n for p in found if (n := p.rstrip("/").rpartition("/")[2]).endswith((INDEX_SUFFIX, SUFFIX))]
        if not names:
            raise InputError(
                self.shown,
                found=f"a directory of {len(found)} entries, none of them safetensors",
                needed=NEEDED,
                remedy="Give the URL of the files, or copy them to a local disk.",
            )
        return [self._joined(folder, shown, n) for n in sorted(names, key=natural_key)]

    def size(self) -> int:
        """Bytes of the file. Raises InputError where it is not there or the server does not tell."""
        if self._size is None:
            size = self._asked(lambda: self._fs.info(self._path)["size"])
            if not isinstance(size, int):
                raise self._error("a server that does not say how large the file is", "a server that sends ranges")
            self._size = size
        return self._size

    def head(self, n: int) -> bytes:
        """The first n bytes, or all."""
        stop = min(n, self.size())
        return b"".join(self._fetch(a, min(a + PIECE_BYTES, stop), None) for a in range(0, stop, PIECE_BYTES))

    def specs(self) -> tuple[TensorSpec, ...]:
        """The tensors of a safetensors file."""
        head = self.head(HEAD_BYTES)
        if head[8:9] != b"{" and not self.path_only.endswith(SUFFIX):
            raise self._error(f"content that begins with {head[:8]!r}", NEEDED)
        return read_sized_header(_Head(self, head), self.shown, self.shown, self.size())

    def ranges(self) -> Ranges:
        """The file's bytes, in pieces over CONNECTIONS connections."""
        files: SimpleQueue[Any] = SimpleQueue()
        pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="teleojax-fetch")

        def read(start: int, stop: int, out: np.ndarray) -> None:
            def piece(first: int) -> None:
                last = min(first + PIECE_BYTES, stop)
                out[first - start : last - start] = np.frombuffer(self._fetch(first, last, files), np.uint8)

            for done in [pool.submit(piece, first) for first in range(start, stop, PIECE_BYTES)]:
                done.result()

        return Ranges(self.shown, self.size(), read, lambda: pool.shutdown(cancel_futures=True))

    def _fetch(self, start: int, stop: int, files: SimpleQueue[Any] | None) -> bytes:
        def fetch() -> bytes:
            data = self._over_http(start, stop, files) if self._is_http else self._range(start, stop)
            if len(data) != stop - start:
                raise ConnectionError(f"{len(data)} bytes of the {stop - start} asked for")
            return data

        return self._asked(fetch)

    def _range(self, start: int, stop: int) -> bytes:
        return self._fs.cat_file(self._path, start=start, end=stop)  # s3fs has another parameter before them

    def _over_http(self, start: int, stop: int, files: SimpleQueue[Any] | None) -> bytes:
        """Through a file object, which looks whether it is the range that comes; `cat_file` takes whatever comes."""
        try:
            file = (files or SimpleQueue()).get_nowait()
        except Empty:
            file = self._fs.open(self._path, "rb", cache_type="none", size=self.size())
        file.seek(start)
        data = file.read(stop - start)
        if files is not None:
            files.put(file)
        return data

    def _asked(self, call: Callable[[], T]) -> T:
        """What the call returns, at the third try at the latest."""
        for n in range(TRIES):
            try:
                return call()
            except TeleojaxError:
                raise
            except Exception as e:  # each file system has its own kinds
                cause = e.__cause__ if isinstance(e, FileNotFoundError) and e.__cause__ else e
                if n == TRIES - 1 or _is_final(cause):
                    raise self._failure(cause) from e
            time.sleep(PAUSE_SECONDS * 2**n)
        raise AssertionError

    def _failure(self, e: BaseException) -> InputError:
        status = _status(e)
        if _code(e) == "NoSuchBucket":
            return self._error("no such bucket", NEEDED, "Check the name of the bucket, and its region.")
        if type(e).__name__ in UNKNOWN_CALLER:
            found = " ".join(str(e).split())[:200] or type(e).__name__
            remedy = CREDENTIALS.get(self.shown.partition("://")[0], "Give this machine credentials that may read it.")
            return self._error(f"no credentials that serve ({found})", "a caller who may read the file", remedy)
        if isinstance(e, FileNotFoundError) or status in (404, 410):
            return self._error("no such file" + f" (status {status})" * (status is not None), NEEDED)
        if isinstance(e, PermissionError) or status in (401, 403) or str(e).startswith("Forbidden"):
            return self._error(
                "permission denied" + f" (status {status})" * (status is not None),
                "a file that may be read from here",
                "Check the credentials of this machine, or whether the link has expired.",
            )
        if "range requests" in str(e):
            return self._error("a server that does not send ranges of a file", "one that does")
        if isinstance(e, TimeoutError):
            return self._error(f"no answer in {SILENCE_SECONDS:g} seconds", "a server that answers", "Try again later.")
        text = " ".join(str(e).split()).replace(self._path, self.shown)[:200] or type(e).__name__
        return self._error(f"an error of the connection ({text})", "every byte of the file", "Try again later.")

    def _error(self, found: str, needed: str, remedy: str = "Check the URL, or copy the file here.") -> InputError:
        return InputError(self.shown, found=found, needed=needed, remedy=remedy)


class _Head:
    """The beginning of a remote file as a stream."""

    def __init__(self, place: _Place, head: bytes) -> None:
        self._place, self._head, self._position = place, head, 0

    def read(self, n: int, /) -> bytes:
        start = self._position
        stop = self._position = min(start + n, self._place.size())
        known = self._head[start:stop]
        if len(known) == stop - start:
            return known
        return known + self._place._fetch(start + len(known), stop, None)

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        pass


def _http_options() -> dict[str, Any]:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, connect=SILENCE_SECONDS, sock_read=SILENCE_SECONDS)
    return {"headers": {"Accept-Encoding": "identity"}, "client_kwargs": {"timeout": timeout, "trust_env": True}}


def _status(e: BaseException) -> int | None:
    """The HTTP status that an exception of aiohttp or gcsfs carries."""
    found = getattr(e, "status", None) or getattr(e, "code", None)
    return found if isinstance(found, int) else None


def _code(e: BaseException) -> str | None:
    """What S3 calls an error, where botocore raised it."""
    response = getattr(e, "response", None)
    error = response.get("Error") if isinstance(response, dict) else None
    return error.get("Code") if isinstance(error, dict) else None


def _is_final(e: BaseException) -> bool:
    """Whether asking again cannot help."""
    status = _status(e)
    if type(e).__name__ in UNKNOWN_CALLER or _code(e) == "NoSuchBucket" or str(e).startswith("Forbidden"):
        return True
    kinds = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError, ValueError)
    return isinstance(e, kinds) or (status is not None and 400 <= status < 500 and status != 429)
