"""What a model may have memorised, at hand: its training pictures as the copy detector keeps them, with thresholds, cached.

    key  = sha256(format, place, name and stamp of every picture)      file = tensors (safetensors), its sha256 in front

A file whose sha256 differs is said aloud and made again; a folder that cannot be written means no cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from unfog.errors import UserError
from unfog.evaluation.aligned import planes
from unfog.evaluation.cache import cache_folder, keep, kept
from unfog.evaluation.copies import NETWORK, Known, look
from unfog.evaluation.memorisation import Calibration, calibrate
from unfog.evaluation.samples import data_at
from unfog.files import sha256

if TYPE_CHECKING:
    from unfog.modalities.image.data import PictureSet

MAGIC = b"unfog known 1\n"
SIDE = 64  # pixels a side at which data is read: twice what is compared
UNSEEN = 500  # pictures that say what unseen ones score
BLOCK = 256


@dataclass(frozen=True)
class Neighbour:
    """The training picture that a picture is too near to."""

    name: str
    row: int  # in the data set
    score: float
    apart: float  # RMS of the three colours in [0, 1], aligned and recoloured
    mirrored: bool


@dataclass(frozen=True)
class Memory:
    """Training pictures and thresholds; `near` says whether a picture is a copy of one."""

    data: PictureSet
    rows: list[int]
    known: Known
    upright: Calibration
    mirrored: Calibration

    def near(self, pictures: Sequence[Image.Image | NDArray[np.uint8]]) -> list[Neighbour | None]:
        """For each picture (straight RGBA, any size) the training picture it copies, or None."""
        raw = [np.asarray(p.convert("RGBA") if isinstance(p, Image.Image) else p) for p in pictures]
        found: list[Neighbour | None] = [None] * len(raw)
        for turned, limit in ((True, self.mirrored), (False, self.upright)):
            part = look(raw, self.known, None, turned)
            for i in np.flatnonzero(part.score > limit.threshold):
                row = self.rows[int(part.index[i])]
                name = self.data.records[row].file_name
                found[int(i)] = Neighbour(name, row, float(part.score[i]), float(part.apart[i]), turned)
        return found

    def picture(self, neighbour: Neighbour, size: tuple[int, int]) -> Image.Image:
        """The neighbour as it was trained on, width and height in pixels."""
        return Image.fromarray(self.data.load(neighbour.row, size if size[0] != size[1] else size[0]))


def data_of(model: Any, against: str | Path | None = None) -> PictureSet:
    """The data set a model was trained on, by its card, or the one given. Raises UserError where it is not there."""
    if against is None:
        against = (model.card.get("training") or {}).get("data")
        if not isinstance(against, str) or not against:
            raise UserError(f"novel: {model.name} does not say what it was trained on; give its data with --against")
        if not Path(against).exists() and "/" in against:
            raise UserError(f"novel: {against}, the data of {model.name}, is not there; give its place with --against")
    return data_at(against)


def memory(data: PictureSet, folder: Path | None = None) -> Memory:
    """What is kept of a data set's training split (all of it, where there are no splits), from the cache or made and kept.

    Thresholds are taken on its other splits, or, where there are none, on training pictures held against all others.
    folder: instead of `cache_folder()`. Raises UserError where there are fewer than two pictures.
    """
    rows = data.split("train") or list(range(len(data)))
    if len(rows) < 2:
        raise UserError(f"{data.path}: one picture only; nothing can be told from it")
    others = [i for i in range(len(data)) if data.records[i].split != "train"] if data.split("train") else []
    place = (folder or cache_folder()) / "known" / f"{_key(data)}.known"
    found = _read(place, len(rows))
    if found is None:
        found = _make(data, rows, others)
        _write(place, *found)
    return Memory(data, rows, *found)


def _make(data: PictureSet, rows: list[int], others: list[int]) -> tuple[Known, Calibration, Calibration]:
    known = Known.of(_blocks(data, rows))
    rng = np.random.default_rng(0)
    own: NDArray[np.int64] | None = None
    if others:
        chosen = [others[i] for i in rng.permutation(len(others))[:UNSEEN]]
        pictures = planes([picture for block in _blocks(data, chosen) for picture in block])
        groups = [data.records[i].concept or str(i) for i in chosen]
    else:
        own = rng.permutation(len(rows))[:UNSEEN]
        pictures = known.planes[torch.from_numpy(own)]
        groups = [data.records[rows[i]].concept or str(i) for i in own]
    upright, mirrored = (calibrate(look(pictures, known, own, turned).score, groups) for turned in (False, True))
    return known, upright, mirrored


def _blocks(data: PictureSet, rows: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    for i in range(0, len(rows), BLOCK):
        yield np.stack([data.load(row, SIDE) for row in rows[i : i + BLOCK]])


def _key(data: PictureSet) -> str:
    """Changes with the detector, the place, and every picture's name, split and stamp."""
    hasher = hashlib.sha256(f"{sha256(NETWORK.read_bytes())} {SIDE} {UNSEEN} {data.path.resolve()}\n".encode())
    if data.path.is_file():
        state = data.path.stat()
        hasher.update(f"{state.st_size} {state.st_mtime_ns}\n".encode())
    for record in data.records:
        hasher.update(f"{record.file_name}\t{record.split}\t{record.concept}\t{data.stamp(record.file_name)}\n".encode())
    return hasher.hexdigest()[:40]


def _read(place: Path, count: int) -> tuple[Known, Calibration, Calibration] | None:
    """What was kept, if it is whole."""
    from safetensors.torch import load

    rest = kept(place, MAGIC, "looking at the training pictures again")
    if rest is None:
        return None
    tensors = load(rest)
    limits = json.loads(tensors["limits"].numpy().tobytes())
    if len(tensors["planes"]) != count:
        return None
    upright, mirrored = map(Calibration.model_validate, limits)
    return Known(tensors["planes"], tensors["vectors"]), upright, mirrored


def _write(place: Path, known: Known, upright: Calibration, mirrored: Calibration) -> None:
    from safetensors.torch import save

    limits = json.dumps([upright.model_dump(), mirrored.model_dump()]).encode()
    raw = save({"planes": known.planes, "vectors": known.vectors, "limits": torch.tensor(list(limits), dtype=torch.uint8)})
    keep(place, MAGIC, raw, "what was found is")
