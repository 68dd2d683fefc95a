"""What the tools that build sets of sounds share: fetching pinned packages, OGG files of fixed bytes, the zip."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import soundfile

from unfog.modalities.audio.sound import RATE

POLYNOMIAL = 0x04C11DB7  # of the checksum of an OGG page (RFC 3533, sec. 6)


def fetch(cache: Path, packages: dict[str, tuple[str, str]]) -> Path:
    """Fetch Debian packages NAME=VERSION with their sha256 into `cache` and unpack them there; -> where to."""
    cache.mkdir(parents=True, exist_ok=True)
    for wanted, (file, digest) in packages.items():
        path = cache / file
        if not path.exists():
            subprocess.run(["apt-get", "download", "-q", wanted], cwd=cache, check=True)
        actual = hashlib.sha256(path.read_bytes()).hexdigest()
        if actual != digest:
            sys.exit(f"{path}: sha256 is {actual}, expected {digest}; delete the file and try again")
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
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    date = (1980, 1, 1, 0, 0, 0)
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for record, wave in items:
            archive.writestr(zipfile.ZipInfo(record["file_name"], date), ogg(wave, quality))
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record, _ in items)
        info = zipfile.ZipInfo("metadata.jsonl", date)
        info.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(info, lines)
    partial.replace(out)
    splits = [record["split"] for record, _ in items]
    minutes = sum(len(wave) for _, wave in items) / RATE / 60
    print(f"{out}: {len(items)} clips, {splits.count('train')} to train on, {minutes:.1f} minutes, "
          f"{out.stat().st_size / 1e6:.2f} MB, sha256 {hashlib.sha256(out.read_bytes()).hexdigest()}")  # fmt: skip
