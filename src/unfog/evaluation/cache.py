"""Features of a data set, made once: kept in the user's cache folder under the hash of the data and of the reader.

    key = sha256(reader's hash, shape, bytes of every item)         file = magic, sha256 of the rest, .npy

A file that does not match its own sha256 is said aloud and made again; a folder that cannot be written means no cache.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unfog.errors import UserError
from unfog.evaluation.readers import Features, Reader
from unfog.files import sha256, write_atomic

MAGIC = b"unfog features 1\n"
BATCH = 64
SIDE = 64  # pixels a side at which a picture set is read unless said otherwise
_told: set[str] = set()


class Pictures(Protocol):
    """A data set that loads its items one at a time, as `PictureSet` does."""

    def __len__(self) -> int: ...
    def load(self, index: int, size: Any = None) -> NDArray[Any]: ...


def cache_folder() -> Path:
    """UNFOG_CACHE, else XDG_CACHE_HOME/unfog, else ~/.cache/unfog."""
    if own := os.environ.get("UNFOG_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and os.path.isabs(base) else Path(os.path.expanduser("~")) / ".cache") / "unfog"


def features_of(
    reader: Reader,
    data: NDArray[Any] | Pictures | Iterable[NDArray[Any]],
    *,
    rows: Sequence[int] | None = None,
    size: int = SIDE,
    batch: int = BATCH,
    folder: Path | None = None,
) -> Features:
    """Features (N, D) float32, one batch of items in memory at a time.

    Args: data, raw items (N, ...), or a data set with `load(index, size)`, or batches (B, ...) in any number (which are
        read once, so not cached); rows, which items of the first two, in that order; size, pixels a side of a data set's
        pictures; folder, instead of `cache_folder()`.
    Raises: UserError where there is nothing to read or an item cannot be read.
    """
    whole = isinstance(data, np.ndarray)
    if not whole and not hasattr(data, "load"):
        return _joined(reader, (reader(part) for part in data))
    chosen = range(len(data)) if rows is None else rows  # type: ignore[arg-type]
    if len(chosen) == 0:
        raise UserError(f"reader {reader.name}: the set is empty; there is nothing to read")

    def batches() -> Iterator[NDArray[Any]]:
        for i in range(0, len(chosen), batch):
            part = chosen[i : i + batch]
            yield data[list(part)] if whole else np.stack([data.load(j, size) for j in part])  # type: ignore[index, union-attr]

    if reader.hash is None:
        return _joined(reader, (reader(part) for part in batches()))
    place = (folder or cache_folder()) / "features" / f"{_key(reader, batches())}.features"
    found = _read(place, len(chosen), reader.dim)
    if found is None:
        found = _joined(reader, (reader(part) for part in batches()))
        _write(place, found)
    return found


def _joined(reader: Reader, parts: Iterable[Features]) -> Features:
    found = list(parts)
    if not found:
        raise UserError(f"reader {reader.name}: the set is empty; there is nothing to read")
    if len({part.shape[1] for part in found}) > 1:
        raise UserError(f"reader {reader.name}: gave batches of different widths; every item needs as many features")
    return np.concatenate(found)


def _key(reader: Reader, batches: Iterable[NDArray[Any]]) -> str:
    hasher = hashlib.sha256(f"{reader.hash}\n".encode())
    for part in batches:
        for item in part:
            hasher.update(f"{item.dtype.str} {item.shape}\n".encode())
            hasher.update(np.ascontiguousarray(item).tobytes())
    return hasher.hexdigest()[:40]


def kept(place: Path, magic: bytes, again: str) -> bytes | None:
    """What `keep` wrote there, if it is whole; damage is said aloud, with what is done `again`."""
    try:
        raw = place.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        tell(f"{place}: not readable ({error.strerror}); {again}")
        return None
    head, rest = raw[: len(magic) + 65], raw[len(magic) + 65 :]
    if head == magic + sha256(rest).encode() + b"\n":
        return rest
    tell(f"{place}: damaged (its sha256 differs); {again}")
    return None


def keep(place: Path, magic: bytes, raw: bytes, what: str) -> None:
    """Write bytes behind their sha256; where that is not possible, `what` is said not to be kept."""
    try:
        write_atomic(place, magic + sha256(raw).encode() + b"\n" + raw)
    except OSError as error:
        tell(f"{place.parent}: {what} not kept ({error.strerror}); set UNFOG_CACHE to a folder that can be written")


def _read(place: Path, n: int, dim: int | None) -> Features | None:
    """Features that were kept, if they are whole and of this data."""
    rest = kept(place, MAGIC, "reading the features again")
    if rest is None:
        return None
    try:
        found = np.load(io.BytesIO(rest), allow_pickle=False)
    except (ValueError, EOFError, OSError):
        found = np.zeros(0)
    if found.ndim != 2 or len(found) != n or (dim is not None and found.shape[1] != dim) or found.dtype != np.float32:
        tell(f"{place}: not the features of this data; reading them again")
        return None
    return np.asarray(found)


def _write(place: Path, features: Features) -> None:
    handle = io.BytesIO()
    np.save(handle, features, allow_pickle=False)
    keep(place, MAGIC, handle.getvalue(), "features are")


def tell(line: str) -> None:
    """Each line once in a process."""
    if line not in _told:
        _told.add(line)
        print(f"unfog: {line}", file=sys.stderr)
