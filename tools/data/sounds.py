"""What the tools that build sets of sounds share: fetching pinned packages, OGG files of fixed bytes, the zip."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from packages import APT, fetch, metadata, write_zip

from unfog.modalities.audio.sound import RATE

POLYNOMIAL = 0x04C11DB7  # of the checksum of an OGG page (RFC 3533, sec. 6)


def unpacked(cache: Path, packages: dict[str, tuple[str, str, str]]) -> Path:
    """Fetch pinned Debian packages into `cache` and unpack them there; -> where to."""
    for path in fetch(cache, APT, packages).values():
        subprocess.run(["dpkg-deb", "-x", path, cache / "unpacked"], check=True)
    return cache / "unpacked"


def _table() -> list[int]:
    out = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1 ^ POLYNOMIAL if value & 0x80000000 else value << 1) & 0xFFFFFFFF
        out.append(value)
    return out


TABLE = _table()


def steady(ogg: bytes) -> bytes:
    """The same OGG stream under number 1: libsndfile draws a number by the clock, and equal sounds should be equal bytes."""
    out, place = bytearray(), 0
    while place < len(ogg):
        count = ogg[place + 26]
        size = 27 + count + sum(ogg[place + 27 : place + 27 + count])
        page = bytearray(ogg[place : place + size])
        page[14:18], page[22:26] = (1).to_bytes(4, "little"), bytes(4)
        value = 0
        for byte in page:
            value = (value << 8 & 0xFFFFFFFF) ^ TABLE[value >> 24 ^ byte]
        page[22:26] = value.to_bytes(4, "little")
        out += page
        place += size
    return bytes(out)


def ogg(wave: np.ndarray, quality: float) -> bytes:
    """Opus in OGG, 16 kHz; quality from 0 (coarsest) to 1."""
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, RATE, format="OGG", subtype="OPUS", compression_level=1 - quality)
    return steady(buffer.getvalue())


def write(out: Path, items: list[tuple[dict, np.ndarray]], quality: float) -> None:
    """A zip of OGG files with metadata.jsonl: the same bytes each time."""

    def files() -> Iterator[tuple[str, bytes]]:
        for record, wave in items:
            yield record["file_name"], ogg(wave, quality)
        yield metadata(record for record, _ in items)

    written = write_zip(out, files(), stored=(".ogg",))
    splits = [record["split"] for record, _ in items]
    minutes = sum(len(wave) for _, wave in items) / RATE / 60
    print(f"{out}: {len(items)} clips, {splits.count('train')} to train on, {minutes:.1f} minutes, "
          f"{written}")  # fmt: skip
