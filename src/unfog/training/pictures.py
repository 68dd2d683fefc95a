"""Pictures at training size, decoded once: in memory, or in a file of the run's folder where they would take too much.

OUT/pictures/KEY.npy    rows of uint8, those as found and then the recoloured ones; whole or absent
OUT/pictures/KEY.json   of which records they are; written last, so that nothing half-written counts
KEY is of names, sizes and times of the files, what is known of them, and the training size.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np

from unfog.errors import UserError
from unfog.files import sha256, write_atomic
from unfog.modalities.image.colours import main_colours, turn_hue
from unfog.modalities.image.data import PictureSet
from unfog.modalities.image.records import Record
from unfog.training.buckets import Frame, nearest, used_frames
from unfog.training.machine import memory
from unfog.training.recipe import Recipe

FOLDER = "pictures"
SHARE = 0.25  # of the free memory that pictures may take
BROKEN = 0.05  # share of unreadable pictures above which a data set is refused
FEW = 20  # pictures, of fewer than which one may be broken
THREADS = 4
HEAD = 128  # bytes of a .npy's head
UNKNOWN = 8 << 30  # bytes of memory where the system does not say


class Pile:
    """Pictures one after the other, (N, *shape) uint8. `path` None: in memory; else in that file once `finish` was called."""

    def __init__(self, shape: tuple[int, ...], most: int, path: Path | None) -> None:
        self.shape, self.count, self.path = shape, 0, path
        self.bytes = int(np.prod(shape))
        self.rows = np.empty((most if path is None else 0, *shape), np.uint8)  # memory is taken when it is written to
        self.file: IO[bytes] | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
            self.file = open(self.partial, "w+b")  # noqa: SIM115 - until finish or drop
            self.file.write(bytes(HEAD))

    def add(self, picture: np.ndarray) -> None:
        """Append one; pixels that a smaller frame lacks are 0."""
        row = np.zeros(self.bytes, np.uint8)
        row[: picture.size] = picture.ravel()
        if self.file is None:
            self.rows[self.count] = row.reshape(self.shape)
        else:  # written, not mapped: a full disk is then an error and no signal
            self.file.write(row.tobytes())
        self.count += 1

    def get(self, i: int) -> np.ndarray:
        """Row i as it was added."""
        if self.file is None:
            return self.rows[i]
        self.file.seek(HEAD + i * self.bytes)
        data = self.file.read(self.bytes)
        self.file.seek(0, os.SEEK_END)
        return np.frombuffer(data, np.uint8).reshape(self.shape)

    def finish(self) -> np.ndarray:
        """All rows; the file gets its name."""
        if self.file is None or self.path is None:
            return self.rows[: self.count]
        self.file.seek(0)
        head = {"descr": "|u1", "fortran_order": False, "shape": (self.count, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, head)
        assert self.file.tell() == HEAD
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        os.replace(self.partial, self.path)
        return opened(self.path)

    def drop(self) -> None:
        """Leave nothing behind of a file that was not finished."""
        if self.file is not None:
            self.file.close()
            self.partial.unlink(missing_ok=True)


def opened(path: Path) -> np.ndarray:
    """A file of pictures, mapped; changes to it in memory stay there."""
    return np.load(path, mmap_mode="c", allow_pickle=False)


class Decoded:
    """The pictures of one split, and what is needed to say what they show.

    records of those that could be read; `bucket` (N,) the number of each one's frame, None where all are squares.
    """

    def __init__(self, data: PictureSet, split: str, recipe: Recipe, out: Path | None, frames: list[Frame] | None = None) -> None:
        self.recipe, self.split, self.data, self.turning = recipe, split, data, recipe.recolour > 0 and split == "train"
        self.indices = data.split(split)
        self.frames = frames or []
        self.bucket: list[int] = []
        self.colours: dict[int, list[str]] = {}  # of recoloured pictures
        self.pending: np.ndarray | None = None
        self.pile: Pile | None = None
        self.place = None if out is None else out / FOLDER / f"{self._key()}.npy"
        self.kept = self._found()
        if self.kept is None:
            self._decode()

    def _key(self) -> str:
        data, recipe = self.data, self.recipe
        known = [[data.stamp(data.records[i].file_name), data.records[i].model_dump()] for i in self.indices]
        how = [
            self.split,
            recipe.size,
            recipe.buckets,
            self.frames,
            recipe.batch if recipe.buckets else 0,
            self.turning,
            recipe.seed,
        ]
        return sha256(json.dumps([how, known]).encode())[:16]

    def _found(self) -> np.ndarray | None:
        """What an earlier start of this run left, if it is whole."""
        if self.place is None or not self.place.with_suffix(".json").is_file():
            return None
        try:
            said = json.loads(self.place.with_suffix(".json").read_bytes())
            rows = opened(self.place)
            if rows.dtype != np.uint8 or len(rows) != said["rows"]:
                raise ValueError("another number of pictures")
            self.indices = [self.indices[i] for i in said["good"]]
            self.bucket, self.frames = said["bucket"], [(w, h) for w, h in said["frames"]]
            self.colours = {int(j): colours for j, colours in said["colours"].items()}
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            print(f"unfog: {self.place}: damaged ({str(error)[:80]}); decoding the pictures again", file=sys.stderr)
            return None
        return rows

    def _decode(self) -> None:
        recipe, good, bad = self.recipe, [], []
        everyone = list(range(len(self.indices)))
        if recipe.buckets and not self.frames:
            sizes = [s for s in self._each(everyone, self.data.size) if not isinstance(s, UserError)]
            self.frames = used_frames(sizes, recipe) if sizes else []
        pixels = max((w * h for w, h in self.frames), default=0)
        shape = (pixels, 4) if recipe.buckets else (recipe.size, recipe.size, 4)
        most = len(everyone) + (len(everyone) // 3 if self.turning else 0)
        limit = SHARE * (memory() or UNKNOWN) if recipe.picture_memory is None else recipe.picture_memory * 2**30
        if most * int(np.prod(shape)) <= limit / int(os.environ.get("WORLD_SIZE", 1)):
            self.place = None
        self.pile = Pile(shape, most, self.place)
        try:
            for i, picture in zip(everyone, self._each(everyone, self._load), strict=True):
                if isinstance(picture, UserError):
                    bad.append(str(picture).removeprefix(f"{self.data.path}: "))
                    continue
                good.append(i)
                if recipe.buckets:
                    self.bucket.append(picture[0])
                    picture = picture[1]
                self.pile.add(picture)
            self._judge(len(everyone), bad)
        except BaseException:
            self.pile.drop()
            raise
        self.good, self.all = good, self.indices
        self.indices = [self.indices[i] for i in good]

    def _load(self, i: int) -> Any:
        if not self.recipe.buckets:
            return self.data.load(i, self.recipe.size)
        bucket = nearest(self.data.size(i), self.frames)
        return bucket, self.data.load(i, self.frames[bucket])

    def _each(self, numbers: list[int], call: Any) -> Iterator[Any]:
        """call(index of each), in order, by a few threads; an error is given in place of what it concerns."""

        def tried(i: int) -> Any:
            try:
                return call(self.indices[i])
            except UserError as error:
                return error

        with ThreadPoolExecutor(THREADS) as pool:
            for first in range(0, len(numbers), 256):
                yield from pool.map(tried, numbers[first : first + 256])

    def _judge(self, count: int, bad: list[str]) -> None:
        """Go on without a few unreadable pictures, aloud; refuse a set of which many are."""
        if not bad:
            return
        named = "; ".join(line.split("; repair")[0][:120] for line in bad[:3]) + (" ..." if len(bad) > 3 else "")
        single = len(bad) == 1 and count < FEW and count >= 2
        if len(bad) > BROKEN * count and not single:
            share = f"{len(bad)} of {count} pictures cannot be read"
            raise UserError(f"{self.data.path}: {share} ({named}); repair or remove them")
        if not int(os.environ.get("RANK", 0)):
            print(f"unfog: {self.data.path}: {len(bad)} of {count} pictures cannot be read and are left out ({named})",
                  file=sys.stderr)  # fmt: skip

    @property
    def records(self) -> list[Record]:
        return [self.data.records[i] for i in self.indices]

    def turn(self, j: int, angle: float) -> list[str]:
        """The main colours of picture j with its hue turned; `keep` then takes it among the pictures."""
        if self.pile is None:
            return self.colours[j]
        self.pending = turn_hue(self.pile.get(j), angle)
        self.colours[j] = main_colours(self.pending)
        return self.colours[j]

    def keep(self) -> None:
        if self.pile is not None and self.pending is not None:
            self.pile.add(self.pending)

    def finish(self) -> np.ndarray:
        """All pictures, with those that were kept; in the file, if they are to be in one."""
        if self.kept is not None or self.pile is None:
            assert self.kept is not None
            return self.kept
        try:
            rows = self.pile.finish()
        except BaseException:
            self.pile.drop()
            raise
        if self.place is not None:
            records = [self.data.records[i] for i in self.all]
            said = {"split": self.split, "size": self.recipe.size, "rows": len(rows), "good": self.good, "bucket": self.bucket,
                    "frames": self.frames, "colours": self.colours, "styles": self.data.styles,
                    "records": [r.model_dump() for r in records],
                    "stamps": [self.data.stamp(r.file_name) for r in records]}  # fmt: skip
            write_atomic(self.place.with_suffix(".json"), json.dumps(said).encode())
            self._forget()
        return rows

    def _forget(self) -> None:
        """Remove this split's pictures of before the data changed, and what a killed start left half-written."""
        assert self.place is not None
        for path in self.place.parent.glob("*.json"):
            if path.stem != self.place.stem and _of(path).get("split") == self.split:
                path.unlink()
                path.with_suffix(".npy").unlink(missing_ok=True)
        for path in self.place.parent.glob(".*.npy.*.partial"):
            if not int(os.environ.get("WORLD_SIZE", 1)) > 1:  # else it may be another process's, at work
                path.unlink()


def _of(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def kept_set(path: Path, out: Path) -> PictureSet | None:
    """The data set as its kept pictures know it, for a run whose files are gone; None where nothing was kept."""
    stamps: dict[str, str] = {}
    records: list[Record] = []
    styles: list[str] = []
    for file in sorted((out / FOLDER).glob("*.json")):
        said = _of(file)
        if "records" in said and file.with_suffix(".npy").is_file():
            own = [Record.model_validate(fields) for fields in said["records"]]
            stamps |= {record.file_name: stamp for record, stamp in zip(own, said["stamps"], strict=True)}
            records, styles = records + own, said["styles"]
    if not any(record.split == "train" for record in records):
        return None

    def gone(name: str) -> bytes:
        raise OSError("it is gone")

    found = PictureSet(path, records, gone, stamps.__getitem__)
    found.styles = styles
    return found
