"""Where pictures lie: one function a kind of place, each giving the names there and a way to read one of them.

    folder      files, with sub-folders                       tar       .tar, .tar.gz, or a folder of such shards
    zip         a .zip                                        parquet   .parquet, or a folder of such shards
    datasets    a folder of Hugging Face's save_to_disk       arrays    .npy, .npz, or a folder of such files

Nothing is ever unpacked into a folder, no link in an archive is followed, and what a file says of its size is checked
before so much memory is taken.
"""

from __future__ import annotations

import shutil
import sys
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

import numpy as np

from unfog.errors import UserError

if TYPE_CHECKING:
    from unfog.modalities.image.records import Record

Read = Callable[[str], "bytes | np.ndarray"]

LARGEST_FILE = 1 << 28  # bytes of one picture in its file; more is an attack or a mistake
LARGEST_TEXT = 1 << 31
RATIO = 50  # pictures are packed already: a .tar.gz that grows by more is no archive of pictures


@dataclass(frozen=True)
class Source:
    """names of all files (or rows); `read` gives a picture's file, or its pixels (H, W, 4) uint8; `stamp` changes with it."""

    names: list[str]
    read: Read
    stamp: Callable[[str], str]
    records: list[Record] | None = None  # where the place itself says what its pictures show
    sidecars: tuple[str, ...] = (".txt",)  # suffixes of files that say something of the picture beside them
    depth: int = 0  # leading parts of a name that are not folders of the user's


def too_large(name: str, size: int) -> None:
    """Raise OSError, as an unreadable file does, where a file in an archive says it is too large to be what it is."""
    limit = LARGEST_TEXT if name.endswith((".jsonl", ".csv")) else LARGEST_FILE
    if size > limit:
        raise OSError(f"{size:,} bytes, more than {limit:,}")


def check_names(path: Path, names: list[str]) -> list[str]:
    """Each name once, the last of that name being the one that is read; one that leads out of the archive is refused."""
    for name in names:
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise UserError(f"{path}: names {name[:80]!r}, which leads out of the archive; pack it again")
    return list(dict.fromkeys(names))


def folder(path: Path) -> Source:
    """All files in a folder and below it."""
    # followed links could lead out of the folder and round in circles
    names = [p.relative_to(path).as_posix() for p in sorted(path.rglob("*")) if p.is_file()]

    def stamp(name: str) -> str:
        try:
            found = (path / name).stat()
        except OSError:
            return "gone"
        return f"{found.st_size} {found.st_mtime_ns}"

    return Source(names, lambda name: (path / name).read_bytes(), stamp)


def zip_(path: Path) -> Source:
    """The files of a .zip."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError):
        raise UserError(f"{path}: not a zip archive; give a folder, .zip, .tar, .parquet or .npz of pictures") from None

    lock = threading.Lock()  # zipfile counts its readers without one, and would close the archive under them

    def read(name: str) -> bytes:
        too_large(name, archive.getinfo(name).file_size)  # zipfile gives no more than this
        with lock:
            return archive.read(name)

    def stamp(name: str) -> str:
        info = archive.getinfo(name)
        return f"{info.file_size} {info.CRC:08x}"

    return Source(check_names(path, [n for n in archive.namelist() if not n.endswith("/")]), read, stamp)


def is_tar(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith((".tar", ".tar.gz", ".tgz"))


def tar(path: Path) -> Source:
    """The plain files of a .tar or .tar.gz, or of a folder of such shards: WebDataset's names or any."""
    shards = [path] if path.is_file() else sorted(p for p in path.iterdir() if is_tar(p))
    places: dict[str, tuple[Callable[[int, int], bytes], int, int, str]] = {}
    for shard in shards:
        cut = _uncompressed(shard)
        when = shard.stat().st_mtime_ns
        for name, (offset, size, made) in _index(shard, cut).items():
            places[f"{shard.name}/{name}" if path.is_dir() else name] = (cut.read, offset, size, f"{size} {made} {when}")

    def read(name: str) -> bytes:
        cut_out, offset, size, _ = places[name]
        too_large(name, size)
        data = cut_out(offset, size)
        if len(data) < size:
            raise OSError("the archive was cut short")
        return data

    sidecars = (".txt", ".json", ".cls")
    return Source(list(places), read, lambda name: places[name][3], sidecars=sidecars, depth=int(path.is_dir()))


class _Cut:
    """Pieces of one open file, for several threads."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.lock = file, threading.Lock()

    def read(self, offset: int, size: int) -> bytes:
        with self.lock:
            self.file.seek(offset)
            return self.file.read(size)


class _Opened(_Cut):
    """Pieces of a file that is opened for each: of a thousand shards not all can be open at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, offset: int, size: int) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(offset)
            return file.read(size)


def _uncompressed(path: Path) -> _Cut:
    """A tar as it is, or its unpacked form in a nameless temporary file (a compressed one cannot be read from the middle)."""
    with open(path, "rb") as file:
        if file.read(2) != b"\x1f\x8b":
            return _Opened(path)
    import gzip

    limit = RATIO * path.stat().st_size + (1 << 26)
    plain = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the source
    try:
        with gzip.open(path) as packed:
            while block := packed.read(1 << 20):
                plain.write(block)
                if plain.tell() > limit:
                    raise UserError(f"{path}: grows to over {RATIO} times its size; unpack it yourself if you trust it")
                if not plain.tell() % (1 << 26) and shutil.disk_usage(tempfile.gettempdir()).free < 1 << 28:
                    raise UserError(f"{path}: {tempfile.gettempdir()} has no room for it; set TMPDIR, or unpack it yourself")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be unpacked ({str(error)[:80]}); get it again") from None
    return _Cut(plain)


class _Reader:
    """What tarfile needs of a file, over `_Cut`."""

    def __init__(self, cut: _Cut) -> None:
        self.cut, self.at = cut, 0

    def seek(self, offset: int) -> None:
        self.at = offset

    def tell(self) -> int:
        return self.at

    def read(self, size: int) -> bytes:
        data = self.cut.read(self.at, size)
        self.at += len(data)
        return data


def _index(path: Path, cut: _Cut) -> dict[str, tuple[int, int, int]]:
    """offset, size and time of each plain file in an uncompressed tar; links, devices and sparse files are left out."""
    found: dict[str, tuple[int, int, int]] = {}
    reader, others = _Reader(cut), 0
    try:
        with tarfile.TarFile(fileobj=reader, mode="r", errors="surrogateescape") as archive:  # type: ignore[arg-type]
            before = -1
            while (member := archive.next()) is not None:
                if member.size < 0 or archive.offset <= before:
                    raise tarfile.ReadError("a size below 0")
                before = archive.offset
                if member.isreg() and not member.issparse():
                    found.pop(member.name, None)  # as unpacking would: the last of a name counts
                    found[member.name] = (member.offset_data, member.size, int(member.mtime))
                else:
                    others += not member.isdir()
                archive.members = []  # type: ignore[attr-defined]  # else it remembers each for ever
            end = archive.offset
    except (tarfile.TarError, OSError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        raise UserError(f"{path}: not a readable tar archive ({str(error)[:80]}); get it again") from None
    if any(cut.read(end, 512)) or any(cut.read(offset + size - 1, 1) == b"" for offset, size, _ in found.values() if size):
        raise UserError(f"{path}: cut short or damaged near byte {end:,}; get it again")
    if others:
        print(f"unfog: {path}: {others} links and other things that are no plain files are left out", file=sys.stderr)
    check_names(path, list(found))
    return {name: place for name, place in found.items() if not PurePosixPath(name).name.startswith("._")}
