"""Captioned pictures wherever they lie: folders, zips, tars, Parquet, Hugging Face's save_to_disk, arrays."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from unfog.errors import UserError
from unfog.modalities.image import sources, tables
from unfog.modalities.image.records import METADATA, SUFFIXES, Record, find_records
from unfog.modalities.image.sources import Read, Source

LARGEST = 64_000_000  # pixels; a larger file is more likely an attack than a picture
CROP = 0.08  # share of a picture's width or height that filling a frame may cut off
# what Pillow's decoders and zipfile raise over damaged bytes
UNREADABLE = (OSError, SyntaxError, EOFError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile, ValueError,
              ArithmeticError, LookupError, MemoryError, Image.DecompressionBombError)  # fmt: skip
SOURCES: dict[str, Callable[[Path], Source]] = {
    "folder": sources.folder,
    "zip": sources.zip_,
    "tar": sources.tar,
    "parquet": tables.parquet,
    "datasets": tables.datasets,
    "arrays": tables.arrays,
}


def kind_of(path: Path) -> str:
    """Which of SOURCES reads what lies at `path`, by names only. Raises UserError where there is nothing."""
    if path.is_file():
        by_name = {".parquet": "parquet", ".npy": "arrays", ".npz": "arrays"}
        return "tar" if sources.is_tar(path) else by_name.get(path.suffix.lower(), "zip")
    if not path.is_dir():
        raise UserError(f"{path}: no such folder or zip of pictures")
    if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return "datasets"
    # pictures of the folder's own come first
    if any((path / name).is_file() for name in METADATA) or any(p.suffix.lower() in SUFFIXES for p in path.rglob("*")):
        return "folder"
    if any(path.rglob("*.parquet")):
        return "parquet"
    if any(sources.is_tar(p) for p in path.iterdir()):
        return "tar"
    return "arrays" if any(p.suffix.lower() in (".npy", ".npz") for p in path.iterdir()) else "folder"


def unreadable(name: str, error: Exception) -> UserError:
    """What is said of a picture that cannot be decoded."""
    if isinstance(error, UserError):
        return error
    known = not isinstance(error, UnidentifiedImageError)  # whose own words name an object in memory
    reason = str(error).split("\n")[0][:80] if known else "its first bytes are no picture's"
    return UserError(f"{name} is not a readable picture ({reason}); repair or remove it")


class PictureSet:
    """A list of records and a way to read each picture; `stamp` of a file name changes where the file does."""

    def __init__(self, path: Path, records: list[Record], read: Read, stamp: Callable[[str], str] = lambda name: "") -> None:
        self.path, self.records, self._read, self.stamp = path, records, read, stamp
        self.styles = list(dict.fromkeys(r.style for r in records if r.style))

    @classmethod
    def open(cls, path: str | Path) -> PictureSet:
        """Open whatever of SOURCES lies there. Raises UserError where nothing usable does."""
        path = Path(path)
        source = SOURCES[kind_of(path)](path)
        records = find_records(path, source) if source.records is None else source.records
        if not records:
            raise UserError(f"{path}: no pictures found; put {', '.join(sorted(SUFFIXES))} files there")
        return cls(path, records, source.read, source.stamp)

    def __len__(self) -> int:
        return len(self.records)

    def split(self, name: str) -> list[int]:
        """Indices of the records of one split ("train", "heldout_pair", "heldout_concept")."""
        return [i for i, r in enumerate(self.records) if r.split == name]

    def _opened(self, name: str) -> Image.Image:
        raw = self._read(name)
        opened = Image.open(io.BytesIO(raw)) if isinstance(raw, bytes) else Image.fromarray(raw)
        if opened.width * opened.height > LARGEST:
            raise UserError(f"{self.path}: {name} has {opened.width}x{opened.height} pixels; shrink it below 64 million")
        return opened

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of picture `index` in pixels, from its head alone."""
        name = self.records[index].file_name
        try:
            return self._opened(name).size
        except UNREADABLE as error:
            raise unreadable(f"{self.path}: {name}", error) from None

    def load(self, index: int, size: int | tuple[int, int] | None = None) -> np.ndarray:
        """Picture `index` as straight RGBA (H, W, 4) uint8.

        size: pixels a side of a square to fit it into, edges transparent; or (width, height) to fill, which may cost up to
        CROP of the picture at two edges.
        """
        name = self.records[index].file_name
        try:
            image = self._opened(name).convert("RGBA")
        except UNREADABLE as error:
            raise unreadable(f"{self.path}: {name}", error) from None
        if size is not None:
            frame = (size, size) if isinstance(size, int) else size
            if image.size != frame:
                image = _fit(image, frame, 0.0 if isinstance(size, int) else CROP)
        return np.asarray(image)


def _fit(image: Image.Image, frame: tuple[int, int], crop: float = 0.0) -> Image.Image:
    """Scale to a frame with premultiplied colour (else edges darken), centred on transparency; `crop` may be cut off."""
    within, covering = (end(f / side for f, side in zip(frame, image.size, strict=True)) for end in (min, max))
    scale = min(covering, within / (1 - crop))
    width, height = (max(1, round(side * scale)) for side in image.size)
    small = image.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3).convert("RGBA")
    canvas = Image.new("RGBA", frame)
    canvas.paste(small, ((frame[0] - width) // 2, (frame[1] - height) // 2))
    return canvas
