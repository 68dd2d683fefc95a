"""What data a run began with, OUT/data.json, and in what they differ when it goes on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from unfog.files import sha256, write_atomic
from unfog.modalities.contract import Items
from unfog.modalities.image.codec import RGBACodec
from unfog.modalities.image.data import PictureSet

FILE = "data.json"


def digests(data: PictureSet) -> dict[str, str]:
    """What each file is known by: its size and time, and what is said of it."""
    found: dict[str, str] = {}
    for record in data.records:
        said = json.dumps([found.get(record.file_name), data.stamp(record.file_name), record.model_dump()])
        found[record.file_name] = sha256(said.encode())[:16]
    return found


def digests_of(items: Items) -> dict[str, str]:
    """What each file of a set of items is known by: its size and time; and how many items of each split there are."""
    files = [items.path] if items.path.is_file() else sorted(p for p in items.path.rglob("*") if p.is_file())
    found = {
        p.name if p == items.path else str(p.relative_to(items.path)): [p.stat().st_size, p.stat().st_mtime_ns] for p in files
    }
    splits = {split: sum(own == split for own in items.splits) for split in sorted(set(items.splits))}
    return {name: sha256(json.dumps([stamp, splits]).encode())[:16] for name, stamp in found.items()}


def remember(out: Path, files: dict[str, str], more: dict[str, Any]) -> None:
    """Write OUT/data.json: fingerprint, each file's digest, and what the data have set (classes' order and codec, or a space)."""
    said = {"fingerprint": sha256(json.dumps(files).encode()), **more, "files": files}
    write_atomic(out / FILE, (json.dumps(said, indent=0, ensure_ascii=False) + "\n").encode())


def recall(out: Path) -> dict[str, Any] | None:
    """What `remember` wrote; None where there is none, or, aloud, where it is damaged."""
    path = out / FILE
    if not path.exists():
        return None
    try:
        said = json.loads(path.read_bytes())
        files = {str(k): str(v) for k, v in said["files"].items()}
        if said["fingerprint"] != sha256(json.dumps(files).encode()):
            raise ValueError("its fingerprint differs")
        if "space" not in said:
            of_pictures(said)
        return {**said, "files": files}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"unfog: {path}: damaged ({str(error)[:80]}); written anew", file=sys.stderr)
        return None


def of_pictures(said: dict[str, Any]) -> tuple[list[str], RGBACodec]:
    """Styles and codec of what was remembered of pictures."""
    return [str(s) for s in said["styles"]], RGBACodec(tuple(map(float, said["mean"])), tuple(map(float, said["std"])))


def tell_changes(path: Path, began: dict[str, str], now: dict[str, str]) -> None:
    """One line on stderr where the data are not those that the run began with."""
    kinds = {"changed": [n for n in began if n in now and began[n] != now[n]], "new": [n for n in now if n not in began],
             "gone": [n for n in began if n not in now]}  # fmt: skip
    counts = ", ".join(f"{len(names)} {kind}" for kind, names in kinds.items() if names)
    if counts:
        first = ", ".join([f"{n} {kind}" for kind, names in kinds.items() for n in names[:3]][:3])
        print(f"unfog: {path}: not the data that the run began with: {counts} ({first}); going on with what is there now",
              file=sys.stderr)  # fmt: skip
