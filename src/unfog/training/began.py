"""What data a run began with, OUT/data.json, and in what they differ when it goes on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from unfog.files import sha256, write_atomic
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


def remember(out: Path, data: PictureSet, styles: list[str], codec: RGBACodec) -> None:
    """Write OUT/data.json: fingerprint, number of pictures, the classes' order and the codec, and each file's digest."""
    files = digests(data)
    said = {"fingerprint": sha256(json.dumps(files).encode()), "pictures": len(data), "styles": styles,
            "mean": codec.mean, "std": codec.std, "files": files}  # fmt: skip
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
        codec = RGBACodec(tuple(map(float, said["mean"])), tuple(map(float, said["std"])))
        return {"files": files, "styles": [str(s) for s in said["styles"]], "codec": codec}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"unfog: {path}: damaged ({str(error)[:80]}); written anew", file=sys.stderr)
        return None


def tell_changes(data: PictureSet, began: dict[str, str]) -> None:
    """One line on stderr where the data are not those that the run began with."""
    now = digests(data)
    kinds = {"changed": [n for n in began if n in now and began[n] != now[n]], "new": [n for n in now if n not in began],
             "gone": [n for n in began if n not in now]}  # fmt: skip
    counts = ", ".join(f"{len(names)} {kind}" for kind, names in kinds.items() if names)
    if counts:
        first = ", ".join([f"{n} {kind}" for kind, names in kinds.items() for n in names[:3]][:3])
        print(f"unfog: {data.path}: not the data that the run began with: {counts} ({first}); going on with what is there now",
              file=sys.stderr)  # fmt: skip
