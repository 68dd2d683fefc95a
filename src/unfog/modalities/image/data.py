"""Captioned pictures from a folder or a zip: `metadata.jsonl`, `.txt` sidecars, or class sub-folders."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field, ValidationError

from unfog.errors import UserError

SUFFIXES = {".png", ".webp", ".jpg", ".jpeg", ".gif", ".bmp"}
LARGEST = 64_000_000  # pixels; a larger file is more likely an attack than a picture
# what Pillow's decoders and zipfile raise over damaged bytes
UNREADABLE = (OSError, SyntaxError, EOFError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile,
              Image.DecompressionBombError)  # fmt: skip


class Record(BaseModel):
    """One line of metadata.jsonl; only file_name is required, other fields are kept as they are."""

    file_name: str
    text: str = ""
    style: str = ""
    concept: str = ""
    name: str = ""
    tags: list[str] = Field(default_factory=list)
    colors: list[str] = Field(default_factory=list)
    category: str = ""
    split: str = "train"
    near_duplicates: list[str] = Field(default_factory=list)


class PictureSet:
    """A list of records and a way to read each picture."""

    def __init__(self, path: Path, records: list[Record], read: Callable[[str], bytes]) -> None:
        self.path, self.records, self._read = path, records, read
        self.styles = list(dict.fromkeys(r.style for r in records if r.style))

    @classmethod
    def open(cls, path: str | Path) -> PictureSet:
        """Open a folder or a .zip. Raises UserError where nothing usable is there."""
        path = Path(path)
        if path.is_dir():
            # followed links could lead out of the folder and round in circles
            names = [p.relative_to(path).as_posix() for p in sorted(path.rglob("*")) if p.is_file()]
            return cls._build(path, names, lambda name: (path / name).read_bytes())
        if not path.is_file():
            raise UserError(f"{path}: no such folder or zip of pictures")
        try:
            archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile:
            raise UserError(f"{path}: not a zip archive; give a folder or a .zip of pictures") from None
        return cls._build(path, archive.namelist(), archive.read)

    @classmethod
    def _build(cls, path: Path, names: Iterable[str], read: Callable[[str], bytes]) -> PictureSet:
        names = [n for n in names if not n.endswith("/")]
        if "metadata.jsonl" in names:
            known = set(names)
            records = [_record(path, number, line) for number, line in
                       enumerate(_text(path, read, "metadata.jsonl").split("\n"), 1) if line.strip()]  # fmt: skip
            for record in records:
                if record.file_name not in known:
                    raise UserError(f"{path}: metadata.jsonl names {record.file_name}, which is not there; remove the line")
        else:
            texts = {n for n in names if n.endswith(".txt")}
            records = []
            for name in sorted(n for n in names if PurePosixPath(n).suffix.lower() in SUFFIXES):
                place = PurePosixPath(name)
                sidecar = place.with_suffix(".txt").as_posix()
                text = _text(path, read, sidecar).strip() if sidecar in texts else place.parent.name.replace("_", " ")
                records.append(Record(file_name=name, text=text))
        if not records:
            raise UserError(f"{path}: no pictures found; put {', '.join(sorted(SUFFIXES))} files there")
        return cls(path, records, read)

    def __len__(self) -> int:
        return len(self.records)

    def split(self, name: str) -> list[int]:
        """Indices of the records of one split ("train", "heldout_pair", "heldout_concept")."""
        return [i for i, r in enumerate(self.records) if r.split == name]

    def load(self, index: int, size: int | None = None) -> np.ndarray:
        """Picture `index` as straight RGBA (H, W, 4) uint8; with `size`, fitted into a square of it, edges transparent."""
        name = self.records[index].file_name
        try:
            opened = Image.open(io.BytesIO(self._read(name)))
            if opened.width * opened.height > LARGEST:
                raise UserError(f"{self.path}: {name} has {opened.width}x{opened.height} pixels; shrink it below 64 million")
            image = opened.convert("RGBA")
        except UNREADABLE as error:
            reason = str(error).split("\n")[0][:80]
            raise UserError(f"{self.path}: {name} is not a readable picture ({reason}); repair or remove it") from None
        if size is not None and image.size != (size, size):
            image = _fit(image, size)
        return np.asarray(image)


def _text(path: Path, read: Callable[[str], bytes], name: str) -> str:
    try:
        return read(name).decode("utf-8-sig")  # some editors put a byte-order mark first
    except UnicodeDecodeError:
        raise UserError(f"{path}: {name} is not text in UTF-8; save it again as that") from None
    except (OSError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:  # RuntimeError: an archive with a password
        raise UserError(f"{path}: {name} cannot be read ({str(error)[:80]}); repair or remove it") from None


def _record(path: Path, number: int, line: str) -> Record:
    try:
        return Record.model_validate(json.loads(line))
    except (ValueError, ValidationError, RecursionError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path}: metadata.jsonl line {number} is not usable ({reason}); mend or remove it") from None


def _fit(image: Image.Image, size: int) -> Image.Image:
    """Scale to fit a square with premultiplied colour (else edges darken), centred on transparency."""
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    small = image.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3).convert("RGBA")
    canvas = Image.new("RGBA", (size, size))
    canvas.paste(small, ((size - width) // 2, (size - height) // 2))
    return canvas
